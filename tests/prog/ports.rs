//! The source ports of `nat`: who gets one when none is free, byte for byte, and who keeps his.

use std::collections::BTreeMap;

use lb_common::nat::{SILENCE, Timeouts, UDP_ANSWER};
use lb_tests::packet::{ACK, FIN, OURS, Packet, SYN, csums_are_right, tcp, udp};
use lb_tests::world::{KEY, LOOPBACK, World, backend_mac, can_run_programs};
use penstock::datapath::engine::{self, Config, Engine};
use penstock::model::l4::{
    FiveTuple,
    ForwardingMode::{Local, Nat},
    Protocol,
};

use crate::run::{Drop, Send, count, run};

const RST: u8 = 4;
const FIRST: u16 = 61_000;
/// What the SYN-ACK of a [`tcp`] packet asks for, which is what that acknowledges.
const OFFERED: u32 = 2;
/// What it does not.
const GUESSED: u32 = 0x4000_0000;

/// One backend behind `nat`, and so many ports towards it.
struct Rig {
    engine: Engine,
    protocol: Protocol,
}

impl Rig {
    fn new(protocol: Protocol, ports: u16) -> Self {
        let world = World::new().service(protocol, "203.0.113.1:80", Nat, &["10.0.0.1:8080"]);
        let mut engine =
            Engine::load(Config::new(KEY, (FIRST, FIRST + ports - 1))).expect("the program loads");
        assert_eq!(engine.apply(world.want), vec![]);
        engine.set_interface(LOOPBACK, OURS);
        Self { engine, protocol }
    }

    fn packet(&self, src: &str, dst: &str, flags: u8) -> Packet {
        match self.protocol {
            Protocol::Tcp => Packet { flags, ..tcp(src, dst) },
            Protocol::Udp => udp(src, dst),
        }
    }

    /// What a client's packet becomes: the port that the backend sees, and the whole frame is right; none: dropped.
    fn sends(&mut self, client: u16, flags: u8) -> Option<u16> {
        self.acknowledges(client, flags, OFFERED)
    }

    /// The same of a segment that acknowledges this.
    fn acknowledges(&mut self, client: u16, flags: u8, ack: u32) -> Option<u16> {
        let packet = self.packet(&format!("198.51.100.7:{client}"), "203.0.113.1:80", flags);
        let packet = Packet { ack, ..packet };
        let frame = match run(&mut self.engine, &packet.bytes()) {
            Send(frame) => frame,
            Drop => return None,
            did => panic!("port {client}: {did:?}"),
        };
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        let expected = Packet {
            dst_mac: backend_mac(1),
            src_mac: OURS,
            src: ([10, 0, 0, 254], port).into(),
            dst: ([10, 0, 0, 1], 8080).into(),
            ttl: packet.ttl - 1,
            ..packet
        };
        assert_eq!(frame, expected.bytes());
        assert!(csums_are_right(&frame));
        Some(port)
    }

    /// The client that gets an answer of the backend to this port, and the whole frame is right.
    fn answers(&mut self, port: u16, flags: u8) -> Option<u16> {
        let src_mac = backend_mac(1);
        let packet = Packet { src_mac, ..self.packet("10.0.0.1:8080", &format!("10.0.0.254:{port}"), flags) };
        let Send(frame) = run(&mut self.engine, &packet.bytes()) else { return None };
        let client = u16::from_be_bytes([frame[36], frame[37]]);
        let expected = Packet {
            dst_mac: lb_tests::packet::ROUTER,
            src_mac: OURS,
            src: ([203, 0, 113, 1], 80).into(),
            dst: ([198, 51, 100, 7], client).into(),
            ttl: packet.ttl - 1,
            ..packet
        };
        assert_eq!(frame, expected.bytes());
        Some(client)
    }

    /// A connection that both sides use.
    fn opens(&mut self, client: u16) -> u16 {
        let port = self.sends(client, SYN).expect("a port is to be had");
        assert_eq!(self.answers(port, SYN | ACK), Some(client));
        assert_eq!(self.sends(client, ACK), Some(port));
        port
    }

