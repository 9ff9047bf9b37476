//! The program on a wire: frames made by one namespace, balanced in the second, counted where they
//! arrive. Beside it the same work by nftables.
//!
//! Generator, balancer and sink share one core, so a frame's time is the sum of all three, and
//! what counts is the difference to the least a balancer can do: a MAC swap. Every frame has to
//! arrive. Rows are measured in turns; on a shared machine the fastest and the lower quartile are
//! what to compare.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lb_common::Mac;
use lb_common::backend::NextHop;
use lb_common::bench::{FRAME, Generator, PORTS_PER_CLIENT};
use penstock::datapath::engine::{Config, Engine};
use penstock::model::l4::ForwardingMode::{L2, Local, Nat};
use penstock::model::l4::Protocol::{Tcp, Udp};
use serde_json::json;

use super::connections::{self, Rate};
use crate::netns::{Host, Lab};
use crate::packet::{Packet, tcp, udp};
use crate::world::{KEY, World};

const ROUNDS: usize = 9;
const FRAMES: u32 = 500_000;

const VIP: &str = "203.0.113.1";
/// Backends of the VIP that is translated: they are all one host.
const BACKENDS: u8 = 32;
const FROM_CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 254));
const TO_BACKENDS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 254));
/// SNAT ports: those of the balancer's own connections are of no interest here.
const PORTS: (u16, u16) = (20_000, 65_535);

/// MACs of the interfaces.
const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BALANCER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const INNER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const BACKEND: Mac = Mac([2, 0, 0, 0, 0, 4]);

/// Frames on one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// Which.
    pub case: &'static str,
    /// Nanoseconds per frame of the fastest round, the lower quartile and the median.
    pub nanoseconds: [u64; 3],
    /// Fastest in units of the fastest of the row it stands beside.
    pub ratio: f64,
}

/// All that is measured on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Wire {
    /// Live frames; the first row is the generator's own cost, the second the MAC swap.
    pub frames: Vec<Frames>,
    /// New TCP connections; the first row is what client, routing host and server take alone, the second nftables.
    pub connections: Vec<Connections>,
}

/// New TCP connections on one way, by turns with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Connections {
    /// Which.
    pub case: &'static str,
    /// Of each round.
    pub rounds: Vec<Rate>,
    /// Connections per second of CPU time, in units of those of nftables: the median of the rounds' ratios, because both
    /// halves of a round saw the same machine.
    pub ratio: f64,
}

impl Wire {
    /// Rows of the JSON report.
    pub fn json(&self) -> Vec<serde_json::Value> {
        let frames = self.frames.iter().map(|Frames { case, nanoseconds: [min, p25, median], ratio }| {
            json!({ "case": case, "min_ns": min, "p25_ns": p25, "median_ns": median,
                    "ratio": super::hundredths(*ratio) })
        });
        let connections = self.connections.iter().map(|row| {
            let Rate { per_second, per_cpu_second } = row.best();
            json!({ "case": row.case, "per_second": per_second.round(), "per_cpu_second": per_cpu_second.round(),
                    "ratio": super::hundredths(row.ratio) })
        });
        frames.chain(connections).collect()
    }
}

impl Connections {
    /// The most that a round came to.
    pub fn best(&self) -> Rate {
        let none = Rate { per_second: 0.0, per_cpu_second: 0.0 };
        self.rounds.iter().fold(none, |best, round| Rate {
            per_second: best.per_second.max(round.per_second),
            per_cpu_second: best.per_cpu_second.max(round.per_cpu_second),
        })
    }

    fn beside(&mut self, peers: &[Rate]) {
        let ratio = |(ours, theirs): (&Rate, &Rate)| ours.per_cpu_second / theirs.per_cpu_second;
        let mut ratios: Vec<f64> = self.rounds.iter().zip(peers).map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        self.ratio = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    }
}

/// Builds the namespaces and measures everything, or `only` the `frames` or the `connections`.
pub fn run(only: &str) -> Result<Wire> {
    ensure!(["", "frames", "connections"].contains(&only), "--wire --only takes frames or connections");
    super::pin()?;
    let mut rig = Rig::new()?;
    let asked = |half: &str| only.is_empty() || only == half;
    let frames = if asked("frames") { rig.frames()? } else { Vec::new() };
    let connections = if asked("connections") { rig.connections()? } else { Vec::new() };
    Ok(Wire { frames, connections })
}

