//! A small, fixed set of VIPs and backends for tests of the program and for its benchmark.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::backend::NextHop;
use lb_common::tunnel::{self, Head, Round};
use lb_common::{HashKey, Mac, wire_port};
use penstock::datapath::engine::{Config, Engine};
use penstock::datapath::want::{Backend, Owner, Place, Pool, Target, Want, Way};
use penstock::model::ObjectName;
use penstock::model::l4::{Family, ForwardingMode, Listener, PoolId, Protocol};

/// Secret of the flow hash in tests.
pub const KEY: [u8; 16] = *b"0123456789abcdef";
/// SNAT ports in tests.
pub const NAT_PORTS: (u16, u16) = (61_000, 65_535);
/// How tests load the program.
pub const CONFIG: Config = Config::new(KEY, NAT_PORTS);
/// Our address towards IPv4 backends; also the node's own.
pub const NODE_V4: &str = "10.0.0.254";
/// Our address towards IPv6 backends; also the node's own.
pub const NODE_V6: &str = "fd00::fe";
/// Interface that BPF_PROG_TEST_RUN pretends a packet came in by.
pub const LOOPBACK: u32 = 1;

/// MAC of the backend whose address ends in `last`.
pub fn backend_mac(last: u8) -> Mac {
    Mac([0x02, 0, 0, 0, 1, last])
}

/// Builds a [`Want`] service by service.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The result.
    pub want: Want,
}

impl World {
    /// The node's own addresses and nothing else.
    pub fn new() -> Self {
        let mut world = Self::default();
        for addr in [NODE_V4, NODE_V6] {
            world.want.addrs.insert(ip(addr), Owner::Node);
        }
        world
    }

    /// A Service: VIP, mode, backends.
    pub fn service(mut self, protocol: Protocol, vip: &str, mode: ForwardingMode, backends: &[&str]) -> Self {
        let vip: SocketAddr = vip.parse().expect("test address");
        let id = pool_id(vip, protocol);
        let backends = backends
            .iter()
            .map(|addr| {
                let addr: SocketAddr = addr.parse().expect("test address");
                (addr, Backend { mode, ..backend(addr.ip()) })
            })
            .collect();
        self.vip(vip, protocol, Target::Pool(id.clone()));
        self.want.pools.insert(id, Pool { backends, ..Pool::default() });
        self
    }

    /// A VIP left to the proxy.
    pub fn punt(mut self, vip: &str, listener: Listener) -> Self {
        self.vip(vip.parse().expect("test address"), Protocol::Tcp, Target::Punt(listener));
        self
    }

    /// Tells the senders of a VIP that has no backend.
    pub fn rejecting(mut self, vip: &str, protocol: Protocol) -> Self {
        let id = pool_id(vip.parse().expect("test address"), protocol);
        self.want.pools.get_mut(&id).expect("the test made this pool").reject = true;
        self
    }

    fn vip(&mut self, vip: SocketAddr, protocol: Protocol, target: Target) {
        self.want.addrs.entry(vip.ip()).or_insert(Owner::Vip);
        self.want.vips.insert(Place { addr: vip.ip(), port: vip.port(), protocol }, target);
    }

    /// Changes the backends of the pool of a VIP.
    pub fn backends_mut(&mut self, vip: &str, protocol: Protocol) -> &mut BTreeMap<SocketAddr, Backend> {
        let id = pool_id(vip.parse().expect("test address"), protocol);
        &mut self.want.pools.get_mut(&id).expect("the test made this pool").backends
    }

    /// Loads the program with this world.
    pub fn load(&self) -> Engine {
        let mut engine = Engine::load(CONFIG).expect("the program loads");
        assert_eq!(engine.apply(self.want.clone()), vec![]);
        engine
    }
}

/// Pool that [`World::service`] makes for a VIP.
pub fn pool_id(vip: SocketAddr, protocol: Protocol) -> PoolId {
    PoolId {
        service: ObjectName::new("test", vip.ip().to_string()).into(),
        port: vip.port(),
        protocol,
        family: Family::of(vip.ip()),
    }
}

/// Tag of a backend within the tunnel.
pub fn tunnel_tag(addr: &str, proto: u8) -> u32 {
    let addr: SocketAddr = addr.parse().expect("test address");
    tunnel::tag(addr.ip().into(), wire_port(addr.port()), proto, HashKey::expand(KEY))
}

/// What another balancer sends as a datagram: the tunnel's header with the tags of a slot's owners, and the packet of a frame.
pub fn tunnelled(frame: &[u8], round: Round, backend: u32, other: u32) -> Vec<u8> {
    let proto = if frame[12..14] == [0x08, 0] { 4 } else { 41 };
    let cluster = tunnel::cluster(HashKey::expand(KEY));
    let words = [Head::new(proto, round).0, cluster, backend, other];
    words.into_iter().flat_map(u32::to_le_bytes).chain(frame[14..].iter().copied()).collect()
}

/// A backend behind the test interface.
pub fn backend(addr: IpAddr) -> Backend {
    let last = match addr {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let source = ip(if addr.is_ipv4() { NODE_V4 } else { NODE_V6 });
    let next_hop = NextHop::new(backend_mac(last), crate::packet::OURS, LOOPBACK);
    let way = Way { source, next_hop, mtu: 1500, tags: lb_common::Tags::NONE };
    Backend { weight: 1, draining: false, mode: ForwardingMode::Nat, to: addr, way }
}

fn ip(addr: &str) -> IpAddr {
    addr.parse().expect("test address")
}

/// Why programs cannot be run here, if they cannot: asked by their privileges, because loading them
/// to find out takes the verifier as long as the test.
pub fn can_run_programs() -> Result<(), String> {
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|(bit, _)| effective & 1 << bit == 0).map(|(_, name)| name).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{} missing", missing.join(", "))) }
}
