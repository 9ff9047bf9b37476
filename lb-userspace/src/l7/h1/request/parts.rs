//! The request line and the header lines of a head, wherever they end. What they may be is judged by whoever asked.

use httparse::{Error, Header, Status};

use super::super::head::{Lines, Refusal, Version};
use super::refuse_method;

/// What a head consists of.
pub(super) struct Parts<'h, 'b> {
    /// Bytes of the whole head.
    pub(super) len: usize,
    pub(super) method: &'b str,
    pub(super) path: &'b [u8],
    pub(super) version: Version,
    pub(super) headers: &'h [Header<'b>],
}

impl<'h, 'b> Parts<'h, 'b> {
    /// Reads them from the start of `bytes`; `None` while they are incomplete.
    pub(super) fn read<const N: usize>(
        bytes: &'b [u8],
        lines: &'h mut Lines<'b, N>,
    ) -> Result<Option<Self>, Refusal> {
        let Lines { usual, odd } = lines;
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
        Ok(Some(Self { len, method, path: path.as_bytes(), version, headers: parsed.headers }))
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
        Ok(Some(Self { len: bytes.len() - block.len() + len, method, path, version, headers: odd }))
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
        Ok(Some(Self { len: end + len, method, path: path.as_bytes(), version, headers: odd }))
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
