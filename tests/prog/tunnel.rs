//! The tunnel between balancers: what is sent, what is taken in, what gets a second chance.

use std::net::IpAddr;

use lb_common::lease::{self, Lease};
use lb_common::tunnel::{self, Round};
use lb_common::{Flow, TCP, UDP, csum, wire_port};
use lb_tests::icmp::Icmp;
use lb_tests::packet::{ACK, FIN, OURS, Packet, ROUTER, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::{fragments, with_options};
use lb_tests::world::{CONFIG, LOOPBACK, World, backend, can_run_programs, tunnel_tag, tunnelled};
use penstock::datapath::engine::{Engine, now};
use penstock::datapath::want::Owner;
use penstock::model::l4::{FiveTuple, ForwardingMode::*, Protocol::*};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
pub const VIP: &str = "203.0.113.1:80";
const VIP6: &str = "[2001:db8:1::1]:80";
pub const HERE: &str = "10.0.0.1:8080";
const HERE6: &str = "[fd00::1]:8080";
pub const ELSEWHERE: &str = "10.0.0.3:8080";
/// The other balancer, and ourselves.
pub const PEER: [&str; 2] = ["10.0.0.9:50000", "[fd00::9]:50000"];
const NODE: [&str; 2] = ["10.0.0.254:7183", "[fd00::fe]:7183"];
pub const PASS: u32 = 2;
const DROP: u32 = 1;

pub fn tag(addr: &str) -> u32 {
    tunnel_tag(addr, TCP)
}

/// A node with a backend here and one on the node of the peer, whose tables know the past.
fn engine() -> Engine {
    let mut engine = fresh_engine();
    engine.settle_at(now() + u32::from(CONFIG.grace) + 2);
    engine
}

/// The same with tables that are fresh.
pub fn fresh_engine() -> Engine {
    let mut world = World::new()
        .service(Tcp, VIP, Local, &[HERE])
        .service(Tcp, VIP6, Local, &[HERE6])
        .service(Tcp, "10.0.0.254:30080", Local, &[HERE])
        .service(Tcp, "203.0.113.9:80", Tunnel, &[ELSEWHERE])
        .service(Udp, VIP, Local, &[HERE])
        .service(Udp, VIP6, Local, &[HERE6]);
    let other = ELSEWHERE.parse().expect("address");
    for (vip, protocol) in [(VIP, Tcp), ("203.0.113.9:80", Tcp), (VIP, Udp)] {
        world.backends_mut(vip, protocol).insert(other, away());
    }
    world.want.peers = PEER.map(|peer| peer.parse::<std::net::SocketAddr>().expect("address").ip()).into();
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

pub fn away() -> penstock::datapath::want::Backend {
    let to: IpAddr = [10, 0, 0, 9].into();
    penstock::datapath::want::Backend { mode: Tunnel, to, ..backend(to) }
}

/// `inner` within the tunnel, as a peer of this family sends it.
pub fn wrapped(family: usize, inner: &Packet, round: Round, backend: u32, other: u32) -> Packet {
    wrapped_frame(family, &inner.bytes(), round, backend, other)
}

fn wrapped_frame(family: usize, inner: &[u8], round: Round, backend: u32, other: u32) -> Packet {
    let payload = tunnelled(inner, round, backend, other);
    Packet { payload, no_csum: true, ..udp(PEER[family], NODE[family]) }
}

pub fn run(engine: &mut Engine, frame: &[u8]) -> (u32, Vec<u8>) {
    let run = engine.kernel.test_run("penstock", frame, 1).expect("the program runs");
    (run.action, run.packet)
}

fn count(engine: &Engine, name: &str) -> u64 {
    engine.verdicts().into_iter().find(|(verdict, _)| verdict.as_str() == name).map_or(0, |(_, count)| count)
}

pub fn delivered(inner: &Packet, to: &str) -> Vec<u8> {
    Packet { dst_mac: OURS, src_mac: ROUTER, dst: to.parse().expect("address"), ..inner.clone() }.bytes()
}

#[test]
fn a_packet_comes_out_of_the_tunnel_as_the_client_sent_it_but_for_the_backend() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        ("v4 in v4", 0, tcp(CLIENT, VIP), HERE),
        ("v6 in v6", 1, tcp(CLIENT6, VIP6), HERE6),
        ("v4 in v6", 1, tcp("198.51.100.8:40000", VIP), HERE),
        ("v6 in v4", 0, tcp("[2001:db8:2::8]:40000", VIP6), HERE6),
        ("a node port of the peer", 0, tcp(CLIENT, "10.0.0.9:30080"), HERE),
    ];
    for (case, family, inner, to) in cases {
        let inner = Packet { flags: SYN, ..inner };
        let frame = wrapped(family, &inner, Round::First, tag(to), 0).bytes();

        let (action, out) = run(&mut engine, &frame);

        assert_eq!(
            action,
            PASS,
            "{case}: {:?}",
            engine.verdicts().iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>()
        );
        assert!(csums_are_right(&out), "{case}");
        let mut expected = delivered(&inner, to);
        if case.starts_with("a node port") {
            // The VIP's flow has the client's port already.
            expected[34..36].copy_from_slice(&out[34..36]);
            expected[50..52].copy_from_slice(&out[50..52]);
        }
        assert_eq!(out, expected, "{case}");
        let answer =
            Packet { src: to.parse().expect("address"), dst: inner.src, flags: ACK, ..inner.clone() };
        let mut answer = answer.bytes();
        if case.starts_with("a node port") {
            continue;
        }
        answer = engine.kernel.test_out(&answer).expect("the program runs").packet;
        let expected = Packet { src: inner.dst, dst: inner.src, flags: ACK, ..inner };
        assert_eq!(answer, expected.bytes(), "{case}: the VIP answers");
    }
    assert_eq!(count(&engine, "forwarded-local"), 5);
}

