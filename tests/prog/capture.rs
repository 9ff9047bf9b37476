//! What the program shows of a packet while somebody captures, and that it does the same to it.

use std::collections::BTreeSet;

use lb_common::capture::{Filter as WireFilter, Head};
use lb_common::{Addr, Flow, TCP, Verdict};
use lb_tests::packet::{OURS, Packet, tcp, udp};
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::capture::in_wire_form;
use penstock::datapath::engine::Engine;
use penstock::model::capture::{Filter, Tally};
use penstock::model::l4::{ForwardingMode::*, Protocol::*};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";

fn world() -> Option<Engine> {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return None;
    }
    let engine = World::new()
        .service(Tcp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"])
        .service(Tcp, "203.0.113.2:80", L2, &["10.0.0.2:80"])
        .service(Udp, "203.0.113.2:53", L2, &["10.0.0.2:53"])
        .service(Tcp, "203.0.113.3:80", Ipip, &["10.0.0.3:80"])
        .service(Tcp, "[2001:db8:1::4]:80", Tunnel, &["[fd00::4]:80"])
        .load();
    engine.set_interface(LOOPBACK, OURS);
    Some(engine)
}

fn all() -> Filter {
    Filter { verdicts: BTreeSet::new(), vip: None, host: None, every: 1, rate: 0, snap: 512 }
}

fn wire(filter: Filter) -> WireFilter {
    in_wire_form(&filter).expect("a valid filter")
}

/// Runs frames and returns what was shown of them.
fn shown(engine: &mut Engine, filter: Filter, frames: &[Vec<u8>]) -> (Vec<(Head, Vec<u8>)>, Tally) {
    let mut ring = engine.start_capture(&wire(filter)).expect("a ring buffer").expect("nobody else looks");
    for frame in frames {
        engine.kernel.test_run("penstock", frame, 1).expect("the program runs");
    }
    let events = std::iter::from_fn(|| ring.take()).collect();
    let tally = engine.kernel.capture_tally().expect("counted");
    engine.stop_capture();
    (events, tally)
}

fn verdicts(events: &[(Head, Vec<u8>)]) -> Vec<&'static str> {
    events.iter().map(|(head, _)| head.verdict().expect("a verdict").as_str()).collect()
}

fn flow(packet: &Packet) -> Flow {
    Flow {
        src: packet.src.ip().into(),
        dst: packet.dst.ip().into(),
        ports: Flow::ports(packet.src.port().to_be(), packet.dst.port().to_be()),
        proto: packet.proto.into(),
    }
}

#[test]
fn a_packet_is_shown_as_it_left_with_its_verdict_and_the_flow_as_it_came() {
    let Some(mut engine) = world() else { return };
    let packets = [
        ("forwarded-nat", tcp(CLIENT, "203.0.113.1:80")),
        ("forwarded-l2", tcp(CLIENT, "203.0.113.2:80")),
        ("forwarded-l2", udp(CLIENT, "203.0.113.2:53")),
        ("forwarded-ipip", tcp(CLIENT, "203.0.113.3:80")),
        ("forwarded-tunnel", tcp(CLIENT6, "[2001:db8:1::4]:80")),
        ("closed-port", tcp(CLIENT, "203.0.113.2:81")),
    ];
    for (verdict, packet) in packets {
        let frame = packet.bytes();
        // The port of a translated flow is remembered: both runs use the same.
        let quiet = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
        let mut ring = engine.start_capture(&wire(all())).unwrap().expect("nobody else looks");

        let watched = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");

        let (head, bytes) = ring.take().expect("one event");
        engine.stop_capture();
        assert_eq!(ring.take(), None, "{verdict}");
        assert_eq!((watched.action, &watched.packet), (quiet.action, &quiet.packet), "{verdict}");
        assert_eq!(bytes, quiet.packet, "{verdict}");
        let expected = Head {
            time_ns: head.time_ns,
            flow: flow(&packet),
            ifindex: LOOPBACK,
            length: bytes.len() as u32,
            captured: bytes.len() as u16,
            verdict: head.verdict,
            action: quiet.action as u8,
            padding: 0,
        };
        assert_eq!((verdicts(&[(head, bytes)]), head), (vec![verdict], expected), "{verdict}");
        assert!(head.time_ns > 0);
    }
}

