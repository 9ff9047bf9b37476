use proptest::prelude::*;

use super::super::head::{HEADERS_MAX, Lines, OwnLines, Refusal, Sizes};
use super::*;
use crate::l7::fuzz::request_head;
use crate::model::l7::forwarding::HeaderNames;

/// What a parsed head says, free of the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    len: usize,
    method: String,
    target: String,
    host: String,
    length: Option<u64>,
    chunked: bool,
    persists: bool,
    upgrade: Option<String>,
    expects_continue: bool,
    /// Lines that go upstream as they are.
    kept: String,
}

fn parse(bytes: &[u8]) -> Result<Option<Seen>, Refusal> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines = Lines::new();
    let Some(request) = Request::parse(bytes, &mut lines, Sizes::default())? else { return Ok(None) };
    let mut kept = Vec::new();
    request.block.copy_except(request.drop, &mut kept);
    Ok(Some(Seen {
        len: request.len,
        method: request.method.to_owned(),
        target: text(request.target),
        host: text(request.host),
        length: request.length,
        chunked: request.chunked,
        persists: request.persists,
        upgrade: request.upgrade.map(text),
        expects_continue: request.expects_continue,
        kept: text(&kept),
    }))
}

fn accepted(head: &str) -> Seen {
    match parse(head.as_bytes()) {
        Ok(Some(seen)) => seen,
        other => panic!("{head:?}: {other:?}"),
    }
}

