mod crowd;

use std::net::Ipv4Addr;

use lb_common::backend::{self, NextHop};
use lb_common::steer::Kind;
use lb_common::{Flow, HashKey, Mac, TCP, Tags, wire_port};
use proptest::prelude::*;

use super::*;
use crate::datapath::maglev;
use crate::datapath::memory::Tables;
use crate::datapath::walk::{self, Balanced, Found, Sources};
use crate::datapath::want::{Backend, Lost, Owner, Pool, Target, Way, Ways};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, Protocol};

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
                        if !want.vips.contains_key(&place(vip)) {
                            want.vips.insert(place(vip), Target::Pool(id.clone()));
                        }
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
        service: ObjectName::new("default", format!("service-{service}")).into(),
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
                            match walk::walk(&tables, Sources::Any, &flow, kind, 0, key()) {
                                Found::Balanced(Balanced { choice, .. }) if choice.backend.0 != 0 => {
                                    let addr = socket(&tables, choice.backend);
                                    prop_assert!(may.contains(&Some(addr)), "{kind:?}: {addr} not among {may:?}");
                                    prop_assert!(backend::identity(&tables.backends, choice.backend).is_alive());
                                }
                                Found::Balanced(_) => prop_assert!(may.contains(&None), "{kind:?}: nobody"),
                                Found::NotOurs | Found::NoVip { .. } => {
                                    prop_assert!(allowed(&before, vip).is_empty() || allowed(&after, vip).is_empty());
                                }
                                Found::Punted { .. } | Found::Restricted => {
                                    prop_assert!(false, "nothing is punted or restricted");
                                }
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
            let Found::Balanced(found) = walk::walk(tables, Sources::Any, &flow, Kind::Syn, 0, key()) else {
                return None;
            };
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

/// Looking for the flows of what is gone costs a look at the whole table, however much is gone.
#[test]
fn ids_of_backends_that_are_gone_are_purged_together_and_at_once_only_where_no_other_is_left() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2, 3]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let id = |book: &Book, number| book.backend_id(&pool_id(0), backend_addr(number)).expect("planned");
    let (one, two) = (id(&book, 1), id(&book, 2));
    let purges = |plan: &Plan| -> Vec<BTreeSet<BackendId>> {
        let purged = plan.ops.iter().filter_map(|op| match op {
            Op::Purge(ids) => Some(ids.clone()),
            _ => None,
        });
        purged.collect()
    };

    for left in [&[2, 3][..], &[3]] {
        serve(&mut want, 0, left);
        assert_eq!(purges(&book.plan(&want, 0)), [], "none while a change is waited for");
    }
    let translated = BTreeSet::new();
    let observed = Observed { now: 1, grace: 100, spared: None, translated: Some((1, &translated)) };
    assert_eq!(purges(&book.settle(&tables, &observed).0), [BTreeSet::from([one, two])], "both at once");
    assert_eq!(purges(&book.settle(&tables, &observed).0), [], "and once");

    while book.backend_ids.take().is_some() {}
    let three = id(&book, 3);
    serve(&mut want, 0, &[]);
    assert_eq!(purges(&book.plan(&want, 2)), []);
    serve(&mut want, 0, &[4]);
    let plan = book.plan(&want, 3);
    assert_eq!(id(&book, 4), three);
    let place = |wanted: &dyn Fn(&Op) -> bool| plan.ops.iter().position(wanted).expect("planned");
    let purged = place(&|op| *op == Op::Purge(BTreeSet::from([three])));
    assert!(purged < place(&|op| matches!(op, Op::Backend(id, _) if *id == three)), "{plan:?}");
    assert_eq!(plan.ops.get(purged - 1), Some(&Op::Grace), "no packet is on its way by the old line");
}

