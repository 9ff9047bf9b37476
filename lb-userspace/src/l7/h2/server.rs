//! A client's HTTP/2 connection: accepts streams, for tasks of the worker to serve, until it has had
//! its share of requests, idles too long, misbehaves, or the worker drains.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;

use super::super::body_memory::{Share, Together};
use super::super::buffer::Buf;
use super::super::connection::PATIENCE;
use super::super::heads::Client;
use super::super::socket::Socket;
use super::super::timers::{Alarm, Due};
use super::super::worker::Worker;
use super::crew::{Crew, Errand};
use super::frame_budget::FrameBudget;
use super::intake::Intake;
use super::io::{Io, Outlet};
use super::stream::Stream;
use super::{PREFACE, limits};
use crate::model::l7::ClientLimits;

type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves a connection whose client speaks HTTP/2; `first` was read from it already.
pub(in crate::l7) async fn serve(
    worker: &Rc<Worker>,
    socket: Socket<'_>,
    first: Buf,
    alarm: Alarm,
    client: Rc<Client>,
) {
    let budget = Rc::new(FrameBudget::new(Instant::now()));
    let intake = Intake::new(PREFACE.len(), Some(Rc::clone(&budget)));
    let io = Io::new(socket, first, Rc::clone(&intake));
    let outlet = io.outlet();
    let ClientLimits { header_timeout, keep_alive, http2_streams, .. } = *worker.limits();
    let (due, slow) = (alarm.due(header_timeout), alarm.due(PATIENCE));
    let mut handshake = pin!(limits::server(http2_streams).handshake::<_, Bytes>(io));
    let shaken = poll_fn(|cx| match outlet.turn(cx, |cx| handshake.as_mut().poll(cx)) {
        Poll::Ready(shaken) => Poll::Ready(shaken.ok()),
        Poll::Pending if alarm.is_past(slow) && worker.dismisses() => Poll::Ready(None),
        Poll::Pending => alarm.poll_due(cx, due).map(|()| None),
    });
    let Some(h2) = shaken.await else { return };
    let streams = Rc::new(Streams::default());
    // The first request has longer, even where none may follow it.
    let due = alarm.due(header_timeout.max(keep_alive));
    let together = Together::default();
    let mut connection = Connection {
        worker,
        h2,
        outlet,
        alarm,
        streams,
        budget,
        intake,
        window: limits::CONNECTION_WINDOW,
        share: Share::new(&worker.spills.memory, Some(together.clone())),
        together,
        due,
        slow,
        streams_max: http2_streams,
        requests: 0,
        leaving: false,
        heard: Due::MAX,
        was_live: 0,
        flooded: false,
    };
    while let Some((request, respond)) = connection.next().await {
        connection.start(request, respond, Rc::clone(&client));
    }
    worker.counters.borrow_mut().http2_floods += u64::from(connection.flooded);
}

/// Streams of a connection that are being served.
#[derive(Default)]
struct Streams {
    live: Cell<u32>,
    connection: RefCell<Option<Waker>>,
}

/// One of them, until it is dropped, however it ends.
pub(super) struct Live(Rc<Streams>);

impl Live {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.live.set(streams.live.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let Self(streams) = self;
        streams.live.set(streams.live.get().saturating_sub(1));
        if let Some(waker) = streams.connection.take() {
            waker.wake();
        }
    }
}

struct Connection<'w, 's> {
    worker: &'w Rc<Worker>,
    h2: h2::server::Connection<Io<'s>, Bytes>,
    outlet: Rc<Outlet<'s>>,
    alarm: Alarm,
    streams: Rc<Streams>,
    budget: Rc<FrameBudget>,
    intake: Rc<Intake>,
    /// Bytes of request bodies that may wait here.
    window: u32,
    /// The memory for those beyond [`limits::CONNECTION_WINDOW`].
    share: Share,
    /// What that is with the bodies that its streams hold.
    together: Together,
    /// When it has been idle for too long, or, leaving, has had time enough.
    due: Due,
    /// Without a request by then it makes room for others.
    slow: Due,
    streams_max: u32,
    requests: u32,
    leaving: bool,
    /// Who has not heard by then that it should ask elsewhere does not listen.
    heard: Due,
    was_live: u32,
    /// It was ended for the sake of the others.
    flooded: bool,
}

