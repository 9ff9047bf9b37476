//! From what is installed to what is wanted, as a list of stores in an order of which every prefix
//! is safe: backends before the tables that name them, tables before the VIPs that use them, and
//! on removal the reverse. Memory that a packet may still read is not reused within a plan.
//!
//! A plan costs what is wished otherwise than in the plan before, and what that one could not do: no more
//! than that is looked at, and the steps are those of a plan that looks at everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::maps::{self, LINE};
use lb_common::steer::Memory;
use lb_common::{Addr, AddrEntry, BackendId, Epoch, HashKey, Record, Rules, VipEntry};

use super::memory::Tables;
use super::regions::Regions;
use super::want::{Place, Want};
use crate::model::l4::{PoolId, Prefix};
use crate::model::{ObjectId, Problem, Severity};

mod adopt;
mod anew;
mod backends;
mod former;
mod ids;
mod lookup;
mod op;
mod records;
mod tables;
mod tunnel;

use former::{Rewrite, Standing};
use ids::{Ids, RecordIds};
use lookup::Crowd;
pub use op::{Op, Outside};
use tables::Table;

/// Ordered steps and what could not be planned.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps.
    pub ops: Vec<Op>,
    /// What is missing from them.
    pub problems: Vec<Problem>,
}

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// Key of the flow hash: backends are named by it within the tunnel.
    key: HashKey,
    backends: BTreeMap<BackendKey, Line>,
    tables: BTreeMap<PoolId, Table>,
    tags: BTreeMap<PoolId, u16>,
    records: BTreeMap<RecordKey, (u16, Record)>,
    ranges: BTreeMap<BTreeSet<Prefix>, u16>,
    /// Other balancers, and those that were and may have flows that go on through the tunnel.
    peers: BTreeMap<IpAddr, Standing>,
    /// Backends by what the tunnel calls them.
    names: BTreeMap<u64, BackendId>,
    lookup: Option<Lookup>,
    crowd: Crowd,
    addr_ids: BTreeMap<IpAddr, u16>,
    generations: Vec<u16>,
    backend_ids: Ids,
    tag_ids: Ids,
    record_ids: RecordIds,
    range_ids: Ids,
    addr_id_pool: Ids,
    regions: Regions,
    epoch: Epoch,
    /// Retired, but still named by something that had to stay in force.
    lingering: Retired,
    /// Backends that are gone, and that the flow table may still name: their ids wait for a purge.
    forgotten: BTreeSet<BackendId>,
    /// The wish of the last plan.
    planned: Want,
    /// What the next plan looks at although its wish stays.
    again: Again,
    /// Pools that have former selves of backends.
    changing: BTreeSet<PoolId>,
    /// Our addresses that answers to former selves come to, as the lookup tables have them.
    former_sources: BTreeSet<IpAddr>,
    /// The VIPs of each pool.
    places: BTreeMap<PoolId, BTreeSet<Place>>,
    /// The last plan found less memory for tables than it wanted.
    is_short: bool,
    /// Some was given back since that was looked at.
    has_freed: bool,
}

/// What a plan has to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Again {
    /// Everything about these pools but their VIPs.
    pools: BTreeSet<PoolId>,
    /// All VIPs, their addresses and source ranges.
    vips: bool,
}

/// A backend keeps its id as long as its pool and address stay, and what its flows look like to it.
type BackendKey = (PoolId, SocketAddr, Rewrite);

/// A record belongs to a VIP and its pool; to a punted VIP only for its source ranges.
type RecordKey = (Place, Option<PoolId>);

/// Contents of the address and VIP tables, whether all of it has room or not.
type Lookup = (Vec<(Addr, AddrEntry)>, Vec<VipEntry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    id: BackendId,
    words: [[u64; LINE]; 2],
    standing: Standing,
}

/// What is known of the packets when slots are to settle.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// See [`lb_common::flows::clock`].
    pub now: u32,
    /// The grace time, in units of the clock.
    pub grace: u32,
    /// When a spare flow seen within the grace time was last forgotten for want of room.
    pub spared: Option<u32>,
    /// When translations were last looked through, and which backends they name.
    pub translated: Option<(u32, &'a BTreeSet<BackendId>)>,
}

impl Default for Book {
    fn default() -> Self {
        Self::new(HashKey::default())
    }
}

