//! Addresses of names, asked of the system's resolver off the worker's thread and remembered for a while.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore};

/// The system's resolver does not say how long its answers hold.
const FRESH: Duration = Duration::from_secs(30);
/// Where it fails, what it said before serves on for so long.
const STALE: Duration = Duration::from_secs(600);
/// A name that was not found is not looked for again before.
const MISSING: Duration = Duration::from_secs(3);
/// Names that are remembered: with variables in a URL clients may choose them.
const NAMES: usize = 256;
/// Addresses of one name.
const ADDRESSES: usize = 16;
/// Lookups at once: each takes a thread.
const LOOKUPS: usize = 8;

/// Names of one worker.
pub(super) struct Resolver {
    names: RefCell<Names>,
    lookups: Semaphore,
}

#[derive(Default)]
struct Names {
    known: HashMap<String, Rc<Mutex<Known>>>,
    order: VecDeque<String>,
}

/// What is known of a name. Locked while it is looked up, so that others wait for the same answer.
#[derive(Default)]
struct Known {
    addrs: Rc<[IpAddr]>,
    /// When the addresses were found.
    found: Option<Instant>,
    /// Not looked up again before.
    next: Option<Instant>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self { names: RefCell::default(), lookups: Semaphore::new(LOOKUPS) }
    }

    /// Addresses of a name, which may be an address itself.
    pub(super) async fn resolve(&self, name: &str, port: u16) -> io::Result<Rc<[SocketAddr]>> {
        let at = |addrs: &[IpAddr]| addrs.iter().map(|addr| SocketAddr::new(*addr, port)).collect();
        if let Ok(addr) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(at(&[addr]));
        }
        let entry = self.names.borrow_mut().entry(name);
        let mut known = entry.lock().await;
        let now = Instant::now();
        if known.next.is_none_or(|next| next <= now) {
            match self.look_up(name).await {
                Ok(addrs) => *known = Known { addrs, found: Some(now), next: Some(now + FRESH) },
                Err(error) => {
                    tracing::debug!(name, %error, "name of an auth service not found");
                    known.next = Some(now + MISSING);
                    if known.found.is_none_or(|found| now.duration_since(found) > STALE) {
                        known.addrs = Rc::default();
                    }
                }
            }
        }
        if known.addrs.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(at(&known.addrs))
    }

    async fn look_up(&self, name: &str) -> io::Result<Rc<[IpAddr]>> {
        let _turn = self.lookups.acquire().await.map_err(io::Error::other)?;
        let found = tokio::net::lookup_host((name, 0)).await?;
        let mut addrs: Vec<IpAddr> = Vec::new();
        for addr in found.map(|found| found.ip()) {
            if addrs.len() < ADDRESSES && !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        Ok(addrs.into())
    }
}

impl Names {
    /// The place of a name; the oldest makes room.
    fn entry(&mut self, name: &str) -> Rc<Mutex<Known>> {
        if let Some(entry) = self.known.get(name) {
            return Rc::clone(entry);
        }
        if self.order.len() >= NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let entry = Rc::<Mutex<Known>>::default();
        self.known.insert(name.to_owned(), Rc::clone(&entry));
        self.order.push_back(name.to_owned());
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_is_its_own_name_and_others_are_looked_up() {
        let resolver = Resolver::new();
        let resolve = async |name: &str| resolver.resolve(name, 80).await.map(|addrs| addrs.to_vec()).ok();

        assert_eq!(resolve("192.0.2.1").await, Some(vec!["192.0.2.1:80".parse().unwrap()]));
        assert_eq!(resolve("[2001:db8::1]").await, Some(vec!["[2001:db8::1]:80".parse().unwrap()]));
        let local = resolve("localhost").await.unwrap_or_default();
        assert!(!local.is_empty() && local.iter().all(|addr| addr.ip().is_loopback()), "{local:?}");
    }

    #[test]
    fn names_that_are_remembered_are_bounded() {
        let mut names = Names::default();
        for number in 0..1000 {
            names.entry(&format!("{number}.example.com"));
        }

        assert_eq!((names.known.len(), names.order.len()), (NAMES, NAMES));
    }
}
