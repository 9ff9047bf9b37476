//! Tags, options, extension headers and fragments: the same way as plain packets take, byte for byte.

use lb_common::{Mac, tunnel};
use lb_tests::packet::{ACK, OURS, Packet, ROUTER, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::{fragments, sum_v4, tagged, with_extensions, with_options};
use lb_tests::world::{LOOPBACK, World, backend_mac, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode::*, Listener, Protocol::*};

use crate::run::{Does, Drop, Pass, Send, count, event, run};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const NOPS: [u8; 8] = [1, 1, 1, 1, 1, 1, 1, 0];
const HOP_BY_HOP: (u8, &[u8]) = (0, &[0, 1, 4, 0, 0, 0, 0]);
const DESTINATION: (u8, &[u8]) = (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const ROUTED: (u8, &[u8]) = (43, &[0, 4, 0, 0, 0, 0, 0]);
const STILL_ROUTED: (u8, &[u8]) = (43, &[0, 4, 1, 0, 0, 0, 0]);
const ATOMIC: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 7]);
const AUTH: (u8, &[u8]) = (51, &[4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]);

pub fn world() -> Engine {
    let mut world = World::new().punt("203.0.113.5:443", Listener::Https);
    for (vip, mode, backend) in [
        ("203.0.113.1:80", Nat, "10.0.0.1:8080"),
        ("203.0.113.2:80", L2, "10.0.0.2:80"),
        ("203.0.113.4:80", Ipip, "10.0.0.4:80"),
        ("203.0.113.6:80", Tunnel, "10.0.0.6:80"),
        ("203.0.113.3:80", Nat, ""),
        ("[2001:db8:1::1]:80", Nat, "[fd00::1]:8080"),
        ("[2001:db8:1::2]:80", L2, "[fd00::2]:80"),
        ("[2001:db8:1::4]:80", Ipip, "[fd00::4]:80"),
        ("[2001:db8:1::6]:80", Tunnel, "[fd00::6]:80"),
        ("[2001:db8:1::3]:80", Nat, ""),
    ] {
        for protocol in [Tcp, Udp] {
            let backends: &[&str] = if backend.is_empty() { &[] } else { &[backend] };
            world = world.service(protocol, vip, mode, backends);
            if backend.is_empty() {
                world = world.rejecting(vip, protocol);
            }
        }
    }
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// The frame as it leaves for backend `last`: its MACs changed, its tags gone.
fn to_backend(frame: &[u8], tags: usize, last: u8) -> Vec<u8> {
    [&backend_mac(last).0[..], &OURS.0, &frame[12 + 4 * tags..]].concat()
}

#[test]
fn whatever_is_in_front_of_the_transport_a_packet_goes_where_its_flow_goes() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let four = tcp(CLIENT, "203.0.113.2:80").bytes();
    let six = udp(CLIENT6, "[2001:db8:1::2]:80").bytes();
    let node = tcp(CLIENT, "10.0.0.254:22").bytes();
    let punted = tcp(CLIENT, "203.0.113.5:443").bytes();
    let closed = tcp(CLIENT, "203.0.113.5:22").bytes();
    let node6 = tcp(CLIENT6, "[fd00::fe]:22").bytes();
    let proto = |proto: u8, dst: &str| Packet { proto, ..tcp(CLIENT, dst) }.bytes();
    let changed = |mut frame: Vec<u8>, at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let l2 = |frame: &[u8], tags: usize| Send(to_backend(frame, tags, 2));
    let padded = |frame: &[u8]| [frame, &[0; 9]].concat();
    let all = [HOP_BY_HOP, DESTINATION, ROUTED, AUTH, ATOMIC, DESTINATION];

    // case, frame in, verdict counted ("" for none), outcome
    let mut table: Vec<(String, Vec<u8>, &str, Does)> = Vec::new();
    let mut add =
        |case: &str, frame: Vec<u8>, verdict, does| table.push((case.to_owned(), frame, verdict, does));
    for vlans in [&[5u16][..], &[100, 5], &[0x6005]] {
        let tags = vlans.len();
        let case = format!("{tags} tags: ");
        for (what, frame) in [("TCP over IPv4", &four), ("UDP over IPv6", &six)] {
            let frame = tagged(frame, vlans);
            add(&format!("{case}{what}"), frame.clone(), "forwarded-l2", l2(&frame, tags));
        }
        let options = tagged(&with_options(&four, &NOPS), vlans);
        add(&format!("{case}options"), options.clone(), "forwarded-l2", l2(&options, tags));
        add(&format!("{case}the node"), tagged(&node, vlans), "node", Pass);
        add(&format!("{case}punted"), tagged(&punted, vlans), "punted", Pass);
        add(&format!("{case}closed"), tagged(&closed, vlans), "closed-port", Drop);
        add(&format!("{case}not ours"), tagged(&tcp(CLIENT, "192.0.2.1:80").bytes(), vlans), "", Pass);
    }
    add("three tags", tagged(&four, &[1, 2, 3]), "", Pass);
    add("a tag and nothing", four[..12].iter().copied().chain([0x81, 0, 0, 5]).collect(), "", Pass);
    for length in [4, 8, 20, 40] {
        let options = vec![1; length];
        let frame = with_options(&four, &options);
        add(&format!("{length} bytes of options"), frame.clone(), "forwarded-l2", l2(&frame, 0));
    }
    for kind in [131, 137] {
        let routed = [1, kind, 7, 4, 192, 0, 2, 1];
        add(&format!("source route {kind}"), with_options(&four, &routed), "ip-options", Drop);
        add(&format!("source route {kind}, the node"), with_options(&node, &routed), "node", Pass);
    }
    add("options, the node", with_options(&node, &NOPS), "node", Pass);
    add("options, punted", with_options(&punted, &NOPS), "punted", Pass);
    add("options, closed", with_options(&closed, &NOPS), "closed-port", Drop);
    for chain in [&[HOP_BY_HOP][..], &[DESTINATION], &[ROUTED], &[AUTH], &[ATOMIC], &all] {
        let frame = with_extensions(&six, chain);
        let kinds: Vec<u8> = chain.iter().map(|header| header.0).collect();
        add(&format!("chain {kinds:?}"), frame.clone(), "forwarded-l2", l2(&frame, 0));
        add(&format!("chain {kinds:?}, the node"), with_extensions(&node6, chain), "node", Pass);
    }
    let seven = [&all[..], &[DESTINATION]].concat();
    add("a chain of seven", with_extensions(&six, &seven), "ip6-extension", Drop);
    add("a chain of seven, the node", with_extensions(&node6, &seven), "node", Pass);
    add("not at its last hop", with_extensions(&six, &[STILL_ROUTED]), "ip6-extension", Drop);
    add("hop-by-hop of 520 bytes", with_extensions(&six, &[(0, &[64; 519])]), "ip6-extension", Drop);
    add("no next header", changed(six.clone(), 20, &[59]), "other-protocol", Drop);
    add("ESP", changed(six.clone(), 20, &[50]), "other-protocol", Drop);
    add("SCTP", proto(132, "203.0.113.2:80"), "other-protocol", Drop);
    for (case, inner) in [("IPv4", 4), ("IPv6", 41), ("GRE", 47)] {
        add(&format!("{case} within IPv4"), proto(inner, "203.0.113.2:80"), "other-protocol", Drop);
        add(&format!("{case} within IPv6"), changed(six.clone(), 20, &[inner]), "other-protocol", Drop);
        add(&format!("{case} within IPv4, the node"), proto(inner, "10.0.0.254:80"), "node", Pass);
        add(&format!("{case} within IPv6, the node"), changed(node6.clone(), 20, &[inner]), "node", Pass);
    }
    // RFC 1858 3: what a filter has to know of TCP stands behind its first eight bytes.
    add("a first fragment of eight bytes", fragments(&four, 8).remove(0), "truncated", Drop);
    add("the same to the node", fragments(&node, 8).remove(0), "node", Pass);
    add("version 6 in an IPv4 frame", changed(four.clone(), 14, &[0x65]), "truncated", Drop);
    add("a header of four words", changed(four.clone(), 14, &[0x44]), "truncated", Drop);
    add("the same to the node", changed(node.clone(), 14, &[0x44]), "node", Pass);
    add("version 4 in an IPv6 frame", changed(six.clone(), 14, &[0x40]), "truncated", Drop);
    add("longer than the frame", changed(four.clone(), 16, &[0, 46]), "truncated", Drop);
    add("longer than the frame, IPv6", changed(six.clone(), 18, &[0, 14]), "truncated", Drop);
    add("too short for TCP", changed(four.clone(), 16, &[0, 39]), "truncated", Drop);
    add("too short for UDP", changed(six.clone(), 18, &[0, 7]), "truncated", Drop);
    add("padding", padded(&four), "forwarded-l2", l2(&padded(&four), 0));
    add("padding, IPv6", padded(&six), "forwarded-l2", l2(&padded(&six), 0));
    add("padding and a tag", tagged(&padded(&four), &[5]), "forwarded-l2", l2(&padded(&four), 0));

    let mut engine = world();
    for (case, frame, verdict, expected) in table {
        let total = |engine: &Engine| engine.verdicts().iter().map(|(_, count)| count).sum::<u64>();
        let (before, all) = (count(&engine, verdict), total(&engine));

        let did = run(&mut engine, &frame);

        assert_eq!(did, expected, "{case}");
        assert_eq!(count(&engine, verdict), before + u64::from(!verdict.is_empty()), "{case}: {verdict}");
        assert_eq!(total(&engine), all + u64::from(!verdict.is_empty()), "{case}");
    }
}

