use std::net::Ipv4Addr;

use lb_common::backend::{self, NextHop};
use lb_common::steer::Kind;
use lb_common::{Flow, HashKey, Mac, TCP, Tags, wire_port};
use proptest::prelude::*;

use super::*;
use crate::datapath::maglev;
use crate::datapath::memory::Tables;
use crate::datapath::walk::{self, Balanced, Found};
use crate::datapath::want::{Backend, Owner, Pool, Target, Way};
use crate::model::ObjectName;
use crate::model::l4::{Family, Listener, Protocol};

/// Small worlds over the same few services, VIPs and backends, so that steps collide.
pub(super) fn worlds() -> impl Strategy<Value = Vec<Want>> {
    let pool = (proptest::collection::btree_map(0u8..6, 0u16..4, 0..5), any::<bool>());
    let world =
        proptest::collection::btree_map(0u8..3, (pool, proptest::collection::btree_set(0u8..4, 0..3)), 0..3);
    proptest::collection::vec(world, 2..6).prop_map(|worlds| {
        worlds
            .into_iter()
            .map(|services| {
                let mut want = Want::default();
                for (service, ((backends, nat), vips)) in services {
                    let id = pool_id(service);
                    for vip in vips {
                        want.addrs.insert(vip_addr(vip), Owner::Vip);
                        want.vips.entry(place(vip)).or_insert_with(|| Target::Pool(id.clone()));
                    }
                    let mode = if nat { ForwardingMode::Nat } else { ForwardingMode::L2 };
                    let backends = backends
                        .into_iter()
                        .map(|(addr, weight)| (backend_addr(addr), Backend { mode, ..backend(addr, weight) }))
                        .collect();
                    want.pools.insert(id, Pool { backends, ..Pool::default() });
                }
                want
            })
            .collect()
    })
}

pub(super) fn pool_id(service: u8) -> PoolId {
    PoolId {
        service: ObjectName::new("default", format!("service-{service}")),
        port: 80,
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

pub(super) fn vip_addr(vip: u8) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, vip).into()
}

pub(super) fn place(vip: u8) -> Place {
    Place { addr: vip_addr(vip), port: 80, protocol: Protocol::Tcp }
}

pub(super) fn backend_addr(backend: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, backend], 8080))
}

fn backend(addr: u8, weight: u16) -> Backend {
    let way = Way {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        next_hop: NextHop::new(Mac([2; 6]), Mac([4; 6]), 3),
        mtu: 1500,
        tags: Tags::NONE,
    };
    let mode = ForwardingMode::L2;
    Backend { weight, draining: false, mode, to: backend_addr(addr).ip(), way }
}

/// A key that spreads: with the default one, all zeros, every flow has one slot.
pub(super) fn key() -> HashKey {
    HashKey::expand([7; 16])
}

/// Where flows to a VIP may end in one world.
pub(super) fn allowed(want: &Want, vip: u8) -> Vec<Option<SocketAddr>> {
    let Some(Target::Pool(id)) = want.vips.get(&place(vip)) else { return vec![] };
    let Some(pool) = want.pools.get(id) else { return vec![] };
    let some: Vec<_> =
        pool.backends.iter().filter(|(_, backend)| backend.weight > 0).map(|(addr, _)| Some(*addr)).collect();
    if some.is_empty() { vec![None] } else { some }
}

/// Who may have the flows of a VIP in one world: those that take no new ones, too.
pub(super) fn members(want: &Want, vip: u8) -> Vec<Option<SocketAddr>> {
    let Some(Target::Pool(id)) = want.vips.get(&place(vip)) else { return vec![] };
    let Some(pool) = want.pools.get(id) else { return vec![] };
    let all = pool.backends.keys().map(|addr| Some(*addr));
    all.chain(pool.backends.values().all(|backend| backend.weight == 0).then_some(None)).collect()
}

