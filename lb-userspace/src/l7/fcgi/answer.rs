//! An application's output as HTTP/1.1 bytes: its CGI head becomes a response head, what follows the
//! body, in chunks where no length was promised. Pure.

use std::io::Write as _;

use super::super::buffer::{BUFFER_BYTES, Scratch, copy};
use super::super::h1::chunked::{self, is_text};
use super::super::h1::head::{content_length, is_of_token};
use super::record::{Decoder, Malformed, Outcome, Piece};
use super::stderr::Stderr;

/// What of a head concerns one connection alone: none of the application's business.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer"];

/// One answer, read from records.
pub(super) struct Answer {
    records: Decoder,
    phase: Phase,
    /// Bytes of ours that wait to be read.
    staged: Option<Scratch>,
    staged_read: usize,
    /// Bytes of content at the front of what was received.
    content: usize,
    head_only: bool,
    pub(super) stderr: Stderr,
    was_refused: bool,
}

enum Phase {
    /// What there is of the head.
    Head(Scratch),
    /// The application says how long it is.
    Length(u64),
    /// It does not.
    Chunks,
    /// Nothing more is passed on.
    Done,
}

impl Answer {
    /// Nothing read yet; `head_only`: a body is not wanted.
    pub(super) fn new(head_only: bool) -> Self {
        Self {
            records: Decoder::default(),
            phase: Phase::Head(Scratch::take()),
            staged: None,
            staged_read: 0,
            content: 0,
            head_only,
            stderr: Stderr::default(),
            was_refused: false,
        }
    }

    /// Whoever reads gets something now, be it the end.
    pub(super) fn is_ready(&self) -> bool {
        self.staged.is_some() || self.content > 0 || matches!(self.phase, Phase::Done)
    }

    /// The application said that it did nothing about the request.
    pub(super) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// The connection ended; an answer that was not through is cut off there.
    pub(super) fn cut(&mut self) {
        self.phase = Phase::Done;
    }

    /// Looks at the next of the bytes that were received; returns how many of them are done with.
    pub(super) fn look(&mut self, received: &[u8]) -> Result<usize, Malformed> {
        let piece = self.records.next(received)?;
        let n = piece.len();
        match piece {
            Piece::Framing(_) => {}
            Piece::Errors(_) => self.stderr.add(received.get(..n).unwrap_or_default()),
            Piece::Output(_) => return self.output(received.get(..n).unwrap_or_default()),
            Piece::End(_, Outcome::Refused) if matches!(&self.phase, Phase::Head(head) if head.is_empty()) => {
                self.was_refused = true;
                self.phase = Phase::Done;
            }
            Piece::OutputEnd(_) | Piece::End(..) => self.end()?,
        }
        Ok(n)
    }

    /// Gives what there is: bytes of `received` that are done with, and bytes written.
    pub(super) fn take(&mut self, received: &[u8], into: &mut [u8]) -> (usize, usize) {
        if let Some(staged) = &self.staged {
            let n = copy(staged.get(self.staged_read..).unwrap_or_default(), into);
            self.staged_read += n;
            if self.staged_read >= staged.len() {
                (self.staged, self.staged_read) = (None, 0);
            }
            return (0, n);
        }
        let content = received.get(..self.content).unwrap_or(received);
        let (done, written) = match &mut self.phase {
            Phase::Chunks => {
                let written = chunked::write(content, into);
                (written.saturating_sub(chunked::OVERHEAD), written)
            }
            Phase::Length(left) => {
                let promised = usize::try_from(*left).unwrap_or(usize::MAX);
                let n = copy(content.get(..promised).unwrap_or(content), into);
                *left -= n as u64;
                (n, n)
            }
            Phase::Head(_) | Phase::Done => (content.len(), 0),
        };
        self.content -= done;
        if matches!(self.phase, Phase::Length(0)) {
            // More than was promised is not passed on: nobody could tell whose it is.
            self.phase = Phase::Done;
        }
        (done, written)
    }

