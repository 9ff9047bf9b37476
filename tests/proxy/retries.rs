//! Which failures lead to another endpoint, and what the client is told when none is left.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock::model::expression::Expression;
use penstock::model::l7::{Filters, Protocol, Retry};
use penstock::model::upstream::{Balance, Conditions, Keepalive};

use crate::rig::{Backend, DEADLINE, Rig, nobody, to, to_with};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
const POST: &str = "POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";
const PUT: &str = "PUT /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";

fn retrying(on: &str) -> Filters {
    let on = Conditions::parse(on).expect("conditions");
    Filters { retry: Retry { on, ..Retry::default() }, ..Filters::default() }
}

/// Reads a request and closes.
fn closing() -> Backend {
    Backend::start(|mut peer| drop(peer.head()))
}

/// Closes in the middle of its answer's head.
fn half_a_head() -> Backend {
    Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nX:");
    })
}

#[test]
fn a_condition_leads_to_another_endpoint_only_where_it_is_named() {
    let unavailable = "HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown";
    let missing = "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
    let cases = [
        ("refused", nobody(), "error", GET, [200, 200]),
        ("refused", nobody(), "timeout", GET, [200, 502]),
        ("refused", nobody(), "error", POST, [200, 200]),
        ("closed", closing().addr, "error", GET, [200, 200]),
        ("closed", closing().addr, "error", PUT, [200, 200]),
        ("closed", closing().addr, "error", POST, [200, 502]),
        ("half a head", half_a_head().addr, "error", GET, [200, 200]),
        ("half a head", half_a_head().addr, "invalid_header", GET, [200, 502]),
        ("garbage", Backend::saying("SSH-2.0\r\n\r\n").addr, "error", GET, [200, 502]),
        ("garbage", Backend::saying("SSH-2.0\r\n\r\n").addr, "invalid_header", GET, [200, 200]),
        ("503", Backend::saying(unavailable).addr, "error", GET, [200, 503]),
        ("503", Backend::saying(unavailable).addr, "error http_503", GET, [200, 200]),
        ("503", Backend::saying(unavailable).addr, "http_503", POST, [200, 503]),
        ("503", Backend::saying(unavailable).addr, "http_503 non_idempotent", PUT, [200, 200]),
        ("404", Backend::saying(missing).addr, "http_404", GET, [200, 200]),
        ("404", Backend::saying(missing).addr, "off", GET, [200, 404]),
    ];
    for (case, bad, on, request, expected) in cases {
        let good = Backend::start(|mut peer| {
            while let Some(head) = peer.head() {
                let body = peer.exactly(crate::rig::length_of(&head));
                assert!(body.is_empty() || body == b"hi");
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        });
        let rig = Rig::start(to_with(&[bad, good.addr], retrying(on)));

        let mut statuses = [rig.ask(request).status, rig.ask(request).status];
        statuses.sort_unstable();

        assert_eq!(statuses, expected, "{case} with {on}: {}", request.split(' ').next().unwrap_or_default());
    }
}

#[test]
fn the_last_answer_stands_when_nobody_has_a_better_one() {
    let bad = Backend::saying("HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown");
    let rig = Rig::start(to_with(&[bad.addr], retrying("http_503")));

    let reply = rig.ask(GET);

    assert_eq!((reply.status, reply.text().as_str(), bad.connections()), (503, "down", 3));
}

#[test]
fn attempts_end_with_their_number_and_with_their_time() {
    for (tries, expected) in [(1, 1), (2, 2), (5, 5), (0, 32)] {
        let bad = closing();
        let retry = Retry { tries, ..Retry::default() };
        let filters = Filters { retry, ..Filters::default() };

        assert_eq!(Rig::start(to_with(&[bad.addr], filters)).ask(GET).status, 502);

        assert_eq!(bad.connections(), expected, "{tries} tries");
    }
    let silent = Backend::start(|mut peer| drop(peer.rest()));
    let filters = Filters {
        read_timeout: Duration::from_millis(300),
        retry: Retry { tries: 0, within: Duration::from_millis(500), ..Retry::default() },
        ..Filters::default()
    };
    let began = Instant::now();

    assert_eq!(Rig::start(to_with(&[silent.addr], filters)).ask(GET).status, 504);

    assert_eq!(silent.connections(), 2, "{:?}", began.elapsed());
}

#[test]
fn an_endpoint_that_keeps_failing_is_left_alone() {
    let (bad, good) = (closing(), Backend::mirror());
    let rig = Rig::start(to(&[bad.addr, good.addr]));

    for _ in 0..100 {
        assert_eq!(rig.ask(GET).status, 200);
    }

    // Five failures eject it; half of all endpoints may be out.
    assert_eq!(bad.connections(), 5);
}

#[test]
fn an_endpoint_is_ejected_where_clients_leave_before_it_is_connected_to() {
    let (heard, was_heard) = std::sync::mpsc::channel();
    // Takes connections, and says nothing to a TLS handshake.
    let silent = Backend::start(move |mut peer| {
        let _ = heard.send(());
        peer.stream.set_read_timeout(None).expect("no timeout");
        peer.rest();
    });
    let connect_timeout = Duration::from_secs(3600);
    let filters = Filters { protocol: Protocol::Https, connect_timeout, ..Filters::default() };
    let rig = Rig::start(to_with(&[silent.addr], filters));
    let mut clients: Vec<_> = (0..5).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send(GET);
        was_heard.recv_timeout(DEADLINE).expect("the endpoint is connected to");
    }

    // Longer than it takes to connect to an endpoint that is well.
    let patience = Some(Duration::from_millis(1500));
    clients[0].stream.set_read_timeout(patience).expect("a timeout");
    assert!(clients[0].stream.read(&mut [0]).is_err(), "no answer");
    drop(clients);

    let started = Instant::now();
    while rig.metric("penstock_l7_ejected_endpoints") < 1.0 {
        assert!(started.elapsed() < DEADLINE, "it is asked on");
        std::thread::yield_now();
    }
    assert_eq!(rig.metric("penstock_l7_failed_attempts_total"), 5.0);
}

