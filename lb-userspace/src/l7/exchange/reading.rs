//! The head of an upstream's response on its way in, or why there is none.

use std::hint::cold_path;
use std::io;
use std::task::{Context, Poll};

use super::super::buffer::Scratch;
use super::super::connection::Connection;
use super::super::fcgi;
use super::super::h1::Response;
use super::super::h1::head::Lines;
use super::super::heads;
use super::super::metrics::Failure;
use super::super::upstream::is_alert;
use super::interim::{INFORMATIONAL_MAX, Said};
use super::{Answered, Exchange};

impl Exchange<'_, '_, '_, '_> {
    /// Reads until a response head is there, or one that the client is to hear before.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Said, NoHead>> {
        loop {
            if !self.buf.is_empty() {
                let mut lines = Lines::new();
                let parsed = Response::parse(self.buf.bytes(), &mut lines).map_err(|refusal| {
                    tracing::debug!(%refusal, "upstream sent an unusable head");
                    NoHead::Bad
                })?;
                let most = self.limits.head_bytes;
                match parsed {
                    Some(response) if response.len > most => {
                        cold_path();
                        return Poll::Ready(Err(NoHead::TooLarge));
                    }
                    Some(response) if response.status == 101 => {
                        cold_path();
                        // What is left of the body would be taken for the new protocol.
                        if !self.outgoing.upgrades || !self.upload.is_done() {
                            return Poll::Ready(Err(NoHead::Bad));
                        }
                        keep_answer(self.connection, &response);
                        let mut head = Scratch::take();
                        let Connection { client, edits, .. } = &*self.connection;
                        heads::switching(&response, client.own_scheme(), edits, &mut head);
                        let len = response.len;
                        self.past(len);
                        return Poll::Ready(Ok(Said::Answer(Answered::Switched { head })));
                    }
                    Some(response) if response.status < 200 => {
                        cold_path();
                        self.informational += 1;
                        if self.informational > INFORMATIONAL_MAX {
                            return Poll::Ready(Err(NoHead::Bad));
                        }
                        let (interim, len) = (self.interim(&response), response.len);
                        self.past(len);
                        match interim {
                            Some(head) => return Poll::Ready(Ok(Said::Interim(head))),
                            None => continue,
                        }
                    }
                    Some(response) => {
                        keep_answer(self.connection, &response);
                        let (ready, len) = self.ready(&response);
                        self.past(len);
                        return Poll::Ready(Ok(Said::Answer(Answered::Response(ready))));
                    }
                    None if self.buf.bytes().len() >= most => {
                        cold_path();
                        return Poll::Ready(Err(NoHead::TooLarge));
                    }
                    None if self.buf.is_full() => self.buf.grow(most),
                    None => cold_path(),
                }
            }
            match self.buf.poll_fill(cx, &self.upstream) {
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(ended) => return Poll::Ready(Err(NoHead::of(&ended, self.buf.is_empty()))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// A head was read.
    fn past(&mut self, len: usize) {
        self.heads += len;
        self.buf.consume(len);
    }
}

/// The upstream answered with this head.
fn keep_answer(connection: &mut Connection<'_, '_>, response: &Response<'_, '_>) {
    if let Some(kept) = &mut connection.kept {
        kept.answer(response.block.bytes());
    }
}

/// Why there is no head.
pub(super) enum NoHead {
    /// Closed without a byte.
    Closed,
    /// So, and TLS said that it was not to be.
    Refused,
    /// Closed within it.
    CutOff,
    /// Bytes that are no response.
    Bad,
    /// Longer than its location allows.
    TooLarge,
}

impl NoHead {
    /// The upstream sends no more; `nothing`: it sent none of a head.
    #[cold]
    fn of(ended: &io::Result<usize>, nothing: bool) -> Self {
        match ended {
            Ok(_) if nothing => Self::Closed,
            Ok(_) => Self::CutOff,
            Err(error) if fcgi::is_malformed(error) => {
                tracing::debug!(%error, "upstream sent an unusable answer");
                Self::Bad
            }
            Err(error) if nothing && is_alert(error) => Self::Refused,
            Err(_) if nothing => Self::Closed,
            Err(_) => Self::CutOff,
        }
    }

    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Closed => Failure::Closed,
            Self::Refused => Failure::Tls,
            Self::CutOff => Failure::CutOff,
            Self::Bad => Failure::BadResponse,
            Self::TooLarge => Failure::HeadTooLarge,
        }
    }
}
