//! Who answers for addresses on a link, for people.

use std::collections::BTreeMap;
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
}

impl Announced {
    /// Addresses that we hold.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        let ours = self.holders.iter().filter(|(_, holder)| holder.as_deref() == Some(&*self.own));
        ours.map(|(vip, _)| *vip)
    }
}
