use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::super::client::Effective;
use super::super::client_auth::Session;
use super::super::filters::Scheme;
use super::super::h1::Request;
use super::super::h1::head::{Lines, Sizes};
use super::super::heads::Client;
use super::super::upstream::{Attempt, Record, Traffic};
use super::*;
use crate::model::ObjectName;
use crate::model::l7::log::{DEFAULT_FORMAT, Escape, Format};
use crate::model::l7::{
    Action, HostMatch, L7, Listed, Location, PathMatch, Server, ServicePort, Upstream, UpstreamName,
};

const HEAD: &str = "GET /a%20b/x?q=1&Name=v HTTP/1.1\r\nHost: Shop.Example.com:8080\r\nUser-Agent: curl/8 \"x\"\r\n\
    Referer: http://r/\r\nAuthorization: Basic YWxpY2U6cw==\r\nCookie: a=1; sid=abc\r\nX-Two: one\r\nX-Two: two\r\n\
    X-Forwarded-For: 192.0.2.9\r\nContent-Type: text/plain\r\nX-Empty:\r\n\r\n";

fn l7(log: AccessLog) -> L7 {
    let name = UpstreamName("prod-web-8080".to_owned());
    let location = Location {
        path: PathMatch::Prefix("/".to_owned()),
        path_label: "/app".to_owned(),
        ingress: Some(ObjectName::new("prod", "shop")),
        backend: Some(Arc::new(ServicePort {
            service: "web".to_owned(),
            port: "8080".to_owned(),
            upstream: name.clone(),
        })),
        action: Action::Proxy(name.clone()),
        filters: Default::default(),
    };
    let mut l7 = L7 { log: Some(Arc::new(log)), ..L7::default() };
    l7.upstreams.insert(name, Upstream::default());
    let host = HostMatch::Exact("shop.example.com".to_owned());
    l7.servers.insert(host, Server { locations: vec![location], ..Server::default() });
    l7
}

fn client() -> Client {
    let addr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
    let server = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    Client {
        addr,
        remote_port: 40_001,
        scheme: Scheme::Http,
        server,
        port: 80,
        session: Session::Plain,
        handshake: None,
        told: Some(Box::new(([198, 51, 100, 8], 4000).into())),
        serial: 77,
    }
}

fn endpoint(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8080))
}

/// A first attempt that failed at once and a second one that answered 30 ms after it began.
fn twice() -> Record {
    let mut record = Record::default();
    let (addr, response) = (endpoint(1), Duration::ZERO);
    record.push(Attempt {
        addr,
        status: 502,
        connect: None,
        header: None,
        response,
        bytes: 0,
        traffic: Traffic::default(),
    });
    let (addr, response) = (endpoint(2), Duration::from_millis(30));
    let (connect, header) = (Some(Duration::ZERO), Some(response));
    record.push(Attempt {
        addr,
        status: 200,
        connect,
        header,
        response,
        bytes: 512,
        traffic: Traffic { sent: 80, received: 640 },
    });
    record
}

/// The line of the request above, or of what was none.
fn logged(format: &str, escape: Escape, is_request: bool, tally: Tally, record: &Record) -> String {
    let (format, _) = Format::compile(format, escape);
    let router = Router::new(&l7(AccessLog { format: format.clone(), ..AccessLog::default() }));
    let mut lines = Lines::new();
    let request =
        Request::parse(HEAD.as_bytes(), &mut lines, Sizes::default()).expect("legal").expect("whole");
    let route = router.site(request.host).0.find(b"/").route;
    let place = Place { route, upstream: upstream_name(route), stand_in: "", alternative: "", target: None };
    let client = client();
    let subject = Subject {
        request: is_request.then_some(&request),
        line: if is_request { b"" } else { b"GET /odd" },
        place: is_request.then_some(place),
        client: &client,
        effective: Effective {
            addr: [198, 51, 100, 9].into(),
            scheme: Scheme::Https,
            host: b"shop.example",
            port: 443,
            word: None,
        },
        is_http2: false,
        id: b"0123456789abcdef",
        requests: 3,
        trace: None,
    };
    let begun = line::begin(&format, &subject);
    let mut stamp = stamp::Stamp::default();
    stamp.set(Duration::from_millis(1_136_214_245_042));
    let took = Duration::from_micros(12_345);
    let end = End {
        status: if is_request { 200 } else { 400 },
        took,
        upstream: if is_request { upstream_name(route) } else { "" },
        head: HEAD.len(),
        is_whole: true,
        tally,
        record,
        kept: Some(&kept()),
    };
    let mut out = Vec::new();
    line::finish(&format, &begun, &end, &stamp, &mut out);
    String::from_utf8(out).expect("text")
}

