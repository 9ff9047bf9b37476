//! Kernel, tables and book together: takes a [`Want`] to the kernel and reads back what happened.
//! No network, no runtime: the worker drives it, tests and benchmarks use it directly.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::capture::Filter;
use lb_common::config::{self, Past, Settings};
use lb_common::maps;
use lb_common::nat::Timeouts;
use lb_common::verdict::Event;
use lb_common::{BackendId, HashKey, Verdict, flows, lease};

use super::Error;
use super::explain;
use super::held::Held;
use super::kernel::{Banks, Kernel, Loaded, Look, Ring, Swept, Translated};
use super::memory::Tables;
use super::mmap;
use super::outside::{Beside, Refused};
use super::pins::Pins;
use super::plan::{Book, Observed, Op, Plan};
use super::tally::Tally;
use super::want::{self, Place, Want, Way};
use crate::model::Problem;
use crate::model::l4::{FiveTuple, ForwardingMode, PoolId, Prefix};
use crate::model::report::Explanation;

pub use super::memory::Totals;

/// The kernel part, loaded.
pub struct Engine {
    /// Programs and maps.
    pub kernel: Kernel,
    /// The shared tables.
    pub tables: Tables,
    tally: Tally,
    book: Book,
    want: Want,
    settings: Settings,
    /// Source ranges by set, to remove them again.
    ranges: BTreeMap<u16, BTreeSet<Prefix>>,
    /// What the kernel has not taken yet, and whether it took some of that since the last wish.
    refused: Refused,
    has_taken: bool,
    /// How many fresh flows were forgotten that were spare, and when that was last seen to grow.
    spared: (u64, Option<u32>),
    /// Another process has it.
    is_over: bool,
    /// Until the first wish is carried out.
    beginning: Option<Beginning>,
    start: Start,
    /// When translations were last swept, and which backends they name.
    translated: Option<(u32, BTreeSet<BackendId>)>,
    /// What was counted in the flow table, and when.
    flow_use: Cell<Option<(u32, (usize, usize))>>,
}

/// Units of the clock that a count of the flow table's entries serves.
const FLOW_USE_LASTS: u32 = 5;

/// What the tables are before the first wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Empty,
    Inherited,
}

/// How the kernel part began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// With the tables of an agent before us.
    pub adopted: bool,
    /// What of that agent's did not serve, and why.
    pub told: Vec<String>,
}

/// What the kernel part is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Secret of the flow hash.
    pub hash_key: [u8; 16],
    /// First and last port of the SNAT range.
    pub nat_ports: (u16, u16),
    /// log2 of the flows remembered at most: 3 to 20.
    pub flow_bits: u8,
    /// UDP port of the tunnel; 0: none.
    pub tunnel_port: u16,
    /// How long a slot stays contested after a change at least, in units of
    /// [`lb_common::flows::clock`]; at least 1.
    pub grace: u16,
}

impl Config {
    /// Defaults with this key and range.
    pub const fn new(hash_key: [u8; 16], nat_ports: (u16, u16)) -> Self {
        Self { hash_key, nat_ports, flow_bits: 17, tunnel_port: lb_common::tunnel::PORT, grace: 280 }
    }
}

impl Engine {
    /// Loads programs and maps that go when this does.
    pub fn load(config: Config) -> Result<Self, Error> {
        Self::begin(config, Kernel::load(None, None)?)
    }

    /// The same with counters as a host of other CPUs has them.
    pub fn load_for(config: Config, banks: Banks) -> Result<Self, Error> {
        Self::begin(config, Kernel::load_for(banks, None, None)?)
    }

    /// The same in succession of an agent before us: what it left in the kernel and serves goes on,
    /// its hash key unless `key` asks for another included. Pinned, it outlives this, too.
    pub fn take_over(config: Config, key: Option<[u8; 16]>, pins: Pins) -> Result<Self, Error> {
        Self::begin(config, Kernel::load(Some(pins), key.map(HashKey::expand))?)
    }

