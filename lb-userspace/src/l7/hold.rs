//! A request body that is read whole before an endpoint is chosen (`proxy-request-buffering`): a slow
//! client holds no endpoint up, and another attempt finds all of it here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::body_memory::Share;
use super::connection::{Connection, Crawl};
use super::h1::Body;
use super::h1::chunked::Piece;
use super::spill::{Cause, Spill, Spills};

/// The content of a body, without framing: its beginning in memory, the rest in a file.
pub(super) struct Held {
    memory: Vec<u8>,
    in_memory: usize,
    share: Share,
    spill: Option<RefCell<Spill>>,
}

/// Reads `body` from the client, `in_memory` bytes of it to be held in memory and `max` at most if it
/// does not tell its length. The error is what to answer.
pub(super) async fn hold(
    connection: &mut Connection<'_, '_>,
    body: &Body,
    in_memory: usize,
    max: Option<u64>,
) -> Result<Held, u16> {
    let mut body = body.clone();
    let share = connection.share();
    let Connection { socket, buf, alarm, worker, limits, tally, .. } = connection;
    let mut held = Held { memory: Vec::new(), in_memory, share, spill: None };
    let mut due = alarm.due(limits.body_timeout);
    let crawl = Crawl::default();
    let mut ready = 0;
    poll_fn(|cx| -> Poll<Result<(), u16>> {
        loop {
            while ready > 0 {
                let bytes = buf.bytes().get(..ready).unwrap_or_default();
                let n = match ready!(held.poll_push(cx, bytes, &worker.spills)) {
                    Ok(n) => n,
                    Err(cause) => {
                        worker.counters.borrow_mut().spill_failure(cause);
                        return Poll::Ready(Err(500));
                    }
                };
                ready -= n;
                buf.consume(n);
                // Time that the disk took is not the client's.
                due = alarm.due(limits.body_timeout);
            }
            if body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if buf.is_empty() {
                match buf.poll_fill(cx, socket) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(499)),
                    Poll::Ready(Ok(_)) => due = alarm.due(limits.body_timeout),
                    Poll::Pending if crawl.makes_room(tally.body_received, alarm, worker) => {
                        return Poll::Ready(Err(408));
                    }
                    Poll::Pending => {
                        let status = || if worker.is_cut_off() { 499 } else { 408 };
                        return alarm.poll_due(cx, due).map(|()| Err(status()));
                    }
                }
            }
            let piece = body.piece(buf.bytes()).map_err(|_| 400_u16)?;
            tally.body_received += piece.len() as u64;
            match piece {
                Piece::Content(n) => ready = n,
                Piece::Framing(n) | Piece::Trailers(n) => buf.consume(n),
            }
            if max.is_some_and(|max| body.chunked_content() > max) {
                return Poll::Ready(Err(413));
            }
        }
    })
    .await?;
    Ok(held)
}

impl Held {
    /// Bytes of content.
    pub(super) fn len(&self) -> u64 {
        self.memory.len() as u64 + self.spill.as_ref().map_or(0, |spill| spill.borrow().len())
    }

    /// From its beginning.
    pub(super) fn replay(&self) -> Replay<'_> {
        Replay { held: self, at: Cell::new(0) }
    }

    fn poll_push(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        spills: &Arc<Spills>,
    ) -> Poll<Result<usize, Cause>> {
        let left = self.in_memory.saturating_sub(self.memory.len());
        let room = match self.spill {
            None => self.share.room(self.memory.len(), left.min(bytes.len())),
            Some(_) => 0,
        };
        if room == 0 {
            let spill = self.spill.get_or_insert_with(|| RefCell::new(Spill::new(spills)));
            return spill.get_mut().poll_push(cx, bytes);
        }
        self.memory.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Poll::Ready(Ok(room))
    }
}

/// Reads a [`Held`] body once; each attempt has its own.
pub(super) struct Replay<'h> {
    held: &'h Held,
    at: Cell<u64>,
}

impl Replay<'_> {
    /// Reads once; 0 is the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let Held { memory, spill, .. } = self.held;
        let at = self.at.get();
        let rest = usize::try_from(at).ok().and_then(|at| memory.get(at..)).unwrap_or_default();
        let n = match (rest, spill) {
            ([], Some(spill)) => {
                let behind = at.saturating_sub(memory.len() as u64);
                ready!(spill.borrow_mut().poll_read(cx, behind, into))?
            }
            (rest, _) => io::Read::read(&mut &*rest, into)?,
        };
        self.at.set(at + n as u64);
        Poll::Ready(Ok(n))
    }
}
