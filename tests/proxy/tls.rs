//! Certificates by SNI, and their change under living connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use penstock::model::ObjectName;
use penstock::model::l7::{Certificate, HostMatch, L7};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::rig::{Backend, DEADLINE, Rig, to};

#[test]
fn the_certificate_follows_the_name_exact_then_wildcard_then_default() {
    let backend = Backend::mirror();
    let mut l7 = to(&[backend.addr]);
    certify(&mut l7, HostMatch::Exact("a.example.com".to_owned()), "exact");
    certify(&mut l7, HostMatch::Wildcard("example.com".to_owned()), "wildcard");
    let rig = Rig::start(l7);
    let cases = [
        ("a.example.com", "exact"),
        ("A.EXAMPLE.com", "exact"),
        ("b.example.com", "wildcard"),
        ("x.b.example.com", "Kubernetes Ingress Controller Fake Certificate"),
        ("example.com", "Kubernetes Ingress Controller Fake Certificate"),
        ("other.org", "Kubernetes Ingress Controller Fake Certificate"),
    ];
    for (name, expected) in cases {
        assert_eq!(Tls::connect(rig.https, name).common_name(), expected, "{name}");
    }
}

#[test]
fn the_upstream_is_told_https_and_443_and_the_client_gets_hsts() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    let text = Tls::connect(rig.https, "a.example")
        .ask("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");

    assert!(text.contains("\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\n"), "{text}");
    assert!(
        text.contains("\r\nStrict-Transport-Security: max-age=31536000; includeSubDomains\r\n"),
        "{text}"
    );
}

#[test]
fn a_new_certificate_is_served_at_once_and_old_connections_live_on() {
    let backend = Backend::mirror();
    let host = HostMatch::Exact("a.example.com".to_owned());
    let mut l7 = to(&[backend.addr]);
    certify(&mut l7, host.clone(), "before");
    let rig = Rig::start(l7.clone());
    let mut old = Tls::connect(rig.https, "a.example.com");
    assert_eq!(old.common_name(), "before");

    certify(&mut l7, host, "after");
    rig.publish(l7);
    let started = std::time::Instant::now();
    while Tls::connect(rig.https, "a.example.com").common_name() != "after" {
        assert!(started.elapsed() < DEADLINE, "the new certificate never came");
    }

    let text = old.ask("GET /still HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(text.contains("GET /still HTTP/1.1"), "{text}");
}

fn certify(l7: &mut L7, host: HostMatch, common_name: &str) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec![]).expect("params");
    params.distinguished_name.push(DnType::CommonName, common_name);
    let certificate = params.self_signed(&key).expect("self-signed");
    let certificate = Certificate {
        secret: ObjectName::new("default", common_name),
        chain_pem: certificate.pem().into_bytes(),
        key_pem: key.serialize_pem().into_bytes(),
        not_after: i64::MAX,
    };
    l7.certificates.insert(host, Arc::new(certificate));
}

/// A client that trusts everybody, because the test looks at the certificate itself.
struct Tls(StreamOwned<ClientConnection, TcpStream>);

impl Tls {
    fn connect(addr: SocketAddr, name: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut session = ClientConnection::new(Arc::new(config), name).expect("session");
        let mut stream = TcpStream::connect(addr).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        while session.is_handshaking() {
            session.complete_io(&mut stream).expect("handshake");
        }
        Self(StreamOwned::new(session, stream))
    }

    fn common_name(&self) -> String {
        let chain = self.0.conn.peer_certificates().expect("certificates");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("x509");
        leaf.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).expect("cn").to_owned()
    }

    fn ask(&mut self, request: &str) -> String {
        self.0.write_all(request.as_bytes()).expect("send");
        let mut text = Vec::new();
        let _ = self.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