    fn begin(config: Config, loaded: Loaded) -> Result<Self, Error> {
        let Loaded { mut kernel, mut tables, counters, inherited, mut told } = loaded;
        let Config { hash_key, nat_ports: (first, last), flow_bits, tunnel_port, grace } = config;
        let mut settings = Settings {
            key: HashKey::expand(hash_key),
            nat_first: first,
            nat_count: last.checked_sub(first).map_or(0, |count| count.saturating_add(1)),
            workers: 0,
            flow_bits: flow_bits.clamp(3, 20),
            tunnel_port: tunnel_port.to_be(),
            capturing: false,
            grace: grace.max(1),
        };
        let mut ranges = BTreeMap::new();
        if inherited {
            ranges = kernel.all_ranges()?;
            told.extend(keep_in_force(&mut settings, &tables, kernel.any_translated()));
            tables.purge_flows_of_nobody();
            tables.end_all_leases();
            tables.open_shortcuts();
        }
        tables.store_settings(&settings);
        tables.leave_unused_flows();
        Ok(Self {
            kernel,
            tables,
            tally: Tally::new(counters),
            book: Book::new(settings.key),
            want: Want::default(),
            settings,
            ranges,
            refused: Refused::default(),
            has_taken: false,
            beginning: Some(if inherited { Beginning::Inherited } else { Beginning::Empty }),
            start: Start { adopted: inherited, told },
            spared: (0, None),
            translated: None,
            is_over: false,
            flow_use: Cell::new(None),
        })
    }

    /// Takes the kernel from what it holds to `want`; returns what could not be done.
    pub fn apply(&mut self, want: Want) -> Vec<Problem> {
        self.apply_at(want, now())
    }

    /// [`Engine::apply`] at a time of the caller's.
    pub fn apply_at(&mut self, want: Want, now: u32) -> Vec<Problem> {
        self.apply_watched(want, now, &mut |_| {})
    }

    /// The same with a look at the kernel before each step: what packets meet there they may meet at any such change.
    pub fn apply_watched(
        &mut self,
        mut want: Want,
        now: u32,
        watch: &mut dyn FnMut(&Kernel),
    ) -> Vec<Problem> {
        let beginning = self.beginning.take();
        if beginning == Some(Beginning::Inherited) {
            self.adopt(&want, now);
        }
        self.book.name_adopted(&want);
        self.book.keep_lost(&mut want);
        let plan = if beginning == Some(Beginning::Empty) {
            // Flows that come here may be older than we are.
            self.tables.store_past(Past::new(now));
            self.book.plan_anew(&want, now)
        } else {
            self.book.plan(&want, now)
        };
        let (vips, steps) = (want.vips.len(), plan.ops.len());
        self.want = want;
        let mut problems = self.carry_out(plan, watch);
        problems.extend(self.refused.problems(&self.want, &self.ranges));
        self.book.look(&self.tables, now);
        if steps > 0 {
            tracing::debug!(steps, vips, "tables switched");
        }
        match beginning {
            Some(Beginning::Empty) => {
                self.tables.review_past(self.book.contested(), now, self.settings.grace.into());
                self.tables.store_version(now);
            }
            Some(Beginning::Inherited) => self.tables.keep_version(),
            None => {}
        }
        problems
    }

    /// Addresses of VIPs that found no room.
    pub fn left_out(&self) -> BTreeSet<IpAddr> {
        self.book.left_out()
    }

