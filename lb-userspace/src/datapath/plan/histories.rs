//! Random histories of a Service: backends come, drain, change their weight and go while flows
//! begin, talk, fall silent and end. The promise is checked after every packet.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::backend::{self, NextHop};
use lb_common::steer::{Choice, How, Kind};
use lb_common::{Flow, HashKey, Mac, TCP, Tags, UDP, maps, wire_port};
use proptest::prelude::*;

use super::former::{self, Rewrite};
use crate::datapath::memory::Tables;
use crate::datapath::regions::Regions;
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want, Way};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

const GRACE: u32 = 5;
/// Enough for the table to grow, which it does at the eleventh.
const BACKENDS: u8 = 14;

#[derive(Debug, Clone)]
enum Step {
    /// Backends change all at once.
    Change(Vec<(u8, Wish)>),
    /// A backend is reached in another mode.
    Mode(u8, ForwardingMode),
    /// Every flow is remembered, or only what has to be.
    Conservative(bool),
    /// Nobody takes new flows: all that took some have weight 0.
    Rest,
    /// So many flows begin.
    Begin(u8),
    /// A flow sends a packet.
    Talk(u16),
    /// A flow's SYN comes again, or another one takes its tuple over.
    Again(u16),
    /// A flow ends.
    End(u16),
    /// Time passes; whether slots settle before the packets of each moment, or after.
    Pass(u8, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Active(u16),
    Draining,
    Gone,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wish = prop_oneof![
        4 => (1u16..4).prop_map(Wish::Active),
        1 => Just(Wish::Active(0)),
        3 => Just(Wish::Draining),
        3 => Just(Wish::Gone),
    ];
    let change = proptest::collection::vec((0..BACKENDS, wish), 1..5);
    let modes = [ForwardingMode::L2, ForwardingMode::Ipip, ForwardingMode::Tunnel];
    let step = prop_oneof![
        1 => (0..BACKENDS, prop::sample::select(modes.to_vec())).prop_map(|(n, mode)| Step::Mode(n, mode)),
        4 => change.prop_map(Step::Change),
        1 => any::<bool>().prop_map(Step::Conservative),
        1 => Just(Step::Rest),
        4 => (1u8..20).prop_map(Step::Begin),
        6 => any::<u16>().prop_map(Step::Talk),
        2 => any::<u16>().prop_map(Step::Again),
        2 => any::<u16>().prop_map(Step::End),
        4 => (1u8..10, any::<bool>()).prop_map(|(units, first)| Step::Pass(units, first)),
    ];
    proptest::collection::vec(step, 10..60)
}

/// What may become of a backend that keeps its flows.
fn stays() -> impl Strategy<Value = Wish> {
    prop_oneof![(0u16..4).prop_map(Wish::Active), Just(Wish::Draining)]
}

/// A flow as its client sees it.
#[derive(Debug, Clone)]
struct Client {
    flow: Flow,
    backend: SocketAddr,
    /// What its packets look like to it.
    rewrite: Rewrite,
    last: u32,
    /// Never silent for the grace time; the others speak when they like.
    busy: bool,
}

struct History {
    balancer: Rehearsal,
    protocol: Protocol,
    wishes: BTreeMap<u8, (Wish, u32)>,
    modes: BTreeMap<u8, ForwardingMode>,
    conservative: bool,
    /// Sources keep their backend, too.
    affinity: bool,
    /// Every flow is remembered from the beginning to the end.
    forgets_none: bool,
    /// The flow table has fewer places than there are flows.
    is_crowded: bool,
    clients: Vec<Client>,
    begun: u32,
    now: u32,
    broken: u64,
}

impl History {
    fn new(protocol: Protocol, flow_bits: u8) -> Self {
        let key = HashKey::expand([7; 16]);
        let tables = TABLES.take().unwrap_or_else(Tables::owned);
        let wishes = (0..3).map(|number| (number, (Wish::Active(1), 0))).collect();
        let balancer = Rehearsal::on(tables, key, flow_bits, GRACE as u16);
        let mut history = Self {
            balancer,
            protocol,
            wishes,
            modes: BTreeMap::new(),
            conservative: false,
            affinity: false,
            forgets_none: false,
            is_crowded: flow_bits < 8,
            clients: Vec::new(),
            begun: 0,
            now: 1000,
            broken: 0,
        };
        history.apply();
        history
    }

