//! RFC 9113 frame by frame: what is wrong ends the stream or the connection with the code the
//! standard names, and no malformed request reaches a backend.

use lb_tests::h2_frames::{Frames, Outcome, block, flag, kind, request};

use crate::rig::{Backend, DEADLINE, Rig, to};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

use Outcome::{GoAway, Reset, Status};

fn serving() -> (Rig, Backend) {
    let backend = Backend::mirror();
    (Rig::start(to(&[backend.addr])), backend)
}

/// A case by its name and what a client does.
type Case = (&'static str, fn(&mut Frames));

/// What becomes of stream 1, for each case.
fn outcomes(cases: &[Case], judge: impl Fn(&str, Outcome)) {
    let (rig, _backend) = serving();
    for (case, act) in cases {
        let mut frames = Frames::connect(rig.http, DEADLINE);
        act(&mut frames);
        judge(case, frames.outcome(1));
    }
}

#[test]
fn what_the_standard_allows_is_served() {
    let cases: &[Case] = &[
        ("an unknown frame", |f| {
            f.send(0x77, 0xff, 0, b"whatever");
            f.get(1, "/");
        }),
        ("an unknown setting", |f| {
            f.send(kind::SETTINGS, 0, 0, &[0x7f, 0x7f, 1, 2, 3, 4]);
            f.get(1, "/");
        }),
        ("unknown flags and the reserved bit", |f| {
            f.send(
                kind::HEADERS,
                0xd2 & !flag::PADDED | flag::END_HEADERS | flag::END_STREAM,
                0x8000_0001,
                &block(&request("GET", "/")),
            );
        }),
        ("a head in three frames", |f| {
            let block = block(&request("GET", "/"));
            f.send(kind::HEADERS, flag::END_STREAM, 1, &block[..5]);
            f.send(kind::CONTINUATION, 0, 1, &block[5..20]);
            f.send(kind::CONTINUATION, flag::END_HEADERS, 1, &block[20..]);
        }),
        ("a padded head and padded data", |f| {
            let head = [&[3][..], &block(&request("POST", "/")), &[0; 3]].concat();
            f.send(kind::HEADERS, flag::PADDED | flag::END_HEADERS, 1, &head);
            f.send(kind::DATA, flag::PADDED | flag::END_STREAM, 1, &[&[2][..], b"hi", &[0; 2]].concat());
        }),
        ("priority of an idle stream", |f| {
            f.send(kind::PRIORITY, 0, 9, &[0, 0, 0, 0, 1]);
            f.get(1, "/");
        }),
        ("a window update of the connection", |f| {
            f.send(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]);
            f.get(1, "/");
        }),
        ("a head with a length of zero and no body", |f| {
            f.headers(1, flag::END_STREAM, &[&request("GET", "/")[..], &[("content-length", "0")]].concat());
        }),
    ];
    outcomes(cases, |case, outcome| assert_eq!(outcome, Status(200), "{case}"));
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let (rig, _backend) = serving();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.send(kind::PING, 0, 0, b"8 bytes.");

    let pong = frames.until(kind::PING).expect("a pong");
    assert_eq!((pong.flags, &pong.payload[..]), (flag::ACK, &b"8 bytes."[..]));
}

#[test]
fn settings_are_acknowledged_and_ours_come_first() {
    let (rig, _backend) = serving();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    let first = frames.receive().expect("a frame");
    assert_eq!((first.kind, first.flags), (kind::SETTINGS, 0));
    let streams =
        first.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("MAX_CONCURRENT_STREAMS");
    assert_eq!(streams[2..], 128u32.to_be_bytes());
    let ack = frames.until(kind::SETTINGS).expect("an acknowledgement");
    assert_eq!(ack.flags, flag::ACK);
}

