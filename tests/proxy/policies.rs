//! What a location does to requests and responses beyond proxying them.

use std::sync::Arc;

use penstock::model::expression::Expression;
use penstock::model::l4::Prefix;
use penstock::model::l7::policy::{
    Access, AddressSet, Cors, FilledHeader, Header, Origin, Origins, Persistence, RequestHeaders,
    ResponseHeaders, Rewriting, Swap,
};
use penstock::model::l7::{Filters, Policies, Responses};

use crate::rig::{Backend, Reply, Rig, nobody, to, to_with};

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example.com\r\n\r\n";

fn rig(backend: std::net::SocketAddr, policies: Policies) -> Rig {
    let policies = Some(Arc::new(policies));
    Rig::start(to_with(&[backend], Filters { policies, ..Filters::default() }))
}

fn addresses(addr: &str, bits: u8) -> AddressSet {
    Prefix::new(addr.parse().unwrap(), bits).into_iter().collect()
}

fn cors() -> Cors {
    Cors {
        origins: Origins::Listed(vec![Origin::Exact("https://a.example.com".to_owned())]),
        methods: "GET, PUT".to_owned(),
        headers: "X-Asked".to_owned(),
        credentials: true,
        expose: Some("X-Told".to_owned()),
        max_age: 600,
    }
}

/// Names and values of the headers that start so, in order.
fn starting<'r>(reply: &'r Reply, start: &str) -> Vec<&'r str> {
    reply.head.lines().filter(|line| line.to_ascii_lowercase().starts_with(start)).collect()
}

#[test]
fn who_is_not_on_the_list_is_answered_403_and_the_backend_is_not_asked() {
    let backend = Backend::mirror();
    let outside = Access { denied: AddressSet::default(), allowed: Some(addresses("10.0.0.0", 8)) };
    let inside = Access { denied: AddressSet::default(), allowed: Some(addresses("127.0.0.0", 8)) };

    let turned_away = rig(backend.addr, Policies { access: Some(outside), ..Policies::default() }).ask(GET);
    assert_eq!((turned_away.status, backend.connections()), (403, 0));

    assert_eq!(
        rig(backend.addr, Policies { access: Some(inside), ..Policies::default() }).ask(GET).status,
        200
    );
}

#[test]
fn an_allowed_origin_is_told_so_by_headers_that_replace_the_backends() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\nAccess-Control-Max-Age: 1\r\nVary: Accept\r\n\
         Content-Length: 2\r\n\r\nok",
    );
    let rig = rig(backend.addr, Policies { cors: Some(cors()), ..Policies::default() });

    let reply = rig.ask(GET);

    assert_eq!(
        starting(&reply, "access-control-"),
        [
            "Access-Control-Allow-Origin: https://a.example.com",
            "Access-Control-Allow-Credentials: true",
            "Access-Control-Expose-Headers: X-Told",
            "Access-Control-Allow-Methods: GET, PUT",
            "Access-Control-Allow-Headers: X-Asked",
            "Access-Control-Max-Age: 600",
        ]
    );
    assert_eq!(starting(&reply, "vary:"), ["Vary: Accept", "Vary: Origin"]);
    assert_eq!(reply.text(), "ok");
}

