//! What rtnetlink tells: interfaces, addresses, the way to each backend, its neighbour. Also the
//! local routes that let the stack accept punted VIPs.
//!
//! [`heard`] collects what the kernel announces, [`Netlink::refresh`] reads anew what that can
//! have touched and no more: one route for a new backend, none for a neighbour. When
//! announcements are lost (a full receive buffer), everything is read anew.

mod arp;
mod filters;
mod heard;
mod links;
mod local;
mod multipath;
mod neighbours;
mod reach;
mod routes;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::TryStreamExt;
use imbl::OrdSet;
use lb_common::backend::NextHop;
use lb_common::{Mac, Tags};
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteAddress;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::want::{Network, NoWay, Way};
use crate::model::Problem;
use heard::{Heard, Shared};
use links::Exit;
use local::LocalRoutes;
use neighbours::{Ask, Hop};
use routes::{Carriers, Path, Route, Routes};
use socket::{Batch, Request};

pub(super) use arp::quiet as quiet_arp;
pub use links::{Interface, Kind};
pub use reach::Cost;

/// The kernel's network configuration.
pub struct Netlink {
    handle: Handle,
    shared: Arc<Shared>,
    batch: Arc<Mutex<Batch>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    local: LocalRoutes,
    routes: Routes,
    exits: BTreeMap<Hop, Result<Exit, String>>,
    view: View,
    /// Nothing has been read yet.
    fresh: bool,
    /// What changed since a refresh last told so.
    unreported: Change,
    effort: Effort,
}

/// What a refresh found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Change {
    /// All is as it was.
    #[default]
    Nothing,
    /// These backends have another next hop, and nothing else that a table depends on changed.
    NextHops(BTreeMap<IpAddr, Way>),
    /// Anything.
    Everything,
}

impl Change {
    fn add_next_hop(&mut self, addr: IpAddr, way: Way) {
        match self {
            Self::Nothing => *self = Self::NextHops([(addr, way)].into()),
            Self::NextHops(ways) => _ = ways.insert(addr, way),
            Self::Everything => {}
        }
    }
}

/// What following the network took since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// Routes asked for.
    pub routes: u64,
    /// Times that everything was read, the first included.
    pub complete: u64,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The network as last read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// All interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// What the tables are made from.
    pub network: Network,
    /// Next hops that packets cannot be sent to by us.
    pub problems: Vec<Problem>,
}

impl Netlink {
    /// Opens the sockets and subscribes to changes.
    pub fn open() -> Result<Self, Error> {
        Self::open_with_buffer(None)
    }

    /// The same with a receive buffer of so many bytes for announcements; for tests.
    pub fn open_with_buffer(bytes: Option<usize>) -> Result<Self, Error> {
        let open = |source| failed("open", "rtnetlink socket", source);
        // First: what changes while the rest is read is heard.
        let announcements = socket::announcements(bytes).map_err(open)?;
        let batch = Arc::new(Mutex::new(Batch::open().map_err(open)?));
        let (connection, handle, _) = rtnetlink::new_connection().map_err(open)?;
        let shared = Arc::new(Shared::default());
        let listener = tokio::spawn(socket::listen(announcements, Arc::clone(&shared)));
        Ok(Self {
            handle,
            shared,
            batch,
            tasks: [tokio::spawn(connection), listener],
            local: LocalRoutes::default(),
            routes: Routes::default(),
            exits: BTreeMap::new(),
            view: View::default(),
            fresh: true,
            unreported: Change::Nothing,
            effort: Effort::default(),
        })
    }

    /// Takes over the local routes that an earlier agent left behind: those still wanted stay, the
    /// others go with the first [`Netlink::set_local_routes`].
    pub async fn adopt_local_routes(&mut self) -> Result<(), Error> {
        self.local.adopt(&self.handle).await
    }

    /// Makes the stack accept exactly these addresses beside its own; idempotent.
    pub async fn set_local_routes(&mut self, wanted: &BTreeSet<IpAddr>) {
        self.local.set(&self.handle, wanted).await;
    }

    /// Sets again what of them is missing, as often as is reasonable; tells how many.
    pub async fn restore_local_routes(&mut self) -> usize {
        self.local.restore(&self.handle, Instant::now()).await
    }

    /// Addresses that the stack does not accept, and why.
    pub fn missing_local_routes(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.local.missing()
    }

    /// Waits for an announcement that [`Netlink::refresh`] has not seen.
    pub async fn changed(&self) {
        self.shared.notify.notified().await;
    }

    /// Lets [`Netlink::changed`] return.
    pub fn wake(&self) {
        self.shared.notify.notify_one();
    }