pub(super) fn socket(tables: &Tables, id: BackendId) -> SocketAddr {
    let port = backend::identity(&tables.backends, id).wire_port().swap_bytes();
    SocketAddr::new(backend::addr(&tables.backends, id).into(), port)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn after_every_prefix_a_flow_reaches_a_backend_of_the_old_or_the_new_pool(worlds in worlds()) {
        let tables = Tables::owned();
        let mut book = Book::default();
        let mut before = Want::default();
        for after in worlds {
            let plan = book.plan(&after, 0);
            prop_assert_eq!(&plan.problems, &vec![]);
            for op in &plan.ops {
                op.apply(&tables, &mut ());
                for vip in 0..4u8 {
                    for port in 0..20u16 {
                        let flow = Flow {
                            src: IpAddr::from([198, 51, 100, 7]).into(),
                            dst: vip_addr(vip).into(),
                            ports: Flow::ports(wire_port(40_000 + port), wire_port(80)),
                            proto: TCP.into(),
                        };
                        let mut may = allowed(&before, vip);
                        may.extend(allowed(&after, vip));
                        let mut members = members(&before, vip);
                        members.extend(self::members(&after, vip));
                        for (kind, may) in [(Kind::Syn, &may), (Kind::Segment, &members)] {
                            match walk::walk(&tables, &flow, kind, 0, key()) {
                                Found::Balanced(Balanced { choice, .. }) if choice.backend.0 != 0 => {
                                    let addr = socket(&tables, choice.backend);
                                    prop_assert!(may.contains(&Some(addr)), "{kind:?}: {addr} not among {may:?}");
                                    prop_assert!(backend::identity(&tables.backends, choice.backend).is_alive());
                                }
                                Found::Balanced(_) => prop_assert!(may.contains(&None), "{kind:?}: nobody"),
                                Found::NotOurs | Found::NoVip { .. } => {
                                    prop_assert!(allowed(&before, vip).is_empty() || allowed(&after, vip).is_empty());
                                }
                                Found::Punted { .. } => prop_assert!(false, "nothing is punted"),
                            }
                        }
                    }
                }
            }
            before = after;
        }
    }

    #[test]
    fn a_world_that_did_not_change_needs_no_step(worlds in worlds()) {
        let mut book = Book::default();
        for want in worlds {
            let _ = book.plan(&want, 0);

            prop_assert_eq!(book.plan(&want, 0), Plan::default());
        }
    }
}

#[test]
fn everything_comes_back_when_all_is_removed() {
    let mut book = Book::default();
    for round in 0..3000u32 {
        let mut want = Want::default();
        let id = pool_id((round % 3) as u8);
        want.vips.insert(place(1), Target::Pool(id.clone()));
        want.addrs.insert(vip_addr(1), Owner::Vip);
        let backends = (0..20).map(|index| (backend_addr(index), backend(index, 1))).collect();
        want.pools.insert(id, Pool { backends, ..Pool::default() });

        let plan = book.plan(&want, 0);
        assert_eq!(plan.problems, vec![], "round {round}");
        let plan = book.plan(&Want::default(), 0);
        assert_eq!(plan.problems, vec![], "round {round}");
    }
    assert_eq!(book.regions, Regions::new(maps::POOL_SLOTS));
}

/// Adds a VIP with a pool of its own.
pub(super) fn serve(want: &mut Want, service: u8, backends: &[u8]) {
    want.addrs.insert(vip_addr(service), Owner::Vip);
    want.vips.insert(place(service), Target::Pool(pool_id(service)));
    let backends = backends.iter().map(|index| (backend_addr(*index), backend(*index, 1))).collect();
    want.pools.insert(pool_id(service), Pool { backends, ..Pool::default() });
}

