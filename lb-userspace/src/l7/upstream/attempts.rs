//! The attempts of one request: which endpoint, by which connection, and whether another one may
//! follow.

use std::cell::Cell;
use std::hint::cold_path;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::super::balance::{Picked, Tried};
use super::super::body_memory::{Claim, Together};
use super::super::carrier::Carrier;
use super::super::descriptors;
use super::super::fcgi;
use super::super::h2;
use super::super::metrics::{Cause, Failure};
use super::super::session::{Key, Sessions};
use super::super::snapshot::Snapshot;
use super::super::socket::{Link, Look};
use super::super::worker::Worker;
use super::pool::Peer;
use super::tls_error;
use super::{Attempt, Client, Record, Traffic, Transport};
use crate::model::upstream::{Condition, Retry, UpstreamName};

/// Attempts where `proxy-next-upstream-tries` is 0: a loop over endpoints that refuse must end.
const TRIES_MAX: u32 = 32;

/// Where a client leaves after an endpoint was connected to for so long, the endpoint is what it left for.
const SLOW_CONNECT: Duration = Duration::from_secs(1);

/// By which connections to an endpoint a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    /// A kept one where there is one.
    Any,
    /// A new one alone: a kept one was closed under the request.
    New,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Speech {
    /// HTTP/1.1: one request at a time.
    Http1,
    /// HTTP/2: many, each on a stream of its own.
    Http2,
    /// FastCGI: one request.
    FastCgi,
}

/// What a request asks of its attempts.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) struct Terms {
    /// Index of the upstream in the router.
    pub(in crate::l7) upstream: usize,
    pub(in crate::l7) transport: Transport,
    pub(in crate::l7) speech: Speech,
    /// Longest time for TCP, and again for TLS.
    pub(in crate::l7) connect: Duration,
    pub(in crate::l7) retry: Retry,
    /// Sending it twice does no harm (nginx: everything but POST, PATCH, LOCK).
    pub(in crate::l7) is_idempotent: bool,
    pub(in crate::l7) lead: Lead,
}

/// What leads a request to its endpoint.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) enum Lead {
    /// The hash of a key, where endpoints are chosen by one.
    Hash(u64),
    /// Its session, which is there, by index.
    Endpoint(usize),
}

/// How far a request got at an endpoint that let it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Progress {
    /// Not a byte was taken, or the endpoint said that it did nothing: repeating is safe.
    Unsent,
    /// It may have been carried out, and all of it is still here to be sent again.
    Sent,
    /// Part of it is gone.
    Consumed,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Next {
    /// Ask for another lease.
    Again,
    /// Answer the client with this status.
    Answer(u16),
}

/// The attempts of one request.
pub(in crate::l7) struct Attempts<'s> {
    worker: &'s Worker,
    snapshot: &'s Snapshot,
    terms: Terms,
    /// The requests of its client's connection, where that has many at once.
    together: Option<Together>,
    begun: Instant,
    /// The attempt that runs, or ran last.
    now: Now,
    /// Where it runs.
    picked: Option<Picked>,
    /// Attempts that failed.
    failed: u32,
    tried: Tried,
    record: &'s mut Record,
    /// Where a kept connection turned out to be closed: asked again, by a new one.
    stale: Option<Picked>,
    /// The session that the attempt at hand begins.
    session: Option<Key>,
    /// Why the connection at hand did not come about.
    error: Cell<Option<io::Error>>,
    /// Since when it is being opened.
    connecting: Cell<Option<Instant>>,
}

/// Times and sizes of one attempt.
#[derive(Debug, Clone, Copy)]
struct Now {
    began: Instant,
    connect: Option<Duration>,
    /// Its response's status and when the head of it was there.
    header: Option<(u16, Duration)>,
    traffic: Traffic,
}

impl Now {
    fn at(began: Instant) -> Self {
        Self { began, connect: None, header: None, traffic: Traffic::default() }
    }
}

/// A connection to an endpoint, or a stream of one, for one request. Dropped, it is closed.
pub(in crate::l7) struct Lease {
    way: Way,
    peer: Peer,
    /// Requests it carried before.
    requests: u32,
    opened: Instant,
    /// It is one of those that its client's connection has.
    _own: Option<Claim>,
}

