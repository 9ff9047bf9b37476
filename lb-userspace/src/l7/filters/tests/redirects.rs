//! Where clients are sent, and in which words.

use super::*;

#[test]
fn redirects_are_written_as_their_location_wants() {
    let style = RedirectStyle { status: 301, keeps_slash: true, names_port: true, is_relative: true };
    let filters = Filters {
        ssl_redirect: SslRedirect::Always,
        redirects: Arc::new(style.clone()),
        ..Filters::default()
    };
    let absolute = Filters {
        ssl_redirect: SslRedirect::Never,
        redirects: Arc::new(RedirectStyle { is_relative: false, ..style }),
        ..Filters::default()
    };
    let l7 = site(vec![
        location(prefix("/dir/"), to_web(), filters.clone()),
        location(prefix("/far/"), to_web(), absolute),
        location(prefix("/"), to_web(), filters),
    ]);
    let router = Router::new(&l7);
    let cases = [
        ("to https", "/a/", 80, redirected(301, "https://h:443/a/")),
        ("slash, relative", "/dir?x", 80, redirected(301, "/dir/?x")),
        ("slash, port", "/far", 8080, redirected(301, "http://h:8080/far/")),
        ("slash, usual port", "/far", 80, redirected(301, "http://h/far/")),
    ];
    for (case, target, port, expected) in cases {
        let asked = Asked { target: target.as_bytes(), port, ..plain() };
        assert_eq!(decide(&router, &asked).next, expected, "{case}");
    }
}

#[test]
fn https_redirects_drop_the_port_and_one_trailing_slash() {
    let filters = Filters { ssl_redirect: SslRedirect::Always, ..Filters::default() };
    let l7 = site(vec![location(prefix("/"), to_web(), filters)]);
    let cases = [
        ("root", "h", "/", redirected(308, "https://h")),
        ("port", "h:8080", "/a", redirected(308, "https://h/a")),
        ("trailing slash", "h", "/a/", redirected(308, "https://h/a")),
        ("one slash only", "h", "/a//", redirected(308, "https://h/a/")),
        ("query", "h", "/a/?x=1", redirected(308, "https://h/a/?x=1")),
        ("raw target", "h", "/a%20b//c", redirected(308, "https://h/a%20b//c")),
        ("ipv6", "[::1]:80", "/a", redirected(308, "https://[::1]/a")),
    ];
    for (case, host, target, next) in cases {
        assert_eq!(ask_with(&l7, Scheme::Http, host, target, None), next, "{case}");
    }
    assert_eq!(ask_with(&l7, Scheme::Https, "h", "/", None), proxied(None));
}

#[test]
fn a_rewrite_to_a_url_redirects() {
    let rewrite = Rewrite {
        pattern: Pattern::unanchored("/foo/(.*)").unwrap(),
        target: Template(vec![literal("https://other.example/"), Piece::Capture(1)]),
    };
    let filters = Filters { rewrite: Some(rewrite), ..Filters::default() };
    let l7 = site(vec![location(prefix("/"), to_web(), filters)]);

    assert_eq!(ask(&l7, "/foo/a"), redirected(302, "https://other.example/a"));
    assert_eq!(ask(&l7, "/foo/a?x=1"), redirected(302, "https://other.example/a?x=1"));
    assert_eq!(ask(&l7, "/foo/a%26"), redirected(302, "https://other.example/a&"));
    assert_eq!(ask(&l7, "/foo/http://evil/"), redirected(302, "https://other.example/http:/evil/"));
}

#[test]
fn a_prefix_written_with_a_slash_adds_it_to_the_path_without() {
    let l7 = site(vec![location(prefix("/foo/"), to_web(), Filters::default())]);
    let cases = [
        ("bare", "/foo", redirected(301, "http://h.example/foo/")),
        ("with a query", "/foo?x=1", redirected(301, "http://h.example/foo/?x=1")),
        ("with an empty query", "/foo?", redirected(301, "http://h.example/foo/")),
        ("slash is there", "/foo/", proxied(None)),
        ("longer name", "/foobar", status(404)),
    ];
    for (case, target, next) in cases {
        assert_eq!(ask(&l7, target), next, "{case}");
    }
}

