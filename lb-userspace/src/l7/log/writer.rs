//! The thread that writes what workers have logged.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::journal::{Batch, Outlet};
use super::syslog::Collector;
use crate::model::l7::log::Sink;
use crate::model::report::{Metric, MetricKind, Sample};

/// Batches that wait at most, about 2 MiB.
const BACKLOG: usize = 64;
/// How often the file is compared with what its path names, so that whoever rotates logs has only to
/// rename the file.
const ROTATED: Duration = Duration::from_secs(1);
/// How often the name of a collector is looked up.
const LOOKED_UP: Duration = Duration::from_secs(60);
/// How long it counts that lines could not be written, without another attempt.
const RECENT: Duration = Duration::from_secs(300);
/// Sinks that are kept open: of requests and of connections, before a change and after it.
const OPEN_MAX: usize = 4;

/// Starts the thread. It ends with its last [`Outlet`].
pub(in crate::l7) fn start() -> io::Result<(Outlet, Writer)> {
    let (batches, receiver) = sync_channel(BACKLOG);
    let (done, ended) = sync_channel(1);
    let lost = Arc::new(AtomicU64::new(0));
    let troubles = Arc::new(Mutex::default());
    let thread = Thread { open: Vec::new(), troubles: Arc::clone(&troubles), lost: Arc::clone(&lost) };
    std::thread::Builder::new().name("penstock-log".to_owned()).spawn(move || {
        thread.run(&receiver);
        let _ = done.send(());
    })?;
    Ok((Outlet { batches, lost: Arc::clone(&lost) }, Writer { ended, lost, troubles }))
}

/// The thread, seen from outside.
pub(in crate::l7) struct Writer {
    ended: Receiver<()>,
    lost: Arc<AtomicU64>,
    troubles: Arc<Mutex<Vec<Trouble>>>,
}

/// Lines of a sink could not be written.
struct Trouble {
    sink: Arc<Sink>,
    why: String,
    at: Instant,
}

impl Writer {
    /// Waits until everything is written, but not for somebody who does not read.
    pub(in crate::l7) fn wait(&self, longest: Duration) {
        let _ = self.ended.recv_timeout(longest);
    }

    /// Why lines could not be written lately.
    pub(in crate::l7) fn trouble(&self) -> Option<String> {
        let troubles = lock(&self.troubles);
        let recent = troubles.iter().filter(|trouble| trouble.is_recent());
        let all: Vec<String> = recent.map(|trouble| format!("{}: {}", trouble.sink, trouble.why)).collect();
        (!all.is_empty()).then(|| all.join("; "))
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
    /// The last few, so that two logs do not open their files in turns.
    open: Vec<Open>,
    /// Sinks whose last batch could not be written.
    troubles: Arc<Mutex<Vec<Trouble>>>,
    lost: Arc<AtomicU64>,
}

/// What is written to.
struct Open {
    sink: Arc<Sink>,
    outlet: Place,
    checked: Instant,
}

enum Place {
    File(File),
    Syslog(Collector),
}

impl Thread {
    fn run(mut self, batches: &Receiver<Batch>) {
        while let Ok(batch) = batches.recv() {
            let written = self.write(&batch);
            let was_failing =
                self.note(&batch.sink, written.as_ref().err().map(|(error, _)| error.to_string()));
            match written {
                Ok(()) if was_failing => tracing::info!(sink = %batch.sink, "access log is written again"),
                Ok(()) => {}
                Err((error, lost)) => {
                    if !was_failing {
                        tracing::error!(sink = %batch.sink, %error, "access log cannot be written, lines are lost");
                    }
                    self.lost.fetch_add(lost, Ordering::Relaxed);
                    self.open.retain(|open| open.sink != batch.sink);
                }
            }
        }
    }

    /// Keeps why the sink's last batch could not be written; whether the one before could not, either.
    fn note(&self, sink: &Arc<Sink>, why: Option<String>) -> bool {
        let mut troubles = lock(&self.troubles);
        let known = troubles.iter().position(|trouble| trouble.sink == *sink);
        if let Some(known) = known {
            troubles.remove(known);
        }
        // Of sinks that no setting names any more nothing is heard.
        troubles.retain(Trouble::is_recent);
        troubles.truncate(OPEN_MAX);
        troubles.extend(why.map(|why| Trouble { sink: Arc::clone(sink), why, at: Instant::now() }));
        known.is_some()
    }

