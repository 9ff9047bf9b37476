use lb_common::flows::Entry;
use lb_common::steer::Kind;
use lb_common::{Flow, TCP, wire_port};
use proptest::prelude::*;

use super::*;
use crate::datapath::plan::tests::{
    allowed, backend_addr, key, members, place, pool_id, serve, socket, vip_addr, worlds,
};
use crate::datapath::plan::{Op, Outside, Plan};
use crate::datapath::walk::{self, Balanced, Found, Sources};

/// The sets of ranges beside the tables, as the kernel's map would hold them: without the empty.
#[derive(Default)]
struct Ranges(BTreeMap<u16, BTreeSet<Prefix>>);

impl Outside for Ranges {
    fn wait_for_readers(&mut self) {}

    fn set_ranges(&mut self, set: u16, ranges: &BTreeSet<Prefix>) {
        if !ranges.is_empty() {
            self.0.insert(set, ranges.clone());
        }
    }

    fn clear_ranges(&mut self, set: u16) {
        self.0.remove(&set);
    }

    fn set_peers(&mut self, _: &BTreeSet<IpAddr>) {}

    fn set_names(&mut self, _: &BTreeMap<u64, BackendId>) {}

    fn clear_names(&mut self, _: &BTreeSet<u64>) {}
}

/// Tables, and the clock of their agents.
struct Kernel {
    tables: Tables,
    ranges: Ranges,
}

impl Kernel {
    fn new() -> Self {
        let tables = Tables::owned();
        let settings = config::Settings { key: key(), flow_bits: 10, ..config::Settings::default() };
        tables.store_settings(&settings);
        Self { tables, ranges: Ranges::default() }
    }

    fn apply(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| op.apply(&self.tables, &mut self.ranges));
    }

    fn adopt(&self, want: &Want) -> Book {
        self.tables.purge_flows_of_nobody();
        Book::adopt(&self.tables, &self.ranges.0, want, 0)
    }

    /// Where a flow that began earlier goes now.
    fn end(&self, vip: u8, port: u16, kind: Kind) -> Option<(BackendId, SocketAddr)> {
        match walk::walk(&self.tables, Sources::Any, &flow(vip, port), kind, 0, key()) {
            Found::Balanced(Balanced { choice, .. }) if choice.backend.0 != 0 => {
                Some((choice.backend, socket(&self.tables, choice.backend)))
            }
            _ => None,
        }
    }

    fn ends(&self) -> BTreeMap<(u8, u16), (BackendId, SocketAddr)> {
        flows().filter_map(|(vip, port)| Some(((vip, port), self.end(vip, port, Kind::Segment)?))).collect()
    }
}

fn flows() -> impl Iterator<Item = (u8, u16)> {
    (0..4u8).flat_map(|vip| (0..20u16).map(move |port| (vip, port)))
}

fn flow(vip: u8, port: u16) -> Flow {
    Flow {
        src: IpAddr::from([198, 51, 100, 7]).into(),
        dst: vip_addr(vip).into(),
        ports: Flow::ports(wire_port(40_000 + port), wire_port(80)),
        proto: TCP.into(),
    }
}

/// Worlds some of whose VIPs are restricted and whose pools have rules.
fn richer_worlds() -> impl Strategy<Value = Vec<Want>> {
    (worlds(), any::<u64>()).prop_map(|(mut worlds, seed)| {
        for (number, want) in worlds.iter_mut().enumerate() {
            let bits = seed.rotate_left(number as u32 * 7);
            for (vip, place) in want.vips.keys().copied().collect::<Vec<_>>().into_iter().enumerate() {
                let prefixes =
                    ["198.51.100.0/24", "192.0.2.0/24"].into_iter().take((bits >> vip) as usize & 3);
                if bits >> (8 + vip) & 1 != 0 {
                    let prefixes: BTreeSet<Prefix> =
                        prefixes.map(|text| text.parse().expect("a prefix")).collect();
                    want.ranges.insert(place, prefixes);
                }
            }
            let mut index = 0;
            want.pools.edit(|_, pool| {
                pool.conservative = bits >> (16 + index) & 1 != 0;
                pool.affinity = (bits >> (20 + index) & 1 != 0).then_some(100);
                pool.reject = bits >> (24 + index) & 1 != 0;
                index += 1;
            });
            // A pool without a VIP has no name in the tables, and no flow.
            let served: Vec<Target> = want.vips.values().cloned().collect();
            let is_served = |id: &&PoolId| served.contains(&Target::Pool((*id).clone()));
            want.pools = want
                .pools
                .clone()
                .iter()
                .filter(|(id, _)| is_served(id))
                .map(|(id, pool)| (id.clone(), pool.clone()))
                .collect();
        }
        worlds
    })
}

