//! All ten backends are replaced, one by one, under a thousand TCP and a thousand UDP flows and with a flow table of
//! 1,024 entries. Every flow keeps its backend while that lives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::steer::Kind;
use lb_common::{Flow, HashKey};

use super::histories::{addr_of, backend, flow};
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

const GRACE: u32 = 20;
const BACKENDS: u8 = 10;

struct Client {
    flow: Flow,
    protocol: Protocol,
    backend: SocketAddr,
}

struct Rollout {
    balancer: Rehearsal,
    mode: ForwardingMode,
    /// Which backends there are, and whether they drain.
    backends: Vec<(u8, bool)>,
    clients: Vec<Client>,
    begun: u32,
    now: u32,
}

impl Rollout {
    fn new(seed: u32) -> Self {
        let balancer = Rehearsal::new(HashKey::expand([seed as u8; 16]), 10, GRACE as u16);
        let backends = (0..BACKENDS).map(|number| (number, false)).collect();
        let mut rollout = Self {
            balancer,
            mode: ForwardingMode::L2,
            backends,
            clients: Vec::new(),
            begun: seed << 16,
            now: 1000,
        };
        rollout.apply();
        rollout
    }

    fn apply(&mut self) {
        let vip: IpAddr = Ipv4Addr::new(203, 0, 113, 1).into();
        let mut want = Want::default();
        want.addrs.insert(vip, Owner::Vip);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let service = ObjectName::new("default", "rollout").into();
            let id = PoolId { service, port: 80, protocol, family: Family::V4 };
            want.vips.insert(Place { addr: vip, port: 80, protocol }, Target::Pool(id.clone()));
            let backends = self.backends.iter();
            let backends = backends.map(|(number, drains)| {
                (addr_of(*number), Backend { mode: self.mode, ..backend(*number, 1, *drains) })
            });
            want.pools.insert(id, Pool { backends: backends.collect(), ..Pool::default() });
        }
        assert_eq!(self.balancer.apply(&want, self.now), vec![]);
    }

    fn send(&mut self, flow: &Flow, kind: Kind) -> SocketAddr {
        let choice = self.balancer.send(flow, kind, self.now).expect("the VIP is there");
        self.balancer.book().backend_of(choice.backend).expect("somebody takes it").1
    }

    fn begin(&mut self, protocol: Protocol) -> SocketAddr {
        self.begun += 1;
        let flow = flow(self.begun, protocol);
        let backend = match protocol {
            Protocol::Tcp => self.send(&flow, Kind::Syn),
            Protocol::Udp => self.send(&flow, Kind::Datagram),
        };
        self.clients.push(Client { flow, protocol, backend });
        self.speak(self.clients.len() - 1);
        backend
    }

    fn speak(&mut self, index: usize) {
        let Client { flow, protocol, backend } = self.clients[index];
        let kind = if protocol == Protocol::Tcp { Kind::Segment } else { Kind::Datagram };
        let now = self.send(&flow, kind);
        assert_eq!(now, backend, "{protocol} flow {index} at {}: {:?}", self.now, self.backends);
    }

    /// Time passes in which every flow speaks again and again.
    fn pass(&mut self, units: u32) {
        let backends = &self.backends;
        self.clients.retain(|client| backends.iter().any(|(number, _)| addr_of(*number) == client.backend));
        for unit in 0..=units {
            if unit % (GRACE / 4) == 0 {
                (0..self.clients.len()).for_each(|index| self.speak(index));
            }
            self.balancer.settle(self.now);
            self.now += 1;
        }
    }

    /// Replaces all of them, with so much time between the steps.
    fn run(mut self, units: u32) -> Self {
        for _ in 0..1000 {
            self.begin(Protocol::Tcp);
            self.begin(Protocol::Udp);
        }
        for step in 0..BACKENDS {
            self.backends.push((BACKENDS + step, false));
            self.backends[0].1 = true;
            self.apply();
            self.pass(units);
            for _ in 0..20 {
                assert_ne!(self.begin(Protocol::Tcp), addr_of(step), "it drains");
            }
            if units > GRACE + 2 {
                assert_ne!(
                    self.begin(Protocol::Udp),
                    addr_of(step),
                    "it drains for longer than the grace time"
                );
            }
            self.backends.remove(0);
            self.apply();
            self.pass(units);
        }
        self
    }
}

#[test]
fn a_rollout_breaks_no_flow_whose_backend_lives_however_long_it_takes() {
    for (seed, units) in (1..).zip([0, 0, 1, 3, 7, GRACE, GRACE + 5, 2 * GRACE, 3 * GRACE]) {
        let rollout = Rollout::new(seed).run(units);

        assert_eq!(rollout.balancer.forgotten(), 0, "{units} units a step");
        assert!(rollout.clients.iter().filter(|client| client.protocol == Protocol::Tcp).count() > 50);
    }
}

/// Nobody can tell whether anything arrived by the mode before.
#[test]
fn a_mode_that_is_corrected_serves_new_udp_flows_at_once_and_tcp_goes_on_in_the_one_that_it_began_in() {
    let mut rollout = Rollout::new(78);
    let mode = |rollout: &mut Rollout, number: u32, protocol, kind| {
        let choice = rollout.balancer.send(&flow(number, protocol), kind, rollout.now).expect("served");
        let number = lb_common::backend::identity(&rollout.balancer.tables().backends, choice.backend).mode();
        lb_common::Mode::from_number(number)
    };
    let was = mode(&mut rollout, 1, Protocol::Tcp, Kind::Syn);

    rollout.mode = ForwardingMode::Tunnel;
    rollout.apply();

    let tunnel = Some(lb_common::Mode::Tunnel);
    assert_eq!(was, Some(lb_common::Mode::L2));
    assert_eq!(mode(&mut rollout, 1, Protocol::Tcp, Kind::Segment), was);
    assert_eq!(mode(&mut rollout, 2, Protocol::Tcp, Kind::Syn), tunnel);
    for number in 3..100 {
        assert_eq!(mode(&mut rollout, number, Protocol::Udp, Kind::Datagram), tunnel, "flow {number}");
    }
}
