//! The upstream side of one worker: its endpoints, the connections to them, and the attempts that
//! one request makes.
//!
//! Who has a request to send makes [`Attempts`] and asks them for a [`Lease`] until an endpoint
//! answered or they say what the client is told. What is said on the connection is none of this
//! room's business, so HTTP/1.1, HTTP/2 and FastCGI share it.

mod attempts;
mod client;
mod dial;
mod pool;
mod record;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use super::balance::Endpoints;
use super::route::UpstreamEntry;
use crate::model::health::Unwell;
use crate::model::upstream::UpstreamName;

pub(super) use attempts::{Attempts, Lead, Lease, Next, Progress, Speech, Terms};
pub(super) use client::{Client, Clients, unverified};
pub use dial::Dialer;
pub(super) use pool::{Peer, Pool};
pub(super) use record::{Attempt, Record};

/// How an endpoint is spoken to, below HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP.
    Plain,
    /// TLS with this client of the router.
    Tls(usize),
}

/// All upstreams of a snapshot as one worker knows them, in the router's order.
pub(super) struct Upstreams(Vec<Rc<Endpoints>>);

/// Which of how many workers one is: they start round robin apart, so that together they are even.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) worker: usize,
    pub(super) of: usize,
}

impl Upstreams {
    /// Takes over what `before` knew.
    pub(super) fn new(
        entries: &[UpstreamEntry],
        before: Option<(&[UpstreamEntry], &Self)>,
        seat: Seat,
    ) -> Self {
        let now = Instant::now();
        let known: HashMap<&UpstreamName, &Rc<Endpoints>> = before
            .map(|(entries, before)| entries.iter().map(|entry| &entry.name).zip(&before.0).collect())
            .unwrap_or_default();
        let upstreams = entries.iter().map(|entry| {
            let before = known.get(&entry.name).map(|before| &***before);
            let start = entry.rule.round() * seat.worker / seat.of.max(1);
            Rc::new(Endpoints::new(&entry.endpoints, entry.care, before, start, now))
        });
        Self(upstreams.collect())
    }

    /// What active checks found.
    pub(super) fn set_unwell(&self, entries: &[UpstreamEntry], unwell: &Unwell) {
        for (entry, endpoints) in entries.iter().zip(&self.0) {
            let of = unwell.0.get(&entry.name);
            endpoints.set_unwell(|addr| of.is_some_and(|of| of.contains_key(addr)));
        }
    }

    fn get(&self, index: usize) -> Option<&Rc<Endpoints>> {
        self.0.get(index)
    }
}
