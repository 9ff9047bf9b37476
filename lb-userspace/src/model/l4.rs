//! L4 desired state: which VIPs the kernel program balances, over which backends, and which it
//! punts to the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{ObjectName, Shared};

/// Everything the datapath has to install.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct L4 {
    /// One entry per Service port and address family; each owns one Maglev table.
    pub pools: Shared<PoolId, Pool>,
    /// VIPs left to the proxy. They win over a pool that claims the same address and port (the
    /// translation reports the clash).
    pub punts: BTreeMap<Vip, Punt>,
    /// Our own tunnel addresses, at most one for each family: the outer source of what we tunnel,
    /// and where we take tunnelled packets. Empty: we tunnel nothing and take nothing.
    pub tunnel: BTreeSet<IpAddr>,
    /// Tunnel addresses of every other node that runs Penstock: who may send us tunnelled packets.
    pub peers: BTreeSet<IpAddr>,
    /// Those whose agent is known not to run: their kernel part goes on, but knows no backend that is new.
    pub silent: BTreeSet<IpAddr>,
    /// Ports at which whoever sends packets to this node asks whether it should.
    pub health_ports: BTreeMap<u16, HealthPort>,
    /// Nobody outside is to send packets to this node: it holds no address for others.
    pub excluded: bool,
    /// Addresses that nodes have, which nobody may take from them.
    pub taken: BTreeSet<IpAddr>,
    /// What each of the other nodes has, by name, its tunnel addresses among it.
    pub nodes: Arc<BTreeMap<String, BTreeSet<IpAddr>>>,
    /// Something that may belong here was written and could not be read yet. What an agent before us
    /// left in force is not gone by not standing here.
    pub unread: bool,
}

impl L4 {
    /// The addresses that some balancer has to answer for, and whether this one can: new flows to it would
    /// get somewhere.
    pub fn offers(&self) -> BTreeMap<IpAddr, bool> {
        let mut offers: BTreeMap<IpAddr, bool> = BTreeMap::new();
        let mut offer = |vip: &Vip, can: bool| {
            if let VipAddr::Ip(addr) = vip.addr {
                *offers.entry(addr).or_default() |= can && !self.excluded;
            }
        };
        self.punts.keys().for_each(|vip| offer(vip, true));
        for pool in self.pools.values() {
            let takes = |backend: &Backend| backend.state == BackendState::Active && backend.weight.0 > 0;
            // Where nobody serves it anywhere, somebody has to say so.
            let can = pool.empty == OnEmpty::Reject || pool.backends.values().any(takes);
            pool.vips.keys().for_each(|vip| offer(vip, can));
        }
        offers.retain(|addr, _| !self.taken.contains(addr));
        offers
    }

    /// Addresses of the proxy where its connections may belong to other sockets than those they are made to, of this
    /// node or another.
    pub fn shortcuts(&self) -> BTreeSet<IpAddr> {
        let shared = self.punts.iter().filter(|(_, punt)| punt.ip_mode == IpMode::Vip);
        let addr = |(vip, _): (&Vip, &Punt)| match vip.addr {
            VipAddr::Ip(addr) => Some(addr),
            VipAddr::Node(_) => None,
        };
        shared.filter_map(addr).collect()
    }
}

/// What the kernel has of a desired state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InForce {
    /// That state, which an older one than the newest may be.
    pub l4: Arc<L4>,
    /// Addresses that found no room.
    pub left_out: BTreeSet<IpAddr>,
}

impl InForce {
    /// What can be offered of a newer state: nobody sends packets to who does not know yet, or not any more, what to do
    /// with them.
    pub fn offers(&self, newest: &L4) -> BTreeMap<IpAddr, bool> {
        let (mut offers, known) = (newest.offers(), self.l4.offers());
        for (addr, can) in &mut offers {
            *can &= known.get(addr) == Some(&true) && !self.left_out.contains(addr);
        }
        offers
    }
}

/// What is asked at a `healthCheckNodePort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPort {
    /// The Service.
    pub service: ObjectName,
    /// Its ready endpoints on this node.
    pub local: usize,
}

