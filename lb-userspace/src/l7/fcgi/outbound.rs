//! A request, written as HTTP/1.1, as records. They are collected, so that a head and a small body
//! leave in one piece; what is collected is bounded, and the writer waits while it is full.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use super::super::buffer::{Scratch, poll_each};
use super::super::carrier::Carrier;
use super::super::h1::chunked::Piece;
use super::super::h1::head::{OwnLines, Unsayable};
use super::super::h1::{self, Body};
use super::params::Params;
use super::record::{self, Kind};

/// Bytes collected before they have to go out.
const COLLECTED: usize = 32 * 1024;
/// Content of one record.
const PIECE: usize = 16 * 1024;
/// Longest head of ours.
const HEAD_MAX: usize = 64 * 1024;

/// One direction of a request.
pub(super) struct Outbound<'p> {
    params: &'p Params,
    /// A head that came in parts.
    partial: Vec<u8>,
    /// Rest of the body; `None` before the head.
    body: Option<Body>,
    collected: Scratch,
    sent: usize,
    /// The head went through, and it was a HEAD request's.
    head_only: Option<bool>,
}

impl<'p> Outbound<'p> {
    pub(super) fn new(params: &'p Params) -> Self {
        let collected = Scratch::take();
        Self { params, partial: Vec::new(), body: None, collected, sent: 0, head_only: None }
    }

    /// Once, when the head went through: whether its response has a head alone.
    pub(super) fn take_head_only(&mut self) -> Option<bool> {
        self.head_only.take()
    }

    /// Takes some of `parts`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &Carrier<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_each(parts, |bytes| self.poll_take(cx, to, bytes))
    }

    /// Sends what is collected.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, to: &Carrier<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx, to))?;
        to.poll_flush(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Carrier<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.collected.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(to.poll_write(cx, &[IoSlice::new(rest)]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        self.collected.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, to: &Carrier<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.collected.len() >= COLLECTED {
            ready!(self.poll_drain(cx, to))?;
        }
        let Some(body) = &mut self.body else { return Poll::Ready(self.head(bytes)) };
        if body.is_done() {
            return Poll::Ready(Err(malformed("bytes after the end")));
        }
        let now = bytes.get(..PIECE).unwrap_or(bytes);
        let piece = body.piece(now).map_err(|_| malformed("chunks"))?;
        let ended = body.is_done();
        // Trailers have no place in CGI.
        if let Piece::Content(n) = piece {
            record::stream(Kind::Stdin, now.get(..n).unwrap_or_default(), &mut self.collected);
        }
        if ended {
            record::end(Kind::Stdin, &mut self.collected);
        }
        Poll::Ready(Ok(piece.len()))
    }

    /// Takes a head, or a part of one.
    fn head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let Some(len) = self.partial.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else {
            return if self.partial.len() < HEAD_MAX { Ok(bytes.len()) } else { Err(Unsayable::Head.into()) };
        };
        let head = std::mem::take(&mut self.partial);
        let mut lines = OwnLines::new();
        let sent = h1::request::sent(head.get(..len).unwrap_or_default(), &mut lines);
        let sent = sent.ok_or(Unsayable::Head)?;
        self.params.request(&sent, &mut self.collected);
        self.head_only = Some(sent.method == "HEAD");
        let body = match (sent.chunked, sent.length) {
            (true, _) => Body::Chunked(Default::default()),
            (false, length) => Body::Length(length.unwrap_or(0)),
        };
        if body.is_done() {
            record::end(Kind::Stdin, &mut self.collected);
        }
        self.body = Some(body);
        Ok(len.saturating_sub(before))
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
