mod redirects;
mod strict;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::model::ObjectName;
use crate::model::expression::Variable;
use crate::model::l4::Prefix;
use crate::model::l7::forwarding::{Address, Behind, Words};
use crate::model::l7::policy::{Access, AddressSet, Cors, Limits, Origins, RequestHeaders};
use crate::model::l7::{
    Action, Blocked, Filters, HostMatch, L7, Listed, Location, Moved, Pattern, Piece, Policies, Redirect,
    Rewrite, Server, Template, Upstream, UpstreamName,
};

fn literal(text: &str) -> Piece {
    Piece::Literal(text.to_owned())
}

fn location(path: PathMatch, action: Action, filters: Filters) -> Location {
    Location { path, path_label: String::new(), ingress: None, backend: None, action, filters }
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn to_web() -> Action {
    Action::Proxy(UpstreamName("web".to_owned()))
}

/// One host without a name; `web` has an endpoint, `empty` has none.
fn site(locations: Vec<Location>) -> L7 {
    let endpoints = BTreeSet::from(["10.0.0.1:80".parse().unwrap()]);
    L7 {
        servers: [(HostMatch::Any, Server { locations, ..Server::default() })].into(),
        upstreams: [
            (UpstreamName("empty".to_owned()), Upstream::default()),
            (UpstreamName("web".to_owned()), Upstream { endpoints, ..Upstream::default() }),
        ]
        .into(),
        ..L7::default()
    }
}

fn ask_with(l7: &L7, scheme: Scheme, host: &str, target: &str, length: Option<u64>) -> Next {
    let (host, target) = (host.as_bytes(), target.as_bytes());
    let asked = Asked { scheme, host, named: host, target, length, ..plain() };
    decide(&Router::new(l7), &asked).next
}

#[test]
fn redirects_preflights_and_what_is_missing_come_before_who_may_enter() {
    let nobody = Access { denied: AddressSet::default(), allowed: Some(AddressSet::default()) };
    let cors = Cors {
        origins: Origins::Any,
        methods: String::new(),
        headers: String::new(),
        credentials: false,
        expose: None,
        max_age: 0,
    };
    let policies = Some(Arc::new(Policies { access: Some(nobody), cors: Some(cors), ..Policies::default() }));
    let closed = Filters { policies, ..Filters::default() };
    let to_https = Filters { ssl_redirect: SslRedirect::Always, ..closed.clone() };
    let elsewhere = Action::Redirect(Redirect {
        status: 301,
        location: Template(vec![literal("https://x")]),
        query: RedirectQuery::Drop,
    });
    let empty = Action::Proxy(UpstreamName("empty".to_owned()));
    let preflight = Next::Answer(Answer::Preflight);
    let cases = [
        ("a closed location", Action::Deny, closed.clone(), status(503), status(503)),
        ("a redirect", elsewhere, closed.clone(), redirected(301, "https://x"), preflight.clone()),
        ("to https", to_web(), to_https, redirected(308, "https://h/a"), preflight.clone()),
        ("no endpoints", empty, closed.clone(), status(503), preflight.clone()),
        ("all is there", to_web(), closed, status(403), preflight),
    ];
    for (case, action, filters, next, options) in cases {
        let router = Router::new(&site(vec![location(prefix("/"), action, filters)]));
        let asked = Asked { target: b"/a", ..plain() };

        assert_eq!(decide(&router, &asked).next, next, "{case}");
        assert_eq!(decide(&router, &Asked { method: "OPTIONS", ..asked }).next, options, "{case}");
    }
}

#[test]
fn who_is_blocked_gets_nothing_but_what_needs_no_location() {
    let blocked = Blocked {
        clients: Prefix::new("192.0.2.0".parse().unwrap(), 24).into_iter().collect(),
        agents: vec![Listed::parse("~*bot").unwrap()],
        referers: vec![Listed::parse("https://spam/").unwrap()],
    };
    let mut l7 = site(vec![
        location(prefix("/empty"), Action::Proxy(UpstreamName("empty".to_owned())), Filters::default()),
        location(prefix("/nobodys"), Action::DefaultBackend, Filters::default()),
        location(prefix("/"), to_web(), Filters::default()),
    ]);
    l7.blocked = Some(Arc::new(blocked));
    let router = Router::new(&l7);
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let cases = [
        ("nobody", "198.51.100.1", vec![], "/", proxied(None)),
        ("address", "192.0.2.1", vec![], "/", status(403)),
        ("address, where nobody is", "192.0.2.1", vec![], "/empty", status(503)),
        ("address, where nobody claims the path", "192.0.2.1", vec![], "/nobodys", status(403)),
        ("nobody, there", "198.51.100.1", vec![], "/nobodys", status(404)),
        ("agent", "198.51.100.1", header("User-Agent", "a Bot"), "/empty", status(403)),
        ("referer", "198.51.100.1", header("Referer", "https://spam/"), "/", status(403)),
        ("another referer", "198.51.100.1", header("Referer", "https://spam/a"), "/", proxied(None)),
    ];
    for (case, client, headers, target, expected) in cases {
        let client = client.parse().unwrap();
        let asked = Asked { target: target.as_bytes(), client, headers: Headers::Given(&headers), ..plain() };
        assert_eq!(decide(&router, &asked).next, expected, "{case}");
    }
}

#[test]
fn the_prefix_that_a_rewrite_cut_goes_along() {
    let capture = |n| Piece::Capture(n);
    let request = RequestHeaders {
        prefix: Some(Template(vec![literal("/api"), capture(1)])),
        ..RequestHeaders::default()
    };
    let policies = Some(Arc::new(Policies { request: Some(request), ..Policies::default() }));
    let rewrite = Rewrite {
        pattern: Pattern::unanchored("/api(/v[0-9])?/(.*)").unwrap(),
        target: Template(vec![literal("/"), capture(2)]),
    };
    let with = |rewrite| Filters { rewrite, policies: policies.clone(), ..Filters::default() };
    let next = |filters| ask(&site(vec![location(prefix("/"), to_web(), filters)]), "/api/v1/x");

    let rewritten = Next::Proxy {
        upstream: 1,
        side: Side::Primary,
        target: Some(b"/x".to_vec()),
        prefix: Some(b"/api/v1".to_vec()),
    };
    assert_eq!(next(with(Some(rewrite))), rewritten);
    assert_eq!(next(with(None)), proxied(None));
}

/// Whoever may not enter is counted, whoever is sent elsewhere is not.
#[test]
fn limits_count_what_is_neither_redirected_nor_missing() {
    let limits = Limits {
        ingress: ObjectName::new("default", "web"),
        per_second: None,
        per_minute: None,
        often_status: 503,
        at_once: Some(1),
        at_once_status: 503,
        by: None,
        exempt: AddressSet::default(),
    };
    let all = AddressSet::from_iter(Prefix::new("0.0.0.0".parse().unwrap(), 0));
    let open = Policies { limits: Some(limits.clone()), ..Policies::default() };
    let nobody = Access { denied: all.clone(), allowed: None };
    let closed = Policies { access: Some(nobody), ..open.clone() };
    let exempt = Policies { limits: Some(Limits { exempt: all, ..limits }), ..Policies::default() };
    let with =
        |policies: &Policies| Filters { policies: Some(Arc::new(policies.clone())), ..Filters::default() };
    let empty = Action::Proxy(UpstreamName("empty".to_owned()));
    let cases = [
        ("an upstream", to_web(), with(&open), Some(4), true),
        ("who may not enter", to_web(), with(&closed), Some(4), true),
        ("nothing there", Action::DefaultBackend, with(&open), None, true),
        ("exempt", to_web(), with(&exempt), None, false),
        ("no policies", to_web(), Filters::default(), None, false),
        ("a closed location", Action::Deny, with(&open), None, false),
        ("no endpoints", empty, with(&open), None, false),
        ("too large", to_web(), with(&open), Some(1 << 30), false),
        ("to https", to_web(), Filters { ssl_redirect: SslRedirect::Always, ..with(&open) }, None, false),
    ];
    for (case, action, filters, length, counts) in cases {
        let router = Router::new(&site(vec![location(prefix("/"), action, filters)]));

        let decision = decide(&router, &Asked { length, ..plain() });

        assert_eq!(decision.limits.is_some(), counts, "{case}");
    }
}

fn plain() -> Asked<'static> {
    Asked {
        method: "GET",
        scheme: Scheme::Http,
        host: b"h",
        named: b"h",
        target: b"/",
        length: None,
        port: 80,
        https_port: 443,
        client: "192.0.2.1".parse().unwrap(),
        server_name: None,
        shown: Shown::Plain,
        headers: Headers::Given(&[]),
        random: None,
    }
}

