//! Moves one message from one connection to another: a head of ours, then the body as it arrives.
//!
//! At most one read buffer or pipe is held, and nothing is read while the other side does not take
//! what was read: back-pressure is the absence of reading.

use std::hint::cold_path;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::buffer::{BUFFER_BYTES, Buf, Scratch};
use super::carrier::Carrier;
use super::h1::Body;
use super::h1::chunked::Piece;
use super::mirror::Copy;
use super::pipe::Pipe;
use super::snapshot::Snapshot;
use super::socket::Socket;

/// Shortest rest of a body that is worth a pipe, or a large buffer: below, two of the usual ones move it in
/// as many calls.
const LONG: u64 = 64 * 1024;

/// Longest piece of a body that is copied behind its head: the kernel has less to do for one buffer than for two.
const JOINED: usize = 2 * 1024;

/// Most of a body that is kept: as much as a stream takes before its receiver allows more (RFC 9113 6.9.2).
const KEPT_MAX: usize = 64 * 1024;

/// Why a body stopped short; says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The sender closed or reset the connection.
    #[error("sender: {0}")]
    Sender(io::Error),
    /// The sender's framing is wrong.
    #[error("sender: malformed chunked body")]
    Framing,
    /// The receiver closed or reset the connection.
    #[error("receiver: {0}")]
    Receiver(io::Error),
    /// The body is longer than allowed.
    #[error("body too large")]
    TooLarge,
}

/// Which side a leg waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    ForSender,
    ForReceiver,
}

/// How a chunked body is written to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it came.
    Same,
    /// Content only: the receiver speaks HTTP/1.0.
    Decoded,
}

/// One direction of an exchange.
pub(super) struct Leg {
    head: Scratch,
    head_sent: usize,
    /// Rest of the body.
    pub(super) body: Body,
    coding: Coding,
    /// Bytes at the front of the buffer that belong to the body and go out next.
    ready: usize,
    /// Most bytes of content of a chunked body.
    max: Option<u64>,
    /// Bytes written so far, head included.
    pub(super) written: u64,
    /// Bytes read so far.
    pub(super) read: u64,
    pub(super) waits: Waits,
    /// Most bytes of the body to be written by now, framing included.
    pub(super) allowed: u64,
    /// Sees the body pass.
    pub(super) copy: Option<Rc<Copy>>,
    /// What knows of trailers that the receiver is not to see.
    pub(super) withholding: Option<Rc<Snapshot>>,
    /// What was written of the body, framing included, as long as it is short: to go out again where nobody has
    /// read it.
    pub(super) kept: Option<Scratch>,
    /// Of a body without length: as much came at once as there was room for, so that more is likely to be there.
    pours: bool,
    /// Bytes of the body that are in the kernel.
    pipe: Option<Pipe>,
    done: bool,
}

impl Leg {
    /// Sends `head`, then `body`.
    pub(super) fn new(head: Scratch, body: Body, coding: Coding, max: Option<u64>) -> Self {
        Self {
            head,
            head_sent: 0,
            body,
            coding,
            ready: 0,
            max,
            written: 0,
            read: 0,
            waits: Waits::ForReceiver,
            allowed: u64::MAX,
            copy: None,
            withholding: None,
            kept: None,
            pours: false,
            pipe: None,
            done: false,
        }
    }

    /// Keeps what is written of the body, unless much of it, `resent`, went out before.
    pub(super) fn keep(&mut self, resent: u64) {
        let is_short = resent < KEPT_MAX as u64;
        self.kept = (is_short && !self.body.is_done()).then(Scratch::take);
    }

    /// The head, to be sent again elsewhere.
    pub(super) fn take_head(&mut self) -> Scratch {
        std::mem::take(&mut self.head)
    }

    /// Everything was written and flushed.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes of the body written so far, framing included.
    pub(super) fn body_written(&self) -> u64 {
        self.written - self.head_sent as u64
    }

    /// All of the body that was read is still here: nothing of it was written, or what was is kept, and the kernel holds
    /// nothing. What is in the pipe goes with it.
    pub(super) fn is_whole(&self) -> bool {
        let is_kept = self.body_written() == 0 || self.kept.is_some();
        is_kept && self.pipe.as_ref().is_none_or(|pipe| pipe.held() == 0)
    }

    /// Bytes moved in either direction; grows while there is progress.
    pub(super) fn moved(&self) -> u64 {
        self.written + self.read
    }

