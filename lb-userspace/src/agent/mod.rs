//! Where the rooms meet: starts them, carries values between them, and stops them in order.
//!
//! Nothing is decided here about objects, packets or requests; the flow of values is
//! `manifests or cluster -> translate -> { datapath, l7 }`, each step a `watch` channel of immutable values.

mod announcing;
mod capture;
mod certificates;
mod checks;
mod desired;
mod endpoint;
mod error;
mod fingerprint;
mod former;
mod live;
mod logging;
mod metrics;
mod notify;
pub mod offline;
mod options;
mod predecessor;
mod process;
pub mod question;
mod review;
mod running;
mod source;
mod status;
mod successor;
mod trouble;
mod waiting;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{Config, DatapathMode, OnExit};
use crate::drain::{Request, Signals};
use crate::export::Exporter;
use crate::objects::Loaded;
use crate::takeover::{Listener, Peer, Successor};
use crate::{admin, datapath, dns, health_port, l7, panics, translate};

use desired::Desired;
use endpoint::Endpoint;
pub use error::StartError;
use live::{Health, LiveAgent};
pub(crate) use logging::error_mark;
use notify::Notify;
use predecessor::Before;
use review::Reviews;
use running::Running;
use source::{Reporter, Source};
use successor::Outcome;
use waiting::Waiting;

/// Runs until a signal ends it.
pub fn run(config: Config) -> Result<(), StartError> {
    logging::start();
    panics::end_the_process();
    // So many that workers seldom wait for each other.
    datapath::share_heaps(config.workers.saturating_add(1));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("penstock-agent")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    runtime.block_on(serve(config))
}

/// Removes what agents left in the kernel for this network namespace.
pub fn detach(bpffs: Option<&std::path::Path>) -> Result<datapath::Detached, StartError> {
    logging::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(StartError::Runtime)?.block_on(datapath::detach(bpffs)).map_err(StartError::Detach)
}

/// Open files that are too few for an edge: a thousand clients at once.
const FEW_DESCRIPTORS: u64 = 4096;

/// The story of a process: start, follow changes, and end by draining or by leaving everything to a successor.
async fn serve(config: Config) -> Result<(), StartError> {
    for flag in &config.idle_flags {
        info!(flag = flag.name, instead = flag.instead, "a flag of ingress-nginx that changes nothing here");
    }
    for flag in beside_manifests(&config) {
        warn!(flag, "objects are read from --manifests; a flag about the cluster changes nothing beside it");
    }
    takes_files(&config.temp_dir)?;
    let descriptors = l7::raise_descriptor_limit();
    if descriptors < FEW_DESCRIPTORS {
        warn!(
            descriptors,
            "few files may be open, and each client takes two; raise the hard limit (LimitNOFILE, ulimit -Hn)"
        );
    }
    let mut signals = Signals::take_over().map_err(StartError::Runtime)?;
    let Some(mut started) = start(config, &mut signals).await? else { return Ok(()) };
    let (end, meeting) = started.follow(&mut signals).await;
    started.end(end, meeting, &mut signals).await;
    Ok(())
}

/// What says how a cluster is read, where none is.
fn beside_manifests(config: &Config) -> impl Iterator<Item = &'static str> {
    let cluster = &config.cluster;
    let given = [
        ("kubeconfig", cluster.kubeconfig.is_some()),
        ("apiserver-host", cluster.apiserver_host.is_some()),
        ("certificate-authority", cluster.certificate_authority.is_some()),
        ("watch-namespace", cluster.namespace.is_some()),
        ("watch-namespace-selector", cluster.namespace_selector.is_some()),
    ];
    let nothing_else = config.manifests.is_some();
    given.into_iter().filter(move |(_, given)| nothing_else && *given).map(|(flag, _)| flag)
}

/// Whether long bodies can be put there, before the first client finds out. A disk that is full now may be emptied.
fn takes_files(dir: &Path) -> Result<(), StartError> {
    match tempfile::tempfile_in(dir) {
        Ok(_) => Ok(()),
        Err(source) if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            warn!(dir = %dir.display(), error = %source, "bodies cannot be put into temporary files (--temp-dir)");
            Ok(())
        }
        Err(source) => Err(StartError::TempDir { dir: dir.to_owned(), source }),
    }
}