#[test]
fn another_origin_gets_the_backends_own_headers_and_its_options_reach_the_backend() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://own\r\nContent-Length: 0\r\n\r\n",
    );
    let rig = rig(backend.addr, Policies { cors: Some(cors()), ..Policies::default() });

    for method in ["GET", "OPTIONS"] {
        let reply =
            rig.ask(&format!("{method} /a HTTP/1.1\r\nHost: h\r\nOrigin: https://evil.example\r\n\r\n"));

        assert_eq!(
            starting(&reply, "access-control-"),
            ["Access-Control-Allow-Origin: https://own"],
            "{method}"
        );
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_preflight_is_answered_204_to_anybody_and_keeps_the_connection() {
    let backend = Backend::mirror();
    let closed = Access { denied: AddressSet::default(), allowed: Some(AddressSet::default()) };
    let any = Cors { origins: Origins::Any, credentials: false, expose: None, ..cors() };
    let rig = rig(backend.addr, Policies { access: Some(closed), cors: Some(any), ..Policies::default() });
    let mut client = rig.client();

    client.send("OPTIONS /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let reply = client.reply();
    client.send(GET);
    let refused = client.reply();

    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("content-type"), Some("text/plain charset=UTF-8"));
    assert_eq!(reply.header("content-length"), Some("0"));
    assert_eq!(
        starting(&reply, "access-control-"),
        [
            "Access-Control-Allow-Origin: *",
            "Access-Control-Allow-Methods: GET, PUT",
            "Access-Control-Allow-Headers: X-Asked",
            "Access-Control-Max-Age: 600",
        ]
    );
    // A script may read why it was refused.
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, Some("*")));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn headers_of_ours_are_on_answers_of_upstreams_and_on_error_pages() {
    let response = ResponseHeaders { set: vec![header("X-Frame-Options", "DENY"), header("X-Gone", "")] };
    let policies = Policies { response: Some(response), ..Policies::default() };
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nX-Frame-Options: SAMEORIGIN\r\nX-Gone: x\r\nX-Frame: y\r\nContent-Length: 0\r\n\r\n",
    );

    let answered = rig(backend.addr, policies.clone()).ask(GET);
    let failed = rig(nobody(), policies).ask(GET);

    assert_eq!(starting(&answered, "x-"), ["X-Frame: y", "X-Frame-Options: DENY"]);
    assert_eq!((failed.status, starting(&failed, "x-")), (502, vec!["X-Frame-Options: DENY"]));
}

#[test]
fn the_upstream_is_told_another_host_and_also_the_clients() {
    let backend = Backend::mirror();
    let request =
        RequestHeaders { host: Expression::parse("internal.$host").ok(), ..RequestHeaders::default() };
    let rig = rig(backend.addr, Policies { request: Some(request), ..Policies::default() });

    let text = rig.ask(GET).text().to_ascii_lowercase();

    assert!(text.contains("\r\nhost: internal.h\r\n"), "{text}");
    assert!(text.contains("\r\nx-forwarded-host: h\r\n"), "{text}");
    assert_eq!(text.matches("\nhost:").count(), 1, "{text}");
}

fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}

#[test]
fn headers_for_every_upstream_take_the_place_of_the_clients_and_of_ours() {
    let backend = Backend::mirror();
    let filled = |name: &str, value: &str| FilledHeader {
        name: name.to_owned(),
        value: Expression::parse(value).unwrap(),
    };
    let set = vec![
        filled("X-Client", "$remote_addr asks $host$uri"),
        filled("X-Mine", ""),
        filled("x-scheme", "ours"),
        filled("Host", "$http_x_tenant.internal"),
    ];
    let request = RequestHeaders { set, ..RequestHeaders::default() };
    let rig = rig(backend.addr, Policies { request: Some(request), ..Policies::default() });

    let text = rig
        .ask("GET /a%0d%0ab HTTP/1.1\r\nHost: h\r\nX-Mine: 1\r\nX-Client: 2\r\nX-Tenant: t\r\n\r\n")
        .text();

    let lines: Vec<_> = text.lines().collect();
    assert!(lines.contains(&"X-Client: 127.0.0.1 asks h/ab"), "{text}");
    assert!(lines.contains(&"Host: t.internal"), "{text}");
    assert!(lines.contains(&"x-scheme: ours"), "{text}");
    let named = |name: &str| lines.iter().filter(|line| line.to_ascii_lowercase().starts_with(name)).count();
    assert_eq!(["x-client:", "x-mine:", "x-scheme:", "host:"].map(named), [1, 0, 1, 1], "{text}");
}