    /// Gives the backends at these addresses another way: their lines are written and nothing else.
    pub fn reroute(&mut self, ways: &BTreeMap<IpAddr, Way>) {
        let mut moved = Vec::new();
        for (id, pool) in &self.want.pools {
            for (addr, backend) in &pool.backends {
                let way = ways.get(&backend.to).map(|way| backend.along(*way));
                if let Some(way) = way.filter(|way| *way != backend.way) {
                    moved.push((id.clone(), *addr, want::Backend { way, ..backend.clone() }));
                }
            }
        }
        for (id, addr, backend) in &moved {
            if let Some(pool) = self.want.pools.get_mut(id) {
                pool.backends.insert(*addr, backend.clone());
            }
        }
        for (addr, way) in ways {
            self.want.ways.insert(*addr, Ok(*way));
        }
        let moved = moved.iter().map(|(id, addr, backend)| (id, *addr, backend));
        let plan = self.book.reroute(moved, &self.want.ways);
        tracing::debug!(steps = plan.ops.len(), "next hops changed");
        let _ = self.carry_out(plan, &mut |_| {});
    }

    /// What an agent before us left in force beyond `want`; nothing once a wish was carried out.
    pub fn left_over(&self, want: &Want) -> Held {
        match self.beginning {
            Some(Beginning::Inherited) => {
                Book::adopt(&self.tables, &self.ranges, want, now()).left_over(want)
            }
            Some(Beginning::Empty) | None => Held::default(),
        }
    }

    /// Reads back what is in force.
    fn adopt(&mut self, want: &Want, now: u32) {
        self.book = Book::adopt(&self.tables, &self.ranges, want, now);
        self.book.adopt_peers(self.kernel.peers().unwrap_or_default().into_keys());
        self.tally.adopt(&self.tables, self.book.balanced());
    }

    /// Settles the slots whose last change is older than the grace time, as far as their flows
    /// allow; called every few seconds. Returns how many remain contested.
    pub fn settle(&mut self) -> usize {
        self.settle_at(now())
    }

    /// [`Engine::settle`] at a time of the caller's.
    pub fn settle_at(&mut self, now: u32) -> usize {
        self.has_taken |= self.refused.retry(&mut self.kernel);
        let spared = self.tally.counters().event(Event::Spared);
        if spared != self.spared.0 {
            self.spared = (spared, Some(now));
        }
        let observed = Observed {
            now,
            grace: self.settings.grace.into(),
            spared: self.spared.1,
            translated: self.translated.as_ref().map(|(then, ids)| (*then, ids)),
        };
        let (plan, is_over) = self.book.settle(&self.tables, &observed);
        let _ = self.carry_out(plan, &mut |_| {});
        let is_shut = self.book.has_former_peers() && {
            let heard = self.kernel.peers().unwrap_or_default();
            self.book.review_peers(&heard, now, self.settings.grace.into())
        };
        if is_over || is_shut {
            let plan = self.book.plan(&self.want, now);
            let _ = self.carry_out(plan, &mut |_| {});
            self.book.look(&self.tables, now);
        }
        let contested = self.book.contested();
        self.tables.review_past(contested, now, self.settings.grace.into());
        contested
    }

    /// Removes translated flows that are over, at a time of the caller's; returns how many remain and how many went. The worker
    /// does the same and holds no lock meanwhile.
    pub fn sweep_at(&mut self, now: u32, timeouts: &Timeouts) -> Result<(Translated, usize), Error> {
        let swept = self.kernel.sweeper()?.sweep(now, timeouts, Look::Remains);
        mmap::wait_for_readers();
        Ok(self.note_swept(now, swept))
    }

    /// Takes what a sweep found that began at `now`; called when no packet is under way any more that saw what went:
    /// it may write a lease of that. Returns how many flows remain and how many went.
    pub fn note_swept(&mut self, now: u32, swept: Swept) -> (Translated, usize) {
        let Swept { live, over, hashes, backends } = swept;
        hashes.into_iter().for_each(|hash| lease::end(&self.tables, hash));
        self.translated = Some((now, backends));
        (live, over)
    }

    /// Whether the wish has to be applied once more: there is memory for tables that found too little, or the kernel took
    /// what it had refused.
    pub fn has_room_again(&mut self) -> bool {
        std::mem::take(&mut self.has_taken) | self.book.has_room_again()
    }

