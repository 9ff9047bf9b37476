//! Bytes both ways between two connections, until both sides have ended or neither has spoken for
//! a while: upgraded connections, and TLS that is handed on unopened.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::buffer::{Buf, Scratch};
use super::carrier::Carrier;
use super::h1::Body;
use super::relay::{Coding, Leg};
use super::timers::Alarm;

/// One end, with what was read from it already.
pub(super) struct End<'a, 's> {
    pub(super) carrier: &'a Carrier<'s>,
    pub(super) buf: &'a mut Buf,
}

/// What went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    /// Bytes each way.
    pub(super) up: u64,
    pub(super) down: u64,
    /// When the first of those down came.
    pub(super) answered: Option<Instant>,
}

/// Moves bytes; `head` goes to the client first. Each direction ends on its own.
pub(super) async fn tunnel(
    client: End<'_, '_>,
    upstream: End<'_, '_>,
    head: Scratch,
    idle: Duration,
    alarm: &Alarm,
) -> Moved {
    let mut down = Leg::new(head, Body::UntilClose, Coding::Same, None);
    let mut up = Leg::new(Scratch::take(), Body::UntilClose, Coding::Same, None);
    let (mut down_ended, mut up_ended) = (false, false);
    let mut due = alarm.due(idle);
    let (mut moved, mut answered) = (0, None);
    poll_fn(|cx| {
        if !down_ended {
            match down.poll(cx, upstream.carrier, upstream.buf, client.carrier) {
                Poll::Ready(Ok(())) if client.carrier.poll_finish(cx).is_ready() => down_ended = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if !up_ended {
            match up.poll(cx, client.carrier, client.buf, upstream.carrier) {
                Poll::Ready(Ok(())) if upstream.carrier.poll_finish(cx).is_ready() => up_ended = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if down_ended && up_ended {
            return Poll::Ready(());
        }
        let now = down.moved() + up.moved();
        if now != moved {
            (moved, due) = (now, alarm.due(idle));
            if answered.is_none() && down.read > 0 {
                answered = Some(Instant::now());
            }
        }
        alarm.poll_due(cx, due)
    })
    .await;
    Moved { up: up.written, down: down.written, answered }
}
