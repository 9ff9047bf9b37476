//! Which endpoint of an upstream is asked next. Pure: clock, randomness and outcomes come from the
//! caller; a worker has its own state of every upstream and shares nothing of it.
//!
//! An endpoint is passed over while it is ejected or unwell, unless that is true of more than half
//! of them: then the fault is probably not theirs, and everybody is asked first. Who was let down by one of them goes
//! on to those that are neither ([`Endpoints::pick`]).

mod ejection;
mod endpoint;
mod latency;
#[cfg(test)]
mod properties;
mod random;
mod ring;
mod schedule;
#[cfg(test)]
mod simulation;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::l7::metrics::Cause;
use crate::model::health::Failures;
use crate::model::upstream::{Balance, Care};

use schedule::Schedule;

pub(super) use endpoint::{Endpoint, Picked};
pub(super) use random::Random;
pub(super) use ring::{Ring, hash};

/// Largest subset that is drawn from.
const SUBSET_MAX: usize = 16;
/// Random draws before the endpoints are looked through in order.
const DRAWS: usize = 4;

/// How endpoints are chosen; made once for a snapshot and read by every worker.
#[derive(Debug)]
pub(super) enum Rule {
    /// One after the other.
    RoundRobin(Schedule),
    /// The faster of two, by time and by what they have to do.
    PeakEwma(Schedule),
    /// The less busy of two.
    LeastRequests(Schedule),
    /// By a hash of the request.
    Hash(Ring),
    /// Any of a few, by a hash of the request.
    Subset(Ring, usize),
}

impl Rule {
    /// That of a model; an endpoint without a weight has 1.
    pub(super) fn new(balance: &Balance, endpoints: &[SocketAddr], weights: &[u32]) -> Self {
        let schedule = || Schedule::new(endpoints.len(), weights);
        let ring = || Ring::new(endpoints, weights);
        match balance {
            Balance::RoundRobin => Self::RoundRobin(schedule()),
            Balance::PeakEwma => Self::PeakEwma(schedule()),
            Balance::LeastRequests => Self::LeastRequests(schedule()),
            Balance::Hash(_) => Self::Hash(ring()),
            Balance::Subset { size, .. } => Self::Subset(ring(), (*size).clamp(1, SUBSET_MAX)),
        }
    }

    /// Turns of a round; 0 where nobody takes turns.
    pub(super) fn round(&self) -> usize {
        match self {
            Self::RoundRobin(schedule) | Self::PeakEwma(schedule) | Self::LeastRequests(schedule) => {
                schedule.len()
            }
            Self::Hash(_) | Self::Subset(..) => 0,
        }
    }
}

/// Endpoints that one request was at already.
#[derive(Debug, Default)]
pub(super) struct Tried {
    indices: [usize; 8],
    len: usize,
}

impl Tried {
    /// Remembers the last few.
    pub(super) fn add(&mut self, index: usize) {
        let at = self.len % self.indices.len();
        if let Some(slot) = self.indices.get_mut(at) {
            *slot = index;
        }
        self.len += 1;
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn has(&self, index: usize) -> bool {
        let known = self.len.min(self.indices.len());
        self.indices.get(..known).unwrap_or_default().contains(&index)
    }
}

/// So many of all endpoints are out that everybody is asked.
pub(super) fn too_many(out: usize, all: usize) -> bool {
    out * 2 > all
}

/// What one worker knows of an upstream.
pub(super) struct Endpoints {
    list: Vec<Rc<Endpoint>>,
    care: Care,
    /// Where round robin goes on.
    next: Cell<usize>,
    /// Where it goes on for those who were let down while everybody is asked: else who stands behind the failing ones
    /// would have no turn of his own.
    again: Cell<usize>,
    /// Endpoints that are out, as last counted.
    out: Cell<usize>,
    /// When to count again: somebody comes back then.
    until: Cell<Option<Instant>>,
    /// How often somebody went out or came back; shared with the state before and after this one,
    /// because requests outlive snapshots.
    changes: Rc<Cell<u64>>,
    /// Of them, how many were seen when it was counted last; `None`: never counted.
    seen: Cell<Option<u64>>,
    /// Idle connections to these endpoints, if they are counted apart; shared like `changes`.
    idle: Rc<Cell<usize>>,
}

impl Endpoints {
    /// Goes on where `before` stood. Endpoints that are new beside known ones start slowly, if
    /// they are asked to; a new upstream starts at `start`.
    pub(super) fn new(
        addrs: &[SocketAddr],
        care: Care,
        before: Option<&Self>,
        start: usize,
        now: Instant,
    ) -> Self {
        let known: HashMap<SocketAddr, &Rc<Endpoint>> = before
            .map(|before| before.list.iter().map(|endpoint| (endpoint.addr, endpoint)).collect())
            .unwrap_or_default();
        let joined = (!known.is_empty() && !care.slow_start.is_zero()).then_some(now);
        let usual = before.map_or(0.0, |before| before.usual_latency(now));
        let endpoint = |addr: &SocketAddr| match known.get(addr) {
            Some(endpoint) => Rc::clone(endpoint),
            None => Rc::new(Endpoint::new(*addr, joined, usual, now)),
        };
        Self {
            list: addrs.iter().map(endpoint).collect(),
            care,
            next: Cell::new(before.map_or(start, |before| before.next.get())),
            again: Cell::new(before.map_or(start, |before| before.again.get())),
            out: Cell::new(0),
            until: Cell::new(None),
            changes: before.map(|before| Rc::clone(&before.changes)).unwrap_or_default(),
            seen: Cell::new(None),
            idle: before.map(|before| Rc::clone(&before.idle)).unwrap_or_default(),
        }
    }

