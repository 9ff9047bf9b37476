//! The neighbours we send to: their MACs as announced, and when to ask after them. Pure.
//!
//! The kernel believes an unused neighbour for half a minute, and XDP is no use that it sees. So
//! each neighbour in use is asked by unicast once a round of 400 ms (kernel state `PROBE`); one
//! that does not answer within half of that is asked for anew by broadcast (`NONE`, then
//! `NTF_USE`), to which a host that took the address over answers. Until something better is known
//! the last MAC stays in use: an answer may only be late. When the kernel gives up (`FAILED`) it goes. One of several next
//! hops gives way to the others before that, half a round after the broadcast.
//!
//! At most [`BUDGET`] neighbours are asked in a round, half of them those with most backends
//! behind them, the others in turn: a thousand neighbours take twelve seconds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use lb_common::Mac;
use rtnetlink::packet_core::NLM_F_CREATE;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::mac;
use super::socket::Request;

/// Neighbours asked in one round.
const BUDGET: usize = 64;
/// New neighbours asked for at once; the others wait for their round.
const FIRST: usize = 256;
/// Half rounds in which a new neighbour is asked for each time, not once a second as the kernel does: the
/// first question is easily lost where a link has just come up.
const EAGER: u8 = 8;

/// A next hop: interface and address.
pub(super) type Hop = (u32, IpAddr);

/// What the kernel knows and what we ask it to find out.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<Hop, Known>,
    used: BTreeMap<Hop, Used>,
    /// Those with most backends, asked every round.
    busiest: BTreeSet<Hop>,
    /// Where the turn of the others stands.
    turn: Option<Hop>,
    /// Ports of bridges by (bridge, MAC).
    ports: HashMap<(u32, Mac), u32>,
    /// Bridges that routes lead to.
    bridges: BTreeSet<u32>,
    /// Announced while a dump runs, which may be older.
    fresher: Option<Fresher>,
}

#[derive(Debug, Default)]
struct Fresher {
    hops: HashSet<Hop>,
    ports: HashSet<(u32, Mac)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    mac: Option<Mac>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Just confirmed.
    Reachable,
    /// Believed.
    Valid,
    /// Being asked for, nothing known.
    Asked,
    /// Asked for in vain.
    Failed,
    /// Set by an operator or another program, whose business it is.
    Fixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Used {
    /// MAC to send to; outlives the kernel's while that asks anew.
    mac: Option<Mac>,
    /// Asked by unicast and not heard of since.
    unanswered: bool,
    /// Asked by broadcast, too, and not heard of since.
    anew: bool,
    /// Nor half a round later.
    doubted: bool,
    /// How often it was asked for since it is in use.
    asked: u8,
}

/// What an announcement changed for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing.
    None,
    /// The MAC of a next hop in use, or whether it answers.
    Hop(Hop),
    /// A port of a bridge in use.
    Port,
}

/// What to ask the kernel to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Resolve it.
    Resolve,
    /// Verify it by unicast.
    Verify,
    /// Forget it and resolve it by broadcast.
    Anew,
}

impl Ask {
    /// The same as the kernel wants it.
    pub(super) fn requests(self, (ifindex, addr): Hop) -> Vec<Request> {
        let message = |state, flags| {
            let mut message = NeighbourMessage::default();
            message.header.family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.ifindex = ifindex;
            message.header.state = state;
            message.header.flags = flags;
            message.attributes.push(NeighbourAttribute::Destination(match addr {
                IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
            }));
            RouteNetlinkMessage::NewNeighbour(message)
        };
        let resolve = (NLM_F_CREATE, message(NeighbourState::None, NeighbourFlags::Use));
        // Without NLM_F_REPLACE: MAC and router mark of the entry stay as they are.
        let to = |state| (0, message(state, NeighbourFlags::empty()));
        match self {
            Ask::Resolve => vec![resolve],
            Ask::Verify => vec![to(NeighbourState::Probe)],
            Ask::Anew => vec![to(NeighbourState::None), resolve],
        }
    }
}

impl Neighbours {
    /// MAC to send to.
    pub(super) fn mac(&self, hop: Hop) -> Option<Mac> {
        self.used.get(&hop).and_then(|used| used.mac)
    }

    /// It was asked by unicast and by broadcast and has not answered: where there is another, that is better.
    pub(super) fn is_doubted(&self, hop: Hop) -> bool {
        self.used.get(&hop).is_some_and(|used| used.doubted)
    }

    /// Next hops that were asked for all the time and never answered.
    pub(super) fn silent(&self) -> impl Iterator<Item = Hop> {
        let silent = self.used.iter().filter(|(_, used)| used.mac.is_none() && used.asked >= EAGER);
        silent.map(|(hop, _)| *hop)
    }

