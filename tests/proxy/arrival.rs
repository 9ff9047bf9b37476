//! What comes before requests: PROXY headers, names in ClientHellos, TLS settings, TLS handed on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use penstock::l7::explain::{Request, Scheme, explain};
use penstock::model::expression::Expression;
use penstock::model::l4::Prefix;
use penstock::model::l7::{
    Cipher, CipherOrder, Ciphers, Edge, HostMatch, L7, ProxyProtocol, Resumption, Server, TlsPolicy,
    TlsVersions, UnknownName,
};
use penstock::model::report::Step;
use penstock::model::upstream::Balance;
use rustls::version::{TLS12, TLS13};

use lb_tests::agent::eventually;

use crate::rig::{Backend, DEADLINE, Rig, to};
use crate::tls_client::{Tls, config};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
/// 192.0.2.1:40000 to 203.0.113.7:443.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xcb\0\x71\x07\x9c\x40\x01\xbb";

fn with_proxy_protocol(backend: SocketAddr, trusted: &str) -> L7 {
    let (addr, bits) = trusted.split_once('/').expect("a range");
    let trusted = Prefix::new(addr.parse().expect("address"), bits.parse().expect("bits")).expect("a range");
    let protocol = ProxyProtocol { timeout: Duration::from_millis(300), trusted: vec![trusted] };
    L7 { edge: Edge { proxy_protocol: Some(protocol), ..Edge::default() }, ..to(&[backend]) }
}

fn with_tls(backend: SocketAddr, tls: TlsPolicy) -> L7 {
    L7 { edge: Edge { tls, ..Edge::default() }, ..to(&[backend]) }
}

#[test]
fn a_proxy_header_names_the_client() {
    let backend = Backend::mirror();
    let rig = Rig::start(with_proxy_protocol(backend.addr, "127.0.0.0/8"));
    let v1 = b"PROXY TCP4 192.0.2.1 203.0.113.7 40000 8080\r\n";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let cases: [(&str, &[u8], &str, &str); 4] = [
        ("version 1", v1, "192.0.2.1", "X-Forwarded-Port: 8080\r\nX-Forwarded-Proto: http\r\n"),
        ("version 2 of port 443", V2, "192.0.2.1", "X-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\n"),
        ("unknown", b"PROXY UNKNOWN\r\n", "127.0.0.1", "X-Forwarded-Proto: http\r\n"),
        ("local", local, "127.0.0.1", "X-Forwarded-Proto: http\r\n"),
    ];
    for (case, header, addr, scheme) in cases {
        let mut client = rig.client();
        client.send([header, GET.as_bytes()].concat());
        let reply = client.reply();
        let text = reply.text();

        assert_eq!(
            reply.header("strict-transport-security"),
            None,
            "{case}: the connection with us is plain"
        );
        assert!(text.contains(&format!("X-Real-IP: {addr}\r\n")), "{case}: {text}");
        assert!(text.contains(scheme), "{case}: {text}");
    }
}

#[test]
fn a_proxy_header_may_come_byte_by_byte_and_before_tls() {
    let backend = Backend::mirror();
    let rig = Rig::start(with_proxy_protocol(backend.addr, "127.0.0.0/8"));
    let v1 = b"PROXY TCP4 192.0.2.1 203.0.113.7 40000 8443\r\n";
    for (header, port) in [(V2, 443), (v1, 8443)] {
        let mut stream = TcpStream::connect(rig.https).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        for byte in header {
            stream.write_all(&[*byte]).expect("send");
        }

        let mut tls = Tls::over(stream, config(None, rustls::ALL_VERSIONS), "a.example").expect("handshake");
        let text = tls.ask(GET);

        assert!(text.contains("X-Real-IP: 192.0.2.1\r\n"), "{text}");
        assert!(
            text.contains(&format!("X-Forwarded-Port: {port}\r\nX-Forwarded-Proto: https\r\n")),
            "{text}"
        );
    }
}