#[test]
fn only_balancers_of_this_cluster_are_listened_to() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let syn = Packet { flags: SYN, ..tcp(CLIENT, VIP) };
    let good = wrapped(0, &syn, Round::First, tag(HERE), 0);
    let changed = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet.payload[at] ^= byte;
        packet
    };
    let cases = [
        ("our own address", Packet { src: NODE[0].parse().expect("address"), ..good.clone() }),
        ("a stranger's address", Packet { src: "10.0.0.8:50000".parse().expect("address"), ..good.clone() }),
        ("another cluster", changed(4, 1)),
        ("another version", changed(0, 2)),
        ("an inner protocol that is none", changed(1, 1)),
        ("a header cut short", Packet { payload: good.payload[..15].to_vec(), ..good.clone() }),
    ];
    for (number, (case, packet)) in cases.into_iter().enumerate() {
        assert_eq!(run(&mut engine, &packet.bytes()).0, DROP, "{case}");
        assert_eq!(count(&engine, "tunnel-foreign"), number as u64 + 1, "{case}");
    }
    assert_eq!(run(&mut engine, &good.bytes()).0, PASS);
}

#[test]
fn a_flow_that_only_the_ladder_takes_up_has_a_lease_too() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        (Some(0), tcp(CLIENT, VIP), HERE),
        (Some(1), tcp(CLIENT6, VIP6), HERE6),
        (None, tcp("198.51.100.8:40000", "10.0.0.254:30080"), HERE),
    ];
    for (tunnel, inner, to) in cases {
        let flow = Flow {
            src: inner.src.ip().into(),
            dst: inner.dst.ip().into(),
            ports: Flow::ports(wire_port(inner.src.port()), wire_port(inner.dst.port())),
            proto: TCP.into(),
        };
        let hash = flow.hash(engine.hash_key());
        let mut sends = |flags| {
            let inner = Packet { flags, ..inner.clone() };
            let frame = match tunnel {
                Some(family) => wrapped(family, &inner, Round::First, tag(to), 0).bytes(),
                None => inner.bytes(),
            };
            let (action, out) = run(&mut engine, &frame);
            assert_eq!(action, PASS, "{to}");
            if flags == SYN {
                let offer = Packet { flags: SYN | ACK, ..tcp(to, &inner.src.to_string()) };
                engine.kernel.test_out(&offer.bytes()).expect("the program runs");
            }
            let lease = lease::find(&engine.tables, hash);
            // Another port than the flow has, which nobody but the lease tells.
            lease::grant(&engine.tables, hash, Lease(lease.0 ^ 1 << 16));
            let from =
                |port: u16| delivered(&Packet { src: (inner.src.ip(), port).into(), ..inner.clone() }, to);
            let other = inner.src.port() ^ 0x100;
            (out == from(inner.src.port()), out == from(other), lease != Lease(0))
        };

        assert_eq!(sends(SYN), (true, false, false), "{to}: what begins a flow is noted with it");
        let first = sends(ACK);
        // A lease may end between two packets.
        let next: Vec<_> = (0..3).map(|_| sends(ACK)).collect();

        assert_eq!(first, (true, false, true), "{to}");
        assert!(next.contains(&(false, true, true)), "{to}: {next:?}");
        assert_eq!(sends(FIN | ACK), (true, false, true), "{to}: what ends a flow is noted with it");
    }
}

