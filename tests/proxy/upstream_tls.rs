//! TLS towards upstreams: any certificate unless one has to be verified, and the sessions kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use penstock::model::ObjectName;
use penstock::model::l7::{Certificate, Filters, Protocol, Retry, TlsVersions};
use penstock::model::upstream::{UpstreamTls, Verify};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::rig::{Rig, to_with};
use crate::tls_client::Identity;

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn any_certificate_will_do_and_no_name_is_sent_unless_asked() {
    let backend = TlsBackend::start(&Chain::new("whoever", 0), None);
    let rig = Rig::start(to_with(&[backend.addr], https(UpstreamTls::default())));

    let reply = rig.ask(GET);

    assert_eq!((reply.status, reply.text().as_str()), (200, "sni None, client None"));
}

#[test]
fn the_name_that_was_asked_for_is_sent() {
    let backend = TlsBackend::start(&Chain::new("whoever", 0), None);
    let tls = UpstreamTls { server_name: Some("inner.example".to_owned()), ..UpstreamTls::default() };
    let rig = Rig::start(to_with(&[backend.addr], https(tls)));

    assert_eq!(rig.ask(GET).text(), "sni Some(\"inner.example\"), client None");
}

#[test]
fn a_certificate_that_does_not_prove_what_it_must_is_502() {
    let chain = Chain::new("inner.example", 0);
    let deep = Chain::new("inner.example", 2);
    let other = Chain::new("inner.example", 0);
    let cases = [
        ("right", &chain, verify(&chain, "inner.example", 1), 200),
        ("another name", &chain, verify(&chain, "outer.example", 1), 502),
        ("another authority", &chain, verify(&other, "inner.example", 1), 502),
        ("two intermediates of one", &deep, verify(&deep, "inner.example", 1), 502),
        ("two intermediates of two", &deep, verify(&deep, "inner.example", 2), 200),
    ];
    for (case, chain, verify, expected) in cases {
        let backend = TlsBackend::start(chain, None);
        let tls = UpstreamTls { verify: Some(verify), ..UpstreamTls::default() };

        let reply = Rig::start(to_with(&[backend.addr], https(tls))).ask(GET);

        assert_eq!(reply.status, expected, "{case}");
    }
}

#[test]
fn a_certificate_that_is_listed_itself_is_trusted() {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(["inner.example".to_owned()]).expect("params");
    // As `openssl req -x509` makes them.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("self-signed").pem();
    let chain = Chain { root_pem: pem.clone(), chain_pem: pem, key_pem: key.serialize_pem() };
    let backend = TlsBackend::start(&chain, None);
    let tls = UpstreamTls { verify: Some(verify(&chain, "inner.example", 1)), ..UpstreamTls::default() };

    assert_eq!(Rig::start(to_with(&[backend.addr], https(tls))).ask(GET).status, 200);
}

#[test]
fn our_certificate_is_shown_to_an_upstream_that_asks() {
    let authority = Chain::new("us", 0);
    let backend = TlsBackend::start(&Chain::new("whoever", 0), Some(&authority));
    let identity = Certificate {
        secret: ObjectName::new("default", "us"),
        chain_pem: authority.chain_pem.clone().into_bytes(),
        key_pem: authority.key_pem.clone().into_bytes(),
        not_after: i64::MAX,
        leaf: Default::default(),
    };
    let tls = UpstreamTls { identity: Some(Arc::new(identity)), ..UpstreamTls::default() };

    assert_eq!(
        Rig::start(to_with(&[backend.addr], https(tls))).ask(GET).text(),
        "sni None, client Some(\"us\")"
    );
    // Without one the upstream refuses, which is its answer to a connection, not to a request.
    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        let tls = UpstreamTls { versions, ..UpstreamTls::default() };
        let rig = Rig::start(to_with(&[backend.addr], https(tls)));

        assert_eq!(rig.ask(GET).status, 502);

        let metrics = rig.running.metrics();
        let failures = metrics.iter().find(|metric| metric.name == "penstock_l7_upstream_failures_total");
        let told = failures.expect("a metric").samples.iter().filter(|sample| sample.value > 0.0);
        let causes: Vec<_> =
            told.flat_map(|sample| &sample.labels).map(|(_, cause)| cause.as_str()).collect();
        assert_eq!(causes, ["tls"], "{versions:?}");
    }
}

