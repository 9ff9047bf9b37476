//! Client certificates: who is let in, what the upstream is told, and no way around them.

use std::sync::Arc;

use penstock::model::ObjectName;
use penstock::model::l7::policy::ErrorPages;
use penstock::model::l7::{
    ClientAuth, Demand, Filters, HostMatch, L7, PathMatch, Pattern, Policies, Server, SslRedirect, Trust,
    VerifyClient,
};
use rustls::version::{TLS12, TLS13};

use crate::rig::{Backend, DEADLINE, Rig, to, to_with};
use crate::tls_client::{Ca, Identity, Tls, config};

const HOST: &str = "secure.example";

pub fn verify(ca: &Ca, demand: Demand) -> VerifyClient {
    let trust = Trust {
        secret: ObjectName::new("default", "ca"),
        ca_pem: ca.pem.clone().into_bytes(),
        crl_pem: Vec::new(),
        demand,
        depth: 1,
    };
    VerifyClient { trust: Some(trust), error_page: None, pass_certificate: false, subject: None }
}

/// Everything to the backend; `secure.example` demands something of its clients, others do not.
pub fn guarded(backend: &Backend, auth: ClientAuth) -> L7 {
    with_guard(to(&[backend.addr]), auth)
}

fn with_guard(mut l7: L7, auth: ClientAuth) -> L7 {
    let open = l7.servers.get(&HostMatch::Any).cloned().expect("the server");
    let server = Server { client_auth: Some(Arc::new(auth)), ..open };
    l7.servers.insert(HostMatch::Exact(HOST.to_owned()), server);
    l7
}

fn start(backend: &Backend, verify: VerifyClient) -> Rig {
    Rig::start(guarded(backend, ClientAuth::Verify(Box::new(verify))))
}

fn connect(rig: &Rig, identity: Option<Identity>) -> Tls {
    Tls::with(config(identity, rustls::ALL_VERSIONS), rig.https, HOST).expect("handshake")
}

#[test]
fn certificates_are_taken_or_answered_as_the_host_demands() {
    let (ca, other) = (Ca::new("Good"), Ca::new("Other"));
    let backend = Backend::mirror();
    type Made = fn(&Ca, &Ca) -> Option<Identity>;
    let none: Made = |_, _| None;
    let good: Made = |ca, _| Some(ca.issue("client", 2200));
    let stranger: Made = |_, other| Some(other.issue("client", 2200));
    let expired: Made = |ca, _| Some(ca.issue("client", 2001));
    let cases: [(Demand, &str, Made, u16); 12] = [
        (Demand::Required, "none", none, 400),
        (Demand::Required, "good", good, 200),
        (Demand::Required, "stranger", stranger, 400),
        (Demand::Required, "expired", expired, 400),
        (Demand::Optional, "none", none, 200),
        (Demand::Optional, "good", good, 200),
        (Demand::Optional, "stranger", stranger, 400),
        (Demand::Optional, "expired", expired, 400),
        (Demand::OptionalAnyAuthority, "none", none, 200),
        (Demand::OptionalAnyAuthority, "good", good, 200),
        (Demand::OptionalAnyAuthority, "stranger", stranger, 200),
        (Demand::OptionalAnyAuthority, "expired", expired, 400),
    ];
    for (demand, shown, identity, status) in cases {
        let rig = start(&backend, verify(&ca, demand));
        for version in [&TLS12, &TLS13] {
            let config = config(identity(&ca, &other), &[version]);
            // The second handshake may be a resumed one: it is judged like the first.
            for round in 0..2 {
                let mut tls = Tls::with(config.clone(), rig.https, HOST).expect("handshake");
                assert_eq!(tls.status(HOST, "/"), status, "{demand:?} {shown} {version:?}, round {round}");
            }
        }
    }
}

#[test]
fn the_answer_says_what_is_wrong_with_a_certificate_and_no_error_page_hides_it() {
    let (ca, other) = (Ca::new("Good"), Ca::new("Other"));
    let backend = Backend::mirror();
    let auth = ClientAuth::Verify(Box::new(verify(&ca, Demand::Required)));
    // Worded by nobody, such an error is a 404.
    let errors = ErrorPages { statuses: [400].into(), ..ErrorPages::default() };
    let policies = Some(Arc::new(Policies { errors: Some(errors), ..Policies::default() }));
    let open = to_with(&[backend.addr], Filters { policies, ..Filters::default() });
    let rig = Rig::start(with_guard(open, auth));
    let cases = [
        (None, "No required SSL certificate was sent"),
        (Some(other.issue("client", 2200)), "The SSL certificate error"),
    ];
    for (identity, words) in cases {
        let mut tls = connect(&rig, identity);

        let text = tls.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));

        let page = format!(
            "<html>\r\n<head><title>400 {words}</title></head>\r\n<body>\r\n<center><h1>400 Bad Request</h1></center>\r\n\
             <center>{words}</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
        assert!(text.ends_with(&page), "{text}");
    }
}

