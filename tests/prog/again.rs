//! A client's port that is used again: a SYN where a translated flow is remembered.

use std::collections::BTreeSet;

use lb_common::nat::{SILENCE, Timeouts};
use lb_tests::packet::{ACK, FIN, OURS, Packet, SYN, tcp};
use lb_tests::world::{LOOPBACK, World, backend, backend_mac, can_run_programs};
use penstock::datapath::engine::{Engine, now};
use penstock::datapath::want;
use penstock::model::l4::{ForwardingMode, Protocol::Tcp};

const VIP: &str = "203.0.113.1:80";
const MODES: [ForwardingMode; 2] = [ForwardingMode::Nat, ForwardingMode::Local];
const RST: u8 = 4;
const OLD: u8 = 1;
const NEW: u8 = 3;
const FLOWS: u16 = 40;

fn addr(last: u8) -> std::net::SocketAddr {
    ([10, 0, 0, last], 8080).into()
}

/// A VIP whose flows all have the old backend.
struct Rig {
    world: World,
    engine: Engine,
    mode: ForwardingMode,
}

impl Rig {
    fn new(mode: ForwardingMode) -> Self {
        let world = World::new().service(Tcp, VIP, mode, &[&addr(OLD).to_string()]);
        let engine = world.load();
        engine.set_interface(LOOPBACK, OURS);
        Self { world, engine, mode }
    }

    /// The new backend takes nearly all new flows; what becomes of the old one.
    fn change(&mut self, old: impl Fn(&mut want::Backend)) {
        let backends = self.world.backends_mut(VIP, Tcp);
        backends.values_mut().for_each(old);
        let new = want::Backend { mode: self.mode, weight: 100, ..backend(addr(NEW).ip()) };
        backends.insert(addr(NEW), new);
        assert_eq!(self.engine.apply(self.world.want.clone()), vec![]);
    }

    /// A client's packet as the backend gets it: which backend that is, and the port it comes from.
    fn sends(&mut self, client: u16, flags: u8) -> (u8, u16) {
        let packet = Packet { flags, ..tcp(&format!("198.51.100.7:{client}"), VIP) };
        let run = self.engine.kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs");
        let action = if self.mode == ForwardingMode::Local { 2 } else { 3 };
        assert_eq!(run.action, action, "{:?}, port {client}", self.mode);
        (run.packet[33], u16::from_be_bytes([run.packet[34], run.packet[35]]))
    }

    /// Whether a backend's answer to this port is translated back to the client.
    fn answers(&mut self, last: u8, port: u16, client: u16, flags: u8) -> bool {
        let local = self.mode == ForwardingMode::Local;
        let to = if local { format!("198.51.100.7:{port}") } else { format!("10.0.0.254:{port}") };
        let src_mac = backend_mac(last);
        let packet = Packet { flags, src_mac, ..tcp(&addr(last).to_string(), &to) };
        let run = if local {
            self.engine.kernel.test_out(&packet.bytes())
        } else {
            self.engine.kernel.test_run("penstock", &packet.bytes(), 1)
        };
        let out = run.expect("the program runs").packet;
        out[26..30] == [203, 0, 113, 1] && out[36..38] == client.to_be_bytes()
    }

    /// A flow that both sides have sent something of, with a lease; the client's packet as its backend gets it.
    fn begins(&mut self, client: u16) -> (u8, u16) {
        let (last, port) = self.sends(client, SYN);
        assert!(self.answers(last, port, client, SYN | ACK), "{:?}", self.mode);
        assert_eq!(self.sends(client, ACK), (last, port), "{:?}", self.mode);
        (last, port)
    }

    /// Nobody sends anything for so long.
    fn passes(&mut self, units: u32) {
        self.engine.kernel.age_translated(units).expect("entries are aged");
    }

    /// Flows remembered, which one sweep counts. None is of the other mode.
    fn remembered(&mut self) -> usize {
        self.remembered_at(now())
    }

    fn remembered_at(&mut self, now: u32) -> usize {
        let (live, _) = self.engine.sweep_at(now, &Timeouts::default()).expect("sweeps");
        let (own, other) = match self.mode {
            ForwardingMode::Local => (live.local, live.nat),
            _ => (live.nat, live.local),
        };
        assert_eq!(other, 0, "{:?}", self.mode);
        own
    }
}

