//! Pipes through which the kernel moves large bodies from one plain connection to another, without
//! a copy of them in our memory (`splice`).
//!
//! A pipe is taken when there are bytes to move and given back as soon as it is empty, so a waiting
//! transfer holds none. One that holds bytes pins the memory of the socket they came from, hence
//! the bounds: who gets none is served by a read buffer as any other.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Most bytes in a pipe: four system calls move so much.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// Pipes of one thread that may hold bytes at once: 32 MiB, and two descriptors each.
const PIPES_MAX: usize = 128;

/// Empty pipes kept per thread.
const POOLED_PIPES: usize = 16;

thread_local! {
    static PIPES: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe and how many bytes are in it; goes back to the thread's pool if there are none.
pub(super) struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty one; `None` if there are too many, or no descriptors.
    pub(super) fn take() -> Option<Self> {
        if IN_USE.get() >= PIPES_MAX {
            return None;
        }
        let ends = PIPES.with_borrow_mut(Vec::pop).or_else(Ends::open)?;
        IN_USE.set(IN_USE.get() + 1);
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// Bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `most` bytes from a socket into the pipe, which must be empty: of a full one nobody
    /// could tell whether it or the socket would block. 0 is the end of the stream.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let Some(Ends { write, .. }) = &self.ends else { return Ok(0) };
        let most = most.min(PIPE_BYTES);
        let n = retry_on_intr(|| splice(from, None, write.as_fd(), None, most, FLAGS))?;
        self.held += n;
        Ok(n)
    }

    /// Moves bytes on from the pipe to a socket.
    pub(super) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let Some(Ends { read, .. }) = &self.ends else { return Ok(0) };
        let n = retry_on_intr(|| splice(read.as_fd(), None, to, None, self.held, FLAGS))?;
        self.held = self.held.saturating_sub(n);
        Ok(n)
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Ends {
    fn open() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused where one user has many; a smaller one moves the same bytes in more calls.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Some(Self { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get().saturating_sub(1));
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else { return };
        PIPES.with_borrow_mut(|pool| {
            if pool.len() < POOLED_PIPES {
                pool.push(ends);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pipe_is_used_again_and_one_with_bytes_is_not() {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut pipe = Pipe::take().expect("a pipe");
        io::Write::write_all(&mut &near, b"hello").expect("room");

        assert_eq!(pipe.fill(far.as_fd(), 3).expect("bytes"), 3);
        assert_eq!((pipe.held(), IN_USE.get()), (3, 1));
        drop(pipe);
        assert_eq!((PIPES.with_borrow(Vec::len), IN_USE.get()), (0, 0));

        let mut pipe = Pipe::take().expect("a pipe");
        pipe.fill(far.as_fd(), 10).expect("bytes");
        assert_eq!(pipe.drain(far.as_fd()).expect("room"), 2);
        drop(pipe);
        assert_eq!((PIPES.with_borrow(Vec::len), IN_USE.get()), (1, 0));
    }

    #[test]
    fn there_is_an_end_to_pipes() {
        let many: Vec<_> = (0..PIPES_MAX).filter_map(|_| Pipe::take()).collect();

        assert_eq!(many.len(), PIPES_MAX);
        assert!(Pipe::take().is_none());
        drop(many);

        assert_eq!(PIPES.with_borrow(Vec::len), POOLED_PIPES);
    }
}
