//! The upstream side of one worker: its endpoints, the connections to them, and the attempts that
//! one request makes.
//!
//! Who has a request to send makes [`Attempts`] and asks them for a [`Lease`] until an endpoint
//! answered or they say what the client is told. What is said on the connection is none of this
//! room's business, so HTTP/1.1, HTTP/2 and FastCGI share it.

mod attempts;
mod client;
mod pool;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use super::route::UpstreamEntry;
use crate::model::upstream::UpstreamName;

pub(super) use attempts::{Attempts, Lease, Next, Progress, Speech, Terms};
pub(super) use client::{Client, Clients};
pub(super) use pool::{Peer, Pool};

/// How an endpoint is spoken to, below HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP.
    Plain,
    /// TLS with this client of the router.
    Tls(usize),
}

/// An endpoint as this worker knows it.
pub(super) struct Endpoint {
    pub(super) addr: SocketAddr,
    /// Attempts that run there now.
    outstanding: Cell<u32>,
}

/// An upstream as this worker knows it.
pub(super) struct Upstream {
    endpoints: Vec<Rc<Endpoint>>,
    /// Next endpoint.
    cursor: Cell<usize>,
}

impl Upstream {
    /// Goes on where `before` stood; one that is new starts at `start`.
    fn new(entry: &UpstreamEntry, before: Option<&Self>, start: usize) -> Self {
        let known: HashMap<SocketAddr, &Rc<Endpoint>> = before
            .map(|before| before.endpoints.iter().map(|endpoint| (endpoint.addr, endpoint)).collect())
            .unwrap_or_default();
        let endpoint = |addr: &SocketAddr| match known.get(addr) {
            Some(endpoint) => Rc::clone(endpoint),
            None => Rc::new(Endpoint { addr: *addr, outstanding: Cell::new(0) }),
        };
        Self {
            endpoints: entry.endpoints.iter().map(endpoint).collect(),
            cursor: Cell::new(before.map_or(start, |before| before.cursor.get())),
        }
    }

    fn pick(&self) -> Option<Picked> {
        let at = self.cursor.get().checked_rem(self.endpoints.len())?;
        self.cursor.set(at + 1);
        self.endpoints.get(at).map(Picked::new)
    }
}

/// An endpoint chosen for one attempt, which counts there until this is dropped.
pub(super) struct Picked(Rc<Endpoint>);

impl Picked {
    fn new(endpoint: &Rc<Endpoint>) -> Self {
        endpoint.outstanding.set(endpoint.outstanding.get() + 1);
        Self(Rc::clone(endpoint))
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.0.addr
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.0.outstanding.set(self.0.outstanding.get().saturating_sub(1));
    }
}

/// All upstreams of a snapshot, in the router's order.
pub(super) struct Upstreams(Vec<Rc<Upstream>>);

impl Upstreams {
    /// Takes over what `before` knew.
    pub(super) fn new(entries: &[UpstreamEntry], before: Option<(&[UpstreamEntry], &Self)>) -> Self {
        let known: HashMap<&UpstreamName, &Rc<Upstream>> = before
            .map(|(entries, before)| entries.iter().map(|entry| &entry.name).zip(&before.0).collect())
            .unwrap_or_default();
        // Many workers must not start in step.
        let upstreams = entries.iter().map(|entry| {
            let before = known.get(&entry.name).map(|before| &***before);
            Rc::new(Upstream::new(entry, before, super::random() as usize >> 1))
        });
        Self(upstreams.collect())
    }

    fn get(&self, index: usize) -> Option<&Rc<Upstream>> {
        self.0.get(index)
    }
}
