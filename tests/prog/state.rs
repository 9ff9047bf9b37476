//! Just enough state: the program against the model in user space on the same random histories, with
//! translated flows and changes of mode among them, and tables that are switched while packets run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lb_common::nat::{SILENCE, Timeouts};
use lb_common::steer::{Kind, Memory};
use lb_common::{
    Backend, BackendId, Descriptor, Flow, HashKey, Mac, Mode, Record, TCP, UDP, backend, flows, wire_port,
};
use lb_tests::packet::{ACK, OURS, Packet, SYN, tcp, udp};
use lb_tests::shape::tagged;
use lb_tests::world::{self, CONFIG, KEY, LOOPBACK, World, backend_mac, can_run_programs, pool_id};
use penstock::datapath::engine::{self, Config, Engine};
use penstock::datapath::memory::Totals;
use penstock::datapath::plan::Op;
use penstock::datapath::rehearsal::Rehearsal;
use penstock::datapath::want::{Owner, Place, Target};
use penstock::model::l4::{ForwardingMode, Protocol};

const VIP: &str = "203.0.113.9:80";
const VIP6: &str = "[2001:db8:1::9]:80";
const RST: u8 = 4;
const GRACE: u16 = 5;
const FLOW_BITS: u8 = 11;
const BACKENDS: u64 = 14;
/// Who the clients are: their flows are told apart by ports alone.
const SOURCES: u64 = 12;
/// Translations are kept: the model knows no time of theirs.
const NEVER: Timeouts = Timeouts {
    tcp_open: u32::MAX,
    tcp_closing: u32::MAX,
    tcp_closed: u32::MAX,
    tcp_begun: u32::MAX,
    udp: u32::MAX,
    udp_begun: u32::MAX,
};

/// xorshift64*; the seed stands in every failure.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

/// The program and the model, with the same Services.
struct Both {
    engine: Engine,
    model: Rehearsal,
    /// Which backend each translated flow has, by ports and protocol, and in which of its lives.
    translated: BTreeMap<(u32, u32), (BackendId, u16)>,
    /// Those of them that were reset.
    reset: BTreeSet<(u32, u32)>,
    world: World,
    vip: &'static str,
    random: Random,
    seed: u64,
}

/// What the pool of a history asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    JustEnough,
    Conservative,
    Affinity,
}

impl Both {
    fn new(seed: u64, vip: &'static str, asks: Asks) -> Self {
        let mode = ForwardingMode::ALL[seed as usize % ForwardingMode::ALL.len()];
        let first = [1, 2, 3].map(|last| addr(vip, last).to_string());
        let first = first.each_ref().map(String::as_str);
        let mut world =
            World::new().service(Protocol::Tcp, vip, mode, &first).service(Protocol::Udp, vip, mode, &first);
        world.want.pools.edit(|_, pool| {
            pool.conservative = asks == Asks::Conservative;
            pool.affinity = (asks == Asks::Affinity).then_some(10_000);
        });
        let config = Config { grace: GRACE, flow_bits: FLOW_BITS, ..CONFIG };
        let engine = Engine::load(config).expect("the program loads");
        let model = Rehearsal::new(HashKey::expand(KEY), FLOW_BITS, GRACE);
        let (translated, reset, random) = (BTreeMap::new(), BTreeSet::new(), Random(seed * 2 + 1));
        let mut both = Self { engine, model, translated, reset, world, vip, random, seed };
        both.apply();
        both
    }

    fn apply(&mut self) {
        let now = engine::now();
        assert_eq!(self.engine.apply_at(self.world.want.clone(), now), vec![]);
        assert_eq!(self.model.apply(&self.world.want, now), vec![]);
    }