#[test]
fn the_header_of_a_stranger_is_read_and_not_believed() {
    let backend = Backend::mirror();
    let rig = Rig::start(with_proxy_protocol(backend.addr, "10.0.0.0/8"));
    let mut client = rig.client();
    client.send([V2, GET.as_bytes()].concat());

    let text = client.reply().text();

    assert!(text.contains("X-Real-IP: 127.0.0.1\r\n"), "{text}");
    assert!(text.contains("X-Forwarded-Proto: http\r\n"), "{text}");
}

#[test]
fn who_sends_no_proxy_header_where_one_is_due_is_closed_and_counted() {
    let backend = Backend::mirror();
    let rig = Rig::start(with_proxy_protocol(backend.addr, "127.0.0.0/8"));
    for bytes in [GET.as_bytes(), b"PROXY TCP4 nonsense\r\n", b"\x16\x03\x01", b"", b"PROXY TCP4 1.2"] {
        let mut client = rig.client();
        client.send(bytes);

        assert_eq!(client.rest(), b"", "{bytes:?}");
    }

    assert_eq!(backend.connections(), 0);
    assert_eq!(refused(&rig, "proxy-header"), 5.0);
}

/// Value of the counter of connections refused for `cause`.
fn refused(rig: &Rig, cause: &str) -> f64 {
    let metrics = rig.running.metrics();
    let metric = metrics.iter().find(|m| m.name == "penstock_l7_refused_connections_total").expect("metric");
    let sample = metric.samples.iter().find(|sample| sample.labels.iter().any(|(_, value)| value == cause));
    sample.map_or(0.0, |sample| sample.value)
}

#[test]
fn versions_and_ciphers_are_those_allowed() {
    let backend = Backend::mirror();
    let only = |suites: &[Cipher]| Ciphers { suites: suites.to_vec(), order: CipherOrder::Ours };
    let policy = TlsPolicy::default();
    let cases = [
        ("default", policy.clone(), Some(()), Some(())),
        ("1.2", TlsPolicy { versions: TlsVersions::Tls12, ..policy.clone() }, Some(()), None),
        ("1.3", TlsPolicy { versions: TlsVersions::Tls13, ..policy.clone() }, None, Some(())),
        ("no suite of 1.2", TlsPolicy { ciphers: only(&[]), ..policy.clone() }, None, Some(())),
        // The generated certificate has an ECDSA key.
        ("rsa only", TlsPolicy { ciphers: only(&[Cipher::RsaAes128]), ..policy.clone() }, None, Some(())),
        ("one suite", TlsPolicy { ciphers: only(&[Cipher::EcdsaChaCha20]), ..policy }, Some(()), Some(())),
    ];
    for (case, policy, old, new) in cases {
        let rig = Rig::start(with_tls(backend.addr, policy));
        let shakes = |version| Tls::with(config(None, &[version]), rig.https, "a.example").ok();

        assert_eq!(shakes(&TLS12).map(|_| ()), old, "{case}: TLS 1.2");
        assert_eq!(shakes(&TLS13).map(|_| ()), new, "{case}: TLS 1.3");
    }
}

#[test]
fn a_host_has_ciphers_of_its_own() {
    let backend = Backend::mirror();
    let mut l7 = to(&[backend.addr]);
    let suites = vec![Cipher::EcdsaAes256];
    let strict = Server { ciphers: Some(Ciphers { suites, order: CipherOrder::Ours }), ..Server::default() };
    l7.servers.insert(HostMatch::Exact("strict.example".to_owned()), strict);
    let rig = Rig::start(l7);
    let suite = |name: &str| {
        let tls = Tls::with(config(None, &[&TLS12]), rig.https, name).expect("handshake");
        tls.0.conn.negotiated_cipher_suite().expect("negotiated").suite()
    };

    use rustls::CipherSuite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 as AES_128,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 as AES_256,
    };
    assert_eq!((suite("strict.example"), suite("other.example")), (AES_256, AES_128));
}

