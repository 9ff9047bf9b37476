//! What was wished before this, as far as the wish itself tells: whoever terminates took new flows until then.
//! A balancer that knows no past begins with that. Pure.

use super::{Pool, Want};
use crate::model::l4::Protocol;

impl Want {
    /// The pools of TCP that have backends which leave, as they were with those; nobody is served by it yet. A datagram may begin
    /// a flow, which is not to have a backend that leaves.
    pub fn before(&self) -> Self {
        let pools = self.pools.iter();
        let pools = pools.filter(|(id, pool)| id.protocol == Protocol::Tcp && !pool.leaving.is_empty());
        let pools = pools.map(|(id, pool)| (id.clone(), pool.before())).collect();
        Self { pools, peers: self.peers.clone(), ways: self.ways.clone(), ..Self::default() }
    }
}

impl Pool {
    /// With those that leave.
    fn before(&self) -> Self {
        let mut before = self.clone();
        for addr in &self.leaving {
            before.backends.get_mut(addr).into_iter().for_each(|backend| backend.draining = false);
        }
        before
    }
}
