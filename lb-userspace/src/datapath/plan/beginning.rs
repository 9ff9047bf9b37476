//! Balancers that begin with fresh tables while backends leave or are replaced, beside others that saw it: flows that the router
//! brings to them find their backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::steer::{self, Choice, Hashes, Kind, Memory, Owners};
use lb_common::tunnel::{self, Onward, Question, Round};
use lb_common::{BackendId, HashKey, Mode, backend, config};
use proptest::prelude::*;

use super::histories::{addr_of, flow};
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

const NODES: u8 = 3;
const GRACE: u16 = 280;
const NOW: u32 = 1000;
const KEY: [u8; 16] = [5; 16];
/// Frames in the tunnel that a packet becomes, at most: one a round.
const FRAMES: usize = 4;

/// Backends by number, and whether they leave.
type Backends = BTreeMap<u8, bool>;

fn pool(protocol: Protocol) -> PoolId {
    PoolId { service: ObjectName::new("default", "beginning").into(), port: 80, protocol, family: Family::V4 }
}

fn place(protocol: Protocol) -> Place {
    Place { addr: Ipv4Addr::new(203, 0, 113, 1).into(), port: 80, protocol }
}

fn want(protocol: Protocol, backends: &Backends, mode: impl Fn(u8) -> ForwardingMode) -> Want {
    let one = |(number, leaves): (&u8, &bool)| {
        let to = IpAddr::from([192, 0, 2, number % NODES]);
        let one = super::histories::backend(*number, 1, *leaves);
        let mode = mode(*number);
        let to = if mode == ForwardingMode::Tunnel { to } else { one.to };
        (addr_of(*number), Backend { mode, to, ..one })
    };
    let leaving =
        backends.iter().filter(|(_, leaves)| **leaves).map(|(number, _)| addr_of(*number)).collect();
    let of_pool = Pool { backends: backends.iter().map(one).collect(), leaving, ..Pool::default() };
    let mut want = Want::default();
    want.addrs.insert(place(protocol).addr, Owner::Vip);
    want.vips.insert(place(protocol), Target::Pool(pool(protocol)));
    want.pools.insert(pool(protocol), of_pool);
    want
}

fn balancer() -> Rehearsal {
    Rehearsal::new(HashKey::expand(KEY), 12, GRACE)
}

/// One that saw backends leave one after the other, and one that begins behind the last.
fn balancers(protocol: Protocol, count: u8, leave: &[u8]) -> [Rehearsal; 2] {
    let mut backends: Backends = (0..count).map(|number| (number, false)).collect();
    let [mut old, mut new] = [(); 2].map(|()| balancer());
    let want = |backends: &_| want(protocol, backends, |_| ForwardingMode::L2);
    assert_eq!(old.apply(&want(&backends), NOW), []);
    for number in leave {
        backends.insert(number % count, true);
        // Where all leave, all serve on.
        if backends.values().any(|leaves| !leaves) {
            assert_eq!(old.apply(&want(&backends), NOW), []);
        } else {
            backends.insert(number % count, false);
        }
    }
    assert_eq!(new.begin(&want(&backends), NOW), []);
    [old, new]
}

fn owners(balancer: &mut Rehearsal, number: u32, protocol: Protocol, kind: Kind) -> [Option<SocketAddr>; 2] {
    let Choice { backend, other, .. } = balancer.send(&flow(number, protocol), kind, NOW).expect("served");
    [backend, other].map(|id| addr(balancer, id))
}

fn addr(balancer: &Rehearsal, id: BackendId) -> Option<SocketAddr> {
    balancer.book().backend_of(id).map(|(_, addr)| addr)
}

/// Steps of a rollout: who begins to leave, and whether another comes in its place.
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
        if backends.values().any(|leaves| !leaves) {
            all.push(backends.clone());
        }
    }
    all
}

fn steps() -> impl Strategy<Value = Vec<(u8, bool)>> {
    proptest::collection::vec((any::<u8>(), prop::bool::weighted(0.7)), 1..7)
}

fn node_of(addr: SocketAddr) -> Option<usize> {
    (0..u8::MAX).find(|number| addr_of(*number) == addr).map(|number| usize::from(number % NODES))
}

/// A flow as its client sees it.
#[derive(Debug, Clone, Copy)]
struct Client {
    number: u32,
    backend: SocketAddr,
}

