use super::super::fuzz::{fuzz, read};
use super::*;

/// A record of the application's.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).expect("a record").to_be_bytes();
    [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
}

fn ended(protocol_status: u8) -> Vec<u8> {
    record(3, &[0, 0, 0, 0, protocol_status, 0, 0, 0])
}

/// An answer with this output, ended as it should be.
fn answer(output: &[u8]) -> Vec<u8> {
    [record(6, output), record(6, b""), ended(0)].concat()
}

fn text(output: &[u8], head_only: bool) -> Result<String, Malformed> {
    let bytes = answer(output);
    match read(&bytes, bytes.len(), head_only) {
        (read, None) => Ok(String::from_utf8_lossy(&read).into_owned()),
        (_, Some(malformed)) => Err(malformed),
    }
}

#[test]
fn a_cgi_head_becomes_a_response_head() {
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let cases: [(&str, &[u8], String); 8] = [
        (
            "no status",
            b"Content-Type: text/html\r\n\r\nhi",
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{chunked}0002\r\nhi\r\n0\r\n\r\n"),
        ),
        (
            "bare line feeds",
            b"Status: 404 Not here\nX-A:1\n\nno",
            format!("HTTP/1.1 404 Not here\r\nX-A: 1\r\n{chunked}0002\r\nno\r\n0\r\n\r\n"),
        ),
        (
            "a redirect",
            b"location: /there\r\n\r\n",
            format!("HTTP/1.1 302 Found\r\nlocation: /there\r\n{chunked}0\r\n\r\n"),
        ),
        (
            "a redirect with a status",
            b"Status: 303\r\nLocation: /there\r\n\r\n",
            format!("HTTP/1.1 303 \r\nLocation: /there\r\n{chunked}0\r\n\r\n"),
        ),
        (
            "a length",
            b"Content-Length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        ),
        (
            "more than its length",
            b"Content-Length: 2\r\n\r\nhi there",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        ),
        (
            "what is hop by hop",
            b"Connection: X-A\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\n\r\nhi",
            format!("HTTP/1.1 200 OK\r\n{chunked}0002\r\nhi\r\n0\r\n\r\n"),
        ),
        ("no content", b"Status: 204 None\r\n\r\nwhat", "HTTP/1.1 204 None\r\n\r\n".to_owned()),
    ];
    for (case, output, expected) in cases {
        assert_eq!(text(output, false), Ok(expected), "{case}");
    }
}

#[test]
fn a_head_alone_says_what_length_there_would_be() {
    assert_eq!(text(b"X: 1\r\n\r\nhi", true), Ok("HTTP/1.1 200 OK\r\nX: 1\r\n\r\n".to_owned()));
    assert_eq!(
        text(b"Content-Length: 2\r\n\r\nhi", true),
        Ok("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_owned())
    );
}

#[test]
fn what_is_no_cgi_head_is_refused() {
    let cases: [(&str, &[u8], Malformed); 12] = [
        ("no colon", b"<html>\r\n\r\n", Malformed::Head),
        ("a status line", b"HTTP/1.1 200 OK\r\n\r\n", Malformed::Head),
        ("a blank before the colon", b"A : b\r\n\r\n", Malformed::Head),
        ("a folded line", b"A: b\r\n c: d\r\n\r\n", Malformed::Head),
        ("a carriage return within", b"A: b\rc: d\r\n\r\n", Malformed::Head),
        ("two statuses", b"Status: 200\r\nStatus: 404\r\n\r\n", Malformed::Head),
        ("an informational status", b"Status: 101 Switch\r\n\r\n", Malformed::Head),
        ("a status of letters", b"Status: ok!\r\n\r\n", Malformed::Head),
        ("two lengths", b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", Malformed::Head),
        ("a negative length", b"Content-Length: -1\r\n\r\n", Malformed::Head),
        ("no end of the head", b"A: b\r\n", Malformed::NoHead),
        ("nothing", b"", Malformed::NoHead),
    ];
    for (case, output, expected) in cases {
        assert_eq!(text(output, false), Err(expected), "{case}");
    }
}

#[test]
fn a_head_has_its_bound() {
    let endless: Vec<u8> = b"A: b\r\n".repeat(8 * 1024);
    assert_eq!(text(&endless, false), Err(Malformed::Head));
}

#[test]
fn a_refusal_is_told_from_an_answer() {
    for (status, output, expected) in [(2, &b""[..], true), (0, b"", false), (2, b"A: b\r\n\r\n", false)] {
        let bytes =
            if output.is_empty() { ended(status) } else { [record(6, output), ended(status)].concat() };
        let mut answer = Answer::new(false);
        let mut rest = &bytes[..];
        while !rest.is_empty() && !matches!(answer.phase, Phase::Done) {
            match answer.look(rest) {
                Ok(n) => rest = &rest[n..],
                Err(_) => break,
            }
        }

        assert_eq!(answer.was_refused(), expected, "{status}");
    }
}

#[test]
fn an_answer_that_stops_is_not_completed() {
    let cut = [record(6, b"A: b\r\n\r\nhalf"), vec![1, 6]].concat();

    let (output, why) = read(&cut, cut.len(), false);

    assert_eq!(why, None);
    assert!(output.ends_with(b"0004\r\nhalf\r\n"), "{:?}", String::from_utf8_lossy(&output));
}

#[test]
fn complaints_go_beside_the_answer() {
    let bytes = [
        record(7, b"PHP Warning: one"),
        record(6, b"A: b\r\n"),
        record(7, b", two"),
        record(6, b"\r\nbody"),
        ended(0),
    ]
    .concat();

    let (output, why) = read(&bytes, 3, false);

    assert_eq!(why, None);
    assert!(output.ends_with(b"\r\n0\r\n\r\n"));
    assert!(!output.windows(3).any(|part| part == b"PHP"));
    fuzz(&bytes);
}

proptest::proptest! {
    #[test]
    fn any_output_is_the_same_however_it_is_cut(
        lines in proptest::collection::vec("[A-Za-z]{1,8}: [ -~]{0,20}\r?\n", 0..4),
        body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        records in proptest::collection::vec(1usize..50, 1..10),
    ) {
        let output = [lines.concat().as_bytes(), b"\r\n", &body].concat();
        let (mut bytes, mut rest) = (Vec::new(), &output[..]);
        for size in records.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(*size));
            bytes.extend(record(6, now));
            rest = later;
        }
        bytes.extend(ended(0));

        fuzz(&bytes);
    }
}
