//! Maglev tables: filled aside, switched by a store, settled slot by slot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::flows::Entry;
use lb_common::steer::Memory;
use lb_common::{BackendId, Descriptor, Slot};

use super::{Book, Observed, Op, Plan, Retired};
use crate::datapath::maglev;
use crate::datapath::memory::Tables;
use crate::datapath::slots::Slots;
use crate::datapath::want::{Want, problem};
use crate::model::l4::{PoolId, Protocol};

/// The table of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Table {
    slots: Slots,
    /// Base of the region that the current owners fill, while there are any slots.
    base: u32,
    /// Base of the region of the previous owners, while slots are contested.
    previous: Option<u32>,
    /// Base and log2 size of the one before: the marks that packets left there were not read yet.
    left: Option<(u32, u32)>,
    generation: u16,
    /// What it was filled from: nothing changes unless this does.
    shares: BTreeMap<SocketAddr, (BackendId, u16)>,
    /// Former selves of those backends: they own no slot, and may have owned some.
    former: BTreeSet<BackendId>,
    /// The flow table is asked for every packet, contested or not (affinity, conservative).
    asked: bool,
}

/// What the flow table tells of the contested slots of a pool.
#[derive(Debug, Default)]
struct Remembered {
    /// Flows seen within the grace time: slot and backend.
    fresh: BTreeSet<(u32, BackendId)>,
    /// The others, with where they stand.
    stale: Vec<(u32, Entry)>,
}

