//! A response at two paces (`proxy-buffering`): what the endpoint sends is taken as far as there is room,
//! what the client takes is sent. A slow client does not hold up the endpoint.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::super::ahead::Ahead;
use super::super::buffer::{Buf, Scratch};
use super::super::carrier::Carrier;
use super::super::connection::{CLIENT_TIMEOUT, Connection, Crawl};
use super::super::h1::Body;
use super::super::heads::After;
use super::super::relay::{Broken, Coding, Leg, Waits};
use super::super::timers::Alarm;
use super::handover::{account, failure_of};
use super::{Exchange, Ready, Sent};
use crate::model::l7::{Rate, ReadAhead};

/// How often a client with a pace gets its share.
const BEAT: Duration = Duration::from_millis(100);

impl Exchange<'_, '_, '_, '_> {
    /// How far to read ahead of the client; `None` where there is nothing to read, or all is here.
    pub(super) fn ahead(&self, ready: &Ready) -> Option<ReadAhead> {
        let limits = self.limits.ahead.filter(|_| !ready.streams)?;
        let is_here = match ready.body {
            Body::Length(length) => self.buf.bytes().len() as u64 >= length,
            _ => ready.body.is_done(),
        };
        (!is_here || limits.rate.is_some()).then_some(limits)
    }

    /// The same at two paces: what the upstream sends is taken as far as there is room, what the client
    /// takes is sent. Where the upstream has sent all, the rest needs it no more.
    pub(super) async fn relay_ahead(
        &mut self,
        ready: Ready,
        limits: ReadAhead,
    ) -> (Sent, u64, Option<Box<Output>>) {
        let Ready { status, head, body, coding, after, .. } = ready;
        let mut intake = self.download(Scratch::take(), body, coding);
        let mut output = Output::new(self.connection, limits, head, status, after);
        let (mut is_in, mut broke) = (false, None);
        let mut due = self.connection.alarm.due(self.limits.read);
        let mut client_due = self.connection.alarm.due(CLIENT_TIMEOUT);
        let (mut taken, mut given) = (0, 0);
        let crawl = Crawl::default();
        let through = poll_fn(|cx| {
            if let Poll::Ready(Err(_)) = self.poll_upload(cx) {
                self.upload_broken = true;
            }
            let Connection { socket, alarm, worker, .. } = &*self.connection;
            loop {
                let before = intake.moved() + output.moved();
                if !is_in {
                    let taken =
                        intake.poll(cx, &self.upstream, &mut self.buf, &Carrier::Ahead(&output.ahead));
                    if let Poll::Ready(taken) = taken {
                        is_in = true;
                        broke = taken.as_ref().err().map(failure_of);
                        output.ahead.end(taken.map_err(|broken| io::Error::other(broken.to_string())));
                    }
                }
                match output.poll(cx, socket, alarm) {
                    Poll::Ready(result) => return Poll::Ready(Some(result)),
                    Poll::Pending if intake.moved() + output.moved() == before => break,
                    Poll::Pending => {}
                }
            }
            let sent_up = self.upload.is_done() || self.upload_broken;
            if is_in && sent_up {
                return Poll::Ready(None);
            }
            if intake.moved() + self.upload.moved() != taken {
                taken = intake.moved() + self.upload.moved();
                due = alarm.due(self.limits.read);
            }
            if output.moved() != given {
                given = output.moved();
                client_due = alarm.due(CLIENT_TIMEOUT);
            }
            let broken = |broken: fn(io::Error) -> Broken, kind: io::ErrorKind| {
                Poll::Ready(Some(Err(broken(kind.into()))))
            };
            // Where there is no room either, nothing but a beat of the pace wakes this.
            if worker.is_cut_off() {
                return broken(Broken::Receiver, io::ErrorKind::TimedOut);
            }
            if !output.has_waiting() && sent_up && self.connection.poll_gone(cx) {
                return broken(Broken::Receiver, io::ErrorKind::ConnectionReset);
            }
            let makes_room = || crawl.makes_room(output.leg.written, alarm, worker);
            if output.has_waiting() && (makes_room() || alarm.poll_due(cx, client_due).is_ready()) {
                return broken(Broken::Receiver, io::ErrorKind::TimedOut);
            }
            // While there is no room the upstream is not asked for anything.
            if !is_in && intake.waits == Waits::ForSender && alarm.poll_due(cx, due).is_ready() {
                return broken(Broken::Sender, io::ErrorKind::TimedOut);
            }
            Poll::Pending
        })
        .await;
        self.count_received();
        let bytes = intake.body_written();
        match through {
            Some(through) => match (output.account(self.connection, through), broke) {
                (Sent::CutOff { status, .. }, Some(failure)) => {
                    (Sent::CutOff { status, failure }, bytes, None)
                }
                (sent, _) => (sent, bytes, None),
            },
            None => {
                // Cut off, its connection is of no use to others; the client gets what there is.
                let sent = match broke {
                    None => Sent::Response { status, after },
                    Some(failure) => Sent::CutOff { status, failure },
                };
                (sent, bytes, Some(Box::new(output)))
            }
        }
    }
}