/// Client, balancer and backends, each two ends of a veth pair away from the next.
struct Rig {
    client: Host,
    balancer: Host,
    backends: Host,
    /// Interfaces: the client's, the balancer's two and the backends'.
    client_side: u32,
    outer: u32,
    inner: u32,
    backend_side: u32,
    engine: Engine,
    _lab: Lab,
}

/// What stands on the balancer's outer interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    /// Nothing: the stack forwards, by the rules of nftables.
    Nothing,
    /// Counts and drops.
    Sink,
    /// Swaps MACs.
    Swap,
    /// Ours.
    Us,
}

struct Way {
    case: &'static str,
    on: On,
    frame: Vec<u8>,
    flows: u32,
    /// Row that the ratio refers to.
    beside: &'static str,
    nanoseconds: Vec<u64>,
}

impl Rig {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let [client, balancer, backends] = ["client", "balancer", "backends"].map(|name| lab.host(name, &[]));
        let (client, balancer, backends) = (client?, balancer?, backends?);
        pair((&client, "eth0", CLIENT), (&balancer, "outer", BALANCER))?;
        pair((&balancer, "inner", INNER), (&backends, "eth0", BACKEND))?;
        client.run("ip addr add 10.0.0.1/24 dev eth0")?;
        client.route("203.0.113.0/24", FROM_CLIENT)?;
        client.route("10.1.0.0/24", FROM_CLIENT)?;
        // For answers of those who hear the client's own address.
        backends.run(&format!("ip addr add {VIP}/32 dev lo"))?;
        balancer.run("ip addr add 10.0.0.254/24 dev outer; ip addr add 10.1.0.254/24 dev inner")?;
        balancer.run("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        for last in 1..=BACKENDS {
            backends.run(&format!("ip addr add 10.1.0.{last}/24 dev eth0"))?;
            balancer
                .run(&format!("ip neigh replace 10.1.0.{last} lladdr {BACKEND} nud permanent dev inner"))?;
        }
        backends.route("10.0.0.0/24", TO_BACKENDS)?;
        balancer.run(&format!("ip neigh replace 10.0.0.1 lladdr {CLIENT} nud permanent dev outer"))?;
        balancer.run(&format!("nft -f - <<'RULES'\n{}\nRULES", rules()))?;