    fn change(&mut self) {
        let protocol = if self.random.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp };
        for _ in 0..=self.random.below(3) {
            let addr = addr(self.vip, 1 + self.random.below(BACKENDS) as u8);
            let (what, weight) = (self.random.below(8), 1 + self.random.below(3) as u16);
            let backends = self.world.backends_mut(self.vip, protocol);
            let mode = ForwardingMode::ALL[self.random.below(ForwardingMode::ALL.len() as u64) as usize];
            let draining = what < 2;
            match what {
                2..4 if backends.len() > 1 => drop(backends.remove(&addr)),
                _ => {
                    let whole = world::backend(addr.ip());
                    backends
                        .insert(addr, penstock::datapath::want::Backend { mode, weight, draining, ..whole });
                }
            }
        }
        self.apply();
    }

    fn settle(&mut self) {
        // Nothing has been silent yet, or everything has.
        let later = if self.random.below(3) == 0 { 200 } else { 0 };
        let now = engine::now() + later;
        self.engine.sweep_at(now, &NEVER).expect("swept");
        self.engine.settle_at(now);
        let named: BTreeSet<BackendId> = self.translated.values().map(|(id, _)| *id).collect();
        self.model.settle_beside(now, &named);
    }

    /// What the model says of a packet: a flow that is translated keeps its backend while that lives,
    /// unless it was `silent` and a SYN begins another one on its ports after its end, or while its backend drains.
    fn expected(&mut self, flow: &Flow, kind: Kind, silent: bool) -> Option<Backend> {
        let key = (flow.ports, flow.proto);
        if let Some((id, generation)) = self.translated.get(&key).copied() {
            match self.backend(id).filter(|backend| backend.generation == generation) {
                Some(backend)
                    if kind == Kind::Syn && silent && (backend.draining || self.reset.contains(&key)) => {}
                Some(backend) => {
                    // Who sends on was not reset.
                    if kind == Kind::Reset {
                        self.reset.insert(key)
                    } else {
                        self.reset.remove(&key)
                    };
                    return Some(backend);
                }
                None => drop(self.translated.remove(&key)),
            }
        }
        let choice = self.model.send(flow, kind, engine::now()).expect("the VIP is there");
        // Where nobody takes it, what was translated goes on.
        let backend = self.backend(choice.backend)?;
        self.translated.remove(&key);
        let other = self.backend(choice.other).filter(|other| other.mode == Mode::Tunnel);
        if kind != Kind::Syn && backend.mode == Mode::Local && other.is_some() {
            // A flow that its node does not know may be known to the other owner's.
            return other;
        }
        if backend.mode.is_translated() {
            // A reset ends a flow and begins none.
            if kind == Kind::Reset {
                return None;
            }
            self.translated.insert(key, (choice.backend, backend.generation));
            self.reset.remove(&key);
        }
        Some(backend)
    }

    /// A living backend of the model.
    fn backend(&self, id: BackendId) -> Option<Backend> {
        let (lines, line) = (&self.model.tables().backends, backend::line(id));
        Backend::from_words(&[lines.line(line), lines.line(line + 1)])
    }

    /// A packet of one of the clients.
    fn send(&mut self, number: u64) {
        let (source, port) = (7 + number % SOURCES, 1024 + number);
        let src = match self.vip {
            VIP => format!("198.51.100.{source}:{port}"),
            _ => format!("[2001:db8:2::{source:x}]:{port}"),
        };
        let kind = match self.random.below(8) {
            0 => Kind::Syn,
            1 => Kind::Reset,
            2..5 => Kind::Segment,
            _ => Kind::Datagram,
        };
        let mut silent = false;
        let ports = flow(&src, self.vip, TCP).ports;
        if kind == Kind::Syn && self.translated.keys().any(|key| *key == (ports, TCP.into())) {
            // How long ago the flow's last packet was must not depend on how fast this is.
            match self.random.below(3) {
                0 => {
                    self.engine.kernel.age_translated(SILENCE + 1).expect("entries are aged");
                    // Whose packets are not noted for as long as it lasts, which is now shorter than that.
                    self.engine.tables.leases.iter().for_each(|lease| lease.store(0, Ordering::Release));
                    silent = true;
                }
                1 => self.exchange(&src, Kind::Segment, false),
                _ => self.exchange(&src, Kind::Reset, false),
            }
        }
        self.exchange(&src, kind, silent);
    }

    /// The same packet for both: the same backend, in the same mode.
    fn exchange(&mut self, src: &str, kind: Kind, silent: bool) {
        let of_tcp = |flags| Packet { flags, ..tcp(src, self.vip) };
        let (proto, packet) = match kind {
            Kind::Syn => (TCP, of_tcp(SYN)),
            Kind::Reset => (TCP, of_tcp(RST)),
            Kind::Segment => (TCP, of_tcp(ACK)),
            Kind::Datagram => (UDP, udp(src, self.vip)),
        };
        let flow = flow(src, self.vip, proto);
        // By the fast path, or, where the interface is not known, by the ladder alone.
        let ours = if self.random.below(2) == 0 { OURS } else { Mac([0; 6]) };
        self.engine.set_interface(LOOPBACK, ours);
        let expected =
            self.expected(&flow, kind, silent).map(|backend| (backend.mode, last_byte(backend.addr)));

        let run = self.engine.kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs");

        let sent = sent(&packet, run.action, &run.packet);
        assert_eq!(sent, expected, "seed {}: {kind:?} of {src} to {}", self.seed, self.vip);
    }
}

