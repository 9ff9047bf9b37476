//! Addresses of names, asked of the system's resolver off the worker's thread and remembered for a while.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::panics;

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

/// Names of one worker.
pub(super) struct Resolver {
    names: RefCell<Names>,
    lookups: Arc<Semaphore>,
    look_up: LookUp,
}

/// Asks whoever knows the addresses of names.
type LookUp = Box<dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>>>;

#[derive(Default)]
struct Names {
    known: HashMap<String, Rc<Entry>>,
    order: VecDeque<String>,
}

/// A name.
#[derive(Default)]
struct Entry {
    known: RefCell<Known>,
    /// A lookup has ended.
    news: Notify,
}

#[derive(Default)]
struct Known {
    addrs: Rc<[IpAddr]>,
    /// When the addresses were found.
    found: Option<Instant>,
    /// Not looked up again before.
    next: Option<Instant>,
    /// It is looked up now.
    is_sought: bool,
}

impl Resolver {
    /// Asks the system for so many names at once.
    pub(super) fn new(lookups: usize) -> Self {
        Self::asking(Box::new(|name| Box::pin(look_up(name))), lookups)
    }

    fn asking(look_up: LookUp, lookups: usize) -> Self {
        Self { names: RefCell::default(), lookups: Arc::new(Semaphore::new(lookups)), look_up }
    }

