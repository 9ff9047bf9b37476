//! The first plan over tables that know no past, while other balancers have flows: it begins with what the wish tells of the past.

use std::collections::BTreeMap;

use lb_common::{Addr, BackendId, Mode};

use super::{Book, Op, Plan};
use crate::datapath::want::Want;

impl Book {
    /// [`Book::plan`] of the first wish. What cannot be done of the past, the plan of the wish itself says.
    pub fn plan_anew(&mut self, want: &Want, now: u32) -> Plan {
        let before = want.before();
        let Plan { mut ops, problems: _ } =
            if before.pools.is_empty() { Plan::default() } else { self.plan(&before, now) };
        let Plan { ops: more, problems } = self.plan(want, now);
        ops.extend(more);
        self.settle_within_nodes(&mut ops);
        Plan { ops, problems }
    }

    /// Settles the slots both of whose owners are on one other node: that knows all their flows, and of those that it has forgotten
    /// more are the owner's of now.
    fn settle_within_nodes(&mut self, ops: &mut Vec<Op>) {
        let lines = self.backends.values().filter_map(|line| Some((line.id, line.backend()?)));
        let tunnelled = lines.filter(|(_, line)| line.mode == Mode::Tunnel);
        let nodes: BTreeMap<BackendId, Addr> = tunnelled.map(|(id, line)| (id, line.addr)).collect();
        let is_one = |one, other| nodes.get(&one).is_some_and(|node| nodes.get(&other) == Some(node));
        for table in self.tables.values_mut() {
            ops.extend(table.settle_where(is_one).into_iter().map(|(place, slot)| Op::Slot(place, slot)));
        }
    }
}