impl Table {
    /// The table that a descriptor in force names. What it was filled from is not known: shares that
    /// no pool has stand for the backends that it names.
    pub(super) fn adopt(descriptor: Descriptor, asked: bool, memory: &Tables, now: u32) -> Self {
        let read = |base: u32| {
            let slots = 0..if descriptor.is_none() { 0 } else { 1 << descriptor.bits() };
            slots.map(|slot| memory.slot(base + slot)).collect::<Vec<Slot>>()
        };
        let (current, previous) = (read(descriptor.base()), descriptor.previous().map(read));
        let named = current.iter().chain(previous.iter().flatten()).map(|slot| slot.backend());
        let mut shares: BTreeMap<_, _> = named.map(|id| (nowhere(id), (id, 0))).collect();
        shares.insert(nowhere(BackendId(0)), (BackendId(0), 0));
        Self {
            slots: Slots::adopt(&current, previous.as_deref(), now),
            base: descriptor.base(),
            previous: descriptor.previous(),
            left: None,
            generation: descriptor.generation(),
            shares,
            former: BTreeSet::new(),
            asked,
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
        self.shares.values().map(|(id, _)| *id).chain(self.former.iter().copied())
    }

    /// Whether a slot names a backend.
    pub(super) fn names(&self, id: BackendId) -> bool {
        self.slots.name(id)
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
    pub(super) fn plan_tables(
        &mut self,
        want: &Want,
        touched: &BTreeSet<PoolId>,
        now: u32,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let (wanted, gone): (Vec<_>, Vec<_>) = touched.iter().partition(|id| want.pools.contains_key(*id));
        for id in wanted {
            let shares = self.shares(id, want);
            let asked = want.pools.get(id).is_some_and(|pool| pool.affinity.is_some() || pool.conservative);
            let former: BTreeSet<BackendId> = self.former(id).map(|(_, _, id)| id).collect();
            if let Some(table) = self.tables.get_mut(id)
                && table.shares == shares
                && (table.asked == asked || !table.asked)
            {
                table.asked = asked;
                table.former = former;
                continue;
            }
            let old = self.tables.get(id).cloned().unwrap_or_default();
            match self.changed(&old, (shares, former), asked, now, plan) {
                Some(table) => {
                    old.retire(retired);
                    self.tables.insert(id.clone(), table);
                }
                None => {
                    let message = "no memory is left for its table; it keeps the old one".to_owned();
                    plan.problems.push(problem(id, message));
                    self.again.pools.insert(id.clone());
                }
            }
        }
        for table in gone.into_iter().filter_map(|id| self.tables.remove(id)) {
            table.retire(retired);
        }
    }

    /// The table over other shares, in regions of its own: smaller than wished rather than none.
    fn changed(
        &mut self,
        old: &Table,
        (shares, former): (BTreeMap<SocketAddr, (BackendId, u16)>, BTreeSet<BackendId>),
        asked: bool,
        now: u32,
        plan: &mut Plan,
    ) -> Option<Table> {
        let living: BTreeSet<BackendId> =
            shares.values().map(|(id, _)| *id).chain(former.iter().copied()).collect();
        let (least, wished) = sizes(&shares);
        for bits in (least..=wished).rev() {
            let owners = maglev::fill(bits, &shares);
            let mut slots = old.slots.clone();
            if old.asked && !asked {
                // Its slots settled by age alone, whatever flows were remembered.
                slots.doubt(now);
            }
            slots.change(&owners, |id| living.contains(&id), now);
            // Where every flow is remembered, those of backends that take no new ones need slots to be asked by.
            if !asked || living.is_empty() {
                slots.clear_if_nobody_owns_any();
            }
            let mut table = Table {
                slots,
                shares: shares.clone(),
                former: former.clone(),
                asked,
                left: old.previous.map(|base| (base, old.slots.bits())),
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

    /// Reads the marks that packets left on the previous owners of contested slots.
    pub(super) fn note_used(&mut self, slot: impl Fn(u32) -> Slot, now: u32) {
        for table in self.tables.values_mut() {
            let Some(base) = table.previous else { continue };
            table.slots.note_used(table.slots.bits(), |index| slot(base + index).is_used(), now);
        }
    }

    /// The same of regions that were retired by the last plan: called before the next one.
    pub(super) fn note_left(&mut self, slot: impl Fn(u32) -> Slot, now: u32) {
        for table in self.tables.values_mut() {
            let Some((base, bits)) = table.left.take() else { continue };
            table.slots.note_used(bits, |index| slot(base + index).is_used(), now);
        }
    }

    /// Sorts the flow table's entries by the contested pools they belong to.
    fn remembered(
        &self,
        flows: impl Iterator<Item = u64>,
        now: u32,
        grace: u32,
    ) -> HashMap<PoolId, Remembered> {
        // Where every flow is remembered anyway, age alone decides.
        let contested = self.tables.iter().filter(|(_, table)| !table.is_settled() && !table.asked);
        let pools: HashMap<BackendId, (&PoolId, u32)> = contested
            .flat_map(|(id, table)| table.named().map(move |backend| (backend, (id, table.bits()))))
            .collect();
        let mut remembered = HashMap::<PoolId, Remembered>::new();
        for (place, entry) in (0u32..).zip(flows.map(Entry)).filter(|(_, entry)| !entry.is_none()) {
            let Some((pool, bits)) = pools.get(&entry.backend()) else { continue };
            let of_pool = match remembered.get_mut(*pool) {
                Some(of_pool) => of_pool,
                None => remembered.entry((*pool).clone()).or_default(),
            };
            if entry.age(now) <= grace {
                of_pool.fresh.insert((entry.slot(*bits), entry.backend()));
            } else {
                of_pool.stale.push((place, entry));
            }
        }
        remembered
    }

    /// Settles what can be settled.
    pub(super) fn plan_settling(
        &mut self,
        tables: &Tables,
        observed: &Observed<'_>,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let Observed { now, grace, forgot, translated: _ } = *observed;
        // No flow that was seen within the grace time was forgotten in it.
        let quiet = forgot.is_none_or(|then| now.wrapping_sub(then) > grace);
        let none = Remembered::default();
        let remembered = self.remembered(tables.flow_words(), now, grace);
        for (id, table) in self.tables.iter_mut().filter(|(_, table)| !table.is_settled()) {
            let Some(previous) = table.previous else { continue };
            let Remembered { fresh, stale } = remembered.get(id).unwrap_or(&none);
            let differs = |slot: u32, owner: BackendId| {
                let of_slot = fresh.range((slot, BackendId(0))..=(slot, BackendId(u16::MAX)));
                of_slot.into_iter().any(|(_, backend)| *backend != owner)
            };
            // A TCP flow that is forgotten and seen again leaves a mark on its slot; a UDP flow does not.
            if let (Protocol::Udp, Some(then)) = (id.protocol, forgot) {
                table.slots.note_forgotten(then, now);
            }
            let settled = BTreeMap::from_iter(table.slots.settle(now, grace, differs));
            // In settled slots flows are not seen: a tuple used again would find what is long over.
            let bits = table.bits();
            let over = stale.iter().filter(|(_, entry)| {
                settled.get(&entry.slot(bits)).is_some_and(|slot| slot.backend() != entry.backend())
            });
            plan.ops.extend(over.map(|(place, entry)| Op::Unremember(*place, *entry)));
            plan.ops.extend(settled.iter().map(|(slot, cell)| Op::Slot(table.base + slot, *cell)));
            if id.protocol == Protocol::Udp && quiet {
                let passed = table.slots.pass(now, grace);
                plan.ops.extend(passed.into_iter().map(|(slot, owner)| Op::Slot(previous + slot, owner)));
            } else {
                let used = (previous..).take(1 << bits).filter(|index| tables.slot(*index).is_used());
                plan.ops.extend(used.map(Op::Unmark));
            }
            if table.slots.contested() > 0 {
                continue;
            }
            retired.regions.push((previous, 1 << bits));
            table.previous = None;
            let descriptor = table.descriptor();
            for place in self.places.get(id).into_iter().flatten() {
                if let Some((index, record)) = self.records.get_mut(&(*place, Some(id.clone()))) {
                    record.descriptor = descriptor;
                    plan.ops.push(Op::Switch(*index, descriptor));
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
