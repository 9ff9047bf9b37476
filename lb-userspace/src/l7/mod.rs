//! The proxy: HTTP/1.1, HTTP/2 and TLS for the connections the kernel punts up, or for its own listeners.
//!
//! Thread per core: each worker owns its listeners, connections, upstream pools and counters, and
//! shares only the read-only snapshot. Reading order of a request: [`worker`] accepts, [`arrival`] tells
//! what comes, [`connection`] reads the head, [`filters`] decides (with [`route`]), [`exchange`] talks to an
//! endpoint that [`upstream`] leases it, through [`relay`]. No Kubernetes, no aya.

mod ahead;
mod arrival;
mod auth;
mod authorities;
mod balance;
mod body_memory;
mod buffer;
mod calendar;
mod canary;
mod carrier;
mod client;
mod client_auth;
mod client_hello;
mod compress;
mod connection;
mod credentials;
mod descriptors;
mod digits;
mod exchange;
pub mod explain;
mod failing;
mod fcgi;
mod filters;
pub mod fuzz;
mod gate;
mod h1;
mod h2;
mod handshake;
mod heads;
mod hold;
mod kept_sessions;
mod keys;
mod limit_zones;
mod limited;
mod listen;
mod log;
mod map;
mod metrics;
mod mirror;
mod nginx_status;
mod outside;
mod pages;
mod passthrough;
mod path;
mod pipe;
mod policy;
mod proxy_protocol;
mod relay;
mod rewrite_log;
mod route;
mod session;
mod snapshot;
mod socket;
mod spill;
mod streams;
mod subject;
mod tickets;
mod timers;
mod tls;
mod tls_session;
mod trace;
mod tunnel;
mod upstream;
mod variable;
mod worker;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use descriptors::raise_limit as raise_descriptor_limit;
pub use tickets::TicketKeys;

use crate::model::health::{Failing, Unwell};
use crate::model::l4::Listener;
use crate::model::l7::L7;
use crate::model::metering::Metering;
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::span::TakeSpan;

pub use listen::{Inherited, InheritedStream, Place, StreamPlace};
pub use upstream::Dialer;

/// How long the end of a drain waits for lines of the access log to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Longest wait for what is cut off to be counted.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A number nobody can foresee, for starting points.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Where to listen and with how many threads.
#[derive(Debug, Clone)]
pub struct Options {
    /// Plain HTTP addresses; port 0 takes a free one.
    pub http: Vec<SocketAddr>,
    /// TLS addresses.
    pub https: Vec<SocketAddr>,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Keys of an earlier process, so that its TLS sessions can be resumed; `None`: new ones.
    pub ticket_keys: Option<TicketKeys>,
    /// Where bodies are that are to be held.
    pub temp: Temp,
    /// What metrics of requests tell apart.
    pub metering: Metering,
}

/// Room for the bodies that are held, all of them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Temp {
    /// Directory of temporary files; made by somebody else.
    pub dir: PathBuf,
    /// Most bytes in them.
    pub bytes: u64,
    /// Most bytes in memory, beside the first 16 KiB of each; more go to files.
    pub memory_bytes: u64,
}

impl Default for Temp {
    /// 4 GiB in `/tmp`, 256 MiB in memory.
    fn default() -> Self {
        Self { dir: PathBuf::from("/tmp"), bytes: 4 << 30, memory_bytes: 256 << 20 }
    }
}

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be opened.
    #[error("--{flag} {addr}: {source}{hint}")]
    Listen {
        /// `http` or `https`.
        flag: &'static str,
        /// As given.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
        /// What to do about it; may be empty.
        hint: &'static str,
    },
    /// TLS cannot be set up at all.
    #[error("tls: {0}")]
    Tls(String),
    /// A thread or its runtime cannot be started.
    #[error("worker: {0}")]
    Worker(io::Error),
}

/// Bound and not yet serving: connections wait in the accept queues.
pub struct Proxy {
    workers: Vec<Vec<listen::Bound>>,
    tls: Arc<tls::Tls>,
    taken: BTreeSet<Place>,
    spills: Arc<spill::Spills>,
    metering: Metering,
    spans: Option<TakeSpan>,
    shelf: streams::Shelf,
}

