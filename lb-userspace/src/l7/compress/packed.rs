//! A response's body, compressed or not, as it is read: what an upstream sends goes in, chunks come out.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::task::{Context, Poll, ready};

use super::super::buffer::Buf;
use super::super::carrier::Carrier;
use super::super::h1::Body;
use super::super::h1::chunked::Piece;
use super::super::socket::Socket;
use super::coder::Coder;

/// Content that is compressed before others have their turn: under a millisecond at the usual levels.
const TURN: usize = 64 * 1024;
/// Size line of a chunk, with four digits.
const SIZE: usize = 4 + 2;
/// Most content of a chunk.
const CHUNK_MAX: usize = 0xffff;
/// Line end of a chunk, the last chunk, and the empty line behind it.
const TAIL: usize = 2 + 3 + 2;

/// Stands for the upstream while its response is relayed: reading from it reads from the upstream and
/// compresses. While the upstream sends nothing, nothing is held back.
pub(in crate::l7) struct Packed<'a> {
    upstream: Carrier<'a>,
    state: RefCell<State>,
}

struct State {
    /// Bytes from the upstream.
    buf: Buf,
    /// Rest of its body.
    body: Body,
    coder: Coder,
    stage: Stage,
    /// Bytes at the front of the buffer that go on next: content, or trailers.
    piece: usize,
    /// The coder holds something back.
    is_holding: bool,
    /// Content since others had their turn.
    spent: usize,
    /// Bytes of the body that came, framing included.
    taken: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Content,
    /// All content is in the coder.
    Ending,
    /// Behind the last chunk.
    Trailers,
    Done,
}

impl<'a> Packed<'a> {
    /// `buf` holds what was read of the body already.
    pub(in crate::l7) fn new(upstream: Carrier<'a>, buf: Buf, packing: super::Packing) -> Self {
        let super::Packing { body, coder } = packing;
        let state = State {
            buf,
            body,
            coder,
            stage: Stage::Content,
            piece: 0,
            is_holding: false,
            spent: 0,
            taken: 0,
        };
        Self { upstream, state: RefCell::new(state) }
    }

    /// Bytes of the body that the upstream sent, framing included.
    pub(in crate::l7) fn taken(&self) -> u64 {
        self.state.borrow().taken
    }

    /// All of the response was read, and nothing else.
    pub(in crate::l7) fn is_clean(&self) -> bool {
        let state = self.state.borrow();
        state.body.is_done() && state.buf.is_empty()
    }

    /// Reads once: whole chunks, the last one with the end of the body. 0 is the end.
    pub(in crate::l7) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.borrow_mut();
        let room = into.len().saturating_sub(SIZE + TAIL).min(CHUNK_MAX);
        let mut at = 0;
        let is_last = loop {
            if state.spent >= TURN {
                if at > 0 {
                    break false;
                }
                state.spent = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match state.stage {
                Stage::Done => return Poll::Ready(Ok(0)),
                Stage::Trailers => return state.poll_trailers(cx, &self.upstream, into),
                _ if at == room => break false,
                Stage::Ending => {
                    let step = state.coder.finish(space(into, at, room))?;
                    at += step.written;
                    break step.done;
                }
                Stage::Content => {}
            }
            if state.piece > 0 {
                at += state.press(space(into, at, room))?;
                continue;
            }
            state.look()?;
            if state.piece > 0 || state.stage != Stage::Content {
                continue;
            }
            match state.poll_fill(cx, &self.upstream) {
                Poll::Ready(filled) => filled?,
                Poll::Pending if state.is_holding => {
                    let step = state.coder.flush(space(into, at, room))?;
                    at += step.written;
                    state.is_holding = !step.done;
                    if at > 0 {
                        break false;
                    }
                    return Poll::Pending;
                }
                Poll::Pending if at > 0 => break false,
                Poll::Pending => return Poll::Pending,
            }
        };
        if at == 0 && !is_last {
            return Poll::Ready(Err(io::Error::other("no room for a chunk")));
        }
        let mut end = frame(at, into);
        if is_last {
            end = state.end(end, into);
        }
        Poll::Ready(Ok(end))
    }