#[test]
fn a_mark_that_is_set_while_slots_settle_is_read_the_next_time() {
    let (tables, mut book, mut want) = (Tables::owned(), Book::default(), Want::default());
    serve(&mut want, 0, &[1, 2]);
    carry_out(&mut book, &want, &tables);
    serve(&mut want, 0, &[1, 2, 3]);
    carry_out(&mut book, &want, &tables);
    let settle = |book: &mut Book, now| {
        let (mut plan, mut retired) = (Plan::default(), Retired::default());
        let observed = Observed { now, grace: 1_000, spared: None, translated: None };
        book.plan_settling(&tables, &observed, &mut plan, &mut retired);
        plan.ops
    };

    book.note_used(|index| tables.slot(index), 5);
    (0..4 * 1024).for_each(|index| tables.mark_used(index));
    assert_eq!(settle(&mut book, 5), []);

    book.note_used(|index| tables.slot(index), 9);
    let ops = settle(&mut book, 9);
    assert!(!ops.is_empty() && ops.iter().all(|op| matches!(op, Op::Unmark(_))), "{ops:?}");
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
    let ops = book.reroute(backends, &Ways::new()).ops;

    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(ops.iter().all(|op| matches!(op, Op::Backend(..))), "{ops:?}");
    assert_eq!(book.plan(&want, 0), Plan::default(), "nothing is left to do");
}

/// The line of a backend as the program reads it.
fn line(book: &Book, addr: SocketAddr, tables: &Tables) -> Option<lb_common::Backend> {
    line_of(book.backend_id(&pool_id(0), addr)?, tables)
}

fn line_of(id: BackendId, tables: &Tables) -> Option<lb_common::Backend> {
    let line = backend::line(id);
    lb_common::Backend::from_words(&[tables.backends.line(line), tables.backends.line(line + 1)])
}

#[test]
fn a_backend_that_loses_its_way_keeps_id_and_slots_and_waits_for_the_kernels_routing() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let (ids, ends_before) = (ids(&book), ends(&tables, 0));
    let whole = want.clone();

    let pool = want.pools.get_mut(&pool_id(0)).expect("served");
    for index in [2, 3] {
        let Backend { weight, draining, mode, to, way: _ } = backend(index, 1);
        pool.backends.remove(&backend_addr(index));
        pool.lost.insert(backend_addr(index), Lost { weight, draining, mode, to });
    }
    book.keep_lost(&mut want);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    assert_eq!((self::ids(&book), ends(&tables, 0)), (ids.clone(), ends_before));
    let lost = line(&book, backend_addr(2), &tables).expect("it lives");
    assert_eq!((lost.next_hop, lost.mtu), (NextHop::default(), 1500));
    assert_eq!(lost.source, IpAddr::from([10, 0, 0, 254]).into());
    assert!(line(&book, backend_addr(3), &tables).is_none(), "one that was never reached is not used");

    assert_eq!(carry_out(&mut book, &whole, &tables), 0);
    assert_eq!(self::ids(&book), ids);
    assert_ne!(line(&book, backend_addr(2), &tables).expect("it lives").next_hop, NextHop::default());
}

fn ids(book: &Book) -> BTreeMap<SocketAddr, BackendId> {
    book.backends.iter().map(|((_, addr, _), line)| (*addr, line.id)).collect()
}

/// Gives the backends of the first Service a mode.
fn reach(want: &mut Want, mode: ForwardingMode) {
    let backends = &mut want.pools.get_mut(&pool_id(0)).expect("served").backends;
    backends.values_mut().for_each(|backend| backend.mode = mode);
}

#[test]
fn modes_that_look_the_same_to_a_server_take_each_others_place_in_its_line() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let ids = ids(&book);

    for mode in [ForwardingMode::Ipip, ForwardingMode::L2] {
        reach(&mut want, mode);
        let plan = book.plan(&want, 0);

        assert!(plan.ops.iter().all(|op| matches!(op, Op::Backend(..))), "{plan:?}");
        assert_eq!((plan.ops.len(), self::ids(&book)), (2, ids.clone()));
    }
}

