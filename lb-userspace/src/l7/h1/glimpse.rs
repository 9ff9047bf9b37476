//! A head that was refused, as far as it can be read: for its line in the access log, and for nothing that is decided.

use httparse::Header;

use super::head::{Block, HEADERS_MAX, LineSet, Version};
use super::request::{Request, split_target, valid_host};

impl<'h, 'b> Request<'h, 'b> {
    /// What the lines say that came whole; `None` if not even the first of them can be understood.
    pub(in crate::l7) fn glimpse(bytes: &'b [u8], lines: &'h mut Vec<Header<'b>>) -> Option<Self> {
        let end = bytes.iter().rposition(|byte| *byte == b'\n')?;
        let line = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
        let mut text = bytes.get(..end)?.split(|byte| *byte == b'\n');
        let mut text =
            std::iter::from_fn(|| text.next().map(|line| line.strip_suffix(b"\r").unwrap_or(line)));
        let mut words = text.next()?.split(|byte| *byte == b' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let version = Version::named(version).ok()?;
        let method = std::str::from_utf8(method).ok().filter(|_| words.next().is_none())?;
        let (target, authority) = split_target(target).unwrap_or((target, None));
        lines.extend(text.take_while(|line| !line.is_empty()).filter_map(header).take(HEADERS_MAX));
        let value = |name: &str| {
            let named = lines.iter().find(|line| line.name.eq_ignore_ascii_case(name));
            named.map(|line| line.value).filter(|value| !value.is_empty())
        };
        let (host, request_id) = (authority.or_else(|| value("host")), value("x-request-id"));
        Some(Self {
            len: bytes.len(),
            method,
            target,
            version,
            host: host.filter(|host| valid_host(host)).unwrap_or_default(),
            length: None,
            chunked: false,
            persists: false,
            expects_continue: false,
            upgrade: None,
            request_id,
            forwarded_for: LineSet::default(),
            forwarded_host: LineSet::default(),
            transfer_encoding: LineSet::default(),
            line,
            block: Block { bytes, lines },
            drop: LineSet::default(),
        })
    }
}

fn header(line: &[u8]) -> Option<Header<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    let (name, value) = (std::str::from_utf8(name).ok()?, value.get(1..)?.trim_ascii());
    Some(Header { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_came_whole_are_read_however_odd_the_others_are() {
        for (case, head, expected) in [
            (
                "a good one",
                "TRACE /x?y HTTP/1.1\r\nHost: a:80\r\nA: 1\r\n\r\n",
                Some(("/x?y", "a:80", Some("1"))),
            ),
            ("half a line", "GET /x HTTP/1.1\r\nHost: a\r\nA: 1", Some(("/x", "a", None))),
            ("line feeds alone", "GET /x HTTP/1.0\nHost: a\nA:1\n\n", Some(("/x", "a", Some("1")))),
            ("an odd line", "GET /x HTTP/1.1\r\nno colon\r\nA: 1\r\n", Some(("/x", "", Some("1")))),
            ("an odd host", "GET /x HTTP/1.1\r\nHost: a/b\r\n", Some(("/x", "", None))),
            ("a whole URL", "GET http://b/x HTTP/1.1\r\nHost: a\r\n", Some(("/x", "b", None))),
            ("what is a body", "GET / HTTP/1.1\r\n\r\nA: 1\r\n", Some(("/", "", None))),
            ("a version to come", "GET /x HTTP/1.9\r\nHost: a\r\n", Some(("/x", "a", None))),
            ("another version", "GET / HTTP/3.0\r\n\r\n", None),
            ("a word too many", "GET / x HTTP/1.1\r\n\r\n", None),
            ("no whole line", "GET / HTTP/1.1", None),
            ("nothing", "", None),
        ] {
            let mut lines = Vec::new();
            let request = Request::glimpse(head.as_bytes(), &mut lines);
            let found = request.as_ref().map(|request| {
                let header = request.headers("a").next();
                (request.target, request.host, header)
            });

            let expected = expected.map(|(target, host, header): (&str, &str, Option<&str>)| {
                (target.as_bytes(), host.as_bytes(), header.map(str::as_bytes))
            });
            assert_eq!(found, expected, "{case}");
        }
    }
}
