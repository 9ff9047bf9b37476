use std::net::Ipv4Addr;

use lb_common::Record;
use proptest::prelude::*;

use super::*;
use crate::model::ObjectName;
use crate::model::l4::{Family, Protocol};

const TAG: u16 = 7;
const BACKENDS: u16 = 4;

/// A pool with one VIP or two, as packets see it, and what is true of it.
struct Pool {
    tally: Tally,
    tables: Tables,
    /// By the number of their address.
    vips: BTreeMap<u8, (u16, Rules)>,
    /// That of the first one.
    first: u8,
    truth: BTreeMap<u8, u64>,
    backends: BTreeMap<BackendId, u64>,
    /// Ids that were forgotten and not purged.
    forgotten: BTreeSet<BackendId>,
}

fn vip(number: u8) -> (Place, PoolId) {
    let addr = Ipv4Addr::new(203, 0, 113, number).into();
    let service = ObjectName::new("default", "web".to_owned()).into();
    let pool = PoolId { service, port: 80, protocol: Protocol::Tcp, family: Family::V4 };
    (Place { addr, port: 80, protocol: Protocol::Tcp }, pool)
}

fn packets(packets: u64) -> Totals {
    Totals { packets, bytes: 100 * packets, flows: packets / 2 }
}

impl Pool {
    fn new() -> Self {
        let mut pool = Self {
            tally: Tally::new(Counters::owned()),
            tables: Tables::owned(),
            vips: BTreeMap::new(),
            first: 0,
            truth: BTreeMap::new(),
            backends: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        };
        pool.share(1, false);
        pool.join();
        pool
    }

    fn carry_out(&mut self, op: &Op) {
        self.tally.precede(op, &self.tables);
        op.apply(&self.tables, &mut ());
    }

    /// So many VIPs have the pool from here on. `leaves`: with that a backend goes.
    fn share(&mut self, vips: u8, leaves: bool) {
        let numbers = self.first..self.first + vips;
        let rules = Rules::new(if vips > 1 { Rules::COUNTED } else { 0 }, TAG, 0);
        let used: BTreeSet<u16> = self.vips.values().map(|(index, _)| *index).collect();
        let mut free = (1..).filter(|index| !used.contains(index));
        let mut now = BTreeMap::new();
        for number in numbers.clone() {
            let same = self.vips.get(&number).filter(|(_, old)| *old == rules);
            let record = same.copied().unwrap_or_else(|| {
                let index = free.next().expect("one is free");
                let record = Record { rules, ..Record::default() };
                self.tally.precede(&Op::Record(index, record.words()), &self.tables);
                (index, rules)
            });
            now.insert(number, record);
        }
        if leaves {
            self.leave();
        }
        self.vips = now;
        self.truth.retain(|number, _| numbers.contains(number));
        self.tally.follow(named(&self.vips).iter().map(|((place, pool), record)| ((place, pool), *record)));
    }

    fn join(&mut self) {
        let taken = |id: &BackendId| self.backends.contains_key(id) || self.forgotten.contains(id);
        let Some(id) = (1..=BACKENDS).map(BackendId).find(|id| !taken(id)) else { return };
        let mut words = [[0; 8]; 2];
        // Of generation 1: it lives.
        (words[0][6], words[0][7]) = (1 << 32, TAG.into());
        self.carry_out(&Op::Backend(id, words));
        self.backends.insert(id, 0);
    }

    fn leave(&mut self) {
        let Some((id, _)) = self.backends.pop_first() else { return };
        self.carry_out(&Op::Forget(id));
        self.forgotten.insert(id);
    }

    /// A packet that was on its way when its backend left.
    fn arrive(&mut self) {
        let Some(id) = self.forgotten.first().copied() else { return };
        self.count(id, self.first, 2);
    }