    /// One whose pool remembers every flow.
    fn forgetting_none(protocol: Protocol, affinity: bool) -> Self {
        // So many places that none has to give way.
        let history = Self::new(protocol, 16);
        let mut history = Self { conservative: !affinity, affinity, forgets_none: true, ..history };
        history.apply();
        history
    }

    fn end(self) {
        TABLES.set(Some(self.balancer.into_tables()));
    }

    fn pool(&self) -> PoolId {
        PoolId {
            service: ObjectName::new("default", "history").into(),
            port: 80,
            protocol: self.protocol,
            family: Family::V4,
        }
    }

    fn apply(&mut self) {
        let vip: IpAddr = Ipv4Addr::new(203, 0, 113, 1).into();
        let mut want = Want::default();
        want.addrs.insert(vip, Owner::Vip);
        let place = Place { addr: vip, port: 80, protocol: self.protocol };
        want.vips.insert(place, Target::Pool(self.pool()));
        let backends = self.wishes.iter().filter_map(|(number, (wish, _))| {
            let (weight, draining) = match wish {
                Wish::Active(weight) => (*weight, false),
                Wish::Draining => (1, true),
                Wish::Gone => return None,
            };
            let mode = self.modes.get(number).copied().unwrap_or(ForwardingMode::L2);
            Some((addr_of(*number), Backend { mode, ..backend(*number, weight, draining) }))
        });
        let affinity = self.affinity.then_some(4 * GRACE);
        let conservative = self.conservative;
        let pool = Pool { backends: backends.collect(), conservative, affinity, ..Pool::default() };
        want.pools.insert(self.pool(), pool);
        self.plan(&want);
    }

    /// What changed is planned; a plan of everything comes to the same.
    fn plan(&mut self, want: &Want) {
        let mut whole = self.balancer.book().clone();
        whole.doubt();
        let _ = whole.plan(want, self.now);
        assert_eq!(self.balancer.apply(want, self.now), vec![]);
        whole.look(self.balancer.tables(), self.now);
        assert!(*self.balancer.book() == whole, "{:#?}\n{whole:#?}", self.balancer.book());
    }

    fn wish(&self, backend: SocketAddr) -> (Wish, u32) {
        let number = self.wishes.iter().find(|(number, _)| addr_of(**number) == backend);
        number.map_or((Wish::Gone, 0), |(_, wish)| *wish)
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Change(changes) => {
                for (number, wish) in changes {
                    self.wishes.insert(*number, (*wish, self.now));
                }
                self.apply();
                // The flows of what is gone are, too.
                let living = |client: &Client| self.wish(client.backend).0 != Wish::Gone;
                let clients = self.clients.clone().into_iter().filter(living).collect();
                self.clients = clients;
            }
            // The mode of a flow that is silent is kept for the grace time only.
            Step::Mode(..) | Step::Conservative(_) if self.forgets_none => {}
            Step::Mode(number, mode) => {
                self.modes.insert(*number, *mode);
                self.apply();
            }
            Step::Conservative(on) => {
                self.conservative = *on;
                self.apply();
            }
            Step::Rest => {
                for (wish, since) in self.wishes.values_mut().filter(|(wish, _)| *wish != Wish::Gone) {
                    if *wish != Wish::Draining {
                        (*wish, *since) = (Wish::Active(0), self.now);
                    }
                }
                self.apply();
            }
            Step::Begin(count) => {
                for _ in 0..*count {
                    self.begun += 1;
                    self.begin(flow(self.begun, self.protocol))?;
                }
            }
            Step::Talk(pick) => {
                if let Some(index) = self.pick(*pick) {
                    self.talk(index)?;
                }
            }
            Step::Again(pick) => {
                if let Some(index) = self.pick(*pick) {
                    let flow = self.clients.swap_remove(index).flow;
                    self.begin(flow)?;
                }
            }
            Step::End(pick) => {
                if let Some(index) = self.pick(*pick) {
                    let ended = self.clients.swap_remove(index);
                    if self.protocol == Protocol::Tcp {
                        self.send(&ended.flow, Kind::Reset)?;
                    }
                }
            }
            Step::Pass(units, settle_first) => {
                for _ in 0..*units {
                    self.now += 1;
                    if *settle_first {
                        self.balancer.settle(self.now);
                    }
                    for index in (0..self.clients.len()).rev() {
                        let Some(client) = self.clients.get(index) else { continue };
                        if client.busy && self.now - client.last >= GRACE {
                            self.talk(index)?;
                        }
                    }
                    if !settle_first {
                        self.balancer.settle(self.now);
                    }
                }
            }
        }
        Ok(())
    }

