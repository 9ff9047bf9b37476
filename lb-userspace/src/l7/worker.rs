//! One worker: a thread with its own runtime, listeners, connections, pool and counters.

mod room;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, watch};

use super::auth::{Answers, Authenticator, Hashing};
use super::balance::Random;
use super::descriptors::OpenLinks;
use super::gate::{Entry, Gate};
use super::listen::{Bound, Place, StreamPlace};
use super::log::{Journal, Outlet};
use super::metrics::{Counters, States};
use super::nginx_status::AllWorkers;
use super::outside::Outside;
use super::rewrite_log::RewriteLog;
use super::route::Router;
use super::snapshot::Current;
use super::spill::Spills;
use super::streams::{self, Crowd, Ports};
use super::timers::Timers;
use super::tls::Tls;
use super::upstream::{Peer, Pool, Seat};
use super::{Error, arrival, descriptors, digits, failing, h2, limited};
use crate::model::health::Unwell;
use crate::model::l4::Listener;
use crate::model::l7::ClientLimits;
use crate::model::metering::Metering;
use crate::model::span::{Span, TakeSpan};
use crate::panics;

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// Threads of a worker that write and read temporary files.
const BLOCKING_THREADS: usize = 4;
/// Names of mirrors that a worker looks up at once.
const MIRROR_LOOKUPS: usize = 1;
/// Pause after a failed accept: out of descriptors, most likely.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker can be told.
pub(super) enum Control {
    /// Send a copy of the counters.
    Count(std::sync::mpsc::Sender<Counters>),
    /// Send what is held against endpoints.
    Failing(std::sync::mpsc::Sender<Vec<failing::Finding>>),
    /// Send the counters and begin anew.
    Yield(std::sync::mpsc::Sender<Counters>),
    /// Add what another process counted; drop the sender when it is done.
    Add(Box<Counters>, mpsc::Sender<()>),
    /// Pass these endpoints over from now on, and no others.
    Unwell(Arc<Unwell>),
    /// Accept from these sockets.
    Accept(Vec<Bound>),
    /// Accept no more there; drop the sender when it is so.
    HandOver(Arc<(HashSet<Place>, HashSet<StreamPlace>)>, mpsc::Sender<()>),
    /// End connections by their next answer, and idle ones after so long; accept as before.
    TakeLeave(Duration),
    /// Accept what has arrived and then no more; end idle connections after so long; drop the
    /// sender when the last connection has ended.
    Drain(Duration, mpsc::Sender<()>),
    /// Have everything that runs end as if its time were over; drop the sender when it has.
    CutOff(mpsc::Sender<()>),
    /// End now.
    Stop,
}

/// What everything on the worker's thread shares.
pub(super) struct Worker {
    pub(super) current: Current,
    pub(super) timers: Rc<Timers>,
    pub(super) pool: Pool,
    pub(super) http2: h2::Connections,
    pub(super) crew: h2::Crew,
    pub(super) counters: RefCell<Counters>,
    pub(super) failing: failing::Seen,
    pub(super) rewrites: RewriteLog,
    pub(super) told_limited: limited::Told,
    pub(super) journal: Journal,
    /// Apart, so that two files do not take turns in one batch.
    pub(super) stream_journal: Journal,
    /// Takes the spans of its requests.
    spans: Option<TakeSpan>,
    pub(super) spills: Arc<Spills>,
    pub(super) authenticator: Authenticator,
    /// Apart from the authenticator's: names that copies go to, and that clients may choose, take no turn
    /// from its own.
    pub(super) mirrors: Outside,
    /// Copies of requests under way.
    pub(super) copies: Rc<Cell<usize>>,
    /// Port of the TLS listener.
    pub(super) https_port: u16,
    tls: Arc<Tls>,
    gate: Rc<Gate>,
    /// Ports beside http and https.
    pub(super) streams: Ports,
    /// Clients of UDP ports that an endpoint may still answer.
    pub(super) exchanges: Crowd,
    draining: Cell<bool>,
    /// Connections that wait for a request are to end.
    ends_idle: Cell<bool>,
    /// Client connections that are open.
    active: Cell<usize>,
    /// Those of which a request's head has begun to come.
    pub(super) reading: Cell<u64>,
    /// Requests that are served.
    pub(super) writing: Cell<u64>,
    /// One of them has ended.
    ended: Notify,
    /// So many of those that wait for a request are to end, to make room.
    shed: Cell<usize>,
    /// Client connections that the descriptors of the process allow.
    descriptors: descriptors::Share,
    links: OpenLinks,
    /// When it was told last that there are none left.
    told_exhausted: Cell<Option<Instant>>,
    pub(super) random: Random,
    /// Its place among all.
    pub(super) number: usize,
    pub(super) all_workers: AllWorkers,
    /// Number of the next connection.
    serial: Cell<u64>,
    seat: Seat,
}

