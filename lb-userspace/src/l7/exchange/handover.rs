//! What follows the head of a response: its body on the way to the client, or a tunnel.

use std::future::poll_fn;
use std::hint::cold_path;
use std::io;
use std::task::Poll;

use super::super::buffer::Scratch;
use super::super::connection::{CLIENT_TIMEOUT, Connection, Crawl};
use super::super::heads::After;
use super::super::metrics::Failure;
use super::super::relay::{Broken, Leg, Waits};
use super::super::tunnel::{End, tunnel};
use super::super::upstream::{Attempts, Traffic};
use super::{Exchange, Sent, Through};

impl Exchange<'_, '_, '_, '_> {
    /// Passes the response on while the rest of the request may still go the other way.
    pub(super) async fn relay(&mut self, download: &mut Leg, status: u16, after: After) -> (Sent, u64) {
        // Asked of the clock where something is waited for.
        let mut due = None;
        let mut moved = 0;
        let crawl = Crawl::default();
        let through = poll_fn(|cx| {
            if let Poll::Ready(Err(_)) = self.poll_upload(cx) {
                cold_path();
                // The client broke off its body; the response alone may still be wanted.
                self.upload_broken = true;
            }
            match download.poll(cx, &self.upstream, &mut self.buf, &self.connection.socket) {
                Poll::Ready(result) => return Poll::Ready(result),
                // Small answers are here, and go out, at once.
                Poll::Pending => {
                    cold_path();
                    self.waited = true;
                }
            }
            let now = download.moved() + self.upload.moved();
            if now != moved {
                (moved, due) = (now, None);
            }
            let due = *due.get_or_insert_with(|| {
                self.connection.alarm.due(match download.waits {
                    Waits::ForSender => self.limits.read,
                    Waits::ForReceiver => CLIENT_TIMEOUT,
                })
            });
            // A client that left need not keep an upstream that is silent for an hour.
            let idle = download.waits == Waits::ForSender && (self.upload.is_done() || self.upload_broken);
            if idle && self.connection.poll_gone(cx) {
                return Poll::Ready(Err(Broken::Receiver(io::ErrorKind::ConnectionReset.into())));
            }
            let Connection { alarm, worker, .. } = &*self.connection;
            let late = || match download.waits {
                Waits::ForSender if !worker.is_cut_off() => Broken::Sender(io::ErrorKind::TimedOut.into()),
                Waits::ForSender | Waits::ForReceiver => Broken::Receiver(io::ErrorKind::TimedOut.into()),
            };
            if download.waits == Waits::ForReceiver && crawl.makes_room(download.written, alarm, worker) {
                return Poll::Ready(Err(late()));
            }
            alarm.poll_due(cx, due).map(|()| Err(late()))
        })
        .await;
        self.count_received();
        if matches!(through, Err(Broken::Framing)) && download.written == 0 {
            tracing::debug!(status, "upstream sent an unusable body");
            return (Sent::Nothing { status: 502, read: self.replay.is_some() }, 0);
        }
        let sent = account(self.connection, download, through, status, after);
        (sent, download.body_written())
    }

    /// After 101: a tunnel behind this head, and what its attempt came to.
    pub(super) async fn switch(mut self, head: Scratch, attempts: &mut Attempts<'_>) -> Through {
        self.keep_sent(&head);
        let (sent, bytes) = self.tunnel(head).await;
        let up = self.connection.tally.body_received;
        let Traffic { sent: before, received } = self.traffic(bytes);
        attempts.moved(Traffic { sent: before + up, received });
        Through { sent, keep: false, bytes, rest: None, waited: true }
    }

    /// Bytes both ways until both sides closed or neither spoke for the read timeout.
    async fn tunnel(&mut self, head: Scratch) -> (Sent, u64) {
        let Connection { socket, buf, alarm, .. } = &mut *self.connection;
        let head_len = head.len() as u64;
        let client = End { carrier: socket, buf };
        let upstream = End { carrier: &self.upstream, buf: &mut self.buf };
        let moved = tunnel(client, upstream, head, self.limits.read, alarm).await;
        let tally = &mut self.connection.tally;
        tally.head_sent = moved.down.min(head_len);
        tally.body_sent = moved.down - tally.head_sent;
        tally.body_received = moved.up;
        (Sent::Broken { status: 101 }, tally.body_sent)
    }
}

/// What the client got of a response, counted.
pub(super) fn account(
    connection: &mut Connection<'_, '_>,
    download: &Leg,
    through: Result<(), Broken>,
    status: u16,
    after: After,
) -> Sent {
    let tally = &mut connection.tally;
    tally.body_sent = download.body_written();
    tally.head_sent = download.written - tally.body_sent;
    match through {
        Ok(()) => Sent::Response { status, after },
        Err(Broken::Receiver(_)) => {
            cold_path();
            Sent::Broken { status: 499 }
        }
        Err(error) => {
            cold_path();
            tracing::debug!(%error, status, "response cut off by the upstream");
            Sent::CutOff { status, failure: failure_of(&error) }
        }
    }
}

/// How an endpoint broke off its answer.
pub(super) fn failure_of(broken: &Broken) -> Failure {
    match broken {
        Broken::Sender(error) if error.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
        Broken::Framing => Failure::BadResponse,
        Broken::Sender(_) | Broken::Receiver(_) | Broken::TooLarge => Failure::CutOff,
    }
}
