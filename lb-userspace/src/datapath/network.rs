//! What rtnetlink tells: interfaces, addresses, the way to each backend, its neighbour. Also the
//! local routes that let the stack accept punted VIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use lb_common::Mac;
use lb_common::backend::NextHop;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::Notify;

use super::Error;
use super::want::{Network, Way};

/// Table number of local routes.
const LOCAL_TABLE: u32 = 255;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Ethernet address; `None` for interfaces that have none.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// One end of a veth pair.
    pub veth: bool,
    /// Addresses.
    pub addrs: BTreeSet<IpAddr>,
}

/// The kernel's network configuration.
pub struct Netlink {
    handle: Handle,
    /// Holds one permit however many changes were announced; what changed is read anew.
    events: Arc<Notify>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    routes: BTreeSet<IpAddr>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A consistent enough view, and which neighbours have to be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// All interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// What the tables are made from.
    pub network: Network,
    /// Neighbours in use: (interface, address, resolved).
    pub neighbours: BTreeSet<(u32, IpAddr, bool)>,
}

impl Netlink {
    /// Opens the socket and subscribes to changes.
    pub fn open() -> Result<Self, Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| failed("open", "rtnetlink socket", source))?;
        let notify = Arc::new(Notify::new());
        let announce = Arc::clone(&notify);
        let mut events = events;
        let listener = tokio::spawn(async move {
            while events.next().await.is_some() {
                announce.notify_one();
            }
        });
        let tasks = [tokio::spawn(connection), listener];
        Ok(Self { handle, events: notify, tasks, routes: BTreeSet::new() })
    }

    /// Takes over the local routes that an earlier agent left behind: those still wanted stay, the
    /// others go with the first [`Netlink::set_local_routes`].
    pub async fn adopt_local_routes(&mut self) {
        let requests = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().table_id(LOCAL_TABLE).build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().table_id(LOCAL_TABLE).build(),
        ];
        for request in requests {
            let mut answers = Box::pin(self.handle.route().get(request).execute());
            while let Ok(Some(route)) = answers.try_next().await {
                let ours = route.header.protocol == OUR_ROUTES && route.header.kind == RouteType::Local;
                let destination = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(addr) => ip(addr),
                    _ => None,
                });
                self.routes.extend(destination.filter(|_| ours));
            }
        }
    }

    /// Waits for a change of links, addresses, routes or neighbours since it last returned.
    pub async fn changed(&self) {
        self.events.notified().await;
    }

    /// All interfaces.
    pub async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, Error> {
        let mut interfaces = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(|error| netlink("list", "links", error))? {
            let mut found = Interface {
                name: String::new(),
                ifindex: link.header.index,
                mac: None,
                mtu: 1500,
                up: link.header.flags.contains(LinkFlags::Up),
                veth: false,
                addrs: BTreeSet::new(),
            };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => found.name = name,
                    LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                    LinkAttribute::Address(bytes) => found.mac = mac(&bytes),
                    LinkAttribute::LinkInfo(infos) => {
                        found.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    }
                    _ => {}
                }
            }
            interfaces.insert(found.ifindex, found);
        }
        let mut addrs = self.handle.address().get().execute();
        while let Some(addr) = addrs.try_next().await.map_err(|error| netlink("list", "addresses", error))? {
            let mut ip = None;
            for attribute in addr.attributes {
                match attribute {
                    // On a point-to-point link `Address` is the peer, `Local` ours.
                    AddressAttribute::Local(local) => ip = Some(local),
                    AddressAttribute::Address(address) => ip = ip.or(Some(address)),
                    _ => {}
                }
            }
            if let (Some(ip), Some(interface)) = (ip, interfaces.get_mut(&addr.header.index)) {
                interface.addrs.insert(ip);
            }
        }
        Ok(interfaces)
    }

    /// Interfaces to attach to where none is named: those of default routes.
    pub async fn default_interfaces(&self) -> Result<Vec<String>, Error> {
        let interfaces = self.interfaces().await?;
        let mut names = BTreeSet::new();
        for probe in ["192.0.2.1", "2001:db8::1"] {
            let Ok(probe) = probe.parse::<IpAddr>() else { continue };
            if let Ok(route) = self.route(probe).await
                && let Some(interface) = interfaces.get(&route.ifindex)
                && interface.mac.is_some_and(|mac| mac != Mac::default())
            {
                names.insert(interface.name.clone());
            }
        }
        Ok(names.into_iter().collect())
    }

    /// The network as seen by the VIPs: `attached` names our interfaces, `backends` whom we have
    /// to reach.
    pub async fn view(&self, attached: &[String], backends: &BTreeSet<IpAddr>) -> Result<View, Error> {
        let interfaces = self.interfaces().await?;
        let neighbours = self.neighbours().await?;
        let mut view = View::default();
        for interface in interfaces.values() {
            let ours = attached.contains(&interface.name);
            let addrs = &interface.addrs;
            if ours {
                view.network.node_addrs.extend(addrs);
            } else {
                view.network.other_addrs.extend(addrs);
            }
        }
        for backend in backends {
            let way = match self.route(*backend).await {
                Err(message) => Err(message),
                Ok(route) => {
                    let next = (route.ifindex, route.gateway.unwrap_or(*backend));
                    let mac = neighbours.get(&next).copied();
                    let way = way(&route, interfaces.get(&route.ifindex), mac);
                    if way.is_ok() {
                        view.neighbours.insert((next.0, next.1, mac.is_some()));
                    }
                    way
                }
            };
            view.network.ways.insert(*backend, way);
        }
        view.interfaces = interfaces;
        Ok(view)
    }

    /// Asks the kernel to resolve a neighbour, or to verify one that is stale.
    pub async fn solicit(&self, ifindex: u32, addr: IpAddr) {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if let Err(error) = request.execute().await {
            tracing::debug!(%addr, ifindex, %error, "cannot solicit neighbour");
        }
    }

    async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), Mac>, Error> {
        let mut known = BTreeMap::new();
        let mut entries = self.handle.neighbours().get().execute();
        while let Some(entry) =
            entries.try_next().await.map_err(|error| netlink("list", "neighbours", error))?
        {
            use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
            if !matches!(entry.header.state, Reachable | Stale | Delay | Probe | Permanent) {
                continue;
            }
            let (mut ip, mut link) = (None, None);
            for attribute in entry.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(v4)),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(v6)),
                    NeighbourAttribute::LinkLayerAddress(bytes) => link = mac(&bytes),
                    _ => {}
                }
            }
            if let (Some(ip), Some(link)) = (ip, link) {
                known.insert((entry.header.ifindex, ip), link);
            }
        }
        Ok(known)
    }

    async fn route(&self, to: IpAddr) -> Result<Route, String> {
        let request = match to {
            IpAddr::V4(v4) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build()
            }
        };
        let mut answers = Box::pin(self.handle.route().get(request).execute());
        let answer = match answers.try_next().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err("the kernel names no route".to_owned()),
            Err(error) => return Err(format!("no route: {error}")),
        };
        if answer.header.kind == RouteType::Local {
            return Err("is an address of this host, which cannot be a backend yet".to_owned());
        }
        if answer.header.kind != RouteType::Unicast {
            return Err(format!("its route is of type {:?}", answer.header.kind));
        }
        let mut route = Route { ifindex: 0, gateway: None, source: None };
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => route.ifindex = ifindex,
                RouteAttribute::Gateway(addr) => route.gateway = ip(&addr),
                RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some(IpAddr::V6(v6)),
                RouteAttribute::PrefSource(addr) => route.source = ip(&addr),
                _ => {}
            }
        }
        Ok(route)
    }

    /// Makes the stack accept exactly these addresses beside its own; idempotent.
    pub async fn set_local_routes(&mut self, wanted: &BTreeSet<IpAddr>) {
        for addr in wanted.difference(&self.routes.clone()) {
            match self.handle.route().add(local_route(*addr)).execute().await {
                Ok(()) => {
                    self.routes.insert(*addr);
                }
                Err(error) if is_errno(&error, libc::EEXIST) => {}
                Err(error) => tracing::warn!(vip = %addr, %error, "cannot add local route for punted VIP"),
            }
        }
        for addr in self.routes.clone().difference(wanted) {
            if let Err(error) = self.handle.route().del(local_route(*addr)).execute().await
                && !is_errno(&error, libc::ESRCH)
            {
                tracing::warn!(vip = %addr, %error, "cannot remove local route");
            }
            self.routes.remove(addr);
        }
    }
}