#[test]
fn a_hash_keeps_a_key_at_its_endpoint_on_every_worker() {
    let backends: Vec<_> = (0..4).map(|_| named()).collect();
    let addrs: Vec<SocketAddr> = backends.iter().map(|backend| backend.addr).collect();
    let mut l7 = to(&addrs);
    l7.upstreams.edit(|_, upstream| {
        upstream.balance = Balance::Hash(Expression::parse("$http_x_user").unwrap());
    });
    let rig = Rig::with_workers(l7, 2);
    let who = |user: usize| rig.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n")).text();

    let first: Vec<_> = (0..40).map(who).collect();
    let again: Vec<_> = (0..40).map(who).collect();

    assert_eq!(first, again);
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), 4, "{first:?}");
}

/// Answers with its own address.
fn named() -> Backend {
    Backend::start(|mut peer| {
        let addr = peer.stream.local_addr().expect("bound").to_string();
        while peer.head().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{addr}", addr.len()));
        }
    })
}

#[test]
fn times_of_the_upstream_are_counted_where_one_attempt_was_enough() {
    let good = Backend::mirror();
    let count = |rig: &Rig, name: &str| -> f64 {
        let metrics = rig.running.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).expect("metric");
        metric.samples.iter().filter(|sample| sample.suffix == "_count").map(|sample| sample.value).sum()
    };
    let names = ["connect", "header", "response"]
        .map(|what| format!("nginx_ingress_controller_{what}_duration_seconds"));

    let rig = Rig::start(to(&[good.addr]));
    rig.ask(GET);
    assert_eq!(names.clone().map(|name| count(&rig, &name)), [1.0; 3]);

    let rig = Rig::start(to_with(&[closing().addr], Filters::default()));
    rig.ask(GET);
    assert_eq!(names.map(|name| count(&rig, &name)), [0.0; 3]);
}

#[test]
fn no_more_connections_are_kept_than_may_be_and_none_longer() {
    let cases = [
        ("one", Keepalive { connections: 1, ..Keepalive::default() }, 4),
        ("both", Keepalive::default(), 2),
        ("none", Keepalive { connections: 0, ..Keepalive::default() }, 4),
        ("for one request", Keepalive { requests: 1, ..Keepalive::default() }, 4),
        ("of no age", Keepalive { age: Duration::ZERO, ..Keepalive::default() }, 4),
    ];
    for (case, keepalive, expected) in cases {
        let backends = [Backend::mirror(), Backend::mirror()];
        let mut l7 = to(&backends.each_ref().map(|backend| backend.addr));
        l7.keepalive = keepalive;
        let rig = Rig::start(l7);

        for _ in 0..4 {
            assert_eq!(rig.ask(GET).status, 200);
        }

        let opened: usize = backends.iter().map(Backend::connections).sum();
        assert_eq!(opened, expected, "{case}");
    }
}