/// How a connection for bytes that nobody reads came about.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) struct Opened {
    pub(in crate::l7) addr: SocketAddr,
    pub(in crate::l7) began: Instant,
    pub(in crate::l7) connect: Duration,
}

enum Way {
    Link(Link),
    /// Boxed: a request of HTTP/1.1 should not pay for its size.
    Stream(Box<h2::Stream>),
    /// To a FastCGI application.
    Records(Link),
}

impl Lease {
    /// For sending the request and reading the response. `params` tell a FastCGI application of it.
    pub(in crate::l7) fn carrier<'a>(&'a mut self, params: &'a fcgi::Params) -> Carrier<'a> {
        match &mut self.way {
            Way::Link(link) => Carrier::Socket(link.socket()),
            Way::Stream(stream) => Carrier::Stream(stream),
            Way::Records(link) => {
                let connection = Carrier::Socket(link.socket());
                Carrier::Records(Box::new(fcgi::Request::new(connection, self.peer.addr, params)))
            }
        }
    }

    /// A connection that carried requests before; it may have been closed meanwhile.
    pub(in crate::l7) fn is_reused(&self) -> bool {
        self.requests > 0
    }

    /// The response was read to its end and both sides keep the connection.
    pub(in crate::l7) fn keep(self, worker: &Worker, snapshot: &Snapshot, upstream: usize, now: Instant) {
        let Way::Link(link) = self.way else { return };
        let most = snapshot.router.upstreams.get(upstream).and_then(|entry| entry.idle);
        let counted = snapshot.upstreams.get(upstream).map(|endpoints| endpoints.idle());
        let carried = (self.requests + 1, self.opened);
        worker.pool.put(self.peer, link, carried, most.zip(counted), &snapshot.router.keepalive, now);
    }
}

impl<'s> Attempts<'s> {
    /// None made yet; the request began at `begun`. What they come to goes to `record`.
    pub(in crate::l7) fn new(
        worker: &'s Worker,
        snapshot: &'s Snapshot,
        terms: Terms,
        together: Option<&Together>,
        begun: Instant,
        record: &'s mut Record,
    ) -> Self {
        let (now, tried) = (Now::at(begun), Tried::default());
        Self {
            worker,
            snapshot,
            terms,
            together: together.cloned(),
            begun,
            now,
            picked: None,
            failed: 0,
            tried,
            record,
            stale: None,
            session: None,
            error: Cell::default(),
            connecting: Cell::default(),
        }
    }

    /// A connection to send the request by. Endpoints that cannot be connected to are passed over,
    /// as long as that is allowed; the error is what to answer. Whoever waits no longer calls [`Self::given_up`].
    pub(in crate::l7) async fn lease(&mut self) -> Result<Lease, u16> {
        loop {
            if self.failed > 0 {
                cold_path();
                self.now = Now::at(Instant::now());
            }
            let (picked, via) = self.pick().ok_or(503_u16)?;
            let addr = picked.addr();
            self.picked = Some(picked);
            self.connecting.set(None);
            // Streams share their connections; what else is open to an endpoint is for this request alone.
            let own =
                self.together.as_ref().filter(|_| self.terms.speech != Speech::Http2).map(Together::claim);
            let failure = match self.open(addr, via).await {
                Ok((way, peer, requests, opened)) => {
                    // A kept connection took no time, and the clock need not be asked for that.
                    let connect = if requests > 0 { Duration::ZERO } else { opened - self.now.began };
                    self.now.connect = Some(connect);
                    return Ok(Lease { way, peer, requests, opened, _own: own });
                }
                Err(failure) => failure,
            };
            cold_path();
            match self.let_down(failure, Progress::Unsent) {
                Next::Again => {}
                Next::Answer(status) => return Err(status),
            }
        }
    }

