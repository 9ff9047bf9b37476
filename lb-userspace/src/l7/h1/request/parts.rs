//! The request line and the header lines of a head, wherever they end. What they may be is judged by whoever asked.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Status};

use super::super::head::{Lines, Refusal, Version};
use super::super::plain;
use super::refuse_method;

/// What a head consists of.
pub(super) struct Parts<'h, 'b> {
    /// Bytes of the whole head.
    pub(super) len: usize,
    pub(super) method: &'b str,
    pub(super) path: &'b [u8],
    pub(super) version: Version,
    pub(super) headers: &'h [Header<'b>],
    /// Lines follow each other without a gap, end in CRLF and are no longer than was asked.
    pub(super) is_plain: bool,
}

impl<'h, 'b> Parts<'h, 'b> {
    /// Reads them from the start of `bytes`; `None` while they are incomplete. With a line longer than `longest` they are
    /// not plain.
    pub(super) fn read<const N: usize>(
        bytes: &'b [u8],
        lines: &'h mut Lines<'b, N>,
        longest: usize,
    ) -> Result<Option<Self>, Refusal> {
        let Lines { usual, plain, odd } = lines;
        if let Some((method, path, line)) = plain::request_line(bytes)
            && let Some((headers, len)) = plain::header_lines(bytes, line, longest, plain)
        {
            let version = Version::Http11;
            return Ok(Some(Self { len, method, path, version, headers, is_plain: true }));
        }
        Self::read_odd(bytes, usual, odd)
    }

    /// The same for a head of any form.
    #[cold]
    fn read_odd<const N: usize>(
        bytes: &'b [u8],
        usual: &'h mut [MaybeUninit<Header<'b>>; N],
        odd: &'h mut Vec<Header<'b>>,
    ) -> Result<Option<Self>, Refusal> {
        let mut parsed = httparse::Request::new(&mut []);
        let len = match parsed.parse_with_uninit_headers(bytes, usual) {
            Ok(Status::Complete(len)) => len,
            Ok(Status::Partial) => return Ok(None),
            Err(Error::Token | Error::Version) => return Self::of_odd_line::<N>(bytes, odd),
            Err(Error::HeaderName) => return Self::of_odd_names::<N>(bytes, odd),
            Err(error) => return Err(refusal(error)),
        };
        let (Some(method), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::Malformed);
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        Ok(Some(Self {
            len,
            method,
            path: path.as_bytes(),
            version,
            headers: parsed.headers,
            is_plain: false,
        }))
    }

    /// A request line that httparse does not take: a target with bytes that are no UTF-8, which nginx hands on, or a version
    /// of HTTP/1 beyond 1.1. Nobody can read two requests in either: the target ends at the first blank like any other.
    fn of_odd_line<const N: usize>(
        bytes: &'b [u8],
        odd: &'h mut Vec<Header<'b>>,
    ) -> Result<Option<Self>, Refusal> {
        let mut words = bytes.splitn(2, |byte| *byte == b' ');
        let (Some(method), Some(rest)) = (words.next(), words.next()) else { return Err(Refusal::Malformed) };
        let method = std::str::from_utf8(method).map_err(|_| Refusal::Malformed)?;
        refuse_method(method)?;
        let of_target = |byte: &u8| matches!(byte, b'!'..=b'~' | 0x80..);
        let end = rest.iter().position(|byte| !of_target(byte)).unwrap_or(rest.len());
        let (path, behind) = rest.split_at_checked(end).ok_or(Refusal::Malformed)?;
        if method.is_empty() || path.is_empty() {
            return Err(Refusal::Malformed);
        }
        let Some((version, block)) = end_of_line(behind)? else { return Ok(None) };
        let has_usual_version = behind.starts_with(b" HTTP/1.0") || behind.starts_with(b" HTTP/1.1");
        if has_usual_version && path.is_ascii() {
            // Then it is something else that is wrong.
            return Err(Refusal::Malformed);
        }
        let Some(len) = header_lines(block, N, odd)? else { return Ok(None) };
        Ok(Some(Self {
            len: bytes.len() - block.len() + len,
            method,
            path,
            version,
            headers: odd,
            is_plain: false,
        }))
    }

    /// Names that are no tokens, like `X[`: nginx drops such a line, whoever asked decides. Nothing else of them is
    /// taken more lightly than httparse does: a name is visible, its colon follows at once, lines end in CRLF.
    fn of_odd_names<const N: usize>(
        bytes: &'b [u8],
        odd: &'h mut Vec<Header<'b>>,
    ) -> Result<Option<Self>, Refusal> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (line, block) = bytes.split_at_checked(end).ok_or(Refusal::Malformed)?;
        let mut parsed = httparse::Request::new(&mut []);
        let read = parsed.parse(line);
        let (Ok(Status::Partial), Some(method), Some(path), Some(version)) =
            (read, parsed.method, parsed.path, parsed.version)
        else {
            return Err(Refusal::Malformed);
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let Some(len) = header_lines(block, N, odd)? else { return Ok(None) };
        Ok(Some(Self {
            len: end + len,
            method,
            path: path.as_bytes(),
            version,
            headers: odd,
            is_plain: false,
        }))
    }
}

