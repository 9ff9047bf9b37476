//! Idle upstream connections of one worker, by endpoint and transport, newest first.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use super::super::socket::Link;
use crate::model::upstream::Keepalive;

/// Whom a connection leads to, and through what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::l7) struct Peer {
    pub(in crate::l7) addr: SocketAddr,
    /// Id of the TLS client; 0: plain.
    pub(in crate::l7) client: u64,
}

/// A connection to an endpoint between requests.
pub(super) struct Pooled {
    pub(super) link: Link,
    /// Requests it carried.
    pub(super) requests: u32,
    /// When it was opened.
    pub(super) opened: Instant,
    idle_since: Instant,
}

/// All idle connections of one worker.
#[derive(Default)]
pub(in crate::l7) struct Pool {
    idle: RefCell<HashMap<Peer, VecDeque<Pooled>>>,
    len: Cell<usize>,
}

impl Pool {
    /// Idle connections there are.
    pub(in crate::l7) fn len(&self) -> usize {
        self.len.get()
    }

    /// The newest live connection to `peer`; dead ones on the way are closed. `surely` asks
    /// the kernel in any case: for requests that must not be repeated.
    pub(super) fn take(&self, peer: Peer, surely: bool, limits: &Keepalive) -> Option<Pooled> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&peer)?;
        while let Some(mut pooled) = connections.pop_back() {
            self.len.set(self.len.get().saturating_sub(1));
            if pooled.idle_since.elapsed() < limits.idle && pooled.link.is_idle(surely) {
                return Some(pooled);
            }
        }
        None
    }

    /// Keeps a connection whose last response was read to its end.
    pub(super) fn put(&self, peer: Peer, link: Link, requests: u32, opened: Instant, limits: &Keepalive) {
        let now = Instant::now();
        let is_over = requests >= limits.requests || now.duration_since(opened) >= limits.age;
        if is_over || limits.connections == 0 {
            return;
        }
        while self.len.get() >= limits.connections {
            self.close_oldest();
        }
        self.len.set(self.len.get() + 1);
        let pooled = Pooled { link, requests, opened, idle_since: now };
        self.idle.borrow_mut().entry(peer).or_default().push_back(pooled);
    }

    /// Makes room, by what is least likely to be used again.
    fn close_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        let oldest = idle
            .values_mut()
            .filter(|connections| !connections.is_empty())
            .min_by_key(|connections| connections.front().map(|pooled| pooled.idle_since));
        match oldest {
            Some(connections) => {
                connections.pop_front();
                self.len.set(self.len.get().saturating_sub(1));
            }
            None => self.len.set(0),
        }
    }

    /// Closes what idled too long, and every connection to an endpoint or by a client that is not
    /// among those to keep.
    pub(in crate::l7) fn sweep(
        &self,
        endpoints: &HashSet<SocketAddr>,
        clients: &HashSet<u64>,
        limits: &Keepalive,
    ) {
        let mut len = 0;
        self.idle.borrow_mut().retain(|peer, connections| {
            if !endpoints.contains(&peer.addr) || peer.client != 0 && !clients.contains(&peer.client) {
                return false;
            }
            connections.retain(|pooled| pooled.idle_since.elapsed() < limits.idle);
            len += connections.len();
            !connections.is_empty()
        });
        self.len.set(len);
    }
}
