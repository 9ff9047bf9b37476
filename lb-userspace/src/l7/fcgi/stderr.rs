//! What an application complains of while it answers, for the log: bounded for each request, and so
//! many lines a second for each worker.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Kept of one request's.
const KEPT: usize = 2048;
/// Requests of a second whose complaints are logged.
const LINES: u32 = 20;

/// Complaints about one request.
#[derive(Default)]
pub(super) struct Stderr {
    kept: Vec<u8>,
    total: u64,
}

impl Stderr {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = KEPT - self.kept.len().min(KEPT);
        self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// Tells them, once the request is over.
    pub(super) fn tell(&self, endpoint: SocketAddr) {
        if self.total == 0 {
            return;
        }
        let Some(unsaid) = turn(Instant::now()) else { return };
        let text = String::from_utf8_lossy(&self.kept);
        let bytes = self.total;
        tracing::warn!(%endpoint, bytes, unsaid, stderr = ?text.trim_end(), "fastcgi application complained");
    }
}

thread_local! {
    /// The second at hand, lines of it, and how many were not written since the last one.
    static SECOND: Cell<(Option<Instant>, u32, u64)> = const { Cell::new((None, 0, 0)) };
}

/// Whether one may speak now, and then how many could not since the last one.
fn turn(now: Instant) -> Option<u64> {
    let (began, lines, unsaid) = SECOND.get();
    let goes_on = began.is_some_and(|began| now.duration_since(began) < Duration::from_secs(1));
    let (began, lines) = if goes_on { (began, lines) } else { (Some(now), 0) };
    let may = lines < LINES;
    SECOND.set(if may { (began, lines + 1, 0) } else { (began, lines, unsaid + 1) });
    may.then_some(unsaid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_is_kept() {
        let mut stderr = Stderr::default();

        (0..100).for_each(|_| stderr.add(&[b'x'; 1000]));

        assert_eq!((stderr.kept.len(), stderr.total), (KEPT, 100_000));
    }

    #[test]
    fn a_second_has_so_many_lines_and_the_next_one_says_how_many_more_there_were() {
        let start = Instant::now();

        let said = (0..50).filter(|_| turn(start).is_some()).count();

        assert_eq!(said, 20);
        assert_eq!(turn(start + Duration::from_secs(1)), Some(30));
        assert_eq!(turn(start + Duration::from_secs(1)), Some(0));
    }
}
