//! `enable-rewrite-log`: what the rewrite of a location made of each request, for who wonders where requests end up. In
//! the log of the program, as nginx has it in its error log.
//!
//! How many lines there are is up to clients, so a worker writes so many a second and counts the others.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::filters::Asked;
use super::route::Route;

/// Lines of a worker in [`PERIOD`].
const LINES: u32 = 100;
const PERIOD: Duration = Duration::from_secs(1);

/// What one worker has written of late.
#[derive(Default)]
pub(super) struct RewriteLog {
    since: Cell<Option<Instant>>,
    lines: Cell<u32>,
    left_out: Cell<u64>,
}

impl RewriteLog {
    /// Tells that the request goes upstream with `target`, unless too much was told just now.
    pub(super) fn tell(&self, asked: &Asked<'_>, route: &Route, target: &[u8], now: Instant) {
        let Some(rewrite) = &route.filters.rewrite else { return };
        let Some(left_out) = self.due(now) else { return };
        tracing::info!(
            host = %asked.host.escape_ascii(),
            path = %asked.target.escape_ascii(),
            pattern = %rewrite.pattern.regex(),
            target = %target.escape_ascii(),
            left_out,
            "rewritten"
        );
    }

    /// How many were left out before this one, if it is told.
    fn due(&self, now: Instant) -> Option<u64> {
        if self.since.get().is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            self.since.set(Some(now));
            self.lines.set(0);
        }
        if self.lines.get() >= LINES {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.lines.set(self.lines.get() + 1);
        Some(self.left_out.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_and_the_next_one_says_how_many_were_left_out() {
        let (log, begun) = (RewriteLog::default(), Instant::now());

        let told = (0..LINES + 7).filter(|_| log.due(begun) == Some(0)).count();

        assert_eq!(told, LINES as usize);
        assert_eq!(log.due(begun + PERIOD / 2), None);
        assert_eq!(log.due(begun + PERIOD), Some(8));
        assert_eq!(log.due(begun + PERIOD), Some(0));
    }
}
