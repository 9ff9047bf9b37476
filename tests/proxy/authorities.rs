//! Who in a bundle vouches for whom: clients' certificates and upstreams', as `openssl verify` judges them.

use std::process::Command;

use base64::Engine as _;
use penstock::model::l7::{ClientAuth, Demand};
use penstock::model::upstream::UpstreamTls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;

use crate::client_auth::{guarded, verify};
use crate::rig::{Backend, Rig, to_with};
use crate::tls_client::{Ca, Identity, Tls, config};
use crate::upstream_tls::{Chain, TlsBackend, https, verify as proven};
use crate::version1::stripped;

const HOST: &str = "secure.example";
const NAME: &str = "up.example";

/// What one case shows, and to whom.
struct Case {
    what: &'static str,
    bundle: Vec<CertificateDer<'static>>,
    shown: Identity,
    /// As a client, and as a server.
    is_let_in: [bool; 2],
}

const BOTH: [bool; 2] = [true, true];
const NEITHER: [bool; 2] = [false, false];
const SERVER: [bool; 2] = [false, true];

#[test]
fn a_bundle_vouches_for_whom_openssl_lets_in() {
    let cases = [of_roots(), of_those_between(), of_leaves()];
    let has_openssl =
        lb_tests::tier::require("proxy", || match Command::new("openssl").arg("version").output() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("openssl: {error}")),
        });
    for case in cases.iter().flatten() {
        let expected = case.is_let_in;
        assert_eq!([as_client(case), as_server(case)], expected, "{}", case.what);
        if has_openssl {
            let openssl = ["sslclient", "sslserver"].map(|purpose| is_verified(case, purpose));
            assert_eq!(openssl, expected, "{} by openssl", case.what);
        }
    }
}

#[test]
fn a_chain_that_ends_in_the_bundle_without_a_root_is_no_strangers() {
    let root = Ca::new("Root");
    let between = root.below("Between");
    let mut demands = verify(&root, Demand::OptionalAnyAuthority);
    demands.trust.as_mut().expect("trusts").ca_pem = between.pem.clone().into_bytes();
    let rig = Rig::start(guarded(&Backend::mirror(), ClientAuth::Verify(Box::new(demands))));
    let status = |identity| {
        let config = config(Some(identity), rustls::ALL_VERSIONS);
        Tls::with(config, rig.https, HOST).expect("handshake").status(HOST, "/")
    };

    assert_eq!(status(between.issue("client", 2200)), 400);
    assert_eq!(status(root.issue("client", 2200)), 200);
}

/// Authorities at the end of a chain.
fn of_roots() -> Vec<Case> {
    let of = |what, params: CertificateParams, is_let_in| {
        let root = Ca::of(params);
        Case { what, bundle: vec![root.certificate.clone()], shown: alone(&root), is_let_in }
    };
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = authority("Root");
        change(&mut params);
        params
    };
    let expired = changed(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let renewed = {
        let (before, key) = (Ca::of(expired.clone()), KeyPair::generate().expect("key"));
        let [old, new] = [&expired, &authority("Root")]
            .map(|params| params.self_signed(&key).expect("self-signed").der().clone());
        let issuer = rcgen::Issuer::new(authority("Root"), key);
        let signing = Ca { issuer, certificate: new.clone(), pem: before.pem };
        Case {
            what: "an expired root beside itself renewed",
            bundle: vec![old, new],
            shown: alone(&signing),
            is_let_in: BOTH,
        }
    };
    let version_1 = {
        let root = Ca::of(authority("Root"));
        let certificate = CertificateDer::from(stripped(&root.certificate, root.issuer.key()));
        Case { what: "a root of version 1", bundle: vec![certificate], shown: alone(&root), is_let_in: BOTH }
    };
    vec![
        of("a root", authority("Root"), BOTH),
        of("a root that is expired", expired, NEITHER),
        renewed,
        of(
            "a root of tomorrow",
            changed(|params| params.not_before = rcgen::date_time_ymd(2199, 1, 1)),
            NEITHER,
        ),
        version_1,
        of("a root that says it is none", changed(|params| params.is_ca = IsCa::ExplicitNoCa), NEITHER),
        of(
            "a root that says nothing of itself",
            changed(|params| {
                params.is_ca = IsCa::NoCa;
                params.key_usages = Vec::new();
            }),
            NEITHER,
        ),
        of(
            "a root whose key alone may sign",
            changed(|params| {
                params.is_ca = IsCa::NoCa;
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            }),
            BOTH,
        ),
        of(
            "a root whose key may not sign",
            changed(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
            NEITHER,
        ),
        of(
            "a root for servers",
            changed(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            SERVER,
        ),
        of(
            "a root for any use",
            changed(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
            }),
            NEITHER,
        ),
        of(
            "a root with none below it",
            changed(|params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            }),
            BOTH,
        ),
    ]
}

