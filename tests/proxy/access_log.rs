//! The access log, as a file that somebody reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_tests::h2_frames::{Frames, kind};
use penstock::model::l7::log::{Escape, Format, Sink};
use penstock::model::l7::policy::ErrorPages;
use penstock::model::l7::{
    AccessLog, ClientAuth, Demand, Filters, L7, Policies, Protocol, Upstream, UpstreamName,
};
use tempfile::TempDir;

use crate::client_auth::{guarded, verify};
use crate::rig::{Backend, Client, DEADLINE, Rig, nobody, to, to_with};
use crate::tls_client::{Ca, Tls, config};

/// A log of its own for each test.
pub struct Log(TempDir);

impl Log {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// The same state, logged in this format.
    pub fn of(&self, l7: L7, format: &str) -> L7 {
        let sink = Arc::new(Sink::File(self.0.path().join("access.log")));
        let (format, unknown) = Format::compile(format, Escape::Default);
        assert_eq!(unknown, Vec::<String>::new());
        L7 { log: Some(Arc::new(AccessLog { sink, format, unclaimed: true, ..AccessLog::default() })), ..l7 }
    }

    /// Waits for so many lines.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.0.path().join("access.log")).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count && text.ends_with('\n') {
                return lines;
            }
            assert!(started.elapsed() < DEADLINE, "{count} lines expected, not {lines:?}");
            std::thread::yield_now();
        }
    }
}

const SIZES: &str = "$request $status $body_bytes_sent $request_length $upstream_response_length";

#[test]
fn bodies_are_counted_without_their_heads() {
    let log = Log::new();
    let backend = Backend::saying("HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello");
    let rig = Rig::start(log.of(to(&[backend.addr]), SIZES));

    let request = "PUT /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    rig.ask(&format!("{request}abc"));

    let length = request.len() + 3;
    assert_eq!(log.lines(1), [format!("PUT /x?y HTTP/1.1 201 5 {length} 5")]);
}

#[test]
fn all_bytes_to_and_from_an_upstream_are_told() {
    let log = Log::new();
    let backend = Backend::mirror();
    let format = "$upstream_bytes_sent $upstream_bytes_received $upstream_response_length";
    let rig = Rig::start(log.of(to(&[backend.addr]), format));

    // The body of the answer is what the upstream was sent.
    let sent = rig.ask("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {sent}\r\n\r\n").len();

    assert_eq!(log.lines(1), [format!("{sent} {} {sent}", head + sent)]);
}

#[test]
fn what_the_upstream_said_and_what_the_client_got_are_told_apart() {
    let log = Log::new();
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nServer: app\r\nX-Cache: HIT\r\nSet-Cookie: sid=9; Path=/\r\nContent-Length: 2\r\n\r\nok",
    );
    let format = "$upstream_http_server $sent_http_server $upstream_cookie_sid $sent_http_x_cache $sent_http_content_length";
    let rig = Rig::start(log.of(to(&[backend.addr]), format));

    rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    rig.ask("GET /x HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n");

    let lines = log.lines(2);
    assert_eq!(lines[0], "app - 9 HIT 2");
    assert!(lines[1].starts_with("- - - - 1"), "a page of our own: {lines:?}");
}

#[test]
fn each_attempt_has_its_place_in_the_line() {
    let log = Log::new();
    let backend = Backend::mirror();
    let dead = nobody();
    let rig =
        Rig::start(log.of(
            to(&[dead, backend.addr]),
            "$status $upstream_addr $upstream_status $upstream_response_length",
        ));

    // Round robin starts anywhere: of two requests one meets the dead endpoint first.
    let length = rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").body.len();
    rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let alive = backend.addr;
    let twice = format!("200 {dead}, {alive} 502, 200 0, {length}");
    assert!(log.lines(2).contains(&twice), "{:?} has no {twice}", log.lines(2));
}

#[test]
fn what_is_no_request_and_what_reaches_no_upstream_are_logged_too() {
    let log = Log::new();
    let rig = Rig::start(log.of(L7::default(), "\"$request\" $status [$proxy_upstream_name] $upstream_addr"));

    rig.ask("GET /x HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n");
    rig.ask("\r\n\x16\x03\"odd\n");
    rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let expected = [
        "\"GET /x HTTP/1.1\" 400 [-] -",
        "\"\\x16\\x03\\x22odd\" 400 [-] -",
        "\"GET / HTTP/1.1\" 404 [upstream-default-backend] -",
    ];
    assert_eq!(log.lines(3), expected);
}

