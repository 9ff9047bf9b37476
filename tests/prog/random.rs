//! The program against thousands of random frames and flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::Mac;
use lb_tests::packet::{ACK, OURS, Packet, SYN, csums_are_right, tcp, udp};
use lb_tests::shape::{fragments, tagged, with_extensions, with_options};
use lb_tests::world::{LOOPBACK, World, backend, backend_mac, can_run_programs, pool_id};
use penstock::datapath::engine::{Engine, now};
use penstock::datapath::kernel::Kernel;
use penstock::datapath::want::{Backend, Place};
use penstock::model::l4::{Family, FiveTuple, ForwardingMode, Prefix, Protocol};

/// xorshift64*; a seed is printed with every failure.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

const SEED: u64 = 0x5eed_0f00;
const VIPS: [&str; 4] = ["203.0.113.1:80", "203.0.113.2:80", "[2001:db8:1::1]:80", "[2001:db8:1::2]:80"];

fn world() -> World {
    let v4: Vec<String> = (1..=20).map(|last| format!("10.0.0.{last}:80")).collect();
    let v6: Vec<String> = (1..=20).map(|last| format!("[fd00::{last:x}]:80")).collect();
    let v4: Vec<&str> = v4.iter().map(String::as_str).collect();
    let v6: Vec<&str> = v6.iter().map(String::as_str).collect();
    let mut world = World::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (vip, mode) in VIPS.into_iter().zip([ForwardingMode::Nat, ForwardingMode::L2].into_iter().cycle())
        {
            world = world.service(protocol, vip, mode, if vip.starts_with('[') { &v6 } else { &v4 });
        }
    }
    world
}

fn run(engine: &mut Engine, frame: &[u8]) -> (u32, Vec<u8>) {
    let run = engine.kernel.test_run("penstock", frame, 1).expect("the program runs");
    (run.action, run.packet)
}

/// The fast path takes what it can, or, where the interface is not known, the ladder takes all.
fn by_either_way(engine: &Engine, number: u32) {
    engine.set_interface(LOOPBACK, if number.is_multiple_of(2) { OURS } else { Mac([0; 6]) });
}

fn flow(random: &mut Random) -> FiveTuple {
    let dst: SocketAddr = VIPS[random.below(4) as usize].parse().expect("address");
    let ip: IpAddr = if dst.is_ipv4() {
        Ipv4Addr::from(0xc633_6400 | random.next() as u32 & 0xff).into()
    } else {
        Ipv6Addr::from(0x2001_0db8_0002_u128 << 80 | u128::from(random.next())).into()
    };
    let protocol = if random.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp };
    FiveTuple { protocol, src: SocketAddr::new(ip, 1024 + random.below(60_000) as u16), dst }
}

fn frame(flow: &FiveTuple) -> Vec<u8> {
    let (src, dst) = (flow.src.to_string(), flow.dst.to_string());
    match flow.protocol {
        Protocol::Tcp => tcp(&src, &dst).bytes(),
        Protocol::Udp => udp(&src, &dst).bytes(),
    }
}

#[test]
fn the_program_chooses_what_explain_says_on_ten_thousand_flows() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = world();
    let mut engine = world.load();
    let mut random = Random(SEED);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..10_000 {
        if number == 5_000 {
            // From here on many slots are contested.
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for last in 21..=40 {
                    let addr = SocketAddr::from(([10, 0, 0, last], 80));
                    let added = Backend { mode: ForwardingMode::L2, ..backend(addr.ip()) };
                    world.backends_mut(VIPS[1], protocol).insert(addr, added);
                }
            }
            assert_eq!(engine.apply(world.want.clone()), vec![]);
        }
        by_either_way(&engine, number);
        let flow = flow(&mut random);
        let explanation = engine.explain(flow);

        let (action, out) = run(&mut engine, &frame(&flow));

        assert_eq!(action, 3, "seed {SEED:#x}, flow {number}: {flow}");
        assert!(csums_are_right(&out), "seed {SEED:#x}, flow {number}: {flow}");
        let last = out[5];
        assert_eq!(out[..6], backend_mac(last).0);
        seen.insert(last);
        let addr =
            if flow.dst.is_ipv4() { format!("10.0.0.{last}:80") } else { format!("[fd00::{last:x}]:80") };
        assert!(
            explanation.verdict.ends_with(&format!(" to {addr}")),
            "seed {SEED:#x}, flow {number}: {flow} went to {addr}, explained: {}",
            explanation.verdict
        );
    }
    assert!(seen.len() >= 20, "every backend gets flows");
    let kept = engine.events().into_iter().find(|(event, _)| event.as_str() == "flows-kept");
    assert!(kept.is_some_and(|(_, times)| times > 100), "flows of contested slots stay: {kept:?}");
}