    fn closes(&mut self, client: u16, port: u16) {
        assert_eq!(self.answers(port, FIN | ACK), Some(client));
        assert_eq!(self.sends(client, FIN | ACK), Some(port));
        assert_eq!(self.answers(port, ACK), Some(client));
    }

    /// What `explain` says of a client's flow: verdict and steps.
    fn told(&self, client: u16) -> (String, String) {
        let protocol = self.protocol;
        let (src, dst) = (([198, 51, 100, 7], client).into(), ([203, 0, 113, 1], 80).into());
        let told = self.engine.explain(FiveTuple { protocol, src, dst });
        (told.verdict, format!("{:?}", told.steps))
    }

    /// Nobody sends anything for so long.
    fn passes(&mut self, units: u32) {
        self.engine.kernel.age_translated(units).expect("entries are aged");
    }
}

#[test]
fn the_port_of_a_connection_that_both_closed_goes_to_another_at_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 1);
    assert_eq!(rig.opens(20_000), FIRST);
    rig.passes(1_000);
    assert_eq!(rig.sends(20_001, SYN), None, "an open connection keeps its port");
    assert_eq!(count(&rig.engine, "nat-ports-exhausted"), 1);

    rig.closes(20_000, FIRST);

    assert_eq!(rig.opens(20_001), FIRST);
    assert_eq!(rig.answers(FIRST, ACK), Some(20_001));
    assert_eq!(rig.sends(20_000, ACK), None, "whoever had the port has neither entry nor lease");
    assert_eq!(rig.sends(20_001, ACK), Some(FIRST));
}

#[test]
fn explain_tells_the_port_that_a_flow_gets_or_that_there_is_none() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = Rig::new(protocol, 16);
        let mut missed = 0;
        for client in 20_000..20_040 {
            let (verdict, steps) = rig.told(client);

            let Some(port) = rig.sends(client, SYN) else {
                missed += 1;
                assert_eq!(verdict, "nat-ports-exhausted: dropped", "{protocol} {client}: {steps}");
                let range = "no free port of 61000-61015 towards 10.0.0.1:8080";
                assert!(steps.contains(range) && steps.contains("widen --nat-ports"), "{steps}");
                continue;
            };
            assert_eq!(verdict, "forwarded-nat to 10.0.0.1:8080", "{protocol} {client}: {steps}");
            let told = format!("its packets would come from port {port}");
            assert!(steps.contains(&told), "{protocol} {client} has {port}: {steps}");
            rig.opens(client);
            assert!(!rig.told(client).1.contains("would come"), "it has one");
        }
        // A question by UDP that was answered gives its port away.
        assert_eq!(missed, if protocol == Protocol::Tcp { 24 } else { 0 });
    }
}

#[test]
fn a_connection_that_a_backend_resets_gives_its_port_away_at_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 1);
    rig.opens(20_000);

    assert_eq!(rig.answers(FIRST, RST | ACK), Some(20_000));

    assert_eq!(rig.opens(20_001), FIRST);
}

#[test]
fn a_connection_whose_backend_closed_and_whose_client_is_gone_gives_its_port_away_after_two_minutes() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 1);
    rig.opens(20_000);
    assert_eq!(rig.answers(FIRST, FIN | ACK), Some(20_000));
    rig.passes(100);
    assert_eq!(rig.answers(FIRST, FIN | ACK), Some(20_000));
    // The program's clock goes on meanwhile.
    rig.passes(100);
    assert_eq!(rig.sends(20_001, SYN), None, "its backend sent it once more");

    rig.passes(21);

    assert_eq!(rig.opens(20_001), FIRST);
}

#[test]
fn a_client_that_resets_is_believed_after_three_seconds() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 1);
    rig.opens(20_000);
    assert_eq!(rig.sends(20_000, RST), Some(FIRST));

    assert_eq!(rig.sends(20_001, SYN), None, "anybody can have forged it");
    rig.passes(SILENCE + 1);
    assert_eq!(rig.opens(20_001), FIRST);
}