/// Authorities below others, shown or in the bundle.
fn of_those_between() -> Vec<Case> {
    let of = |what, root: CertificateParams, between: CertificateParams, is_let_in| {
        let root = Ca::of(root);
        let between = below(&root, &between);
        let shown = alone(&between);
        let shown = Identity { chain: vec![shown.chain[0].clone(), between.certificate.clone()], ..shown };
        Case { what, bundle: vec![root.certificate.clone()], shown, is_let_in }
    };
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = authority("Between");
        change(&mut params);
        params
    };
    let narrow = {
        let mut params = authority("Root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
    };
    let listed = |what, has_root: bool, is_let_in| {
        let root = Ca::of(authority("Root"));
        let between = below(&root, &authority("Between"));
        let roots = has_root.then(|| root.certificate.clone());
        let bundle = [between.certificate.clone()].into_iter().chain(roots).collect();
        Case { what, bundle, shown: alone(&between), is_let_in }
    };
    let root = || authority("Root");
    vec![
        of("one between", root(), authority("Between"), BOTH),
        of("one between below a root with none", narrow, authority("Between"), NEITHER),
        of(
            "one between that is expired",
            root(),
            changed(|params| {
                params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }),
            NEITHER,
        ),
        of("one between that is none", root(), changed(|params| params.is_ca = IsCa::ExplicitNoCa), NEITHER),
        of(
            "one between whose key alone may sign",
            root(),
            changed(|params| params.is_ca = IsCa::NoCa),
            NEITHER,
        ),
        of(
            "one between whose key may not sign",
            root(),
            changed(|params| {
                params.key_usages = vec![KeyUsagePurpose::CrlSign];
            }),
            NEITHER,
        ),
        of(
            "one between for servers",
            root(),
            changed(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            SERVER,
        ),
        listed("one between in the bundle, without its root", false, NEITHER),
        listed("one between in the bundle, with its root", true, BOTH),
    ]
}

/// What is shown itself.
fn of_leaves() -> Vec<Case> {
    let of = |what, params: CertificateParams, is_let_in| {
        let root = Ca::of(authority("Root"));
        let shown = root.issue_params(params, 1);
        let shown = Identity { chain: shown.chain[..1].to_vec(), ..shown };
        Case { what, bundle: vec![root.certificate.clone()], shown, is_let_in }
    };
    let of_itself = |what, params: CertificateParams, is_let_in| {
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("self-signed").der().clone();
        let shown =
            Identity { chain: vec![certificate.clone()], key: key.serialize_der().try_into().expect("key") };
        Case { what, bundle: vec![certificate], shown, is_let_in }
    };
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = leaf();
        change(&mut params);
        params
    };
    let in_the_bundle = {
        let shown = alone(&Ca::of(authority("Root")));
        let bundle = shown.chain.clone();
        Case {
            what: "one that is in the bundle, of an authority that is not",
            bundle,
            shown,
            is_let_in: NEITHER,
        }
    };
    let old = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let signing = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let of_servers = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    vec![
        in_the_bundle,
        of(
            "a key that agrees",
            changed(|params| {
                params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
            }),
            BOTH,
        ),
        of(
            "a key that is sent keys",
            changed(|params| {
                params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
            }),
            SERVER,
        ),
        of("a key for certificates", changed(signing), NEITHER),
        of("a key of servers", changed(of_servers), SERVER),
        of(
            "a key for any use",
            changed(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
            }),
            NEITHER,
        ),
        of_itself("one of itself", leaf(), BOTH),
        of_itself("one of itself, expired", changed(old), NEITHER),
        of_itself("one of itself with a key for certificates", changed(signing), NEITHER),
        of_itself("one of itself, for servers", changed(of_servers), SERVER),
    ]
}

fn as_client(case: &Case) -> bool {
    let mut demands = verify(&Ca::new("Other"), Demand::Required);
    demands.trust.as_mut().expect("trusts").ca_pem = pem(&case.bundle).into_bytes();
    let rig = Rig::start(guarded(&Backend::mirror(), ClientAuth::Verify(Box::new(demands))));
    let identity = Identity { chain: case.shown.chain.clone(), key: case.shown.key.clone_key() };
    let mut tls =
        Tls::with(config(Some(identity), rustls::ALL_VERSIONS), rig.https, HOST).expect("handshake");
    match tls.status(HOST, "/") {
        200 => true,
        400 => false,
        status => panic!("{}: {status}", case.what),
    }
}

fn as_server(case: &Case) -> bool {
    let key_pem = Chain::of(&case.shown, "").key_pem;
    let chain = Chain { root_pem: pem(&case.bundle), chain_pem: pem(&case.shown.chain), key_pem };
    let backend = TlsBackend::start(&chain, None);
    let tls = UpstreamTls { verify: Some(proven(&chain, NAME, 1)), ..UpstreamTls::default() };
    let rig = Rig::start(to_with(&[backend.addr], https(tls)));
    match rig.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status {
        200 => true,
        502 => false,
        status => panic!("{}: {status}", case.what),
    }
}

/// What `openssl verify` says of the same.
fn is_verified(case: &Case, purpose: &str) -> bool {
    let files = tempfile::tempdir().expect("a folder");
    let (leaf, between) = case.shown.chain.split_first().expect("a certificate");
    for (name, certificates) in
        [("bundle", &case.bundle[..]), ("leaf", std::slice::from_ref(leaf)), ("between", between)]
    {
        std::fs::write(files.path().join(name), pem(certificates)).expect("written");
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-no-CApath", "-no-CAstore", "-verify_depth", "1", "-purpose", purpose]);
    openssl.args(["-CAfile", "bundle"]);
    if !between.is_empty() {
        openssl.args(["-untrusted", "between"]);
    }
    openssl.arg("leaf").current_dir(files.path()).output().expect("openssl").status.success()
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let one = |der: &CertificateDer<'_>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    certificates.iter().map(one).collect()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "leaf");
    params.subject_alt_names = vec![SanType::DnsName(NAME.try_into().expect("a name"))];
    params
}

/// A certificate by an authority, shown without it.
fn alone(ca: &Ca) -> Identity {
    let shown = ca.issue_params(leaf(), 1);
    Identity { chain: shown.chain[..1].to_vec(), ..shown }
}

fn below(ca: &Ca, params: &CertificateParams) -> Ca {
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, &ca.issuer).expect("signed");
    let (pem, der) = (certificate.pem(), certificate.der().clone());
    Ca { issuer: rcgen::Issuer::new(params.clone(), key), certificate: der, pem }
}