/// An agent that serves, and what it hears of.
struct Started {
    agent: Arc<Running>,
    source: Source,
    options: translate::Options,
    /// The agent before us, until we have proven ourselves.
    before: Before,
    visitors: mpsc::Receiver<Successor>,
    notify: Notify,
    reporter: Option<Arc<Reporter>>,
    health_ports: Option<health_port::Handle>,
    _reviews: Option<Reviews>,
}

/// Reads, translates, takes over or listens, attaches and answers. `None`: a signal ended it before anything was
/// known.
async fn start(config: Config, signals: &mut Signals) -> Result<Option<Started>, StartError> {
    let notify = Notify::new(config.notify.clone());
    let options = options::of_process(&config);
    let mut source = Source::open(&config, &options).await?;
    let options = translate::Options { writer: source.writer(&config), ..options };
    let early = early_endpoint(&config, &source)?;
    let loaded = tokio::select! {
        loaded = source.first() => loaded,
        signal = signals.end() => {
            info!(signal, "ended before anything was known");
            return Ok(None);
        }
    };
    // The agent before us is asked when our own input is known to be good.
    let mut before = Before::find(&config, source.unread()).await?;
    let loaded = match before.documents() {
        documents if documents.is_empty() => loaded,
        documents => source.adopt(former::read(documents)).await,
    };
    let (generation, takeovers) = before.so_far();
    let desired = Desired::new(&loaded, &options, generation + 1);

    let (sockets, streams, inherited) = before.sockets(config.admin);
    let proxy = l7::Proxy::inherit(options::of_proxy(&config, before.ticket_keys()), sockets, streams)?;
    let taken = proxy.taken().clone();
    let admin = endpoint(&config, inherited, early).await?;
    let admin_addr = admin.addr().map_err(|source| StartError::Admin { addr: config.admin, source })?;
    let reviews = review::start(&config, &source, desired.state.subscribe(), options.clone())?;
    // Nobody should be answered 503 because a name was not looked up yet.
    let l7 = dns::start(desired.l7.subscribe(), dns::Files::default()).await;
    // Nearly last of what can fail, because it changes the host.
    if config.datapath != DatapathMode::Off {
        before.let_go().await?;
    }
    let datapath = start_datapath(&config, &desired, &proxy.listeners()).await?;
    let exporter = Exporter::start(l7.clone());
    let proxy = match proxy.handing_spans_to(exporter.sink()).start(l7.clone()) {
        Ok(proxy) => Arc::new(proxy),
        Err(error) => {
            match &datapath {
                Some(datapath) if before.is_there() => drop(datapath.let_go().await),
                datapath => stop_datapath(datapath.as_deref()).await,
            }
            return Err(error.into());
        }
    };

    let reporter = source.reporter(&config);
    let announcer = announcing::start(&config, &desired, before.is_there(), datapath.as_deref()).await?;
    let parts = live::Parts {
        source: source.name.clone(),
        proxy: Arc::clone(&proxy),
        prober: checks::start(l7.clone(), before.unwell(), &proxy),
        exporter,
        datapath,
        told: live::InForce { state: desired.state.subscribe(), l7 },
        certificates: certificates::watch(desired.state.subscribe()),
        failures: Arc::clone(&desired.failures),
        takeovers,
        reporter: reporter.clone(),
        announcer,
    };
    let live = Arc::new(LiveAgent::new(&config, parts));
    if let Some(reviews) = &reviews {
        live.count_reviews(Arc::clone(&reviews.counts));
    }
    let (visits, visitors) = mpsc::channel(1);
    let (ending, listener) = (watch::Sender::new(false), Mutex::default());
    let agent =
        Arc::new(Running { config, desired, proxy, live, admin, takeovers, ending, visits, listener });
    before.serving(&agent, &taken).await?;
    agent.live.set_health(Health::Serving);
    agent.admin.start(agent.live.clone());
    let health_ports = (agent.config.datapath != DatapathMode::Off).then(|| {
        let live = Arc::clone(&agent.live);
        let is_well = move || admin::Live::health(&*live).is_ok();
        health_port::start(agent.desired.l4.subscribe(), Arc::new(is_well))
    });
    agent.accept_successors(if before.is_there() { Listener::succeed } else { Listener::bind });
    source.follow();
    announce(&agent, &source.name, admin_addr);
    tell(reporter.as_deref(), &loaded, &agent);
    if !before.is_there() {
        notify.ready();
    }
    Ok(Some(Started {
        agent,
        source,
        options,
        before,
        visitors,
        notify,
        reporter,
        health_ports,
        _reviews: reviews,
    }))
}