    /// Port of a bridge behind which a MAC lives.
    pub(super) fn port(&self, bridge: u32, mac: Mac) -> Option<u32> {
        self.ports.get(&(bridge, mac)).copied()
    }

    /// Next hops in use with the number of backends behind each, and the bridges among them.
    pub(super) fn set_used<'a>(
        &mut self,
        used: impl Iterator<Item = (&'a Hop, usize)>,
        bridges: BTreeSet<u32>,
    ) {
        let mut by_weight = Vec::new();
        let mut now = BTreeMap::new();
        for (hop, backends) in used {
            by_weight.push((std::cmp::Reverse(backends), *hop));
            let entry = self.used.get(hop).copied().unwrap_or_else(|| {
                let known = self.known.get(hop).filter(|known| known.standing != Standing::Failed);
                Used { mac: known.and_then(|known| known.mac), ..Used::default() }
            });
            now.insert(*hop, entry);
        }
        if by_weight.len() > BUDGET / 2 {
            by_weight.select_nth_unstable(BUDGET / 2);
        }
        self.busiest = by_weight.into_iter().take(BUDGET / 2).map(|(_, hop)| hop).collect();
        self.used = now;
        self.bridges = bridges;
    }

    /// New next hops without a MAC, to be asked for at once.
    pub(super) fn first(&mut self) -> Vec<(Hop, Ask)> {
        let new = self.used.iter_mut().filter(|(_, used)| used.asked == 0 && used.mac.is_none());
        new.take(FIRST)
            .map(|(hop, used)| {
                used.asked = 1;
                (*hop, Ask::Resolve)
            })
            .collect()
    }

    /// Before the first half of a round: doubts those that the last one asked by broadcast in vain, and gives them.
    pub(super) fn doubt(&mut self) -> Vec<Hop> {
        let silent = self.used.iter_mut().filter(|(_, used)| used.anew && !used.doubted);
        silent
            .map(|(hop, used)| {
                used.doubted = true;
                *hop
            })
            .collect()
    }

    /// First half of a round: asks by unicast.
    pub(super) fn verify(&mut self) -> Vec<(Hop, Ask)> {
        let room = BUDGET - self.busiest.len().min(BUDGET);
        let from = self.turn.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let after = self.used.range((from, std::ops::Bound::Unbounded)).map(|(hop, _)| *hop);
        let others: Vec<Hop> = after
            .chain(self.used.keys().copied())
            .take(self.used.len())
            .filter(|hop| !self.busiest.contains(hop))
            .take(room)
            .collect();
        self.turn = others.last().copied().or(self.turn);
        let mut asks = Vec::new();
        for hop in self.busiest.iter().copied().chain(others) {
            let Some(used) = self.used.get_mut(&hop) else { continue };
            used.asked = used.asked.saturating_add(1);
            match self.known.get(&hop).map(|known| known.standing) {
                Some(Standing::Fixed) => {}
                Some(Standing::Reachable | Standing::Valid) => {
                    used.unanswered = true;
                    asks.push((hop, Ask::Verify));
                }
                // The kernel does not announce an entry that it only begins to ask for.
                Some(Standing::Asked) | None if used.mac.is_none() && used.asked < EAGER => {
                    asks.push((hop, Ask::Anew));
                }
                Some(Standing::Asked | Standing::Failed) | None => asks.push((hop, Ask::Resolve)),
            }
        }
        asks
    }

    /// Second half: those that did not answer, and new ones.
    pub(super) fn overdue(&mut self) -> Vec<(Hop, Ask)> {
        let mut asks = Vec::new();
        for (hop, used) in &mut self.used {
            let new = used.mac.is_none() && (1..EAGER).contains(&used.asked);
            let asked = self.known.get(hop).is_none_or(|known| known.standing == Standing::Asked);
            if used.unanswered || (new && asked && asks.len() < BUDGET) {
                used.asked = used.asked.saturating_add(1);
                used.anew |= used.unanswered;
                used.unanswered = false;
                asks.push((*hop, Ask::Anew));
            }
        }
        asks
    }

    /// An entry as announced.
    pub(super) fn hear(&mut self, entry: &NeighbourMessage) -> News {
        if entry.header.family == AddressFamily::Bridge {
            return self.hear_port(entry, entry.header.state != NeighbourState::Permanent);
        }
        let Some((hop, known)) = read(entry) else { return News::None };
        if let Some(fresher) = &mut self.fresher {
            fresher.hops.insert(hop);
        }
        self.note(hop, Some(known))
    }

