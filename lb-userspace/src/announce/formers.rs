//! Who held the addresses that we hold before us: connections to the proxy that were made there are there still. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::Mac;
use crate::model::announce::Former;

/// Between two questions to a host whose agent left whether it is up.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// So many without an answer, from a host that gave one: it is down.
const UNANSWERED: u8 = 3;

/// One for each address at most: who held it before that one has lost its connections.
pub(super) struct Formers {
    /// How long who leaves by a word goes on with its connections.
    drain: Duration,
    /// Nodes that left by a word.
    left: BTreeMap<String, Left>,
    of: BTreeMap<IpAddr, Known>,
}

/// A node without an agent, whose kernel part goes on for as long as the host is up.
struct Left {
    mac: Mac,
    /// Until when it counts.
    until: Instant,
    /// When it is asked next.
    asked_next: Instant,
    /// Questions since its last answer; `None`: it never gave one, and need not be one that does.
    unanswered: Option<u8>,
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
        self.left.insert(name.to_owned(), Left { mac, until, asked_next: now, unanswered: None });
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
        let left = self.left.get(holder).map(|left| (left.mac, Some(left.until)));
        let Some((mac, until)) = member.map(|mac| (mac, None)).or(left) else { return };
        self.of.insert(vip, Known { former: Former { name: holder.to_owned(), mac }, until });
    }

    /// We hold no others than these.
    pub(super) fn keep(&mut self, is_held: impl Fn(&IpAddr) -> bool) {
        self.of.retain(|vip, _| is_held(vip));
    }

    /// Asks those that left and that we count on whether their hosts are up. `questions`: the frames for a node at this
    /// hardware address, none where there is no way to ask.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        questions: impl Fn(&str, Mac) -> Vec<Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        let counted: BTreeSet<&str> = self.of.values().map(|known| known.former.name.as_str()).collect();
        let mut asked = Vec::new();
        for (name, left) in self.left.iter_mut().filter(|(name, _)| counted.contains(name.as_str())) {
            if now < left.asked_next {
                continue;
            }
            left.asked_next = now + ASKED_EVERY;
            let frames = questions(name, left.mac);
            if !frames.is_empty() {
                left.unanswered = left.unanswered.map(|unanswered| unanswered.saturating_add(1));
            }
            asked.extend(frames);
        }
        asked
    }

    /// The host at this hardware address answered.
    pub(super) fn answers(&mut self, mac: Mac) {
        for left in self.left.values_mut().filter(|left| left.mac == mac) {
            left.unanswered = Some(0);
        }
    }

    /// Forgets who went down, and whose time is over; true if we counted on any.
    pub(super) fn pass(&mut self, now: Instant) -> bool {
        self.left.retain(|_, left| now < left.until);
        let before = self.of.len();
        let down = |left: &Left| {
            left.unanswered.is_some_and(|unanswered| unanswered >= UNANSWERED) && now >= left.asked_next
        };
        let down: Vec<String> =
            self.left.iter().filter(|(_, left)| down(left)).map(|(name, _)| name.clone()).collect();
        for name in down {
            self.left.remove(&name);
            self.falls_silent(&name);
        }
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
