//! Records of VIPs: their table and rules; and the sets of source ranges they name.

use std::collections::BTreeSet;

use lb_common::{Record, Rules};

use super::{Book, Op, Plan, RecordKey, Retired, too_many};
use crate::datapath::want::{Pool, Target, Want, problem};
use crate::model::l4::PoolId;

/// What becomes of records in force: all of them wait for packets on their way once.
#[derive(Default)]
struct Later {
    rules: Vec<Op>,
    switches: Vec<Op>,
}

impl Later {
    /// No packet that was not told meets a slot of a backend that is translated to.
    fn join(self, plan: &mut Plan) {
        let waits = !self.rules.is_empty();
        plan.ops.extend(self.rules);
        plan.ops.extend(waits.then_some(Op::Grace));
        plan.ops.extend(self.switches);
    }
}

impl Book {
    pub(super) fn plan_ranges(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        for ranges in want.ranges.values() {
            if self.ranges.contains_key(ranges) {
                continue;
            }
            let Some(set) = self.range_ids.take() else {
                plan.problems.push(too_many("too many different sets of source ranges"));
                self.again.vips = true;
                continue;
            };
            plan.ops.push(Op::Ranges(set, ranges.clone()));
            self.ranges.insert(ranges.clone(), set);
        }
        let used: BTreeSet<_> = want.ranges.values().collect();
        self.ranges.retain(|ranges, set| {
            let kept = used.contains(ranges);
            if !kept {
                retired.ranges.push(*set);
            }
            kept
        });
    }

    /// Records of all VIPs.
    pub(super) fn plan_records(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        self.places.clear();
        for (place, target) in &want.vips {
            if let Target::Pool(id) = target {
                self.places.entry(id.clone()).or_default().insert(*place);
            }
        }
        let (mut keep, mut later) = (BTreeSet::new(), Later::default());
        for (place, target) in &want.vips {
            let pool = match target {
                Target::Pool(id) => Some(id.clone()),
                // Its set of ranges stands in a record.
                Target::Punt(_) if want.ranges.contains_key(place) => None,
                Target::Punt(_) => continue,
            };
            let key = (*place, pool);
            self.plan_record(&key, want, plan, &mut later, retired);
            keep.insert(key);
        }
        later.join(plan);
        self.records.retain(|key, (index, _)| {
            let kept = keep.contains(key);
            if !kept {
                retired.records.push(*index);
            }
            kept
        });
    }

    /// Those of the VIPs of these pools; tells whether a VIP names another one now.
    pub(super) fn plan_records_of(
        &mut self,
        want: &Want,
        pools: &BTreeSet<PoolId>,
        plan: &mut Plan,
        retired: &mut Retired,
    ) -> bool {
        let keys = pools.iter().filter_map(|id| Some((id, self.places.get(id)?)));
        let keys = keys.flat_map(|(id, places)| places.iter().map(|place| (*place, Some(id.clone()))));
        let keys: BTreeSet<RecordKey> = keys.collect();
        let index = |book: &Self, key| book.records.get(key).map(|(index, _)| *index);
        let (mut moved, mut later) = (false, Later::default());
        for key in &keys {
            let before = index(self, key);
            self.plan_record(key, want, plan, &mut later, retired);
            moved |= before != index(self, key);
        }
        later.join(plan);
        moved
    }

    fn plan_record(
        &mut self,
        key: &RecordKey,
        want: &Want,
        plan: &mut Plan,
        later: &mut Later,
        retired: &mut Retired,
    ) {
        let (place, pool) = key;
        let several = pool.as_ref().and_then(|id| self.places.get(id)).is_some_and(|places| places.len() > 1);
        let record = self.record(key, want, several);
        if record.is_none() {
            self.again.vips = true;
        }
        let old = self.records.get_mut(key);
        if let (Some((index, old)), Some(record)) = (old, record)
            && same_rules(old, &record)
        {
            let [before, now] = [*old, record].map(|record| record.rules.any(Rules::TRANSLATED));
            let [was_here, is_here] = [*old, record].map(|record| record.rules.any(Rules::HERE));
            if now && !before || is_here != was_here {
                let rules = Rules(record.rules.0 | old.rules.0 & Rules::TRANSLATED);
                later.rules.push(Op::Rules(*index, rules));
            }
            if before && !now {
                retired.translated.push(key.clone());
            }
            if old.descriptor != record.descriptor {
                later.switches.push(Op::Switch(*index, record.descriptor));
            }
            *old = record;
            return;
        }
        // Other rules are another record: the switch is the epoch's.
        retired.records.extend(self.records.remove(key).map(|(index, _)| index));
        let Some(record) = record else { return };
        let Some(index) = self.record_ids.take(place.shortcut()) else {
            let message = format!("VIP {}: too many VIPs", place.addr);
            let told = pool.as_ref().map_or_else(|| too_many(&message), |id| problem(id, message.clone()));
            plan.problems.push(told);
            self.again.vips = true;
            return;
        };
        plan.ops.push(Op::Record(index, record.words()));
        self.records.insert(key.clone(), (index, record));
    }

    /// The record of a VIP; `several` share its pool.
    fn record(&self, (place, pool): &RecordKey, want: &Want, several: bool) -> Option<Record> {
        let ranges = match want.ranges.get(place) {
            Some(ranges) => u32::from(*self.ranges.get(ranges)?),
            None => 0,
        };
        let Some(id) = pool else { return Some(Record { ranges, ..Record::default() }) };
        let (pool, table) = (want.pools.get(id)?, self.tables.get(id)?);
        let rules = self.rules(id, pool, several)?;
        Some(Record { descriptor: table.descriptor(), rules, ranges })
    }

    fn rules(&self, id: &PoolId, pool: &Pool, several: bool) -> Option<Rules> {
        let translated = pool.backends.values().any(|backend| backend.mode.is_translated())
            || self.former(id).any(|(_, mode, _)| mode.is_translated());
        let here = pool.backends.values().any(|backend| backend.way.next_hop.is_here());
        let flags = [
            (translated, Rules::TRANSLATED),
            (here, Rules::HERE),
            (pool.affinity.is_some(), Rules::AFFINITY),
            (pool.conservative, Rules::CONSERVATIVE),
            (pool.reject, Rules::REJECT),
            (several, Rules::COUNTED),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        Some(Rules::new(flags, *self.tags.get(id)?, pool.affinity.unwrap_or(0)))
    }
}

/// But for what may be said too early and too late: that some backend is translated to, or is this host.
fn same_rules(old: &Record, new: &Record) -> bool {
    let [old_rules, new_rules] = [old, new].map(|record| record.rules.0 & !(Rules::TRANSLATED | Rules::HERE));
    old_rules == new_rules && old.ranges == new.ranges
}