/// Kinds of VIPs: a mode each, then affinity, some sources only, nobody, nobody and told so.
const KINDS: u8 = 9;

/// The address of a VIP of each kind, of a backend, and of a client.
#[derive(Clone, Copy)]
enum Net {
    V4,
    V6,
}

impl Net {
    fn vip(self, kind: u8) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::from(([203, 0, 113, 11 + kind], 80)),
            Self::V6 => SocketAddr::from(([0x2001, 0xdb8, 1, 0, 0, 0, 0, 11 + u16::from(kind)], 80)),
        }
    }

    fn backend(self, last: u8) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::from(([10, 0, 0, last], 80)),
            Self::V6 => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last.into()], 80)),
        }
    }

    fn client(self, last: u8) -> IpAddr {
        match self {
            Self::V4 => [198, 51, 100, last].into(),
            Self::V6 => [0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()].into(),
        }
    }

    /// Half of the clients.
    fn range(self) -> Prefix {
        Prefix::new(self.client(0), if matches!(self, Self::V4) { 25 } else { 121 }).expect("a prefix")
    }
}

/// A VIP of every kind, with UDP as with TCP.
fn every_kind(net: Net) -> World {
    let backends: Vec<String> = (1..=20).map(|last| net.backend(last).to_string()).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let modes = ForwardingMode::ALL.into_iter().chain([ForwardingMode::L2; 4]);
    let mut world = World::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (kind, mode) in (0..KINDS).zip(modes.clone()) {
            let (vip, name) = (net.vip(kind), net.vip(kind).to_string());
            world = world.service(protocol, &name, mode, if kind < 7 { &backends } else { &[] });
            if kind == 8 {
                world = world.rejecting(&name, protocol);
            }
            let pool = world.want.pools.get_mut(&pool_id(vip, protocol)).expect("just made");
            pool.affinity = (kind == 5).then_some(1_000);
            if kind == 6 {
                let place = Place { addr: vip.ip(), port: 80, protocol };
                world.want.ranges.insert(place, BTreeSet::from([net.range()]));
            }
        }
    }
    world
}

#[test]
fn the_program_does_what_explain_says_with_every_kind_of_vip() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    does_what_explain_says(Net::V4);
}

#[test]
fn the_program_does_what_explain_says_with_every_kind_of_vip_over_ipv6() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    does_what_explain_says(Net::V6);
}

fn does_what_explain_says(net: Net) {
    let mut world = every_kind(net);
    let mut engine = world.load();
    let mut random = Random(SEED);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..10_000 {
        if number % 2_500 == 2_499 {
            // Slots are contested from here on, and some backends have another mode.
            for kind in 0..7 {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let modes = [ForwardingMode::Nat, ForwardingMode::L2, ForwardingMode::Ipip];
                    let addr = net.backend(21 + random.below(20) as u8);
                    let backends = world.backends_mut(&net.vip(kind).to_string(), protocol);
                    let mode = backends.values().next().expect("there are some").mode;
                    backends.insert(addr, Backend { mode, ..backend(addr.ip()) });
                    for one in backends.values_mut().take(4) {
                        one.mode = modes[random.below(3) as usize];
                    }
                }
            }
            assert_eq!(engine.apply(world.want.clone()), vec![]);
        }
        by_either_way(&engine, number);
        let dst = net.vip(random.below(KINDS.into()) as u8);
        let protocol = if random.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp };
        // Few ports: flows come again, and are remembered then.
        let src = SocketAddr::new(net.client(random.next() as u8), 1024 + random.below(20) as u16);
        let flow = FiveTuple { protocol, src, dst };
        let explained = engine.explain(flow).verdict;
        let before = engine.verdicts();

        let (_, out) = run(&mut engine, &frame(&flow));

        let counted = before.iter().zip(engine.verdicts()).find(|(then, now)| then.1 != now.1);
        let verdict = counted.map_or("", |(then, _)| then.0.as_str());
        let case = format!("seed {SEED:#x}, flow {number}: {flow}, explained: {explained}");
        if verdict == "rate-limited" {
            // So many a second are told; which of them are not, depends on how fast this runs.
            assert!(explained.starts_with("told-"), "{case}");
            continue;
        }
        assert_eq!(explained.split([' ', ':']).next(), Some(verdict), "{case}");
        *seen.entry(verdict.to_owned()).or_default() += 1;
        let to = match (verdict, net) {
            ("forwarded-local", Net::V4) => out[33],
            ("forwarded-local", Net::V6) => out[53],
            (sent, _) if sent.starts_with("forwarded") => out[5],
            _ => continue,
        };
        assert!(explained.ends_with(&format!(" to {}", net.backend(to))), "{case}, went to {to}");
    }
    let all = [
        "forwarded-ipip",
        "forwarded-l2",
        "forwarded-local",
        "forwarded-nat",
        "forwarded-tunnel",
        "no-backend",
        "source-range",
        "told-reset",
        "told-unreachable",
    ];
    let missing: Vec<_> =
        all.into_iter().filter(|verdict| seen.get(*verdict).is_none_or(|n| *n < 100)).collect();
    assert!(missing.is_empty(), "{missing:?} of {seen:?}");
}

