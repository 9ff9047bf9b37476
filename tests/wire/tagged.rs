//! Clients whose frames carry VLAN tags, without a VLAN interface of anybody's: the frames are made and read
//! whole, on the cables.

use std::net::{IpAddr, SocketAddr};

use lb_common::backend::NextHop;
use lb_common::{Mac, Tag, Tags, tunnel};
use lb_tests::agent::DEADLINE;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::Host;
use lb_tests::packet::{ACK, Packet, SYN, csums_are_right, tcp};
use lb_tests::raw::Tap;
use lb_tests::shape::tagged;
use lb_tests::world::World;
use penstock::datapath::Attached;
use penstock::datapath::engine::Engine;
use penstock::datapath::want::Way;
use penstock::model::l4::ForwardingMode::{self, Ipip, L2, Nat, Tunnel};
use penstock::model::l4::Protocol;

use crate::interfaces::ifindex;
use crate::rig::{Arms, CLIENT, Rig};

const RST: u8 = 4;

/// Services by mode, the last octet of their addresses and their port; `refused` has no backend.
const SERVICES: [(&str, u8, u16); 4] =
    [("l2", 10, 5432), ("ipip", 11, 5432), ("nat", 12, 80), ("refused", 13, 80)];
const CASES: [(&str, &[u16]); 3] = [("no tag", &[]), ("one tag", &[5]), ("two tags", &[100, 7])];
/// Port of the backend's TCP echo.
const ECHO: u16 = 5432;

fn vip(family: usize, last: u8) -> IpAddr {
    let vip = if family == 0 { format!("203.0.113.{last}") } else { format!("2001:db8:113::{last}") };
    vip.parse().expect("an address")
}

fn services() -> String {
    let mut documents = Vec::new();
    for (mode, last, port) in SERVICES {
        for family in [0, 1] {
            let (name, vip) = (format!("{mode}-{family}"), vip(family, last));
            let of = |mode| LoadBalancer { name: &name, vip, protocol: "TCP", port, target_port: ECHO, mode };
            documents.push(match mode {
                "refused" => of("nat").yaml(),
                mode => of(mode).with_backends(&[(Arms::Two.backend(1)[family], 1)]),
            });
        }
    }
    documents.join("---\n")
}

/// MAC of an interface.
pub fn mac(host: &Host, device: &str) -> Mac {
    let line = host.run(&format!("ip -o link show dev {device}")).expect("the interface is there");
    let text = line.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC")).collect();
    Mac(bytes.try_into().expect("six bytes"))
}

/// The VLANs of a frame, the outermost first, and the frame without them.
fn untagged(frame: &[u8]) -> (Vec<u16>, Vec<u8>) {
    let (mut vlans, mut rest) = (Vec::new(), &frame[12..]);
    while let [0x81 | 0x88, 0x00 | 0xa8, high, low, ..] = rest {
        vlans.push(u16::from_be_bytes([*high, *low]) & 0xfff);
        rest = &rest[4..];
    }
    (vlans, [&frame[..12], rest].concat())
}

/// A TCP segment as it is on the cable.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    vlans: Vec<u16>,
    to: Mac,
    src: SocketAddr,
    dst: SocketAddr,
    flags: u8,
}

impl Segment {
    /// `None` for anything else.
    fn read(frame: &[u8]) -> Option<Self> {
        let (vlans, frame) = untagged(frame);
        let (src, dst, l4): (IpAddr, IpAddr, usize) = match (&frame[12..14], frame.get(14..)?) {
            ([0x08, 0x00], [0x45, _, _, _, _, _, _, _, _, 6, ..]) => {
                let addr = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
                (addr(26)?, addr(30)?, 34)
            }
            ([0x86, 0xdd], [_, _, _, _, _, _, 6, ..]) => {
                let addr =
                    |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
                (addr(22)?, addr(38)?, 54)
            }
            _ => return None,
        };
        assert!(csums_are_right(&frame), "{frame:02x?}");
        let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        Some(Self {
            vlans,
            to: Mac(frame[..6].try_into().ok()?),
            src: SocketAddr::new(src, port(l4)?),
            dst: SocketAddr::new(dst, port(l4 + 2)?),
            flags: *frame.get(l4 + 13)?,
        })
    }
}

