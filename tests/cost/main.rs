//! What a request costs the proxy, counted and not measured: allocations and system calls of its worker.
//!
//! The bounds are what a request costs now and a little room. A feature that nobody switched on must
//! not raise them; whoever has a reason to raise one says it in the commit.

mod http2;
mod tunnel;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use penstock::l7::{Options, Proxy, Running};
use penstock::model::ObjectName;
use penstock::model::l4::Listener;
use penstock::model::l7::log::{Escape, Format, Sink};
use penstock::model::l7::{
    AccessLog, Action, Choice, Filters, HostMatch, L7, Location, PathMatch, Policies, Sampler, Server,
    Traced, Upstream, UpstreamName,
};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(20);
/// Until buffers, pools and counters have what they keep.
const WARM_UP: u32 = 300;
/// Together with those fewer than one connection may carry.
const REQUESTS: u32 = 600;

const REQUEST: &[u8] =
    b"GET /shop/cart?id=7 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: cost\r\nAccept: */*\r\n\r\n";
/// So many of these are under way together: more than what a worker keeps ready for a handful, fewer
/// than the connections it keeps to endpoints.
const AT_ONCE: usize = 200;
const REQUEST_AT_ONCE: &[u8] = b"GET /shop/together HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n0123456789";

/// Counts what threads allocate that are not the test's own.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Those of more than [`SMALL`] bytes.
static LARGE: AtomicU64 = AtomicU64::new(0);
/// Beyond that glibc keeps no memory at hand for a thread, and looks for some among all that is free.
const SMALL: usize = 1032;
/// One test at a time: both count everything the process does.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

fn count(size: usize) {
    // At the end of a thread its cell is gone; that is no request.
    if IS_OURS.try_with(Cell::get).is_ok_and(|ours| !ours) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LARGE.fetch_add(u64::from(size > SMALL), Ordering::Relaxed);
    }
}

// SAFETY: every call is the system allocator's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is this one's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from the system allocator by `alloc` or `realloc` with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above, and the caller keeps the contract about `size`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_request_on_a_kept_connection_allocates_its_state_alone_in_small_pieces() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rig = Rig::start();
    rig.ask(WARM_UP);

    let (before, large) = (ALLOCATIONS.load(Ordering::SeqCst), LARGE.load(Ordering::SeqCst));
    rig.ask(REQUESTS);
    let each = |now: u64, before: u64| (now - before) as f64 / f64::from(REQUESTS);
    let all = each(ALLOCATIONS.load(Ordering::SeqCst), before);
    let large = each(LARGE.load(Ordering::SeqCst), large);

    println!("{all:.3} allocations a request, {large:.3} large ones, access log included");
    assert!(all <= ALLOCATIONS_MAX, "{all} allocations a request, {ALLOCATIONS_MAX} are allowed");
    assert!(large <= LARGE_MAX, "{large} large allocations a request, {LARGE_MAX} are allowed");
}

#[test]
fn a_traced_request_allocates_nothing_unless_it_is_recorded() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (choice, most) in [(Choice::None, ALLOCATIONS_MAX), (Choice::All, SPAN_MAX)] {
        let traced = Traced {
            operation: Format::compile("$request_method $location_path", Escape::None).0,
            trusts: true,
            sampler: Sampler { choice, follows: true },
            exports: true,
        };
        let policies = Policies { traced: Some(Arc::new(traced)), ..Policies::default() };
        let mut rig = Rig::with(&Filters { policies: Some(Arc::new(policies)), ..Filters::default() });
        rig.ask(WARM_UP);

        let before = ALLOCATIONS.load(Ordering::SeqCst);
        rig.ask(REQUESTS);
        let each = (ALLOCATIONS.load(Ordering::SeqCst) - before) as f64 / f64::from(REQUESTS);

        println!("{each:.3} allocations a request, {choice:?}");
        assert!(each <= most, "{choice:?}: {each} allocations a request, {most} are allowed");
    }
}

/// Those of a request, and of a span that is recorded: itself, its list of attributes, its name and their six texts.
const SPAN_MAX: f64 = ALLOCATIONS_MAX + 9.0;

#[test]
fn requests_that_run_at_once_allocate_no_more_than_one_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::start();
    let mut clients: Vec<TcpStream> = (0..AT_ONCE).map(|_| rig.connect()).collect();
    let rounds = |clients: &mut [TcpStream], rounds: u32| {
        for _ in 0..rounds {
            // The backend answers none before the last one is there.
            clients.iter_mut().for_each(|client| client.write_all(REQUEST_AT_ONCE).expect("sent"));
            clients.iter_mut().for_each(read_answer);
        }
    };
    rounds(&mut clients, 4);

    let before = ALLOCATIONS.load(Ordering::SeqCst);
    rounds(&mut clients, 4);
    let each = (ALLOCATIONS.load(Ordering::SeqCst) - before) as f64 / (4 * AT_ONCE) as f64;

    println!("{each:.3} allocations a request, {AT_ONCE} at once");
    assert!(each <= ALLOCATIONS_MAX, "{each} allocations a request, {ALLOCATIONS_MAX} are allowed");
}