fn ask(l7: &L7, target: &str) -> Next {
    ask_with(l7, Scheme::Http, "h.example:8080", target, None)
}

fn proxied(target: Option<&str>) -> Next {
    Next::Proxy {
        upstream: 1,
        side: Side::Primary,
        target: target.map(|target| target.as_bytes().to_vec()),
        prefix: None,
    }
}

fn redirected(status: u16, location: &str) -> Next {
    Next::Answer(Answer::Redirect { status, location: location.as_bytes().to_vec() })
}

fn status(status: u16) -> Next {
    Next::Answer(Answer::Status(status))
}

#[test]
fn the_original_request_target_goes_upstream_without_a_rewrite() {
    let l7 = site(vec![location(prefix("/a"), to_web(), Filters::default())]);
    let cases = [
        ("plain", "/a/b?x=1", proxied(None)),
        ("compared decoded", "/%61", proxied(None)),
        ("compared with slashes merged", "//a//b", proxied(None)),
        ("compared with dots resolved", "/x/../a", proxied(None)),
        ("encoded slash splits", "/a%2fb", proxied(None)),
        ("above the root", "/../a", status(400)),
        ("broken escape", "/a%zz", status(400)),
        ("encoded nul", "/a%00", status(400)),
        ("no location", "/b", status(404)),
    ];
    for (case, target, next) in cases {
        assert_eq!(ask(&l7, target), next, "{case}");
    }
}

