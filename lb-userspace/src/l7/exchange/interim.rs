//! What an upstream says before its response, like 103 Early Hints: passed on at once to clients that know of such heads.

use std::hint::cold_path;

use super::super::buffer::Scratch;
use super::super::h1::{Response, Version};
use super::super::heads;
use super::{Answered, Exchange, Failed};

/// Informational responses before the real one; more is not HTTP.
pub(super) const INFORMATIONAL_MAX: u32 = 8;

/// What came of an upstream's head.
pub(super) enum Said {
    /// The client hears this, and the answer is to come.
    Interim(Scratch),
    Answer(Answered),
}

impl Exchange<'_, '_, '_, '_> {
    /// Sends the request and waits for the head of its response. What is said before goes to the client, which has
    /// a minute to take it as it has for any answer.
    pub(super) async fn answered(&mut self) -> Result<Answered, Failed> {
        loop {
            match self.response_head().await? {
                Said::Answer(answered) => return Ok(answered),
                // Apart, so that others do not carry its size.
                Said::Interim(head) => {
                    cold_path();
                    if !Box::pin(self.connection.send(&head)).await {
                        return Err(Failed::Client { status: 499 });
                    }
                }
            }
        }
    }

    /// What the client hears of an informational head. 100 is between us and the upstream: whoever expects one
    /// got ours. HTTP/1.0 knows of none (RFC 9110 15.2).
    pub(super) fn interim(&self, response: &Response<'_, '_>) -> Option<Scratch> {
        if response.status == 100 || self.outgoing.version == Version::Http10 {
            return None;
        }
        let mut head = Scratch::take();
        heads::interim(response, self.connection.client.own_scheme(), &self.connection.edits, &mut head);
        Some(head)
    }
}
