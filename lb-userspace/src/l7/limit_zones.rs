//! Who asked how often, and who is being served: counted per Ingress and client address, by all workers
//! together. Only requests to locations with limits come here; each locks one shard of its Ingress's zone for a
//! few lookups, never while it waits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::Limited;
use super::policy::Buckets;
use crate::model::ObjectName;
use crate::model::l7::policy::Limits;

/// So that workers rarely meet.
const SHARDS: usize = 16;
/// Clients that a shard surely remembers, and half of those that it may; what fills a hash table of 4,096. All
/// shards full take some 8 MB.
const CLIENTS: usize = 3584;
/// The same where all zones together are full.
const CLIENTS_AT_LEAST: usize = 64;
/// Clients that all zones together remember, some 150 MB: addresses are cheap to make up.
const ALL_CLIENTS: usize = 1 << 21;
/// Who has not asked for so long may be forgotten, and is after twice the time: what `limit-rpm` takes at once, with
/// the usual burst, is forgiven after five minutes.
const KEPT: Duration = Duration::from_secs(600);

/// Zones by their Ingress.
pub(super) type LimitZones = HashMap<ObjectName, Arc<LimitZone>>;

/// Clients that all zones remember.
#[derive(Debug, Default)]
pub(super) struct Remembered(AtomicUsize);

/// The clients of one Ingress.
#[derive(Debug)]
pub(super) struct LimitZone {
    began: Instant,
    /// Milliseconds since then, when those who do not ask were last looked for.
    swept_ms: AtomicU64,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug)]
struct Shard {
    poured: Recent<Buckets>,
    /// Requests under way; never 0.
    open: HashMap<Client, u32>,
}

/// An address, the whole of it, IPv4 as IPv6; or a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client(u128);

impl Client {
    /// By its address.
    pub(super) fn at(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
            IpAddr::V6(addr) => addr.to_bits(),
        })
    }
}

impl LimitZone {
    /// Without clients. `remembered` is that of all zones.
    pub(super) fn new(remembered: &Arc<Remembered>) -> Self {
        let shard = || Shard { poured: Recent::new(remembered), open: HashMap::new() };
        Self {
            began: Instant::now(),
            swept_ms: AtomicU64::new(0),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::new(shard())),
        }
    }

    /// Forgets who has not asked for long. Called often, by every worker; one of them does it when it is time.
    pub(super) fn sweep(&self, now: Instant) {
        let (now_ms, before) = (self.at(now), self.swept_ms.load(Ordering::Relaxed));
        if u128::from(now_ms.saturating_sub(before)) < KEPT.as_millis()
            || self.swept_ms.compare_exchange(before, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.poured.turn();
            shard.open.shrink_to_fit();
        }
    }

    /// In milliseconds.
    fn at(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Counts a request. `Ok` if it is within the limits: with what to keep until it has ended, if those under
    /// way are counted. `Err`: answer this status.
    pub(super) fn admit(
        self: &Arc<Self>,
        limits: &Limits,
        client: Client,
        now: Instant,
    ) -> Result<Option<UnderWay>, Limited> {
        let now_ms = self.at(now);
        let mut shard = self.shard(client);
        let counts = limits.per_second.is_some() || limits.per_minute.is_some();
        if counts && !shard.poured.of(client).take(limits, now_ms) {
            return Err(Limited::Rate);
        }
        let Some(most) = limits.at_once else { return Ok(None) };
        // Who is being served cannot be forgotten, so a full shard takes nobody new.
        if !shard.open.contains_key(&client) && shard.open.len() >= 2 * CLIENTS {
            return Err(Limited::Connections);
        }
        let open = shard.open.entry(client).or_insert(0);
        if *open >= most {
            return Err(Limited::Connections);
        }
        *open += 1;
        Ok(Some(UnderWay { zone: Arc::clone(self), client }))
    }

    /// By what a client shows instead of its address. Two of them are one by chance only.
    pub(super) fn client_of(&self, shown: &[u8]) -> Client {
        let half = |number: u8| u128::from(self.hasher.hash_one((number, shown)));
        Client(half(0) << 64 | half(1))
    }

    fn shard(&self, client: Client) -> MutexGuard<'_, Shard> {
        let number = self.hasher.hash_one(client) as usize % SHARDS;
        // The remainder is within.
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request among those that its client has under way, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct UnderWay {
    zone: Arc<LimitZone>,
    client: Client,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut shard = self.zone.shard(self.client);
        match shard.open.get_mut(&self.client) {
            Some(open) if *open > 1 => *open -= 1,
            Some(_) | None => {
                shard.open.remove(&self.client);
            }
        }
    }
}

/// Values of the clients that came last: [`CLIENTS`] of them surely, twice as many at most; fewer where all zones
/// are full. Two generations instead of a list: when the younger is full, the older goes, all of it.
#[derive(Debug)]
struct Recent<V> {
    young: HashMap<Client, V>,
    old: HashMap<Client, V>,
    remembered: Arc<Remembered>,
}

