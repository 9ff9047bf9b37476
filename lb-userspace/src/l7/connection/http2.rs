//! A connection that speaks HTTP/2, and the one request of each of its streams.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use super::super::carrier::Carrier;
use super::super::h1::head::Refusal;
use super::super::h2;
use super::super::heads::Client;
use super::super::worker::Worker;
use super::plan::Head;
use super::{Connection, Left};

/// Serves the one request of an HTTP/2 stream, or refuses it.
pub(in crate::l7) async fn serve_stream(
    worker: &Rc<Worker>,
    stream: &h2::Stream,
    verdict: Result<(), Refusal>,
    client: Rc<Client>,
) -> h2::Ended {
    let socket = Carrier::Stream(stream);
    let alarm = worker.timers.alarm();
    let mut connection = Connection::new(worker, socket, alarm, client);
    let left = match verdict {
        Ok(()) => connection.only_request().await,
        Err(refusal) => Box::pin(connection.refuse_only(refusal)).await,
    };
    stream.end(left != Left::Broken)
}

impl Connection<'_, '_> {
    /// Goes on with a connection whose client speaks HTTP/2.
    pub(super) async fn serve_http2(&mut self) {
        let Self { worker, socket, buf, alarm, client, .. } = self;
        if let Carrier::Socket(socket) = socket {
            let (first, alarm) = (std::mem::take(buf), std::mem::replace(alarm, worker.timers.alarm()));
            h2::serve(worker, *socket, first, alarm, Rc::clone(client)).await;
        }
    }

    /// The request of a stream, whose head is there at once, and whole.
    async fn only_request(&mut self) -> Left {
        let filled = poll_fn(|cx| self.buf.poll_fill(cx, &self.socket)).await;
        if !filled.is_ok_and(|n| n > 0) {
            return Left::Broken;
        }
        match self.read_head() {
            // In place: the task is one that serves streams, and nothing else.
            Head::Planned(plan) => self.carry_out(plan).await,
            head => self.act(head, Duration::ZERO).await,
        }
    }

    /// The same for one whose head is to be refused. It is read for the log.
    async fn refuse_only(&mut self, refusal: Refusal) -> Left {
        let _ = poll_fn(|cx| self.buf.poll_fill(cx, &self.socket)).await;
        self.refuse(refusal, Duration::ZERO).await
    }
}
