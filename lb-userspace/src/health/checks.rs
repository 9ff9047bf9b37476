//! Who is asked next, and what answers make of an endpoint. Pure: the clock and the outcomes come
//! from the caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::model::Shared;
use crate::model::health::{Check, Fault, Finding, Unwell};
use crate::model::l7::L7;
use crate::model::upstream::{Upstream, UpstreamName};

/// The first probes of new endpoints are spread over no more than this.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Probes at once: as many as there were if nobody answered, but no fewer, and no more. Those that are due wait for others
/// to end, longest due first.
const AT_ONCE: [usize; 2] = [64, 512];

/// A checked endpoint. The same address in two upstreams is two of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) upstream: UpstreamName,
    pub(super) endpoint: SocketAddr,
}

/// A probe to be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) target: Target,
    /// Of this stay of the endpoint: an answer that comes after it left counts for nothing.
    pub(super) stay: u64,
    pub(super) check: Arc<Check>,
}

/// What a probe changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The endpoint is unwell.
    Fell,
    /// It is well again.
    Rose,
    /// It is unwell for another reason than before.
    OtherFault,
}

/// All checked endpoints.
pub(super) struct Checks {
    /// Those of the last snapshot.
    followed: Shared<UpstreamName, Upstream>,
    watched: BTreeMap<Target, Watched>,
    /// Everybody by when they are asked, but for those who are being asked.
    queue: BTreeMap<(Instant, u64), Target>,
    /// Probes of each upstream by what came of them.
    counts: BTreeMap<UpstreamName, Counts>,
    stays: u64,
    /// What was known before anybody was watched.
    known: Unwell,
    /// Probes under way in the middle, in millionths, if each took as long as it may.
    load: u64,
    random: u64,
}

struct Watched {
    stay: u64,
    check: Arc<Check>,
    due: Instant,
    judge: Judge,
}

/// Probes by what came of them: the good ones, then each of [`Fault::LABELS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) good: u64,
    pub(super) bad: BTreeMap<&'static str, u64>,
}

