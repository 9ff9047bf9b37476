//! Maglev tables: filled aside, switched by a store, settled slot by slot.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::flows::Entry;
use lb_common::steer::Memory;
use lb_common::{BackendId, Descriptor, Slot, maps};

use super::{Book, Observed, Op, Plan, Retired};
use crate::datapath::maglev;
use crate::datapath::memory::Tables;
use crate::datapath::slots::Slots;
use crate::datapath::want::{Want, problem};
use crate::model::l4::{ForwardingMode, PoolId, Protocol};
use crate::model::{Problem, Severity};

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
    generation: u8,
    /// What it was filled from: nothing changes unless this does.
    shares: BTreeMap<SocketAddr, (BackendId, u16)>,
    /// Former selves of those backends: they own no slot, and may have owned some.
    former: BTreeSet<BackendId>,
    /// The flow table is asked for every packet, contested or not (affinity, conservative).
    asked: bool,
}

/// What the flow table tells of the slots of a pool some of which are contested.
#[derive(Debug, Default)]
struct Remembered {
    /// Slots with a flow of another backend than the owner that was seen within the grace time.
    differs: HashSet<u32>,
    /// Entries that settling may clear or change, with where they stand: of slots that have settled, spare ones, and those
    /// that were not seen within the grace time.
    entries: Vec<(u32, Entry)>,
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

    /// How many slots it has, and how many it should have, if those are more.
    fn missing(&self) -> Option<(u32, u32)> {
        let (bits, (_, wished)) = (self.bits(), sizes(&self.shares));
        let owned = self.shares.values().any(|(_, weight)| *weight > 0);
        (owned && bits < wished).then_some((1 << bits, 1 << wished))
    }

    pub(super) fn is_settled(&self) -> bool {
        self.previous.is_none()
    }

    pub(super) fn contested(&self) -> usize {
        if self.is_settled() { 0 } else { self.slots.contested() }
    }

