//! Waits for somebody else than the client, while the client is watched.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use super::super::auth::{Checks, Outcome};
use super::super::timers::Due;
use super::Connection;
use super::plan::Step;

impl Connection<'_, '_> {
    /// Has the client show what its location asks for; the step that follows. `line` of the log is begun.
    pub(super) async fn check(&mut self, checks: &Checks, line: Option<&[u8]>, mut step: Step) -> Step {
        let mut edits = std::mem::take(&mut self.edits);
        let outcome = self.unless_gone(checks.make(self.worker, line, &mut edits)).await;
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

    /// What comes of `waiting`; `None` where the client goes away before, or is sent away.
    pub(in crate::l7) async fn unless_gone<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let mut waiting = pin!(waiting);
        poll_fn(|cx| match waiting.as_mut().poll(cx) {
            Poll::Pending if self.poll_gone(cx) => Poll::Ready(None),
            // Nothing but the end of everything.
            Poll::Pending => self.alarm.poll_due(cx, Due::MAX).map(|()| None),
            Poll::Ready(came) => Poll::Ready(Some(came)),
        })
        .await
    }
}
