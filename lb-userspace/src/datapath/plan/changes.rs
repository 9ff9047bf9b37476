//! A plan looks at what changed alone; a plan that looks at everything comes to the same steps and the same book.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lb_common::backend::NextHop;
use lb_common::{Mac, Tags};
use proptest::prelude::*;

use super::tests::{backend_addr, key, place, pool_id, vip_addr};
use super::*;
use crate::datapath::memory::Tables;
use crate::datapath::want::{Backend, Lost, Owner, Pool, Target, Way};
use crate::model::l4::{ForwardingMode, Listener};

/// What happens to the wishes, to the network, or to the flows.
#[derive(Debug, Clone)]
enum Step {
    Pool(u8, Option<Pool>),
    Vip(u8, Option<Target>),
    Ranges(u8, Option<u8>),
    /// The first so many of the backends' addresses have another next hop.
    Reroute(u8, u8),
    Peers(u8),
    Adopt,
    Settle(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mode = proptest::sample::select(ForwardingMode::ALL.to_vec());
    let backend = (mode, 0u16..3, any::<bool>(), 0u8..8);
    let backends = proptest::collection::btree_map(0u8..5, backend, 0..5);
    let rules = (any::<bool>(), any::<bool>(), any::<bool>());
    let pool = (backends, rules).prop_map(|(backends, (has_affinity, conservative, reject))| {
        let affinity = has_affinity.then_some(40);
        let mut pool = Pool { affinity, conservative, reject, ..Pool::default() };
        for (number, (mode, weight, draining, lost)) in backends {
            let (addr, to) = (backend_addr(number), backend_addr(number).ip());
            if lost == 0 {
                pool.lost.insert(addr, Lost { weight, draining, mode, to });
            } else {
                pool.backends.insert(addr, Backend { weight, draining, mode, to, way: way(0) });
            }
        }
        pool
    });
    let target = prop_oneof![
        4 => (0u8..3).prop_map(|service| Some(Target::Pool(pool_id(service)))),
        1 => Just(Some(Target::Punt(Listener::Http))),
        1 => Just(None),
    ];
    let step = prop_oneof![
        6 => (0u8..3, proptest::option::weighted(0.9, pool)).prop_map(|(id, pool)| Step::Pool(id, pool)),
        3 => (0u8..4, target).prop_map(|(vip, target)| Step::Vip(vip, target)),
        1 => (0u8..4, proptest::option::of(0u8..3)).prop_map(|(vip, set)| Step::Ranges(vip, set)),
        2 => (0u8..5, 0u8..3).prop_map(|(first, way)| Step::Reroute(first, way)),
        1 => (0u8..3).prop_map(Step::Peers),
        1 => Just(Step::Adopt),
        2 => (0u32..400).prop_map(Step::Settle),
    ];
    proptest::collection::vec(step, 1..24)
}

fn way(number: u8) -> Way {
    Way {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        next_hop: NextHop::new(Mac([2, number, 2, 2, 2, 2]), Mac([4; 6]), 3),
        mtu: 1500,
        tags: Tags::NONE,
    }
}

/// A book, its tables, and the wish in the making.
struct World {
    tables: Tables,
    ranges: BTreeMap<u16, BTreeSet<Prefix>>,
    book: Book,
    pools: BTreeMap<u8, Pool>,
    want: Want,
    now: u32,
}

impl World {
    fn carry_out(&mut self, plan: &Plan) {
        for op in &plan.ops {
            match op {
                Op::Ranges(set, content) => _ = self.ranges.insert(*set, content.clone()),
                Op::NoRanges(set) => _ = self.ranges.remove(set),
                _ => {}
            }
            op.apply(&self.tables, &mut ());
        }
    }

    /// Plans the wish by its changes and as a whole.
    fn plan(&mut self) -> Result<(), TestCaseError> {
        let mut want = self.want.clone();
        self.book.name_adopted(&want);
        self.book.keep_lost(&mut want);
        let mut whole = self.book.clone();
        whole.doubt();

        let plan = self.book.plan(&want, self.now);

        prop_assert_eq!(&plan, &whole.plan(&want, self.now));
        self.carry_out(&plan);
        self.book.look(&self.tables, self.now);
        whole.look(&self.tables, self.now);
        prop_assert!(self.book == whole, "{:#?}\n{whole:#?}", self.book);
        Ok(())
    }

    /// Only VIPs that somebody serves.
    fn wish(&mut self, vips: &BTreeMap<u8, Target>, ranges: &BTreeMap<u8, u8>) {
        let served = |target: &Target| match target {
            Target::Pool(id) => self.want.pools.contains_key(id),
            Target::Punt(_) => true,
        };
        let vips = vips.iter().filter(|(_, target)| served(target));
        let vips: BTreeMap<_, _> = vips.map(|(vip, target)| (place(*vip), target.clone())).collect();
        let of =
            |set: &u8| (0..*set).filter_map(|last| Prefix::new([198, 51, 100, last].into(), 32)).collect();
        let ranges = ranges.iter().map(|(vip, set)| (place(*vip), of(set)));
        self.want.ranges.set(ranges.filter(|(place, _)| vips.contains_key(place)).collect());
        self.want.vips.set(vips);
        let mut addrs: BTreeMap<IpAddr, Owner> =
            self.want.vips.keys().map(|place| (place.addr, Owner::Vip)).collect();
        let backends = self.want.pools.values().flat_map(|pool| pool.backends.values());
        let nat = backends.filter(|backend| backend.mode == ForwardingMode::Nat);
        addrs.extend(nat.map(|backend| (backend.way.source, Owner::Node)));
        self.want.addrs = addrs.into_iter().collect();
    }

