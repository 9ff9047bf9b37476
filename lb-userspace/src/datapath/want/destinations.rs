//! Where the packets of the backends go: the way to these addresses must be known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use imbl::OrdSet;

use crate::model::Shared;
use crate::model::l4::{self, At, ForwardingMode, PoolId};

/// Addresses that packets go to, and whose, followed from wish to wish at the price of the pools that
/// changed.
#[derive(Debug, Default)]
pub struct Destinations {
    pools: Shared<PoolId, l4::Pool>,
    users: BTreeMap<IpAddr, Vec<PoolId>>,
    all: OrdSet<IpAddr>,
}

impl Destinations {
    /// Those of these pools.
    pub fn of(pools: &Shared<PoolId, l4::Pool>) -> Self {
        let mut destinations = Self::default();
        destinations.follow(pools);
        destinations
    }

    /// From now on these pools are wished.
    pub fn follow(&mut self, pools: &Shared<PoolId, l4::Pool>) {
        let before = std::mem::replace(&mut self.pools, pools.clone());
        for change in pools.changes(&before) {
            let [then, now] = [change.before, change.now].map(|pool| pool.map(|pool| of_pool(pool)));
            let (then, now) = (then.unwrap_or_default(), now.unwrap_or_default());
            then.difference(&now).for_each(|addr| self.leave(*addr, change.key));
            for addr in now.difference(&then) {
                self.users.entry(*addr).or_insert_with(|| Vec::with_capacity(1)).push(change.key.clone());
                self.all.insert(*addr);
            }
        }
    }

    fn leave(&mut self, addr: IpAddr, id: &PoolId) {
        let Some(users) = self.users.get_mut(&addr) else { return };
        users.retain(|user| user != id);
        if users.is_empty() {
            self.users.remove(&addr);
            self.all.remove(&addr);
        }
    }

    /// All of them.
    pub fn all(&self) -> &OrdSet<IpAddr> {
        &self.all
    }

    /// Pools that have a backend which is reached by this address.
    pub fn users(&self, addr: &IpAddr) -> &[PoolId] {
        self.users.get(addr).map(Vec::as_slice).unwrap_or_default()
    }
}

fn of_pool(pool: &l4::Pool) -> BTreeSet<IpAddr> {
    if pool.vips.is_empty() {
        return BTreeSet::new();
    }
    pool.backends.iter().map(|(addr, backend)| destination(*addr, backend)).collect()
}

/// Where the packets of backends went that stay, and now go elsewhere: their flows may not.
pub fn left_destinations(
    before: &Shared<PoolId, l4::Pool>,
    after: &Shared<PoolId, l4::Pool>,
) -> BTreeSet<IpAddr> {
    let both = after.changes(before).filter_map(|change| Some((change.before?, change.now?)));
    let moved = both.flat_map(|(before, after)| {
        before.backends.iter().filter_map(|(addr, backend)| {
            let (then, now) = (destination(*addr, backend), destination(*addr, after.backends.get(addr)?));
            (then != now).then_some(then)
        })
    });
    moved.collect()
}

/// Where the packets of a backend go.
pub(super) fn destination(addr: SocketAddr, backend: &l4::Backend) -> IpAddr {
    match (backend.mode, backend.at) {
        (ForwardingMode::Tunnel, At::Node { tunnel }) => tunnel,
        _ => addr.ip(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ObjectName;
    use crate::model::l4::{Access, Backend, BackendState, Family, Pool, Protocol, Vip, VipAddr, Weight};

    fn id(number: u8) -> PoolId {
        let service = ObjectName::new("default", format!("service-{number}")).into();
        PoolId { service, port: 80, protocol: Protocol::Tcp, family: Family::V4 }
    }

    fn pool(backends: &[(u8, bool)], is_served: bool) -> Pool {
        let backend = |(number, tunnelled): &(u8, bool)| {
            let tunnel = [10, 9, 0, number / 2].into();
            let (mode, at) = match tunnelled {
                true => (ForwardingMode::Tunnel, At::Node { tunnel }),
                false => (ForwardingMode::L2, At::Elsewhere),
            };
            let backend = Backend { weight: Weight(1), state: BackendState::Active, mode, at };
            (([10, 0, 0, *number], 80).into(), backend)
        };
        let addr = VipAddr::Node(Family::V4);
        let vip = Vip { addr, port: 80, protocol: Protocol::Tcp };
        let vips = is_served.then_some((vip, Access::Open)).into_iter().collect();
        Pool { vips, backends: backends.iter().map(backend).collect(), ..Pool::default() }
    }

    proptest! {
        #[test]
        fn what_is_followed_step_by_step_is_what_the_last_wish_comes_to(
            steps in prop::collection::vec(
                (0u8..3, prop::option::of((prop::collection::vec((0u8..6, any::<bool>()), 0..5), any::<bool>()))),
                1..20,
            )
        ) {
            let (mut followed, mut pools) = (Destinations::default(), Shared::default());
            for (number, wish) in steps {
                match wish {
                    Some((backends, is_served)) => pools.insert(id(number), pool(&backends, is_served)),
                    None => pools.remove(&id(number)),
                }
                followed.follow(&pools);

                let mut users: BTreeMap<IpAddr, BTreeSet<PoolId>> = BTreeMap::new();
                for (id, pool) in pools.iter().filter(|(_, pool)| !pool.vips.is_empty()) {
                    for (addr, backend) in &pool.backends {
                        users.entry(destination(*addr, backend)).or_default().insert(id.clone());
                    }
                }
                prop_assert_eq!(followed.all(), &users.keys().copied().collect::<OrdSet<_>>());
                for (addr, users) in users {
                    prop_assert_eq!(followed.users(&addr).iter().cloned().collect::<BTreeSet<_>>(), users);
                }
            }
        }
    }
}
