//! Drives the engine: desired state and network changes in, tables and local routes out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lb_common::maps;
use lb_common::nat::Timeouts;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::engine::Engine;
use super::explain::backend_addrs;
use super::kernel::Attached;
use super::network::{Interface, Netlink, View};
use super::want::{self, Owner, Target};
use super::{Attach, Error, Options};
use crate::model::l4::{L4, Listener};
use crate::model::{ObjectId, Problem, Severity};

/// Changes of the network come in bursts; this long is waited for the rest of one.
const SETTLE: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_secs(1);
/// Ticks between verifying neighbours in use, and between sweeps of the NAT tables.
const VERIFY_TICKS: u32 = 15;
const SWEEP_TICKS: u32 = 5;

/// What the worker and the handle share.
pub struct Shared {
    engine: Mutex<Engine>,
    interfaces: Mutex<BTreeMap<String, Attached>>,
    problems: Mutex<Vec<Problem>>,
    nat_flows: AtomicUsize,
}

/// The task behind a handle.
pub struct Worker {
    shared: Arc<Shared>,
    netlink: Netlink,
    desired: watch::Receiver<Arc<L4>>,
    names: Vec<String>,
    attach: Attach,
    nat_ports: (u16, u16),
    /// Interfaces attached to by name; an interface that is made anew has a new index.
    attached: BTreeMap<String, u32>,
    devices: BTreeSet<u32>,
    view: View,
}

/// Loads, attaches and installs the first state, so that the caller knows it works.
pub async fn start(
    options: Options,
    desired: watch::Receiver<Arc<L4>>,
) -> Result<(Arc<Shared>, Worker), Error> {
    let Options { interfaces, attach, hash_key, nat_ports } = options;
    if nat_ports.0 == 0 || nat_ports.1 < nat_ports.0 {
        return Err(Error::NatPorts(nat_ports.0, nat_ports.1));
    }
    check_nat_ports(nat_ports);
    let netlink = Netlink::open()?;
    let names = if interfaces.is_empty() { netlink.default_interfaces().await? } else { interfaces };
    if names.is_empty() {
        return Err(Error::NoInterface);
    }
    let known = netlink.interfaces().await?;
    for name in &names {
        if !known.values().any(|interface| interface.name == *name) {
            let known: Vec<&str> = known.values().map(|interface| interface.name.as_str()).collect();
            return Err(Error::UnknownInterface { name: name.clone(), known: known.join(", ") });
        }
    }
    let hash_key = match hash_key {
        Some(key) => key,
        None => random_key()?,
    };
    let mut engine = Engine::load(hash_key, nat_ports)?;
    engine.kernel.attach_lookup()?;
    let shared = Arc::new(Shared {
        engine: Mutex::new(engine),
        interfaces: Mutex::default(),
        problems: Mutex::default(),
        nat_flows: AtomicUsize::new(0),
    });
    let mut worker = Worker {
        shared: Arc::clone(&shared),
        netlink,
        desired,
        names,
        attach,
        nat_ports,
        attached: BTreeMap::new(),
        devices: BTreeSet::new(),
        view: View::default(),
    };
    worker.netlink.adopt_local_routes().await;
    // Tables first: a packet that meets the program finds the VIPs in place.
    let installed = match worker.update().await {
        Ok(problems) => worker.attach_all().into_iter().next().map_or(Ok(problems), Err),
        Err(error) => Err(error),
    };
    let problems = match installed {
        Ok(problems) => problems,
        Err(error) => {
            // Without the program the host would swallow what the routes bring.
            worker.netlink.set_local_routes(&BTreeSet::new()).await;
            return Err(error);
        }
    };
    worker.publish(problems);
    Ok((shared, worker))
}

