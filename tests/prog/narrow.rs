//! A router between us and a backend finds a wrapped packet too large: the client is told, byte for byte.

use lb_common::tunnel;
use lb_tests::icmp::Icmp;
use lb_tests::packet::{OURS, Packet, ROUTER, tcp, udp};
use lb_tests::shape::tagged;
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode::*, Protocol::*};

use crate::run::{Drop, Pass, Send, count, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const HOPS: [&str; 2] = ["192.0.2.66", "2001:db8:9::66"];
/// What the router takes.
const MTU: u16 = 1400;

/// VIPs of both families with backends of both, in both modes that wrap.
const SERVICES: [(&str, penstock::model::l4::ForwardingMode, &str); 8] = [
    ("203.0.113.1:80", Ipip, "10.0.0.1:80"),
    ("203.0.113.2:80", Ipip, "[fd00::2]:80"),
    ("203.0.113.3:80", Tunnel, "10.0.0.3:80"),
    ("203.0.113.4:80", Tunnel, "[fd00::4]:80"),
    ("[2001:db8:1::1]:80", Ipip, "10.0.0.5:80"),
    ("[2001:db8:1::2]:80", Ipip, "[fd00::6]:80"),
    ("[2001:db8:1::3]:80", Tunnel, "10.0.0.7:80"),
    ("[2001:db8:1::4]:80", Tunnel, "[fd00::8]:80"),
];

fn world() -> Engine {
    let mut world = World::new();
    for (vip, mode, backend) in SERVICES {
        for protocol in [Tcp, Udp] {
            world = world.service(protocol, vip, mode, &[backend]);
        }
    }
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// The error of a router about a frame of ours, of which it quotes so many bytes.
fn error(sent: &[u8], quoted: usize) -> Icmp {
    let four = sent[12] == 8;
    let ip = |at: usize| -> std::net::IpAddr {
        match four {
            true => <[u8; 4]>::try_from(&sent[at..at + 4]).expect("4 bytes").into(),
            false => <[u8; 16]>::try_from(&sent[at..at + 16]).expect("16 bytes").into(),
        }
    };
    let source = ip(if four { 26 } else { 22 }).to_string();
    let quote = &sent[14..sent.len().min(14 + quoted)];
    let [high, low] = MTU.to_be_bytes();
    let (kind, hop) = if four { ((3, 4), HOPS[0]) } else { ((2, 0), HOPS[1]) };
    Icmp { rest: [0, 0, high, low], ..Icmp::new(hop, &source, kind, quote) }
}

#[test]
fn the_client_hears_the_size_that_fits_through_what_we_wrap_it_in() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for (vip, mode, backend) in SERVICES {
        let client = if vip.starts_with('[') { CLIENT6 } else { CLIENT };
        let head = match (mode, backend.starts_with('[')) {
            (Ipip, false) => 20,
            (Ipip, true) => 40,
            (_, false) => tunnel::OVERHEAD_V4,
            (_, true) => tunnel::OVERHEAD_V6,
        };
        for asked in [tcp(client, vip), udp(client, vip)] {
            let asked = Packet { payload: vec![9; 1300], ..asked };
            let Send(sent) = run(&mut engine, &asked.bytes()) else { panic!("{vip}: not sent") };
            assert_eq!(sent[14 + head..], asked.bytes()[14..]);
            // As much as routers quote (RFC 1812 4.3.2.3, RFC 4443 2.4), and as little as names the flow.
            let least = head + if client == CLIENT { 40 } else { 60 };
            for quoted in [if backend.starts_with('[') { 1232 } else { 548 }, least] {
                let held = quoted - head;
                let most = if client == CLIENT { 548 } else { 1232 };
                let [high, low] = (MTU - head as u16).to_be_bytes();
                let expected = Icmp {
                    dst_mac: ROUTER,
                    src_mac: OURS,
                    rest: [0, 0, high, low],
                    kind: if client == CLIENT { (3, 4) } else { (2, 0) },
                    ..Icmp::new(
                        &asked.dst.ip().to_string(),
                        &asked.src.ip().to_string(),
                        (0, 0),
                        &asked.bytes()[14..14 + held.min(most)],
                    )
                };
                for tags in [&[][..], &[5], &[100, 5]] {
                    let before = count(&engine, "told-too-big");

                    let did = run(&mut engine, &tagged(&error(&sent, quoted).bytes(), tags));

                    assert_eq!(
                        did,
                        Send(tagged(&expected.bytes(), tags)),
                        "{vip} over {backend}, {quoted} bytes"
                    );
                    assert_eq!(count(&engine, "told-too-big"), before + 1);
                }
            }
        }
    }
}

#[test]
fn an_error_that_names_nobody_or_lies_is_left_to_the_stack_or_dropped() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for (vip, mode, backend) in SERVICES {
        let client = if vip.starts_with('[') { CLIENT6 } else { CLIENT };
        let asked = Packet { payload: vec![9; 900], ..udp(client, vip) };
        let Send(sent) = run(&mut engine, &asked.bytes()) else { panic!("{vip}: not sent") };
        let good = error(&sent, 548);
        let four = backend.starts_with('1');
        let outer = if four { 20 } else { 40 };
        let changed = |at: usize| {
            let mut icmp = good.clone();
            icmp.body[at] ^= 0x10;
            icmp.bytes()
        };
        let mut cases = vec![
            ("another sender", changed(if four { 13 } else { 10 }), "icmp"),
            (
                "another kind",
                Icmp { kind: if four { (3, 1) } else { (1, 0) }, ..good.clone() }.bytes(),
                "icmp",
            ),
            ("another backend", changed(if four { 19 } else { 39 }), "stray-icmp"),
        ];
        if four {
            cases.push(("no size", Icmp { rest: [0; 4], ..good.clone() }.bytes(), "icmp"));
            cases.push(("eight bytes", error(&sent, 28).bytes(), "icmp"));
        }
        if mode == Tunnel {
            cases.push(("another cluster", changed(outer + 12), "icmp"));
        }
        for (case, frame, verdict) in cases {
            let expected = if verdict == "icmp" { Pass } else { Drop };
            assert_eq!(run(&mut engine, &frame), expected, "{vip} over {backend}: {case}");
        }
        let frame = good.bytes();
        for length in (14..200).filter(|length| *length < 14 + outer + 8 + outer + 20) {
            let did = run(&mut engine, &frame[..length]);

            assert!(matches!(did, Pass | Drop), "{vip} over {backend}: {length} bytes: {did:?}");
        }
    }
    assert_eq!(count(&engine, "told-too-big"), 0);
}
