//! Response heads of upstreams.

use std::mem::MaybeUninit;

use super::head::{
    Block, Connection, Framing, LineSet, Lines, OwnBlock, OwnLines, Refusal, Sizes, Version, is_name,
};
use super::plain;

/// A response head, borrowed from the bytes it was read into.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) struct Response<'h, 'b> {
    /// Bytes of the head with its empty line.
    pub(in crate::l7) len: usize,
    /// 100 to 999.
    pub(in crate::l7) status: u16,
    /// Reason phrase as sent.
    pub(in crate::l7) reason: &'b str,
    /// The first line with its end, where it was sent as we write it.
    pub(in crate::l7) line: Option<&'b [u8]>,
    /// `Content-Length`.
    pub(in crate::l7) length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub(in crate::l7) chunked: bool,
    /// The upstream keeps the connection.
    pub(in crate::l7) persists: bool,
    /// Value of Upgrade.
    pub(in crate::l7) upgrade: Option<&'b [u8]>,
    /// It brings a Date.
    pub(in crate::l7) dated: bool,
    /// `X-Accel-Buffering: no`: it is not to be read ahead of its client.
    pub(in crate::l7) streams: bool,
    /// Header lines.
    pub(in crate::l7) block: Block<'h, 'b>,
    /// Lines that never reach the client.
    pub(in crate::l7) drop: LineSet,
    /// The upstream's Server.
    pub(in crate::l7) server: LineSet,
    /// The upstream's own HSTS header, replaced by ours over TLS.
    pub(in crate::l7) hsts: LineSet,
    /// The line that tells the length of the body.
    pub(in crate::l7) transfer_encoding: LineSet,
}

impl<'h, 'b> Response<'h, 'b> {
    /// Reads a head from the start of `bytes`; `None` while it is incomplete.
    pub(in crate::l7) fn parse(bytes: &'b [u8], lines: &'h mut Lines<'b>) -> Result<Option<Self>, Refusal> {
        if let Some((status, reason, line)) = plain::status_line(bytes)
            && let Some((headers, len)) = plain::header_lines(bytes, line, usize::MAX, &mut lines.plain)
        {
            let head = bytes.get(..len).ok_or(Refusal::Malformed)?;
            let block = Block { bytes: head, lines: headers };
            return collect((status, reason, head.get(..line)), Version::Http11, block).map(Some);
        }
        Self::parse_odd(bytes, &mut lines.usual)
    }

    /// The same for a head of any form.
    #[cold]
    fn parse_odd(
        bytes: &'b [u8],
        lines: &'h mut [MaybeUninit<httparse::Header<'b>>],
    ) -> Result<Option<Self>, Refusal> {
        let mut parsed = httparse::Response::new(&mut []);
        let status =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, lines);
        let len = match status {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::Version) => return Err(Refusal::Version),
            Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
            Err(_) => return Err(Refusal::Malformed),
        };
        let (Some(version), Some(status)) = (parsed.version, parsed.code) else {
            return Err(Refusal::Malformed);
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let head = bytes.get(..len).ok_or(Refusal::Malformed)?;
        let line = head.iter().position(|&b| b == b'\n').ok_or(Refusal::Malformed)? + 1;
        if status < 100 || !head.get(..line).is_some_and(|line| line.ends_with(b"\r\n")) {
            return Err(Refusal::Malformed);
        }
        let headers: &'h [httparse::Header<'b>] = parsed.headers;
        // How long a head may be is its location's business; within that a line may be as long.
        let block = Block::checked(
            head,
            headers,
            line,
            Sizes { line: usize::MAX, head: usize::MAX, ..Sizes::default() },
        )?;
        collect((status, parsed.reason.unwrap_or_default(), None), version, block).map(Some)
    }
}

fn collect<'h, 'b>(
    (status, reason, line): (u16, &'b str, Option<&'b [u8]>),
    version: Version,
    block: Block<'h, 'b>,
) -> Result<Response<'h, 'b>, Refusal> {
    let mut response = Response {
        len: block.bytes.len(),
        status,
        reason,
        line,
        length: None,
        chunked: false,
        persists: false,
        upgrade: None,
        dated: false,
        streams: false,
        block,
        drop: LineSet::default(),
        server: LineSet::default(),
        hsts: LineSet::default(),
        transfer_encoding: LineSet::default(),
    };
    let mut framing = Framing::default();
    let mut connection = Connection::default();
    // RFC 9110 8.6, RFC 9112 6.1: a 204 tells no length. Clients of HTTP/2 take one for a body that is missing.
    let may_have_body = status != 204;
    for (i, line) in block.lines.iter().enumerate() {
        let name = line.name.as_bytes();
        let kept = match name.len() {
            4 if is_name(name, b"date") => {
                response.dated = true;
                true
            }
            6 if is_name(name, b"server") => {
                response.server.insert(i);
                true
            }
            7 if is_name(name, b"upgrade") => {
                response.upgrade = Some(line.value);
                false
            }
            10 if is_name(name, b"connection") => {
                connection.add(line.value)?;
                false
            }
            10 if is_name(name, b"keep-alive") => false,
            14 if is_name(name, b"content-length") => {
                framing.content_length(line.value)?;
                may_have_body
            }
            16 if is_name(name, b"proxy-connection") => false,
            17 if is_name(name, b"transfer-encoding") => {
                framing.transfer_encoding(line.value, version)?;
                response.transfer_encoding.insert(i);
                may_have_body
            }
            25 if is_name(name, b"strict-transport-security") => {
                response.hsts.insert(i);
                true
            }
            // Orders to nginx itself; it hides them from clients. What it would send in the place of this one no
            // location here is for: those are written in snippets. Without it the client would take nothing for all.
            16 if is_name(name, b"x-accel-redirect") => return Err(Refusal::Elsewhere),
            5 if is_name(name, b"x-pad") => false,
            15 if is_name(name, b"x-accel-expires") || is_name(name, b"x-accel-charset") => false,
            17 if is_name(name, b"x-accel-buffering") => {
                response.streams = line.value.eq_ignore_ascii_case(b"no");
                false
            }
            18 if is_name(name, b"x-accel-limit-rate") => false,
            _ => true,
        };
        if !kept {
            response.drop.insert(i);
        }
    }
    if connection.names_others {
        block.drop_named_by_connection(&mut response.drop);
    }
    response.length = framing.length;
    response.chunked = framing.chunked;
    response.persists = connection.persists(version);
    Ok(response)
}

/// A response head that we wrote.
pub(in crate::l7) struct Sent<'h, 'b> {
    pub(in crate::l7) status: u16,
    pub(in crate::l7) length: Option<u64>,
    pub(in crate::l7) chunked: bool,
    lines: OwnBlock<'h, 'b>,
}

impl<'b> Sent<'_, 'b> {
    /// Headers that mean something beyond this connection.
    pub(in crate::l7) fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.lines.beyond()
    }
}

/// Reads a head of ours, for a client that does not speak HTTP/1.1; `None` if it is none.
pub(in crate::l7) fn sent<'h, 'b>(bytes: &'b [u8], lines: &'h mut OwnLines<'b>) -> Option<Sent<'h, 'b>> {
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines.usual);
    if !status.is_ok_and(|status| status.is_complete()) {
        return None;
    }
    let lines = OwnBlock(parsed.headers);
    Some(Sent { status: parsed.code?, length: lines.length(), chunked: lines.is_chunked(), lines })
}

#[cfg(test)]
mod tests;
