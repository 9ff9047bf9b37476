//! What is installed while the cases run.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode, Protocol::Tcp};

use crate::world::{self, LOOPBACK, backend_mac, pool_id};

/// A VIP of nobody here, by family.
pub const NOT_OURS: [&str; 2] = ["192.0.2.1:80", "[2001:db8:9::1]:80"];
/// Settled, one backend on our link.
pub const L2: [&str; 2] = ["203.0.113.2:80", "[2001:db8:1::2]:80"];
/// Settled, one backend that unwraps.
pub const IPIP: [&str; 2] = ["203.0.113.3:80", "[2001:db8:1::3]:80"];
/// Settled, one backend on the host of another balancer.
pub const TUNNEL: [&str; 2] = ["203.0.113.4:80", "[2001:db8:1::4]:80"];
/// Every backend was just replaced, so that every slot is contested; `ipip`.
pub const CONTESTED: [&str; 2] = ["203.0.113.5:80", "[2001:db8:1::5]:80"];
/// Backends enough for 64,000 flows with the ports of the tests.
pub const NAT: [&str; 2] = ["203.0.113.1:80", "[2001:db8:1::1]:80"];
/// As many backends on this host.
pub const LOCAL: [&str; 2] = ["203.0.113.6:80", "[2001:db8:1::6]:80"];
/// One of them.
pub const HERE: [&str; 2] = ["10.0.0.1:8080", "[fd00::1]:8080"];
/// Another balancer's end of the tunnel.
pub const PEER: [&str; 2] = ["10.0.0.99:50000", "[fd00::63]:50000"];
/// Our own end of the tunnel.
pub const NODE: [&str; 2] = ["10.0.0.254:7183", "[fd00::fe]:7183"];

/// First of the VIPs of the worlds that differ in size only; the others follow by their last two
/// bytes.
pub const SIZED: &str = "203.0.0.0:80";
/// VIPs of [`Which::Vips`].
pub const VIPS: u16 = 4000;
/// Backends of [`Which::Backends`].
pub const BACKENDS: u16 = 10_000;

/// Which of the worlds a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// One settled VIP of every kind.
    Main,
    /// [`CONTESTED`] over IPv4. Apart from IPv6: the flows of both would fill the flow table.
    ContestedV4,
    /// [`CONTESTED`] over IPv6.
    ContestedV6,
    /// [`LOCAL`], apart because the flows of [`NAT`] fill the maps.
    Local,
    /// [`LOCAL`], reached by the tunnel.
    Here,
    /// One VIP, three backends.
    Small,
    /// [`VIPS`] of them, three backends each.
    Vips,
    /// One VIP, [`BACKENDS`].
    Backends,
}

/// The program with tables of its own for each of the worlds.
pub type Worlds = BTreeMap<Which, Engine>;

const PROGRAMS: &[&str] = &[
    "bench_pass",
    "bench_swap",
    "bench_adjust",
    "bench_undo",
    "bench_vary_v4",
    "bench_vary_v6",
    "bench_renew_v4",
    "bench_renew_v6",
    "bench_rewrap_v4",
    "bench_rewrap_v6",
];

/// Every world that is needed.
pub fn load(needed: impl Fn(Which) -> bool) -> Result<Worlds> {
    let all = [
        Which::Main,
        Which::ContestedV4,
        Which::ContestedV6,
        Which::Local,
        Which::Here,
        Which::Small,
        Which::Vips,
        Which::Backends,
    ];
    let world = |which| match which {
        Which::Main => main(),
        Which::ContestedV4 => contested(false),
        Which::ContestedV6 => contested(true),
        Which::Local => install(&local()),
        Which::Here => here(),
        Which::Small => sized(1, 3),
        Which::Vips => sized(VIPS, 3),
        Which::Backends => sized(1, BACKENDS),
    };
    all.into_iter().filter(|which| needed(*which)).map(|which| Ok((which, world(which)?))).collect()
}

fn main() -> Result<Engine> {
    use ForwardingMode::{Ipip, Nat, Tunnel};
    let mut world = world::World::new();
    for (vips, mode) in [(L2, ForwardingMode::L2), (IPIP, Ipip), (TUNNEL, Tunnel)] {
        for (vip, v6) in vips.into_iter().zip([false, true]) {
            world = world.service(Tcp, vip, mode, &[&backend(v6, 80, 1)]);
        }
    }
    install(&translated(world, NAT, Nat))
}

fn local() -> world::World {
    translated(world::World::new(), LOCAL, ForwardingMode::Local)
}

fn here() -> Result<Engine> {
    let mut world = local();
    for peer in PEER {
        world.want.peers.insert(peer.parse::<std::net::SocketAddr>()?.ip());
    }
    install(&world)
}

/// VIPs of both families, each with 32 backends.
fn translated(world: world::World, vips: [&str; 2], mode: ForwardingMode) -> world::World {
    vips.into_iter()
        .zip([false, true])
        .fold(world, |world, (vip, v6)| world.service(Tcp, vip, mode, &strs(&many(v6, 8080, 1..=32))))
}

fn contested(v6: bool) -> Result<Engine> {
    let vip = CONTESTED[usize::from(v6)];
    let of = |last| world::World::new().service(Tcp, vip, ForwardingMode::Ipip, &strs(&many(v6, 80, last)));
    let mut engine = install(&of(101..=110))?;
    // The old backends live on, or the flows would have nothing to keep.
    let (old, mut replaced) = (many(v6, 80, 101..=110), of(101..=120));
    for (addr, backend) in replaced.backends_mut(vip, Tcp) {
        backend.draining = old.contains(&addr.to_string());
    }
    let problems = engine.apply(replaced.want);
    ensure!(problems.is_empty(), "{problems:?}");
    let size = engine.table_size(&pool_id(vip.parse()?, Tcp));
    ensure!(size.is_some_and(|(slots, contested)| contested == slots as usize), "contested: {size:?}");
    Ok(engine)
}

fn many(v6: bool, port: u16, last: std::ops::RangeInclusive<u8>) -> Vec<String> {
    last.map(|last| backend(v6, port, last)).collect()
}

/// The forwarding mode of the worlds that differ in size.
const MODE: ForwardingMode = ForwardingMode::Ipip;

fn sized(vips: u16, backends: u16) -> Result<Engine> {
    let mut world = world::World::new();
    for vip in 0..vips {
        let [high, low] = vip.to_be_bytes();
        // Each VIP has backends of its own.
        let first = u32::from(vip) * u32::from(backends);
        let backends: Vec<String> = (first..first + u32::from(backends))
            .map(|number| format!("{}:80", std::net::Ipv4Addr::from(0x0a40_0000 + number)))
            .collect();
        world = world.service(Tcp, &format!("203.0.{high}.{low}:80"), MODE, &strs(&backends));
    }
    install(&world)
}

fn install(world: &world::World) -> Result<Engine> {
    let mut engine = Engine::load(world::CONFIG)?;
    engine.kernel.load_bench(PROGRAMS)?;
    let problems = engine.apply(world.want.clone());
    ensure!(problems.is_empty(), "{problems:?}");
    engine.set_interface(LOOPBACK, backend_mac(1));
    Ok(engine)
}

fn backend(v6: bool, port: u16, last: u8) -> String {
    if v6 { format!("[fd00::{last:x}]:{port}") } else { format!("10.0.0.{last}:{port}") }
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}
