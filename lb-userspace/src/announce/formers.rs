//! Who held the addresses that we hold before us: connections to the proxy that were made there are there still. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::Mac;
use crate::model::announce::Former;

/// One for each address at most: who held it before that one has lost its connections.
pub(super) struct Formers {
    /// How long who leaves by a word goes on with its connections.
    drain: Duration,
    /// Nodes that left by a word, and until when they count.
    left: BTreeMap<String, (Mac, Instant)>,
    of: BTreeMap<IpAddr, Known>,
}

struct Known {
    former: Former,
    /// It left; `None`: it is a member, and may have connections for as long as it is.
    until: Option<Instant>,
}

impl Formers {
    pub(super) fn new(drain: Duration) -> Self {
        Self { drain, left: BTreeMap::new(), of: BTreeMap::new() }
    }

    /// A member says that it goes: it serves what it has to the end.
    pub(super) fn leaves(&mut self, name: &str, mac: Mac, now: Instant) {
        let until = now + self.drain;
        self.left.insert(name.to_owned(), (mac, until));
        for known in self.of.values_mut().filter(|known| known.former.name == name) {
            known.until = Some(until);
        }
    }

    /// A node is a member, at this hardware address. Nothing is left of the agent that left in its name.
    pub(super) fn is_member(&mut self, name: &str, mac: Mac) {
        self.left.remove(name);
        for known in self.of.values_mut().filter(|known| known.former.name == name) {
            known.former.mac = mac;
        }
    }

    /// A member is gone without a word, and its connections with it. Their clients are to hear so at once: what is
    /// sent to a host that is down has no answer.
    pub(super) fn falls_silent(&mut self, name: &str) {
        self.of.retain(|_, known| known.former.name != name);
    }

    /// We begin to hold an address that this node held. `member`: where it is, if it is a member.
    pub(super) fn begin(&mut self, vip: IpAddr, holder: &str, member: Option<Mac>) {
        let left = self.left.get(holder).map(|(mac, until)| (*mac, Some(*until)));
        let Some((mac, until)) = member.map(|mac| (mac, None)).or(left) else { return };
        self.of.insert(vip, Known { former: Former { name: holder.to_owned(), mac }, until });
    }

    /// We hold no others than these.
    pub(super) fn keep(&mut self, is_held: impl Fn(&IpAddr) -> bool) {
        self.of.retain(|vip, _| is_held(vip));
    }

    /// Forgets whose time is over; true if there was any.
    pub(super) fn pass(&mut self, now: Instant) -> bool {
        self.left.retain(|_, (_, until)| now < *until);
        let before = self.of.len();
        self.of.retain(|_, known| known.until.is_none_or(|until| now < until));
        self.of.len() != before
    }

    pub(super) fn macs(&self) -> impl Iterator<Item = Mac> {
        self.of.values().map(|known| known.former.mac)
    }

    /// For people, and for the kernel part.
    pub(super) fn known(&self) -> BTreeMap<IpAddr, Former> {
        self.of.iter().map(|(vip, known)| (*vip, known.former.clone())).collect()
    }
}