    /// Writes all lines; the error has how many were not written beside it.
    fn write(&mut self, batch: &Batch) -> Result<(), (io::Error, u64)> {
        match self.outlet(&batch.sink).map_err(|error| (error, batch.lines))? {
            Place::File(file) => file.write_all(&batch.bytes).map_err(|error| (error, batch.lines)),
            Place::Syslog(collector) => collector.send(&batch.bytes),
        }
    }

    /// Where the sink's lines go, opened anew where its path or its name means something else by now.
    fn outlet(&mut self, sink: &Arc<Sink>) -> io::Result<&mut Place> {
        let is_it = |open: &Open| Arc::ptr_eq(&open.sink, sink) || open.sink == *sink;
        let known = self.open.iter().position(is_it).map(|at| self.open.remove(at));
        let mut open = match known {
            Some(open) if !open.is_old() => open,
            known => match (open(sink), known) {
                (Ok(outlet), _) => Open { sink: Arc::clone(sink), outlet, checked: Instant::now() },
                // A name that cannot be looked up just now may still be where it was.
                (Err(_), Some(Open { outlet: outlet @ Place::Syslog(_), .. })) => {
                    Open { sink: Arc::clone(sink), outlet, checked: Instant::now() }
                }
                (Err(error), _) => return Err(error),
            },
        };
        if open.checked.elapsed() >= ROTATED && matches!(open.outlet, Place::File(_)) {
            open.checked = Instant::now();
        }
        self.open.truncate(OPEN_MAX - 1);
        self.open.insert(0, open);
        self.open.first_mut().map(|open| &mut open.outlet).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Trouble {
    fn is_recent(&self) -> bool {
        self.at.elapsed() < RECENT
    }
}

fn lock(troubles: &Mutex<Vec<Trouble>>) -> MutexGuard<'_, Vec<Trouble>> {
    troubles.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Open {
    /// The path names another file, or the name may mean another address.
    fn is_old(&self) -> bool {
        match (&*self.sink, &self.outlet) {
            (Sink::File(path), Place::File(file)) => {
                self.checked.elapsed() >= ROTATED && !is_same(file, path)
            }
            (Sink::Syslog { .. }, _) => self.checked.elapsed() >= LOOKED_UP,
            _ => false,
        }
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn open(sink: &Sink) -> io::Result<Place> {
    let file = match sink {
        Sink::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        Sink::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path)?,
        Sink::Syslog { host, port } => return Collector::new(host, *port).map(Place::Syslog),
    };
    Ok(Place::File(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sink: &Arc<Sink>, line: &str) -> Batch {
        Batch { sink: Arc::clone(sink), bytes: format!("{line}\n").into_bytes(), lines: 1 }
    }

    fn thread() -> Thread {
        Thread { open: Vec::new(), troubles: Arc::default(), lost: Arc::default() }
    }

    fn write(thread: &mut Thread, batch: &Batch) {
        thread.write(batch).expect("written");
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sink = Arc::new(Sink::File(path.clone()));
        let mut thread = thread();

        write(&mut thread, &batch(&sink, "one"));
        std::fs::rename(&path, &rotated).expect("renamed");
        for open in &mut thread.open {
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
        let (lost, troubles) = (Arc::clone(&thread.lost), Arc::clone(&thread.troubles));
        let is_told = || !troubles.lock().expect("no panic").is_empty();
        let running = std::thread::spawn(move || thread.run(&receiver));

        batches.send(batch(&sink, "lost")).expect("taken");
        // Taken means that the one before is over with. What goes elsewhere says nothing of it.
        batches.send(batch(&Arc::new(Sink::File("/dev/null".into())), "void")).expect("taken");
        batches.send(batch(&Arc::new(Sink::File("/dev/null".into())), "void")).expect("taken");
        assert!(is_told());
        std::fs::create_dir(&missing).expect("made");
        batches.send(batch(&sink, "kept")).expect("taken");
        drop(batches);
        running.join().expect("ended");

        assert_eq!((lost.load(Ordering::Relaxed), is_told()), (1, false));
        assert_eq!(std::fs::read_to_string(missing.join("access.log")).expect("a file"), "kept\n");
    }
}