#[test]
fn tags_of_clients_stay_behind_and_stand_on_the_answers() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services())]) else { return };
    let switch = rig.lab.switch();
    for port in ["client0", "edge0", "edge1", "b10"] {
        // A tag that stands beside the frame is none that XDP sees, or that a cable carries.
        switch.run(&format!("ethtool -K {port} txvlan off tx-vlan-stag-hw-insert off")).unwrap();
    }
    let (client, edge, b1) =
        (mac(&rig.client, "eth0"), mac(&rig.edge, "eth0"), mac(&rig.backends[0], "eth0"));
    let [at_client, at_backend] = ["client0", "b10"].map(|port| switch.within(|| Tap::on(port)).unwrap());
    let cable = rig.client.within(|| Tap::on("eth0")).unwrap();
    let mut port = 40_000;

    for (mode, last, vip_port) in SERVICES {
        for family in [0, 1] {
            let vip = SocketAddr::new(vip(family, last), vip_port);
            let backend = SocketAddr::new(Arms::Two.backend(1)[family], ECHO);
            if mode == "nat" {
                // Those without tags go on as ever, and by now everybody knows everybody's MAC.
                let names = rig.who_answers_tcp(vip, 1);
                assert_eq!(names.into_keys().collect::<Vec<_>>(), ["b1"], "{vip}");
            }
            for (case, vlans) in CASES {
                port += 1;
                let case = format!("{mode} {vip} {case}");
                let from = SocketAddr::new(CLIENT[family].parse().expect("an address"), port);
                let packet = tcp(&from.to_string(), &vip.to_string());
                let packet = Packet { dst_mac: edge, src_mac: client, flags: SYN, payload: vec![], ..packet };
                let bare = packet.bytes();
                let (plain, sent) = (bare.get(14..).unwrap_or_default(), tagged(&bare, vlans));

                let mut arrived = None;
                let mut answered = None;
                // The agent may not have reached the first backend yet.
                let found = lb_tests::agent::eventually(DEADLINE, || {
                    cable.send(&sent).expect("sent");
                    let soon = std::time::Duration::from_millis(300);
                    match mode {
                        "l2" | "ipip" => {
                            arrived = at_backend.find(soon, |frame| {
                                let (vlans, frame) = untagged(frame);
                                let is_it = frame[..6] == b1.0 && frame.ends_with(plain);
                                is_it.then_some((vlans, frame))
                            });
                            arrived.as_ref().map(drop)
                        }
                        _ => {
                            answered = at_client.find(soon, |frame| {
                                Segment::read(frame).filter(|segment| segment.dst == from)
                            });
                            answered.as_ref().map(drop)
                        }
                    }
                });

                assert!(found.is_some(), "{case}: nothing came\n{}", rig.agent.log());
                if let Some((vlans, frame)) = arrived {
                    assert_eq!(vlans, Vec::<u16>::new(), "{case}");
                    let outer = frame.len() - 14 - plain.len();
                    assert_eq!(
                        outer,
                        if mode == "l2" { 0 } else { [20, 40][family] },
                        "{case}: {frame:02x?}"
                    );
                }
                if let Some(segment) = answered {
                    let flags = if mode == "nat" { SYN | ACK } else { RST | ACK };
                    let expected = Segment { vlans: vlans.to_vec(), to: client, src: vip, dst: from, flags };
                    assert_eq!(segment, expected, "{case}: {backend}");
                }
            }
        }
    }
}

/// Modes that send to another host, with the last octet of their VIPs.
const MODES: [(ForwardingMode, u8); 4] = [(L2, 10), (Ipip, 20), (Tunnel, 30), (Nat, 40)];

/// Tags of the way to a backend, as they are read from its cable and as the program has them.
fn ways() -> [(Vec<u16>, Tags); 3] {
    let one = Tags::one(Tag::customer(7));
    [
        (vec![], Tags::NONE),
        (vec![7], one),
        (vec![100, 7], one.within(Tag::service(100)).expect("room for two")),
    ]
}