/// Answers whoever watches the process from the beginning, unless the agent before us does.
fn early_endpoint(config: &Config, source: &Source) -> Result<Option<Endpoint>, StartError> {
    let refused = |source| StartError::Admin { addr: config.admin, source };
    let early = match admin::bind(config.admin) {
        Err(_) if config.takeover => return Ok(None),
        bound => Endpoint::new(bound.map_err(refused)?),
    };
    let admin = early.addr().map_err(refused)?;
    info!(%admin, source = source.name, "starting");
    early.start(Waiting::new(config, source.awaited()));
    Ok(Some(early))
}

/// The endpoint that is to answer for a serving agent, silent yet.
async fn endpoint(
    config: &Config,
    inherited: Option<TcpListener>,
    early: Option<Endpoint>,
) -> Result<Endpoint, StartError> {
    match (inherited, early) {
        (Some(inherited), _) => Ok(Endpoint::new(inherited)),
        (None, Some(early)) => {
            early.stop().await;
            Ok(early)
        }
        (None, None) => {
            let bound = admin::bind(config.admin);
            Ok(Endpoint::new(bound.map_err(|source| StartError::Admin { addr: config.admin, source })?))
        }
    }
}

impl Started {
    /// Follows changes and lets successors in until it is to end. Where it is told to end during a takeover, what
    /// becomes of that is left with the end.
    async fn follow(&mut self, signals: &mut Signals) -> (End, Option<JoinHandle<Outcome>>) {
        let Self { agent, source, options, before, visitors, notify, reporter, .. } = self;
        let mut started = None;
        let mut succession: Option<(Peer, JoinHandle<Outcome>)> = None;
        let end = loop {
            tokio::select! {
                request = signals.next() => match (request, &succession) {
                    (Request::End(signal), _) => break End::Told(signal),
                    // Who takes over from us may be taken over from as well.
                    (Request::Replace, Some((peer, _))) => successor::pass_on(*peer),
                    // Its end would be the end of the container, and of the successor in it.
                    (Request::Replace, None) if std::process::id() == 1 => {
                        warn!("process 1 cannot be replaced; have the container replaced");
                    }
                    (Request::Replace, None) if started.is_some() => info!("a successor starts already"),
                    (Request::Replace, None) => match successor::launch(&agent.config) {
                        Ok(child) => {
                            notify.reloading();
                            started = Some(child);
                        }
                        Err(error) => error!(%error, "no successor could be started"),
                    },
                },
                changed = source.loaded.changed() => {
                    if changed.is_err() {
                        // Whoever follows only ends with the last receiver, which we hold.
                        break End::Told("the end of the source");
                    }
                    let now = source.loaded.borrow_and_update().clone();
                    agent.desired.update(&now, options).await;
                    tell(reporter.as_deref(), &now, agent);
                }
                Some(mut successor) = visitors.recv() => {
                    if succession.is_some() {
                        let reason = "another one is taking over".to_owned();
                        tokio::spawn(async move { successor.refuse(reason).await });
                        continue;
                    }
                    // It would not be there if we had not proven ourselves.
                    before.settle().await;
                    agent.proxy.forget_before();
                    let peer = successor.peer();
                    succession = Some((peer, tokio::spawn(successor::meet(Arc::clone(agent), successor))));
                }
                outcome = outcome(&mut succession) => {
                    succession = None;
                    match outcome {
                        Outcome::Succeeded(peer) => break End::Succeeded(peer),
                        Outcome::Kept => notify.kept(),
                    }
                }
                status = ended(&mut started) => {
                    started = None;
                    if succession.is_none() {
                        warn!(%status, "the successor ended; this agent goes on");
                        notify.kept();
                    }
                }
                () = before.probation() => {
                    before.settle().await;
                    agent.proxy.forget_before();
                }
            }
        };
        (end, succession.map(|(_, meeting)| meeting))
    }

