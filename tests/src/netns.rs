//! A small internet out of network namespaces: one switch with named networks, and hosts plugged
//! into them by veth pairs.
//!
//! Everything is removed when the [`Lab`] goes: at its end, on a panic, on Ctrl-C or SIGTERM, and
//! what a killed process left behind by the next lab. The settings that XDP on veth needs
//! (checksums in software, NAPI on every receiver of redirected frames) are made here.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use anyhow::{Context, Result, bail};
use penstock::config::BPFFS;
use penstock::datapath::pins;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Prefix of every namespace made here; the process id and a serial number follow.
const PREFIX: &str = "penstock-";

/// A set of namespaces that live and go together.
pub struct Lab {
    inner: Arc<Inner>,
}

struct Inner {
    prefix: String,
    scratch: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    namespaces: Vec<String>,
    networks: Vec<String>,
    children: Vec<Child>,
    kept: bool,
}

/// One host of a lab: a network namespace.
#[derive(Clone)]
pub struct Host {
    name: String,
    namespace: String,
}

/// Labs of this process that a signal has to take down.
static LABS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// A signal has come and everything is being taken down.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Lab {
    /// An empty lab, after removing what dead processes left.
    pub fn new() -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        take_down_on_signals();
        for namespace in namespaces()? {
            if owner(&namespace).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
                && !kept(&namespace)
            {
                remove(&namespace);
            }
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{serial}-", std::process::id());
        let scratch = tempfile::Builder::new().prefix(&prefix).tempdir()?.keep();
        let lab = Self { inner: Arc::new(Inner { prefix, scratch, state: Mutex::default() }) };
        lock(&LABS).push(Arc::downgrade(&lab.inner));
        lab.namespace("switch")?;
        Ok(lab)
    }

    /// Directory for the lab's files; it goes with the lab.
    pub fn scratch(&self) -> &Path {
        &self.inner.scratch
    }

    /// A host with one interface for each `(network, addresses)`, named `eth0`, `eth1` …
    ///
    /// Addresses carry their prefix length. A network is a bridge on the switch, made when first
    /// named.
    pub fn host(&self, name: &str, interfaces: &[(&str, &[&str])]) -> Result<Host> {
        let host = self.namespace(name)?;
        for (number, (network, addresses)) in interfaces.iter().enumerate() {
            self.plug(&host, number, network, addresses)?;
        }
        Ok(host)
    }

    /// Adds the interface `ethN` to a host; its other end on the switch has the host's name and N.
    pub fn plug(&self, host: &Host, number: usize, network: &str, addresses: &[&str]) -> Result<()> {
        let switch = self.switch();
        self.network(network)?;
        let (device, port) = (format!("eth{number}"), format!("{}{number}", host.name));
        run(Command::new("ip")
            .args(["link", "add", &device, "netns", &host.namespace, "type", "veth", "peer"])
            .args(["name", &port, "netns", &switch.namespace]))?;
        for address in addresses {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            run(host.command("ip").args(["addr", "add", address, "dev", &device]).args(nodad))?;
        }
        switch.run(&format!("ip link set {port} master {network} up"))?;
        host.run(&format!("ip link set {device} up"))?;
        // A frame that XDP sends on has lost the mark "checksum still to be made", so every
        // sender makes its own; and a receiver of XDP frames needs NAPI, which GRO switches on.
        switch.run(&format!("ethtool -K {port} tx off gro on"))?;
        host.run(&format!("ethtool -K {device} tx off gro on"))?;
        Ok(())
    }

    /// The other end of every cable.
    pub fn switch(&self) -> Host {
        self.existing("switch")
    }

    /// Starts a program that ends with the lab, with its output in `log`.
    pub fn start(&self, mut command: Command, log: &Path) -> Result<u32> {
        use std::os::unix::process::CommandExt;
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A group of its own: Ctrl-C in the terminal is for us, who then end it in order.
        let child = command.process_group(0).spawn().with_context(|| format!("start {command:?}"))?;
        let pid = child.id();
        lock(&self.inner.state).children.push(child);
        Ok(pid)
    }

    /// Asks a started program to end (SIGTERM) and waits for it.
    pub fn stop(&self, pid: u32) -> Result<std::process::ExitStatus> {
        let mut child = self.take(pid)?;
        run(Command::new("kill").args(["-TERM", &pid.to_string()]))?;
        child.wait().with_context(|| format!("wait for process {pid}"))
    }

    /// Ends a started program as a crash would (SIGKILL) and waits for it.
    pub fn kill(&self, pid: u32) -> Result<()> {
        let mut child = self.take(pid)?;
        child.kill()?;
        child.wait().map(drop).with_context(|| format!("wait for process {pid}"))
    }

    fn take(&self, pid: u32) -> Result<Child> {
        let mut state = lock(&self.inner.state);
        let at = state.children.iter().position(|child| child.id() == pid).context("no such child")?;
        Ok(state.children.swap_remove(at))
    }

    /// Whether a started program still runs.
    pub fn is_running(&self, pid: u32) -> bool {
        let mut state = lock(&self.inner.state);
        let child = state.children.iter_mut().find(|child| child.id() == pid);
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Leaves namespaces and programs up when the lab goes; [`take_down_kept`] removes them.
    pub fn keep(&self) -> Result<()> {
        let mut state = lock(&self.inner.state);
        for namespace in &state.namespaces {
            std::fs::write(keep_mark(namespace), b"")?;
        }
        state.kept = true;
        Ok(())
    }

    /// A host that was made before.
    pub fn named(&self, name: &str) -> Host {
        self.existing(name)
    }

    fn existing(&self, name: &str) -> Host {
        Host { name: name.to_owned(), namespace: format!("{}{name}", self.inner.prefix) }
    }

    fn namespace(&self, name: &str) -> Result<Host> {
        let host = self.existing(name);
        // Noted first: what is half made is removed too.
        lock(&self.inner.state).namespaces.push(host.namespace.clone());
        run(Command::new("ip").args(["netns", "add", &host.namespace]))?;
        // No duplicate address detection: an address is usable at once.
        host.run("sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad'")?;
        host.run("ip link set lo up")?;
        Ok(host)
    }

    fn network(&self, network: &str) -> Result<()> {
        let mut state = lock(&self.inner.state);
        if state.networks.iter().any(|known| known == network) {
            return Ok(());
        }
        // Without snooping: no querier here would keep IPv6 neighbour discovery's groups alive.
        self.existing("switch").run(&format!("ip link add {network} up type bridge mcast_snooping 0"))?;
        state.networks.push(network.to_owned());
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.inner.take_down();
    }
}