#[test]
fn wrong_frames_end_the_connection() {
    let cases: &[Case] = &[
        ("settings of odd length", |f| {
            f.send(kind::SETTINGS, 0, 0, &[0; 5]);
        }),
        ("settings of a stream", |f| {
            f.send(kind::SETTINGS, 0, 1, &[]);
        }),
        ("an acknowledgement that says more", |f| {
            f.send(kind::SETTINGS, flag::ACK, 0, &[0; 6]);
        }),
        ("a window beyond 2^31", |f| {
            f.send(kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]);
        }),
        ("push neither on nor off", |f| {
            f.send(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]);
        }),
        ("frames smaller than the least", |f| {
            f.send(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]);
        }),
        ("a short ping", |f| {
            f.send(kind::PING, 0, 0, &[0; 7]);
        }),
        ("a ping of a stream", |f| {
            f.send(kind::PING, 0, 1, &[0; 8]);
        }),
        ("a window update of nothing", |f| {
            f.send(kind::WINDOW_UPDATE, 0, 0, &[0; 4]);
        }),
        ("a window that overflows", |f| {
            f.send(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]);
        }),
        ("a short window update", |f| {
            f.send(kind::WINDOW_UPDATE, 0, 0, &[0; 3]);
        }),
        ("data of the connection", |f| {
            f.send(kind::DATA, 0, 0, b"x");
        }),
        ("data of an idle stream", |f| {
            f.send(kind::DATA, 0, 1, b"x");
        }),
        ("a head of the connection", |f| {
            f.get(0, "/");
        }),
        ("a head of an even stream", |f| {
            f.get(2, "/");
        }),
        ("a reset of an idle stream", |f| {
            f.send(kind::RST_STREAM, 0, 1, &[0; 4]);
        }),
        ("a reset of the connection", |f| {
            f.send(kind::RST_STREAM, 0, 0, &[0; 4]);
        }),
        ("a short reset", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.send(kind::RST_STREAM, 0, 1, &[0; 3]);
        }),
        ("a promise of a client", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.send(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2, 0x82]);
        }),
        ("a continuation of nothing", |f| {
            f.send(kind::CONTINUATION, flag::END_HEADERS, 1, &[]);
        }),
        ("a head cut by another frame", |f| {
            f.send(kind::HEADERS, flag::END_STREAM, 1, &block(&request("GET", "/")));
            f.send(kind::PING, 0, 0, &[0; 8]);
        }),
        ("a head continued on another stream", |f| {
            f.send(kind::HEADERS, flag::END_STREAM, 1, &block(&request("GET", "/")));
            f.send(kind::CONTINUATION, flag::END_HEADERS, 3, &[]);
        }),
        ("more padding than frame", |f| {
            f.send(kind::HEADERS, flag::PADDED | flag::END_HEADERS | flag::END_STREAM, 1, &[9, 0x82]);
        }),
        ("a frame beyond the limit", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0; 16_385]);
        }),
        ("index zero", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0x80]);
        }),
        ("an index beyond the table", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0xfe]);
        }),
        ("an endless integer", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0xff; 12]);
        }),
        ("a literal longer than its block", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0, 10, b'x']);
        }),
        ("a table larger than allowed", |f| {
            f.send(kind::HEADERS, flag::END_HEADERS, 1, &[0x3f, 0xe1, 0xff, 0x03, 0x82]);
        }),
    ];
    outcomes(cases, |case, outcome| {
        // The h2 crate says PROTOCOL_ERROR in some places where the standard has a better word.
        let right = matches!(
            outcome,
            GoAway(PROTOCOL_ERROR | FLOW_CONTROL_ERROR | FRAME_SIZE_ERROR | COMPRESSION_ERROR)
        );
        assert!(right, "{case}: {outcome:?}");
    });
}

#[test]
fn a_stream_number_that_goes_back_ends_the_connection() {
    let (rig, _backend) = serving();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.get(5, "/");
    assert_eq!(frames.outcome(5), Status(200));
    frames.get(3, "/");

    let outcome = frames.outcome(3);
    assert!(matches!(outcome, GoAway(PROTOCOL_ERROR | STREAM_CLOSED)), "{outcome:?}");
}

#[test]
fn wrong_frames_of_a_stream_end_it_or_the_connection() {
    let cases: &[Case] = &[
        ("a window update of nothing", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.send(kind::WINDOW_UPDATE, 0, 1, &[0; 4]);
        }),
        ("a window that overflows", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.send(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]);
        }),
    ];
    outcomes(cases, |case, outcome| {
        let right = matches!(
            outcome,
            Reset(PROTOCOL_ERROR | FLOW_CONTROL_ERROR) | GoAway(PROTOCOL_ERROR | FLOW_CONTROL_ERROR)
        );
        assert!(right, "{case}: {outcome:?}");
    });
}