    async fn end(mut self, end: End, meeting: Option<JoinHandle<Outcome>>, signals: &mut Signals) {
        let (agent, reporter) = (&self.agent, &self.reporter);
        match end {
            End::Succeeded(peer) => {
                self.notify.succeeded(peer.pid);
                // It hears of no change any more; the successor answers.
                drop(self.health_ports);
                // The successor is who we were.
                reporter.iter().for_each(|reporter| reporter.leave());
                agent.live.announcer().hush().await;
                agent.retire(signals).await;
            }
            End::Told(signal) => {
                info!(signal, seconds = agent.deadline().as_secs(), "draining");
                self.notify.stopping();
                self.before.settle().await;
                agent.live.set_health(Health::Draining);
                let farewell = async {
                    if let Some(reporter) = reporter {
                        reporter.end().await;
                    }
                };
                tokio::join!(farewell, agent.drain(meeting, signals));
            }
        }
    }
}

/// Tells the cluster, where there is one, what came of its newest state.
fn tell(reporter: Option<&Reporter>, loaded: &Arc<Loaded>, agent: &Running) {
    if let Some(reporter) = reporter {
        reporter.report(loaded, &agent.desired.state.borrow());
    }
}

/// Why an agent ends.
enum End {
    /// By a signal of this name.
    Told(&'static str),
    /// This process serves in its place.
    Succeeded(Peer),
}

/// Resolves when a meeting with a successor has an outcome; never without one.
async fn outcome(succession: &mut Option<(Peer, JoinHandle<Outcome>)>) -> Outcome {
    match succession {
        Some((_, meeting)) => meeting.await.unwrap_or_else(|error| {
            error!(%error, "the takeover failed; please report this");
            Outcome::Kept
        }),
        None => std::future::pending().await,
    }
}

/// Resolves when the successor that was started has ended; never without one.
async fn ended(started: &mut Option<oneshot::Receiver<std::io::Result<ExitStatus>>>) -> String {
    match started {
        Some(child) => match child.await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        },
        None => std::future::pending().await,
    }
}

async fn start_datapath(
    config: &Config,
    desired: &Desired,
    listeners: &[(crate::model::l4::Listener, usize, impl AsFd)],
) -> Result<Option<Arc<datapath::Handle>>, StartError> {
    let attach = match config.datapath {
        DatapathMode::Off => return Ok(None),
        DatapathMode::Auto => datapath::Attach::Auto,
        DatapathMode::Native => datapath::Attach::Native,
        DatapathMode::Generic => datapath::Attach::Generic,
    };
    let options = datapath::Options {
        interfaces: config.interfaces.clone(),
        wait_interfaces: config.wait_interfaces,
        attach,
        hash_key: config.hash_key.map(|key| key.0),
        nat_ports: config.nat_ports,
        flow_entries: config.flow_entries,
        grace: config.grace,
        tunnel_port: config.tunnel_port,
        pin: config.pin.clone(),
        on_exit: match config.on_exit {
            OnExit::Keep => datapath::OnExit::Keep,
            OnExit::Detach => datapath::OnExit::Detach,
        },
    };
    let datapath = datapath::spawn(options, desired.l4.subscribe(), desired.in_force.clone()).await?;
    if let Err(error) = datapath.set_listeners(listeners) {
        datapath.shutdown().await;
        return Err(error.into());
    }
    Ok(Some(Arc::new(datapath)))
}

async fn stop_datapath(datapath: Option<&datapath::Handle>) {
    if let Some(datapath) = datapath {
        datapath.shutdown().await;
    }
}

/// What a colleague at the terminal wants to see before anything else.
fn announce(agent: &Running, source: &str, admin: std::net::SocketAddr) {
    let config = &agent.config;
    for (listener, addr) in agent.proxy.addrs() {
        info!(?listener, %addr, workers = config.workers, "listening");
    }
    let datapath = agent.live.datapath().is_some();
    info!(%admin, source, datapath, pid = std::process::id(), "ready");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_takes_no_body_is_refused_by_its_flag_and_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("written");

        takes_files(dir.path()).expect("taken");
        for no_directory in [missing, file] {
            let refused = takes_files(&no_directory).expect_err("refused");

            assert_eq!(refused.exit_code(), 64);
            assert!(refused.to_string().starts_with(&format!("--temp-dir {}: ", no_directory.display())));
        }
    }
}
