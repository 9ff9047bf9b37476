//! A balancer that begins with fresh tables in the middle of a rollout, among others that saw all of it: flows that the router
//! brings to it find their backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::steer::{self, Hashes, Kind};
use lb_common::tunnel::{Named, Round};
use lb_common::{BackendId, Flow, HashKey};
use proptest::prelude::*;

use super::histories::{addr_of, backend, flow};
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

const NODES: u8 = 3;
const GRACE: u16 = 280;
const NOW: u32 = 1000;
const KEY: [u8; 16] = [5; 16];

/// Backends by number, and whether they leave.
type Backends = BTreeMap<u8, bool>;

/// How packets get from a node to a backend.
fn mode(node: u8, number: u8) -> ForwardingMode {
    if number % NODES == node { ForwardingMode::Local } else { ForwardingMode::Tunnel }
}

fn pool(protocol: Protocol) -> PoolId {
    PoolId { service: ObjectName::new("default", "beginning").into(), port: 80, protocol, family: Family::V4 }
}

fn place(protocol: Protocol) -> Place {
    Place { addr: Ipv4Addr::new(203, 0, 113, 1).into(), port: 80, protocol }
}

fn want(protocol: Protocol, backends: &Backends, mode: impl Fn(u8) -> ForwardingMode) -> Want {
    let one = |(number, leaves): (&u8, &bool)| {
        (addr_of(*number), Backend { mode: mode(*number), ..backend(*number, 1, *leaves) })
    };
    let leaving = backends.iter().filter(|(_, leaves)| **leaves).map(|(number, _)| addr_of(*number));
    let mut want = Want::default();
    want.addrs.insert(IpAddr::from(Ipv4Addr::new(203, 0, 113, 1)), Owner::Vip);
    want.vips.insert(place(protocol), Target::Pool(pool(protocol)));
    let pool_of =
        Pool { backends: backends.iter().map(one).collect(), leaving: leaving.collect(), ..Pool::default() };
    want.pools.insert(pool(protocol), pool_of);
    want
}

fn balancer() -> Rehearsal {
    Rehearsal::new(HashKey::expand(KEY), 10, GRACE)
}

fn addr(balancer: &Rehearsal, id: BackendId) -> Option<SocketAddr> {
    balancer.book().backend_of(id).map(|(_, addr)| addr)
}

/// Steps of a rollout that come to these backends in the end.
fn rollout(count: u8, steps: &[(u8, bool)]) -> Vec<Backends> {
    let mut backends: Backends = (0..count).map(|number| (number, false)).collect();
    let mut all = vec![backends.clone()];
    let mut next = count;
    for (leaves, is_replaced) in steps {
        backends.insert(leaves % count, true);
        if *is_replaced {
            backends.insert(next, false);
            next += 1;
        }
        // Where all leave, all serve on.
        if backends.values().any(|leaves| !leaves) {
            all.push(backends.clone());
        }
    }
    all
}

/// Nodes with a balancer each, and with those flows that their backends are known to have.
struct Cluster {
    balancers: Vec<Rehearsal>,
    known: Vec<BTreeMap<u32, SocketAddr>>,
    /// The one that knows no past.
    new: usize,
}

impl Cluster {
    fn node_of(addr: SocketAddr) -> Option<usize> {
        let number = (0..u8::MAX).find(|number| addr_of(*number) == addr)?;
        Some(usize::from(number % NODES))
    }

