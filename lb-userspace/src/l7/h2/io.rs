//! The socket as the h2 crate wants it, with one buffer for all frames of a turn.
//!
//! The h2 crate writes frame by frame. They gather here until it flushes, which it does once it
//! has nothing more to say, so the frames of all streams that were ready leave in one system call
//! and few TLS records.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::buffer::{Buf, Scratch};
use super::super::socket::Socket;
use super::frame_budget::FrameBudget;

/// Bytes gathered before they are written: one TLS record.
const GATHERED: usize = 16 * 1024;

/// A connection under the h2 crate.
pub(super) struct Io<'s> {
    socket: Socket<'s>,
    /// Bytes that were read before it was known to be HTTP/2.
    first: Buf,
    gathered: Option<Scratch>,
    written: usize,
    /// Bounds what the other side may waste; none for upstreams.
    budget: Option<Rc<FrameBudget>>,
}

impl<'s> Io<'s> {
    /// Reads `first`, then from `socket`.
    pub(super) fn new(socket: Socket<'s>, first: Buf, budget: Option<Rc<FrameBudget>>) -> Self {
        Self { socket, first, gathered: None, written: 0, budget }
    }

    fn waiting(&self) -> &[u8] {
        self.gathered.as_ref().and_then(|gathered| gathered.get(self.written..)).unwrap_or_default()
    }

    /// Forgets `n` written bytes; holds no memory when none is left.
    fn wrote(&mut self, n: usize) {
        self.written += n;
        if self.waiting().is_empty() {
            (self.gathered, self.written) = (None, 0);
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting().is_empty() {
            let n = ready!(self.socket.poll_write(cx, &[IoSlice::new(self.waiting())]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Io<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.budget.as_ref().is_some_and(|budget| budget.is_exhausted()) {
            // The connection is about to be ended, and reads nothing more until then.
            return Poll::Pending;
        }
        let before = into.filled().len();
        if self.first.is_empty() {
            ready!(self.socket.poll_readable(cx))?;
            let n = ready!(self.socket.poll_read(cx, into.initialize_unfilled()))?;
            into.advance(n);
        } else {
            let n = self.first.bytes().len().min(into.remaining());
            into.put_slice(self.first.bytes().get(..n).unwrap_or_default());
            self.first.consume(n);
        }
        let read = into.filled().get(before..).unwrap_or_default();
        if let Some(budget) = &self.budget {
            budget.read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let waiting = this.waiting().len();
            if waiting + bytes.len() <= GATHERED {
                this.gathered.get_or_insert_with(Scratch::take).extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
            // Too much for the buffer: both leave together, uncopied.
            let parts = [IoSlice::new(this.waiting()), IoSlice::new(bytes)];
            let n = ready!(this.socket.poll_write(cx, &parts))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.wrote(n.min(waiting));
            if n > waiting {
                return Poll::Ready(Ok(n - waiting));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        self.socket.poll_finish(cx)
    }
}
