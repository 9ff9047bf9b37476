//! Endpoints that fail requests, told to people: in the log when it begins, then once a minute, and to whoever
//! asks. Who is asked nevertheless is decided by [`super::balance`], from what each worker sees for itself.
//!
//! An attempt that fails costs a worker a look into a table of its own; what the log has said of an upstream is
//! shared, and looked at once a second by each worker.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::balance::Picked;
use super::metrics::Cause;
use super::route::Router;
use super::snapshot::Snapshot;
use super::worker::Worker;
use crate::model::health::{Failing, Failures};
use crate::model::upstream::UpstreamName;

/// Pause between two lines about an upstream.
const QUIET: Duration = Duration::from_secs(60);
/// Pause after which a worker looks again whether a line is due.
const GLANCE: Duration = Duration::from_secs(1);

/// What a worker has to say of one endpoint.
pub(super) type Finding = (UpstreamName, SocketAddr, Failures);

/// All findings together.
pub(super) fn join(findings: impl IntoIterator<Item = Finding>) -> Failing {
    let mut failing = Failing::default();
    for (upstream, addr, mut found) in findings {
        let of = failing.0.entry(upstream).or_default();
        if let Some(known) = of.remove(&addr) {
            found = found.join(known);
        }
        of.insert(addr, found);
    }
    failing
}

/// How endpoints let requests down. Lines about one hide none about the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fails,
    BreaksOff,
}

/// One for each [`Kind`].
type Each<T> = [T; 2];

/// What the log has said, for all workers.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<HashMap<UpstreamName, Said>>>);

/// Of an upstream.
#[derive(Default)]
struct Said {
    lines: Each<Line>,
    /// Endpoints that were named as those that fail, and have not answered since.
    named: HashSet<SocketAddr>,
}

#[derive(Default)]
struct Line {
    at: Option<Instant>,
    /// How often it happened since then.
    untold: u64,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, HashMap<UpstreamName, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many attempts came to that. Of how many a line has to tell now, if one is due.
    fn told(
        &self,
        upstream: &UpstreamName,
        endpoint: SocketAddr,
        (kind, attempts): (Kind, u64),
        now: Instant,
    ) -> Option<u64> {
        let mut said = self.lock();
        if !said.contains_key(upstream) {
            said.insert(upstream.clone(), Said::default());
        }
        let Said { lines, named } = said.get_mut(upstream)?;
        let line = &mut lines[kind as usize];
        line.untold += attempts;
        if line.at.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            return None;
        }
        line.at = Some(now);
        if kind == Kind::Fails {
            named.insert(endpoint);
        }
        Some(std::mem::take(&mut line.untold))
    }

    /// Whether that is worth a line: it was named as one that fails.
    fn answers(&self, upstream: &UpstreamName, endpoint: SocketAddr) -> bool {
        self.lock().get_mut(upstream).is_some_and(|known| known.named.remove(&endpoint))
    }
}

/// What one worker has seen fail.
pub(super) struct Seen {
    log: Log,
    upstreams: RefCell<HashMap<UpstreamName, Each<Unsaid>>>,
}

/// Of an upstream.
#[derive(Default)]
struct Unsaid {
    attempts: u64,
    /// When to look at the log again.
    next: Option<Instant>,
}

impl Seen {
    pub(super) fn new(log: Log) -> Self {
        Self { log, upstreams: RefCell::default() }
    }

    fn has(&self, kind: Kind, upstream: &UpstreamName, endpoint: SocketAddr, now: Instant) -> Option<u64> {
        let mut upstreams = self.upstreams.borrow_mut();
        if !upstreams.contains_key(upstream) {
            upstreams.insert(upstream.clone(), Each::default());
        }
        let unsaid = &mut upstreams.get_mut(upstream)?[kind as usize];
        unsaid.attempts += 1;
        if unsaid.next.is_some_and(|next| now < next) {
            return None;
        }
        unsaid.next = Some(now + GLANCE);
        self.log.told(upstream, endpoint, (kind, std::mem::take(&mut unsaid.attempts)), now)
    }

    /// Forgets upstreams that are gone.
    pub(super) fn follow(&self, router: &Router) {
        self.upstreams.borrow_mut().retain(|name, _| router.place_of(name).is_some());
        self.log.lock().retain(|name, _| router.place_of(name).is_some());
    }

