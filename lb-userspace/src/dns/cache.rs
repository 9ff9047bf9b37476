//! What is known of each name, and when it is to be asked for again. Knows no network; the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Answer, Error};
use crate::model::Shared;
use crate::model::l7::{L7, Upstream};
use crate::model::upstream::{External, UpstreamName};

/// An answer holds as long as it says, but is asked for again no earlier and no later than this.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// A name without an answer is asked for again after this.
const RETRY: Duration = Duration::from_secs(5);
/// Where nobody answers, what was said before serves on for so long.
const STALE: Duration = Duration::from_secs(600);

/// Names that somebody wants.
#[derive(Default)]
pub(super) struct Cache {
    names: HashMap<String, Entry>,
    /// Upstreams of the state before that stand for a name, and all of them.
    external: BTreeMap<UpstreamName, String>,
    upstreams: Shared<UpstreamName, Upstream>,
}

#[derive(Default)]
struct Entry {
    addrs: BTreeSet<IpAddr>,
    /// When they were found, and when those of both families were.
    found: Option<Instant>,
    whole: Option<Instant>,
    /// Not asked for before; `None`: at once.
    next: Option<Instant>,
    is_sought: bool,
    /// Why it has no address, which was logged.
    flaw: Option<String>,
}

impl Cache {
    /// Keeps the names of this state and forgets others. Costs what differs from the state before.
    pub(super) fn want(&mut self, l7: &L7) {
        let before = std::mem::replace(&mut self.upstreams, l7.upstreams.clone());
        let mut changed = false;
        for change in l7.upstreams.changes(&before) {
            let name = change.now.and_then(|upstream| upstream.external.as_ref()).map(|it| it.name.clone());
            changed |= self.external.get(change.key) != name.as_ref();
            match name {
                Some(name) => _ = self.external.insert(change.key.clone(), name),
                None => _ = self.external.remove(change.key),
            }
        }
        if !changed {
            return;
        }
        let wanted: BTreeSet<&String> = self.external.values().collect();
        self.names.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if !self.names.contains_key(name) {
                self.names.insert(name.clone(), Entry::default());
            }
        }
    }

    /// Names to be asked for now; they are sought from then on.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<String> {
        let due = self
            .names
            .iter_mut()
            .filter(|(_, entry)| !entry.is_sought && entry.next.is_none_or(|next| next <= now));
        due.map(|(name, entry)| {
            entry.is_sought = true;
            name.clone()
        })
        .collect()
    }

    /// When the next name is to be asked for.
    pub(super) fn due(&self) -> Option<Instant> {
        self.names.values().filter(|entry| !entry.is_sought).filter_map(|entry| entry.next).min()
    }

    /// Nothing came of a name that nobody knows any more: whatever is sought is asked for again.
    pub(super) fn lose(&mut self, now: Instant) {
        for entry in self.names.values_mut().filter(|entry| entry.is_sought) {
            (entry.is_sought, entry.next) = (false, Some(now + RETRY));
        }
    }

    /// What came of a name. Whether its addresses are others now.
    pub(super) fn learn(&mut self, name: &str, found: Result<Answer, Error>, now: Instant) -> bool {
        let Some(entry) = self.names.get_mut(name) else { return false };
        entry.is_sought = false;
        let before = (entry.addrs.clone(), entry.flaw.clone());
        let wrong: Option<String> = match found {
            Ok(Answer { mut addrs, ttl, is_whole }) => {
                if !is_whole && !is_old(entry.whole, now) {
                    // Nobody answered about the other family.
                    let is_told = |addr: &&IpAddr| addrs.iter().any(|told| told.is_ipv4() == addr.is_ipv4());
                    let kept: Vec<_> = entry.addrs.iter().filter(|addr| !is_told(addr)).copied().collect();
                    addrs.extend(kept);
                }
                let longest = if is_whole { LONGEST } else { RETRY };
                (entry.next, entry.found) = (Some(now + ttl.clamp(SHORTEST, longest)), Some(now));
                entry.whole = if is_whole { Some(now) } else { entry.whole };
                entry.addrs = addrs.into_iter().filter(|addr| !leads_back(*addr)).collect();
                entry.addrs.is_empty().then(|| "its addresses are those of this host itself".to_owned())
            }
            Err(error) => {
                entry.next = Some(now + RETRY);
                if is_old(entry.found, now) || matches!(error, Error::NoSuchName) {
                    entry.addrs.clear();
                }
                Some(error.to_string())
            }
        };
        match wrong {
            Some(reason) if entry.addrs.is_empty() => {
                // Once, and not every time that it is asked for.
                if entry.flaw.is_none() {
                    tracing::warn!(name, reason, "a name has no address; requests answer 503 until it has");
                }
                entry.flaw = Some(reason);
            }
            Some(reason) => tracing::debug!(name, reason, "no new answer about a name"),
            None => entry.flaw = None,
        }
        (&entry.addrs, &entry.flaw) != (&before.0, &before.1)
    }

    /// The same state with the addresses that are known; itself where there is nothing to fill in.
    pub(super) fn filled(&self, l7: &Arc<L7>) -> Arc<L7> {
        if self.names.is_empty() {
            return Arc::clone(l7);
        }
        let mut filled = L7::clone(l7);
        for name in self.external.keys() {
            let Some(upstream) = l7.upstreams.get(name) else { continue };
            let Some(external) = &upstream.external else { continue };
            let Some(entry) = self.names.get(&external.name) else { continue };
            let endpoints = entry.addrs.iter().map(|addr| SocketAddr::new(*addr, external.port)).collect();
            let external = Some(External { flaw: entry.flaw.clone(), ..external.clone() });
            filled.upstreams.insert(name.clone(), Upstream { endpoints, external, ..upstream.clone() });
        }
        Arc::new(filled)
    }
}

