//! Copies of requests for somebody else, who is neither waited for nor believed.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use penstock::model::expression::Expression;
use penstock::model::l7::log::{Escape, Format};
use penstock::model::l7::policy::{Access, AddressSet, Copied, Mirror};
use penstock::model::l7::{Buffers, Choice, Filters, L7, Policies, Sampler, Traced};

use crate::rig::{Backend, DEADLINE, Rig, length_of, nobody, to_with};

/// Somebody who gets copies: whole requests, as they came.
struct Target {
    backend: Backend,
    copies: Receiver<(String, Vec<u8>)>,
}

impl Target {
    fn start() -> Self {
        let (tell, copies) = channel();
        let tell = Mutex::new(tell);
        let backend = Backend::start(move |mut peer| {
            let Some(head) = peer.head() else { return };
            let body = peer.exactly(length_of(&head));
            let _ = tell.lock().expect("tell").send((head, body));
            peer.try_send(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
        });
        Self { backend, copies }
    }

    fn copy(&self) -> (String, Vec<u8>) {
        self.copies.recv_timeout(DEADLINE).expect("a copy")
    }

    fn mirror(&self) -> Mirror {
        mirror(&format!("127.0.0.1:{}", self.backend.addr.port()))
    }
}

fn text(text: &str) -> Expression {
    Expression::parse(text).expect("known variables")
}

fn mirror(host: &str) -> Mirror {
    Mirror {
        tls: false,
        host: text(host),
        target: Some(text("$request_uri")),
        upstream: None,
        named: None,
        body: Copied::Whole,
    }
}

fn mirrored(backend: &Backend, mirror: Mirror) -> L7 {
    with(backend, Policies { mirror: Some(mirror), ..Policies::default() }, Buffers::default())
}

fn with(backend: &Backend, policies: Policies, buffers: Buffers) -> L7 {
    let policies = Some(Arc::new(policies));
    to_with(&[backend.addr], Filters { policies, buffers, max_body_bytes: None, ..Filters::default() })
}

/// How many copies came to this.
fn count(rig: &Rig, outcome: &str) -> f64 {
    let metrics = rig.running.metrics();
    let metric =
        metrics.iter().find(|metric| metric.name == "penstock_l7_mirrored_requests_total").expect("a metric");
    let of = |sample: &&penstock::model::report::Sample| {
        sample.labels.iter().any(|(name, value)| *name == "outcome" && value == outcome)
    };
    metric.samples.iter().find(of).map_or(0.0, |sample| sample.value)
}

fn until(rig: &Rig, outcome: &str, expected: f64) {
    let started = Instant::now();
    while count(rig, outcome) < expected {
        assert!(started.elapsed() < DEADLINE, "{outcome} is {}", count(rig, outcome));
        std::thread::yield_now();
    }
}

#[test]
fn a_request_goes_to_its_backend_and_a_copy_of_it_to_the_mirror() {
    let (backend, target) = (Backend::mirror(), Target::start());
    let rig = Rig::start(mirrored(&backend, target.mirror()));

    let reply = rig.ask("GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\nCookie: d=e\r\nX-Real-IP: 1\r\n\r\n");

    assert_eq!(reply.status, 200);
    let (head, body) = target.copy();
    let expected = "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nCookie: d=e\r\n\r\n";
    assert_eq!(head, expected);
    assert_eq!(body, b"");
    until(&rig, "sent", 1.0);
}

#[test]
fn a_copy_of_a_traced_request_names_the_span_that_its_backend_is_told_of() {
    let (backend, target) = (Backend::mirror(), Target::start());
    let traced = |trusts| Traced {
        operation: Format::compile("", Escape::None).0,
        trusts,
        sampler: Sampler { choice: Choice::All, follows: true },
        exports: false,
    };
    for (trusts, state) in [(true, Some("tracestate: a=b")), (false, None)] {
        let policies = Policies {
            mirror: Some(target.mirror()),
            traced: Some(Arc::new(traced(trusts))),
            ..Policies::default()
        };
        let rig = Rig::start(with(&backend, policies, Buffers::default()));

        let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let lines = format!("TraceParent: {theirs}\r\nTracestate: a=b\r\n");
        let told = rig.ask(&format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")).text();

        let (copy, _) = target.copy();
        let of_traces = |head: &str| -> Vec<String> {
            let lines = head.lines().filter(|line| line.to_ascii_lowercase().starts_with("trace"));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(of_traces(&copy), of_traces(&told), "trusts {trusts}");
        assert!(!copy.contains("00f067aa0ba902b7") && copy.contains("traceparent: "), "{copy}");
        assert_eq!(copy.contains("4bf92f3577b34da6a3ce929d0e0e4736"), trusts, "{copy}");
        assert_eq!(copy.lines().find(|line| line.starts_with("tracestate")), state);
    }
}

#[test]
fn bodies_are_copied_whatever_their_framing_and_whoever_holds_them() {
    let (backend, target) = (Backend::mirror(), Target::start());
    let long = "x".repeat(20_000);
    let requests = [
        ("small", "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello".to_owned(), "hello".to_owned()),
        ("idempotent", "PUT /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello".to_owned(), "hello".to_owned()),
        (
            "long",
            format!("POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{long}", long.len()),
            long.clone(),
        ),
        (
            "chunks",
            "POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
                .to_owned(),
            "hello".to_owned(),
        ),
    ];
    for request in [None, Some(8 * 1024)] {
        let buffers = Buffers { request, ..Buffers::default() };
        let policies = Policies { mirror: Some(target.mirror()), ..Policies::default() };
        let rig = Rig::start(with(&backend, policies, buffers));
        for (case, request, expected) in &requests {
            let mut client = rig.client();
            client.send(request);

            let (head, body) = target.copy();

            assert!(head.contains(&format!("Content-Length: {}\r\n", expected.len())), "{case}: {head}");
            assert!(body == expected.as_bytes(), "{case}");
        }
    }
}

#[test]
fn the_body_stays_here_where_only_the_head_is_asked_for() {
    let (backend, target) = (Backend::mirror(), Target::start());
    let only_head = Mirror {
        body: Copied::Head,
        target: Some(text("/copy?of=$uri")),
        named: Some(text("test.example")),
        ..target.mirror()
    };
    let rig = Rig::start(mirrored(&backend, only_head));

    let reply = rig.ask("POST /p%20q HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");

    assert!(reply.text().ends_with("hello"));
    let expected = "POST /copy?of=/p%20q HTTP/1.1\r\nHost: test.example\r\nConnection: close\r\n\r\n";
    assert_eq!(target.copy(), (expected.to_owned(), Vec::new()));
}

#[test]
fn a_mirror_that_is_not_there_changes_nothing() {
    let backend = Backend::mirror();
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let port = |addr: std::net::SocketAddr| format!("127.0.0.1:{}", addr.port());
    for host in [port(nobody()), port(silent.local_addr().expect("bound")), "$http_none".to_owned()] {
        let rig = Rig::start(mirrored(&backend, mirror(&host)));
        let mut client = rig.client();
        for _ in 0..3 {
            client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
            assert_eq!(client.reply().status, 200, "{host}");
        }
    }
    let rig = Rig::start(mirrored(&backend, mirror(&port(nobody()))));
    rig.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    until(&rig, "failed", 1.0);
}

#[test]
fn what_is_too_much_for_a_copy_is_counted_and_goes_through_all_the_same() {
    let target = Target::start();
    // Takes every body whole: who answers early may never be sent the rest.
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            match length_of(&head) {
                0 => while !peer.chunk().is_empty() {},
                length => drop(peer.exactly(length)),
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let rig = Rig::start(mirrored(&backend, target.mirror()));
    let body = "x".repeat((1 << 20) + 1);

    let mut client = rig.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.reply().status, 200);
    let mut chunked = rig.client();
    chunked.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    chunked.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_eq!(chunked.reply().status, 200);

    until(&rig, "too-large", 2.0);
    assert_eq!(target.backend.connections(), 0);
}

#[test]
fn who_is_not_let_in_is_not_copied() {
    let (backend, target) = (Backend::mirror(), Target::start());
    let nobody = Access { denied: AddressSet::default(), allowed: Some(AddressSet::default()) };
    let policies = Policies { access: Some(nobody), mirror: Some(target.mirror()), ..Policies::default() };
    let rig = Rig::start(with(&backend, policies, Buffers::default()));

    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 403);

    rig.publish(mirrored(&backend, target.mirror()));
    rig.ask_until("GET /in HTTP/1.1\r\nHost: h\r\n\r\n", 200);
    assert!(target.copy().0.starts_with("GET /in "));
}
