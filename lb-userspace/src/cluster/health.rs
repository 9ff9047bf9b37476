//! How well we hear the API server: when each kind was last confirmed, and what fails.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

use super::failure::{Failure, Why};
use super::reads::{Reads, Unread};
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::{ObjectId, ObjectName, Problem, Severity};

/// A connection that breaks and is back within this is nobody's concern.
const TOLERATED: Duration = Duration::from_secs(5);

/// What is followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Feed {
    /// As the API server calls it, e.g. `ingresses`.
    pub(super) resource: &'static str,
    /// The one namespace it is followed in.
    pub(super) namespace: Option<String>,
    /// It can be done without.
    pub(super) need: Need,
}

/// What it means not to be allowed to follow a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Nothing can be served.
    Must,
    /// Something is missing.
    May,
}

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

/// Shared by all who follow and all who ask.
#[derive(Debug)]
pub struct Health {
    since: Instant,
    feeds: Mutex<BTreeMap<Feed, Heard>>,
    /// By resource.
    reads: Mutex<BTreeMap<&'static str, Reads>>,
    /// Something that is told has changed.
    pub(super) changed: Notify,
}

/// What is known of a feed.
#[derive(Debug, Default)]
struct Heard {
    /// The last sign of life.
    last: Option<Instant>,
    /// It was listed at least once.
    listed: bool,
    /// The newest failure since then, and the time of the first.
    failing: Option<(Failure, Instant)>,
    /// The failure was told to somebody.
    told: bool,
    failures: BTreeMap<Why, u64>,
}

impl Health {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            feeds: Mutex::default(),
            reads: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Somebody begins to follow this.
    pub(super) fn of(self: &Arc<Self>, feed: Feed) -> FeedHealth {
        self.feeds().entry(feed.clone()).or_default();
        FeedHealth { health: Arc::clone(self), feed }
    }

    /// Somebody begins to read objects of this kind.
    pub(super) fn reads(self: &Arc<Self>, resource: &'static str) -> ReadHealth {
        self.all_reads().insert(resource, Reads::default());
        ReadHealth { health: Arc::clone(self), resource }
    }

    fn all_reads(&self) -> MutexGuard<'_, BTreeMap<&'static str, Reads>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds(&self) -> MutexGuard<'_, BTreeMap<Feed, Heard>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All is listed that can be.
    pub(super) fn is_complete(&self) -> bool {
        self.feeds().iter().all(|(feed, heard)| {
            let refused = heard.failing.as_ref().is_some_and(|(failure, _)| {
                feed.need == Need::May && matches!(failure.why, Why::Refused | Why::Missing)
            });
            heard.listed || refused
        })
    }

    /// What is not known yet and has to be, with the reason; `None`: nothing.
    pub fn wants(&self) -> Option<String> {
        let feeds = self.feeds();
        let missing = || feeds.iter().filter(|(feed, heard)| feed.need == Need::Must && !heard.listed);
        // Who says why tells more than who is merely slow.
        let reason = |(feed, heard): (&Feed, &Heard)| {
            heard.failing.as_ref().map(|(failure, _)| format!("{feed} cannot be listed: {}", failure.message))
        };
        let first = || missing().next().map(|(feed, _)| format!("{feed} are not listed yet"));
        let unread = || self.all_reads().iter().find_map(|(resource, reads)| reads.wants(resource));
        missing().find_map(reason).or_else(first).or_else(unread)
    }

    /// How long ago the API server last confirmed what is known of the kind it has been silent about
    /// longest.
    pub fn age(&self) -> Duration {
        let feeds = self.feeds();
        let followed = feeds.iter().filter(|(feed, heard)| feed.need == Need::Must || heard.listed);
        let oldest = followed.map(|(_, heard)| heard.last.unwrap_or(self.since)).min();
        oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }

    /// What has failed for so long that somebody should know.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (feed, heard) in self.feeds().iter_mut() {
            let Some((failure, since)) = &heard.failing else { continue };
            let at_once = matches!(failure.why, Why::Refused | Why::Unauthorized | Why::Missing);
            if !at_once && since.elapsed() < TOLERATED {
                continue;
            }
            heard.told = true;
            problems.push(problem(feed, failure, heard.listed));
        }
        let reads = &mut *self.all_reads();
        problems.extend(reads.iter_mut().filter_map(|(resource, reads)| reads.problem(resource, TOLERATED)));
        problems
    }

    /// When there may be more problems without anything happening.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let feeds = self.feeds();
        let waiting = feeds.values().filter(|heard| !heard.told).filter_map(|heard| heard.failing.as_ref());
        let reads = self.all_reads();
        let reads = reads.values().filter_map(|reads| reads.next_look(TOLERATED));
        waiting.map(|(_, since)| *since + TOLERATED).chain(reads).min()
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        let age = Sample { suffix: "", labels: Vec::new(), value: self.age().as_secs_f64() };
        let mut failures: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (feed, heard) in self.feeds().iter() {
            for (why, count) in &heard.failures {
                *failures.entry((feed.resource, why.name())).or_default() += count;
            }
        }
        for (resource, reads) in self.all_reads().iter() {
            for (why, count) in &reads.failures {
                *failures.entry((resource, why.name())).or_default() += count;
            }
        }
        let failures = failures.into_iter().map(|((resource, why), count)| Sample {
            suffix: "",
            labels: vec![("resource", resource.to_owned()), ("reason", why.to_owned())],
            value: count as f64,
        });
        vec![
            Metric {
                name: "penstock_cluster_age_seconds",
                help: "Seconds since the API server last confirmed what is known of the cluster; up to about 60 when all is well.",
                kind: MetricKind::Gauge,
                samples: vec![age],
            },
            Metric {
                name: "penstock_cluster_watch_errors_total",
                help: "Lists, watches and reads that failed, by kind and reason.",
                kind: MetricKind::Counter,
                samples: failures.collect(),
            },
        ]
    }
}

fn problem(feed: &Feed, failure: &Failure, listed: bool) -> Problem {
    let verdict = match (listed, feed.need) {
        (true, _) => "what was last heard of them stays in force",
        (false, Need::Must) => "nothing is served until they are known",
        (false, Need::May) => "served as if there were none",
    };
    let (reason, fix) = match failure.why {
        Why::Refused => ("watch-refused", format!("let our account get, list and watch {feed}")),
        Why::Unauthorized => ("watch-refused", "see to the account's token".to_owned()),
        _ => ("watch-broken", String::new()),
    };
    let severity = if listed { Severity::Warning } else { Severity::Error };
    Problem {
        object: ObjectId { origin: "the cluster".to_owned(), ..ObjectId::default() },
        severity,
        reason,
        field: feed.to_string(),
        message: format!("cannot be followed: {}; {verdict}", failure.message),
        fix,
    }
}

/// What one feed tells about itself.
#[derive(Debug, Clone)]
pub(super) struct FeedHealth {
    health: Arc<Health>,
    feed: Feed,
}

impl FeedHealth {
    /// The server confirmed what we know.
    pub(super) fn alive(&self) {
        let mut feeds = self.health.feeds();
        let heard = feeds.entry(self.feed.clone()).or_default();
        heard.last = Some(Instant::now());
        if let Some((_, since)) = heard.failing.take() {
            if std::mem::take(&mut heard.told) {
                info!(feed = %self.feed, seconds = since.elapsed().as_secs(), "followed again");
            }
            drop(feeds);
            self.health.changed.notify_one();
        }
    }

    /// All of it is known.
    pub(super) fn listed(&self) {
        let known =
            std::mem::replace(&mut self.health.feeds().entry(self.feed.clone()).or_default().listed, true);
        self.alive();
        // Of a kind whose objects nobody names, nothing else is told: the hub would wait for more.
        if !known {
            self.health.changed.notify_one();
        }
    }

    /// It did not work, and will be tried again.
    pub(super) fn failed(&self, failure: Failure) {
        let Failure { why, message } = &failure;
        let mut feeds = self.health.feeds();
        let heard = feeds.entry(self.feed.clone()).or_default();
        *heard.failures.entry(*why).or_default() += 1;
        // That the server forgets is in the order of things; a trouble before it is over when all is listed.
        if *why == Why::Gone {
            return debug!(feed = %self.feed, message, "listed anew");
        }
        let is_news = heard.failing.as_ref().is_none_or(|(known, _)| known.why != *why);
        if is_news {
            warn!(feed = %self.feed, reason = why.name(), message, "not followed for the moment");
        }
        let since = heard.failing.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        heard.failing = Some((failure, since));
        drop(feeds);
        if is_news {
            self.health.changed.notify_one();
        }
    }
}

/// What is told of reading one kind.
#[derive(Debug, Clone)]
pub(super) struct ReadHealth {
    health: Arc<Health>,
    resource: &'static str,
}

impl ReadHealth {
    /// It did not work, and will be tried again.
    pub(super) fn failed(&self, name: &ObjectName, failure: &Failure) {
        let Failure { why, message } = failure;
        let mut all = self.health.all_reads();
        if all.get_mut(self.resource).is_some_and(|reads| reads.failed(failure)) {
            warn!(resource = self.resource, %name, reason = why.name(), message, "not read for the moment");
        }
    }

    /// These cannot be read.
    pub(super) fn are(&self, unread: &BTreeMap<ObjectName, Unread>) {
        if self.health.all_reads().get_mut(self.resource).is_some_and(|reads| reads.are(unread)) {
            self.health.changed.notify_one();
        }
    }
}