#[test]
fn a_page_of_the_host_itself_answers_whom_the_host_refuses() {
    let (ca, backend) = (Ca::new("Good"), Backend::mirror());
    let guard = |page: &str| {
        let page = Some(page.replace("HOST", HOST));
        start(&backend, VerifyClient { error_page: page, ..verify(&ca, Demand::Required) })
    };
    let ask = |rig: &Rig, method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        connect(rig, None).ask(&request)
    };

    let own = guard("/no?why=tls");
    let shown = ask(&own, "GET", "/secret?x");
    assert!(
        shown.starts_with("HTTP/1.1 200 ") && shown.contains("\r\n\r\nGET /no?why=tls HTTP/1.1\r\n"),
        "{shown}"
    );
    assert!(shown.contains("ssl-client-verify: NONE\r\n"), "{shown}");
    assert!(ask(&own, "GET", "/no?why=tls").starts_with("HTTP/1.1 200 "), "no way back to itself");
    assert!(ask(&own, "POST", "/secret").starts_with("HTTP/1.1 400 "), "what it says reaches nobody");
    for says in ["Content-Length: 1\r\n\r\nx", "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"] {
        let request = format!("GET /secret HTTP/1.1\r\nHost: {HOST}\r\n{says}");
        assert!(connect(&own, None).ask(&request).starts_with("HTTP/1.1 400 "), "{says}");
    }

    let elsewhere = guard("https://HOST/no");
    let sent = ask(&elsewhere, "GET", "/secret");
    assert!(sent.starts_with("HTTP/1.1 302 ") && sent.contains(&format!("https://{HOST}/no\r\n")), "{sent}");
    assert!(ask(&elsewhere, "GET", "/no").starts_with("HTTP/1.1 400 "), "not sent to where it is");
}

#[test]
fn the_upstream_is_told_who_the_client_is_and_nobody_else_can_tell_it() {
    let (ca, other) = (Ca::new("Good"), Ca::new("Other"));
    let backend = Backend::mirror();
    let pass = VerifyClient { pass_certificate: true, ..verify(&ca, Demand::OptionalAnyAuthority) };
    let rig = start(&backend, pass);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nssl-client-verify: SUCCESS\r\n\
         Ssl-Client-Subject-DN: CN=root\r\nssl-client-cert: forged\r\n\r\n"
    );

    let good = connect(&rig, Some(ca.issue("client, inc", 2200))).ask(&request);
    let stranger = connect(&rig, Some(other.issue("client", 2200))).ask(&request);
    let nobody = connect(&rig, None).ask(&request);

    let told = "ssl-client-verify: SUCCESS\r\nssl-client-subject-dn: CN=client\\, inc,O=Test\r\n\
                ssl-client-issuer-dn: CN=Good\r\nssl-client-cert: -----BEGIN%20CERTIFICATE-----%0AMII";
    assert!(good.contains(told), "{good}");
    let told = "ssl-client-verify: FAILED:self-signed certificate in certificate chain\r\nssl-client-subject-dn: CN=client,O=Test\r\n";
    assert!(stranger.contains(told), "{stranger}");
    assert!(nobody.contains("ssl-client-verify: NONE\r\n"), "{nobody}");
    for text in [&good, &stranger, &nobody] {
        assert!(!text.contains("forged") && !text.contains("CN=root"), "{text}");
        assert_eq!(text.to_ascii_lowercase().matches("ssl-client-verify").count(), 1, "{text}");
    }
}

#[test]
fn another_name_in_the_handshake_is_no_way_in() {
    let ca = Ca::new("Good");
    let backend = Backend::mirror();
    let rig = start(&backend, verify(&ca, Demand::Required));
    let good = || Some(ca.issue("client", 2200));
    let mut elsewhere = Tls::with(config(good(), &[&TLS13]), rig.https, "open.example").expect("handshake");
    let mut nameless = Tls::with(config(good(), &[&TLS13]), rig.https, "127.0.0.1").expect("handshake");

    assert_eq!(elsewhere.status(HOST, "/"), 421);
    assert_eq!(nameless.status(HOST, "/"), 421);
    // The other way round nothing is at stake.
    assert_eq!(connect(&rig, good()).status("open.example", "/"), 200);
    assert_eq!(connect(&rig, None).status("open.example", "/"), 200);
}