/// The frame with another TOS or traffic class.
fn with_tos(mut frame: Vec<u8>, tos: u8) -> Vec<u8> {
    if frame[12] == 0x86 {
        (frame[14], frame[15]) = (0x60 | tos >> 4, tos << 4);
    } else {
        frame[15] = tos;
        lb_tests::shape::sum_v4(&mut frame);
    }
    frame
}

/// RFC 6040, figure 4: what comes out by the ECN fields of both headers.
#[test]
fn congestion_that_the_tunnel_met_is_told_to_the_receiver() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let [not_capable, second_ect, first_ect, met]: [u8; 4] = [0, 1, 2, 3];
    let mut engine = engine();
    for (family, inner, to) in [(0, tcp(CLIENT, VIP), HERE), (1, tcp(CLIENT6, VIP6), HERE6)] {
        for (inside, outside, expected) in [
            (not_capable, not_capable, Some(not_capable)),
            (first_ect, first_ect, Some(first_ect)),
            (second_ect, met, Some(met)),
            (first_ect, met, Some(met)),
            (met, met, Some(met)),
            (met, first_ect, Some(met)),
            (not_capable, met, None),
        ] {
            let inner = Packet { flags: SYN, ..inner.clone() };
            let mut outer = wrapped(family, &inner, Round::First, tag(to), 0);
            outer.payload.truncate(tunnel::HEADER);
            outer.payload.extend(&with_tos(inner.bytes(), 0x28 | inside)[14..]);

            let (action, out) = run(&mut engine, &with_tos(outer.bytes(), 0x28 | outside));

            let case = format!("family {family}: {inside} inside, {outside} outside");
            let Some(expected) = expected else {
                assert_eq!(action, DROP, "{case}");
                continue;
            };
            assert_eq!(action, PASS, "{case}");
            assert_eq!(out, with_tos(delivered(&inner, to), 0x28 | expected), "{case}");
        }
    }
    assert_eq!(count(&engine, "tunnel-stray"), 2);
}

#[test]
fn what_nobody_here_serves_ends_here() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        ("no VIP", tcp(CLIENT, "203.0.113.77:80")),
        ("another port", tcp(CLIENT, "203.0.113.1:81")),
        ("a VIP whose backends are elsewhere", Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.9:80") }),
        ("a tunnel in the tunnel", wrapped(0, &tcp(CLIENT, VIP), Round::First, tag(HERE), 0)),
        ("a port that another Service has here", Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.77:30080") }),
    ];
    for (number, (case, inner)) in cases.into_iter().enumerate() {
        let frame = wrapped(0, &inner, Round::First, 12345, 0).bytes();

        assert_eq!(run(&mut engine, &frame).0, DROP, "{case}");
        assert_eq!(count(&engine, "tunnel-stray"), number as u64 + 1, "{case}");
    }
}

#[test]
fn a_tag_that_is_not_known_here_is_steered_by_our_own_table() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let inner = Packet { flags: SYN, ..tcp(CLIENT6, VIP6) };

    let (action, out) = run(&mut engine, &wrapped(1, &inner, Round::First, 12345, 0).bytes());

    assert_eq!((action, out), (PASS, delivered(&inner, HERE6)));
}

