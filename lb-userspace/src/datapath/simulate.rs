//! Counts the flows that a change breaks although their backend lives, for ways to balance that
//! others use and for ours: the same clients, the same changes, our own slots, tables and steering.
//! Pure and determined by the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use lb_common::flows::WAYS;
use lb_common::steer::Kind;

mod balancers;
mod clients;
pub mod plot;

use balancers::{Balancers, Sent};
use clients::{Client, Clients, GONE};

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Everything that looks like chance follows from it.
    pub seed: u64,
    /// Flows of each run.
    pub flows: u32,
    /// log2 of the places in every flow table.
    pub flow_bits: u8,
}

/// Units of the clock ([`lb_common::flows::clock`]) that flows begin in, about half an hour.
const LENGTH: u32 = 1800;
/// Five minutes.
pub const GRACE: u16 = 280;

/// How flows are balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// A Maglev table and nothing else.
    Maglev,
    /// A Maglev table, and every flow in a table of each balancer that forgets the one used longest
    /// ago.
    MaglevLru,
    /// Two owners for contested slots, and a flow table for what they do not tell.
    Ours,
    /// The same in `tunnel` mode, where a host that does not know a flow passes it to the slot's
    /// other owner.
    OursSecondChance,
}

impl Scheme {
    /// All of them, the simplest first.
    pub const ALL: [Self; 4] = [Self::Maglev, Self::MaglevLru, Self::Ours, Self::OursSecondChance];

    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Maglev => "Maglev",
            Self::MaglevLru => "Maglev + LRU",
            Self::Ours => "penstock",
            Self::OursSecondChance => "penstock, tunnel",
        }
    }
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Twenty backends are replaced one by one: the new one comes, the old one drains and leaves.
    Rollout,
    /// Ten backends join twenty.
    ScaleUp,
    /// In the middle of a rollout one of four balancers dies, and the router hashes all flows anew
    /// over the three that are left.
    LostBalancer,
    /// SYNs of flows that do not exist, more in a second than the flow table has places, during a
    /// rollout.
    SynFlood,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rollout, Self::ScaleUp, Self::LostBalancer, Self::SynFlood];

    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::ScaleUp => "scale-up",
            Self::LostBalancer => "lost balancer",
            Self::SynFlood => "SYN flood",
        }
    }

    /// As a program says it.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::ScaleUp => "scale-up",
            Self::LostBalancer => "lost-balancer",
            Self::SynFlood => "syn-flood",
        }
    }

    const fn balancers(self) -> usize {
        if matches!(self, Self::LostBalancer) { 4 } else { 1 }
    }

    /// SYNs without a flow, in each unit of the clock while it lasts.
    const fn flood(self, now: u32) -> u32 {
        if matches!(self, Self::SynFlood) && now >= 550 && now < 850 { 20_000 } else { 0 }
    }
}

/// How one run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// What happened.
    pub scenario: Scenario,
    /// How it was balanced.
    pub scheme: Scheme,
    /// Flows that sent more than their handshake, and whose backend lived when they sent their last packet.
    pub flows: u32,
    /// Of these, flows that were sent to another backend.
    pub broken: u32,
    /// Of the broken ones, those that had been silent for longer than the grace time.
    pub idle: u32,
    /// Packets that the second chance brought to their backend.
    pub rescued: u32,
    /// Most flows that one balancer remembered at a time.
    pub remembered: usize,
}

/// Runs these with each scheme, as much at once as there are CPUs.
pub fn run(options: Options, scenarios: &[Scenario]) -> Vec<Outcome> {
    let runs = scenarios.iter().flat_map(|scenario| Scheme::ALL.map(|scheme| (*scenario, scheme)));
    let (runs, taken): (Vec<_>, _) = (runs.collect(), AtomicUsize::new(0));
    let work = || {
        let next = || {
            let number = taken.fetch_add(1, Ordering::Relaxed);
            runs.get(number).map(|(scenario, scheme)| (number, run_one(options, *scenario, *scheme)))
        };
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    let mut outcomes = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(runs.len());
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let outcomes =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        outcomes.flatten().collect::<Vec<_>>()
    });
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Runs one.
pub fn run_one(options: Options, scenario: Scenario, scheme: Scheme) -> Outcome {
    let Options { seed, flows, flow_bits } = options;
    let mut balancers = Balancers::new(scheme, scenario.balancers(), flow_bits);
    let mut clients = Clients::new(seed, flows, LENGTH);
    let mut changes = changes(scenario);
    let mut outcome = Outcome { scenario, scheme, flows: 0, broken: 0, idle: 0, rescued: 0, remembered: 0 };
    // The next packet of each flow that lives.
    let mut next = BinaryHeap::new();
    let mut weights: BTreeMap<u16, u16> = (0..20).map(|backend| (backend, 1)).collect();
    balancers.apply(&weights, 0);
    for now in 0..LENGTH {
        for change in changes.remove(&now).unwrap_or_default() {
            match change {
                Change::Set(backend, weight) => drop(weights.insert(backend, weight)),
                Change::Remove(backend) => drop(weights.remove(&backend)),
                Change::Lose => balancers.lose(),
            }
            balancers.apply(&weights, now);
        }
        balancers.settle(now);
        for _ in 0..scenario.flood(now) {
            let _ = balancers.send(&clients.stranger(), Kind::Syn, now);
        }
        while let Some(mut client) = clients.begin(now) {
            client.backend = balancers.send(&client.flow, Kind::Syn, now).backend;
            // The handshake's last segment follows at once: a SYN alone is no flow yet, and is remembered as what
            // may go first.
            let sent = balancers.send(&client.flow, Kind::Segment, now);
            if client.take(sent, &mut outcome, now, scheme) {
                next.push(Reverse((client.next(now), client)));
            } else {
                outcome.flows += 1;
            }
        }
        while let Some(Reverse((at, mut client))) = next.pop_if_due(now) {
            if weights.contains_key(&client.backend) {
                let sent = balancers.send(&client.flow, Kind::Segment, now);
                let follows = client.take(sent, &mut outcome, now, scheme);
                client.last = at;
                if follows && client.next(now) < client.end.min(LENGTH) {
                    next.push(Reverse((client.next(now), client)));
                    continue;
                }
                outcome.flows += 1;
            }
        }
        outcome.remembered = outcome.remembered.max(balancers.remembered());
    }
    let counts = |client: &Client| client.last != client.begin && weights.contains_key(&client.backend);
    outcome.flows += next.iter().filter(|Reverse((_, client))| counts(client)).count() as u32;
    outcome
}