impl Worker {
    /// Runs until told to stop, then removes the routes and detaches.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(TICK);
        let mut ticks = 0u32;
        loop {
            tokio::select! {
                _ = &mut stop => break,
                changed = self.desired.changed() => if changed.is_err() { break },
                () = self.netlink.changed() => tokio::time::sleep(SETTLE).await,
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(VERIFY_TICKS) {
                        self.solicit(true).await;
                    }
                    if ticks.is_multiple_of(SWEEP_TICKS) {
                        self.sweep().await;
                    }
                    continue;
                }
            }
            let mut problems = match self.update().await {
                Ok(problems) => problems,
                Err(error) => {
                    warn!(%error, "network state not read; the old tables stay");
                    continue;
                }
            };
            problems.extend(self.attach_all().iter().map(not_attached));
            self.publish(problems);
        }
        self.netlink.set_local_routes(&BTreeSet::new()).await;
        self.shared.engine().kernel.detach();
        self.shared.lock_interfaces().clear();
    }

    /// Reads the network, plans and applies; gives what could not be installed.
    async fn update(&mut self) -> Result<Vec<Problem>, Error> {
        let l4 = Arc::clone(&self.desired.borrow_and_update());
        let view = self.netlink.view(&self.names, &backend_addrs(&l4)).await?;
        let (want, mut problems) = want::join(&l4, &view.network);
        problems.extend(want::shadowed(&want, self.nat_ports));
        self.allow_devices(&view);
        let punted: BTreeSet<IpAddr> = want
            .vips
            .iter()
            .filter(|(place, target)| {
                matches!(target, Target::Punt(_)) && want.addrs.get(&place.addr) == Some(&Owner::Vip)
            })
            .map(|(place, _)| place.addr)
            .collect();
        // A VIP that has a local route shows up among nobody's addresses: it stays a VIP.
        self.netlink.set_local_routes(&punted).await;
        let shared = Arc::clone(&self.shared);
        let applied = tokio::task::spawn_blocking(move || shared.engine().apply(want)).await;
        match applied {
            Ok(unplanned) => problems.extend(unplanned),
            // A panic in a pure plan: a defect of ours, which must not look like success.
            Err(error) => {
                tracing::error!(%error, "the change was not installed; please report this");
                problems.push(not_installed(&error));
            }
        }
        self.view = view;
        self.solicit(false).await;
        Ok(problems)
    }

    /// Shows problems in `status`; those that are new also go to the log.
    fn publish(&self, problems: Vec<Problem>) {
        let mut shown = self.shared.problems.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !shown.contains(problem)) {
            warn!(object = %problem.object, field = problem.field, fix = problem.fix, "{}", problem.message);
        }
        *shown = problems;
    }

    /// Attaches to every named interface that is there and not attached yet; one that fails does
    /// not keep the others from it.
    fn attach_all(&mut self) -> Vec<Error> {
        let named: Vec<&Interface> =
            self.view.interfaces.values().filter(|one| self.names.contains(&one.name)).collect();
        let mut failed = Vec::new();
        for interface in &named {
            let mut engine = self.shared.engine();
            engine.tables.store_interface(slot(interface), word(interface, &named));
            if self.attached.get(&interface.name) == Some(&interface.ifindex) {
                continue;
            }
            match attach(&mut engine, interface, self.attach) {
                Ok(mode) => {
                    info!(interface = interface.name, ?mode, "xdp program attached");
                    self.attached.insert(interface.name.clone(), interface.ifindex);
                    self.shared.lock_interfaces().insert(interface.name.clone(), mode);
                }
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    fn allow_devices(&mut self, view: &View) {
        self.devices.retain(|ifindex| view.interfaces.contains_key(ifindex));
        let ways = view.network.ways.values().flatten().map(|way| way.next_hop.ifindex);
        let own =
            view.interfaces.values().filter(|one| self.names.contains(&one.name)).map(|one| one.ifindex);
        for ifindex in ways.chain(own).filter(|ifindex| *ifindex != 0) {
            if self.devices.contains(&ifindex) {
                continue;
            }
            match self.shared.engine().kernel.allow_device(ifindex) {
                Ok(()) => {
                    self.devices.insert(ifindex);
                }
                Err(error) => warn!(%error, "packets cannot be redirected"),
            }
        }
    }

    async fn solicit(&self, all: bool) {
        for (ifindex, addr, resolved) in &self.view.neighbours {
            if all || !resolved {
                self.netlink.solicit(*ifindex, *addr).await;
            }
        }
    }

    async fn sweep(&self) {
        let shared = Arc::clone(&self.shared);
        let swept = tokio::task::spawn_blocking(move || {
            shared.engine().kernel.sweep(monotonic_units(), &Timeouts::default())
        });
        match swept.await {
            Ok(Ok((live, _))) => self.shared.nat_flows.store(live, Ordering::Relaxed),
            Ok(Err(error)) => warn!(%error, "translated flows not swept"),
            Err(_) => {}
        }
    }
}

/// Where the kernel program finds what it knows of an interface.
fn slot(interface: &Interface) -> usize {
    interface.ifindex as usize % maps::INTERFACES as usize
}

/// What it finds there. Interfaces that share a slot cannot have their MAC checked: the other's
/// frames would be taken for another host's.
fn word(interface: &Interface, named: &[&Interface]) -> u64 {
    if named.iter().any(|other| other.ifindex != interface.ifindex && slot(other) == slot(interface)) {
        return maps::NO_XDP_TX;
    }
    let mac = interface.mac.unwrap_or_default().word();
    if interface.veth { mac | maps::NO_XDP_TX } else { mac }
}

fn not_attached(error: &Error) -> Problem {
    Problem { reason: "not-attached", ..of_datapath(error.to_string()) }
}

fn not_installed(error: &tokio::task::JoinError) -> Problem {
    Problem { reason: "internal", ..of_datapath(format!("the last change was not installed: {error}")) }
}

fn of_datapath(message: String) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "datapath",
        field: String::new(),
        message,
        fix: String::new(),
    }
}