    /// An entry that was removed.
    pub(super) fn hear_gone(&mut self, entry: &NeighbourMessage) -> News {
        if entry.header.family == AddressFamily::Bridge {
            return self.hear_port(entry, false);
        }
        let Some((hop, _)) = read(entry) else { return News::None };
        if let Some(fresher) = &mut self.fresher {
            fresher.hops.insert(hop);
        }
        self.note(hop, None)
    }

    fn note(&mut self, hop: Hop, known: Option<Known>) -> News {
        match known {
            Some(known) => _ = self.known.insert(hop, known),
            None => _ = self.known.remove(&hop),
        }
        let Some(used) = self.used.get_mut(&hop) else { return News::None };
        let before = (used.mac, used.doubted);
        match known {
            Some(Known { standing: Standing::Failed, .. }) => used.mac = None,
            Some(Known { standing: Standing::Asked, .. }) | None => {}
            Some(Known { mac, standing }) => {
                used.mac = mac.or(used.mac);
                used.asked = 0;
                used.unanswered &= standing == Standing::Valid;
                (used.anew, used.doubted) = (false, false);
            }
        }
        if (used.mac, used.doubted) == before { News::None } else { News::Hop(hop) }
    }

    fn hear_port(&mut self, entry: &NeighbourMessage, there: bool) -> News {
        let Some((key, port)) = read_port(entry) else { return News::None };
        if let Some(fresher) = &mut self.fresher {
            fresher.ports.insert(key);
        }
        let before = if there { self.ports.insert(key, port) } else { self.ports.remove(&key) };
        let changed = before != there.then_some(port);
        if changed && self.bridges.contains(&key.0) { News::Port } else { News::None }
    }

    /// Everything is about to be read anew.
    pub(super) fn begin_dump(&mut self) {
        self.fresher = Some(Fresher::default());
    }

    /// Everything, as read; what was announced meanwhile is newer. Gives the next hops in use
    /// whose MAC changed.
    pub(super) fn end_dump(
        &mut self,
        entries: &[NeighbourMessage],
        ports: &[NeighbourMessage],
    ) -> BTreeSet<Hop> {
        let fresher = self.fresher.take().unwrap_or_default();
        let mut read: HashMap<Hop, Known> = entries.iter().filter_map(read).collect();
        read.retain(|hop, _| !fresher.hops.contains(hop));
        let gone: Vec<Hop> = self.known.keys().filter(|hop| !read.contains_key(hop)).copied().collect();
        let mut changed = BTreeSet::new();
        let mut note = |hop, known| {
            if let News::Hop(hop) = self.note(hop, known) {
                changed.insert(hop);
            }
        };
        for hop in gone.into_iter().filter(|hop| !fresher.hops.contains(hop)) {
            note(hop, None);
        }
        for (hop, known) in read {
            note(hop, Some(known));
        }
        self.ports.retain(|key, _| fresher.ports.contains(key));
        let kept = ports.iter().filter(|entry| entry.header.state != NeighbourState::Permanent);
        for (key, port) in kept.filter_map(read_port) {
            if !fresher.ports.contains(&key) {
                self.ports.insert(key, port);
            }
        }
        changed
    }
}

/// An entry of the ARP or NDP table.
fn read(entry: &NeighbourMessage) -> Option<(Hop, Known)> {
    let (mut addr, mut link, mut foreign) = (None, None, false);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addr = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => link = mac(bytes),
            NeighbourAttribute::ExtFlags(flags) => foreign |= *flags != NeighbourExtFlags::empty(),
            _ => {}
        }
    }
    // To change the state of such an entry from here would clear these marks.
    foreign |= entry.header.flags.contains(NeighbourFlags::ExtLearned);
    let standing = match entry.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => Standing::Fixed,
        NeighbourState::None | NeighbourState::Incomplete => Standing::Asked,
        NeighbourState::Failed => Standing::Failed,
        _ if foreign => Standing::Fixed,
        NeighbourState::Reachable => Standing::Reachable,
        _ => Standing::Valid,
    };
    Some(((entry.header.ifindex, addr?), Known { mac: link, standing }))
}

/// An entry of a bridge's table.
fn read_port(entry: &NeighbourMessage) -> Option<((u32, Mac), u32)> {
    let (mut bridge, mut link) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Controller(ifindex) => bridge = Some(*ifindex),
            NeighbourAttribute::LinkLayerAddress(bytes) => link = mac(bytes),
            _ => {}
        }
    }
    // The bridge's own addresses lead into this host.
    let bridge = bridge.filter(|bridge| *bridge != entry.header.ifindex)?;
    Some(((bridge, link?), entry.header.ifindex))
}

#[cfg(test)]
mod tests;