#[test]
fn sessions_are_resumed_on_every_worker_unless_that_is_off() {
    let backend = Backend::mirror();
    let policy = TlsPolicy::default();
    let cases = [
        ("tickets", policy.clone(), true),
        ("cache", TlsPolicy { resumption: Resumption::Cache(100), ..policy.clone() }, true),
        ("off", TlsPolicy { resumption: Resumption::Off, ..policy }, false),
    ];
    for (case, policy, resumes) in cases {
        for version in [&TLS12, &TLS13] {
            let rig = Rig::with_workers(with_tls(backend.addr, policy.clone()), 2);
            let config = config(None, &[version]);
            for round in 0..6 {
                let mut tls = Tls::with(config.clone(), rig.https, "a.example").expect("handshake");
                assert_eq!(tls.is_resumed(), resumes && round > 0, "{case} {version:?}, round {round}");
                // Tickets of TLS 1.3 come after the handshake.
                assert_eq!(tls.status("a.example", "/"), 200);
            }
        }
    }
}

#[test]
fn sessions_survive_changes_and_the_process_that_began_them() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let config = config(None, &[&TLS13]);
    assert_eq!(Tls::with(config.clone(), rig.https, "a").expect("handshake").status("a", "/"), 200);
    rig.publish(to(&[Backend::mirror().addr]));
    let mut changed = Tls::with(config.clone(), rig.https, "a").expect("handshake");
    assert!(changed.is_resumed());
    assert_eq!(changed.status("a", "/"), 200);

    let keys = penstock::l7::TicketKeys::from_bytes(&rig.running.ticket_keys().to_bytes());
    let successor = Rig::inheriting(to(&[backend.addr]), keys);

    assert!(Tls::with(config, successor.https, "a").expect("handshake").is_resumed());
}

#[test]
fn an_unknown_name_is_rejected_where_that_is_asked_for() {
    let backend = Backend::mirror();
    let policy = TlsPolicy { unknown_name: UnknownName::Reject, ..TlsPolicy::default() };
    let mut l7 = with_tls(backend.addr, policy);
    l7.servers.insert(HostMatch::Exact("known.example".to_owned()), Server::default());
    l7.servers.insert(HostMatch::Wildcard("wild.example".to_owned()), Server::default());
    let rig = Rig::start(l7);
    let said = |name: &str| match Tls::with(config(None, &[&TLS13]), rig.https, name) {
        Ok(_) => "welcome".to_owned(),
        Err(error) => error.to_string(),
    };

    assert_eq!(said("known.example"), "welcome");
    assert_eq!(said("a.wild.example"), "welcome");
    for name in ["other.example", "a.b.wild.example", "127.0.0.1"] {
        assert!(said(name).contains("UnrecognisedName"), "{name}: {}", said(name));
    }
}

#[test]
fn what_is_no_tls_on_the_tls_port_is_told_so_and_holds_nothing_up() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let ask = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(rig.https).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.write_all(bytes).expect("send");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };

    let page = String::from_utf8(ask(GET.as_bytes())).expect("text");
    let alert = ask(b"\x00\x01something else\r\n");
    // Whatever the client still sends, no reset overtakes the page.
    let body = "x".repeat(1 << 20);
    let long = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let long = String::from_utf8(ask(long.as_bytes())).expect("text");

    assert!(page.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{page}");
    assert!(page.contains("The plain HTTP request was sent to HTTPS port"), "{page}");
    assert_eq!(long, page);
    assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn tls_is_handed_on_by_its_name_and_never_opened() {
    // The upstream is a proxy of its own, with its own certificate, behind which a mirror stands.
    let mirror = Backend::mirror();
    let upstream = Rig::start(to(&[mirror.addr]));
    let mut l7 = to(&[upstream.https]);
    let (name, _) = l7.upstreams.first_key_value().expect("one upstream");
    l7.passthrough = [("pass.example".to_owned(), name.clone())].into();
    let rig = Rig::start(l7);

    let mut passed = Tls::connect(rig.https, "PASS.example");
    let text = passed.ask("GET /through HTTP/1.1\r\nHost: pass.example\r\nConnection: close\r\n\r\n");
    let own = Tls::connect(rig.https, "other.example");

    assert!(text.contains("GET /through HTTP/1.1"), "{text}");
    let chain = |tls: &Tls| tls.0.conn.peer_certificates().expect("certificates")[0].to_vec();
    assert_eq!(chain(&passed), chain(&Tls::connect(upstream.https, "pass.example")));
    assert_ne!(chain(&passed), chain(&own));
    let count = |name: &str| {
        let metrics = rig.running.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).expect("metric");
        metric.samples.iter().map(|sample| sample.value).sum::<f64>()
    };
    drop(passed);
    assert_eq!(count("penstock_l7_passthrough_connections_total"), 1.0);
    // Counted at its end.
    let bytes = || (count("penstock_l7_passthrough_bytes_total") > 1000.0).then_some(());
    eventually(DEADLINE, bytes).expect("bytes are counted");
}