/// Identity of a [`Pool`], stable over changes of its VIPs and backends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    /// The Service.
    pub service: Arc<ObjectName>,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Family of VIPs and backends; a dual-stack Service has one pool for each.
    pub family: Family,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}/{}", self.service, self.port, self.protocol, self.family)
    }
}

/// VIPs that share one set of backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    /// Addresses and ports clients connect to, and who may. Empty: nothing to install.
    pub vips: BTreeMap<Vip, Access>,
    /// Backends in the order of their address, without duplicates.
    pub backends: BTreeMap<SocketAddr, Backend>,
    /// What becomes of new flows while no backend takes any.
    pub empty: OnEmpty,
    /// Whether a client keeps its backend; `None`: each flow is spread by its five-tuple.
    pub affinity: Option<Affinity>,
    /// Who may use the restricted VIPs, all of the pool's family. Empty: nobody may.
    pub source_ranges: BTreeSet<Prefix>,
    /// Which flows are remembered.
    pub memory: FlowMemory,
}

/// A VIP that is left to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Punt {
    /// Which listener takes its connections.
    pub listener: Listener,
    /// Who may use it; `None`: everybody, empty: nobody.
    pub sources: Option<BTreeSet<Prefix>>,
    /// Whether the nodes' service proxy may take its packets before the proxy does, where it has an address of its own.
    pub ip_mode: IpMode,
}

/// Whether nodes may have a say in what is for an address of a Service (`ipMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum IpMode {
    /// They may: their service proxy (kube-proxy) sends packets to that address to an endpoint of the Service.
    #[default]
    Vip,
    /// They leave it alone, because who has the address does more than forward.
    Proxy,
}

/// Who may use a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Everybody.
    Open,
    /// The pool's `source_ranges` alone.
    Restricted,
}

/// One place that serves a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Share of new flows among the active ones.
    pub weight: Weight,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// How packets reach it, decided. [`ForwardingMode::Local`] only where `at` is [`At::Here`],
    /// [`ForwardingMode::Tunnel`] only where it is [`At::Node`].
    pub mode: ForwardingMode,
    /// Where it is, as far as Kubernetes tells.
    pub at: At,
}

/// Whether a backend takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// It does.
    Active,
    /// It keeps the flows it has; new ones go elsewhere. It is gone when it leaves the pool.
    Draining,
    /// The same of one that took new flows until it began to terminate.
    Leaving,
}

/// Where a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    /// On this node.
    Here,
    /// On another node that runs Penstock.
    Node {
        /// That node's tunnel address; its family may differ from the backend's.
        tunnel: IpAddr,
    },
    /// On a node that does not, or on none that we know.
    Elsewhere,
}

/// What becomes of a new flow when no backend takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum OnEmpty {
    /// Nobody serves it anywhere: refused at once (TCP RST, ICMP port unreachable).
    #[default]
    Reject,
    /// Others serve it (externalTrafficPolicy Local, endpoints on other nodes only): dropped
    /// silently, so that whoever sent it here tries elsewhere.
    Drop,
}

/// A client keeps its backend over flows, by its address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// How long after its last flow a client is remembered: 1 second to 1 day.
    pub timeout: Duration,
}

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The block of this length that holds `addr`; `None` where the family has no such length.
    pub fn new(addr: IpAddr, bits: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(addr) => {
                let host = 32u32.checked_sub(bits.into())?;
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V4((addr.to_bits() & mask).into())
            }
            IpAddr::V6(addr) => {
                let host = 128u32.checked_sub(bits.into())?;
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V6((addr.to_bits() & mask).into())
            }
        };
        Some(Self { addr, bits })
    }

    /// First address of the block.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// Leading bits that count.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Family of the block.
    pub fn family(self) -> Family {
        Family::of(self.addr)
    }

    /// The address is in the block.
    pub fn contains(self, addr: IpAddr) -> bool {
        Self::new(addr, self.bits) == Some(self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

/// `192.0.2.0/24`, `2001:db8::/32`; host bits may be set, as Kubernetes allows.
impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || {
            let (addr, bits) = text.split_once('/')?;
            // `parse` takes "+8", which nobody means.
            let bits = bits.bytes().all(|byte| byte.is_ascii_digit()).then_some(bits)?;
            Self::new(addr.parse().ok()?, bits.parse().ok()?)
        };
        whole().ok_or_else(|| format!("{text:?} is not a block of addresses such as 192.0.2.0/24"))
    }
}

