//! Certificates that OpenSSL takes and the TLS library does not: of X.509 version 1, as `openssl x509 -req` makes them where
//! it is given no extensions, those of authorities shown as one's own, with critical extensions that nobody knows, with short
//! keys, and with names where only old software looks for them. And revocation lists without extensions.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use penstock::model::ObjectName;
use penstock::model::l7::policy::External;
use penstock::model::l7::{Certificate, ClientAuth, Demand, HostMatch, TlsVersions};
use penstock::model::upstream::UpstreamTls;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, SanType, SigningKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
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
        ("of an authority between", plain(&below, 1), 200),
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
fn lists_without_extensions_and_without_an_end_are_asked() {
    let ca = Ca::new("Good");
    // Of a list: version, algorithm, issuer, this update, next update, what is revoked, extensions.
    let shapes: [(&str, &[usize], u16); 4] = [
        ("of version 1", &[0, EXTENSIONS], 400),
        ("of version 1 without an end", &[0, 4, EXTENSIONS], 200),
        ("of version 2 without extensions", &[EXTENSIONS], 400),
        ("of version 2 without an end", &[4], 200),
    ];
    for (shape, left_out, of_2002) in shapes {
        let plain = |list: String, signer: &Ca| {
            let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).expect("a list");
            without(&list, signer.issuer.key(), |place, is_extension| {
                left_out.contains(&place) || (is_extension && left_out.contains(&EXTENSIONS))
            })
        };
        let namesake = Ca::new("Good");
        let mut broken = plain(ca.revoke(&[], 2200), &ca);
        *broken.last_mut().expect("a signature") ^= 1;
        let mut changed = plain(ca.revoke(&[7], 2200), &ca);
        let serial = changed.windows(3).position(|bytes| bytes == [2, 1, 7]).expect("the number");
        changed[serial + 2] = 8;
        let both =
            [pem_list(&plain(ca.revoke(&[7], 2200), &ca)), Ca::new("Other").revoke(&[], 2200)].concat();
        let cases = [
            ("revoked", pem_list(&plain(ca.revoke(&[7], 2200), &ca)), 7, 400),
            ("another one revoked", pem_list(&plain(ca.revoke(&[7], 2200), &ca)), 8, 200),
            ("none revoked", pem_list(&plain(ca.revoke(&[], 2200), &ca)), 8, 200),
            ("old", pem_list(&plain(ca.revoke(&[], 2002), &ca)), 8, of_2002),
            ("revoked, beside another list", both.clone(), 7, 400),
            ("another one revoked, beside another list", both, 8, 200),
            ("of somebody of the same name", pem_list(&plain(namesake.revoke(&[], 2200), &namesake)), 8, 400),
            ("with a broken signature", pem_list(&broken), 8, 400),
            ("changed after it was signed", pem_list(&changed), 7, 400),
        ];
        let backend = Backend::mirror();
        for (case, lists, serial, status) in cases {
            let mut verify = verify(&ca, Demand::Required);
            verify.trust.as_mut().expect("trusts").crl_pem = lists.into_bytes();
            let rig = Rig::start(guarded(&backend, ClientAuth::Verify(Box::new(verify))));
            for identity in [self::plain(&ca, serial), ca.issue_numbered("client", 2200, serial)] {
                let mut tls =
                    Tls::with(config(Some(identity), &[&TLS13]), rig.https, HOST).expect("handshake");

                assert_eq!(tls.status(HOST, "/"), status, "{shape}, {case}");
            }
        }
    }
}

#[test]
fn a_list_that_cannot_be_used_closes_its_host_and_no_other() {
    let ca = Ca::new("Good");
    let mut verify = verify(&ca, Demand::Optional);
    verify.trust.as_mut().expect("trusts").crl_pem = pem_list(&[0x30, 0]).into_bytes();
    let rig = Rig::start(guarded(&Backend::mirror(), ClientAuth::Verify(Box::new(verify))));

    for identity in [None, Some(ca.issue("client", 2200))] {
        let mut tls = Tls::with(config(identity, &[&TLS13]), rig.https, HOST).expect("handshake");
        assert_eq!(tls.status(HOST, "/"), 403);
    }
    assert_eq!(rig.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status, 403, "without TLS");
    assert_eq!(Tls::connect(rig.https, "open.example").status("open.example", "/"), 200);
}

