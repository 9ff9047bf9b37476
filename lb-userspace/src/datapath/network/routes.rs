//! The route to each backend, as the kernel's own lookup gives it: rules, metrics and next hop objects are its business,
//! and of a route with several next hops ([`multipath`]) which those are. Asked once per backend and again when something
//! changed that its answer depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use super::heard::Prefix;
use super::ip;
use super::links::Interface;
use super::multipath::{self, Candidate};
use super::neighbours::Hop;
use super::socket::{Answer, Batch, Request};
use crate::datapath::want::NoWay;

/// The way a packet to one address takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// The next hop that is preferred.
    pub(super) first: Path,
    /// Others of the same route, in the order in which they are taken where those before do not answer.
    pub(super) others: Vec<Path>,
    /// Largest packet, where the route says so.
    pub(super) mtu: Option<u32>,
}

/// One of the next hops of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// Next hop.
    pub(super) hop: Hop,
    /// Our address.
    pub(super) source: IpAddr,
}

impl Route {
    /// All next hops, the preferred first.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// Answers so far, by destination.
#[derive(Debug, Default)]
pub(super) struct Routes {
    followed: OrdSet<IpAddr>,
    known: BTreeMap<IpAddr, Result<Route, NoWay>>,
    stale: BTreeSet<IpAddr>,
    /// Destinations by each next hop of their routes.
    hops: BTreeMap<Hop, BTreeSet<IpAddr>>,
}

impl Routes {
    /// Keeps exactly these destinations; gives those that went. Costs what differs from those of before.
    pub(super) fn follow(&mut self, destinations: &OrdSet<IpAddr>) -> Vec<IpAddr> {
        let before = std::mem::replace(&mut self.followed, destinations.clone());
        let mut gone = Vec::new();
        for change in before.diff(destinations) {
            match change {
                DiffItem::Add(addr) => _ = self.stale.insert(*addr),
                DiffItem::Remove(addr) => gone.push(*addr),
            }
        }
        for addr in &gone {
            self.stale.remove(addr);
            self.forget(*addr);
        }
        gone
    }

    /// These have to be asked again.
    pub(super) fn doubt(&mut self, destinations: &[IpAddr]) {
        self.stale.extend(destinations);
    }

    /// Every answer may be wrong.
    pub(super) fn doubt_all(&mut self) {
        self.stale.extend(self.known.keys());
    }

    /// A route to this prefix came, went or changed.
    pub(super) fn doubt_prefix(&mut self, prefix: Prefix) {
        self.stale.extend(self.known.range(prefix.first..=prefix.last).map(|(addr, _)| *addr));
    }

    /// Answers by way of this interface may be wrong.
    pub(super) fn doubt_interface(&mut self, ifindex: u32) {
        let first = (ifindex, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let last = (ifindex, IpAddr::V6(Ipv6Addr::from(u128::MAX)));
        self.stale.extend(self.hops.range(first..=last).flat_map(|(_, destinations)| destinations));
    }

    /// The links changed: doubts the answers that depend on that and that nobody announces: the kernel
    /// removes IPv4 routes of a link that goes down, or of an address that goes, in silence.
    pub(super) fn doubt_by_links(
        &mut self,
        before: &BTreeMap<u32, Interface>,
        now: &BTreeMap<u32, Interface>,
    ) {
        let global = |one: &Interface| -> Vec<IpAddr> {
            // Every interface has link-local addresses; none is the source of a route to a backend
            // by another interface.
            let is_local = |addr: &IpAddr| matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
            one.addrs.iter().copied().filter(|addr| !is_local(addr)).collect()
        };
        for (ifindex, old) in before {
            let new = now.get(ifindex);
            if old.is_running() && !new.is_some_and(Interface::is_running) {
                self.doubt_interface(*ifindex);
            }
            let back = !old.is_running() && new.is_some_and(Interface::is_running);
            if back || global(old) != new.map(global).unwrap_or_default() {
                self.doubt_all();
            }
        }
        let new = now.iter().filter(|(ifindex, _)| !before.contains_key(ifindex));
        if new.into_iter().any(|(_, one)| !global(one).is_empty()) {
            self.doubt_all();
        }
    }

    /// What has to be asked.
    pub(super) fn take_stale(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.stale).into_iter().collect()
    }

    /// An answer.
    pub(super) fn learn(&mut self, addr: IpAddr, route: Result<Route, NoWay>) {
        self.forget(addr);
        for path in route.iter().flat_map(Route::paths) {
            self.hops.entry(path.hop).or_default().insert(addr);
        }
        self.known.insert(addr, route);
    }

    fn forget(&mut self, addr: IpAddr) {
        let Some(Ok(route)) = self.known.remove(&addr) else { return };
        for path in route.paths() {
            let Some(destinations) = self.hops.get_mut(&path.hop) else { continue };
            destinations.remove(&addr);
            if destinations.is_empty() {
                self.hops.remove(&path.hop);
            }
        }
    }

    pub(super) fn get(&self, addr: IpAddr) -> Option<&Result<Route, NoWay>> {
        self.known.get(&addr)
    }

