//! What a client is told when there is nothing to pass on.

use std::time::Duration;

use penstock::model::l7::{Action, Filters, L7, SslRedirect};

use crate::rig::{Backend, Rig, nobody, to, to_with};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn no_location_is_404_in_ingress_nginx_words() {
    let rig = Rig::start(L7::default());

    let reply = rig.ask(GET);

    assert_eq!(reply.status, 404);
    assert!(reply.text().contains("<center><h1>404 Not Found</h1></center>"), "{}", reply.text());
}

#[test]
fn healthz_answers_on_hosts_nobody_names() {
    let rig = Rig::start(L7::default());

    assert_eq!(rig.ask("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").status, 200);
}

#[test]
fn the_figures_of_all_workers_are_told_to_this_host() {
    let rig = Rig::start(L7::default());
    for _ in 0..8 {
        assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").status, 404);
    }

    let reply = rig.ask("GET /nginx_status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");

    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain")));
    let text = reply.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("Active connections: "), "{text}");
    assert_eq!(lines[1..3], ["server accepts handled requests", " 9 9 8 "], "{text}");
    assert!(lines[3].starts_with("Reading: 0 Writing: 1 Waiting: "), "{text}");
}

#[test]
fn a_response_that_is_to_be_found_elsewhere_is_none() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /protected/a\r\nContent-Type: image/png\r\nContent-Length: 0\r\n\r\n",
    );

    let reply = Rig::start(to(&[backend.addr])).ask(GET);

    assert_eq!((reply.status, reply.header("x-accel-redirect")), (502, None));
}

#[test]
fn no_endpoint_is_503_and_a_denied_location_too() {
    let rig = Rig::start(to(&[]));
    assert_eq!(rig.ask(GET).status, 503);

    let mut denied = to(&[nobody()]);
    denied.servers.edit(|_, server| {
        server.locations.iter_mut().for_each(|location| location.action = Action::Deny);
    });
    assert_eq!(Rig::start(denied).ask(GET).status, 503);
}

#[test]
fn refused_reset_and_garbage_are_502() {
    let cases: [(&str, std::net::SocketAddr); 3] = [
        ("nobody listens", nobody()),
        ("closed without a word", Backend::start(|mut peer| drop(peer.head())).addr),
        ("not http", Backend::saying("SSH-2.0-OpenSSH\r\n\r\n").addr),
    ];
    for (case, endpoint) in cases {
        assert_eq!(Rig::start(to(&[endpoint])).ask(GET).status, 502, "{case}");
    }
}

#[test]
fn silence_is_504() {
    let silent = Backend::start(|mut peer| drop(peer.rest()));
    let filters = Filters { read_timeout: Duration::from_millis(100), ..Filters::default() };

    let reply = Rig::start(to_with(&[silent.addr], filters)).ask(GET);

    assert_eq!(reply.status, 504);
}

#[test]
fn a_refusing_endpoint_costs_the_client_nothing_while_another_answers() {
    let good = Backend::mirror();
    let rig = Rig::start(to(&[nobody(), good.addr]));

    for _ in 0..10 {
        assert_eq!(rig.ask(GET).status, 200);
    }
}

#[test]
fn a_post_is_not_sent_twice() {
    let silent = Backend::start(|mut peer| drop(peer.head()));
    let rig = Rig::start(to(&[silent.addr]));

    let reply = rig.ask("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");

    assert_eq!((reply.status, silent.connections()), (502, 1));
}

/// Answers one request on each connection, closes it without announcing that, and then tells.
fn closing_backend() -> (Backend, std::sync::mpsc::Receiver<()>) {
    let (closed, closes) = std::sync::mpsc::channel();
    let closed = std::sync::Mutex::new(closed);
    let backend = Backend::start(move |mut peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        drop(peer);
        // Nobody may be listening any more when the test has ended.
        let _ = closed.lock().expect("no panic while telling").send(());
    });
    (backend, closes)
}

#[test]
fn a_kept_connection_that_its_backend_closed_is_replaced_unseen() {
    let (backend, closes) = closing_backend();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for method in ["GET", "POST", "GET", "POST", "DELETE"] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(client.reply().status, 200, "{method}");
        // A POST that crosses the close on its way cannot be repeated; one sent after it need not be.
        closes.recv_timeout(crate::rig::DEADLINE).expect("the backend closes");
    }
}

#[test]
fn a_request_that_may_be_repeated_survives_a_close_that_crosses_it() {
    let (backend, _closes) = closing_backend();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for round in 0..200 {
        client.send(GET);
        assert_eq!(client.reply().status, 200, "round {round}");
    }
}

#[test]
fn a_body_beyond_the_limit_is_413_announced_or_not() {
    let backend = Backend::start(|mut peer| drop(peer.rest()));
    let filters = Filters { max_body_bytes: Some(10), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let cases = [
        ("announced", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n"),
        (
            "chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
        ),
    ];
    for (case, request) in cases {
        assert_eq!(rig.ask(request).status, 413, "{case}");
    }
}

#[test]
fn plain_http_is_sent_to_https_with_308() {
    let filters = Filters { ssl_redirect: SslRedirect::Always, ..Filters::default() };
    let rig = Rig::start(to_with(&[nobody()], filters));
    let cases =
        [("/", "https://a.example"), ("/a/", "https://a.example/a"), ("/a/?x=1", "https://a.example/a/?x=1")];
    for (target, location) in cases {
        let reply = rig.ask(&format!("GET {target} HTTP/1.1\r\nHost: a.example:8080\r\n\r\n"));

        assert_eq!((reply.status, reply.header("location")), (308, Some(location)), "{target}");
    }
}

#[test]
fn requests_are_counted_under_their_ingress() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    rig.ask(GET);

    let metrics = rig.running.metrics();

    let requests = metrics.iter().find(|m| m.name == "nginx_ingress_controller_requests").expect("metric");
    let labels: Vec<(&str, &str)> =
        requests.samples[0].labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("host", "_"),
            ("status", "200"),
            ("method", "GET"),
            ("path", "/"),
            ("namespace", "default"),
            ("ingress", "echo"),
            ("service", "echo"),
            ("canary", ""),
        ]
    );
}

#[test]
fn a_client_that_leaves_a_silent_response_frees_the_upstream() {
    let (ended, end) = std::sync::mpsc::channel();
    let ended = std::sync::Mutex::new(ended);
    let backend = Backend::start(move |mut peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
            peer.rest();
            ended.lock().expect("one event stream").send(()).expect("test runs");
        }
    });
    let filters = Filters { read_timeout: Duration::from_secs(3600), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let mut client = rig.client();
    client.send(GET);
    client.head().expect("a head");

    drop(client);

    end.recv_timeout(crate::rig::DEADLINE).expect("the upstream connection ends with the client's");
}

#[test]
fn an_idle_proxy_has_no_active_connection() {
    let rig = Rig::start(L7::default());
    let active = || {
        let metrics = rig.running.metrics();
        let name = "nginx_ingress_controller_nginx_process_connections";
        metrics.iter().find(|metric| metric.name == name).expect("metric").samples[0].value
    };
    assert_eq!(active(), 0.0);

    let mut client = rig.client();
    client.send(GET);
    client.reply();

    assert_eq!(active(), 1.0);
}
