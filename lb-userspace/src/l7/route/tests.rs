use proptest::prelude::*;

use super::*;
use crate::model::l7::{Action, Aliases, Location, Pattern, Server};

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.to_owned())
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn regex(pattern: &str) -> PathMatch {
    PathMatch::Regex(Pattern::anchored(pattern).unwrap())
}

/// Locations on any host, labelled by their number.
fn site_of(paths: &[PathMatch]) -> L7 {
    let locations = paths.iter().enumerate().map(|(i, path)| Location {
        path: path.clone(),
        path_label: i.to_string(),
        ingress: None,
        backend: None,
        action: Action::Deny,
        filters: Filters::default(),
    });
    let server = Server { locations: locations.collect(), ..Server::default() };
    L7 { servers: [(HostMatch::Any, server)].into(), ..L7::default() }
}

/// Number of the location that takes a path, and whether it adds a slash.
type Taken = (Option<usize>, bool);

fn find(router: &Router, path: &str) -> Taken {
    let found = router.site(b"").0.find(path.as_bytes());
    (found.route.labels.path.parse().ok(), found.add_slash)
}

#[test]
fn aliases_count_less_than_names_and_more_than_wildcards() {
    let host = |name: &str| HostMatch::Exact(name.to_owned());
    let servers = [host("a"), host("b"), host("n.x.example"), HostMatch::Wildcard("x.example".to_owned())];
    let servers = servers.into_iter().map(|host| (host, Server::default())).collect();
    let aliases = Aliases {
        exact: [("other".to_owned(), host("a"))].into(),
        below: [("example".to_owned(), host("a")), ("y.example".to_owned(), host("b"))].into(),
        patterns: [
            (Pattern::unanchored("^www[0-9]+\\.x").unwrap(), host("b")),
            (Pattern::unanchored("x").unwrap(), host("gone")),
        ]
        .into(),
    };
    let router = Router::new(&L7 { servers, aliases, ..L7::default() });
    let only_patterns = L7 {
        aliases: Aliases {
            patterns: [(Pattern::unanchored("^www[0-9]").unwrap(), HostMatch::Any)].into(),
            ..Aliases::default()
        },
        servers: [(HostMatch::Wildcard("x".to_owned()), Server::default())].into(),
        ..L7::default()
    };
    let patterns = Router::new(&only_patterns);
    let cases = [
        ("a name", &router, "Other:80", "a", HostFound::Exact),
        ("a server's name", &router, "n.x.example", "n.x.example", HostFound::Exact),
        ("any depth", &router, "1.2.example", "a", HostFound::Alias),
        ("the longest suffix", &router, "1.2.y.example", "b", HostFound::Alias),
        ("more than a wildcard", &router, "1.x.example", "a", HostFound::Alias),
        ("not the suffix itself", &router, "example", "_", HostFound::Unnamed),
        ("a pattern", &router, "WWW1.x", "b", HostFound::Alias),
        ("a pattern more than a wildcard", &patterns, "www1.x", "_", HostFound::Alias),
        ("no pattern", &patterns, "ftp.x", "*.x", HostFound::Wildcard),
    ];
    for (case, router, name, label, found) in cases {
        let (site, how) = router.site(name.as_bytes());
        assert_eq!((host_label(&site.host).as_str(), how), (label, found), "{case}");
    }
}

#[test]
fn an_endpoint_has_left_when_no_upstream_has_it_any_more() {
    let state = |upstreams: &[(&str, &[u16])]| {
        let upstreams = upstreams.iter().map(|(name, ports)| {
            let endpoints = ports.iter().map(|port| SocketAddr::from(([10, 0, 0, 1], *port)));
            (
                UpstreamName((*name).to_owned()),
                Upstream { endpoints: endpoints.collect(), ..Upstream::default() },
            )
        });
        Router::new(&L7 { upstreams: upstreams.collect(), ..L7::default() })
    };
    let before = state(&[("a", &[1, 2, 3]), ("b", &[3])]);

    let after = state(&[("a", &[2, 4]), ("b", &[3])]);

    assert_eq!(after.left_endpoints(&before), [SocketAddr::from(([10, 0, 0, 1], 1))].into());
    assert_eq!(before.left_endpoints(&before), HashSet::new());
}

