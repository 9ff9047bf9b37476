//! What the kernel should hold: the model's VIPs and pools joined with what the network knows
//! about addresses and next hops. Pure; a bad VIP costs that VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use imbl::OrdMap;
use lb_common::backend::NextHop;
use lb_common::shortcut::{Folded, Key};
use lb_common::{TCP, Tags, UDP, wire_port};

use crate::model::l4::{self, At, ForwardingMode, L4, Listener, PoolId, Prefix, Protocol};
use crate::model::{ObjectId, Problem, Severity, Shared};

mod before;
mod causes;
mod destinations;
mod join;

pub use destinations::{Destinations, left_destinations};
pub use join::{Join, changed_ways, join};

/// Complete wish. A copy shares what is in it, and what differs between two is found without a walk over both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Want {
    /// Every VIP on a concrete address.
    pub vips: Shared<Place, Target>,
    /// Every address that is ours, and whose.
    pub addrs: OrdMap<IpAddr, Owner>,
    /// Pools that a VIP uses.
    pub pools: Shared<PoolId, Pool>,
    /// Who may use the VIPs that are not open to all.
    pub ranges: Shared<Place, BTreeSet<Prefix>>,
    /// Other balancers, that may send us packets through the tunnel.
    pub peers: BTreeSet<IpAddr>,
    /// The way to every address that packets go to, for the former selves of backends: one that was
    /// reached from another address of ours has to follow the route like its successor.
    pub ways: Ways,
}

/// The way to each address that packets go to, or why there is none.
pub type Ways = OrdMap<IpAddr, Result<Way, NoWay>>;

/// Concrete address, port and protocol of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Place {
    /// By which the fast path finds it.
    pub fn shortcut(&self) -> Key {
        let Self { addr, port, protocol } = *self;
        let protocol = match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        Key::new(Folded::of(addr.into()), wire_port(port), protocol)
    }
}

/// Who serves a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Backends.
    Pool(PoolId),
    /// The proxy.
    Punt(Listener),
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Only a VIP.
    Vip,
    /// The host itself.
    Node,
}

/// Backends of one pool and its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    /// Each backend.
    pub backends: BTreeMap<SocketAddr, Backend>,
    /// Those that no way leads to. One that is installed stays: it may have flows.
    pub lost: BTreeMap<SocketAddr, Lost>,
    /// Those of the backends that took new flows until they began to terminate.
    pub leaving: BTreeSet<SocketAddr>,
    /// Units of [`lb_common::flows::clock`] that a source keeps its backend; `None`: no affinity.
    pub affinity: Option<u32>,
    /// Every flow is remembered.
    pub conservative: bool,
    /// Senders are told when there is no backend.
    pub reject: bool,
}

/// One backend and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Share of new flows.
    pub weight: u16,
    /// Takes no new flows, whatever its weight.
    pub draining: bool,
    /// How packets reach it.
    pub mode: ForwardingMode,
    /// Address that its packets are sent to: its own, or that of its host.
    pub to: IpAddr,
    /// The way there; unresolved while the network does not know it.
    pub way: Way,
}

impl Pool {
    /// Whether it has this backend, with a way there or without.
    pub fn holds(&self, addr: SocketAddr) -> bool {
        self.backends.contains_key(&addr) || self.lost.contains_key(&addr)
    }
}

/// A backend that no way leads to; what it is besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Share of new flows.
    pub weight: u16,
    /// Takes no new flows, whatever its weight.
    pub draining: bool,
    /// How packets reached it.
    pub mode: ForwardingMode,
    /// Address that its packets were sent to.
    pub to: IpAddr,
}

impl Lost {
    /// As it was with this source and size; nobody knows the next hop.
    pub fn as_before(self, source: IpAddr, mtu: u16) -> Backend {
        let Self { weight, draining, mode, to } = self;
        let way = Way { source, next_hop: NextHop::default(), mtu, tags: Tags::NONE };
        Backend { weight, draining, mode, to, way }
    }
}