    /// Next hops of the routes and the destinations behind each.
    pub(super) fn hops(&self) -> &BTreeMap<Hop, BTreeSet<IpAddr>> {
        &self.hops
    }
}

/// Interfaces that have no carrier, and those that have and could be used instead.
#[derive(Debug, Clone, Default)]
pub(super) struct Carriers {
    pub(super) dead: BTreeSet<u32>,
    pub(super) alive: Vec<u32>,
}

/// Most interfaces that are tried instead of one without a carrier.
const ALTERNATIVES: usize = 16;

/// Asks the kernel for routes; `None`: ask again.
pub(super) fn ask(
    batch: &mut Batch,
    to: &[IpAddr],
    carriers: &Carriers,
) -> io::Result<Vec<Option<Result<Route, NoWay>>>> {
    // The entry beside the answer: that names one next hop however many the entry has.
    let plain = to.iter().map(|to| question(*to, None, RouteFlags::empty()));
    let entries = to.iter().map(|to| question(*to, None, RouteFlags::FibMatch));
    let mut answers = batch.ask(plain.chain(entries).collect())?;
    let entries = answers.split_off(to.len());
    let mut routes: Vec<_> = to.iter().zip(answers).map(|(to, answer)| read(*to, answer)).collect();
    let several = to.iter().zip(entries).map(|(to, entry)| match entry {
        Ok(Some(RouteNetlinkMessage::NewRoute(entry))) => multipath::candidates(*to, &entry),
        _ => Vec::new(),
    });
    let several: Vec<Vec<Candidate>> = several.collect();
    add_paths(batch, to, &mut routes, &several)?;
    for (to, route) in to.iter().zip(&mut routes) {
        let Some(Ok(found)) = route else { continue };
        if !found.paths().all(|path| carriers.dead.contains(&path.hop.0)) {
            continue;
        }
        // The kernel goes on using a route whose interface lost its carrier (unless the sysctl
        // ignore_routes_with_linkdown is set). Nothing gets through there, so any other is better but the
        // default route: that leads elsewhere, and packets for private addresses would leak there.
        if let Some(other) = alternative(batch, *to, carriers)? {
            *route = Some(Ok(other));
        }
    }
    Ok(routes)
}

/// Puts the next hops of an entry in the place of the one that the kernel picked.
fn add_paths(
    batch: &mut Batch,
    to: &[IpAddr],
    routes: &mut [Option<Result<Route, NoWay>>],
    several: &[Vec<Candidate>],
) -> io::Result<()> {
    // Our address towards an IPv4 gateway goes by its network, else by the destination; both by the interface.
    let probe = |to: IpAddr, hop: Hop| (if hop.1.is_ipv4() { hop.1 } else { to }, hop.0);
    let unsaid = to.iter().zip(several).flat_map(|(to, hops)| {
        hops.iter().filter(|one| one.source.is_none()).map(move |one| probe(*to, one.hop))
    });
    let unsaid: BTreeSet<(IpAddr, u32)> = unsaid.collect();
    let questions = unsaid.iter().map(|(to, oif)| question(*to, Some(*oif), RouteFlags::empty()));
    let answers = batch.ask(questions.collect())?;
    let sources: BTreeMap<_, _> = unsaid
        .into_iter()
        .zip(answers)
        .map(|(probe, answer)| {
            (probe, read(probe.0, answer).map(|route| route.ok().map(|one| one.first.source)))
        })
        .collect();
    for ((to, route), hops) in to.iter().zip(routes).zip(several) {
        let Some(Ok(found)) = route else { continue };
        let source = |one: &Candidate| match one.source {
            Some(source) => Some(Some(source)),
            None => sources.get(&probe(*to, one.hop)).copied().flatten(),
        };
        let paths: Option<Vec<Option<Path>>> =
            hops.iter().map(|one| Some(source(one)?.map(|source| Path { hop: one.hop, source }))).collect();
        let Some(paths) = paths else {
            *route = None;
            continue;
        };
        let mut paths = paths.into_iter().flatten();
        if let Some(first) = paths.next() {
            (found.first, found.others) = (first, paths.collect());
        }
    }
    Ok(())
}

/// The most specific route, then the one with the lowest metric, by an interface with a carrier; a default route
/// in the place of another alone.
fn alternative(batch: &mut Batch, to: IpAddr, carriers: &Carriers) -> io::Result<Option<Route>> {
    let candidates: Vec<u32> = carriers.alive.iter().copied().take(ALTERNATIVES).collect();
    // `FibMatch`: the entry itself, and an error where there is none; a plain question would be
    // answered with "on this link".
    let oifs = std::iter::once(None).chain(candidates.iter().copied().map(Some));
    let asked = oifs.map(|oif| question(to, oif, RouteFlags::FibMatch)).collect();
    let mut entries = batch.ask(asked)?.into_iter().map(|answer| match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(entry))) => Some(entry),
        _ => None,
    });
    let Some(dead) = entries.next().flatten() else { return Ok(None) };
    let ranked = candidates.iter().zip(entries).filter_map(|(oif, entry)| {
        let entry = entry?;
        let metric = entry.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        let length = entry.header.destination_prefix_length;
        let leads_there = entry.header.kind == RouteType::Unicast
            && (length > 0 || dead.header.destination_prefix_length == 0);
        leads_there.then_some((std::cmp::Reverse(length), metric.unwrap_or(0), *oif))
    });
    let Some((_, _, oif)) = ranked.min() else { return Ok(None) };
    let answers = batch.ask(vec![question(to, Some(oif), RouteFlags::empty())])?;
    let route = answers.into_iter().next().and_then(|answer| read(to, answer));
    Ok(route.and_then(Result::ok).filter(|route| route.first.hop.0 == oif))
}