#[test]
fn wrapping_and_refusing_know_where_the_packet_begins() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let four = tcp(CLIENT, "203.0.113.4:80").bytes();
    let six = udp(CLIENT6, "[2001:db8:1::4]:80").bytes();
    let shapes =
        [with_options(&four, &NOPS), with_extensions(&six, &[DESTINATION]), four.clone(), six.clone()];
    for frame in shapes {
        let plain = run(&mut engine, &frame);
        let Send(plain) = plain else { panic!("not sent") };
        for vlans in [&[5u16][..], &[100, 5]] {
            assert_eq!(run(&mut engine, &tagged(&frame, vlans)), Send(plain.clone()), "wrapped without tags");
        }
        let overhead = if frame[12] == 8 { 20 } else { 40 };
        assert_eq!(plain[14 + overhead..], frame[14..], "the packet within is as it came");
    }

    for (packet, verdict) in [
        (Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.3:80") }, "told-reset"),
        (udp(CLIENT, "203.0.113.3:80"), "told-unreachable"),
        (udp(CLIENT6, "[2001:db8:1::3]:80"), "told-unreachable"),
        (Packet { payload: vec![1; 1461], ..tcp(CLIENT, "203.0.113.2:80") }, "told-too-big"),
    ] {
        let frame = packet.bytes();
        let Send(plain) = run(&mut engine, &frame) else { panic!("{verdict}: not told") };
        for vlans in [&[5u16][..], &[100, 5]] {
            let before = count(&engine, verdict);
            let told = run(&mut engine, &tagged(&frame, vlans));
            assert_eq!(told, Send(tagged(&plain, vlans)), "{verdict}: told by the way it came");
            assert_eq!(count(&engine, verdict), before + 1);
        }
    }
    let syn = Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.3:80") }.bytes();
    assert_eq!(
        run(&mut engine, &with_options(&syn, &NOPS)),
        run(&mut engine, &syn),
        "a reset has no options"
    );
    let ask = with_extensions(&udp(CLIENT6, "[2001:db8:1::3]:80").bytes(), &[HOP_BY_HOP]);
    let Send(told) = run(&mut engine, &ask) else { panic!("not told") };
    assert_eq!(told[62..], ask[14..], "the quote has the extension header");
}