#[test]
fn a_client_that_resets_what_a_backend_remembers_of_the_port_keeps_it_for_its_next_syn() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 16);
    for forged in 0..200 {
        rig.sends(30_000 + forged, SYN);
    }
    rig.passes(1);
    // The backend answers out of place, as it does who has half a connection of the forged client there.
    let port = rig.sends(20_000, SYN).expect("a port is to be had");
    assert_eq!(rig.answers(port, ACK), Some(20_000));
    assert_eq!(rig.sends(20_000, RST), Some(port));

    for forged in 0..8 {
        rig.sends(31_000 + forged, SYN);
    }

    assert_eq!(rig.sends(20_000, SYN), Some(port), "where the backend is free of it now");
    assert_eq!(rig.answers(port, SYN | ACK), Some(20_000));
}

#[test]
fn ports_of_closed_connections_never_run_out() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    // 64 probes find nearly all of so few.
    let mut rig = Rig::new(Protocol::Tcp, 16);
    for client in 0..2_000 {
        let port = rig.opens(10_000 + client);
        rig.closes(10_000 + client, port);
    }
    assert_eq!(count(&rig.engine, "nat-ports-exhausted"), 0);
}

#[test]
fn a_flood_of_forged_beginnings_takes_no_port_of_who_is_in_use_and_keeps_nobody_out() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = Rig::new(protocol, 64);
        // The backend has no word in the flow of a client that only asks, so it has to go on later.
        let in_use: BTreeMap<u16, u16> = (20_000..20_020)
            .map(|client| {
                let port = rig.opens(client);
                rig.passes(1);
                assert_eq!(rig.sends(client, ACK), Some(port));
                (client, port)
            })
            .collect();

        for forged in 0..3_000 {
            if let Some(port) = rig.sends(30_000 + forged, SYN)
                && (forged % 2 == 0 || protocol == Protocol::Udp)
            {
                rig.answers(port, SYN | ACK);
            }
            if forged % 100 == 0 {
                assert!(
                    rig.sends(25_000 + forged / 100, SYN).is_some(),
                    "{protocol:?}: a new client is served"
                );
            }
        }

        for (client, port) in in_use {
            assert_eq!(rig.sends(client, ACK), Some(port), "{protocol:?}");
            assert_eq!(rig.answers(port, ACK), Some(client), "{protocol:?}");
        }
        assert_eq!(count(&rig.engine, "nat-ports-exhausted"), 0, "{protocol:?}");
    }
}

#[test]
fn one_question_and_its_answer_hold_no_port_against_the_next() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Udp, 4);
    for client in 0..500 {
        let port = rig.sends(20_000 + client, 0).expect("a port is to be had");
        assert_eq!(rig.answers(port, 0), Some(20_000 + client));
    }

    // Nobody gets the answer to the question of another.
    let mut rig = Rig::new(Protocol::Udp, 1);
    assert_eq!(rig.sends(20_000, 0), Some(FIRST));
    rig.passes(UDP_ANSWER);
    assert_eq!(rig.sends(20_001, 0), None);
    assert_eq!(rig.answers(FIRST, 0), Some(20_000));
    assert_eq!(rig.sends(20_001, 0), Some(FIRST));
    rig.passes(UDP_ANSWER + 1);
    assert_eq!(rig.sends(20_002, 0), Some(FIRST), "what was not answered by then never is");

    // A conversation keeps its port for two minutes of silence, and no longer.
    let mut rig = Rig::new(Protocol::Udp, 1);
    rig.opens(20_000);
    rig.passes(1);
    assert_eq!(rig.sends(20_000, 0), Some(FIRST));
    assert_eq!(rig.answers(FIRST, 0), Some(20_000));
    rig.passes(118);
    assert_eq!(rig.sends(20_001, 0), None);
    rig.passes(4);
    assert_eq!(rig.sends(20_001, 0), Some(FIRST));
}

