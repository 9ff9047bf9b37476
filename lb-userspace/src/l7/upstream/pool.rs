//! Idle upstream connections of one worker, by endpoint and transport, newest first.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::socket::Link;

/// Idle connections kept by one worker (`upstream-keepalive-connections`).
const IDLE_MAX: usize = 320;
/// How long one may idle (`upstream-keepalive-timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests after which one is not kept (`upstream-keepalive-requests`).
const REQUESTS_MAX: u32 = 10_000;
/// Age after which one is not kept (`upstream-keepalive-time`).
const AGE_MAX: Duration = Duration::from_secs(3600);

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
    pub(super) fn take(&self, peer: Peer, surely: bool) -> Option<Pooled> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&peer)?;
        while let Some(mut pooled) = connections.pop_back() {
            self.len.set(self.len.get().saturating_sub(1));
            if pooled.idle_since.elapsed() < IDLE_TIMEOUT && pooled.link.is_idle(surely) {
                return Some(pooled);
            }
        }
        None
    }

    /// Keeps a connection whose last response was read to its end.
    pub(super) fn put(&self, peer: Peer, link: Link, requests: u32, opened: Instant) {
        let now = Instant::now();
        if requests >= REQUESTS_MAX || now.duration_since(opened) >= AGE_MAX || self.len.get() >= IDLE_MAX {
            return;
        }
        self.len.set(self.len.get() + 1);
        let pooled = Pooled { link, requests, opened, idle_since: now };
        self.idle.borrow_mut().entry(peer).or_default().push_back(pooled);
    }

    /// Closes what idled too long, and every connection to an endpoint or by a client that is not
    /// among those to keep.
    pub(in crate::l7) fn sweep(&self, endpoints: &HashSet<SocketAddr>, clients: &HashSet<u64>) {
        let mut len = 0;
        self.idle.borrow_mut().retain(|peer, connections| {
            if !endpoints.contains(&peer.addr) || peer.client != 0 && !clients.contains(&peer.client) {
                return false;
            }
            connections.retain(|pooled| pooled.idle_since.elapsed() < IDLE_TIMEOUT);
            len += connections.len();
            !connections.is_empty()
        });
        self.len.set(len);
    }
}
