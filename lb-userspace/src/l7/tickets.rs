//! Session tickets: what a client keeps to come back without a whole handshake, encrypted by keys
//! that all workers share and that change.
//!
//! A ticket is bound to a scope, the client authority it was issued under, so a session of one
//! host can never be resumed on another that trusts other clients. The keys are plain values, so
//! that a process can hand them to its successor.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use rustls::server::ProducesTickets;

use super::Error;

/// How long a key issues tickets; for as long again it takes them back.
const ROTATION: Duration = Duration::from_secs(3600);
const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
/// Seconds since the epoch at which a ticket was issued, inside it.
const ISSUED_BYTES: usize = 8;

/// The keys of the moment.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys {
    current: TicketKey,
    previous: Option<TicketKey>,
}

#[derive(Clone, PartialEq, Eq)]
struct TicketKey {
    /// Sent with each ticket.
    name: [u8; NAME_BYTES],
    secret: [u8; SECRET_BYTES],
    /// Seconds since the epoch at which it was made.
    since: u64,
}

impl std::fmt::Debug for TicketKeys {
    /// Keys never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKeys(..)")
    }
}

impl TicketKeys {
    /// For the process that takes over; [`TicketKeys::from_bytes`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let keys = [Some(&self.current), self.previous.as_ref()];
        let parts = keys.into_iter().flatten().map(|key| {
            let TicketKey { name, secret, since } = key;
            [name.as_slice(), secret, &since.to_be_bytes()].concat()
        });
        parts.collect::<Vec<_>>().concat()
    }

    /// `None` if these are not what [`TicketKeys::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (current, rest) = TicketKey::read(bytes)?;
        if rest.is_empty() {
            return Some(Self { current, previous: None });
        }
        let (previous, rest) = TicketKey::read(rest)?;
        rest.is_empty().then_some(Self { current, previous: Some(previous) })
    }

    fn fresh(now: u64) -> Result<Self, aws_lc_rs::error::Unspecified> {
        Ok(Self { current: TicketKey::fresh(now)?, previous: None })
    }

    /// Of a secret that balancers share; it does not change by itself.
    fn shared(secret: &[u8]) -> Self {
        let mut key = TicketKey { name: [0; NAME_BYTES], secret: [0; SECRET_BYTES], since: u64::MAX };
        key.name.iter_mut().zip(secret).for_each(|(to, from)| *to = *from);
        let digest = digest::digest(&digest::SHA256, secret);
        key.secret.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Self { current: key, previous: None }
    }

    /// The current key has done its time.
    fn is_stale(&self, now: u64) -> bool {
        now.saturating_sub(self.current.since) >= ROTATION.as_secs()
    }

    /// A key that still takes tickets back.
    fn named(&self, name: &[u8], now: u64) -> Option<&TicketKey> {
        let lives = |key: &&TicketKey| {
            key.since == u64::MAX || now.saturating_sub(key.since) < 2 * ROTATION.as_secs()
        };
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| key.name == name)
            .filter(lives)
    }
}

impl TicketKey {
    fn fresh(now: u64) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = Self { name: [0; NAME_BYTES], secret: [0; SECRET_BYTES], since: now };
        rand::fill(&mut key.name)?;
        rand::fill(&mut key.secret)?;
        Ok(key)
    }

    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (name, rest) = bytes.split_first_chunk::<NAME_BYTES>()?;
        let (secret, rest) = rest.split_first_chunk::<SECRET_BYTES>()?;
        let (since, rest) = rest.split_first_chunk::<8>()?;
        Some((Self { name: *name, secret: *secret, since: u64::from_be_bytes(*since) }, rest))
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.secret).ok().map(LessSafeKey::new)
    }

    fn seal(&self, plain: &[u8], scope: &Scope, now: u64) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        // Random nonces: a key of ours lives for an hour, far from the 2^32 tickets that would be too many. A shared
        // one lives until whoever set it sets another.
        rand::fill(&mut nonce).ok()?;
        let mut sealed = [now.to_be_bytes().as_slice(), plain].concat();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        self.cipher()?.seal_in_place_append_tag(nonce_of, Aad::from(scope.0), &mut sealed).ok()?;
        Some([self.name.as_slice(), &nonce, &sealed].concat())
    }

    /// The session in a ticket of this key, and when it was issued.
    fn open(&self, sealed: &[u8], scope: &Scope) -> Option<(u64, Vec<u8>)> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher()?.open_in_place(nonce, Aad::from(scope.0), &mut opened).ok()?;
        let (issued, session) = plain.split_first_chunk::<ISSUED_BYTES>()?;
        Some((u64::from_be_bytes(*issued), session.to_vec()))
    }
}