#[test]
fn a_redirect_expands_what_its_regex_location_captured() {
    let redirect = |query| {
        let location = Template(vec![literal("https://new.example/"), Piece::Capture(1)]);
        Action::Redirect(Redirect { status: 301, location, query })
    };
    let path = || PathMatch::Regex(Pattern::anchored("/old/(.*)").unwrap());
    let dropped = site(vec![location(path(), redirect(RedirectQuery::Drop), Filters::default())]);
    let appended = site(vec![location(path(), redirect(RedirectQuery::Append), Filters::default())]);

    assert_eq!(ask(&dropped, "/old/x?q=1"), redirected(301, "https://new.example/x"));
    assert_eq!(ask(&appended, "/old/x?q=1"), redirected(301, "https://new.example/x?q=1"));
}

#[test]
fn the_https_redirect_names_no_port_unless_asked_to() {
    let cases = [
        ("ours", "h:8080", false, "https://h/a"),
        ("none", "h", false, "https://h/a"),
        ("another one", "h:9090", false, "https://h/a"),
        ("an address", "[::1]:8080", false, "https://[::1]/a"),
        ("use-port-in-redirects", "h:8080", true, "https://h:8443/a"),
    ];
    for (case, host, names_port, expected) in cases {
        let redirects = Arc::new(RedirectStyle { names_port, ..RedirectStyle::default() });
        let filters = Filters { ssl_redirect: SslRedirect::Always, redirects, ..Filters::default() };
        let router = Router::new(&site(vec![location(prefix("/"), to_web(), filters)]));
        let host = host.as_bytes();
        let asked = Asked { host, named: host, target: b"/a", port: 8080, https_port: 8443, ..plain() };

        assert_eq!(decide(&router, &asked).next, redirected(308, expected), "{case}");
    }
}

#[test]
fn a_redirect_says_of_its_request_what_it_is_asked_to() {
    let told = Piece::Variable;
    let cases = [
        (vec![literal("https://x"), told(Variable::RequestUri)], "https://x/a%20b/?c=%2F"),
        (
            vec![literal("https://x"), told(Variable::Uri), literal("?"), told(Variable::Args)],
            "https://x/a%20b/?c=%2F",
        ),
        (vec![told(Variable::Scheme), literal("://new."), told(Variable::Host)], "http://new.h"),
        (vec![literal("x://"), told(Variable::BestHost)], "x://H:81"),
        (vec![literal("//"), told(Variable::Host)], "http://H//h"),
        (
            vec![
                literal("x://x/"),
                told(Variable::RequestMethod),
                literal("/"),
                told(Variable::Argument("c".to_owned())),
                literal("/"),
                told(Variable::Header("x_tenant".to_owned())),
                told(Variable::Cookie("none".to_owned())),
            ],
            "x://x/GET/%2F/blue",
        ),
        (
            vec![literal("https://x?to="), told(Variable::EscapedRequestUri)],
            "https://x?to=%2Fa%2520b%2F%3Fc%3D%252F",
        ),
    ];
    for (pieces, expected) in cases {
        let redirect = Redirect { status: 301, location: Template(pieces), query: RedirectQuery::Drop };
        let l7 = site(vec![location(prefix("/"), Action::Redirect(redirect), Filters::default())]);
        let headers = [("X-Tenant".to_owned(), "blue".to_owned())];
        let headers = Headers::Given(&headers);
        let asked = Asked { host: b"H:81", named: b"H:81", target: b"/a%20b/?c=%2F", headers, ..plain() };

        assert_eq!(decide(&Router::new(&l7), &asked).next, redirected(301, expected), "{expected}");
    }
}

#[test]
fn a_host_that_has_moved_sends_everybody_on_by_the_same_scheme() {
    let twin = Server { moved: Some(Moved { to: "h".to_owned(), status: 308 }), ..Server::default() };
    let mut l7 = site(vec![]);
    l7.servers.insert(HostMatch::Exact("www.h".to_owned()), twin);
    let cases = [
        ("the scheme's port", Scheme::Http, "www.h", "/x", "http://h:80/x"),
        ("so with tls", Scheme::Https, "www.h", "/x?y", "https://h:443/x?y"),
        ("the client's port", Scheme::Http, "WWW.h:8080", "/x", "http://h:8080/x"),
        ("one slash cut", Scheme::Http, "www.h", "/x//", "http://h:80/x/"),
        ("the root", Scheme::Https, "www.h", "/", "https://h:443"),
    ];
    for (case, scheme, host, target, location) in cases {
        assert_eq!(ask_with(&l7, scheme, host, target, None), redirected(308, location), "{case}");
    }
}
