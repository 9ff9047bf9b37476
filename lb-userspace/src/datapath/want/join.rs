//! The wish and what the network knows, joined at the price of what changed in either since the last time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use imbl::ordmap::DiffItem;
use lb_common::Tags;
use lb_common::backend::NextHop;

use super::causes::{self, Cause};
use super::destinations::{Destinations, destination};
use super::{Backend, Lost, Network, NoWay, Owner, Place, Pool, Target, Want, Way, Ways, problem};
use crate::model::l4::{
    self, Access, BackendState, Family, FlowMemory, ForwardingMode, L4, Listener, OnEmpty, PoolId, Punt, Vip,
    VipAddr,
};
use crate::model::shared::Change;
use crate::model::{ObjectId, Problem, Severity};

/// What was joined last.
#[derive(Debug, Default)]
pub struct Join {
    l4: L4,
    network: Network,
    want: Want,
    asides: BTreeMap<PoolId, Aside>,
    /// How many pools have backends that are reached by `nat` from each address of ours.
    sources: BTreeMap<IpAddr, usize>,
    /// Problems of VIPs.
    of_vips: Vec<Problem>,
}

/// What a pool comes to beside itself.
#[derive(Debug, Default)]
struct Aside {
    problems: Vec<Problem>,
    /// What keeps its backends from packets, or clients from answers.
    causes: Vec<(Cause, SocketAddr)>,
    /// Addresses of ours that `nat` translates to.
    sources: BTreeSet<IpAddr>,
    /// Backends that this host's own stack delivers to.
    local: Vec<IpAddr>,
}

/// Joins both from nothing; what cannot be honoured becomes a [`Problem`].
pub fn join(l4: &L4, network: &Network) -> (Want, Vec<Problem>) {
    Join::default().follow(l4, network, &Destinations::of(&l4.pools))
}

impl Join {
    /// Joins both; what cannot be honoured becomes a [`Problem`]. `destinations` are those of `l4`.
    pub fn follow(
        &mut self,
        l4: &L4,
        network: &Network,
        destinations: &Destinations,
    ) -> (Want, Vec<Problem>) {
        let before = std::mem::replace(&mut self.l4, l4.clone());
        let known = std::mem::replace(&mut self.network, network.clone());
        let own_changed = before.tunnel != l4.tunnel
            || before.punts != l4.punts
            || known.node_addrs != network.node_addrs
            || known.other_addrs != network.other_addrs;

        let mut touched: BTreeSet<PoolId> =
            l4.pools.changes(&before.pools).map(|change| change.key.clone()).collect();
        if own_changed {
            touched.extend(l4.pools.keys().cloned());
        }
        let moved = changed_ways(&known.ways, &network.ways);
        touched.extend(moved.flat_map(|addr| destinations.users(addr)).cloned());
        let mut sources_changed = false;
        for id in &touched {
            sources_changed |= self.join_pool(id);
        }

        let vips_changed = own_changed
            || before.peers != l4.peers
            || l4.pools.changes(&before.pools).any(|change| has_other_vips(&change));
        if vips_changed {
            self.place_vips();
        }
        if vips_changed || sources_changed {
            self.own_addresses();
        }
        self.want.ways = network.ways.clone();
        let of_pools = self.asides.values().flat_map(|aside| &aside.problems);
        let mut problems: Vec<Problem> = self.of_vips.iter().chain(of_pools).cloned().collect();
        let causes = self
            .asides
            .iter()
            .flat_map(|(id, aside)| aside.causes.iter().map(move |(cause, addr)| (cause, id, *addr)));
        problems.extend(causes::tell(causes));
        (self.want.clone(), problems)
    }

    /// Backends that this host's own stack delivers to.
    pub fn local(&self) -> impl Iterator<Item = IpAddr> {
        self.asides.values().flat_map(|aside| &aside.local).copied()
    }

    /// Joins the backends of one pool; tells whether the addresses that `nat` translates to are others now.
    fn join_pool(&mut self, id: &PoolId) -> bool {
        let served = self.l4.pools.get(id).filter(|pool| !pool.vips.is_empty());
        let aside = match served {
            Some(pool) => {
                let (joined, aside) = join_backends(id, pool, &self.l4, &self.network);
                self.want.pools.insert(id.clone(), joined);
                Some(aside)
            }
            None => {
                self.want.pools.remove(id);
                None
            }
        };
        let mut changed = false;
        for source in aside.iter().flat_map(|aside| &aside.sources) {
            let users = self.sources.entry(*source).or_default();
            changed |= *users == 0;
            *users += 1;
        }
        let then = match aside {
            Some(aside) => self.asides.insert(id.clone(), aside),
            None => self.asides.remove(id),
        };
        for source in then.iter().flat_map(|then| &then.sources) {
            let Some(users) = self.sources.get_mut(source) else { continue };
            *users -= 1;
            if *users == 0 {
                self.sources.remove(source);
                changed = true;
            }
        }
        changed
    }

