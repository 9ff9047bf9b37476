//! From what is installed to what is wanted, as a list of stores in an order of which every prefix
//! is safe: backends before the tables that name them, tables before the VIPs that use them, and
//! on removal the reverse. Memory that a packet may still read is not reused within a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::maps::{self, LINE};
use lb_common::{Addr, AddrEntry, BackendId, Descriptor, Epoch, Mode, Record, TCP, UDP, VipEntry, wire_port};

use super::layout;
use super::maglev;
use super::memory::Tables;
use super::regions::Regions;
use super::want::{Backend, Owner, Place, Pool, Target, Want, problem};
use crate::model::l4::{ForwardingMode, Listener, PoolId, Protocol};
use crate::model::{ObjectId, Problem, Severity};

/// One step of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the line of a backend.
    Backend(BackendId, [u64; LINE]),
    /// Fills a region that no descriptor names.
    Table(u32, Vec<BackendId>),
    /// Writes a record that no VIP names.
    Record(u16, [u64; LINE]),
    /// Switches the table of a VIP: one store.
    Switch(u16, Descriptor),
    /// Writes the half of the address and VIP tables that is not in force.
    Lookup(u32, layout::Buckets, layout::Buckets),
    /// Puts that half in force: one store.
    Epoch(Epoch),
    /// Waits until no packet reads what was retired.
    Grace,
    /// Marks a backend as gone: flows that remember it begin anew.
    Forget(BackendId),
}

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
    backends: BTreeMap<(PoolId, ForwardingMode, SocketAddr), Line>,
    tables: BTreeMap<PoolId, Table>,
    records: BTreeMap<(Place, PoolId), (u16, Descriptor, ForwardingMode)>,
    lookup: Option<Lookup>,
    addr_ids: BTreeMap<IpAddr, u16>,
    generations: Vec<u16>,
    backend_ids: Ids,
    record_ids: Ids,
    addr_id_pool: Ids,
    regions: Regions,
    epoch: Epoch,
    /// Retired, but still named by something that had to stay in force.
    lingering: Retired,
}

/// Whether the address and VIP tables say what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halves {
    /// They did already.
    InForce,
    /// They do after this plan.
    Switched,
    /// They do not fit; the old ones stay.
    Stale,
}

/// Contents of the address and VIP tables.
type Lookup = (Vec<(Addr, AddrEntry)>, Vec<VipEntry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    id: BackendId,
    words: [u64; LINE],
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    descriptor: Descriptor,
    /// What it was filled from: nothing changes unless this does.
    shares: BTreeMap<SocketAddr, (BackendId, u16)>,
}

/// Small numbers, the least recently freed first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ids {
    next: u16,
    end: u16,
    free: std::collections::VecDeque<u16>,
}

impl Ids {
    fn new(first: u16, end: u16) -> Self {
        Self { next: first, end, free: std::collections::VecDeque::new() }
    }

    fn take(&mut self) -> Option<u16> {
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }
}

impl Default for Book {
    fn default() -> Self {
        Self {
            backends: BTreeMap::new(),
            tables: BTreeMap::new(),
            records: BTreeMap::new(),
            lookup: None,
            addr_ids: BTreeMap::new(),
            generations: vec![0; maps::BACKENDS as usize],
            backend_ids: Ids::new(1, maps::BACKENDS as u16),
            record_ids: Ids::new(0, maps::RECORDS as u16),
            addr_id_pool: Ids::new(1, u16::MAX),
            regions: Regions::new(maps::POOL_SLOTS),
            epoch: Epoch::default(),
            lingering: Retired::default(),
        }
    }
}

/// Things freed by a plan; they go back only when all of it has been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Retired {
    backends: Vec<BackendId>,
    records: Vec<u16>,
    regions: Vec<(u32, u32)>,
    addr_ids: Vec<u16>,
}

impl Book {
    /// Plans the way from here to `want` and notes it as done.
    pub fn plan(&mut self, want: &Want) -> Plan {
        let mut plan = Plan::default();
        let mut retired = std::mem::take(&mut self.lingering);
        self.plan_backends(want, &mut plan, &mut retired);
        self.plan_tables(want, &mut plan, &mut retired);
        self.plan_records(want, &mut plan, &mut retired);
        let halves = self.plan_lookup(want, &mut plan, &mut retired);
        if halves == Halves::Stale {
            // Old VIPs go on naming old records, tables and backends: none of them may be reused.
            self.lingering = retired;
            return plan;
        }

        let Retired { backends, records, regions, addr_ids } = retired;
        let (named, gone): (Vec<_>, Vec<_>) = backends.into_iter().partition(|id| self.is_named(*id));
        self.lingering.backends = named;
        if halves == Halves::Switched || !gone.is_empty() || !regions.is_empty() {
            plan.ops.push(Op::Grace);
        }
        for id in gone {
            plan.ops.push(Op::Forget(id));
            self.backend_ids.free.push_back(id.0);
        }
        self.record_ids.free.extend(records);
        self.addr_id_pool.free.extend(addr_ids);
        for (base, size) in regions {
            self.regions.give_back(base, size);
        }
        plan
    }