#[test]
fn a_backend_of_another_mode_keeps_its_flows_in_the_old_one_until_they_are_over() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1]);
    reach(&mut want, ForwardingMode::Nat);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let old = book.backend_id(&pool_id(0), backend_addr(1)).expect("installed");

    // Its node runs a balancer now.
    reach(&mut want, ForwardingMode::Tunnel);
    let node = IpAddr::from([10, 9, 0, 1]);
    want.pools.get_mut(&pool_id(0)).expect("served").backends.values_mut().for_each(|one| one.to = node);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    let new = line(&book, backend_addr(1), &tables).expect("it lives");
    assert_eq!((new.mode, new.draining), (lb_common::Mode::Tunnel, false));
    let former = line_of(old, &tables).expect("it lives on");
    assert_eq!((former.mode, former.draining), (lb_common::Mode::Nat, true));
    assert_eq!(former.addr, backend_addr(1).ip().into());
    assert_eq!(book.former_destinations(), [backend_addr(1).ip()].into());
    let records = |book: &Book| book.record_of(&place(0), &pool_id(0)).expect("served").1;
    assert!(records(&book).rules.any(lb_common::Rules::TRANSLATED), "its translations are asked for");

    // The way there changes: for both.
    let way = Way { mtu: 1400, ..backend(1, 1).way };
    let plan = book.reroute([], &Ways::unit(backend_addr(1).ip(), Ok(way)));
    plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
    assert_eq!(line_of(old, &tables).map(|line| line.mtu), Some(1400));

    let mut settle = |now: u32, translated: Option<(u32, &[BackendId])>| {
        let ids = translated.map(|(then, ids)| (then, ids.iter().copied().collect::<BTreeSet<_>>()));
        let translated = ids.as_ref().map(|(then, ids)| (*then, ids));
        let (plan, is_over) = book.settle(&tables, &Observed { now, grace: 5, spared: None, translated });
        plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
        is_over
    };
    assert!(!settle(3, Some((3, &[]))), "slots name it as previous owner until they settle");
    assert!(!settle(101, None), "nobody looked whether flows are translated to it");
    assert!(!settle(101, Some((102, &[old]))), "one is");
    assert!(settle(102, Some((103, &[]))));

    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    assert_eq!(line_of(old, &tables), None);
    assert!(!records(&book).rules.any(lb_common::Rules::TRANSLATED));
    assert_eq!(book.plan(&want, 103), Plan::default(), "nothing is left to do");
}

#[test]
fn that_a_pool_is_translated_to_is_said_before_its_table_is_switched_and_taken_back_after() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);
    serve(&mut want, 1, &[1, 2]);
    let translated = Backend { mode: ForwardingMode::Nat, ..backend(3, 1) };
    want.addrs.insert(translated.way.source, Owner::Node);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    let mut steps = |want: &Want| {
        let plan = book.plan(want, 0);
        plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
        let (index, record) = book.record_of(&place(0), &pool_id(0)).expect("served");
        assert_eq!(lb_common::Record::read(&tables.records, index.into()), record);
        let step = |op: &Op| match op {
            Op::Rules(_, rules) if rules.any(lb_common::Rules::TRANSLATED) => Some("say"),
            Op::Rules(..) => Some("take back"),
            Op::Grace => Some("wait"),
            Op::Switch(..) => Some("switch"),
            Op::Record(..) | Op::Lookup(..) | Op::Epoch(_) => Some("lay out all VIPs"),
            _ => None,
        };
        plan.ops.iter().filter_map(step).collect::<Vec<_>>()
    };

    want.pools.get_mut(&pool_id(0)).expect("served").backends.insert(backend_addr(3), translated.clone());
    assert_eq!(steps(&want), ["say", "wait", "switch", "wait"]);

    want.pools.get_mut(&pool_id(0)).expect("served").backends.remove(&backend_addr(3));
    assert_eq!(steps(&want), ["switch", "wait", "take back"]);

    for n in [0, 1] {
        want.pools.get_mut(&pool_id(n)).expect("served").backends.insert(backend_addr(3), translated.clone());
    }
    assert_eq!(steps(&want), ["say", "say", "wait", "switch", "switch", "wait"], "one wait for all");
}

