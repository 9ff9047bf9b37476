//! ICMP: echo to a VIP, and errors that find the owner of the flow they are about, byte for byte.

use lb_tests::icmp::Icmp;
use lb_tests::packet::{OURS, Packet, ROUTER, tcp, udp};
use lb_tests::shape::{fragments, tagged, with_extensions, with_options};
use lb_tests::world::{LOOPBACK, World, backend_mac, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode::*, Protocol::*};

use crate::run::{Does, Drop, Pass, Send, count, run};
use crate::slow::world;

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const HOP: &str = "192.0.2.66";
const HOP6: &str = "2001:db8:9::66";
/// Every error there is: type, code, second word.
const ERRORS: [((u8, u8), [u8; 4]); 7] = [
    ((3, 0), [0; 4]),
    ((3, 3), [0; 4]),
    ((3, 4), [0, 0, 5, 120]),
    ((4, 0), [0; 4]),
    ((11, 0), [0; 4]),
    ((11, 1), [0; 4]),
    ((12, 0), [20, 0, 0, 0]),
];
const ERRORS6: [((u8, u8), [u8; 4]); 5] =
    [((1, 0), [0; 4]), ((1, 4), [0; 4]), ((2, 0), [0, 0, 5, 0]), ((3, 0), [0; 4]), ((4, 1), [0, 0, 0, 6])];

/// An error from a router on the way, to whoever sent the quoted packet.
fn error(kind: (u8, u8), rest: [u8; 4], about: &Packet, quoted: &[u8]) -> Icmp {
    let hop = if about.src.is_ipv4() { HOP } else { HOP6 };
    Icmp { rest, ..Icmp::new(hop, &about.src.ip().to_string(), kind, quoted) }
}

fn all_errors(about: &Packet) -> Vec<((u8, u8), [u8; 4])> {
    if about.src.is_ipv4() { ERRORS.to_vec() } else { ERRORS6.to_vec() }
}

/// Bytes of a quote that ends eight bytes behind the IP header.
fn least(packet: &Packet) -> usize {
    if packet.src.is_ipv4() { 28 } else { 48 }
}

/// What a backend of a VIP sends to the client.
fn answers() -> Vec<(Packet, u8)> {
    let vips = [("203.0.113.2:80", 2), ("203.0.113.4:80", 4), ("203.0.113.6:80", 6)];
    let vips6 = [("[2001:db8:1::2]:80", 2), ("[2001:db8:1::4]:80", 4), ("[2001:db8:1::6]:80", 6)];
    let four = vips.into_iter().flat_map(|(vip, last)| [(tcp(vip, CLIENT), last), (udp(vip, CLIENT), last)]);
    let six =
        vips6.into_iter().flat_map(|(vip, last)| [(tcp(vip, CLIENT6), last), (udp(vip, CLIENT6), last)]);
    four.chain(six).collect()
}

#[test]
fn an_error_about_an_answer_goes_to_the_backend_in_the_way_its_packets_do() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let mut sent = 0;
    for (answer, last) in answers() {
        let frame = answer.bytes();
        let mut quotes = vec![frame[14..].to_vec(), frame[14..14 + least(&answer)].to_vec()];
        quotes.push(if answer.src.is_ipv4() {
            with_options(&frame, &[1; 8])[14..].to_vec()
        } else {
            with_extensions(&frame, &[(60, &[0, 1, 4, 0, 0, 0, 0])])[14..].to_vec()
        });
        for (kind, rest) in all_errors(&answer) {
            for quote in &quotes {
                let frame = error(kind, rest, &answer, quote).bytes();
                for arrived in [frame.clone(), tagged(&frame, &[5])] {
                    let did = run(&mut engine, &arrived);

                    let Send(out) = did else { panic!("{kind:?} about {answer:?}: {did:?}") };
                    assert_eq!(out[..12], [backend_mac(last).0, OURS.0].concat());
                    let outer = least(&answer) - 8;
                    let overhead = match last {
                        2 => 0,
                        4 => outer,
                        _ => outer + 8 + lb_common::tunnel::HEADER,
                    };
                    assert_eq!(out.len(), frame.len() + overhead, "{kind:?} about {answer:?}");
                    assert_eq!(out[14 + overhead..], frame[14..], "{kind:?} about {answer:?}");
                    sent += 1;
                }
            }
        }
    }
    assert_eq!(count(&engine, "forwarded-icmp"), sent);
}

