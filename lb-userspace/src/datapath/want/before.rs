//! What was wished before this, as far as the wish itself tells: whoever terminates took new flows until then.
//! A balancer that knows no past begins with that. Pure.

use super::{Pool, Want};
use crate::model::l4::{ForwardingMode, PoolId, Protocol};

impl Want {
    /// The pools that have backends which leave, as they were with those; nobody is served by it yet. `is_host_new`: see
    /// [`Pool::tells_of_the_past`].
    pub fn before(&self, is_host_new: bool) -> Self {
        let pools = self.pools.iter().filter(|(id, pool)| pool.tells_of_the_past(id, is_host_new));
        let pools = pools.map(|(id, pool)| (id.clone(), pool.before())).collect();
        Self { pools, peers: self.peers.clone(), ways: self.ways.clone(), ..Self::default() }
    }
}

impl Pool {
    /// Whether a flow that nobody remembers is rather of a backend that leaves than of who has its slot now. A datagram may begin
    /// one. Nor is it where backends here may have flows that this balancer translated, and forgot: all of them, unless they are
    /// as new as their host.
    fn tells_of_the_past(&self, id: &PoolId, is_host_new: bool) -> bool {
        let has_some_here = || self.backends.values().any(|backend| backend.mode == ForwardingMode::Local);
        id.protocol == Protocol::Tcp && !self.leaving.is_empty() && (is_host_new || !has_some_here())
    }

    /// With those that leave.
    fn before(&self) -> Self {
        let mut before = self.clone();
        for addr in &self.leaving {
            before.backends.get_mut(addr).into_iter().for_each(|backend| backend.draining = false);
        }
        before
    }
}