fn is_balanced_as(before: &Want, after: &Want, vip: u8) -> bool {
    before.vips.get(&place(vip)).is_some_and(|target| after.vips.get(&place(vip)) == Some(target))
}

/// Kind of hash that picks the slot: flows by their source move together when it changes.
fn affinity(want: &Want, vip: u8) -> Option<u32> {
    let Some(Target::Pool(id)) = want.vips.get(&place(vip)) else { return None };
    want.pools.get(id)?.affinity
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_world_that_did_not_change_needs_no_step_after_adoption(worlds in richer_worlds()) {
        let (mut kernel, mut book) = (Kernel::new(), Book::new(key()));
        for want in worlds {
            let plan = book.plan(&want, 0);
            kernel.apply(&plan.ops);

            let mut adopted = kernel.adopt(&want);

            for id in want.pools.keys() {
                prop_assert_eq!(adopted.table_size(id), book.table_size(id), "slots stay contested");
            }
            prop_assert_eq!(&adopted.backends, &book.backends);
            prop_assert_eq!(&adopted.records, &book.records);
            prop_assert_eq!(&adopted.regions, &book.regions);
            prop_assert_eq!(&adopted.lookup, &book.lookup);
            prop_assert_eq!(adopted.plan(&want, 0), Plan::default());
            book = adopted;
        }
    }

    /// Killed after any step of any plan; the next agent finds any world.
    #[test]
    fn flows_of_living_backends_stay_wherever_the_agent_was_killed(
        worlds in richer_worlds(), kills in proptest::collection::vec(any::<prop::sample::Index>(), 6)
    ) {
        let mut kernel = Kernel::new();
        let mut before = Want::default();
        for (after, kill) in worlds.into_iter().zip(kills) {
            let mut book = kernel.adopt(&before);
            let plan = book.plan(&after, 0);
            let until = kill.index(plan.ops.len() + 1);
            kernel.apply(&plan.ops[..until]);
            let ends = kernel.ends();

            // The next one finds the same world, and is not killed.
            let mut book = kernel.adopt(&after);
            let plan = book.plan(&after, 0);
            prop_assert_eq!(&plan.problems, &vec![]);
            for op in &plan.ops {
                op.apply(&kernel.tables, &mut kernel.ranges);
                for (vip, port) in flows() {
                    for kind in [Kind::Syn, Kind::Segment] {
                        let Some((id, addr)) = kernel.end(vip, port, kind) else { continue };
                        let mut may = members(&before, vip);
                        may.extend(members(&after, vip));
                        prop_assert!(may.contains(&Some(addr)), "{kind:?}: {addr} not among {may:?}");
                        prop_assert!(backend::identity(&kernel.tables.backends, id).is_alive());
                    }
                }
            }

            for (vip, port) in flows() {
                let end = kernel.end(vip, port, Kind::Segment);
                let now = end.map(|(_, addr)| addr);
                let may = members(&after, vip);
                prop_assert!(now.is_none() || may.contains(&now), "{now:?} not among {may:?}");
                let Some(then) = ends.get(&(vip, port)).copied() else { continue };
                let same = is_balanced_as(&before, &after, vip) && affinity(&before, vip) == affinity(&after, vip);
                // Of another mode by now, it goes on in the one that its flow began in.
                if same && may.contains(&Some(then.1)) {
                    prop_assert_eq!(end, Some(then), "flow {} of vip {} moved", port, vip);
                }
                let new = kernel.end(vip, port, Kind::Syn).map(|(_, addr)| addr);
                let may = allowed(&after, vip);
                prop_assert!(may.contains(&new) || may.is_empty() && new.is_none(), "a new flow goes to {new:?}");
            }
            prop_assert_eq!(kernel.adopt(&after).plan(&after, 0), Plan::default(), "nothing is left to do");
            before = after;
        }
        let mut book = kernel.adopt(&before);
        kernel.apply(&book.plan(&Want::default(), 0).ops);
        prop_assert_eq!(&book.regions, &Regions::new(maps::POOL_SLOTS), "every region comes back");
        prop_assert_eq!(&book.backends, &BTreeMap::new());
        prop_assert!(kernel.ranges.0.is_empty(), "every set of ranges is cleared");
    }
}

