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
mod tls_error;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::balance::Endpoints;
use super::route::UpstreamEntry;
use crate::model::health::Unwell;

pub(super) use attempts::{Attempts, Lead, Lease, Next, Opened, Progress, Speech, Terms};
pub(super) use client::{Client, Clients, unverified};
pub use dial::Dialer;
pub(super) use pool::{Peer, Pool};
pub(super) use record::{Attempt, Record, Traffic};
pub(super) use tls_error::is_alert;

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
    /// Takes over what `before` knew; also returns the places of those that are not what they were.
    pub(super) fn new(
        entries: &[Arc<UpstreamEntry>],
        before: Option<(&[Arc<UpstreamEntry>], &Self)>,
        seat: Seat,
    ) -> (Self, Vec<usize>) {
        let (known, before) = before.map_or((&[][..], &[][..]), |(entries, before)| (entries, &before.0));
        let (now, mut new) = (Instant::now(), Vec::new());
        let upstreams = entries.iter().enumerate().map(|(place, entry)| {
            let (was, knew) = (known.get(place), before.get(place));
            if let (Some(was), Some(knew)) = (was, knew)
                && Arc::ptr_eq(was, entry)
            {
                return Rc::clone(knew);
            }
            new.push(place);
            // Another upstream may have stood there.
            let before = knew.filter(|_| was.is_some_and(|was| was.name == entry.name));
            let start = entry.rule.round() * seat.worker / seat.of.max(1);
            Rc::new(Endpoints::new(&entry.endpoints, entry.care, before.map(|before| &**before), start, now))
        });
        let upstreams = Self(upstreams.collect());
        (upstreams, new)
    }

    /// What active checks found of the upstreams at these places.
    pub(super) fn set_unwell(
        &self,
        entries: &[Arc<UpstreamEntry>],
        places: impl IntoIterator<Item = usize>,
        unwell: &Unwell,
    ) {
        for place in places {
            let (Some(entry), Some(endpoints)) = (entries.get(place), self.0.get(place)) else { continue };
            let of = unwell.0.get(&entry.name);
            endpoints.set_unwell(|addr| of.is_some_and(|of| of.contains_key(addr)));
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&Rc<Endpoints>> {
        self.0.get(index)
    }
}