#[test]
fn only_who_hears_the_backend_keeps_a_port() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    enum Step {
        Client(u8, u32),
        Backend(u8),
    }
    use Step::{Backend, Client};
    let offered = [Client(SYN, 0), Backend(SYN | ACK)];
    // Half a connection, of which we forgot what began it, is answered by an ACK out of place.
    let (half, halves) = ([Client(SYN, 0), Backend(ACK)], [Client(0, 0), Backend(ACK)]);
    let guesses = [Client(ACK, GUESSED), Backend(RST), Client(0, 0), Backend(ACK)];
    let cases: [(&str, bool, &[&[Step]]); 9] = [
        ("the number that is asked for", true, &[&offered, &[Client(ACK, OFFERED)]]),
        ("what is further on", true, &[&offered, &[Client(ACK, OFFERED + 65_535)]]),
        ("in the middle of a flow", true, &[&[Client(ACK, 1), Backend(ACK)], &[Client(ACK, 1)]]),
        ("no number", false, &[&offered, &[Client(0, OFFERED)]]),
        ("a guess", false, &[&offered, &[Client(ACK, GUESSED), Backend(RST), Backend(SYN | ACK)]]),
        ("a guess beforehand", false, &[&[Client(SYN, 0), Client(ACK, OFFERED)], &[Backend(SYN | ACK)]]),
        ("a SYN out of place", false, &[&half, &[Client(ACK, GUESSED)]]),
        ("a guess out of place", false, &[&halves, &guesses]),
        ("a reset first", false, &[&[Client(ACK, GUESSED), Backend(RST)], &guesses]),
    ];
    let mut rig = Rig::new(Protocol::Tcp, 1);
    for (case, keeps, steps) in cases {
        for step in steps.iter().copied().flatten() {
            match *step {
                Client(flags, ack) => assert_eq!(rig.acknowledges(20_000, flags, ack), Some(FIRST), "{case}"),
                Backend(flags) => assert_eq!(rig.answers(FIRST, flags), Some(20_000), "{case}"),
            }
        }

        assert_eq!(rig.sends(20_001, SYN), (!keeps).then_some(FIRST), "{case}");
        assert_eq!(rig.engine.sweep_at(u32::MAX, &Timeouts::default()).expect("swept").1, 1, "{case}");
    }
}

/// Xorshift; the seed stands in every failure.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

#[test]
fn no_two_connections_in_use_share_a_port_through_random_histories() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for seed in 1..=4u64 {
        let (mut rig, mut random) = (Rig::new(Protocol::Tcp, 12), seed * 0x9e37_79b9);
        let mut in_use: BTreeMap<u16, u16> = BTreeMap::new();
        for step in 0..1_500 {
            let client = 20_000 + (next(&mut random) % 40) as u16;
            match (next(&mut random) % 5, in_use.get(&client).copied()) {
                (0, Some(port)) => {
                    rig.closes(client, port);
                    in_use.remove(&client);
                }
                (1, Some(port)) => {
                    assert_eq!(rig.answers(port, RST | ACK), Some(client));
                    in_use.remove(&client);
                }
                (2, _) => rig.passes((next(&mut random) % 5) as u32),
                (_, Some(port)) => {
                    assert_eq!(rig.sends(client, ACK), Some(port), "seed {seed}, step {step}");
                    assert_eq!(rig.answers(port, ACK), Some(client), "seed {seed}, step {step}");
                }
                (3, None) => drop(rig.sends(client, SYN)),
                (_, None) => {
                    let Some(port) = rig.sends(client, SYN) else { continue };
                    // What both closed a moment ago goes on to its backend, and is the same flow still.
                    assert_eq!(rig.answers(port, SYN | ACK), Some(client), "seed {seed}, step {step}");
                    assert_eq!(rig.sends(client, ACK), Some(port), "seed {seed}, step {step}");
                    assert!(!in_use.values().any(|other| *other == port), "seed {seed}, step {step}: {port}");
                    in_use.insert(client, port);
                }
            }
        }
        assert!(count(&rig.engine, "forwarded-nat") > 500, "seed {seed}");
    }
}