    /// Where a segment of a flow ends that comes to a node.
    fn segment(&mut self, number: u32, flow: &Flow, node: usize) -> Option<SocketAddr> {
        if let Some(known) = self.known.get(node)?.get(&number) {
            return Some(*known);
        }
        let balancer = self.balancers.get_mut(node)?;
        let choice = balancer.send(flow, Kind::Segment, NOW)?;
        let (mut chosen, mut other) = (addr(balancer, choice.backend)?, addr(balancer, choice.other));
        let mut round = Round::First;
        if Self::node_of(chosen) == Some(node) {
            match other {
                Some(elsewhere) if Self::node_of(elsewhere) != Some(node) => {
                    (chosen, other, round) = (elsewhere, Some(chosen), Round::Second);
                }
                _ => return Some(chosen),
            }
        }
        loop {
            let here = Self::node_of(chosen)?;
            if let Some(known) = self.known.get(here)?.get(&number) {
                return Some(*known);
            }
            let balancer = self.balancers.get(here)?;
            let id = |addr: SocketAddr| balancer.book().backend_id(&pool(Protocol::Tcp), addr);
            let (_, record) = balancer.book().record_of(&place(Protocol::Tcp), &pool(Protocol::Tcp))?;
            let hashes = Hashes { flow: flow.hash(HashKey::expand(KEY)), source: 0 };
            let own = steer::owners(balancer.tables(), &record, hashes);
            let own = (round == Round::First && here != self.new).then_some(own);
            let nobody = BackendId(0);
            let named = Named { chosen: id(chosen)?, other: other.and_then(id).unwrap_or(nobody) };
            let node = |id: BackendId| {
                let node = Self::node_of(addr(balancer, id)?).filter(|node| *node != here)?;
                Some(IpAddr::from(Ipv4Addr::from_bits(node as u32)).into())
            };
            let next = if round == Round::Last { None } else { named.next(own, node) };
            let Some(next) = next else { return Some(chosen) };
            chosen = addr(balancer, next.chosen)?;
            (round, other) = match round {
                Round::First => (Round::Second, addr(balancer, next.other)),
                Round::Second | Round::Last => (Round::Last, None),
            };
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(u8, bool)>> {
    proptest::collection::vec((any::<u8>(), any::<bool>()), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    /// In modes where a packet has one chance.
    #[test]
    fn one_that_begins_while_backends_leave_knows_what_the_others_do(
        count in 2u8..12, steps in steps(), udp in any::<bool>()
    ) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let kind = if udp { Kind::Datagram } else { Kind::Segment };
        let steps: Vec<_> = steps.into_iter().map(|(leaves, _)| (leaves, false)).collect();
        let rollout = rollout(count, &steps);
        let mut old = balancer();
        for backends in &rollout {
            old.apply(&want(protocol, backends, |_| ForwardingMode::L2), NOW);
        }

        let mut new = balancer();
        let last = rollout.last().cloned().unwrap_or_default();
        prop_assert_eq!(new.begin(&want(protocol, &last, |_| ForwardingMode::L2), NOW), vec![]);

        for number in 0..500 {
            let flow = flow(number, protocol);
            let (one, other) = (old.send(&flow, kind, NOW), new.send(&flow, kind, NOW));
            let addr = |balancer: &Rehearsal, choice: Option<steer::Choice>| {
                let choice = choice?;
                Some((addr(balancer, choice.backend), addr(balancer, choice.other)))
            };
            prop_assert_eq!(addr(&old, one), addr(&new, other), "flow {}", number);
        }
    }

    /// Whichever became ready meanwhile, and although what it had translated is lost.
    #[test]
    fn flows_that_come_to_a_node_that_begins_amid_a_rollout_find_their_backend(
        count in 2u8..10, steps in steps(), began in 0..usize::from(NODES), new in 0..usize::from(NODES)
    ) {
        let rollout = rollout(count, &steps);
        let wants = |node: usize, backends: &Backends| want(Protocol::Tcp, backends, |number| mode(node as u8, number));
        let mut cluster = Cluster { balancers: Vec::new(), known: vec![BTreeMap::new(); NODES.into()], new };
        cluster.balancers.resize_with(NODES.into(), balancer);
        let mut flows = BTreeMap::new();
        for (step, backends) in rollout.iter().enumerate() {
            for (node, balancer) in cluster.balancers.iter_mut().enumerate() {
                balancer.apply(&wants(node, backends), NOW);
            }
            for number in (0..300).filter(|_| step == 0) {
                let balancer = cluster.balancers.get_mut(began).expect("a node");
                let choice = balancer.send(&flow(number, Protocol::Tcp), Kind::Syn, NOW).expect("served");
                let backend = addr(balancer, choice.backend).expect("a backend");
                let node = Cluster::node_of(backend).expect("a node");
                cluster.known.get_mut(node).expect("a node").insert(number, backend);
                flows.insert(number, backend);
            }
        }
        let last = rollout.last().cloned().unwrap_or_default();
        let fresh = cluster.balancers.get_mut(new).expect("a node");
        *fresh = balancer();
        prop_assert_eq!(fresh.begin(&wants(new, &last), NOW), vec![]);
        cluster.known.get_mut(new).expect("a node").clear();

        let others: BTreeSet<u8> = last.keys().map(|number| number % NODES).filter(|node| usize::from(*node) != new).collect();
        let mut broken = Vec::new();
        for (number, backend) in &flows {
            let now = cluster.segment(*number, &flow(*number, Protocol::Tcp), new);
            if now != Some(*backend) {
                broken.push((*number, *backend, now));
            }
        }
        // Where no other node has a backend, nobody is there to ask.
        prop_assert!(broken.is_empty() || others.is_empty(), "{broken:?} of {last:?}");
    }
}