#[test]
fn an_upstream_that_speaks_no_tls_is_502() {
    let plain = crate::rig::Backend::start(|mut peer| {
        peer.exactly(5);
        peer.try_send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let rig = Rig::start(to_with(&[plain.addr], https(UpstreamTls::default())));

    assert_eq!(rig.ask(GET).status, 502);
}

#[test]
fn auto_http_follows_the_scheme_of_the_client() {
    let plain = crate::rig::Backend::mirror();
    let filters = Filters { protocol: Protocol::AutoHttp, ..https(UpstreamTls::default()) };

    assert_eq!(Rig::start(to_with(&[plain.addr], filters)).ask(GET).status, 200);
}

#[test]
fn connections_are_kept_and_new_ones_resume_the_session() {
    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        let backend = TlsBackend::start(&Chain::new("whoever", 0), None);
        let tls = UpstreamTls { versions, ..UpstreamTls::default() };
        let l7 = to_with(&[backend.addr], https(tls));
        let rig = Rig::start(l7.clone());

        for _ in 0..5 {
            assert_eq!(rig.ask(GET).status, 200);
        }
        assert_eq!(backend.connections(), 1, "{versions:?}");
        // Another snapshot with the same TLS goes on with the same client, and so with its sessions.
        rig.publish(l7);
        assert_eq!(rig.ask("GET /close HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
        assert_eq!(rig.ask(GET).status, 200);

        assert_eq!((backend.connections(), backend.resumed()), (2, 1), "{versions:?}");
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_504() {
    let silent = crate::rig::Backend::start(|mut peer| drop(peer.rest()));
    let filters = Filters {
        connect_timeout: Duration::from_millis(100),
        retry: Retry { tries: 1, ..Retry::default() },
        ..https(UpstreamTls::default())
    };

    assert_eq!(Rig::start(to_with(&[silent.addr], filters)).ask(GET).status, 504);
}

#[test]
fn large_bodies_pass_both_ways() {
    const SIZE: usize = 3 << 20;
    let backend = TlsBackend::start(&Chain::new("whoever", 0), None);
    let rig = Rig::start(to_with(&[backend.addr], https(UpstreamTls::default())));
    let body: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let mut client = rig.client();
    let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");

    client.send([head.as_bytes(), &body].concat());

    assert!(client.reply().body == body);
}

pub fn https(tls: UpstreamTls) -> Filters {
    Filters {
        protocol: Protocol::Https,
        upstream_tls: Arc::new(tls),
        max_body_bytes: None,
        ..Filters::default()
    }
}

pub fn verify(chain: &Chain, name: &str, depth: u32) -> Verify {
    Verify { roots_pem: chain.root_pem.clone().into_bytes(), name: name.to_owned(), depth }
}

/// A certificate with its authority and as many others between them as wanted.
pub struct Chain {
    pub root_pem: String,
    pub chain_pem: String,
    pub key_pem: String,
}

impl Chain {
    /// One certificate as it is.
    pub fn of(identity: &Identity, authority: &str) -> Self {
        let pem = |label: &str, der: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
        };
        Self {
            root_pem: authority.to_owned(),
            chain_pem: pem("CERTIFICATE", &identity.chain[0]),
            key_pem: pem("PRIVATE KEY", identity.key.secret_der()),
        }
    }

    pub fn new(name: &str, intermediates: usize) -> Self {
        let authority = |number: usize| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, format!("Authority {number}"));
            (params, KeyPair::generate().expect("key"))
        };
        let (params, key) = authority(0);
        let root_pem = params.self_signed(&key).expect("root").pem();
        let mut issuer = Issuer::new(params, key);
        let mut between = Vec::new();
        for number in 1..=intermediates {
            let (params, key) = authority(number);
            between.push(params.signed_by(&key, &issuer).expect("intermediate").pem());
            issuer = Issuer::new(params, key);
        }
        let mut params = CertificateParams::new([name.to_owned()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &issuer).expect("leaf").pem();
        between.push(leaf);
        between.reverse();
        Self { root_pem, chain_pem: between.concat(), key_pem: key.serialize_pem() }
    }
}

/// Answers with the name it was asked for and the client's certificate; `/echo` with the body.
pub struct TlsBackend {
    pub addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    resumed: Arc<Mutex<usize>>,
}

impl TlsBackend {
    pub fn start(chain: &Chain, clients: Option<&Chain>) -> Self {
        let config = server_config(chain, clients);
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let addr = listener.local_addr().expect("bound");
        let (connections, resumed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(0)));
        let counts = (Arc::clone(&connections), Arc::clone(&resumed));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counts.0.fetch_add(1, Ordering::SeqCst);
                let session = ServerConnection::new(Arc::clone(&config)).expect("session");
                let resumed = Arc::clone(&counts.1);
                std::thread::spawn(move || serve(StreamOwned::new(session, stream), &resumed));
            }
        });
        Self { addr, connections, resumed }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn resumed(&self) -> usize {
        *self.resumed.lock().expect("counter")
    }
}

/// A server with this chain that asks its clients for certificates below another one, if there is one.
pub fn server_config(chain: &Chain, clients: Option<&Chain>) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(clients.root_pem.as_bytes()).expect("pem"))
                .expect("root");
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().expect("verifier"))
        }
    };
    let chain_der =
        CertificateDer::pem_slice_iter(chain.chain_pem.as_bytes()).collect::<Result<_, _>>().expect("chain");
    let key = PrivateKeyDer::from_pem_slice(chain.key_pem.as_bytes()).expect("key");
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("key");
    let identity = SingleCertAndKey::from(CertifiedKey::new(chain_der, key));
    Arc::new(config.with_cert_resolver(Arc::new(identity)))
}

fn serve(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>, resumed: &Mutex<usize>) {
    let mut read = Vec::new();
    let mut is_first = true;
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(n) => read.extend_from_slice(&bytes[..n]),
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end);
        if std::mem::take(&mut is_first)
            && stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
        {
            *resumed.lock().expect("counter") += 1;
        }
        let mut body = vec![0; crate::rig::length_of(&head)];
        let here = body.len().min(read.len());
        body[..here].copy_from_slice(&read[..here]);
        read.drain(..here);
        if stream.read_exact(&mut body[here..]).is_err() {
            return;
        }
        if !head.starts_with("POST /echo") {
            let client = stream.conn.peer_certificates().map(|chain| {
                let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("x509");
                let name = leaf.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok());
                name.expect("a name").to_owned()
            });
            body = format!("sni {:?}, client {client:?}", stream.conn.server_name()).into_bytes();
        }
        let close = head.starts_with("GET /close");
        let connection = if close { "Connection: close\r\n" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: {}\r\n\r\n", body.len());
        if stream.write_all(&[answer.as_bytes(), &body].concat()).is_err() || close {
            stream.conn.send_close_notify();
            let _ = stream.flush();
            return;
        }
    }
}