#[test]
fn beginnings_that_fill_the_table_push_out_each_other_and_keep_nobody_out() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let (vip, backend) = ("203.0.113.1:80", "10.0.0.1:80");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut engine = World::new().service(protocol, vip, Local, &[backend]).load();
        engine.set_interface(LOOPBACK, OURS);
        let packet = |src: &str, dst: &str, flags| match protocol {
            Protocol::Tcp => Packet { flags, ..tcp(src, dst) },
            Protocol::Udp => udp(src, dst),
        };
        let asks = |engine: &mut Engine, client: &str, flags| {
            let run = engine.kernel.test_run("penstock", &packet(client, vip, flags).bytes(), 1);
            run.expect("the program runs").action
        };
        let answered = |engine: &mut Engine, client: &str, flags| {
            let out = engine.kernel.test_out(&packet(backend, client, flags).bytes()).expect("runs").packet;
            assert_eq!(out, packet(vip, client, flags).bytes(), "{protocol} {client}");
        };
        let begins = |engine: &mut Engine, client: &str| {
            assert_eq!(asks(engine, client, SYN), 2, "{protocol} {client}");
            answered(engine, client, SYN | ACK);
        };
        // Far more in a row than a new flow looks at.
        let old: Vec<String> = (1..=200).map(|number| format!("198.51.99.{number}:4000")).collect();
        old.iter().for_each(|client| begins(&mut engine, client));
        engine.kernel.age_translated(1).expect("entries are aged");
        old.iter().for_each(|client| assert_eq!(asks(&mut engine, client, ACK), 2, "{protocol} {client}"));

        let mut refused = 0;
        // Nobody looks at checksums on the way to a backend.
        let mut frame = packet("198.51.100.1:1024", vip, SYN).bytes();
        for number in 0..lb_common::maps::NAT_FLOWS + 2_000 {
            if number == lb_common::maps::NAT_FLOWS + 1_000 {
                // While the first are asked, each new flow asks 16 of them.
                refused = count(&engine, "nat-table-full");
                assert!(refused <= old.len() as u64 / 16 + 1, "{protocol}: {refused}");
            }
            let (host, port) = (number / 250 % 100, 1_024 + number / 25_000);
            frame[28..30].copy_from_slice(&[100 + host as u8, 1 + (number % 250) as u8]);
            frame[34..36].copy_from_slice(&(port as u16).to_be_bytes());
            let _ = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
        }
        for number in 1..=100 {
            let client = format!("198.51.98.{number}:4000");
            let asked = FiveTuple { protocol, src: client.parse().unwrap(), dst: vip.parse().unwrap() };
            if number == 1 {
                assert_eq!(engine.explain(asked).verdict, format!("forwarded-local to {backend}"));
            }
            begins(&mut engine, &client);
            if protocol == Protocol::Tcp {
                assert_eq!(asks(&mut engine, &client, ACK), 2, "{client}");
            }
        }

        for client in old {
            assert_eq!(asks(&mut engine, &client, ACK), 2, "{protocol} {client}");
            answered(&mut engine, &client, ACK);
        }
        assert_eq!(count(&engine, "nat-table-full"), refused, "{protocol}");
    }
}