/// Longest time that idle connections are left for their client's next request when everything is
/// to end soon: a busy client is told by the answer, and loses nothing.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a worker to answer.
const ANSWER: Duration = Duration::from_secs(1);

impl Proxy {
    /// Opens every listener once per worker (`SO_REUSEPORT`).
    pub fn bind(options: Options) -> Result<Self, Error> {
        Self::inherit(options, Vec::new(), Vec::new())
    }

    /// The same with what an agent before us listens on, as far as it is wanted.
    pub fn inherit(
        options: Options,
        sockets: Vec<Inherited>,
        streams: Vec<InheritedStream>,
    ) -> Result<Self, Error> {
        let tls = Arc::new(tls::Tls::new(options.ticket_keys.clone())?);
        let before: BTreeSet<_> = sockets.iter().map(|inherited| inherited.place).collect();
        let workers = listen::bind(&options, sockets)?;
        let ours: BTreeSet<_> = workers.iter().flatten().map(|bound| bound.place).collect();
        let spills = Arc::new(spill::Spills::new(options.temp));
        let taken = before.intersection(&ours).copied().collect();
        let shelf = streams::Shelf::of(streams);
        Ok(Self { workers, tls, taken, spills, metering: options.metering, spans: None, shelf })
    }

    /// Hands the spans of traced requests to somebody; else they are recorded for nobody.
    pub fn handing_spans_to(self, take: TakeSpan) -> Self {
        Self { spans: Some(take), ..self }
    }

    /// The places where sockets were inherited.
    pub fn taken(&self) -> &BTreeSet<Place> {
        &self.taken
    }

    /// The first plain and the first TLS socket of each worker, for the kernel's socket map.
    pub fn listeners(&self) -> Vec<(Listener, usize, BorrowedFd<'_>)> {
        let first = first_of_each(&self.workers).into_iter();
        first.map(|(listener, worker, bound)| (listener, worker, bound.fd())).collect()
    }

    /// Serves what `desired` says, from now on and after every change.
    pub fn start(self, desired: watch::Receiver<Arc<L7>>) -> Result<Running, Error> {
        let Self { workers, tls, spills, metering, spans, taken: _, shelf } = self;
        let mut addrs: Vec<_> =
            workers.iter().flatten().map(|bound| (bound.place.listener, bound.addr)).collect();
        addrs.sort();
        addrs.dedup();
        let again = |bound: &Vec<listen::Bound>| bound.iter().map(listen::Bound::again).collect();
        let sockets = workers.iter().map(again).collect::<Result<_, _>>().map_err(Error::Worker)?;
        let (publisher, published) = snapshot::publisher(desired, Arc::clone(&tls));
        let mut threads = vec![
            std::thread::Builder::new()
                .name("penstock-routes".to_owned())
                .spawn(move || publisher.run())
                .map_err(Error::Worker)?,
        ];
        let (outlet, log) = log::start().map_err(Error::Worker)?;
        let (hashing, hashers) = auth::start(workers.len()).map_err(Error::Worker)?;
        threads.extend(hashers);
        let all_workers = nginx_status::AllWorkers::default();
        let shared = worker::Shared {
            metering: metering.clone(),
            outlet,
            spills: Arc::clone(&spills),
            hashing,
            answers: auth::Answers::default(),
            all_workers: all_workers.clone(),
            failing: failing::Log::default(),
            spans,
            shelf: shelf.clone(),
        };
        let mut controls = Vec::with_capacity(workers.len());
        let of = workers.len();
        for (id, bound) in workers.into_iter().enumerate() {
            let seat = upstream::Seat { worker: id, of };
            let (published, shared) = (published.clone(), shared.clone());
            let (control, thread) = worker::spawn(seat, bound, &tls, published, shared)?;
            controls.push(control);
            threads.push(thread);
        }
        all_workers.set(&controls);
        Ok(Running {
            addrs,
            tls,
            controls,
            threads: threads.into(),
            sockets: std::sync::Mutex::new(sockets),
            kept_away: std::sync::Mutex::default(),
            handed_over: Default::default(),
            log: Arc::new(log.into()),
            spills,
            metering,
            shelf,
        })
    }
}

