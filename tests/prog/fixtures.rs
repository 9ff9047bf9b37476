//! One table: what comes in, what happens, what goes out. Byte-exact, checksums recomputed.

use lb_common::lease::{self, Lease};
use lb_common::nat::{Timeouts, state};
use lb_common::{Flow, Mac, TCP, wire_port};
use lb_tests::packet::{ACK, FIN, OURS, Packet, ROUTER, SYN, csums_are_right, tcp, udp};
use lb_tests::world::{LOOPBACK, World, backend, backend_mac, can_run_programs};
use penstock::datapath::engine::{Config, Engine};
use penstock::datapath::kernel::Translated;
use penstock::model::l4::{ForwardingMode::*, Listener, Protocol::*};

use crate::run::{Does, Drop, Pass, Send, count, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const OTHER_MAC: Mac = Mac([0x02, 9, 9, 9, 9, 9]);
/// Of 224.0.0.1 (RFC 1112 6.4).
const MULTICAST: Mac = Mac([0x01, 0, 0x5e, 0, 0, 1]);

fn world() -> Engine {
    let mut world = World::new()
        .service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"])
        .service(Udp, "203.0.113.1:53", Nat, &["10.0.0.1:5353"])
        .service(Tcp, "[2001:db8:1::1]:80", Nat, &["[fd00::1]:8080"])
        .service(Udp, "[2001:db8:1::1]:53", Nat, &["[fd00::1]:5353"])
        .service(Tcp, "203.0.113.2:80", L2, &["10.0.0.2:80"])
        .service(Udp, "203.0.113.2:53", L2, &["10.0.0.2:53"])
        .service(Tcp, "[2001:db8:1::2]:80", L2, &["[fd00::2]:80"])
        .service(Tcp, "203.0.113.3:80", Nat, &[])
        .service(Tcp, "203.0.113.4:80", L2, &["10.0.0.4:80"])
        .service(Tcp, "203.0.113.6:80", L2, &["10.0.0.6:80"])
        .service(Tcp, "10.0.0.254:30080", Nat, &["10.0.0.1:8080"])
        .punt("203.0.113.5:443", Listener::Https);
    for backend in world.backends_mut("203.0.113.4:80", Tcp).values_mut() {
        backend.way.next_hop = Default::default();
    }
    for backend in world.backends_mut("203.0.113.6:80", Tcp).values_mut() {
        backend.way.next_hop.ifindex = 99;
    }
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// The same frame with a few bytes changed.
fn edited(packet: Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = packet.bytes();
    edit(&mut frame);
    frame
}

fn l2(packet: Packet, backend: u8) -> Does {
    Send(Packet { dst_mac: backend_mac(backend), src_mac: OURS, ..packet }.bytes())
}

#[test]
fn every_situation_has_its_named_outcome() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut arp = vec![0xff; 6];
    arp.extend(ROUTER.0);
    arp.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(60, 0);
    let to = |vip: &str| tcp(CLIENT, vip);
    let vip = || to("203.0.113.2:80");
    let set = |at: usize, bytes: &'static [u8]| {
        move |frame: &mut Vec<u8>| frame[at..at + bytes.len()].copy_from_slice(bytes)
    };
    let proto = |proto: u8, dst: &str| Packet { proto, ..tcp(CLIENT, dst) }.bytes();
    let jumbo = |dst: &str, extra: usize| Packet { payload: vec![7; 1460 + extra], ..to(dst) };

    // case, frame in, verdict counted ("" for none), outcome
    let table: Vec<(&str, Vec<u8>, &str, Does)> = vec![
        ("l2: TCP over IPv4", vip().bytes(), "forwarded-l2", l2(vip(), 2)),
        (
            "l2: UDP over IPv4",
            udp(CLIENT, "203.0.113.2:53").bytes(),
            "forwarded-l2",
            l2(udp(CLIENT, "203.0.113.2:53"), 2),
        ),
        (
            "l2: TCP over IPv6",
            tcp(CLIENT6, "[2001:db8:1::2]:80").bytes(),
            "forwarded-l2",
            l2(tcp(CLIENT6, "[2001:db8:1::2]:80"), 2),
        ),
        (
            "l2: hop limit 1 is the backend's business",
            Packet { ttl: 1, ..vip() }.bytes(),
            "forwarded-l2",
            l2(Packet { ttl: 1, ..vip() }, 2),
        ),
        (
            "l2: a frame of exactly the next hop's MTU",
            jumbo("203.0.113.2:80", 0).bytes(),
            "forwarded-l2",
            l2(jumbo("203.0.113.2:80", 0), 2),
        ),
        (
            "nat: a reset of no known flow begins none",
            Packet { flags: 4, ..tcp("198.51.100.99:4444", "203.0.113.1:80") }.bytes(),
            "stray-reset",
            Drop,
        ),
        ("no backend", to("203.0.113.3:80").bytes(), "no-backend", Drop),
        ("next hop not resolved by anyone", to("203.0.113.4:80").bytes(), "unresolved-next-hop", Drop),
        ("next hop's interface cannot be redirected to", to("203.0.113.6:80").bytes(), "no-device", Drop),
        ("punted port", to("203.0.113.5:443").bytes(), "punted", Pass),
        ("closed port of a VIP's address", to("203.0.113.5:22").bytes(), "closed-port", Drop),
        ("TCP port of a VIP that serves UDP only", to("203.0.113.2:53").bytes(), "closed-port", Drop),
        ("the node's SSH", to("10.0.0.254:22").bytes(), "node", Pass),
        ("SNAT port of the node without a flow", to("10.0.0.254:61000").bytes(), "nat-reply-miss", Pass),
        (
            "the node's own outgoing connection",
            tcp("192.0.2.9:443", "10.0.0.254:45678").bytes(),
            "node",
            Pass,
        ),
        ("another host's address", to("192.0.2.1:80").bytes(), "", Pass),
        ("another host's IPv6 address", tcp(CLIENT6, "[2001:db8:9::1]:80").bytes(), "", Pass),
        (
            "IPv6 to a v4-mapped VIP",
            edited(
                tcp(CLIENT6, "[2001:db8:1::2]:80"),
                set(38, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 2]),
            ),
            "",
            Pass,
        ),
        ("frame for another MAC", Packet { dst_mac: OTHER_MAC, ..vip() }.bytes(), "other-mac", Pass),
        ("broadcast frame to a VIP", Packet { dst_mac: Mac([0xff; 6]), ..vip() }.bytes(), "other-mac", Pass),
        ("multicast frame to a VIP", Packet { dst_mac: MULTICAST, ..vip() }.bytes(), "other-mac", Pass),
        ("ARP", arp, "", Pass),
        ("ICMP to the node", proto(1, "10.0.0.254:80"), "icmp", Pass),
    ];

    let mut engine = world();
    for (case, frame, verdict, expected) in table {
        let before = if verdict.is_empty() { 0 } else { count(&engine, verdict) };
        let total = |engine: &Engine| engine.verdicts().iter().map(|(_, count)| count).sum::<u64>();
        let all = total(&engine);

        let did = run(&mut engine, &frame);

        assert_eq!(did, expected, "{case}");
        if verdict.is_empty() {
            assert_eq!(total(&engine), all, "{case}: nothing is counted");
        } else {
            assert_eq!(count(&engine, verdict), before + 1, "{case}: {verdict}");
        }
    }
}

