//! The wait for what a client has to show, while the client is watched.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::super::auth::{Checks, Outcome};
use super::Connection;
use super::plan::Step;

impl Connection<'_, '_> {
    /// Has the client show what its location asks for; the step that follows. `line` of the log is begun.
    pub(super) async fn check(&mut self, checks: &Checks, line: Option<&[u8]>, mut step: Step) -> Step {
        let mut edits = std::mem::take(&mut self.edits);
        let outcome = {
            let mut made = pin!(checks.make(self.worker, line, &mut edits));
            poll_fn(|cx| match made.as_mut().poll(cx) {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if self.poll_gone(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            })
            .await
        };
        self.edits = edits;
        match outcome {
            Some(Outcome::Passed(lines)) => {
                if let Step::Exchange(outgoing) = &mut step {
                    checks.tell(&lines, &mut outgoing.head);
                }
                step
            }
            Some(Outcome::Refused(answer)) => Step::Answer(answer),
            None => Step::Nothing,
        }
    }
}
