//! Connections of a worker to upstreams that speak HTTP/2, each carrying many streams.
//!
//! A request takes a stream of a connection that has room, newest connection first. Where none has,
//! it opens one, and requests that come meanwhile wait for that one instead of opening their own, as many as there will
//! be room for. Connections without a request are no more, and stay no longer, than those of HTTP/1.1.
//!
//! How many streams an upstream takes it says in its first packet. What is too much, servers reset in ways that need
//! not mean that nothing was done (gRPC's C-core: ENHANCE_YOUR_CALM), so until then a connection carries one, or more
//! where there are many such connections: that is still better than no answer.
//!
//! Many upstreams give the window of a connection back only as their handlers read, so one that does not read stops
//! all calls of its connection: such a connection takes no more until somebody gets on. Nor does one that was asked
//! something and has been mute since then: its host may have vanished, which nobody says.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::Scheme;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::super::buffer::Buf;
use super::super::metrics::Failure;
use super::super::socket::Link;
use super::super::upstream::Peer;
use super::intake::Intake;
use super::io::Io;
use super::limits::{self, UPSTREAM_STREAMS_MAX};
use super::stream::Stream;
use crate::model::upstream::Keepalive;

/// So long a window may be waited for before other requests had better go elsewhere.
const STUCK: Duration = Duration::from_secs(1);

/// So long a connection may be mute that was asked something: as long as a new one may take by default.
const MUTE: Duration = Duration::from_secs(5);

/// So long requests wait for what an upstream says first, which takes a round trip. Then it is busy, and each opens a
/// connection, up to as many as one would have streams; what is more shares those.
const INTRODUCTION: Duration = Duration::from_secs(1);

/// Connections to an endpoint, the newest ones, that each request looks at to part from those that are of no use.
const LOOKED_AT: usize = 8;

/// All connections of one worker.
#[derive(Default)]
pub(in crate::l7) struct Connections {
    by_peer: RefCell<HashMap<Peer, Known>>,
}

#[derive(Default)]
struct Known {
    connections: Vec<Rc<Connection>>,
    opening: Vec<Rc<Opening>>,
}

/// A connection that somebody is opening.
struct Opening {
    /// So many more than who opens it will find room, as far as is known.
    places: Cell<usize>,
    opened: Cell<bool>,
    failed: Cell<Option<Failure>>,
    ended: Cell<bool>,
    told: Notify,
}

impl Opening {
    fn with_places(places: usize) -> Self {
        let (opened, failed, ended, told) = Default::default();
        Self { places: Cell::new(places), opened, failed, ended, told }
    }

    /// A place, if there is one left.
    fn promises(&self) -> bool {
        let left = self.places.get().checked_sub(1);
        left.inspect(|left| self.places.set(*left)).is_some()
    }
}

struct Connection {
    requests: SendRequest<Bytes>,
    intake: Rc<Intake>,
    introduction: Rc<Introduction>,
    live: Cell<u32>,
    carried: Cell<u32>,
    opened: Instant,
    idle_since: Cell<Instant>,
    /// It takes no more requests.
    retired: Cell<bool>,
    /// Since when somebody waits for a window, and nobody has sent anything of a body.
    stuck: Cell<Option<Instant>>,
}

/// Tells those who wait for an upstream's first SETTINGS that they are there, or never will be.
#[derive(Default)]
struct Introduction {
    over: Cell<bool>,
    told: Notify,
}

impl Introduction {
    fn is_over(&self) {
        self.over.set(true);
        self.told.notify_waiters();
    }
}

/// A place among the streams of a connection, until it is dropped.
pub(super) struct Slot(Rc<Connection>);

impl Slot {
    /// No other request shall take this connection.
    pub(super) fn retire(&self) {
        self.0.retired.set(true);
    }

    /// Something of a body could be sent.
    pub(super) fn gets_on(&self) {
        self.0.stuck.set(None);
    }

    /// A body has to wait for the upstream to take it.
    pub(super) fn waits(&self) {
        if self.0.stuck.get().is_none() {
            self.0.stuck.set(Some(Instant::now()));
        }
    }

