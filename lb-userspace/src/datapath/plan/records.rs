//! Records of VIPs: their table and rules; and the sets of source ranges they name.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{Record, Rules};

use super::{Book, Op, Plan, RecordKey, Retired, too_many};
use crate::datapath::want::{Pool, Target, Want, problem};
use crate::model::l4::PoolId;

impl Book {
    pub(super) fn plan_ranges(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        for ranges in want.ranges.values() {
            if self.ranges.contains_key(ranges) {
                continue;
            }
            let Some(set) = self.range_ids.take() else {
                plan.problems.push(too_many("too many different sets of source ranges"));
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

    pub(super) fn plan_records(&mut self, want: &Want, plan: &mut Plan, retired: &mut Retired) {
        let mut keep = BTreeSet::new();
        let mut vips_of: BTreeMap<&PoolId, usize> = BTreeMap::new();
        for target in want.vips.values() {
            if let Target::Pool(id) = target {
                *vips_of.entry(id).or_default() += 1;
            }
        }
        for (place, target) in &want.vips {
            let pool = match target {
                Target::Pool(id) => Some(id),
                // Its set of ranges stands in a record.
                Target::Punt(_) if want.ranges.contains_key(place) => None,
                Target::Punt(_) => continue,
            };
            let key: RecordKey = (*place, pool.cloned());
            let several = pool.and_then(|id| vips_of.get(id)).is_some_and(|vips| *vips > 1);
            let Some(record) = self.record(&key, want, several) else { continue };
            match self.records.get_mut(&key) {
                Some((index, old)) if same_rules(old, &record) => {
                    if old.descriptor != record.descriptor {
                        plan.ops.push(Op::Switch(*index, record.descriptor));
                        *old = record;
                    }
                }
                old => {
                    // Other rules are another record: the switch is the epoch's.
                    if let Some((index, _)) = old {
                        retired.records.push(*index);
                    }
                    let Some(index) = self.record_ids.take() else {
                        self.records.remove(&key);
                        let message = format!("VIP {}: too many VIPs", place.addr);
                        plan.problems
                            .push(pool.map_or_else(|| too_many(&message), |id| problem(id, message.clone())));
                        continue;
                    };
                    plan.ops.push(Op::Record(index, record.words()));
                    self.records.insert(key.clone(), (index, record));
                }
            }
            keep.insert(key);
        }
        self.records.retain(|key, (index, _)| {
            let kept = keep.contains(key);
            if !kept {
                retired.records.push(*index);
            }
            kept
        });
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
        let flags = [
            (translated, Rules::TRANSLATED),
            (pool.affinity.is_some(), Rules::AFFINITY),
            (pool.conservative, Rules::CONSERVATIVE),
            (pool.reject, Rules::REJECT),
            (several, Rules::COUNTED),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        Some(Rules::new(flags, *self.tags.get(id)?, pool.affinity.unwrap_or(0)))
    }
}

fn same_rules(old: &Record, new: &Record) -> bool {
    old.rules == new.rules && old.ranges == new.ranges
}
