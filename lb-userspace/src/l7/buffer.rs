//! Read buffers and scratch space from per-thread pools.
//!
//! A buffer is taken when bytes are there to be read and given back as soon as it is empty, so a
//! waiting connection holds none and a busy worker needs only a handful, warm in its cache.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll, ready};

use super::carrier::Carrier;

/// Size of a read buffer: a head and a 16 KiB body arrive in one read. Also the limit of a request's
/// head; a response's may be longer where its location says so.
pub(super) const BUFFER_BYTES: usize = 32 * 1024;

/// Buffers kept per thread; 8 MiB. Beyond that a burst allocates and frees.
const POOLED_BUFFERS: usize = 256;

/// Size of a buffer for a long body that passes through our memory: sixteen records of TLS.
const LARGE_BYTES: usize = 256 * 1024;

/// Large buffers of one thread that may hold bytes at once: 16 MiB. Who gets none has one of the usual size.
const LARGE_MAX: usize = 64;

/// Empty large buffers kept per thread.
const POOLED_LARGE: usize = 8;

/// Memory of the scratch vectors kept per thread: two of about 1 KiB for each of 4,000 requests under
/// way. Every request holds two until it ends, so a bound by number would free and allocate anew
/// under load.
const POOLED_SCRATCH_BYTES: usize = 8 << 20;
/// The capacity beyond which one is not kept.
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LARGE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LARGE_IN_USE: Cell<usize> = const { Cell::new(0) };
    static SCRATCH: RefCell<Idle> = const { RefCell::new(Idle { vectors: Vec::new(), bytes: 0 }) };
}

/// Scratch vectors that nobody uses.
struct Idle {
    vectors: Vec<Vec<u8>>,
    /// Of their capacities together.
    bytes: usize,
}

impl Idle {
    fn take(&mut self) -> Option<Vec<u8>> {
        let vector = self.vectors.pop()?;
        self.bytes -= vector.capacity();
        Some(vector)
    }

    fn keep(&mut self, vector: Vec<u8>) {
        if self.bytes + vector.capacity() <= POOLED_SCRATCH_BYTES {
            self.bytes += vector.capacity();
            self.vectors.push(vector);
        }
    }
}

/// Bytes read and not yet consumed; holds memory only while there are any.
#[derive(Default)]
pub(super) struct Buf {
    data: Box<[u8]>,
    start: usize,
    end: usize,
    is_large: bool,
}

impl Buf {
    /// What was read and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// No bytes are left.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The same, to be worked on where they are.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// There is no room for more, even after moving the bytes to the front.
    pub(super) fn is_full(&self) -> bool {
        self.end - self.start == self.data.len().max(BUFFER_BYTES)
    }

    /// Doubles the room of a full buffer, up to `most` bytes; the memory is its own and not kept.
    pub(super) fn grow(&mut self, most: usize) {
        let room = self.data.len().saturating_mul(2).min(most);
        if room > self.data.len() {
            self.move_to(room);
        }
    }

    /// Makes room for `n` bytes more, in memory of its own where the buffer has no place for them.
    pub(super) fn reserve(&mut self, n: usize) {
        if self.space().len() >= n {
            return;
        }
        let all = self.bytes().len().saturating_add(n);
        if all > self.data.len() {
            return self.move_to(all);
        }
        self.data.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Puts `bytes` behind those there are.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let n = copy(bytes, self.space());
        self.end += n;
    }

    /// Counts in `n` bytes that were put into [`Self::space`].
    pub(super) fn advance(&mut self, n: usize) {
        self.end = self.data.len().min(self.end.saturating_add(n));
    }

    fn move_to(&mut self, room: usize) {
        let mut data = Vec::with_capacity(room);
        data.extend_from_slice(self.bytes());
        let end = data.len();
        data.resize(room, 0);
        self.release();
        (self.data, self.end) = (data.into_boxed_slice(), end);
    }

