//! Bytes that are no request: answered, logged, and the end of their connection.

use std::time::Instant;

use super::super::client::Effective;
use super::super::filters::Answer;
use super::super::h1::head::Refusal;
use super::super::h1::{Body, Version};
use super::super::heads::After;
use super::super::log::{self, End, Subject, Tally};
use super::super::policy::HeaderEdits;
use super::super::upstream::Record;
use super::{Connection, Left};

impl Connection<'_, '_> {
    /// A head we do not accept: say why and close.
    pub(super) async fn refuse(&mut self, refusal: Refusal) -> Left {
        tracing::debug!(client = %self.client.addr, %refusal, "request refused");
        self.answer_outside(refusal.status()).await
    }

    /// An answer to bytes that are no request: counted, but under no route.
    pub(super) async fn answer_outside(&mut self, status: u16) -> Left {
        self.worker.counters.borrow_mut().refused(status);
        let started = Instant::now();
        let snapshot = self.worker.current.load();
        let id = self.worker.request_id();
        let line = log::begin_refused(&snapshot.router, &self.no_request(&id));
        (self.tally, self.edits) = (Tally::default(), HeaderEdits::plain(&snapshot));
        self.kept = line.as_ref().and_then(|_| log::Kept::wanted(&snapshot.router));
        let (answer, head) = (Answer::Status(status), self.buf.bytes().len());
        let (_, left) = self.answer(&answer, false, Version::Http11, After::Close, Body::UntilClose).await;
        if let Some(line) = line {
            let tally = Tally { body_received: 0, ..self.tally };
            let (took, is_whole) = (started.elapsed(), left != Left::Broken);
            let kept = self.kept.as_deref();
            let end = End { status, took, head, is_whole, tally, record: &Record::default(), kept };
            self.end_line(&snapshot.router, &line, &end);
            self.kept = None;
        }
        left
    }

    /// What is known where nothing came that could be read.
    fn no_request<'a>(&'a self, id: &'a [u8]) -> Subject<'a, 'a, 'a> {
        let (client, effective) = (&self.client, Effective::of(&self.client, b""));
        let (is_http2, requests) = (self.socket.is_stream(), self.requests + 1);
        let came = self.buf.bytes();
        let line = came.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let line = line.get(..self.limits.line_bytes).unwrap_or(line);
        Subject { request: None, line, place: None, client, effective, is_http2, id, requests, trace: None }
    }
}
