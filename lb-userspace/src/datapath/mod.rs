//! The kernel edge: takes the L4 desired state to the XDP program's tables and follows the
//! network's changes. No Kubernetes, no HTTP.
//!
//! Reading order: [`want`] (what should be there) -> [`plan`] (pure diff) -> [`memory`] (stores);
//! [`network`] and [`kernel`] are the two system interfaces, [`worker`] drives them, [`walk`] and
//! [`explain`] read the tables back with the kernel's arithmetic.

mod backoff;
pub mod capture;
mod choice;
mod detach;
mod devices;
pub mod engine;
pub mod exhaustion;
pub mod explain;
mod forwarding;
pub mod held;
mod interfaces;
pub mod kernel;
pub mod layout;
mod listeners;
pub mod maglev;
pub mod memory;
mod mmap;
pub mod network;
mod outside;
pub mod pins;
pub mod plan;
mod problems;
pub mod regions;
pub mod rehearsal;
mod shortcuts;
pub mod simulate;
pub mod slots;
pub mod status;
mod tally;
pub mod walk;
pub mod want;
mod worker;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::model::Problem;
use crate::model::capture::Filter;
use crate::model::l4::{FiveTuple, InForce, L4, Listener};
use crate::model::report::{Explanation, Metric};

pub use detach::{Detached, detach};
pub use kernel::{Attached, Banks, Formers};
pub use mmap::share_heaps;
pub use status::Status;

/// How to run the datapath.
#[derive(Debug, Clone)]
pub struct Options {
    /// Interfaces to attach to, each a name or a start of names with a trailing `*` or `+`;
    /// empty: those of the default routes. They may come, go and come back.
    pub interfaces: Vec<String>,
    /// Start without any of them; otherwise one has to be there.
    pub wait_interfaces: bool,
    /// Where to attach.
    pub attach: Attach,
    /// Secret of the flow hash, shared by all balancers of a cluster; `None`: a random one.
    pub hash_key: Option<[u8; 16]>,
    /// First and last port of the SNAT range, outside `net.ipv4.ip_local_port_range`.
    pub nat_ports: (u16, u16),
    /// Flows remembered at most; rounded up to a power of two from 8 to 1,048,576.
    pub flow_entries: u32,
    /// How long a slot stays contested after a change at least.
    pub grace: Duration,
    /// UDP port of the tunnel between balancers; 0: none.
    pub tunnel_port: u16,
    /// BPF file system on which the kernel part outlives us; `None`: it does not.
    pub pin: Option<PathBuf>,
    /// What becomes of it when we are told to stop.
    pub on_exit: OnExit,
}

/// What becomes of the kernel part when the agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// It goes on forwarding, if it is pinned: for the next agent.
    Keep,
    /// It is removed.
    Detach,
}

/// Where to attach the XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// In the driver, else in the stack with a warning.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack.
    Generic,
}

/// Why the datapath cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built without the kernel object.
    #[error("the kernel object was not built; run `cargo xtask build-ebpf`, then build again")]
    NotBuilt,
    /// Counters are kept for fewer.
    #[error("this host may have {0} CPUs; the kernel part counts on {max} at most, start with --datapath off", max = lb_common::maps::CPUS)]
    TooManyCpus(usize),
    /// A map or program is missing in the object or has another type.
    #[error("the kernel object has no usable {0}; it belongs to another version")]
    Object(&'static str),
    /// The kernel refused a program or a map.
    #[error("load {program}: {}", kernel::refusal::told(source.as_ref()))]
    Load {
        /// Which.
        program: &'static str,
        /// Why.
        source: Box<aya::EbpfError>,
    },
    /// A system call failed.
    #[error("{call} {object}: {source}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    System {
        /// What was tried.
        call: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
        /// What an operator can do; may be empty.
        hint: &'static str,
    },
    /// None of the named interfaces exists.
    #[error("interface {name} does not exist; there are: {known}; --wait-interfaces starts without")]
    UnknownInterface {
        /// As given.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// No interface was named and none has a default route.
    #[error("no interface has a default route; name one with --interface, or start with --wait-interfaces")]
    NoInterface,
    /// The datapath of a network namespace belongs to one agent.
    #[error("another agent runs the datapath of this network namespace; stop it first")]
    Running,
    /// The SNAT range is empty.
    #[error("nat ports {0}-{1}: the range is empty; allowed: FIRST-LAST, 1 to 65535")]
    NatPorts(u16, u16),
}

