//! What may have been wished before this, told by the wish itself: whoever terminates took new flows until then.
//! A balancer that knows no past begins with that. Pure.

use super::{Backend, Pool, Want};
use crate::model::l4::{ForwardingMode, PoolId, Protocol};

impl Want {
    /// The pools that have backends which leave, as they were with those; nobody is served by it yet.
    pub fn before(&self) -> Self {
        let pools = self.pools.iter().filter(|(_, pool)| !pool.leaving.is_empty());
        let pools = pools.map(|(id, pool)| (id.clone(), pool.before(id))).collect();
        Self { pools, peers: self.peers.clone(), ways: self.ways.clone(), ..Self::default() }
    }
}

impl Pool {
    /// With those that leave. A TCP flow of a slot that a backend here has now is taken for another node's: which backends are new,
    /// no endpoint tells, but the balancers of other nodes know, and one that does not know the flow sends it where it was.
    fn before(&self, id: &PoolId) -> Self {
        let mut before = self.clone();
        for addr in &self.leaving {
            before.backends.get_mut(addr).into_iter().for_each(|backend| backend.draining = false);
        }
        let takes_elsewhere =
            |one: &Backend| !one.draining && one.weight > 0 && one.mode == ForwardingMode::Tunnel;
        if id.protocol == Protocol::Tcp && before.backends.values().any(takes_elsewhere) {
            let here = before.backends.values_mut().filter(|one| one.mode == ForwardingMode::Local);
            here.for_each(|one| one.draining = true);
        }
        before
    }
}