    /// The network as last read.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What it took so far.
    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Whom we have to reach from now on; the next [`Netlink::refresh`] finds the way to the new ones.
    pub fn set_backends(&mut self, backends: &OrdSet<IpAddr>) {
        for addr in self.routes.follow(backends) {
            if self.view.network.ways.remove(&addr).is_some() {
                self.unreported = Change::Everything;
            }
        }
    }

    /// Reads anew what changed and tells what of the view did. `attached` says which interfaces are
    /// ours. After an error everything is read anew the next time.
    pub async fn refresh(&mut self, attached: impl Fn(&Interface) -> bool) -> Result<Change, Error> {
        let mut heard = std::mem::take(&mut self.shared.lock().heard);
        heard.lost |= self.fresh;
        match self.read_anew(heard, attached).await {
            Ok(()) => {
                self.fresh = false;
                Ok(std::mem::take(&mut self.unreported))
            }
            Err(error) => {
                self.shared.lock().heard.lost = true;
                Err(error)
            }
        }
    }

    async fn read_anew(
        &mut self,
        mut heard: Heard,
        attached: impl Fn(&Interface) -> bool,
    ) -> Result<(), Error> {
        if heard.lost {
            self.effort.complete += 1;
            heard.hops.extend(self.read_neighbours().await?);
            heard.all_routes = true;
        }
        let mut moved = heard.ports || heard.lost;
        let mut local_in_doubt = heard.lost && !self.fresh;
        if heard.lost || heard.links {
            let interfaces = self.interfaces().await?;
            // With the loopback interface the kernel drops its routes in silence.
            let up = |interfaces: &BTreeMap<u32, Interface>| interfaces.get(&1).map(|one| one.up);
            local_in_doubt |= !self.fresh && up(&interfaces) != up(&self.view.interfaces);
            if interfaces != self.view.interfaces {
                self.routes.doubt_by_links(&self.view.interfaces, &interfaces);
                self.view.interfaces = interfaces;
                (self.unreported, moved) = (Change::Everything, true);
            }
        }
        if local_in_doubt || self.local.would_miss(&heard.gone) {
            self.local.look(&self.handle, Instant::now()).await?;
        }
        if heard.all_routes {
            self.routes.doubt_all();
        }
        for prefix in heard.prefixes {
            self.routes.doubt_prefix(prefix);
        }
        let asked = self.ask_routes().await?;
        if moved || self.unreported != Change::Nothing || !asked.is_empty() {
            self.tell_used();
        }
        // With a link or a port that changed, any next hop may leave another way.
        let mut hops = heard.hops;
        if moved {
            hops.extend(self.routes.hops().keys());
        }
        self.update_ways(hops, asked);
        self.sort_addresses(attached);
        let first = self.shared.lock().neighbours.first();
        self.ask_neighbours(first).await;
        Ok(())
    }

