//! New TCP connections as fast as one core makes them, and what each of them costs.
//!
//! A client waits until the server has let its connection go: one that went on at once would now and then fill
//! the queue of the listener, and be measured waiting for its SYN to be sent again, a second.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::netns::Host;

/// Clients at once: enough that one waiting for its answer leaves no core idle.
const CLIENTS: usize = 8;
const SLICE: Duration = Duration::from_millis(500);
/// Longer than anybody waits for a SYN that is sent again once.
const PATIENCE: Duration = Duration::from_secs(2);

/// What connections came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Connections of a second.
    pub per_second: f64,
    /// Connections of a second of CPU time, that of clients, balancer and server together.
    pub per_cpu_second: f64,
}

/// A server that accepts and closes, until this is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the server of a port on a host.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host.within(|| TcpListener::bind(("0.0.0.0", port))).context("listen")?;
        let stop: Arc<AtomicBool> = Arc::default();
        let seen = stop.clone();
        Ok(Self { stop, thread: Some(host.spawn(move || accept(&listener, &seen))) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Clients that connect, hear the server's goodbye and reset, until this is dropped.
struct Clients {
    made: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Lets clients of one host connect to `vip`.
pub fn measure(host: &Host, vip: SocketAddr) -> Result<Rate> {
    let clients = Clients::start(host, vip);
    // What is made once, like neighbours, is not theirs.
    std::thread::sleep(SLICE / 5);
    let (start, cpu, before) = (Instant::now(), cpu_time()?, clients.made.load(Ordering::Relaxed));
    std::thread::sleep(SLICE);
    let made = clients.made.load(Ordering::Relaxed) - before;
    let (took, cpu) = (start.elapsed(), cpu_time()?.saturating_sub(cpu));
    let failed = clients.failed.load(Ordering::Relaxed);
    ensure!(made > 0 && failed == 0, "{made} connections came about, {failed} failed");
    Ok(Rate { per_second: made as f64 / took.as_secs_f64(), per_cpu_second: made as f64 / cpu.as_secs_f64() })
}

impl Clients {
    fn start(host: &Host, vip: SocketAddr) -> Self {
        let (made, failed, stop) = (Arc::default(), Arc::default(), Arc::default());
        let mut clients = Self { made, failed, stop, threads: Vec::with_capacity(CLIENTS) };
        for _ in 0..CLIENTS {
            let (made, failed, stop) = (clients.made.clone(), clients.failed.clone(), clients.stop.clone());
            clients.threads.push(host.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let count = if connect(vip).is_ok() { &made } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        clients
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn connect(vip: SocketAddr) -> std::io::Result<()> {
    use std::io::Read;
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
    // A reset instead of a goodbye: its port is free at once, at both ends.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read(&mut [0]).map(drop)
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

/// CPU time of this process, and of the threads that the kernel has for packets which nobody's turn was left for.
fn cpu_time() -> Result<Duration> {
    let clock = clock_gettime(ClockId::ProcessCPUTime);
    let own = Duration::new(clock.tv_sec.try_into()?, clock.tv_nsec.try_into()?);
    let mut kernel = 0;
    for stat in kernel_threads()? {
        let text = std::fs::read_to_string(&stat).with_context(|| format!("read {}", stat.display()))?;
        let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        kernel += nanoseconds.with_context(|| format!("{}: {text}", stat.display()))?;
    }
    Ok(own + Duration::from_nanos(kernel))
}

/// Where the kernel says how long its `ksoftirqd` threads ran.
fn kernel_threads() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if name.starts_with("ksoftirqd/") {
            found.push(process.path().join("schedstat"));
        }
    }
    Ok(found)
}