#[test]
fn who_stands_in_for_an_upstream_without_endpoints_is_named() {
    let (log, backend) = (Log::new(), Backend::mirror());
    let name = UpstreamName("custom-default-backend-default-errors".to_owned());
    let errors = ErrorPages { backend: Some(name.clone()), ..ErrorPages::default() };
    let policies = Some(Arc::new(Policies { errors: Some(errors), ..Policies::default() }));
    let mut l7 = to_with(&[], Filters { policies, ..Filters::default() });
    l7.upstreams.insert(name, Upstream { endpoints: [backend.addr].into(), ..Upstream::default() });
    let rig = Rig::start(log.of(l7, "[$proxy_upstream_name] $service_port $upstream_status"));

    rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert_eq!(log.lines(1), ["[custom-default-backend-default-errors] 80 200"]);
}

#[test]
fn who_words_an_error_is_named_in_the_end() {
    let (log, backend, upstream) = (Log::new(), Backend::mirror(), nobody());
    let named = UpstreamName("custom-default-backend-default-errors".to_owned());
    for (case, of_ingress, expected) in [
        ("the default backend of the Ingress", true, "[custom-default-backend-default-errors]"),
        ("that of all", false, "[upstream-default-backend]"),
    ] {
        let backend_of_ingress = of_ingress.then(|| named.clone());
        let errors =
            ErrorPages { backend: backend_of_ingress, statuses: [502].into(), ..ErrorPages::default() };
        let policies = Some(Arc::new(Policies { errors: Some(errors), ..Policies::default() }));
        let mut l7 = to_with(&[upstream], Filters { policies, ..Filters::default() });
        let words = Upstream { endpoints: [backend.addr].into(), ..Upstream::default() };
        l7.upstreams.insert(named.clone(), words);
        l7.default_backend = Some(named.clone());
        let rig = Rig::start(log.of(l7, "[$proxy_upstream_name] $proxy_host $service_port $upstream_status"));

        rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

        let lines = log.lines(usize::from(!of_ingress) + 1);
        let line = lines.last().expect("a line");
        assert!(line.starts_with(&format!("{expected} default-echo-80 80 502")), "{case}: {line}");
        assert!(line.ends_with(" : 200"), "{case}: {line}");
    }
}

#[test]
fn what_was_refused_is_told_as_far_as_it_was_understood() {
    let log = Log::new();
    let backend = Backend::mirror();
    let format = "$status $request_method $uri $host $http_a $server_protocol [$request] $request_length";
    let rig = Rig::start(log.of(to(&[backend.addr]), format));
    let counted = "nginx_ingress_controller_nginx_process_requests_total";
    let long = "x".repeat(9000);

    let trace = "TRACE /t HTTP/1.1\r\nHost: Shop.example:80\r\nA: 1\r\n\r\n";
    rig.ask(trace);
    let line = format!("GET /l HTTP/1.1\r\nHost: b\r\nA: {long}\r\n\r\n");
    rig.ask(&line);
    let over_http2 = crate::h2_client::Client::connect(rig.http);
    let get = || http::Request::get("http://c.example/h?q").header("a", "1");
    // As h2 counts them 45 KB, over four times what a line may have, and more than a head may.
    let many = (0..5).fold(get(), |request, _| request.header("b", &long));
    let reply = over_http2.ask(many.body(()).expect("a request"), &[]).expect("an answer");
    assert_eq!(reply.head.status(), 431);
    let reply = over_http2.ask(get().header("b", &long).body(()).expect("a request"), &[]);
    assert_eq!(reply.expect("an answer").head.status(), 400);

    let lines = log.lines(4);
    assert_eq!(lines[0], format!("405 TRACE /t shop.example 1 HTTP/1.1 [TRACE /t HTTP/1.1] {}", trace.len()));
    assert!(lines[1].starts_with("400 GET /l b xxxx"), "{}", lines[1]);
    assert!(lines[2].starts_with("431 GET /h c.example 1 HTTP/2.0 [GET /h?q HTTP/2.0] "), "{}", lines[2]);
    assert!(lines[3].starts_with("400 GET /h c.example 1 HTTP/2.0 [GET /h?q HTTP/2.0] "), "{}", lines[3]);
    assert!(!lines[3].ends_with(" 0"), "{}", lines[3]);
    assert_eq!(rig.metric("penstock_l7_refused_heads_total"), 4.0);
    assert_eq!(rig.metric(counted), 4.0);
}

#[test]
fn the_time_of_a_request_begins_with_its_first_byte() {
    let log = Log::new();
    let backend = Backend::mirror();
    let mut l7 = log.of(to(&[backend.addr]), "$status $request_time $upstream_response_time");
    l7.edge.limits.header_timeout = std::time::Duration::from_millis(300);
    let rig = Rig::start(l7);

    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(client.reply().status, 408);

    let line = &log.lines(1)[0];
    let took = line.split(' ').nth(1).and_then(|took| took.parse::<f64>().ok()).expect("a time");
    assert!(took >= 0.29, "{line}");
}

