//! How often we may say something of our own accord: a token bucket in one word.

/// When the next answer is due if they came evenly; lets a burst through first. The word of a bucket that
/// was never used is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bucket(pub u64);

/// Nanoseconds between two answers: a thousand a second.
const INTERVAL: u64 = 1_000_000;
/// Answers at once after a silence. More than the clock's coarsest tick (10 ms) lets pass between two looks.
pub const BURST: u64 = 256;

impl Bucket {
    /// Takes one token, if there is one. `now` in nanoseconds of a monotonic clock.
    #[inline(always)]
    pub const fn take(&mut self, now: u64) -> bool {
        let earliest = now.saturating_sub(BURST * INTERVAL);
        let due = if self.0 > earliest { self.0 } else { earliest };
        if due >= now {
            return false;
        }
        self.0 = due + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut Bucket, now: u64, asked: u64) -> u64 {
        (0..asked).filter(|_| bucket.take(now)).count() as u64
    }

    #[test]
    fn a_burst_passes_at_once_and_then_a_thousand_a_second() {
        let mut bucket = Bucket::default();
        let start = 10_000_000_000;

        assert_eq!(taken(&mut bucket, start, 1000), BURST);
        assert_eq!(taken(&mut bucket, start, 10), 0);
        let later = (1..=1000).map(|ms| taken(&mut bucket, start + ms * INTERVAL, 5)).sum::<u64>();
        assert_eq!(later, 1000);
    }

    #[test]
    fn silence_earns_no_more_than_one_burst() {
        let mut bucket = Bucket::default();

        taken(&mut bucket, 1_000_000_000, 1000);

        assert_eq!(taken(&mut bucket, 3_600_000_000_000, 1000), BURST);
    }
}
