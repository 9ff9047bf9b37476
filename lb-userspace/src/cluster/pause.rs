//! How long to wait after a failure: longer each time, and never the same for all agents.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
/// An API server that comes back is found within this.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses of a row of failures.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    pub(super) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST);
        now.mul_f64(spread())
    }
}

/// Between a half and one. The seed of a hash map is all the chance this takes.
pub(super) fn spread() -> f64 {
    let chance = RandomState::new().hash_one(0_u8) >> 40;
    0.5 + chance as f64 / (1_u64 << 25) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let mut pause = Pause::default();

        let pauses: Vec<Duration> = (0..12).map(|_| pause.next()).collect();

        assert!((FIRST / 2..=FIRST).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses[8..].iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)), "{pauses:?}");
        assert_ne!(pauses[10], pauses[11]);
    }
}