    /// Moves what can be moved; ready when the message is through.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &Carrier<'_>,
        buf: &mut Buf,
        to: &Carrier<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            self.waits = Waits::ForReceiver;
            if self.ready == 0 {
                self.take(buf)?;
            }
            while self.head_sent < self.head.len() || self.ready > 0 {
                ready!(self.poll_write(cx, buf, to)).map_err(Broken::Receiver)?;
                if self.ready == 0 {
                    self.take(buf)?;
                }
            }
            // By the sink: the receiver may be wrapped while the kernel holds bytes for it.
            if let (Carrier::Socket(from), Some(to)) = (from, to.sink())
                && self.can_splice(buf, from, to)
            {
                cold_path();
                ready!(self.poll_splice(cx, from, to))?;
            }
            if self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
                cold_path();
                // Nothing may overtake them, and without them the message is not through.
                return Poll::Ready(Err(Broken::Receiver(io::ErrorKind::BrokenPipe.into())));
            }
            ready!(to.poll_flush(cx)).map_err(Broken::Receiver)?;
            if self.body.is_done() {
                self.done = true;
                if let Some(copy) = self.copy.take() {
                    cold_path();
                    copy.end();
                }
                return Poll::Ready(Ok(()));
            }
            self.waits = Waits::ForSender;
            let filled = match self.body {
                Body::Length(left) if left >= LONG => buf.poll_fill_long(cx, from, left),
                _ => buf.poll_fill(cx, from),
            };
            let n = ready!(filled).map_err(Broken::Sender)?;
            self.read += n as u64;
            self.pours = buf.is_full();
            if n == 0 {
                cold_path();
                if self.body != Body::UntilClose {
                    return Poll::Ready(Err(Broken::Sender(io::ErrorKind::UnexpectedEof.into())));
                }
                self.body = Body::Closed;
            }
        }
    }

    /// The rest of the body is long, or more of one without length comes than a buffer takes, and nobody has to see
    /// its bytes. A pipe takes three system calls where a buffer takes two, which messages of a few bytes feel.
    fn can_splice(&self, buf: &Buf, from: &Socket<'_>, to: &Socket<'_>) -> bool {
        let is_long = match self.body {
            _ if self.pipe.is_some() => true,
            Body::Length(left) => left >= LONG,
            Body::UntilClose => self.pours,
            Body::Chunked(_) | Body::Closed => false,
        };
        is_long && self.copy.is_none() && buf.is_empty() && !from.is_tls() && !to.is_tls()
    }

    /// Has the kernel move the body. Ready where all of it is through, without a pipe, or where a body without length
    /// no longer pours.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &Socket<'_>,
        to: &Socket<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
                self.waits = Waits::ForReceiver;
                let n = ready!(to.poll_splice_to(cx, pipe)).map_err(Broken::Receiver)?;
                if n == 0 {
                    return Poll::Ready(Err(Broken::Receiver(io::ErrorKind::WriteZero.into())));
                }
                self.written += n as u64;
                continue;
            }
            // An empty one is given back before anything is waited for.
            let pipe = self.pipe.take();
            let most = match self.body {
                Body::Length(left) => usize::try_from(left).unwrap_or(usize::MAX),
                Body::UntilClose if self.pours => usize::MAX,
                Body::UntilClose | Body::Chunked(_) | Body::Closed => 0,
            };
            if most == 0 {
                return Poll::Ready(Ok(()));
            }
            self.waits = Waits::ForSender;
            ready!(from.poll_readable(cx)).map_err(Broken::Sender)?;
            let Some(mut pipe) = pipe.or_else(Pipe::take) else { return Poll::Ready(Ok(())) };
            let n = ready!(from.poll_splice_from(cx, &mut pipe, most)).map_err(Broken::Sender)?;
            match &mut self.body {
                Body::Length(left) if n > 0 => *left = left.saturating_sub(n as u64),
                Body::UntilClose if n == 0 => {
                    self.body = Body::Closed;
                    return Poll::Ready(Ok(()));
                }
                Body::UntilClose => self.pours = n >= BUFFER_BYTES,
                _ => return Poll::Ready(Err(Broken::Sender(io::ErrorKind::UnexpectedEof.into()))),
            }
            self.read += n as u64;
            self.pipe = Some(pipe);
        }
    }

    /// Decides what of the buffer goes out next.
    fn take(&mut self, buf: &mut Buf) -> Result<(), Broken> {
        while !buf.is_empty() && !self.body.is_done() {
            match self.coding {
                Coding::Same => {
                    let withheld = |name: &[u8]| {
                        let common =
                            self.withholding.as_ref().map(|snapshot| &snapshot.router.common_headers);
                        common.is_some_and(|common| common.withholds(name))
                    };
                    let left_out = self.body.left_out(buf.bytes(), withheld).map_err(|_| Broken::Framing)?;
                    if left_out > 0 {
                        cold_path();
                        buf.consume(left_out);
                        continue;
                    }
                    self.ready = self.body.pass(buf.bytes()).map_err(|_| Broken::Framing)?;
                }
                Coding::Decoded => match self.body.piece(buf.bytes()).map_err(|_| Broken::Framing)? {
                    Piece::Content(n) => self.ready = n,
                    Piece::Framing(n) | Piece::Trailers(n) => {
                        buf.consume(n);
                        continue;
                    }
                },
            }
            break;
        }
        if self.max.is_some_and(|max| self.body.chunked_content() > max) {
            return Err(Broken::TooLarge);
        }
        Ok(())
    }

    /// Writes head and body together while both are there: one system call for a small message.
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &mut Buf, to: &Carrier<'_>) -> Poll<io::Result<()>> {
        let head = self.head.get(self.head_sent..).unwrap_or_default();
        let allowed = usize::try_from(self.allowed.saturating_sub(self.body_written())).unwrap_or(usize::MAX);
        let body = buf.bytes().get(..self.ready.min(allowed)).unwrap_or_default();
        if head.is_empty() && body.is_empty() {
            cold_path();
            // What the pace let go is not held back. Whoever sets it looks again.
            ready!(to.poll_flush(cx))?;
            return Poll::Pending;
        }
        let head_left = head.len();
        let n = match (head.is_empty(), body.is_empty()) {
            (true, _) => ready!(to.poll_write(cx, &[IoSlice::new(body)]))?,
            (false, true) => ready!(to.poll_write(cx, &[IoSlice::new(head)]))?,
            (false, false) if body.len() <= JOINED => {
                let head_len = self.head.len();
                self.head.extend_from_slice(body);
                let both = self.head.get(self.head_sent..).unwrap_or_default();
                let wrote = to.poll_write(cx, &[IoSlice::new(both)]);
                self.head.truncate(head_len);
                ready!(wrote)?
            }
            (false, false) => ready!(to.poll_write(cx, &[IoSlice::new(head), IoSlice::new(body)]))?,
        };
        if n == 0 {
            cold_path();
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += n as u64;
        let of_head = n.min(head_left);
        self.head_sent += of_head;
        let of_body = n - of_head;
        self.ready -= of_body;
        let written = buf.bytes().get(..of_body).unwrap_or_default();
        self.copy.take_if(|copy| !copy.take(written));
        self.kept.take_if(|kept| !add(written, kept));
        buf.consume(of_body);
        Poll::Ready(Ok(()))
    }
}

