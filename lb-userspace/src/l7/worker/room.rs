//! Room for one more: how many connections a worker may have, of clients and to endpoints, and who gives way where there
//! are as many.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use super::super::descriptors::{self, OpenLink};
use super::super::gate::Entry;
use super::super::listen::Place;
use super::{ACCEPT_PAUSE, Worker};

/// Of the connections a full worker may have, one in this many is closed if it is idle.
const SHED_SHARE: usize = 32;
/// How soon a full worker looks again for idle connections.
const SHED_PAUSE: Duration = Duration::from_secs(1);
/// How often a worker tells that it is out of descriptors.
const TELL_EXHAUSTED: Duration = Duration::from_secs(60);

/// While this lives, silent connections are told to end.
struct Shedding<'w>(&'w Cell<usize>);

impl Drop for Shedding<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

impl Worker {
    /// By `max-worker-connections`. Each listener holds one more, and the rest wait in the accept queue.
    fn has_room(&self) -> bool {
        let most = self.current.load().router.edge.connections.min(self.share());
        self.active.get() < most && self.has_descriptors()
    }

    /// Client connections that the descriptors of the process allow; as many are left for endpoints.
    fn share(&self) -> usize {
        self.descriptors.connections(self.exchanges.sockets())
    }

    /// One more connection to an endpoint, if the descriptors of the process allow it for a client that has `own` with it.
    pub(in crate::l7) fn open_link(&self, own: usize) -> Option<OpenLink> {
        let idle = || if own > 1 { self.pool.len() } else { 0 };
        let may = self.links.are_for(own, self.share(), idle()) && self.has_descriptors();
        may.then(|| self.links.open())
    }

    /// Kept connections make room.
    fn has_descriptors(&self) -> bool {
        while self.links.are_full(self.share(), self.active.get()) {
            if !self.pool.close_one() {
                return false;
            }
        }
        true
    }

    /// A connection could not be accepted. Without descriptors, silent clients make room as they do in a full worker;
    /// other errors pass by themselves, and a pause is all there is to do.
    pub(super) async fn not_accepted(&self, error: &io::Error) {
        if !descriptors::are_exhausted(error) {
            return tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        self.counters.borrow_mut().full += 1;
        if self.may_tell_lack() {
            tracing::error!(
                worker = self.seat.worker,
                %error,
                connections = self.active.get(),
                "clients wait, because no file descriptor is free; raise the limit of open files (LimitNOFILE, ulimit -n)"
            );
        }
        let _shedding = Shedding(&self.shed);
        self.make_room().await;
    }

    /// An endpoint could not be connected to for a lack of ours.
    pub(in crate::l7) fn not_connected(&self, error: &io::Error) {
        if self.may_tell_lack() {
            tracing::error!(
                worker = self.seat.worker,
                %error,
                connections = self.active.get(),
                "endpoints cannot be connected to, which is no fault of theirs; raise the limit of open files (LimitNOFILE, \
                 ulimit -n) or, where addresses are missing, widen net.ipv4.ip_local_port_range or keep more connections \
                 (upstream-keepalive-connections)"
            );
        }
    }

    fn may_tell_lack(&self) -> bool {
        let now = Instant::now();
        let is_due = self.told_exhausted.get().is_none_or(|told| now.duration_since(told) >= TELL_EXHAUSTED);
        if is_due {
            self.told_exhausted.set(Some(now));
        }
        is_due
    }

    /// Waits until a connection that came in at `place` may be served, but no longer than all are taken there: neither
    /// whoever takes them from then on nor the end of the last ones can wait for others that may never end.
    pub(super) async fn admit(&self, place: Place) {
        while self.gate.entry(place) == Entry::Open {
            tokio::select! {
                biased;
                () = self.room() => return,
                () = self.gate.changed() => {}
            }
        }
    }

    /// Waits until one more connection may be served. Meanwhile some of those that wait for a request, or for the
    /// rest of one, are told to end: who speaks goes before who is silent.
    pub(in crate::l7) async fn room(&self) {
        if self.has_room() {
            return;
        }
        self.counters.borrow_mut().full += 1;
        if self.may_tell_lack() {
            tracing::warn!(
                worker = self.seat.worker,
                connections = self.active.get(),
                "clients wait, because the worker is full; raise max-worker-connections or, if that is higher, the limit of \
                 open files (LimitNOFILE, ulimit -n)"
            );
        }
        let _shedding = Shedding(&self.shed);
        while !self.has_room() {
            self.make_room().await;
        }
    }

    /// Tells some silent connections to end, and waits a moment for one.
    async fn make_room(&self) {
        self.shed.set(1 + self.active.get() / SHED_SHARE);
        self.timers.wake_all();
        let _ = tokio::time::timeout(SHED_PAUSE, self.ended.notified()).await;
    }

    /// Whether a connection that waits for what its client says should end for others; asked once by each.
    pub(in crate::l7) fn dismisses(&self) -> bool {
        let shed = self.shed.get();
        self.shed.set(shed.saturating_sub(1));
        shed > 0
    }
}
