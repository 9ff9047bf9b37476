//! What a client may take: time, bytes, requests and connections.

use std::time::{Duration, Instant};

use penstock::model::l7::{Buffers, ClientLimits, Edge, Filters, L7};

use crate::rig::{Backend, Client, DEADLINE, Rig, to, to_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Everything to `backend`, with these limits.
fn limited(backend: &Backend, limits: ClientLimits) -> L7 {
    L7 { edge: Edge { limits, ..Edge::default() }, ..to(&[backend.addr]) }
}

#[test]
fn a_head_that_takes_too_long_is_answered_408_however_busily_it_trickles() {
    let backend = Backend::mirror();
    let limits = ClientLimits { header_timeout: Duration::from_millis(300), ..ClientLimits::default() };
    let rig = Rig::start(limited(&backend, limits));
    let mut client = rig.client();

    // Time itself is the subject: each byte comes long before the timeout, the whole head after it.
    client.send("GET / HTTP/1.1\r\n");
    for _ in 0..200 {
        if !client.try_send(b"X") {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }

    assert_eq!(client.reply().status, 408);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_client_that_never_speaks_is_closed_without_an_answer() {
    let backend = Backend::mirror();
    let limits = ClientLimits { header_timeout: Duration::from_millis(100), ..ClientLimits::default() };
    let rig = Rig::start(limited(&backend, limits));

    assert_eq!(rig.client().rest(), b"");
}

#[test]
fn a_body_that_stops_is_answered_408() {
    let backend = Backend::mirror();
    let limits = ClientLimits { body_timeout: Duration::from_millis(100), ..ClientLimits::default() };
    let rig = Rig::start(limited(&backend, limits));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");

    assert_eq!(client.reply().status, 408);
}

#[test]
fn the_last_request_of_a_connection_is_told_so() {
    let backend = Backend::mirror();
    let cases = [
        ("three requests", ClientLimits { keep_alive_requests: 3, ..ClientLimits::default() }, 3),
        ("no keep-alive", ClientLimits { keep_alive: Duration::ZERO, ..ClientLimits::default() }, 1),
    ];
    for (case, limits, last) in cases {
        let rig = Rig::start(limited(&backend, limits));
        let mut client = rig.client();

        for request in 1..=last {
            client.send(GET);
            let closes = client.reply().header("connection") == Some("close");
            assert_eq!(closes, request == last, "{case}: request {request}");
        }

        assert_eq!(client.rest(), b"", "{case}");
    }
}

#[test]
fn an_idle_connection_ends_after_the_keep_alive_time() {
    let backend = Backend::mirror();
    let limits = ClientLimits { keep_alive: Duration::from_millis(100), ..ClientLimits::default() };
    let rig = Rig::start(limited(&backend, limits));
    let mut client = rig.client();
    client.send(GET);
    assert_eq!(client.reply().status, 200);

    assert_eq!(client.rest(), b"");
}

#[test]
fn header_buffers_bound_line_and_head() {
    let backend = Backend::mirror();
    let limits = ClientLimits { line_bytes: 1024, head_bytes: 2048, ..ClientLimits::default() };
    let rig = Rig::start(limited(&backend, limits));
    let (short, long) = ("x".repeat(900), "x".repeat(1100));
    let cases = [
        ("short target", format!("GET /{short} HTTP/1.1\r\nHost: a\r\n\r\n"), 200),
        ("long target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        ("short line", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {short}\r\n\r\n"), 200),
        ("long line", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 400),
        (
            "long head",
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", format!("X: {short}\r\n").repeat(3)),
            431,
        ),
        ("endless target", format!("GET /{long}"), 414),
        ("endless head", format!("GET / HTTP/1.1\r\n{}", format!("X: {short}\r\n").repeat(3)), 431),
    ];
    for (case, request, status) in cases {
        assert_eq!(rig.ask(&request).status, status, "{case}");
    }
}

#[test]
fn a_full_worker_closes_who_is_idle_and_serves_who_speaks() {
    const ROOM: usize = 8;
    let backend = Backend::mirror();
    let edge = Edge { connections: ROOM, ..Edge::default() };
    let rig = Rig::start(L7 { edge, ..to(&[backend.addr]) });
    let mut idle: Vec<Client> = (0..ROOM).map(|_| rig.client()).collect();
    for client in &mut idle {
        client.send(GET);
        assert_eq!(client.reply().status, 200);
    }

    // Each of these finds the worker full, and all are served.
    for _ in 0..ROOM {
        let mut client = rig.client();
        client.send(GET);
        assert_eq!(client.reply().status, 200);
        idle.push(client);
    }
}

#[test]
fn a_full_worker_closes_who_is_slow() {
    const ROOM: usize = 8;
    let backend = Backend::mirror();
    let patient = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let is_asked = head.starts_with("GET ");
            if !is_asked || !peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
                peer.rest();
            }
        }
    });
    let long = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        while peer.try_send(&[b'x'; 64 * 1024]) {}
    });
    let read_whole = Buffers { request: Some(16 * 1024), ..Buffers::default() };
    let (to_long, buffered) = (to(&[long.addr]), Filters { buffers: read_whole, ..Filters::default() });
    let half = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx";
    let cases = [
        ("silent", to(&[backend.addr]), false, ""),
        ("half a head", to(&[backend.addr]), false, "GET / HT"),
        ("silent on the port of tls", to(&[backend.addr]), true, ""),
        ("half a body", to(&[patient.addr]), false, half),
        ("half a body that is read whole", to_with(&[patient.addr], buffered), false, half),
        ("takes no response", to_long, false, GET),
    ];
    // All at once, since time is the subject: a second of silence, five of half a request.
    let full: Vec<_> = cases
        .map(|(case, l7, by_tls, said)| {
            let edge = Edge { connections: ROOM, ..Edge::default() };
            let rig = Rig::start(L7 { edge, ..l7 });
            let addr = if by_tls { rig.https } else { rig.http };
            let mut clients: Vec<Client> = (0..ROOM).map(|_| Client::connect(addr)).collect();
            clients.iter_mut().for_each(|client| client.send(said));
            (case, rig, clients)
        })
        .into();

    for (case, rig, _clients) in full {
        let started = Instant::now();
        while active(&rig) < ROOM as f64 {
            assert!(started.elapsed() < DEADLINE, "{case}: not full");
            std::thread::yield_now();
        }
        let mut client = rig.client();
        client.send(GET);
        let head = client.head().unwrap_or_else(|| panic!("{case}: not served"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{case}: {head}");
    }
}

/// Client connections of a proxy.
pub fn active(rig: &Rig) -> f64 {
    let metrics = rig.running.metrics();
    let metric = metrics.iter().find(|m| m.name == "nginx_ingress_controller_nginx_process_connections");
    let samples = metric.expect("metric").samples.iter();
    samples.filter(|sample| sample.labels.iter().any(|(_, value)| value == "active")).map(|s| s.value).sum()
}