/// What a session belongs to: nothing in particular, or one host's client authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Scope([u8; 32]);

impl Scope {
    /// Of everything that distinguishes it; the parts cannot be confused with one another.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut scope = Self::default();
        scope.0.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        scope
    }
}

/// Keys of all workers, changed when they are asked for after their time.
#[derive(Debug)]
pub(super) struct Tickets(RwLock<TicketKeys>);

impl Tickets {
    /// With keys of an earlier process, or new ones.
    pub(super) fn new(inherited: Option<TicketKeys>) -> Result<Self, Error> {
        let keys = match inherited {
            Some(keys) => keys,
            None => TicketKeys::fresh(unix_now()).map_err(|_| Error::Tls("no random numbers".to_owned()))?,
        };
        Ok(Self(RwLock::new(keys)))
    }

    /// For the process that takes over.
    pub(super) fn keys(&self) -> TicketKeys {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rotate(&self, now: u64) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another worker may have been first.
        if !keys.is_stale(now) {
            return;
        }
        if let Ok(fresh) = TicketKey::fresh(now) {
            keys.previous = Some(std::mem::replace(&mut keys.current, fresh));
        }
    }
}

/// Issues and takes tickets of one scope.
#[derive(Debug)]
pub(super) struct Ticketer {
    tickets: Arc<Tickets>,
    /// `ssl-session-ticket-key`.
    shared: Option<TicketKeys>,
    scope: Scope,
    lifetime: Duration,
}

impl Ticketer {
    /// With `shared`, the key that all balancers have; otherwise with those of `tickets`.
    pub(super) fn new(
        tickets: &Arc<Tickets>,
        shared: Option<&[u8]>,
        scope: Scope,
        lifetime: Duration,
    ) -> Self {
        let shared = shared.map(TicketKeys::shared);
        // A ticket cannot outlive the keys.
        let lifetime = lifetime.min(ROTATION);
        Self { tickets: Arc::clone(tickets), shared, scope, lifetime }
    }

    fn seal_at(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        if let Some(shared) = &self.shared {
            return shared.current.seal(plain, &self.scope, now);
        }
        let read = || self.tickets.0.read().unwrap_or_else(PoisonError::into_inner);
        let keys = read();
        if !keys.is_stale(now) {
            return keys.current.seal(plain, &self.scope, now);
        }
        drop(keys);
        self.tickets.rotate(now);
        read().current.seal(plain, &self.scope, now)
    }

