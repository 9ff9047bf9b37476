//! The time of a line, written anew once a second.

use std::io::Write as _;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::super::calendar::Moment;

/// A moment and how formats write it.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    now: Duration,
    local: Vec<u8>,
    iso: Vec<u8>,
}

impl Stamp {
    /// Makes this the moment of now, as the kernel's last tick has it: a few milliseconds ago at most, and for
    /// a fraction of what the exact time costs.
    pub(super) fn renew(&mut self) {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::RealtimeCoarse);
        self.set(Duration::new(
            u64::try_from(tv_sec).unwrap_or_default(),
            u32::try_from(tv_nsec).unwrap_or_default(),
        ));
    }

    /// Makes this the moment so long after the epoch.
    pub(super) fn set(&mut self, now: Duration) {
        let is_same = now.as_secs() == self.now.as_secs();
        self.now = now;
        if is_same && !self.local.is_empty() {
            return;
        }
        let moment = Moment::of(now.as_secs());
        let Moment { year, month, day, hour, minute, second, .. } = moment;
        let name = moment.month_name();
        self.local.clear();
        self.iso.clear();
        // A Vec takes everything.
        let _ = write!(self.local, "{day:02}/{name}/{year}:{hour:02}:{minute:02}:{second:02} +0000");
        let _ = write!(self.iso, "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00");
    }

    /// `02/Jan/2006:15:04:05 +0000`.
    pub(super) fn local(&self) -> &[u8] {
        &self.local
    }

    /// `2006-01-02T15:04:05+00:00`.
    pub(super) fn iso(&self) -> &[u8] {
        &self.iso
    }

    pub(super) fn since_epoch(&self) -> Duration {
        self.now
    }
}
