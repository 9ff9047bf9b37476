//! Copies of requests for somebody else (`mirror-target`): sent on their own, and nobody waits for them.
//!
//! The request itself never does: what cannot be copied at once, or within bounds, is not, and counted. A
//! copy begins when its request is let in, and goes when its body is here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::ready;
use std::time::Duration;

use super::buffer::Buf;
use super::carrier::Carrier;
use super::h1::Body;
use super::h1::chunked::Piece;
use super::metrics::Mirrored;
use super::outside::{is_host, split_port};
use super::path;
use super::snapshot::Snapshot;
use super::socket::Link;
use super::variable::{self, Known};
use super::worker::Worker;
use crate::model::expression::Expression;
use crate::model::l7::policy::{Copied, Mirror};
use crate::model::upstream::UpstreamName;

/// Copies of one worker at once, from their beginning to their end.
const COPIES_MAX: usize = 128;
/// Most bytes of a body that is copied, framing included.
const BODY_MAX: usize = 1 << 20;
/// Longest time for connecting, and for all of it.
const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(60);
/// Addresses that are tried.
const TRIES: usize = 3;

/// The copy of a request that has not gone yet.
pub(super) struct Copy {
    worker: Rc<Worker>,
    snapshot: Rc<Snapshot>,
    to: Rc<To>,
    /// Up to the lines that tell the length of its body.
    head: Vec<u8>,
    wants_body: bool,
    state: RefCell<State>,
}

#[derive(Default)]
enum State {
    /// Its request is not let in yet.
    #[default]
    Waiting,
    /// Bytes of the body as they came, and how they are framed.
    Collecting(Body, Vec<u8>, Slot),
    Gone,
}

/// Where it goes.
struct To {
    tls: bool,
    upstream: Option<UpstreamName>,
    /// With the port, if it is written.
    host: String,
}