impl Error {
    /// Something is there already, as another program on an interface.
    pub(crate) fn is_in_the_way(&self) -> bool {
        let Self::System { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
    }
}

/// The running datapath.
pub struct Handle {
    shared: Arc<worker::Shared>,
    stop: std::sync::Mutex<Option<(oneshot::Sender<Stop>, tokio::task::JoinHandle<()>)>>,
}

/// How the datapath is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// As [`Options::on_exit`] says.
    AsChosen,
    /// Another process goes on with it.
    LetGo,
}

/// Loads the programs, attaches them and follows `desired` until [`Handle::shutdown`]; tells what is `in_force` then. Needs
/// a tokio runtime.
pub async fn spawn(
    options: Options,
    desired: watch::Receiver<Arc<L4>>,
    in_force: watch::Sender<Arc<InForce>>,
) -> Result<Handle, Error> {
    let (shared, worker) = worker::start(options, desired, in_force).await?;
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(worker.run(stopped));
    Ok(Handle { shared, stop: std::sync::Mutex::new(Some((stop, task))) })
}

/// Has the host's own ARP leave VIPs to whoever announces them on this interface.
pub fn quiet_arp(interface: &str) -> std::io::Result<()> {
    network::quiet_arp(interface)
}

impl Handle {
    /// Gives the workers' listening sockets to the kernel: (listener, worker, socket), workers
    /// counted from 0. A dual-stack IPv6 socket serves both families.
    pub fn set_listeners<F: AsFd>(&self, listeners: &[(Listener, usize, F)]) -> Result<(), Error> {
        self.shared.set_listeners(listeners)
    }

    /// Where a flow goes and why, by the tables in force.
    pub fn explain(&self, flow: FiveTuple) -> Explanation {
        self.shared.engine().explain(flow)
    }

    /// What tells the kernel of the former holders of announced VIPs.
    pub fn formers(&self) -> Result<Formers, Error> {
        self.shared.engine().kernel.formers()
    }

    /// Counters for Prometheus.
    pub fn metrics(&self) -> Vec<Metric> {
        let translated = self.shared.translated();
        let mut metrics = status::metrics(&self.shared.engine(), &self.shared.interfaces(), translated);
        metrics.extend(status::upkeep_metrics(&self.shared.problems(), &self.shared.restored()));
        metrics
    }

    /// State for `penstock status`.
    pub fn status(&self) -> Status {
        let translated = self.shared.translated();
        status::status(&self.shared.engine(), &self.shared.interfaces(), translated)
    }

    /// Begins to show packets; see [`capture`].
    pub fn capture(&self, filter: &Filter) -> Result<capture::Capture, capture::Error> {
        capture::Capture::start(Arc::clone(&self.shared), filter)
    }

    /// What of the desired state could not be installed.
    pub fn problems(&self) -> Vec<Problem> {
        self.shared.problems()
    }

    /// Stops; what then becomes of the kernel part, [`Options::on_exit`] says. Later calls do
    /// nothing.
    pub async fn shutdown(&self) {
        self.stop(Stop::AsChosen).await;
    }

    /// Leaves everything in the kernel to another process, which may start its datapath as soon as
    /// this returns; from then on this one changes nothing. False, and nothing is done, where the
    /// kernel part would not outlive this process.
    pub async fn let_go(&self) -> bool {
        if !self.shared.engine().kernel.is_pinned() {
            return false;
        }
        self.stop(Stop::LetGo).await;
        self.shared.engine().let_go();
        true
    }

    async fn stop(&self, how: Stop) {
        let running = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, task)) = running {
            let _ = stop.send(how);
            let _ = task.await;
        }
    }
}
