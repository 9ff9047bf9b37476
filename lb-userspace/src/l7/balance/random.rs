//! Numbers for one worker that are quick and not secret.

use std::cell::Cell;

/// Xorshift64*: a full period and no system call.
#[derive(Debug)]
pub(in crate::l7) struct Random(Cell<u64>);

impl Random {
    pub(in crate::l7) fn new(seed: u64) -> Self {
        Self(Cell::new(seed | 1))
    }

    pub(in crate::l7) fn word(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`; `None` if nothing is.
    pub(in crate::l7) fn below(&self, n: usize) -> Option<usize> {
        let high = (u128::from(self.word()) * n as u128) >> 64;
        (n > 0).then_some(high as usize)
    }

    /// From 0 up to, not including, 1.
    pub(super) fn unit(&self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
}