/// One of [`COPIES_MAX`].
struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(copies: &Rc<Cell<usize>>) -> Option<Self> {
        let taken = copies.get();
        (taken < COPIES_MAX).then(|| {
            copies.set(taken + 1);
            Self(Rc::clone(copies))
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Copy {
    /// Written while the request's bytes are there; `None` where they make no host to send it to.
    pub(super) fn new(
        mirror: &Mirror,
        known: Known<'_, '_, '_>,
        worker: &Rc<Worker>,
        snapshot: &Rc<Snapshot>,
    ) -> Option<Rc<Self>> {
        let Mirror { tls, host, target, upstream, named, body } = mirror;
        let fill_in = |text: &Expression| {
            let mut filled = Vec::new();
            variable::fill_in(text, known, &mut filled);
            filled
        };
        let as_host = |text: &Expression| String::from_utf8(fill_in(text)).ok().filter(|host| is_host(host));
        let host = as_host(host)?;
        let head = head(
            known,
            named.as_ref().and_then(as_host).as_deref().unwrap_or(split_port(&host)?.0),
            target.as_ref().map(fill_in).as_deref(),
        );
        Some(Rc::new(Self {
            worker: Rc::clone(worker),
            snapshot: Rc::clone(snapshot),
            to: Rc::new(To { tls: *tls, upstream: upstream.clone(), host }),
            head,
            wants_body: *body == Copied::Whole,
            state: RefCell::default(),
        }))
    }

    /// The request is let in, with this body, of which `here` was taken already.
    pub(super) fn begin(&self, body: &Body, here: &[u8]) {
        let Some(slot) = Slot::take(&self.worker.copies) else { return self.give_up(Mirrored::Busy) };
        let is_long = matches!(body, Body::Length(length) if *length > BODY_MAX as u64);
        if !self.wants_body || body.is_done() {
            let content = if self.wants_body { here } else { b"" };
            *self.state.borrow_mut() = State::Gone;
            return self.send(content, slot);
        }
        if is_long {
            return self.give_up(Mirrored::TooLarge);
        }
        *self.state.borrow_mut() = State::Collecting(body.clone(), Vec::new(), slot);
    }

    /// Its body begins, perhaps again; false if none is collected.
    pub(super) fn restart(&self, body: &Body) -> bool {
        match &mut *self.state.borrow_mut() {
            State::Collecting(framing, bytes, _) => {
                framing.clone_from(body);
                bytes.clear();
                true
            }
            State::Waiting | State::Gone => false,
        }
    }

    /// More of its body is wanted, from where it was left off.
    pub(super) fn goes_on(&self) -> bool {
        matches!(*self.state.borrow(), State::Collecting(..))
    }

    /// Takes bytes of the body; false if no more are wanted.
    pub(super) fn take(&self, more: &[u8]) -> bool {
        let too_large = match &mut *self.state.borrow_mut() {
            State::Collecting(_, bytes, _) if bytes.len() + more.len() <= BODY_MAX => {
                bytes.extend_from_slice(more);
                return true;
            }
            State::Collecting(..) => true,
            State::Waiting | State::Gone => false,
        };
        if too_large {
            self.give_up(Mirrored::TooLarge);
        }
        false
    }

    /// All of the body was taken.
    pub(super) fn end(&self) {
        let state = std::mem::replace(&mut *self.state.borrow_mut(), State::Gone);
        if let State::Collecting(framing, bytes, slot) = state {
            match content(framing, bytes) {
                Some(content) => self.send(&content, slot),
                None => self.worker.counters.borrow_mut().mirrored(Mirrored::Incomplete),
            }
        }
    }

    fn give_up(&self, outcome: Mirrored) {
        *self.state.borrow_mut() = State::Gone;
        self.worker.counters.borrow_mut().mirrored(outcome);
    }

    fn send(&self, content: &[u8], slot: Slot) {
        let mut message = self.head.clone();
        if !content.is_empty() {
            // A vector takes everything.
            let _ = write!(message, "Content-Length: {}\r\n", content.len());
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(content);
        let (worker, snapshot, to) =
            (Rc::clone(&self.worker), Rc::clone(&self.snapshot), Rc::clone(&self.to));
        tokio::task::spawn_local(async move {
            let _slot = slot;
            let delivered = tokio::time::timeout(WHOLE, deliver(&worker, &snapshot, &to, &message)).await;
            let outcome = match delivered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(()) => Mirrored::Sent,
                Err(error) => {
                    tracing::debug!(host = to.host, %error, "copy of a request was not taken");
                    Mirrored::Failed
                }
            };
            worker.counters.borrow_mut().mirrored(outcome);
        });
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if matches!(self.state.get_mut(), State::Collecting(..)) {
            self.worker.counters.borrow_mut().mirrored(Mirrored::Incomplete);
        }
    }
}

/// The client's lines as they are, as nginx passes them to a mirror; but the request's own place in a trace, where it has one.
fn head(known: Known<'_, '_, '_>, host: &str, target: Option<&[u8]>) -> Vec<u8> {
    const BODY: [&str; 2] = ["content-length", "transfer-encoding"];
    let request = known.request;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    match target {
        // What a client puts into a variable must not end the line it stands in.
        Some(target) => {
            if !target.starts_with(b"/") {
                out.push(b'/');
            }
            path::escape_literal(target, &mut out);
        }
        None => out.extend_from_slice(request.target),
    }
    for part in [" HTTP/1.1\r\nHost: ", host, "\r\nConnection: close\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let of_the_body = request.block.named(|name| BODY.iter().any(|known| known.eq_ignore_ascii_case(name)));
    let mut drop = request.drop.with(of_the_body);
    if let Some(trace) = known.trace {
        drop = drop.with(trace.replaced(&request.block));
    }
    request.block.copy_except(drop, &mut out);
    if let Some(trace) = known.trace {
        trace.tell(|_| true, &mut out);
    }
    out
}

/// Takes a body out of its framing; `None` if that is not all of it.
fn content(mut framing: Body, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if let Body::Length(length) = framing {
        return (bytes.len() as u64 == length).then_some(bytes);
    }
    let (mut content, mut rest) = (Vec::new(), bytes.as_slice());
    while !rest.is_empty() && !framing.is_done() {
        let piece = framing.piece(rest).ok()?;
        let (now, later) = rest.split_at_checked(piece.len())?;
        if let Piece::Content(_) = piece {
            content.extend_from_slice(now);
        }
        rest = later;
    }
    framing.is_done().then_some(content)
}

/// Sends it to the first address that takes a connection, and reads over what is answered.
async fn deliver(worker: &Worker, snapshot: &Snapshot, to: &To, message: &[u8]) -> io::Result<()> {
    let (name, port) = split_port(&to.host).ok_or(io::ErrorKind::InvalidInput)?;
    let port = port.unwrap_or(if to.tls { 443 } else { 80 });
    let connecting = async {
        let addrs = worker.mirrors.find(snapshot, to.upstream.as_ref(), name, port).await?;
        connect(worker, to, name, &addrs).await
    };
    let mut link = tokio::time::timeout(CONNECT, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let carrier = Carrier::Socket(link.socket());
    let mut sent = 0;
    poll_fn(|cx| {
        while let Some(rest) = message.get(sent..).filter(|rest| !rest.is_empty()) {
            sent += ready!(carrier.poll_write(cx, &[IoSlice::new(rest)]))?;
        }
        carrier.poll_flush(cx)
    })
    .await?;
    // Closed before it has answered, some would not do what they were asked for.
    let mut buf = Buf::default();
    loop {
        let read = poll_fn(|cx| buf.poll_fill(cx, &carrier)).await?;
        buf.consume(read);
        if read == 0 {
            return Ok(());
        }
    }
}

async fn connect(worker: &Worker, to: &To, name: &str, addrs: &[SocketAddr]) -> io::Result<Link> {
    let first = usize::try_from(worker.random.word() % addrs.len().max(1) as u64).unwrap_or(0);
    let mut last = io::ErrorKind::NotFound.into();
    for addr in addrs.iter().cycle().skip(first).take(addrs.len().min(TRIES)) {
        match worker.mirrors.connect(*addr, to.tls.then_some(name)).await {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body, its bytes, and the content that is copied.
    type Case = (Body, &'static [u8], Option<&'static [u8]>);

    #[test]
    fn a_body_is_copied_without_its_framing_or_not_at_all() {
        let chunks = || Body::Chunked(Default::default());
        let cases: [Case; 5] = [
            (Body::Length(5), b"hello", Some(b"hello")),
            (Body::Length(6), b"hello", None),
            (chunks(), b"3\r\nhel\r\n2\r\nlo\r\n0\r\nX-A: b\r\n\r\n", Some(b"hello")),
            (chunks(), b"5\r\nhello\r\n", None),
            (chunks(), b"x\r\n", None),
        ];
        for (framing, bytes, expected) in cases {
            assert_eq!(content(framing, bytes.to_vec()).as_deref(), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn no_more_copies_are_made_than_there_may_be() {
        let copies = Rc::<Cell<usize>>::default();
        let mut taken: Vec<_> = (0..COPIES_MAX).map_while(|_| Slot::take(&copies)).collect();

        assert_eq!((taken.len(), Slot::take(&copies).is_none()), (COPIES_MAX, true));
        taken.pop();
        assert!(Slot::take(&copies).is_some());
    }
}
