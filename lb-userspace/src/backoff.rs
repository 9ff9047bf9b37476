//! How long to wait after a failure: longer each time, and never the same for all agents.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Waits of a row of failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Begins with `first` and doubles up to `longest`.
    pub(crate) fn between(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// Between a half and all of what it has come to.
    pub(crate) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now.mul_f64(spread())
    }
}

/// Between a half and one. The seed of a hash map is all the chance this takes.
pub(crate) fn spread() -> f64 {
    let chance = RandomState::new().hash_one(0_u8) >> 40;
    0.5 + chance as f64 / (1_u64 << 25) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(10));
        let mut backoff = Backoff::between(first, longest);

        let waits: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();

        assert!((first / 2..=first).contains(&waits[0]), "{waits:?}");
        assert!(waits[8..].iter().all(|wait| (longest / 2..=longest).contains(wait)), "{waits:?}");
        assert_ne!(waits[10], waits[11]);
    }
}
