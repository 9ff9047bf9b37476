//! What comes in on a connection, on its way to the h2 crate and in it.
//!
//! The h2 crate ends a connection with all its streams where too many small DATA frames wait in it unread, or too
//! many empty ones came in all its life. Both may be honest: messages of gRPC are small, and whoever is to take them
//! may be slow. So small pieces that wait are taken out of it, into a buffer for each stream, while their window stays
//! used; and empty ones never reach it. Windows bound what waits then, as with large pieces.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

use super::frame_budget::FrameBudget;
use super::frames::{DATA, Fate, Frames};
use super::limits;

/// Most that is handed out at once of what was taken: the sender's window opens with each that is through.
const PIECE: usize = limits::FRAME_MAX as usize;

/// Shared by a connection, its streams and what reads for it.
pub(super) struct Intake {
    frames: RefCell<Frames>,
    /// Bounds what the other side may waste; none for upstreams.
    budget: Option<Rc<FrameBudget>>,
    /// Small DATA frames since bodies were relieved of them.
    small: Cell<u32>,
    /// Empty ones that could not be kept from the h2 crate.
    empty: Cell<u32>,
    /// Bytes of DATA that may wait: those that did when last looked at, and what came since.
    waiting: Cell<usize>,
    /// Those that are read, and some that were.
    bodies: RefCell<Vec<Weak<RefCell<Body>>>>,
    /// Since when nothing came, though something was asked.
    asked: Cell<Option<Instant>>,
}

impl Intake {
    /// `skip` bytes come before the first frame.
    pub(super) fn new(skip: usize, budget: Option<Rc<FrameBudget>>) -> Rc<Self> {
        Rc::new(Self {
            frames: RefCell::new(Frames::after(skip)),
            budget,
            small: Cell::default(),
            empty: Cell::default(),
            waiting: Cell::default(),
            bodies: RefCell::default(),
            asked: Cell::default(),
        })
    }