#[test]
fn an_error_finds_the_backend_that_the_flow_has() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let backends: Vec<String> = (1..=20).map(|last| format!("10.0.0.{last}:80")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let engine = World::new().service(Tcp, "203.0.113.2:80", L2, &backends).load();
    engine.set_interface(LOOPBACK, OURS);
    let mut engine = engine;
    for port in 1024..1324 {
        let (client, vip) = (format!("198.51.100.7:{port}"), "203.0.113.2:80");
        let Send(there) = run(&mut engine, &tcp(&client, vip).bytes()) else { panic!("not sent") };
        let answer = tcp(vip, &client);

        let about = error((3, 4), [0, 0, 5, 0], &answer, &answer.bytes()[14..42]);
        let Send(out) = run(&mut engine, &about.bytes()) else { panic!("not sent") };

        assert_eq!(out[..6], there[..6], "port {port}");
    }
    assert_eq!(count(&engine, "flows-remembered"), 0, "errors are not remembered");
}

/// Sends a packet to a `nat` VIP; returns what the backend gets, as fields.
fn translated(engine: &mut Engine, packet: &Packet) -> Packet {
    let Send(out) = run(engine, &packet.bytes()) else { panic!("not sent") };
    let (at, node, backend) = match packet.src.is_ipv4() {
        true => (34, "10.0.0.254", "10.0.0.1:8080"),
        false => (54, "[fd00::fe]", "[fd00::1]:8080"),
    };
    let port = u16::from_be_bytes([out[at], out[at + 1]]);
    Packet {
        src: format!("{node}:{port}").parse().unwrap(),
        dst: backend.parse().unwrap(),
        dst_mac: backend_mac(1),
        src_mac: OURS,
        ttl: packet.ttl - 1,
        ..packet.clone()
    }
}

#[test]
fn nat_translates_errors_and_what_they_quote_both_ways() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let mut told = 0;
    for asked in [
        tcp(CLIENT, "203.0.113.1:80"),
        udp(CLIENT, "203.0.113.1:80"),
        Packet { no_csum: true, ..udp("198.51.100.8:1", "203.0.113.1:80") },
        tcp(CLIENT6, "[2001:db8:1::1]:80"),
        udp(CLIENT6, "[2001:db8:1::1]:80"),
    ] {
        let inside = translated(&mut engine, &asked);
        let turned = |packet: &Packet, src, dst| Packet { src, dst, ttl: 60, ..packet.clone() };
        for short in [true, false] {
            let quote = |packet: &Packet| {
                let frame = packet.bytes();
                let end = if short { 14 + least(packet) } else { frame.len() };
                frame[14..end].to_vec()
            };
            for (kind, rest) in all_errors(&asked) {
                // A router towards the client could not deliver what the backend answered.
                let outside = turned(&asked, asked.dst, asked.src);
                let within = turned(&asked, inside.dst, inside.src);
                let came = error(kind, rest, &outside, &quote(&outside));
                let expected = Icmp {
                    dst_mac: backend_mac(1),
                    src_mac: OURS,
                    src: inside.src.ip(),
                    dst: inside.dst.ip(),
                    ttl: 63,
                    body: quote(&within),
                    ..came.clone()
                };
                let did = run(&mut engine, &came.bytes());
                assert_eq!(did, Send(expected.bytes()), "{kind:?} about the answer to {asked:?}");

                // The backend, or a router towards it, could not deliver what we sent.
                let came = error(kind, rest, &inside, &quote(&turned(&inside, inside.src, inside.dst)));
                let expected = Icmp {
                    dst_mac: ROUTER,
                    src_mac: OURS,
                    src: asked.dst.ip(),
                    dst: asked.src.ip(),
                    ttl: 63,
                    body: quote(&turned(&asked, asked.src, asked.dst)),
                    ..came.clone()
                };
                let did = run(&mut engine, &came.bytes());
                assert_eq!(did, Send(expected.bytes()), "{kind:?} about {asked:?}");
                told += 1;
            }
        }
    }
    assert_eq!(count(&engine, "forwarded-icmp"), told);
    assert_eq!(count(&engine, "replied-icmp"), told);
}