#[test]
fn a_client_may_show_the_certificate_of_an_authority() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    let (ca, other, posing) = (Ca::new("Good"), Ca::new("Other"), Ca::posing("Posing"));
    let below = ca.below("Below");
    let signs = [KeyCertSign, CrlSign];
    let broken = {
        let mut identity = ca.issue_authority(&[], 2200);
        let mut der = identity.chain[0].to_vec();
        *der.last_mut().expect("a signature") ^= 1;
        identity.chain[0] = CertificateDer::from(der);
        identity
    };
    let self_signed = || {
        let (params, key) = (authority(&[], 2200), KeyPair::generate().expect("key"));
        let chain = vec![params.self_signed(&key).expect("self-signed").der().clone()];
        Identity { chain, key: key.serialize_der().try_into().expect("key") }
    };
    let cases = [
        ("nothing said of its key", ca.issue_authority(&[], 2200), 200, 200),
        ("a key for handshakes, too", ca.issue_authority(&[KeyCertSign, DigitalSignature], 2200), 200, 200),
        ("a key for certificates alone", ca.issue_authority(&signs, 2200), 400, 400),
        (
            "a key for those and for servers",
            ca.issue_authority(&[KeyCertSign, KeyEncipherment], 2200),
            400,
            400,
        ),
        ("of an authority between", below.issue_authority(&[], 2200), 200, 200),
        ("expired", ca.issue_authority(&[], 2001), 400, 400),
        ("with a broken signature", broken, 400, 400),
        ("of one who is no authority", posing.issue_authority(&[], 2200), 400, 400),
        ("of a stranger", other.issue_authority(&[], 2200), 400, 200),
        ("of a stranger and expired", other.issue_authority(&[], 2001), 400, 400),
        ("of itself", self_signed(), 400, 200),
    ];
    let backend = Backend::mirror();
    let rig = |demand| {
        let mut verify = verify(&ca, demand);
        verify.trust.as_mut().expect("trusts").ca_pem = [ca.pem.as_bytes(), posing.pem.as_bytes()].concat();
        Rig::start(guarded(&backend, ClientAuth::Verify(Box::new(verify))))
    };
    let (required, any) = (rig(Demand::Required), rig(Demand::OptionalAnyAuthority));
    for (case, identity, of_required, of_any) in cases {
        for (rig, status) in [(&required, of_required), (&any, of_any)] {
            let identity = Identity { chain: identity.chain.clone(), key: identity.key.clone_key() };
            let mut tls = Tls::with(config(Some(identity), &[&TLS13]), rig.https, HOST).expect("handshake");

            assert_eq!(tls.status(HOST, "/"), status, "{case}");
        }
    }
}

#[test]
fn a_revoked_client_is_not_let_in_by_the_certificate_of_an_authority() {
    let ca = Ca::new("Good");

    lists_are_asked(&ca, &[], |serial| ca.issue_params(authority(&[], 2200), serial));
}

