//! What one worker knows of one endpoint.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Endpoints;
use super::ejection::Ejection;
use super::latency::Latency;
use crate::l7::metrics::Cause;
use crate::model::health::{Ejected, Failures};
use crate::model::upstream;

/// A failure counts as an answer that took so long: an endpoint that refuses is not fast.
const FAILURE: Duration = Duration::from_secs(1);

/// One endpoint.
pub(in crate::l7) struct Endpoint {
    pub(in crate::l7) addr: SocketAddr,
    /// Attempts that run there now.
    outstanding: Cell<u32>,
    latency: Latency,
    ejection: Ejection,
    trouble: RefCell<Option<Trouble>>,
    /// Active checks have nothing against it.
    is_well: Cell<bool>,
    /// When it came beside others; `None`: it was there from the start, or need not start slowly.
    joined: Option<Instant>,
}

/// What it did since it last answered.
struct Trouble {
    last: Cause,
    at: Instant,
    count: u64,
    /// Since when it is ejected again and again.
    ejected: Option<Instant>,
}

impl Endpoint {
    pub(super) fn new(addr: SocketAddr, joined: Option<Instant>, latency: f64, now: Instant) -> Self {
        Self {
            addr,
            outstanding: Cell::new(0),
            latency: Latency::new(latency, now),
            ejection: Ejection::default(),
            trouble: RefCell::default(),
            is_well: Cell::new(true),
            joined,
        }
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    pub(super) fn latency(&self, now: Instant) -> f64 {
        self.latency.at(now)
    }

    pub(super) fn joined(&self) -> Option<Instant> {
        self.joined
    }

    pub(super) fn is_in(&self, now: Instant) -> bool {
        self.is_well.get() && self.ejection.returns(now).is_none()
    }

    /// When its ejection ends, if it is ejected.
    pub(super) fn returns(&self, now: Instant) -> Option<Instant> {
        self.ejection.returns(now)
    }

    pub(super) fn is_well(&self) -> bool {
        self.is_well.get()
    }

    pub(super) fn set_well(&self, well: bool) {
        self.is_well.set(well);
    }

    /// True if that ejects it.
    pub(super) fn failed(
        &self,
        rule: &upstream::Ejection,
        cause: Cause,
        took: Duration,
        now: Instant,
    ) -> bool {
        self.latency.observe(took.max(FAILURE), now);
        let ejects = self.ejection.failed(rule, now);
        let before = self.trouble.take();
        let (count, ejected) = before.map_or((0, None), |trouble| (trouble.count, trouble.ejected));
        let ejected = ejected.or(ejects.then_some(now));
        self.trouble.replace(Some(Trouble { last: cause, at: now, count: count + 1, ejected }));
        ejects
    }

    /// True if it had failed before.
    fn succeeded(&self, took: Duration, now: Instant) -> bool {
        self.latency.observe(took, now);
        self.ejection.succeeded();
        self.trouble.borrow().is_some() && self.trouble.take().is_some()
    }

    /// What is held against it; nothing, if it answers.
    pub(super) fn failures(&self, now: Instant) -> Option<Failures> {
        let trouble = self.trouble.borrow();
        let Trouble { last, at, count, ejected } = trouble.as_ref()?;
        let ago = |at: Instant| now.saturating_duration_since(at);
        let until = self.returns(now);
        let ejected = until
            .zip(*ejected)
            .map(|(until, since)| Ejected { since: ago(since), left: until.saturating_duration_since(now) });
        Some(Failures { cause: last.to_string(), count: *count, ago: ago(*at), ejected })
    }
}

/// An endpoint chosen for one attempt, which counts there until this is dropped.
pub(in crate::l7) struct Picked {
    endpoints: Rc<Endpoints>,
    endpoint: Rc<Endpoint>,
    index: usize,
}

impl Picked {
    pub(super) fn new(endpoints: Rc<Endpoints>, index: usize) -> Option<Self> {
        let endpoint = Rc::clone(endpoints.get(index)?);
        endpoint.outstanding.set(endpoint.outstanding.get() + 1);
        Some(Self { endpoints, endpoint, index })
    }

    pub(in crate::l7) fn addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    /// Its number among the endpoints of the upstream.
    pub(in crate::l7) fn index(&self) -> usize {
        self.index
    }

    /// It began to answer after this time. True if it had failed before.
    pub(in crate::l7) fn succeeded(&self, took: Duration, now: Instant) -> bool {
        self.endpoint.succeeded(took, now)
    }

    /// It let the attempt down.
    pub(in crate::l7) fn failed(&self, cause: Cause, took: Duration, now: Instant) {
        self.endpoints.failed(self.index, cause, took, now);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.outstanding.set(self.endpoint.outstanding.get().saturating_sub(1));
    }
}