/// How a packet was sent on, and to whom.
fn sent(packet: &Packet, action: u32, frame: &[u8]) -> Option<(Mode, u8)> {
    let by_mac = || {
        let last = frame[5];
        assert_eq!(frame[..6], backend_mac(last).0);
        last
    };
    let is_v4 = packet.src.is_ipv4();
    let (proto, dst, port) = if is_v4 {
        (frame[23], &frame[30..34], &frame[36..38])
    } else {
        (frame[20], &frame[38..54], &frame[56..58])
    };
    let vip = match packet.dst.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    match action {
        2 if frame != packet.bytes() => Some((Mode::Local, dst[dst.len() - 1])),
        3 | 4 if proto == 4 || proto == 41 => Some((Mode::Ipip, by_mac())),
        3 | 4 if dst == vip => Some((Mode::L2, by_mac())),
        3 | 4 if proto == UDP && port == lb_common::tunnel::PORT.to_be_bytes() => {
            Some((Mode::Tunnel, by_mac()))
        }
        3 | 4 => Some((Mode::Nat, by_mac())),
        _ => None,
    }
}

/// A backend of the VIP's family.
fn addr(vip: &str, last: u8) -> SocketAddr {
    if vip == VIP {
        SocketAddr::from(([10, 0, 0, last], 80))
    } else {
        SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last.into()], 80))
    }
}

/// A client's flow to the VIP.
fn flow(src: &str, vip: &str, proto: u8) -> Flow {
    let (src, dst): (SocketAddr, SocketAddr) =
        (src.parse().expect("an address"), vip.parse().expect("an address"));
    Flow {
        src: src.ip().into(),
        dst: dst.ip().into(),
        ports: Flow::ports(wire_port(src.port()), wire_port(dst.port())),
        proto: proto.into(),
    }
}

fn last_byte(addr: lb_common::Addr) -> u8 {
    match IpAddr::from(addr) {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    }
}

#[test]
fn the_program_and_the_model_choose_the_same_backend_through_random_histories() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let pools = [Asks::JustEnough, Asks::Conservative, Asks::Affinity];
    let kinds = [VIP, VIP6].into_iter().flat_map(|vip| pools.map(|asks| (vip, asks)));
    // Each of these, and each mode at the beginning.
    for (seed, (vip, asks)) in (1..=10).zip(kinds.cycle()) {
        let mut both = Both::new(seed, vip, asks);
        for _ in 0..60 {
            match both.random.below(4) {
                0 => both.settle(),
                _ => both.change(),
            }
            for _ in 0..60 {
                let number = both.random.below(150);
                both.send(number);
            }
        }
        let (used, _) = both.engine.flow_table_use();
        assert_eq!(used, both.model.remembered(), "seed {seed}: flows remembered");
        assert!(both.translated.len() > 20, "seed {seed}: flows are translated");
    }
}

