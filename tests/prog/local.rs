//! Backends on this host: the packet in by XDP, the answer out by tc.

use lb_tests::icmp::Icmp;
use lb_tests::packet::{ACK, OURS, Packet, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::{fragments, tagged, with_extensions, with_options};
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode::Local, Protocol::*};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";
const PASS: u32 = 2;
/// `TC_ACT_UNSPEC`: goes on as before.
const ON: u32 = u32::MAX;

fn engine() -> Engine {
    World::new()
        .service(Tcp, "203.0.113.1:80", Local, &["10.0.0.1:8080"])
        .service(Udp, "203.0.113.1:53", Local, &["10.0.0.1:5353"])
        .service(Tcp, "203.0.113.2:80", Local, &["10.0.0.1:8080"])
        .service(Tcp, "[2001:db8:1::1]:80", Local, &["[fd00::1]:8080"])
        .service(Udp, "[2001:db8:1::1]:53", Local, &["[fd00::1]:5353"])
        .load()
}

/// The client's packet as the backend gets it; fails unless only the named fields differ.
fn delivered(engine: &mut Engine, case: &str, packet: &Packet, to: &str) -> Packet {
    let run = engine.kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs");
    assert_eq!(run.action, PASS, "{case}");
    let at = if packet.src.is_ipv4() { 34 } else { 54 };
    let mut expected = Packet { dst: to.parse().expect("address"), ..packet.clone() };
    expected.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
    assert_eq!(run.packet, expected.bytes(), "{case}");
    assert!(csums_are_right(&run.packet), "{case}");
    expected
}

fn out(engine: &mut Engine, frame: &[u8]) -> Vec<u8> {
    let run = engine.kernel.test_out(frame).expect("the program runs");
    assert_eq!(run.action, ON);
    run.packet
}

fn answer(packet: &Packet) -> Packet {
    Packet { src: packet.dst, dst: packet.src, flags: SYN | ACK, ..packet.clone() }
}

#[test]
fn the_client_is_kept_and_the_answer_comes_from_the_vip() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        ("TCP over IPv4", Packet { flags: SYN, ..tcp(CLIENT, "203.0.113.1:80") }, "10.0.0.1:8080"),
        ("UDP over IPv4", udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353"),
        (
            "UDP without checksum",
            Packet { no_csum: true, ..udp("198.51.100.8:1", "203.0.113.1:53") },
            "10.0.0.1:5353",
        ),
        (
            "odd payload",
            Packet { payload: vec![7; 33], ..udp("198.51.100.9:1", "203.0.113.1:53") },
            "10.0.0.1:5353",
        ),
        ("TCP over IPv6", Packet { flags: SYN, ..tcp(CLIENT6, "[2001:db8:1::1]:80") }, "[fd00::1]:8080"),
        ("UDP over IPv6", udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353"),
    ];
    for (case, packet, to) in cases {
        let arrived = delivered(&mut engine, case, &packet, to);
        assert_eq!(arrived.src, packet.src, "{case}: the client keeps its port");

        let left = out(&mut engine, &answer(&arrived).bytes());

        assert_eq!(left, answer(&packet).bytes(), "{case}");
        assert!(csums_are_right(&left), "{case}");
        delivered(&mut engine, case, &packet, to);
    }
}

#[test]
fn two_vips_with_one_backend_and_one_client_port_stay_apart() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let (one, two) = (tcp(CLIENT, "203.0.113.1:80"), tcp(CLIENT, "203.0.113.2:80"));

    let first = delivered(&mut engine, "first", &one, "10.0.0.1:8080");
    let second = delivered(&mut engine, "second", &two, "10.0.0.1:8080");

    assert_eq!(first.src.port(), 40_000);
    assert!(second.src.port() >= 61_000, "{}", second.src);
    for (arrived, packet) in [(first, one), (second, two)] {
        assert_eq!(out(&mut engine, &answer(&arrived).bytes()), answer(&packet).bytes());
    }
}

