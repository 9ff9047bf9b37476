//! Bounds frames that cost us work and bring neither a request nor data.
//!
//! The h2 crate answers PING and SETTINGS, applies WINDOW_UPDATE, PRIORITY and RST_STREAM, and skips
//! unknown frames for as long as they come; each is cheap for the client and not for us. A
//! connection has a budget for them, filled up by what useful traffic brings along and, slowly, by
//! time. Where it runs out the connection is told ENHANCE_YOUR_CALM. Frame heads are read off the
//! bytes as they pass, nothing is parsed twice.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Frames without use a connection may send at once.
const BUDGET: u32 = 1000;
/// Budget regained with time.
const PER_SECOND: u32 = 100;
/// Budget that one DATA frame brings, sent or received: clients update two windows and may measure
/// the round trip for each.
const PER_DATA: u32 = 4;
/// Budget that a finished request brings.
const PER_REQUEST: u32 = 10;
/// What a request costs that the client gave up, beside its RST_STREAM. A client may well give up all
/// it has at once, a few times over (gRPC deadlines); `keep-alive-requests` bounds the rest.
const CANCELLED: u32 = 1;

/// One connection's budget.
pub(super) struct FrameBudget {
    left: Cell<u32>,
    refilled: Cell<Instant>,
    frames: RefCell<Frames>,
}

impl FrameBudget {
    /// A full budget; `skip` bytes (the preface) come before the first frame.
    pub(super) fn new(skip: usize, now: Instant) -> Self {
        let frames = Frames { skip, ..Frames::default() };
        Self { left: Cell::new(BUDGET), refilled: Cell::new(now), frames: RefCell::new(frames) }
    }

    /// Bytes came from the client.
    pub(super) fn read(&self, bytes: &[u8]) {
        let (mut useful, mut useless) = (0u32, 0u32);
        self.frames.borrow_mut().read(bytes, |kind, length, flags| {
            if is_useful(kind, length, flags) {
                useful += u32::from(kind == DATA);
            } else {
                useless += 1;
            }
        });
        self.earn(useful.saturating_mul(PER_DATA));
        self.spend(useless);
    }

    /// A DATA frame went to the client.
    pub(super) fn sent_data(&self) {
        self.earn(PER_DATA);
    }

    /// A request was answered to its end.
    pub(super) fn finished(&self) {
        self.earn(PER_REQUEST);
    }

    /// The client gave a request up.
    pub(super) fn cancelled(&self) {
        self.spend(CANCELLED);
    }

    /// The budget has run out: the connection has to end.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }

    fn earn(&self, n: u32) {
        if self.is_exhausted() {
            return;
        }
        self.left.set(self.left.get().saturating_add(n).min(BUDGET));
    }

    fn spend(&self, n: u32) {
        if n > 0 && self.left.get() < BUDGET / 2 {
            self.refill(Instant::now());
        }
        self.left.set(self.left.get().saturating_sub(n));
    }

    fn refill(&self, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled.get()).as_secs();
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.refilled.set(self.refilled.get() + Duration::from_secs(u64::from(seconds)));
        self.earn(seconds.saturating_mul(PER_SECOND));
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Requests, their bodies and trailers, and the empty DATA frame that may end one.
fn is_useful(kind: u8, length: u32, flags: u8) -> bool {
    match kind {
        DATA => length > 0 || flags & END_STREAM != 0,
        HEADERS => true,
        _ => false,
    }
}

/// Finds frame heads in a stream of bytes, in whatever slices it comes.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes up to the next frame head.
    skip: usize,
    head: [u8; 9],
    /// Bytes of the head that are there.
    have: usize,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, u32, u8)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let n = bytes.len().min(self.head.len() - self.have);
            let (now, later) = bytes.split_at_checked(n).unwrap_or_default();
            if let Some(place) = self.head.get_mut(self.have..self.have + n) {
                place.copy_from_slice(now);
            }
            self.have += n;
            bytes = later;
            if self.have == self.head.len() {
                let [a, b, c, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                frame(kind, length, flags);
                self.have = 0;
                self.skip = length as usize;
            }
        }
    }
}

/// For the fuzz target: however the bytes are cut, the same frames are seen in them.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    let seen = |size: usize| {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(size) {
            frames.read(piece, |kind, length, flags| seen.push((kind, length, flags)));
        }
        seen
    };
    let whole = seen(bytes.len().max(1));
    for size in [1, 2, 10] {
        assert_eq!(seen(size), whole, "in pieces of {size}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    const PING: u8 = 6;

    impl FrameBudget {
        /// How many times the bytes can be read before the budget runs out, at most 10,000.
        fn survives(&self, bytes: &[u8]) -> usize {
            let alive = |_: &usize| {
                self.read(bytes);
                !self.is_exhausted()
            };
            (0..10_000).take_while(alive).count()
        }
    }

    #[test]
    fn useless_frames_run_out_of_budget_and_useful_ones_do_not() {
        let flood = frame(PING, 0, &[0; 8]);
        let budget = FrameBudget::new(0, Instant::now());
        let sent = budget.survives(&flood);
        assert!((900..1100).contains(&sent), "{sent}");

        let useful = [frame(DATA, 0, b"x"), flood.clone(), flood].concat();
        let budget = FrameBudget::new(0, Instant::now());
        assert_eq!(budget.survives(&useful), 10_000);
    }

    #[test]
    fn empty_data_is_useless_unless_it_ends_a_request() {
        let budget = FrameBudget::new(0, Instant::now());
        assert_eq!(budget.survives(&frame(DATA, END_STREAM, b"")), 10_000);
        assert!(budget.survives(&frame(DATA, 0, b"")) < 1100);
    }

    #[test]
    fn requests_given_up_cost_and_finished_ones_pay_for_them() {
        let budget = FrameBudget::new(0, Instant::now());
        for _ in 0..5000 {
            budget.finished();
            budget.cancelled();
        }
        assert!(!budget.is_exhausted());
        (0..2000).for_each(|_| budget.cancelled());
        assert!(budget.is_exhausted());
    }

    #[test]
    fn time_pays_for_a_slow_trickle() {
        let start = Instant::now();
        let budget = FrameBudget::new(0, start);
        budget.left.set(1);
        budget.refill(start + Duration::from_secs(3));
        assert_eq!(budget.left.get(), 1 + 3 * PER_SECOND);
    }

    proptest! {
        #[test]
        fn heads_are_found_in_whatever_slices_bytes_come(
            payloads in proptest::collection::vec(0usize..40, 1..12),
            cut in 1usize..23,
        ) {
            let bytes: Vec<u8> = std::iter::repeat_n(9u8, 24)
                .chain(payloads.iter().flat_map(|&n| frame(n as u8, 7, &vec![0xff; n])))
                .collect();
            let mut frames = Frames { skip: 24, ..Frames::default() };
            let mut found = Vec::new();
            for slice in bytes.chunks(cut) {
                frames.read(slice, |kind, length, flags| found.push((kind, length, flags)));
            }
            let expected: Vec<_> = payloads.iter().map(|&n| (n as u8, n as u32, 7)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