    /// A new connection, for bytes that nobody reads. Its endpoint has answered with that, and is held as long as it lasts.
    /// Whoever waits no longer calls [`Self::given_up`].
    pub(in crate::l7) async fn connection(&mut self) -> Option<(Link, Opened, Picked)> {
        loop {
            let (picked, _) = self.pick()?;
            let addr = picked.addr();
            self.picked = Some(picked);
            match self.connect(addr).await {
                Ok(link) => {
                    let (began, now) = (self.now.began, Instant::now());
                    let opened = Opened { addr, began, connect: now.saturating_duration_since(began) };
                    let picked = self.picked.take()?;
                    if let Some(upstream) = self.upstream() {
                        self.worker.answered(upstream, &picked, opened.connect, now);
                    }
                    return Some((link, opened, picked));
                }
                Err(failure) => match self.let_down(failure, Progress::Unsent) {
                    Next::Again => self.now = Now::at(Instant::now()),
                    Next::Answer(_) => return None,
                },
            }
        }
    }

    /// An endpoint, for who sends datagrams there himself.
    pub(in crate::l7) fn endpoint(mut self) -> Option<Picked> {
        self.pick().map(|(picked, _)| picked)
    }

    /// An endpoint, and by which connections.
    fn pick(&mut self) -> Option<(Picked, Via)> {
        if let Some(stale) = self.stale.take() {
            cold_path();
            return Some((stale, Via::New));
        }
        let Self { snapshot, terms, tried, worker, now, .. } = self;
        let entry = snapshot.router.upstreams.get(terms.upstream)?;
        let endpoints = snapshot.upstreams.get(terms.upstream)?;
        let is_open = |index| endpoints.is_open(index, tried, now.began);
        let (key, pinned) = match terms.lead {
            Lead::Hash(key) => (key, None),
            Lead::Endpoint(pinned) => (0, Some(pinned)),
        };
        self.session = None;
        if let Some(sessions) = &entry.sessions {
            cold_path();
            if let Some(pinned) = pinned.filter(|pinned| !sessions.moves() || is_open(*pinned)) {
                return Some((endpoints.pinned(pinned)?, Via::Any));
            }
            if let Some((index, key)) = sessions.draw(&worker.random, is_open) {
                self.session = Some(key);
                return Some((endpoints.pinned(index)?, Via::Any));
            }
        }
        let picked = endpoints.pick(&entry.rule, key, tried, &worker.random, now.began)?;
        self.session = entry.sessions.as_ref().and_then(|sessions| sessions.key(picked.index()));
        Some((picked, Via::Any))
    }

    /// The session that begins, or moves, with the attempt at hand.
    pub(in crate::l7) fn session(&self) -> Option<(&'s Sessions, &Key)> {
        let entry = self.snapshot.router.upstreams.get(self.terms.upstream)?;
        entry.sessions.as_ref().zip(self.session.as_ref())
    }