    /// Whether a table in force has slots of this backend: one that could not be replaced keeps
    /// backends that are no longer wanted.
    fn is_named(&self, id: BackendId) -> bool {
        self.tables.values().any(|table| table.shares.values().any(|(named, _)| *named == id))
    }

    /// Id of a backend, to read its counters.
    pub fn backend_id(&self, pool: &PoolId, mode: ForwardingMode, addr: SocketAddr) -> Option<BackendId> {
        self.backends.get(&(pool.clone(), mode, addr)).map(|line| line.id)
    }

    /// Which backend has an id.
    pub fn backend_of(&self, id: BackendId) -> Option<(&PoolId, SocketAddr)> {
        self.backends.iter().find(|(_, line)| line.id == id).map(|((pool, _, addr), _)| (pool, *addr))
    }

    /// Slots of the table of a pool.
    pub fn table_size(&self, pool: &PoolId) -> Option<u32> {
        self.tables.get(pool).map(|table| 1 << table.descriptor.bits())
    }

    fn plan_backends(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        let mut keep = BTreeSet::new();
        for (pool_id, pool) in &want.pools {
            for (addr, backend) in &pool.backends {
                let key = (pool_id.clone(), pool.mode, *addr);
                let id = match self.backends.get(&key) {
                    Some(line) => Some(line.id),
                    None => self.backend_ids.take().map(BackendId),
                };
                let Some(id) = id else {
                    plan.problems.push(problem(pool_id, format!("backend {addr}: no backend id is left")));
                    continue;
                };
                if !self.backends.contains_key(&key)
                    && let Some(generation) = self.generations.get_mut(usize::from(id.0))
                {
                    *generation = generation.wrapping_add(1).max(1);
                }
                let words = self.line(id, pool.mode, *addr, backend);
                if self.backends.get(&key).is_none_or(|line| line.words != words) {
                    plan.ops.push(Op::Backend(id, words));
                    self.backends.insert(key.clone(), Line { id, words });
                }
                keep.insert(key);
            }
        }
        self.backends.retain(|key, line| {
            let kept = keep.contains(key);
            if !kept {
                retired.backends.push(line.id);
            }
            kept
        });
    }

    fn line(&self, id: BackendId, mode: ForwardingMode, addr: SocketAddr, backend: &Backend) -> [u64; LINE] {
        let Backend { weight: _, way } = backend;
        lb_common::Backend {
            addr: addr.ip().into(),
            snat: way.source.into(),
            next_hop: way.plain_next_hop(),
            wire_port: wire_port(addr.port()),
            mode: match mode {
                ForwardingMode::L2 => Mode::L2,
                // The join gives pools `nat` where the program has no such mode.
                ForwardingMode::Nat
                | ForwardingMode::Ipip
                | ForwardingMode::Local
                | ForwardingMode::Tunnel => Mode::Nat,
            },
            generation: self.generations.get(usize::from(id.0)).copied().unwrap_or(1),
            mtu: way.mtu,
        }
        .words()
    }

    fn plan_tables(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        for (id, pool) in &want.pools {
            let shares = self.shares(id, pool);
            let old = self.tables.get(id);
            if old.is_some_and(|table| table.shares == shares) {
                continue;
            }
            let generation = old.map_or(0, |table| table.descriptor.generation()).wrapping_add(1);
            let weighted = shares.values().filter(|(_, weight)| *weight > 0).count();
            let descriptor = match self.region(weighted) {
                _ if weighted == 0 => Descriptor::NONE,
                Some((base, bits)) => {
                    plan.ops.push(Op::Table(base, maglev::fill(bits, &shares)));
                    Descriptor::settled(base, bits, generation)
                }
                None => {
                    let message = "no memory is left for its table; it keeps the old one".to_owned();
                    plan.problems.push(problem(id, message));
                    continue;
                }
            };
            let table = Table { descriptor, shares };
            if let Some(old) = self.tables.insert(id.clone(), table) {
                retire_table(&old, retired);
            }
        }
        self.tables.retain(|id, table| {
            let kept = want.pools.contains_key(id);
            if !kept {
                retire_table(table, retired);
            }
            kept
        });
    }

    /// The backends of a pool that have a line, with their weights.
    fn shares(&self, id: &PoolId, pool: &Pool) -> BTreeMap<SocketAddr, (BackendId, u16)> {
        pool.backends
            .iter()
            .filter_map(|(addr, backend)| {
                Some((*addr, (self.backend_id(id, pool.mode, *addr)?, backend.weight)))
            })
            .collect()
    }

    /// Room for a table of that many backends: smaller than wished rather than none.
    fn region(&mut self, backends: usize) -> Option<(u32, u32)> {
        let wished = maglev::bits_for(backends);
        let least = backends.next_power_of_two().trailing_zeros().max(Descriptor::UNIT.trailing_zeros());
        if backends == 0 {
            return None;
        }
        (least.min(wished)..=wished)
            .rev()
            .find_map(|bits| self.regions.take(1 << bits).map(|base| (base, bits)))
    }