impl Checks {
    /// `seed` decides the jitter.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            followed: Shared::default(),
            watched: BTreeMap::new(),
            queue: BTreeMap::new(),
            counts: BTreeMap::new(),
            stays: 0,
            known: Unwell::default(),
            load: 0,
            random: seed | 1,
        }
    }

    /// The same for who knows already whom others found unwell.
    pub(super) fn knowing(known: Unwell, seed: u64) -> Self {
        Self { known, ..Self::new(seed) }
    }

    /// Watches what a snapshot asks for and nothing else. Who stays keeps what is known of it, even
    /// if it is asked in another way from now on.
    pub(super) fn follow(&mut self, l7: &L7, now: Instant) {
        let followed = std::mem::replace(&mut self.followed, l7.upstreams.clone());
        for change in l7.upstreams.changes(&followed) {
            let name = change.key;
            let mut before = BTreeMap::new();
            for endpoint in change.before.iter().flat_map(|upstream| &upstream.endpoints) {
                let target = Target { upstream: name.clone(), endpoint: *endpoint };
                before.extend(self.watched.remove_entry(&target));
            }
            self.follow_one(name, change.now.map(Arc::as_ref), before, now);
        }
        if !self.watched.is_empty() {
            self.known = Unwell::default();
        }
        self.load = self.watched.values().map(|watched| load(&watched.check)).sum();
    }

    /// How many probes may run at once.
    pub(super) fn at_once(&self) -> usize {
        let [least, most] = AT_ONCE;
        usize::try_from(self.load.div_ceil(1_000_000)).unwrap_or(most).clamp(least, most)
    }

    fn follow_one(
        &mut self,
        name: &UpstreamName,
        upstream: Option<&Upstream>,
        mut before: BTreeMap<Target, Watched>,
        now: Instant,
    ) {
        let check = upstream.and_then(|upstream| Some((upstream, upstream.check.as_ref()?)));
        if let Some((upstream, check)) = check {
            self.counts.entry(name.clone()).or_default();
            for endpoint in &upstream.endpoints {
                let target = Target { upstream: name.clone(), endpoint: *endpoint };
                let known = before.remove(&target);
                if let Some(known) = known.as_ref().filter(|known| known.check == *check) {
                    let Watched { stay, due, judge, .. } = known;
                    let watched =
                        Watched { stay: *stay, check: Arc::clone(check), due: *due, judge: judge.clone() };
                    self.watched.insert(target, watched);
                    continue;
                }
                if let Some(Watched { due, stay, .. }) = known.as_ref() {
                    self.queue.remove(&(*due, *stay));
                }
                self.stays += 1;
                let due = now + check.interval.min(FIRST_WITHIN).mul_f64(self.unit());
                let told = || Some(Judge::Unwell(*self.known.0.get(name)?.get(endpoint)?, 0));
                let judge = known.map(|known| known.judge).or_else(told).unwrap_or_default();
                self.queue.insert((due, self.stays), target.clone());
                let watched = Watched { stay: self.stays, check: Arc::clone(check), due, judge };
                self.watched.insert(target, watched);
            }
        }
        for Watched { due, stay, .. } in before.into_values() {
            self.queue.remove(&(due, stay));
        }
        if check.is_none_or(|(upstream, _)| upstream.endpoints.is_empty()) {
            self.counts.remove(name);
        }
    }

    /// When the next probe is due; `None`: nobody is watched.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((due, _), _)| *due)
    }

    /// The probe that is due longest, if one is; the next one of the same endpoint follows an interval
    /// later, and not before this one has ended.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        let (_, target) = self.queue.pop_first()?;
        // A tenth to either side: endpoints that came together do not stay together.
        let part = 0.9 + 0.2 * self.unit();
        let watched = self.watched.get_mut(&target)?;
        watched.due = now + watched.check.interval.mul_f64(part);
        Some(Due { target, stay: watched.stay, check: Arc::clone(&watched.check) })
    }

    /// What came of a probe that has just ended, if it changes anything; `at` is `now` for people.
    pub(super) fn ended(
        &mut self,
        probe: &Due,
        outcome: Result<(), Fault>,
        now: Instant,
        at: SystemTime,
    ) -> Option<News> {
        let watched = self.watched.get_mut(&probe.target).filter(|known| known.stay == probe.stay)?;
        watched.due = watched.due.max(now);
        self.queue.insert((watched.due, watched.stay), probe.target.clone());
        if let Some(counts) = self.counts.get_mut(&probe.target.upstream) {
            match outcome {
                Ok(()) => counts.good += 1,
                Err(fault) => *counts.bad.entry(fault.label()).or_default() += 1,
            }
        }
        let before = watched.judge.finding();
        match outcome {
            Ok(()) => watched.judge.good(watched.check.rise),
            Err(fault) => watched.judge.bad(fault, watched.check.fall, at),
        }
        match (before, watched.judge.finding()) {
            (None, Some(_)) => Some(News::Fell),
            (Some(_), None) => Some(News::Rose),
            (before, now) => (before != now).then_some(News::OtherFault),
        }
    }

    /// Everybody who is unwell.
    pub(super) fn unwell(&self) -> Unwell {
        let mut unwell = Unwell::default();
        for (target, finding) in self.all().filter_map(|(target, finding)| Some((target, finding?))) {
            let of = unwell.0.entry(target.upstream.clone()).or_default();
            of.insert(target.endpoint, finding);
        }
        unwell
    }

    /// Everybody, and what is held against them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Target, Option<Finding>)> {
        self.watched.iter().map(|(target, watched)| (target, watched.judge.finding()))
    }

    /// Probes so far.
    pub(super) fn counts(&self) -> &BTreeMap<UpstreamName, Counts> {
        &self.counts
    }

    /// From 0 up to, not including, 1; not secret.
    fn unit(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The part of its time, in millionths, for which a probe that is not answered is under way.
fn load(check: &Check) -> u64 {
    let part = check.timeout.as_micros().saturating_mul(1_000_000) / check.interval.as_micros().max(1);
    u64::try_from(part).unwrap_or(1_000_000).min(1_000_000)
}

/// What answers make of one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Judge {
    /// It gave no answer yet: Kubernetes calls it ready, and that counts.
    #[default]
    Unknown,
    /// Well, with so many bad answers in a row.
    Well(u32),
    /// Unwell, with so many good ones.
    Unwell(Finding, u32),
}

impl Judge {
    fn finding(&self) -> Option<Finding> {
        match self {
            Self::Unknown | Self::Well(_) => None,
            Self::Unwell(finding, _) => Some(*finding),
        }
    }

    fn good(&mut self, rise: u32) {
        *self = match *self {
            Self::Unwell(finding, good) if good + 1 < rise => Self::Unwell(finding, good + 1),
            _ => Self::Well(0),
        };
    }

    fn bad(&mut self, fault: Fault, fall: u32, at: SystemTime) {
        *self = match *self {
            Self::Well(bad) if bad + 1 < fall => Self::Well(bad + 1),
            Self::Unknown | Self::Well(_) => Self::Unwell(Finding { fault, since: at }, 0),
            Self::Unwell(Finding { since, .. }, _) => Self::Unwell(Finding { fault, since }, 0),
        };
    }
}

#[cfg(test)]
mod tests;
