//! Maglev tables: filled aside, switched by a store, settled slot by slot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::flows::Entry;
use lb_common::steer::Memory;
use lb_common::{BackendId, Descriptor, Record, Rules, Slot};

use super::{Book, Op, Plan, Retired};
use crate::datapath::maglev;
use crate::datapath::memory::Tables;
use crate::datapath::slots::Slots;
use crate::datapath::want::{Want, problem};
use crate::model::l4::PoolId;

/// The table of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Table {
    slots: Slots,
    /// Base of the region that the current owners fill, while there are any slots.
    base: u32,
    /// Base of the region of the previous owners, while slots are contested.
    previous: Option<u32>,
    /// The last change is older than the grace time.
    late: bool,
    generation: u16,
    /// What it was filled from: nothing changes unless this does.
    shares: BTreeMap<SocketAddr, (BackendId, u16)>,
}

/// Slots where a flow was seen within the grace time, with the backend that is remembered for it.
pub(super) type Fresh = HashMap<PoolId, BTreeSet<(u32, BackendId)>>;

impl Table {
    /// The table that a descriptor in force names. What it was filled from is not known: shares that
    /// no pool has stand for the backends that it names.
    pub(super) fn adopt(descriptor: Descriptor, memory: &Tables, now: u32) -> Self {
        let read = |base: u32| {
            let slots = 0..if descriptor.is_none() { 0 } else { 1 << descriptor.bits() };
            slots.map(|slot| memory.slot(base + slot)).collect::<Vec<Slot>>()
        };
        let (current, previous) = (read(descriptor.base()), descriptor.previous().map(read));
        let named = current.iter().chain(previous.iter().flatten()).map(|slot| slot.backend());
        let mut shares: BTreeMap<_, _> = named.map(|id| (nowhere(id), (id, 0))).collect();
        shares.insert(nowhere(BackendId(0)), (BackendId(0), 0));
        // Late: every change is older than the grace time. The boot is older than all of them.
        let since = if descriptor.is_late() { 0 } else { now };
        Self {
            slots: Slots::adopt(&current, previous.as_deref(), since),
            base: descriptor.base(),
            previous: descriptor.previous(),
            late: descriptor.is_late(),
            generation: descriptor.generation(),
            shares,
        }
    }

    /// Notes `shares` as what it was filled from, if it would be filled the same from them.
    pub(super) fn recognise(&mut self, shares: BTreeMap<SocketAddr, (BackendId, u16)>) {
        let (least, wished) = sizes(&shares);
        let same = |bits: u32| self.slots.are_owned_as(&maglev::fill(bits, &shares));
        if (least..=wished).rev().filter(|bits| *bits <= self.slots.bits()).any(same)
            || self.slots.bits() == 0 && shares.values().all(|(_, weight)| *weight == 0)
        {
            self.shares = shares;
        }
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        if self.slots.bits() == 0 {
            return Descriptor::NONE;
        }
        let settled = Descriptor::settled(self.base, self.slots.bits(), self.generation);
        match self.previous {
            Some(previous) if self.late => settled.contested(previous).late(),
            Some(previous) => settled.contested(previous),
            None => settled,
        }
    }

    pub(super) fn bits(&self) -> u32 {
        self.slots.bits()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.previous.is_none()
    }

    pub(super) fn contested(&self) -> usize {
        if self.is_settled() { 0 } else { self.slots.contested() }
    }

    /// Backends that its slots may name: those it was filled from, since a change forgets the
    /// owners that do not live.
    pub(super) fn named(&self) -> impl Iterator<Item = BackendId> {
        self.shares.values().map(|(id, _)| *id)
    }

    fn retire(&self, retired: &mut Retired) {
        if self.slots.bits() > 0 {
            let size = 1 << self.slots.bits();
            retired.regions.push((self.base, size));
            retired.regions.extend(self.previous.map(|base| (base, size)));
        }
    }
}

impl Book {
    pub(super) fn plan_tables(&mut self, want: &Want, now: u32, plan: &mut Plan, retired: &mut Retired) {
        for id in want.pools.keys() {
            let shares = self.shares(id, want);
            let old = self.tables.get(id).cloned().unwrap_or_default();
            if old.shares == shares && self.tables.contains_key(id) {
                continue;
            }
            match self.changed(&old, shares, now, plan) {
                Some(table) => {
                    old.retire(retired);
                    self.tables.insert(id.clone(), table);
                }
                None => {
                    let message = "no memory is left for its table; it keeps the old one".to_owned();
                    plan.problems.push(problem(id, message));
                }
            }
        }
        self.tables.retain(|id, table| {
            let kept = want.pools.contains_key(id);
            if !kept {
                table.retire(retired);
            }
            kept
        });
    }

