//! What senders are told when nobody takes their packets, byte for byte.

use lb_common::rate::BURST;
use lb_tests::icmp::Icmp;
use lb_tests::packet::{ACK, OURS, Packet, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::sum_v4;
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode::*, Protocol::*};

use crate::run::{Drop, Pass, Send, count, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const EMPTY: &str = "203.0.113.3:80";
const EMPTY6: &str = "[2001:db8:1::3]:80";

fn world() -> Engine {
    let mut world = World::new()
        .service(Tcp, "203.0.113.2:80", L2, &["10.0.0.2:80"])
        .service(Udp, "203.0.113.2:80", Ipip, &["10.0.0.2:80"])
        .service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"])
        .service(Tcp, "[2001:db8:1::1]:80", Nat, &["[fd00::1]:8080"])
        .service(Tcp, "[2001:db8:1::2]:80", L2, &["[fd00::2]:80"])
        .service(Udp, "[2001:db8:1::2]:80", Ipip, &["[fd00::2]:80"])
        .service(Tcp, "203.0.113.4:80", L2, &[]);
    for vip in [EMPTY, EMPTY6] {
        for protocol in [Tcp, Udp] {
            world = world.service(protocol, vip, Nat, &[]).rejecting(vip, protocol);
        }
    }
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// The reset that answers a segment.
fn reset(to: &Packet, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet {
        dst_mac: to.src_mac,
        src_mac: to.dst_mac,
        src: to.dst,
        dst: to.src,
        tos: 0,
        id: 0,
        window: 0,
        flags,
        seq,
        ack,
        payload: vec![],
        options: vec![],
        ..to.clone()
    }
}

/// The error that answers a packet, quoting `limit` bytes of it at most.
pub fn error(to: &Packet, kind: (u8, u8), rest: [u8; 4], limit: usize) -> Icmp {
    let frame = to.bytes();
    let quoted = &frame[14..frame.len().min(14 + limit)];
    let (src, dst) = (to.dst.ip().to_string(), to.src.ip().to_string());
    Icmp { dst_mac: to.src_mac, src_mac: to.dst_mac, rest, ..Icmp::new(&src, &dst, kind, quoted) }
}

#[test]
fn a_sender_is_told_at_once_and_by_the_book() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let syn = |dst: &str, src: &str| Packet { flags: SYN, payload: vec![], ack: 0, ..tcp(src, dst) };
    let four = syn(EMPTY, CLIENT);
    let mss = Packet { options: vec![2, 4, 5, 180, 1, 1, 1, 1], ..four.clone() };
    let six = syn(EMPTY6, CLIENT6);
    let data = Packet { seq: 1000, ack: 77, ..tcp(CLIENT, EMPTY) };
    let fin = Packet { flags: 1, seq: u32::MAX, ..tcp(CLIENT, EMPTY) };
    let ask = udp(CLIENT, EMPTY);
    let ask6 = udp(CLIENT6, EMPTY6);
    let jumbo = |packet: Packet, size: usize| Packet { payload: vec![7; size], ..packet };
    let large = jumbo(udp(CLIENT, EMPTY), 1400);
    let large6 = jumbo(udp(CLIENT6, EMPTY6), 1400);
    let l2 = jumbo(tcp(CLIENT, "203.0.113.2:80"), 1461);
    let nat = jumbo(tcp(CLIENT, "203.0.113.1:80"), 1461);
    let ipip = jumbo(udp(CLIENT, "203.0.113.2:80"), 1453);
    let l2_6 = jumbo(tcp(CLIENT6, "[2001:db8:1::2]:80"), 1441);
    let nat6 = jumbo(tcp(CLIENT6, "[2001:db8:1::1]:80"), 1441);
    let ipip6 = jumbo(udp(CLIENT6, "[2001:db8:1::2]:80"), 1413);

    let last = Packet { ttl: 1, ..tcp(CLIENT, "203.0.113.1:80") };
    let last6 = Packet { ttl: 1, ..tcp(CLIENT6, "[2001:db8:1::1]:80") };

    // case, packet in, verdict, answer
    let table: Vec<(&str, &Packet, &str, Vec<u8>)> = vec![
        ("SYN over IPv4", &four, "told-reset", reset(&four, 4 | ACK, 0, 2).bytes()),
        ("SYN over IPv6", &six, "told-reset", reset(&six, 4 | ACK, 0, 2).bytes()),
        ("SYN with options", &mss, "told-reset", reset(&four, 4 | ACK, 0, 2).bytes()),
        ("a segment of an old flow", &data, "told-reset", reset(&data, 4, 77, 0).bytes()),
        ("a FIN without ACK, sequence at its end", &fin, "told-reset", reset(&fin, 4 | ACK, 0, 5).bytes()),
        ("UDP over IPv4", &ask, "told-unreachable", error(&ask, (3, 3), [0; 4], 548).bytes()),
        ("UDP over IPv6", &ask6, "told-unreachable", error(&ask6, (1, 4), [0; 4], 1232).bytes()),
        ("576 bytes at most", &large, "told-unreachable", error(&large, (3, 3), [0; 4], 548).bytes()),
        ("1280 bytes at most", &large6, "told-unreachable", error(&large6, (1, 4), [0; 4], 1232).bytes()),
        ("l2, MTU + 1", &l2, "told-too-big", error(&l2, (3, 4), [0, 0, 5, 220], 548).bytes()),
        ("nat, MTU + 1", &nat, "told-too-big", error(&nat, (3, 4), [0, 0, 5, 220], 548).bytes()),
        ("ipip, MTU - 20 + 1", &ipip, "told-too-big", error(&ipip, (3, 4), [0, 0, 5, 200], 548).bytes()),
        ("l2 over IPv6", &l2_6, "told-too-big", error(&l2_6, (2, 0), [0, 0, 5, 220], 1232).bytes()),
        ("nat over IPv6", &nat6, "told-too-big", error(&nat6, (2, 0), [0, 0, 5, 220], 1232).bytes()),
        ("ipip, MTU - 40 + 1", &ipip6, "told-too-big", error(&ipip6, (2, 0), [0, 0, 5, 180], 1232).bytes()),
        ("nat, the last hop", &last, "told-time-exceeded", error(&last, (11, 0), [0; 4], 548).bytes()),
        ("nat over IPv6", &last6, "told-time-exceeded", error(&last6, (3, 0), [0; 4], 1232).bytes()),
    ];
    let mut engine = world();
    for (case, packet, verdict, expected) in table {
        let before = count(&engine, verdict);

        let did = run(&mut engine, &packet.bytes());

        assert!(csums_are_right(&expected), "{case}: the expectation itself");
        assert_eq!(did, Send(expected), "{case}");
        assert_eq!(count(&engine, verdict), before + 1, "{case}");
    }
}

/// Nothing is taken apart here, so it is told like any other.
#[test]
fn what_is_too_large_is_told_so_whether_it_may_be_fragmented_or_not() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for (packet, mtu) in [
        (Packet { payload: vec![7; 1461], ..tcp(CLIENT, "203.0.113.2:80") }, [5, 220]),
        (Packet { payload: vec![7; 1453], ..udp(CLIENT, "203.0.113.2:80") }, [5, 200]),
        (Packet { payload: vec![7; 1461], ..tcp(CLIENT, "203.0.113.1:80") }, [5, 220]),
    ] {
        let mut frame = packet.bytes();
        frame[20] = 0;
        sum_v4(&mut frame);
        let mut expected = error(&packet, (3, 4), [0, 0, mtu[0], mtu[1]], 548);
        expected.body.clone_from_slice(&frame[14..14 + 548]);

        assert_eq!(run(&mut engine, &frame), Send(expected.bytes()), "{}", packet.dst);
    }
}

