//! Temporary files for what does not fit the memory a message may take.
//!
//! A [`Spill`] is written at its end and read anywhere. Bytes gather in chunks, and a thread for
//! blocking work writes them: a disk that is slow holds up its own message and no other. Files have
//! no name, so nothing of them outlives the process.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::{ReadWriteFlags, preadv2};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Temp;
use super::body_memory::BodyMemory;

/// Bytes written or read at once; a spill holds at most two chunks in memory, and one read ahead.
const CHUNK: usize = 128 * 1024;
/// Memory begins with so much, and room is taken by so much.
const GRAIN: usize = 16 * 1024;

/// Files from this size on are closed by a thread that may block: the disk gives their blocks back then.
const LARGE_FILE: u64 = 16 << 20;

/// All temporary files of the process.
#[derive(Debug)]
pub(super) struct Spills {
    dir: PathBuf,
    /// Most bytes in all files together, those on their way there included.
    limit: u64,
    used: AtomicU64,
    /// What bodies may take before they go to files.
    pub(super) memory: Arc<BodyMemory>,
    /// A failure was told, and not yet that it is over.
    told: AtomicBool,
    born: Instant,
    /// When the last attempt failed, in milliseconds since then.
    failed: AtomicU64,
}

/// So long without a failure, and it is over. On a full disk there is room now and then, for a page.
const CALM: Duration = Duration::from_secs(60);

/// Why bytes could not be put into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Cause {
    /// All files together are as large as they may be.
    Limit,
    /// The file system refused.
    Disk,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Disk => "disk",
        }
    }
}

impl Spills {
    pub(super) fn new(Temp { dir, bytes, memory_bytes }: Temp) -> Self {
        let memory = Arc::new(BodyMemory::new(memory_bytes));
        Self {
            dir,
            limit: bytes,
            used: AtomicU64::new(0),
            memory,
            told: AtomicBool::new(false),
            born: Instant::now(),
            failed: AtomicU64::new(0),
        }
    }

    /// Bytes in files now, or on their way there.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for so many bytes more of a message that has `own`: three quarters at most of what others leave, so that one alone
    /// does not keep all others out.
    fn reserve(&self, own: u64, bytes: u64) -> bool {
        let most = |used: u64| self.limit.saturating_sub(used.saturating_sub(own)) / 4 * 3;
        let more = |used: u64| used.checked_add(bytes).filter(|_| own + bytes <= most(used));
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A thousand requests that meet a full disk are one event.
    fn failed(&self, what: &dyn std::fmt::Display) {
        self.failed.store(self.age(), Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %self.dir.display(),
                error = %what,
                "bodies cannot be put into temporary files; make room there, or name another directory by --temp-dir"
            );
        }
    }

    fn succeeded(&self) {
        if self.told.load(Ordering::Relaxed)
            && self.is_over(self.age())
            && self.told.swap(false, Ordering::Relaxed)
        {
            tracing::info!(dir = %self.dir.display(), "bodies can be put into temporary files again");
        }
    }
}

impl Spills {
    /// Milliseconds since they were made.
    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Nothing has failed for long enough, at this age.
    fn is_over(&self, age: u64) -> bool {
        Duration::from_millis(age.saturating_sub(self.failed.load(Ordering::Relaxed))) >= CALM
    }
}

/// What one message put aside. The file is made with its first chunk.
pub(super) struct Spill {
    spills: Arc<Spills>,
    file: Option<Arc<File>>,
    reserved: u64,
    /// Bytes in the file that count.
    filed: u64,
    /// How long the file ever was.
    longest: u64,
    /// The chunk behind them, on its way into the file, or for good where that failed.
    writing: Option<Writing>,
    /// Bytes behind that.
    chunk: Vec<u8>,
    failed: Option<Cause>,
    /// A chunk that is read, by where it begins.
    reading: Option<(u64, JoinHandle<io::Result<Vec<u8>>>)>,
    /// The last one that was.
    read: (u64, Vec<u8>),
}

struct Writing {
    bytes: Arc<Vec<u8>>,
    job: Option<JoinHandle<io::Result<Arc<File>>>>,
}

impl Spill {
    /// Empty, and without a file.
    pub(super) fn new(spills: &Arc<Spills>) -> Self {
        Self {
            spills: Arc::clone(spills),
            file: None,
            reserved: 0,
            filed: 0,
            longest: 0,
            writing: None,
            chunk: Vec::new(),
            failed: None,
            reading: None,
            read: (0, Vec::new()),
        }
    }

    /// Bytes that were taken.
    pub(super) fn len(&self) -> u64 {
        self.filed + (self.in_flight().len() + self.chunk.len()) as u64
    }