/// Nodes with a balancer each, and with those flows of their backends that they remember.
struct Cluster {
    balancers: Vec<Rehearsal>,
    known: Vec<BTreeMap<u32, SocketAddr>>,
    clients: Vec<Client>,
}

impl Cluster {
    /// After these steps, with so many flows that began behind each, by any node.
    fn after(rollout: &[Backends], flows: u32) -> Self {
        let known = vec![BTreeMap::new(); NODES.into()];
        let balancers = (0..NODES).map(|_| balancer()).collect();
        let mut cluster = Self { balancers, known, clients: Vec::new() };
        for (step, backends) in (0u32..).zip(rollout) {
            for (node, balancer) in cluster.balancers.iter_mut().enumerate() {
                assert_eq!(balancer.apply(&Self::want(node, backends), NOW), []);
            }
            for number in step * flows..(step + 1) * flows {
                let (backend, _) =
                    cluster.send(number, Kind::Syn, number as usize / 7 % usize::from(NODES), NOW);
                cluster.clients.push(Client { number, backend });
            }
        }
        cluster
    }

    fn want(node: usize, backends: &Backends) -> Want {
        let is_here = |number: u8| usize::from(number % NODES) == node;
        let mode = |number| if is_here(number) { ForwardingMode::Local } else { ForwardingMode::Tunnel };
        want(Protocol::Tcp, backends, mode)
    }

    /// These nodes begin with fresh tables, and have forgotten which flows their backends have.
    fn begin_anew(&mut self, nodes: &BTreeSet<usize>, backends: &Backends, guess: bool) {
        for node in nodes {
            let mut want = Self::want(*node, backends);
            if !guess {
                want.pools.get_mut(&pool(Protocol::Tcp)).expect("the pool").leaving.clear();
            }
            let fresh = self.balancers.get_mut(*node).expect("a node");
            *fresh = balancer();
            assert_eq!(fresh.begin(&want, NOW), []);
            self.known.get_mut(*node).expect("a node").clear();
        }
    }

    /// Who gets a packet that comes to a node, and by how many frames in the tunnel.
    fn send(&mut self, number: u32, kind: Kind, node: usize, now: u32) -> (SocketAddr, usize) {
        if let Some(known) = self.known[node].get(&number) {
            return (*known, 0);
        }
        let balancer = &mut self.balancers[node];
        let choice = balancer.send(&flow(number, Protocol::Tcp), kind, now).expect("the VIP is there");
        let (Choice { backend, other, .. }, mut round) = tunnel::second_chance(choice, kind, mode(balancer));
        let mut named = [backend, other].map(|id| addr(balancer, id));
        let mut here = node;
        let mut frames = 0;
        loop {
            let chosen = named[0].expect("somebody takes it");
            let is_first = frames == 0 && node_of(chosen) == Some(node);
            if !is_first {
                frames += 1;
                here = node_of(chosen).expect("a node");
            }
            if let Some(known) = self.known[here].get(&number) {
                return (*known, frames);
            }
            let next = if is_first { None } else { self.onward(number, kind, here, named, round) };
            let Some(Onward { chosen: next, other, round: then, is_told_here: _ }) = next else {
                self.known[here].insert(number, chosen);
                return (chosen, frames);
            };
            named = [next, other].map(|id| addr(&self.balancers[here], id));
            round = then;
        }
    }

    /// What the receiver of the tunnel makes of a packet of a flow that it does not know.
    fn onward(
        &self,
        number: u32,
        kind: Kind,
        here: usize,
        named: [Option<SocketAddr>; 2],
        round: Round,
    ) -> Option<Onward> {
        let balancer = &self.balancers[here];
        let id = |addr| balancer.book().backend_id(&pool(Protocol::Tcp), addr);
        let [chosen, other] = named.map(|addr| addr.and_then(id).unwrap_or(BackendId(0)));
        let own = self.owners(number, here);
        let past = config::past(&balancer.tables().config);
        let lines = &balancer.tables().backends;
        let node = |id| (mode(balancer)(id) == Mode::Tunnel as u8).then(|| backend::addr(&lines, id));
        let onward = Question { round, kind, chosen, other, own, past }.onward(node)?;
        if onward.is_told_here {
            balancer.tables().mark_used(own.place);
        }
        Some(onward)
    }