#[test]
fn every_length_of_a_refused_datagram_is_quoted_with_the_right_checksum() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for (number, size) in (0..200).chain([547, 548, 549, 1231, 1232, 1233]).enumerate() {
        let packets = [(udp(CLIENT, EMPTY), (3, 3), 548), (udp(CLIENT6, EMPTY6), (1, 4), 1232)];
        let (packet, kind, limit) = packets[number % 2].clone();
        let packet = Packet { payload: (0..size).map(|byte| byte as u8 ^ 0xa5).collect(), ..packet };

        let did = run(&mut engine, &packet.bytes());

        assert_eq!(did, Send(error(&packet, kind, [0; 4], limit).bytes()), "{size} bytes");
    }
}

#[test]
fn some_are_never_told() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let edit = |packet: Packet, at: usize, byte: u8| {
        let mut frame = packet.bytes();
        frame[at] = byte;
        frame
    };
    let cases = [
        ("a reset", Packet { flags: 4, ..tcp(CLIENT, EMPTY) }.bytes(), "no-backend"),
        ("a multicast source", edit(udp(CLIENT, EMPTY), 26, 224), "no-backend"),
        ("a source of nowhere", edit(udp(CLIENT, EMPTY), 26, 0), "no-backend"),
        ("loopback", edit(udp(CLIENT, EMPTY), 26, 127), "no-backend"),
        ("an IPv6 multicast source", edit(udp(CLIENT6, EMPTY6), 22, 0xff), "no-backend"),
        ("a Service that drops", tcp(CLIENT, "203.0.113.4:80").bytes(), "no-backend"),
    ];
    let mut engine = world();
    for (case, frame, verdict) in cases {
        let before = count(&engine, verdict);

        assert_eq!(run(&mut engine, &frame), Drop, "{case}");

        assert_eq!(count(&engine, verdict), before + 1, "{case}");
    }
}

#[test]
fn a_flood_is_told_at_a_bounded_rate_and_does_not_silence_too_big() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let syn = Packet { flags: SYN, ..tcp(CLIENT, EMPTY) }.bytes();
    let mut told = 0;
    for _ in 0..2000 {
        match run(&mut engine, &syn) {
            Send(_) => told += 1,
            Drop => {}
            Pass => panic!("passed"),
        }
    }

    assert_eq!(count(&engine, "told-reset"), told);
    assert_eq!(count(&engine, "rate-limited"), 2000 - told);
    assert!(told >= BURST, "{told} told");
    let big = Packet { payload: vec![7; 1461], ..tcp(CLIENT, "203.0.113.2:80") };
    assert!(matches!(run(&mut engine, &big.bytes()), Send(_)));
}
