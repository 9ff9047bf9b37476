//! One TCP connection, plain or TLS from either end, polled in both directions at once through `&self`.
//!
//! The kernel is asked directly, between tokio's looks at what it reported: libc's calls are points at which a
//! thread may be cancelled, which costs at each. What was read or written in part says that there is no more, or no
//! more room, so the next wait costs no probing system call. A TLS session is moved on here directly, so such a
//! connection costs the same four system calls a request as a plain one.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustix::io::{Errno, writev};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::buffer::Buf;
use super::descriptors::OpenLink;
use super::handshake::Handshake;
use super::pipe::Pipe;
use super::tls_session::{TlsSession, broken};

/// A connection that is owned, with its TLS session if it has one: what a pool keeps.
///
/// It is worked on through [`Link::socket`], or as `AsyncRead + AsyncWrite` by libraries that ask for that.
pub(super) struct Link {
    stream: TcpStream,
    tls: Option<Box<RefCell<TlsSession>>>,
    /// It is one of those to endpoints.
    _counted: Option<OpenLink>,
}

/// A [`Link`] borrowed for as long as it is worked on.
///
/// Its session is borrowed only inside a poll function, never across an await.
#[derive(Clone, Copy)]
pub(super) struct Socket<'a> {
    stream: &'a TcpStream,
    tls: Option<&'a RefCell<TlsSession>>,
}

/// How a connection that was kept is looked at before it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// The kernel is asked only if it reported an event since the last use.
    AtReports,
    /// It is asked in any case: for requests that cannot be repeated.
    AtSocket,
}

/// What is known about a client that should be waiting for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It closed or reset the connection.
    Gone,
    /// It sent more (pipelining), which hides a close until that is read.
    Talking,
}

impl Link {
    /// A connection whose bytes are not encrypted.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None, _counted: None }
    }

    /// Goes on with the TLS handshake that the client has started with the bytes in `early`.
    pub(super) fn into_tls(self, config: Arc<ServerConfig>, early: Buf) -> Result<Self, rustls::Error> {
        Ok(Self::tls(self.stream, TlsSession::server(config, early)?))
    }

    /// Certificates that the client showed, its own first.
    pub(super) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        let session = self.tls.as_ref().map(|tls| tls.borrow());
        let shown = session.as_ref().and_then(|session| session.state().peer_certificates());
        shown.map(<[_]>::to_vec).unwrap_or_default()
    }

    /// What the handshake of a client came to that asked for `name`; `None` where there was none.
    pub(super) fn handshake(&self, name: Option<&str>) -> Option<Handshake> {
        self.tls.as_ref().map(|tls| Handshake::of(tls.borrow().state(), name))
    }

    /// A connection on which we start one; [`Socket::poll_handshake`] runs it.
    pub(super) fn tls_client(
        stream: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self::tls(stream, TlsSession::client(config, name)?))
    }

    fn tls(stream: TcpStream, session: TlsSession) -> Self {
        Self { stream, tls: Some(Box::new(RefCell::new(session))), _counted: None }
    }

    /// It is one of those to endpoints, for as long as it is open.
    pub(super) fn counted(self, open: OpenLink) -> Self {
        Self { _counted: Some(open), ..self }
    }

    /// Until the connection is reset or otherwise broken.
    pub(super) async fn broken(&self) {
        // An error is that it is not watched any more: nobody is there.
        let _ = self.stream.ready(Interest::ERROR).await;
    }

    /// For reading and writing, both at once.
    pub(super) fn socket(&mut self) -> Socket<'_> {
        Socket { stream: &self.stream, tls: self.tls.as_deref() }
    }

    /// Whether a pooled connection is still open and silent, as it must be to carry a request.
    pub(super) fn is_idle(&mut self, look: Look) -> bool {
        let Some(tls) = &self.tls else {
            return is_silent(&self.stream, look);
        };
        if tls.borrow().is_readable() {
            return false;
        }
        if is_silent(&self.stream, look) {
            return true;
        }
        // Session tickets may have come after the handshake; they are no reason to part.
        let presence = self.socket().poll_presence(&mut Context::from_waker(Waker::noop()));
        presence.is_pending() && is_silent(&self.stream, Look::AtSocket)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = self.socket();
        let n = ready!(socket.poll_read(cx, into.initialize_unfilled()))?;
        into.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket().poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_finish(cx)
    }
}

