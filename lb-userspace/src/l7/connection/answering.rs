//! Responses of our own, and how they get to the client.

use std::future::poll_fn;
use std::io::IoSlice;
use std::task::Poll;

use super::super::buffer::Scratch;
use super::super::filters::Answer;
use super::super::h1::Body;
use super::super::heads::{self, After, Form};
use super::{CLIENT_TIMEOUT, Connection, Left};

impl Connection<'_, '_> {
    /// Sends a response of our own, and reads over the request's body where all of it is here.
    pub(super) async fn answer(
        &mut self,
        answer: &Answer,
        form: Form,
        mut after: After,
        mut body: Body,
    ) -> (u16, Left) {
        match body.take(self.buf.bytes()) {
            Ok(n) => {
                self.buf.consume(n);
                self.tally.body_received += n as u64;
            }
            Err(_) => after = After::Close,
        }
        if !body.is_done() {
            after = After::Close;
        }
        let mut out = Scratch::take();
        let scheme = self.client.own_scheme();
        let (status, page) = heads::answer(answer, form, scheme, after, &self.edits, &mut out);
        self.tally.body_sent = page as u64;
        self.tally.head_sent = (out.len() - page) as u64;
        if let Some(kept) = &mut self.kept {
            kept.sent(&out);
        }
        let left = match (self.send(&out).await, after) {
            (false, _) => Left::Broken,
            (true, After::Keep) => Left::Open,
            (true, After::Close) => Left::Finished,
        };
        (status, left)
    }

    /// Writes all of `bytes`; false if the client is gone or does not take them.
    pub(in crate::l7) async fn send(&mut self, bytes: &[u8]) -> bool {
        let due = self.alarm.due(CLIENT_TIMEOUT);
        let mut sent = 0;
        poll_fn(|cx| {
            while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
                match self.socket.poll_write(cx, &[IoSlice::new(rest)]) {
                    Poll::Ready(Ok(n)) => sent += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return self.alarm.poll_due(cx, due).map(|()| false),
                }
            }
            match self.socket.poll_flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed.is_ok()),
                Poll::Pending => self.alarm.poll_due(cx, due).map(|()| false),
            }
        })
        .await
    }
}