#[test]
fn a_session_of_one_host_is_not_resumed_under_another_authority() {
    let (ca, other) = (Ca::new("Good"), Ca::new("Other"));
    let backend = Backend::mirror();
    let rig = start(&backend, verify(&ca, Demand::Required));
    let config = config(Some(ca.issue("client", 2200)), &[&TLS13]);
    assert_eq!(Tls::with(config.clone(), rig.https, HOST).expect("handshake").status(HOST, "/"), 200);
    assert!(Tls::with(config.clone(), rig.https, HOST).expect("handshake").is_resumed());

    rig.publish(guarded(&backend, ClientAuth::Verify(Box::new(verify(&other, Demand::Required)))));

    let started = std::time::Instant::now();
    let tls = loop {
        let mut tls = Tls::with(config.clone(), rig.https, HOST).expect("handshake");
        match tls.status(HOST, "/") {
            // Between the authorities a connection can belong to the older one.
            200 | 421 => assert!(started.elapsed() < DEADLINE, "the new authority never came"),
            status => {
                assert_eq!(status, 400);
                break tls;
            }
        }
    };
    assert!(!tls.is_resumed());
}

#[test]
fn a_connection_from_before_an_authority_changed_has_to_come_again() {
    let (ca, other) = (Ca::new("Good"), Ca::new("Other"));
    let backend = Backend::mirror();
    let rig = start(&backend, verify(&ca, Demand::Required));
    let mut old = connect(&rig, Some(ca.issue("client", 2200)));

    rig.publish(guarded(&backend, ClientAuth::Verify(Box::new(verify(&other, Demand::Required)))));
    let started = std::time::Instant::now();
    while connect(&rig, Some(other.issue("client", 2200))).status(HOST, "/") != 200 {
        assert!(started.elapsed() < DEADLINE, "the new authority never came");
    }

    assert_eq!(old.status(HOST, "/"), 421);
}

