//! VLAN tags: pushed on the way to a backend, given back to the client, byte for byte.

use lb_common::tunnel::Round;
use lb_common::{TCP, Tag, Tags};
use lb_tests::packet::{ACK, OURS, Packet, ROUTER, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::{fragments, tagged, with_extensions, with_options};
use lb_tests::world::{LOOPBACK, World, backend_mac, can_run_programs, tunnel_tag, tunnelled};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode, ForwardingMode::*, Protocol::*};

use crate::run::{Drop, Pass, Send, count, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
/// A VIP of each family, and its only backend.
const VIPS: [&str; 2] = ["203.0.113.31:80", "[2001:db8:1::1f]:80"];
const BACKENDS: [&str; 2] = ["10.0.0.31:80", "[fd00::1f]:80"];

/// One tag of each kind, and two.
fn shapes() -> [(Tags, Vec<u8>); 3] {
    let one = Tags::one(Tag::customer(7));
    [
        (one, vec![0x81, 0, 0, 7]),
        (Tags::one(Tag::service(100)), vec![0x88, 0xa8, 0, 100]),
        (one.within(Tag::service(4000)).expect("room"), vec![0x88, 0xa8, 0x0f, 0xa0, 0x81, 0, 0, 7]),
    ]
}

fn with(tags: &[u8], frame: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

const MODES: [(ForwardingMode, &str); 4] =
    [(L2, "forwarded-l2"), (Ipip, "forwarded-ipip"), (Tunnel, "forwarded-tunnel"), (Nat, "forwarded-nat")];

/// Last byte of the VIP and of the backend with this mode and these tags.
fn last(mode: usize, shape: usize) -> u8 {
    (10 * mode + shape + 1) as u8
}

fn vips(last: u8) -> [String; 2] {
    [format!("203.0.113.{last}:80"), format!("[2001:db8:1::{last:x}]:80")]
}

/// A Service of each mode, family and protocol for each shape of tags that its backend may be behind.
fn world(tagged: bool) -> Engine {
    let mut world = World::new();
    for (number, (mode, _)) in MODES.into_iter().enumerate() {
        for (shape, (tags, _)) in shapes().into_iter().enumerate() {
            let last = last(number, shape);
            let backends = [format!("10.0.0.{last}:80"), format!("[fd00::{last:x}]:80")];
            for (vip, backend) in vips(last).iter().zip(&backends) {
                for protocol in [Tcp, Udp] {
                    world = world.service(protocol, vip, mode, &[backend]);
                    let backends = world.backends_mut(vip, protocol);
                    backends.values_mut().filter(|_| tagged).for_each(|backend| backend.way.tags = tags);
                }
            }
        }
    }
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// One packet of each family and protocol to the VIPs that end so.
fn packets(last: u8) -> [Packet; 4] {
    let [four, six] = vips(last);
    [
        Packet { flags: SYN, ..tcp(CLIENT, &four) },
        udp(CLIENT, &four),
        Packet { flags: SYN, ..tcp(CLIENT6, &six) },
        udp(CLIENT6, &six),
    ]
}

#[test]
fn a_frame_to_a_backend_behind_a_vlan_differs_by_its_tags_alone() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let (mut plain, mut engine) = (world(false), world(true));
    for (number, (mode, verdict)) in MODES.into_iter().enumerate() {
        let (mut sent, before) = (0, count(&engine, verdict));
        for (shape, (tags, bytes)) in shapes().into_iter().enumerate() {
            let last = last(number, shape);
            for packet in packets(last) {
                let frame = packet.bytes();
                let odd = if packet.src.is_ipv4() {
                    with_options(&frame, &[1; 8])
                } else {
                    with_extensions(&frame, &[(60, &[0, 1, 4, 0, 0, 0, 0])])
                };
                let large = Packet { payload: vec![3; 3000], ..packet };
                let mut arrivals = vec![frame.clone(), tagged(&frame, &[5]), tagged(&frame, &[100, 5]), odd];
                arrivals.extend(fragments(&large.bytes(), 1200));
                for arrived in arrivals {
                    let Send(expected) = run(&mut plain, &arrived) else { panic!("{mode:?}: not sent") };
                    assert_eq!(expected[..6], backend_mac(last).0);

                    let did = run(&mut engine, &arrived);

                    assert!(did == Send(with(&bytes, &expected)), "{mode:?} {tags}: {did:?}");
                    sent += 1;
                }
            }
        }
        assert_eq!(count(&engine, verdict), before + sent, "{mode:?}: each is counted once");
    }
}

#[test]
fn nat_answers_a_client_with_the_tags_that_it_came_with() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world(true);
    let arrivals = [&[][..], &[5], &[100, 5], &[6]];
    for (client, vip, backend, node, at) in
        [(CLIENT, VIPS[0], BACKENDS[0], "10.0.0.254", 38), (CLIENT6, VIPS[1], BACKENDS[1], "[fd00::fe]", 58)]
    {
        // The same flow: its router moves from VLAN to VLAN.
        for tags in arrivals {
            let asked = Packet { flags: SYN, ..tcp(client, vip) };
            let Send(out) = run(&mut engine, &tagged(&asked.bytes(), tags)) else { panic!("not sent") };
            let port = u16::from_be_bytes([out[at], out[at + 1]]);
            let answer = Packet { flags: SYN | ACK, ..tcp(backend, &format!("{node}:{port}")) };
            let expected = Packet {
                dst_mac: ROUTER,
                src_mac: OURS,
                src: asked.dst,
                dst: asked.src,
                ttl: 63,
                ..answer.clone()
            };
            assert!(csums_are_right(&expected.bytes()));

            let did = run(&mut engine, &tagged(&answer.bytes(), &[7]));

            assert_eq!(did, Send(tagged(&expected.bytes(), tags)), "{tags:?}");
        }
    }
}

#[test]
fn what_comes_tagged_through_the_tunnel_arrives_in_its_vlan_and_is_told_there() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = World::new().service(Tcp, VIPS[0], Local, &[BACKENDS[0]]).service(
        Tcp,
        VIPS[1],
        Local,
        &[BACKENDS[1]],
    );
    world.want.peers = ["10.0.0.9", "fd00::9"].map(|peer| peer.parse().expect("address")).into();
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let peers = [("10.0.0.9:50000", "10.0.0.254:7183"), ("[fd00::9]:50000", "[fd00::fe]:7183")];
    for (client, vip, backend, proto) in
        [(CLIENT, VIPS[0], BACKENDS[0], 4), (CLIENT6, VIPS[1], BACKENDS[1], 41)]
    {
        let tag = tunnel_tag(backend, TCP);
        let backend: std::net::SocketAddr = backend.parse().expect("address");
        for (peer, node) in peers {
            let wrapped_frame = |inner: &[u8]| {
                let payload = tunnelled(inner, Round::First, tag, 0);
                Packet { payload, no_csum: true, ..udp(peer, node) }.bytes()
            };
            let wrapped = |inner: &Packet| wrapped_frame(&inner.bytes());
            for tags in [&[5][..], &[100, 5]] {
                let inner = Packet { flags: SYN, ..tcp(client, vip) };
                let delivered = Packet { dst: backend, ..inner.clone() };

                let run = engine.kernel.test_run("penstock", &tagged(&wrapped(&inner), tags), 1);

                let run = run.expect("the program runs");
                assert_eq!((run.action, run.packet), (2, tagged(&delivered.bytes(), tags)), "{tags:?}");

                // What is no plain packet takes the way of such, to which few hops are left.
                let uncommon = |frame: &[u8]| {
                    if proto == 4 {
                        with_options(frame, &[1, 1, 1, 0])
                    } else {
                        with_extensions(frame, &[(0, &[0, 1, 4, 0, 0, 0, 0])])
                    }
                };
                let frame = tagged(&wrapped_frame(&uncommon(&inner.bytes())), tags);
                let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
                let expected = uncommon(&Packet { ttl: 4, ..delivered }.bytes());
                assert_eq!((run.action, run.packet), (2, tagged(&expected, tags)), "{tags:?}");

                let last = Packet { ttl: 1, ..inner };
                let Send(plain) = crate::run::run(&mut engine, &wrapped(&last)) else { panic!("not told") };
                let did = crate::run::run(&mut engine, &tagged(&wrapped(&last), tags));
                assert_eq!(did, Send(tagged(&plain, tags)), "told by the way it came");
            }
        }
    }
}

#[test]
fn a_tagged_frame_cut_at_any_byte_is_never_sent() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world(true);
    for mode in 0..MODES.len() {
        for packet in packets(last(mode, 2)) {
            let frame = Packet { payload: vec![], ..packet }.bytes();
            for length in 14..frame.len() {
                let did = run(&mut engine, &frame[..length]);

                assert!(matches!(did, Pass | Drop), "{mode}: {length} of {} bytes: {did:?}", frame.len());
            }
        }
    }
}
