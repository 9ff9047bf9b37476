//! The end of a connection: at once where both sides have said all, else when the client has seen what it
//! was told.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::super::buffer::Buf;
use super::super::carrier::Carrier;
use super::super::timers::Alarm;
use super::Connection;

/// After an early answer, how long and how much of the unread body is thrown away, so that the
/// client sees the answer and not a reset (`lingering_timeout`).
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: u64 = 16 << 20;

impl Connection<'_, '_> {
    /// Says goodbye to a client that has nothing left to say: then no close can become a reset that overtakes
    /// the answer. False if that takes time, or if the client did say more.
    pub(super) fn has_parted(&self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        self.buf.is_empty() && self.socket.poll_readable(cx).is_pending() && self.socket.close_notify()
    }

    /// Ends our direction and throws away what the client still sends, for a while.
    pub(super) async fn linger(&mut self) {
        linger(&self.socket, &mut self.buf, &self.alarm).await;
    }
}

/// The same for a connection that comes to no request.
pub(in crate::l7) async fn linger(socket: &Carrier<'_>, buf: &mut Buf, alarm: &Alarm) {
    let due = alarm.due(LINGER);
    let mut finished = false;
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        if !finished {
            match socket.poll_finish(cx) {
                Poll::Ready(Ok(())) => finished = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return alarm.poll_due(cx, due),
            }
        }
        loop {
            let n = buf.bytes().len();
            buf.consume(n);
            match buf.poll_fill(cx, socket) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(n)) => left = left.saturating_sub(n as u64),
                Poll::Pending => return alarm.poll_due(cx, due),
            }
            if left == 0 {
                return Poll::Ready(());
            }
        }
    })
    .await;
}