#[test]
fn hosts_are_found_exactly_then_by_wildcard_then_not_at_all() {
    let servers = [
        HostMatch::Exact("a.example.com".to_owned()),
        HostMatch::Wildcard("example.com".to_owned()),
        HostMatch::Any,
    ];
    let servers = servers.into_iter().map(|host| (host, Server::default())).collect();
    let router = Router::new(&L7 { servers, ..L7::default() });
    let (named, wild, none) = (
        ("a.example.com", HostFound::Exact),
        ("*.example.com", HostFound::Wildcard),
        ("_", HostFound::Unnamed),
    );
    let long = format!("{}.example.com", "a".repeat(300));
    let cases = [
        ("exact", "a.example.com", named),
        ("upper case", "A.Example.COM", named),
        ("port removed", "a.example.com:8080", named),
        ("trailing dot accepted", "a.example.com.", named),
        ("trailing dot and port", "a.example.com.:80", named),
        ("wildcard", "b.example.com", wild),
        ("wildcard takes one label only", "b.c.example.com", none),
        ("wildcard needs a label", "example.com", none),
        ("an empty label is none", ".example.com", none),
        ("suffix is no wildcard", "badexample.com", none),
        ("unknown name", "example.org", none),
        ("address", "10.0.0.1", none),
        ("ipv6 address with port", "[2001:db8::1]:80", none),
        ("empty", "", none),
        ("longer than a name can be", &long, none),
    ];
    for (case, host, expected) in cases {
        let (site, found) = router.site(host.as_bytes());
        assert_eq!((host_label(&site.host).as_str(), found), expected, "{case}");
    }
}

#[test]
fn a_snapshot_without_a_catch_all_still_has_one() {
    let router = Router::new(&L7::default());

    let (site, found) = router.site(b"anything");

    assert_eq!(found, HostFound::Unnamed);
    assert_eq!(site.find(b"/").route.action, RouteAction::DefaultBackend(None));
}

#[test]
fn paths_are_taken_as_ingress_nginx_does() {
    let cases: [(&str, &[PathMatch], &str, Taken); 27] = [
        ("exact takes itself", &[exact("/foo")], "/foo", (Some(0), false)),
        ("exact takes nothing below", &[exact("/foo")], "/foo/", (None, false)),
        ("exact is case-sensitive", &[exact("/foo")], "/Foo", (None, false)),
        ("prefix takes itself", &[prefix("/foo")], "/foo", (Some(0), false)),
        ("prefix takes a slash", &[prefix("/foo")], "/foo/", (Some(0), false)),
        ("prefix takes what is below", &[prefix("/foo")], "/foo/a/b", (Some(0), false)),
        ("prefix ends at a slash", &[prefix("/foo")], "/foobar", (None, false)),
        ("prefix is case-sensitive", &[prefix("/foo")], "/FOO", (None, false)),
        ("root takes everything", &[prefix("/")], "/any/thing", (Some(0), false)),
        ("root takes itself", &[prefix("/")], "/", (Some(0), false)),
        ("longest prefix wins", &[prefix("/a/b"), prefix("/a"), prefix("/")], "/a/b/c", (Some(0), false)),
        ("shorter prefix", &[prefix("/a/b"), prefix("/a"), prefix("/")], "/a/c", (Some(1), false)),
        ("shortest prefix", &[prefix("/a/b"), prefix("/a"), prefix("/")], "/ab", (Some(2), false)),
        ("exact beats prefix", &[exact("/a"), prefix("/a")], "/a", (Some(0), false)),
        ("prefix below exact", &[exact("/a"), prefix("/a")], "/a/", (Some(1), false)),
        ("slash prefix adds its slash", &[prefix("/foo/"), prefix("/")], "/foo", (Some(0), true)),
        ("slash prefix takes itself", &[prefix("/foo/"), prefix("/")], "/foo/", (Some(0), false)),
        ("slash prefix takes what is below", &[prefix("/foo/"), prefix("/")], "/foo/a", (Some(0), false)),
        ("exact before a slash is added", &[prefix("/foo/"), exact("/foo")], "/foo", (Some(1), false)),
        ("prefix before a slash is added", &[prefix("/foo/"), prefix("/foo")], "/foo", (Some(1), false)),
        ("exact adds its slash", &[exact("/foo/"), prefix("/")], "/foo", (Some(0), true)),
        ("exact takes itself and its slash", &[exact("/foo/"), prefix("/")], "/foo/", (Some(0), false)),
        ("exact takes nothing below its slash", &[exact("/foo/"), prefix("/")], "/foo/a", (Some(1), false)),
        ("prefix before exact adds its slash", &[exact("/foo/"), prefix("/foo")], "/foo", (Some(1), false)),
        ("duplicates: the first", &[prefix("/a"), prefix("/a")], "/a", (Some(0), false)),
        ("nothing matches", &[prefix("/a"), exact("/b")], "/c", (None, false)),
        (
            "a prefix longer than the length index",
            &[prefix("/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/01"), prefix("/")],
            "/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/01/x",
            (Some(0), false),
        ),
    ];
    for (case, paths, path, expected) in cases {
        assert_eq!(find(&Router::new(&site_of(paths)), path), expected, "{case}");
    }
}

