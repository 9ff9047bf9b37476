//! The proxy: HTTP/1.1, HTTP/2 and TLS for the connections the kernel punts up, or for its own listeners.
//!
//! Thread per core: each worker owns its listeners, connections, upstream pools and counters, and
//! shares only the read-only snapshot. Reading order of a request: [`worker`] accepts, [`arrival`] tells
//! what comes, [`connection`] reads the head, [`filters`] decides (with [`route`]), [`exchange`] talks to an
//! endpoint that [`upstream`] leases it, through [`relay`]. No Kubernetes, no aya.

mod arrival;
mod buffer;
mod carrier;
mod client_auth;
mod client_hello;
mod connection;
mod exchange;
pub mod explain;
mod filters;
pub mod fuzz;
mod h1;
mod h2;
mod heads;
mod listen;
mod metrics;
mod passthrough;
mod path;
mod proxy_protocol;
mod relay;
mod route;
mod snapshot;
mod socket;
mod subject;
mod tickets;
mod timers;
mod tls;
mod tunnel;
mod upstream;
mod worker;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use tickets::TicketKeys;

use crate::model::l4::Listener;
use crate::model::l7::L7;
use crate::model::report::Metric;

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
}

impl Proxy {
    /// Opens every listener once per worker (`SO_REUSEPORT`).
    pub fn bind(options: Options) -> Result<Self, Error> {
        let tls = Arc::new(tls::Tls::new(options.ticket_keys.clone())?);
        let workers = listen::bind(&options)?;
        Ok(Self { workers, tls })
    }

    /// The first plain and the first TLS socket of each worker, for the kernel's socket map.
    pub fn listeners(&self) -> Vec<(Listener, usize, BorrowedFd<'_>)> {
        let mut sockets = Vec::new();
        for (worker, bound) in self.workers.iter().enumerate() {
            for listener in [Listener::Http, Listener::Https] {
                let first = bound.iter().find(|bound| bound.listener == listener);
                sockets.extend(first.map(|bound| (listener, worker, bound.fd())));
            }
        }
        sockets
    }

    /// Serves what `desired` says, from now on and after every change.
    pub fn start(self, desired: watch::Receiver<Arc<L7>>) -> Result<Running, Error> {
        let Self { workers, tls } = self;
        let addrs = workers.first().map(|bound| bound.iter().map(|b| (b.listener, b.addr)).collect());
        let (publisher, published) = snapshot::publisher(desired, Arc::clone(&tls));
        let mut threads = vec![
            std::thread::Builder::new()
                .name("penstock-routes".to_owned())
                .spawn(move || publisher.run())
                .map_err(Error::Worker)?,
        ];
        let mut controls = Vec::with_capacity(workers.len());
        for (id, bound) in workers.into_iter().enumerate() {
            let (control, thread) = worker::spawn(id, bound, &tls, published.clone())?;
            controls.push(control);
            threads.push(thread);
        }
        Ok(Running { addrs: addrs.unwrap_or_default(), tls, controls, threads: threads.into() })
    }
}

/// A serving proxy. Dropping it stops every worker at once.
pub struct Running {
    addrs: Vec<(Listener, SocketAddr)>,
    tls: Arc<tls::Tls>,
    controls: Vec<mpsc::UnboundedSender<worker::Control>>,
    threads: std::sync::Mutex<Vec<JoinHandle<()>>>,
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

    /// Counters of all workers together. Waits for each to answer, at most a second; a worker that
    /// does not is left out.
    pub fn metrics(&self) -> Vec<Metric> {
        let (answer, answers) = std::sync::mpsc::channel();
        for control in &self.controls {
            let _ = control.send(worker::Control::Count(answer.clone()));
        }
        drop(answer);
        let mut total = metrics::Counters::default();
        while let Ok(counters) = answers.recv_timeout(Duration::from_secs(1)) {
            total.add(&counters);
        }
        total.report(self.controls.len())
    }

    /// Stops accepting, lets running requests and upgraded connections end, and closes idle ones;
    /// what still runs after `deadline` is cut off.
    pub async fn drain(&self, deadline: Duration) {
        let (done, mut drained) = mpsc::channel::<()>(1);
        for control in &self.controls {
            let _ = control.send(worker::Control::Drain(done.clone()));
        }
        drop(done);
        // Every worker drops its end once its last connection has ended.
        let _ = tokio::time::timeout(deadline, drained.recv()).await;
        for control in &self.controls {
            let _ = control.send(worker::Control::Stop);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The publisher ends with its last receiver; workers end at `Stop`.
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        })
        .await;
    }
}