#[test]
fn the_next_backend_of_an_id_has_another_generation_and_none_of_its_flows() {
    let (mut kernel, mut book) = (Kernel::new(), Book::new(key()));
    let mut want = Want::default();
    serve(&mut want, 0, &[1]);
    kernel.apply(&book.plan(&want, 0).ops);
    let id = book.backend_id(&pool_id(0), backend_addr(1)).expect("planned");
    kernel.tables.flows[3].store(Entry::new(77, id, 0).0, std::sync::atomic::Ordering::Relaxed);
    serve(&mut want, 0, &[]);
    let plan = book.plan(&want, 0);
    let forgotten = plan.ops.iter().position(|op| *op == Op::Forget(id)).expect("it is forgotten");
    kernel.apply(&plan.ops[..=forgotten]);

    let mut book = kernel.adopt(&want);
    // The id comes back last of all.
    while book.backend_ids.take().is_some() {}
    book.backend_ids.give_back(id.0);
    serve(&mut want, 0, &[2]);
    kernel.apply(&book.plan(&want, 0).ops);

    assert_eq!(book.backend_id(&pool_id(0), backend_addr(2)), Some(id));
    assert_eq!(backend::identity(&kernel.tables.backends, id).generation(), 2);
    assert!(kernel.tables.flow_words().all(|word| word == 0));
}

#[test]
fn tables_of_noise_are_adopted_without_panic() {
    let mut kernel = Kernel::new();
    let Tables {
        config: settings,
        addrs,
        vips,
        records,
        pool,
        backends,
        flows,
        filter,
        interfaces: _,
        leases: _,
    } = &kernel.tables;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for cell in [settings, addrs, vips, records, pool, backends, flows, filter]
        .into_iter()
        .flat_map(|cells| cells.iter())
    {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        cell.store(if state & 8 == 0 { state } else { 0 }, std::sync::atomic::Ordering::Relaxed);
    }
    let mut want = Want::default();
    serve(&mut want, 0, &[1, 2]);

    let plan = kernel.adopt(&want).plan(&want, 0);

    kernel.apply(&plan.ops);
}

#[test]
fn what_an_agent_left_goes_on_until_the_wish_for_it_is_known_and_then_under_its_name() {
    let (mut kernel, mut book) = (Kernel::new(), Book::new(key()));
    let mut whole = Want::default();
    serve(&mut whole, 0, &[1, 2, 3]);
    serve(&mut whole, 1, &[4, 5]);
    let ranges: BTreeSet<Prefix> = ["198.51.100.0/24".parse().expect("a prefix")].into();
    whole.ranges.insert(place(0), ranges);
    kernel.apply(&book.plan(&whole, 0).ops);
    let ends = kernel.ends();

    // The first Service cannot be read, nor can one backend of the second.
    let mut read = Want::default();
    serve(&mut read, 1, &[4]);
    let held = kernel.adopt(&read).left_over(&read);
    let (adopted, pool) = held.pools.iter().next().expect("the first pool is held");
    assert_eq!((pool.vips.len(), pool.backends.len(), pool.source_ranges.len()), (1, 3, 1));
    let of_second = held.pools.get(&pool_id(1)).expect("its backend is held");
    assert_eq!((of_second.vips.len(), of_second.backends.len()), (0, 1));

    // As the wish with it becomes.
    let mut both = whole.clone();
    let first = whole.pools.share(&pool_id(0)).expect("served");
    both.pools.remove(&pool_id(0));
    both.pools.insert(adopted.clone(), std::sync::Arc::clone(first));
    both.vips.insert(place(0), Target::Pool(adopted.clone()));
    let mut book = kernel.adopt(&both);
    assert_eq!(book.plan(&both, 0), Plan::default(), "nothing changes");

    book.name_adopted(&whole);
    assert_eq!(book.plan(&whole, 0), Plan::default(), "nor when the name is known");
    assert_eq!(kernel.ends(), ends);
}