#[test]
fn a_flow_that_is_not_known_gets_one_second_chance_and_then_stays() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    for (number, inner) in [tcp(CLIENT, VIP), udp(CLIENT, VIP)].into_iter().enumerate() {
        let (here, other) = (tunnel_tag(HERE, inner.proto), tunnel_tag(ELSEWHERE, inner.proto));
        let before = 2 * number as u64;

        // First round: to the other owner, who may send it back to us.
        let (action, second) = run(&mut engine, &wrapped(0, &inner, Round::First, here, other).bytes());
        assert!(action > PASS, "{action}");
        assert_eq!(&second[30..34], [10, 0, 0, 9]);
        let expected = wrapped(0, &inner, Round::Second, other, here);
        assert_eq!(second[42..], expected.bytes()[42..]);
        assert_eq!(count(&engine, "passed-on"), before + 1);

        // Second round, from the other side: back, for good.
        let (action, last) = run(&mut engine, &wrapped(0, &inner, Round::Second, here, other).bytes());
        assert!(action > PASS, "{action}");
        let expected = wrapped(0, &inner, Round::Last, other, 0);
        assert_eq!(last[42..], expected.bytes()[42..]);

        // Last round: it stays, and from now on it is known.
        let (action, out) = run(&mut engine, &wrapped(0, &inner, Round::Last, here, other).bytes());
        assert_eq!((action, out), (PASS, delivered(&inner, HERE)));
        let (action, _) = run(&mut engine, &wrapped(0, &inner, Round::First, here, other).bytes());
        assert_eq!(action, PASS);
        assert_eq!(count(&engine, "passed-on"), before + 2);
    }
}

#[test]
fn a_balancer_gives_datagrams_that_its_own_backend_does_not_know_to_the_other_owner_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let vip = "203.0.113.8:80";
    let mut world = World::new().service(Udp, vip, Local, &[HERE]);
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    // A backend elsewhere comes: half of the slots are contested, and each has an owner on either node.
    world.backends_mut(vip, Udp).insert(ELSEWHERE.parse().expect("address"), away());
    world.want.peers = [[10, 0, 0, 9].into()].into();
    assert_eq!(engine.apply(world.want.clone()), vec![]);
    let (here, other) = (tunnel_tag(HERE, UDP), tunnel_tag(ELSEWHERE, UDP));
    let mut passed_on = 0;
    for port in 1024..1088 {
        let inner = udp(&format!("198.51.100.7:{port}"), vip);
        let flow = FiveTuple { protocol: Udp, src: inner.src, dst: inner.dst };
        let told = engine.explain(flow).verdict;
        let (action, sent) = run(&mut engine, &inner.bytes());
        if action == PASS {
            // The owner until now keeps the slot.
            assert_eq!(sent, delivered(&inner, HERE), "{port}");
            assert_eq!(told, format!("forwarded-local to {HERE}"), "{port}");
            continue;
        }
        assert_eq!(told, format!("passed-on to {ELSEWHERE}"), "{port}");
        // Whoever owned the slot may know the flow, but did not tell us of it.
        let expected = wrapped(0, &inner, Round::Second, other, here);
        assert_eq!(sent[42..], expected.bytes()[42..], "{port}");
        passed_on += 1;

        // It comes back: nobody knows it, so it begins here, and stays.
        let back = wrapped(0, &inner, Round::Last, here, 0);
        assert_eq!(run(&mut engine, &back.bytes()), (PASS, delivered(&inner, HERE)), "{port}");
        assert_eq!(run(&mut engine, &inner.bytes()), (PASS, delivered(&inner, HERE)), "{port}");
        assert_eq!(engine.explain(flow).verdict, format!("forwarded-local to {HERE}"), "{port}");
    }
    assert!((16..48).contains(&passed_on), "{passed_on}");
    assert_eq!(count(&engine, "passed-on"), passed_on);
}

#[test]
fn a_flow_that_begins_stays_at_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let syn = Packet { flags: SYN, ..tcp(CLIENT, VIP) };
    let (here, other) = (tag(HERE), tag(ELSEWHERE));

    for inner in [syn, tcp(CLIENT, VIP)] {
        let (action, out) = run(&mut engine, &wrapped(0, &inner, Round::First, here, other).bytes());

        assert_eq!((action, out), (PASS, delivered(&inner, HERE)));
    }
}

