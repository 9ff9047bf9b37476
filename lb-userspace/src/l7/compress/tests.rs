use super::super::h1::head::{Lines, Sizes};
use super::*;
use crate::model::l7::{Packing as Settings, Pattern};

fn compression() -> Compression {
    let settings = |min_bytes| Settings { level: 1, min_bytes, types: vec!["text/html".to_owned()] };
    Compression {
        gzip: Some(settings(256)),
        brotli: Some(settings(20)),
        without_gzip: Pattern::unanchored("old").ok(),
    }
}

fn accepts(lines: &str) -> Accepts {
    accepts_by("HTTP/1.1", lines)
}

fn accepts_by(version: &str, lines: &str) -> Accepts {
    let head = format!("GET / {version}\r\nHost: h\r\n{lines}\r\n");
    let mut room = Lines::new();
    let request =
        Request::parse(head.as_bytes(), &mut room, Sizes::default()).expect("a head").expect("whole");
    Accepts::of(Some(&compression()), &request)
}

#[test]
fn a_client_says_what_it_takes_and_what_it_prefers() {
    use Algorithm::{Brotli, Gzip};
    let cases: [(&str, [Option<Algorithm>; 2]); 12] = [
        ("", [None, None]),
        ("Accept-Encoding: deflate, *\r\n", [None, None]),
        ("Accept-Encoding: gzip\r\n", [Some(Gzip), None]),
        ("Accept-Encoding: gzip, deflate, br\r\n", [Some(Brotli), Some(Gzip)]),
        ("Accept-Encoding: GZIP;q=1.0, br;q=0.9\r\n", [Some(Gzip), Some(Brotli)]),
        ("Accept-Encoding: gzip ; Q=0.001\r\nAccept-Encoding: br;q=0\r\n", [Some(Gzip), None]),
        ("Accept-Encoding: gzip;q=0.000, br;q=0\r\n", [None, None]),
        ("Accept-Encoding: gzip;q=2, br;q=x, br2\r\n", [None, None]),
        ("Accept-Encoding: gzip;q=0.1234\r\n", [None, None]),
        ("Accept-Encoding: gzip;q=+1\r\n", [None, None]),
        ("Accept-Encoding: gzip, br\r\nUser-Agent: an OLD one\r\n", [Some(Brotli), None]),
        ("Accept-Encoding: gzip, br\r\nCache-Control: no-cache, No-Transform\r\n", [None, None]),
    ];
    for (lines, expected) in cases {
        assert_eq!(accepts(lines), Accepts(expected), "{lines:?}");
    }
    assert_eq!(accepts_by("HTTP/1.0", "Accept-Encoding: gzip\r\n"), Accepts::default());
}

/// The verdict about a response with this head, and the lines that it makes of it.
fn judged(status: u16, lines: &str, accepts: Accepts) -> (Verdict, String) {
    let head = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
    let mut room = Lines::new();
    let response = Response::parse(head.as_bytes(), &mut room).expect("a head").expect("whole");
    let verdict = judge(&compression(), accepts, &response, &HeaderEdits::default());
    let mut out = Vec::new();
    response.block.copy_except(verdict.untrue(&response), &mut out);
    verdict.put_on(&response, LineSet::default(), &mut out);
    (verdict, String::from_utf8(out).expect("ascii"))
}

#[test]
fn what_is_short_encoded_partial_or_of_another_type_is_left_alone() {
    let all = accepts("Accept-Encoding: gzip, br\r\n");
    let html = "Content-Type: Text/HTML; charset=utf-8\r\n";
    let with = |line: &str| format!("{html}{line}\r\n");
    for (case, status, lines) in [
        ("another type", 200, "Content-Type: text/plain\r\n".to_owned()),
        ("no type", 200, "Content-Type:\r\n".to_owned()),
        ("encoded", 200, with("Content-Encoding: br")),
        ("too short for either", 200, with("Content-Length: 19")),
        ("not to be changed", 200, with("Cache-Control: public, no-transform")),
        ("a part", 206, html.to_owned()),
        ("an error of a server", 500, html.to_owned()),
    ] {
        assert_eq!(judged(status, &lines, all), (Verdict::Plain, lines), "{case}");
    }
}

#[test]
fn the_best_that_both_sides_can_do_is_done() {
    let all = accepts("Accept-Encoding: gzip, br;q=0.5\r\n");
    let html = |length: u32| format!("Content-Type: text/html\r\nContent-Length: {length}\r\n");

    assert_eq!(judged(404, &html(256), all).0, Verdict::Packed(Algorithm::Gzip));
    // gzip would be preferred, and does not take what is so short.
    assert_eq!(judged(200, &html(255), all).0, Verdict::Packed(Algorithm::Brotli));
    assert_eq!(judged(200, &html(0), all).0, Verdict::Plain);
    let (verdict, lines) = judged(403, &html(255), accepts("Accept-Encoding: gzip\r\n"));
    assert_eq!((verdict, lines), (Verdict::Varies, html(255) + "Vary: Accept-Encoding\r\n"));
}

#[test]
fn a_compressed_response_says_nothing_that_was_true_of_the_other() {
    let gzip = accepts("Accept-Encoding: gzip\r\n");
    let before = "Content-Length: 1000\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\nContent-Type: text/html\r\n\
                  Vary: Cookie\r\nContent-MD5: x\r\n";

    let (_, after) = judged(200, before, gzip);

    assert_eq!(
        after,
        "Content-Type: text/html\r\nVary: Cookie\r\nVary: Accept-Encoding\r\nETag: W/\"a\"\r\n\
         Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    );
    let (_, after) =
        judged(200, "Content-Type: text/html\r\nETag: W/\"a\"\r\nVary: cookie, accept-encoding\r\n", gzip);
    assert_eq!(
        after,
        "Content-Type: text/html\r\nVary: cookie, accept-encoding\r\nETag: W/\"a\"\r\n\
         Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    );
}

#[test]
fn lines_that_the_client_does_not_get_say_nothing() {
    let head = "HTTP/1.1 200 X\r\nContent-Type: text/html\r\nETag: \"1\"\r\nVary: Accept-Encoding\r\n\r\n";
    let mut room = Lines::new();
    let response = Response::parse(head.as_bytes(), &mut room).expect("a head").expect("whole");
    let hidden = response.block.named(|name| matches!(name, "ETag" | "Vary"));
    let mut out = Vec::new();

    Verdict::Packed(Algorithm::Gzip).put_on(&response, hidden, &mut out);

    let expected = "Vary: Accept-Encoding\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

#[test]
fn an_explanation_names_the_ways_for_a_client() {
    let asked =
        |accepts: &str| explain(&compression(), &[("accept-Encoding".to_owned(), accepts.to_owned())]);

    assert_eq!(
        asked("gzip, br"),
        "where the response is 200, 403 or 404, and is no other way encoded: by br from 20 bytes on, of \
         text/html; else by gzip from 256 bytes on, of text/html"
    );
    assert_eq!(asked("zstd"), "never for this client: its Accept-Encoding names nothing that is on");
}