#[test]
fn what_leaves_and_is_no_answer_of_ours_is_not_touched() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let packet = tcp(CLIENT, "203.0.113.1:80");
    let arrived = delivered(&mut engine, "first", &packet, "10.0.0.1:8080");
    let ours = answer(&arrived);
    let mut later = ours.bytes();
    later[21] = 16;
    let cases = [
        (
            "another port of the backend",
            Packet { src: "10.0.0.1:8081".parse().expect("address"), ..ours.clone() }.bytes(),
        ),
        (
            "another client",
            Packet { dst: "198.51.100.8:40000".parse().expect("address"), ..ours.clone() }.bytes(),
        ),
        ("another protocol", Packet { proto: 17, ..ours.clone() }.bytes()),
        ("a later fragment", later),
        ("a frame that ends in the ports", ours.bytes()[..36].to_vec()),
        ("ARP", [vec![0xff; 12], vec![8, 6], vec![0; 46]].concat()),
    ];
    for (case, frame) in cases {
        assert_eq!(out(&mut engine, &frame), frame, "{case}");
    }
}

#[test]
fn an_answer_cut_at_any_byte_leaves_as_it_came_or_translated_as_far_as_it_goes() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080"),
        (udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353"),
        (tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::1]:8080"),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353"),
    ];
    for (packet, to) in cases {
        let packet = Packet { payload: vec![], ..packet };
        let arrived = delivered(&mut engine, to, &packet, to);
        let head = if packet.src.is_ipv4() { 34 } else { 54 };
        for tags in [&[][..], &[5], &[5, 6]] {
            let (left, expected) =
                (tagged(&answer(&arrived).bytes(), tags), tagged(&answer(&packet).bytes(), tags));
            assert_eq!(out(&mut engine, &left), expected, "{to}");
            // The kernel runs the program on nothing that is shorter.
            for length in head + 4 * tags.len()..left.len() {
                let sent = out(&mut engine, &left[..length]);

                // Without its checksum it cannot be translated, and without its ports nobody knows whose it is.
                let (l4, least) =
                    (head + 4 * tags.len(), if packet.proto == lb_common::TCP { 18 } else { 8 });
                let expected = if length < l4 + least { &left } else { &expected };
                assert_eq!(sent, expected[..length], "{to}: {length} of {} bytes", left.len());
            }
        }
    }
}

#[test]
fn a_frame_to_this_host_cut_at_any_byte_is_not_translated() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    engine.set_interface(LOOPBACK, OURS);
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080"),
        (udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353"),
        (tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::1]:8080"),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353"),
    ];
    for (packet, to) in cases {
        let packet = Packet { payload: vec![], ..packet };
        // Whether its flow is known or not, or has a lease.
        for known in [false, true] {
            let frame = packet.bytes();
            for length in 14..frame.len() {
                let run = engine.kernel.test_run("penstock", &frame[..length], 1).expect("the program runs");

                assert!(run.action <= PASS, "{to}: {length} of {} bytes: {}", frame.len(), run.action);
                assert_eq!(run.packet, frame[..length], "{to}: {length} of {} bytes", frame.len());
            }
            if !known {
                let arrived = delivered(&mut engine, to, &packet, to);
                out(&mut engine, &answer(&arrived).bytes());
                delivered(&mut engine, to, &packet, to);
            }
        }
    }
}

#[test]
fn random_and_mutated_frames_that_are_no_answers_of_ours_leave_untouched() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080"),
        (udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353"),
        (tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::1]:8080"),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353"),
    ];
    // The kernel runs the program on nothing that is shorter than an IPv6 header.
    let answers = cases.map(|(packet, to)| {
        let packet = Packet { payload: vec![7; 40], ..packet };
        answer(&delivered(&mut engine, to, &packet, to)).bytes()
    });
    // xorshift64.
    let mut state = 0x5eed_0f00_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % end as u64) as usize
    };
    for number in 0..100_000 {
        let mut frame = answers[number % answers.len()].clone();
        let port = if frame[12] == 0x08 { 34 } else { 54 };
        for _ in 0..below(12) {
            // Where headers begin stays as it is, so that what tells them apart is what was changed.
            let byte = below(frame.len());
            if ![12, 13, 14, 20].contains(&byte) {
                frame[byte] = below(256) as u8;
            }
        }
        // No backend has such a port.
        frame[port..port + 2].copy_from_slice(&[0xde, 0xad]);
        frame = tagged(&frame, &[7, 8][..below(3)]);
        frame.truncate(54 + below(frame.len() - 53));
        if number % 4 == 0 {
            frame[12..].iter_mut().for_each(|byte| *byte = below(256) as u8);
        }

        assert_eq!(out(&mut engine, &frame), frame, "frame {number}");
    }
}

