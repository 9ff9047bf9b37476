//! Which source port a translated flow gets: the first that is free of those that its hash names, else
//! that of the flow which gives way most willingly ([`crate::nat::Reverse::gives_way`]).
//!
//! Where no entry is free to note a port, the flows that began longest ago are looked at, a few at a time ([`ROOM_PROBES`]):
//! the first that gives way leaves its entry to the new one.
//!
//! Two CPUs may claim one port at once. Who inserts its entry first has it; who takes a port from a flow
//! that is over may take it from one that got it in the same moment. That one is told by its
//! own entry, which the port's no longer names, and begins anew.

use crate::{Verdict, wire_port};

/// Ports tried for a new flow. With nine tenths of the range taken, one flow in 800 finds none free.
pub const PROBES: u16 = 64;

/// Flows that are looked at for the entry of a new one.
pub const ROOM_PROBES: u32 = 16;
/// Flows whose beginning is remembered in order: as many as have entries.
pub const BEGUN: u64 = crate::maps::NAT_FLOWS as u64;

/// Rings of flows in this order: those that nobody has asked to make room yet, then those that were asked and stayed.
pub const RINGS: u32 = 2;
/// Words of a ring: [`BEGUN`] hashes, then its two numbers.
pub const RING: u32 = BEGUN as u32 + 2;
/// Which word of a ring says how many entered it.
pub const COUNT: u32 = BEGUN as u32;
/// Which word says how many were looked at.
pub const LOOKED_AT: u32 = COUNT + 1;

/// The beginnings that are remembered, by two numbers that only grow: how many there were, and how many were looked at.
/// Returns the number of the next to look at, if there is one.
#[inline(always)]
pub const fn oldest_begun(begun: u64, looked_at: u64) -> Option<u64> {
    // Where nobody looked for long, the oldest were written over; who looked at the same moment as others may be ahead.
    let waiting = begun.wrapping_sub(looked_at);
    match waiting {
        0 => None,
        1..=BEGUN => Some(looked_at),
        _ if waiting >> 63 != 0 => None,
        _ => Some(begun - BEGUN),
    }
}

/// The entries of flows that have a port, to one that wants one. Ports in wire order.
pub trait Claims {
    /// Claims this port, if nobody has it.
    fn try_claim(&self, port: u16) -> Tried;
    /// Claims it from whoever has it and gives way.
    fn take(&self, port: u16) -> Tried;
    /// How willingly whoever has this port gives way; 0: nobody does.
    fn willing(&self, port: u16) -> u32;
    /// Ends one of the flows that began longest ago, if it gives its entry to another ([`crate::nat::Reverse::gives_room`]).
    fn make_room(&self) -> bool;
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// The port is the flow's.
    Claimed,
    /// A flow has it that gives way so willingly; 0: not at all.
    Held(u32),
    /// No entry is free to note it.
    Full,
    /// Another CPU claimed a port for the same flow at this moment: what is sent again finds that.
    Lost,
}

impl Tried {
    /// In one word, as a function returns it.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Held(willing) => willing as u64,
            Self::Claimed => 1 << 32,
            Self::Full => 2 << 32,
            Self::Lost => 3 << 32,
        }
    }

    /// [`Tried::pack`] undone.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        match word >> 32 {
            0 => Self::Held(word as u32),
            1 => Self::Claimed,
            2 => Self::Full,
            _ => Self::Lost,
        }
    }
}

/// Where a flow looks for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Hash of the flow.
    pub hash: u64,
    /// First port of the range.
    pub first: u16,
    /// How many ports that has, at least one.
    pub count: u16,
    /// The client's own port in wire order, to be tried before; 0: none.
    pub own: u16,
}

impl Search {
    #[inline(always)]
    const fn port(&self, probe: u16) -> u16 {
        if self.own != 0 && probe == 0 {
            return self.own;
        }
        // An odd step spreads the probes of flows that start at one port.
        let (start, step) = ((self.hash >> 32) as u32, (self.hash >> 16) as u32 | 1);
        let offset = start.wrapping_add(step.wrapping_mul(probe as u32)) % self.count as u32;
        wire_port(self.first.wrapping_add(offset as u16))
    }
}

