//! Who answers for addresses on a link, for people and for the kernel part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// Our interface there.
    pub interface: String,
    /// Our own name among the members.
    pub own: String,
    /// Why nothing is announced for the moment.
    pub trouble: Option<String>,
    /// Agents on the link, ours too.
    pub members: Vec<String>,
    /// Who holds each address; `None`: nobody can.
    pub holders: BTreeMap<IpAddr, Option<String>>,
    /// Our hardware address there.
    pub mac: [u8; 6],
    /// Hardware addresses of the other agents.
    pub agents: BTreeSet<[u8; 6]>,
    /// Who held the addresses that we hold, as far as it may have connections to them still.
    pub formers: BTreeMap<IpAddr, Former>,
    /// Who says there what only we should.
    pub rivals: BTreeSet<Rival>,
}

/// A host that is none of the agents, or cannot be told from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rival {
    /// It answers for an address that we hold.
    Answers {
        /// Its hardware address.
        mac: [u8; 6],
        /// The address.
        vip: IpAddr,
    },
    /// It announces by our name.
    Namesake {
        /// Its hardware address.
        mac: [u8; 6],
    },
}

/// An agent that held an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    /// Its node.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// As people write a hardware address.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Announced {
    /// Addresses that we hold.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        let ours = self.holders.iter().filter(|(_, holder)| holder.as_deref() == Some(&*self.own));
        ours.map(|(vip, _)| *vip)
    }

    /// Of each host that is a rival and was none before the first thing that it says: it may answer for thousands of addresses.
    pub fn rivals_since(&self, before: &Self) -> impl Iterator<Item = Rival> {
        let host = |rival: &Rival| match rival {
            Rival::Answers { mac, .. } => (*mac, false),
            Rival::Namesake { mac } => (*mac, true),
        };
        let known: BTreeSet<_> = before.rivals.iter().map(host).collect();
        let mut new = BTreeMap::new();
        for rival in self.rivals.iter().filter(|rival| !known.contains(&host(rival))) {
            new.entry(host(rival)).or_insert(*rival);
        }
        new.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_answers_for_many_addresses_is_new_once() {
        let answers = |last: u8, host: u8| Rival::Answers { mac: [host; 6], vip: [203, 0, 113, last].into() };
        let with =
            |rivals: &[Rival]| Announced { rivals: rivals.iter().copied().collect(), ..Announced::default() };
        let many: Vec<Rival> = (1..200).map(|last| answers(last, 7)).collect();
        let namesake = Rival::Namesake { mac: [7; 6] };

        let since =
            |now: &[Rival], before: &[Rival]| with(now).rivals_since(&with(before)).collect::<Vec<_>>();

        assert_eq!(since(&many, &[]), [answers(1, 7)]);
        assert_eq!(since(&many, &[answers(9, 7)]), []);
        assert_eq!(
            since(&[&many[..], &[namesake, answers(1, 8)]].concat(), &many),
            [namesake, answers(1, 8)]
        );
    }
}
