//! Idle upstream connections of one worker, by endpoint, newest first.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::socket;

/// Idle connections kept by one worker (`upstream-keepalive-connections`).
const IDLE_MAX: usize = 320;
/// How long one may idle (`upstream-keepalive-timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests after which one is not kept (`upstream-keepalive-requests`).
const REQUESTS_MAX: u32 = 10_000;

/// A connection to an endpoint between requests.
pub(super) struct Pooled {
    pub(super) stream: TcpStream,
    /// Requests it carried.
    pub(super) requests: u32,
    idle_since: Instant,
}

/// All idle connections of one worker.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<SocketAddr, VecDeque<Pooled>>>,
    len: Cell<usize>,
}

impl Pool {
    /// Idle connections there are.
    pub(super) fn len(&self) -> usize {
        self.len.get()
    }

    /// The newest live connection to `endpoint`; dead ones on the way are closed. `surely` asks
    /// the kernel in any case: for requests that must not be repeated.
    pub(super) fn take(&self, endpoint: SocketAddr, surely: bool) -> Option<Pooled> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint)?;
        while let Some(pooled) = connections.pop_back() {
            self.len.set(self.len.get().saturating_sub(1));
            let alive = if surely { socket::is_surely_idle } else { socket::is_idle };
            if alive(&pooled.stream) && pooled.idle_since.elapsed() < IDLE_TIMEOUT {
                return Some(pooled);
            }
        }
        None
    }

    /// Keeps a connection whose last response was read to its end.
    pub(super) fn put(&self, endpoint: SocketAddr, stream: TcpStream, requests: u32) {
        if requests >= REQUESTS_MAX || self.len.get() >= IDLE_MAX {
            return;
        }
        self.len.set(self.len.get() + 1);
        let pooled = Pooled { stream, requests, idle_since: Instant::now() };
        self.idle.borrow_mut().entry(endpoint).or_default().push_back(pooled);
    }

    /// Closes what idled too long, and every connection to an endpoint that `keep` lacks.
    pub(super) fn sweep(&self, keep: &HashSet<SocketAddr>) {
        let mut len = 0;
        self.idle.borrow_mut().retain(|endpoint, connections| {
            if !keep.contains(endpoint) {
                return false;
            }
            connections.retain(|pooled| pooled.idle_since.elapsed() < IDLE_TIMEOUT);
            len += connections.len();
            !connections.is_empty()
        });
        self.len.set(len);
    }
}