#[test]
fn a_target_that_is_no_text_is_read_like_any_other() {
    let head = b"GET /caf\xe9?\xff HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n";
    let mut lines = Lines::new();

    let request = Request::parse(head, &mut lines, Sizes::default()).expect("legal").expect("whole");

    assert_eq!((request.target, request.host), (&b"/caf\xe9?\xff"[..], &b"a"[..]));
    assert_eq!((request.len, request.line()), (head.len(), &b"GET /caf\xe9?\xff HTTP/1.1"[..]));
    let mut own = OwnLines::new();
    assert_eq!(sent(head, &mut own).expect("read").target, b"/caf\xe9?\xff");
    for n in 0..head.len() {
        assert_eq!(parse(&head[..n]), Ok(None), "cut after {n}");
    }
    let odd: [(&[u8], Refusal); 7] = [
        (b"GET /\xe9\x00 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Malformed),
        (b"GET /\xe9 x HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Malformed),
        (b"GET /\xe9 HTTP/1.1\nHost: a\r\n\r\n", Refusal::Malformed),
        (b"GET /\xe9 HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", Refusal::LineEnd),
        (b"GET /\xe9 HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::Version),
        (b"get /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Malformed),
        (b"\x16\x03\x01\xff ", Refusal::Malformed),
    ];
    for (head, refusal) in odd {
        assert_eq!(parse(head), Err(refusal), "{}", String::from_utf8_lossy(head));
    }
}

#[test]
fn a_name_that_is_no_token_is_dropped_and_nothing_else_taken_lightly() {
    let head = b"POST /a HTTP/1.1\r\nHost: a\r\nX[: 1\r\nContent-Length:  5 \r\n(a): \r\n\r\n";

    let seen = parse(head).expect("legal").expect("whole");

    assert_eq!((seen.len, seen.length), (head.len(), Some(5)));
    assert_eq!(seen.kept, "Content-Length:  5 \r\n");
    for n in 0..head.len() {
        assert_eq!(parse(&head[..n]), Ok(None), "cut after {n}");
    }
    let odd: [(&[u8], Refusal); 9] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[ : 1\r\n\r\n", Refusal::Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[\x01: 1\r\n\r\n", Refusal::Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[: \x01\r\n\r\n", Refusal::Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[\r\n\r\n", Refusal::Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[: 1\n\r\n", Refusal::LineEnd),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[: 1\r\n y: 2\r\n\r\n", Refusal::Malformed),
        (b"GET / HTTP/1.1\nHost: a\r\nX[: 1\r\n\r\n", Refusal::LineEnd),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nX[: 1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            Refusal::Framing,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[: 1\r\nTransfer-Encoding : chunked\r\n\r\n", Refusal::Malformed),
    ];
    for (head, refusal) in odd {
        assert_eq!(parse(head), Err(refusal), "{}", String::from_utf8_lossy(head));
    }
}

#[test]
fn refuses_heads_that_another_parser_could_read_differently() {
    use Refusal::{Coding, Framing, Host, LineEnd, Malformed, Target, Version};
    let cases: [(&str, &[u8], Refusal); 66] = [
        (
            "content-length beside chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing,
        ),
        (
            "chunked beside content-length",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Framing,
        ),
        (
            "content-length twice, different",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            Framing,
        ),
        (
            "content-length twice, equal",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            Framing,
        ),
        (
            "content-length twice in other letters",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncONTENT-lENGTH: 5\r\n\r\n",
            Framing,
        ),
        ("list of lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", Framing),
        ("length with plus", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", Framing),
        ("length with minus", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", Framing),
        ("length in hex", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", Framing),
        ("length with space inside", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\n", Framing),
        ("empty length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", Framing),
        ("length with fraction", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\n", Framing),
        (
            "length beyond 64 bits",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n",
            Framing,
        ),
        (
            "other coding before chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Coding,
        ),
        ("other coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", Coding),
        ("empty coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", Coding),
        ("chunked misspelt", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Coding),
        ("chunked quoted", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", Coding),
        (
            "chunked with parameter",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n",
            Coding,
        ),
        (
            "chunked in a list of one",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n",
            Coding,
        ),
        (
            "chunked twice",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing,
        ),
        (
            "chunked, then identity",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            Framing,
        ),
        (
            "chunked in http/1.0",
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing,
        ),
        (
            "vertical tab before chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            Malformed,
        ),
        (
            "space before colon of content-length",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n",
            Malformed,
        ),
        (
            "space before colon of transfer-encoding",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            Malformed,
        ),
        ("tab before colon", b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", Malformed),
        ("space before name", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Malformed),
        ("folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", Malformed),
        (
            "folded transfer-encoding",
            b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
            Malformed,
        ),
        ("header without colon", b"GET / HTTP/1.1\r\nHost: a\r\nNonsense\r\n\r\n", Malformed),
        ("header without name", b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", Malformed),
        ("nul in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Malformed),
        ("nul in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n", Malformed),
        ("nul in the target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("cr inside a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", Malformed),
        ("cr before crlf", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n", Malformed),
        ("bare lf after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", LineEnd),
        ("bare lf after a header", b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", LineEnd),
        ("bare lf after an empty value", b"GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n", LineEnd),
        ("bare lf as the empty line", b"GET / HTTP/1.1\r\nHost: a\r\n\n", LineEnd),
        ("empty line before the request", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnd),
        ("two spaces before the target", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("tab before the target", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("http/0.9", b"GET /\r\n\r\n", Malformed),
        ("http/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
        ("http/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
        ("http/2.0 of a kind", b"GET / HTTP/2.x\r\nHost: a\r\n\r\n", Malformed),
        ("http/0.9 by name", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", Version),
        ("http/1.10", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", Malformed),
        ("http/1.20", b"GET / HTTP/1.20\r\nHost: a\r\n\r\n", Malformed),
        ("http/1.2 and a bare lf", b"GET / HTTP/1.2\nHost: a\r\n\r\n", Malformed),
        ("http/1.2 and a blank", b"GET / HTTP/1.2 \r\nHost: a\r\n\r\n", Malformed),
        ("http/1.2 and a bare lf after a header", b"GET / HTTP/1.2\r\nHost: a\nX: 1\r\n\r\n", LineEnd),
        ("http/1.2 without a host", b"GET / HTTP/1.2\r\nX: 1\r\n\r\n", Host),
        ("a version in small letters", b"GET / http/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("blank in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Malformed),
        ("blank in the target of http/1.2", b"GET /a b HTTP/1.2\r\nHost: a\r\n\r\n", Malformed),
        ("no host in 1.1", b"GET / HTTP/1.1\r\n\r\n", Host),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Host),
        ("two hosts beside an absolute form", b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Host),
        ("userinfo in the authority", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Host),
        ("path in host", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Host),
        ("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("two ports", b"GET http://a:80:80/ HTTP/1.1\r\nHost: a\r\n\r\n", Host),
    ];
    for (case, bytes, refusal) in cases {
        assert_eq!(parse(bytes), Err(refusal), "{case}");
    }
}

#[test]
fn refuses_methods_that_are_not_for_a_reverse_proxy() {
    let cases = [
        ("lower case", "get", Refusal::Malformed),
        ("mixed case", "Get", Refusal::Malformed),
        ("digits", "GET1", Refusal::Malformed),
        ("trace", "TRACE", Refusal::Method),
        ("connect", "CONNECT", Refusal::Method),
    ];
    for (case, method, refusal) in cases {
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(parse(head.as_bytes()), Err(refusal), "{case}");
    }
}

#[test]
fn refuses_what_is_too_long_with_its_own_status() {
    let long = "a".repeat(Sizes::default().line);
    let many = "X: 1\r\n".repeat(HEADERS_MAX);
    let big = format!("X: {}\r\n", "a".repeat(8000)).repeat(5);
    let cases = [
        ("target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::TargetTooLong, 414),
        ("target, cut", format!("GET /{long}"), Refusal::TargetTooLong, 414),
        ("line", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), Refusal::LineTooLong, 400),
        ("lines", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), Refusal::HeadTooLarge, 431),
        ("head, cut", format!("GET / HTTP/1.1\r\nHost: a\r\n{big}"), Refusal::HeadTooLarge, 431),
    ];
    for (case, head, refusal, status) in cases {
        assert_eq!(parse(head.as_bytes()), Err(refusal), "{case}");
        assert_eq!(refusal.status(), status, "{case}");
    }
}

#[test]
fn takes_as_many_header_lines_as_promised() {
    let lines = "X: 1\r\n".repeat(HEADERS_MAX - 1);

    let seen = accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));

    assert_eq!(seen.kept, lines);
}

#[test]
fn the_authority_of_an_absolute_form_replaces_host() {
    let cases = [
        ("path", "http://b:8080/x?y", "b:8080", "/x?y"),
        ("no path", "http://b", "b", "/"),
        ("scheme in upper case", "HTTP://b/", "b", "/"),
        ("https", "https://b/x", "b", "/x"),
    ];
    for (case, target, host, path) in cases {
        let seen = accepted(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((seen.host.as_str(), seen.target.as_str()), (host, path), "{case}");
    }
}

#[test]
fn an_absolute_form_without_a_path_is_refused_and_said_where_one_is_missing() {
    for (target, with_path) in [("http://b?x=1", "http://b/?x=1"), ("http://b:80?/a?b", "http://b:80/?/a?b")]
    {
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(parse(head.as_bytes()), Err(Refusal::Pathless), "{target}");

        head.insert(missing_path(head.as_bytes()).expect("a place"), '/');

        assert!(head.starts_with(&format!("GET {with_path} ")), "{head}");
        assert_eq!(accepted(&head).host, target[7..].split('?').next().unwrap_or_default(), "{target}");
    }
}

#[test]
fn a_minor_version_to_come_is_read_as_the_highest_we_know() {
    for version in ["1.2", "1.9"] {
        let text = |version: &str, lines: &str| {
            format!("POST /a?b HTTP/{version}\r\nHost: a\r\n{lines}X: 1\r\n\r\n")
        };
        for lines in
            ["", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", "X_Y: 1\r\n", "X[: 1\r\n"]
        {
            let head = text(version, lines);
            assert_eq!(accepted(&head), accepted(&text("1.1", lines)), "{version} {lines:?}");
            for n in 0..head.len() {
                assert_eq!(parse(&head.as_bytes()[..n]), Ok(None), "cut after {n}");
            }
        }
    }
}

#[test]
fn connection_headers_that_name_very_many_are_refused() {
    let head = |element: &str, elements: usize| {
        let named = vec![element; elements].join(",");
        format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {named}\r\nConnection: close\r\nX: 1\r\n\r\n")
    };

    for element in ["x", "", " "] {
        assert!(parse(head(element, 63).as_bytes()).is_ok(), "{element:?}");
        assert_eq!(parse(head(element, 64).as_bytes()), Err(Refusal::Malformed), "{element:?}");
    }
}

#[test]
fn http_10_needs_neither_host_nor_keeps_the_connection() {
    let plain = accepted("GET / HTTP/1.0\r\n\r\n");
    let kept = accepted("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");

    assert_eq!((plain.host.as_str(), plain.persists), ("", false));
    assert!(kept.persists);
}

#[test]
fn close_ends_the_connection_wherever_it_is_named() {
    let cases = [
        ("nothing said", "", true),
        ("close", "Connection: close\r\n", false),
        ("in a list", "Connection: x, CLOSE\r\n", false),
        ("in a second line", "Connection: keep-alive\r\nConnection: close\r\n", false),
    ];
    for (case, line, persists) in cases {
        let seen = accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n"));
        assert_eq!(seen.persists, persists, "{case}");
    }
}

#[test]
fn drops_what_is_hop_by_hop_spoofable_or_oddly_named() {
    let cases = [
        ("an ordinary header stays", "X-Foo: bar\r\n", "X-Foo: bar\r\n"),
        ("letters of a name stay as they are", "x-FOO:bar \r\n", "x-FOO:bar \r\n"),
        ("content-length stays", "Content-Length: 5\r\n", "Content-Length: 5\r\n"),
        ("keep-alive", "Keep-Alive: timeout=5\r\n", ""),
        ("te", "TE: trailers\r\n", ""),
        ("proxy (httpoxy)", "Proxy: http://evil\r\n", ""),
        ("proxy-connection", "Proxy-Connection: keep-alive\r\n", ""),
        ("proxy-authorization", "Proxy-Authorization: Basic eA==\r\n", ""),
        ("underscores", "X_Real_IP: 1.2.3.4\r\n", ""),
        ("underscored framing", "Content_Length: 5\r\n", ""),
        ("client's address", "X-Real-IP: 1.2.3.4\r\nX-Forwarded-For: 1.2.3.4\r\n", ""),
        ("client's scheme", "X-Forwarded-Proto: https\r\nX-Scheme: https\r\n", ""),
        ("client's port and scheme", "X-Forwarded-Port: 1\r\nX-Forwarded-Scheme: https\r\n", ""),
        ("client's originals", "X-Original-Forwarded-For: 1\r\nX-Original-Forwarded-Host: x\r\n", ""),
        ("client certificate", "ssl-client-verify: SUCCESS\r\nSSL-Client-Subject-DN: x\r\n", ""),
        ("named by connection", "Connection: X-Hop\r\nX-Hop: 1\r\nX-Stay: 2\r\n", "X-Stay: 2\r\n"),
        (
            "framing cannot be named away",
            "Connection: Content-Length\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\n",
        ),
        ("upgrade without connection", "Upgrade: websocket\r\n", ""),
        ("expect", "Expect: 100-continue\r\nContent-Length: 1\r\n", "Content-Length: 1\r\n"),
    ];
    for (case, lines, kept) in cases {
        let seen = accepted(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(seen.kept, kept, "{case}");
    }
}

#[test]
fn names_that_are_ours_to_say_never_pass_in_any_letters() {
    let names = [
        "Host",
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Proxy",
        "TE",
        "Upgrade",
        "Expect",
        "X-Request-ID",
        "X-Real-IP",
        "X-Scheme",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Proto",
        "X-Forwarded-Scheme",
        "X-Original-Forwarded-For",
        "X-Original-Forwarded-Host",
        "ssl-client-verify",
        "SSL-Client-Cert",
        "X_Under",
        "X.Dot",
        "X[",
        "Content-Length[",
        "\"Transfer-Encoding\"",
    ];
    for name in names {
        let host = if name == "Host" { "" } else { "Host: a\r\n" };
        let upper = name.to_ascii_uppercase();
        for name in [name, &upper] {
            let seen = accepted(&format!("GET / HTTP/1.1\r\n{host}A: 1\r\n{name}: x\r\nB: 2\r\n\r\n"));

            assert_eq!(seen.kept, "A: 1\r\nB: 2\r\n", "{name}");
        }
    }
}

#[test]
fn odd_names_pass_where_they_are_wanted_unless_they_read_as_ours() {
    let sent = "X_A: 1\r\nX.B: 2\r\nX_Real_IP: 3\r\nssl_client_verify: 4\r\nSsl_Client_Verify_And_Much_More_Than_That: 5\r\n\
        x.forwarded.for: 6\r\n{x}: 6\r\nX-Forwarded_Proto: 7\r\nTransfer_Encoding: 8\r\nProxy_Connection: 9\r\n";
    let cases = [
        (HeaderNames::Plain, ""),
        (HeaderNames::Underscores, "X_A: 1\r\n"),
        (HeaderNames::All, "X_A: 1\r\nX.B: 2\r\n"),
    ];
    for (names, expected) in cases {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{sent}\r\n");
        let mut lines = Lines::new();
        let sizes = Sizes { names, ..Sizes::default() };
        let request = Request::parse(text.as_bytes(), &mut lines, sizes).unwrap().unwrap();
        let mut kept = Vec::new();
        request.block.copy_except(request.drop, &mut kept);

        assert_eq!(String::from_utf8(kept).unwrap(), expected, "{names:?}");
    }
}

#[test]
fn a_head_of_ours_may_have_more_lines_than_one_that_we_take() {
    let client = "X-A: b\r\n".repeat(HEADERS_MAX - 1);
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{client}{}\r\n", "X-Ours: c\r\n".repeat(20));
    let mut lines = OwnLines::new();

    let sent = sent(text.as_bytes(), &mut lines).expect("a head");

    assert_eq!((sent.host, sent.headers().count()), (&b"a"[..], HEADERS_MAX - 1 + 20));
}

#[test]
fn upgrades_only_when_connection_says_so() {
    let cases = [
        ("asked for", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n", Some("websocket")),
        ("empty body", "Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n", Some("x")),
        ("not in connection", "Upgrade: websocket\r\n", None),
        ("with a body", "Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n", Some("x")),
        ("chunked", "Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n", Some("x")),
        ("to http/2", "Connection: upgrade\r\nUpgrade: x, h2c\r\n", None),
    ];
    for (case, lines, upgrade) in cases {
        let seen = accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(seen.upgrade.as_deref(), upgrade, "{case}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_head_for_every_reader_or_for_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        times in 1usize..200,
    ) {
        request_head(&bytes);
        request_head(&[b"GET / HTTP/1.1\r\nHost: a\r\n", bytes.repeat(times).as_slice(), b"\r\n\r\n"].concat());
    }

    #[test]
    fn what_is_nearly_a_head_is_one_for_every_reader_or_for_none(
        parts in proptest::collection::vec(prop_oneof![
            Just("GET "), Just("/"), Just(" HTTP/1.1"), Just("\r\n"), Just("\n"), Just("\r"), Just("Host: a"),
            Just("Content-Length: 1"), Just("Transfer-Encoding: chunked"), Just("Connection: host, x"),
            Just("X:"), Just(" "), Just("\t"), Just("\0"), Just("http://"), Just("é"),
        ], 0..30),
    ) {
        request_head(parts.concat().as_bytes());
    }

    #[test]
    fn a_head_is_incomplete_until_its_last_byte_and_the_same_after_it(
        target in "/[a-z0-9/?=%.]{0,30}",
        names in proptest::collection::vec("[A-Z][a-z-]{4,9}x", 0..5),
        value in "[ -~]{0,30}",
        after in "[ -~]{0,30}",
    ) {
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: example.com\r\n");
        for name in &names {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        for cut in 0..head.len() {
            prop_assert_eq!(parse(&head.as_bytes()[..cut]), Ok(None), "cut at {}", cut);
        }
        let whole = parse(head.as_bytes());
        prop_assert_eq!(whole.as_ref().ok().and_then(Option::as_ref).map(|seen| seen.len), Some(head.len()));
        prop_assert_eq!(parse(format!("{head}{after}").as_bytes()), whole);
    }
}

#[test]
fn a_fragment_is_no_part_of_a_target() {
    for (target, expected, host) in [
        ("/a?x#y", "/a?x", "a"),
        ("/a#b/../c", "/a", "a"),
        ("http://b/a#c", "/a", "b"),
        ("http://b#@c/", "/", "b"),
    ] {
        let seen = accepted(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((seen.target.as_str(), seen.host.as_str()), (expected, host), "{target}");
    }
    assert_eq!(parse(b"GET #a HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Refusal::Target));
}

#[test]
fn a_host_has_one_port_at_most() {
    for host in ["a", "a:", "a:80", "1.2.3.4:80", "[::1]", "[::1]:80", "a_b-c.d~", "", "[fe80::1%25eth0]:1"] {
        assert!(valid_host(host.as_bytes()), "{host}");
    }
    for host in ["a:80:80", "a:x", "::1", "[::1", "::1]", "[::1]80", "[::1]:x", "u@a", "a b", "a[", "[[::1]]"]
    {
        assert!(!valid_host(host.as_bytes()), "{host}");
    }
}

#[test]
fn a_length_that_a_signed_number_cannot_tell_is_refused() {
    let with = |length: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");

    assert_eq!(parse(with("9223372036854775807").as_bytes()).map(|seen| seen.is_some()), Ok(true));
    assert_eq!(parse(with("9223372036854775808").as_bytes()), Err(Refusal::Framing));
}
