//! Which next hop of a route its packets take, and what of the next hops cannot be reached or sent by.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Netlink;
use super::links::Exit;
use super::neighbours::Hop;
use super::routes::{Path, Route};
use crate::model::{ObjectId, Problem, Severity};

/// What becomes of the packets that a next hop which does not answer should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// They are dropped.
    Dropped,
    /// Other hops of their routes take them.
    Detour,
}

impl Netlink {
    /// Which of the next hops of a route its packets take: the first that answers, else the first that did.
    pub(super) fn chosen<'a>(&self, route: &'a Route) -> &'a Path {
        let rank = |path: &&Path| match self.exits.get(&path.hop) {
            Some(Ok(Exit { neighbour: Some(_), answers: true, .. })) => 0,
            Some(Ok(Exit { neighbour: Some(_), answers: false, .. })) => 1,
            _ => 2,
        };
        route.paths().min_by_key(rank).unwrap_or(&route.first)
    }

    /// Whether the packets of a destination take this hop.
    fn takes(&self, destination: IpAddr, hop: Hop) -> bool {
        matches!(self.routes.get(destination), Some(Ok(route)) if self.chosen(route).hop == hop)
    }

    /// Next hops that do not answer, by the interface that they should be behind and by what that costs: one of each, and how many there
    /// are. Those behind a link that is down have a reason.
    pub fn silent(&self) -> BTreeMap<(&str, Cost), (IpAddr, usize)> {
        let mut silent: BTreeMap<(&str, Cost), (IpAddr, usize)> = BTreeMap::new();
        for (ifindex, addr) in self.shared.lock().neighbours.silent() {
            let behind =
                self.view.interfaces.get(&ifindex).filter(|one| one.mac.is_some() && one.is_running());
            if let Some(interface) = behind {
                let hop = (ifindex, addr);
                let behind = self.routes.hops().get(&hop);
                let is_taken = behind.into_iter().flatten().any(|destination| self.takes(*destination, hop));
                let cost = if is_taken { Cost::Dropped } else { Cost::Detour };
                silent.entry((&interface.name, cost)).or_insert((addr, 0)).1 += 1;
            }
        }
        silent
    }

    /// One problem for each interface that we cannot send by, however many backends are behind it.
    pub(super) fn blocked(&self) -> Vec<Problem> {
        let mut reasons: BTreeMap<u32, (&str, usize)> = BTreeMap::new();
        for ((ifindex, gateway), exit) in &self.exits {
            let Err(reason) = exit else { continue };
            let hop = (*ifindex, *gateway);
            let behind = self.routes.hops().get(&hop).into_iter().flatten();
            let taken = behind.filter(|destination| self.takes(**destination, hop)).count();
            if taken > 0 {
                reasons.entry(*ifindex).or_insert((reason, 0)).1 += taken;
            }
        }
        let known = reasons.into_iter().filter_map(|(ifindex, why)| {
            let named = self.view.interfaces.get(&ifindex).filter(|one| one.mac.is_some())?;
            Some(unsendable(&named.name, why.0, why.1))
        });
        known.collect()
    }
}

fn unsendable(name: &str, reason: &str, backends: usize) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Warning,
        reason: "next-hop",
        field: format!("interface {name}"),
        message: format!(
            "routes to {backends} backends lead by {name}, by which the kernel program cannot send: {reason}; their \
             packets are left to the kernel's routing"
        ),
        fix: "route them by a physical interface, a VLAN on one, a bridge without VLAN filtering or a bond"
            .to_owned(),
    }
}
