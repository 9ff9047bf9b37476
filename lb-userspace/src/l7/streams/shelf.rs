//! Sockets on ports beside http and https that pass from one agent to the next: those of the agent before us until workers
//! take them up, and other ends of our own for an agent after us. In an accept queue that passes on nothing is lost.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::listen::{InheritedStream, StreamPlace};

/// Shared by all workers; none of them looks here but when it opens or closes a port.
#[derive(Clone, Default)]
pub(in crate::l7) struct Shelf(Arc<Mutex<Sockets>>);

#[derive(Default)]
struct Sockets {
    /// Nobody listens on these; by place and number among those of it.
    left: Vec<(StreamPlace, usize, OwnedFd)>,
    /// Where some of those were taken up.
    taken: BTreeSet<StreamPlace>,
    /// Those of our workers.
    ours: Vec<(StreamPlace, usize, OwnedFd)>,
}

impl Shelf {
    /// What an agent before us listens on.
    pub(in crate::l7) fn of(inherited: Vec<InheritedStream>) -> Self {
        let shelf = Self::default();
        let mut sockets = shelf.lock();
        for InheritedStream { at, socket } in inherited {
            let number = sockets.left.iter().filter(|(place, ..)| *place == at).count();
            sockets.left.push((at, number, socket));
        }
        drop(sockets);
        shelf
    }

    /// Those that this worker, of so many, is to look after: together workers take all.
    pub(super) fn take(&self, at: StreamPlace, worker: usize, of: usize) -> Vec<OwnedFd> {
        let mut sockets = self.lock();
        let is_its = |place: StreamPlace, number: usize| place == at && number % of.max(1) == worker;
        let taken: Vec<_> =
            sockets.left.extract_if(.., |(place, number, _)| is_its(*place, *number)).collect();
        if !taken.is_empty() {
            sockets.taken.insert(at);
        }
        taken.into_iter().map(|(.., socket)| socket).collect()
    }

    /// A worker listens there now.
    pub(super) fn note(&self, at: StreamPlace, worker: usize, socket: &OwnedFd) -> io::Result<()> {
        let again = socket.as_fd().try_clone_to_owned()?;
        self.lock().ours.push((at, worker, again));
        Ok(())
    }

    /// It does not any more. Those that another process has are left here, to be taken up again if that fails.
    pub(super) fn forget(
        &self,
        worker: usize,
        is_closed: impl Fn(StreamPlace) -> bool,
        handed_over: &HashSet<StreamPlace>,
    ) {
        let mut sockets = self.lock();
        let gone: Vec<_> =
            sockets.ours.extract_if(.., |(at, owner, _)| *owner == worker && is_closed(*at)).collect();
        sockets.left.extend(gone.into_iter().filter(|(at, ..)| handed_over.contains(at)));
    }

    /// The places where sockets were taken up.
    pub(in crate::l7) fn taken(&self) -> BTreeSet<StreamPlace> {
        self.lock().taken.clone()
    }

    /// Other ends of all that workers listen on.
    pub(in crate::l7) fn again(&self) -> io::Result<Vec<InheritedStream>> {
        let again = |(at, _, socket): &(StreamPlace, usize, OwnedFd)| {
            Ok(InheritedStream { at: *at, socket: socket.as_fd().try_clone_to_owned()? })
        };
        self.lock().ours.iter().map(again).collect()
    }

    /// Closes what nobody took up: connections would wait there for ever.
    pub(in crate::l7) fn clear(&self) {
        self.lock().left.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::model::l4::Protocol;

    #[test]
    fn workers_take_all_that_there_are_however_many_they_are() {
        for of in 1..5 {
            let at = (Protocol::Udp, ([127, 0, 0, 1], 53).into());
            let socket = || UdpSocket::bind(("127.0.0.1", 0)).expect("bind").into();
            let shelf = Shelf::of((0..3).map(|_| InheritedStream { at, socket: socket() }).collect());

            let taken: usize = (0..of).map(|worker| shelf.take(at, worker, of).len()).sum();

            assert_eq!((taken, shelf.taken()), (3, [at].into()), "{of} workers");
        }
    }

    #[test]
    fn what_was_handed_over_can_be_taken_up_again_and_nothing_else() {
        let [tcp, udp] =
            [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, ([127, 0, 0, 1], 53).into()));
        let shelf = Shelf::default();
        for at in [tcp, udp] {
            shelf.note(at, 0, &UdpSocket::bind(("127.0.0.1", 0)).expect("bind").into()).expect("noted");
        }
        assert_eq!(shelf.again().expect("ends").len(), 2);

        shelf.forget(0, |_| true, &[tcp].into());

        assert_eq!([tcp, udp].map(|at| shelf.take(at, 0, 1).len()), [1, 0]);
        assert!(shelf.again().expect("ends").is_empty());
    }
}