    fn pick(&self, pick: u16) -> Option<usize> {
        usize::from(pick).checked_rem(self.clients.len())
    }

    fn rewrite(&self, choice: Choice) -> Result<Rewrite, TestCaseError> {
        let line = backend::line(choice.backend);
        let lines = &self.balancer.tables().backends;
        match lb_common::Backend::from_words(&[lines.line(line), lines.line(line + 1)]) {
            Some(line) => Ok(Rewrite::new(former::mode(line.mode), line.source.into())),
            None => Err(TestCaseError::fail("no backend lives there")),
        }
    }

    /// Sends a packet; wherever it goes, that is a backend of the pool that lives.
    fn send(&mut self, flow: &Flow, kind: Kind) -> Result<Option<(Choice, SocketAddr)>, TestCaseError> {
        let Some(choice) = self.balancer.send(flow, kind, self.now) else {
            return Err(TestCaseError::fail("the VIP is gone"));
        };
        if choice.backend.0 == 0 {
            return Ok(None);
        }
        let alive = backend::identity(&self.balancer.tables().backends, choice.backend).is_alive();
        let known = self.balancer.book().backend_of(choice.backend).map(|(_, addr)| addr);
        prop_assert!(alive, "{choice:?} is a forgotten id");
        let Some(addr) = known else {
            return Err(TestCaseError::fail(format!("{choice:?} is an id that nobody has")));
        };
        prop_assert!(self.wish(addr).0 != Wish::Gone, "{addr} left the pool");
        Ok(Some((choice, addr)))
    }

    fn begin(&mut self, flow: Flow) -> Result<(), TestCaseError> {
        let kind = if self.protocol == Protocol::Tcp { Kind::Syn } else { Kind::Datagram };
        let Some((choice, backend)) = self.send(&flow, kind)? else {
            // Nobody takes new flows.
            let takes = |(wish, _): &(Wish, u32)| matches!(wish, Wish::Active(1..));
            prop_assert!(!self.wishes.values().any(takes));
            return Ok(());
        };
        let (wish, since) = self.wish(backend);
        let takes_new = matches!(wish, Wish::Active(1..));
        // Of a tuple that is used again a backend may know the last flow; but not if it drains.
        match self.protocol {
            Protocol::Tcp => prop_assert!(takes_new, "{choice:?}: {backend} drains"),
            // A datagram may belong to a flow that is older than the change, for the grace time, or as long as
            // one of those finds no room to be remembered; and so do all of a tuple that is remembered.
            Protocol::Udp => prop_assert!(
                takes_new
                    || self.now - since <= GRACE + 3
                    || choice.how == How::Remembered
                    || self.is_crowded,
                "{choice:?}: {backend} drains"
            ),
        }
        let rewrite = self.rewrite(choice)?;
        self.clients.push(Client {
            flow,
            backend,
            rewrite,
            last: self.now,
            busy: !self.begun.is_multiple_of(3),
        });
        Ok(())
    }

    fn talk(&mut self, index: usize) -> Result<(), TestCaseError> {
        let Some(Client { flow, backend, rewrite, last, busy: _ }) = self.clients.get(index).cloned() else {
            return Ok(());
        };
        let kind = if self.protocol == Protocol::Tcp { Kind::Segment } else { Kind::Datagram };
        let sent = self.send(&flow, kind)?;
        let now =
            sent.map(|(choice, addr)| Ok::<_, TestCaseError>((addr, self.rewrite(choice)?))).transpose()?;
        if now == Some((backend, rewrite)) {
            if let Some(client) = self.clients.get_mut(index) {
                client.last = self.now;
            }
            return Ok(());
        }
        // By another way to the same backend, once that takes packets as they came no more.
        let follows = self.protocol == Protocol::Udp
            && rewrite == Rewrite::Untouched
            && now.is_some_and(|(addr, _)| addr == backend);
        if !follows && (self.forgets_none || self.now - last <= GRACE) {
            self.broken += 1;
            prop_assert!(
                self.broken <= self.balancer.forgotten(),
                "{flow:?} of {backend}, last seen at {last}, is sent to {sent:?} at {}",
                self.now
            );
        }
        self.clients.swap_remove(index);
        Ok(())
    }

