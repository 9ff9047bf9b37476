//! Where a response waits that is read ahead of its client (`proxy-buffering`): in memory, behind that in
//! a file, and where there is no room any more, at the endpoint.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::body_memory::Share;
use super::spill::Spill;
use super::worker::Worker;
use crate::model::l7::ReadAhead;

/// Bytes between the endpoint and its client, in order. Written by one leg and read by another of the
/// same task, which asks both as long as one of them got on: nobody else is woken.
pub(super) struct Ahead {
    worker: Rc<Worker>,
    limits: ReadAhead,
    held: RefCell<Bytes>,
}

struct Bytes {
    memory: VecDeque<u8>,
    share: Share,
    /// Those behind the memory's.
    spill: Option<Spill>,
    /// Of them, how many were read.
    read: u64,
    /// No file is written any more: it failed, or memory has to do.
    no_file: bool,
    end: Option<io::Result<()>>,
}

impl Ahead {
    pub(super) fn new(worker: &Rc<Worker>, limits: ReadAhead, share: Share) -> Self {
        let held = Bytes { memory: VecDeque::new(), share, spill: None, read: 0, no_file: false, end: None };
        Self { worker: Rc::clone(worker), limits, held: RefCell::new(held) }
    }

    /// Nothing more comes; with an error, what was to come is missing.
    pub(super) fn end(&self, end: io::Result<()>) {
        self.held.borrow_mut().end = Some(end);
    }

    /// Takes some of `parts`; pending where there is no room.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(bytes) = parts.iter().find(|part| !part.is_empty()) else { return Poll::Ready(Ok(0)) };
        let held = &mut *self.held.borrow_mut();
        let Bytes { memory, share, spill, read, no_file, .. } = held;
        if let Some(spill) = spill.as_mut().filter(|spill| spill.len() == *read) {
            spill.rewind();
            *read = spill.len();
        }
        let spilled = spill.as_ref().map_or(0, Spill::len);
        if spilled == *read {
            let left = self.limits.memory_bytes.saturating_sub(memory.len());
            let room = share.room(memory.len(), left.min(bytes.len()));
            if room > 0 {
                memory.extend(bytes.get(..room).unwrap_or_default());
                return Poll::Ready(Ok(room));
            }
        }
        let room = usize::try_from(self.limits.file_bytes.saturating_sub(spilled)).unwrap_or(usize::MAX);
        if room == 0 || *no_file {
            return Poll::Pending;
        }
        let spill = spill.get_or_insert_with(|| Spill::new(&self.worker.spills));
        let n = room.min(bytes.len());
        match ready!(spill.poll_push(cx, bytes.get(..n).unwrap_or_default())) {
            Ok(n) => Poll::Ready(Ok(n)),
            Err(cause) => {
                // The client still gets everything, at its own pace.
                self.worker.counters.borrow_mut().spill_failure(cause);
                *no_file = true;
                Poll::Pending
            }
        }
    }

    /// Reads once; 0 is the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let held = &mut *self.held.borrow_mut();
        let Bytes { memory, spill, read, end, .. } = held;
        if !memory.is_empty() {
            return Poll::Ready(io::Read::read(memory, into));
        }
        if let Some(spill) = spill {
            let n = ready!(spill.poll_read(cx, *read, into))?;
            *read += n as u64;
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
        match end.take() {
            None => Poll::Pending,
            Some(Ok(())) => {
                *end = Some(Ok(()));
                Poll::Ready(Ok(0))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}