/// What was found then serves no more.
fn is_old(found: Option<Instant>, now: Instant) -> bool {
    found.is_none_or(|found| now.duration_since(found) > STALE)
}

/// An address that a name outside has no business to have: ours.
fn leads_back(addr: IpAddr) -> bool {
    let addr = addr.to_canonical();
    addr.is_loopback() || addr.is_unspecified() || addr.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::upstream::{External, Upstream, UpstreamName};

    fn state(names: &[&str]) -> Arc<L7> {
        let upstream = |name: &&str| {
            let external = Some(External {
                service: ObjectName::new("default", *name),
                name: (*name).to_owned(),
                port: 443,
                flaw: None,
            });
            (UpstreamName(format!("to-{name}")), Upstream { external, ..Upstream::default() })
        };
        Arc::new(L7 { upstreams: names.iter().map(upstream).collect(), ..L7::default() })
    }

    fn answer(addrs: &[&str], seconds: u64) -> Result<Answer, Error> {
        let addrs = addrs.iter().map(|addr| addr.parse().expect("an address")).collect();
        Ok(Answer { addrs, ttl: Duration::from_secs(seconds), is_whole: true })
    }

    fn endpoints(cache: &Cache, l7: &Arc<L7>) -> Vec<String> {
        let filled = cache.filled(l7);
        filled.upstreams.values().flat_map(|upstream| &upstream.endpoints).map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_asked_for_again_when_its_answer_has_run_out() {
        let (mut cache, l7, start) = (Cache::default(), state(&["a"]), Instant::now());
        cache.want(&l7);

        assert_eq!((cache.begin(start), cache.begin(start)), (vec!["a".to_owned()], vec![]));
        assert!(cache.learn("a", answer(&["192.0.2.1", "2001:db8::1"], 30), start));
        assert_eq!(endpoints(&cache, &l7), ["192.0.2.1:443", "[2001:db8::1]:443"]);
        assert_eq!(cache.due(), Some(start + Duration::from_secs(30)));
        assert_eq!(cache.begin(start + Duration::from_secs(29)), Vec::<String>::new());
        assert_eq!(cache.begin(start + Duration::from_secs(30)), ["a"]);
        assert!(
            !cache.learn("a", answer(&["2001:db8::1", "192.0.2.1"], 0), start),
            "the same in another order"
        );
        assert_eq!(cache.due(), Some(start + SHORTEST));
    }

    #[test]
    fn what_was_said_serves_on_while_nobody_answers_but_not_for_ever() {
        let (mut cache, l7, start) = (Cache::default(), state(&["a"]), Instant::now());
        cache.want(&l7);
        cache.learn("a", answer(&["192.0.2.1"], 30), start);

        assert!(!cache.learn("a", Err(Error::NoAnswer), start + STALE));
        assert_eq!(endpoints(&cache, &l7), ["192.0.2.1:443"]);
        assert!(cache.learn("a", Err(Error::NoAnswer), start + STALE + RETRY));
        assert!(endpoints(&cache, &l7).is_empty());

        cache.learn("a", answer(&["192.0.2.1"], 30), start);
        assert!(cache.learn("a", Err(Error::NoSuchName), start), "a name that is gone is gone");
        assert!(endpoints(&cache, &l7).is_empty());
    }

    #[test]
    fn the_family_that_nobody_answered_about_keeps_its_addresses_for_a_while() {
        let (mut cache, l7, start) = (Cache::default(), state(&["a"]), Instant::now());
        let half = || answer(&["2001:db8::2"], 3600).map(|answer| Answer { is_whole: false, ..answer });
        cache.want(&l7);
        cache.learn("a", answer(&["192.0.2.1", "2001:db8::1"], 30), start);

        assert!(cache.learn("a", half(), start + STALE));
        assert_eq!(endpoints(&cache, &l7), ["192.0.2.1:443", "[2001:db8::2]:443"]);
        assert_eq!(cache.due(), Some(start + STALE + RETRY), "and is soon asked for again");
        assert!(cache.learn("a", half(), start + STALE + RETRY));
        assert_eq!(endpoints(&cache, &l7), ["[2001:db8::2]:443"]);
        assert!(
            !cache.learn("a", Err(Error::NoAnswer), start + STALE + STALE),
            "what was half said was said"
        );
    }

    #[test]
    fn a_name_whose_lookup_was_lost_is_asked_for_again() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.want(&state(&["a"]));
        cache.begin(start);

        cache.lose(start);

        assert_eq!(cache.begin(start + RETRY), ["a"]);
    }

    #[test]
    fn what_leads_back_to_this_host_is_no_address() {
        let (mut cache, l7) = (Cache::default(), state(&["a"]));
        cache.want(&l7);
        let ours = ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "224.0.0.1"];

        cache.learn("a", answer(&ours, 30), Instant::now());
        assert!(endpoints(&cache, &l7).is_empty());
    }

    #[test]
    fn why_a_name_has_no_address_is_told_as_long_as_it_has_none() {
        let (mut cache, l7, now) = (Cache::default(), state(&["a"]), Instant::now());
        cache.want(&l7);
        let flaw = |cache: &Cache| {
            let filled = cache.filled(&l7);
            filled.upstreams.values().find_map(|upstream| upstream.external.as_ref()?.flaw.clone())
        };

        assert_eq!(flaw(&cache), None, "nobody was asked");
        assert!(cache.learn("a", Err(Error::NoSuchName), now), "there is something to say");
        assert_eq!(flaw(&cache), Some(Error::NoSuchName.to_string()));
        assert!(!cache.learn("a", Err(Error::NoSuchName), now), "which was said");
        assert!(cache.learn("a", answer(&["192.0.2.1"], 30), now));
        assert_eq!(flaw(&cache), None);
        assert!(!cache.learn("a", Err(Error::NoAnswer), now), "what was said before serves on");
        assert_eq!(flaw(&cache), None);
    }

    #[test]
    fn names_that_nobody_wants_are_forgotten_and_others_keep_their_addresses() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.want(&state(&["a", "b"]));
        cache.learn("a", answer(&["192.0.2.1"], 30), now);
        cache.learn("b", answer(&["192.0.2.2"], 30), now);
        let l7 = state(&["b", "c"]);

        cache.want(&l7);

        assert_eq!(endpoints(&cache, &l7), ["192.0.2.2:443"]);
        assert!(!cache.learn("a", answer(&["192.0.2.1"], 30), now));
        let none = state(&[]);
        cache.want(&none);
        assert!(Arc::ptr_eq(&cache.filled(&none), &none), "nothing is copied for nothing");
    }
}
