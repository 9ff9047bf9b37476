//! New TCP connections as fast as two cores make them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::netns::Host;

/// Clients at once: enough that one waiting for its answer leaves no core idle.
const CLIENTS: usize = 8;
const SLICE: Duration = Duration::from_secs(1);

/// Clients that connect and reset, and a server that accepts, until this is dropped.
pub struct Load {
    made: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients of `vip` on one host and the server of port 8080 on another.
    pub fn start(client: &Host, server: &Host, vip: SocketAddr) -> Result<Self> {
        let listener = server.within(|| TcpListener::bind("0.0.0.0:8080")).context("listen")?;
        let mut load = Self {
            made: Arc::default(),
            failed: Arc::default(),
            stop: Arc::default(),
            threads: Vec::with_capacity(CLIENTS + 1),
        };
        let stop = load.stop.clone();
        listener.set_nonblocking(false)?;
        load.threads.push(server.spawn(move || accept(&listener, &stop)));
        for _ in 0..CLIENTS {
            let (made, failed, stop) = (load.made.clone(), load.failed.clone(), load.stop.clone());
            load.threads.push(client.spawn(move || connect(vip, &made, &failed, &stop)));
        }
        Ok(load)
    }

    /// Connections per second over one second.
    pub fn per_second(&self) -> Result<f64> {
        // What began before belongs to the other turn.
        std::thread::sleep(SLICE / 10);
        let (start, before) = (Instant::now(), self.made.load(Ordering::Relaxed));
        std::thread::sleep(SLICE);
        let made = self.made.load(Ordering::Relaxed) - before;
        ensure!(made > 0, "no connection came about, {} failed", self.failed.load(Ordering::Relaxed));
        Ok(made as f64 / start.elapsed().as_secs_f64())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn connect(vip: SocketAddr, made: &AtomicU64, failed: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match TcpStream::connect_timeout(&vip, SLICE) {
            Ok(stream) => {
                made.fetch_add(1, Ordering::Relaxed);
                // A reset instead of a goodbye: its port is free at once.
                let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            }
            Err(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    // Woken at least that often, to see that it is over.
    let _ = rustix::net::sockopt::set_socket_timeout(
        listener,
        rustix::net::sockopt::Timeout::Recv,
        Some(SLICE / 10),
    );
    while !stop.load(Ordering::Relaxed) {
        drop(listener.accept());
    }
}
