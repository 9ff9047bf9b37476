//! Bytes that are no request: answered, logged, and the end of their connection.

use std::time::{Duration, Instant};

use super::super::client::Effective;
use super::super::filters::Answer;
use super::super::h1::head::Refusal;
use super::super::h1::{Body, Request, Version};
use super::super::heads::{After, Form};
use super::super::log::{self, End, Subject, Tally};
use super::super::policy::HeaderEdits;
use super::super::upstream::Record;
use super::{Connection, Left};

impl Connection<'_, '_> {
    /// A head we do not accept: say why and close.
    pub(super) async fn refuse(&mut self, refusal: Refusal, waited: Duration) -> Left {
        tracing::debug!(client = %self.client.addr, %refusal, "request refused");
        self.answer_outside(refusal.status(), waited).await
    }

    /// An answer to bytes that are no request, which took so long to come: counted, but under no route.
    pub(super) async fn answer_outside(&mut self, status: u16, waited: Duration) -> Left {
        self.worker.counters.borrow_mut().refused(status);
        let started = Instant::now();
        let snapshot = self.worker.current.load();
        let id = self.worker.request_id();
        let line = {
            let mut lines = Vec::new();
            let request = Request::glimpse(self.buf.bytes(), &mut lines);
            log::begin_refused(&snapshot.router, &self.no_request(request.as_ref(), &id))
        };
        (self.tally, self.edits) = (Tally::default(), HeaderEdits::plain(&snapshot));
        self.kept = line.as_ref().and_then(|_| log::Kept::wanted(&snapshot.router));
        let (answer, head) = (Answer::Status(status), self.buf.bytes().len());
        let form = Form { version: Version::Http11, is_head: false };
        let (_, left) = self.answer(&answer, form, After::Close, Body::UntilClose).await;
        if let Some(line) = line {
            let tally = Tally { body_received: 0, ..self.tally };
            let (took, is_whole) = (waited + started.elapsed(), left != Left::Broken);
            let kept = self.kept.as_deref();
            let end =
                End { status, took, upstream: "", head, is_whole, tally, record: &Record::default(), kept };
            self.end_line(&snapshot.router, &line, &end);
            self.kept = None;
        }
        left
    }

    /// What is known where nothing came that could be served; `id`: for what has none.
    fn no_request<'a>(&'a self, request: Option<&'a Request<'_, 'a>>, id: &'a [u8]) -> Subject<'a, 'a, 'a> {
        let host = request.map_or(&b""[..], |request| request.host);
        let (client, effective) = (&self.client, Effective::of(&self.client, host));
        let id = request.and_then(|request| request.request_id).unwrap_or(id);
        let (is_http2, requests) = (self.socket.is_stream(), self.requests + 1);
        let came = self.buf.bytes();
        let line = came.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let line = line.get(..self.limits.line_bytes).unwrap_or(line);
        // That of a stream is of our making.
        let line = if is_http2 { b"" } else { line };
        Subject { request, line, place: None, client, effective, is_http2, id, requests, trace: None }
    }
}