struct Route {
    ifindex: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

fn way(route: &Route, interface: Option<&Interface>, neighbour: Option<Mac>) -> Result<Way, String> {
    let interface = interface.ok_or("its route names no interface")?;
    let own = interface.mac.ok_or_else(|| format!("interface {} has no Ethernet address", interface.name))?;
    let source = route.source.ok_or("its route names no source address")?;
    let next_hop = neighbour.map(|mac| NextHop::new(mac, own, interface.ifindex)).unwrap_or_default();
    Ok(Way { source, next_hop, mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX), vlan: None })
}

/// Marks our local routes (`proto 183` in `ip route`), so that those of an agent that was killed
/// are recognised; a number that iproute2 and routing daemons leave free.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(183);

fn local_route(addr: IpAddr) -> RouteMessage {
    // `lo` is interface 1 in every network namespace.
    match addr {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .output_interface(1)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(OUR_ROUTES)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .output_interface(1)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .protocol(OUR_ROUTES)
            .build(),
    }
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).ok().map(Mac)
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code().abs() == errno)
}

fn netlink(call: &'static str, object: &str, error: rtnetlink::Error) -> Error {
    failed(call, object, io::Error::other(error))
}

fn failed(call: &'static str, object: &str, source: io::Error) -> Error {
    Error::System { call, object: object.to_owned(), source, hint: "" }
}
