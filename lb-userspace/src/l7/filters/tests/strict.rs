//! What a strict location does otherwise.

use super::*;

#[test]
fn a_strict_location_tells_nothing_to_who_may_not_enter() {
    let cors = Cors {
        origins: Origins::Any,
        methods: String::new(),
        headers: String::new(),
        credentials: false,
        expose: None,
        max_age: 0,
    };
    let neighbours = Prefix::new("192.0.2.0".parse().unwrap(), 24).into_iter().collect();
    let access = Access { denied: AddressSet::default(), allowed: Some(neighbours) };
    let policies = Policies { access: Some(access), cors: Some(cors), ..Policies::default() };
    let strict = Filters { mode: Mode::Strict, policies: Some(Arc::new(policies)), ..Filters::default() };
    let to_https = Filters { ssl_redirect: SslRedirect::Always, ..strict.clone() };
    let rewrite =
        Rewrite { pattern: Pattern::whole("/a").unwrap(), target: Template(vec![literal("https://x/")]) };
    let to_url = Filters { rewrite: Some(rewrite), ..strict.clone() };
    let elsewhere = || {
        let location = Template(vec![literal("https://x")]);
        Action::Redirect(Redirect { status: 301, location, query: RedirectQuery::Drop })
    };
    let preflight = Next::Answer(Answer::Preflight);
    let slash = location(prefix("/a/"), to_web(), strict.clone());
    let root = |action, filters| location(prefix("/"), action, filters);
    // Whether what follows is for those alone who have shown what the location asks for.
    let cases = [
        ("a redirect", "GET", root(elsewhere(), strict.clone()), redirected(301, "https://x"), true),
        ("a rewrite to a URL", "GET", root(to_web(), to_url), redirected(302, "https://x/"), true),
        ("a slash", "GET", slash, redirected(301, "http://h/a/"), true),
        ("a preflight", "OPTIONS", root(elsewhere(), strict.clone()), preflight, false),
        ("to https", "GET", root(elsewhere(), to_https), redirected(308, "https://h/a"), false),
        ("all is there", "GET", root(to_web(), strict), proxied(None), true),
    ];
    for (case, method, location, next, lets_in) in cases {
        let router = Router::new(&site(vec![location]));
        let asked = Asked { method, target: b"/a", ..plain() };
        let stranger = Asked { client: "198.51.100.1".parse().unwrap(), ..asked };

        let decision = decide(&router, &asked);

        assert_eq!((&decision.next, decision.lets_in()), (&next, lets_in), "{case}");
        assert_eq!(decide(&router, &stranger).next, status(403), "{case}, to a stranger");
    }
}

#[test]
fn a_strict_location_believes_less_than_others() {
    let secure = |mode| Filters { mode, ssl_redirect: SslRedirect::Always, ..Filters::default() };
    let mut l7 = site(vec![
        location(prefix("/strict"), to_web(), secure(Mode::Strict)),
        location(prefix("/"), to_web(), secure(Mode::Compat)),
    ]);
    let trusted = Prefix::new("10.0.0.0".parse().unwrap(), 8).into_iter().collect();
    let behind = Behind { words: Words::Believed, address: Address::Told, trusted };
    l7.edge.forwarding.behind = Some(behind);
    let router = Router::new(&l7);
    let headers = [("X-Forwarded-Proto".to_owned(), "https".to_owned())];
    let cases = [
        ("a stranger", "192.0.2.1", "/", proxied(None)),
        ("a stranger, strictly", "192.0.2.1", "/strict", redirected(308, "https://h/strict")),
        ("one in front, strictly", "10.0.0.1", "/strict", proxied(None)),
    ];
    for (case, addr, target, expected) in cases {
        let addr = addr.parse().unwrap();
        let arrived = Effective { addr, scheme: Scheme::Http, host: b"h", port: 80, word: None };
        let asked = Asked { target: target.as_bytes(), headers: Headers::Given(&headers), ..plain() };

        let (_, _, decision) = decide_by_words(&router, arrived, asked);

        assert_eq!(decision.next, expected, "{case}");
    }
}

#[test]
fn a_strict_host_is_had_by_its_own_handshake_alone() {
    let with = |mode| Filters { mode, ..Filters::default() };
    let cases = [
        (Mode::Strict, Some("a.example.com"), "A.example.com:443", None),
        (Mode::Strict, Some("b.example.com"), "a.example.com", Some(421)),
        (Mode::Strict, None, "a.example.com", None),
        (Mode::Compat, Some("b.example.com"), "a.example.com", None),
    ];
    for (mode, server_name, host, expected) in cases {
        let router = Router::new(&site(vec![location(prefix("/"), to_web(), with(mode))]));
        let host = host.as_bytes();
        let asked = Asked { scheme: Scheme::Https, server_name, host, named: host, ..plain() };

        let next = decide(&router, &asked).next;

        let status = match next {
            Next::Answer(Answer::Status(status)) => Some(status),
            _ => None,
        };
        assert_eq!(status, expected, "{mode:?} {server_name:?} {host:?}");
    }
}
