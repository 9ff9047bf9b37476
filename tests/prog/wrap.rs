//! What `ipip` and `tunnel` put in front of a packet, byte by byte, whatever its length, TOS and hop limit.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::csum;
use lb_tests::packet::{OURS, Packet, SYN, tcp, udp};
use lb_tests::world::{LOOPBACK, NODE_V4, NODE_V6, World, backend_mac, can_run_programs};
use penstock::model::l4::{ForwardingMode::*, Protocol::*};

use crate::run::{Drop, Pass, Send, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";

/// Ethernet, outer IP; then UDP and the tunnel's header.
const TUNNEL: usize = 8 + lb_common::tunnel::HEADER;

#[test]
fn an_outer_header_is_right_in_every_byte() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let engine = World::new()
        .service(Tcp, "203.0.113.1:80", Ipip, &["10.0.0.1:80"])
        .service(Udp, "203.0.113.1:53", Ipip, &["10.0.0.1:53"])
        .service(Tcp, "[2001:db8:1::1]:80", Ipip, &["[fd00::1]:80"])
        .service(Tcp, "203.0.113.2:80", Tunnel, &["10.0.0.1:80"])
        .service(Tcp, "[2001:db8:1::2]:80", Tunnel, &["[fd00::1]:80"])
        .load();
    engine.set_interface(LOOPBACK, OURS);
    let cases = [
        ("ipip", tcp(CLIENT, "203.0.113.1:80"), 20, 4),
        ("ipip, a SYN", Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.1:80") }, 20, 4),
        ("ipip, UDP", udp(CLIENT, "203.0.113.1:53"), 20, 4),
        ("ipip, IPv6", tcp(CLIENT6, "[2001:db8:1::1]:80"), 40, 41),
        ("tunnel", tcp(CLIENT, "203.0.113.2:80"), 20 + TUNNEL, 17),
        ("tunnel, IPv6", tcp(CLIENT6, "[2001:db8:1::2]:80"), 40 + TUNNEL, 17),
    ];
    for (case, packet, overhead, proto) in cases {
        for (length, tos) in (0..1300).step_by(7).zip((0..=255u8).cycle()) {
            // The last hop is the backend's business, as in `l2`.
            let ttl = if length % 2 == 0 { 1 } else { 64 };
            let packet = Packet { ttl, payload: vec![length as u8; length], ..packet.clone() };
            let frame = with_tos(packet.bytes(), tos);

            let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");

            let what = format!("{case}, {length} bytes, TOS {tos}");
            assert_eq!(run.action, 3, "{what}");
            let (outer, inner) = run.packet.split_at(14 + overhead);
            assert_eq!(inner, &frame[14..], "{what}: the packet itself is untouched");
            assert_eq!(outer[0..6], backend_mac(1).0, "{what}");
            assert_eq!(outer[6..12], OURS.0, "{what}");
            if outer[12..14] == [0x08, 0x00] {
                v4(&outer[14..34], overhead + inner.len(), tos, proto, &what);
            } else {
                v6(&outer[14..54], overhead + inner.len() - 40, tos, proto, &what);
            }
        }
    }
}

#[test]
fn a_frame_for_another_node_cut_at_any_byte_is_never_sent() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = World::new()
        .service(Tcp, "203.0.113.1:80", Tunnel, &["10.0.0.1:80"])
        .service(Udp, "203.0.113.1:80", Tunnel, &["10.0.0.1:80"])
        .service(Tcp, "[2001:db8:1::1]:80", Tunnel, &["[fd00::1]:80"])
        .service(Udp, "[2001:db8:1::1]:80", Tunnel, &["[fd00::1]:80"])
        .service(Tcp, "203.0.113.2:80", Ipip, &["10.0.0.1:80"])
        .service(Udp, "[2001:db8:1::2]:80", Ipip, &["[fd00::1]:80"])
        .load();
    engine.set_interface(LOOPBACK, OURS);
    let (vip, vip6) = ("203.0.113.1:80", "[2001:db8:1::1]:80");
    let packets = [
        tcp(CLIENT, vip),
        udp(CLIENT, vip),
        tcp(CLIENT6, vip6),
        udp(CLIENT6, vip6),
        tcp(CLIENT, "203.0.113.2:80"),
        udp(CLIENT6, "[2001:db8:1::2]:80"),
    ];
    for packet in packets {
        let frame = Packet { payload: vec![], ..packet }.bytes();
        assert!(matches!(run(&mut engine, &frame), Send(_)));
        for length in 14..frame.len() {
            let did = run(&mut engine, &frame[..length]);

            assert!(matches!(did, Pass | Drop), "{length} of {} bytes: {did:?}", frame.len());
        }
    }
}

fn v4(head: &[u8], length: usize, tos: u8, proto: u8, what: &str) {
    let [high, low] = (length as u16).to_be_bytes();
    assert_eq!(head[0..10], [0x45, tos, high, low, 0, 0, 0x40, 0, 64, proto], "{what}");
    assert_eq!(csum::full(0, head), 0, "{what}: header checksum");
    let addrs = [NODE_V4, "10.0.0.1"].map(|addr| addr.parse::<Ipv4Addr>().expect("address").octets());
    assert_eq!(head[12..20], addrs.concat(), "{what}");
}

fn v6(head: &[u8], length: usize, tos: u8, proto: u8, what: &str) {
    let [high, low] = (length as u16).to_be_bytes();
    let (version, class) = (head[0] >> 4, head[0] << 4 | head[1] >> 4);
    assert_eq!((version, class), (6, tos), "{what}");
    assert_eq!(head[4..8], [high, low, proto, 64], "{what}");
    let addrs = [NODE_V6, "fd00::1"].map(|addr| addr.parse::<Ipv6Addr>().expect("address").octets());
    assert_eq!(head[8..40], addrs.concat(), "{what}");
}

/// The frame with another TOS or traffic class, its header checksum made anew.
fn with_tos(mut frame: Vec<u8>, tos: u8) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        frame[15] = tos;
        frame[24..26].fill(0);
        let sum = csum::full(0, &frame[14..34]).to_le_bytes();
        frame[24..26].copy_from_slice(&sum);
    } else {
        frame[14] = 0x60 | tos >> 4;
        frame[15] = tos << 4;
    }
    frame
}