#[test]
fn a_location_without_endpoints_is_503_and_the_default_backend_404() {
    let cases = [
        ("no endpoints", Action::Proxy(UpstreamName("empty".to_owned())), 503),
        ("no such upstream", Action::Proxy(UpstreamName("gone".to_owned())), 503),
        ("denied", Action::Deny, 503),
        ("default backend", Action::DefaultBackend, 404),
    ];
    for (case, action, code) in cases {
        let l7 = site(vec![location(prefix("/"), action, Filters::default())]);
        assert_eq!(ask(&l7, "/"), status(code), "{case}");
    }
}

#[test]
fn the_default_backend_takes_what_no_location_takes() {
    let l7 = L7 { default_backend: Some(UpstreamName("web".to_owned())), ..site(vec![]) };
    let empty = L7 { default_backend: Some(UpstreamName("empty".to_owned())), ..site(vec![]) };

    assert_eq!(ask(&l7, "/x"), proxied(None));
    assert_eq!(ask(&empty, "/x"), status(404));
}

#[test]
fn rewrites_replace_the_whole_path() {
    let group = |n| Piece::Capture(n);
    let cases = [
        ("no groups", "/foo", vec![literal("/bar")], "/foo/x", Some("/bar")),
        ("second group", "/foo(/|$)(.*)", vec![literal("/"), group(2)], "/foo/a/b", Some("/a/b")),
        ("empty group", "/foo(/|$)(.*)", vec![literal("/"), group(2)], "/foo", Some("/")),
        ("group that took no part", "/foo(x)?(/.*)", vec![group(1), group(2)], "/foo/y", Some("/y")),
        ("group there is not", "/foo", vec![literal("/a"), group(9)], "/foo", Some("/a")),
        ("query appended", "/foo", vec![literal("/bar")], "/foo?x=1&y", Some("/bar?x=1&y")),
        // nginx 1.22 was asked.
        ("own query first", "/foo", vec![literal("/bar?z=1")], "/foo?x=1", Some("/bar?z=1&x=1")),
        ("own query alone", "/foo", vec![literal("/bar?z=1")], "/foo?", Some("/bar?z=1")),
        ("own query and no other", "/foo", vec![literal("/bar?z=1?")], "/foo?x=1", Some("/bar?z=1")),
        ("capture into the query", "/foo/(.*)", vec![literal("/?p="), group(1)], "/foo/a", Some("/?p=a")),
        (
            "it stays one argument",
            "/foo/(.*)",
            vec![literal("/?p="), group(1)],
            "/foo/a%26b=1%2B;%23%25%3F%20c/d",
            Some("/?p=a%26b=1%2B%3B%23%25%3F%20c/d"),
        ),
        ("a plus is one", "/foo/(.*)", vec![literal("/?p="), group(1)], "/foo/a+b", Some("/?p=a%2Bb")),
        // As in nginx, and how a path is made a query.
        (
            "unless nothing is escaped",
            "/foo/(.*)",
            vec![literal("/?"), group(1)],
            "/foo/a=1&b",
            Some("/?a=1&b"),
        ),
        (
            "before the query it is a path",
            "/foo/(.*)",
            vec![literal("/"), group(1)],
            "/foo/%26+",
            Some("/&+"),
        ),
        ("a bare ? keeps the query off", "/foo", vec![literal("/bar?")], "/foo?x=1", Some("/bar")),
        (
            "captures are escaped",
            "/foo/(.*)",
            vec![literal("/"), group(1)],
            "/foo/a%20b%3fc",
            Some("/a%20b%3Fc"),
        ),
        ("no leading slash", "/foo/(.*)", vec![group(1)], "/foo/a", Some("/a")),
        ("case does not count", "/FOO", vec![literal("/bar")], "/foo", Some("/bar")),
        ("not anchored", "o/b", vec![literal("/bar")], "/foo/b", Some("/bar")),
        ("no match", "/other", vec![literal("/bar")], "/foo", None),
    ];
    for (case, pattern, target, asked, expected) in cases {
        let rewrite = Rewrite { pattern: Pattern::unanchored(pattern).unwrap(), target: Template(target) };
        let filters = Filters { rewrite: Some(rewrite), ..Filters::default() };
        let l7 = site(vec![location(prefix("/"), to_web(), filters)]);
        assert_eq!(ask(&l7, asked), proxied(expected), "{case}");
    }
}

