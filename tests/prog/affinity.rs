//! Flows of one source go to one backend (ClientIP affinity): whatever their ports, for as long as the source comes
//! back within the timeout and the backend takes new flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use lb_tests::packet::{ACK, OURS, Packet, SYN, tcp, udp};
use lb_tests::world::{CONFIG, LOOPBACK, World, backend, can_run_programs, pool_id};
use penstock::datapath::engine::{Config, Engine, now};
use penstock::datapath::want::Backend;
use penstock::model::l4::{ForwardingMode, Protocol};

/// In units of the clock, as all times here.
const TIMEOUT: u32 = 1_000;
const GRACE: u16 = 5;
const SOURCES: u8 = 40;
/// Each with TCP and UDP: one that is steered packet by packet, and one that translates.
const VIPS: [(&str, ForwardingMode); 4] = [
    ("203.0.113.9:80", ForwardingMode::L2),
    ("203.0.113.9:81", ForwardingMode::Nat),
    ("[2001:db8:1::9]:80", ForwardingMode::L2),
    ("[2001:db8:1::9]:81", ForwardingMode::Nat),
];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Services with affinity and their balancer.
struct Bound {
    world: World,
    engine: Engine,
    /// Of the next flow, so that none is there twice.
    port: u16,
}

/// A source of a Service.
type Source = (&'static str, Protocol, u8);

impl Bound {
    fn new() -> Self {
        let mut world = World::new();
        for (vip, mode) in VIPS {
            for protocol in PROTOCOLS {
                world = world.service(protocol, vip, mode, &[]);
                let id = pool_id(vip.parse().expect("an address"), protocol);
                world.want.pools.get_mut(&id).expect("just made").affinity = Some(TIMEOUT);
            }
        }
        let mut bound = Self::of(world);
        bound.grow(1..=4);
        bound
    }

    /// A balancer that remembers nothing.
    fn of(world: World) -> Self {
        let engine = Engine::load(Config { grace: GRACE, ..CONFIG }).expect("the program loads");
        engine.set_interface(LOOPBACK, OURS);
        let mut bound = Self { world, engine, port: 1_024 };
        bound.apply();
        bound
    }

    fn apply(&mut self) {
        assert_eq!(self.engine.apply(self.world.want.clone()), vec![]);
    }

    /// Changes the backends of all.
    fn change(&mut self, how: impl Fn(&mut BTreeMap<SocketAddr, Backend>, &str, ForwardingMode)) {
        for (vip, mode) in VIPS {
            for protocol in PROTOCOLS {
                how(self.world.backends_mut(vip, protocol), vip, mode);
            }
        }
        self.apply();
    }

    /// Backends of these numbers come.
    fn grow(&mut self, numbers: std::ops::RangeInclusive<u8>) {
        self.change(|backends, vip, mode| {
            let new = numbers.clone().map(|last| addr(vip, last));
            backends.extend(new.map(|addr| (addr, Backend { mode, ..backend(addr.ip()) })));
        });
    }

    /// Who gets a packet of the flow; with its flags, where it is TCP.
    fn sent(&self, (vip, protocol, number): Source, port: u16, flags: u8) -> u8 {
        let src = if vip.starts_with('[') {
            format!("[2001:db8:2::{number:x}]:{port}")
        } else {
            format!("198.51.100.{number}:{port}")
        };
        let frame = match protocol {
            Protocol::Tcp => Packet { flags, ..tcp(&src, vip) }.bytes(),
            Protocol::Udp => udp(&src, vip).bytes(),
        };
        let run = self.engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
        assert_eq!(run.action, 3, "{src} > {vip}");
        run.packet[5]
    }

    /// Who gets a new flow of each source.
    fn all(&mut self) -> BTreeMap<Source, u8> {
        self.port += 1;
        sources().map(|source| (source, self.sent(source, self.port, SYN))).collect()
    }

    /// Lets time pass for what is remembered: the program's own clock cannot be set.
    fn age(&self, units: u64) {
        for flow in self.engine.tables.flows.iter() {
            let word = flow.load(Ordering::Acquire);
            if word != 0 {
                let seen = (word >> 15).wrapping_sub(units) & 0x1_ffff;
                flow.store(word & !(0x1_ffff << 15) | seen << 15, Ordering::Release);
            }
        }
    }

    /// Every slot settles.
    fn settle(&mut self) {
        self.engine.settle_at(now() + 4 * u32::from(GRACE));
        assert_eq!(self.engine.settle_at(now() + 8 * u32::from(GRACE)), 0, "slots that have not settled");
    }
}

fn sources() -> impl Iterator<Item = Source> {
    VIPS.into_iter()
        .flat_map(|(vip, _)| PROTOCOLS.map(|protocol| (vip, protocol)))
        .flat_map(|(vip, protocol)| (1..=SOURCES).map(move |number| (vip, protocol, number)))
}

fn addr(vip: &str, last: u8) -> SocketAddr {
    let addr =
        if vip.starts_with('[') { format!("[fd00::{last:x}]:80") } else { format!("10.0.0.{last}:80") };
    addr.parse().expect("an address")
}

/// Who has another backend than before.
#[track_caller]
fn assert_same(case: &str, now: &BTreeMap<Source, u8>, before: &BTreeMap<Source, u8>) {
    let moved: Vec<_> = now
        .iter()
        .filter(|(source, backend)| before[*source] != **backend)
        .map(|(source, _)| source)
        .collect();
    assert!(moved.is_empty(), "{case}: {} of {} moved, {:?} first", moved.len(), now.len(), moved[0]);
}

#[test]
fn flows_of_one_source_go_to_one_backend_whatever_their_ports() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    let first = bound.all();

    for _ in 0..6 {
        assert_same("again", &bound.all(), &first);
    }

    let used: BTreeSet<u8> = first.into_values().collect();
    assert_eq!(used, (1..=4).collect(), "sources are spread over all");
}