/// The program on a host's interfaces, with a Service for each mode, family and way. What the agent reads of a VLAN
/// interface (`network::links`) is given here, because not every kernel has such interfaces.
fn program(edge: &Host, backend: Mac) -> Engine {
    let mut world = World::default();
    let [front, back] = ["eth0", "eth1"].map(|device| ifindex(edge, device).parse().expect("a number"));
    let source = [IpAddr::from([10, 2, 0, 1]), "fd02::1".parse().expect("an address")];
    let next_hop = NextHop::new(backend, mac(edge, "eth1"), back);
    for (mode, last) in MODES {
        for (number, (_, tags)) in (0..).zip(ways()) {
            for family in [0, 1] {
                let vip = SocketAddr::new(vip(family, last + number), 80).to_string();
                let server = SocketAddr::new(Arms::Two.backend(1)[family], 80).to_string();
                world = world.service(Protocol::Tcp, &vip, mode, &[&server]);
                for to in world.backends_mut(&vip, Protocol::Tcp).values_mut() {
                    to.way = Way { source: source[family], next_hop, mtu: 1500, tags };
                }
            }
        }
    }
    edge.within(|| {
        let mut engine = world.load();
        for (device, ifindex) in [("eth0", front), ("eth1", back)] {
            engine.set_interface(ifindex, mac(edge, device));
            engine.kernel.allow_device(ifindex, ifindex).expect("may be redirected to");
            engine.kernel.attach(device, ifindex, Attached::Native).expect("attached");
        }
        engine
    })
}

#[test]
fn frames_to_backends_behind_tags_leave_with_them_whatever_the_clients_have() {
    let Some(lab) = crate::rig::lab() else { return };
    let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])]).unwrap();
    let edge: [(&str, &[&str]); 2] =
        [("front", &["10.1.0.1/24", "fd01::1/64"]), ("back", &["10.2.0.1/24", "fd02::1/64"])];
    let edge = lab.host("edge", &edge).unwrap();
    let backend = lab.host("b1", &[("back", &["10.2.0.11/24", "fd02::11/64"])]).unwrap();
    let switch = lab.switch();
    for port in ["client0", "edge0", "edge1", "b10"] {
        switch.run(&format!("ethtool -K {port} txvlan off tx-vlan-stag-hw-insert off")).unwrap();
    }
    let b1 = mac(&backend, "eth0");
    let engine = program(&edge, b1);
    let cable = client.within(|| Tap::on("eth0")).unwrap();
    let at_backend = switch.within(|| Tap::on("b10")).unwrap();
    // By now the switch knows where the backend is, and sends there alone.
    backend.run("ping -c1 -W1 10.2.0.1; true").unwrap();
    let mut port = 50_000;

    for (mode, last) in MODES {
        for (number, (tags, _)) in (0..).zip(ways()) {
            for family in [0, 1] {
                for (_, vlans) in CASES {
                    port += 1;
                    let from = SocketAddr::new(CLIENT[family].parse().expect("an address"), port);
                    let vip = SocketAddr::new(vip(family, last + number), 80);
                    let server = SocketAddr::new(Arms::Two.backend(1)[family], 80);
                    let case = format!("{mode:?} {vip} from {vlans:?}");
                    let packet = tcp(&from.to_string(), &vip.to_string());
                    let (dst_mac, src_mac) = (mac(&edge, "eth0"), mac(&client, "eth0"));
                    let bare = Packet { dst_mac, src_mac, flags: SYN, payload: vec![], ..packet }.bytes();

                    cable.send(&tagged(&bare, vlans)).expect("sent");
                    let arrived = at_backend.find(DEADLINE, |frame| {
                        let (vlans, frame) = untagged(frame);
                        let is_it = match mode {
                            Nat => Segment::read(&frame).is_some_and(|segment| segment.dst == server),
                            _ => frame.ends_with(&bare[14..]),
                        };
                        (frame[..6] == b1.0 && is_it).then_some((vlans, frame))
                    });

                    let (found, frame) =
                        arrived.unwrap_or_else(|| panic!("{case}: nothing came: {:?}", engine.verdicts()));
                    assert_eq!(found, tags, "{case}");
                    let grown = match mode {
                        Ipip => [20, 40][family],
                        Tunnel => [tunnel::OVERHEAD_V4, tunnel::OVERHEAD_V6][family],
                        _ => 0,
                    };
                    assert_eq!(frame.len(), bare.len() + grown, "{case}: {frame:02x?}");
                }
            }
        }
    }
}