fn question(to: IpAddr, oif: Option<u32>, flags: RouteFlags) -> Request {
    let mut message = match to {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
    };
    message.header.flags = flags;
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    (0, RouteNetlinkMessage::GetRoute(message))
}

/// `None`: the kernel did not answer.
fn read(to: IpAddr, answer: Answer) -> Option<Result<Route, NoWay>> {
    match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Some(parse(to, message)),
        Ok(_) => None,
        Err(errno) => Some(Err(NoWay::NoRoute(refusal(errno)))),
    }
}

/// Why the kernel answers with an error: routes and rules that are there to lead nowhere have one each.
fn refusal(errno: i32) -> String {
    match errno {
        libc::EINVAL => "a blackhole route or rule leads there".to_owned(),
        libc::EACCES => "a prohibit route or rule leads there".to_owned(),
        libc::EHOSTUNREACH => "an unreachable route or rule leads there".to_owned(),
        _ => format!("no route: {}", io::Error::from_raw_os_error(errno)),
    }
}

fn parse(to: IpAddr, message: RouteMessage) -> Result<Route, NoWay> {
    if message.header.kind == RouteType::Local {
        return Err(NoWay::Here);
    }
    if message.header.kind != RouteType::Unicast {
        return Err(NoWay::NoRoute(format!("its route is of type {:?}", message.header.kind)));
    }
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(index),
            RouteAttribute::Gateway(addr) => gateway = ip(&addr),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(v6)),
            RouteAttribute::PrefSource(addr) => source = ip(&addr),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Encap(_) => return Err("its route encapsulates packets".into()),
            _ => {}
        }
    }
    let hop = (ifindex.ok_or("its route names no interface")?, gateway.unwrap_or(to));
    let source = source.ok_or("its route names no source address")?;
    Ok(Route { first: Path { hop, source }, others: Vec::new(), mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn routes() -> Routes {
        let mut routes = Routes::default();
        for (to, ifindex, gateway) in
            [("10.0.1.1", 2, "10.9.0.1"), ("10.0.2.1", 3, "10.9.0.2"), ("fd00::1", 3, "fe80::1")]
        {
            let first = Path { hop: (ifindex, addr(gateway)), source: addr("10.9.0.9") };
            let route = Route { first, others: Vec::new(), mtu: None };
            routes.learn(addr(to), Ok(route));
        }
        routes.followed = routes.known.keys().copied().collect();
        routes
    }

    #[test]
    fn a_route_that_leads_nowhere_is_called_what_it_is() {
        let cases =
            [(libc::EINVAL, "blackhole"), (libc::EACCES, "prohibit"), (libc::EHOSTUNREACH, "unreachable")];
        for (errno, kind) in cases {
            let why = refusal(errno);

            assert!(why.ends_with(&format!("{kind} route or rule leads there")), "{why}");
        }
        assert!(refusal(libc::ENETUNREACH).starts_with("no route: Network is unreachable"));
    }

    #[test]
    fn only_what_a_change_can_have_touched_is_asked_again() {
        let all = ["10.0.1.1", "10.0.2.1", "fd00::1"].map(addr);
        type Doubt = fn(&mut Routes);
        let cases: [(&str, Doubt, Vec<IpAddr>); 5] = [
            ("a prefix", |r| r.doubt_prefix(Prefix::new(addr("10.0.2.0"), 24)), vec![all[1]]),
            ("the IPv4 default", |r| r.doubt_prefix(Prefix::new(addr("0.0.0.0"), 0)), all[..2].to_vec()),
            ("an interface", |r| r.doubt_interface(3), all[1..].to_vec()),
            ("everything", Routes::doubt_all, all.to_vec()),
            ("nothing", |_| {}, vec![]),
        ];
        for (case, doubt, wanted) in cases {
            let mut routes = routes();

            doubt(&mut routes);

            assert_eq!(routes.take_stale(), wanted, "{case}");
        }
    }

    #[test]
    fn one_new_destination_is_one_question_and_one_that_went_leaves_nothing() {
        let mut routes = routes();

        let gone = routes.follow(&["10.0.1.1", "fd00::1", "10.0.3.1"].map(addr).into_iter().collect());

        assert_eq!(gone, [addr("10.0.2.1")]);
        assert_eq!(routes.take_stale(), [addr("10.0.3.1")]);
        assert_eq!(routes.hops().len(), 2);
    }
}
