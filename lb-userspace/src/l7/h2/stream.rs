//! One stream, polled in both directions at once through `&self`, like a socket.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::uri::Scheme;
use http::{Method, Request};

use super::super::body_memory::Together;
use super::super::h1::head::Refusal;
use super::client::Slot;
use super::frame_budget::FrameBudget;
use super::inbound::Inbound;
use super::intake::Intake;
use super::outbound::Outbound;

/// How a client's stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Ended {
    /// With a whole response.
    Answered,
    /// The response stopped short.
    CutOff,
    /// The client reset it.
    GivenUp,
}

/// A stream as HTTP/1.1 bytes. The cells are borrowed only inside a poll function.
///
/// Dropped before its message is complete, it is reset.
pub(in crate::l7) struct Stream {
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound>,
    budget: Option<Rc<FrameBudget>>,
    /// Of a client's connection.
    together: Option<Together>,
    /// Its place on an upstream's connection.
    slot: Option<Slot>,
}

impl Stream {
    /// A client's request and the way of its response. Where the request is refused, what can be read is what
    /// there is of its head, for the log.
    pub(super) fn accepted(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        budget: Rc<FrameBudget>,
        intake: Rc<Intake>,
        together: Together,
    ) -> (Self, Result<(), Refusal>) {
        let (parts, body) = request.into_parts();
        let head_only = parts.method == Method::HEAD;
        let (inbound, verdict) = Inbound::request(&parts, body, intake);
        let stream = Self {
            inbound: RefCell::new(inbound),
            outbound: RefCell::new(Outbound::response(respond, head_only)),
            budget: Some(budget),
            together: Some(together),
            slot: None,
        };
        (stream, verdict)
    }

    /// The way of a request to an upstream, and of its response. `endpoint` is the authority of a
    /// request that names none.
    pub(super) fn requesting(
        to: SendRequest<Bytes>,
        scheme: Scheme,
        endpoint: SocketAddr,
        slot: Slot,
    ) -> Self {
        Self {
            inbound: RefCell::new(Inbound::response(slot.intake())),
            outbound: RefCell::new(Outbound::request(to, scheme, endpoint)),
            budget: None,
            together: None,
            slot: Some(slot),
        }
    }

    /// What the streams of its connection have taken for bodies that are held.
    pub(in crate::l7) fn together(&self) -> Option<&Together> {
        self.together.as_ref()
    }

    /// Bytes, or the end, can be read without waiting.
    pub(in crate::l7) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inbound.borrow_mut().poll_ready(cx)
    }

    /// Reads once; 0 is the end (or no room in `into`).
    pub(in crate::l7) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.inbound.borrow_mut().poll_read(cx, into)
    }

    /// Takes some of `parts`; some stays behind until [`Self::flush`].
    pub(in crate::l7) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.outbound.borrow_mut().poll_write(cx, parts);
        self.account();
        match (&written, &self.slot) {
            (Poll::Ready(Err(_)), _) => self.inbound.borrow_mut().unsent(),
            (Poll::Pending, Some(slot)) => slot.waits(),
            _ => {}
        }
        written
    }

    /// Hands over to the connection what was held back. Its own flow control does the rest.
    pub(in crate::l7) fn flush(&self) -> io::Result<()> {
        let flushed = self.outbound.borrow_mut().flush();
        self.account();
        if flushed.is_err() {
            // Nobody waits for a response to what never left.
            self.inbound.borrow_mut().unsent();
        }
        flushed
    }

    /// Ends our direction: with the message where only the end can tell, else as an error.
    pub(in crate::l7) fn finish(&self) -> io::Result<()> {
        self.outbound.borrow_mut().finish()
    }

    /// Ends a stream whose response is complete or, with nobody left to complete it, cuts it off.
    pub(in crate::l7) fn end(&self, complete: bool) -> Ended {
        let given_up = self.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
        match complete && self.finish().is_ok() {
            _ if given_up => Ended::GivenUp,
            true => Ended::Answered,
            false => {
                self.outbound.borrow_mut().reset(Reason::INTERNAL_ERROR);
                Ended::CutOff
            }
        }
    }

    /// The upstream said that it did nothing about the request (RFC 9113 8.7).
    pub(in crate::l7) fn was_refused(&self) -> bool {
        self.inbound.borrow().was_refused()
    }

    /// The upstream did not answer in time: others had better not share its connection.
    pub(in crate::l7) fn distrust(&self) {
        if let Some(slot) = &self.slot {
            slot.retire();
        }
    }

    /// Ready when the other side wants no more.
    pub(in crate::l7) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.outbound.borrow_mut().poll_reset(cx)
    }

    fn account(&self) {
        let mut outbound = self.outbound.borrow_mut();
        let frames = outbound.take_frames();
        if let Some(budget) = &self.budget {
            (0..frames).for_each(|_| budget.sent_data());
        }
        if frames > 0
            && let Some(slot) = &self.slot
        {
            slot.gets_on();
        }
        if let Some((answer, head_only)) = outbound.take_answer() {
            self.inbound.borrow_mut().sent(answer, head_only);
        }
    }
}