    fn send(&mut self, number: u8, sent: u64) {
        let Some(id) = self.backends.keys().nth(usize::from(number) % self.backends.len().max(1)).copied()
        else {
            return;
        };
        self.count(id, self.first + number % self.vips.len() as u8, sent);
        *self.backends.entry(id).or_default() += sent;
    }

    fn count(&mut self, id: BackendId, number: u8, sent: u64) {
        self.tally.counters.count(Counted::Backend(id), packets(sent));
        let (index, rules) = self.vips[&number];
        if is_counted(rules) {
            self.tally.counters.count(Counted::Vip(index), packets(sent));
        }
        *self.truth.entry(number).or_default() += sent;
    }

    fn purge(&mut self) {
        let gone = std::mem::take(&mut self.forgotten);
        self.tally.precede(&Op::Purge(gone), &self.tables);
    }

    /// Another agent goes on, which knows of nothing but the tables and the counters.
    fn restart(&mut self) {
        self.forgotten.clear();
        let Self { tally, tables, vips, .. } = self;
        let counters = std::mem::replace(&mut tally.counters, Counters::mapped(Vec::new(), 0));
        *tally = Tally::new(counters);
        tally.adopt(tables, named(vips).iter().map(|((place, pool), record)| ((place, pool), *record)));
    }

    fn counted(&self) -> (Vec<Totals>, Vec<Totals>) {
        let vips = self.vips.values().map(|(index, rules)| self.tally.vip(*index, *rules)).collect();
        (vips, self.backends.keys().map(|id| self.tally.backend(*id)).collect())
    }

    fn truth(&self) -> (Vec<Totals>, Vec<Totals>) {
        let vips = self.vips.keys().map(|number| packets(self.truth.get(number).copied().unwrap_or(0)));
        (vips.collect(), self.backends.values().map(|sent| packets(*sent)).collect())
    }
}

fn named(vips: &BTreeMap<u8, (u16, Rules)>) -> BTreeMap<(Place, PoolId), (u16, Rules)> {
    vips.iter().map(|(number, record)| (vip(*number), *record)).collect()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Send(u8, u64),
    Join,
    Leave,
    Arrive,
    Purge,
    Share {
        vips: u8,
        leaves: bool,
    },
    /// To other addresses.
    Move {
        leaves: bool,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..8u8, 1..50u64).prop_map(|(number, sent)| Step::Send(number, 2 * sent)),
        2 => Just(Step::Join),
        2 => Just(Step::Leave),
        1 => Just(Step::Arrive),
        2 => Just(Step::Purge),
        1 => (1..3u8, any::<bool>()).prop_map(|(vips, leaves)| Step::Share { vips, leaves }),
        1 => any::<bool>().prop_map(|leaves| Step::Move { leaves }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vips_and_backends_count_what_they_got_whoever_had_their_places(steps in steps()) {
        let mut pool = Pool::new();
        for step in steps {
            match step {
                Step::Send(number, sent) => pool.send(number, sent),
                Step::Join => pool.join(),
                Step::Leave => pool.leave(),
                Step::Arrive => {
                    pool.arrive();
                    pool.purge();
                }
                Step::Purge => pool.purge(),
                Step::Share { vips, leaves } => pool.share(vips, leaves),
                Step::Move { leaves } => {
                    pool.first += 2;
                    pool.share(pool.vips.len() as u8, leaves);
                }
                Step::Restart => pool.restart(),
            }

            prop_assert_eq!(pool.counted(), pool.truth(), "after {:?}", step);
        }
    }
}

#[test]
fn a_vip_keeps_what_a_backend_got_that_left_and_the_next_one_begins_at_nothing() {
    let mut pool = Pool::new();
    pool.join();
    pool.send(0, 50);
    pool.send(1, 50);

    pool.leave();
    pool.restart();
    assert_eq!(pool.counted(), (vec![packets(100)], vec![packets(50)]));

    pool.join();
    pool.restart();
    assert_eq!(pool.counted(), (vec![packets(100)], vec![packets(0), packets(50)]));
}