    /// Has the next change look at everything: one before it was not carried out to its end.
    pub fn doubt(&mut self) {
        self.book.doubt();
    }

    /// Where packets go of flows that began before their backend got another mode.
    pub fn former_destinations(&self) -> BTreeSet<IpAddr> {
        self.book.former_destinations()
    }

    fn carry_out(&mut self, Plan { ops, problems }: Plan, watch: &mut dyn FnMut(&Kernel)) -> Vec<Problem> {
        let Self { kernel, ranges, refused, .. } = self;
        let mut beside = Beside { kernel, ranges, refused };
        for op in &ops {
            watch(beside.kernel);
            self.tally.precede(op, &self.tables);
            op.apply(&self.tables, &mut beside);
        }
        if ops.iter().any(|op| matches!(op, Op::Record(..) | Op::Epoch(_))) {
            self.tally.follow(self.book.balanced());
        }
        problems
    }

    /// Tells the MAC of an interface: frames to another one are left alone.
    pub fn set_interface(&self, ifindex: u32, mac: lb_common::Mac) {
        self.tables.store_interface(ifindex as usize, lb_common::maps::interface(mac));
    }

    /// Tells how many workers the proxy has.
    pub fn set_workers(&mut self, workers: u16) {
        self.settings.workers = workers;
        self.store_settings();
    }

    /// Begins to show packets; `None`: somebody else looks already.
    pub fn start_capture(&mut self, filter: &Filter) -> Result<Option<Ring>, Error> {
        if self.settings.capturing || self.is_over {
            return Ok(None);
        }
        let ring = self.kernel.open_ring()?;
        self.tables.store_filter(filter);
        self.settings.capturing = true;
        self.store_settings();
        Ok(Some(ring))
    }

    /// Ends it.
    pub fn stop_capture(&mut self) {
        self.settings.capturing = false;
        self.store_settings();
    }

    /// Leaves the kernel part to another process: its names are no longer ours, nor are its settings.
    pub fn let_go(&mut self) {
        self.kernel.let_go();
        self.is_over = true;
    }

    fn store_settings(&self) {
        if !self.is_over {
            self.tables.store_settings(&self.settings);
        }
    }

    /// How it began.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Seconds since the tables were made, by this agent or one before.
    pub fn tables_age(&self) -> u64 {
        let units = now().wrapping_sub(self.tables.born());
        (u64::from(units) << 30) / 1_000_000_000
    }

    /// What is installed.
    pub fn want(&self) -> &Want {
        &self.want
    }

    /// Where a flow goes and why.
    pub fn explain(&self, flow: FiveTuple) -> Explanation {
        let known = explain::Known {
            tables: &self.tables,
            ranges: &self.ranges,
            book: &self.book,
            want: &self.want,
            now: now(),
        };
        explain::explain(known, flow, &self.kernel)
    }

    /// Slots of a pool's table, and how many of them have not settled.
    pub fn table_size(&self, pool: &PoolId) -> Option<(u32, usize)> {
        self.book.table_size(pool)
    }

    /// What the backends of a pool got since they were added, by mode where flows go on in an
    /// earlier one.
    pub fn totals(&self, pool: &PoolId) -> BTreeMap<(SocketAddr, ForwardingMode), Totals> {
        let mut all: BTreeMap<(SocketAddr, ForwardingMode), Totals> = BTreeMap::new();
        let wanted = self.want.pools.get(pool).into_iter().flat_map(|pool| &pool.backends);
        let wanted =
            wanted.filter_map(|(addr, one)| Some((*addr, one.mode, self.book.backend_id(pool, *addr)?)));
        for (addr, mode, id) in wanted.chain(self.book.former(pool)) {
            *all.entry((addr, mode)).or_default() += self.tally.backend(id);
        }
        all
    }