#[test]
fn one_balancer_understands_another() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut sender = World::new().service(Tcp, VIP, Tunnel, &[HERE]);
    for backend in sender.backends_mut(VIP, Tcp).values_mut() {
        backend.to = [10, 0, 0, 254].into();
        backend.way.source = [10, 0, 0, 9].into();
    }
    let (mut sender, mut receiver) = (sender.load(), engine());
    sender.set_interface(LOOPBACK, OURS);
    let inner = Packet { flags: SYN, ..tcp(CLIENT, VIP) };

    let (action, mut frame) = run(&mut sender, &inner.bytes());
    assert!(action > PASS, "{action}");
    frame[..6].copy_from_slice(&OURS.0);
    let (action, out) = run(&mut receiver, &frame);

    assert_eq!(action, PASS);
    assert_eq!(out[14..], delivered(&inner, HERE)[14..]);
}

/// Of those that a packet cannot name, for it is none of the plain ones, each takes the other one for the owner.
#[test]
fn a_packet_with_options_goes_to_and_fro_between_balancers_that_differ_only_a_few_times() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let nodes: [IpAddr; 2] = [[10, 0, 0, 254].into(), [10, 0, 0, 9].into()];
    let mut engines = [0, 1].map(|number: usize| {
        let (own, peer) = (nodes[number], nodes[1 - number]);
        let mut world = World::new().service(Tcp, VIP, Tunnel, &[HERE]);
        world.want.addrs.remove(&peer);
        world.want.addrs.insert(own, Owner::Node);
        for backend in world.backends_mut(VIP, Tcp).values_mut() {
            (backend.to, backend.way.source) = (peer, own);
        }
        world.want.peers = [peer].into();
        let engine = world.load();
        engine.set_interface(LOOPBACK, OURS);
        engine
    });

    let mut frame = with_options(&Packet { flags: ACK, ttl: 64, ..tcp(CLIENT, VIP) }.bytes(), &[1, 1, 1, 0]);
    let mut rounds = 0;
    for number in (0..2).cycle().take(100) {
        let (action, out) = run(&mut engines[number], &frame);
        if action <= PASS {
            break;
        }
        (frame, rounds) = (out, rounds + 1);
        frame[..6].copy_from_slice(&OURS.0);
    }

    assert!((2..=6).contains(&rounds), "{rounds}");
}

#[test]
fn a_datagram_in_pieces_comes_out_of_the_tunnel_in_pieces() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    for (client, vip, to) in [(CLIENT, VIP, HERE), (CLIENT6, VIP6, HERE6)] {
        for family in [0, 1] {
            let asked = Packet { payload: (0..3_000).map(|byte| byte as u8).collect(), ..udp(client, vip) };
            // Few hops are left to what is no plain packet.
            let arrives = Packet { ttl: 4, ..asked.clone() };
            let arrives = fragments(&delivered(&arrives, to), 1_200);

            for (piece, arrives) in fragments(&asked.bytes(), 1_200).iter().zip(arrives) {
                let frame = wrapped_frame(family, piece, Round::First, tunnel_tag(to, UDP), 0).bytes();
                assert_eq!(run(&mut engine, &frame), (PASS, arrives), "{client} by {}", PEER[family]);
            }
        }
    }
    assert_eq!(count(&engine, "forwarded-local"), 12);
}

#[test]
fn a_tunnelled_frame_cut_at_any_byte_is_never_sent_on() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    for (family, inner) in [(0, tcp(CLIENT, VIP)), (1, tcp(CLIENT6, VIP6))] {
        let inner = Packet { payload: vec![], ..inner };
        let frame = wrapped(family, &inner, Round::First, 1, tag(ELSEWHERE)).bytes();
        for length in 14..frame.len() {
            let (action, _) = run(&mut engine, &frame[..length]);

            assert!(action <= PASS, "{length} of {} bytes: {action}", frame.len());
        }
    }
}