#[test]
fn app_root_answers_the_root_alone() {
    let mut l7 = site(vec![location(prefix("/"), to_web(), Filters::default())]);
    l7.servers.edit(|_, server| {
        server.app_root = Some(Template(vec![literal("/app")]));
    });

    assert_eq!(ask(&l7, "/"), redirected(302, "http://h.example:8080/app"));
    assert_eq!(ask(&l7, "/x/.."), redirected(302, "http://h.example:8080/app"));
    assert_eq!(ask(&l7, "/app"), proxied(None));
}

#[test]
fn policies_apply_in_the_order_of_ingress_nginx() {
    let redirect = |query| {
        Action::Redirect(Redirect { status: 301, location: Template(vec![literal("https://new/")]), query })
    };
    let secure = Filters { ssl_redirect: SslRedirect::Always, ..Filters::default() };
    let small = Filters { max_body_bytes: Some(10), ..secure.clone() };
    let empty = || Action::Proxy(UpstreamName("empty".to_owned()));
    let cases = [
        ("body size first", redirect(RedirectQuery::Drop), small.clone(), Some(11), status(413)),
        ("body size before deny", Action::Deny, small.clone(), Some(11), status(413)),
        (
            "a body of the limit passes",
            redirect(RedirectQuery::Drop),
            small,
            Some(10),
            redirected(301, "https://new/"),
        ),
        (
            "redirect before https",
            redirect(RedirectQuery::Drop),
            secure.clone(),
            None,
            redirected(301, "https://new/"),
        ),
        (
            "query appended",
            redirect(RedirectQuery::Append),
            secure.clone(),
            None,
            redirected(301, "https://new/?q"),
        ),
        (
            "https before no endpoints",
            empty(),
            secure.clone(),
            None,
            redirected(308, "https://h.example/x?q"),
        ),
        ("deny before https", Action::Deny, secure, None, status(503)),
    ];
    for (case, action, filters, length, next) in cases {
        let l7 = site(vec![location(prefix("/"), action, filters)]);
        assert_eq!(ask_with(&l7, Scheme::Http, "h.example:8080", "/x?q", length), next, "{case}");
    }
}

