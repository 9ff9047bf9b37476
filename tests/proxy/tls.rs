//! Certificates by SNI, and their change under living connections.

use std::sync::Arc;

use lb_tests::agent::eventually;
use lb_tests::manifests;
use penstock::model::ObjectName;
use penstock::model::l7::{Certificate, HostMatch, L7};
use rcgen::{CertificateParams, DnType, KeyPair};

use crate::rig::{Backend, DEADLINE, Rig, to};
use crate::takeover::Agents;
use crate::tls_client::{Tls, config};

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
fn clients_speak_what_they_offer_and_strangers_nothing() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let offering = |protocols: &[&str]| {
        let mut config = Arc::unwrap_or_clone(config(None, rustls::ALL_VERSIONS));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Tls::with(Arc::new(config), rig.https, "a.example")
    };
    for protocol in ["http/1.1", "http/1.0"] {
        let mut client = offering(&["foo", protocol]).expect("a session");
        assert_eq!(client.0.conn.alpn_protocol(), Some(protocol.as_bytes()));
        assert_eq!(client.status("a.example", "/"), 200, "{protocol}");
    }
    assert!(offering(&["foo"]).is_err());
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

/// An Ingress of this name and host, and its Secret with a certificate for these years.
fn with_secret(name: &str, from: i32, until: i32) -> String {
    let host = format!("{name}.example.com");
    let mut params = CertificateParams::new(vec![host.clone()]).expect("names");
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().expect("key");
    let certificate = params.self_signed(&key).expect("certificate").pem();
    let entry = |pem: &str| serde_json::to_string(pem).expect("a string");
    format!(
        "{}---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: {name}}}\nstringData:\n  \
         tls.crt: {}\n  tls.key: {}\n",
        manifests::ingress(name, &host, "web", Some(name)),
        entry(&certificate),
        entry(&key.serialize_pem())
    )
}

#[test]
fn an_agent_tells_of_certificates_that_clients_refuse_and_why_a_host_has_the_default_one() {
    let backend = Backend::mirror();
    let agents = Agents::start(backend.addr, &[]);
    let explained = |host: &str| agents.admin(&format!("/explain?url=https://{host}.example.com/")).text();

    let broken = with_secret("broken", 2000, 2100).replace("CERTIFICATE", "CERT");
    let missing = manifests::ingress("missing", "missing.example.com", "web", Some("missing"));
    for (name, text) in [
        ("over.yaml", with_secret("over", 2000, 2001)),
        ("early.yaml", with_secret("early", 2099, 2100)),
        ("fine.yaml", with_secret("fine", 2000, 2100)),
        ("broken.yaml", broken),
        ("missing.yaml", missing),
    ] {
        agents.write(name, &text);
    }

    for words in
        ["the certificate is over since", "the certificate is valid in", "written, but cannot be used"]
    {
        agents.wait_for(words);
    }
    let status = || agents.admin("/status").text();
    let all = eventually(DEADLINE, || Some(status()).filter(|text| text.contains("create the Secret with")));
    let text = all.expect("the missing one");
    for words in [
        "Secret default/over (over.yaml#2): data.tls.crt: the certificate is over since",
        "Secret default/early (early.yaml#2): data.tls.crt: the certificate is valid in",
        "Secret default/broken is written, but cannot be used: broken.example.com is served with",
        "correct the Secret as its own problem says",
        "Secret default/missing does not exist: missing.example.com is served with",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let metrics = agents.admin("/metrics").text();
    let line = "penstock_translate_problems{reason=\"expired-certificate\",severity=\"error\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let cases = [
        ("over", "that of over.example.com: Secret default/over, over; the certificate is over since"),
        ("early", "that of early.example.com: Secret default/early, good for"),
        ("fine", "that of fine.example.com: Secret default/fine, good for"),
        ("broken", "because Ingress default/broken (broken.yaml#1): Secret default/broken is written, but"),
        (
            "missing",
            "because Ingress default/missing (missing.yaml#1): Secret default/missing does not exist",
        ),
        ("unheard-of", "because no Ingress brings one for this host"),
    ];
    for (host, expected) in cases {
        assert!(explained(host).contains(expected), "{host}: {}", explained(host));
    }

    agents.write("over.yaml", &with_secret("over", 2000, 2100));
    let renewed = || (!status().contains("is over since")).then_some(());
    assert!(eventually(DEADLINE, renewed).is_some(), "{}", status());
}