    /// Gives every VIP to whoever is first to wish for its place, punts before pools.
    fn place_vips(&mut self) {
        let Self { l4, network, want, of_vips, .. } = self;
        of_vips.clear();
        let is_own = |addr: &IpAddr| network.node_addrs.contains(addr) || network.other_addrs.contains(addr);
        let strange = l4.tunnel.iter().filter(|addr| !is_own(addr) && !l4.peers.is_empty());
        of_vips.extend(strange.map(|addr| not_ours(*addr)));
        want.peers = if l4.tunnel.iter().any(is_own) { l4.peers.clone() } else { BTreeSet::new() };

        let (mut vips, mut ranges) = (BTreeMap::new(), BTreeMap::new());
        for (vip, Punt { listener, sources, ip_mode: _ }) in &l4.punts {
            for place in places(vip, network) {
                vips.insert(place, Target::Punt(*listener));
                ranges.extend(sources.clone().map(|sources| (place, sources)));
            }
        }
        for (id, pool) in &l4.pools {
            for (vip, access) in &pool.vips {
                for place in places(vip, network) {
                    let target = Target::Pool(id.clone());
                    if let Some(holder) = vips.get(&place) {
                        of_vips.extend((*holder != target).then(|| held(id, place, holder)));
                        continue;
                    }
                    vips.insert(place, target);
                    if *access == Access::Restricted {
                        ranges.insert(place, pool.source_ranges.clone());
                    }
                }
            }
        }
        want.vips.set(vips);
        want.ranges.set(ranges);
    }

    /// Says whose each address is.
    fn own_addresses(&mut self) {
        let Self { l4, network, want, sources, .. } = self;
        let Network { node_addrs, other_addrs, ways: _ } = network;
        let mut addrs: BTreeMap<IpAddr, Owner> = node_addrs.iter().map(|addr| (*addr, Owner::Node)).collect();
        let tunnel =
            l4.tunnel.iter().filter(|addr| node_addrs.contains(*addr) || other_addrs.contains(*addr));
        addrs.extend(tunnel.chain(sources.keys()).map(|addr| (*addr, Owner::Node)));
        for place in want.vips.keys() {
            let owner = if other_addrs.contains(&place.addr) { Owner::Node } else { Owner::Vip };
            addrs.entry(place.addr).or_insert(owner);
        }
        let addrs = addrs.into_iter().collect();
        if want.addrs != addrs {
            want.addrs = addrs;
        }
    }
}

/// Addresses that another way leads to now, or none, or one at last.
pub fn changed_ways<'a>(before: &'a Ways, now: &'a Ways) -> impl Iterator<Item = &'a IpAddr> {
    before.diff(now).map(|item| match item {
        DiffItem::Add(addr, _) | DiffItem::Update { new: (addr, _), .. } | DiffItem::Remove(addr, _) => addr,
    })
}

/// Whether a pool has other VIPs than before, or lets others use them.
fn has_other_vips(change: &Change<'_, PoolId, l4::Pool>) -> bool {
    let (Some(before), Some(now)) = (change.before, change.now) else { return true };
    before.vips != now.vips || before.source_ranges != now.source_ranges
}

/// Joins what stands in one pool.
fn join_backends(id: &PoolId, pool: &l4::Pool, l4: &L4, network: &Network) -> (Pool, Aside) {
    let mut aside = Aside::default();
    let mut joined = Pool {
        backends: BTreeMap::new(),
        lost: BTreeMap::new(),
        leaving: BTreeSet::new(),
        affinity: pool.affinity.map(|affinity| units(affinity.timeout)),
        conservative: pool.memory == FlowMemory::Conservative,
        reject: pool.empty == OnEmpty::Reject,
    };
    for (addr, backend) in &pool.backends {
        if backend.mode == ForwardingMode::Nat && Family::of(addr.ip()) != id.family {
            let why = "is of the other address family, which nat cannot reach";
            aside.problems.push(problem(id, format!("backend {addr}: {why}")));
            continue;
        }
        let is_leaving = backend.state == BackendState::Leaving;
        match join_backend(*addr, backend, l4, network) {
            Ok(backend) => {
                if backend.mode == ForwardingMode::Nat {
                    aside.sources.insert(backend.way.source);
                    if !network.node_addrs.contains(&backend.way.source) {
                        aside.causes.push((Cause::Unanswered(backend.way.source), *addr));
                    }
                }
                if backend.way.next_hop.is_here() {
                    let without = pool.vips.keys().filter_map(|vip| is_not_held(vip, l4, network));
                    aside.causes.extend(without.map(|vip| (Cause::NotHeld(vip), *addr)));
                }
                if backend.mode == ForwardingMode::Local {
                    aside.local.push(addr.ip());
                    if let Some(Err(NoWay::NoRoute(why))) = network.ways.get(&backend.to) {
                        aside.causes.push((Cause::NotRouted(why.clone()), *addr));
                    }
                }
                joined.backends.insert(*addr, backend);
                if is_leaving {
                    joined.leaving.insert(*addr);
                }
            }
            Err((lost, why)) => {
                aside.causes.push((Cause::NoWay(why.to_string()), *addr));
                joined.lost.insert(*addr, lost);
            }
        }
    }
    (joined, aside)
}