/// Which flows of a pool are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum FlowMemory {
    /// Those for which the tables alone would not do.
    #[default]
    JustEnough,
    /// All.
    Conservative,
}

impl fmt::Display for FlowMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JustEnough => "just-enough",
            Self::Conservative => "conservative",
        })
    }
}

/// Relative share of new flows; 0 takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(pub u16);

/// Address + port + protocol that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// Where it listens.
    pub addr: VipAddr,
    /// Port, never 0.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            VipAddr::Ip(ip) => write!(f, "{} {}", self.protocol, SocketAddr::new(ip, self.port)),
            VipAddr::Node(family) => write!(f, "{} node-{}:{}", self.protocol, family, self.port),
        }
    }
}

/// Address of a [`Vip`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipAddr {
    /// One address.
    Ip(IpAddr),
    /// Every address of this family on the interfaces the program is attached to; the datapath
    /// knows them and follows their changes.
    Node(Family),
}

/// How a packet reaches its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ForwardingMode {
    /// Destination and source translated; the reply comes back through us.
    #[default]
    Nat,
    /// Destination MAC rewritten only; the backend holds the VIP and answers the client itself.
    L2,
    /// Wrapped in IP to the backend, which unwraps it, holds the VIP and answers the client itself.
    Ipip,
    /// Destination translated and delivered by this node's own stack.
    Local,
    /// Wrapped in UDP to the backend's node, which delivers as for [`ForwardingMode::Local`] and
    /// answers the client itself.
    Tunnel,
}

impl ForwardingMode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nat, Self::L2, Self::Ipip, Self::Local, Self::Tunnel];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Local => "local",
            Self::Tunnel => "tunnel",
        }
    }

    /// Packets are translated, which takes state per flow.
    pub fn is_translated(self) -> bool {
        matches!(self, Self::Nat | Self::Local)
    }

    /// The backend gets the client's packet with the VIP as destination, so it must hold the VIP
    /// and listen on the VIP's port.
    pub fn keeps_destination(self) -> bool {
        matches!(self, Self::L2 | Self::Ipip)
    }
}

impl fmt::Display for ForwardingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Transport protocol of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// Which listener of the proxy takes a punted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// Plain HTTP.
    Http,
    /// TLS.
    Https,
}

/// A flow as `explain --flow` and the kernel name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Client.
    pub src: SocketAddr,
    /// VIP; the same family as `src`.
    pub dst: SocketAddr,
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.src, self.dst)
    }
}