fn first_of_each(workers: &[Vec<listen::Bound>]) -> Vec<(Listener, usize, &listen::Bound)> {
    let mut first = Vec::new();
    for (worker, bound) in workers.iter().enumerate() {
        for listener in [Listener::Http, Listener::Https] {
            let found = bound.iter().find(|bound| bound.place.listener == listener);
            first.extend(found.map(|bound| (listener, worker, bound)));
        }
    }
    first
}

/// A serving proxy. Dropping it stops every worker at once.
pub struct Running {
    addrs: Vec<(Listener, SocketAddr)>,
    tls: Arc<tls::Tls>,
    controls: Vec<mpsc::UnboundedSender<worker::Control>>,
    threads: std::sync::Mutex<Vec<JoinHandle<()>>>,
    /// Other ends of the workers' sockets, for an agent after us.
    sockets: std::sync::Mutex<Vec<Vec<listen::Bound>>>,
    /// Those that new connections are kept away from: while they are open, who connects is not refused but waits.
    kept_away: std::sync::Mutex<Vec<listen::Bound>>,
    /// Where that one accepts.
    handed_over: std::sync::Mutex<BTreeSet<Place>>,
    log: Arc<std::sync::Mutex<log::Writer>>,
    spills: Arc<spill::Spills>,
    metering: Metering,
    /// Sockets of ports beside http and https.
    shelf: streams::Shelf,
}

impl Running {
    /// Addresses it listens on, with the ports that were chosen for port 0.
    pub fn addrs(&self) -> Vec<(Listener, SocketAddr)> {
        self.addrs.clone()
    }

    /// Keys of TLS session tickets, for the process that takes over.
    pub fn ticket_keys(&self) -> TicketKeys {
        self.tls.ticket_keys()
    }

    /// Passes endpoints over that active checks found unwell, from now on. The others are well.
    pub fn set_unwell(&self, unwell: &Arc<Unwell>) {
        for control in &self.controls {
            let _ = control.send(worker::Control::Unwell(Arc::clone(unwell)));
        }
    }