/// Whole units of the program's clock, at least one.
fn units(time: Duration) -> u32 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    lb_common::flows::clock(nanoseconds).max(1)
}

fn join_backend(
    addr: SocketAddr,
    backend: &l4::Backend,
    l4: &L4,
    network: &Network,
) -> Result<Backend, (Lost, NoWay)> {
    let l4::Backend { weight: l4::Weight(weight), state, mode, at: _ } = *backend;
    let to = destination(addr, backend);
    let draining = state != BackendState::Active;
    let known = network.ways.get(&to).cloned();
    let known = known.unwrap_or_else(|| Err("the way there is not known yet".into()));
    let way = match mode {
        // The stack finds the way itself, also to where we could not send; ours tells the size.
        ForwardingMode::Local => {
            let own = Way { source: to, next_hop: NextHop::default(), mtu: u16::MAX, tags: Tags::NONE };
            Ok(known.unwrap_or(own))
        }
        // Whoever takes the packet knows us by our tunnel address.
        ForwardingMode::Tunnel => {
            let own = l4.tunnel.iter().find(|own| own.is_ipv4() == to.is_ipv4());
            let none = || format!("this node has no tunnel address of the family of {to}").into();
            own.ok_or_else(none).and_then(|own| Ok(Way { source: *own, ..known? }))
        }
        // What is to arrive as it was sent is there already.
        ForwardingMode::L2 | ForwardingMode::Ipip if known == Err(NoWay::Here) => Ok(Way::here(to)),
        ForwardingMode::Nat | ForwardingMode::L2 | ForwardingMode::Ipip => known,
    };
    match way {
        Ok(way) => Ok(Backend { weight, draining, mode, to, way }),
        Err(why) => Err((Lost { weight, draining, mode, to }, why)),
    }
}

/// Two names of one place, the host's own and its address: who comes first has it.
fn held(id: &PoolId, place: Place, holder: &Target) -> Problem {
    let Place { addr, port, protocol } = place;
    let vip = SocketAddr::new(addr, port);
    let (holder, fix) = match holder {
        Target::Punt(Listener::Http) => ("the proxy's port for http on this host".to_owned(), "--http"),
        Target::Punt(Listener::Https) => ("the proxy's port for https on this host".to_owned(), "--https"),
        Target::Pool(id) => (format!("a port of Service {}", id.service), ""),
    };
    let move_it = if fix.is_empty() { String::new() } else { format!(", or move the proxy's by {fix}") };
    let message = format!("{protocol} {vip} is {holder}, so it is not served for this Service");
    let fix = format!("use an address that the host does not have, or another port{move_it}");
    Problem { reason: "vip-of-the-host", fix, ..problem(id, message) }
}

/// The address of a VIP that this host's stack would not take for its own. Where the proxy serves another port of it, it has a local
/// route.
fn is_not_held(vip: &Vip, l4: &L4, network: &Network) -> Option<IpAddr> {
    let VipAddr::Ip(addr) = vip.addr else { return None };
    let is_held = network.node_addrs.contains(&addr)
        || network.other_addrs.contains(&addr)
        || l4.punts.keys().any(|punt| punt.addr == vip.addr);
    (!is_held).then_some(addr)
}

fn not_ours(addr: IpAddr) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "tunnel-address",
        field: String::new(),
        message: format!(
            "{addr} is the tunnel address of this node, but none of its addresses: nothing comes in"
        ),
        fix: "add it to an interface, or annotate the Node with an address that it has".to_owned(),
    }
}

fn places(vip: &Vip, network: &Network) -> Vec<Place> {
    let place = |addr| Place { addr, port: vip.port, protocol: vip.protocol };
    match vip.addr {
        VipAddr::Ip(addr) => vec![place(addr)],
        VipAddr::Node(family) => network
            .node_addrs
            .iter()
            .filter(|addr| Family::of(**addr) == family)
            .map(|addr| place(*addr))
            .collect(),
    }
}