    /// All flows fall silent: every slot settles and gives its memory back.
    fn rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..=GRACE * 2 + 6 {
            self.now += 1;
            self.balancer.settle(self.now);
        }
        let size = self.balancer.book().table_size(&self.pool());
        prop_assert!(size.is_some_and(|(_, contested)| contested == 0), "{size:?}");
        let tables = &self.balancer.book().tables;
        prop_assert!(tables.values().all(|table| table.descriptor().previous().is_none()));
        prop_assert_eq!(self.balancer.book().former(&self.pool()).count(), 0, "former selves are left");
        self.plan(&Want::default());
        prop_assert_eq!(&self.balancer.book().regions, &Regions::new(maps::POOL_SLOTS));
        self.balancer.settle(self.now);
        if !self.conservative && !self.affinity {
            // Whoever is gone is forgotten.
            prop_assert_eq!(self.balancer.remembered(), 0);
        }
        Ok(())
    }
}

thread_local! {
    /// Making these takes longer than a history.
    static TABLES: RefCell<Option<Tables>> = const { RefCell::new(None) };
}

pub(super) fn addr_of(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 8080))
}

pub(super) fn backend(number: u8, weight: u16, draining: bool) -> Backend {
    let way = Way {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        next_hop: NextHop::new(Mac([2; 6]), Mac([4; 6]), 3),
        mtu: 1500,
        tags: Tags::NONE,
    };
    Backend { weight, draining, mode: ForwardingMode::L2, to: addr_of(number).ip(), way }
}

pub(super) fn flow(number: u32, protocol: Protocol) -> Flow {
    Flow {
        src: IpAddr::from(0xc633_0000_u32.wrapping_add(number / 500).to_be_bytes()).into(),
        dst: IpAddr::from([203, 0, 113, 1]).into(),
        ports: Flow::ports(wire_port(40_000 + (number % 500) as u16), wire_port(80)),
        proto: if protocol == Protocol::Tcp { TCP } else { UDP }.into(),
    }
}

fn check(protocol: Protocol, flow_bits: u8, steps: &[Step]) -> Result<History, TestCaseError> {
    follow(History::new(protocol, flow_bits), steps)
}

fn follow(mut history: History, steps: &[Step]) -> Result<History, TestCaseError> {
    for step in steps {
        history.run(step)?;
    }
    Ok(history)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tcp_flow_keeps_its_backend_while_that_lives(steps in steps()) {
        let mut history = check(Protocol::Tcp, 11, &steps)?;

        prop_assert_eq!((history.broken, history.balancer.forgotten()), (0, 0));
        history.rest()?;
        history.end();
    }

    #[test]
    fn a_udp_flow_keeps_its_backend_while_that_lives(steps in steps()) {
        let mut history = check(Protocol::Udp, 11, &steps)?;

        prop_assert_eq!((history.broken, history.balancer.forgotten()), (0, 0));
        history.rest()?;
        history.end();
    }

    /// Eight places for up to hundreds of flows: no more are broken than had to be forgotten.
    #[test]
    fn a_flow_table_that_is_far_too_small_breaks_only_what_it_forgot(
        steps in steps(), udp in any::<bool>()
    ) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let mut history = check(protocol, 3, &steps)?;

        history.rest()?;
        history.end();
    }

    /// Eight places for flows that all speak: whoever is forgotten is taken for older than the change, as it is.
    #[test]
    fn a_udp_flow_that_speaks_keeps_a_backend_that_drains_however_small_the_flow_table_is(
        flows in 1u8..80,
        wishes in proptest::collection::vec((0..BACKENDS, stays()), 1..8),
        times in proptest::collection::vec((1u8..10, any::<bool>()), 1..12),
    ) {
        let mut history = History::new(Protocol::Udp, 3);
        history.run(&Step::Begin(flows))?;
        history.clients.iter_mut().for_each(|client| client.busy = true);
        history.run(&Step::Change(wishes))?;

        for (units, settle_first) in times {
            history.run(&Step::Pass(units, settle_first))?;
        }

        prop_assert_eq!((history.broken, history.clients.len()), (0, flows.into()));
        history.rest()?;
        history.end();
    }

    /// However long it is silent.
    #[test]
    fn a_flow_of_a_pool_that_remembers_every_flow_keeps_its_backend_while_that_lives(
        steps in steps(), udp in any::<bool>(), affinity in any::<bool>()
    ) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let mut history = follow(History::forgetting_none(protocol, affinity), &steps)?;

        prop_assert_eq!((history.broken, history.balancer.forgotten()), (0, 0));
        history.rest()?;
        history.end();
    }
}
