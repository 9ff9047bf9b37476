//! What an application answers, as HTTP/1.1 bytes.

use std::io;
use std::task::{Context, Poll, ready};

use super::super::buffer::Buf;
use super::super::carrier::Carrier;
use super::answer::Answer;
use super::record::Malformed;

/// One direction of a request.
pub(super) struct Inbound {
    /// Received and not done with; holds memory only while there is some.
    received: Buf,
    /// `None` before the request was sent.
    answer: Option<Answer>,
    /// What ended it, told each time.
    broken: Option<Malformed>,
}

impl Inbound {
    pub(super) fn new() -> Self {
        Self { received: Buf::default(), answer: None, broken: None }
    }

    /// The request was sent; `head_only` if it asked for the head alone.
    pub(super) fn sent(&mut self, head_only: bool) {
        self.answer = Some(Answer::new(head_only));
    }

    pub(super) fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }

    /// There is something to read, or the end.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>, from: &Carrier<'_>) -> Poll<io::Result<()>> {
        // Nobody reads an answer before the request is on its way.
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        while !answer.is_ready() {
            if let Some(malformed) = self.broken {
                return Poll::Ready(Err(io::Error::other(malformed)));
            }
            if self.received.is_empty() && ready!(self.received.poll_fill(cx, from))? == 0 {
                answer.cut();
                break;
            }
            match answer.look(self.received.bytes()) {
                Ok(n) => self.received.consume(n),
                Err(malformed) => self.broken = Some(malformed),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what there is; 0 is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &Carrier<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        loop {
            match self.poll_ready(cx, from) {
                Poll::Ready(Ok(())) => {}
                // What is filled goes first; an error comes again.
                Poll::Pending | Poll::Ready(Err(_)) if filled > 0 => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
            let Some(answer) = &mut self.answer else { break };
            let (done, written) =
                answer.take(self.received.bytes(), into.get_mut(filled..).unwrap_or_default());
            self.received.consume(done);
            filled += written;
            if written == 0 {
                break;
            }
        }
        Poll::Ready(Ok(filled))
    }
}