/// What workers have together beside the snapshot.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metering: Metering,
    pub(super) outlet: Outlet,
    pub(super) spills: Arc<Spills>,
    pub(super) hashing: Hashing,
    pub(super) answers: Answers,
    pub(super) all_workers: AllWorkers,
    pub(super) failing: failing::Log,
    pub(super) spans: Option<TakeSpan>,
    pub(super) shelf: streams::Shelf,
}

/// Starts a worker's thread.
pub(super) fn spawn(
    seat: Seat,
    bound: Vec<Bound>,
    tls: &Arc<Tls>,
    published: watch::Receiver<Arc<Router>>,
    shared: Shared,
) -> Result<(mpsc::UnboundedSender<Control>, JoinHandle<()>), Error> {
    let (control, controls) = mpsc::unbounded_channel();
    let tls = Arc::clone(tls);
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("penstock-{}", seat.worker))
        .spawn(move || {
            // Its tasks never leave this thread, so waking one of them takes no lock.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell.send(error)),
            };
            panics::cost_their_task();
            let ended = runtime.block_on(panics::vital(run(seat, bound, tls, published, controls, shared, tell)));
            if let Err(error) = ended {
                // The kernel goes on to put its share of all connections into queues that nobody looks into.
                tracing::error!(worker = seat.worker, %error, "a worker cannot listen again: the process ends");
                std::process::abort();
            }
        })
        .map_err(Error::Worker)?;
    if let Ok(error) = told.recv() {
        return Err(Error::Worker(error));
    }
    Ok((control, thread))
}