/// Sends `packet` and checks all that is translated but the chosen port, which is returned.
fn translated(engine: &mut Engine, case: &str, packet: &Packet, node: &str, to: &str) -> u16 {
    let Send(out) = run(engine, &packet.bytes()) else { panic!("{case}: not sent") };
    let at = if packet.src.is_ipv4() { 34 } else { 54 };
    let port = u16::from_be_bytes([out[at], out[at + 1]]);
    assert!(port >= 61_000, "{case}: port {port}");
    let expected = Packet {
        dst_mac: backend_mac(1),
        src_mac: OURS,
        src: format!("{node}:{port}").parse().expect("address"),
        dst: to.parse().expect("address"),
        ttl: packet.ttl - 1,
        ..packet.clone()
    };
    assert_eq!(out, expected.bytes(), "{case}");
    assert!(csums_are_right(&out), "{case}");
    port
}

#[test]
fn nat_translates_both_ways_byte_for_byte() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let cases = [
        (
            "TCP over IPv4",
            Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.1:80") },
            "10.0.0.254",
            "10.0.0.1:8080",
        ),
        ("UDP over IPv4", udp(CLIENT, "203.0.113.1:53"), "10.0.0.254", "10.0.0.1:5353"),
        (
            "UDP without checksum",
            Packet { no_csum: true, ..udp("198.51.100.8:1", "203.0.113.1:53") },
            "10.0.0.254",
            "10.0.0.1:5353",
        ),
        (
            "odd payload",
            Packet { payload: vec![0xab; 33], ..udp("198.51.100.9:1", "203.0.113.1:53") },
            "10.0.0.254",
            "10.0.0.1:5353",
        ),
        ("TCP over IPv6", tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::fe]", "[fd00::1]:8080"),
        ("UDP over IPv6", udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::fe]", "[fd00::1]:5353"),
        ("node port", tcp(CLIENT, "10.0.0.254:30080"), "10.0.0.254", "10.0.0.1:8080"),
    ];
    for (case, packet, node, to) in cases {
        let port = translated(&mut engine, case, &packet, node, to);
        assert_eq!(translated(&mut engine, case, &packet, node, to), port, "{case}: the flow keeps its port");
        let answer = Packet {
            src_mac: backend_mac(1),
            src: to.parse().expect("address"),
            dst: format!("{node}:{port}").parse().expect("address"),
            ..packet.clone()
        };

        let did = run(&mut engine, &answer.bytes());

        let expected =
            Packet { dst_mac: ROUTER, src_mac: OURS, src: packet.dst, dst: packet.src, ttl: 63, ..answer };
        assert_eq!(did, Send(expected.bytes()), "{case}: answer");
    }
    assert_eq!(count(&engine, "replied-nat"), 7);
}

