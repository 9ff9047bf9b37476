//! When to set again what others undo or what failed: at once the first time, then less and less often, so that
//! neither a quarrel with another program nor a call that keeps failing fills the log. Pure.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Nothing happened for so long: the next time is a first one.
const CALM: Duration = Duration::from_secs(120);

/// The state of one quarrel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Backoff {
    wait: Duration,
    last: Option<Instant>,
}

impl Backoff {
    /// It was undone, or failed.
    pub(super) fn again(&mut self, now: Instant) {
        let calm = self.last.is_none_or(|last| now.saturating_duration_since(last) > self.wait + CALM);
        self.wait = if calm { Duration::ZERO } else { (self.wait * 2).clamp(FIRST, LONGEST) };
        self.last = Some(now);
    }

    /// It may be set again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_due_at_once_and_a_quarrel_once_a_minute() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            backoff.again(now);
            let begun = now;
            while !backoff.is_due(now) {
                now += FIRST;
            }
            waits.push((now - begun).as_secs());
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);

        backoff.again(now + LONGEST + CALM + FIRST);

        assert!(backoff.is_due(now + LONGEST + CALM + FIRST));
    }
}