    /// Why the access log cannot be written, if that is so.
    pub fn log_trouble(&self) -> Option<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).trouble()
    }

    /// Counters of all workers together. Waits for each to answer, at most a second; a worker that
    /// does not is left out.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        self.tell_metrics(&mut |metric| metrics.push(metric));
        metrics
    }

    /// The same one by one: together they may be a multiple of what was counted.
    pub fn tell_metrics(&self, tell: &mut dyn FnMut(Metric)) {
        let total = self.total(worker::Control::Count);
        let failing = self.failing();
        let ejected = total.let_down_by().map(|upstream| Sample {
            suffix: "",
            value: failing.ejected(&upstream) as f64,
            labels: vec![("upstream", upstream.0)],
        });
        total.report(self.controls.len(), &self.metering, tell);
        tell(Metric {
            name: "penstock_l7_ejected_endpoints",
            help: "Endpoints that workers leave alone because they failed, of upstreams that failed attempts; where these are more than half, in further tries alone.",
            kind: MetricKind::Gauge,
            samples: ejected.collect(),
        });
        tell(self.log.lock().unwrap_or_else(PoisonError::into_inner).metric());
        let gauge = |name, help, bytes: u64| Metric {
            name,
            help,
            kind: MetricKind::Gauge,
            samples: vec![Sample { suffix: "", labels: Vec::new(), value: bytes as f64 }],
        };
        let help = "Bytes of bodies in temporary files.";
        tell(gauge("penstock_l7_temp_file_bytes", help, self.spills.used()));
        let help = "Bytes of memory for bodies that are held, beside the first of each.";
        tell(gauge("penstock_l7_body_memory_bytes", help, self.spills.memory.used()));
    }

    /// Endpoints that fail requests. Waits as [`Running::metrics`] does.
    pub fn failing(&self) -> Failing {
        failing::join(self.ask(worker::Control::Failing).into_iter().flatten())
    }

    /// All that was counted since the start or the last call: for another process, to which it
    /// belongs from then on. Waits as [`Running::metrics`] does.
    pub fn yield_counts(&self) -> serde_json::Value {
        serde_json::to_value(self.total(worker::Control::Yield)).unwrap_or_default()
    }

    /// Adds what another process counted; false if it cannot be understood.
    pub async fn add_counts(&self, counts: serde_json::Value) -> bool {
        let Ok(counters) = serde_json::from_value(counts) else { return false };
        let (done, mut added) = mpsc::channel(1);
        // Every worker's are added up in the end.
        let first = self.controls.first();
        let _ = first.map(|control| control.send(worker::Control::Add(Box::new(counters), done)));
        let _ = added.recv().await;
        true
    }

    fn total(
        &self,
        ask: fn(std::sync::mpsc::Sender<metrics::Counters>) -> worker::Control,
    ) -> metrics::Counters {
        let mut total = metrics::Counters::sum(&self.metering);
        self.ask(ask).iter().for_each(|counters| total.add(counters));
        total
    }

    /// What each worker answers in time.
    fn ask<A>(&self, ask: fn(std::sync::mpsc::Sender<A>) -> worker::Control) -> Vec<A> {
        let (answer, answers) = std::sync::mpsc::channel();
        for control in &self.controls {
            let _ = control.send(ask(answer.clone()));
        }
        drop(answer);
        std::iter::from_fn(|| answers.recv_timeout(ANSWER).ok()).collect()
    }

    /// Other ends of all listening sockets, for an agent that is to take our place.
    pub fn sockets(&self) -> io::Result<Vec<Inherited>> {
        let again =
            |bound: &listen::Bound| Ok(Inherited { place: bound.place, socket: bound.socket.try_clone()? });
        self.lock_sockets().iter().flatten().map(again).collect()
    }

    /// The same of ports beside http and https.
    pub fn stream_sockets(&self) -> io::Result<Vec<InheritedStream>> {
        self.shelf.again()
    }

    /// The ports where sockets of an agent before us are in use.
    pub fn taken_streams(&self) -> BTreeSet<StreamPlace> {
        self.shelf.taken()
    }

    /// The agent before us does not come back: what nobody took up of its sockets is closed.
    pub fn forget_before(&self) {
        self.shelf.clear();
    }

    /// The same as [`Proxy::listeners`], in ends of their own.
    pub fn listeners(&self) -> io::Result<Vec<(Listener, usize, OwnedFd)>> {
        let sockets = self.lock_sockets();
        let listeners = first_of_each(&sockets).into_iter();
        listeners
            .map(|(listener, worker, bound)| Ok((listener, worker, bound.socket.try_clone()?.into())))
            .collect()
    }

    /// Leaves the connections that arrive at these places to another process, which has the sockets.
    /// Connections that were accepted go on.
    pub async fn hand_over(&self, places: &BTreeSet<Place>, streams: &BTreeSet<StreamPlace>) {
        self.lock_handed_over().clone_from(places);
        let places = Arc::new((places.iter().copied().collect(), streams.iter().copied().collect()));
        let (done, mut closed) = mpsc::channel::<()>(1);
        for control in &self.controls {
            let _ = control.send(worker::Control::HandOver(Arc::clone(&places), done.clone()));
        }
        drop(done);
        let _ = closed.recv().await;
    }

    /// Accepts again at the places that were handed over: the other process is gone.
    pub fn take_back(&self) -> io::Result<()> {
        let places = std::mem::take(&mut *self.lock_handed_over());
        for (control, bound) in self.controls.iter().zip(self.lock_sockets().iter()) {
            let ours = bound.iter().filter(|bound| places.contains(&bound.place));
            let again = ours.map(listen::Bound::again).collect::<io::Result<_>>()?;
            let _ = control.send(worker::Control::Accept(again));
        }
        Ok(())
    }

    /// Lets connections end, after another process has taken over for good: idle ones by their next
    /// request or for lack of it. Where nobody took over, nothing is accepted any more. Whether all have.
    pub async fn retire(&self, deadline: Duration) -> bool {
        let ended = self.end(deadline, deadline);
        self.refuse();
        ended.await
    }

    /// Has clients end their connections by the next answer and come again, and ends idle ones, because this process
    /// will end. Whoever comes is still served.
    pub fn take_leave(&self) {
        for control in &self.controls {
            let _ = control.send(worker::Control::TakeLeave(TIMEOUT));
        }
    }

    /// Accepts what has arrived and then no more, lets running requests and upgraded connections
    /// end, and closes idle ones; what still runs after `deadline` is cut off. Whether nothing was. Who connects meanwhile
    /// waits (a client sends its SYN again after a second), until [`Running::refuse`].
    pub async fn drain(&self, deadline: Duration) -> bool {
        let all_ended = self.end(TIMEOUT, deadline).await;
        self.stop().await;
        all_ended
    }

    /// Refuses who connects, as nobody else comes to serve them.
    pub fn refuse(&self) {
        self.kept_away.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The doors are closed at once, not when the result is first asked for.
    fn end(&self, patience: Duration, deadline: Duration) -> impl Future<Output = bool> + use<> {
        self.shelf.clear();
        let handed_over = self.lock_handed_over().clone();
        let sockets = std::mem::take(&mut *self.lock_sockets());
        let ours = sockets.into_iter().flatten().filter(|bound| !handed_over.contains(&bound.place));
        let ours: Vec<_> = ours.collect();
        for bound in &ours {
            if let Err(error) = gate::keep_away(&bound.socket) {
                tracing::debug!(%error, "connections that arrive at the last moment may be reset");
            }
        }
        self.kept_away.lock().unwrap_or_else(PoisonError::into_inner).extend(ours);
        let (done, mut drained) = mpsc::channel::<()>(1);
        for control in &self.controls {
            let _ = control.send(worker::Control::Drain(patience, done.clone()));
        }
        drop(done);
        // Every worker drops its end once its last connection has ended.
        async move { tokio::time::timeout(deadline, drained.recv()).await.is_ok() }
    }

    fn lock_sockets(&self) -> MutexGuard<'_, Vec<Vec<listen::Bound>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_handed_over(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts off what still runs, which is counted and logged as far as it does not hold out.
    pub async fn cut_off(&self) {
        let (done, mut ended) = mpsc::channel::<()>(1);
        for control in &self.controls {
            let _ = control.send(worker::Control::CutOff(done.clone()));
        }
        drop(done);
        let _ = tokio::time::timeout(LAST_WORDS, ended.recv()).await;
    }

    /// Ends every worker, after [`Self::cut_off`].
    pub async fn stop(&self) {
        self.cut_off().await;
        for control in &self.controls {
            let _ = control.send(worker::Control::Stop);
        }
        let log = Arc::clone(&self.log);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The publisher ends with its last receiver; workers end at `Stop`.
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
            log.lock().unwrap_or_else(PoisonError::into_inner).wait(LAST_LINES);
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_cannot_listen_fails_the_start() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (http, https) = (vec![any], vec![any]);
        let (workers, ticket_keys, temp, metering) = (2, None, Temp::default(), Metering::default());
        let options = Options { http, https, workers, ticket_keys, temp, metering };
        let mut proxy = Proxy::bind(options).expect("bind");
        let second = proxy.workers.get_mut(1).and_then(|bound| bound.first_mut()).expect("bound");
        // Nothing that epoll takes.
        let file = std::fs::File::open(std::env::current_exe().expect("this program")).expect("open");
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).expect("fcntl");
        second.socket = OwnedFd::from(file).into();

        let started = proxy.start(watch::Sender::new(Arc::new(L7::default())).subscribe());

        assert!(matches!(started.err(), Some(Error::Worker(_))));
    }
}
