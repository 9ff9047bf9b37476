use std::net::Ipv4Addr;

use lb_common::backend::{self, NextHop};
use lb_common::{Flow, HashKey, Mac};
use proptest::prelude::*;

use super::*;
use crate::datapath::walk::{self, Found};
use crate::datapath::want::Way;
use crate::model::ObjectName;
use crate::model::l4::Family;

/// Small worlds over the same few services, VIPs and backends, so that steps collide.
fn worlds() -> impl Strategy<Value = Vec<Want>> {
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
                        .map(|(addr, weight)| (backend_addr(addr), backend(weight)))
                        .collect();
                    want.pools.insert(id, Pool { mode, backends });
                }
                want
            })
            .collect()
    })
}

fn pool_id(service: u8) -> PoolId {
    PoolId {
        service: ObjectName::new("default", format!("service-{service}")),
        port: 80,
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

fn vip_addr(vip: u8) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, vip).into()
}

fn place(vip: u8) -> Place {
    Place { addr: vip_addr(vip), port: 80, protocol: Protocol::Tcp }
}

fn backend_addr(backend: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, backend], 8080))
}

fn backend(weight: u16) -> Backend {
    let way = Way {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        next_hop: NextHop::new(Mac([2; 6]), Mac([4; 6]), 3),
        mtu: 1500,
    };
    Backend { weight, way }
}

/// Where flows to a VIP may end in one world.
fn allowed(want: &Want, vip: u8) -> Vec<Option<SocketAddr>> {
    let Some(Target::Pool(id)) = want.vips.get(&place(vip)) else { return vec![] };
    let Some(pool) = want.pools.get(id) else { return vec![] };
    let some: Vec<_> =
        pool.backends.iter().filter(|(_, backend)| backend.weight > 0).map(|(addr, _)| Some(*addr)).collect();
    if some.is_empty() { vec![None] } else { some }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn after_every_prefix_a_flow_reaches_a_backend_of_the_old_or_the_new_pool(worlds in worlds()) {
        let tables = Tables::owned();
        let mut book = Book::default();
        let mut before = Want::default();
        for after in worlds {
            let plan = book.plan(&after);
            prop_assert_eq!(&plan.problems, &vec![]);
            for op in &plan.ops {
                op.apply(&tables, &mut || {});
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
                        match walk::walk(&tables, &flow, HashKey::default()) {
                            Found::Balanced { backend: Some(id), .. } => {
                                let addr = SocketAddr::new(
                                    backend::addr(&tables.backends, id).into(),
                                    backend::identity(&tables.backends, id).wire_port().swap_bytes(),
                                );
                                prop_assert!(may.contains(&Some(addr)), "{addr} not among {may:?}");
                                prop_assert!(backend::identity(&tables.backends, id).generation() != 0);
                            }
                            Found::Balanced { backend: None, .. } => prop_assert!(may.contains(&None)),
                            Found::NotOurs | Found::NoVip { .. } => {
                                prop_assert!(allowed(&before, vip).is_empty() || allowed(&after, vip).is_empty());
                            }
                            Found::Punted { .. } => prop_assert!(false, "nothing is punted"),
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
            let _ = book.plan(&want);

            prop_assert_eq!(book.plan(&want), Plan::default());
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
        let backends = (0..20).map(|index| (backend_addr(index), backend(1))).collect();
        want.pools.insert(id, Pool { mode: ForwardingMode::Nat, backends });

        let plan = book.plan(&want);
        assert_eq!(plan.problems, vec![], "round {round}");
        let plan = book.plan(&Want::default());
        assert_eq!(plan.problems, vec![], "round {round}");
    }
    assert_eq!(book.regions, Regions::new(maps::POOL_SLOTS));
}