        let (client_side, backend_side) = (index(&client, "eth0")?, index(&backends, "eth0")?);
        let (outer, inner) = (index(&balancer, "outer")?, index(&balancer, "inner")?);
        let mut engine = Engine::load(Config::new(KEY, PORTS))?;
        engine.kernel.load_bench(&["bench_generate", "bench_sink", "bench_swap"])?;
        let problems = engine.apply(world(outer, inner).want);
        ensure!(problems.is_empty(), "{problems:?}");
        engine.set_interface(outer, BALANCER);
        engine.set_interface(inner, INNER);
        balancer.within(|| {
            engine.kernel.allow_device(outer, outer)?;
            engine.kernel.allow_device(inner, inner)
        })?;
        Ok(Self { client, balancer, backends, client_side, outer, inner, backend_side, engine, _lab: lab })
    }

    fn frames(&mut self) -> Result<Vec<Frames>> {
        let (client, backends) = (self.client.clone(), self.backends.clone());
        let (client_side, backend_side) = (self.client_side, self.backend_side);
        let kernel = &mut self.engine.kernel;
        let _sinks = [
            client.within(|| kernel.attach_bench("bench_sink", client_side))?,
            backends.within(|| kernel.attach_bench("bench_sink", backend_side))?,
        ];
        let mut ways = ways();
        for round in 0..=ROUNDS {
            for way in &mut ways {
                let nanoseconds = self.send(way).with_context(|| way.case)?;
                // The first round makes flows known.
                if round > 0 {
                    way.nanoseconds.push(nanoseconds);
                }
            }
        }
        for way in &mut ways {
            way.nanoseconds.sort_unstable();
        }
        let fastest = |name: &str| ways.iter().find(|way| way.case == name).map_or(1, |way| way.at(0));
        let frames = |way: &Way| Frames {
            case: way.case,
            nanoseconds: [0, ROUNDS / 4, ROUNDS / 2].map(|at| way.at(at)),
            ratio: way.at(0) as f64 / fastest(way.beside).max(1) as f64,
        };
        Ok(ways.iter().map(frames).collect())
    }

    /// Sends frames one way and counts them at its end.
    fn send(&mut self, way: &Way) -> Result<u64> {
        let Self { client, balancer, engine, client_side, outer, .. } = self;
        let program = match way.on {
            On::Nothing => None,
            On::Sink => Some("bench_sink"),
            On::Swap => Some("bench_swap"),
            On::Us => Some("penstock"),
        };
        let kernel = &mut engine.kernel;
        let _attached =
            program.map(|program| balancer.within(|| kernel.attach_bench(program, *outer))).transpose()?;
        let mut frame = [0; FRAME];
        frame.iter_mut().zip(&way.frame).for_each(|(to, from)| *to = *from);
        kernel.set_generator(&Generator {
            frame,
            next: 0,
            flow_mask: way.flows.wrapping_sub(1),
            vips: 0,
            run: 0,
            grow: 0,
            grown: 0,
        })?;
        let before = kernel.sunk()?;
        let nanoseconds = client.within(|| {
            super::pin()?;
            Ok::<_, anyhow::Error>(kernel.send_live("bench_generate", &way.frame, FRAMES, *client_side)?)
        })?;
        let arrived = kernel.sunk()? - before;
        ensure!(arrived == u64::from(FRAMES), "{arrived} of {FRAMES} frames arrived");
        Ok(nanoseconds)
    }

    fn connections(&mut self) -> Result<Vec<Connections>> {
        self.balancer.run(NO_RULES)?;
        let _server = connections::Server::start(&self.backends, SERVED)?;
        let mut rows = [ROUTED, RULES, NAT, LOCAL, L2_ONWARD].map(|case| Connections {
            case,
            rounds: Vec::with_capacity(ROUNDS),
            ratio: 0.0,
        });
        for _ in 0..ROUNDS {
            for row in &mut rows {
                row.rounds.push(self.connect(row.case).with_context(|| row.case)?);
            }
        }
        let [_, peer, ..] = &rows;
        let peer = peer.rounds.clone();
        rows.iter_mut().for_each(|row| row.beside(&peer));
        Ok(rows.into())
    }

    /// Connections on one way. Who does without rules or without our programs is not to pay for them.
    fn connect(&mut self, case: &str) -> Result<Rate> {
        let Self { client, balancer, engine, outer, inner, .. } = self;
        let (host, port) = match case {
            ROUTED => (ROUTED_TO, SERVED),
            RULES | NAT => (VIP, 80),
            LOCAL => (VIP, LOCAL_PORT),
            _ => (VIP, SERVED),
        };
        let to = format!("{host}:{port}").parse()?;
        match case {
            ROUTED => connections::measure(client, to),
            RULES => {
                balancer.run(&format!("nft -f - <<'RULES'\n{}\nRULES", rules()))?;
                let rate = connections::measure(client, to);
                balancer.run(NO_RULES)?;
                rate
            }
            _ => {
                let attached = balancer.within(|| {
                    engine.kernel.attach_out("outer", *outer)?;
                    let outer = engine.kernel.attach_bench("penstock", *outer)?;
                    Ok::<_, anyhow::Error>([outer, engine.kernel.attach_bench("penstock", *inner)?])
                })?;
                let rate = connections::measure(client, to);
                drop(attached);
                engine.kernel.detach_from(*outer);
                rate
            }
        }
    }
}

impl Way {
    fn at(&self, index: usize) -> u64 {
        self.nanoseconds.get(index).copied().unwrap_or_default()
    }
}

const ONE: u32 = 1;
/// Ports of one client: another address would need another header checksum, which the stack checks.
const SOME: u32 = PORTS_PER_CLIENT;
const MANY: u32 = 1 << 20;

