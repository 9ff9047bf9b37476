//! Another service decides who may enter, seen from the client, the upstream and the service.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use penstock::model::expression::Expression;
use penstock::model::l4::Prefix;
use penstock::model::l7::forwarding::{Address, Behind, Words};
use penstock::model::l7::policy::{
    Access, AddressSet, Auth, Basic, Cors, External, FilledHeader, Origins, Password, Satisfy, Users,
};
use penstock::model::l7::{Filters, Forwarding, L7, Policies, Upstream, UpstreamName};
use penstock::model::upstream::Keepalive;

use crate::rig::{Backend, DEADLINE, Rig, nobody, to_with};
use crate::upstream_tls::{Chain, TlsBackend};

/// A service that answers every question so, and what it was asked.
pub struct Service {
    pub backend: Backend,
    pub heads: Receiver<String>,
}

impl Service {
    pub fn saying(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        let (tell, heads) = channel();
        let tell = Mutex::new(tell);
        let backend = Backend::start(move |mut peer| {
            while let Some(head) = peer.head() {
                let _ = tell.lock().expect("tell").send(head);
                if !peer.try_send(answer.as_bytes()) {
                    return;
                }
            }
        });
        Self { backend, heads }
    }

    fn asked(&self) -> String {
        self.heads.recv_timeout(DEADLINE).expect("a question")
    }

    /// How often it was asked since.
    pub fn questions(&self) -> usize {
        self.heads.try_iter().count()
    }

    pub fn external(&self) -> External {
        external(&format!("127.0.0.1:{}", self.backend.addr.port()), "/check")
    }
}

pub fn text(text: &str) -> Expression {
    Expression::parse(text).expect("known variables")
}

pub fn external(host: &str, target: &str) -> External {
    External {
        url: format!("http://{host}{target}"),
        tls: false,
        host: text(host),
        target: text(target),
        upstream: None,
        method: None,
        sign_in: None,
        response_headers: Vec::new(),
        request_redirect: None,
        set_headers: Vec::new(),
        always_set_cookie: false,
        remember: None,
        keepalive: Keepalive { connections: 0, ..Keepalive::default() },
    }
}

pub fn guarded(backend: &Backend, external: External) -> L7 {
    let auth = Auth { external: Some(external), ..Auth::default() };
    with(backend, Policies { auth: Some(auth), ..Policies::default() })
}

fn with(backend: &Backend, policies: Policies) -> L7 {
    to_with(&[backend.addr], Filters { policies: Some(Arc::new(policies)), ..Filters::default() })
}

const GET: &str = "GET /a?b=c&d=e HTTP/1.1\r\nHost: shop.example.com:8080\r\n\r\n";
pub const YES: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
pub const NO: &str =
    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"x\"\r\nContent-Length: 0\r\n\r\n";

pub fn lines<'r>(head: &'r str, name: &str) -> Vec<&'r str> {
    let is = |line: &&str| line.split(':').next().is_some_and(|known| known.eq_ignore_ascii_case(name));
    head.lines().filter(is).collect()
}