    fn owners(&self, number: u32, node: usize) -> Owners {
        let balancer = &self.balancers[node];
        let record = balancer.book().record_of(&place(Protocol::Tcp), &pool(Protocol::Tcp));
        let (_, record) = record.expect("a record");
        let hash = flow(number, Protocol::Tcp).hash(HashKey::expand(KEY));
        steer::owners(balancer.tables(), &record, Hashes { flow: hash, source: 0 })
    }

    /// Owners of a flow's slot by the tables of a node that saw all of it.
    fn told(&self, number: u32, node: usize) -> [Option<SocketAddr>; 2] {
        let Owners { current, previous, place: _ } = self.owners(number, node);
        [current, previous].map(|id| addr(&self.balancers[node], id))
    }

    /// Flows whose segments do not get to their backend by such a node.
    fn broken(&mut self, entry: impl Fn(u32) -> usize, now: u32) -> BTreeSet<u32> {
        let clients = self.clients.clone();
        let is_broken = |Client { number, backend }: &Client| {
            let (found, frames) = self.send(*number, Kind::Segment, entry(*number), now);
            assert!(frames <= FRAMES, "flow {number}: {frames} frames");
            found != *backend
        };
        clients.iter().copied().filter(is_broken).map(|client| client.number).collect()
    }
}

fn mode(balancer: &Rehearsal) -> impl Fn(BackendId) -> u8 {
    let lines = &balancer.tables().backends;
    move |id| backend::identity(&lines, id).mode()
}

/// The node that the router brings a flow to; some go where they began.
fn any_entry(number: u32) -> usize {
    (number / 5) as usize % usize::from(NODES)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_that_begins_while_backends_leave_knows_what_the_others_do(
        count in 2u8..12, leave in proptest::collection::vec(any::<u8>(), 1..8)
    ) {
        let [mut old, mut new] = balancers(Protocol::Tcp, count, &leave);

        for number in 0..500 {
            for kind in [Kind::Segment, Kind::Syn] {
                let expected = owners(&mut old, number, Protocol::Tcp, kind);

                prop_assert_eq!(owners(&mut new, number, Protocol::Tcp, kind), expected, "{:?} of {}", kind, number);
            }
        }
    }

    /// Whatever the one that begins had translated is lost. Told is what the others' tables name as owner of the slot, or as
    /// the previous one; of two on the node that begins, nobody knows which of them has a flow.
    #[test]
    fn flows_find_their_backend_beside_one_that_begins_amid_a_rollout(
        count in 2u8..10, steps in steps(), new in 0..usize::from(NODES)
    ) {
        let rollout = rollout(count, &steps);
        let last = rollout.last().expect("the first step");
        let mut cluster = Cluster::after(&rollout, 40);
        let history = (new + 1) % usize::from(NODES);
        let is_told = |client: &Client| {
            let told = cluster.told(client.number, history);
            let is_one_of_two = told.iter().all(|owner| owner.and_then(node_of) == Some(new));
            told.contains(&Some(client.backend)) && !is_one_of_two
        };
        cluster.clients = cluster.clients.iter().copied().filter(is_told).collect();
        // Nobody else is there to be asked.
        let alone = last.keys().all(|number| usize::from(number % NODES) == new);
        prop_assume!(rollout.len() > 1 && !alone);

        cluster.begin_anew(&BTreeSet::from([new]), last, true);

        let mut now = NOW;
        let broken = cluster.broken(|_| new, now);
        prop_assert!(broken.is_empty(), "{broken:?} by {new}, which is new, of {last:?}");
        while now < NOW + 3 * u32::from(GRACE) {
            let broken = cluster.broken(any_entry, now);
            prop_assert!(broken.is_empty(), "{broken:?} at {now} of {last:?}, new: {new}");
            now += u32::from(GRACE) / 4;
            cluster.balancers.iter_mut().for_each(|balancer| balancer.settle(now));
        }
    }

    /// What two have guessed and forgotten breaks none that would not break if they guessed nothing, nor any of an owner of now.
    #[test]
    fn two_that_begin_amid_a_rollout_break_no_flow_by_what_they_guess(
        count in 2u8..10, steps in steps(), old in 0..usize::from(NODES)
    ) {
        let rollout = rollout(count, &steps);
        let last = rollout.last().expect("the first step");
        let new: BTreeSet<usize> = (0..NODES.into()).filter(|node| *node != old).collect();
        let [with, without] = [true, false].map(|guess| {
            let mut cluster = Cluster::after(&rollout, 40);
            let owned = |client: &Client| cluster.told(client.number, old)[0] == Some(client.backend);
            let young: BTreeSet<u32> = cluster.clients.iter().filter(|it| owned(it)).map(|it| it.number).collect();
            cluster.begin_anew(&new, last, guess);
            (cluster.broken(any_entry, NOW), young)
        });

        let more: Vec<&u32> = with.0.difference(&without.0).collect();
        prop_assert!(more.is_empty(), "{more:?} of {last:?}, old: {old}");
        let by_new = |number: &&u32| any_entry(**number) != old;
        let young: Vec<&u32> = with.0.intersection(&with.1).filter(by_new).collect();
        prop_assert!(young.is_empty(), "{young:?} of {last:?}, old: {old}");
    }
}

