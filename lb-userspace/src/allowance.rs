//! A token bucket: so many at once, and then one at a pace. Of the Events that leave, and of what a link makes us do.

use std::time::{Duration, Instant};

/// What may be taken.
#[derive(Debug)]
pub(crate) struct Allowance {
    most: u32,
    pace: Duration,
    left: u32,
    /// Until when what was earned is counted in.
    counted: Instant,
}

impl Allowance {
    /// Full; one comes back in each `pace`, which is some nanoseconds at least.
    pub(crate) fn of(most: u32, pace: Duration, now: Instant) -> Self {
        Self { most, pace, left: most, counted: now }
    }

    /// Takes one; false if none is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let is_left = self.next(now) <= now;
        self.left = self.left.saturating_sub(1);
        is_left
    }

    /// When the next may be taken.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let earned = now.saturating_duration_since(self.counted).as_nanos() / self.pace.as_nanos().max(1);
        match u32::try_from(earned) {
            // What has been earned of the next one stays.
            Ok(earned) if earned < self.most - self.left => {
                self.left += earned;
                self.counted += self.pace * earned;
            }
            _ => (self.left, self.counted) = (self.most, now),
        }
        if self.left > 0 { now } else { self.counted + self.pace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 25;
    const PACE: Duration = Duration::from_millis(200);

    #[test]
    fn who_waits_for_his_turn_has_a_burst_and_then_the_pace() {
        let begun = Instant::now();
        let (mut allowance, mut now) = (Allowance::of(MOST, PACE, begun), begun);

        for _ in 0..MOST + 10 {
            now = allowance.next(now);
            assert!(allowance.take(now));
        }

        assert_eq!(now - begun, PACE * 10);
        assert!(!allowance.take(now));
    }

    #[test]
    fn an_allowance_gives_all_that_it_promises_whatever_the_times() {
        let begun = Instant::now();
        let mut allowance = Allowance::of(MOST, PACE, begun);

        // Asked for every 30 ms, which is no part of the pace.
        let (step, time) = (Duration::from_millis(30), Duration::from_secs(100));
        let times = time.as_millis() / step.as_millis();
        let given = (0..times as u32).filter(|time| allowance.take(begun + step * *time)).count();

        let most = MOST as usize + (time.as_millis() / PACE.as_millis()) as usize;
        assert!((most - 2..=most).contains(&given), "{given} of {most}");
        assert!(allowance.take(begun + 2 * time));
    }
}