#[test]
fn a_tag_in_the_frame_hides_no_answer() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let packet = tcp(CLIENT, "203.0.113.1:80");
    let arrived = delivered(&mut engine, "first", &packet, "10.0.0.1:8080");
    let tagged = |packet: &Packet, tags: &[u8]| {
        let mut frame = packet.bytes();
        frame.splice(12..12, tags.iter().copied());
        frame
    };

    for tags in [&[0x81, 0, 0, 5][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6][..]] {
        let left = out(&mut engine, &tagged(&answer(&arrived), tags));

        assert_eq!(left, tagged(&answer(&packet), tags));
    }
}

#[test]
fn a_hop_limit_that_ends_here_is_not_shown_to_the_backend() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let engine = engine();
    let frame = Packet { ttl: 1, ..tcp(CLIENT, "203.0.113.1:80") }.bytes();

    let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");

    // The stack would quote the translated packet to the client.
    assert!(run.action != PASS || run.packet == frame, "action {}", run.action);
}

#[test]
fn an_answer_in_fragments_comes_from_the_vip_piece_by_piece() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    for (client, vip, to) in
        [(CLIENT, "203.0.113.1:53", "10.0.0.1:5353"), (CLIENT6, "[2001:db8:1::1]:53", "[fd00::1]:5353")]
    {
        let packet = udp(client, vip);
        let arrived = delivered(&mut engine, vip, &packet, to);
        let payload: Vec<u8> = (0..4000).map(|byte| byte as u8).collect();
        let large = |packet: &Packet| Packet { payload: payload.clone(), ..answer(packet) };
        // What the same datagram in one piece would be, in pieces.
        let expected = fragments(&large(&packet).bytes(), 1400);

        let pieces = fragments(&large(&arrived).bytes(), 1400);

        assert_eq!(pieces.len(), 3);
        for (number, (piece, expected)) in pieces.iter().zip(&expected).enumerate() {
            assert!(out(&mut engine, piece) == *expected, "{vip}: piece {number}");
            let (piece, expected) = (tagged(piece, &[5]), tagged(expected, &[5]));
            assert!(out(&mut engine, &piece) == expected, "{vip}: piece {number}, tagged");
        }
        // One that overtook its first, and one of another client's.
        let mut other = pieces[1].clone();
        other[if client == CLIENT { 18 } else { 58 }] ^= 1;
        let mut stranger = pieces[1].clone();
        stranger[if client == CLIENT { 33 } else { 53 }] ^= 1;
        for piece in [other, stranger] {
            assert_eq!(out(&mut engine, &piece), piece, "{vip}: of nothing that is known");
        }
    }
}

#[test]
fn options_and_extension_headers_hide_no_answer() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080"),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353"),
    ];
    for (packet, to) in cases {
        let arrived = delivered(&mut engine, "first", &packet, to);
        let shapes = |packet: &Packet| {
            let frame = answer(packet).bytes();
            if packet.src.is_ipv4() {
                return vec![with_options(&frame, &[1; 4]), with_options(&frame, &[1; 40])];
            }
            let hop: (u8, &[u8]) = (0, &[0, 1, 4, 0, 0, 0, 0]);
            let destination: (u8, &[u8]) = (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let atomic: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 7]);
            [&[hop][..], &[destination], &[hop, destination, atomic, destination]]
                .map(|chain| with_extensions(&frame, chain))
                .to_vec()
        };
        for (left, expected) in shapes(&arrived).iter().zip(shapes(&packet)) {
            assert_eq!(out(&mut engine, left), expected);
            // Cut short, it is left alone; a chain that is too long, too.
            let least = if packet.src.is_ipv4() { 34 } else { 54 };
            for length in least..left.len().min(80) {
                let _ = out(&mut engine, &left[..length]);
            }
        }
    }
}