#[test]
fn regexes_are_case_insensitive_anchored_at_the_start_and_tried_in_order() {
    let paths = [regex("/foo/bar/[a-z]{3}"), regex("/foo/bar/bar"), regex("/foo"), regex("/x$")];
    let router = Router::new(&site_of(&paths));
    let cases = [
        ("the longer pattern is first", "/foo/bar/bar", Some(0)),
        ("anchored at the start only", "/foobar", Some(2)),
        ("case does not count", "/FooBar", Some(2)),
        ("not in the middle", "/a/foo", None),
        ("an end written down", "/xy", None),
        ("an end that is there", "/X", Some(3)),
        ("bytes that are no text", "/foo\u{fffd}", Some(2)),
    ];
    for (case, path, expected) in cases {
        assert_eq!(find(&router, path), (expected, false), "{case}");
    }
}

/// The plain reading of the rules, location by location.
fn scan(paths: &[PathMatch], path: &str) -> Taken {
    let takes = |location: &PathMatch| match location {
        PathMatch::Exact(exact) => exact == path,
        PathMatch::Prefix(prefix) => match prefix.strip_suffix('/') {
            Some(_) => path.starts_with(prefix.as_str()),
            None => path.strip_prefix(prefix.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/')),
        },
        PathMatch::Regex(pattern) => pattern.regex().is_match(path.as_bytes()),
    };
    let slash = |location: &PathMatch| match location {
        PathMatch::Exact(p) | PathMatch::Prefix(p) => *p == format!("{path}/"),
        PathMatch::Regex(_) => false,
    };
    let first = paths.iter().position(takes);
    let whole = paths.iter().any(|location| match location {
        PathMatch::Exact(p) | PathMatch::Prefix(p) => p == path,
        PathMatch::Regex(_) => false,
    });
    match paths.iter().position(slash).filter(|at| !whole && first.is_none_or(|first| *at < first)) {
        Some(at) => (Some(at), true),
        None => (first, false),
    }
}

fn any_path() -> impl Strategy<Value = String> {
    "(/[ab]{1,2}){1,4}/?|/"
}

proptest! {
    #[test]
    fn the_index_finds_what_a_scan_finds(
        paths in proptest::collection::vec(
            prop_oneof![
                any_path().prop_map(PathMatch::Exact),
                any_path().prop_map(PathMatch::Prefix),
                any_path().prop_map(|path| regex(&path)),
            ],
            0..8,
        ),
        path in any_path(),
    ) {
        let router = Router::new(&site_of(&paths));
        prop_assert_eq!(find(&router, &path), scan(&paths, &path));
    }

    #[test]
    fn a_host_that_nobody_named_has_the_site_for_all(host in proptest::collection::vec(any::<u8>(), 0..300)) {
        let router = Router::new(&L7::default());
        prop_assert!(std::ptr::eq(router.site(&host).0, router.site(b"").0));
    }
}