#[test]
fn who_comes_does_not_take_a_source_that_was_here_before() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    let first = bound.all();

    bound.grow(5..=10);
    assert_same("while slots are contested", &bound.all(), &first);
    bound.settle();
    assert_same("once they have settled", &bound.all(), &first);
    // Slots that have another owner than their sources' backend are contested again.
    bound.grow(11..=20);
    assert_same("in the next change", &bound.all(), &first);
    bound.settle();
    assert_same("after it", &bound.all(), &first);
}

#[test]
fn a_source_that_comes_while_slots_are_contested_keeps_what_it_got() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    bound.grow(5..=10);
    let first = bound.all();

    assert_same("again", &bound.all(), &first);
    bound.settle();
    assert_same("once they have settled", &bound.all(), &first);
}

#[test]
fn a_source_that_is_silent_for_longer_than_the_timeout_is_steered_anew() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    let first = bound.all();
    bound.grow(5..=20);
    bound.settle();

    // Each flow that begins renews it: together this is far longer than the timeout.
    for _ in 0..4 {
        bound.age(u64::from(TIMEOUT) - 5);
        assert_same("within the timeout", &bound.all(), &first);
    }
    bound.age(u64::from(TIMEOUT) + 1);

    let owners = Bound::of(bound.world.clone()).all();
    assert_same("the owners of the slots", &bound.all(), &owners);
    assert_ne!(owners, first);
}

#[test]
fn a_source_moves_once_where_its_backend_is_gone_and_alone() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    let first = bound.all();

    bound.change(|backends, vip, _| backends.retain(|at, _| *at != addr(vip, 2)));

    let then = bound.all();
    for (source, backend) in &first {
        let now = then[source];
        assert_eq!(now == *backend, *backend != 2, "{source:?} went from {backend} to {now}");
    }
    bound.settle();
    assert_same("for long", &bound.all(), &then);
    // Those that moved stay where they are, as all others.
    bound.grow(2..=2);
    assert_same("it is back", &bound.all(), &then);
    bound.settle();
    assert_same("it is back for long", &bound.all(), &then);
}

#[test]
fn new_flows_leave_a_backend_that_drains_and_those_that_began_there_stay() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    let began = bound.all();
    let port = bound.port;

    bound.change(|backends, vip, _| backends.get_mut(&addr(vip, 3)).expect("it is there").draining = true);

    for settled in [false, true] {
        let new = bound.all();
        for (source @ (_, protocol, _), backend) in &began {
            let now = new[source];
            // An unknown datagram may be of an old flow while slots are contested.
            assert!(now != 3 || *protocol == Protocol::Udp && !settled, "{source:?}");
            assert!(*backend == 3 || now == *backend, "{source:?} left {backend} for {now}");
            assert_eq!(bound.sent(*source, port, ACK), *backend, "{source:?}");
        }
        if !settled {
            bound.settle();
        }
    }
}

#[test]
fn a_segment_whose_flow_was_pushed_out_goes_where_its_source_is_bound() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut bound = Bound::new();
    bound.grow(5..=20);
    bound.settle();
    let first = bound.all();
    bound.grow(21..=40);
    bound.settle();

    // A port of no flow that is known.
    for (source @ (vip, protocol, _), backend) in &first {
        if *protocol == Protocol::Tcp && vip.ends_with(":80") {
            assert_eq!(bound.sent(*source, 9, ACK), *backend, "{source:?}");
        }
    }
}