    /// What comes in on the connection.
    pub(super) fn intake(&self) -> Rc<Intake> {
        Rc::clone(&self.0.intake)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

impl Connection {
    /// Its upstream allows one request more at once, takes what those there are send, and is there.
    fn has_room(&self) -> bool {
        !self.is_stuck()
            && !self.intake.is_mute_for(MUTE)
            && self.carries_less_than(self.allowed().unwrap_or(1))
    }

    fn is_stuck(&self) -> bool {
        self.stuck.get().is_some_and(|since| since.elapsed() >= STUCK)
    }

    fn carries_less_than(&self, limit: usize) -> bool {
        usize::try_from(self.live.get()).is_ok_and(|live| live < limit)
    }

    /// Requests at once, once its upstream has said so.
    fn allowed(&self) -> Option<usize> {
        let said = self.requests.current_max_send_streams();
        (said != limits::UNSAID).then(|| said.min(UPSTREAM_STREAMS_MAX))
    }

    /// It carries what it may before its upstream has said a word, which may yet come.
    fn is_silent(&self) -> bool {
        !self.is_idle() && self.allowed().is_none() && !self.introduction.over.get()
    }

    /// It is open, and neither used up nor too old.
    fn lives(&self, limits: &Keepalive) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let open = matches!(self.requests.clone().poll_ready(&mut cx), Poll::Ready(Ok(())));
        let is_over = self.carried.get() >= limits.requests || self.opened.elapsed() >= limits.age;
        open && !self.retired.get() && !self.intake.is_worn() && !is_over
    }

    fn is_idle(&self) -> bool {
        self.live.get() == 0
    }

    /// It carries something, or may again. One that its upstream allows no request never does.
    fn stays(&self, limits: &Keepalive) -> bool {
        let is_of_use = || {
            let is_kept = limits.connections > 0 && self.idle_since.get().elapsed() < limits.idle;
            is_kept && self.has_room()
        };
        self.lives(limits) && (!self.is_idle() || is_of_use())
    }

    fn stream(self: &Rc<Self>, peer: Peer) -> Stream {
        self.intake.asks();
        self.live.set(self.live.get() + 1);
        self.carried.set(self.carried.get().saturating_add(1));
        let scheme = if peer.client == 0 { Scheme::HTTP } else { Scheme::HTTPS };
        Stream::requesting(self.requests.clone(), scheme, peer.addr, Slot(Rc::clone(self)))
    }
}

impl Connections {
    /// Connections there are.
    pub(in crate::l7) fn len(&self) -> usize {
        self.by_peer.borrow().values().map(|known| known.connections.len()).sum()
    }

    /// None of the connections to `peer` carries another request.
    pub(in crate::l7) fn distrust(&self, peer: Peer) {
        self.with(peer, |known| known.connections.clear());
    }

    /// A stream to `peer`, by a new connection only if need be, and whether its connection carried
    /// requests before. `patience` is how long to wait for one that somebody else opens, whose own patience may be
    /// another, and then for one's own.
    pub(in crate::l7) async fn stream<F>(
        &self,
        peer: Peer,
        limits: &Keepalive,
        patience: Duration,
        connect: impl FnOnce() -> F,
    ) -> Result<(Stream, bool), Failure>
    where
        F: Future<Output = Result<Link, Failure>>,
    {
        let mut waits = None;
        loop {
            let opening = match self.with(peer, |known| known.take(limits, patience)) {
                Take::Connection(connection) => return Ok((connection.stream(peer), true)),
                Take::Wait(opening) => opening,
                Take::Listen(introduction, most) => {
                    // That others are before it, or that it says nothing, is not what the endpoint was to do in that time.
                    waits = None;
                    let told = introduction.told.notified();
                    if introduction.over.get() {
                        // Whoever ends this is to have a turn.
                        tokio::task::yield_now().await;
                    } else {
                        let _ = timeout(most, told).await;
                    }
                    continue;
                }
                Take::Open(opening) => {
                    self.bound_idle(limits);
                    let left = waits
                        .map_or(Duration::MAX, |since: Instant| patience.saturating_sub(since.elapsed()));
                    let opened = timeout(left, Box::pin(self.open(peer, opening, connect()))).await;
                    let connection = opened.map_err(|_| Failure::ConnectTimeout)??;
                    return Ok((connection.stream(peer), false));
                }
            };
            let since = *waits.get_or_insert_with(Instant::now);
            let told = opening.told.notified();
            let left = patience.saturating_sub(since.elapsed());
            if !opening.ended.get() && timeout(left, told).await.is_err() {
                return Err(Failure::ConnectTimeout);
            }
            match opening.failed.get() {
                // Too long for somebody else.
                Some(Failure::ConnectTimeout) if since.elapsed() < patience => {}
                Some(failure) => return Err(failure),
                // Others were quicker; to wait for one's turn is no fault of the endpoint.
                None if opening.opened.get() => waits = None,
                None => {}
            }
        }
    }