#[test]
fn a_client_that_leaves_is_told_by_499() {
    let log = Log::new();
    let (heard, was_heard) = std::sync::mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        let _ = heard.send(peer.head());
        peer.rest();
    });
    let rig = Rig::start(log.of(to(&[backend.addr]), "$status $bytes_sent $upstream_status"));

    let mut client = Client::connect(rig.http);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    was_heard.recv_timeout(DEADLINE).expect("the backend was asked");
    drop(client);

    assert_eq!(log.lines(1), ["499 0 -"]);
}

#[test]
fn a_client_that_leaves_while_an_endpoint_is_connected_to_is_told_by_499() {
    const LONG: Duration = Duration::from_secs(3600);
    for protocol in [Protocol::Https, Protocol::Grpcs] {
        let (heard, was_heard) = std::sync::mpsc::channel();
        // Takes connections, and says nothing to a TLS handshake.
        let backend = Backend::start(move |mut peer| {
            let _ = heard.send(());
            peer.stream.set_read_timeout(None).expect("no timeout");
            peer.rest();
            let _ = heard.send(());
        });
        let log = Log::new();
        let filters = Filters { protocol, connect_timeout: LONG, ..Filters::default() };
        let format = "$request_uri $status $bytes_sent $upstream_addr $upstream_status";
        let rig = Rig::start(log.of(to_with(&[backend.addr], filters), format));
        let begun = || was_heard.recv_timeout(DEADLINE).expect("the backend is connected to");
        let started = Instant::now();
        let ended = || was_heard.recv_timeout(DEADLINE).expect("and left alone");

        let mut client = Client::connect(rig.http);
        client.send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n");
        begun();
        drop(client);
        ended();
        // One of two streams of a connection, and then the other.
        let mut frames = Frames::connect(rig.http, DEADLINE);
        frames.get(1, "/two");
        begun();
        frames.get(3, "/three");
        frames.send(kind::RST_STREAM, 0, 1, &8u32.to_be_bytes());
        log.lines(2);
        frames.send(kind::RST_STREAM, 0, 3, &8u32.to_be_bytes());

        let expected = |path| format!("/{path} 499 0 {} -", backend.addr);
        assert_eq!(log.lines(3), ["one", "two", "three"].map(expected), "{protocol:?}");
        // It is no fault of the endpoint where they left soon.
        let failed = rig.metric("penstock_l7_failed_attempts_total");
        assert!(failed == 0.0 || started.elapsed() > Duration::from_secs(1), "{protocol:?}: {failed}");
    }
}

#[test]
fn another_log_takes_over_from_one_request_to_the_next() {
    let (before, after) = (Log::new(), Log::new());
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let rig = Rig::start(before.of(to(&[backend.addr]), "$request_uri"));

    rig.ask("GET /before HTTP/1.1\r\nHost: a\r\n\r\n");
    rig.publish(after.of(L7::default(), "$request_uri"));
    rig.ask_until("GET /after HTTP/1.1\r\nHost: a\r\n\r\n", 404);

    assert_eq!(before.lines(1).first().map(String::as_str), Some("/before"));
    assert_eq!(after.lines(1), ["/after"]);
}

#[test]
fn a_handshake_and_who_the_client_is_are_told() {
    let log = Log::new();
    let backend = Backend::mirror();
    let ca = Ca::new("Clients");
    let l7 = guarded(&backend, ClientAuth::Verify(Box::new(verify(&ca, Demand::Optional))));
    let format =
        "$ssl_protocol $ssl_cipher $ssl_server_name $ssl_client_verify $ssl_client_s_dn $ssl_client_i_dn";
    let rig = Rig::start(log.of(l7, format));
    let request = |host| format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");

    Tls::connect(rig.https, "a.example").ask(&request("a.example"));
    log.lines(1);
    let config = config(Some(ca.issue("alice", 2200)), &[&rustls::version::TLS12]);
    let mut alice = Tls::with(config, rig.https, "secure.example").expect("a handshake");
    alice.ask(&request("secure.example"));

    let [anybody, alice] = log.lines(2).try_into().expect("two lines");
    assert!(anybody.starts_with("TLSv1.3 TLS_") && anybody.ends_with(" a.example - - -"), "{anybody}");
    assert!(alice.starts_with("TLSv1.2 ECDHE-"), "{alice}");
    assert!(alice.contains(" secure.example SUCCESS CN=alice,O=Test CN=Clients"), "{alice}");
}