/// What is done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A backend has this weight; 0: it drains.
    Set(u16, u16),
    /// A backend is gone.
    Remove(u16),
    /// A balancer is gone.
    Lose,
}

fn changes(scenario: Scenario) -> BTreeMap<u32, Vec<Change>> {
    let mut changes = BTreeMap::<u32, Vec<Change>>::new();
    let mut at = |now, change| changes.entry(now).or_default().push(change);
    if scenario == Scenario::ScaleUp {
        (20..30).for_each(|backend| at(600, Change::Set(backend, 1)));
        return changes;
    }
    for old in 0..20u16 {
        let now = 600 + u32::from(old) * 15;
        at(now, Change::Set(20 + old, 1));
        at(now, Change::Set(old, 0));
        at(now + 60, Change::Remove(old));
    }
    if scenario == Scenario::LostBalancer {
        at(760, Change::Lose);
    }
    changes
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: u32) -> Option<Reverse<(u32, Client)>>;
}

impl PopIfDue for BinaryHeap<Reverse<(u32, Client)>> {
    fn pop_if_due(&mut self, now: u32) -> Option<Reverse<(u32, Client)>> {
        let due = self.peek().is_some_and(|Reverse((at, _))| *at <= now);
        if due { self.pop() } else { None }
    }
}

impl Client {
    /// Takes note of where its packet went; tells whether it goes on.
    fn take(&self, sent: Sent, outcome: &mut Outcome, now: u32, scheme: Scheme) -> bool {
        if sent.backend == self.backend {
            return true;
        }
        if scheme == Scheme::OursSecondChance && sent.other == self.backend && self.backend != GONE {
            outcome.rescued += 1;
            return true;
        }
        outcome.broken += 1;
        if now - self.last > u32::from(GRACE) {
            outcome.idle += 1;
        }
        false
    }
}

/// As a table for a terminal.
pub fn render(outcomes: &[Outcome], options: Options) -> String {
    let places = 1u32 << options.flow_bits;
    let mut text = format!(
        "{} flows, seed {}, grace time {GRACE} units of 1.07 s, flow tables of {places} places in buckets of {WAYS}\n\n\
         {:<14} {:<17} {:>9} {:>8} {:>10} {:>10} {:>11}\n",
        options.flows,
        options.seed,
        "scenario",
        "balanced by",
        "flows",
        "broken",
        "idle*",
        "rescued",
        "remembered"
    );
    for outcome in outcomes {
        let Outcome { scenario, scheme, flows, broken, idle, rescued, remembered } = *outcome;
        text += &format!(
            "{:<14} {:<17} {flows:>9} {broken:>8} {idle:>10} {rescued:>10} {remembered:>11}\n",
            scenario.name(),
            scheme.name()
        );
    }
    text + "\n* of the broken ones: silent for longer than the grace time. Flows of backends that left are not counted.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many flows for each place of the flow table as by default.
    const SMALL: Options = Options { seed: 1, flows: 25_000, flow_bits: 13 };

    /// Flows of each way to balance that broke though they had not been silent, in the order of [`Scheme::ALL`].
    fn awake(scenario: Scenario) -> [u32; 4] {
        std::thread::scope(|scope| {
            let runs = Scheme::ALL.map(|scheme| scope.spawn(move || run_one(SMALL, scenario, scheme)));
            runs.map(|run| {
                let Outcome { broken, idle, .. } = run.join().expect("no panic");
                broken - idle
            })
        })
    }

    #[test]
    fn ours_breaks_none_but_idle_flows_where_a_table_alone_breaks_many() {
        for scenario in [Scenario::Rollout, Scenario::ScaleUp] {
            let [maglev, lru, ours, tunnel] = awake(scenario);

            assert_eq!((lru, ours, tunnel), (0, 0, 0), "{scenario:?}");
            assert!(maglev > 100, "{scenario:?}: {maglev}");
        }
    }

    #[test]
    fn a_flood_of_syns_breaks_flows_of_a_full_table_and_none_of_ours() {
        let [maglev, lru, ours, tunnel] = awake(Scenario::SynFlood);

        assert_eq!((ours, tunnel), (0, 0));
        assert!(maglev > 500 && lru > 300, "{maglev}, {lru}");
    }

    #[test]
    fn of_a_lost_balancer_ours_breaks_fewer_than_a_table_of_all_flows_and_the_tunnel_fewer_still() {
        let [maglev, lru, ours, tunnel] = awake(Scenario::LostBalancer);

        // What began during the change and is remembered by nobody else.
        assert!(tunnel * 2 < ours && ours < lru && lru * 4 < maglev, "{maglev}, {lru}, {ours}, {tunnel}");
    }

    #[test]
    fn the_same_seed_has_the_same_outcome() {
        let one = run_one(SMALL, Scenario::ScaleUp, Scheme::MaglevLru);

        assert_eq!(one, run_one(SMALL, Scenario::ScaleUp, Scheme::MaglevLru));
    }
}
