//! An endpoint that fails again and again is left alone for a while, longer each time.

use std::cell::Cell;
use std::time::Instant;

use crate::model::upstream;

/// Times by which the pause is doubled at most; its own limit is reached before.
const DOUBLINGS_MAX: u32 = 16;

/// Whether an endpoint is ejected, and what it takes.
#[derive(Default)]
pub(super) struct Ejection {
    /// Failures in a row.
    failures: Cell<u32>,
    /// Ejections in a row.
    times: Cell<u32>,
    until: Cell<Option<Instant>>,
}

impl Ejection {
    /// One more failure; true if it ejects. Back from a pause, one failure is enough.
    pub(super) fn failed(&self, rule: &upstream::Ejection, now: Instant) -> bool {
        if rule.after == 0 || self.returns(now).is_some() {
            return false;
        }
        let failures = self.failures.get() + 1;
        if failures < rule.after {
            self.failures.set(failures);
            return false;
        }
        let times = self.times.get();
        let pause = rule.pause.saturating_mul(1 << times.min(DOUBLINGS_MAX)).min(rule.longest);
        self.times.set(times + 1);
        self.failures.set(rule.after - 1);
        self.until.set(Some(now + pause));
        true
    }

    pub(super) fn succeeded(&self) {
        self.failures.set(0);
        self.times.set(0);
    }

    /// When the pause ends; `None`: there is none.
    pub(super) fn returns(&self, now: Instant) -> Option<Instant> {
        self.until.get().filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pauses_double_and_a_success_forgives() {
        let rule =
            upstream::Ejection { after: 3, pause: Duration::from_secs(10), longest: Duration::from_secs(60) };
        let mut now = Instant::now();
        let ejection = Ejection::default();

        assert_eq!([(); 3].map(|()| ejection.failed(&rule, now)), [false, false, true]);
        for expected in [20, 40, 60, 60] {
            now = ejection.returns(now).expect("out");
            assert_eq!(ejection.returns(now), None, "back");
            assert!(ejection.failed(&rule, now), "one failure is enough");
            assert_eq!(ejection.returns(now), Some(now + Duration::from_secs(expected)));
        }
        now = ejection.returns(now).expect("out");
        ejection.succeeded();

        assert_eq!([(); 3].map(|()| ejection.failed(&rule, now)), [false, false, true]);
        assert_eq!(ejection.returns(now), Some(now + Duration::from_secs(10)));
    }

    #[test]
    fn nothing_is_ejected_where_that_is_off() {
        let rule = upstream::Ejection { after: 0, ..upstream::Ejection::default() };
        let ejection = Ejection::default();

        assert!((0..100).all(|_| !ejection.failed(&rule, Instant::now())));
    }
}
