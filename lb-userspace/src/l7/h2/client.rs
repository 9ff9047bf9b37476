//! Connections of a worker to upstreams that speak HTTP/2, each carrying many streams.
//!
//! A request takes a stream of a connection that has room, newest connection first. Where none has,
//! it opens one, and requests that come meanwhile wait for that one instead of opening their own.

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

use super::super::buffer::Buf;
use super::super::metrics::Failure;
use super::super::socket::Link;
use super::super::upstream::Peer;
use super::io::Io;
use super::limits;
use super::stream::Stream;

/// Streams of one connection at once, unless the upstream allows fewer.
const STREAMS_MAX: u32 = 100;
/// Requests after which a connection takes no more (`upstream-keepalive-requests`).
const REQUESTS_MAX: u32 = 10_000;
/// Age after which it takes no more (`upstream-keepalive-time`).
const AGE_MAX: Duration = Duration::from_secs(3600);
/// How long it may idle (`upstream-keepalive-timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// All connections of one worker.
#[derive(Default)]
pub(in crate::l7) struct Connections {
    by_peer: RefCell<HashMap<Peer, Known>>,
}

#[derive(Default)]
struct Known {
    connections: Vec<Rc<Connection>>,
    opening: Option<Rc<Opening>>,
}

/// A connection that somebody is opening.
#[derive(Default)]
struct Opening {
    failed: Cell<Option<Failure>>,
    ended: Cell<bool>,
    told: Notify,
}

struct Connection {
    requests: SendRequest<Bytes>,
    live: Cell<u32>,
    carried: Cell<u32>,
    opened: Instant,
    idle_since: Cell<Instant>,
    /// It takes no more requests.
    retired: Cell<bool>,
}

/// A place among the streams of a connection, until it is dropped.
pub(super) struct Slot(Rc<Connection>);

impl Slot {
    /// No other request shall take this connection.
    pub(super) fn retire(&self) {
        self.0.retired.set(true);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

impl Connection {
    /// Another request may go out on it now.
    fn takes_more(&self) -> bool {
        let limit = usize::try_from(STREAMS_MAX).unwrap_or(usize::MAX);
        let limit = self.requests.current_max_send_streams().min(limit);
        self.lives() && usize::try_from(self.live.get()).is_ok_and(|live| live < limit)
    }

    /// It is open, and neither used up nor too old.
    fn lives(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let open = matches!(self.requests.clone().poll_ready(&mut cx), Poll::Ready(Ok(())));
        open && !self.retired.get() && self.carried.get() < REQUESTS_MAX && self.opened.elapsed() < AGE_MAX
    }

    fn stream(self: &Rc<Self>, peer: Peer) -> Stream {
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

    /// A stream to `peer`, by a new connection only if need be, and whether its connection carried
    /// requests before. `fresh` trusts none of the connections there are.
    pub(in crate::l7) async fn stream<F>(
        &self,
        peer: Peer,
        fresh: bool,
        connect: impl FnOnce() -> F,
    ) -> Result<(Stream, bool), Failure>
    where
        F: Future<Output = Result<Link, Failure>>,
    {
        if fresh {
            self.with(peer, |known| known.connections.clear());
        }
        loop {
            let opening = match self.with(peer, |known| known.take()) {
                Take::Connection(connection) => return Ok((connection.stream(peer), true)),
                Take::Wait(opening) => opening,
                Take::Open(opening) => {
                    let connection = self.open(peer, opening, connect()).await?;
                    return Ok((connection.stream(peer), false));
                }
            };
            let told = opening.told.notified();
            if !opening.ended.get() {
                told.await;
            }
            if let Some(failure) = opening.failed.get() {
                return Err(failure);
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
            Ok(requests) => {
                let now = Instant::now();
                let connection = Rc::new(Connection {
                    requests,
                    live: Cell::new(0),
                    carried: Cell::new(0),
                    opened: now,
                    idle_since: Cell::new(now),
                    retired: Cell::new(false),
                });
                self.with(peer, |known| known.connections.push(Rc::clone(&connection)));
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

    /// Lets go of what idled too long, is closed or old, and of every connection to an endpoint or
    /// by a client that is not among those to keep. Running streams go on: a connection ends with
    /// the last of them.
    pub(in crate::l7) fn sweep(&self, stays: impl Fn(&Peer) -> bool) {
        self.by_peer.borrow_mut().retain(|peer, known| {
            if !stays(peer) {
                known.connections.clear();
            }
            known.connections.retain(|connection| {
                let idle = connection.live.get() == 0;
                connection.lives() && !(idle && connection.idle_since.get().elapsed() >= IDLE_TIMEOUT)
            });
            !known.connections.is_empty() || known.opening.is_some()
        });
    }
}

enum Take {
    Connection(Rc<Connection>),
    Wait(Rc<Opening>),
    Open(Rc<Opening>),
}

impl Known {
    fn take(&mut self) -> Take {
        self.connections.retain(|connection| connection.lives());
        if let Some(connection) = self.connections.iter().rev().find(|connection| connection.takes_more()) {
            return Take::Connection(Rc::clone(connection));
        }
        if let Some(opening) = &self.opening {
            return Take::Wait(Rc::clone(opening));
        }
        let opening = Rc::new(Opening::default());
        self.opening = Some(Rc::clone(&opening));
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
        self.connections.with(self.peer, |known| known.opening = None);
        self.opening.ended.set(true);
        self.opening.told.notify_waiters();
    }
}

/// Starts HTTP/2 on a connection, which lives on in a task of its own until nobody holds a handle
/// or a stream of it.
async fn begin(mut link: Link) -> Result<SendRequest<Bytes>, Failure> {
    let (begun, wait) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let io = Io::new(link.socket(), Buf::default(), None);
        let outlet = io.outlet();
        match limits::client().handshake::<_, Bytes>(io).await {
            Ok((requests, connection)) => {
                if begun.send(requests).is_err() {
                    return;
                }
                let mut connection = pin!(connection);
                let ended = poll_fn(|cx| outlet.turn(cx, |cx| connection.as_mut().poll(cx)));
                if let Err(error) = ended.await {
                    tracing::debug!(%error, "http/2 connection to an upstream ended");
                }
            }
            Err(error) => tracing::debug!(%error, "upstream does not take http/2"),
        }
    });
    wait.await.map_err(|_| Failure::Closed)
}
