//! What was wished before this, as far as the wish itself tells: whoever terminates took new flows until then.
//! A balancer that knows no past begins with that. Pure.

use super::{Backend, Pool, Want};
use crate::model::l4::{ForwardingMode, PoolId, Protocol};

impl Want {
    /// The pools that tell of the past, as they may have been; nobody is served by it yet.
    pub fn before(&self) -> Self {
        let pools = self.pools.iter().filter(|(id, pool)| pool.tells_of_the_past(id));
        let pools = pools.map(|(id, pool)| (id.clone(), pool.before())).collect();
        Self { pools, peers: self.peers.clone(), ways: self.ways.clone(), ..Self::default() }
    }
}

impl Pool {
    /// Whether a flow that nobody remembers may be of a backend that leaves, or of one whose slot another took meanwhile. A datagram
    /// may begin one, and is not to have a backend that leaves. Where backends here may have flows that this balancer translated, and
    /// forgot, all others have to be able to say that a flow is not theirs.
    fn tells_of_the_past(&self, id: &PoolId) -> bool {
        if id.protocol != Protocol::Tcp || self.leaving.is_empty() {
            return false;
        }
        let any_here = self.backends.values().any(is_here);
        let takes_some =
            |(addr, one): (_, &Backend)| !one.draining && one.weight > 0 || self.leaving.contains(addr);
        let mut elsewhere = self.backends.iter().filter(|(_, one)| !is_here(one));
        !any_here
            || elsewhere.clone().all(|(_, one)| one.mode == ForwardingMode::Tunnel)
                && elsewhere.any(takes_some)
    }

    /// With those that leave. Which backends are new no endpoint tells, but the balancers of other nodes know who had the slots of
    /// those here; so these slots are one's of another node.
    fn before(&self) -> Self {
        let mut before = self.clone();
        for (addr, backend) in &mut before.backends {
            backend.draining = is_here(backend) || backend.draining && !self.leaving.contains(addr);
        }
        before
    }
}

fn is_here(backend: &Backend) -> bool {
    backend.mode == ForwardingMode::Local
}