/// The version that ends a request line, and what comes behind the line; `None` while it is incomplete.
fn end_of_line(behind: &[u8]) -> Result<Option<(Version, &[u8])>, Refusal> {
    const FORM: &[u8; 11] = b" HTTP/0.0\r\n";
    let fits = |(byte, form): (&u8, &u8)| byte == form || *form == b'0' && byte.is_ascii_digit();
    if !behind.iter().zip(FORM).all(fits) {
        return Err(Refusal::Malformed);
    }
    let Some((end, block)) = behind.split_at_checked(FORM.len()) else { return Ok(None) };
    Ok(Some((Version::named(end.trim_ascii())?, block)))
}

/// Reads lines up to the empty one; the length of all of them, `None` while they are incomplete.
fn header_lines<'b>(
    block: &'b [u8],
    most: usize,
    lines: &mut Vec<Header<'b>>,
) -> Result<Option<usize>, Refusal> {
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    let mut rest = block;
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            let begun = rest.strip_suffix(b"\r").unwrap_or(rest);
            return if begun.iter().all(is_text) { Ok(None) } else { Err(Refusal::Malformed) };
        };
        let (line, behind) = rest.split_at_checked(end + 1).ok_or(Refusal::Malformed)?;
        let line = line.strip_suffix(b"\r\n").ok_or(Refusal::LineEnd)?;
        rest = behind;
        if line.is_empty() {
            return Ok(Some(block.len() - rest.len()));
        }
        if lines.len() == most {
            return Err(Refusal::HeadTooLarge);
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return Err(Refusal::Malformed) };
        let name = std::str::from_utf8(name).map_err(|_| Refusal::Malformed)?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name || !value.iter().all(is_text) {
            return Err(Refusal::Malformed);
        }
        // Without controls, blanks and tabs are all that can be trimmed.
        lines.push(Header { name, value: value.trim_ascii() });
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::TooManyHeaders => Refusal::HeadTooLarge,
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::head::{Block, Sizes};
    use super::*;

    fn read(bytes: &[u8]) -> (bool, Option<String>) {
        let (mut one, mut other): (Lines<'_>, Lines<'_>) = (Lines::new(), Lines::new());
        let sizes = Sizes { line: 40, ..Sizes::default() };
        let told = |parts: &Parts<'_, '_>| {
            let Parts { len, method, path, version, headers, is_plain: _ } = parts;
            format!("{len} {method} {} {version:?} {headers:?}", path.escape_ascii())
        };
        let plain = Parts::read(bytes, &mut one, sizes.line);
        let Lines { usual, odd, .. } = &mut other;
        let any = Parts::read_odd(bytes, usual, odd);
        let Ok(Some(parts)) = &plain else {
            assert_eq!(plain.map(|_| ()), any.map(|_| ()));
            return (false, None);
        };
        assert_eq!(Some(told(parts)), any.expect("read").as_ref().map(told));
        if parts.is_plain {
            let head = bytes.get(..parts.len).expect("within");
            let line = parts.method.len() + parts.path.len() + " HTTP/1.1\r\n".len() + 1;
            let checked = Block::checked(head, parts.headers, line, sizes);
            assert_eq!(checked.map(|_| ()), Ok(()));
        }
        (parts.is_plain, Some(told(parts)))
    }

    #[test]
    fn heads_as_most_are_written_are_plain() {
        let head = "GET /a?b=%20 HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: x/1 (y; z)\r\nX-1:2\r\n\r\n";

        assert!(read(head.as_bytes()).0);
        assert!(read(b"POST / HTTP/1.1\r\n\r\nbody").0);
        assert!(!read(&head.as_bytes()[..head.len() - 1]).0);
        assert!(!read(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40)).as_bytes()).0);
    }

    proptest! {
        #[test]
        fn a_plain_head_is_read_as_any_other_would_be(
            first in "(\r\n)?(GET|POST|M-S|get) {1,2}(/[!-~]{0,12}|[ -~\u{e9}]{0,3}) HTTP/1\\.[012](\r\n|\n)",
            lines in proptest::collection::vec("([A-Za-z!-]{1,9}|[ -~]{0,2}):[ \t]{0,2}[ -~]{0,9}(x{30}|\t|\u{e9})?(\r\n|\r\n|\n)", 0..28),
            cut in 0_usize..200,
        ) {
            let head = [first.as_str(), &lines.concat(), "\r\n"].concat();
            read(head.as_bytes());
            read(head.as_bytes().get(..cut).unwrap_or_default());
        }

        #[test]
        fn a_plain_head_of_plain_lines_is_read_as_any_other_would_be(
            first in "(GET|POST) /[!-~]{0,12} HTTP/1\\.1\r\n",
            lines in proptest::collection::vec("[A-Za-z0-9-]{1,12}: ?[!-~]([ -~]{0,9}[!-~])?\r\n", 0..24),
            body in "(body)?",
        ) {
            prop_assert!(read([first.as_str(), &lines.concat(), "\r\n", &body].concat().as_bytes()).0);
        }
    }
}