    /// Forgets the first `n` bytes; gives the memory back when none is left.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start.saturating_add(n));
        if self.is_empty() {
            self.release();
        }
    }

    /// Puts `byte` in front of the byte that is `at` of those there are; false where there are not so many.
    pub(super) fn insert(&mut self, at: usize, byte: u8) -> bool {
        if at > self.bytes().len() {
            return false;
        }
        if self.space().is_empty() {
            self.grow(self.data.len().saturating_add(1));
        }
        let at = self.start + at;
        self.data.copy_within(at..self.end, at + 1);
        self.end += 1;
        self.data.get_mut(at).map(|place| *place = byte).is_some()
    }

    /// Reads once from `socket` behind the bytes there are; 0 is the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Carrier<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_most(cx, socket, usize::MAX, false)
    }

    /// The same for a long body of which `most` bytes are left: no more is read, and a large buffer is taken
    /// where one is to be had.
    pub(super) fn poll_fill_long(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Carrier<'_>,
        most: u64,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_most(cx, socket, usize::try_from(most).unwrap_or(usize::MAX), true)
    }

    fn poll_fill_most(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Carrier<'_>,
        most: usize,
        is_long: bool,
    ) -> Poll<io::Result<usize>> {
        ready!(socket.poll_readable(cx))?;
        if is_long {
            self.widen();
        }
        let space = self.space();
        let most = most.min(space.len());
        let read = socket.poll_read(cx, space.get_mut(..most).unwrap_or_default());
        if let Poll::Ready(Ok(n)) = &read {
            self.end += n;
        }
        if self.is_empty() {
            self.release();
        }
        read
    }

    /// Moves the beginning of a message to memory of its own size, because the rest of it may take
    /// its time: who sends slowly costs what was sent and not a whole buffer. One without bytes is given back.
    pub(super) fn park(&mut self) {
        let waiting = self.bytes();
        if waiting.is_empty() {
            return self.release();
        }
        if self.data.len() != BUFFER_BYTES || waiting.len() > BUFFER_BYTES / 2 {
            return;
        }
        let small: Box<[u8]> = waiting.into();
        self.release();
        (self.start, self.end) = (0, small.len());
        self.data = small;
    }

    /// Memory that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.data.len()
    }

    /// Takes a large buffer, if there are not too many and none is held.
    pub(super) fn widen(&mut self) {
        if !self.data.is_empty() || LARGE_IN_USE.get() >= LARGE_MAX {
            return;
        }
        LARGE_IN_USE.set(LARGE_IN_USE.get() + 1);
        let pooled = LARGE.with_borrow_mut(Vec::pop);
        self.data = pooled.unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice());
        self.is_large = true;
    }

    /// Room behind the bytes there are; takes a buffer from the pool if none is held.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.data.len() < BUFFER_BYTES {
            let mut data =
                BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
            // What was parked comes back to the front.
            let parked = self.bytes().len();
            if let Some(front) = data.get_mut(..parked) {
                front.copy_from_slice(self.bytes());
            }
            (self.start, self.end) = (0, parked);
            self.data = data;
        }
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.data.get_mut(self.end..).unwrap_or_default()
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.is_large) {
            LARGE_IN_USE.set(LARGE_IN_USE.get().saturating_sub(1));
            return LARGE.with_borrow_mut(|pool| {
                if pool.len() < POOLED_LARGE {
                    pool.push(data);
                }
            });
        }
        if data.len() != BUFFER_BYTES {
            return;
        }
        BUFFERS.with_borrow_mut(|pool| {
            if pool.len() < POOLED_BUFFERS {
                pool.push(data);
            }
        });
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.release();
    }
}

/// A vector to build a head in; its memory goes back to the thread's pool. The default has none.
#[derive(Default)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// An empty one.
    pub(super) fn take() -> Self {
        Self(SCRATCH.with_borrow_mut(Idle::take).unwrap_or_else(|| Vec::with_capacity(1024)))
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut scratch = std::mem::take(&mut self.0);
        if scratch.capacity() == 0 || scratch.capacity() > SCRATCH_BYTES {
            return;
        }
        scratch.clear();
        SCRATCH.with_borrow_mut(|idle| idle.keep(scratch));
    }
}

/// Copies what there is room for; returns how much that is.
pub(super) fn copy(from: &[u8], into: &mut [u8]) -> usize {
    let n = from.len().min(into.len());
    if let (Some(from), Some(into)) = (from.get(..n), into.get_mut(..n)) {
        into.copy_from_slice(from);
    }
    n
}