#[test]
fn a_capture_shows_nothing_before_and_after() {
    let Some(mut engine) = world() else { return };
    let frame = tcp(CLIENT, "203.0.113.2:80").bytes();
    engine.kernel.test_run("penstock", &frame, 1).unwrap();

    let (events, tally) = shown(&mut engine, all(), std::slice::from_ref(&frame));
    engine.kernel.test_run("penstock", &frame, 1).unwrap();
    let (none, again) = shown(&mut engine, all(), &[]);

    assert_eq!((events.len(), tally), (1, Tally { matched: 1, held_back: 0, lost: 0 }));
    assert_eq!((none.len(), again), (0, Tally::default()));
}

#[test]
fn two_cannot_look_at_once() {
    let Some(mut engine) = world() else { return };

    let _first = engine.start_capture(&wire(all())).unwrap().expect("nobody else looks");

    assert!(engine.start_capture(&wire(all())).unwrap().is_none());
}

#[test]
fn filters_by_verdict_vip_and_host_work_in_the_kernel() {
    let Some(mut engine) = world() else { return };
    let frames: Vec<Vec<u8>> = [
        tcp(CLIENT, "203.0.113.1:80"),
        tcp(CLIENT, "203.0.113.2:80"),
        udp("198.51.100.8:1", "203.0.113.2:53"),
        tcp("198.51.100.8:2", "203.0.113.3:80"),
        tcp(CLIENT6, "[2001:db8:1::4]:80"),
        tcp(CLIENT, "203.0.113.2:81"),
        tcp(CLIENT, "192.0.2.1:80"),
    ]
    .iter()
    .map(Packet::bytes)
    .collect();
    let ip = |text: &str| text.parse().expect("test address");
    let named =
        |names: &[&str]| Filter { verdicts: names.iter().map(|name| (*name).to_owned()).collect(), ..all() };
    let vip = |addr: &str, port| Filter { vip: Some((ip(addr), port)), ..all() };
    let host = |addr: &str| Filter { host: Some(ip(addr)), ..all() };
    let table = [
        (
            "everything of ours",
            all(),
            vec![
                "forwarded-nat",
                "forwarded-l2",
                "forwarded-l2",
                "forwarded-ipip",
                "forwarded-tunnel",
                "closed-port",
            ],
        ),
        ("drops", named(&["drop"]), vec!["closed-port"]),
        ("two names", named(&["forwarded-nat", "forwarded-i*"]), vec!["forwarded-nat", "forwarded-ipip"]),
        ("a VIP, all ports", vip("203.0.113.2", 0), vec!["forwarded-l2", "forwarded-l2", "closed-port"]),
        ("a VIP's port", vip("203.0.113.2", 53), vec!["forwarded-l2"]),
        ("a VIP that is translated", vip("203.0.113.1", 80), vec!["forwarded-nat"]),
        ("a VIP within IP", vip("203.0.113.3", 80), vec!["forwarded-ipip"]),
        ("a VIP in a tunnel", vip("2001:db8:1::4", 80), vec!["forwarded-tunnel"]),
        ("a client", host("198.51.100.8"), vec!["forwarded-l2", "forwarded-ipip"]),
        ("a backend", host("10.0.0.3"), vec!["forwarded-ipip"]),
        ("both", Filter { host: Some(ip("198.51.100.8")), ..vip("203.0.113.3", 80) }, vec!["forwarded-ipip"]),
        ("nobody", host("192.0.2.9"), vec![]),
    ];
    for (case, filter, expected) in table {
        let (events, tally) = shown(&mut engine, filter, &frames);

        assert_eq!(verdicts(&events), expected, "{case}");
        assert_eq!(tally.matched, expected.len() as u64, "{case}");
    }
}

#[test]
fn an_answer_is_found_by_its_vip_and_by_its_backend() {
    let Some(mut engine) = world() else { return };
    let out = engine.kernel.test_run("penstock", &tcp(CLIENT, "203.0.113.1:80").bytes(), 1).unwrap().packet;
    let port = u16::from_be_bytes([out[34], out[35]]);
    let answer = tcp("10.0.0.1:8080", &format!("10.0.0.254:{port}"));
    for filter in [
        Filter { vip: Some(("203.0.113.1".parse().unwrap(), 80)), ..all() },
        Filter { host: Some("198.51.100.7".parse().unwrap()), ..all() },
        Filter { host: Some("10.0.0.1".parse().unwrap()), ..all() },
    ] {
        let (events, _) = shown(&mut engine, filter, &[answer.bytes()]);

        assert_eq!(verdicts(&events), ["replied-nat"]);
        assert_eq!(events[0].0.flow, flow(&answer), "as it came");
        assert_eq!(events[0].1[26..34], [203, 0, 113, 1, 198, 51, 100, 7], "as it left");
    }
}