#[test]
fn a_hop_limit_that_ends_in_the_tunnel_is_told_by_the_vip_and_reaches_no_backend() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    for (family, inner) in [(0, tcp(CLIENT, VIP)), (1, tcp(CLIENT6, VIP6))] {
        let inner = Packet { flags: SYN, ttl: 1, ..inner };
        let to = if family == 0 { HERE } else { HERE6 };
        let kind = if family == 0 { (11, 0) } else { (3, 0) };

        let (action, out) = run(&mut engine, &wrapped(family, &inner, Round::First, tag(to), 0).bytes());

        let (vip, client) = (inner.dst.ip().to_string(), inner.src.ip().to_string());
        let told =
            Icmp { dst_mac: ROUTER, src_mac: OURS, ..Icmp::new(&vip, &client, kind, &inner.bytes()[14..]) };
        assert_eq!((action, out), (3, told.bytes()), "{inner:?}");
        assert_eq!(count(&engine, "told-time-exceeded"), family as u64 + 1);
    }
}

#[test]
fn a_syn_ack_into_a_tunnel_offers_segments_that_fit_it() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let with_option = |packet: Packet| {
        let mut frame = packet.bytes();
        let l4 = if packet.src.is_ipv4() { 34 } else { 54 };
        let word = |frame: &[u8]| u32::from_le_bytes(frame[l4 + 12..l4 + 16].try_into().expect("4 bytes"));
        let old = word(&frame);
        frame[l4 + 12] = 0x60;
        let csum = u16::from_le_bytes([frame[l4 + 16], frame[l4 + 17]]);
        let csum = csum::Delta::new().word(old, word(&frame)).apply(csum);
        frame[l4 + 16..l4 + 18].copy_from_slice(&csum.to_le_bytes());
        frame
    };
    // The options are the start of the payload: MSS 65,495, as the loopback's MTU would have it.
    let payload = vec![2, 4, 0xff, 0xd7];
    let cases = [(0, CLIENT, VIP, HERE, 44 + 40), (1, CLIENT6, VIP6, HERE6, 64 + 60)];
    for (family, client, vip, here, overhead) in cases {
        let syn = Packet { flags: SYN, ..tcp(client, vip) };
        assert_eq!(run(&mut engine, &wrapped(family, &syn, Round::First, tag(here), 0).bytes()).0, PASS);
        let answer = Packet { flags: SYN | ACK, payload: payload.clone(), ..tcp(here, client) };

        let out = engine.kernel.test_out(&with_option(answer)).expect("the program runs").packet;

        let at = if client.starts_with('[') { 54 + 22 } else { 34 + 22 };
        let mss = u16::from_be_bytes([out[at], out[at + 1]]);
        // BPF_PROG_TEST_RUN sends by the loopback, whose MTU is 65,536.
        assert_eq!(u32::from(mss), 65_536 - overhead);
        assert!(csums_are_right(&out));
    }
}

/// Flows that began in the tunnel go on there at their sender, which reaches the backend in another mode since.
#[test]
fn who_is_no_peer_any_more_is_heard_while_it_goes_on_sending() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let mut want = engine.want().clone();
    want.peers.clear();
    let grace = u32::from(CONFIG.grace);
    let packet = |flags| {
        let inner = Packet { flags, ..tcp(CLIENT, VIP) };
        wrapped(0, &inner, Round::First, tag(HERE), 0).bytes()
    };
    assert_eq!(run(&mut engine, &packet(SYN)).0, PASS);
    let heard = penstock::datapath::engine::now();

    // As if the node had lost its address long ago: this packet alone keeps the way open.
    assert_eq!(engine.apply_at(want.clone(), heard.saturating_sub(grace / 2)), vec![]);
    engine.settle_at(heard.saturating_sub(grace / 2) + grace + 1);
    assert_eq!(run(&mut engine, &packet(ACK)).0, PASS, "it was heard within the grace time");
    assert_eq!(engine.apply_at(want.clone(), heard), vec![]);
    assert_eq!(run(&mut engine, &packet(ACK)).0, PASS, "whatever changes besides");

    let heard = penstock::datapath::engine::now();
    engine.settle_at(heard + grace + 1);
    assert_eq!(run(&mut engine, &packet(ACK)).0, DROP, "after the grace time of silence");
    assert_eq!(count(&engine, "tunnel-foreign"), 1);

    want.peers = [[10, 0, 0, 9].into()].into();
    assert_eq!(engine.apply(want), vec![]);
    assert_eq!(run(&mut engine, &packet(ACK)).0, PASS, "a peer again");
}