#[test]
fn a_table_that_is_switched_ten_thousand_times_under_load_leads_to_one_of_both_owners() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let few: Vec<String> = (1..=5).map(|last| format!("10.0.0.{last}:80")).collect();
    let many: Vec<String> = (100..=130).map(|last| format!("10.0.0.{last}:80")).collect();
    let (few, many) = (few.iter().map(String::as_str), many.iter().map(String::as_str));
    let other = "203.0.113.10:80";
    // Two pools with tables of different sizes; the record of one VIP is switched between them.
    let world = World::new()
        .service(Protocol::Tcp, VIP, ForwardingMode::L2, &few.collect::<Vec<_>>())
        .service(Protocol::Tcp, other, ForwardingMode::L2, &many.collect::<Vec<_>>());
    let engine = world.load();
    let line = |vip: &str| {
        let vip: SocketAddr = vip.parse().expect("an address");
        Place { addr: vip.ip(), port: vip.port(), protocol: Protocol::Tcp }.shortcut().line() as u16
    };
    let records: Vec<(u16, Descriptor)> = [VIP, other]
        .map(|vip| (line(vip), Record::read(&engine.tables.records, line(vip).into()).descriptor))
        .into();
    let Engine { kernel, tables, .. } = engine;
    let (one, two) = (records[0].1, records[1].1);
    assert_ne!(one.bits(), two.bits(), "the sizes differ");
    let key = HashKey::expand(KEY);
    let owner = |descriptor: Descriptor, flow: &Flow| {
        let slot = tables.slot(descriptor.pool_index(flow.hash(key)));
        lb_common::backend::addr(&tables.backends, slot.backend())
    };
    let stop = AtomicBool::new(false);
    let (switched, seen) = std::thread::scope(|scope| {
        let switching = scope.spawn(|| {
            let mut switched = 0u32;
            while switched < 10_000 || !stop.load(Ordering::Relaxed) {
                switched += 1;
                let descriptor = if switched.is_multiple_of(2) { one } else { two };
                for (index, _) in &records {
                    Op::Switch(*index, descriptor).apply(&tables, &mut ());
                }
                std::hint::spin_loop();
            }
            switched
        });
        let mut seen = [0u32; 2];
        let mut number = 0u16;
        while seen.iter().any(|count| *count < 1_000) && number < 60_000 {
            number += 1;
            let src = format!("198.51.100.7:{}", 1024 + number);
            let run = kernel.test_run("penstock", &tcp(&src, VIP).bytes(), 1).expect("the program runs");
            let src: SocketAddr = src.parse().expect("an address");
            let dst: SocketAddr = VIP.parse().expect("an address");
            let flow = Flow {
                src: src.ip().into(),
                dst: dst.ip().into(),
                ports: Flow::ports(wire_port(src.port()), wire_port(dst.port())),
                proto: TCP.into(),
            };
            let owners = [one, two].map(|descriptor| std::net::IpAddr::from(owner(descriptor, &flow)));
            let last = run.packet[5];
            let which = owners.iter().position(|owner| owner.to_string() == format!("10.0.0.{last}"));
            assert_eq!(run.action, 3, "{src}");
            let Some(which) = which else { panic!("{src} went to 10.0.0.{last}, not to one of {owners:?}") };
            seen[which] += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (switching.join().expect("no panic"), seen)
    });
    assert!(switched >= 10_000, "{switched}");
    assert!(seen.iter().all(|count| *count >= 1_000), "both tables were in force: {seen:?}");
}

#[test]
fn flows_that_begin_at_once_on_two_cpus_in_one_bucket_are_all_remembered() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    const ROUNDS: u32 = 1_000;
    // A table of one bucket, and as many flows as that has places, half of them on each CPU.
    const HALF: u32 = flows::WAYS / 2;
    let mut world = World::new().service(Protocol::Tcp, VIP, ForwardingMode::L2, &["10.0.0.1:80"]);
    world.want.pools.edit(|_, pool| pool.conservative = true);
    let mut engine = Engine::load(Config { flow_bits: 3, ..CONFIG }).expect("the program loads");
    assert_eq!(engine.apply(world.want), vec![]);
    let Engine { kernel, tables, .. } = &engine;
    let arrived = AtomicU32::new(0);
    let meet = |meeting: u32| {
        arrived.fetch_add(1, Ordering::AcqRel);
        for waited in 0u32.. {
            if arrived.load(Ordering::Acquire) >= 2 * meeting {
                return;
            }
            // Where the other thread has no CPU of its own.
            if waited > 10_000 {
                std::thread::yield_now();
            }
        }
    };
    let half = |cpu: u32| {
        let frames: Vec<Vec<u8>> =
            (0..HALF).map(|port| tcp(&format!("198.51.100.{cpu}:{}", 1024 + port), VIP).bytes()).collect();
        let (mut meetings, mut forgotten) = (1.., 0);
        let mut meet = || meetings.next().into_iter().for_each(meet);
        for _ in 0..ROUNDS {
            for frame in &frames {
                meet();
                let _ = kernel.test_run("penstock", frame, 1);
            }
            meet();
            if cpu == 0 {
                forgotten += 2 * HALF as usize - tables.flow_words().filter(|word| *word != 0).count();
                tables
                    .flows
                    .iter()
                    .take(flows::WAYS as usize)
                    .for_each(|flow| flow.store(0, Ordering::Release));
            }
            meet();
        }
        forgotten
    };

    let forgotten = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        half(0) + other.join().expect("no panic")
    });

    assert_eq!(forgotten, 0, "flows of {}", ROUNDS * 2 * HALF);
    let sent: u64 = engine.verdicts().iter().map(|(_, count)| count).sum();
    assert_eq!(sent, u64::from(ROUNDS * 2 * HALF), "every packet ran");
}

