use proptest::prelude::*;

use super::super::head::{HEADERS_MAX, Lines, OwnLines, Refusal};
use super::*;
use crate::l7::fuzz::response_head;

/// What a parsed head says, free of the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    len: usize,
    status: u16,
    reason: String,
    length: Option<u64>,
    chunked: bool,
    persists: bool,
    dated: bool,
    /// Lines that reach the client.
    kept: String,
}

fn parse(bytes: &[u8]) -> Result<Option<Seen>, Refusal> {
    let mut lines = Lines::new();
    Response::parse(bytes, &mut lines).map(|parsed| parsed.as_ref().map(seen))
}

fn seen(response: &Response<'_, '_>) -> Seen {
    let mut kept = Vec::new();
    response.block.copy_except(response.drop, &mut kept);
    Seen {
        len: response.len,
        status: response.status,
        reason: response.reason.to_owned(),
        length: response.length,
        chunked: response.chunked,
        persists: response.persists,
        dated: response.dated,
        kept: String::from_utf8_lossy(&kept).into_owned(),
    }
}

fn accepted(head: &str) -> Seen {
    match parse(head.as_bytes()) {
        Ok(Some(seen)) => seen,
        other => panic!("{head:?}: {other:?}"),
    }
}

#[test]
fn refuses_heads_whose_body_could_be_delimited_in_two_ways() {
    use Refusal::{Coding, Framing, LineEnd, Malformed, Version};
    let cases: [(&str, &[u8], Refusal); 14] = [
        (
            "length beside chunked",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing,
        ),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Framing),
        ("list of lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5,5\r\n\r\n", Framing),
        ("signed length", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Framing),
        ("other coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Coding),
        ("chunked in 1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing),
        ("bare lf after the status line", b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n", Malformed),
        ("bare lf after a header", b"HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\n", LineEnd),
        ("space before colon", b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", Malformed),
        ("folded line", b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n", Malformed),
        ("status below 100", b"HTTP/1.1 099 Odd\r\n\r\n", Malformed),
        ("status in words", b"HTTP/1.1 OK\r\n\r\n", Malformed),
        ("http/2", b"HTTP/2 200\r\n\r\n", Version),
        ("no http at all", b"SSH-2.0-OpenSSH_9.6\r\n", Version),
    ];
    for (case, bytes, refusal) in cases {
        let seen = parse(bytes);
        // Which of the two says no first is the grammar's business.
        let version = refusal == Version && seen == Err(Malformed);
        assert!(seen == Err(refusal) || version, "{case}: {seen:?}");
    }
}

#[test]
fn no_length_of_a_204_reaches_the_client() {
    let of = |status: &str, line: &str| accepted(&format!("HTTP/1.1 {status}\r\n{line}\r\n\r\n")).kept;

    for line in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        assert_eq!(of("204 No Content", line), "", "{line}");
        assert_eq!(of("304 Not Modified", line), format!("{line}\r\n"));
    }
}

#[test]
fn hides_what_is_between_the_upstream_and_us() {
    let cases = [
        ("an ordinary header", "X-Foo: bar\r\n", "X-Foo: bar\r\n"),
        ("server, which others decide about", "Server: gunicorn\r\n", "Server: gunicorn\r\n"),
        ("connection and what it names", "Connection: x-hop\r\nX-Hop: 1\r\n", ""),
        ("keep-alive", "Keep-Alive: timeout=5\r\n", ""),
        ("upgrade", "Upgrade: h2c\r\n", ""),
        (
            "orders to nginx",
            "X-Accel-Expires: 5\r\nX-Accel-Buffering: no\r\nX-Accel-Charset: x\r\nX-Pad: y\r\n",
            "",
        ),
        ("cookies", "Set-Cookie: a\r\nSet-Cookie: b\r\n", "Set-Cookie: a\r\nSet-Cookie: b\r\n"),
    ];
    for (case, lines, kept) in cases {
        assert_eq!(accepted(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).kept, kept, "{case}");
    }
}

#[test]
fn what_is_to_be_found_elsewhere_is_no_response() {
    let head = b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /secret\r\nContent-Length: 0\r\n\r\n";

    assert_eq!(parse(head), Err(Refusal::Elsewhere));
}

#[test]
fn keeps_the_connection_as_the_version_and_connection_say() {
    let cases = [
        ("1.1", "HTTP/1.1 200 OK\r\n\r\n", true),
        ("1.1 close", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", false),
        ("1.0", "HTTP/1.0 200 OK\r\n\r\n", false),
        ("1.0 keep-alive", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", true),
    ];
    for (case, head, persists) in cases {
        assert_eq!(accepted(head).persists, persists, "{case}");
    }
}

#[test]
fn a_reason_may_be_missing() {
    assert_eq!(accepted("HTTP/1.1 200 \r\n\r\n").reason, "");
    assert_eq!(accepted("HTTP/1.1 200\r\n\r\n").reason, "");
    assert_eq!(accepted("HTTP/1.1 404 Not Here\r\n\r\n").reason, "Not Here");
}

proptest! {
    #[test]
    fn any_bytes_are_a_whole_head_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        response_head(&bytes);
        response_head(&[b"HTTP/1.1 200 ", &bytes[..], b"\r\n\r\n"].concat());
        response_head(&[b"HTTP/1.1 200 OK\r\nX-A: ", &bytes[..], b"\r\n\r\n"].concat());
    }

    #[test]
    fn a_head_is_incomplete_until_its_last_byte_and_the_same_after_it(
        status in 200u16..600,
        length in 0u64..1000,
        value in "[ -~]{0,30}",
        after in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let head = format!("HTTP/1.1 {status} Some Reason\r\nContent-Length: {length}\r\nX-A: {value}\r\n\r\n");
        for cut in 0..head.len() {
            prop_assert_eq!(parse(&head.as_bytes()[..cut]), Ok(None), "cut at {}", cut);
        }
        let whole = parse(head.as_bytes());
        prop_assert_eq!(whole.as_ref().ok().and_then(Option::as_ref).map(|seen| seen.len), Some(head.len()));
        prop_assert_eq!(parse(&[head.as_bytes(), &after].concat()), whole);
    }
}

#[test]
fn a_head_of_ours_may_have_more_lines_than_one_that_we_take() {
    let upstream = "X-A: b\r\n".repeat(HEADERS_MAX);
    let text =
        format!("HTTP/1.1 200 OK\r\n{upstream}Date: now\r\nContent-Length: 5\r\nConnection: close\r\n\r\n");
    let mut lines = OwnLines::new();

    let sent = sent(text.as_bytes(), &mut lines).expect("a head");

    assert_eq!((sent.status, sent.length, sent.chunked), (200, Some(5), false));
    assert_eq!(sent.headers().count(), HEADERS_MAX + 2);
}

/// Compares both readers; whether they refuse it, or its first line would be passed on as it is.
fn compare(bytes: &[u8]) -> bool {
    let (mut lines, mut odd): (Lines<'_>, Lines<'_>) = (Lines::new(), Lines::new());
    let parsed = Response::parse(bytes, &mut lines);
    let is_plain = matches!(&parsed, Ok(Some(response)) if response.line.is_some());
    if let Ok(Some(Response { status, reason, line: Some(line), .. })) = &parsed {
        assert_eq!(String::from_utf8_lossy(line), format!("HTTP/1.1 {status} {reason}\r\n"));
    }
    let any = Response::parse_odd(bytes, &mut odd.usual).map(|parsed| parsed.as_ref().map(seen));
    assert_eq!(parsed.map(|parsed| parsed.as_ref().map(seen)), any, "{}", bytes.escape_ascii());
    is_plain || any.is_err()
}

proptest! {
    #[test]
    fn a_plain_head_is_read_as_any_other_would_be(
        first in "HTTP/1\\.[01] (200|404|99|099) {0,2}(OK|Not Found|\u{e9})?(\r\n|\n)",
        lines in proptest::collection::vec("(Date|X-Pad|Connection|Content-Length|[A-Za-z!-]{1,9}|[ -~]{0,2}):[ \t]{0,2}[ -~]{0,9}(\t|\u{e9})?(\r\n|\r\n|\n)", 0..28),
        cut in 0_usize..200,
    ) {
        let head = [first.as_str(), &lines.concat(), "\r\n"].concat();
        compare(head.as_bytes());
        compare(head.as_bytes().get(..cut).unwrap_or_default());
    }

    #[test]
    fn a_plain_head_of_plain_lines_is_read_as_any_other_would_be(
        reason in "[ -~]{0,9}",
        lines in proptest::collection::vec("[A-Za-z0-9-]{1,12}: ?[!-~]([ -~]{0,9}[!-~])?\r\n", 0..24),
        body in "(body)?",
    ) {
        let head = format!("HTTP/1.1 200 {reason}\r\n{}\r\n{body}", lines.concat());
        prop_assert!(compare(head.as_bytes()));
    }
}