#[test]
fn nat_translates_behind_tags_options_and_extension_headers() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    for (packet, vip) in [(tcp(CLIENT, "203.0.113.1:80"), true), (udp(CLIENT6, "[2001:db8:1::1]:80"), false)]
    {
        let shape = |frame: &[u8]| match vip {
            true => with_options(frame, &NOPS),
            false => with_extensions(frame, &[HOP_BY_HOP, DESTINATION]),
        };
        let Send(plain) = run(&mut engine, &packet.bytes()) else { panic!("not sent") };
        assert!(csums_are_right(&plain));

        assert_eq!(run(&mut engine, &tagged(&packet.bytes(), &[5])), Send(plain.clone()));
        assert_eq!(run(&mut engine, &shape(&packet.bytes())), Send(shape(&plain)));

        let at = if vip { 34 } else { 54 };
        let port = u16::from_be_bytes([plain[at], plain[at + 1]]);
        let (node, backend) =
            if vip { ("10.0.0.254", "10.0.0.1:8080") } else { ("[fd00::fe]", "[fd00::1]:8080") };
        let answer = Packet {
            src: backend.parse().unwrap(),
            dst: format!("{node}:{port}").parse().unwrap(),
            flags: ACK | SYN,
            ..packet.clone()
        };
        let Send(plain) = run(&mut engine, &answer.bytes()) else { panic!("not sent") };
        assert_eq!(plain[..6], ROUTER.0);
        assert!(csums_are_right(&plain));
        assert_eq!(run(&mut engine, &shape(&answer.bytes())), Send(shape(&plain)));
    }
}

