//! What is told of a request that has ended: counters, its line in the access log, its span.

use std::rc::Rc;

use super::super::canary::Side;
use super::super::log::End;
use super::super::metrics::{Finished, Method};
use super::super::route::{At, Router};
use super::super::snapshot::Snapshot;
use super::Connection;
use super::plan::Account;

impl Connection<'_, '_> {
    /// Counts it where it was led.
    pub(super) fn count(&self, snapshot: &Rc<Snapshot>, route: (At, Side), method: Method, end: &End<'_>) {
        let (at, side) = route;
        let Some((number, labels)) = snapshot.router.route(at).map(|route| route.counted(side)) else {
            return;
        };
        let (received, sent) = end.tally.of_whole(end.head);
        let (status, took, attempt) = (end.status, end.took, end.record.only());
        let finished = Finished { method, status, took, attempt, received, sent };
        // The route of a request that outlived its snapshot may be gone.
        let now = self.worker.current.load();
        let stands = Rc::ptr_eq(snapshot, &now) || now.router.stands(number, at);
        let number = stands.then_some(number);
        if number.is_some() || now.router.has(labels) {
            self.worker.counters.borrow_mut().request(number, labels, &finished);
        }
    }

    /// Ends what was begun of it.
    pub(super) fn close(&mut self, router: &Router, account: Account, end: End<'_>) {
        let Account { line, span } = account;
        if let Some(span) = span {
            self.worker.tell(span.end(&end));
        }
        if let Some(line) = line {
            self.end_line(router, &line, &End { kept: self.kept.as_deref(), ..end });
            self.kept = None;
        }
    }

    pub(super) fn end_line(&self, router: &Router, line: &[u8], end: &End<'_>) {
        if let Some(log) = router.log.as_deref() {
            self.worker.journal.finish(log, line, end);
        }
    }
}