/// Which of the others' would be older than the change, nobody tells.
#[test]
fn datagrams_that_come_to_one_that_begins_go_to_no_backend_that_leaves() {
    let [_, mut new] = balancers(Protocol::Udp, 4, &[0, 1]);

    let leaving = [0, 1].map(|number| Some(addr_of(number)));
    for number in 0..500 {
        let [backend, _] = owners(&mut new, number, Protocol::Udp, Kind::Datagram);
        assert!(!leaving.contains(&backend), "{number}");
    }
}

/// Only who can send a segment back is asked whether a flow is its own.
#[test]
fn segments_of_backends_here_are_guessed_to_be_another_nodes_alone() {
    let backends: Backends = (0..6).map(|number| (number, number < 2)).collect();
    let asked = |here: &[u8], elsewhere: ForwardingMode| {
        let mode = |number| if here.contains(&number) { ForwardingMode::Local } else { elsewhere };
        let mut new = balancer();
        assert_eq!(new.begin(&want(Protocol::Tcp, &backends, mode), NOW), []);
        let of = |number| owners(&mut new, number, Protocol::Tcp, Kind::Segment);
        (0..500)
            .map(of)
            .filter(|[_, other]| other.is_some())
            .flat_map(|[asked, _]| asked)
            .collect::<BTreeSet<_>>()
    };
    let addrs = |numbers: &[u8]| numbers.iter().map(|number| addr_of(*number)).collect::<BTreeSet<_>>();

    assert_eq!(asked(&[0, 3], ForwardingMode::Tunnel), addrs(&[1, 2, 4, 5]));
    assert_eq!(asked(&[0, 3], ForwardingMode::Nat), addrs(&[]));
    assert_eq!(asked(&[0, 1, 2, 3, 4, 5], ForwardingMode::Local), addrs(&[]));
    assert!(asked(&[], ForwardingMode::Ipip).is_superset(&addrs(&[0, 1])));
}

#[test]
fn one_that_begins_knows_the_past_when_what_it_guessed_has_settled() {
    let past = |balancer: &Rehearsal| {
        let past = config::past(&balancer.tables().config);
        (past.is_guessed(), past.is_forgotten())
    };
    let backends: Backends = (0..6).map(|number| (number, number < 2)).collect();
    let mut new = balancer();
    assert_eq!(new.begin(&Cluster::want(0, &backends), NOW), []);

    new.settle(NOW + u32::from(GRACE));
    assert_eq!(past(&new), (true, true));
    // A segment of a backend that leaves holds its slot.
    let held = (0..).find(|number| {
        new.send(&flow(*number, Protocol::Tcp), Kind::Segment, NOW).is_some_and(|choice| choice.other.0 != 0)
    });
    new.settle(NOW + u32::from(GRACE) + 3);
    assert!(held.is_some());
    assert_eq!(past(&new), (true, false));
    new.settle(NOW + 2 * u32::from(GRACE) + 6);
    assert_eq!(past(&new), (false, false));

    let mut without = balancer();
    let backends: Backends = (0..6).map(|number| (number, false)).collect();
    assert_eq!(without.begin(&Cluster::want(0, &backends), NOW), []);
    assert_eq!(past(&without), (false, true), "nothing leaves, so nothing is guessed");
}