/// A response on its way from [`Ahead`] to the client.
pub(super) struct Output {
    pub(super) ahead: Ahead,
    leg: Leg,
    buf: Buf,
    pace: Option<(Rate, Instant)>,
    status: u16,
    after: After,
}

impl Output {
    /// `head`, then what is put into its [`Ahead`].
    pub(super) fn new(
        connection: &Connection<'_, '_>,
        limits: ReadAhead,
        head: Scratch,
        status: u16,
        after: After,
    ) -> Self {
        let leg = Leg::new(head, Body::UntilClose, Coding::Same, None);
        let pace = limits.rate.map(|rate| (rate, Instant::now()));
        let ahead = Ahead::new(connection.worker, limits, connection.share());
        Self { ahead, leg, buf: Buf::default(), pace, status, after }
    }

    /// Sends what the client takes; ready with the last byte.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &Carrier<'_>,
        alarm: &Alarm,
    ) -> Poll<Result<(), Broken>> {
        if let Some((rate, began)) = &self.pace {
            self.leg.allowed = allowed(rate, began.elapsed());
        }
        let polled = self.leg.poll(cx, &Carrier::Ahead(&self.ahead), &mut self.buf, client);
        if polled.is_pending() && self.is_held_back() {
            let _ = alarm.poll_due(cx, alarm.due(BEAT));
        }
        polled
    }

    /// Bytes moved; grows while there is progress.
    pub(super) fn moved(&self) -> u64 {
        self.leg.moved()
    }

    /// The client could take something, and does not.
    pub(super) fn has_waiting(&self) -> bool {
        self.leg.waits == Waits::ForReceiver && !self.is_held_back()
    }

    fn is_held_back(&self) -> bool {
        self.pace.is_some() && self.leg.body_written() >= self.leg.allowed
    }

    /// Sends the rest, after the endpoint has sent all of it.
    pub(super) async fn send(mut self, connection: &mut Connection<'_, '_>) -> Sent {
        let Connection { socket, alarm, worker, .. } = &*connection;
        let mut due = alarm.due(CLIENT_TIMEOUT);
        let mut moved = 0;
        let crawl = Crawl::default();
        let through = poll_fn(|cx| {
            if let Poll::Ready(through) = self.poll(cx, socket, alarm) {
                return Poll::Ready(through);
            }
            if self.moved() != moved || !self.has_waiting() {
                (moved, due) = (self.moved(), alarm.due(CLIENT_TIMEOUT));
            }
            let late = || Err(Broken::Receiver(io::ErrorKind::TimedOut.into()));
            if self.has_waiting() && crawl.makes_room(self.leg.written, alarm, worker) {
                return Poll::Ready(late());
            }
            alarm.poll_due(cx, due).map(|()| late())
        })
        .await;
        self.account(connection, through)
    }

    /// What the client got, counted.
    pub(super) fn account(self, connection: &mut Connection<'_, '_>, through: Result<(), Broken>) -> Sent {
        account(connection, &self.leg, through, self.status, self.after)
    }
}

/// Bytes of the body that may be with the client `elapsed` after it began; a second's share at once.
fn allowed(rate: &Rate, elapsed: Duration) -> u64 {
    let Rate { bytes, after } = rate;
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_add(1000);
    after.saturating_add(bytes.get().saturating_mul(milliseconds) / 1000)
}