#[test]
fn a_request_on_a_kept_connection_takes_four_system_calls_and_its_share_of_waits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rig = Rig::start();
    rig.ask(WARM_UP);
    let Some(trace) = Trace::start() else { return };

    let begun = Instant::now();
    rig.ask(REQUESTS);
    let took = begun.elapsed();
    let calls = trace.end();

    println!("{calls:?}");
    assert_four_calls(&calls, took);
}

/// So many for each of [`REQUESTS`] by one client: each side's bytes are read once and written once.
fn assert_four_calls(calls: &BTreeMap<String, u64>, took: Duration) {
    let waits: u64 = calls.iter().filter(|(name, _)| name.starts_with("epoll_")).map(|(_, n)| n).sum();
    // A batch of the access log goes by the clock, however many requests came meanwhile: one write
    // on its own thread, and waking that.
    let is_batch = |name: &str| matches!(name, "write" | "futex");
    let batches: u64 = calls.iter().filter(|(name, _)| is_batch(name)).map(|(_, n)| n).sum();
    let all: u64 = calls.values().sum();
    let others = (all - waits - batches) as f64 / f64::from(REQUESTS);
    let waits = waits as f64 / f64::from(REQUESTS);
    assert!(others <= 4.01, "{others} system calls a request beside waits: {calls:?}");
    // A few beside: strace may stop a thread that holds a lock, and who meets it there waits by futex.
    let most = 4 * (took.as_millis() as u64 / 200 + 2) + u64::from(REQUESTS / 50);
    assert!(batches <= most, "{batches} system calls for the log in {took:?}: {calls:?}");
    // One client, so nothing else is ready: once for the request and once for its response.
    assert!(waits <= 2.1, "{waits} waits a request: {calls:?}");
}

/// The request's own state, which a connection that waits does without: the request as a whole and its attempt. What was
/// decided has a place that was used before. Batches of the access log are all that is left.
const ALLOCATIONS_MAX: f64 = 2.1;

/// Of more than [`SMALL`] bytes; what is left is not a request's.
const LARGE_MAX: f64 = 0.05;

/// The proxy between one client and one backend, with everything on that is on by default.
struct Rig {
    addr: SocketAddr,
    client: TcpStream,
    _running: Running,
    _desired: watch::Sender<Arc<L7>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        Self::with(&Filters::default())
    }

    /// With locations that do this.
    fn with(filters: &Filters) -> Self {
        IS_OURS.set(true);
        let backend = backend();
        let dir = tempfile::tempdir().expect("a directory");
        let desired = watch::Sender::new(Arc::new(l7(backend, dir.path().join("access.log"), filters)));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options {
            http: vec![any],
            https: vec![any],
            workers: 1,
            ticket_keys: None,
            temp: Default::default(),
            metering: Default::default(),
        };
        let proxy = Proxy::bind(options).expect("bind").handing_spans_to(Arc::new(drop));
        let running = proxy.start(desired.subscribe()).expect("start");
        let http = running.addrs().into_iter().find(|(listener, _)| *listener == Listener::Http);
        let addr = http.expect("bound").1;
        Self { addr, client: connect(addr), _running: running, _desired: desired, _dir: dir }
    }

    fn connect(&self) -> TcpStream {
        connect(self.addr)
    }

    /// So many requests, one after the other.
    fn ask(&mut self, requests: u32) {
        for _ in 0..requests {
            self.client.write_all(REQUEST).expect("sent");
            read_answer(&mut self.client);
        }
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(addr).expect("connect");
    client.set_nodelay(true).expect("nodelay");
    client.set_read_timeout(Some(DEADLINE)).expect("timeout");
    client
}

fn read_answer(client: &mut TcpStream) {
    let answer = read_to(client, b"0123456789");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
}

/// What comes, which is to end with `last`.
fn read_to(client: &mut TcpStream, last: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 4096];
    let mut length = 0;
    while !answer[..length].ends_with(last) {
        let read = client.read(&mut answer[length..]).expect("an answer");
        assert!(read > 0, "ended within an answer");
        length += read;
    }
    answer.truncate(length);
    answer
}