    /// Asks the kernel for routes that are not known; gives the backends whose route changed.
    async fn ask_routes(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let stale = self.routes.take_stale();
        if stale.is_empty() {
            return Ok(BTreeSet::new());
        }
        let ethernet = self.view.interfaces.values().filter(|one| one.has_ethernet());
        let (alive, dead): (Vec<_>, Vec<_>) = ethernet.filter(|one| one.up).partition(|one| one.carrier);
        let carriers = Carriers {
            dead: dead.into_iter().map(|one| one.ifindex).collect(),
            alive: alive.into_iter().map(|one| one.ifindex).collect(),
        };
        self.effort.routes += stale.len() as u64;
        let to = stale.clone();
        let answers = self.blocking(move |batch| routes::ask(batch, &to, &carriers)).await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(source) => {
                self.routes.doubt(&stale);
                return Err(failed("ask for", "routes", source));
            }
        };
        let mut changed = BTreeSet::new();
        let mut unanswered = Vec::new();
        for (addr, route) in stale.into_iter().zip(answers) {
            match route {
                Some(route) if self.routes.get(addr) == Some(&route) => {}
                Some(route) => {
                    self.routes.learn(addr, route);
                    changed.insert(addr);
                }
                None => unanswered.push(addr),
            }
        }
        if !unanswered.is_empty() {
            self.routes.doubt(&unanswered);
            self.shared.notify.notify_one();
        }
        Ok(changed)
    }

    /// Tells which neighbours matter from now on.
    fn tell_used(&mut self) {
        let hops = self.routes.hops();
        let is_bridge = |ifindex: &u32| {
            self.view.interfaces.get(ifindex).is_some_and(|one| matches!(one.kind, Kind::Bridge { .. }))
        };
        let bridges = hops.keys().map(|(ifindex, _)| *ifindex).filter(is_bridge).collect();
        let used = hops.iter().map(|(hop, backends)| (hop, backends.len()));
        self.shared.lock().neighbours.set_used(used, bridges);
        self.exits.retain(|hop, _| hops.contains_key(hop));
    }

    /// Makes the ways of backends behind these next hops, and of these backends, anew.
    fn update_ways(&mut self, hops: BTreeSet<Hop>, backends: BTreeSet<IpAddr>) {
        let mut touched = backends;
        let mut hops = hops;
        let route = |addr: &IpAddr| self.routes.get(*addr).and_then(|route| route.as_ref().ok());
        hops.extend(touched.iter().filter_map(route).flat_map(Route::paths).map(|path| path.hop));
        let mut left_otherwise = false;
        {
            let state = self.shared.lock();
            for hop in hops {
                let Some(behind) = self.routes.hops().get(&hop) else { continue };
                let port = |bridge, mac| state.neighbours.port(bridge, mac);
                let exit = links::exit(&self.view.interfaces, port, hop.0, state.neighbours.mac(hop));
                let exit = exit.map(|exit| Exit { answers: !state.neighbours.is_doubted(hop), ..exit });
                if self.exits.get(&hop) != Some(&exit) {
                    self.exits.insert(hop, exit);
                    touched.extend(behind);
                    left_otherwise = true;
                }
            }
        }
        for addr in touched {
            let Some(route) = self.routes.get(addr) else { continue };
            let way = route.clone().and_then(|route| self.way(&route));
            let before = self.view.network.ways.get(&addr);
            if before == Some(&way) {
                continue;
            }
            match (before, &way) {
                // Our own address towards it stands in more tables than its line.
                (Some(Ok(old)), Ok(new)) if old.source == new.source => {
                    self.unreported.add_next_hop(addr, *new);
                }
                _ => self.unreported = Change::Everything,
            }
            self.view.network.ways.insert(addr, way);
            left_otherwise = true;
        }
        if left_otherwise {
            let problems = self.blocked();
            if problems != self.view.problems {
                self.unreported = Change::Everything;
                self.view.problems = problems;
            }
        }
    }

    fn way(&self, route: &Route) -> Result<Way, NoWay> {
        let Path { hop, source } = self.chosen(route);
        let named = self.view.interfaces.get(&hop.0).ok_or("its route names no interface")?;
        if named.mac.is_none() {
            return Err(format!("interface {} has no Ethernet address", named.name).into());
        }
        let (next_hop, tags, link_mtu) = match self.exits.get(hop) {
            Some(Ok(exit)) => {
                let next_hop = exit.neighbour.map(|mac| NextHop::new(mac, exit.source, exit.ifindex));
                (next_hop.unwrap_or_default(), next_hop.map_or(Tags::NONE, |_| exit.tags), exit.mtu)
            }
            Some(Err(_)) | None => (NextHop::default(), Tags::NONE, named.mtu),
        };
        let mtu = route.mtu.unwrap_or(u32::MAX).min(link_mtu);
        Ok(Way { source: *source, next_hop, mtu: u16::try_from(mtu).unwrap_or(u16::MAX), tags })
    }

    fn sort_addresses(&mut self, attached: impl Fn(&Interface) -> bool) {
        let (mut node, mut other) = (BTreeSet::new(), BTreeSet::new());
        let ours: BTreeSet<u32> =
            self.view.interfaces.values().filter(|one| attached(one)).map(|one| one.ifindex).collect();
        // What is stacked on an attached interface receives by it.
        let ports = self.view.interfaces.values().filter(|one| ours.contains(&one.ifindex));
        let masters: BTreeSet<u32> = ports.filter_map(|one| one.master).collect();
        for interface in self.view.interfaces.values() {
            let stacked = match interface.kind {
                Kind::Vlan { lower: Some(lower), .. } => ours.contains(&lower),
                _ => masters.contains(&interface.ifindex),
            };
            let reached = stacked || ours.contains(&interface.ifindex);
            let addrs = if reached { &mut node } else { &mut other };
            addrs.extend(&interface.addrs);
        }
        let network = &mut self.view.network;
        if network.node_addrs != node || network.other_addrs != other {
            self.unreported = Change::Everything;
            (network.node_addrs, network.other_addrs) = (node, other);
        }
    }

    /// First half of a round of verification, see [`neighbours`]. Half a round is a fifth of a second.
    pub async fn verify(&self) {
        let asks = {
            let mut state = self.shared.lock();
            let doubted = state.neighbours.doubt();
            if !doubted.is_empty() {
                state.heard.hops.extend(doubted);
                self.shared.notify.notify_one();
            }
            state.neighbours.verify()
        };
        self.ask_neighbours(asks).await;
    }

    /// Second half.
    pub async fn verify_overdue(&self) {
        let asks = self.shared.lock().neighbours.overdue();
        self.ask_neighbours(asks).await;
    }

    async fn ask_neighbours(&self, asks: Vec<(Hop, Ask)>) {
        if asks.is_empty() {
            return;
        }
        let requests: Vec<Request> = asks.iter().flat_map(|(hop, ask)| ask.requests(*hop)).collect();
        match self.blocking(move |batch| batch.ask(requests)).await {
            // One that vanished between its announcement and our question is no error.
            Ok(answers) => {
                let refused = answers.iter().filter(|answer| answer.is_err()).count();
                tracing::trace!(asked = asks.len(), refused, "neighbours");
            }
            Err(error) => tracing::debug!(%error, "neighbours not asked for"),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Batch) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let batch = Arc::clone(&self.batch);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut batch.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.map_err(io::Error::other)?
    }

    /// Interfaces of default routes, by name: those to attach to where none is named.
    pub async fn default_interfaces(&self) -> Result<BTreeSet<String>, Error> {
        let probes = ["192.0.2.1", "2001:db8::1"].iter().filter_map(|probe| probe.parse().ok());
        let probes: Vec<IpAddr> = probes.collect();
        let answers = self.blocking(move |batch| routes::ask(batch, &probes, &Carriers::default())).await;
        let answers = answers.map_err(|source| failed("ask for", "default routes", source))?;
        let found: Vec<Route> = answers.into_iter().filter_map(|route| route?.ok()).collect();
        let paths = found.iter().flat_map(Route::paths);
        let interfaces = paths.filter_map(|path| self.view.interfaces.get(&path.hop.0));
        Ok(interfaces.filter(|one| one.has_ethernet()).map(|one| one.name.clone()).collect())
    }

    /// Names of all interfaces.
    pub async fn interface_names(&self) -> Result<Vec<String>, Error> {
        Ok(self.interfaces().await?.into_values().map(|interface| interface.name).collect())
    }

    /// Interfaces that an XDP program is attached to, with its number.
    pub async fn xdp_programs(&self) -> Result<Vec<(String, u32)>, Error> {
        let mut found = Vec::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(|error| netlink("list", "links", error))? {
            found.extend(links::xdp_program(&link));
        }
        Ok(found)
    }

    /// The XDP programs on each of these interfaces that is there.
    pub async fn xdp_programs_on(
        &self,
        interfaces: BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, BTreeSet<u32>>, Error> {
        let questions = interfaces.into_iter().map(|ifindex| {
            let mut link = LinkMessage::default();
            link.header.index = ifindex;
            (0, RouteNetlinkMessage::GetLink(link))
        });
        let questions: Vec<Request> = questions.collect();
        let answers = self.blocking(move |batch| batch.ask(questions)).await;
        let answers = answers.map_err(|source| failed("ask for", "links", source))?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Some(link),
            _ => None,
        });
        Ok(links.map(|link| (link.header.index, links::xdp_programs(&link))).collect())
    }

    async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, Error> {
        let mut interfaces = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(|error| netlink("list", "links", error))? {
            let interface = Interface::read(link);
            interfaces.insert(interface.ifindex, interface);
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

    /// Reads all neighbours and bridge ports; gives the next hops in use whose MAC changed.
    async fn read_neighbours(&self) -> Result<BTreeSet<Hop>, Error> {
        self.shared.lock().neighbours.begin_dump();
        let entries = self.list_neighbours(None).await?;
        let ports = self.list_neighbours(Some(AddressFamily::Bridge)).await?;
        Ok(self.shared.lock().neighbours.end_dump(&entries, &ports))
    }

    async fn list_neighbours(&self, family: Option<AddressFamily>) -> Result<Vec<NeighbourMessage>, Error> {
        let mut request = self.handle.neighbours().get();
        if let Some(family) = family {
            request.message_mut().header.family = family;
        }
        let entries = request.execute().try_collect().await;
        entries.map_err(|error| netlink("list", "neighbours", error))
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

fn netlink(call: &'static str, object: &str, error: rtnetlink::Error) -> Error {
    failed(call, object, io::Error::other(error))
}

fn failed(call: &'static str, object: &str, source: io::Error) -> Error {
    Error::System { call, object: object.to_owned(), source, hint: "" }
}
