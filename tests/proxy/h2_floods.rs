//! Clients that only cost: each flood ends its own connection, and the proxy serves the others.

use lb_tests::h2_frames::{Frames, Outcome, block, flag, frame, kind, request};

use crate::rig::{Backend, DEADLINE, Rig, to};

/// Repeats until the proxy ends the connection; how often that was.
fn flood(frames: &mut Frames, mut once: impl FnMut(&mut Frames, u32) -> bool) -> u32 {
    // Enough that the answers of a proxy that bears it would fill every buffer.
    let sent = (0..200_000).take_while(|&i| once(frames, i)).count();
    while frames.receive().is_some() {}
    u32::try_from(sent).expect("few")
}

fn floods(rig: &Rig) -> f64 {
    let metrics = rig.running.metrics();
    let metric = metrics.iter().find(|metric| metric.name == "penstock_l7_http2_floods_total");
    metric.expect("the metric").samples[0].value
}

#[test]
fn frames_without_use_end_the_connection() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    type Once = fn(&mut Frames, u32) -> bool;
    let cases: [(&str, Once); 6] = [
        ("ping", |f, _| f.send(kind::PING, 0, 0, &[0; 8])),
        ("settings", |f, _| f.send(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])),
        ("priority", |f, i| f.send(kind::PRIORITY, 0, 2 * i + 1, &[0, 0, 0, 0, 1])),
        ("window update", |f, _| f.send(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", |f, _| f.send(0xee, 0, 0, &[])),
        ("empty data", |f, i| {
            if i == 0 {
                f.headers(1, 0, &request("POST", "/"));
            }
            f.send(kind::DATA, 0, 1, &[])
        }),
    ];
    for (case, once) in cases {
        let before = floods(&rig);
        let mut frames = Frames::connect(rig.http, DEADLINE);
        let sent = flood(&mut frames, once);
        assert!(sent < 200_000, "{case}");
        assert_eq!(floods(&rig), before + 1.0, "{case}");
        let mut other = Frames::connect(rig.http, DEADLINE);
        other.get(1, "/");
        assert_eq!(other.outcome(1), Outcome::Status(200), "{case}");
    }
}

#[test]
fn requests_reset_at_once_end_the_connection() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);

    let sent = flood(&mut frames, |f, i| {
        let stream = 2 * i + 1;
        f.get(stream, "/") && f.send(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())
    });

    assert!(sent < 200_000);
    assert_eq!(floods(&rig), 1.0);
    // Very few of them were ever asked of the backend.
    assert!(backend.connections() < 300, "{}", backend.connections());
}

#[test]
fn requests_reset_one_by_one_end_the_connection() {
    // Silent, so that each is reset while it waits.
    let backend = Backend::start(|mut peer| {
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.headers(1, 0, &request("POST", "/"));

    let mut sent = 0;
    while sent < 2000 {
        let stream = 2 * sent + 3;
        // A byte of the upload pays for frames, and not for what is given up.
        let reset = frames.send(kind::DATA, 0, 1, b"x")
            && frames.get(stream, "/")
            && frames.send(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        // The answer shows that both were read.
        if !reset || !frames.send(kind::PING, 0, 0, &[0; 8]) || frames.until(kind::PING).is_none() {
            break;
        }
        sent += 1;
    }

    assert!(sent < 700, "{sent}");
}

#[test]
fn a_client_may_give_up_all_it_has_at_once() {
    let backend = Backend::start(|mut peer| {
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);
    for i in 0..128 {
        frames.get(2 * i + 1, "/");
    }
    // The answer shows that all were read.
    frames.send(kind::PING, 0, 0, &[0; 8]);
    frames.until(kind::PING).expect("a pong");

    for i in 0..128 {
        frames.send(kind::RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes());
    }

    frames.send(kind::PING, 0, 0, &[1; 8]);
    assert_eq!(frames.until(kind::PING).expect("a pong").payload, [1; 8]);
    assert_eq!(floods(&rig), 0.0);
}

#[test]
fn requests_given_up_as_they_come_do_no_harm_to_others() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.headers(1, 0, &request("POST", "/"));

    // In one write, so that none is seen before it is given up.
    let cancelled = (1..=100).flat_map(|i| {
        let stream = 2 * i + 1;
        let head =
            frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &block(&request("GET", "/")));
        [head, frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
    let cancelled: Vec<u8> = cancelled.collect();
    frames.send_raw(&cancelled);
    frames.send(kind::DATA, flag::END_STREAM, 1, b"x");

    assert_eq!(frames.outcome(1), Outcome::Status(200));
    assert_eq!(floods(&rig), 0.0);
}

#[test]
fn a_head_without_end_ends_the_connection() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    for (case, part) in [("empty", Vec::new()), ("with headers", block(&[("x", "1")]))] {
        let mut frames = Frames::connect(rig.http, DEADLINE);
        frames.send(kind::HEADERS, flag::END_STREAM, 1, &block(&request("GET", "/")));
        let sent = flood(&mut frames, |f, _| f.send(kind::CONTINUATION, 0, 1, &part));
        assert!(sent < 200_000, "{case}");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_compression_bomb_is_refused() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);
    // One entry of 4,000 bytes in the table, then thousands of references of one byte to it.
    let long = "x".repeat(4000);
    let mut bomb = block(&request("GET", "/"));
    bomb.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend_from_slice(long.as_bytes());
    bomb.extend_from_slice(&[0xbe; 12_000]);
    assert!(bomb.len() > 16_000);

    frames.send(kind::HEADERS, flag::END_STREAM, 1, &bomb[..16_000]);
    frames.send(kind::CONTINUATION, flag::END_HEADERS, 1, &bomb[16_000..]);

    use Outcome::{Closed, GoAway, Reset, Status};
    let outcome = frames.outcome(1);
    assert!(matches!(outcome, Status(431) | GoAway(_) | Reset(_) | Closed), "{outcome:?}");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn no_more_streams_than_allowed_are_open_at_once() {
    let backend = Backend::start(|mut peer| {
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);

    let bytes: Vec<u8> = (0..200u32)
        .flat_map(|i| {
            frame(
                kind::HEADERS,
                flag::END_HEADERS | flag::END_STREAM,
                2 * i + 1,
                &block(&request("GET", "/")),
            )
        })
        .collect();
    frames.send_raw(&bytes);

    // REFUSED_STREAM, so that the client may send it again.
    for _ in 128..200 {
        let reset = frames.until(kind::RST_STREAM).expect("a reset");
        assert_eq!(reset.payload, 7u32.to_be_bytes());
    }
    assert!(backend.connections() <= 128);
}

#[test]
fn clients_that_read_nothing_hold_up_nobody() {
    let backend = Backend::start(|mut peer| {
        while peer.head().is_some() {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n";
            if !peer.try_send(head) || !(0..100).all(|_| peer.try_send(&[7; 100_000])) {
                return;
            }
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let window = [0, 4, 0, 0, 0, 0];
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.send(kind::SETTINGS, 0, 0, &window);
    for i in 0..100 {
        frames.get(2 * i + 1, "/");
    }
    for _ in 0..100 {
        assert!(frames.until(kind::HEADERS).is_some());
    }

    let mut other = Frames::connect(rig.http, DEADLINE);
    other.get(1, "/");
    assert_eq!(other.outcome(1), Outcome::Status(200));
    let data = other.until(kind::DATA).expect("data");
    assert!(!data.payload.is_empty());
}
