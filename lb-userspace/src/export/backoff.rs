//! How long to wait after a failure: longer each time, and never the same for all agents.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
/// A collector that comes back is found within this.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits of a row of failures.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// Between a half and all of what doubles each time.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST);
        // The seed of a hash map is all the chance this takes.
        let chance = RandomState::new().hash_one(0_u8) >> 40;
        now.mul_f64(0.5 + chance as f64 / (1_u64 << 25) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::default();

        let waits: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();

        assert!((FIRST / 2..=FIRST).contains(&waits[0]), "{waits:?}");
        assert!(waits[8..].iter().all(|wait| (LONGEST / 2..=LONGEST).contains(wait)), "{waits:?}");
    }
}