    async fn open(
        &self,
        peer: Peer,
        opening: Rc<Opening>,
        connect: impl Future<Output = Result<Link, Failure>>,
    ) -> Result<Rc<Connection>, Failure> {
        // Whatever happens, nobody waits for this attempt any longer than it takes.
        let ended = Ended { connections: self, peer, opening };
        let opened = match connect.await {
            Ok(link) => begin(link).await,
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(Begun { requests, intake, introduction }) => {
                let now = Instant::now();
                let connection = Rc::new(Connection {
                    requests,
                    intake,
                    introduction,
                    live: Cell::new(0),
                    carried: Cell::new(0),
                    opened: now,
                    idle_since: Cell::new(now),
                    retired: Cell::new(false),
                    stuck: Cell::new(None),
                });
                self.with(peer, |known| known.connections.push(Rc::clone(&connection)));
                ended.opening.opened.set(true);
                Ok(connection)
            }
            Err(failure) => {
                ended.opening.failed.set(Some(failure));
                Err(failure)
            }
        }
    }

    fn with<T>(&self, peer: Peer, act: impl FnOnce(&mut Known) -> T) -> T {
        act(self.by_peer.borrow_mut().entry(peer).or_default())
    }

    /// Lets go of what idled too long or is one too many, is closed or old, and of every connection to an
    /// endpoint or by a client that is not among those to keep. Running streams go on: a connection ends
    /// with the last of them.
    pub(in crate::l7) fn sweep(&self, stays: impl Fn(&Peer) -> bool, limits: &Keepalive) {
        self.by_peer.borrow_mut().retain(|peer, known| {
            if !stays(peer) {
                known.connections.clear();
            }
            known.connections.retain(|connection| connection.stays(limits));
            !known.connections.is_empty() || !known.opening.is_empty()
        });
        self.bound_idle(limits);
    }

    /// Lets go of idle connections beyond those that are kept, the longest idle ones first.
    fn bound_idle(&self, limits: &Keepalive) {
        let mut by_peer = self.by_peer.borrow_mut();
        let all = by_peer.values().flat_map(|known| &known.connections);
        let mut idle: Vec<_> = all.filter(|connection| connection.is_idle()).map(Rc::clone).collect();
        let Some(surplus) = idle.len().checked_sub(limits.connections).filter(|surplus| *surplus > 0) else {
            return;
        };
        idle.sort_by_key(|connection| connection.idle_since.get());
        idle.into_iter().take(surplus).for_each(|connection| connection.retired.set(true));
        for known in by_peer.values_mut() {
            known.connections.retain(|connection| !connection.retired.get() || !connection.is_idle());
        }
    }
}

enum Take {
    Connection(Rc<Connection>),
    Wait(Rc<Opening>),
    /// For what the upstream says, no longer than this.
    Listen(Rc<Introduction>, Duration),
    Open(Rc<Opening>),
}

impl Known {
    /// `patience` is as in [`Connections::stream`].
    fn take(&mut self, limits: &Keepalive, patience: Duration) -> Take {
        // The others wait for the next sweep: there are as many as requests where each takes one at a time.
        let mut older = self.connections.len().saturating_sub(LOOKED_AT);
        self.connections.retain(|connection| {
            let is_older = older > 0;
            older = older.saturating_sub(1);
            is_older || connection.stays(limits)
        });
        let takes_one = |connection: &&Rc<Connection>| connection.has_room() && connection.lives(limits);
        if let Some(connection) = self.connections.iter().rev().find(takes_one) {
            return Take::Connection(Rc::clone(connection));
        }
        if let Some(opening) = self.opening.iter().find(|opening| opening.promises()) {
            return Take::Wait(Rc::clone(opening));
        }
        let silent = || self.connections.iter().filter(|connection| connection.is_silent());
        let first = silent().map(|connection| connection.opened.elapsed()).max();
        let left = first.map(|since| INTRODUCTION.min(patience).saturating_sub(since));
        if let (Some(newest), Some(left)) = (silent().next_back(), left.filter(|left| !left.is_zero())) {
            return Take::Listen(Rc::clone(&newest.introduction), left);
        }
        let is_busy = left.is_some();
        if is_busy && silent().count() + self.opening.len() >= UPSTREAM_STREAMS_MAX {
            let shares = |connection: &&Rc<Connection>| {
                !connection.is_stuck()
                    && connection.carries_less_than(UPSTREAM_STREAMS_MAX)
                    && connection.lives(limits)
            };
            let fewest = silent().filter(shares).min_by_key(|connection| connection.live.get());
            if let Some(connection) = fewest {
                return Take::Connection(Rc::clone(connection));
            }
        }
        let allowed = self.connections.iter().rev().find_map(|connection| connection.allowed());
        let places =
            if is_busy { 0 } else { allowed.map_or(usize::MAX, |allowed| allowed.saturating_sub(1)) };
        let opening = Rc::new(Opening::with_places(places));
        self.opening.push(Rc::clone(&opening));
        Take::Open(opening)
    }
}

/// Tells those who wait, even where the one who was opening gave up.
struct Ended<'c> {
    connections: &'c Connections,
    peer: Peer,
    opening: Rc<Opening>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.connections
            .with(self.peer, |known| known.opening.retain(|opening| !Rc::ptr_eq(opening, &self.opening)));
        self.opening.ended.set(true);
        self.opening.told.notify_waiters();
    }
}