fn ways() -> Vec<Way> {
    let to = |port: u16| {
        let packet = tcp("10.0.0.0:1024", &format!("{VIP}:{port}"));
        Packet { dst_mac: BALANCER, src_mac: CLIENT, payload: vec![0; 10], ..packet }.bytes()
    };
    let way = |case, on, port, flows, beside| Way {
        case,
        on,
        frame: to(port),
        flows,
        beside,
        nanoseconds: Vec::new(),
    };
    // Without a checksum: the stack would have to find it right, whatever the port.
    let datagram = udp("10.0.0.1:1024", &format!("{VIP}:53"));
    let datagram =
        Packet { dst_mac: BALANCER, src_mac: CLIENT, payload: vec![0; 22], no_csum: true, ..datagram };
    let datagrams = |case, on| Way { frame: datagram.bytes(), ..way(case, on, 53, SOME, NFTABLES) };
    vec![
        way("wire-drop", On::Sink, L2_PORT, ONE, SWAP),
        way(SWAP, On::Swap, L2_PORT, ONE, SWAP),
        way("wire-l2", On::Us, L2_PORT, ONE, SWAP),
        way("wire-l2-1m", On::Us, L2_PORT, MANY, SWAP),
        datagrams(NFTABLES, On::Nothing),
        datagrams("wire-udp-nat", On::Us),
    ]
}

const SWAP: &str = "wire-mac-swap";
const NFTABLES: &str = "wire-udp-nftables";
const L2_PORT: u16 = 82;
const LOCAL_PORT: u16 = 81;
/// Port of the backends' server, and of the VIP whose packets it gets as they came.
const SERVED: u16 = 8080;

fn world(outer: u32, inner: u32) -> World {
    let back = NextHop::new(CLIENT, BALANCER, outer);
    let through = NextHop::new(BACKEND, INNER, inner);
    let mut world = World::new();
    for (protocol, port, mode, next_hop) in [
        (Tcp, 80, Nat, through),
        (Udp, 53, Nat, through),
        (Tcp, LOCAL_PORT, Local, through),
        (Tcp, SERVED, L2, through),
        (Tcp, L2_PORT, L2, back),
    ] {
        let vip = format!("{VIP}:{port}");
        let backends: Vec<String> = (1..=BACKENDS).map(|last| format!("10.1.0.{last}:8080")).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        world = world.service(protocol, &vip, mode, &backends);
        for backend in world.backends_mut(&vip, protocol).values_mut() {
            backend.way.next_hop = next_hop;
            backend.way.source = TO_BACKENDS;
        }
    }
    let node = penstock::datapath::want::Owner::Node;
    world.want.addrs.extend([(FROM_CLIENT, node), (TO_BACKENDS, node)]);
    world
}

/// Connections that the balancer's host routes and nobody balances.
const ROUTED: &str = "connections-routed";
const ROUTED_TO: &str = "10.1.0.1";
const RULES: &str = "connections-nftables";
const NAT: &str = "connections-nat";
const LOCAL: &str = "connections-local";
/// The backends have the VIP, too. Their answers come back by this host, which routes them.
const L2_ONWARD: &str = "connections-l2";
const NO_RULES: &str = "nft delete table ip penstock_bench";

/// The same VIPs for nftables.
fn rules() -> String {
    let backends: Vec<String> = (1..=BACKENDS).map(|last| format!("{} : 10.1.0.{last}", last - 1)).collect();
    let to = format!("dnat to numgen inc mod {BACKENDS} map {{ {} }}", backends.join(", "));
    format!(
        "table ip penstock_bench {{
            chain incoming {{
                type nat hook prerouting priority dstnat;
                ip daddr {VIP} tcp dport 80 {to} : 8080
                ip daddr {VIP} udp dport 53 {to} : 8080
            }}
            chain outgoing {{
                type nat hook postrouting priority srcnat;
                oifname inner masquerade
            }}
        }}"
    )
}

/// A veth pair between two hosts, set up as XDP needs it.
fn pair(one: (&Host, &str, Mac), other: (&Host, &str, Mac)) -> Result<()> {
    let (host, device, mac) = one;
    let (peer, peer_device, peer_mac) = other;
    host.run(&format!(
        "ip link add {device} address {mac} type veth peer name {peer_device} address {peer_mac} netns {}",
        peer.namespace()
    ))?;
    for (host, device, _) in [one, other] {
        // Neighbour discovery and its like would be counted as frames.
        host.run(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6"))?;
        // Whoever receives redirected frames needs NAPI, and senders have to make checksums.
        host.run(&format!("ip link set {device} up && ethtool -K {device} tx off gro on"))?;
    }
    Ok(())
}

fn index(host: &Host, device: &str) -> Result<u32> {
    // Not from /sys, which shows the namespace that mounted it.
    let link = host.run(&format!("ip -o link show dev {device}"))?;
    let index = link.split(':').next().and_then(|index| index.trim().parse().ok());
    index.with_context(|| format!("index of {device}"))
}