    /// Where the request goes.
    pub(in crate::l7) fn sink(&self) -> Option<&Socket<'a>> {
        self.upstream.sink()
    }

    /// The request goes on, whatever becomes of its response.
    pub(in crate::l7) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.upstream.poll_write(cx, parts)
    }

    /// As [`Self::poll_write`].
    pub(in crate::l7) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.upstream.poll_flush(cx)
    }
}

impl State {
    /// Has some of the content compressed; returns the bytes written.
    fn press(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let content = self.buf.bytes().get(..self.piece).unwrap_or_default();
        let step = self.coder.press(content, out)?;
        self.consume(step.read);
        self.spent += step.read;
        self.is_holding = true;
        Ok(step.written)
    }

    /// Finds the next content in what was read, or its end.
    fn look(&mut self) -> io::Result<()> {
        while !self.buf.is_empty() && !self.body.is_done() {
            match self.body.piece(self.buf.bytes()).map_err(io::Error::other)? {
                Piece::Content(n) => {
                    self.piece = n;
                    return Ok(());
                }
                Piece::Framing(n) => self.consume_framing(n),
                Piece::Trailers(n) => {
                    (self.piece, self.stage) = (n, Stage::Ending);
                    return Ok(());
                }
            }
        }
        if self.body.is_done() {
            self.stage = Stage::Ending;
        }
        Ok(())
    }

    /// Reads more, or sees the end of a body that nothing else ends.
    fn poll_fill(&mut self, cx: &mut Context<'_>, upstream: &Carrier<'_>) -> Poll<io::Result<()>> {
        if ready!(self.buf.poll_fill(cx, upstream))? > 0 {
            return Poll::Ready(Ok(()));
        }
        if self.body != Body::UntilClose {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.body = Body::Closed;
        Poll::Ready(Ok(()))
    }

    /// Puts the last chunk behind what there is, with as much of the trailers as is here.
    fn end(&mut self, mut end: usize, into: &mut [u8]) -> usize {
        end += put(b"0\r\n", end, into);
        if !matches!(self.body, Body::Chunked(_)) {
            self.stage = Stage::Done;
            return end + put(b"\r\n", end, into);
        }
        self.stage = Stage::Trailers;
        end + self.pass_trailers(into.get_mut(end..).unwrap_or_default())
    }

    fn pass_trailers(&mut self, into: &mut [u8]) -> usize {
        let n = self.piece.min(into.len());
        put(self.buf.bytes().get(..n).unwrap_or_default(), 0, into);
        self.consume(n);
        if self.piece == 0 && self.body.is_done() {
            self.stage = Stage::Done;
        }
        n
    }

    fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &Carrier<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.piece == 0 {
            if self.buf.is_empty() {
                ready!(self.poll_fill(cx, upstream))?;
            }
            self.piece = self.body.piece(self.buf.bytes()).map_err(io::Error::other)?.len();
        }
        Poll::Ready(Ok(self.pass_trailers(into)))
    }

    fn consume(&mut self, n: usize) {
        self.piece = self.piece.saturating_sub(n);
        self.consume_framing(n);
    }

    fn consume_framing(&mut self, n: usize) {
        self.buf.consume(n);
        self.taken += n as u64;
    }
}

/// Room of a chunk behind the content that it has.
fn space(into: &mut [u8], at: usize, room: usize) -> &mut [u8] {
    into.get_mut(SIZE + at..SIZE + room).unwrap_or_default()
}

/// Writes what makes a chunk of `content` bytes that stand in their place; returns where it ends.
fn frame(content: usize, into: &mut [u8]) -> usize {
    if content == 0 {
        return 0;
    }
    let mut size = &mut into.get_mut(..SIZE).unwrap_or_default()[..];
    // There is room for it.
    let _ = write!(size, "{content:04x}\r\n");
    let end = SIZE + content;
    end + put(b"\r\n", end, into)
}

fn put(bytes: &[u8], at: usize, into: &mut [u8]) -> usize {
    match into.get_mut(at..at + bytes.len()) {
        Some(room) => {
            room.copy_from_slice(bytes);
            bytes.len()
        }
        None => 0,
    }
}
