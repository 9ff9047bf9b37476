//! Requests beyond the limits of their Ingress (`limit-*`), told to people: by a counter, and by lines of the log. What is
//! answered looks like any 503.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::metrics::Limited;
use super::route::Router;
use super::worker::Worker;
use crate::model::ObjectName;
use crate::model::l7::policy::Limits;

/// Pause of a worker between two lines about an Ingress.
const QUIET: Duration = Duration::from_secs(60);

/// What the log of one worker has said of Ingresses.
#[derive(Default)]
pub(super) struct Told(RefCell<HashMap<ObjectName, Said>>);

struct Said {
    at: Instant,
    /// Requests since then.
    untold: u64,
}

impl Told {
    /// One more. Of how many a line has to tell now, if one is due.
    fn due(&self, ingress: &ObjectName, now: Instant) -> Option<u64> {
        let mut told = self.0.borrow_mut();
        let Some(said) = told.get_mut(ingress) else {
            told.insert(ingress.clone(), Said { at: now, untold: 0 });
            return Some(1);
        };
        said.untold += 1;
        if now.saturating_duration_since(said.at) < QUIET {
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.untold))
    }

    /// Forgets Ingresses that limit nothing any more.
    pub(super) fn follow(&self, router: &Router) {
        self.0.borrow_mut().retain(|ingress, _| router.limit_zones.contains_key(ingress));
    }
}

impl Worker {
    /// A request is beyond `limit`: what it is answered.
    #[cold]
    pub(super) fn limited(&self, limits: &Limits, limit: Limited, client: IpAddr) -> u16 {
        self.counters.borrow_mut().limited(limit);
        if let Some(requests) = self.told_limited.due(&limits.ingress, Instant::now()) {
            let (limit, ingress) = (limit.as_str(), &limits.ingress);
            tracing::warn!(%ingress, limit, %client, requests, "clients ask more than limit-* of an Ingress allows");
        }
        match limit {
            Limited::Rate => limits.often_status,
            Limited::Connections => limits.at_once_status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingress_has_a_line_at_once_and_then_one_a_minute() {
        let (told, start) = (Told::default(), Instant::now());
        let [web, api] = ["web", "api"].map(|name| ObjectName::new("default", name));

        assert_eq!(told.due(&web, start), Some(1));
        assert_eq!(told.due(&web, start + QUIET / 2), None);
        assert_eq!(told.due(&api, start + QUIET / 2), Some(1));
        assert_eq!(told.due(&web, start + QUIET), Some(2));
    }
}