fn l7(backend: SocketAddr, log: std::path::PathBuf, filters: &Filters) -> L7 {
    let name = UpstreamName("default-shop-80".to_owned());
    let location = |path: &str| Location {
        path: PathMatch::Prefix(path.to_owned()),
        path_label: path.to_owned(),
        ingress: Some(ObjectName::new("default", "shop")),
        backend: Some(Arc::new(penstock::model::l7::ServicePort {
            service: "shop".to_owned(),
            port: "80".to_owned(),
            upstream: name.clone(),
        })),
        action: Action::Proxy(name.clone()),
        filters: filters.clone(),
    };
    let host = |n: u32| match n {
        0 => "shop.example.com".to_owned(),
        n => format!("host-{n}.example.com"),
    };
    let server = || Server { locations: vec![location("/shop"), location("/")], ..Server::default() };
    let upstream = Upstream { endpoints: [backend].into(), ..Upstream::default() };
    L7 {
        servers: (0..100).map(|n| (HostMatch::Exact(host(n)), server())).collect(),
        upstreams: [(name.clone(), upstream)].into(),
        log: Some(Arc::new(AccessLog { sink: Arc::new(Sink::File(log)), ..AccessLog::default() })),
        ..L7::default()
    }
}

/// Answers every request on every connection, those of [`REQUEST_AT_ONCE`] together.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let addr = listener.local_addr().expect("bound");
    let together = Arc::new(Barrier::new(AT_ONCE));
    let serve = |mut stream: TcpStream, together: &Barrier| {
        IS_OURS.set(true);
        let mut head = [0; 4096];
        let mut length = 0;
        loop {
            let read = stream.read(&mut head[length..]).unwrap_or(0);
            length += read;
            if read == 0 {
                return;
            }
            if head[..length].ends_with(b"\r\n\r\n") {
                if head[..length].starts_with(b"GET /shop/together") {
                    together.wait();
                }
                if head[..length].starts_with(b"GET /shop/tunnel") {
                    return echo(stream);
                }
                length = 0;
                if stream.write_all(ANSWER).is_err() {
                    return;
                }
            }
        }
    };
    std::thread::spawn(move || {
        IS_OURS.set(true);
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            let together = Arc::clone(&together);
            std::thread::spawn(move || serve(stream, &together));
        }
    });
    addr
}

/// Agrees to speak otherwise, and says back what it hears.
fn echo(mut stream: TcpStream) {
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut heard = vec![0; 64 << 10];
    let mut said = stream.write_all(agreed);
    while said.is_ok() {
        let Ok(length @ 1..) = stream.read(&mut heard) else { return };
        said = stream.write_all(&heard[..length]);
    }
}

/// strace at the worker's thread.
struct Trace {
    strace: std::process::Child,
    errors: BufReader<std::process::ChildStderr>,
    table: tempfile::NamedTempFile,
}

impl Trace {
    /// `None`, with the reason printed, where threads cannot be traced.
    fn start() -> Option<Self> {
        let worker = worker_thread();
        let table = tempfile::NamedTempFile::new().expect("a file");
        let strace = Command::new("strace")
            .args(["-c", "-p", &worker.to_string(), "-o"])
            .arg(table.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut strace) = strace else { return skip("there is no strace") };
        let mut errors = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        errors.read_line(&mut line).expect("a line");
        if !line.contains("attached") {
            let _ = strace.wait();
            return skip(line.trim());
        }
        Some(Self { strace, errors, table })
    }

    /// Calls by name.
    fn end(mut self) -> BTreeMap<String, u64> {
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("told to end");
        let mut rest = String::new();
        let _ = self.errors.read_to_string(&mut rest);
        self.strace.wait().expect("ended");
        let text = std::fs::read_to_string(self.table.path()).expect("the table");
        // % time, seconds, usecs/call, calls, errors or nothing, syscall
        let rows = text.lines().filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let name = fields.last().filter(|name| **name != "total" && fields.len() >= 5)?;
            Some(((*name).to_owned(), fields.get(3)?.parse().ok()?))
        });
        rows.collect()
    }
}

fn skip<T>(reason: &str) -> Option<T> {
    let required = std::env::var("PENSTOCK_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "strace"), "required: {reason}");
    println!("skipped: {reason}");
    None
}

/// Thread id of the proxy's only worker; its thread has its name a moment after it began.
fn worker_thread() -> u32 {
    let started = Instant::now();
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
        let found = tasks.into_iter().find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "penstock-0")
        });
        if let Some(id) = found.and_then(|task| task.file_name().to_str()?.parse().ok()) {
            return id;
        }
        assert!(started.elapsed() < DEADLINE, "no worker");
        std::thread::yield_now();
    }
}
