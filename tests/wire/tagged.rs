//! Clients whose frames carry VLAN tags, without a VLAN interface of anybody's: the frames are made and read
//! whole, on the cables.

use std::net::{IpAddr, SocketAddr};

use lb_common::Mac;
use lb_tests::agent::DEADLINE;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::Host;
use lb_tests::packet::{ACK, Packet, SYN, csums_are_right, tcp};
use lb_tests::raw::Tap;
use lb_tests::shape::tagged;

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
fn mac(host: &Host, device: &str) -> Mac {
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