/// Claims a port for a flow; or says why it gets none.
#[inline(always)]
pub fn claim(claims: &impl Claims, search: &Search) -> Result<u16, Verdict> {
    let (mut most, mut willing, mut full) = (0, 0, false);
    for probe in 0..PROBES {
        let port = search.port(probe);
        // An attempt costs much where there is no room: one is enough.
        let tried = if full { Tried::Held(claims.willing(port)) } else { claims.try_claim(port) };
        match tried {
            Tried::Claimed => return Ok(port),
            Tried::Held(how) if how > most => (most, willing) = (how, port),
            Tried::Held(_) => {}
            Tried::Full if claims.make_room() && matches!(claims.try_claim(port), Tried::Claimed) => {
                return Ok(port);
            }
            Tried::Full => full = true,
            Tried::Lost => return Err(Verdict::NatTableFull),
        }
    }
    if most > 0 && matches!(claims.take(willing), Tried::Claimed) {
        return Ok(willing);
    }
    Err(if full { Verdict::NatTableFull } else { Verdict::NatPortsExhausted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::{Forward, Reverse, SILENCE, Timeouts, state};
    use crate::steer::Kind;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet};
    use std::vec::Vec;

    /// Flows by a number; the entries of those that have a port towards the one backend there is.
    #[derive(Default)]
    struct Table {
        forward: BTreeMap<u64, Forward>,
        reverse: BTreeMap<u16, Reverse>,
    }

    struct Claiming<'a> {
        table: &'a RefCell<Table>,
        flow: u64,
        now: u32,
        room: usize,
    }

    impl Claiming<'_> {
        fn note(&self, port: u16) -> Tried {
            let mut table = self.table.borrow_mut();
            if table.reverse.len() >= self.room {
                return Tried::Full;
            }
            let mut forward = Forward::from_words(&[0; 8]);
            (forward.snat_port, forward.reverse_key) = (port, port.into());
            (forward.seen, forward.state) = (self.now, state::SEEN | state::BEGUN);
            let mut reverse = Reverse::from_words(&[0; 15]);
            (reverse.forward_key, reverse.seen) = (self.flow, self.now);
            reverse.flow.proto = if self.flow.is_multiple_of(2) { crate::TCP } else { crate::UDP }.into();
            table.forward.insert(self.flow, forward);
            table.reverse.insert(port, reverse);
            Tried::Claimed
        }

        fn gives_way(&self, port: u16) -> Option<u32> {
            let table = self.table.borrow();
            let reverse = table.reverse.get(&port)?;
            Some(reverse.gives_way(table.forward.get(&reverse.forward_key), self.now))
        }
    }

    impl Claims for Claiming<'_> {
        fn try_claim(&self, port: u16) -> Tried {
            self.gives_way(port).map_or_else(|| self.note(port), Tried::Held)
        }

        fn willing(&self, port: u16) -> u32 {
            self.gives_way(port).unwrap_or(0)
        }

        fn make_room(&self) -> bool {
            false
        }

        fn take(&self, port: u16) -> Tried {
            if self.gives_way(port).unwrap_or(0) == 0 {
                return Tried::Held(0);
            }
            let over = self.table.borrow_mut().reverse.remove(&port).map(|reverse| reverse.forward_key);
            over.map(|flow| self.table.borrow_mut().forward.remove(&flow));
            self.note(port)
        }
    }

    /// What happens to one of a few flows.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The last: which number it acknowledges.
        Client(u64, u16, Kind, Option<u32>),
        Backend(u64, u16),
        Pass(u32),
        Sweep,
    }

    /// What each backend's answers ask for.
    const OFFERED: u32 = 7_000_000;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bits = prop_oneof![4 => Just(0), 2 => Just(state::FIN), 1 => Just(state::RST)];
        let kind = prop::sample::select(&[Kind::Syn, Kind::Segment, Kind::Datagram][..]);
        let number = prop::sample::select(&[None, Some(OFFERED), Some(OFFERED), Some(!OFFERED)][..]);
        let step = prop_oneof![
            6 => (0u64..60, bits.clone(), kind, number)
                .prop_map(|(flow, bits, kind, number)| Step::Client(flow, bits, kind, number)),
            4 => (0u64..60, bits).prop_map(|(flow, bits)| Step::Backend(flow, bits)),
            1 => (0u32..200).prop_map(Step::Pass),
            1 => Just(Step::Sweep),
        ];
        proptest::collection::vec(step, 1..400)
    }

    fn hash(flow: u64) -> u64 {
        (flow + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A range of `count` ports, entries for `room` flows.
    fn follow(steps: &[Step], count: u16, room: usize) -> Result<(), TestCaseError> {
        let (table, mut now) = (RefCell::new(Table::default()), 1_000);
        for step in steps {
            // Open TCP flows, and those seen so lately that nobody would believe their client that they are over.
            let held: BTreeSet<(u64, u16)> = {
                let table = table.borrow();
                let stays = |(flow, forward): (&u64, &Forward)| {
                    let reverse = table.reverse.get(&forward.snat_port)?;
                    let open = forward.state & state::BEGUN == 0 && reverse.state & state::SEEN != 0;
                    let reset = reverse.state & state::RST != 0;
                    let closed = forward.state & reverse.state & state::FIN != 0;
                    let ended = state::is_closed(forward.state, reverse.state);
                    let late = now - forward.seen.max(reverse.seen) > SILENCE;
                    let idle = flow % 2 == 1 && late;
                    let asked = flow % 2 == 1
                        && forward.state & state::BEGUN != 0
                        && reverse.state & state::SEEN == 0;
                    let closing = reverse.state & state::FIN != 0 && late;
                    let gives_way = !open && !asked || reset || closed || idle || closing || ended && late;
                    (!gives_way).then_some((*flow, forward.snat_port))
                };
                table.forward.iter().filter_map(stays).collect()
            };
            match *step {
                Step::Pass(units) => now += units,
                Step::Sweep => {
                    let mut table = table.borrow_mut();
                    let Table { forward, reverse } = &mut *table;
                    reverse.retain(|_, reverse| {
                        let flow = reverse.forward_key;
                        let over = Timeouts::default().expired(now, forward.get(&flow), reverse);
                        if over {
                            forward.remove(&flow);
                        }
                        !over
                    });
                }
                Step::Client(flow, bits, kind, number) => {
                    let known = table.borrow().forward.contains_key(&flow);
                    if !known {
                        let claiming = Claiming { table: &table, flow, now, room };
                        let search = Search { hash: hash(flow), first: 61_000, count, own: 0 };
                        let got = claim(&claiming, &search);
                        prop_assert_eq!(got.is_ok(), table.borrow().forward.contains_key(&flow));
                    } else {
                        let mut table = table.borrow_mut();
                        let Table { forward, reverse } = &mut *table;
                        let forward = forward.get_mut(&flow).expect("it is known");
                        if forward.goes_on(&reverse[&forward.snat_port], kind, number, now) {
                            forward.state &= !state::BEGUN;
                        }
                        (forward.state, forward.seen) = (forward.state | bits | state::SEEN, now);
                    }
                    for (flow, port) in held {
                        let held = table.borrow().forward.get(&flow).map(|forward| forward.snat_port);
                        prop_assert_eq!(held, Some(port), "flow {} keeps its port", flow);
                    }
                }
                Step::Backend(flow, bits) => {
                    let mut table = table.borrow_mut();
                    let port = table.forward.get(&flow).map(|forward| forward.snat_port);
                    if let Some(reverse) = port.and_then(|port| table.reverse.get_mut(&port)) {
                        (reverse.state, reverse.seen) = (reverse.state | bits | state::SEEN, now);
                        reverse.offer(OFFERED, false);
                    }
                }
            }
            let table = table.borrow();
            let ports: BTreeSet<u16> = table.forward.values().map(|forward| forward.snat_port).collect();
            prop_assert_eq!(ports.len(), table.forward.len(), "two flows share a port");
            prop_assert_eq!(ports, table.reverse.keys().copied().collect::<BTreeSet<_>>());
            for (port, reverse) in &table.reverse {
                let forward = table.forward.get(&reverse.forward_key);
                prop_assert_eq!(forward.map(|forward| forward.snat_port), Some(*port));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_two_flows_share_a_port_and_none_that_is_in_use_loses_it(
            steps in steps(), count in 1u16..20, room in 4usize..40
        ) {
            follow(&steps, count, room)?;
        }
    }

    /// A table without room, and what is asked of it.
    #[derive(Default)]
    struct Full {
        makes_room: bool,
        attempts: Cell<u32>,
        made: Cell<bool>,
    }

    impl Claims for Full {
        fn try_claim(&self, _: u16) -> Tried {
            self.attempts.set(self.attempts.get() + 1);
            if self.made.get() { Tried::Claimed } else { Tried::Full }
        }

        fn take(&self, _: u16) -> Tried {
            unreachable!("nobody gives way")
        }

        fn willing(&self, _: u16) -> u32 {
            0
        }

        fn make_room(&self) -> bool {
            self.made.set(self.makes_room);
            self.makes_room
        }
    }

    #[test]
    fn a_full_table_is_asked_once_and_again_when_it_made_room() {
        let search = Search { hash: hash(1), first: 61_000, count: 4_000, own: 0 };
        let full = Full::default();
        assert_eq!(claim(&full, &search), Err(Verdict::NatTableFull));
        assert_eq!(full.attempts.get(), 1);

        let roomy = Full { makes_room: true, ..Full::default() };
        assert_eq!(claim(&roomy, &search), Ok(search.port(0)));
        assert_eq!(roomy.attempts.get(), 2);
    }

    #[test]
    fn flows_are_looked_at_in_the_order_in_which_they_began_as_far_as_that_is_remembered() {
        assert_eq!(oldest_begun(0, 0), None);
        assert_eq!(oldest_begun(3, 0), Some(0));
        assert_eq!(oldest_begun(3, 2), Some(2));
        assert_eq!(oldest_begun(3, 3), None);
        assert_eq!(oldest_begun(BEGUN, 0), Some(0));
        assert_eq!(oldest_begun(BEGUN + 7, 5), Some(7), "the first were written over");
        assert_eq!(oldest_begun(3, 4), None, "two CPUs looked at once");
    }

    #[test]
    fn what_a_claim_came_to_fits_a_word() {
        for tried in [Tried::Claimed, Tried::Held(0), Tried::Held(u32::MAX), Tried::Full, Tried::Lost] {
            assert_eq!(Tried::unpack(tried.pack()), tried);
        }
    }

    #[test]
    fn a_flow_gets_a_port_as_long_as_the_one_before_is_over_or_no_more_than_begun() {
        let table = RefCell::new(Table::default());
        let claim = |flow, now| {
            let claiming = Claiming { table: &table, flow, now, room: 9 };
            claim(&claiming, &Search { hash: hash(flow), first: 61_000, count: 1, own: 0 })
        };
        let open = |flow| {
            let mut table = table.borrow_mut();
            table.forward.get_mut(&flow).expect("it has one").state = state::SEEN;
            table.reverse.values_mut().for_each(|reverse| reverse.state = state::SEEN);
        };
        let port = wire_port(61_000);

        assert_eq!(claim(2, 100), Ok(port));
        assert_eq!(claim(4, 100), Ok(port), "which is no more than begun");
        open(4);
        assert_eq!(claim(6, 9_000), Err(Verdict::NatPortsExhausted));
        table.borrow_mut().forward.get_mut(&4).expect("it has one").state |= state::RST;
        assert_eq!(claim(6, 100 + SILENCE), Err(Verdict::NatPortsExhausted));
        assert_eq!(claim(6, 101 + SILENCE), Ok(port));
    }
}
