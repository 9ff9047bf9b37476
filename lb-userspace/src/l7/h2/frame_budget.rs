//! Bounds frames that cost us work and bring neither a request nor data.
//!
//! The h2 crate answers PING and SETTINGS, applies WINDOW_UPDATE, PRIORITY and RST_STREAM, and skips
//! unknown frames for as long as they come; each is cheap for the client and not for us. A
//! connection has a budget for them, filled up by what useful traffic brings along and, slowly, by
//! time. Where it runs out the connection is told ENHANCE_YOUR_CALM.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Frames without use a connection may send at once.
const BUDGET: u32 = 1000;
/// Budget regained with time.
const PER_SECOND: u32 = 100;
/// Budget that one DATA frame brings, sent or received: clients update two windows and may measure
/// the round trip for each.
const PER_DATA: u32 = 4;
/// Budget that a finished request brings.
const PER_REQUEST: u32 = 10;
/// Requests that the client may give up at once. It may well give up all that it has, a few times over (gRPC
/// deadlines). Data pays for none: a byte of it is cheap, what is begun for a request is not.
const GIVEN_UP: u32 = 500;
/// Those that a second brings, and a finished request.
const GIVEN_UP_PER_SECOND: u32 = 50;
const GIVEN_UP_PER_REQUEST: u32 = 5;

/// One connection's budget.
pub(super) struct FrameBudget {
    left: Cell<u32>,
    /// Requests that may be given up.
    given_up: Cell<u32>,
    refilled: Cell<Instant>,
}

impl FrameBudget {
    /// A full budget.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: Cell::new(BUDGET), given_up: Cell::new(GIVEN_UP), refilled: Cell::new(now) }
    }

    /// Frames came from the client: DATA frames of use, and frames of none.
    pub(super) fn read(&self, data: u32, useless: u32) {
        self.earn(data.saturating_mul(PER_DATA));
        self.spend(useless);
    }

    /// A DATA frame went to the client.
    pub(super) fn sent_data(&self) {
        self.earn(PER_DATA);
    }

    /// A request was answered to its end.
    pub(super) fn finished(&self) {
        self.earn(PER_REQUEST);
        self.may_give_up(GIVEN_UP_PER_REQUEST);
    }

    /// The client gave a request up.
    pub(super) fn cancelled(&self) {
        if self.given_up.get() < GIVEN_UP / 2 {
            self.refill(Instant::now());
        }
        self.given_up.update(|left| left.saturating_sub(1));
    }

    /// The budget has run out: the connection has to end.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get() == 0 || self.given_up.get() == 0
    }

    fn earn(&self, n: u32) {
        if self.is_exhausted() {
            return;
        }
        self.left.set(self.left.get().saturating_add(n).min(BUDGET));
    }

    fn may_give_up(&self, n: u32) {
        if !self.is_exhausted() {
            self.given_up.update(|left| left.saturating_add(n).min(GIVEN_UP));
        }
    }

    fn spend(&self, n: u32) {
        if n > 0 && self.left.get() < BUDGET / 2 {
            self.refill(Instant::now());
        }
        self.left.set(self.left.get().saturating_sub(n));
    }

    fn refill(&self, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled.get()).as_secs();
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.refilled.set(self.refilled.get() + Duration::from_secs(u64::from(seconds)));
        self.earn(seconds.saturating_mul(PER_SECOND));
        self.may_give_up(seconds.saturating_mul(GIVEN_UP_PER_SECOND));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FrameBudget {
        /// How many times such frames can come before the budget runs out, at most 10,000.
        fn survives(&self, data: u32, useless: u32) -> usize {
            let alive = |_: &usize| {
                self.read(data, useless);
                !self.is_exhausted()
            };
            (0..10_000).take_while(alive).count()
        }
    }

    #[test]
    fn useless_frames_run_out_of_budget_and_useful_ones_do_not() {
        let sent = FrameBudget::new(Instant::now()).survives(0, 1);
        assert!((900..1100).contains(&sent), "{sent}");

        assert_eq!(FrameBudget::new(Instant::now()).survives(1, 2), 10_000);
    }

    #[test]
    fn requests_given_up_cost_and_finished_ones_pay_for_them() {
        let budget = FrameBudget::new(Instant::now());
        for _ in 0..5000 {
            budget.finished();
            budget.cancelled();
        }
        assert!(!budget.is_exhausted());
        // Data pays for none.
        (0..600).for_each(|_| {
            budget.read(1, 0);
            budget.cancelled();
        });
        assert!(budget.is_exhausted());
    }

    #[test]
    fn time_pays_for_a_slow_trickle() {
        let start = Instant::now();
        let budget = FrameBudget::new(start);
        budget.left.set(1);
        budget.refill(start + Duration::from_secs(3));
        assert_eq!(budget.left.get(), 1 + 3 * PER_SECOND);
    }
}
