//! Others on the link who answer for addresses that we hold, or announce by our name. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::Mac;
use crate::model::announce::Rival;

/// How long one counts that is not heard again: all are asked again sooner.
const REMEMBERED: Duration = Duration::from_secs(90);
/// Between two times that an address is defended at least (RFC 5227 2.4): another that defends it, too, must not make a storm of it.
const DEFENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Rivals {
    /// One for each address: whoever was heard first.
    answering: BTreeMap<IpAddr, Answering>,
    /// Addresses to be told to all once more.
    to_defend: BTreeSet<IpAddr>,
    namesake: Option<(Mac, Instant)>,
}

struct Answering {
    mac: Mac,
    heard: Instant,
    defended: Instant,
}

impl Rivals {
    /// Somebody says that an address is his which we hold; true if nobody was known to.
    pub(super) fn answers(&mut self, vip: IpAddr, mac: Mac, now: Instant) -> bool {
        let Some(known) = self.answering.get_mut(&vip) else {
            self.answering.insert(vip, Answering { mac, heard: now, defended: now });
            self.to_defend.insert(vip);
            return true;
        };
        if known.mac == mac {
            known.heard = now;
        }
        if now.duration_since(known.defended) >= DEFENCE {
            known.defended = now;
            self.to_defend.insert(vip);
        }
        false
    }

    /// Addresses of which all are to hear now that they are ours, so many at most.
    pub(super) fn defend(&mut self, most: usize) -> Vec<IpAddr> {
        std::iter::from_fn(|| self.to_defend.pop_first()).take(most).collect()
    }

    /// Somebody announces by our name; true if nobody was known to.
    pub(super) fn has_our_name(&mut self, mac: Mac, now: Instant) -> bool {
        let is_new = self.namesake.is_none();
        let (known, heard) = self.namesake.get_or_insert((mac, now));
        if *known == mac {
            *heard = now;
        }
        is_new
    }

    /// Forgets who fell silent, and addresses that we hold no more; true if there was any.
    pub(super) fn pass(&mut self, is_held: impl Fn(&IpAddr) -> bool, now: Instant) -> bool {
        let before = (self.answering.len(), self.namesake.is_some());
        let is_heard = |heard: Instant| now.duration_since(heard) < REMEMBERED;
        self.answering.retain(|vip, known| is_held(vip) && is_heard(known.heard));
        self.to_defend.retain(|vip| is_held(vip));
        self.namesake = self.namesake.filter(|(_, heard)| is_heard(*heard));
        before != (self.answering.len(), self.namesake.is_some())
    }

    /// For people. Those that are known for agents by now are none.
    pub(super) fn known(&self, is_agent: impl Fn(&Mac) -> bool) -> BTreeSet<Rival> {
        let answering = self.answering.iter().filter(|(_, known)| !is_agent(&known.mac));
        let answering = answering.map(|(vip, known)| Rival::Answers { mac: known.mac, vip: *vip });
        answering.chain(self.namesake.map(|(mac, _)| Rival::Namesake { mac })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_defended_once_in_ten_seconds_and_its_rival_forgotten_when_it_is_silent() {
        let (mut rivals, begun) = (Rivals::default(), Instant::now());
        let (vip, mac) = (IpAddr::from([203, 0, 113, 10]), [2, 0, 0, 0, 0, 9]);
        let at = |seconds| begun + Duration::from_secs(seconds);

        let defended = [0, 1, 9, 10, 11, 20].map(|seconds| {
            let is_new = rivals.answers(vip, mac, at(seconds));
            (is_new, rivals.defend(2) == [vip])
        });

        let (first, again, nothing) = ((true, true), (false, true), (false, false));
        assert_eq!(defended, [first, nothing, nothing, again, nothing, again]);
        assert!(!rivals.pass(|_| true, at(109)));
        assert_eq!(rivals.known(|_| false), BTreeSet::from([Rival::Answers { mac, vip }]));
        assert_eq!(rivals.known(|agent| *agent == mac), BTreeSet::new(), "an agent has taken over");
        assert!(rivals.pass(|_| true, at(110)));
        assert_eq!(rivals.known(|_| false), BTreeSet::new());
    }
}