#[test]
fn the_health_check_answers_where_no_host_is_named() {
    let mut l7 = site(vec![location(prefix("/"), to_web(), Filters::default())]);
    l7.servers.insert(HostMatch::Exact("named".to_owned()), Server::default());
    let claimed = site(vec![location(prefix("/healthz"), to_web(), Filters::default())]);

    assert_eq!(ask_with(&l7, Scheme::Http, "10.0.0.1", "/healthz", None), Next::Answer(Answer::Healthy));
    assert_eq!(ask_with(&l7, Scheme::Http, "named", "/healthz", None), status(404));
    let tls = Asked { scheme: Scheme::Https, shown: Shown::Nothing, target: b"/healthz", ..plain() };
    assert_eq!(decide(&Router::new(&l7), &tls).next, proxied(None));
    // Whoever probes us may say that its own client came by https.
    let told = Asked { scheme: Scheme::Https, target: b"/healthz", ..plain() };
    assert_eq!(decide(&Router::new(&l7), &told).next, Next::Answer(Answer::Healthy));
    assert_eq!(ask_with(&claimed, Scheme::Http, "10.0.0.1", "/healthz", None), proxied(None));
}

#[test]
fn figures_are_told_to_this_host_where_no_host_is_named() {
    let mut l7 = site(vec![location(prefix("/"), to_web(), Filters::default())]);
    l7.servers.insert(HostMatch::Exact("named".to_owned()), Server::default());
    let router = Router::new(&l7);
    let ask = |host: &'static str, client: &str| {
        let client = client.parse().unwrap();
        let asked = Asked { host: host.as_bytes(), target: b"/nginx_status", client, ..plain() };
        decide(&router, &asked).next
    };

    assert_eq!(ask("10.0.0.1", "127.0.0.1"), Next::Answer(Answer::NginxStatus(String::new())));
    assert_eq!(ask("10.0.0.1", "::1"), Next::Answer(Answer::NginxStatus(String::new())));
    assert_eq!(ask("10.0.0.1", "198.51.100.9"), status(403));
    assert_eq!(ask("named", "127.0.0.1"), status(404));
}

#[test]
fn bytes_that_are_no_utf_8_stay_themselves_in_patterns() {
    let rewrite = Rewrite {
        pattern: Pattern::unanchored("/files/(.*)").unwrap(),
        target: Template(vec![literal("/"), Piece::Capture(1)]),
    };
    let filters = Filters { rewrite: Some(rewrite), ..Filters::default() };
    let l7 =
        site(vec![location(PathMatch::Regex(Pattern::anchored("/files/(.*)").unwrap()), to_web(), filters)]);

    assert_eq!(ask(&l7, "/files/caf%E9"), proxied(Some("/caf%E9")));
    assert_eq!(ask(&l7, "/files/%ff%C3%A9"), proxied(Some("/%FF%C3%A9")));
}
