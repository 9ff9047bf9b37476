//! What is installed while the cases run.

use anyhow::{Result, ensure};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode, Protocol::Tcp};

use crate::world::{self, LOOPBACK, backend_mac};

/// A VIP of nobody here, by family.
pub const NOT_OURS: [&str; 2] = ["192.0.2.1:80", "[2001:db8:9::1]:80"];
/// Settled, one backend on our link.
pub const L2: [&str; 2] = ["203.0.113.2:80", "[2001:db8:1::2]:80"];
/// Backends enough for 64,000 flows with the ports of the tests.
pub const NAT: [&str; 2] = ["203.0.113.1:80", "[2001:db8:1::1]:80"];

/// First of the VIPs of the worlds that differ in size only; the others follow by their last two
/// bytes.
pub const SIZED: &str = "203.0.0.0:80";
/// VIPs of [`Which::Vips`].
pub const VIPS: u16 = 4000;
/// Backends of [`Which::Backends`].
pub const BACKENDS: u16 = 10_000;

/// Which of the worlds a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// One VIP of every kind.
    Main,
    /// One VIP, three backends.
    Small,
    /// [`VIPS`] of them, three backends each.
    Vips,
    /// One VIP, [`BACKENDS`].
    Backends,
}

/// The program with its tables, apart from those of the other worlds.
pub struct World {
    /// Its tables, and the programs that read them.
    pub engine: Engine,
}

const PROGRAMS: &[&str] = &[
    "bench_pass",
    "bench_swap",
    "bench_adjust",
    "bench_undo",
    "bench_vary_v4",
    "bench_vary_v6",
    "bench_renew_v4",
    "bench_renew_v6",
];

/// Every world, in the order of [`Which`].
pub fn load() -> Result<Vec<World>> {
    Ok(vec![main()?, sized(1, 3)?, sized(VIPS, 3)?, sized(1, BACKENDS)?])
}

fn main() -> Result<World> {
    use ForwardingMode::Nat;
    let [nat4, nat6] = NAT;
    let [l24, l26] = L2;
    let many = |v6: bool, count| -> Vec<String> { (1..=count).map(|last| backend(v6, 8080, last)).collect() };
    let world = world::World::new()
        .service(Tcp, nat4, Nat, &strs(&many(false, 32)))
        .service(Tcp, nat6, Nat, &strs(&many(true, 32)))
        .service(Tcp, l24, ForwardingMode::L2, &[&backend(false, 80, 1)])
        .service(Tcp, l26, ForwardingMode::L2, &[&backend(true, 80, 1)]);
    install(&world)
}

/// The forwarding mode of the worlds that differ in size.
const MODE: ForwardingMode = ForwardingMode::L2;

fn sized(vips: u16, backends: u16) -> Result<World> {
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

fn install(world: &world::World) -> Result<World> {
    let mut engine = Engine::load(world::CONFIG)?;
    engine.kernel.load_bench(PROGRAMS)?;
    let problems = engine.apply(world.want.clone());
    ensure!(problems.is_empty(), "{problems:?}");
    engine.set_interface(LOOPBACK, backend_mac(1));
    Ok(World { engine })
}

fn backend(v6: bool, port: u16, last: u8) -> String {
    if v6 { format!("[fd00::{last:x}]:{port}") } else { format!("10.0.0.{last}:{port}") }
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}