#[test]
fn an_error_about_an_answer_reaches_the_backend_as_an_error_about_its_own() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    engine.set_interface(LOOPBACK, OURS);
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080", "192.0.2.66", (3, 4), [0, 0, 5, 120]),
        (udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353", "192.0.2.66", (3, 3), [0; 4]),
        // A second VIP with the same client port: the flow has a port of its own towards the backend.
        (tcp(CLIENT, "203.0.113.2:80"), "10.0.0.1:8080", "192.0.2.66", (11, 0), [0; 4]),
        (tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::1]:8080", "2001:db8:9::66", (2, 0), [0, 0, 5, 0]),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353", "2001:db8:9::66", (1, 4), [0; 4]),
    ];
    for (asked, to, router, kind, rest) in cases {
        let arrived = delivered(&mut engine, "first", &asked, to);
        for short in [false, true] {
            let quote = |packet: &Packet| {
                let frame = Packet { ttl: 60, ..answer(packet) }.bytes();
                let least = if packet.src.is_ipv4() { 14 + 28 } else { 14 + 48 };
                frame[14..if short { least } else { frame.len() }].to_vec()
            };
            let came = Icmp { rest, ..Icmp::new(router, &asked.dst.ip().to_string(), kind, &quote(&asked)) };
            let expected = Icmp { dst: arrived.dst.ip(), body: quote(&arrived), ..came.clone() };
            for tags in [&[][..], &[5]] {
                let frame = tagged(&came.bytes(), tags);

                let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");

                assert_eq!((run.action, run.packet), (PASS, tagged(&expected.bytes(), tags)), "{asked:?}");
            }
        }
    }
}

#[test]
fn an_error_of_the_backend_reaches_the_client_as_an_error_of_the_vip_about_its_own_packet() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = engine();
    let cases = [
        (tcp(CLIENT, "203.0.113.1:80"), "10.0.0.1:8080", (3, 4), [0, 0, 5, 120]),
        (udp(CLIENT, "203.0.113.1:53"), "10.0.0.1:5353", (3, 3), [0; 4]),
        (
            Packet { no_csum: true, ..udp("198.51.100.8:1", "203.0.113.1:53") },
            "10.0.0.1:5353",
            (3, 3),
            [0; 4],
        ),
        // A second VIP with the same client port: the flow has a port of its own towards the backend.
        (tcp(CLIENT, "203.0.113.2:80"), "10.0.0.1:8080", (11, 0), [0; 4]),
        (tcp(CLIENT6, "[2001:db8:1::1]:80"), "[fd00::1]:8080", (2, 0), [0, 0, 5, 0]),
        (udp(CLIENT6, "[2001:db8:1::1]:53"), "[fd00::1]:5353", (1, 4), [0; 4]),
    ];
    for (asked, to, kind, rest) in cases {
        let arrived = delivered(&mut engine, "first", &asked, to);
        let node = if asked.src.is_ipv4() { "10.0.0.254" } else { "fd00::fe" };
        for short in [false, true] {
            let quote = |packet: &Packet, plain: bool| {
                let frame = packet.bytes();
                let least = if packet.src.is_ipv4() { 28 } else { 48 };
                let frame = match (packet.src.is_ipv4(), plain) {
                    (_, true) => frame,
                    (true, _) => with_options(&frame, &[1; 8]),
                    (false, _) => with_extensions(&frame, &[(60, &[0, 1, 4, 0, 0, 0, 0])]),
                };
                let least = if plain { least } else { least + 8 };
                frame[14..if short { 14 + least } else { frame.len() }].to_vec()
            };
            for plain in [true, false] {
                let client = asked.src.ip().to_string();
                // Of the backend itself, and of the stack in front of it.
                for sender in [arrived.dst.ip().to_string(), node.to_owned()] {
                    let left = Icmp { rest, ..Icmp::new(&sender, &client, kind, &quote(&arrived, plain)) };
                    let expected = Icmp { src: asked.dst.ip(), body: quote(&asked, plain), ..left.clone() };
                    for tags in [&[][..], &[5]] {
                        let frame = out(&mut engine, &tagged(&left.bytes(), tags));

                        assert_eq!(frame, tagged(&expected.bytes(), tags), "{asked:?}, short {short}");
                    }
                }
            }
        }
        // About a packet to another client, about a flow of nobody's, and no error at all.
        let stranger =
            Packet { src: "198.51.100.99:9".parse().expect("address"), ..udp(CLIENT, "10.0.0.1:5353") };
        let others = [
            Icmp::new(
                to.trim_end_matches(":5353").trim_end_matches(":8080").trim_matches(['[', ']']),
                if asked.src.is_ipv4() { "198.51.100.77" } else { "2001:db8:2::77" },
                kind,
                &arrived.bytes()[14..],
            ),
            Icmp::new("10.0.0.1", "198.51.100.99", (3, 3), &stranger.bytes()[14..]),
            Icmp::new("10.0.0.1", "198.51.100.7", (8, 0), &arrived.bytes()[14..]),
        ];
        for other in others {
            assert_eq!(out(&mut engine, &other.bytes()), other.bytes());
        }
    }
}
