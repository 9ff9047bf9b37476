//! What the receiving end of the tunnel needs: who may send, and which backend a tag names.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{BackendId, maps};

use super::former::{Rewrite, Standing};
use super::{Book, Op, Plan, Retired};
use crate::datapath::want::Want;

impl Book {
    /// After the backends of this plan, before their ids are given back.
    pub(super) fn plan_tunnel(&mut self, want: &Want, plan: &mut Plan, retired: &Retired) {
        if self.peers != want.peers {
            plan.ops.push(Op::Peers(want.peers.clone()));
            self.peers.clone_from(&want.peers);
        }
        // A book that was read back from the tables knows no names: their map begins empty.
        let changed = self.names.is_empty() || plan.ops.iter().any(|op| matches!(op, Op::Backend(..)));
        if !changed && retired.backends.is_empty() {
            return;
        }
        let names = self.names();
        let put: BTreeMap<u64, BackendId> = names
            .iter()
            .filter(|(key, id)| self.names.get(key) != Some(id))
            .map(|(key, id)| (*key, *id))
            .collect();
        let gone: BTreeSet<u64> = self.names.keys().filter(|key| !names.contains_key(key)).copied().collect();
        if !put.is_empty() {
            plan.ops.push(Op::Names(put));
        }
        if !gone.is_empty() {
            plan.ops.push(Op::NoNames(gone));
        }
        self.names = names;
    }

    /// Backends that a tunnelled packet may name: those here, and those that it may be sent on to.
    fn names(&self) -> BTreeMap<u64, BackendId> {
        let named = |wanted: bool| {
            let lines = self.backends.iter().filter(move |((_, _, rewrite), line)| {
                matches!(rewrite, Rewrite::Delivered | Rewrite::Tunnelled)
                    && (line.standing == Standing::Wanted) == wanted
            });
            lines.filter_map(|((pool, _, _), line)| {
                let tag = self.tags.get(pool)?;
                Some((maps::tag_key(*tag, line.words[1][2] as u32), line.id))
            })
        };
        // A backend as it is wanted before its former self.
        named(false).chain(named(true)).collect()
    }
}