#[test]
fn two_vips_with_one_backend_and_one_client_port_stay_apart() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();

    let one = translated(&mut engine, "VIP", &tcp(CLIENT, "203.0.113.1:80"), "10.0.0.254", "10.0.0.1:8080");
    let two =
        translated(&mut engine, "node", &tcp(CLIENT, "10.0.0.254:30080"), "10.0.0.254", "10.0.0.1:8080");

    assert_ne!(one, two);
}

#[test]
fn an_answer_goes_to_the_router_that_sent_the_last_packet() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let packet = tcp(CLIENT, "203.0.113.1:80");
    let port = translated(&mut engine, "first", &packet, "10.0.0.254", "10.0.0.1:8080");
    let moved = Packet { src_mac: OTHER_MAC, ..packet };
    translated(&mut engine, "moved", &moved, "10.0.0.254", "10.0.0.1:8080");

    let did = run(&mut engine, &tcp("10.0.0.1:8080", &format!("10.0.0.254:{port}")).bytes());

    let Send(frame) = did else { panic!("not sent") };
    assert_eq!(frame[..6], OTHER_MAC.0);
}

#[test]
fn a_flow_whose_backend_is_gone_begins_anew() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = World::new().service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"]);
    let mut engine = world.load();
    let packet = tcp(CLIENT, "203.0.113.1:80");
    translated(&mut engine, "first", &packet, "10.0.0.254", "10.0.0.1:8080");
    let backends = world.backends_mut("203.0.113.1:80", Tcp);
    backends.clear();
    backends.insert("10.0.0.3:8080".parse().expect("address"), backend([10, 0, 0, 3].into()));
    assert_eq!(engine.apply(world.want.clone()), vec![]);

    let Send(frame) = run(&mut engine, &packet.bytes()) else { panic!("not sent") };

    assert_eq!(frame[..6], backend_mac(3).0);
    assert_eq!(frame[30..34], [10, 0, 0, 3]);
}

#[test]
fn a_drained_backend_keeps_its_nat_flows() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = World::new().service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"]);
    let mut engine = world.load();
    let packet = tcp(CLIENT, "203.0.113.1:80");
    translated(&mut engine, "first", &packet, "10.0.0.254", "10.0.0.1:8080");
    let backends = world.backends_mut("203.0.113.1:80", Tcp);
    for backend in backends.values_mut() {
        backend.weight = 0;
    }
    backends.insert("10.0.0.3:8080".parse().expect("address"), backend([10, 0, 0, 3].into()));
    assert_eq!(engine.apply(world.want.clone()), vec![]);

    translated(&mut engine, "old flow", &packet, "10.0.0.254", "10.0.0.1:8080");
    let begins = Packet { flags: SYN, ..tcp("198.51.100.7:40001", "203.0.113.1:80") };
    let Send(new) = run(&mut engine, &begins.bytes()) else { panic!("not sent") };
    assert_eq!(new[30..34], [10, 0, 0, 3]);
}