#[test]
fn later_fragments_follow_the_first_in_every_mode_and_direction() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let large =
        |src: &str, dst: &str| Packet { payload: (0..3000).map(|n| n as u8).collect(), ..udp(src, dst) };
    for (vip, client, backend) in [("203.0.113.", CLIENT, "10.0.0."), ("[2001:db8:1::", CLIENT6, "[fd00::")] {
        let end = if client == CLIENT { "" } else { "]" };
        let outer = if client == CLIENT { 20 } else { 40 };
        let frame = large(client, &format!("{vip}2{end}:80")).bytes();
        for piece in fragments(&frame, 1400) {
            assert_eq!(run(&mut engine, &piece), Send(to_backend(&piece, 0, 2)), "l2");
            assert_eq!(run(&mut engine, &tagged(&piece, &[5])), Send(to_backend(&piece, 0, 2)), "l2, tagged");
        }
        for (mode, last, overhead) in [("ipip", 4, outer), ("tunnel", 6, outer + 8 + tunnel::HEADER)] {
            for piece in fragments(&large(client, &format!("{vip}{last}{end}:80")).bytes(), 1200) {
                let Send(out) = run(&mut engine, &piece) else { panic!("{mode}: not sent") };
                assert_eq!(out[..6], backend_mac(last).0, "{mode}");
                assert_eq!(out[14 + overhead..], piece[14..], "{mode}");
            }
        }

        // A datagram in pieces becomes what the same datagram in one piece would.
        let ask = large(client, &format!("{vip}1{end}:80"));
        let mut node = String::new();
        let port = check_nat(&mut engine, &ask, &format!("{backend}1{end}:8080"), &mut node);
        let answer = Packet {
            src: format!("{backend}1{end}:8080").parse().unwrap(),
            dst: format!("{node}:{port}").parse().unwrap(),
            ..ask.clone()
        };
        let whole =
            Packet { dst_mac: ROUTER, src_mac: OURS, src: ask.dst, dst: ask.src, ttl: 63, ..answer.clone() };
        let expected = fragments(&whole.bytes(), 1400);
        for (piece, expected) in fragments(&answer.bytes(), 1400).iter().zip(expected) {
            assert_eq!(run(&mut engine, piece), Send(expected), "answer in pieces");
        }
    }
    // With options for the destination, later pieces name that header in place of UDP (RFC 8200 4.5).
    let plain = large(CLIENT6, "[2001:db8:1::2]:80").bytes();
    let frame = with_extensions(&plain, &[(60, &[0, 1, 4, 0, 0, 0, 0])]);
    for piece in fragments(&frame, 1400) {
        assert_eq!(run(&mut engine, &piece), Send(to_backend(&piece, 0, 2)), "l2");
    }
    assert_eq!(count(&engine, "fragment"), 0);
}