/// Has `take` some of each part, until it has all of them or no more for now; pending if it has none.
pub(super) fn poll_each(
    parts: &[IoSlice<'_>],
    mut take: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
) -> Poll<io::Result<usize>> {
    let mut taken = 0;
    for part in parts {
        let mut rest: &[u8] = part;
        while !rest.is_empty() {
            let n = match take(rest) {
                Poll::Ready(Ok(n)) => n,
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                waiting_or_failed => return waiting_or_failed,
            };
            taken += n;
            rest = rest.get(n..).unwrap_or_default();
        }
    }
    Poll::Ready(Ok(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_buffer_grows_up_to_its_limit_and_keeps_its_bytes() {
        let mut buf = Buf::default();
        buf.space().fill(b'x');
        buf.end = BUFFER_BYTES;
        assert!(buf.is_full());

        buf.grow(40_000);
        assert_eq!((buf.bytes().len(), buf.space().len()), (BUFFER_BYTES, 40_000 - BUFFER_BYTES));
        assert!(!buf.is_full());
        buf.space().fill(b'y');
        buf.end = 40_000;

        buf.grow(40_000);
        assert!(buf.is_full());
        assert_eq!(buf.bytes().iter().filter(|byte| **byte == b'y').count(), 40_000 - BUFFER_BYTES);
        buf.consume(40_000);
        assert!(buf.data.is_empty());
    }

    #[test]
    fn a_byte_is_put_between_others_however_many_there_are() {
        let mut buf = Buf { data: Box::from(*b"xbc"), start: 1, end: 3, is_large: false };

        assert!(buf.insert(1, b'-') && buf.insert(0, b'<') && buf.insert(4, b'>'));
        assert_eq!(buf.bytes(), b"<b-c>");
        assert!(!buf.insert(6, b'?'));
        buf.space().fill(b'x');
        buf.end = BUFFER_BYTES;
        assert!(buf.insert(1, b'?'), "whatever there is");
        assert_eq!((&buf.bytes()[..4], buf.bytes().len()), (&b"<?b-"[..], BUFFER_BYTES + 1));
        buf.consume(2);
        assert!(buf.insert(0, b'!'));
        assert_eq!((&buf.bytes()[..3], buf.bytes().len()), (&b"!b-"[..], BUFFER_BYTES));
    }

    #[test]
    fn scratch_is_kept_for_many_requests_at_once_and_no_further_than_its_bytes() {
        let many: Vec<Scratch> = (0..2_000).map(|_| Scratch::take()).collect();
        drop(many);
        SCRATCH.with_borrow(|idle| {
            assert_eq!((idle.vectors.len(), idle.bytes), (2_000, 2_000 * 1024));
        });

        let large = || Scratch(Vec::with_capacity(SCRATCH_BYTES));
        let more: Vec<Scratch> = (0..1_000).map(|_| large()).collect();
        drop(more);
        SCRATCH.with_borrow(|idle| {
            let sum: usize = idle.vectors.iter().map(Vec::capacity).sum();
            assert!(idle.bytes == sum && sum <= POOLED_SCRATCH_BYTES, "{sum} of {}", idle.bytes);
            assert!(sum > POOLED_SCRATCH_BYTES - SCRATCH_BYTES);
        });
    }

    #[test]
    fn there_is_an_end_to_large_buffers_and_they_are_used_again() {
        let mut many: Vec<Buf> = (0..=LARGE_MAX).map(|_| Buf::default()).collect();
        many.iter_mut().for_each(Buf::widen);
        let sizes: Vec<usize> = many.iter_mut().map(|buf| buf.space().len()).collect();
        assert_eq!(
            (sizes[0], sizes[LARGE_MAX - 1], sizes[LARGE_MAX]),
            (LARGE_BYTES, LARGE_BYTES, BUFFER_BYTES)
        );

        drop(many);
        assert_eq!((LARGE_IN_USE.get(), LARGE.with_borrow(Vec::len)), (0, POOLED_LARGE));

        let mut buf = Buf::default();
        buf.widen();
        buf.space().fill(b'x');
        buf.end = LARGE_BYTES;
        assert!(buf.is_full());
        buf.consume(LARGE_BYTES);
        assert_eq!((LARGE_IN_USE.get(), buf.data.len()), (0, 0));
    }

    #[test]
    fn what_is_parked_keeps_its_bytes_and_gives_the_buffer_back() {
        let mut buf = Buf::default();
        buf.space().get_mut(..5).expect("room").copy_from_slice(b"hello");
        buf.end += 5;
        buf.consume(1);

        buf.park();
        assert_eq!((buf.bytes(), buf.data.len()), (&b"ello"[..], 4));
        assert_eq!(BUFFERS.with_borrow(Vec::len), 1);

        buf.space().get_mut(..1).expect("room").copy_from_slice(b"!");
        buf.end += 1;
        assert_eq!((buf.bytes(), buf.data.len()), (&b"ello!"[..], BUFFER_BYTES));
        buf.consume(5);
        assert!(buf.is_empty() && buf.data.is_empty());
    }
}
