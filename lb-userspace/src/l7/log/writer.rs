//! The thread that writes what workers have logged.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::journal::{Batch, Outlet};
use crate::model::l7::log::Sink;
use crate::model::report::{Metric, MetricKind, Sample};

/// Batches that wait at most, about 2 MiB.
const BACKLOG: usize = 64;
/// How often the file is compared with what its path names, so that whoever rotates logs has only to
/// rename the file.
const ROTATED: Duration = Duration::from_secs(1);

/// Starts the thread. It ends with its last [`Outlet`].
pub(in crate::l7) fn start() -> io::Result<(Outlet, Writer)> {
    let (batches, receiver) = sync_channel(BACKLOG);
    let (done, ended) = sync_channel(1);
    let lost = Arc::new(AtomicU64::new(0));
    let thread = Thread { open: None, failing: false, lost: Arc::clone(&lost) };
    std::thread::Builder::new().name("penstock-log".to_owned()).spawn(move || {
        thread.run(&receiver);
        let _ = done.send(());
    })?;
    Ok((Outlet { batches, lost: Arc::clone(&lost) }, Writer { ended, lost }))
}

/// The thread, seen from outside.
pub(in crate::l7) struct Writer {
    ended: Receiver<()>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    /// Waits until everything is written, but not for somebody who does not read.
    pub(in crate::l7) fn wait(&self, longest: Duration) {
        let _ = self.ended.recv_timeout(longest);
    }

    /// What it counts.
    pub(in crate::l7) fn metric(&self) -> Metric {
        let value = self.lost.load(Ordering::Relaxed) as f64;
        Metric {
            name: "penstock_l7_access_log_lost_lines_total",
            help: "Lines that were dropped because they could not be written, or not fast enough.",
            kind: MetricKind::Counter,
            samples: vec![Sample { suffix: "", labels: Vec::new(), value }],
        }
    }
}

struct Thread {
    open: Option<Open>,
    /// The last batch could not be written.
    failing: bool,
    lost: Arc<AtomicU64>,
}

/// What is written to.
struct Open {
    sink: Arc<Sink>,
    file: File,
    checked: Instant,
}

impl Thread {
    fn run(mut self, batches: &Receiver<Batch>) {
        while let Ok(batch) = batches.recv() {
            let written = self.file(&batch.sink).and_then(|mut file| file.write_all(&batch.bytes));
            match written {
                Ok(()) if self.failing => tracing::info!(sink = ?batch.sink, "access log is written again"),
                Err(error) => {
                    if !self.failing {
                        tracing::error!(sink = ?batch.sink, %error, "access log cannot be written, lines are lost");
                    }
                    self.lost.fetch_add(batch.lines, Ordering::Relaxed);
                    self.open = None;
                    self.failing = true;
                    continue;
                }
                Ok(()) => {}
            }
            self.failing = false;
        }
    }

    /// The sink's file, opened anew where its path names another one by now.
    fn file(&mut self, sink: &Arc<Sink>) -> io::Result<&File> {
        let open = match self.open.take().filter(|open| Arc::ptr_eq(&open.sink, sink) || open.sink == *sink) {
            Some(open) if !open.was_rotated() => open,
            _ => Open { sink: Arc::clone(sink), file: open(sink)?, checked: Instant::now() },
        };
        let open = self.open.insert(open);
        if open.checked.elapsed() >= ROTATED {
            open.checked = Instant::now();
        }
        Ok(&open.file)
    }
}

impl Open {
    fn was_rotated(&self) -> bool {
        let Sink::File(path) = &*self.sink else { return false };
        self.checked.elapsed() >= ROTATED && !is_same(&self.file, path)
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn open(sink: &Sink) -> io::Result<File> {
    match sink {
        Sink::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        Sink::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sink: &Arc<Sink>, line: &str) -> Batch {
        Batch { sink: Arc::clone(sink), bytes: format!("{line}\n").into_bytes(), lines: 1 }
    }

    fn thread() -> Thread {
        Thread { open: None, failing: false, lost: Arc::default() }
    }

    fn write(thread: &mut Thread, batch: &Batch) {
        thread.file(&batch.sink).and_then(|mut file| file.write_all(&batch.bytes)).expect("written");
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sink = Arc::new(Sink::File(path.clone()));
        let mut thread = thread();

        write(&mut thread, &batch(&sink, "one"));
        std::fs::rename(&path, &rotated).expect("renamed");
        if let Some(open) = &mut thread.open {
            open.checked -= ROTATED;
        }
        write(&mut thread, &batch(&sink, "two"));

        let read = |path| std::fs::read_to_string(path).expect("a file");
        assert_eq!((read(&rotated), read(&path)), ("one\n".to_owned(), "two\n".to_owned()));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_batch_is_tried() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("later");
        let sink = Arc::new(Sink::File(missing.join("access.log")));
        let (batches, receiver) = sync_channel(1);
        let thread = thread();
        let lost = Arc::clone(&thread.lost);
        let running = std::thread::spawn(move || thread.run(&receiver));

        batches.send(batch(&sink, "lost")).expect("taken");
        // Taken means that the one before is over with.
        batches.send(batch(&Arc::new(Sink::File("/dev/null".into())), "void")).expect("taken");
        batches.send(batch(&Arc::new(Sink::File("/dev/null".into())), "void")).expect("taken");
        std::fs::create_dir(&missing).expect("made");
        batches.send(batch(&sink, "kept")).expect("taken");
        drop(batches);
        running.join().expect("ended");

        assert_eq!(lost.load(Ordering::Relaxed), 1);
        assert_eq!(std::fs::read_to_string(missing.join("access.log")).expect("a file"), "kept\n");
    }
}