    /// Gives every backend in the wish the way that leads to it now.
    fn join(&mut self) {
        for (number, pool) in &self.pools {
            let mut pool = pool.clone();
            for backend in pool.backends.values_mut() {
                if let Some(Ok(way)) = self.want.ways.get(&backend.to) {
                    backend.way = *way;
                }
            }
            self.want.pools.insert(pool_id(*number), pool);
        }
        let gone: Vec<_> = (0..3).filter(|number| !self.pools.contains_key(number)).map(pool_id).collect();
        gone.iter().for_each(|id| self.want.pools.remove(id));
    }

    fn settle(&mut self, units: u32) -> Result<(), TestCaseError> {
        self.now += units;
        let translated = BTreeSet::new();
        let observed =
            Observed { now: self.now, grace: 100, spared: None, translated: Some((self.now, &translated)) };
        let (plan, is_over) = self.book.settle(&self.tables, &observed);
        self.carry_out(&plan);
        if is_over { self.plan() } else { Ok(()) }
    }

    fn reroute(&mut self, first: u8, number: u8) {
        for backend in first..5 {
            self.want.ways.insert(backend_addr(backend).ip(), Ok(way(number)));
        }
        let ways = self.want.ways.clone();
        let moved = self.want.pools.iter().flat_map(|(id, pool)| {
            let ways = &ways;
            pool.backends.iter().filter_map(move |(addr, backend)| {
                let Some(Ok(way)) = ways.get(&backend.to) else { return None };
                Some((id.clone(), *addr, Backend { way: *way, ..backend.clone() }))
            })
        });
        let moved: Vec<_> = moved.collect();
        let plan = self.book.reroute(moved.iter().map(|(id, addr, backend)| (id, *addr, backend)), &ways);
        self.carry_out(&plan);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_plan_of_what_changed_is_a_plan_of_everything(steps in steps()) {
        let tables = Tables::owned();
        tables.store_settings(&lb_common::config::Settings { key: key(), ..Default::default() });
        let (mut vips, mut ranges) = (BTreeMap::new(), BTreeMap::new());
        let mut world = World {
            tables,
            ranges: BTreeMap::new(),
            book: Book::new(key()),
            pools: BTreeMap::new(),
            want: Want::default(),
            now: 1000,
        };
        for step in steps {
            match step {
                Step::Pool(id, Some(pool)) => _ = world.pools.insert(id, pool),
                Step::Pool(id, None) => _ = world.pools.remove(&id),
                Step::Vip(vip, Some(target)) => _ = vips.insert(vip, target),
                Step::Vip(vip, None) => _ = vips.remove(&vip),
                Step::Ranges(vip, Some(set)) => _ = ranges.insert(vip, set),
                Step::Ranges(vip, None) => _ = ranges.remove(&vip),
                Step::Peers(last) => {
                    world.want.peers = (0..last).map(|last| Ipv4Addr::new(10, 9, 0, last).into()).collect();
                }
                // The tables have the way already when it is wished the next time, or another one.
                Step::Reroute(first, number) => {
                    world.reroute(first, number);
                    continue;
                }
                Step::Settle(units) => {
                    world.settle(units)?;
                    continue;
                }
                Step::Adopt => {
                    let Some(ranges) = Some(&world.ranges).filter(|_| !world.pools.is_empty()) else { continue };
                    world.book = Book::adopt(&world.tables, ranges, &world.want, world.now);
                }
            }
            world.join();
            world.wish(&vips, &ranges);
            world.plan()?;
        }
    }
}

/// What a change costs in a large cluster is decided by how much of it is looked at.
#[test]
fn one_pool_of_many_is_all_that_a_change_of_it_looks_at() {
    let mut want = Want::default();
    for number in 0..200u8 {
        let backends = (0..5).map(|last| {
            let addr = backend_addr(last);
            let backend = Backend {
                weight: 1,
                draining: false,
                mode: ForwardingMode::Local,
                to: addr.ip(),
                way: way(0),
            };
            (addr, backend)
        });
        want.addrs.insert(vip_addr(number), Owner::Vip);
        want.vips.insert(place(number), Target::Pool(pool_id(number)));
        want.pools.insert(pool_id(number), Pool { backends: backends.collect(), ..Pool::default() });
    }
    let mut book = Book::default();
    let _ = book.plan(&want, 0);
    want.pools.get_mut(&pool_id(7)).expect("just made").backends.remove(&backend_addr(3));

    let touched = book.touched(&want);

    assert_eq!(touched, Again { pools: [pool_id(7)].into(), vips: false });
}