async fn run(
    seat: Seat,
    bound: Vec<Bound>,
    tls: Arc<Tls>,
    mut published: watch::Receiver<Arc<Router>>,
    mut controls: mpsc::UnboundedReceiver<Control>,
    shared: Shared,
    tell: std::sync::mpsc::Sender<io::Error>,
) -> io::Result<()> {
    let router = Arc::clone(&published.borrow_and_update());
    let https = bound.iter().find(|bound| bound.place.listener == Listener::Https);
    let http = bound.iter().filter(|bound| bound.place.listener == Listener::Http);
    let ips = http.map(|bound| bound.addr.ip()).collect();
    let share = descriptors::Share::of(seat.of);
    let worker = Rc::new(Worker {
        current: Current::new(router, seat),
        timers: Rc::new(Timers::new()),
        pool: Pool::default(),
        http2: h2::Connections::default(),
        crew: h2::Crew::default(),
        counters: RefCell::new(Counters::new(&shared.metering)),
        failing: failing::Seen::new(shared.failing),
        https_port: https.map_or(443, |bound| bound.addr.port()),
        rewrites: RewriteLog::default(),
        told_limited: limited::Told::default(),
        journal: Journal::new(shared.outlet.clone()),
        stream_journal: Journal::new(shared.outlet),
        spans: shared.spans,
        spills: shared.spills,
        authenticator: Authenticator::new(shared.hashing, shared.answers),
        mirrors: Outside::new(MIRROR_LOOKUPS),
        copies: Rc::default(),
        tls,
        gate: Rc::default(),
        streams: Ports::new(ips, (seat.worker, seat.of), shared.shelf),
        exchanges: Crowd::of(share.datagrams),
        draining: Cell::new(false),
        ends_idle: Cell::new(false),
        active: Cell::new(0),
        reading: Cell::new(0),
        writing: Cell::new(0),
        ended: Notify::new(),
        shed: Cell::new(0),
        descriptors: share,
        links: OpenLinks::default(),
        told_exhausted: Cell::new(None),
        random: Random::new(super::random()),
        number: seat.worker,
        all_workers: shared.all_workers,
        serial: Cell::new(seat.worker as u64 + 1),
        seat,
    });
    if let Err(error) = worker.listen(bound) {
        let _ = tell.send(error);
        return Ok(());
    }
    // Before it counts as started: then it is known which sockets of an agent before us are in use.
    streams::follow(&worker);
    drop(tell);
    let timers = Rc::clone(&worker.timers);
    tokio::task::spawn_local(panics::vital(async move { timers.run().await }));
    let logging = Rc::clone(&worker);
    tokio::task::spawn_local(panics::vital(async move {
        tokio::join!(logging.journal.run(), logging.stream_journal.run())
    }));

    let mut sweep = tokio::time::interval(SWEEP);
    let mut followed = true;
    loop {
        tokio::select! {
            control = controls.recv() => match control {
                Some(Control::Count(answer)) => {
                    let _ = answer.send(worker.count());
                }
                Some(Control::Failing(answer)) => {
                    let _ = answer.send(worker.failing.findings(&worker.current.load(), Instant::now()));
                }
                Some(Control::Yield(answer)) => {
                    // Whoever does not wait any more has not got them.
                    if answer.send(worker.count()).is_ok() {
                        let anew = worker.counters.borrow().anew();
                        worker.counters.replace(anew);
                    }
                }
                Some(Control::Add(counters, _done)) => {
                    let mut known = worker.counters.borrow_mut();
                    known.add(&counters);
                    known.forget_unknown(&worker.current.load().router);
                }
                Some(Control::Unwell(unwell)) => worker.current.set_unwell(unwell),
                Some(Control::Accept(bound)) => {
                    worker.gate.take_back();
                    worker.listen(bound)?;
                    worker.streams.open_again();
                    streams::follow(&worker);
                }
                Some(Control::HandOver(places, done)) => worker.hand_over(&places, done),
                Some(Control::TakeLeave(patience)) => worker.take_leave(patience),
                Some(Control::Drain(patience, done)) => worker.drain(patience, done),
                Some(Control::CutOff(done)) => worker.cut_off(done),
                // Without a handle nobody could ever stop this thread.
                Some(Control::Stop) | None => return Ok(()),
            },
            changed = published.changed(), if followed => match changed {
                Ok(()) => {
                    worker.swap(Arc::clone(&published.borrow_and_update()));
                    streams::follow(&worker);
                }
                // The publisher is gone; the last snapshot goes on.
                Err(_) => followed = false,
            },
            _ = sweep.tick() => {
                worker.sweep();
                streams::follow(&worker);
            }
        }
    }
}

/// Accepts while the gate is open, each connection a task of its own.
async fn accept(worker: Rc<Worker>, listening: TcpListener, place: Place) {
    let _counted = worker.gate.listen(place);
    loop {
        let accepted = match worker.gate.entry(place) {
            Entry::Open => tokio::select! {
                biased;
                accepted = listening.accept() => accepted,
                () = worker.gate.changed() => continue,
            },
            // Who was told that he is connected is served; who comes later has been kept away.
            Entry::Closing(last) => match tokio::time::timeout(last, listening.accept()).await {
                Ok(accepted) => accepted,
                Err(_) => return,
            },
            Entry::HandedOver => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                worker.not_accepted(&error).await;
                continue;
            }
        };
        worker.admit(place).await;
        worker.counters.borrow_mut().accepted += 1;
        let open = Open::new(&worker);
        let arriving = arrival::arrive(Rc::clone(&worker), stream, peer, place.listener);
        tokio::task::spawn_local(arrival::serve(arriving, open));
    }
}

/// One client connection among those that are open.
pub(super) struct Open(pub(super) Rc<Worker>);

impl Open {
    pub(super) fn new(worker: &Rc<Worker>) -> Self {
        worker.active.set(worker.active.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.ended.notify_waiters();
    }
}

/// One more in a state, until it is dropped.
pub(super) struct During<'w>(&'w Cell<u64>);

