//! The socket as the h2 crate wants it, with one buffer for all frames of a turn.
//!
//! The h2 crate writes frame by frame and flushes after each that it does not copy. They gather here
//! until whoever polls the connection has the [`Outlet`] write them, which he does once the h2 crate
//! has nothing more to say: so the frames of all streams that were ready leave in one system call
//! and few TLS records.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::buffer::{Buf, Scratch};
use super::super::socket::Socket;
use super::intake::Intake;

/// Bytes gathered before they are written: one TLS record.
const GATHERED: usize = 16 * 1024;

/// A connection under the h2 crate.
pub(super) struct Io<'s> {
    outlet: Rc<Outlet<'s>>,
    /// Bytes that were read before it was known to be HTTP/2.
    first: Buf,
    intake: Rc<Intake>,
}

/// The same connection in the hands of whoever polls the h2 crate.
pub(super) struct Outlet<'s> {
    socket: Socket<'s>,
    gathered: RefCell<Gathered>,
    /// The last turn left something behind, because the other side reads too slowly.
    lags: Cell<bool>,
    /// The socket failed, which the h2 crate has to hear.
    broken: Cell<Option<io::ErrorKind>>,
}

/// Bytes that wait to be written; holds no memory when there are none.
#[derive(Default)]
struct Gathered {
    bytes: Option<Scratch>,
    written: usize,
}

impl Gathered {
    fn waiting(&self) -> &[u8] {
        self.bytes.as_ref().and_then(|bytes| bytes.get(self.written..)).unwrap_or_default()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes.get_or_insert_with(Scratch::take).extend_from_slice(bytes);
    }

    fn wrote(&mut self, n: usize) {
        self.written += n;
        if self.waiting().is_empty() {
            *self = Self::default();
        }
    }
}

impl<'s> Io<'s> {
    /// Reads `first`, then from `socket`.
    pub(super) fn new(socket: Socket<'s>, first: Buf, intake: Rc<Intake>) -> Self {
        let (gathered, lags, broken) = (RefCell::default(), Cell::new(false), Cell::new(None));
        Self { outlet: Rc::new(Outlet { socket, gathered, lags, broken }), first, intake }
    }

    /// Writes what gathers here. Nobody else does, but for what is too much.
    pub(super) fn outlet(&self) -> Rc<Outlet<'s>> {
        Rc::clone(&self.outlet)
    }
}