impl Backend {
    /// Another way to it. Whoever takes a tunnelled packet knows us by our tunnel address, whichever
    /// way it comes.
    pub fn along(&self, way: Way) -> Way {
        if self.mode == ForwardingMode::Tunnel { Way { source: self.way.source, ..way } } else { way }
    }
}

/// The way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Our address towards it.
    pub source: IpAddr,
    /// MACs and interface; `ifindex` 0 while the neighbour is unresolved, or this host itself.
    pub next_hop: NextHop,
    /// Largest IP packet.
    pub mtu: u16,
    /// VLAN tags that frames leave `next_hop.ifindex` with.
    pub tags: Tags,
}

impl Way {
    /// To this host itself, by its own address.
    pub const fn here(addr: IpAddr) -> Self {
        Self { source: addr, next_hop: NextHop::HERE, mtu: u16::MAX, tags: Tags::NONE }
    }
}

/// What the network knows, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Addresses of the interfaces the program is attached to.
    pub node_addrs: BTreeSet<IpAddr>,
    /// Every other address of the host.
    pub other_addrs: BTreeSet<IpAddr>,
    /// The way to each backend, or why there is none.
    pub ways: Ways,
}

/// Why we cannot send to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoWay {
    /// It is an address of this host.
    Here,
    /// This host has no route there.
    NoRoute(String),
    /// We cannot use the route. The stack can.
    Unusable(String),
}

impl std::fmt::Display for NoWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("is an address of this host, which its mode does not reach"),
            Self::NoRoute(why) | Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl<T: Into<String>> From<T> for NoWay {
    fn from(why: T) -> Self {
        Self::Unusable(why.into())
    }
}

/// The wish for a node whose tunnel is off: who would be reached by it is reached by `nat`.
pub fn without_tunnel(l4: &L4) -> (L4, Vec<Problem>) {
    let (mut l4, mut problems) = (l4.clone(), Vec::new());
    let is_tunnelled = |one: &l4::Backend| one.mode == ForwardingMode::Tunnel;
    for (id, pool) in l4.pools.clone().iter() {
        let tunnelled = || pool.backends.iter().filter(|(_, one)| is_tunnelled(one));
        let Some((first, _)) = tunnelled().next() else { continue };
        let count = tunnelled().count();
        for backend in l4.pools.get_mut(id).into_iter().flat_map(|pool| pool.backends.values_mut()) {
            if is_tunnelled(backend) {
                (backend.mode, backend.at) = (ForwardingMode::Nat, At::Elsewhere);
            }
        }
        let message = format!(
            "{count} backends on other nodes (the first is {first}) would be reached by the tunnel, which \
             --tunnel-port 0 turns off; nat is used"
        );
        let fix = "give all nodes one --tunnel-port, or ask for another mode".to_owned();
        let severity = Severity::Warning;
        problems.push(Problem { severity, reason: "tunnel-off", fix, ..problem(id, message) });
    }
    l4.tunnel.clear();
    l4.peers.clear();
    l4.silent.clear();
    (l4, problems)
}

/// The wish while agents of other nodes are silent: a backend there that was not reached by the tunnel before (`installed`)
/// is one that their kernel part may not know, and so is reached by `nat`. What was goes on, and so do its flows.
pub fn around_silence(l4: &L4, installed: Option<&L4>) -> L4 {
    let mut l4 = l4.clone();
    let is_silent = |one: &l4::Backend| {
        one.mode == ForwardingMode::Tunnel
            && matches!(one.at, At::Node { tunnel } if l4.silent.contains(&tunnel))
    };
    let mut around = Vec::new();
    for (id, pool) in &l4.pools {
        let known = installed.and_then(|installed| installed.pools.get(id));
        let tunnelled = |addr| {
            known
                .and_then(|known| known.backends.get(addr))
                .is_some_and(|one| one.mode == ForwardingMode::Tunnel)
        };
        let new = pool.backends.iter().filter(|(addr, one)| is_silent(one) && !tunnelled(*addr));
        around.extend(new.map(|(addr, _)| (id.clone(), *addr)));
    }
    for (id, addr) in around {
        if let Some(one) = l4.pools.get_mut(&id).and_then(|pool| pool.backends.get_mut(&addr)) {
            (one.mode, one.at) = (ForwardingMode::Nat, At::Elsewhere);
        }
    }
    l4
}