#[test]
fn each_answer_of_the_service_has_its_consequence() {
    let backend = Backend::mirror();
    let cases = [
        ("200 OK", None, 200),
        ("202 Accepted", None, 200),
        ("204 No Content", None, 200),
        ("401 Unauthorized", None, 401),
        ("401 Unauthorized", Some("http://sso/start"), 302),
        ("403 Forbidden", Some("http://sso/start"), 403),
        ("302 Found", None, 500),
        ("404 Not Found", None, 500),
        ("500 Oh", Some("http://sso/start"), 500),
        ("503 Busy", None, 500),
    ];
    for (answer, sign_in, expected) in cases {
        let service = Service::saying(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n"));
        let rig =
            Rig::start(guarded(&backend, External { sign_in: sign_in.map(text), ..service.external() }));
        let asked_before = backend.connections();

        let reply = rig.ask(GET);

        assert_eq!(reply.status, expected, "{answer} {sign_in:?}");
        let reached = backend.connections() - asked_before;
        assert_eq!(reached, usize::from(expected == 200), "{answer} {sign_in:?}");
    }
}

#[test]
fn a_service_that_cannot_be_asked_lets_nobody_in() {
    let backend = Backend::mirror();
    let garbage = Service::saying("no such thing\r\n\r\n");
    let closing = Backend::start(|mut peer| {
        peer.head();
    });
    let at = |port: u16| external(&format!("127.0.0.1:{port}"), "/");
    let gone = UpstreamName("auth-gone-80".to_owned());
    let cases = [
        ("nobody listens", at(nobody().port())),
        ("it closes", at(closing.addr.port())),
        ("it says nothing sensible", garbage.external()),
        ("no such name", external("does-not-exist.invalid", "/")),
        ("a host that a client makes up", External { host: text("$http_x_evil"), ..at(80) }),
        ("its service has no endpoints", External { upstream: Some(gone), ..at(80) }),
    ];
    for (case, external) in cases {
        let rig = Rig::start(guarded(&backend, external));

        let reply = rig.ask("GET / HTTP/1.1\r\nHost: h\r\nX-Evil: a b/\r\n\r\n");

        assert_eq!((reply.status, backend.connections()), (500, 0), "{case}");
    }
}

#[test]
fn the_service_hears_who_asks_what_and_nothing_that_a_client_made_up() {
    let (backend, service) = (Backend::mirror(), Service::saying(YES));
    let set_headers = vec![FilledHeader { name: "X-Site".to_owned(), value: text("shop of $host") }];
    let rig = Rig::start(guarded(&backend, External { set_headers, ..service.external() }));

    let reply = rig.ask(
        "POST /a?b=c HTTP/1.1\r\nHost: h:8080\r\nCookie: a=b\r\nAuthorization: Bearer t\r\nX-Request-ID: 7\r\n\
         X-Original-URL: http://evil/\r\nX-Sent-From: evil\r\nX-Site: evil\r\nX-Original-URI: /evil\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nssl-client-verify: SUCCESS\r\n\
         Content-Length: 5\r\n\r\nhello",
    );
    let head = service.asked();

    assert!(reply.text().ends_with("hello"), "{}", reply.text());
    assert!(head.starts_with("GET /check HTTP/1.1\r\n"), "{head}");
    for (name, expected) in [
        ("host", vec!["Host: 127.0.0.1".to_owned()]),
        ("cookie", vec!["Cookie: a=b".to_owned()]),
        ("authorization", vec!["Authorization: Bearer t".to_owned()]),
        ("x-request-id", vec!["X-Request-ID: 7".to_owned()]),
        ("x-original-url", vec!["X-Original-URL: http://h:8080/a?b=c".to_owned()]),
        ("x-original-method", vec!["X-Original-Method: POST".to_owned()]),
        ("x-sent-from", vec!["X-Sent-From: nginx-ingress-controller".to_owned()]),
        ("x-real-ip", vec!["X-Real-IP: 127.0.0.1".to_owned()]),
        ("x-forwarded-for", vec!["X-Forwarded-For: 127.0.0.1".to_owned()]),
        ("x-auth-request-redirect", vec!["X-Auth-Request-Redirect: /a?b=c".to_owned()]),
        ("x-site", vec!["X-Site: shop of h".to_owned()]),
        ("x-original-uri", vec![]),
        ("x-forwarded-proto", vec![]),
        ("content-length", vec![]),
        ("ssl-client-verify", vec![]),
    ] {
        assert_eq!(lines(&head, name), expected, "{name}\n{head}");
    }
}

#[test]
fn a_method_of_its_own_comes_with_more_to_hear() {
    let (backend, service) = (Backend::mirror(), Service::saying(YES));
    let rig = Rig::start(guarded(
        &backend,
        External {
            method: Some("POST".to_owned()),
            request_redirect: Some(text("https://$host/back")),
            target: text("/of?uri=$arg_b&x=$http_x"),
            ..service.external()
        },
    ));

    rig.ask("GET /a?b=c HTTP/1.1\r\nHost: h\r\nX: 1 2\r\n\r\n");
    let head = service.asked();

    assert!(head.starts_with("POST /of?uri=c&x=1%202 HTTP/1.1\r\n"), "{head}");
    assert_eq!(lines(&head, "x-original-uri"), ["X-Original-URI: /a?b=c"]);
    assert_eq!(lines(&head, "x-scheme"), ["X-Scheme: http"]);
    assert_eq!(lines(&head, "x-auth-request-redirect"), ["X-Auth-Request-Redirect: https://h/back"]);
}

#[test]
fn the_upstream_gets_the_headers_of_the_answer_and_never_the_clients_own() {
    let backend = Backend::mirror();
    let service =
        Service::saying("HTTP/1.1 200 OK\r\nx-user: ann\r\nX-Other: no\r\nContent-Length: 0\r\n\r\n");
    let response_headers = ["X-User", "X-Groups", "Authorization"].map(str::to_owned).to_vec();
    let rig = Rig::start(guarded(&backend, External { response_headers, ..service.external() }));

    let told = rig
        .ask(
            "PUT /a HTTP/1.1\r\nHost: h\r\nX-User: root\r\nX-Groups: admin\r\nAuthorization: Bearer mine\r\n\
             Content-Length: 4\r\n\r\nbody",
        )
        .text();

    assert_eq!(lines(&told, "x-user"), ["X-User: ann"]);
    for name in ["x-groups", "authorization", "x-other"] {
        assert_eq!(lines(&told, name), Vec::<&str>::new(), "{name}");
    }
    assert!(told.ends_with("\r\n\r\nbody"), "{told}");
}

#[test]
fn who_is_not_known_is_sent_to_sign_in_and_finds_the_way_back() {
    let (backend, service) = (Backend::mirror(), Service::saying(NO));
    let cases = [
        (
            "http://$host/auth/start?rd=$scheme://$http_host$escaped_request_uri",
            "http://shop.example.com/auth/start?rd=http://shop.example.com:8080%2Fa%3Fb%3Dc%26d%3De",
        ),
        (
            "https://sso/start?rd=$scheme://$host$request_uri",
            "https://sso/start?rd=http://shop.example.com/a?b=c&d=e",
        ),
    ];
    for (sign_in, expected) in cases {
        let external = External { sign_in: Some(text(sign_in)), ..service.external() };
        let rig = Rig::start(guarded(&backend, external));

        let reply = rig.ask(GET);

        assert_eq!((reply.status, reply.header("location")), (302, Some(expected)), "{sign_in}");
        assert_eq!(reply.header("www-authenticate"), None);
    }
}

#[test]
fn a_refusal_passes_the_services_challenge_on_and_keeps_the_connection() {
    let (backend, service) = (Backend::mirror(), Service::saying(NO));
    let cors = Cors {
        origins: Origins::Any,
        methods: "GET".to_owned(),
        headers: "X".to_owned(),
        credentials: false,
        expose: None,
        max_age: 1,
    };
    let auth = Auth { external: Some(service.external()), ..Auth::default() };
    let rig =
        Rig::start(with(&backend, Policies { cors: Some(cors), auth: Some(auth), ..Policies::default() }));
    let mut client = rig.client();

    client.send("OPTIONS /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let preflight = client.reply();
    client.send(GET);
    let refused = client.reply();

    assert_eq!((preflight.status, service.questions()), (204, 1));
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"x\""));
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn cookies_of_the_answer_go_with_the_statuses_that_nginx_adds_headers_to() {
    let yes = "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n";
    let no = "HTTP/1.1 401 No\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n";
    let fine = "HTTP/1.1 200 OK\r\nSet-Cookie: own=0\r\nContent-Length: 0\r\n\r\n";
    let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let both = ["Set-Cookie: a=1", "Set-Cookie: b=2"];
    let cases = [
        ("fine", yes, fine, false, None, vec!["Set-Cookie: own=0", both[0], both[1]]),
        ("not found", yes, missing, false, None, vec![]),
        ("not found, always", yes, missing, true, None, both.to_vec()),
        ("refused", no, fine, false, None, vec![]),
        ("refused, always", no, fine, true, None, both.to_vec()),
        ("sent to sign in", no, fine, false, Some("http://sso/"), both.to_vec()),
    ];
    for (case, answer, upstream, always_set_cookie, sign_in, expected) in cases {
        let (backend, service) = (Backend::saying(upstream), Service::saying(answer));
        let sign_in = sign_in.map(text);
        let rig =
            Rig::start(guarded(&backend, External { always_set_cookie, sign_in, ..service.external() }));

        assert_eq!(lines(&rig.ask(GET).head, "set-cookie"), expected, "{case}");
    }
}

#[test]
fn connections_to_the_service_are_kept_where_that_is_asked_for() {
    let backend = Backend::mirror();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n";
    for (case, answer, connections, expected) in [
        ("kept", YES, 4, 1),
        ("kept, with a body", chunked, 4, 1),
        ("not asked for", YES, 0, 3),
        ("the service ends it", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 4, 3),
    ] {
        let service = Service::saying(answer);
        let keepalive = Keepalive { connections, ..Keepalive::default() };
        let rig = Rig::start(guarded(&backend, External { keepalive, ..service.external() }));

        let asked = [GET; 3].map(|request| rig.ask(request).status);

        assert_eq!((asked, service.backend.connections()), ([200; 3], expected), "{case}");
    }
}

#[test]
fn a_service_of_the_cluster_is_asked_at_its_endpoints() {
    let (backend, service) = (Backend::mirror(), Service::saying(YES));
    let name = UpstreamName("auth-proxy-4180".to_owned());
    let of_cluster =
        External { upstream: Some(name.clone()), ..external("proxy.auth.svc.cluster.local:4180", "/") };
    let mut l7 = guarded(&backend, of_cluster);
    let endpoints = BTreeSet::from([service.backend.addr]);
    l7.upstreams.insert(name, Upstream { endpoints, ..Upstream::default() });
    let rig = Rig::start(l7);

    assert_eq!(rig.ask(GET).status, 200);
    assert_eq!(lines(&service.asked(), "host"), ["Host: proxy.auth.svc.cluster.local"]);
}

#[test]
fn one_check_of_several_is_enough_where_any_will_do() {
    let backend = Backend::mirror();
    let (yes, no) = (Service::saying(YES), Service::saying(NO));
    let forbids = Service::saying("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    let basic = || {
        let users = [(b"alice".to_vec(), Password::Plain(b"wonderland".to_vec()))];
        Basic { realm: "r".to_owned(), users: Users(users.into_iter().collect()) }
    };
    let outside = || {
        let allowed: AddressSet = Prefix::new("10.0.0.0".parse().unwrap(), 8).into_iter().collect();
        Access { denied: AddressSet::default(), allowed: Some(allowed) }
    };
    // Whether an address list stands before, a password is asked for, and what the service says; then what comes
    // of no password and of the right one.
    let cases = [
        ("all, the service agrees", Satisfy::All, false, true, &yes, [401, 200]),
        ("all, the service refuses", Satisfy::All, false, true, &no, [401, 401]),
        ("any, the service agrees", Satisfy::Any, false, true, &yes, [200, 200]),
        ("any, the service refuses", Satisfy::Any, false, true, &no, [401, 200]),
        ("any, the service forbids", Satisfy::Any, false, true, &forbids, [401, 200]),
        ("any, address outside", Satisfy::Any, true, false, &forbids, [403, 403]),
        ("any, address outside, the service agrees", Satisfy::Any, true, false, &yes, [200, 200]),
    ];
    for (case, satisfy, has_list, has_basic, service, expected) in cases {
        let auth = Auth { satisfy, basic: has_basic.then(basic), external: Some(service.external()) };
        let access = has_list.then(outside);
        let rig = Rig::start(with(&backend, Policies { access, auth: Some(auth), ..Policies::default() }));

        let silent = rig.ask(GET).status;
        let alice =
            rig.ask("GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YWxpY2U6d29uZGVybGFuZA==\r\n\r\n");

        assert_eq!([silent, alice.status], expected, "{case}");
        if alice.status == 200 {
            assert_eq!(alice.header("www-authenticate"), None, "{case}");
        }
    }
}

#[test]
fn the_service_and_the_sign_in_page_hear_what_those_in_front_are_believed() {
    let backend = Backend::mirror();
    let service = Service::saying(NO);
    let sign_in = text("http://sso/?rd=$pass_access_scheme://$best_http_host$escaped_request_uri");
    let method = Some("GET".to_owned());
    let mut l7 = guarded(&backend, External { sign_in: Some(sign_in), method, ..service.external() });
    let trusted = Prefix::new([127, 0, 0, 1].into(), 8).into_iter().collect();
    let behind = Some(Behind { words: Words::Believed, address: Address::Told, trusted });
    l7.edge.forwarding = Forwarding { behind, ..Forwarding::default() };
    let rig = Rig::start(l7);

    let reply = rig.ask(
        "GET /a?b HTTP/1.1\r\nHost: pod\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: shop.example\r\n\r\n",
    );

    let location = reply.header("location").map(ToOwned::to_owned);
    assert_eq!(
        (reply.status, location.as_deref()),
        (302, Some("http://sso/?rd=https://shop.example%2Fa%3Fb"))
    );
    let asked = service.asked();
    for line in ["X-Original-URL: https://shop.example/a?b", "X-Real-IP: 192.0.2.1", "X-Scheme: https"] {
        assert!(asked.lines().any(|said| said == line), "{line} in {asked}");
    }
}

#[test]
fn an_https_service_is_found_by_its_name_and_asked_whatever_its_certificate() {
    let backend = Backend::mirror();
    let service = TlsBackend::start(&Chain::new("somebody.else", 0), None);
    let host = format!("localhost:{}", service.addr.port());
    let keepalive = Keepalive { connections: 4, ..Keepalive::default() };
    let rig = Rig::start(guarded(&backend, External { tls: true, keepalive, ..external(&host, "/check") }));

    for _ in 0..3 {
        assert_eq!(rig.ask(GET).status, 200);
    }

    assert_eq!(service.connections(), 1, "its connection is kept");
    let plain = Backend::start(|mut peer| {
        peer.exactly(1);
    });
    let host = format!("localhost:{}", plain.addr.port());
    rig.publish(guarded(&backend, External { tls: true, ..external(&host, "/check") }));
    assert_eq!(rig.ask_until(GET, 500).status, 500, "who speaks no TLS is not asked in the clear");
}