/// Sends a datagram in pieces to a `nat` VIP, checks them, and returns our port and address.
fn check_nat(engine: &mut Engine, ask: &Packet, backend: &str, node: &mut String) -> u16 {
    let at = if ask.src.is_ipv4() { 34 } else { 62 };
    let sent: Vec<Vec<u8>> = fragments(&ask.bytes(), 1400)
        .iter()
        .map(|piece| match run(engine, piece) {
            Send(out) => out,
            did => panic!("nat: {did:?}"),
        })
        .collect();
    let port = u16::from_be_bytes([sent[0][at], sent[0][at + 1]]);
    *node = if ask.src.is_ipv4() { "10.0.0.254" } else { "[fd00::fe]" }.to_owned();
    let whole = Packet {
        dst_mac: backend_mac(1),
        src_mac: OURS,
        src: format!("{node}:{port}").parse().unwrap(),
        dst: backend.parse().unwrap(),
        ttl: 63,
        ..ask.clone()
    };
    assert_eq!(sent, fragments(&whole.bytes(), 1400), "nat");
    port
}

#[test]
fn fragments_that_nobody_announced_are_named_and_the_hosts_own_pass() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let large = |src: &str, dst: &str| Packet { payload: vec![7; 3000], ..udp(src, dst) }.bytes();
    let cases = [
        ("VIP", large(CLIENT, "203.0.113.2:80"), 1, "fragment", Drop),
        ("VIP, last", large(CLIENT, "203.0.113.2:80"), 2, "fragment", Drop),
        ("VIP over IPv6", large(CLIENT6, "[2001:db8:1::2]:80"), 1, "fragment", Drop),
        ("closed port, first", large(CLIENT, "203.0.113.5:22"), 0, "closed-port", Drop),
        ("closed port, later", large(CLIENT, "203.0.113.5:22"), 1, "fragment", Drop),
        ("node", large(CLIENT, "10.0.0.254:22"), 0, "node", Pass),
        ("node, later", large(CLIENT, "10.0.0.254:22"), 1, "node", Pass),
        ("node over IPv6", large(CLIENT6, "[fd00::fe]:22"), 2, "node", Pass),
    ];
    for (case, frame, piece, verdict, expected) in cases {
        let before = count(&engine, verdict);

        assert_eq!(run(&mut engine, &fragments(&frame, 1400)[piece]), expected, "{case}");

        assert_eq!(count(&engine, verdict), before + 1, "{case}");
    }
    // No error is ever sent about a later fragment.
    let refused = fragments(&large(CLIENT, "203.0.113.3:80"), 1400);
    assert!(matches!(run(&mut engine, &refused[0]), Send(_)));
    assert_eq!(run(&mut engine, &refused[1]), Drop);
    // A punted datagram reaches the stack whole.
    let mut punted = fragments(&tcp(CLIENT, "203.0.113.5:443").bytes(), 24);
    punted.iter_mut().for_each(|piece| sum_v4(piece));
    for piece in punted {
        assert_eq!(run(&mut engine, &piece), Pass);
    }
}