#[test]
fn connections_that_are_forged_without_hearing_the_backend_keep_nobody_out() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let (vip, backend, client) = ("203.0.113.1:80", "10.0.0.1:80", "198.51.100.1:1024");
    let mut engine = World::new().service(Protocol::Tcp, vip, Local, &[backend]).load();
    engine.set_interface(LOOPBACK, OURS);
    let client_sends = |flags, ack| Packet { flags, ack, ..tcp(client, vip) }.bytes();
    let [mut begins, mut guesses, mut goes_on] =
        [(SYN, 0), (ACK, GUESSED), (ACK, OFFERED)].map(|(flags, ack)| client_sends(flags, ack));
    let mut offers = Packet { flags: SYN | ACK, ..tcp(backend, client) }.bytes();
    // Nobody looks at checksums on the way to a backend and back.
    let mut forges = |engine: &mut Engine, number: usize, frames: &mut [&mut Vec<u8>]| {
        let (host, port) = (number / 250 % 100, 1_024 + number / 25_000);
        let (addr, port) = ([100 + host as u8, 1 + (number % 250) as u8], (port as u16).to_be_bytes());
        for frame in frames {
            frame[28..30].copy_from_slice(&addr);
            frame[34..36].copy_from_slice(&port);
            let _ = engine.kernel.test_run("penstock", frame, 1).expect("the program runs");
        }
        offers[32..34].copy_from_slice(&addr);
        offers[36..38].copy_from_slice(&port);
        engine.kernel.test_out(&offers).expect("the program runs").packet[26..30] == [203, 0, 113, 1]
    };

    for number in 0..lb_common::maps::NAT_FLOWS + 1_000 {
        if number % 2 == 0 {
            assert!(forges(&mut engine, number, &mut [&mut begins, &mut guesses]), "{number}");
        } else {
            assert!(forges(&mut engine, number, &mut [&mut begins]), "{number}");
            assert!(forges(&mut engine, number, &mut [&mut guesses]), "{number}");
        }
    }

    for number in 200_000..200_100 {
        assert!(forges(&mut engine, number, &mut [&mut begins]), "{number}");
        assert!(forges(&mut engine, number, &mut [&mut goes_on]), "{number}");
    }
    assert_eq!(count(&engine, "nat-table-full"), 0);
}

#[test]
fn explain_tells_a_flow_that_finds_no_entry_as_the_program_does() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let vip = "203.0.113.1:80";
    let mut engine = World::new().service(Protocol::Udp, vip, Local, &["10.0.0.1:80"]).load();
    engine.set_interface(LOOPBACK, OURS);
    let protocol = Protocol::Udp;
    let told = |engine: &Engine, src: &str| {
        let asked = FiveTuple { protocol, src: src.parse().unwrap(), dst: vip.parse().unwrap() };
        let told = engine.explain(asked);
        (told.verdict, format!("{:?}", told.steps))
    };
    // Each client keeps its port. Nobody gives way for two minutes, because all of them are answered, and speak at a later
    // time again.
    let clients = |number: usize| {
        format!("198.51.{}.{}:{}", 100 + number / 50_000, 1 + number % 200, 1_024 + number / 200)
    };
    for round in 0..2 {
        for number in 0..lb_common::maps::NAT_FLOWS {
            let client = clients(number);
            let _ = engine.kernel.test_run("penstock", &udp(&client, vip).bytes(), 1);
            if round == 0 {
                let _ = engine.kernel.test_out(&udp("10.0.0.1:80", &client).bytes());
            }
        }
        engine.kernel.age_translated(1).expect("entries are aged");
    }
    assert_eq!(count(&engine, "nat-table-full"), 0);

    let (verdict, steps) = told(&engine, "203.0.113.77:4000");
    let run = engine.kernel.test_run("penstock", &udp("203.0.113.77:4000", vip).bytes(), 1).expect("runs");

    assert_eq!((run.action, count(&engine, "nat-table-full")), (1, 1));
    assert_eq!(verdict, "nat-table-full: dropped");
    assert!(
        steps.contains("find no room to be remembered") && steps.contains("spread the Services"),
        "{steps}"
    );
    let (verdict, _) = told(&engine, &clients(7));
    assert_eq!(verdict, "forwarded-local to 10.0.0.1:80", "who has one keeps it");
}

#[test]
fn what_two_cpus_leave_of_a_flow_that_they_end_at_once_is_swept() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(Protocol::Tcp, 100);
    let port = rig.opens(1);
    rig.engine.kernel.sweeper().expect("maps are there").leave_remains();
    let swept = |rig: &mut Rig, later: u32| {
        rig.engine.sweep_at(engine::now() + later, &Timeouts::default()).expect("swept").1
    };

    assert_eq!(swept(&mut rig, 0), 0, "the client's next packet may do it");
    assert_eq!((swept(&mut rig, 62), swept(&mut rig, 62)), (1, 0));

    // Nobody is taken for who it was.
    assert_eq!(rig.answers(port, ACK), None);
    rig.opens(1);
}