    fn upstream(&self) -> Option<&'s UpstreamName> {
        self.snapshot.router.upstreams.get(self.terms.upstream).map(|entry| &entry.name)
    }

    fn client(&self, place: usize) -> Option<&Arc<Client>> {
        self.snapshot.router.clients.get(place)?.as_ref()
    }

    /// All waits stand apart: requests by a kept connection do not carry their size.
    async fn open(&self, addr: SocketAddr, via: Via) -> Result<(Way, Peer, u32, Instant), Failure> {
        let client = match self.terms.transport {
            Transport::Plain => 0,
            // Never 0: that is those that are not encrypted.
            Transport::Tls(index) => self.client(index).ok_or(Failure::Tls)?.id,
        };
        let peer = Peer { addr, client };
        let limits = &self.snapshot.router.keepalive;
        if self.terms.speech == Speech::Http2 {
            cold_path();
            let patience = match self.terms.transport {
                Transport::Plain => self.terms.connect,
                Transport::Tls(_) => self.terms.connect.saturating_mul(2),
            };
            let connect = || Box::pin(self.connect(peer.addr));
            if via == Via::New {
                self.worker.http2.distrust(peer);
            }
            let stream = Box::pin(self.worker.http2.stream(peer, limits, patience, connect));
            let (stream, reused) = stream.await?;
            let way = Way::Stream(Box::new(stream));
            return Ok((way, peer, u32::from(reused), Instant::now()));
        }
        if self.terms.speech == Speech::FastCgi {
            cold_path();
            let way = Way::Records(Box::pin(self.connect(peer.addr)).await?);
            return Ok((way, peer, 0, Instant::now()));
        }
        let look = if self.terms.is_idempotent { Look::AtReports } else { Look::AtSocket };
        if via == Via::Any
            && let Some(pooled) = self.worker.pool.take(peer, look, limits, self.now.began)
        {
            return Ok((Way::Link(pooled.link), peer, pooled.requests, pooled.opened));
        }
        cold_path();
        let way = Way::Link(Box::pin(self.connect(peer.addr)).await?);
        Ok((way, peer, 0, Instant::now()))
    }

    /// A new connection to an endpoint, TLS included.
    async fn connect(&self, endpoint: SocketAddr) -> Result<Link, Failure> {
        let own = self.together.as_ref().filter(|_| self.terms.speech != Speech::Http2);
        let Some(open) = self.worker.open_link(own.map_or(1, Together::claimed)) else {
            self.error.set(Some(descriptors::exhausted()));
            return Err(Failure::Connect);
        };
        self.connecting.set(Some(Instant::now()));
        let connecting = tokio::time::timeout(self.terms.connect, TcpStream::connect(endpoint));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%endpoint, %error, "upstream refused the connection");
                self.error.set(Some(error));
                return Err(Failure::Connect);
            }
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        // Small requests must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        self.worker.counters.borrow_mut().upstream_connections += 1;
        let Transport::Tls(index) = self.terms.transport else {
            return Ok(Link::plain(stream).counted(open));
        };
        let client = self.client(index).ok_or(Failure::Tls)?;
        let config = client.config.clone().ok_or(Failure::Tls)?;
        let link = Link::tls_client(stream, config, client.name(endpoint)).map_err(|_| Failure::Tls)?;
        let mut link = link.counted(open);
        let handshake = {
            let socket = link.socket();
            std::future::poll_fn(move |cx| socket.poll_handshake(cx))
        };
        match tokio::time::timeout(self.terms.connect, handshake).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%endpoint, %error, "tls handshake with the upstream failed");
                self.error.set(Some(tls_error::in_words(error)));
                return Err(Failure::Tls);
            }
            Err(_) => {
                self.error.set(Some(tls_error::unanswered()));
                return Err(Failure::ConnectTimeout);
            }
        }
        Ok(link)
    }

    /// The endpoint of `lease` gave no response, or one that cannot be used.
    pub(in crate::l7) fn failed(&mut self, lease: Lease, failure: Failure, progress: Progress) -> Next {
        match (&lease.way, failure) {
            (Way::Stream(stream), Failure::Timeout) => stream.distrust(),
            // It may have vanished, and others that are kept with it.
            (Way::Link(_), Failure::Timeout) if lease.is_reused() => {
                self.worker.pool.drop_peers(|peer| *peer == lease.peer);
            }
            _ => {}
        }
        let failure = match failure {
            // It had nothing against our certificate.
            Failure::Tls if lease.is_reused() => Failure::Closed,
            Failure::Tls => {
                self.error.set(Some(tls_error::refused()));
                failure
            }
            _ => failure,
        };
        let repeatable = progress == Progress::Unsent
            || progress == Progress::Sent && (self.terms.is_idempotent || self.repeats_everything());
        if lease.is_reused() && failure == Failure::Closed && repeatable {
            // A stale connection says nothing about its endpoint: the same one, anew.
            self.stale = self.picked.take();
            return Next::Again;
        }
        self.let_down(failure, progress)
    }

    /// The endpoint began to answer. What it took counts from `paced` on, where the client was waited for until then.
    pub(in crate::l7) fn answered(&mut self, status: u16, paced: Option<Instant>) {
        let now = Instant::now();
        let mut took = now.saturating_duration_since(self.now.began);
        self.now.header = Some((status, took));
        if let Some(paced) = paced {
            cold_path();
            took = now.saturating_duration_since(paced) + self.now.connect.unwrap_or_default();
        }
        if let (Some(picked), Some(upstream)) = (&self.picked, self.upstream()) {
            self.worker.answered(upstream, picked, took, now);
        }
    }

    /// The rest of its answer did not come, or is of no use. It may well answer others, so that is not held against it.
    #[cold]
    pub(in crate::l7) fn broke_off(&self, failure: Failure) {
        self.worker.counters.borrow_mut().upstream_failure(failure);
        if let (Some(picked), Some(upstream)) = (&self.picked, self.upstream()) {
            self.worker.broke_off(upstream, picked.addr(), failure.into());
        }
    }

    /// When it did, if it did.
    pub(in crate::l7) fn answered_at(&self) -> Option<Instant> {
        self.now.header.map(|(_, took)| self.now.began + took)
    }

    /// So much went to and fro by now.
    pub(in crate::l7) fn moved(&mut self, traffic: Traffic) {
        self.now.traffic = traffic;
    }

    /// Nothing more is sent either way.
    pub(in crate::l7) fn ended(&mut self, bytes: u64, now: Instant) {
        self.note(0, bytes, now);
    }

    /// The client left before there was a connection.
    pub(in crate::l7) fn given_up(&mut self, now: Instant) {
        let took = self.connecting.take().map(|since| now.saturating_duration_since(since));
        let Some(picked) = self.note(0, 0, now) else { return };
        if let (Some(took), Some(upstream)) = (took.filter(|took| *took >= SLOW_CONNECT), self.upstream()) {
            let failure = Failure::ConnectTimeout;
            self.worker.counters.borrow_mut().failed_attempt(upstream, failure);
            self.worker.failed(upstream, &picked, Cause { failure, error: None }, took);
        }
    }

    /// The attempt that runs is over.
    fn note(&mut self, status: u16, bytes: u64, now: Instant) -> Option<Picked> {
        let picked = self.picked.take()?;
        let Now { began, connect, header, traffic } = self.now;
        self.record.push(Attempt {
            addr: picked.addr(),
            status: header.map_or(status, |(status, _)| status),
            connect,
            header: header.map(|(_, took)| took),
            response: now.saturating_duration_since(began),
            bytes,
            traffic,
        });
        Some(picked)
    }

    /// An attempt at an endpoint failed. Whether there may be another one.
    fn let_down(&mut self, failure: Failure, progress: Progress) -> Next {
        self.failed += 1;
        let (now, cause) = (Instant::now(), Cause { failure, error: self.error.take() });
        if let (Some(picked), Some(upstream)) = (self.note(failure.status(), 0, now), self.upstream()) {
            let took = now.saturating_duration_since(self.now.began);
            match cause.error.as_ref().filter(|error| descriptors::is_our_lack(error)) {
                Some(error) => {
                    self.worker.counters.borrow_mut().upstream_failure(failure);
                    self.worker.not_connected(error);
                }
                None => {
                    self.worker.counters.borrow_mut().failed_attempt(upstream, failure);
                    self.worker.failed(upstream, &picked, cause, took);
                }
            }
            self.tried.add(picked.index());
        }
        match self.may_repeat(failure.condition(), progress) {
            true => Next::Again,
            false => Next::Answer(failure.status()),
        }
    }

    /// The endpoint answered with a status for which the next one should be asked, and may be. The
    /// response is thrown away then.
    pub(in crate::l7) fn rejects(&mut self, status: u16, progress: Progress) -> bool {
        let Some(condition) = Condition::of_status(status) else { return false };
        cold_path();
        if !self.terms.retry.on.has(condition) {
            return false;
        }
        self.failed += 1;
        let rejects = self.may_repeat(condition, progress);
        if rejects && let Some(picked) = self.note(status, 0, Instant::now()) {
            self.tried.add(picked.index());
        }
        rejects
    }

    fn may_repeat(&self, condition: Condition, progress: Progress) -> bool {
        let Terms { retry, is_idempotent, .. } = self.terms;
        let safe = match progress {
            Progress::Unsent => true,
            Progress::Sent => is_idempotent || self.repeats_everything(),
            Progress::Consumed => false,
        };
        let tries = if retry.tries == 0 { TRIES_MAX } else { retry.tries };
        let in_time = retry.within.is_zero() || self.begun.elapsed() < retry.within;
        retry.on.has(condition) && safe && self.failed < tries && in_time
    }

    fn repeats_everything(&self) -> bool {
        self.terms.retry.on.has(Condition::NonIdempotent)
    }
}