    /// What is held against endpoints of this snapshot.
    pub(super) fn findings(&self, snapshot: &Snapshot, now: Instant) -> Vec<Finding> {
        let upstreams = self.upstreams.borrow();
        let known = upstreams.keys().filter_map(|name| {
            let endpoints = snapshot.upstreams.get(snapshot.router.place_of(name)?)?;
            Some((name, endpoints))
        });
        let of_each = known.flat_map(|(name, endpoints)| {
            endpoints.failures(now).map(move |(addr, failures)| (name.clone(), addr, failures))
        });
        of_each.collect()
    }
}

impl Worker {
    /// An endpoint failed an attempt that took so long.
    pub(super) fn failed(&self, upstream: &UpstreamName, picked: &Picked, cause: Cause, took: Duration) {
        let (now, endpoint) = (Instant::now(), picked.addr());
        if let Some(attempts) = self.failing.has(Kind::Fails, upstream, endpoint, now) {
            tracing::warn!(upstream = %upstream.0, %endpoint, %cause, attempts, "an endpoint fails requests");
        }
        picked.failed(cause, took, now);
    }

    /// An endpoint did not end an answer as it should. The log tells it as it tells of attempts that fail.
    pub(super) fn broke_off(&self, upstream: &UpstreamName, endpoint: SocketAddr, cause: Cause) {
        if let Some(attempts) = self.failing.has(Kind::BreaksOff, upstream, endpoint, Instant::now()) {
            tracing::warn!(upstream = %upstream.0, %endpoint, %cause, attempts, "an endpoint breaks off its answers");
        }
    }

    /// An endpoint began to answer.
    pub(super) fn answered(&self, upstream: &UpstreamName, picked: &Picked, took: Duration, now: Instant) {
        let endpoint = picked.addr();
        if picked.succeeded(took, now) && self.failing.log.answers(upstream, endpoint) {
            tracing::info!(upstream = %upstream.0, %endpoint, "an endpoint that failed requests answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health::Ejected;

    #[test]
    fn the_log_speaks_at_once_and_then_once_a_minute_for_all_workers() {
        let (log, start) = (Log::default(), Instant::now());
        let workers = [Seen::new(log.clone()), Seen::new(log.clone())];
        let [dead, other] = ["dead", "other"].map(|name| UpstreamName(name.to_owned()));
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let at = |millis| start + Duration::from_millis(millis);

        assert_eq!(workers[0].has(Kind::Fails, &dead, endpoint, at(0)), Some(1));
        assert_eq!(workers[1].has(Kind::Fails, &dead, endpoint, at(1)), None);
        assert_eq!(workers[1].has(Kind::Fails, &other, endpoint, at(1)), Some(1), "another upstream");
        for worker in &workers {
            assert!((2..900).all(|millis| worker.has(Kind::Fails, &dead, endpoint, at(millis)).is_none()));
        }
        assert_eq!(workers[0].has(Kind::Fails, &dead, endpoint, at(59_000)), None);
        assert_eq!(workers[1].has(Kind::Fails, &dead, endpoint, at(60_000)), Some(1 + 2 * 898 + 2));

        assert!(log.answers(&dead, endpoint), "it was named");
        assert!(!log.answers(&dead, endpoint), "and that was said");
    }

    #[test]
    fn an_answer_that_was_broken_off_hides_no_failure_for_the_log() {
        let (log, now) = (Log::default(), Instant::now());
        let worker = Seen::new(log.clone());
        let upstream = UpstreamName("up".to_owned());
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let told = |kind| worker.has(kind, &upstream, endpoint, now);

        assert_eq!((told(Kind::BreaksOff), told(Kind::BreaksOff)), (Some(1), None));
        assert!(!log.answers(&upstream, endpoint), "it answers all the while");
        assert_eq!((told(Kind::Fails), told(Kind::Fails)), (Some(1), None));
        assert!(log.answers(&upstream, endpoint));
    }

    #[test]
    fn findings_of_workers_come_together() {
        let name = UpstreamName("dead".to_owned());
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let seconds = Duration::from_secs;
        let found = |cause: &str, ago, ejected| {
            (
                name.clone(),
                endpoint,
                Failures { cause: cause.to_owned(), count: 5, ago: seconds(ago), ejected },
            )
        };
        let ejected = Ejected { since: seconds(9), left: seconds(4) };

        let failing = join([found("timeout", 7, Some(ejected)), found("connect", 3, None)]);

        let together =
            Failures { cause: "connect".to_owned(), count: 10, ago: seconds(3), ejected: Some(ejected) };
        assert_eq!(failing.of(&name).collect::<Vec<_>>(), [(&endpoint, &together)]);
        assert_eq!(failing.ejected(&name), 1);
        assert_eq!(
            together.to_string(),
            "connect, 10 failed, the last 3 s ago; ejected since 9 s, asked again in 4 s"
        );
    }
}