    /// Whether more should be read: not before [`Self::relieve`] where that has to do something, and never where the
    /// connection is about to be ended.
    pub(super) fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.budget.as_ref().is_some_and(|budget| budget.is_exhausted()) {
            return Poll::Pending;
        }
        if self.small.get() >= limits::SMALL_MAX {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Goes over what was read, and returns how much of it is for the h2 crate.
    pub(super) fn read(&self, bytes: &mut [u8]) -> usize {
        self.asked.set(None);
        let (mut data, mut useless) = (0, 0);
        let left = self.frames.borrow_mut().sift(bytes, |head, is_whole| {
            data += u32::from(head.is_useful() && head.kind == DATA);
            useless += u32::from(!head.is_useful());
            if head.kind == DATA {
                self.waiting.set(self.waiting.get().saturating_add(head.length as usize));
            }
            if head.is_small_data(limits::SMALL) {
                self.small.set(self.small.get() + 1);
            }
            if !head.is_empty_data() {
                return Fate::Kept;
            }
            self.empty.set(self.empty.get() + u32::from(!is_whole));
            Fate::Dropped
        });
        if let Some(budget) = &self.budget {
            budget.read(data, useless);
        }
        left
    }

    /// Something is asked that the other side answers, or says that it has it.
    pub(super) fn asks(&self) {
        if self.asked.get().is_none() {
            self.asked.set(Some(Instant::now()));
        }
    }

    /// Something was asked so long ago, and nothing at all came since.
    pub(super) fn is_mute_for(&self, long: Duration) -> bool {
        self.asked.get().is_some_and(|since| since.elapsed() >= long)
    }

    /// The connection had better take no more requests: the h2 crate is about to end it.
    pub(super) fn is_worn(&self) -> bool {
        self.empty.get() >= limits::EMPTY_MAX
    }

    /// To be called by whoever polls the connection, after each time. Takes small pieces out of the h2 crate where many
    /// may wait there.
    pub(super) fn relieve(&self) {
        if self.small.get() >= limits::SMALL_MAX {
            self.small.set(0);
            self.bodies.borrow_mut().retain(|body| {
                let body = body.upgrade();
                body.inspect(|body| body.borrow_mut().relieve()).is_some()
            });
        }
    }

    /// A body that is going to be read.
    pub(super) fn body(&self, stream: RecvStream) -> Rc<RefCell<Body>> {
        let body = Rc::new(RefCell::new(Body { stream, taken: BytesMut::new(), reader: None }));
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() == bodies.capacity() {
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Rc::downgrade(&body));
        body
    }

    /// Whether more than `n` bodies are being read, and more than `bytes` of them wait.
    pub(super) fn has_more_than(&self, n: usize, bytes: usize) -> bool {
        let mut bodies = self.bodies.borrow_mut();
        if self.waiting.get() <= bytes || bodies.len() <= n {
            return false;
        }
        let mut waiting = 0;
        bodies.retain(|body| {
            let body = body.upgrade();
            body.inspect(|body| waiting += body.borrow_mut().waiting()).is_some()
        });
        self.waiting.set(waiting);
        waiting > bytes && bodies.len() > n
    }
}

/// A body as far as it came.
pub(super) struct Body {
    stream: RecvStream,
    /// What was taken out of the h2 crate and not yet read; no more than the window of the stream.
    taken: BytesMut,
    /// Who waits for more.
    reader: Option<Waker>,
}

impl Body {
    /// The next piece, `None` at the end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if self.taken.len() > PIECE {
            return Poll::Ready(Some(Ok(self.taken.split_to(PIECE).freeze())));
        }
        if !self.taken.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.taken).freeze())));
        }
        let polled = self.stream.poll_data(cx);
        if polled.is_pending() {
            match &mut self.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        polled
    }

    /// What comes behind the last piece.
    pub(super) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// The sender may send as much again.
    pub(super) fn release(&mut self, bytes: usize) {
        // Fails only for more than was received.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    /// Bytes that the sender's window lacks.
    fn waiting(&mut self) -> usize {
        self.stream.flow_control().used_capacity()
    }

    fn relieve(&mut self) {
        // Whoever waits is told of what comes next as before.
        let reader = self.reader.clone();
        let mut cx = Context::from_waker(reader.as_ref().unwrap_or(Waker::noop()));
        // An error comes again to whoever reads.
        while let Poll::Ready(Some(Ok(piece))) = self.stream.poll_data(&mut cx) {
            self.taken.extend_from_slice(&piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::Request;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn what_was_taken_out_is_handed_on_in_pieces_of_a_frame() {
        const FRAMES: usize = 400;
        static FRAME: [u8; 100] = [7; 100];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
        let (requests, connection) = h2::client::handshake(client).await.expect("a client");
        tokio::spawn(connection);
        let mut requests = requests.ready().await.expect("ready");
        let post = Request::post("http://a.example/").body(()).expect("a request");
        let (_response, mut upload) = requests.send_request(post, false).expect("sent");
        for _ in 0..FRAMES {
            upload.send_data(Bytes::from_static(&FRAME), false).expect("sent");
        }
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut server = limits::server(1).handshake::<_, Bytes>(stream).await.expect("a server");
        let (request, _respond) = server.accept().await.expect("a request").expect("a request");
        let intake = Intake::new(0, None);
        let body = intake.body(request.into_body());
        poll_fn(|cx| match server.poll_accept(cx) {
            Poll::Pending if body.borrow_mut().waiting() == FRAMES * FRAME.len() => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;

        intake.small.set(limits::SMALL_MAX);
        intake.relieve();

        let mut cx = Context::from_waker(Waker::noop());
        let mut pieces = Vec::new();
        while let Poll::Ready(Some(piece)) = body.borrow_mut().poll_data(&mut cx) {
            pieces.push(piece.expect("a piece").len());
        }
        assert_eq!(pieces, [PIECE, PIECE, FRAMES * FRAME.len() - 2 * PIECE]);
    }
}
