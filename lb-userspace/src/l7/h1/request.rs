//! Request heads.

mod parts;

use self::parts::Parts;
use super::head::{
    Block, Connection, Framing, LineSet, Lines, OwnBlock, OwnLines, Refusal, Sizes, Version, is_name,
    is_of_token, tokens,
};
use crate::model::l7::forwarding::HeaderNames;

/// A request head, borrowed from the bytes it was read into.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) struct Request<'h, 'b> {
    /// Bytes of the head with its empty line.
    pub(in crate::l7) len: usize,
    /// Upper-case token.
    pub(in crate::l7) method: &'b str,
    /// Path and query as sent; of an absolute form, without scheme and authority.
    pub(in crate::l7) target: &'b [u8],
    /// 1.0 or 1.1.
    pub(in crate::l7) version: Version,
    /// Host header, or the authority of an absolute form; empty in HTTP/1.0 without either.
    pub(in crate::l7) host: &'b [u8],
    /// `Content-Length`.
    pub(in crate::l7) length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub(in crate::l7) chunked: bool,
    /// The client keeps the connection.
    pub(in crate::l7) persists: bool,
    /// `Expect: 100-continue`.
    pub(in crate::l7) expects_continue: bool,
    /// Value of Upgrade, if Connection asks for it.
    pub(in crate::l7) upgrade: Option<&'b [u8]>,
    /// `X-Request-ID` of the client.
    pub(in crate::l7) request_id: Option<&'b [u8]>,
    /// The client's own `X-Forwarded-For` lines.
    pub(in crate::l7) forwarded_for: LineSet,
    /// The client's own `X-Forwarded-Host` lines.
    pub(in crate::l7) forwarded_host: LineSet,
    /// The line that says that the body comes in chunks.
    pub(in crate::l7) transfer_encoding: LineSet,
    /// Bytes of the request line.
    pub(in crate::l7) line: usize,
    /// Header lines.
    pub(in crate::l7) block: Block<'h, 'b>,
    /// Lines that never go upstream: hop-by-hop, replaced by ours, spoofable or oddly named.
    pub(in crate::l7) drop: LineSet,
}

impl<'h, 'b> Request<'h, 'b> {
    /// Reads a head from the start of `bytes`; `None` while it is incomplete.
    pub(in crate::l7) fn parse(
        bytes: &'b [u8],
        lines: &'h mut Lines<'b>,
        sizes: Sizes,
    ) -> Result<Option<Self>, Refusal> {
        let Some(Parts { len, method, path, version, headers, is_plain }) =
            Parts::read(bytes, lines, sizes.line)?
        else {
            return incomplete(bytes, sizes).map(|()| None);
        };

        // The request line is exactly what its parts need: nothing skipped, CRLF at the end.
        let line_len = method.len() + 1 + path.len() + " HTTP/1.1\r\n".len();
        let head = bytes.get(..len).ok_or(Refusal::Malformed)?;
        if line_len > sizes.line {
            return Err(Refusal::TargetTooLong);
        }
        if len > sizes.head {
            return Err(Refusal::HeadTooLarge);
        }
        if !head.get(..line_len).is_some_and(|line| line.ends_with(b"\r\n")) {
            return Err(Refusal::LineEnd);
        }
        let block = match is_plain {
            true => Block { bytes: head, lines: headers },
            false => Block::checked(head, headers, line_len, sizes)?,
        };
        refuse_method(method)?;
        let (target, authority) = split_target(path)?;
        let line = line_len - 2;
        collect(method, target, authority, version, block, line, sizes.names).map(Some)
    }
}

impl<'b> Request<'_, 'b> {
    /// The request line as it was sent.
    pub(in crate::l7) fn line(&self) -> &'b [u8] {
        self.block.bytes.get(..self.line).unwrap_or_default()
    }

    /// Values of the lines of this name.
    pub(in crate::l7) fn headers(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.block
            .lines
            .iter()
            .filter(move |line| line.name.eq_ignore_ascii_case(name))
            .map(|line| line.value)
    }
}

/// An incomplete head that can no longer become an acceptable one.
fn incomplete(bytes: &[u8], sizes: Sizes) -> Result<(), Refusal> {
    if bytes.len() > sizes.line && !bytes.get(..sizes.line).is_some_and(|line| line.contains(&b'\n')) {
        return Err(Refusal::TargetTooLong);
    }
    if bytes.len() >= sizes.head {
        return Err(Refusal::HeadTooLarge);
    }
    Ok(())
}

/// nginx's alphabet of methods; CONNECT would make us a forward proxy, TRACE echoes secrets.
fn refuse_method(method: &str) -> Result<(), Refusal> {
    if !method.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-')) {
        return Err(Refusal::Malformed);
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Refusal::Method);
    }
    Ok(())
}