#[test]
fn a_frame_of_any_shape_cut_at_any_byte_is_never_sent() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let four = |dst: &str| Packet { payload: vec![], ..tcp(CLIENT, dst) }.bytes();
    let six = |dst: &str| Packet { payload: vec![], ..udp(CLIENT6, dst) }.bytes();
    let mut shapes = Vec::new();
    for last in 1..=4 {
        let (four, six) = (four(&format!("203.0.113.{last}:80")), six(&format!("[2001:db8:1::{last}]:80")));
        shapes.push(tagged(&four, &[5]));
        shapes.push(tagged(&six, &[100, 5]));
        shapes.push(with_options(&four, &NOPS));
        shapes.push(with_extensions(&six, &[HOP_BY_HOP, AUTH, DESTINATION]));
        shapes.push(fragments(&six, 16).remove(0));
        shapes.push(four);
        shapes.push(six);
    }
    for frame in shapes {
        for length in 14..frame.len() {
            let did = run(&mut engine, &frame[..length]);

            assert!(matches!(did, Pass | Drop), "{length} of {} bytes: {did:?}", frame.len());
        }
    }
}

#[test]
fn a_frame_for_another_host_passes_whatever_its_shape() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world();
    let other = Packet { dst_mac: Mac([2, 9, 9, 9, 9, 9]), ..tcp(CLIENT, "203.0.113.2:80") }.bytes();
    for frame in [tagged(&other, &[5]), with_options(&other, &NOPS), fragments(&other, 24).remove(0)] {
        assert_eq!(run(&mut engine, &frame), Pass);
    }
    assert_eq!(count(&engine, "other-mac"), 3);
}

#[test]
fn the_segment_size_of_a_syn_ack_is_lowered_to_what_the_way_to_the_backend_takes() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = World::new();
    let narrow = [("203.0.113.1:80", "10.0.0.1:8080"), ("[2001:db8:1::1]:80", "[fd00::1]:8080")];
    for (vip, backend) in narrow {
        world = world.service(Tcp, vip, Nat, &[backend]);
        world.backends_mut(vip, Tcp).values_mut().for_each(|backend| backend.way.mtu = 1400);
    }
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let mut lowered = 0;
    for ((vip, backend), client, node, at, most) in
        [(narrow[0], CLIENT, "10.0.0.254", 34, 1360u16), (narrow[1], CLIENT6, "[fd00::fe]", 54, 1340)]
    {
        let Send(out) = run(&mut engine, &Packet { flags: SYN, ..tcp(client, vip) }.bytes()) else {
            panic!("not sent")
        };
        let port = u16::from_be_bytes([out[at], out[at + 1]]);
        let answer = |flags, options: &[u8]| Packet {
            flags,
            options: options.to_vec(),
            ..tcp(backend, &format!("{node}:{port}"))
        };
        let [high, low] = most.to_be_bytes();
        let cases: [(&str, u8, &[u8], &[u8]); 7] = [
            ("first", SYN | ACK, &[2, 4, 5, 180], &[2, 4, high, low]),
            ("at an odd place", SYN | ACK, &[1, 2, 4, 5, 180, 1, 1, 0], &[1, 2, 4, high, low, 1, 1, 0]),
            (
                "behind others",
                SYN | ACK,
                &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 35, 40, 1, 0],
                &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, high, low, 1, 0],
            ),
            ("small enough", SYN | ACK, &[2, 4, 2, 0], &[2, 4, 2, 0]),
            ("behind the end", SYN | ACK, &[0, 2, 4, 5, 180, 0, 0, 0], &[0, 2, 4, 5, 180, 0, 0, 0]),
            ("of a wrong length", SYN | ACK, &[2, 3, 5, 180], &[2, 3, 5, 180]),
            ("not of a SYN", ACK, &[2, 4, 5, 180], &[2, 4, 5, 180]),
        ];
        for (case, flags, before, after) in cases {
            let expected = Packet {
                dst_mac: ROUTER,
                src_mac: OURS,
                src: vip.parse().unwrap(),
                dst: client.parse().unwrap(),
                ttl: 63,
                ..answer(flags, after)
            };

            assert_eq!(run(&mut engine, &answer(flags, before).bytes()), Send(expected.bytes()), "{case}");

            lowered += u64::from(before != after);
        }
    }
    assert_eq!(event(&engine, "mss-clamped"), lowered);
}