#[test]
fn an_upstream_proves_its_name_as_openssl_would_have_it() {
    let ca = Ca::new("Good");
    let limited = {
        let mut params = authority(&[KeyUsagePurpose::KeyCertSign], 2200);
        let subtrees = vec![GeneralSubtree::DnsName("example".to_owned())];
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: subtrees, excluded_subtrees: vec![] });
        Ca::of(params)
    };
    let named = |common: &str, alternative: &[SanType]| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = alternative.to_vec();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2200, 1, 1));
        params
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
    let address = || SanType::IpAddress([10, 0, 0, 1].into());
    let as_authority = |mut params: CertificateParams, usages: &[KeyUsagePurpose]| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        params
    };
    let old = |mut params: CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        params
    };
    let issue = |params| ca.issue_params(params, 1);
    let (up, signs) = ("up.example", KeyUsagePurpose::KeyCertSign);
    let (common, alternative) = (named(up, &[]), named("x", &[dns(up)]));
    let cases = [
        ("a common name", issue(common.clone()), up, 200),
        ("a common name, expired", issue(old(common.clone())), up, 502),
        ("a common name of another", issue(common.clone()), "down.example", 502),
        ("a common name for all hosts", issue(named("*.app.example", &[])), "up.app.example", 200),
        ("a common name beside an address", issue(named(up, &[address()])), up, 200),
        ("a common name beside another name", issue(named(up, &[dns("down.example")])), up, 502),
        ("a common name below limits", limited.issue_params(common.clone(), 1), up, 502),
        ("a common name of a stranger", Ca::new("Good").issue_params(common.clone(), 1), up, 502),
        ("an address", issue(named("x", &[address()])), "10.0.0.1", 200),
        ("version 1", version_1(&ca, &issue(common.clone())), up, 200),
        ("version 1 of another", version_1(&ca, &issue(common.clone())), "down.example", 502),
        ("an authority", issue(as_authority(alternative.clone(), &[])), up, 200),
        ("an authority by its common name", issue(as_authority(common, &[])), up, 200),
        ("an authority and nothing else", issue(as_authority(alternative.clone(), &[signs])), up, 502),
        ("an authority, expired", issue(old(as_authority(alternative.clone(), &[]))), up, 502),
        ("a name below limits", limited.issue_params(alternative, 1), up, 200),
    ];
    for (case, identity, name, status) in cases {
        let chain = Chain::of(&identity, &[&ca.pem[..], &limited.pem].concat());
        let backend = TlsBackend::start(&chain, None);
        let tls = UpstreamTls { verify: Some(proven(&chain, name, 1)), ..UpstreamTls::default() };

        assert_eq!(Rig::start(to_with(&[backend.addr], https(tls))).ask(GET).status, status, "{case}");
    }
}

#[test]
fn an_upstream_may_show_any_certificate_unless_it_has_to_prove_something() {
    let ca = Ca::new("Good");
    let mut critical = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    critical.set_criticality(true);
    let cases = [
        ("version 1", plain(&ca, 1), "another"),
        ("an unknown critical extension", ca.issue_with("client", 2200, 1, vec![critical]), "client"),
    ];
    for (case, identity, name) in cases {
        let chain = Chain::of(&identity, &ca.pem);
        let backend = TlsBackend::start(&chain, None);
        for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
            let any = UpstreamTls { versions, ..UpstreamTls::default() };
            let verify = UpstreamTls { verify: Some(proven(&chain, name, 1)), ..any.clone() };

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

/// What an authority's own certificate says.
fn authority(usages: &[KeyUsagePurpose], until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "An authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages.to_vec();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    params
}

impl Ca {
    /// A certificate that says it is an authority's.
    fn issue_authority(&self, usages: &[KeyUsagePurpose], until: i32) -> Identity {
        self.issue_params(authority(usages, until), 1)
    }
}

fn pem_list(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
}

/// A certificate of version 3 without its version and its extensions, which makes one of version 1, signed anew.
pub fn stripped(certificate: &[u8], signer: &impl SigningKey) -> Vec<u8> {
    without(certificate, signer, |_, is_extension| is_extension)
}

/// Stands for the extensions among the places of fields.
const EXTENSIONS: usize = usize::MAX;

/// Something signed without some of its fields, by their place and whether they are tagged, signed anew.
fn without(signed: &[u8], signer: &impl SigningKey, is_left_out: impl Fn(usize, bool) -> bool) -> Vec<u8> {
    let (_, whole) = Any::from_der(signed).expect("something signed");
    let (rest, body) = Any::from_der(whole.data).expect("what is signed");
    let (signature, _) = Any::from_der(rest).expect("by what");
    let algorithm = &rest[..rest.len() - signature.len()];
    let (mut fields, mut left, mut place) = (Vec::new(), body.data, 0);
    while !left.is_empty() {
        let (after, field) = Any::from_der(left).expect("a field");
        if !is_left_out(place, field.class() != Class::Universal) {
            fields.extend_from_slice(&left[..left.len() - after.len()]);
        }
        (left, place) = (after, place + 1);
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
