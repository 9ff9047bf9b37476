//! Certificates by SNI, and their change under living connections.

use std::sync::Arc;

use penstock::model::ObjectName;
use penstock::model::l7::{Certificate, HostMatch, L7};
use rcgen::{CertificateParams, DnType, KeyPair};

use crate::rig::{Backend, DEADLINE, Rig, to};
use crate::tls_client::Tls;

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
        leaf: Default::default(),
    };
    l7.certificates.insert(host, Arc::new(certificate));
}