#[test]
fn a_former_self_goes_with_its_backend() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    reach(&mut want, ForwardingMode::Nat);
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    assert_eq!(book.former(&pool_id(0)).count(), 2);

    want.pools.get_mut(&pool_id(0)).expect("served").backends.remove(&backend_addr(1));
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    let former: Vec<_> = book.former(&pool_id(0)).map(|(addr, mode, _)| (addr, mode)).collect();
    assert_eq!(former, [(backend_addr(2), ForwardingMode::L2)]);
    assert_eq!(ids(&book).len(), 1);
    assert_eq!(carry_out(&mut book, &Want::default(), &tables), 0);
    assert_eq!((book.backends.len(), &book.regions), (0, &Regions::new(maps::POOL_SLOTS)));
}

#[test]
fn a_table_that_found_no_memory_gets_it_when_others_have_settled() {
    let tables = Tables::owned();
    // Three tables of 1,024 slots, and one that is contested.
    let mut book = Book { regions: Regions::new(1 << 13), ..Book::default() };
    let mut want = Want::default();
    (0..4).for_each(|service| serve(&mut want, service, &[1, 2, 3]));
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
    for id in (0..4).map(pool_id) {
        want.pools.get_mut(&id).expect("served").backends.insert(backend_addr(4), backend(4, 1));
    }
    let plan = book.plan(&want, 0);
    plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
    let reasons: Vec<_> = plan.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|why| why.contains("no memory")), "{reasons:?}");

    // As many plans as there are pools, and nobody wishes for anything else.
    let mut plans = 0;
    for now in (100..).step_by(100).take(8) {
        let observed = Observed { now, grace: 5, spared: None, translated: None };
        let (plan, _) = book.settle(&tables, &observed);
        plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
        if book.has_room_again() {
            plans += 1;
            carry_out(&mut book, &want, &tables);
        }
    }

    assert!(plans > 0);
    assert_eq!(book.plan(&want, 1_000), Plan::default(), "nothing is missing");
    assert!((0..4).all(|n| book.table_size(&pool_id(n)) == Some((1024, 0))));
    assert!(!book.has_room_again());
}

#[test]
fn a_table_that_is_smaller_than_it_should_be_is_told_and_grows_when_there_is_room() {
    let tables = Tables::owned();
    let mut want = Want::default();
    (0..3).for_each(|service| serve(&mut want, service, &[1, 2, 3]));
    let planned = |order: [u8; 3]| {
        let mut book = Book { regions: Regions::new(1 << 11), ..Book::default() };
        // Of what is left one gets all that it wants, and the others a half and a quarter.
        assert_eq!(book.regions.take(1 << 8), Some(0));
        let (mut some, mut problems) = (Want::default(), Vec::new());
        for service in order {
            serve(&mut some, service, &[1, 2, 3]);
            let plan = book.plan(&some, 0);
            plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
            problems = plan.problems;
        }
        let reasons: Vec<_> = problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, ["table-small"; 2], "{order:?}");
        book
    };
    let sizes = |book: &Book| [0, 1, 2].map(|n| book.table_size(&pool_id(n)).map(|(slots, _)| slots));

    // Which one found room depends on who came first; once there is enough of it, nothing does.
    let mut books = [planned([0, 1, 2]), planned([2, 1, 0])];
    assert_ne!(sizes(&books[0]), sizes(&books[1]));
    for book in &mut books {
        book.regions.give_back(1 << 12, 1 << 12);
        assert_eq!(carry_out(book, &want, &tables), 0);
        assert_eq!(sizes(book), [Some(1024); 3]);
    }
}