/// A connection that speaks HTTP/2.
struct Begun {
    requests: SendRequest<Bytes>,
    intake: Rc<Intake>,
    introduction: Rc<Introduction>,
}

/// Ends the wait for an introduction, at the latest with its connection.
struct Introducing(Rc<Introduction>);

impl Drop for Introducing {
    fn drop(&mut self) {
        self.0.is_over();
    }
}

/// Starts HTTP/2 on a connection, which lives on in a task of its own until nobody holds a handle
/// or a stream of it.
async fn begin(mut link: Link) -> Result<Begun, Failure> {
    let (begun, wait) = oneshot::channel();
    let intake = Intake::new(0, None);
    let introduction = Rc::new(Introduction::default());
    let (taken, introducing) = (Rc::clone(&intake), Introducing(Rc::clone(&introduction)));
    tokio::task::spawn_local(async move {
        let mut introducing = Some(introducing);
        let io = Io::new(link.socket(), Buf::default(), Rc::clone(&taken));
        let outlet = io.outlet();
        match limits::client().handshake::<_, Bytes>(io).await {
            Ok((requests, connection)) => {
                if begun.send(requests).is_err() {
                    return;
                }
                let mut connection = pin!(connection);
                let ended = poll_fn(|cx| {
                    let polled = outlet.turn(cx, |cx| connection.as_mut().poll(cx));
                    taken.relieve();
                    introducing.take_if(|_| connection.max_concurrent_send_streams() != limits::UNSAID);
                    polled
                });
                if let Err(error) = ended.await {
                    tracing::debug!(%error, "http/2 connection to an upstream ended");
                }
            }
            Err(error) => tracing::debug!(%error, "upstream does not take http/2"),
        }
    });
    let requests = wait.await.map_err(|_| Failure::Closed)?;
    Ok(Begun { requests, intake, introduction })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn who_waited_for_another_s_connection_has_the_rest_of_its_time_for_its_own() {
        let (connections, limits) = (Connections::default(), Keepalive::default());
        let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), client: 0 };
        let (fail, failed) = oneshot::channel::<()>();
        let first = connections.stream(peer, &limits, PATIENCE, || async {
            let _ = failed.await;
            Err(Failure::ConnectTimeout)
        });
        let second = async {
            let patience = Duration::from_millis(500);
            let second = connections.stream(peer, &limits, patience, pending);
            let (second, _) = tokio::join!(second, async { fail.send(()) });
            second.err()
        };

        let (first, second) = tokio::join!(first, second);

        assert_eq!((first.err(), second), (Some(Failure::ConnectTimeout), Some(Failure::ConnectTimeout)));
    }

    /// An endpoint that takes connections and says nothing.
    async fn mute() -> (TcpListener, Peer) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        (listener, Peer { addr, client: 0 })
    }

    async fn link_to(peer: Peer) -> Result<Link, Failure> {
        Ok(Link::plain(TcpStream::connect(peer.addr).await.expect("a connection")))
    }

    #[tokio::test]
    async fn nobody_waits_for_the_word_of_a_connection_that_is_over() {
        let (connections, limits) = (Connections::default(), Keepalive::default());
        let (_listener, peer) = mute().await;
        let first = async {
            let opened = connections.stream(peer, &limits, PATIENCE, || link_to(peer)).await;
            opened.expect("a connection")
        };
        let tasks = LocalSet::new();
        let _first = tasks.run_until(first).await;
        let known = &mut connections.by_peer.borrow_mut();
        let known = known.get_mut(&peer).expect("one that is known");
        assert!(matches!(known.take(&limits, PATIENCE), Take::Listen(..)), "it may still say something");

        known.connections[0].introduction.is_over();

        assert!(matches!(known.take(&limits, PATIENCE), Take::Open(_)));
    }
}