/// A problem of the Service behind a pool.
pub fn problem(id: &PoolId, message: String) -> Problem {
    Problem {
        object: ObjectId {
            kind: "Service".to_owned(),
            namespace: id.service.namespace.clone(),
            name: id.service.name.clone(),
            origin: String::new(),
        },
        severity: Severity::Error,
        reason: "datapath",
        field: format!("spec.ports[port={}/{}]", id.port, id.protocol),
        message,
        fix: String::new(),
    }
}

/// VIPs on the host's own addresses that the SNAT range or the tunnel's port shadows: a packet to such a port is taken
/// for an answer of a translated flow, or for another balancer's, before VIPs are looked at.
pub fn shadowed(want: &Want, (first, last): (u16, u16), tunnel_port: u16) -> Vec<Problem> {
    let own = want.vips.iter().filter(|(place, _)| want.addrs.get(&place.addr) == Some(&Owner::Node));
    let shadowed = own.filter_map(|(place, target)| {
        if (first..=last).contains(&place.port) {
            return Some((place, target, format!("lies in --nat-ports {first}-{last}"), "--nat-ports"));
        }
        let is_tunnel = place.protocol == Protocol::Udp && place.port == tunnel_port;
        is_tunnel.then(|| (place, target, "is --tunnel-port".to_owned(), "--tunnel-port"))
    });
    shadowed
        .map(|(Place { addr, port, protocol }, target, why, flag)| {
            let message = format!(
                "{protocol} {}: the port {why} and is not served on the host's own address",
                SocketAddr::new(*addr, *port)
            );
            let fix = format!("choose another port, or move {flag}");
            let whole = match target {
                Target::Pool(id) => problem(id, message),
                Target::Punt(_) => Problem {
                    object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
                    severity: Severity::Error,
                    reason: "",
                    field: String::new(),
                    message,
                    fix: String::new(),
                },
            };
            Problem { reason: "nat-port-range", fix, ..whole }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l4::{Access, BackendState, Family, IpMode, Punt, Vip, VipAddr, Weight};

    #[test]
    fn a_vip_that_a_port_of_ours_shadows_is_a_problem_on_the_hosts_addresses_only() {
        let place =
            |addr: &str, port| Place { addr: addr.parse().expect("address"), port, protocol: Protocol::Tcp };
        let (host, vip) = (place("10.0.0.1", 61_000), place("203.0.113.10", 61_000));
        let tunnel = Place { protocol: Protocol::Udp, ..place("10.0.0.1", 7183) };
        let want = Want {
            vips: [host, vip, place("10.0.0.1", 60_999), place("10.0.0.1", 7183), tunnel]
                .map(|place| (place, Target::Punt(Listener::Http)))
                .into(),
            addrs: [(host.addr, Owner::Node), (vip.addr, Owner::Vip)].into_iter().collect(),
            ..Want::default()
        };

        let messages: Vec<_> =
            shadowed(&want, (61_000, 65_535), 7183).into_iter().map(|p| p.message).collect();

        assert_eq!(
            messages,
            [
                "udp 10.0.0.1:7183: the port is --tunnel-port and is not served on the host's own address",
                "tcp 10.0.0.1:61000: the port lies in --nat-ports 61000-65535 and is not served on the host's own \
              address",
            ]
        );
    }

    #[test]
    fn a_vip_where_the_host_serves_already_is_told_of() {
        let host: IpAddr = "10.9.0.1".parse().expect("address");
        let network = Network { node_addrs: [host].into(), ..Network::default() };
        let (family, protocol) = (Family::V4, Protocol::Tcp);
        let vip = |addr, port| Vip { addr, port, protocol };
        let pool = |vips: &[Vip]| l4::Pool {
            vips: vips.iter().map(|vip| (*vip, Access::Open)).collect(),
            ..l4::Pool::default()
        };
        let id = |name: &str, port| PoolId {
            service: ObjectName::new("default", name).into(),
            port,
            protocol,
            family,
        };
        let own = Punt { listener: Listener::Http, sources: None, ip_mode: IpMode::Proxy };
        let l4 = L4 {
            punts: [(vip(VipAddr::Node(family), 80), own)].into(),
            pools: [
                (id("a", 30080), pool(&[vip(VipAddr::Node(family), 30080)])),
                (id("web", 80), pool(&[vip(VipAddr::Ip(host), 80)])),
                (id("web", 30080), pool(&[vip(VipAddr::Ip(host), 30080)])),
            ]
            .into(),
            ..L4::default()
        };

        let (want, problems) = join(&l4, &network);

        let place = |port| Place { addr: host, port, protocol };
        assert_eq!(want.vips.get(&place(80)), Some(&Target::Punt(Listener::Http)));
        assert_eq!(want.vips.get(&place(30080)), Some(&Target::Pool(id("a", 30080))));
        let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "tcp 10.9.0.1:80 is the proxy's port for http on this host, so it is not served for this Service",
                "tcp 10.9.0.1:30080 is a port of Service default/a, so it is not served for this Service",
            ]
        );
    }

    #[test]
    fn what_is_new_behind_a_silent_agent_is_reached_by_nat_and_what_was_there_is_not() {
        let tunnel = |last| At::Node { tunnel: [192, 0, 2, last].into() };
        let (weight, state) = (Weight(1), BackendState::Active);
        let at = |at| l4::Backend { weight, state, mode: ForwardingMode::Tunnel, at };
        let backend = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let id = PoolId {
            service: ObjectName::new("default", "web").into(),
            port: 80,
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let l4 = |backends: &[(u8, u8)], silent: &[u8]| {
            let backends = backends.iter().map(|(addr, node)| (backend(*addr), at(tunnel(*node)))).collect();
            L4 {
                pools: [(id.clone(), l4::Pool { backends, ..l4::Pool::default() })].into(),
                silent: silent.iter().map(|last| [192, 0, 2, *last].into()).collect(),
                ..L4::default()
            }
        };
        let modes = |l4: &L4| -> Vec<String> {
            let backends = l4.pools.get(&id).into_iter().flat_map(|pool| &pool.backends);
            backends.map(|(addr, one)| format!("{} {}", addr.ip(), one.mode)).collect()
        };
        let before = around_silence(&l4(&[(1, 1)], &[]), None);
        assert_eq!(modes(&before), ["10.0.0.1 tunnel"]);

        // 10.0.0.2 comes to the silent node, 10.0.0.3 to another.
        let wish = l4(&[(1, 1), (2, 1), (3, 2)], &[1]);
        let silent = around_silence(&wish, Some(&before));
        let expected = ["10.0.0.1 tunnel", "10.0.0.2 nat", "10.0.0.3 tunnel"];
        assert_eq!(modes(&silent), expected);
        assert_eq!(modes(&around_silence(&wish, Some(&silent))), expected, "and stays so");
        let first = ["10.0.0.1 nat", "10.0.0.2 nat", "10.0.0.3 tunnel"];
        assert_eq!(modes(&around_silence(&wish, None)), first, "nobody knows what was there");

        let heard = around_silence(&l4(&[(1, 1), (2, 1), (3, 2)], &[]), Some(&silent));
        assert_eq!(modes(&heard), ["10.0.0.1 tunnel", "10.0.0.2 tunnel", "10.0.0.3 tunnel"]);
    }

    /// The first Service with one backend, joined with this knowledge of the way to it.
    fn joined(mode: ForwardingMode, way: Option<NoWay>) -> (Pool, Vec<String>) {
        let backend: SocketAddr = "10.0.1.11:5432".parse().expect("address");
        let id = PoolId {
            service: ObjectName::new("default", "db").into(),
            port: 5432,
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let addr = VipAddr::Ip("203.0.113.10".parse().expect("address"));
        let target = l4::Backend { weight: Weight(1), state: BackendState::Active, mode, at: At::Elsewhere };
        let pool = l4::Pool {
            vips: [(Vip { addr, port: 5432, protocol: Protocol::Tcp }, Access::Open)].into(),
            backends: [(backend, target)].into(),
            ..l4::Pool::default()
        };
        let mut network = Network::default();
        network.ways.extend(way.map(|why| (backend.ip(), Err(why))));
        let (want, problems) = join(&L4 { pools: [(id.clone(), pool)].into(), ..L4::default() }, &network);
        let problems = problems.into_iter().map(|problem| problem.message).collect();
        (want.pools.get(&id).expect("served").clone(), problems)
    }

    #[test]
    fn a_backend_that_is_this_host_keeps_its_share_where_packets_stay_as_they_came() {
        for mode in [ForwardingMode::L2, ForwardingMode::Ipip] {
            let (pool, problems) = joined(mode, Some(NoWay::Here));

            let here: Vec<bool> = pool.backends.values().map(|one| one.way.next_hop.is_here()).collect();
            assert_eq!((here, pool.lost.len()), (vec![true], 0), "{mode}");
            let told = "backend 10.0.1.11:5432 is this host, which does not have the address 203.0.113.10 of the Service";
            assert_eq!(problems, [told], "{mode}");
        }

        let (pool, problems) = joined(ForwardingMode::Nat, Some(NoWay::Here));
        assert_eq!((pool.backends.len(), pool.lost.len()), (0, 1));
        let told = "backend 10.0.1.11:5432: is an address of this host, which its mode does not reach; flows that it has \
                    stay with it";
        assert_eq!(problems, [told]);
    }

    #[test]
    fn a_backend_that_no_way_leads_to_is_lost_and_not_gone() {
        let (pool, problems) = joined(ForwardingMode::L2, Some(NoWay::NoRoute("no route".to_owned())));

        assert_eq!((pool.backends.len(), pool.lost.len()), (0, 1));
        assert_eq!(problems, ["backend 10.0.1.11:5432: no route; flows that it has stay with it"]);
    }

    #[test]
    fn a_pod_of_this_node_without_a_route_is_told_and_one_by_a_strange_route_is_not() {
        let (pool, problems) = joined(ForwardingMode::Local, Some(NoWay::NoRoute("no route".to_owned())));
        let told = "backend 10.0.1.11:5432 is on this node, but the node does not reach it: no route";
        assert_eq!((pool.backends.len(), problems), (1, vec![told.to_owned()]));

        let (pool, problems) = joined(ForwardingMode::Local, Some("its interface has no address".into()));
        assert_eq!((pool.backends.len(), problems), (1, vec![]));
    }

    #[test]
    fn nat_behind_an_interface_without_the_program_is_a_problem_and_l2_is_not() {
        let backend: SocketAddr = "10.0.1.11:5432".parse().expect("address");
        let source: IpAddr = "10.0.1.1".parse().expect("address");
        let way = Way { source, next_hop: NextHop::default(), mtu: 1500, tags: Tags::NONE };
        let mut network = Network::default();
        network.ways.insert(backend.ip(), Ok(way));
        let reasons = |mode, network: &Network| -> Vec<&str> {
            let id = PoolId {
                service: ObjectName::new("default", "db").into(),
                port: 5432,
                protocol: Protocol::Tcp,
                family: Family::V4,
            };
            let addr = VipAddr::Ip("203.0.113.10".parse().expect("address"));
            let state = BackendState::Active;
            let target = l4::Backend { weight: Weight(1), state, mode, at: At::Elsewhere };
            let pool = l4::Pool {
                vips: [(Vip { addr, port: 5432, protocol: Protocol::Tcp }, Access::Open)].into(),
                backends: [(backend, target)].into(),
                ..l4::Pool::default()
            };
            let l4 = L4 { pools: [(id, pool)].into(), ..L4::default() };
            join(&l4, network).1.iter().map(|problem| problem.reason).collect()
        };

        assert_eq!(reasons(ForwardingMode::Nat, &network), ["unattached-interface"]);
        assert!(reasons(ForwardingMode::L2, &network).is_empty());

        network.node_addrs.insert(source);
        assert!(reasons(ForwardingMode::Nat, &network).is_empty());
    }
}