    /// [`Slots::settle_where`], with where the slots stand. The previous owners' region goes when the others settle.
    pub(super) fn settle_where(
        &mut self,
        is_over: impl Fn(BackendId, BackendId) -> bool,
    ) -> Vec<(u32, Slot)> {
        let settled = self.slots.settle_where(is_over).into_iter();
        settled.map(|(index, slot)| (self.base + index, slot)).collect()
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
            let mut least = 0;
            if let Some(table) = self.tables.get_mut(id)
                && table.shares == shares
                && (table.asked == asked || !table.asked)
            {
                table.asked = asked;
                table.former.clone_from(&former);
                if table.missing().is_none() {
                    continue;
                }
                least = table.bits() + 1;
            }
            let old = self.tables.get(id).cloned().unwrap_or_default();
            let present = self.present_selves(id);
            match self.changed(&old, Change { shares, former, asked, least, present }, now, plan) {
                Some(table) => {
                    old.retire(retired);
                    self.tables.insert(id.clone(), table);
                }
                None if least > 0 => {}
                None => {
                    let message = "no memory is left for its table; it keeps the old one".to_owned();
                    plan.problems.push(problem(id, message));
                    self.lacks(id);
                }
            }
            if let Some((slots, wished)) = self.tables.get(id).and_then(Table::missing) {
                plan.problems.push(small(id, slots, wished));
                self.lacks(id);
            }
        }
        for table in gone.into_iter().filter_map(|id| self.tables.remove(id)) {
            table.retire(retired);
        }
    }

    /// Has the next plan look at a pool that found too little memory, and one be made when some is free.
    fn lacks(&mut self, id: &PoolId) {
        self.again.pools.insert(id.clone());
        self.is_short = true;
    }

    /// Whose the datagrams are that nobody remembers, of former selves that took packets as they came. Whoever asked for that and
    /// takes it back need not have had any that arrived: no answer passes here that would show it.
    fn present_selves(&self, id: &PoolId) -> BTreeMap<BackendId, BackendId> {
        if id.protocol != Protocol::Udp {
            return BTreeMap::new();
        }
        let former =
            self.former(id).filter(|(_, mode, _)| matches!(mode, ForwardingMode::L2 | ForwardingMode::Ipip));
        former.filter_map(|(addr, _, former)| Some((former, self.backend_id(id, addr)?))).collect()
    }

    /// The table over other shares, in regions of its own: smaller than wished rather than none.
    fn changed(&mut self, old: &Table, change: Change, now: u32, plan: &mut Plan) -> Option<Table> {
        let Change { shares, former, asked, least: larger, present } = change;
        let living: BTreeSet<BackendId> =
            shares.values().map(|(id, _)| *id).chain(former.iter().copied()).collect();
        let (least, wished) = sizes(&shares);
        for bits in (least.max(larger)..=wished).rev() {
            let owners = maglev::fill(bits, &shares);
            let mut slots = old.slots.clone();
            slots.rename(|id| present.get(&id).copied().unwrap_or(id));
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
        let contested = self.tables.iter().filter(|(_, table)| !table.is_settled());
        let (mut pools, mut of_backend) = (Vec::new(), vec![None; maps::BACKENDS as usize]);
        for (id, table) in contested {
            let named = table.named().map(|backend| usize::from(backend.0));
            named.for_each(|backend| {
                of_backend.get_mut(backend).into_iter().for_each(|it| *it = Some(pools.len()))
            });
            pools.push((id, table, Remembered::default()));
        }
        for (place, entry) in (0u32..).zip(flows.map(Entry)).filter(|(_, entry)| !entry.is_none()) {
            let pool = of_backend.get(usize::from(entry.backend().0)).copied().flatten();
            let Some((_, table, told)) = pool.and_then(|pool| pools.get_mut(pool)) else { continue };
            if table.asked {
                // Where every flow is remembered anyway, age alone decides, and nothing is spare.
                if entry.is_spare() {
                    told.entries.push((place, entry));
                }
                continue;
            }
            let slot = entry.slot(table.bits());
            let is_fresh = entry.age(now) <= grace;
            if is_fresh && table.slots.owner(slot) != entry.backend() {
                told.differs.insert(slot);
            }
            if !is_fresh || entry.is_spare() || table.slots.has_settled(slot) {
                told.entries.push((place, entry));
            }
        }
        pools.into_iter().map(|(id, _, told)| (id.clone(), told)).collect()
    }

    /// Settles what can be settled.
    pub(super) fn plan_settling(
        &mut self,
        tables: &Tables,
        observed: &Observed<'_>,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let Observed { now, grace, spared, translated: _ } = *observed;
        let none = Remembered::default();
        let remembered = self.remembered(tables.flow_words(), now, grace);
        for (id, table) in self.tables.iter_mut().filter(|(_, table)| !table.is_settled()) {
            let Some(previous) = table.previous else { continue };
            let Remembered { differs, entries } = remembered.get(id).unwrap_or(&none);
            let (bits, asked) = (table.bits(), table.asked);
            // What settled slots say is remembered for nothing, and no packet looks there any more.
            let (idle, entries): (Vec<_>, Vec<_>) = entries
                .iter()
                .copied()
                .partition(|(_, entry)| !asked && table.slots.has_settled(entry.slot(bits)));
            if let Some(then) = spared {
                table.slots.note_forgotten(then, now);
            }
            let settled = BTreeMap::from_iter(table.slots.settle(now, grace, |slot| differs.contains(&slot)));
            let mut passed = BTreeMap::new();
            if id.protocol == Protocol::Udp {
                passed.extend(table.slots.pass(now, grace));
            }
            // What the previous owner's place told so far.
            let told = entries
                .iter()
                .filter(|(_, entry)| entry.is_spare() && (asked || passed.contains_key(&entry.slot(bits))));
            plan.ops.extend(told.map(|(place, entry)| Op::Need(*place, *entry)));
            plan.ops.extend(passed.iter().map(|(slot, owner)| Op::Slot(previous + slot, *owner)));
            // In settled slots flows are not seen: a tuple used again would find what is long over.
            let over = entries.iter().filter(|(_, entry)| {
                !asked && settled.get(&entry.slot(bits)).is_some_and(|slot| slot.backend() != entry.backend())
            });
            let over = idle.iter().chain(over);
            plan.ops.extend(over.map(|(place, entry)| Op::Unremember(*place, *entry)));
            plan.ops.extend(settled.iter().map(|(slot, cell)| Op::Slot(table.base + slot, *cell)));
            // No packet looks at the previous owner of a slot that has settled, nor does anybody read its mark. One that was
            // set since they were noted is for the next time.
            let used = table.slots.used_at(now);
            let used =
                used.filter(|slot| tables.slot(previous + slot).is_used() && !passed.contains_key(slot));
            plan.ops.extend(used.map(|slot| Op::Unmark(previous + slot)));
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

/// What a table is to become.
struct Change {
    shares: BTreeMap<SocketAddr, (BackendId, u16)>,
    former: BTreeSet<BackendId>,
    asked: bool,
    /// No smaller than this, log2.
    least: u32,
    /// Ids in the place of others.
    present: BTreeMap<BackendId, BackendId>,
}

/// A table that found less memory than it wants.
fn small(id: &PoolId, slots: u32, wished: u32) -> Problem {
    let message = format!(
        "its table has {slots} slots instead of {wished}, for want of memory: its endpoints share less evenly, and flows \
         that get to another balancer may break; it becomes larger when tables of others settle or go"
    );
    let fix = "fewer Services, or fewer endpoints of each, on one balancer".to_owned();
    Problem { severity: Severity::Warning, reason: "table-small", fix, ..problem(id, message) }
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
