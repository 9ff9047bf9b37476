//! All ten backends are replaced, one by one, under a thousand TCP and a thousand UDP flows, with a flow table of
//! 1,024 entries: the program breaks no flow whose backend lives.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::verdict::Event;
use lb_tests::packet::{ACK, OURS, Packet, SYN, tcp, udp};
use lb_tests::world::{self, CONFIG, LOOPBACK, World, backend_mac, can_run_programs};
use penstock::datapath::engine::{self, Config, Engine};
use penstock::datapath::want::Backend;
use penstock::model::l4::{ForwardingMode, Protocol};

const VIP: &str = "203.0.113.9:80";
const BACKENDS: u8 = 10;

struct Client {
    protocol: Protocol,
    src: String,
    /// Last byte of its address.
    backend: u8,
}

struct Rollout {
    engine: Engine,
    world: World,
    clients: Vec<Client>,
}

fn addr(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 80).into()
}

impl Rollout {
    fn new() -> Self {
        let first: Vec<String> = (1..=BACKENDS).map(|last| addr(last).to_string()).collect();
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        let world = World::new().service(Protocol::Tcp, VIP, ForwardingMode::L2, &first).service(
            Protocol::Udp,
            VIP,
            ForwardingMode::L2,
            &first,
        );
        let engine = Engine::load(Config { flow_bits: 10, ..CONFIG }).expect("the program loads");
        let mut rollout = Self { engine, world, clients: Vec::new() };
        rollout.apply();
        rollout
    }

    fn apply(&mut self) {
        assert_eq!(self.engine.apply(self.world.want.clone()), vec![]);
        self.engine.settle_at(engine::now());
    }

    fn send(&self, protocol: Protocol, src: &str, flags: u8) -> u8 {
        let frame = match protocol {
            Protocol::Tcp => Packet { flags, ..tcp(src, VIP) },
            Protocol::Udp => udp(src, VIP),
        };
        let run = self.engine.kernel.test_run("penstock", &frame.bytes(), 1).expect("the program runs");
        let backend = run.packet[5];
        assert_eq!(run.packet[..6], backend_mac(backend).0, "{protocol} of {src}");
        backend
    }

    fn begin(&mut self, protocol: Protocol, src: String) -> u8 {
        let backend = self.send(protocol, &src, SYN);
        assert_eq!(self.send(protocol, &src, ACK), backend, "{protocol} of {src} begins");
        self.clients.push(Client { protocol, src, backend });
        backend
    }

    /// Every flow sends; those of backends that are gone are gone, too.
    fn round(&mut self, step: u8) {
        let living = self.world.backends_mut(VIP, Protocol::Tcp).clone();
        self.clients.retain(|client| living.contains_key(&addr(client.backend)));
        for Client { protocol, src, backend } in &self.clients {
            assert_eq!(self.send(*protocol, src, ACK), *backend, "step {step}: {protocol} of {src}");
        }
    }

    fn change(&mut self, change: impl Fn(&mut BTreeMap<SocketAddr, Backend>)) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            change(self.world.backends_mut(VIP, protocol));
        }
        self.apply();
    }
}

#[test]
fn replacing_all_backends_breaks_no_flow_of_a_living_one_with_hardly_a_place_for_each() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut rollout = Rollout::new();
    for number in 0..1000 {
        rollout.begin(Protocol::Tcp, format!("198.51.100.7:{}", 10_000 + number));
        rollout.begin(Protocol::Udp, format!("198.51.100.8:{}", 10_000 + number));
    }
    for step in 1..=BACKENDS {
        rollout.change(|backends| {
            backends.insert(addr(BACKENDS + step), world::backend(addr(BACKENDS + step).ip()));
            backends.get_mut(&addr(step)).expect("it is there").draining = true;
        });
        rollout.round(step);
        for number in 0..20 {
            let src = format!("198.51.100.9:{}", 10_000 + 20 * u16::from(step) + number);
            assert_ne!(rollout.begin(Protocol::Tcp, src), step, "step {step}: it drains");
        }
        rollout.round(step);
        rollout.change(|backends| _ = backends.remove(&addr(step)));
        rollout.round(step);
    }

    let begun = rollout.clients.iter().filter(|client| client.protocol == Protocol::Tcp).count();
    assert!(begun > 50, "{begun} of 200 flows that began meanwhile have lasting backends");
    let events: Vec<(Event, u64)> = rollout.engine.events();
    assert_eq!(events.iter().find(|(event, _)| *event == Event::Forgot), Some(&(Event::Forgot, 0)));
}

#[test]
fn a_udp_flow_whose_backend_is_gone_moves_at_once_in_every_mode() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in ForwardingMode::ALL {
        let first = [1, 2, 3].map(|last| addr(last).to_string());
        let mut world = World::new().service(Protocol::Udp, VIP, mode, &first.each_ref().map(String::as_str));
        let mut engine = world.load();
        engine.set_interface(LOOPBACK, OURS);
        // One that comes first: half of the flows are in contested slots, and remembered.
        world
            .backends_mut(VIP, Protocol::Udp)
            .insert(addr(4), Backend { mode, ..world::backend(addr(4).ip()) });
        assert_eq!(engine.apply(world.want.clone()), vec![]);
        let sent = |engine: &Engine| -> BTreeMap<u16, u8> {
            let send = |port: u16| {
                let frame = udp(&format!("198.51.100.7:{port}"), VIP).bytes();
                let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");
                let local = mode == ForwardingMode::Local;
                assert_eq!(run.action, if local { 2 } else { 3 }, "{mode}: {port}");
                assert_ne!(run.packet, frame, "{mode}: {port}");
                (port, if local { run.packet[33] } else { run.packet[5] })
            };
            (1024..1224).map(send).collect()
        };
        let before = sent(&engine);
        assert_eq!(sent(&engine), before, "{mode}");

        world.backends_mut(VIP, Protocol::Udp).remove(&addr(2));
        assert_eq!(engine.apply(world.want.clone()), vec![]);

        let after = sent(&engine);
        let gone = before.values().filter(|backend| **backend == 2).count();
        assert!(gone > 20, "{mode}: {gone} flows had it");
        for (port, backend) in &before {
            let now = after[port];
            assert_eq!(now == *backend, *backend != 2, "{mode}: {port} went from {backend} to {now}");
        }
        assert_eq!(sent(&engine), after, "{mode}: and stay there");
    }
}