fn kept() -> Kept {
    let mut kept = Kept::default();
    kept.answer(
        b"HTTP/1.1 200 OK\r\nX-Cache: HIT\r\nSet-Cookie: sid=9; Path=/\r\nVary: a\r\nVary: b\r\n\r\n",
    );
    kept.sent(b"HTTP/1.1 200 OK\r\nContent-Type: text/\"x\"\r\n\r\n");
    kept
}

fn tally() -> Tally {
    Tally { body_received: 7, head_sent: 120, body_sent: 512 }
}

#[test]
fn every_variable_is_written_as_nginx_writes_it() {
    let length = (HEAD.len() + 7).to_string();
    let pid = std::process::id().to_string();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_owned();
    for (variable, expected) in [
        ("$remote_addr", "198.51.100.9"),
        ("$connection", "77"),
        ("$proxy_protocol_addr:$proxy_protocol_port", "198.51.100.8:4000"),
        ("$the_real_ip", "198.51.100.9"),
        ("$realip_remote_addr", "198.51.100.7"),
        ("$pass_access_scheme", "https"),
        ("$pass_server_port", "443"),
        ("$best_http_host", "shop.example"),
        ("$remote_user", "alice"),
        ("$time_local", "02/Jan/2006:15:04:05 +0000"),
        ("$time_iso8601", "2006-01-02T15:04:05+00:00"),
        ("$msec", "1136214245.042"),
        ("$request", "GET /a%20b/x?q=1&Name=v HTTP/1.1"),
        ("$request_method", "GET"),
        ("$request_uri", "/a%20b/x?q=1&Name=v"),
        ("$uri", "/a b/x"),
        ("$args", "q=1&Name=v"),
        ("$query_string", "q=1&Name=v"),
        ("$arg_name", "v"),
        ("$arg_none", "-"),
        ("$server_protocol", "HTTP/1.1"),
        ("$scheme", "http"),
        ("$host", "shop.example.com"),
        ("$http_host", "Shop.Example.com:8080"),
        ("$server_name", "shop.example.com"),
        ("$ssl_protocol", "-"),
        ("$ssl_cipher", "-"),
        ("$ssl_server_name", "-"),
        ("$ssl_client_verify", "-"),
        ("$ssl_client_s_dn", "-"),
        ("$ssl_client_i_dn", "-"),
        ("$server_port", "80"),
        ("$http_referer", "http://r/"),
        ("$http_user_agent", r"curl/8 \x22x\x22"),
        ("$http_x_two", "one, two"),
        ("$http_x_none", "-"),
        ("$http_x_empty", ""),
        ("$http_x_forwarded_for", "192.0.2.9"),
        ("$proxy_add_x_forwarded_for", "192.0.2.9, 198.51.100.9"),
        ("$content_type", "text/plain"),
        ("$cookie_sid", "abc"),
        ("$cookie_id", "-"),
        ("$status", "200"),
        ("$body_bytes_sent", "512"),
        ("$bytes_sent", "632"),
        ("$request_length", &length),
        ("$request_time", "0.012"),
        ("$request_completion", "OK"),
        ("$connection_requests", "3"),
        ("$proxy_upstream_name", "prod-web-8080"),
        ("$proxy_host", "prod-web-8080"),
        ("[$proxy_alternative_upstream_name]", "[]"),
        ("$namespace", "prod"),
        ("$ingress_name", "shop"),
        ("$service_name", "web"),
        ("$service_port", "8080"),
        ("$location_path", "/app"),
        ("$req_id", "0123456789abcdef"),
        ("$upstream_addr", "10.0.0.1:8080, 10.0.0.2:8080"),
        ("$upstream_status", "502, 200"),
        ("$upstream_response_length", "0, 512"),
        ("$upstream_bytes_sent", "0, 80"),
        ("$upstream_bytes_received", "0, 640"),
        ("$upstream_connect_time", "-, 0.000"),
        ("$upstream_header_time", "-, 0.030"),
        ("$upstream_response_time", "0.000, 0.030"),
        ("$sent_http_content_type", r"text/\x22x\x22"),
        ("$sent_http_x_cache", "-"),
        ("$sent_http_connection", "keep-alive"),
        ("$upstream_http_x_cache", "HIT"),
        ("$upstream_http_vary", "a, b"),
        ("$upstream_http_content_type", "-"),
        ("$cookie_SID", "abc"),
        ("$upstream_cookie_sid", "9"),
        ("$upstream_cookie_Sid", "9"),
        ("$upstream_cookie_si", "-"),
        ("$pid", &pid),
        ("$hostname", &hostname),
        ("[$http2]", "[]"),
        ("$realip_remote_port", "40001"),
        ("$escaped_request_uri", "%2Fa%2520b%2Fx%3Fq%3D1%26Name%3Dv"),
        ("$geoip2_city", "-"),
        ("$no_such_thing", "-"),
    ] {
        assert_eq!(logged(variable, Escape::Default, true, tally(), &twice()), expected, "{variable}");
    }
}