    /// Output; returns how much of it is done with, the rest is content.
    fn output(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let Phase::Head(head) = &mut self.phase else {
            self.content = bytes.len();
            return Ok(0);
        };
        let before = head.len();
        head.extend_from_slice(bytes.get(..BUFFER_BYTES - before.min(BUFFER_BYTES)).unwrap_or(bytes));
        let Some(end) = end_of_head(head, before) else {
            return if head.len() < BUFFER_BYTES { Ok(bytes.len()) } else { Err(Malformed::Head) };
        };
        head.truncate(end);
        let mut out = Scratch::take();
        self.phase = response_head(head, self.head_only, &mut out)?;
        self.staged = Some(out);
        let done = end.saturating_sub(before);
        self.content = match self.phase {
            Phase::Done => 0,
            _ => bytes.len() - done,
        };
        Ok(if self.content == 0 { bytes.len() } else { done })
    }

    /// The output is complete.
    fn end(&mut self) -> Result<(), Malformed> {
        match self.phase {
            Phase::Head(_) => return Err(Malformed::NoHead),
            Phase::Chunks => {
                let mut end = Scratch::take();
                end.extend_from_slice(b"0\r\n\r\n");
                self.staged = Some(end);
            }
            // Less than was promised is seen as such by who reads it.
            Phase::Length(_) | Phase::Done => {}
        }
        self.phase = Phase::Done;
        Ok(())
    }
}

/// Where the head ends, if it does: behind the first empty line, whatever its line ends are. The first
/// `seen` bytes were looked through before.
fn end_of_head(head: &[u8], seen: usize) -> Option<usize> {
    // An end may have begun there.
    let from = seen.saturating_sub(2);
    let mut at = from;
    while let Some(line_end) = head.get(at..)?.iter().position(|&byte| byte == b'\n').map(|n| at + n) {
        let line = head.get(..line_end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.ends_with(b"\n") {
            return Some(line_end + 1);
        }
        at = line_end + 1;
    }
    None
}

/// A CGI head as a response head (RFC 3875 6), and how its body is to be read.
fn response_head(cgi: &[u8], head_only: bool, out: &mut Vec<u8>) -> Result<Phase, Malformed> {
    let mut lines = Scratch::take();
    let (mut status, mut redirects, mut length) = (None, false, None);
    for line in cgi.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(Malformed::Head)?;
        let (name, value) = line.split_at_checked(colon).ok_or(Malformed::Head)?;
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        if name.is_empty()
            || !name.iter().all(|&byte| is_of_token(byte))
            || !value.iter().all(|&byte| is_text(byte))
        {
            return Err(Malformed::Head);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("status") {
            if status.replace(read_status(value)?).is_some() {
                return Err(Malformed::Head);
            }
            continue;
        }
        if is("content-length") {
            let read = content_length(value).map_err(|_| Malformed::Head)?;
            if length.replace(read).is_some() {
                return Err(Malformed::Head);
            }
            continue;
        }
        if HOP_BY_HOP.iter().any(|hop| is(hop)) {
            continue;
        }
        redirects |= is("location");
        for part in [name, b": ", value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    let (code, reason) = match status {
        Some(status) => status,
        None if redirects => (302, &b"Found"[..]),
        None => (200, &b"OK"[..]),
    };
    let _ = write!(out, "HTTP/1.1 {code} ");
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&lines);
    let bodyless = matches!(code, 204 | 304);
    let phase = match length {
        _ if bodyless => Phase::Done,
        Some(length) => {
            let _ = write!(out, "Content-Length: {length}\r\n");
            if head_only || length == 0 { Phase::Done } else { Phase::Length(length) }
        }
        None if head_only => Phase::Done,
        None => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            Phase::Chunks
        }
    };
    out.extend_from_slice(b"\r\n");
    Ok(phase)
}

/// `404 Not Found`, or the number alone.
fn read_status(value: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (code, reason) = value.split_at_checked(3).ok_or(Malformed::Head)?;
    let code: u16 =
        std::str::from_utf8(code).ok().and_then(|code| code.parse().ok()).ok_or(Malformed::Head)?;
    // Informational ones are HTTP's own, and the switch of protocols among them.
    if code < 200 || reason.first().is_some_and(|byte| *byte != b' ') {
        return Err(Malformed::Head);
    }
    Ok((code, reason.trim_ascii_start()))
}

#[cfg(test)]
mod tests;