#[test]
fn echo_to_a_vip_is_answered_and_everything_else_has_a_name() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let ping = |src: &str, dst: &str, kind| Icmp {
        tos: 0,
        ttl: 57,
        rest: [1, 2, 0, 9],
        ..Icmp::new(src, dst, kind, b"abcdefghijklmnopqrstuvw")
    };
    let pong = |asked: &Icmp, kind| Icmp {
        dst_mac: ROUTER,
        src_mac: OURS,
        src: asked.dst,
        dst: asked.src,
        kind,
        ttl: 64,
        ..asked.clone()
    };
    let four = ping(HOP, "203.0.113.2", (8, 0));
    let six = ping(HOP6, "2001:db8:1::2", (128, 0));
    let (told, told6) = (pong(&four, (0, 0)).bytes(), pong(&six, (129, 0)).bytes());
    let answer = tcp("203.0.113.2:80", CLIENT);
    let quote = answer.bytes()[14..].to_vec();
    let about = |answer: &Packet| error((3, 3), [0; 4], answer, &answer.bytes()[14..]);
    let lying = Icmp { dst: "203.0.113.4".parse().unwrap(), ..about(&answer) };
    let later = fragments(&Packet { payload: vec![1; 100], ..answer.clone() }.bytes(), 64).remove(1);
    let sctp = Packet { proto: 132, ..answer.clone() };
    let node = udp("10.0.0.254:9999", "192.0.2.1:53");
    let unknown = tcp("10.0.0.254:61234", "10.0.0.1:8080");
    let closed = tcp("203.0.113.2:81", CLIENT);
    let punted = tcp("203.0.113.5:443", CLIENT);
    let stranger = tcp("203.0.113.1:80", "198.51.100.99:9");

    let table: Vec<(&str, Vec<u8>, &str, Does)> = vec![
        ("echo", four.bytes(), "echo-answered", Send(told.clone())),
        ("echo over IPv6", six.bytes(), "echo-answered", Send(told6)),
        ("echo behind a tag", tagged(&four.bytes(), &[5]), "echo-answered", Send(tagged(&told, &[5]))),
        (
            "echo with options",
            with_options(&four.bytes(), &[1; 4]),
            "echo-answered",
            Send(with_options(&told, &[1; 4])),
        ),
        ("echo of a multicast source", ping("224.0.0.1", "203.0.113.2", (8, 0)).bytes(), "stray-icmp", Drop),
        ("echo to the node", ping(HOP, "10.0.0.254", (8, 0)).bytes(), "icmp", Pass),
        ("echo over IPv6 to the node", ping(HOP6, "fd00::fe", (128, 0)).bytes(), "icmp", Pass),
        ("echo to another host", ping(HOP, "192.0.2.1", (8, 0)).bytes(), "", Pass),
        ("an echo reply", ping(HOP, "203.0.113.2", (0, 0)).bytes(), "stray-icmp", Drop),
        ("timestamp", ping(HOP, "203.0.113.2", (13, 0)).bytes(), "stray-icmp", Drop),
        ("redirect", ping(HOP, "203.0.113.2", (5, 1)).bytes(), "stray-icmp", Drop),
        ("neighbour solicitation", ping(HOP6, "2001:db8:1::2", (135, 0)).bytes(), "icmp", Pass),
        ("neighbour advertisement", ping(HOP6, "2001:db8:1::2", (136, 0)).bytes(), "icmp", Pass),
        ("an error that quotes another's packet", lying.bytes(), "stray-icmp", Drop),
        ("about a later fragment", error((11, 1), [0; 4], &answer, &later[14..]).bytes(), "stray-icmp", Drop),
        ("about SCTP", about(&sctp).bytes(), "stray-icmp", Drop),
        ("about seven bytes", error((3, 3), [0; 4], &answer, &quote[..27]).bytes(), "stray-icmp", Drop),
        ("about nothing", error((3, 3), [0; 4], &answer, &[]).bytes(), "stray-icmp", Drop),
        ("about a port that nobody serves", about(&closed).bytes(), "stray-icmp", Drop),
        ("about a punted flow", about(&punted).bytes(), "icmp", Pass),
        ("about a flow that nat does not know", about(&stranger).bytes(), "stray-icmp", Drop),
        ("about the node's own packet", about(&node).bytes(), "icmp", Pass),
        ("about a SNAT port without a flow", about(&unknown).bytes(), "icmp", Pass),
        ("a fragment of a message", fragments(&four.bytes(), 16).remove(0), "fragment", Drop),
    ];
    for (case, frame, verdict, expected) in table {
        let before = count(&engine, verdict);

        let did = run(&mut engine, &frame);

        assert_eq!(did, expected, "{case}");
        assert_eq!(count(&engine, verdict), before + u64::from(!verdict.is_empty()), "{case}: {verdict}");
    }
}

#[test]
fn an_error_cut_at_any_byte_is_never_sent() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for asked in [udp(CLIENT, "203.0.113.1:80"), udp(CLIENT6, "[2001:db8:1::1]:80")] {
        let inside = translated(&mut engine, &asked);
        let answer = Packet { src: asked.dst, dst: asked.src, ..asked.clone() };
        for about in [&answer, &inside] {
            let (kind, rest) = all_errors(about)[1];
            let frame = error(kind, rest, about, &about.bytes()[14..14 + least(about)]).bytes();
            for length in 14..frame.len() {
                let did = run(&mut engine, &frame[..length]);

                assert!(matches!(did, Pass | Drop), "{length} of {} bytes: {did:?}", frame.len());
            }
        }
    }
}