/// Splits an absolute form into what goes upstream and its authority. A fragment is no part of either, as over
/// HTTP/2: parsers disagree about what follows `#`, so nobody gets it.
pub(super) fn split_target(path: &[u8]) -> Result<(&[u8], Option<&[u8]>), Refusal> {
    let path = path.split(|b| *b == b'#').next().unwrap_or_default();
    if path.starts_with(b"/") {
        return Ok((path, None));
    }
    let rest = strip_prefix_ignore_case(path, b"http://")
        .or_else(|| strip_prefix_ignore_case(path, b"https://"))
        .ok_or(Refusal::Target)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(end).ok_or(Refusal::Target)?;
    match target.first() {
        None => Ok((b"/", Some(authority))),
        Some(b'/') => Ok((target, Some(authority))),
        Some(_) => Err(Refusal::Pathless),
    }
}

/// Where in a head that was refused as [`Refusal::Pathless`] the path is missing: before its query, and nothing in
/// front of that has a question mark.
pub(in crate::l7) fn missing_path(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'?')
}

fn strip_prefix_ignore_case<'b>(bytes: &'b [u8], prefix: &[u8]) -> Option<&'b [u8]> {
    let (start, rest) = bytes.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Walks the header lines once.
fn collect<'h, 'b>(
    method: &'b str,
    target: &'b [u8],
    authority: Option<&'b [u8]>,
    version: Version,
    block: Block<'h, 'b>,
    line: usize,
    names: HeaderNames,
) -> Result<Request<'h, 'b>, Refusal> {
    let mut request = Request {
        len: block.bytes.len(),
        method,
        target,
        version,
        host: authority.unwrap_or_default(),
        length: None,
        chunked: false,
        persists: false,
        expects_continue: false,
        upgrade: None,
        request_id: None,
        forwarded_for: LineSet::default(),
        forwarded_host: LineSet::default(),
        transfer_encoding: LineSet::default(),
        line,
        block,
        drop: LineSet::default(),
    };
    let mut found = Found::default();
    for (i, line) in block.lines.iter().enumerate() {
        let name = Name::of(line.name.as_bytes(), names);
        if !found.take(&mut request, i, name, line.value)? {
            request.drop.insert(i);
        }
    }
    let Found { framing, connection, host } = found;
    if connection.names_others {
        block.drop_named_by_connection(&mut request.drop);
    }
    request.host = asked_host(host, authority, version)?;
    request.length = framing.length;
    request.chunked = framing.chunked;
    request.persists = connection.persists(version);
    // A body before the switch of protocols would have to be understood by both; nobody sends it.
    let may_upgrade = connection.upgrade && version == Version::Http11;
    request.upgrade = request.upgrade.filter(|to| may_upgrade && !leaves_our_rules(to));
    Ok(request)
}

/// What several header lines say together.
#[derive(Default)]
struct Found<'b> {
    framing: Framing,
    connection: Connection,
    host: Option<&'b [u8]>,
}

impl<'b> Found<'b> {
    /// Takes note of a line; whether it is sent on as it is written.
    #[inline]
    fn take(
        &mut self,
        request: &mut Request<'_, 'b>,
        i: usize,
        name: Name,
        value: &'b [u8],
    ) -> Result<bool, Refusal> {
        let is_http11 = request.version == Version::Http11;
        match name {
            Name::Other => return Ok(true),
            Name::Dropped => {}
            Name::Host => {
                if self.host.replace(value).is_some() {
                    return Err(Refusal::Host);
                }
            }
            // Kept as they are written: the checks leave one way to read them.
            Name::ContentLength => {
                self.framing.content_length(value)?;
                return Ok(true);
            }
            Name::TransferEncoding => {
                self.framing.transfer_encoding(value, request.version)?;
                request.transfer_encoding.insert(i);
                return Ok(true);
            }
            Name::Connection => self.connection.add(value)?,
            Name::Upgrade => request.upgrade = Some(value),
            Name::Expect => {
                request.expects_continue |= is_http11 && value.eq_ignore_ascii_case(b"100-continue");
            }
            Name::RequestId => request.request_id = Some(value).filter(|id| !id.is_empty()),
            Name::ForwardedFor => request.forwarded_for.insert(i),
            Name::ForwardedHost => request.forwarded_host.insert(i),
        }
        Ok(false)
    }
}

/// Whom the request is for. RFC 9112 3.2.2: the authority of an absolute form replaces Host.
fn asked_host<'b>(
    host: Option<&'b [u8]>,
    authority: Option<&'b [u8]>,
    version: Version,
) -> Result<&'b [u8], Refusal> {
    let asked = authority.or(host).unwrap_or_default();
    let missing = asked.is_empty() && version == Version::Http11;
    if missing || !valid_host(asked) {
        return Err(Refusal::Host);
    }
    Ok(asked)
}

/// Who speaks HTTP/2 to the backend directly has left all our rules behind.
fn leaves_our_rules(upgrade: &[u8]) -> bool {
    tokens(upgrade).any(|to| to.eq_ignore_ascii_case(b"h2c"))
}

/// A request head that we wrote.
pub(in crate::l7) struct Sent<'h, 'b> {
    pub(in crate::l7) method: &'b str,
    pub(in crate::l7) target: &'b [u8],
    pub(in crate::l7) host: &'b [u8],
    pub(in crate::l7) length: Option<u64>,
    pub(in crate::l7) chunked: bool,
    lines: OwnBlock<'h, 'b>,
}