#[test]
fn what_every_response_says_is_on_answers_and_error_pages() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nX-Powered-By: us\r\nX-Frame-Options: SAMEORIGIN\r\n\
         Content-Length: 0\r\n\r\n",
    );
    let responses = Responses {
        names_server: true,
        hidden: vec!["x-powered-by".to_owned()],
        set: vec![header("X-Frame-Options", "DENY"), header("X-Both", "all")],
        ..Responses::default()
    };
    let own = ResponseHeaders { set: vec![header("x-both", "location")] };
    let policies = Some(Arc::new(Policies { response: Some(own), ..Policies::default() }));
    let filters = Filters { policies, ..Filters::default() };
    let passing = Responses { passes_server: true, ..responses.clone() };
    let rig = |responses, filters| {
        let mut l7 = to_with(&[backend.addr], filters);
        l7.responses = responses;
        Rig::start(l7)
    };
    let seen = |reply: &Reply| {
        ["server", "x-powered-by", "x-frame-options", "x-both"]
            .map(|name| reply.header(name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());

    let answered = rig(responses.clone(), Filters::default()).ask(GET);
    assert_eq!(seen(&answered), [some("nginx"), None, some("DENY"), some("all")]);

    let refused = rig(responses.clone(), Filters::default()).ask("nonsense\r\n\r\n");
    assert_eq!((refused.status, seen(&refused)), (400, [some("nginx"), None, some("DENY"), some("all")]));

    let passed = rig(passing, filters).ask(GET);
    assert_eq!(seen(&passed), [some("gunicorn"), None, some("DENY"), some("location")]);
    assert_eq!(starting(&passed, "x-both:").len(), 1);

    let plain = Rig::start(to(&[backend.addr])).ask(GET);
    assert_eq!(seen(&plain), [None, some("us"), some("SAMEORIGIN"), None]);
}

#[test]
fn the_names_an_upstream_knows_itself_by_become_those_of_the_client() {
    let backend = Backend::saying(
        "HTTP/1.1 302 Found\r\nLocation: http://internal/a?b=c\r\nSet-Cookie: s=1; Path=/app/x; Domain=internal\r\n\
         Refresh: 5; URL=http://internal/\r\nSet-Cookie: t=2; Path=/\r\nContent-Length: 0\r\n\r\n",
    );
    let swap = |from: &str, to: &str| {
        Some(Swap { from: Expression::parse(from).unwrap(), to: Expression::parse(to).unwrap() })
    };
    let rewriting = Rewriting {
        cookie_domain: swap("internal", "$host"),
        cookie_path: swap("/app/", "/"),
        redirect: swap("http://internal/", "https://$host/app/"),
    };
    let rig = rig(backend.addr, Policies { rewriting: Some(rewriting), ..Policies::default() });

    let reply = rig.ask(GET);

    assert_eq!(reply.header("location"), Some("https://h/app/a?b=c"));
    assert_eq!(reply.header("refresh"), Some("5; URL=https://h/app/"));
    assert_eq!(
        starting(&reply, "set-cookie:"),
        ["Set-Cookie: s=1; Path=/x; Domain=h", "Set-Cookie: t=2; Path=/"]
    );
}

const UPGRADE: &str = "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn an_upstream_of_http_1_0_gets_whole_bodies_and_a_connection_for_each_request() {
    let backend = Backend::mirror();
    let request = RequestHeaders { speaks_http10: true, ..RequestHeaders::default() };
    let rig = rig(backend.addr, Policies { request: Some(request), ..Policies::default() });
    let mut client = rig.client();

    client.send("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let text = client.reply().text();
    client.send(UPGRADE);
    let upgrade = client.reply().text();

    assert!(text.starts_with("POST /a HTTP/1.0\r\nHost: h\r\n"), "{text}");
    assert!(text.contains("Content-Length: 3\r\n") && !text.contains("chunked"), "{text}");
    assert!(text.ends_with("\r\n\r\nabc"), "{text}");
    assert!(!upgrade.to_ascii_lowercase().contains("upgrade"), "{upgrade}");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn an_upstream_is_told_what_becomes_of_its_connection() {
    let backend = Backend::mirror();
    for (connection, line) in
        [(Persistence::Close, "connection: close"), (Persistence::KeepAlive, "connection: keep-alive")]
    {
        let request = RequestHeaders { connection: Some(connection), ..RequestHeaders::default() };
        let rig = rig(backend.addr, Policies { request: Some(request), ..Policies::default() });

        for asked in [GET, UPGRADE] {
            let text = rig.ask(asked).text().to_ascii_lowercase();
            let lines: Vec<_> = text.lines().filter(|line| line.starts_with("connection:")).collect();
            assert_eq!(lines, [line], "{text}");
        }
    }
}