#[test]
fn plain_http_is_no_way_around_a_certificate() {
    let ca = Ca::new("Good");
    let backend = Backend::mirror();
    let ask = |rig: &Rig, path: &str| rig.ask(&format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status;

    let required = start(&backend, verify(&ca, Demand::Required));
    assert_eq!(ask(&required, "/"), 403);
    assert_eq!(ask(&start(&backend, verify(&ca, Demand::Optional)), "/"), 200);

    // A redirect gives nothing away.
    let auth = ClientAuth::Verify(Box::new(verify(&ca, Demand::Required)));
    let mut l7 = guarded(&backend, auth);
    l7.servers.edit(|_, server| {
        server.locations.iter_mut().for_each(|location| location.filters.ssl_redirect = SslRedirect::Always);
    });
    assert_eq!(ask(&Rig::start(l7), "/"), 308);
}

#[test]
fn plain_http_is_open_where_an_ingress_has_the_path_of_challenges() {
    let ca = Ca::new("Good");
    let backend = Backend::mirror();
    let ask = |rig: &Rig, path: &str| rig.ask(&format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status;
    let required = guarded(&backend, ClientAuth::Verify(Box::new(verify(&ca, Demand::Required))));
    let with = |own: &str| {
        let mut l7 = required.clone();
        l7.servers.edit(|_, server| {
            let mut solver = server.locations[0].clone();
            solver.path = PathMatch::Prefix(own.to_owned());
            solver.path_label = own.to_owned();
            server.locations.insert(0, solver);
        });
        Rig::start(l7)
    };

    // Frameworks read `..;/` and `..%5c` as a way up.
    let application = Rig::start(required.clone());
    for path in ["token", "..;/..;/admin", "..%5c..%5cadmin", "%252e%252e/admin"] {
        assert_eq!(ask(&application, &format!("/.well-known/acme-challenge/{path}")), 403, "{path}");
    }
    // Who renews the certificate of the host has none himself.
    for own in
        ["/.well-known/acme-challenge/token", "/.well-known/acme-challenge", "/.well-known/acme-challenge/"]
    {
        let solver = with(own);
        assert_eq!(ask(&solver, "/.well-known/acme-challenge/token"), 200, "{own}");
        assert_eq!(ask(&solver, "/.well-known/acme-challenge/../../x"), 403, "{own}");
        assert_eq!(ask(&solver, "/"), 403, "{own}");
    }
    assert_eq!(ask(&with("/.well-known/acme-challenge-admin"), "/.well-known/acme-challenge-admin"), 403);
}

#[test]
fn an_authority_that_cannot_be_used_closes_the_host_both_ways() {
    let backend = Backend::mirror();
    let rig = Rig::start(guarded(&backend, ClientAuth::Unusable));

    assert_eq!(rig.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status, 403);
    assert_eq!(connect(&rig, None).status(HOST, "/"), 403);
    assert_eq!(connect(&rig, None).status("open.example", "/"), 200);
}

#[test]
fn the_subject_has_to_match_on_both_ports() {
    let ca = Ca::new("Good");
    let backend = Backend::mirror();
    let subject = Some(Pattern::subject("CN=(alice|bob),").expect("a pattern"));
    let rig = start(&backend, VerifyClient { subject, ..verify(&ca, Demand::Required) });

    assert_eq!(connect(&rig, Some(ca.issue("alice", 2200))).status(HOST, "/"), 200);
    assert_eq!(connect(&rig, Some(ca.issue("mallory", 2200))).status(HOST, "/"), 403);
    assert_eq!(rig.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).status, 403);
}

#[test]
fn revocation_lists_are_asked_and_have_to_be_of_now() {
    let ca = Ca::new("Good");

    lists_are_asked(&ca, &[], |serial| ca.issue_numbered("client", 2200, serial));
}

/// Lists of revoked certificates, the serial number that a client shows, and what it is answered; and some more.
pub fn lists_are_asked(ca: &Ca, more: &[(&str, String, u64, u16)], identity: impl Fn(u64) -> Identity) {
    let backend = Backend::mirror();
    let usual = [
        ("revoked", ca.revoke(&[7], 2200), 7, 400),
        ("another one revoked", ca.revoke(&[7], 2200), 8, 200),
        ("an old list", ca.revoke(&[], 2002), 8, 400),
        ("a list of somebody else", Ca::new("Other").revoke(&[], 2200), 8, 400),
    ];
    for (case, list, serial, status) in usual.iter().chain(more) {
        let mut verify = verify(ca, Demand::Required);
        verify.trust.as_mut().expect("trusts").crl_pem = list.clone().into_bytes();
        let rig = start(&backend, verify);

        assert_eq!(connect(&rig, Some(identity(*serial))).status(HOST, "/"), *status, "{case}");
    }
}

#[test]
fn chains_may_be_as_long_as_the_depth_allows() {
    let root = Ca::new("Root");
    let below = root.below("Below");
    let backend = Backend::mirror();
    for (depth, status) in [(0, 400), (1, 200)] {
        let mut verify = verify(&root, Demand::Required);
        verify.trust.as_mut().expect("trusts").depth = depth;
        let rig = start(&backend, verify);

        assert_eq!(
            connect(&rig, Some(below.issue("client", 2200))).status(HOST, "/"),
            status,
            "depth {depth}"
        );
    }
}

#[test]
fn who_needs_no_authority_is_let_in_with_a_word_about_the_chain() {
    let (root, other) = (Ca::new("Root"), Ca::new("Other"));
    let below = root.below("Below");
    let (far, farther) = (other.below("Far"), other.below("Far").below("Farther"));
    let chain = |identity: Identity, more: &[&Ca]| {
        let mut chain = identity.chain;
        chain.truncate(1);
        chain.extend(more.iter().map(|ca| ca.certificate.clone()));
        Identity { chain, key: identity.key }
    };
    let key = rcgen::KeyPair::generate().expect("key");
    let alone = rcgen::CertificateParams::default().self_signed(&key).expect("self-signed").der().clone();
    let alone = Identity { chain: vec![alone], key: key.serialize_der().try_into().expect("key") };
    let issue = |ca: &Ca| ca.issue("client", 2200);
    let (first, local, within) = (
        "FAILED:unable to verify the first certificate",
        "FAILED:unable to get local issuer certificate",
        "FAILED:self-signed certificate in certificate chain",
    );
    let cases = [
        ("as it should be", chain(issue(&root), &[]), 1, "SUCCESS"),
        ("of itself", alone, 1, "FAILED:self-signed certificate"),
        ("of a stranger", chain(issue(&other), &[]), 1, first),
        ("of a stranger who is there", chain(issue(&other), &[&other]), 0, within),
        ("of one below a stranger", chain(issue(&far), &[&far]), 1, local),
        ("of one below a stranger who is there", chain(issue(&far), &[&other, &far]), 1, within),
        ("of one too far below a stranger", chain(issue(&far), &[&far, &other]), 0, local),
        ("of one who is not there", chain(issue(&farther), &[&other]), 1, first),
        ("of one too far below", chain(issue(&below), &[&below]), 0, local),
        ("of one too far below a root that is there", chain(issue(&below), &[&below, &root]), 0, local),
        ("of one below", chain(issue(&below), &[&below]), 1, "SUCCESS"),
    ];
    let backend = Backend::mirror();
    for (case, identity, depth, word) in cases {
        let mut verify = verify(&root, Demand::OptionalAnyAuthority);
        verify.trust.as_mut().expect("trusts").depth = depth;
        let rig = start(&backend, verify);

        let text = connect(&rig, Some(identity))
            .ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));

        assert!(text.contains(&format!("ssl-client-verify: {word}\r\n")), "{case}: {text}");
    }
}