    /// Addresses of a name, which may be an address itself. What was found before serves while it is looked
    /// up anew. A lookup goes on if nobody waits for it any more: the system's cannot be stopped.
    pub(super) async fn resolve(&self, name: &str, port: u16) -> io::Result<Rc<[SocketAddr]>> {
        let at = |addrs: &[IpAddr]| addrs.iter().map(|addr| SocketAddr::new(*addr, port)).collect();
        if let Ok(addr) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(at(&[addr]));
        }
        let entry = self.names.borrow_mut().entry(name);
        loop {
            // Before anything is looked at, so that no news is missed.
            let news = entry.news.notified();
            let now = Instant::now();
            let (is_due, usable) = entry.state(now);
            if let Some(addrs) = usable {
                if is_due && let Ok(turn) = Arc::clone(&self.lookups).try_acquire_owned() {
                    self.begin(name, &entry, turn);
                }
                return Ok(at(&addrs));
            }
            if is_due {
                let turn = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
                // Somebody else may have had a turn meanwhile.
                if entry.known.borrow().is_due(Instant::now()) {
                    self.begin(name, &entry, turn);
                }
            } else if entry.known.borrow().is_sought {
                news.await;
            } else {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
    }

    fn begin(&self, name: &str, entry: &Rc<Entry>, turn: OwnedSemaphorePermit) {
        entry.known.borrow_mut().is_sought = true;
        let (entry, found) = (Rc::clone(entry), (self.look_up)(name.to_owned()));
        // Who asks for the name waits for its end.
        tokio::task::spawn_local(panics::vital(async move {
            let found = found.await;
            entry.known.borrow_mut().learn(found, Instant::now());
            entry.news.notify_waiters();
            drop(turn);
        }));
    }
}

async fn look_up(name: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    let mut addrs: Vec<IpAddr> = Vec::new();
    for addr in found.map(|found| found.ip()) {
        if addrs.len() < ADDRESSES && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    Ok(addrs)
}

impl Entry {
    /// Whether it has to be looked up, and what serves until then.
    fn state(&self, now: Instant) -> (bool, Option<Rc<[IpAddr]>>) {
        let known = self.known.borrow();
        (known.is_due(now), known.usable(now))
    }
}

impl Known {
    fn is_due(&self, now: Instant) -> bool {
        !self.is_sought && self.next.is_none_or(|next| next <= now)
    }

    fn usable(&self, now: Instant) -> Option<Rc<[IpAddr]>> {
        let holds = self.found.is_some_and(|found| now.duration_since(found) <= STALE);
        (holds && !self.addrs.is_empty()).then(|| Rc::clone(&self.addrs))
    }

    fn learn(&mut self, found: io::Result<Vec<IpAddr>>, now: Instant) {
        match found {
            Ok(addrs) => {
                *self =
                    Self { addrs: addrs.into(), found: Some(now), next: Some(now + FRESH), is_sought: false };
            }
            Err(error) => {
                tracing::debug!(%error, "name of a service not found");
                (self.next, self.is_sought) = (Some(now + MISSING), false);
            }
        }
    }
}

impl Names {
    /// The place of a name; the oldest makes room.
    fn entry(&mut self, name: &str) -> Rc<Entry> {
        if let Some(entry) = self.known.get(name) {
            return Rc::clone(entry);
        }
        if self.order.len() >= NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let entry = Rc::<Entry>::default();
        self.known.insert(name.to_owned(), Rc::clone(&entry));
        self.order.push_back(name.to_owned());
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::{Context, Poll, Waker};

    use tokio::sync::mpsc;
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_is_its_own_name_and_others_are_looked_up() {
        let resolver = Resolver::new(1);
        let resolve = async |name: &str| resolver.resolve(name, 80).await.map(|addrs| addrs.to_vec()).ok();

        assert_eq!(resolve("192.0.2.1").await, Some(vec!["192.0.2.1:80".parse().unwrap()]));
        assert_eq!(resolve("[2001:db8::1]").await, Some(vec!["[2001:db8::1]:80".parse().unwrap()]));
        let local = LocalSet::new().run_until(resolve("localhost")).await.unwrap_or_default();
        assert!(!local.is_empty() && local.iter().all(|addr| addr.ip().is_loopback()), "{local:?}");
    }

    const LOOKUPS: usize = 2;

    /// Answers as it is told to, and how often it was asked.
    fn told() -> (Resolver, mpsc::UnboundedSender<IpAddr>, Rc<Cell<usize>>) {
        let (tell, told) = mpsc::unbounded_channel();
        let (told, asked) = (Rc::new(tokio::sync::Mutex::new(told)), Rc::new(Cell::new(0)));
        let count = Rc::clone(&asked);
        let look_up: LookUp = Box::new(move |_| {
            count.set(count.get() + 1);
            let told = Rc::clone(&told);
            Box::pin(async move {
                let addr = told.lock().await.recv().await;
                addr.map(|addr| vec![addr]).ok_or_else(|| io::ErrorKind::NotFound.into())
            })
        });
        let resolver = Resolver::asking(look_up, LOOKUPS);
        (resolver, tell, asked)
    }

    /// Somebody asks and does not wait; what he has got by then.
    async fn ask_and_leave(resolver: &Resolver, name: &str) -> Option<Rc<[SocketAddr]>> {
        let mut asking = Box::pin(resolver.resolve(name, 80));
        let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(asking);
        // What was started gets its turn.
        tokio::task::yield_now().await;
        match polled {
            Poll::Ready(found) => found.ok(),
            Poll::Pending => None,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lookup_that_nobody_waits_for_any_more_is_not_started_again() {
        let test = async {
            let (resolver, tell, asked) = told();
            for _ in 0..10 {
                assert_eq!(ask_and_leave(&resolver, "slow.example").await, None);
            }
            assert_eq!(asked.get(), 1);

            for number in 0..10 {
                assert_eq!(ask_and_leave(&resolver, &format!("{number}.example")).await, None);
            }
            assert_eq!(asked.get(), LOOKUPS, "the others wait for their turn, and left");

            tell.send(IpAddr::from([192, 0, 2, 1])).expect("asked");
            let found = resolver.resolve("slow.example", 80).await.expect("found");
            assert_eq!(*found, [SocketAddr::from(([192, 0, 2, 1], 80))]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_found_before_serves_while_it_is_looked_up_anew() {
        let test = async {
            let (resolver, _tell, asked) = told();
            let addr = IpAddr::from([192, 0, 2, 1]);
            let entry = resolver.names.borrow_mut().entry("a.example");
            let now = Instant::now();
            *entry.known.borrow_mut() =
                Known { addrs: Rc::from([addr]), found: Some(now), next: Some(now), is_sought: false };

            for _ in 0..3 {
                let found = ask_and_leave(&resolver, "a.example").await.expect("at once");
                assert_eq!(*found, [SocketAddr::new(addr, 80)]);
            }
            assert_eq!(asked.get(), 1);
        };
        LocalSet::new().run_until(test).await;
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