impl Socket<'_> {
    /// Bytes, or the end, can probably be read without waiting.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tls.is_some_and(|tls| tls.borrow().is_readable()) {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_read_ready(cx)
    }

    /// Reads once; 0 is the end of the stream (or no room in `into`).
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = self.tls else {
            return self.poll_read_raw(cx, into);
        };
        let mut session = tls.borrow_mut();
        loop {
            if session.has_plaintext() {
                return Poll::Ready(Ok(session.take(into)));
            }
            if session.is_ended() {
                return Poll::Ready(Ok(0));
            }
            let read = ready!(self.poll_records(cx, &mut session, into))?;
            if read > 0 {
                return Poll::Ready(Ok(read));
            }
        }
    }

    /// Writes some of `parts`. With TLS, bytes may stay behind in the session: see
    /// [`Self::poll_flush`].
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(tls) = self.tls else {
            return self.poll_write_raw(cx, parts);
        };
        // Ciphertext of an earlier write goes first, and bounds what a slow client can pile up.
        // Not before: what a handshake left to send travels with the first response.
        let mut session = tls.borrow_mut();
        let accepted = session.write(parts)?;
        if accepted == 0 {
            ready!(self.poll_outgoing(cx, &mut session))?;
            return Poll::Ready(session.write(parts));
        }
        Poll::Ready(Ok(accepted))
    }

    /// Sends what the TLS session still holds; nothing to do for a plain connection.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.tls {
            Some(tls) => self.poll_outgoing(cx, &mut tls.borrow_mut()),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Has the kernel move up to `most` bytes into an empty pipe; 0 is the end. For plain connections.
    pub(super) fn poll_splice_from(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_io(Interest::READABLE, || pipe.fill(stream.as_fd(), most)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                moved => return Poll::Ready(moved),
            }
        }
    }

    /// Has the kernel move bytes on from a pipe that holds some. For plain connections.
    pub(super) fn poll_splice_to(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let stream = self.stream;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || pipe.drain(stream.as_fd())) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                moved => return Poll::Ready(moved),
            }
        }
    }

    /// Runs the TLS handshake to its end; ready at once for a plain connection.
    pub(super) fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = self.tls else {
            return Poll::Ready(Ok(()));
        };
        let mut session = tls.borrow_mut();
        // What was read before it was known to be TLS; of our own, the first message.
        self.received(cx, &mut session, 0, &mut [])?;
        while session.state().is_handshaking() {
            ready!(self.poll_outgoing(cx, &mut session))?;
            if session.is_ended() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_records(cx, &mut session, &mut []))?;
        }
        // In TLS 1.2 the last word is the server's, and the client waits for it. What is left of a
        // handshake of TLS 1.3 travels with the first message.
        let is_old = session.state().protocol_version() == Some(ProtocolVersion::TLSv1_2);
        if is_old { self.poll_outgoing(cx, &mut session) } else { Poll::Ready(Ok(())) }
    }

    /// Bytes are encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The client chose HTTP/2 in its handshake.
    pub(super) fn is_http2(&self) -> bool {
        self.tls.is_some_and(|tls| tls.borrow().state().alpn_protocol() == Some(b"h2"))
    }

    /// Watches a client from which nothing is expected. Makes a system call only when the kernel
    /// reported an event.
    pub(super) fn poll_presence(&self, cx: &mut Context<'_>) -> Poll<Presence> {
        if let Some(tls) = self.tls {
            let mut session = tls.borrow_mut();
            if session.has_plaintext() {
                return Poll::Ready(Presence::Talking);
            }
            return match ready!(self.poll_records(cx, &mut session, &mut [])) {
                Ok(_) if session.is_ended() => Poll::Ready(Presence::Gone),
                Ok(_) if session.has_plaintext() => Poll::Ready(Presence::Talking),
                // A record without application data; the next one wakes us.
                Ok(_) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Err(_) => Poll::Ready(Presence::Gone),
            };
        }
        let stream = self.stream;
        loop {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Presence::Gone);
            }
            let peeked = stream.try_io(Interest::READABLE, || peek(stream));
            match peeked {
                Ok(0) => return Poll::Ready(Presence::Gone),
                Ok(_) => return Poll::Ready(Presence::Talking),
                // The readiness was stale; try_io cleared it.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Presence::Gone),
            }
        }
    }

    /// Ends our direction: TLS close_notify, then FIN.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = self.tls {
            let mut session = tls.borrow_mut();
            session.close();
            ready!(self.poll_outgoing(cx, &mut session))?;
        }
        Poll::Ready(match rustix::net::shutdown(self.stream, Shutdown::Write) {
            // It is gone already.
            Err(Errno::NOTCONN) => Ok(()),
            done => Ok(done?),
        })
    }

    /// Says goodbye on a TLS connection as far as that is possible without waiting; false if it is not.
    pub(super) fn close_notify(&self) -> bool {
        let Some(tls) = self.tls else { return true };
        tls.borrow_mut().close();
        self.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Receives TLS records once; returns how much of what they hold went into `into`.
    fn poll_records(
        &self,
        cx: &mut Context<'_>,
        session: &mut TlsSession,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if session.is_ended() {
            return Poll::Ready(Ok(0));
        }
        match self.poll_read_raw(cx, session.room()?) {
            Poll::Ready(Ok(0)) => {
                session.end();
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(n)) => Poll::Ready(self.received(cx, session, n, into)),
            Poll::Ready(failed) => Poll::Ready(failed),
            Poll::Pending => {
                session.park();
                Poll::Pending
            }
        }
    }

    fn received(
        &self,
        cx: &mut Context<'_>,
        session: &mut TlsSession,
        n: usize,
        into: &mut [u8],
    ) -> io::Result<usize> {
        session.received(n, into).map_err(|error| {
            // The alert tells the client why; whether it arrives is not ours to wait for.
            let _ = self.poll_outgoing(cx, session);
            broken(error)
        })
    }

    fn poll_outgoing(&self, cx: &mut Context<'_>, session: &mut TlsSession) -> Poll<io::Result<()>> {
        while !session.outgoing().is_empty() {
            match self.poll_write_raw(cx, &[IoSlice::new(session.outgoing())]) {
                Poll::Ready(Ok(n)) => session.sent(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    session.park();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_raw(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = into.len();
        loop {
            let mut read = 0;
            let tried = self.stream.try_io(Interest::READABLE, || {
                (read, _) = recv(self.stream, &mut *into, RecvFlags::empty())?;
                used_up(read, room)
            });
            match tried {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && read == 0 => {
                    ready!(self.stream.poll_read_ready(cx))?;
                }
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
                Ok(()) | Err(_) => return Poll::Ready(Ok(read)),
            }
        }
    }

    fn poll_write_raw(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let mut written = 0;
            let tried = self.stream.try_io(Interest::WRITABLE, || {
                // `send` has less to look at than `writev`.
                let all = match parts {
                    [part] => {
                        written = send(self.stream, part, SendFlags::NOSIGNAL)?;
                        part.len()
                    }
                    _ => {
                        written = writev(self.stream, parts)?;
                        parts.iter().map(|part| part.len()).sum()
                    }
                };
                used_up(written, all)
            });
            match tried {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && written == 0 => {
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
                Ok(()) | Err(_) => return Poll::Ready(Ok(written)),
            }
        }
    }
}

/// What has moved but a part has come to the end of what there is, or of the room: to be waited for before the next
/// try, which is what this error has tokio remember. Nothing at all is the end of a stream.
fn used_up(moved: usize, all: usize) -> io::Result<()> {
    if moved == 0 || moved >= all { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

/// `recv(MSG_PEEK)`: is the peer still there?
fn peek(stream: &TcpStream) -> io::Result<usize> {
    let mut byte = [0u8; 1];
    let (n, _) = recv(stream.as_fd(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(n)
}

/// Open and without a byte to read.
fn is_silent(stream: &TcpStream, look: Look) -> bool {
    let peeked = match look {
        Look::AtSocket => peek(stream),
        Look::AtReports => stream.try_io(Interest::READABLE, || peek(stream)),
    };
    matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}