#[test]
fn explain_knows_who_may_use_a_vip_and_what_is_translated() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = world();
    // Of ranges within others the narrow ones go away in the end: what is left of them is the wide one.
    let wide = ["198.51.100.0/25", "2001:db8:2::/64"];
    let narrow = ["198.51.100.0/28", "198.51.100.192/31", "2001:db8:2:0:1::/80", "2001:db8:3::7/128"];
    let ranges = |of: &[&str]| of.iter().map(|range| range.parse::<Prefix>().expect("a range")).collect();
    let all: BTreeSet<Prefix> = ranges(&[&wide[..], &narrow].concat());
    let places = [VIPS[1], VIPS[3]].map(|vip| {
        let vip: SocketAddr = vip.parse().expect("an address");
        Place { addr: vip.ip(), port: 80, protocol: Protocol::Tcp }
    });
    let allow = |world: &mut World, of: &BTreeSet<Prefix>| {
        for place in places {
            let mine = |range: &&Prefix| range.family() == Family::of(place.addr);
            let mine: BTreeSet<Prefix> = of.iter().filter(mine).copied().collect();
            world.want.ranges.insert(place, mine);
        }
    };
    allow(&mut world, &all);
    let mut engine = world.load();
    let sources = [
        ("198.51.100.7", true, true),
        ("198.51.100.127", true, true),
        ("198.51.100.128", false, false),
        ("198.51.100.193", true, false),
        ("198.51.100.194", false, false),
        ("[2001:db8:2::7]", true, true),
        ("[2001:db8:2:0:1::7]", true, true),
        ("[2001:db8:2:1::7]", false, false),
        ("[2001:db8:3::7]", true, false),
        ("[2001:db8:3::8]", false, false),
    ];
    for nested in [true, false] {
        if !nested {
            allow(&mut world, &ranges(&wide));
            assert_eq!(engine.apply(world.want.clone()), vec![]);
        }
        for (number, (source, with_narrow, with_wide)) in (0..).zip(sources) {
            by_either_way(&engine, number);
            let allowed = if nested { with_narrow } else { with_wide };
            let vip = if source.starts_with('[') { VIPS[3] } else { VIPS[1] };
            let asked: FiveTuple = format!("tcp {source}:4000 > {vip}").parse().unwrap();

            let (action, _) = run(&mut engine, &frame(&asked));

            let verdict = engine.explain(asked).verdict;
            let told = (action == 3, verdict.starts_with("forwarded-l2"), verdict != "source-range: dropped");
            assert_eq!(told, (allowed, allowed, allowed), "{asked}, nested {nested}: {verdict}");
            // Of the other protocol all may.
            let udp = FiveTuple { protocol: Protocol::Udp, ..asked };
            assert_eq!(run(&mut engine, &frame(&udp)).0, 3, "{udp}");
        }
    }

    let asked: FiveTuple = "tcp 198.51.100.7:4000 > 203.0.113.1:80".parse().unwrap();
    let told = |engine: &Engine| format!("{:?}", engine.explain(asked));
    assert!(!told(&engine).contains("remembered"), "{}", told(&engine));
    let (_, out) = run(&mut engine, &frame(&asked));
    let port = u16::from_be_bytes([out[34], out[35]]);
    let expected = format!("remembered: translated to 10.0.0.{}:80, from our port {port}", out[5]);
    assert!(told(&engine).contains(&expected), "{expected}: {}", told(&engine));
}

