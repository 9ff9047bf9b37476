//! What is told of a request that has ended: counters, its line in the access log, its span.

use std::hint::cold_path;
use std::rc::Rc;
use std::time::Instant;

use super::super::log::{self, End};
use super::super::metrics::Finished;
use super::super::route::Router;
use super::plan::{Account, Plan};
use super::{Connection, Left};

impl Connection<'_, '_> {
    /// Counts it where it was led, and ends what was begun of it.
    pub(super) fn account(&mut self, plan: &mut Plan, status: u16, left: Left) {
        let Plan { started, waited, head_len: head, route: (at, side), snapshot, record, .. } = plan;
        let took = record.ended.unwrap_or_else(Instant::now).saturating_duration_since(*started) + *waited;
        let router = &snapshot.router;
        let upstream =
            router.route(*at).map_or("", |route| log::answered_by(router, route, *side, plan.is_worded));
        let (is_whole, tally) = (left != Left::Broken, self.tally);
        let end = End { status, took, upstream, head: *head, is_whole, tally, record, kept: None };
        let Account { line, span } = std::mem::take(&mut plan.account);
        if let Some((number, labels)) = router.route(*at).map(|route| route.counted(*side)) {
            let (received, sent) = tally.of_whole(*head);
            let finished =
                Finished { method: plan.method, status, took, attempt: record.only(), received, sent };
            // The route of a request that outlived its snapshot may be gone.
            let now = self.worker.current.load();
            let stands = Rc::ptr_eq(snapshot, &now) || now.router.stands(number, *at);
            let number = stands.then_some(number);
            if number.is_some() || now.router.has(labels) {
                self.worker.counters.borrow_mut().request(number, labels, &finished);
            }
        }
        if let Some(span) = span {
            cold_path();
            self.worker.tell(span.end(*waited, &end));
        }
        if let Some(line) = line {
            let kept = self.kept.take();
            self.end_line(router, &line, &End { kept: kept.as_deref(), ..end });
        }
    }

    pub(super) fn end_line(&self, router: &Router, line: &[u8], end: &End<'_>) {
        if let Some(log) = router.log.as_deref() {
            self.worker.journal.finish(log, line, end);
        }
    }
}