impl<'b> Sent<'_, 'b> {
    /// Headers that mean something beyond this connection.
    pub(in crate::l7) fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.lines.beyond().filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
    }
}

/// Reads a head of ours, for an upstream that does not speak HTTP/1.1; `None` if it is none.
pub(in crate::l7) fn sent<'h, 'b>(bytes: &'b [u8], lines: &'h mut OwnLines<'b>) -> Option<Sent<'h, 'b>> {
    let Parts { method, path, headers, .. } = Parts::read(bytes, lines, usize::MAX).ok()??;
    let lines = OwnBlock(headers);
    Some(Sent {
        method,
        target: path,
        host: lines.value("host").unwrap_or_default(),
        length: lines.length(),
        chunked: lines.is_chunked(),
        lines,
    })
}

/// A name or an address, and at most one port; userinfo, paths and spaces are no part of it.
pub(in crate::l7) fn valid_host(host: &[u8]) -> bool {
    if host.len() > 261 {
        return false;
    }
    let of_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    let behind = match host.strip_prefix(b"[") {
        None => {
            let end = host.iter().position(|byte| !OF_HOST[usize::from(*byte)]).unwrap_or(host.len());
            host.get(end..).unwrap_or_default()
        }
        Some(inside) => {
            let Some(end) = inside.iter().position(|byte| *byte == b']') else { return false };
            let (addr, behind) = inside.split_at_checked(end).unwrap_or_default();
            if !addr.iter().all(|byte| OF_HOST[usize::from(*byte)] || *byte == b':') {
                return false;
            }
            behind.get(1..).unwrap_or_default()
        }
    };
    behind.is_empty() || behind.strip_prefix(b":").is_some_and(of_port)
}

/// Which bytes a name of a host has.
static OF_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%');
        byte += 1;
    }
    table
};

/// Headers that are more to us than a line to copy.
enum Name {
    Other,
    /// Hop-by-hop, replaced by ours, dangerous, or a name ingress-nginx drops.
    Dropped,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    RequestId,
    ForwardedFor,
    ForwardedHost,
}

impl Name {
    fn of(name: &[u8], names: HeaderNames) -> Self {
        // By length first: most names of a request differ in it from all of ours.
        match name.len() {
            2 if is_name(name, b"te") => Self::Dropped,
            4 if is_name(name, b"host") => Self::Host,
            5 if is_name(name, b"proxy") => Self::Dropped,
            6 if is_name(name, b"expect") => Self::Expect,
            7 if is_name(name, b"upgrade") => Self::Upgrade,
            8 if is_name(name, b"x-scheme") => Self::Dropped,
            9 if is_name(name, b"x-real-ip") => Self::Dropped,
            10 if is_name(name, b"connection") => Self::Connection,
            10 if is_name(name, b"keep-alive") => Self::Dropped,
            12 if is_name(name, b"x-request-id") => Self::RequestId,
            14 if is_name(name, b"http2-settings") => Self::Dropped,
            14 if is_name(name, b"content-length") => Self::ContentLength,
            15 if is_name(name, b"x-forwarded-for") => Self::ForwardedFor,
            16 if is_name(name, b"x-forwarded-host") => Self::ForwardedHost,
            16 if is_name(name, b"x-forwarded-port") || is_name(name, b"proxy-connection") => Self::Dropped,
            17 if is_name(name, b"transfer-encoding") => Self::TransferEncoding,
            17 if is_name(name, b"x-forwarded-proto") => Self::Dropped,
            18 if is_name(name, b"x-forwarded-scheme") => Self::Dropped,
            19 if is_name(name, b"proxy-authorization") => Self::Dropped,
            24 if is_name(name, b"x-original-forwarded-for") => Self::Dropped,
            25 if is_name(name, b"x-original-forwarded-host") => Self::Dropped,
            _ if name.len() > 10
                && name.get(..11).is_some_and(|start| start.eq_ignore_ascii_case(b"ssl-client-")) =>
            {
                Self::Dropped
            }
            // `X_Foo` and `X-Foo` are one variable to many frameworks.
            _ if !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') => Self::odd(name, names),
            _ => Self::Other,
        }
    }

    /// A name with other characters than most: passed on where that is wanted, unless a framework could
    /// take it for one of those that only we may write.
    fn odd(name: &[u8], names: HeaderNames) -> Self {
        let passes = |byte: &u8| match names {
            HeaderNames::Plain => false,
            HeaderNames::Underscores => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            HeaderNames::All => is_of_token(*byte),
        };
        // Longer than any name of ours.
        let mut plain = [b'-'; 32];
        for (to, from) in plain.iter_mut().zip(name).filter(|(_, from)| from.is_ascii_alphanumeric()) {
            *to = *from;
        }
        let plain = plain.get(..name.len()).unwrap_or(&plain);
        match Self::of(plain, HeaderNames::Plain) {
            Self::Other if name.iter().all(passes) => Self::Other,
            _ => Self::Dropped,
        }
    }
}

#[cfg(test)]
mod tests;