/// The same frame, perhaps with tags, options, extension headers or as a fragment; and how many tags.
fn shaped(random: &mut Random, frame: Vec<u8>) -> (Vec<u8>, usize) {
    let v4 = frame[12] == 0x08;
    let frame = match random.below(4) {
        0 if v4 => with_options(&frame, &vec![random.next() as u8; 4 * (1 + random.below(10) as usize)]),
        0 => with_extensions(&frame, &[(0, &[0; 7]), (60, &[1; 15]), (43, &[0; 7])]),
        1 => {
            let pieces = fragments(&frame, 8);
            pieces[random.below(pieces.len() as u64) as usize].clone()
        }
        _ => frame,
    };
    match random.below(4) {
        0 => (tagged(&frame, &[random.next() as u16]), 1),
        1 => (tagged(&frame, &[random.next() as u16, random.next() as u16]), 2),
        _ => (frame, 0),
    }
}

#[test]
fn random_and_mutated_frames_that_are_not_ours_pass_untouched() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = world().load();
    let mut random = Random(SEED);
    for number in 0..100_000u32 {
        let mut frame = frame(&flow(&mut random));
        // Another destination, then anything at all to the rest.
        let at = if frame[12] == 0x08 { 30 } else { 38 };
        frame[at] = 0x7b;
        let (shaped, tags) = shaped(&mut random, frame);
        frame = shaped;
        for _ in 0..random.below(12) {
            let byte = random.below(frame.len() as u64) as usize;
            if !(12..14).contains(&byte) && byte != at {
                frame[byte] = random.next() as u8;
            }
        }
        frame[at + 4 * tags] = 0x7b;
        frame.truncate((14 + random.below(frame.len() as u64 - 13)) as usize);
        if number.is_multiple_of(4) {
            frame.iter_mut().for_each(|byte| *byte = random.next() as u8);
        }

        let (action, out) = run(&mut engine, &frame);

        assert_eq!((action, &out), (2, &frame), "seed {SEED:#x}, frame {number}");
    }
}

/// How packets to a VIP fare before each step of a change: to the last byte of a backend's MAC, or the action.
fn ends_of(kernel: &Kernel, random: &mut Random, vip: &str) -> Vec<Result<u8, u32>> {
    let flags = [SYN, ACK, SYN, ACK];
    let ends = flags.map(|flags| {
        let packet = Packet { flags, ..tcp(&format!("198.51.100.7:{}", 1024 + random.below(60_000)), vip) };
        let run = kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs");
        if run.action == 3 { Ok(run.packet[5]) } else { Err(run.action) }
    });
    ends.into()
}

#[test]
fn no_step_of_a_change_leads_a_packet_to_a_wrong_backend() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    const SWITCHED: &str = "203.0.113.2:80";
    const STAYS: &str = "203.0.113.8:80";
    const PASSING: &str = "203.0.113.9:80";
    let ten = |base: u8| (base..base + 10).map(|last| SocketAddr::from(([10, 0, 0, last], 80)));
    let names = |base| ten(base).map(|addr| addr.to_string()).collect::<Vec<_>>();
    let service = |world: World, vip, base| {
        let names = names(base);
        world.service(
            Protocol::Tcp,
            vip,
            ForwardingMode::L2,
            &names.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let mut world = service(world(), STAYS, 30);
    let mut engine = world.load();
    let mut random = Random(SEED);
    let (mut before, mut steps) = (1..21, 0);
    for turn in 0..60u8 {
        // Two pools that share no backend take turns, and a third one comes and goes with its VIP, so that ids and lines
        // are used again, and the lookup tables switch, too.
        let base = if turn.is_multiple_of(2) { 100 } else { 150 };
        let backends = world.backends_mut(SWITCHED, Protocol::Tcp);
        *backends = ten(base).map(|addr| (addr, backend(addr.ip()))).collect();
        let passing = if turn % 3 < 2 { service(world.clone(), PASSING, 200) } else { world.clone() };
        by_either_way(&engine, turn.into());

        let problems = engine.apply_watched(passing.want, now(), &mut |kernel| {
            steps += 1;
            for end in ends_of(kernel, &mut random, SWITCHED) {
                let last = end.expect("it has backends throughout");
                assert!(before.contains(&last) || (base..base + 10).contains(&last), "turn {turn}: {last}");
            }
            for end in ends_of(kernel, &mut random, STAYS) {
                assert!(end.is_ok_and(|last| (30..40).contains(&last)), "turn {turn}: {end:?}");
            }
            for end in ends_of(kernel, &mut random, PASSING) {
                // Passed to the stack while nobody knows the address.
                assert!(
                    end.map_or_else(|action| action == 2, |last| (200..210).contains(&last)),
                    "{turn}: {end:?}"
                );
            }
        });

        assert_eq!(problems, vec![]);
        before = base..base + 10;
        engine.settle_at(now());
    }
    assert!(steps > 60 * 20, "{steps}");
}
