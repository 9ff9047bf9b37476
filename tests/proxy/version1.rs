//! Certificates that OpenSSL takes and the TLS library does not: of X.509 version 1, as `openssl x509 -req` makes them where
//! it is given no extensions, with critical extensions that nobody knows, and with short keys.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use penstock::model::ObjectName;
use penstock::model::l7::policy::External;
use penstock::model::l7::{Certificate, ClientAuth, Demand, HostMatch, TlsVersions};
use penstock::model::upstream::UpstreamTls;
use rcgen::{CustomExtension, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use x509_parser::asn1_rs::{Any, Class, FromDer};

use crate::client_auth::{guarded, lists_are_asked, verify};
use crate::external_auth::{self, external};
use crate::rig::{Backend, Rig, to, to_with};
use crate::tls_client::{Ca, Identity, Tls, config};
use crate::upstream_tls::{Chain, TlsBackend, https, verify as proven};

const HOST: &str = "secure.example";
const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn a_host_shows_a_certificate_of_version_1() {
    let backend = Backend::mirror();
    let Chain { chain_pem, key_pem, .. } = Chain::of(&plain(&Ca::new("Good"), 1), "");
    let certificate = Certificate {
        secret: ObjectName::new("default", "tls"),
        chain_pem: chain_pem.into_bytes(),
        key_pem: key_pem.into_bytes(),
        not_after: i64::MAX,
        leaf: Default::default(),
    };
    let mut l7 = to(&[backend.addr]);
    l7.certificates.insert(HostMatch::Exact(HOST.to_owned()), Arc::new(certificate));

    assert_eq!(Tls::connect(Rig::start(l7).https, HOST).common_name(), "client");
}

#[test]
fn a_client_of_version_1_is_let_in_if_an_authority_of_the_bundle_vouches_for_it() {
    let (ca, namesake, posing) = (Ca::new("Good"), Ca::new("Good"), Ca::posing("Posing"));
    let below = ca.below("Below");
    let broken = |at: usize| {
        let mut identity = plain(&ca, 1);
        let mut der = identity.chain[0].to_vec();
        let at = if at == 0 { der.len() - 1 } else { at };
        der[at] ^= 1;
        identity.chain[0] = CertificateDer::from(der);
        identity
    };
    let old = version_1(&ca, &ca.issue("client", 2001));
    let between = {
        // The authority between the two is of version 1.
        let mut identity = below.issue("client", 2200);
        identity.chain[1] = CertificateDer::from(stripped(&below.certificate, ca.issuer.key()));
        identity
    };
    let unknown = |is_critical| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(is_critical);
        ca.issue_with("client", 2200, 1, vec![extension])
    };
    let cases = [
        ("as it should be", plain(&ca, 1), 200),
        ("of somebody of another name", plain(&Ca::new("Other"), 1), 400),
        ("of somebody of the same name", plain(&namesake, 1), 400),
        ("of one who is no authority", plain(&posing, 1), 400),
        ("of an authority between", plain(&below, 1), 400),
        ("by an authority between of version 1", between, 400),
        ("with a broken signature", broken(0), 400),
        ("changed after it was signed", broken(serial_at(&plain(&ca, 1).chain[0])), 400),
        ("expired", old, 400),
        ("version 3, an unknown extension", unknown(false), 200),
        ("version 3, an unknown critical extension", unknown(true), 400),
    ];
    let backend = Backend::mirror();
    let mut verify = verify(&ca, Demand::Required);
    verify.trust.as_mut().expect("trusts").ca_pem = [ca.pem.as_bytes(), posing.pem.as_bytes()].concat();
    let rig = Rig::start(guarded(&backend, ClientAuth::Verify(Box::new(verify))));
    for (case, identity, status) in cases {
        for version in [&TLS12, &TLS13] {
            let identity = Identity { chain: identity.chain.clone(), key: identity.key.clone_key() };
            let tls = Tls::with(config(Some(identity), &[version]), rig.https, HOST);

            let mut tls = tls.unwrap_or_else(|error| panic!("{case} {version:?}: {error}"));
            assert_eq!(tls.status(HOST, "/"), status, "{case} {version:?}");
        }
    }
}

#[test]
fn a_client_of_version_1_is_looked_for_in_the_lists_of_its_authority() {
    let ca = Ca::new("Good");
    let both = [ca.revoke(&[7], 2002), ca.revoke(&[], 2200)].concat();
    let more = [
        ("an old list that names it and a new one", both, 7, 400),
        ("a list by somebody of the same name", Ca::new("Good").revoke(&[], 2200), 8, 400),
    ];

    lists_are_asked(&ca, &more, |serial| plain(&ca, serial));
}

