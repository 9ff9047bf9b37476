//! Idle upstream connections of one worker, by endpoint and transport, newest first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::super::map::Map;
use super::super::socket::{Link, Look};
use crate::model::upstream::Keepalive;

/// Whom a connection leads to, and through what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::l7) struct Peer {
    pub(in crate::l7) addr: SocketAddr,
    /// Id of the TLS client; 0: plain.
    pub(in crate::l7) client: u64,
}

/// A connection to an endpoint between requests.
pub(in crate::l7) struct Pooled {
    pub(in crate::l7) link: Link,
    /// Requests it carried.
    pub(in crate::l7) requests: u32,
    /// When it was opened.
    pub(in crate::l7) opened: Instant,
    idle_since: Instant,
    place: Place,
}

/// One of the idle connections that are counted together, for as long as it is held.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn taken(of: &Rc<Cell<usize>>) -> Self {
        of.set(of.get() + 1);
        Self(Rc::clone(of))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// All idle connections of one worker.
#[derive(Default)]
pub(in crate::l7) struct Pool {
    idle: RefCell<Map<Peer, VecDeque<Pooled>>>,
    /// Those of upstreams that have no number of their own.
    shared: Rc<Cell<usize>>,
}

impl Pool {
    /// Idle connections there are.
    pub(in crate::l7) fn len(&self) -> usize {
        self.idle.borrow().values().map(VecDeque::len).sum()
    }

    /// The newest live connection to `peer`; dead ones on the way are closed.
    pub(in crate::l7) fn take(
        &self,
        peer: Peer,
        look: Look,
        limits: &Keepalive,
        now: Instant,
    ) -> Option<Pooled> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&peer)?;
        while let Some(mut pooled) = connections.pop_back() {
            if now.saturating_duration_since(pooled.idle_since) < limits.idle && pooled.link.is_idle(look) {
                return Some(pooled);
            }
        }
        None
    }

    /// Keeps a connection whose last response was read to its end. `own`: how many its upstream
    /// keeps, and what counts them, if it is not one of all.
    pub(in crate::l7) fn put(
        &self,
        peer: Peer,
        link: Link,
        (requests, opened): (u32, Instant),
        own: Option<(usize, &Rc<Cell<usize>>)>,
        limits: &Keepalive,
        now: Instant,
    ) {
        let is_over = requests >= limits.requests || now.duration_since(opened) >= limits.age;
        let (most, counted) = own.unwrap_or((limits.connections, &self.shared));
        if is_over || most == 0 {
            return;
        }
        while counted.get() >= most && self.close_oldest(counted) {}
        let pooled = Pooled { link, requests, opened, idle_since: now, place: Place::taken(counted) };
        self.idle.borrow_mut().entry(peer).or_default().push_back(pooled);
    }

    /// Makes room among those that are counted together, by what is least likely to be used again;
    /// false if there are none.
    fn close_oldest(&self, counted: &Rc<Cell<usize>>) -> bool {
        self.close_oldest_of(|pooled| Rc::ptr_eq(&pooled.place.0, counted))
    }

    fn close_oldest_of(&self, is_one: impl Fn(&Pooled) -> bool) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest_of_each = idle.values_mut().filter_map(|connections| {
            let at = connections.iter().position(&is_one)?;
            Some((connections.get(at)?.idle_since, at, connections))
        });
        let oldest = oldest_of_each.min_by_key(|(idle_since, ..)| *idle_since);
        oldest.is_some_and(|(_, at, connections)| connections.remove(at).is_some())
    }

    /// Closes one, whichever has idled longest; false if there are none.
    pub(in crate::l7) fn close_one(&self) -> bool {
        self.close_oldest_of(|_| true)
    }

    /// Closes what idled for longer.
    pub(in crate::l7) fn sweep_idle(&self, longest: Duration) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|pooled| pooled.idle_since.elapsed() < longest);
            !connections.is_empty()
        });
    }

    /// Closes every connection to a peer that has left.
    pub(in crate::l7) fn drop_peers(&self, has_left: impl Fn(&Peer) -> bool) {
        self.idle.borrow_mut().retain(|peer, _| !has_left(peer));
    }

    /// Closes what idled too long, and every connection to a peer that does not stay.
    pub(in crate::l7) fn sweep(&self, stays: impl Fn(&Peer) -> bool, limits: &Keepalive) {
        self.idle.borrow_mut().retain(|peer, connections| {
            if !stays(peer) {
                return false;
            }
            connections.retain(|pooled| pooled.idle_since.elapsed() < limits.idle);
            !connections.is_empty()
        });
    }
}