#[test]
fn tls_is_handed_on_by_its_client_where_a_service_keeps_clients() {
    let upstreams: Vec<Rig> = (0..4).map(|_| Rig::start(to(&[]))).collect();
    let endpoints: Vec<SocketAddr> = upstreams.iter().map(|rig| rig.https).collect();
    let mut l7 = with_proxy_protocol(endpoints[0], "127.0.0.0/8");
    let (name, _) = l7.upstreams.first_key_value().expect("one upstream");
    l7.passthrough = [("pass.example".to_owned(), name.clone())].into();
    let of_client = Balance::Hash(Expression::parse("$remote_addr").expect("a variable"));
    l7.upstreams.edit(|_, upstream| {
        upstream.endpoints = endpoints.iter().copied().collect();
        upstream.balance = of_client.clone();
    });
    let rig = Rig::start(l7);
    let shown = |client: usize| {
        let mut stream = TcpStream::connect(rig.https).expect("connect");
        let header = format!("PROXY TCP4 192.0.2.{client} 203.0.113.7 40000 443\r\n");
        stream.write_all(header.as_bytes()).expect("send");
        let tls = Tls::over(stream, config(None, rustls::ALL_VERSIONS), "pass.example").expect("handshake");
        tls.0.conn.peer_certificates().expect("certificates")[0].to_vec()
    };

    let first: Vec<_> = (1..=24).map(shown).collect();
    let again: Vec<_> = (1..=24).map(shown).collect();

    assert_eq!(first, again, "each client comes back to its endpoint");
    assert!(first.iter().any(|certificate| *certificate != first[0]), "and not all to one");
}

#[test]
fn what_becomes_of_tls_that_is_handed_on_is_explained() {
    let mut l7 = to(&["127.0.0.1:8443".parse().expect("an address")]);
    let (name, _) = l7.upstreams.first_key_value().expect("one upstream");
    l7.passthrough = [("pass.example".to_owned(), name.clone())].into();
    let explained = |scheme: Scheme| {
        let request = Request {
            scheme,
            host: "PASS.example.:443".to_owned(),
            target: "/".to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
            client: [127, 0, 0, 1].into(),
        };
        explain(&l7, None, &Default::default(), &request)
    };

    let (opened, handed_on) = (explained(Scheme::Http), explained(Scheme::Https));

    let name_of = |step: &Step| step.name.clone();
    let steps: Vec<_> = handed_on.steps.iter().map(name_of).collect();
    assert_eq!(steps, ["host", "passthrough", "upstream"]);
    assert_eq!(handed_on.steps[2].detail, "default-echo-80: 1 ready endpoints [127.0.0.1:8443]");
    assert_eq!(handed_on.verdict, "handed on to default-echo-80");
    assert!(opened.verdict.starts_with("proxied to"), "{}", opened.verdict);
}

#[test]
fn tls_to_be_handed_on_is_closed_where_nobody_takes_it() {
    let mut l7 = to(&[]);
    let (name, _) = l7.upstreams.first_key_value().expect("one upstream");
    l7.passthrough = [("pass.example".to_owned(), name.clone())].into();
    let rig = Rig::start(l7);

    assert!(Tls::with(config(None, rustls::ALL_VERSIONS), rig.https, "pass.example").is_err());
    assert_eq!(refused(&rig, "no-endpoint"), 1.0);
}