    /// What a VIP got since it was added.
    pub fn vip_totals(&self, place: &Place, pool: &PoolId) -> Totals {
        let record = self.book.record_of(place, pool);
        record.map_or_else(Totals::default, |(index, record)| self.tally.vip(index, record.rules))
    }

    /// Packets per verdict; what is not ours is not counted.
    pub fn verdicts(&self) -> Vec<(Verdict, u64)> {
        let counted = Verdict::ALL.into_iter().filter(|verdict| *verdict != Verdict::NotOurs);
        counted.map(|verdict| (verdict, self.tally.counters().verdict(verdict))).collect()
    }

    /// What happened beside the verdicts.
    pub fn events(&self) -> Vec<(Event, u64)> {
        Event::ALL.into_iter().map(|event| (event, self.tally.counters().event(event))).collect()
    }

    /// [`Engine::flow_table_use`] as it was a few seconds ago at most: the table may have a million
    /// entries, and packets want them in their cache.
    pub fn flow_table_use_lately(&self) -> (usize, usize) {
        let now = now();
        match self.flow_use.get() {
            Some((then, used)) if now.wrapping_sub(then) < FLOW_USE_LASTS => used,
            _ => {
                let used = self.flow_table_use();
                self.flow_use.set(Some((now, used)));
                used
            }
        }
    }

    /// Remembered flows, and how many there may be.
    pub fn flow_table_use(&self) -> (usize, usize) {
        let used = self.tables.flow_words().filter(|word| *word != 0).count();
        (used, 1 << self.settings.flow_bits)
    }

    /// Ids of backends that are in use, and how many there are.
    pub fn backend_ids(&self) -> (usize, usize) {
        (self.book.ids_in_use(), maps::BACKENDS as usize - 1)
    }

    /// First and last port of the SNAT range in force.
    pub fn nat_ports(&self) -> (u16, u16) {
        let Settings { nat_first, nat_count, .. } = self.settings;
        (nat_first, nat_first.saturating_add(nat_count.saturating_sub(1)))
    }

    /// The key in force.
    pub fn hash_key(&self) -> HashKey {
        config::hash_key(&self.tables.config)
    }
}

/// Keeps of the settings in force what packets and flows depend on; tells what was asked for.
fn keep_in_force(settings: &mut Settings, tables: &Tables, any_translated: bool) -> Vec<String> {
    settings.key = config::hash_key(&tables.config);
    settings.workers = config::workers(&tables.config);
    let nat = keep_nat_ports(settings, tables, any_translated);
    nat.into_iter().chain(keep_flow_entries(settings, tables)).collect()
}

/// An answer to a port outside of the range is not taken for one.
fn keep_nat_ports(settings: &mut Settings, tables: &Tables, any_translated: bool) -> Option<String> {
    let asked = (settings.nat_first, settings.nat_count);
    let in_force = config::nat_range(&tables.config);
    if in_force == asked || in_force.1 == 0 || !any_translated {
        return None;
    }
    (settings.nat_first, settings.nat_count) = in_force;
    let text =
        |(first, count): (u16, u16)| format!("{first}-{}", first.saturating_add(count.saturating_sub(1)));
    Some(format!(
        "--nat-ports {} waits for a start at which no flow is translated; {} stay in force",
        text(asked),
        text(in_force)
    ))
}

fn keep_flow_entries(settings: &mut Settings, tables: &Tables) -> Option<String> {
    let asked = settings.flow_bits;
    let in_force = config::flow_bits(&tables.config) as u8;
    // Where a flow stands depends on the size.
    if in_force == asked || !(3..=20).contains(&in_force) || tables.flow_words().all(|word| word == 0) {
        return None;
    }
    settings.flow_bits = in_force;
    Some(format!(
        "--flow-entries {} waits for a start at which no flow is remembered; {} stay in force",
        1u32 << asked,
        1u32 << in_force
    ))
}

/// The program's clock.
pub fn now() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    flows::clock((now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64))
}
