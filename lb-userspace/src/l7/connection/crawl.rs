//! Bodies that go so slowly that they would only keep others out.

use std::cell::Cell;
use std::time::Duration;

use super::super::timers::{Alarm, Due};
use super::super::worker::Worker;
use super::PATIENCE;

/// Slowest that a body may go, in bytes a second, where others find no room.
const LEAST: u64 = 512;
/// Longest that one may stand that went faster.
const CREDIT: Duration = Duration::from_secs(10);

/// How a body goes between a client and us, from the first wait for the client on.
#[derive(Default)]
pub(in crate::l7) struct Crawl {
    /// Until when it may stand, and how many bytes had moved when that was said.
    may_stand: Cell<Option<(Due, u64)>>,
}

impl Crawl {
    /// Asked where the client is waited for, after `moved` bytes: it should end for others.
    pub(in crate::l7) fn makes_room(&self, moved: u64, alarm: &Alarm, worker: &Worker) -> bool {
        let (due, before) = self.may_stand.get().unwrap_or_else(|| (alarm.due(PATIENCE), moved));
        let earned = moved.saturating_sub(before).saturating_mul(1000) / LEAST;
        let due = if earned > 0 { due.saturating_add(earned).min(alarm.due(CREDIT)) } else { due };
        self.may_stand.set(Some((due, moved)));
        alarm.is_past(due) && worker.dismisses()
    }
}
