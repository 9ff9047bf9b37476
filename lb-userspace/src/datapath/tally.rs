//! What VIPs and backends got, however often their ids and records change hands, and whichever agent asks: what is not a new
//! holder's is taken off, and what a backend got that left goes to its VIP. Both stand in the row of the counters that the
//! kernel does not write, so the next agent finds them. It does not know what was wished.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{BackendId, Rules, backend};

use super::memory::{Counted, Counters, Tables, Totals};
use super::plan::Op;
use super::want::Place;
use crate::model::l4::PoolId;

/// The counters, and whose they are.
#[derive(Debug)]
pub(super) struct Tally {
    counters: Counters,
    /// Backends that packets may be sent to, by the tag of their pool.
    members: BTreeMap<u16, BTreeSet<BackendId>>,
    /// Balanced VIPs with their records, as of the last plan.
    vips: BTreeMap<(Place, PoolId), (u16, Rules)>,
    /// The record of a pool's only VIP, by the tag.
    only: BTreeMap<u16, u16>,
    /// Records that were written since.
    fresh: BTreeSet<u16>,
    /// As `only`, of those.
    fresh_only: BTreeMap<u16, u16>,
}

impl Tally {
    pub(super) fn new(counters: Counters) -> Self {
        Self {
            counters,
            members: BTreeMap::new(),
            vips: BTreeMap::new(),
            only: BTreeMap::new(),
            fresh: BTreeSet::new(),
            fresh_only: BTreeMap::new(),
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What a backend got.
    pub(super) fn backend(&self, id: BackendId) -> Totals {
        self.counters.totals(Counted::Backend(id))
    }

    /// What the VIP of a record got.
    pub(super) fn vip(&self, index: u16, rules: Rules) -> Totals {
        let mut totals = self.counters.totals(Counted::Vip(index));
        if !is_counted(rules) {
            // The only VIP of its pool: what its backends get, and what was noted of those that left.
            totals += self.of_members(rules.pool_tag());
        }
        totals
    }

    fn of_members(&self, tag: u16) -> Totals {
        let mut totals = Totals::default();
        self.members.get(&tag).into_iter().flatten().for_each(|id| totals += self.backend(*id));
        totals
    }

    /// Goes on with tables that were found. `balanced`: the VIPs in force.
    pub(super) fn adopt<'a>(
        &mut self,
        tables: &Tables,
        balanced: impl Iterator<Item = ((&'a Place, &'a PoolId), (u16, Rules))>,
    ) {
        for id in (1..lb_common::maps::BACKENDS as u16).map(BackendId) {
            if backend::identity(&tables.backends, id).is_alive() {
                let tag = backend::pool_tag(&tables.backends, id);
                self.members.entry(tag).or_default().insert(id);
            }
        }
        self.follow(balanced);
    }

    /// A step of a plan is about to be carried out on these tables.
    pub(super) fn precede(&mut self, op: &Op, tables: &Tables) {
        // A line that was forgotten still tells it, until the id is used again.
        let tag = |id: &BackendId| backend::pool_tag(&tables.backends, *id);
        match op {
            Op::Backend(id, [words, _]) => self.joins(*id, words[7] as u16),
            Op::Forget(id) => self.leaves(*id, tag(id)),
            // What packets counted that were on their way to it.
            Op::Purge(ids) => ids.iter().for_each(|id| self.pass_on(*id, tag(id))),
            Op::Record(index, words) => self.begins(*index, Rules(words[1])),
            _ => {}
        }
    }

    /// A backend with this id: if it is a new one, it begins at nothing.
    fn joins(&mut self, id: BackendId, tag: u16) {
        if self.members.entry(tag).or_default().insert(id) {
            self.clear(Counted::Backend(id));
        }
    }

    fn leaves(&mut self, id: BackendId, tag: u16) {
        self.pass_on(id, tag);
        if let Some(ids) = self.members.get_mut(&tag) {
            ids.remove(&id);
            if ids.is_empty() {
                self.members.remove(&tag);
            }
        }
    }

    /// What a backend got is its VIP's alone from here on.
    fn pass_on(&self, id: BackendId, tag: u16) {
        for record in [&self.only, &self.fresh_only].into_iter().filter_map(|records| records.get(&tag)) {
            self.counters.add(Counted::Vip(*record), self.backend(id));
        }
        self.clear(Counted::Backend(id));
    }

    /// A record that no VIP names yet: what was counted before is not the VIP's that will.
    fn begins(&mut self, index: u16, rules: Rules) {
        let before = self.vip(index, rules);
        self.counters.add(Counted::Vip(index), Totals::default().since(before));
        self.fresh.insert(index);
        if !is_counted(rules) {
            self.fresh_only.insert(rules.pool_tag(), index);
        }
    }

    fn clear(&self, of: Counted) {
        self.counters.add(of, Totals::default().since(self.counters.totals(of)));
    }

    /// A plan was carried out after which VIPs have these records: those with another one than before go on from what they got.
    pub(super) fn follow<'a>(
        &mut self,
        balanced: impl Iterator<Item = ((&'a Place, &'a PoolId), (u16, Rules))>,
    ) {
        let now: BTreeMap<_, _> =
            balanced.map(|((place, pool), record)| ((*place, pool.clone()), record)).collect();
        for (vip, (index, rules)) in now.iter().filter(|(_, (index, _))| self.fresh.contains(index)) {
            let Some((old, old_rules)) = self.vips.get(vip).copied() else { continue };
            let mut totals = self.vip(old, old_rules);
            // Otherwise the one counts what the other did since it was written.
            if is_counted(old_rules) && is_counted(*rules) {
                totals += self.vip(*index, *rules);
            }
            self.counters.add(Counted::Vip(*index), totals.since(self.vip(*index, *rules)));
        }
        let only = now.values().filter(|(_, rules)| !is_counted(*rules));
        self.only = only.map(|(index, rules)| (rules.pool_tag(), *index)).collect();
        self.vips = now;
        self.fresh.clear();
        self.fresh_only.clear();
    }
}

/// Whether packets count for the VIP itself, because others share its pool.
fn is_counted(rules: Rules) -> bool {
    rules.any(Rules::COUNTED)
}

#[cfg(test)]
mod tests;
