//! How fast Events leave: a burst, then at a pace that an API server likes.

use tokio::time::{Duration, Instant};

/// Told at once before the pace counts.
const BURST: u32 = 25;
/// Time for one Event.
const PACE: Duration = Duration::from_millis(200);

/// A bucket that fills by one in each [`PACE`].
pub(super) struct Allowance {
    left: u32,
    counted: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, counted: now }
    }

    /// When the next may be told.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        while self.left < BURST && self.counted + PACE <= now {
            self.left += 1;
            self.counted += PACE;
        }
        if self.left == BURST {
            self.counted = now;
        }
        if self.left > 0 { now } else { self.counted + PACE }
    }

    pub(super) fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_leave_in_a_burst_and_then_at_a_pace() {
        let begun = Instant::now();
        let (mut allowance, mut now) = (Allowance::new(begun), begun);

        for _ in 0..BURST + 10 {
            now = allowance.next(now);
            allowance.next(now);
            allowance.spend();
        }

        assert_eq!(now - begun, PACE * 10);
    }
}