/// How a flow ends.
fn end(rig: &mut Rig, how: &str, client: u16, port: u16) {
    match how {
        "reset by the client" => drop(rig.sends(client, RST)),
        "reset by the backend" => assert!(rig.answers(OLD, port, client, RST | ACK)),
        "closed by both" => {
            rig.sends(client, FIN | ACK);
            assert!(rig.answers(OLD, port, client, FIN | ACK));
            rig.sends(client, ACK);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_syn_on_the_ports_of_an_ended_flow_begins_anew() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        let mut ended = Vec::new();
        for (how, first) in
            [("reset by the client", 0), ("reset by the backend", FLOWS), ("closed by both", 2 * FLOWS)]
        {
            for client in (first..first + FLOWS).map(|number| 20_000 + number) {
                let (last, port) = rig.begins(client);
                assert_eq!(last, OLD, "{mode:?}, {how}");
                end(&mut rig, how, client, port);
                ended.push((how, client, port));
            }
        }
        rig.change(|_| {});
        rig.passes(SILENCE + 1);

        let mut moved = 0;
        for (how, client, before) in &ended {
            let (client, case) = (*client, format!("{mode:?}, {how}"));
            let (last, port) = rig.sends(client, SYN);
            moved += usize::from(last == NEW);

            // Whatever it got stays, without and with a lease.
            for flags in [SYN, ACK, ACK] {
                assert_eq!(rig.sends(client, flags), (last, port), "{case}");
            }
            assert!(rig.answers(last, port, client, SYN | ACK), "{case}");
            if last == NEW {
                assert!(!rig.answers(OLD, *before, client, ACK), "{case}: the old flow is forgotten");
            }
        }
        assert!(moved > 100, "{mode:?}: {moved} of {} went to whom the table names", ended.len());
        assert_eq!(rig.remembered(), ended.len(), "{mode:?}: nothing else is remembered");
    }
}

#[test]
fn a_syn_behind_the_reset_of_a_backend_begins_anew_at_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        let begun: Vec<_> = (20_000..20_000 + FLOWS).map(|client| (client, rig.begins(client).1)).collect();
        rig.change(|_| {});

        let moved = begun.into_iter().filter(|(client, port)| {
            assert!(rig.answers(OLD, *port, *client, RST | ACK), "{mode:?}");
            rig.sends(*client, SYN).0 == NEW
        });

        assert!(moved.count() > 30, "{mode:?}");
    }
}

/// Whoever guesses a client's address and port can send both.
#[test]
fn a_forged_reset_and_a_forged_syn_move_no_flow_that_is_in_use() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        let begun: Vec<_> = (20_000..20_000 + FLOWS).map(|client| (client, rig.begins(client))).collect();
        rig.change(|_| {});

        for (client, before) in begun {
            for (case, forged) in [("reset", [RST, SYN]), ("end", [FIN | ACK, SYN])] {
                for flags in forged {
                    assert_eq!(rig.sends(client, flags), before, "{mode:?}, {case}");
                }
                assert!(rig.answers(OLD, before.1, client, ACK), "{mode:?}, {case}");
                assert_eq!(rig.sends(client, ACK), before, "{mode:?}, {case}: the flow goes on");
            }
        }
        assert_eq!(rig.remembered(), usize::from(FLOWS), "{mode:?}");
    }
}

#[test]
fn a_flow_that_goes_on_behind_a_forged_reset_is_remembered_as_long_as_any() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        for (client, goes_on) in [(20_000, true), (20_001, false)] {
            let before = rig.begins(client);
            rig.sends(client, RST);
            if goes_on {
                assert_eq!(rig.sends(client, ACK), before, "{mode:?}");
            }
        }

        let later = now() + Timeouts::default().tcp_closed + 10;
        assert_eq!(rig.remembered_at(later), 1, "{mode:?}");
    }
}

#[test]
fn a_syn_on_the_ports_of_a_flow_whose_backend_drains_begins_anew() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        let begun: Vec<_> = (20_000..20_000 + FLOWS).map(|client| (client, rig.sends(client, SYN))).collect();
        rig.change(|old| old.draining = true);

        for (client, before) in &begun {
            for flags in [SYN, ACK] {
                assert_eq!(rig.sends(*client, flags), *before, "{mode:?}: the flow goes on");
            }
        }
        rig.passes(SILENCE + 1);

        for (client, before) in begun {
            let (last, port) = rig.sends(client, SYN);

            assert_eq!(last, NEW, "{mode:?}");
            assert_eq!(rig.sends(client, ACK), (NEW, port), "{mode:?}");
            assert!(rig.answers(NEW, port, client, SYN | ACK), "{mode:?}");
            assert!(!rig.answers(OLD, before.1, client, ACK), "{mode:?}: the old flow is forgotten");
        }
        assert_eq!(rig.remembered(), usize::from(FLOWS), "{mode:?}: nothing else is remembered");
    }
}

#[test]
fn a_syn_that_nobody_takes_ends_no_flow() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in MODES {
        let mut rig = Rig::new(mode);
        let before = rig.sends(20_000, SYN);
        rig.world.backends_mut(VIP, Tcp).values_mut().for_each(|old| old.draining = true);
        assert_eq!(rig.engine.apply(rig.world.want.clone()), vec![]);
        rig.passes(SILENCE + 1);

        let syn = Packet { flags: SYN, ..tcp("198.51.100.7:20000", VIP) };
        let refused = rig.engine.kernel.test_run("penstock", &syn.bytes(), 1).expect("the program runs");

        assert_eq!(refused.action, 1, "{mode:?}");
        assert_eq!(rig.sends(20_000, ACK), before, "{mode:?}: who goes on keeps its backend");
    }
}

#[test]
fn a_port_that_is_used_again_and_again_takes_no_more_than_one() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rig = Rig::new(ForwardingMode::Nat);
    let mut ports = BTreeSet::new();
    for _ in 0..500 {
        ports.insert(rig.sends(20_000, SYN));
        rig.sends(20_000, RST);
    }

    assert_eq!((ports.len(), rig.remembered()), (1, 1));
}