#[test]
fn the_default_line_is_that_of_ingress_nginx() {
    let line = logged(DEFAULT_FORMAT, Escape::Default, true, tally(), &twice());

    let expected = format!(
        "198.51.100.9 - alice [02/Jan/2006:15:04:05 +0000] \"GET /a%20b/x?q=1&Name=v HTTP/1.1\" 200 512 \
         \"http://r/\" \"curl/8 \\x22x\\x22\" {} 0.012 [prod-web-8080] [] 10.0.0.1:8080, 10.0.0.2:8080 0, 512 \
         0.000, 0.030 502, 200 0123456789abcdef",
        HEAD.len() + 7
    );
    assert_eq!(line, expected);
}

#[test]
fn what_is_no_request_has_its_line_too() {
    let line = logged(DEFAULT_FORMAT, Escape::Default, false, Tally::default(), &Record::default());

    let expected = format!(
        "198.51.100.9 - - [02/Jan/2006:15:04:05 +0000] \"GET /odd\" 400 0 \"-\" \"-\" {} 0.012 [-] [] - - - - 0123456789abcdef",
        HEAD.len()
    );
    assert_eq!(line, expected);
}

#[test]
fn escaping_is_for_values_and_decides_what_absent_looks_like() {
    let format = r#"{\"agent\":\"$http_user_agent\",\"none\":\"$http_x_none\",\"up\":\"$upstream_addr\"}"#;
    for (escape, expected) in [
        (Escape::Default, r#"{"agent":"curl/8 \x22x\x22","none":"-","up":"-"}"#),
        (Escape::Json, r#"{"agent":"curl/8 \"x\"","none":"","up":""}"#),
        (Escape::None, r#"{"agent":"curl/8 "x"","none":"","up":""}"#),
    ] {
        assert_eq!(
            logged(format, escape, true, Tally::default(), &Record::default()),
            expected,
            "{escape:?}"
        );
    }
}

#[test]
fn what_nobody_claims_is_healthy_skipped_or_switched_off_is_not_logged() {
    let proxied = Next::Proxy { upstream: 0, side: Side::Primary, target: None, prefix: None };
    let healthy = Next::Answer(Answer::Healthy);
    let skip = || vec![Listed::parse("/a%20b/X?q=1&name=v").expect("text")];
    let skip_all = || vec![Listed::parse("~^/a").expect("a pattern")];
    for (case, log, host, next, expected) in [
        ("proxied", AccessLog::default(), "shop.example.com", &proxied, true),
        ("healthy", AccessLog::default(), "shop.example.com", &healthy, false),
        ("unclaimed", AccessLog::default(), "other.example.com", &proxied, false),
        (
            "unclaimed, but asked for",
            AccessLog { unclaimed: true, ..AccessLog::default() },
            "other.example.com",
            &proxied,
            true,
        ),
        ("skipped", AccessLog { skip: skip(), ..AccessLog::default() }, "shop.example.com", &proxied, false),
        (
            "by a pattern",
            AccessLog { skip: skip_all(), ..AccessLog::default() },
            "shop.example.com",
            &proxied,
            false,
        ),
    ] {
        let router = Router::new(&l7(log));
        let mut lines = Lines::new();
        let request =
            Request::parse(HEAD.as_bytes(), &mut lines, Sizes::default()).expect("legal").expect("whole");
        let route = router.site(host.as_bytes()).0.find(b"/").route;
        let place = Place { route, upstream: "", stand_in: "", alternative: "", target: None };
        let client = client();
        let subject = Subject {
            request: Some(&request),
            line: b"",
            place: Some(place),
            client: &client,
            effective: Effective::of(&client, request.host),
            is_http2: false,
            id: b"",
            requests: 1,
            trace: None,
        };

        assert_eq!(begin(&router, next, &subject).is_some(), expected, "{case}");
    }
    assert!(begin(&Router::new(&L7::default()), &proxied, &no_request(&client())).is_none(), "off");
}

fn no_request(client: &Client) -> Subject<'_, '_, '_> {
    let effective = Effective::of(client, b"");
    let (request, place) = (None, None);
    Subject {
        request,
        line: b"",
        place,
        client,
        effective,
        is_http2: false,
        id: b"",
        requests: 1,
        trace: None,
    }
}