impl<V: Default> Recent<V> {
    fn new(remembered: &Arc<Remembered>) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), remembered: Arc::clone(remembered) }
    }

    /// The client's, or a new one.
    fn of(&mut self, client: Client) -> &mut V {
        if !self.young.contains_key(&client) {
            let known = self.old.remove(&client);
            if known.is_none() && self.remembered.one_more() && self.young.len() >= CLIENTS_AT_LEAST
                || self.young.len() >= CLIENTS
            {
                self.turn();
            }
            self.young.insert(client, known.unwrap_or_default());
        }
        self.young.entry(client).or_default()
    }

    /// The younger generation is the older one from now on.
    fn turn(&mut self) {
        self.remembered.fewer(self.old.len());
        self.old = std::mem::take(&mut self.young);
    }
}

impl<V> Drop for Recent<V> {
    fn drop(&mut self) {
        self.remembered.fewer(self.young.len() + self.old.len());
    }
}

impl Remembered {
    /// Counts one; true: they are too many.
    fn one_more(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= ALL_CLIENTS
    }

    fn fewer(&self, clients: usize) {
        self.0.fetch_sub(clients, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::l7::policy::{AddressSet, Allowance};

    fn limits(per_second: Option<(u32, u64)>, at_once: Option<u32>) -> Limits {
        Limits {
            ingress: ObjectName::new("default", "web"),
            per_second: per_second.map(|(requests, burst)| Allowance { requests, burst }),
            per_minute: None,
            often_status: 429,
            at_once,
            at_once_status: 503,
            by: None,
            exempt: AddressSet::default(),
        }
    }

    fn addr(text: &str) -> Client {
        Client::at(text.parse().unwrap())
    }

    #[test]
    fn each_address_has_its_own_count_and_the_whole_of_it_counts() {
        let zone = Arc::new(LimitZone::new(&Arc::default()));
        let now = Instant::now();
        let admit = |client| zone.admit(&limits(Some((1, 0)), None), addr(client), now).err();

        assert_eq!(admit("10.0.0.1"), None);
        assert_eq!(admit("10.0.0.1"), Some(Limited::Rate));
        assert_eq!(admit("::ffff:10.0.0.1"), Some(Limited::Rate));
        assert_eq!(admit("10.0.0.2"), None);
        assert_eq!(admit("2001:db8::1"), None);
        assert_eq!(admit("2001:db8::1"), Some(Limited::Rate));
        assert_eq!(admit("2001:db8::2"), None);
    }

    #[test]
    fn a_request_that_ended_makes_room_and_one_refused_takes_none() {
        let zone = Arc::new(LimitZone::new(&Arc::default()));
        let (two, client, now) = (limits(None, Some(2)), addr("10.0.0.1"), Instant::now());
        let first = zone.admit(&two, client, now).unwrap();
        let second = zone.admit(&two, client, now).unwrap();
        assert!(first.is_some() && second.is_some());

        for _ in 0..3 {
            assert_eq!(zone.admit(&two, client, now).err(), Some(Limited::Connections));
        }
        drop(first);

        let third = zone.admit(&two, client, now).unwrap();
        assert_eq!(zone.admit(&two, client, now).err(), Some(Limited::Connections));
        drop((second, third));
        assert!(zone.shards.iter().all(|shard| shard.lock().unwrap().open.is_empty()));
    }

    #[test]
    fn what_is_too_often_is_not_under_way() {
        let zone = Arc::new(LimitZone::new(&Arc::default()));
        let (both, client, now) = (limits(Some((1, 1)), Some(1)), addr("10.0.0.1"), Instant::now());
        let first = zone.admit(&both, client, now).unwrap();

        // Within the rate, of which it takes its part, and too many at once.
        assert_eq!(zone.admit(&both, client, now).err(), Some(Limited::Connections));
        drop(first);

        assert_eq!(zone.admit(&both, client, now).err(), Some(Limited::Rate));
    }

    #[test]
    fn a_zone_goes_on_as_long_as_its_ingress_has_limits() {
        let name = ObjectName::new("default", "web");
        let mut maker = super::super::route::Maker::default();
        let mut zones = |limits: Option<Limits>| {
            use crate::model::l7::{Action, Filters, HostMatch, L7, Location, PathMatch, Policies, Server};
            let policies = Some(Arc::new(Policies { limits, ..Policies::default() }));
            let location = Location {
                path: PathMatch::Prefix("/".to_owned()),
                path_label: String::new(),
                ingress: None,
                backend: None,
                action: Action::DefaultBackend,
                filters: Filters { policies, ..Filters::default() },
            };
            let server = Server { locations: vec![location], ..Server::default() };
            maker.make(&L7 { servers: [(HostMatch::Any, server)].into(), ..L7::default() }).limit_zones
        };

        let first = zones(Some(limits(Some((1, 1)), None)));
        let second = zones(Some(limits(None, Some(7))));
        let third = zones(None);

        assert!(Arc::ptr_eq(&first[&name], &second[&name]));
        assert!(third.is_empty());
    }

    fn count(zone: &LimitZone) -> usize {
        let of = |recent: &Recent<_>| recent.young.len() + recent.old.len();
        zone.shards.iter().map(|shard| of(&shard.lock().unwrap().poured)).sum()
    }

    #[test]
    fn all_zones_together_are_bounded_and_a_new_one_still_remembers_some() {
        let remembered = Arc::new(Remembered(AtomicUsize::new(ALL_CLIENTS - 10_000)));
        let zones: Vec<_> = (0..3).map(|_| Arc::new(LimitZone::new(&remembered))).collect();
        let (once, now) = (limits(Some((1, 0)), None), Instant::now());

        for zone in &zones {
            for client in 0..20_000 {
                assert!(zone.admit(&once, Client(client), now).is_ok());
            }
            assert_eq!(zone.admit(&once, Client(19_999), now).err(), Some(Limited::Rate));
        }

        let counts: Vec<_> = zones.iter().map(|zone| count(zone)).collect();
        assert!(counts.iter().all(|count| (1..=12_000).contains(count)), "{counts:?}");
        let most = ALL_CLIENTS + zones.len() * 2 * SHARDS * CLIENTS_AT_LEAST;
        assert!(remembered.0.load(Ordering::Relaxed) <= most);
        let all: usize = counts.into_iter().sum();
        assert_eq!(remembered.0.load(Ordering::Relaxed), ALL_CLIENTS - 10_000 + all);
        drop(zones);
        assert_eq!(remembered.0.load(Ordering::Relaxed), ALL_CLIENTS - 10_000);
    }

    #[test]
    fn who_does_not_ask_any_more_is_forgotten_and_who_does_is_not() {
        let zone = Arc::new(LimitZone::new(&Arc::default()));
        let (twice, now) = (limits(Some((1, 0)), None), Instant::now());
        for client in 0..1000 {
            assert!(zone.admit(&twice, Client(client), now).is_ok());
        }

        for turn in 1..=3 {
            let then = now + turn * KEPT;
            zone.sweep(then);
            zone.sweep(then);
            assert!(zone.admit(&twice, Client(7), then).is_ok());
            assert_eq!(zone.admit(&twice, Client(7), then).err(), Some(Limited::Rate), "it asks");
        }

        assert_eq!(count(&zone), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
        /// Against a map that forgets nothing: whoever is among the last so many keeps his value, who comes
        /// anew after others begins anew at worst, and there are never more than twice as many.
        #[test]
        fn the_last_clients_are_remembered_and_memory_is_bounded(
            steps in prop::collection::vec((0u128..5, 0u128..12_000, 1u128..3000), 1..12),
        ) {
            let mut recent = Recent::<u64>::new(&Arc::default());
            let (mut model, mut touched) = (HashMap::<u128, u64>::new(), HashMap::<u128, u64>::new());
            let mut clock = 0u64;
            for (_, first, many) in steps {
                for client in first..first + many {
                    clock += 1;
                    // How many others came since: at most as many as there were moments.
                    let is_recent = touched.get(&client).is_some_and(|at| clock - at <= CLIENTS as u64);
                    let value = recent.of(Client(client));
                    let expected = model.entry(client).or_insert(0);
                    prop_assert!(*value == *expected || !is_recent && *value == 0);
                    *value += 1;
                    *expected = *value;
                    touched.insert(client, clock);
                    prop_assert!(recent.young.len() + recent.old.len() <= 2 * CLIENTS);
                }
            }
        }

        /// Any order of beginnings and ends of any clients: never more than allowed, and nothing is left over.
        #[test]
        fn never_more_are_under_way_than_allowed(
            steps in prop::collection::vec((0u8..4, any::<bool>()), 1..200),
            most in 1u32..5,
        ) {
            let zone = Arc::new(LimitZone::new(&Arc::default()));
            let limits = limits(None, Some(most));
            let mut open: HashMap<u8, Vec<UnderWay>> = HashMap::new();
            for (client, begins) in steps {
                let held = open.entry(client).or_default();
                if begins {
                    let admitted = zone.admit(&limits, Client::at(IpAddr::from([10, 0, 0, client])), Instant::now());
                    prop_assert_eq!(admitted.is_ok(), held.len() < most as usize);
                    held.extend(admitted.ok().flatten());
                } else {
                    held.pop();
                }
            }
            drop(open);
            prop_assert!(zone.shards.iter().all(|shard| shard.lock().unwrap().open.is_empty()));
        }
    }
}