#[test]
fn sampling_rate_and_snap_length_bound_what_is_shown() {
    let Some(mut engine) = world() else { return };
    let frames = vec![Packet { payload: vec![7; 900], ..tcp(CLIENT, "203.0.113.2:80") }.bytes(); 100];

    let (sampled, tally) = shown(&mut engine, Filter { every: 10, ..all() }, &frames);
    assert_eq!((sampled.len(), tally.matched), (10, 100));

    // Ten a second are one tenth of a second each, and as much may come at once.
    let (limited, tally) = shown(&mut engine, Filter { rate: 10, ..all() }, &frames);
    assert!((1..=3).contains(&limited.len()), "{}", limited.len());
    assert_eq!(limited.len() as u64 + tally.held_back, 100);

    for (snap, length) in [(64, 64), (512, 512), (9000, 512)] {
        let (cut, _) = shown(&mut engine, Filter { snap, ..all() }, &frames[..1]);
        assert_eq!((cut[0].1.len(), cut[0].0.length), (length, 14 + 40 + 900), "{snap}");
    }
}

#[test]
fn a_full_ring_loses_events_and_no_packets() {
    let Some(mut engine) = world() else { return };
    let frame = Packet { payload: vec![7; 900], ..tcp(CLIENT, "203.0.113.2:80") }.bytes();
    let mut ring = engine.start_capture(&wire(all())).unwrap().expect("nobody else looks");

    for _ in 0..3000 {
        let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
        assert_eq!(run.action, 3);
    }

    let shown = std::iter::from_fn(|| ring.take()).count() as u64;
    let tally = engine.kernel.capture_tally().unwrap();
    assert!(tally.lost > 0 && shown + tally.lost == 3000, "{shown} {tally:?}");
}

#[test]
fn a_packet_with_a_flow_that_cannot_be_read_has_none() {
    let Some(mut engine) = world() else { return };
    let mut frame = tcp(CLIENT, "203.0.113.2:80").bytes();
    frame.truncate(14 + 20 + 2);

    let (events, _) = shown(&mut engine, all(), &[frame]);

    let (head, _) = events.first().expect("one event");
    assert_eq!(head.verdict(), Some(Verdict::Truncated));
    let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("test address"));
    let expected = Flow { src: addr("198.51.100.7"), dst: addr("203.0.113.2"), ports: 0, proto: TCP.into() };
    assert_eq!(head.flow, expected);
}

#[test]
fn the_answer_of_a_local_backend_is_shown_as_it_leaves() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let vip = "203.0.113.1:53";
    let mut engine = World::new().service(Udp, vip, Local, &["10.0.0.1:5353"]).load();
    let asked = udp(CLIENT, vip);
    engine.kernel.test_run("penstock", &asked.bytes(), 1).expect("the program runs");
    let answer = Packet { src: "10.0.0.1:5353".parse().expect("address"), dst: asked.src, ..asked.clone() };
    let expected = Packet { src: asked.dst, ..answer.clone() };
    let stranger = Packet { dst: "198.51.100.8:1".parse().expect("address"), ..answer.clone() };
    let only_vip = Filter { vip: Some((asked.dst.ip(), 53)), ..all() };
    let mut ring = engine.start_capture(&wire(only_vip)).unwrap().expect("nobody else looks");

    let left = engine.kernel.test_out(&answer.bytes()).expect("the program runs");
    engine.kernel.test_out(&stranger.bytes()).expect("the program runs");

    let (head, bytes) = ring.take().expect("one event");
    assert_eq!(ring.take(), None);
    engine.stop_capture();
    assert_eq!((&left.packet, &bytes), (&expected.bytes(), &expected.bytes()));
    assert_eq!((head.flow, head.ifindex), (flow(&expected), LOOPBACK));
    assert_eq!(verdicts(&[(head, bytes)]), ["replied-local"]);
    let counted = engine.verdicts().into_iter().find(|(verdict, _)| verdict.as_str() == "replied-local");
    assert_eq!(counted, Some((Verdict::RepliedLocal, 1)));
}
