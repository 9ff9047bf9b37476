//! Requests that two parsers could read differently are refused, and the connection ends.

use crate::rig::{Backend, Rig, to};

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_closed() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let long = "x".repeat(9000);
    let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
    let cases: Vec<(&str, String, u16)> = vec![
        ("both lengths", format!("POST / HTTP/1.1\r\nHost: a\r\n{both}\r\n"), 400),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n".into(),
            400,
        ),
        (
            "equal lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n".into(),
            400,
        ),
        ("list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\n".into(), 400),
        ("signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n".into(), 400),
        ("hex length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\n".into(), 400),
        (
            "endless length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".into(),
            400,
        ),
        ("odd coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n".into(), 501),
        ("coding list", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 501),
        (
            "odd coding and a length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: gzip\r\n\r\n".into(),
            400,
        ),
        ("odd coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n".into(), 400),
        (
            "coding twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
                .into(),
            400,
        ),
        ("coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400),
        ("line feed before the request", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("carriage return before the request", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("bare line feed", "GET / HTTP/1.1\nHost: a\n\n".into(), 400),
        ("one bare line feed", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n".into(), 400),
        ("folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n".into(), 400),
        ("space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n".into(), 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("blank in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("version after 1.9", "GET / HTTP/1.10\r\nHost: a\r\n\r\n".into(), 400),
        ("version 2 in text", "GET / HTTP/2.1\r\nHost: a\r\n\r\n".into(), 505),
        ("both lengths of 1.2", format!("POST / HTTP/1.2\r\nHost: a\r\n{both}\r\n"), 400),
        ("two hosts without a path", "GET http://a?b HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
        ("user without a path", "GET http://u@a?b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("empty host", "GET / HTTP/1.1\r\nHost: \r\n\r\n".into(), 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
        ("host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), 400),
        ("host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(), 400),
        ("nul in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".into(), 400),
        ("target without slash", "GET x HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("path above the root", "GET /../x HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("encoded nul", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("lower-case method", "get / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("connect", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
        ("trace", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
        ("long target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        ("long line", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 400),
        ("many lines", format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(200)), 431),
        (
            "large head",
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", format!("X: {}\r\n", &long[..4000]).repeat(20)),
            431,
        ),
    ];
    for (case, request, status) in cases {
        let mut client = rig.client();
        client.try_send(request.as_bytes());

        let reply = client.reply();

        assert_eq!(reply.status, status, "{case}");
        assert_eq!(client.rest(), b"", "{case}: nothing more may be answered");
    }
    assert_eq!(backend.connections(), 0, "none of it may reach a backend");
}

#[test]
fn malformed_chunks_end_the_request_and_the_connection() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    for body in [
        "zz\r\n",
        "5\nhello",
        "5\r\nhelloX",
        "-5\r\n",
        "fffffffffffffffff\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));

        assert_eq!(client.reply().status, 400, "{body:?}");
        assert_eq!(client.rest(), b"", "{body:?}");
    }
}

#[test]
fn any_bytes_leave_the_proxy_serving() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    // A fixed generator, so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                b"GET POST/\r\n:HTTP1. \0\xffabc"[(state >> 33) as usize % 24]
            })
            .collect();
        let mut client = rig.client();
        client.try_send(&bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        client.rest();
    }

    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
}

#[test]
fn nobody_gets_a_backend_to_speak_http_2_behind_our_back() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    let text = rig
        .ask("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n")
        .text()
        .to_ascii_lowercase();

    assert!(
        !text.contains("h2c") && !text.contains("http2-settings") && !text.contains("connection:"),
        "{text}"
    );
}