#[test]
fn data_beyond_the_window_is_a_flow_control_error() {
    // Reads nothing, so no window is opened again.
    let backend = Backend::start(|mut peer| {
        peer.head();
        std::thread::park_timeout(DEADLINE);
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.headers(1, 0, &request("POST", "/"));

    // What the kernel's buffers and ours take is a few MiB at most.
    let part = [0; 16_384];
    for _ in 0..2048 {
        if !frames.send(kind::DATA, 0, 1, &part) {
            break;
        }
    }

    let outcome = frames.outcome(1);
    assert!(matches!(outcome, Reset(FLOW_CONTROL_ERROR) | GoAway(FLOW_CONTROL_ERROR)), "{outcome:?}");
}

#[test]
fn a_wrong_preface_is_no_http_2() {
    let (rig, backend) = serving();
    let mut frames = Frames::silent(rig.http, DEADLINE);

    frames.send_raw(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");

    // What comes is an answer of HTTP/1.1 or nothing; then the end.
    let mut client = crate::rig::Client::connect(rig.http);
    client.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    let answer = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 505 "), "{answer}");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn malformed_requests_never_reach_a_backend() {
    let (rig, backend) = serving();
    let with = |fields: &[(&'static str, &'static str)]| [&request("GET", "/")[..], fields].concat();
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("an upper-case name", with(&[("X-Upper", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("a name with a space", with(&[("x y", "1")])),
        ("a name with a colon", with(&[("x:y", "1")])),
        ("a name with a line end", with(&[("x\r\ny", "1")])),
        ("a value with a line end", with(&[("x", "1\r\nTransfer-Encoding: chunked")])),
        ("a value with a bare LF", with(&[("x", "1\nevil: 1")])),
        ("a value with NUL", with(&[("x", "1\0")])),
        ("a value that starts with a space", with(&[("x", " 1")])),
        ("a value that ends with a tab", with(&[("x", "1\t")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("a length that is no number", with(&[("content-length", "+5")])),
        ("a list of lengths", with(&[("content-length", "5, 5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
        ("a length and no body", with(&[("content-length", "5")])),
        ("a pseudo-header after others", with(&[("x", "1"), (":path", "/")])),
        ("a pseudo-header twice", with(&[(":path", "/other")])),
        ("an unknown pseudo-header", with(&[(":magic", "1")])),
        ("a status", with(&[(":status", "200")])),
        ("another host", with(&[("host", "b.example")])),
        ("two hosts", with(&[("host", "a.example"), ("host", "a.example")])),
        ("no method", request("GET", "/")[1..].to_vec()),
        ("no scheme", vec![(":method", "GET"), (":path", "/"), (":authority", "a.example")]),
        ("no path", vec![(":method", "GET"), (":scheme", "http"), (":authority", "a.example")]),
        ("no host", request("GET", "/")[..3].to_vec()),
        ("an authority with user", [&request("GET", "/")[..3], &[(":authority", "u@a.example")]].concat()),
        ("an empty path", request("GET", "").to_vec()),
        ("a path without slash", request("GET", "x").to_vec()),
        ("an absolute path", request("GET", "http://evil.example/").to_vec()),
        ("a path with a space", request("GET", "/ HTTP/1.1").to_vec()),
        ("a path with a line end", request("GET", "/\r\nx: 1").to_vec()),
        ("an asterisk", request("OPTIONS", "*").to_vec()),
        ("a method with a space", request("GET /x", "/").to_vec()),
        ("a method in lower case", request("get", "/").to_vec()),
        ("trace", request("TRACE", "/").to_vec()),
        ("connect", vec![(":method", "CONNECT"), (":authority", "a.example:443")]),
        ("connect with a path", request("CONNECT", "/").to_vec()),
        ("extended connect", [&request("CONNECT", "/")[..], &[(":protocol", "websocket")]].concat()),
    ];
    for (case, fields) in cases {
        let mut frames = Frames::connect(rig.http, DEADLINE);
        frames.headers(1, flag::END_STREAM, &fields);
        let outcome = frames.outcome(1);
        assert!(
            matches!(outcome, Reset(PROTOCOL_ERROR) | GoAway(PROTOCOL_ERROR) | Status(400 | 405)),
            "{case}: {outcome:?}"
        );
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_body_other_than_its_length_is_no_request() {
    let (rig, _backend) = serving();
    let head = [&request("POST", "/")[..], &[("content-length", "5")]].concat();
    for (case, body) in [("short", &b"1234"[..]), ("long", b"123456")] {
        let mut frames = Frames::connect(rig.http, DEADLINE);
        frames.headers(1, 0, &head);
        frames.send(kind::DATA, flag::END_STREAM, 1, body);
        assert_eq!(frames.outcome(1), Reset(PROTOCOL_ERROR), "{case}");
        frames.get(3, "/");
        assert_eq!(frames.outcome(3), Status(200), "{case}");
    }
}

#[test]
fn trailers_have_their_rules() {
    let cases: &[Case] = &[
        ("without end", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.headers(1, 0, &[("x", "1")]);
        }),
        ("an upper-case name", |f| {
            f.headers(1, 0, &request("POST", "/"));
            f.headers(1, flag::END_STREAM, &[("X", "1")]);
        }),
    ];
    // Answers once it has read the body, so that nothing is answered before.
    let backend = Backend::start(|mut peer| {
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    for (case, act) in cases {
        let mut frames = Frames::connect(rig.http, DEADLINE);
        act(&mut frames);
        let outcome = frames.outcome(1);
        assert!(matches!(outcome, Reset(PROTOCOL_ERROR) | GoAway(PROTOCOL_ERROR)), "{case}: {outcome:?}");
    }
}

#[test]
fn trailers_go_no_further_and_pseudo_headers_among_them_are_lost() {
    // Those should be an error; the h2 crate leaves them out.
    let backend = Backend::start(|mut peer| {
        peer.head();
        let mut body = Vec::new();
        while !body.ends_with(b"\r\n\r\n") {
            body.extend(peer.exactly(1));
        }
        let right = body == b"0\r\n\r\n";
        let status = if right { "200 OK" } else { "500 No" };
        peer.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.headers(1, 0, &request("POST", "/"));
    frames.headers(1, flag::END_STREAM, &[(":path", "/evil"), ("x", "1")]);

    assert_eq!(frames.outcome(1), Status(200));
}

#[test]
fn frames_after_the_end_of_a_stream_are_errors() {
    let (rig, _backend) = serving();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.get(1, "/");
    frames.send(kind::DATA, 0, 1, b"more");

    // The response may have come first.
    let mut outcome = frames.outcome(1);
    if outcome == Status(200) {
        outcome = frames.outcome(1);
    }
    // The standard names STREAM_CLOSED; the h2 crate says PROTOCOL_ERROR where it still knows the stream.
    let right = matches!(outcome, Reset(STREAM_CLOSED) | GoAway(STREAM_CLOSED | PROTOCOL_ERROR));
    assert!(right, "{outcome:?}");
}

#[test]
fn a_head_beyond_the_limit_is_431() {
    let (rig, backend) = serving();
    let long = "x".repeat(8000);
    let fields: Vec<_> =
        request("GET", "/").into_iter().chain((0..5).map(|_| ("x-long", long.as_str()))).collect();
    let block = block(&fields);
    let mut frames = Frames::connect(rig.http, DEADLINE);

    let mut parts = block.chunks(16_000).peekable();
    frames.send(kind::HEADERS, flag::END_STREAM, 1, parts.next().expect("a part"));
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() { flag::END_HEADERS } else { 0 };
        frames.send(kind::CONTINUATION, last, 1, part);
    }

    assert_eq!(frames.outcome(1), Status(431));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn many_small_headers_are_431() {
    let (rig, backend) = serving();
    let fields: Vec<_> = request("GET", "/").into_iter().chain((0..200).map(|_| ("x", "1"))).collect();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.headers(1, flag::END_STREAM, &fields);

    assert_eq!(frames.outcome(1), Status(431));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_client_that_says_goodbye_gets_what_it_asked_for() {
    let (rig, _backend) = serving();
    let mut frames = Frames::connect(rig.http, DEADLINE);

    frames.get(1, "/");
    frames.send(kind::GOAWAY, 0, 0, &[0; 8]);

    assert_eq!(frames.outcome(1), Status(200));
}

#[test]
fn any_frames_leave_the_proxy_serving() {
    let (rig, _backend) = serving();
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for seed in 0..200 {
        let mut bytes = lb_tests::h2_frames::PREFACE.to_vec();
        bytes.extend(lb_tests::h2_frames::frame(kind::SETTINGS, 0, 0, &[]));
        for _ in 0..20 {
            let length = (random() % 64) as usize;
            let payload: Vec<u8> = match random() % 3 {
                0 => block(&request("POST", "/")),
                _ => (0..length).map(|_| random() as u8).collect(),
            };
            let (kind, flags, stream) = ((random() % 11) as u8, random() as u8, (random() % 8) as u32);
            bytes.extend(lb_tests::h2_frames::frame(kind, flags, stream, &payload));
        }
        let mut frames = Frames::silent(rig.http, DEADLINE);
        frames.send_raw(&bytes);
        // Half of them leave without waiting for what comes of it.
        if seed % 2 == 0 {
            frames.send(kind::GOAWAY, 0, 0, &[0; 8]);
            let _ = frames.stream.shutdown(std::net::Shutdown::Write);
            while frames.receive().is_some() {}
        }
    }
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.get(1, "/");
    assert_eq!(frames.outcome(1), Status(200));
}