/// `tcp 198.51.100.7:40001 > 203.0.113.10:443`, as [`Display`](fmt::Display) writes it.
impl std::str::FromStr for FiveTuple {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed: 'tcp|udp SRC:PORT > DST:PORT', IPv6 in brackets";
        let mut words = text.split_whitespace();
        let (Some(protocol), Some(src), Some(">"), Some(dst), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return Err(format!("flow {text:?}: {allowed}"));
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(format!("flow {text:?}: protocol {other:?}: {allowed}")),
        };
        let end = |text: &str| -> Result<SocketAddr, String> {
            text.parse().map_err(|_| format!("flow: address {text:?}: {allowed}"))
        };
        let (src, dst) = (end(src)?, end(dst)?);
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(format!("flow {text:?}: both ends must be of one family"));
        }
        Ok(Self { protocol, src, dst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_reads_back_as_it_is_written() {
        for text in ["tcp 198.51.100.7:40001 > 203.0.113.10:443", "udp [2001:db8::7]:53 > [2001:db8::1]:53"] {
            let flow: FiveTuple = text.parse().expect(text);

            assert_eq!(flow.to_string(), text);
        }
    }

    #[test]
    fn a_prefix_holds_the_addresses_of_its_block_and_of_its_family_alone() {
        let cases = [
            ("192.0.2.77/24", "192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255", "::1"),
            ("10.0.0.1/32", "10.0.0.1/32", "10.0.0.1", "10.0.0.0"),
            ("2001:db8::1/32", "2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("::/0", "::/0", "ffff::", "0.0.0.0"),
        ];
        for (text, written, inside, outside) in cases {
            let prefix: Prefix = text.parse().expect(text);

            assert_eq!(prefix.to_string(), written);
            assert!(prefix.contains(inside.parse().expect("address")), "{text}");
            assert!(!prefix.contains(outside.parse().expect("address")), "{text}");
        }
    }

    #[test]
    fn what_is_no_block_of_addresses_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "::/129", "a/8", "::/256"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_flow_that_cannot_be_meant_is_refused_with_the_allowed_form() {
        for text in
            ["", "tcp", "sctp 1.2.3.4:1 > 1.2.3.4:2", "tcp 1.2.3.4 > 1.2.3.4:2", "tcp 1.2.3.4:1 > [::1]:2"]
        {
            let error = text.parse::<FiveTuple>().expect_err(text);

            assert!(error.contains("allowed:") || error.contains("one family"), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_is_offered_where_somebody_takes_its_flows() {
        let vip =
            |n: u8| Vip { addr: VipAddr::Ip([203, 0, 113, n].into()), port: 80, protocol: Protocol::Tcp };
        let backend = Backend {
            weight: Weight(1),
            state: BackendState::Active,
            mode: ForwardingMode::Nat,
            at: At::Elsewhere,
        };
        let pool = |n: u8, empty, backends: &[Backend]| {
            let addr = |backend: &Backend| (SocketAddr::from(([10, 0, 0, 1], 80)), *backend);
            let backends = backends.iter().map(addr).collect();
            let service = ObjectName::new("shop", n.to_string()).into();
            let id = PoolId { service, port: 80, protocol: Protocol::Tcp, family: Family::V4 };
            (id, Pool { vips: BTreeMap::from([(vip(n), Access::Open)]), backends, empty, ..Pool::default() })
        };
        let punt = |ip_mode| Punt { listener: Listener::Http, sources: None, ip_mode };
        let draining = Backend { state: BackendState::Draining, ..backend };
        let mut l4 = L4 {
            pools: Shared::from([
                pool(1, OnEmpty::Drop, &[backend]),
                pool(2, OnEmpty::Drop, &[draining]),
                pool(3, OnEmpty::Reject, &[]),
                pool(4, OnEmpty::Reject, &[backend]),
            ]),
            punts: BTreeMap::from([
                (vip(5), punt(IpMode::Proxy)),
                (Vip { addr: VipAddr::Node(Family::V4), ..vip(0) }, punt(IpMode::Vip)),
            ]),
            taken: BTreeSet::from([IpAddr::from([203, 0, 113, 4])]),
            ..L4::default()
        };
        let offered = |l4: &L4| l4.offers().into_values().collect::<Vec<_>>();

        assert_eq!(offered(&l4), [true, false, true, true]);
        let in_force = |l4: &L4, left_out: &[u8]| {
            let left_out = left_out.iter().map(|n| IpAddr::from([203, 0, 113, *n])).collect();
            InForce { l4: Arc::new(l4.clone()), left_out }
        };
        let known = |known: &InForce| known.offers(&l4).into_values().collect::<Vec<_>>();
        assert_eq!(known(&InForce::default()), [false; 4], "nothing is in force yet");
        assert_eq!(known(&in_force(&l4, &[3])), [true, false, false, true]);
        let mut older = l4.clone();
        older.punts.clear();
        older.pools = Shared::from([
            pool(1, OnEmpty::Drop, &[]),
            pool(2, OnEmpty::Drop, &[backend]),
            pool(9, OnEmpty::Reject, &[]),
        ]);
        assert_eq!(known(&in_force(&older, &[])), [false; 4], "what the newest cannot serve goes at once");
        l4.excluded = true;
        assert_eq!(offered(&l4), [false; 4]);
        assert_eq!(l4.shortcuts(), BTreeSet::new());
        l4.punts.insert(Vip { port: 443, ..vip(5) }, punt(IpMode::Vip));
        assert_eq!(l4.shortcuts(), BTreeSet::from([IpAddr::from([203, 0, 113, 5])]));
    }
}
