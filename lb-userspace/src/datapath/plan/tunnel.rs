//! What the receiving end of the tunnel needs: who may send, and which backend a tag names.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{BackendId, maps};

use super::former::{Rewrite, Standing};
use super::{Book, Op, Plan, Retired};
use crate::datapath::want::Want;
use crate::model::l4::PoolId;

impl Book {
    /// After the backends of this plan, before their ids are given back.
    pub(super) fn plan_tunnel(
        &mut self,
        want: &Want,
        touched: &BTreeSet<PoolId>,
        plan: &mut Plan,
        retired: &Retired,
    ) {
        if self.peers != want.peers {
            plan.ops.push(Op::Peers(want.peers.clone()));
            self.peers.clone_from(&want.peers);
        }
        let mut names: BTreeMap<u64, BackendId> = BTreeMap::new();
        let mut before: BTreeMap<u64, BackendId> = BTreeMap::new();
        for pool in touched {
            names.extend(self.names_of(pool));
        }
        let tags = touched.iter().filter_map(|pool| self.tags.get(pool)).chain(&retired.tags);
        for tag in tags {
            before.extend(self.names.range(maps::tag_key(*tag, 0)..=maps::tag_key(*tag, u32::MAX)));
        }
        let gone: BTreeSet<u64> = before.keys().filter(|key| !names.contains_key(key)).copied().collect();
        let put = names.into_iter().filter(|(key, id)| before.get(key) != Some(id));
        let put: BTreeMap<u64, BackendId> = put.collect();
        self.names.extend(&put);
        for key in &gone {
            self.names.remove(key);
        }
        if !put.is_empty() {
            plan.ops.push(Op::Names(put));
        }
        if !gone.is_empty() {
            plan.ops.push(Op::NoNames(gone));
        }
    }

    /// Backends of a pool that a tunnelled packet may name: those here, and those that it may be sent on to.
    fn names_of(&self, pool: &PoolId) -> impl Iterator<Item = (u64, BackendId)> {
        let tag = self.tags.get(pool).copied();
        let named = move |wanted: bool| {
            let lines = self.of_pool(pool).filter(move |((_, _, rewrite), line)| {
                matches!(rewrite, Rewrite::Delivered | Rewrite::Tunnelled)
                    && (line.standing == Standing::Wanted) == wanted
            });
            lines.filter_map(move |(_, line)| Some((maps::tag_key(tag?, line.words[1][2] as u32), line.id)))
        };
        // A backend as it is wanted before its former self.
        named(false).chain(named(true))
    }
}