    fn changed(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// What new endpoints are taken to be like.
    fn usual_latency(&self, now: Instant) -> f64 {
        let sum: f64 = self.list.iter().map(|endpoint| endpoint.latency(now)).sum();
        if self.list.is_empty() { 0.0 } else { sum / self.list.len() as f64 }
    }

    /// Active checks found these unwell, and all others well.
    pub(super) fn set_unwell(&self, is_unwell: impl Fn(&SocketAddr) -> bool) {
        for endpoint in &self.list {
            let well = !is_unwell(&endpoint.addr);
            if endpoint.is_well() != well {
                endpoint.set_well(well);
                self.changed();
            }
        }
    }

    /// How many idle connections there are to these endpoints, if they are counted apart.
    pub(super) fn idle(&self) -> &Rc<Cell<usize>> {
        &self.idle
    }

    /// An endpoint for a request with this hash, if there is any. Those it was at already come last, behind those that are out.
    pub(super) fn pick(
        self: &Rc<Self>,
        rule: &Rule,
        key: u64,
        tried: &Tried,
        random: &Random,
        now: Instant,
    ) -> Option<Picked> {
        let others = self.has_others(tried, now);
        let everybody = self.asks_everybody(now) && !others;
        let is_in = |i: usize| everybody || self.list.get(i).is_some_and(|endpoint| endpoint.is_in(now));
        let turn = if others { &self.again } else { &self.next };
        let chosen = self
            .choose(rule, key, turn, random, now, |i| is_in(i) && !tried.has(i))
            // Who failed this request is surer to fail it again than who failed others a while ago.
            .or_else(|| self.choose(rule, key, turn, random, now, |i| !tried.has(i)))
            .or_else(|| self.choose(rule, key, turn, random, now, is_in))?;
        Picked::new(Rc::clone(self), chosen)
    }

    /// This one, whatever is known of it.
    pub(super) fn pinned(self: &Rc<Self>, index: usize) -> Option<Picked> {
        Picked::new(Rc::clone(self), index)
    }

    /// Whether a request that was at `tried` may go to this one.
    pub(super) fn is_open(&self, index: usize, tried: &Tried, now: Instant) -> bool {
        let is_in = || self.list.get(index).is_some_and(|endpoint| endpoint.is_in(now));
        let everybody = || self.asks_everybody(now) && !self.has_others(tried, now);
        !tried.has(index) && (is_in() || everybody())
    }

    /// Everybody is asked because most are out, and a request that was let down can turn to one that is not.
    fn has_others(&self, tried: &Tried, now: Instant) -> bool {
        let mut all = self.list.iter().enumerate();
        !tried.is_empty()
            && self.asks_everybody(now)
            && self.out.get() > 0
            && all.any(|(i, endpoint)| !tried.has(i) && endpoint.is_in(now))
    }

    /// Nobody is out, or too many are.
    fn asks_everybody(&self, now: Instant) -> bool {
        let changes = Some(self.changes.get());
        if self.seen.replace(changes) != changes || self.until.get().is_some_and(|until| now >= until) {
            self.out.set(self.list.iter().filter(|endpoint| !endpoint.is_in(now)).count());
            self.until.set(self.list.iter().filter_map(|endpoint| endpoint.returns(now)).min());
        }
        self.out.get() == 0 || too_many(self.out.get(), self.list.len())
    }

    fn choose(
        &self,
        rule: &Rule,
        key: u64,
        turn: &Cell<usize>,
        random: &Random,
        now: Instant,
        is_open: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match rule {
            Rule::RoundRobin(schedule) => self.in_turn(schedule, turn, random, now, is_open),
            Rule::PeakEwma(schedule) => self.of_two(schedule, random, now, is_open, |endpoint, load| {
                endpoint.latency(now) * (load + 1.0)
            }),
            Rule::LeastRequests(schedule) => {
                self.of_two(schedule, random, now, is_open, |_, load| load + 1.0)
            }
            Rule::Hash(ring) => ring.from(key).find(|&i| is_open(i)),
            Rule::Subset(ring, size) => {
                let mut drawn = [0; SUBSET_MAX];
                let mut len = 0;
                for i in ring.from(key).filter(|&i| is_open(i)) {
                    if drawn.get(..len).is_some_and(|drawn| drawn.contains(&i)) {
                        continue;
                    }
                    *drawn.get_mut(len)? = i;
                    len += 1;
                    if len == *size {
                        break;
                    }
                }
                drawn.get(..len)?.get(random.below(len)?).copied()
            }
        }
    }

    fn in_turn(
        &self,
        schedule: &Schedule,
        next: &Cell<usize>,
        random: &Random,
        now: Instant,
        is_open: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let n = schedule.len();
        let start = next.get().checked_rem(n)?;
        let in_turn = (start..n).chain(0..start).filter_map(|turn| Some((turn, schedule.of(turn)?)));
        let takes_part = |&(_, i): &(usize, usize)| {
            is_open(i) && self.share(i, now).is_none_or(|share| random.unit() < share)
        };
        let (turn, chosen) =
            in_turn.clone().find(takes_part).or_else(|| in_turn.clone().find(|&(_, i)| is_open(i)))?;
        next.set(turn + 1);
        Some(chosen)
    }

    /// The cheaper of two that are drawn, by a cost of the endpoint and of its load: what runs there
    /// for its weight. The first one drawn, where they cost the same.
    fn of_two(
        &self,
        schedule: &Schedule,
        random: &Random,
        now: Instant,
        is_open: impl Fn(usize) -> bool,
        cost: impl Fn(&Endpoint, f64) -> f64,
    ) -> Option<usize> {
        let n = schedule.len();
        let draw = |except: Option<usize>| {
            let takes = |i: &usize| Some(*i) != except && is_open(*i);
            let drawn = (0..DRAWS).filter_map(|_| schedule.of(random.below(n)?)).find(takes);
            drawn.or_else(|| {
                let start = random.below(n)?;
                (start..n).chain(0..start).filter_map(|turn| schedule.of(turn)).find(takes)
            })
        };
        let one = draw(None)?;
        let Some(other) = draw(Some(one)) else { return Some(one) };
        let cost = |i: usize| {
            let share = self.share(i, now).unwrap_or(1.0);
            let load = |endpoint: &Endpoint| f64::from(endpoint.outstanding()) / schedule.weight(i);
            self.list.get(i).map_or(f64::INFINITY, |endpoint| cost(endpoint, load(endpoint)) / share)
        };
        Some(if cost(other) < cost(one) { other } else { one })
    }

    /// How much of its part an endpoint takes that has just joined; `None`: all.
    fn share(&self, i: usize, now: Instant) -> Option<f64> {
        const LEAST: f64 = 0.1;
        let age = now.saturating_duration_since(self.list.get(i)?.joined()?);
        (age < self.care.slow_start)
            .then(|| (age.as_secs_f64() / self.care.slow_start.as_secs_f64()).max(LEAST))
    }

    fn get(&self, index: usize) -> Option<&Rc<Endpoint>> {
        self.list.get(index)
    }

    /// What is held against its endpoints.
    pub(super) fn failures(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, Failures)> {
        self.list.iter().filter_map(move |endpoint| Some((endpoint.addr, endpoint.failures(now)?)))
    }

    fn failed(&self, index: usize, cause: Cause, took: Duration, now: Instant) {
        if let Some(endpoint) = self.list.get(index)
            && endpoint.failed(&self.care.ejection, cause, took, now)
        {
            self.changed();
        }
    }
}