/// Keeps `more`; false if it becomes too long.
fn add(more: &[u8], kept: &mut Scratch) -> bool {
    let fits = kept.len() + more.len() <= KEPT_MAX;
    if fits {
        kept.extend_from_slice(more);
    }
    fits
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::socket::Link;
    use super::*;

    /// Two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
        (near, listener.accept().await.expect("accept").0)
    }

    #[tokio::test]
    async fn a_body_that_goes_with_its_pipe_is_not_whole() {
        let (mut client, from) = pair().await;
        let (to, endpoint) = pair().await;
        let (mut from, mut to) = (Link::plain(from), Link::plain(to));
        let (from, to) = (Carrier::Socket(from.socket()), Carrier::Socket(to.socket()));
        let mut head = Scratch::take();
        head.extend_from_slice(b"PUT / HTTP/1.1\r\n\r\n");
        let body = [b'x'; LONG as usize];
        let (mut leg, mut buf) = (Leg::new(head, Body::Length(LONG), Coding::Same, None), Buf::default());
        let mut on = |cx: &mut Context<'_>| leg.poll(cx, &from, &mut buf, &to);
        assert!(poll_fn(|cx| Poll::Ready(on(cx).is_pending())).await, "the head is sent, no body is there");

        // Both before the next turn: the endpoint resets the connection, the client sends.
        rustix::net::sockopt::set_socket_linger(&endpoint, Some(std::time::Duration::ZERO)).expect("linger");
        drop(endpoint);
        poll_fn(|cx| to.poll_readable(cx)).await.expect("reset");
        client.write_all(&body[..1000]).await.expect("room");
        poll_fn(|cx| from.poll_readable(cx)).await.expect("bytes");
        let polled = poll_fn(on).await;

        assert!(matches!(polled, Err(Broken::Receiver(_))), "{polled:?}");
        assert_eq!((leg.read, leg.body_written()), (1000, 0));
        assert!(!leg.is_whole(), "a thousand bytes of it are gone");
    }
}
