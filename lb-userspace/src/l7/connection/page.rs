//! An error that somebody else words: their answer takes the place of ours, or of the upstream's.

use std::time::Instant;

use super::super::exchange::{self, Sent};
use super::super::filters::Answer;
use super::super::h1::Body;
use super::super::heads::After;
use super::super::pages::{Page, Rest};
use super::super::snapshot::Snapshot;
use super::super::upstream::Record;
use super::{Connection, Left};

/// The page that takes the place of this answer, if one does.
pub(super) fn instead_of(answer: &Answer, page: &mut Option<Box<Page>>) -> Option<(Box<Page>, u16)> {
    let Answer::Status(status) = answer else { return None };
    Some((page.take_if(|page| page.replaces(*status))?, *status))
}

impl Connection<'_, '_> {
    /// Has an error worded, and passes on what comes; its attempts stand behind those of `record`.
    pub(super) async fn word(
        &mut self,
        (page, status): (Box<Page>, u16),
        rest: Rest,
        mut after: After,
        snapshot: &Snapshot,
        record: &mut Record,
    ) -> (u16, Left) {
        let form = page.form;
        let limits = page.limits;
        let rest = match rest {
            // What was refused for its body, or could not be understood, is sent to nobody.
            Rest::Unread(body) if matches!(status, 400 | 413 | 421) && !body.is_done() => {
                after = After::Close;
                Rest::Nothing
            }
            rest => rest,
        };
        let unread = match &rest {
            Rest::Unread(body) => body.clone(),
            Rest::Nothing | Rest::Held(_) => Body::Length(0),
        };
        let Some(mut outgoing) = page.question(status, rest) else {
            return self.answer(&Answer::Status(404), form, after, unread).await;
        };
        let received = self.tally.body_received;
        let (now, mut asked) = (Instant::now(), Record::default());
        let sent = exchange::run(self, snapshot, &mut outgoing, &limits, after, now, &mut asked).await;
        record.extend(asked);
        self.tally.body_received = self.tally.body_received.max(received);
        match sent {
            Sent::Response { status, after: After::Keep } => (status, Left::Open),
            Sent::Response { status, after: After::Close } => (status, Left::Finished),
            Sent::Broken { status } | Sent::CutOff { status, .. } => (status, Left::Broken),
            // Its own errors nobody words.
            Sent::Nothing { status, read } => {
                let after = if unread.is_done() || read { after } else { After::Close };
                self.answer(&Answer::Status(status), form, after, Body::Length(0)).await
            }
        }
    }
}