/// Native first where that is left to us.
fn attach(engine: &mut Engine, interface: &Interface, how: Attach) -> Result<Attached, Error> {
    let Interface { name, ifindex, .. } = interface;
    if how != Attach::Generic {
        match engine.kernel.attach(name, *ifindex, Attached::Native) {
            Ok(()) => return Ok(Attached::Native),
            Err(error) if how == Attach::Native => return Err(error),
            Err(error) => warn!(
                interface = name,
                %error,
                "no XDP in the driver, falling back to the stack: slower, and GRO on this interface \
                 must be off (ethtool -K {name} gro off)"
            ),
        }
    }
    engine.kernel.attach(name, *ifindex, Attached::Generic)?;
    Ok(Attached::Generic)
}

impl Shared {
    /// The engine, locked.
    pub fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_interfaces(&self) -> MutexGuard<'_, BTreeMap<String, Attached>> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interfaces and how the program sits on them.
    pub fn interfaces(&self) -> BTreeMap<String, Attached> {
        self.lock_interfaces().clone()
    }

    /// Problems of the last update.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Translated flows at the last sweep.
    pub fn nat_flows(&self) -> usize {
        self.nat_flows.load(Ordering::Relaxed)
    }

    /// See [`super::Handle::set_listeners`].
    pub fn set_listeners<F: AsFd>(&self, listeners: &[(Listener, usize, F)]) -> Result<(), Error> {
        let mut engine = self.engine();
        let mut workers = 0;
        for (listener, worker, socket) in listeners {
            let slot = u32::try_from(*worker).unwrap_or(u32::MAX);
            if slot >= maps::SOCKETS_PER_CLASS {
                warn!(worker, "this worker gets no punted connections: too many workers");
                continue;
            }
            workers = workers.max(slot + 1);
            let https = *listener == Listener::Https;
            for ipv6 in families(socket).map_err(|source| Error::System {
                call: "inspect",
                object: format!("{listener:?} listener of worker {worker}"),
                source,
                hint: "",
            })? {
                engine.kernel.set_socket(maps::socket_index(https, *ipv6, slot), socket)?;
            }
        }
        engine.set_workers(u16::try_from(workers).unwrap_or(0));
        Ok(())
    }
}

/// Which families a listening socket serves; `true` is IPv6.
fn families(socket: &impl AsFd) -> io::Result<&'static [bool]> {
    let socket = socket2::SockRef::from(socket);
    let addr = socket.local_addr()?;
    if addr.is_ipv4() {
        return Ok(&[false]);
    }
    Ok(if socket.only_v6()? { &[true] } else { &[false, true] })
}

/// The program's unit of time: the coarse monotonic clock, 2^30 ns to one.
fn monotonic_units() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    ((now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64) >> 30) as u32
}

fn random_key() -> Result<[u8; 16], Error> {
    let path = "/dev/urandom";
    let mut key = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut key))
        .map_err(|source| Error::System { call: "read", object: path.to_owned(), source, hint: "" })?;
    Ok(key)
}

/// Ports that the host's own connections may use must not be translated to.
fn check_nat_ports((first, last): (u16, u16)) {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let mut ends = text.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    if let (Some(low), Some(high)) = (ends.next(), ends.next())
        && first <= high
        && low <= last
    {
        warn!(
            nat_ports = format!("{first}-{last}"),
            local_ports = format!("{low}-{high}"),
            "the SNAT ports overlap net.ipv4.ip_local_port_range: connections of this host to a \
             backend may collide with translated ones"
        );
    }
}
