//! What a message travels on: a connection of its own, one stream of a shared HTTP/2 connection, or
//! the records of FastCGI, or bytes that wait here. Whoever moves messages sees HTTP/1.1 bytes in any case.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use super::ahead::Ahead;
use super::body_memory::Together;
use super::compress::Packed;
use super::fcgi;
use super::h2::Stream;
use super::hold::Replay;
use super::socket::{Presence, Socket};

/// One side of an exchange.
pub(super) enum Carrier<'a> {
    Socket(Socket<'a>),
    Stream(&'a Stream),
    /// Boxed: others should not pay for its size.
    Records(Box<fcgi::Request<'a>>),
    /// A request body that was read whole; only read.
    Replay(Replay<'a>),
    /// A response between its endpoint and its client.
    Ahead(&'a Ahead),
    /// An upstream whose response is compressed, or put into chunks, as it is read. Boxed, as that.
    Packed(Box<Packed<'a>>),
}

impl<'a> Carrier<'a> {
    /// A connection of its own, encrypted.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Socket(socket) if socket.is_tls())
    }

    /// The client chose HTTP/2 in its TLS handshake.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Socket(socket) if socket.is_http2())
    }

    /// It is a stream of HTTP/2.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// The memory that all streams of its connection have taken for bodies.
    pub(super) fn together(&self) -> Option<&Together> {
        match self {
            Self::Stream(stream) => stream.together(),
            _ => None,
        }
    }

    /// The connection that what is written goes by, if it has one to itself.
    pub(super) fn sink(&self) -> Option<&Socket<'a>> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Packed(packed) => packed.sink(),
            Self::Stream(_) | Self::Records(_) | Self::Replay(_) | Self::Ahead(_) => None,
        }
    }

    /// Bytes, or the end, can probably be read without waiting.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_readable(cx),
            Self::Stream(stream) => stream.poll_readable(cx),
            Self::Records(request) => request.poll_readable(cx),
            Self::Replay(_) | Self::Ahead(_) | Self::Packed(_) => Poll::Ready(Ok(())),
        }
    }

    /// Reads once; 0 is the end (or no room in `into`).
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_read(cx, into),
            Self::Stream(stream) => stream.poll_read(cx, into),
            Self::Records(request) => request.poll_read(cx, into),
            Self::Replay(replay) => replay.poll_read(cx, into),
            Self::Ahead(ahead) => ahead.poll_read(cx, into),
            Self::Packed(packed) => packed.poll_read(cx, into),
        }
    }

    /// Writes some of `parts`; some may stay behind until [`Self::poll_flush`].
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_write(cx, parts),
            Self::Stream(stream) => stream.poll_write(cx, parts),
            Self::Records(request) => request.poll_write(cx, parts),
            Self::Replay(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            Self::Ahead(ahead) => ahead.poll_write(cx, parts),
            Self::Packed(packed) => packed.poll_write(cx, parts),
        }
    }

    /// Sends what was held back.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_flush(cx),
            Self::Stream(stream) => Poll::Ready(stream.flush()),
            Self::Records(request) => request.poll_flush(cx),
            Self::Packed(packed) => packed.poll_flush(cx),
            Self::Replay(_) | Self::Ahead(_) => Poll::Ready(Ok(())),
        }
    }

    /// Watches a client from which nothing is expected.
    pub(super) fn poll_presence(&self, cx: &mut Context<'_>) -> Poll<Presence> {
        match self {
            Self::Socket(socket) => socket.poll_presence(cx),
            Self::Stream(stream) => stream.poll_reset(cx).map(|()| Presence::Gone),
            // No client is any of these.
            Self::Records(_) | Self::Replay(_) | Self::Ahead(_) | Self::Packed(_) => Poll::Pending,
        }
    }

    /// Ends our direction.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_finish(cx),
            Self::Stream(stream) => Poll::Ready(stream.finish()),
            // Its records say where it ends.
            Self::Records(request) => request.poll_flush(cx),
            Self::Replay(_) | Self::Ahead(_) | Self::Packed(_) => Poll::Ready(Ok(())),
        }
    }

    /// The other side may say, after it was sent, that it did nothing about the request.
    pub(super) fn may_refuse(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Records(_))
    }

    /// The other side said that it did nothing about the request.
    pub(super) fn was_refused(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Replay(_) | Self::Ahead(_) | Self::Packed(_) => false,
            Self::Stream(stream) => stream.was_refused(),
            Self::Records(request) => request.was_refused(),
        }
    }

    /// Says goodbye as far as that is possible without waiting; false if it is not.
    pub(super) fn close_notify(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.close_notify(),
            _ => true,
        }
    }
}