    fn plan_records(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        let mut keep = BTreeSet::new();
        for (place, target) in &want.vips {
            let Target::Pool(pool_id) = target else { continue };
            let (Some(pool), Some(table)) = (want.pools.get(pool_id), self.tables.get(pool_id)) else {
                continue;
            };
            let descriptor = table.descriptor;
            let key = (*place, pool_id.clone());
            match self.records.get_mut(&key) {
                Some((index, old, mode)) if *mode == pool.mode => {
                    if *old != descriptor {
                        plan.ops.push(Op::Switch(*index, descriptor));
                        *old = descriptor;
                    }
                }
                old => {
                    // Another mode is another record: the switch is the epoch's.
                    if let Some((index, _, _)) = old {
                        retired.records.push(*index);
                    }
                    let Some(index) = self.record_ids.take() else {
                        self.records.remove(&key);
                        plan.problems.push(problem(pool_id, format!("VIP {}: too many VIPs", place.addr)));
                        continue;
                    };
                    let stateful = pool.mode == ForwardingMode::Nat;
                    plan.ops.push(Op::Record(index, Record { descriptor, stateful }.words()));
                    self.records.insert(key.clone(), (index, descriptor, pool.mode));
                }
            }
            keep.insert(key);
        }
        self.records.retain(|key, (index, _, _)| {
            let kept = keep.contains(key);
            if !kept {
                retired.records.push(*index);
            }
            kept
        });
    }

    fn plan_lookup(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) -> Halves {
        let gone: Vec<IpAddr> =
            self.addr_ids.keys().filter(|addr| !want.addrs.contains_key(*addr)).copied().collect();
        for addr in gone {
            retired.addr_ids.extend(self.addr_ids.remove(&addr));
        }
        let mut addrs = Vec::new();
        for (addr, owner) in &want.addrs {
            let id = match self.addr_ids.get(addr) {
                Some(id) => Some(*id),
                None => self.addr_id_pool.take(),
            };
            let Some(id) = id else {
                plan.problems.push(too_many(&format!("{addr}: too many addresses")));
                continue;
            };
            self.addr_ids.insert(*addr, id);
            let entry = match owner {
                Owner::Vip => AddrEntry::vip(id),
                Owner::Node => AddrEntry::node(id),
            };
            addrs.push((Addr::from(*addr), entry));
        }
        let vips: Vec<VipEntry> =
            want.vips.iter().filter_map(|(place, target)| self.vip_entry(place, target)).collect();

        let lookup = (addrs, vips);
        if self.lookup.as_ref() == Some(&lookup) {
            return Halves::InForce;
        }
        let (Some(addr_lines), Some(vip_lines)) = (layout::addrs(&lookup.0), layout::vips(&lookup.1)) else {
            plan.problems.push(too_many("the VIP table does not fit; the old one stays"));
            return Halves::Stale;
        };
        let half = self.epoch.half() ^ 1;
        self.epoch =
            Epoch::new(half, addr_lines.bits, vip_lines.bits, self.epoch.generation().wrapping_add(1));
        plan.ops.push(Op::Lookup(half, addr_lines, vip_lines));
        plan.ops.push(Op::Epoch(self.epoch));
        self.lookup = Some(lookup);
        Halves::Switched
    }

    fn vip_entry(&self, place: &Place, target: &Target) -> Option<VipEntry> {
        let id = *self.addr_ids.get(&place.addr)?;
        let proto = match place.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let key = VipEntry::key(AddrEntry::vip(id), wire_port(place.port), proto);
        match target {
            Target::Punt(listener) => Some(VipEntry::punted(key, *listener == Listener::Https)),
            Target::Pool(pool) => {
                let (record, _, _) = self.records.get(&(*place, pool.clone()))?;
                Some(VipEntry::balanced(key, *record))
            }
        }
    }
}

impl Op {
    /// Carries the step out; `wait` is called for [`Op::Grace`].
    pub fn apply(&self, tables: &Tables, wait: &mut dyn FnMut()) {
        match self {
            Self::Backend(id, words) => tables.store_backend(*id, words),
            Self::Table(base, slots) => tables.store_slots(*base, slots),
            Self::Record(index, words) => tables.store_record(*index, words),
            Self::Switch(index, descriptor) => tables.switch(*index, *descriptor),
            Self::Lookup(half, addrs, vips) => tables.store_lookup(*half, &addrs.lines, &vips.lines),
            Self::Epoch(epoch) => tables.store_epoch(*epoch),
            Self::Grace => wait(),
            Self::Forget(id) => tables.forget_backend(*id),
        }
    }
}

fn retire_table(table: &Table, retired: &mut Retired) {
    if !table.descriptor.is_none() {
        retired.regions.push((table.descriptor.base(), 1 << table.descriptor.bits()));
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
mod tests;
