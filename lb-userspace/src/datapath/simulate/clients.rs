//! Clients: when flows begin, how long they live, how often they send. Lives are heavy-tailed, as
//! they are everywhere; some flows say nearly nothing.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{Flow, TCP, wire_port};

/// No backend.
pub const GONE: u16 = u16::MAX;

/// Port of the simulated VIP.
pub const PORT: u16 = 443;

/// Address of the simulated VIP.
pub const fn vip() -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 1)
}

/// One flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its tuple.
    pub flow: Flow,
    /// Its number.
    number: u32,
    /// Backend that has its state.
    pub backend: u16,
    /// When it began.
    pub begin: u32,
    /// When it will have ended.
    pub end: u32,
    /// When it sent last.
    pub last: u32,
    /// Longest silence.
    gap: u32,
}

/// By number: which of two packets of one moment comes first matters to nobody, but must not be
/// left to chance.
impl Ord for Client {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

impl PartialOrd for Client {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Client {
    /// When it sends again.
    pub fn next(&self, now: u32) -> u32 {
        // Silences differ, but by nothing that one way of balancing could change for another.
        let shorter = mix(u64::from(self.number) << 32 | u64::from(now)) % u64::from(self.gap);
        now + self.gap - (shorter / 2) as u32
    }
}

/// All of them.
#[derive(Debug)]
pub struct Clients {
    chance: u64,
    strangers: u64,
    begun: u32,
    flows: u32,
    length: u32,
}

impl Clients {
    /// As many flows, beginning evenly in `length` units.
    pub fn new(seed: u64, flows: u32, length: u32) -> Self {
        Self { chance: mix(seed), strangers: mix(!seed), begun: 0, flows, length }
    }

    /// The next flow that begins now.
    pub fn begin(&mut self, now: u32) -> Option<Client> {
        let due = u64::from(self.flows) * u64::from(now + 1) / u64::from(self.length);
        if u64::from(self.begun) >= due {
            return None;
        }
        self.begun += 1;
        let (life, gap) = match self.draw() % 1000 {
            // Says something every few minutes, a few of them too seldom.
            0..40 => (self.pareto(300.0, 1.1), 60 + self.draw() % 240),
            // A flow like any other.
            _ => (self.pareto(10.0, 1.2), 2 + self.draw() % 20),
        };
        let flow = tuple(self.draw());
        let number = self.begun;
        let end = now.saturating_add(life);
        Some(Client { flow, number, backend: GONE, begin: now, end, last: now, gap: gap as u32 })
    }

    /// A tuple that no flow has.
    pub fn stranger(&mut self) -> Flow {
        self.strangers = mix(self.strangers);
        tuple(self.strangers)
    }

    /// Units of a Pareto distribution: at least `least`, the larger the shape the fewer the giants.
    fn pareto(&mut self, least: f64, shape: f64) -> u32 {
        let uniform = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
        (least / (1.0 - uniform).powf(1.0 / shape)).min(1e9) as u32
    }

    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.chance)
    }
}

fn tuple(chance: u64) -> Flow {
    let port = 1024 + (chance >> 32) as u16 % 64_000;
    Flow {
        src: IpAddr::from(Ipv4Addr::from_bits(chance as u32)).into(),
        dst: IpAddr::from(vip()).into(),
        ports: Flow::ports(wire_port(port), wire_port(PORT)),
        proto: TCP.into(),
    }
}

/// splitmix64's finish.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).wrapping_add(0x2545_f491_4f6c_dd1d)
}