#[test]
fn an_upstream_may_show_any_certificate_unless_it_has_to_prove_something() {
    let ca = Ca::new("Good");
    let mut critical = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    critical.set_criticality(true);
    let cases = [
        ("version 1", plain(&ca, 1)),
        ("an unknown critical extension", ca.issue_with("client", 2200, 1, vec![critical])),
    ];
    for (case, identity) in cases {
        let chain = Chain::of(&identity, &ca.pem);
        let backend = TlsBackend::start(&chain, None);
        for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
            let any = UpstreamTls { versions, ..UpstreamTls::default() };
            let verify = UpstreamTls { verify: Some(proven(&chain, "client", 1)), ..any.clone() };

            let statuses =
                [any, verify].map(|tls| Rig::start(to_with(&[backend.addr], https(tls))).ask(GET).status);

            assert_eq!(statuses, [200, 502], "{case} {versions:?}");
        }
        let plain = Backend::mirror();
        let service =
            External { tls: true, ..external(&format!("localhost:{}", backend.addr.port()), "/check") };
        let rig = Rig::start(external_auth::guarded(&plain, service));
        assert_eq!(rig.ask(GET).status, 200, "{case}, who is asked whom to let in");
    }
}

#[test]
fn an_upstream_may_have_a_key_that_is_too_short_to_be_verified() {
    let has_openssl = || match Command::new("openssl").arg("version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("openssl: {error}")),
    };
    if !lb_tests::tier::require("proxy", has_openssl) {
        return;
    }
    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        let server = OpenSsl::start();
        let tls = UpstreamTls { versions, ..UpstreamTls::default() };
        let rig = Rig::start(to_with(&[([127, 0, 0, 1], server.port).into()], https(tls)));

        assert_eq!(rig.ask(GET).status, 200, "{versions:?}");
    }
}

/// `openssl s_server`, which answers with a page about its handshake, by an RSA key of 1024 bits.
struct OpenSsl {
    process: Child,
    port: u16,
    _files: tempfile::TempDir,
}

impl OpenSsl {
    fn start() -> Self {
        let files = tempfile::tempdir().expect("a folder");
        let make =
            "req -x509 -newkey rsa:1024 -nodes -keyout key.pem -out cert.pem -subj /CN=short -days 36500";
        let made = Command::new("openssl").args(make.split(' ')).current_dir(files.path()).output();
        assert!(made.expect("openssl").status.success(), "a certificate");
        let serve =
            "s_server -accept 127.0.0.1:0 -www -key key.pem -cert cert.pem -cipher DEFAULT@SECLEVEL=0";
        let mut process = Command::new("openssl")
            .args(serve.split(' '))
            .current_dir(files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let accepts = |line: std::io::Result<String>| {
            let line = line.expect("text");
            line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.trim().parse().ok()
        };
        let port = lines.into_iter().find_map(accepts).expect("its port");
        Self { process, port, _files: files }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of version 1, by an authority, good until 2200.
fn plain(ca: &Ca, serial: u64) -> Identity {
    version_1(ca, &ca.issue_numbered("client", 2200, serial))
}

fn version_1(ca: &Ca, identity: &Identity) -> Identity {
    let mut chain = identity.chain.clone();
    chain[0] = CertificateDer::from(stripped(&chain[0], ca.issuer.key()));
    Identity { chain, key: identity.key.clone_key() }
}

/// A certificate of version 3 without its version and its extensions, which makes one of version 1, signed anew.
fn stripped(certificate: &[u8], signer: &impl SigningKey) -> Vec<u8> {
    let (_, whole) = Any::from_der(certificate).expect("a certificate");
    let (rest, body) = Any::from_der(whole.data).expect("what is signed");
    let (signature, _) = Any::from_der(rest).expect("by what");
    let algorithm = &rest[..rest.len() - signature.len()];
    let (mut fields, mut left) = (Vec::new(), body.data);
    while !left.is_empty() {
        let (after, field) = Any::from_der(left).expect("a field");
        if field.class() == Class::Universal {
            fields.extend_from_slice(&left[..left.len() - after.len()]);
        }
        left = after;
    }
    let body = tagged(0x30, &fields);
    let signature = signer.sign(&body).expect("signed");
    let signature = tagged(0x03, &[&[0], &signature[..]].concat());
    tagged(0x30, &[&body[..], algorithm, &signature].concat())
}

/// DER of a tag with contents of less than 64 KB.
fn tagged(tag: u8, contents: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(contents.len()).expect("short").to_be_bytes();
    let length = match (high, low) {
        (0, 0..=127) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag], &length[..], contents].concat()
}

/// Where the serial number of a certificate of version 1 is.
fn serial_at(certificate: &[u8]) -> usize {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("x509");
    let serial = parsed.raw_serial();
    serial.as_ptr() as usize - certificate.as_ptr() as usize
}
