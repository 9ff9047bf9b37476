//! What an agent before us left in force and nothing wishes for, while something that may wish for it
//! could not be read: an EndpointSlice with a slip of the pen must not end the flows of its Service
//! only because the agent was restarted meanwhile. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::model::l4::{Backend, L4, Pool, PoolId, Punt, Vip, VipAddr};
use crate::model::{ObjectId, Problem, Severity};

/// Pools, and backends of pools, that go on although nobody wishes for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Of a pool that is wished only the backends count.
    pub pools: BTreeMap<PoolId, Pool>,
    /// VIPs left to the proxy.
    pub punts: BTreeMap<Vip, Punt>,
}

impl Held {
    /// The wish with what is held. What the wish says itself comes first.
    pub fn beside(&self, wish: &L4) -> L4 {
        let mut both = wish.clone();
        let wished: BTreeSet<Vip> =
            wish.pools.values().flat_map(|pool| pool.vips.keys()).chain(wish.punts.keys()).copied().collect();
        let is_free = |vip: &Vip| !places(*vip).into_iter().any(|place| wished.contains(&place));
        for (id, held) in &self.pools {
            match both.pools.get_mut(id) {
                Some(pool) => {
                    for (addr, backend) in &held.backends {
                        pool.backends.entry(*addr).or_insert(*backend);
                    }
                }
                None => {
                    let mut held = held.clone();
                    held.vips.retain(|vip, _| is_free(vip));
                    if !held.vips.is_empty() {
                        both.pools.insert(id.clone(), held);
                    }
                }
            }
        }
        both.punts.extend(self.punts.clone().into_iter().filter(|(vip, _)| is_free(vip)));
        both
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.punts.is_empty()
    }

    /// Tells an operator.
    pub fn problem(&self) -> Option<Problem> {
        let vips = self.pools.values().flat_map(|pool| pool.vips.keys()).chain(self.punts.keys());
        let vips: Vec<String> = vips.map(ToString::to_string).collect();
        let backends: Vec<&SocketAddr> = self.pools.values().flat_map(|pool| pool.backends.keys()).collect();
        let count = |what: &str, all: usize, first: Option<String>| match first {
            Some(first) => format!("{all} {what} ({first}{})", if all > 1 { ", …" } else { "" }),
            None => format!("no {what}"),
        };
        let message = format!(
            "of the agent before this one {} and {} stay in force: not everything that may wish for them could be read",
            count("VIPs", vips.len(), vips.first().cloned()),
            count("backends", backends.len(), backends.first().map(ToString::to_string)),
        );
        (!self.is_empty()).then(|| Problem {
            object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
            severity: Severity::Warning,
            reason: "held-in-force",
            field: String::new(),
            message,
            fix: "mend what could not be read; they go then, unless it wishes for them".to_owned(),
        })
    }
}

/// A VIP as it may be wished: by its address, or as one of the node's.
fn places(vip: Vip) -> Vec<Vip> {
    let node = match vip.addr {
        VipAddr::Ip(addr) => Some(Vip { addr: VipAddr::Node(crate::model::l4::Family::of(addr)), ..vip }),
        VipAddr::Node(_) => None,
    };
    [vip].into_iter().chain(node).collect()
}

/// As much as the tables tell of a backend.
pub(super) fn backend(line: &lb_common::Backend, mode: crate::model::l4::ForwardingMode) -> Backend {
    use crate::model::l4::{At, BackendState, ForwardingMode, Weight};
    Backend {
        weight: Weight(1),
        state: if line.draining { BackendState::Draining } else { BackendState::Active },
        mode,
        at: match mode {
            ForwardingMode::Local => At::Here,
            ForwardingMode::Tunnel => At::Node { tunnel: line.addr.into() },
            ForwardingMode::Nat | ForwardingMode::L2 | ForwardingMode::Ipip => At::Elsewhere,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l4::{
        Access, At, BackendState, Family, ForwardingMode, IpMode, Listener, Protocol, Weight,
    };

    fn vip(addr: &str, port: u16) -> Vip {
        Vip { addr: VipAddr::Ip(addr.parse().expect("address")), port, protocol: Protocol::Tcp }
    }

    fn pool(name: &str, vips: &[Vip], backends: &[&str]) -> (PoolId, Pool) {
        let service = ObjectName::new("default", name).into();
        let id = PoolId { service, port: 80, protocol: Protocol::Tcp, family: Family::V4 };
        let backend = Backend {
            weight: Weight(1),
            state: BackendState::Active,
            mode: ForwardingMode::Nat,
            at: At::Elsewhere,
        };
        let backends = backends.iter().map(|addr| (addr.parse().expect("address"), backend));
        let vips = vips.iter().map(|vip| (*vip, Access::Open)).collect();
        (id, Pool { vips, backends: backends.collect(), ..Pool::default() })
    }

    #[test]
    fn what_is_held_stands_beside_the_wish_and_gives_way_to_it() {
        let (web, db) = (vip("203.0.113.1", 80), vip("203.0.113.2", 80));
        let node = vip("10.0.0.1", 8080);
        let punt = Punt { listener: Listener::Https, sources: None, ip_mode: IpMode::Proxy };
        let held = Held {
            pools: [
                pool("adopted 1", &[web, db], &["10.0.0.7:80"]),
                pool("adopted 2", &[node], &["10.0.0.8:80"]),
                pool("web", &[], &["10.0.0.9:80", "10.0.0.10:80"]),
            ]
            .into(),
            punts: [(vip("203.0.113.3", 443), punt)].into(),
        };
        let of_nodes = Vip { addr: VipAddr::Node(Family::V4), ..node };
        let wish = L4 {
            pools: [pool("web", &[web, of_nodes], &["10.0.0.9:80"])].into(),
            unread: true,
            ..L4::default()
        };

        let both = held.beside(&wish);

        let names: Vec<_> = both.pools.keys().map(|id| id.service.name.as_str()).collect();
        assert_eq!(names, ["adopted 1", "web"], "the second has no VIP left");
        assert_eq!(both.pools.values().map(|pool| pool.vips.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(both.pools.values().map(|pool| pool.backends.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(both.punts, held.punts);
        let told = held.problem().expect("something is held").message;
        assert!(told.contains("4 VIPs (tcp 203.0.113.1:80, …) and 4 backends"), "{told}");
    }
}
