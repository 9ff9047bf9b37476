//! Lines of one worker on their way to the thread that writes: batched, so that a request costs
//! no system call, and bounded, so that a full disk or a reader that sleeps costs lines and no request.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::Notify;

use super::line::{self, End};
use super::stamp::Stamp;
use super::streams::{self, Ended};
use crate::model::l7::AccessLog;
use crate::model::l7::log::{Sink, StreamLog};

/// A batch of this size goes to the writer at once.
const BATCH_BYTES: usize = 32 * 1024;
/// And any other one when its first line is so old.
const BATCH_AGE: Duration = Duration::from_millis(200);

/// Lines for one sink.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) sink: Arc<Sink>,
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// The way to the writer.
#[derive(Debug, Clone)]
pub(in crate::l7) struct Outlet {
    pub(super) batches: SyncSender<Batch>,
    /// Lines that were not written.
    pub(super) lost: Arc<AtomicU64>,
}

/// What one worker has logged and not handed over.
pub(in crate::l7) struct Journal {
    outlet: Outlet,
    batch: RefCell<Option<Batch>>,
    stamp: RefCell<Stamp>,
    /// A batch has its first line.
    begun: Notify,
}

impl Journal {
    pub(in crate::l7) fn new(outlet: Outlet) -> Self {
        Self { outlet, batch: RefCell::default(), stamp: RefCell::default(), begun: Notify::new() }
    }

    /// Ends a line that was begun.
    pub(in crate::l7) fn finish(&self, log: &AccessLog, begun: &[u8], end: &End<'_>) {
        self.write(&log.sink, |stamp, out| line::finish(&log.format, begun, end, stamp, out));
    }

    /// Writes the line of a connection that is over.
    pub(in crate::l7) fn tell(&self, log: &StreamLog, ended: &Ended<'_>) {
        self.write(&log.sink, |stamp, out| streams::write(&log.format, ended, stamp, out));
    }

    fn write(&self, sink: &Arc<Sink>, line: impl FnOnce(&Stamp, &mut Vec<u8>)) {
        let mut held = self.batch.borrow_mut();
        if held.as_ref().is_some_and(|batch| !Arc::ptr_eq(&batch.sink, sink)) {
            self.outlet.hand_over(held.take());
        }
        let batch = held.get_or_insert_with(|| {
            self.begun.notify_one();
            let bytes = Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8);
            Batch { sink: Arc::clone(sink), bytes, lines: 0 }
        });
        let mut stamp = self.stamp.borrow_mut();
        stamp.renew();
        let start = batch.bytes.len();
        line(&stamp, &mut batch.bytes);
        if matches!(**sink, Sink::Syslog { .. }) {
            // A value that is not escaped must not become a line of its own there.
            let line = batch.bytes.iter_mut().skip(start);
            line.filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        }
        batch.bytes.push(b'\n');
        batch.lines += 1;
        if batch.bytes.len() >= BATCH_BYTES {
            self.outlet.hand_over(held.take());
        }
    }

    /// Hands over what has waited long enough, for as long as the worker lives.
    pub(in crate::l7) async fn run(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(BATCH_AGE).await;
            self.outlet.hand_over(self.batch.borrow_mut().take());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.outlet.hand_over(self.batch.borrow_mut().take());
    }
}

impl Outlet {
    fn hand_over(&self, batch: Option<Batch>) {
        let Some(batch) = batch else { return };
        let lines = batch.lines;
        if self.batches.try_send(batch).is_err() {
            self.lost.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::super::super::upstream::Record;
    use super::super::Tally;
    use super::*;

    #[test]
    fn a_writer_that_does_not_keep_up_costs_lines_and_no_request() {
        let (batches, stuck) = sync_channel(1);
        let outlet = Outlet { batches, lost: Arc::default() };
        let journal = Journal::new(outlet.clone());
        let log = AccessLog::default();
        let (tally, record) = (Tally::default(), Record::default());
        let end = End {
            status: 200,
            took: Duration::ZERO,
            upstream: "",
            head: 0,
            is_whole: true,
            tally,
            record: &record,
            kept: None,
        };
        let mut begun = Vec::new();
        // As if the request had told a kilobyte.
        begun.extend_from_slice(&1000_u32.to_ne_bytes());
        begun.extend_from_slice(&[b'x'; 1000]);

        for _ in 0..1000 {
            journal.finish(&log, &begun, &end);
        }
        drop(journal);

        let passed: u64 = stuck.try_iter().map(|batch| batch.lines).sum();
        assert!(passed > 0);
        assert_eq!(passed + outlet.lost.load(Ordering::Relaxed), 1000);
    }
}