impl Outlet<'_> {
    /// Polls the h2 crate; where it waits, what it has said until then is written.
    pub(super) fn turn<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let polled = poll(cx);
        if polled.is_pending() {
            let drained = self.poll_drain(cx);
            self.lags.set(drained.is_pending());
            if let Poll::Ready(Err(error)) = drained {
                self.broken.set(Some(error.kind()));
                self.gathered.take();
                cx.waker().wake_by_ref();
            }
        }
        polled
    }

    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.gathered.borrow_mut();
        while !gathered.waiting().is_empty() {
            match ready!(self.socket.poll_write(cx, &[IoSlice::new(gathered.waiting())]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => gathered.wrote(n),
            }
        }
        self.socket.poll_flush(cx)
    }

    fn check(&self) -> io::Result<()> {
        self.broken.get().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl AsyncRead for Io<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        loop {
            ready!(self.intake.poll_open(cx));
            if self.first.is_empty() {
                let socket = &self.outlet.socket;
                ready!(socket.poll_readable(cx))?;
                let n = ready!(socket.poll_read(cx, into.initialize_unfilled()))?;
                into.advance(n);
            } else {
                let n = self.first.bytes().len().min(into.remaining());
                into.put_slice(self.first.bytes().get(..n).unwrap_or_default());
                self.first.consume(n);
            }
            let read = into.filled_mut().get_mut(before..).unwrap_or_default();
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let left = self.intake.read(read);
            into.set_filled(before + left);
            if left > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Io<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Outlet { socket, gathered, .. } = &*self.outlet;
        self.outlet.check()?;
        let mut gathered = gathered.borrow_mut();
        loop {
            let waiting = gathered.waiting().len();
            if waiting + bytes.len() <= GATHERED {
                gathered.add(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
            // Too much for the buffer: both leave together, uncopied, once what a TLS session holds has left.
            ready!(socket.poll_flush(cx))?;
            let parts = [IoSlice::new(gathered.waiting()), IoSlice::new(bytes)];
            let n = ready!(socket.poll_write(cx, &parts))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            gathered.wrote(n.min(waiting));
            if n > waiting {
                return Poll::Ready(Ok(n - waiting));
            }
        }
    }

    /// More may follow at once, so it is left to [`Outlet::turn`]. Where that could not write all, nothing more is
    /// taken before.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.check()?;
        if self.outlet.lags.get() {
            ready!(self.outlet.poll_drain(cx))?;
            self.outlet.lags.set(false);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.check()?;
        ready!(self.outlet.poll_drain(cx))?;
        self.outlet.socket.poll_finish(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::net::TcpListener;

    use tokio::net::TcpStream;

    use super::super::super::socket::Link;
    use super::*;

    /// A connection, and its other end, which does not block.
    async fn pair() -> (Link, std::net::TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
        let (other, _) = listener.accept().expect("accepted");
        other.set_nonblocking(true).expect("not blocking");
        (Link::plain(stream), other)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_flushed_within_a_turn_leaves_together_at_its_end() {
        let (mut link, mut other) = pair().await;
        let mut io = Io::new(link.socket(), Buf::default(), Intake::new(0, None));
        let outlet = io.outlet();
        let mut received = [0; 4096];

        poll_fn(|cx| {
            let _: Poll<()> = outlet.turn(cx, |cx| {
                for _ in 0..3 {
                    assert!(Pin::new(&mut io).poll_write(cx, &[b'x'; 1000]).is_ready());
                    assert!(Pin::new(&mut io).poll_flush(cx).is_ready());
                }
                let error = other.read(&mut received).expect_err("nothing yet");
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Poll::Pending
            });
            Poll::Ready(())
        })
        .await;

        assert_eq!(other.read(&mut received).expect("all of it"), 3000);
        assert!(outlet.gathered.borrow().bytes.is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_reader_that_lags_stops_the_writer_and_memory_stays_bounded() {
        let (mut link, _other) = pair().await;
        let mut io = Io::new(link.socket(), Buf::default(), Intake::new(0, None));
        let outlet = io.outlet();
        let mut taken = 0;

        // A turn that begins while something is left behind takes nothing more.
        let mut turn = |cx: &mut Context<'_>, taken: &mut usize| {
            outlet.turn(cx, |cx| {
                ready!(Pin::new(&mut io).poll_flush(cx)).expect("open");
                while let Poll::Ready(n) = Pin::new(&mut io).poll_write(cx, &[b'x'; 8192]) {
                    *taken += n.expect("open");
                }
                Poll::<()>::Pending
            })
        };
        let before = poll_fn(|cx| {
            let _ = turn(cx, &mut taken);
            let before = taken;
            let _ = turn(cx, &mut taken);
            Poll::Ready(before)
        })
        .await;

        assert_eq!(taken, before);
        assert!(outlet.lags.get() && outlet.gathered.borrow().waiting().len() <= GATHERED);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_fails_is_told_to_who_writes_next() {
        let (mut link, other) = pair().await;
        let mut io = Io::new(link.socket(), Buf::default(), Intake::new(0, None));
        let outlet = io.outlet();
        // Closed with bytes unread, it resets.
        poll_fn(|cx| {
            assert!(Pin::new(&mut io).poll_write(cx, b"hello").is_ready());
            let _: Poll<()> = outlet.turn(cx, |_| Poll::Pending);
            Poll::Ready(())
        })
        .await;
        drop(other);

        let failed = poll_fn(|cx| {
            outlet.turn(cx, |cx| {
                ready!(Pin::new(&mut io).poll_flush(cx)).map_or_else(
                    |error| Poll::Ready(error.kind()),
                    |()| {
                        let _ = Pin::new(&mut io).poll_write(cx, b"more");
                        Poll::Pending
                    },
                )
            })
        })
        .await;

        assert!(matches!(failed, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{failed}");
    }
}