#[test]
fn a_udp_flow_that_speaks_keeps_a_backend_that_drains_though_the_flow_table_is_full() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    // Eight places for forty flows.
    let mut world = World::new().service(Protocol::Udp, VIP, ForwardingMode::L2, &["10.0.0.1:80"]);
    let mut engine = Engine::load(Config { flow_bits: 3, grace: 3, ..CONFIG }).expect("the program loads");
    assert_eq!(engine.apply(world.want.clone()), vec![]);
    let speak = |engine: &Engine, when: u32| {
        for port in 0..40 {
            let frame = udp(&format!("198.51.100.7:{}", 1024 + port), VIP).bytes();
            let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
            assert_eq!(run.packet[..6], backend_mac(1).0, "at {when}, port {port}");
        }
    };
    speak(&engine, 0);
    let backends = world.backends_mut(VIP, Protocol::Udp);
    backends.values_mut().for_each(|old| old.draining = true);
    backends.insert(([10, 0, 0, 2], 80).into(), world::backend([10, 0, 0, 2].into()));
    assert_eq!(engine.apply(world.want), vec![]);

    // Several times as long as slots take to settle, by the kernel's own clock.
    let begun = engine::now();
    while engine::now() - begun < 12 {
        speak(&engine, engine::now() - begun);
        assert!(engine.settle_at(engine::now()) > 0, "no slot settles");
    }

    // They fall silent; the last ones left marks.
    engine.settle_at(engine::now());
    assert_eq!(engine.settle_at(engine::now() + 1_000), 0);
}

#[test]
fn no_more_of_the_flow_table_is_mapped_than_is_in_use() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mapped = |flow_bits| {
        let engine = Engine::load(Config { flow_bits, ..CONFIG }).expect("the program loads");
        engine.tables.flows.len()
    };

    assert_eq!([3, 14, 20].map(mapped), [1 << 3, 1 << 14, 1 << 20]);
}

#[test]
fn each_vip_of_a_pool_is_counted_for_itself_on_every_path() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let (first, second) = ("203.0.113.9:80", "203.0.113.10:80");
    for mode in [ForwardingMode::L2, ForwardingMode::Nat, ForwardingMode::Local] {
        let mut world = World::new().service(Protocol::Tcp, first, mode, &["10.0.0.1:80"]);
        let id = pool_id(first.parse().expect("address"), Protocol::Tcp);
        let place = |vip: &str| {
            let vip: SocketAddr = vip.parse().expect("address");
            Place { addr: vip.ip(), port: vip.port(), protocol: Protocol::Tcp }
        };
        world.want.addrs.insert(place(second).addr, Owner::Vip);
        world.want.vips.insert(place(second), Target::Pool(id.clone()));
        let engine = world.load();

        for (vip, packets) in [(first, 3), (second, 5)] {
            for number in 0..packets {
                let flags = if number == 0 { SYN } else { ACK };
                let packet = Packet { flags, ..tcp("198.51.100.7:40000", vip) };
                let frame = if number % 2 == 0 { packet.bytes() } else { tagged(&packet.bytes(), &[5]) };
                engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
            }
        }

        // 45 bytes each: two headers and "hello".
        let totals = |packets| Totals { packets, bytes: 45 * packets, flows: 1 };
        assert_eq!(engine.vip_totals(&place(first), &id), totals(3), "{mode:?}");
        assert_eq!(engine.vip_totals(&place(second), &id), totals(5), "{mode:?}");
    }
}