/// Backends that the flows to a VIP end at, with whether each is still alive.
fn ends(tables: &Tables, vip: u8) -> BTreeSet<(SocketAddr, bool)> {
    (0..200u16)
        .filter_map(|port| {
            let flow = Flow {
                src: IpAddr::from([198, 51, 100, 7]).into(),
                dst: vip_addr(vip).into(),
                ports: Flow::ports(wire_port(40_000 + port), wire_port(80)),
                proto: TCP.into(),
            };
            let Found::Balanced(found) = walk::walk(tables, &flow, Kind::Syn, 0, key()) else { return None };
            let id = found.choice.backend;
            let alive = backend::identity(&tables.backends, id).is_alive();
            (id.0 != 0).then(|| (socket(tables, id), alive))
        })
        .collect()
}

fn carry_out(book: &mut Book, want: &Want, tables: &Tables) -> usize {
    let plan = book.plan(want, 0);
    plan.ops.iter().for_each(|op| op.apply(tables, &mut ()));
    plan.problems.len()
}

#[test]
fn a_table_that_cannot_be_replaced_keeps_the_backends_it_names() {
    let tables = Tables::owned();
    // Room for the first table and no other.
    let first = 1 << maglev::bits_for(2);
    let mut book = Book { regions: Regions::new(first), ..Book::default() };
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let both = BTreeSet::from([(backend_addr(1), true), (backend_addr(2), true)]);
    assert_eq!(ends(&tables, 0), both);

    serve(&mut want, 0, &[1]);
    assert_eq!(carry_out(&mut book, &want, &tables), 1);
    assert_eq!(ends(&tables, 0), both);

    // A Service that comes later must not be given what the kept table names.
    while book.backend_ids.take().is_some() {}
    serve(&mut want, 1, &[9]);
    assert!(carry_out(&mut book, &want, &tables) > 0);
    assert_eq!(ends(&tables, 0), both);

    // Once it can be replaced, they go.
    book.regions = Regions::new(maps::POOL_SLOTS);
    assert!(book.regions.take(first).is_some(), "the old table stays where it is");
    want.pools.remove(&pool_id(1));
    want.vips.remove(&place(1));
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    assert_eq!(ends(&tables, 0), BTreeSet::from([(backend_addr(1), true)]));
    assert_eq!(book.lingering, Retired::default());
}

#[test]
fn vips_that_cannot_be_replaced_keep_all_that_they_name() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    // More VIPs than the table holds, and the first one gone.
    let mut crowded = Want::default();
    for vip in 10..14 {
        crowded.addrs.insert(vip_addr(vip), Owner::Vip);
        for port in 1..=u16::MAX {
            let place = Place { addr: vip_addr(vip), port, protocol: Protocol::Tcp };
            crowded.vips.insert(place, Target::Punt(Listener::Http));
        }
    }
    assert_eq!(carry_out(&mut book, &crowded, &tables), 1);
    serve(&mut crowded, 1, &[9]);
    assert_eq!(carry_out(&mut book, &crowded, &tables), 1);
    assert_eq!(ends(&tables, 0), BTreeSet::from([(backend_addr(1), true)]));

    assert_eq!(carry_out(&mut book, &Want::default(), &tables), 0);
    assert_eq!(ends(&tables, 0), BTreeSet::new());
    assert_eq!(book.lingering, Retired::default());
    assert_eq!(book.regions, Regions::new(maps::POOL_SLOTS));
}

#[test]
fn another_way_writes_the_lines_that_a_whole_plan_would_write_and_no_more() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2, 3]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    let id = pool_id(0);
    let backends = &mut want.pools.get_mut(&id).expect("served").backends;
    for (addr, backend) in backends.iter_mut().filter(|(addr, _)| **addr != backend_addr(2)) {
        backend.way.next_hop = NextHop::new(Mac([6; 6]), Mac([4; 6]), u32::from(addr.port()));
    }
    let backends = backends.iter().map(|(addr, backend)| (&id, *addr, backend));
    let ops = book.reroute(backends).ops;

    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(ops.iter().all(|op| matches!(op, Op::Backend(..))), "{ops:?}");
    assert_eq!(book.plan(&want, 0), Plan::default(), "nothing is left to do");
}