impl Inner {
    fn take_down(&self) {
        let mut state = lock(&self.state);
        if state.kept {
            return;
        }
        for mut child in std::mem::take(&mut state.children) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in std::mem::take(&mut state.namespaces) {
            remove(&namespace);
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

impl Host {
    /// Name given to [`Lab::host`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its namespace, as `ip netns` lists it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A program inside this host. (`ip netns exec` would hide `/sys/fs/bpf`.)
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--").arg(program);
        command
    }

    /// Runs a shell line inside this host and returns what it prints.
    pub fn run(&self, line: &str) -> Result<String> {
        run(self.command("sh").args(["-c", line])).with_context(|| format!("on {}", self.name))
    }

    /// Adds a route, e.g. `203.0.113.0/24` through `10.0.0.1`.
    pub fn route(&self, destination: &str, via: IpAddr) -> Result<()> {
        self.run(&format!("ip route add {destination} via {via}")).map(drop)
    }

    /// Starts a thread inside this host; sockets that it opens stay there.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let host = self.clone();
        std::thread::spawn(move || {
            host.move_in();
            work()
        })
    }

    /// Does something inside this host and waits for it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.move_in();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn move_in(&self) {
        let path = PathBuf::from("/run/netns").join(&self.namespace);
        let entered = File::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?));
        if let Err(error) = entered {
            panic!("enter {}: {error}", path.display());
        }
    }
}

/// Whether this machine lets us build labs; the reason if not.
pub fn possible() -> std::result::Result<(), String> {
    let mut unshare = Command::new("unshare");
    run(unshare.args(["--net", "true"]))
        .map(drop)
        .map_err(|error| format!("no network namespaces: {error:#}"))
}

/// Removes what [`Lab::keep`] left up, with the programs inside. Returns how many namespaces.
pub fn take_down_kept() -> Result<usize> {
    let kept: Vec<_> = namespaces()?.into_iter().filter(|namespace| kept(namespace)).collect();
    kept.iter().for_each(|namespace| remove(namespace));
    Ok(kept.len())
}

/// Does not return once a signal has come: what fails from then on fails because of it, and the
/// process ends when everything is down.
pub fn stop_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn namespaces() -> Result<Vec<String>> {
    let list = run(Command::new("ip").args(["netns", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect())
}

/// Process that made a namespace.
fn owner(namespace: &str) -> Option<u32> {
    namespace.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn keep_mark(namespace: &str) -> PathBuf {
    PathBuf::from(format!("/run/{namespace}.keep"))
}

fn kept(namespace: &str) -> bool {
    keep_mark(namespace).exists()
}

/// Ends what runs inside a namespace and deletes it. Its veth pairs and programs go with it; what
/// agents pinned for it would not.
fn remove(namespace: &str) {
    let pids = run(Command::new("ip").args(["netns", "pids", namespace])).unwrap_or_default();
    let own = std::process::id().to_string();
    let others: Vec<&str> = pids.split_whitespace().filter(|pid| *pid != own).collect();
    if !others.is_empty() {
        let _ = run(Command::new("kill").arg("-KILL").args(&others));
    }
    let host = Host { name: namespace.to_owned(), namespace: namespace.to_owned() };
    if Path::new("/run/netns").join(namespace).exists() {
        let _ = host.within(|| pins::remove_from(Path::new(BPFFS)));
    }
    let _ = run(Command::new("ip").args(["netns", "delete", namespace]));
    let _ = std::fs::remove_file(keep_mark(namespace));
}

/// On SIGINT and SIGTERM takes every lab of this process down before it ends.
fn take_down_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            if wait_for_signal().is_err() {
                return;
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\ninterrupted: taking the namespaces down");
            for lab in lock(&LABS).iter().filter_map(Weak::upgrade) {
                lab.take_down();
            }
            std::process::exit(130);
        });
    });
}

fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        Ok(())
    })
}

/// Runs a program to its end; its complaint becomes the error.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The data of a lock whose holder may have panicked: cleaning up must go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