impl<'w> During<'w> {
    pub(super) fn of(count: &'w Cell<u64>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Worker {
    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Whether connections are to end with the response under way.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// What a client connection may take.
    pub(super) fn limits(&self) -> Rc<ClientLimits> {
        self.current.limits()
    }

    /// Whether connections that wait for a request are to end.
    pub(super) fn ends_idle(&self) -> bool {
        self.ends_idle.get()
    }

    fn listen(self: &Rc<Self>, bound: Vec<Bound>) -> io::Result<()> {
        for Bound { place, socket, .. } in bound {
            // What is accepted has it from here: a response must not wait for an acknowledgement.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            let listening = TcpListener::from_std(socket)?;
            tokio::task::spawn_local(panics::vital(accept(Rc::clone(self), listening, place)));
        }
        Ok(())
    }

    fn hand_over(&self, (places, streams): &(HashSet<Place>, HashSet<StreamPlace>), done: mpsc::Sender<()>) {
        self.gate.hand_over(places);
        self.streams.close(streams);
        let gate = Rc::clone(&self.gate);
        tokio::task::spawn_local(panics::vital(async move {
            gate.left().await;
            drop(done);
        }));
    }

    /// A number for a connection: workers count in steps, each from a start of its own.
    pub(super) fn next_connection(&self) -> u64 {
        let serial = self.serial.get();
        self.serial.set(serial + self.seat.of.max(1) as u64);
        serial
    }

    /// Hands a span to whoever takes them.
    pub(super) fn tell(&self, span: Span) {
        if let Some(take) = &self.spans {
            take(span);
        }
    }

    /// 32 hex digits for `X-Request-ID`: unique, not secret.
    pub(super) fn request_id(&self) -> [u8; 32] {
        let mut id = [0; 32];
        for half in id.chunks_mut(16) {
            digits::lower_hex(self.random.word().into(), half);
        }
        id
    }

    pub(super) fn count(&self) -> Counters {
        let mut counters = self.counters.borrow().clone();
        let active = self.active.get() as u64;
        counters.connections = States { active, reading: self.reading.get(), writing: self.writing.get() };
        counters.idle_upstream = self.pool.len() as u64;
        counters.http2_upstream = self.http2.len() as u64;
        counters
    }

    fn swap(&self, router: Arc<Router>) {
        let before = self.current.store(Arc::clone(&router));
        self.counters.borrow_mut().settle(router.gone(&before.router), &router);
        self.failing.follow(&router);
        self.told_limited.follow(&router);
        if router.edge.limits.keep_alive < before.router.edge.limits.keep_alive {
            // Those that wait already have as long as those that begin to.
            self.timers.wake_all();
        }
        // Endpoints that left lose their idle connections now; running requests finish.
        if !Arc::ptr_eq(&router.clients, &before.router.clients) {
            return self.sweep();
        }
        let left = router.left_endpoints(&before.router);
        if !left.is_empty() {
            self.pool.drop_peers(|peer| left.contains(&peer.addr));
            self.http2.sweep(|peer| !left.contains(&peer.addr), &router.keepalive);
        }
    }

    /// Costs by the connections there are, not by the endpoints.
    fn sweep(&self) {
        let router = &self.current.load().router;
        let clients: HashSet<_> = router.clients.iter().flatten().map(|client| client.id).collect();
        let stays = |peer: &Peer| {
            router.endpoints.contains_key(&peer.addr) && (peer.client == 0 || clients.contains(&peer.client))
        };
        self.pool.sweep(stays, &router.keepalive);
        self.http2.sweep(stays, &router.keepalive);
        let now = Instant::now();
        router.limit_zones.values().for_each(|zone| zone.sweep(now));
        self.crew.sweep();
        self.authenticator.sweep();
    }

    /// Connections end by their next answer, and idle ones when the time is over.
    fn take_leave(self: &Rc<Self>, patience: Duration) {
        self.draining.set(true);
        self.timers.wake_all();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(patience).await;
            worker.ends_idle.set(true);
            worker.timers.wake_all();
        });
    }

    fn drain(self: &Rc<Self>, patience: Duration, done: mpsc::Sender<()>) {
        self.gate.close();
        self.streams.close(&HashSet::new());
        self.take_leave(patience);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            worker.gate.left().await;
            worker.tell_ended(done).await;
        });
    }

    /// What still runs ends, and is told of like whatever ends.
    fn cut_off(self: &Rc<Self>, done: mpsc::Sender<()>) {
        self.timers.end();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move { worker.tell_ended(done).await });
    }

    /// Nobody waits for what runs any more.
    pub(super) fn is_cut_off(&self) -> bool {
        self.timers.are_over()
    }

    /// Once the last connection has ended.
    async fn tell_ended(&self, done: mpsc::Sender<()>) {
        while self.active.get() > 0 {
            self.ended.notified().await;
        }
        drop(done);
    }
}