impl Book {
    /// Nothing installed yet.
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            backends: BTreeMap::new(),
            tables: BTreeMap::new(),
            tags: BTreeMap::new(),
            records: BTreeMap::new(),
            ranges: BTreeMap::new(),
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            lookup: None,
            crowd: Crowd::default(),
            addr_ids: BTreeMap::new(),
            generations: vec![0; maps::BACKENDS as usize],
            backend_ids: Ids::new(1, maps::BACKENDS as u16),
            tag_ids: Ids::new(1, u16::MAX),
            record_ids: RecordIds::default(),
            range_ids: Ids::new(1, u16::MAX),
            addr_id_pool: Ids::new(1, u16::MAX),
            regions: Regions::new(maps::POOL_SLOTS),
            epoch: Epoch::default(),
            lingering: Retired::default(),
            forgotten: BTreeSet::new(),
            planned: Want::default(),
            again: Again { pools: BTreeSet::new(), vips: true },
            changing: BTreeSet::new(),
            former_sources: BTreeSet::new(),
            places: BTreeMap::new(),
            is_short: false,
            has_freed: false,
        }
    }
}

/// Things freed by a plan; they go back only when all of it has been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Retired {
    backends: Vec<(PoolId, BackendId)>,
    tags: Vec<u16>,
    records: Vec<u16>,
    /// Those whose pool has no backend any more that is translated to.
    translated: Vec<RecordKey>,
    ranges: Vec<u16>,
    regions: Vec<(u32, u32)>,
    addr_ids: Vec<u16>,
}

impl Book {
    /// Plans the way from here to `want` and notes it as done. `now`: see
    /// [`lb_common::flows::clock`].
    pub fn plan(&mut self, want: &Want, now: u32) -> Plan {
        let mut plan = Plan::default();
        let mut retired = std::mem::take(&mut self.lingering);
        self.is_short = false;
        let Again { pools, vips } = self.touched(want);
        self.plan_tags(want, &pools, &mut plan, &mut retired);
        self.plan_backends(want, &pools, now, &mut plan, &mut retired);
        self.plan_peers(want, now, &mut plan);
        self.plan_tunnel(&pools, &mut plan, &retired);
        self.plan_tables(want, &pools, now, &mut plan, &mut retired);
        let moved = if vips {
            self.plan_ranges(want, &mut plan, &mut retired);
            self.plan_records(want, &mut plan, &mut retired);
            true
        } else {
            self.plan_records_of(want, &pools, &mut plan, &mut retired)
        };
        let switches = self.plan_lookup(want, moved, &mut plan, &mut retired);
        self.planned = want.clone();
        self.release(retired, switches, &mut plan);
        plan
    }

    /// Has the next plan look at everything, as if nothing were known of a wish.
    pub fn doubt(&mut self) {
        let lines = self.backends.keys().map(|(pool, _, _)| pool);
        let pools = self.tags.keys().chain(self.tables.keys()).chain(lines).cloned().collect();
        self.again = Again { pools, vips: true };
        self.planned = Want::default();
    }

    /// What is wished otherwise than before, and what could not be done then.
    fn touched(&mut self, want: &Want) -> Again {
        let mut again = std::mem::take(&mut self.again);
        let before = &self.planned;
        again.pools.extend(want.pools.changes(&before.pools).map(|change| change.key.clone()));
        again.vips |=
            (&want.vips, &want.ranges, &want.addrs) != (&before.vips, &before.ranges, &before.addrs);
        again
    }

    /// Reads what packets left in the regions that a plan replaced; called right after it was carried out,
    /// before another plan uses them again.
    pub fn look(&mut self, tables: &Tables, now: u32) {
        self.note_left(|index| tables.slot(index), now);
    }

    /// Plans what the passing of time brings: slots settle, and ids of backends that are gone become free. The
    /// second value tells that more can go by planning the same wish again.
    pub fn settle(&mut self, tables: &Tables, observed: &Observed<'_>) -> (Plan, bool) {
        let mut plan = Plan::default();
        let mut retired = Retired::default();
        self.purge(&mut plan);
        if self.tables.values().any(|table| !table.is_settled()) {
            self.look(tables, observed.now);
            self.note_used(|index| tables.slot(index), observed.now);
            self.plan_settling(tables, observed, &mut plan, &mut retired);
            self.release(retired, false, &mut plan);
        }
        let is_over = self.review_former(tables, observed);
        (plan, is_over)
    }

    /// Whether another plan of the same wish may find what the last one did not: memory for tables.
    pub fn has_room_again(&mut self) -> bool {
        self.is_short && std::mem::take(&mut self.has_freed)
    }