    /// The table over other shares, in regions of its own: smaller than wished rather than none.
    fn changed(
        &mut self,
        old: &Table,
        shares: BTreeMap<SocketAddr, (BackendId, u16)>,
        now: u32,
        plan: &mut Plan,
    ) -> Option<Table> {
        let living: BTreeSet<BackendId> = shares.values().map(|(id, _)| *id).collect();
        let (least, wished) = sizes(&shares);
        for bits in (least..=wished).rev() {
            let owners = maglev::fill(bits, &shares);
            let mut slots = old.slots.clone();
            slots.change(&owners, |id| living.contains(&id), now);
            let mut table = Table {
                slots,
                shares: shares.clone(),
                generation: old.generation.wrapping_add(1),
                ..Table::default()
            };
            if table.slots.bits() == 0 {
                return Some(table);
            }
            let size = 1 << table.slots.bits();
            let Some(base) = self.regions.take(size) else { continue };
            table.base = base;
            let Some(previous) = table.slots.previous() else {
                plan.ops.push(Op::Table(base, table.slots.current()));
                return Some(table);
            };
            let Some(aside) = self.regions.take(size) else {
                self.regions.give_back(base, size);
                continue;
            };
            table.previous = Some(aside);
            plan.ops.push(Op::Table(aside, previous));
            plan.ops.push(Op::Table(base, table.slots.current()));
            return Some(table);
        }
        None
    }

    /// Flows of contested slots that were seen within the grace time.
    pub(super) fn fresh(&self, flows: impl Iterator<Item = u64>, now: u32, grace: u32) -> Fresh {
        let contested = self.tables.iter().filter(|(_, table)| !table.is_settled());
        let pools: HashMap<BackendId, (&PoolId, u32)> = contested
            .flat_map(|(id, table)| {
                table.shares.values().map(move |(backend, _)| (*backend, (id, table.bits())))
            })
            .collect();
        let mut fresh = Fresh::new();
        for entry in flows.map(Entry).filter(|entry| !entry.is_none() && entry.age(now) <= grace) {
            if let Some((pool, bits)) = pools.get(&entry.backend()) {
                fresh.entry((*pool).clone()).or_default().insert((entry.slot(*bits), entry.backend()));
            }
        }
        fresh
    }

    /// Settles what can be settled. With affinity and conservative memory the flow table is asked
    /// for every packet, contested or not: there, age alone decides.
    pub(super) fn plan_settling(
        &mut self,
        fresh: &Fresh,
        now: u32,
        grace: u32,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let none = BTreeSet::new();
        let asked = |record: &Record| record.rules.any(Rules::AFFINITY | Rules::CONSERVATIVE);
        let always_asked: BTreeSet<PoolId> = self
            .records
            .iter()
            .filter(|(_, (_, record))| asked(record))
            .filter_map(|((_, pool), _)| pool.clone())
            .collect();
        for (id, table) in self.tables.iter_mut().filter(|(_, table)| !table.is_settled()) {
            let flows = if always_asked.contains(id) { &none } else { fresh.get(id).unwrap_or(&none) };
            let differs = |slot: u32, owner: BackendId| {
                let of_slot = flows.range((slot, BackendId(0))..=(slot, BackendId(u16::MAX)));
                of_slot.into_iter().any(|(_, backend)| *backend != owner)
            };
            let before = table.descriptor();
            for (slot, cell) in table.slots.settle(now, grace, differs) {
                plan.ops.push(Op::Settle(table.base + slot, cell));
            }
            table.late = table.slots.last_change().is_some_and(|since| now.wrapping_sub(since) > grace);
            if table.slots.contested() == 0
                && let Some(previous) = table.previous.take()
            {
                retired.regions.push((previous, 1 << table.slots.bits()));
            }
            let after = table.descriptor();
            if after == before {
                continue;
            }
            for ((_, pool), (index, record)) in &mut self.records {
                if pool.as_ref() == Some(id) {
                    record.descriptor = after;
                    plan.ops.push(Op::Switch(*index, after));
                }
            }
        }
    }
}

/// Smallest and best log2 of the size of a table over these shares.
fn sizes(shares: &BTreeMap<SocketAddr, (BackendId, u16)>) -> (u32, u32) {
    let weighted = shares.values().filter(|(_, weight)| *weight > 0).count();
    let wished = maglev::bits_for(weighted);
    let least = weighted.next_power_of_two().trailing_zeros().max(Descriptor::UNIT.trailing_zeros());
    (least.min(wished), wished)
}

/// A place that no backend has.
fn nowhere(id: BackendId) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(id.0.into()), 0))
}