impl Connection<'_, '_> {
    /// The next request; `None` when the connection is over.
    async fn next(&mut self) -> Option<Accepted> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        self.streams.connection.replace(Some(cx.waker().clone()));
        let has_had_its_share =
            || self.requests >= self.worker.limits().keep_alive_requests || self.intake.is_worn();
        if !self.leaving && (self.worker.is_draining() || has_had_its_share()) {
            self.leave();
        }
        let live = self.streams.live.get();
        let mut polled = self.poll_h2(cx, live);
        if !self.flooded && self.budget.is_exhausted() {
            self.flooded = true;
            self.due = self.alarm.due(limits::GOODBYE);
            self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            polled = self.poll_h2(cx, live);
        }
        match polled {
            Poll::Ready(Some(Ok(accepted))) => return Poll::Ready(Some(accepted)),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "http/2 connection ended");
                self.flooded |= error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
                return Poll::Ready(None);
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if live != self.was_live {
            self.was_live = live;
            let idle = self.worker.limits().keep_alive;
            self.due = self.alarm.due(if self.leaving { limits::GOODBYE } else { idle });
        }
        if live == 0 && self.requests > 0 && !self.leaving {
            // It may have become shorter since the wait began.
            self.due = self.due.min(self.alarm.due(self.worker.limits().keep_alive));
        }
        let may_end = live == 0 && (self.requests > 0 || self.alarm.is_past(self.slow));
        if may_end && !self.leaving && self.worker.dismisses() {
            self.leave();
            cx.waker().wake_by_ref();
        }
        let is_served = live > 0 && !self.flooded;
        let due = if is_served { Due::MAX } else { self.due };
        match self.alarm.poll_due(cx, due) {
            Poll::Pending => Poll::Pending,
            // Its streams end first, each for itself.
            Poll::Ready(()) if is_served => Poll::Pending,
            Poll::Ready(()) if self.leaving || self.flooded => Poll::Ready(None),
            Poll::Ready(()) => {
                self.leave();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn poll_h2(&mut self, cx: &mut Context<'_>, live: u32) -> Poll<Option<Result<Accepted, h2::Error>>> {
        // Streams that the client reset live on here until they notice: no more of both than it
        // may have open.
        let may_accept = live < self.streams_max;
        let polled = self.outlet.turn(cx, |cx| match may_accept {
            true => self.h2.poll_accept(cx),
            false => self.h2.poll_closed(cx).map(|closed| closed.err().map(Err)),
        });
        // While streams are handed out, those that come may have small pieces too; nothing more is read meanwhile.
        if polled.is_pending() {
            self.intake.relieve();
            self.widen();
        }
        polled
    }

    /// Bodies that nobody takes must not stop the others: where what waits leaves little of the window, there is more,
    /// as far as there is memory, up to all that the windows of the bodies allow.
    fn widen(&mut self) {
        let served = (self.window / limits::STREAM_WINDOW) as usize;
        let enough = self.window.saturating_sub(limits::STREAM_WINDOW / 2) as usize;
        let is_short = self.intake.has_more_than(served, enough);
        if is_short && self.share.take(limits::STREAM_WINDOW as usize) {
            self.window += limits::STREAM_WINDOW;
            self.h2.set_target_window_size(self.window);
        }
    }

    /// Tells the client to take new requests elsewhere; those it has sent are served.
    fn leave(&mut self) {
        self.leaving = true;
        self.h2.graceful_shutdown();
        self.due = self.alarm.due(limits::GOODBYE);
        self.heard = self.due;
    }

    fn start(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, client: Rc<Client>) {
        if self.alarm.is_past(self.heard) {
            // The h2 crate takes streams until the client acknowledges, which it may leave. Safe to repeat (RFC 9113 8.7).
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        self.requests += 1;
        let live = Live::new(&self.streams);
        let budget = Rc::clone(&self.budget);
        let (intake, together) = (Rc::clone(&self.intake), self.together.clone());
        let (stream, verdict) = Stream::accepted(request, respond, Rc::clone(&budget), intake, together);
        Crew::send(self.worker, Errand { stream, verdict, client, live, budget });
    }
}
