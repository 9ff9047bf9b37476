//! How long an endpoint takes to begin its answer: peaks count at once, better times bit by bit.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// After this long without requests what is known has lost two thirds of its weight, so that an
/// endpoint which was slow is asked again.
const DECAY: Duration = Duration::from_secs(10);

/// An exponentially weighted average in seconds.
pub(super) struct Latency {
    seconds: Cell<f64>,
    at: Cell<Instant>,
}

impl Latency {
    pub(super) fn new(seconds: f64, now: Instant) -> Self {
        Self { seconds: Cell::new(seconds), at: Cell::new(now) }
    }

    pub(super) fn at(&self, now: Instant) -> f64 {
        self.seconds.get() * self.weight(now)
    }

    pub(super) fn observe(&self, took: Duration, now: Instant) {
        let (took, weight) = (took.as_secs_f64(), self.weight(now));
        let known = self.seconds.get() * weight;
        self.seconds.set(if took > known { took } else { known + took * (1.0 - weight) });
        self.at.set(now);
    }

    fn weight(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at.get()).as_secs_f64() / DECAY.as_secs_f64();
        if passed < 0.001 {
            // Nearly always, and but for a millionth the same.
            return 1.0 - passed;
        }
        (-passed).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let start = Instant::now();
        let latency = Latency::new(0.0, start);
        let after = |seconds| start + Duration::from_secs(seconds);

        latency.observe(Duration::from_millis(100), start);
        assert_eq!(latency.at(start), 0.1);
        latency.observe(Duration::from_secs(2), after(1));
        assert_eq!(latency.at(after(1)), 2.0);

        let once = latency.at(after(11));
        assert!((0.7..0.8).contains(&once), "{once}");
        for second in 2..60 {
            latency.observe(Duration::from_millis(100), after(second));
        }
        let calm = latency.at(after(60));
        assert!((0.08..0.12).contains(&calm), "{calm}");
    }
}