    /// Gives back what nothing names any more, once no packet can be reading it.
    fn release(&mut self, retired: Retired, switched: bool, plan: &mut Plan) {
        let Retired { backends, tags, records, translated, ranges, regions, addr_ids } = retired;
        let (named, gone): (Vec<_>, Vec<_>) =
            backends.into_iter().partition(|(pool, id)| self.is_named(pool, *id));
        self.lingering.backends.extend(named);
        let gone: Vec<BackendId> = gone.into_iter().map(|(_, id)| id).collect();
        let told = translated.iter().filter_map(|key| self.records.get(key));
        let told: Vec<_> = told.filter(|(_, record)| !record.rules.any(Rules::TRANSLATED)).collect();
        if switched || !gone.is_empty() || !regions.is_empty() || !ranges.is_empty() || !told.is_empty() {
            plan.ops.push(Op::Grace);
        }
        plan.ops.extend(told.into_iter().map(|(index, record)| Op::Rules(*index, record.rules)));
        plan.ops.extend(gone.iter().map(|id| Op::Forget(*id)));
        self.forgotten.extend(gone);
        for set in ranges {
            plan.ops.push(Op::NoRanges(set));
            self.range_ids.give_back(set);
        }
        tags.into_iter().for_each(|tag| self.tag_ids.give_back(tag));
        records.into_iter().for_each(|index| self.record_ids.give_back(index));
        addr_ids.into_iter().for_each(|id| self.addr_id_pool.give_back(id));
        self.has_freed |= !regions.is_empty();
        for (base, size) in regions {
            self.regions.give_back(base, size);
        }
    }

    /// Gives back the ids of backends that are gone. Flows notice by themselves that theirs is; another backend of
    /// that id must not get them. To find them the whole flow table is read, so it is done for all that went within
    /// a few seconds, and sooner only where no other id is left.
    fn purge(&mut self, plan: &mut Plan) {
        let gone = std::mem::take(&mut self.forgotten);
        if gone.is_empty() {
            return;
        }
        // A packet that read the old line may still write its id into the flow table.
        plan.ops.push(Op::Grace);
        gone.iter().for_each(|id| self.backend_ids.give_back(id.0));
        plan.ops.push(Op::Purge(gone));
    }

    /// An id for a backend that is new.
    fn take_backend_id(&mut self, plan: &mut Plan) -> Option<BackendId> {
        let id = self.backend_ids.take().or_else(|| {
            self.purge(plan);
            self.backend_ids.take()
        });
        id.map(BackendId)
    }

    /// Whether the table of its pool may name a backend: one that could not be replaced keeps those that
    /// are no longer wanted.
    fn is_named(&self, pool: &PoolId, id: BackendId) -> bool {
        self.tables.get(pool).is_some_and(|table| table.named().any(|named| named == id))
    }

    /// How many ids backends have, those included whose flows go on in a former mode.
    pub fn ids_in_use(&self) -> usize {
        self.backends.len()
    }

    /// Which backend has an id.
    pub fn backend_of(&self, id: BackendId) -> Option<(&PoolId, SocketAddr)> {
        self.backends.iter().find(|(_, line)| line.id == id).map(|((pool, addr, _), _)| (pool, *addr))
    }

    /// Record of a VIP, to read its counters.
    pub fn record_of(&self, place: &Place, pool: &PoolId) -> Option<(u16, Record)> {
        self.records.get(&(*place, Some(pool.clone()))).copied()
    }

    /// Balanced VIPs with their records.
    pub fn balanced(&self) -> impl Iterator<Item = ((&Place, &PoolId), (u16, Rules))> {
        let records = self.records.iter();
        records.filter_map(|((place, pool), (index, record))| {
            Some(((place, pool.as_ref()?), (*index, record.rules)))
        })
    }

    /// Slots of all tables that have not settled.
    pub fn contested(&self) -> usize {
        self.tables.values().map(Table::contested).sum()
    }

    /// Slots of the table of a pool, and how many of them have not settled.
    pub fn table_size(&self, pool: &PoolId) -> Option<(u32, usize)> {
        let table = self.tables.get(pool)?;
        Some((if table.bits() == 0 { 0 } else { 1 << table.bits() }, table.contested()))
    }
}

fn too_many(message: &str) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "datapath-full",
        field: String::new(),
        message: message.to_owned(),
        fix: String::new(),
    }
}

#[cfg(test)]
mod beginning;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod shortcuts;
#[cfg(test)]
mod tests;