    /// Takes some of `bytes`; pending while the disk is busy with those before. What was taken can be
    /// read even where the file failed: only more is not taken then.
    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Cause>> {
        self.reap(cx);
        if self.chunk.len() == CHUNK && self.failed.is_none() {
            if self.writing.is_some() {
                return Poll::Pending;
            }
            self.start();
        }
        if let Some(cause) = self.failed {
            return Poll::Ready(Err(cause));
        }
        let n = bytes.len().min(CHUNK - self.chunk.len());
        if let Err(cause) = self.reserve(n) {
            return Poll::Ready(Err(cause));
        }
        self.chunk.extend_from_slice(bytes.get(..n).unwrap_or_default());
        if self.chunk.len() == CHUNK && self.writing.is_none() {
            self.start();
        }
        Poll::Ready(Ok(n))
    }

    /// Reads what was taken from the byte `at` on; 0 behind the last one.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        at: u64,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.reap(cx);
        let Some(behind) = at.checked_sub(self.filed) else {
            return self.poll_read_file(cx, at, into);
        };
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        let flying = self.in_flight();
        let from = match behind.checked_sub(flying.len()) {
            None => flying.get(behind..),
            Some(behind) => self.chunk.get(behind..),
        };
        let from = from.unwrap_or_default();
        let n = from.len().min(into.len());
        into.iter_mut().zip(from).for_each(|(into, from)| *into = *from);
        Poll::Ready(Ok(n))
    }

    /// Begins anew where all was read, in the file there is.
    pub(super) fn rewind(&mut self) {
        if self.writing.is_none() && self.failed.is_none() {
            (self.filed, self.read) = (0, (0, Vec::new()));
            self.chunk.clear();
        }
    }

    /// The disk has to give back many blocks, which takes its time.
    fn is_large(&self) -> bool {
        self.longest >= LARGE_FILE
    }

    fn in_flight(&self) -> &[u8] {
        self.writing.as_ref().map_or(&[], |writing| &writing.bytes)
    }

    /// Looks whether the chunk on its way has arrived.
    fn reap(&mut self, cx: &mut Context<'_>) {
        let Some(Writing { bytes, job }) = &mut self.writing else { return };
        let Some(running) = job else { return };
        let Poll::Ready(done) = Pin::new(running).poll(cx) else { return };
        match done.map_err(io::Error::other).flatten() {
            Ok(file) => {
                self.file = Some(file);
                self.filed += bytes.len() as u64;
                self.longest = self.longest.max(self.filed);
                self.writing = None;
                self.spills.succeeded();
            }
            Err(error) => {
                *job = None;
                self.failed = Some(Cause::Disk);
                self.spills.failed(&error);
            }
        }
    }

    /// Takes room for so many bytes more, in memory or wherever they are.
    fn reserve(&mut self, bytes: usize) -> Result<(), Cause> {
        let end = (self.len() + bytes as u64).next_multiple_of(GRAIN as u64);
        let more = end.saturating_sub(self.reserved);
        if more > 0 && !self.spills.reserve(self.reserved, more) {
            self.failed = Some(Cause::Limit);
            self.spills.failed(&"--temp-megabytes are used up");
            return Err(Cause::Limit);
        }
        self.reserved += more;
        Ok(())
    }

    /// Sends the chunk on its way.
    fn start(&mut self) {
        let bytes = Arc::new(std::mem::take(&mut self.chunk));
        let (spills, file, at) = (Arc::clone(&self.spills), self.file.clone(), self.filed);
        let job = spawn_blocking({
            let bytes = Arc::clone(&bytes);
            move || {
                let file = match file {
                    Some(file) => file,
                    None => Arc::new(tempfile::tempfile_in(&spills.dir)?),
                };
                file.write_all_at(&bytes, at)?;
                Ok(file)
            }
        });
        self.writing = Some(Writing { bytes, job: Some(job) });
    }

    /// What the page cache has is read at once, what the disk has by a thread that may block.
    fn poll_read_file(&mut self, cx: &mut Context<'_>, at: u64, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let in_file = usize::try_from(self.filed.saturating_sub(at)).unwrap_or(usize::MAX);
        let most = into.len().min(in_file);
        let into = into.get_mut(..most).unwrap_or_default();
        loop {
            let (from, bytes) = &self.read;
            let known = at.checked_sub(*from).and_then(|skip| bytes.get(usize::try_from(skip).ok()?..));
            if let Some(known) = known.filter(|known| !known.is_empty()) {
                let n = known.len().min(into.len());
                into.iter_mut().zip(known).for_each(|(into, known)| *into = *known);
                return Poll::Ready(Ok(n));
            }
            if let Some((from, job)) = &mut self.reading {
                let done = ready!(Pin::new(job).poll(cx)).map_err(io::Error::other).flatten();
                let from = *from;
                self.reading = None;
                let bytes = done?;
                if bytes.is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.read = (from, bytes);
                continue;
            }
            let Some(file) = &self.file else { return Poll::Ready(Ok(0)) };
            if let Ok(n @ 1..) = preadv2(file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT) {
                return Poll::Ready(Ok(n));
            }
            // Who reads on gets more at once.
            let most = in_file.min((self.read.1.len() * 2).clamp(GRAIN, CHUNK));
            let file = Arc::clone(file);
            let job = spawn_blocking(move || {
                let mut bytes = vec![0; most];
                let n = file.read_at(&mut bytes, at)?;
                bytes.truncate(n);
                Ok(bytes)
            });
            self.reading = Some((at, job));
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.spills.give_back(self.reserved);
        if self.is_large()
            && let (Some(file), Ok(runtime)) = (self.file.take(), Handle::try_current())
        {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn spills(bytes: u64) -> (Arc<Spills>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        (Arc::new(Spills::new(Temp { dir: dir.path().to_owned(), bytes, ..Temp::default() })), dir)
    }

    #[test]
    fn a_disk_that_is_full_but_for_a_moment_is_told_once() {
        let (spills, _dir) = spills(1);
        let calm = u64::try_from(CALM.as_millis()).expect("a short time");

        spills.failed(&"full");
        let failed = spills.failed.load(Ordering::Relaxed);

        spills.succeeded();
        assert!(spills.told.load(Ordering::Relaxed), "not over yet");
        assert!(!spills.is_over(failed + calm - 1));
        assert!(spills.is_over(failed + calm));
    }

    async fn push(spill: &mut Spill, mut bytes: &[u8]) -> Result<(), Cause> {
        while !bytes.is_empty() {
            // As what is read from a connection comes.
            let piece = &bytes[..bytes.len().min(GRAIN)];
            let n = poll_fn(|cx| spill.poll_push(cx, piece)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    async fn read(spill: &mut Spill, mut at: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut part = [0; 10_000];
            let n = poll_fn(|cx| spill.poll_read(cx, at, &mut part)).await.expect("readable");
            if n == 0 {
                return all;
            }
            all.extend_from_slice(&part[..n]);
            at += n as u64;
        }
    }

    /// The last chunk is on its way until somebody looks.
    async fn written(spill: &mut Spill) {
        poll_fn(|cx| {
            spill.reap(cx);
            if spill.writing.is_some() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_was_pushed_is_read_from_anywhere_and_again() {
        let (spills, _dir) = spills(10 << 20);
        for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17] {
            let mut spill = Spill::new(&spills);
            let bytes = pattern(len);
            push(&mut spill, &bytes).await.expect("room");

            assert_eq!(spill.len(), len as u64);
            assert!(read(&mut spill, 0).await == bytes, "{len}");
            assert!(read(&mut spill, len as u64 / 2).await == bytes[len / 2..], "{len}");
            drop(spill);
            assert_eq!(spills.used(), 0);
        }
    }

    #[tokio::test]
    async fn all_files_together_are_bounded_and_what_was_taken_stays_readable() {
        let (spills, _dir) = spills(4 * CHUNK as u64);
        let (mut first, mut second) = (Spill::new(&spills), Spill::new(&spills));
        let bytes = pattern(4 * CHUNK);

        // Three quarters, and then three quarters of the rest.
        for (spill, expected) in [(&mut first, 3 * CHUNK), (&mut second, CHUNK / 4 * 3)] {
            assert_eq!(push(spill, &bytes).await, Err(Cause::Limit));

            let taken = usize::try_from(spill.len()).expect("small");
            assert!(taken.abs_diff(expected) <= GRAIN, "{taken} of {expected}");
            assert!(read(spill, 0).await == bytes[..taken]);
        }
        assert!(spills.used() <= 4 * CHUNK as u64);
        drop((first, second));
        push(&mut Spill::new(&spills), &pattern(3 * CHUNK)).await.expect("room again");
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_loses_nothing_that_was_taken() {
        let spills = Arc::new(Spills::new(Temp { dir: "/nonexistent/penstock".into(), ..Temp::default() }));
        let mut spill = Spill::new(&spills);
        let bytes = pattern(4 * CHUNK);

        assert_eq!(push(&mut spill, &bytes).await, Err(Cause::Disk));

        let taken = usize::try_from(spill.len()).expect("small");
        assert!(taken >= CHUNK && read(&mut spill, 0).await == bytes[..taken]);
    }

    #[tokio::test]
    async fn what_was_read_makes_room_in_its_file() {
        let (spills, _dir) = spills(3 * CHUNK as u64);
        let mut spill = Spill::new(&spills);
        for _ in 0..5 {
            push(&mut spill, &pattern(2 * CHUNK)).await.expect("room");
            written(&mut spill).await;
            assert!(read(&mut spill, 0).await == pattern(2 * CHUNK));
            spill.rewind();
            assert_eq!(spill.len(), 0);
        }
    }

    #[tokio::test]
    async fn a_large_file_that_is_used_again_stays_a_large_one() {
        let (spills, _dir) = spills(1 << 30);
        let mut spill = Spill::new(&spills);
        push(&mut spill, &vec![0; LARGE_FILE as usize + 2 * CHUNK]).await.expect("room");
        written(&mut spill).await;

        spill.rewind();

        assert!(spill.is_large());
    }
}