    fn open_at(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let opened = match &self.shared {
            Some(shared) => shared.named(name, now)?.open(sealed, &self.scope),
            None => {
                let keys = self.tickets.0.read().unwrap_or_else(PoisonError::into_inner);
                keys.named(name, now)?.open(sealed, &self.scope)
            }
        };
        let (issued, session) = opened?;
        (now.saturating_sub(issued) <= self.lifetime.as_secs()).then_some(session)
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal_at(plain, unix_now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open_at(cipher, unix_now())
    }
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOUR: u64 = 3600;

    fn tickets() -> Arc<Tickets> {
        Arc::new(Tickets(RwLock::new(TicketKeys::fresh(NOW).unwrap())))
    }

    fn ticketer(tickets: &Arc<Tickets>, scope: Scope) -> Ticketer {
        Ticketer::new(tickets, None, scope, Duration::from_secs(HOUR))
    }

    #[test]
    fn a_ticket_is_taken_back_by_every_worker_until_its_time_is_over() {
        let tickets = tickets();
        let (one, other) = (ticketer(&tickets, Scope::default()), ticketer(&tickets, Scope::default()));

        let ticket = one.seal_at(b"session", NOW + 10).unwrap();

        assert_eq!(other.open_at(&ticket, NOW + 20).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.open_at(&ticket, NOW + 10 + HOUR).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.open_at(&ticket, NOW + 11 + HOUR), None, "too old");
    }

    #[test]
    fn keys_change_and_the_previous_one_still_takes_tickets() {
        let tickets = tickets();
        let ticketer = ticketer(&tickets, Scope::default());
        let first = ticketer.seal_at(b"first", NOW + HOUR - 1).unwrap();

        let second = ticketer.seal_at(b"second", NOW + HOUR).unwrap();

        assert_ne!(first[..NAME_BYTES], second[..NAME_BYTES]);
        assert_eq!(ticketer.open_at(&first, NOW + HOUR + 1).as_deref(), Some(&b"first"[..]));
        assert_eq!(ticketer.open_at(&second, NOW + HOUR + 1).as_deref(), Some(&b"second"[..]));
        ticketer.seal_at(b"third", NOW + 2 * HOUR).unwrap();
        assert!(tickets.keys().named(&first[..NAME_BYTES], NOW + 2 * HOUR).is_none());
    }

    #[test]
    fn a_ticket_of_another_scope_or_another_process_opens_nothing() {
        let tickets = tickets();
        let host = ticketer(&tickets, Scope::of(&[b"a.example", b"ca"]));
        let ticket = host.seal_at(b"session", NOW).unwrap();

        assert_eq!(ticketer(&tickets, Scope::of(&[b"b.example", b"ca"])).open_at(&ticket, NOW), None);
        assert_eq!(ticketer(&tickets, Scope::default()).open_at(&ticket, NOW), None);
        assert_eq!(ticketer(&self::tickets(), Scope::of(&[b"a.example", b"ca"])).open_at(&ticket, NOW), None);
        assert_ne!(Scope::of(&[b"ab", b"c"]), Scope::of(&[b"a", b"bc"]));
    }

    #[test]
    fn keys_that_were_handed_over_open_tickets_of_before() {
        let before = tickets();
        let ticket = ticketer(&before, Scope::default()).seal_at(b"session", NOW).unwrap();

        let keys = TicketKeys::from_bytes(&before.keys().to_bytes()).unwrap();
        let after = Arc::new(Tickets::new(Some(keys)).unwrap());

        assert_eq!(
            ticketer(&after, Scope::default()).open_at(&ticket, NOW).as_deref(),
            Some(&b"session"[..])
        );
        assert_eq!(TicketKeys::from_bytes(b"short"), None);
    }

    #[test]
    fn a_shared_key_joins_balancers_and_never_changes() {
        let secret = [7; 80];
        let ticketer = |secret: &[u8]| {
            Ticketer::new(&tickets(), Some(secret), Scope::default(), Duration::from_secs(600))
        };
        let ticket = ticketer(&secret).seal_at(b"session", NOW + 9 * HOUR).unwrap();

        assert_eq!(ticketer(&secret).open_at(&ticket, NOW + 9 * HOUR).as_deref(), Some(&b"session"[..]));
        assert_eq!(ticketer(&[8; 80]).open_at(&ticket, NOW + 9 * HOUR), None);
    }

    #[test]
    fn damaged_tickets_open_nothing() {
        let tickets = tickets();
        let ticketer = ticketer(&tickets, Scope::default());
        let ticket = ticketer.seal_at(b"session", NOW).unwrap();

        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(ticketer.open_at(&damaged, NOW), None, "byte {at}");
            assert_eq!(ticketer.open_at(&ticket[..at], NOW), None, "{at} bytes");
        }
    }
}