#[test]
fn a_lease_spares_a_flow_the_look_at_its_state_and_ends_with_it() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let (packet, node) = (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.254");
    let flow = Flow {
        src: packet.src.ip().into(),
        dst: packet.dst.ip().into(),
        ports: Flow::ports(wire_port(40000), wire_port(80)),
        proto: TCP.into(),
    };
    let hash = flow.hash(engine.hash_key());
    let forget = |engine: &mut Engine| engine.sweep_at(u32::MAX, &Timeouts::default()).expect("sweeps");
    let begins = Packet { flags: SYN, ..packet.clone() };
    let begun = translated(&mut engine, "begins", &begins, node, "10.0.0.1:8080");
    assert_eq!(lease::find(&engine.tables, hash), Lease(0), "what begins a flow is noted with it");
    translated(&mut engine, "is not answered", &packet, node, "10.0.0.1:8080");
    assert_eq!(lease::find(&engine.tables, hash), Lease(0), "nobody knows whether its client is there");
    let (src_mac, offer) = (backend_mac(1), tcp("10.0.0.1:8080", &format!("{node}:{begun}")));
    let offer = Packet { src_mac, flags: SYN | ACK, ..offer };
    assert!(matches!(run(&mut engine, &offer.bytes()), Send(_)));

    let port = translated(&mut engine, "goes on", &packet, node, "10.0.0.1:8080");

    let lease = lease::find(&engine.tables, hash);
    assert_eq!(lease.wire_port(), wire_port(port));
    assert_eq!(translated(&mut engine, "by its lease", &packet, node, "10.0.0.1:8080"), port);
    let ends = Packet { flags: FIN, ..packet.clone() };
    translated(&mut engine, "ends", &ends, node, "10.0.0.1:8080");
    let state = engine.kernel.translated(hash).expect("remembered").state;
    assert_eq!(state, state::SEEN | state::FIN, "what ends a flow is noted with it");

    assert_eq!(forget(&mut engine), (Translated::default(), 1));
    assert_eq!(lease::find(&engine.tables, hash), Lease(0));
    translated(&mut engine, "begins anew", &packet, node, "10.0.0.1:8080");
    assert!(engine.kernel.translated(hash).is_some());
}

#[test]
fn exhausted_ports_are_counted_and_no_port_is_given_twice() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let world = World::new().service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"]);
    let mut engine = Engine::load(Config::new(lb_tests::world::KEY, (61_000, 61_099))).expect("loads");
    assert_eq!(engine.apply(world.want), vec![]);
    let mut ports = std::collections::BTreeSet::new();
    for client in 0..400 {
        let packet = tcp(&format!("198.51.100.7:{}", 20_000 + client), "203.0.113.1:80");
        if let Send(frame) = run(&mut engine, &packet.bytes()) {
            let port = u16::from_be_bytes([frame[34], frame[35]]);
            assert!(ports.insert(port), "a port was given twice");
            // Both sides are there: the flow keeps it.
            let answer =
                Packet { src_mac: backend_mac(1), ..tcp("10.0.0.1:8080", &format!("10.0.0.254:{port}")) };
            assert!(matches!(run(&mut engine, &answer.bytes()), Send(_)));
            assert!(matches!(run(&mut engine, &packet.bytes()), Send(_)));
        }
    }
    assert!(ports.len() > 95, "{} of 100 ports used", ports.len());
    assert_eq!(count(&engine, "nat-ports-exhausted"), 400 - ports.len() as u64);
}

#[test]
fn a_frame_cut_at_any_byte_is_passed_or_dropped_and_never_sent() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for packet in [
        tcp(CLIENT, "203.0.113.1:80"),
        udp(CLIENT, "203.0.113.1:53"),
        tcp(CLIENT6, "[2001:db8:1::1]:80"),
        udp(CLIENT6, "[2001:db8:1::1]:53"),
    ] {
        let frame = Packet { payload: vec![], ..packet }.bytes();
        for length in 14..frame.len() {
            let did = run(&mut engine, &frame[..length]);

            assert!(matches!(did, Pass | Drop), "{length} of {} bytes: {did:?}", frame.len());
        }
    }
}
