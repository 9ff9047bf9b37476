//! Where the rooms meet: starts them, carries values between them, and stops them in order.
//!
//! Nothing is decided here about objects, packets or requests; the flow of values is
//! `manifests -> translate -> { datapath, l7 }`, each step a `watch` channel of immutable values.

mod announcing;
mod capture;
mod checks;
mod endpoint;
mod error;
mod live;
mod metrics;
mod notify;
pub mod offline;
mod predecessor;
mod process;
pub mod question;
mod review;
mod running;
mod source;
mod status;
mod successor;
mod waiting;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use imbl::ordset::DiffItem;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{Config, DatapathMode, OnExit, SnippetPolicy, TranslateConfig};
use crate::drain::{Request, Signals};
use crate::model::pool::Given;
use crate::model::{ObjectName, Problems, Severity, Snapshot};
use crate::objects::{Kept, Loaded, Objects};
use crate::takeover::Peer;
use crate::translate::{Classes, Translated, Translator};
use crate::{admin, datapath, dns, health_port, l7, translate};

use endpoint::Endpoint;
pub use error::StartError;
use live::{Health, LiveAgent};
use notify::Notify;
use predecessor::Before;
use running::Running;
use source::{Reporter, Source};
use successor::Outcome;
use waiting::Waiting;

/// Runs until a signal ends it.
pub fn run(config: Config) -> Result<(), StartError> {
    start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("penstock-agent")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    runtime.block_on(serve(config))
}

/// Removes what agents left in the kernel for this network namespace; returns where it was pinned.
pub fn detach(bpffs: &std::path::Path) -> Result<std::path::PathBuf, StartError> {
    start_logging();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(StartError::Runtime)?.block_on(datapath::detach(bpffs))?)
}

/// The story of a process: read, translate, take over or listen, attach, answer, follow changes, and
/// end by draining or by leaving everything to a successor.
async fn serve(config: Config) -> Result<(), StartError> {
    for flag in &config.idle_flags {
        info!(flag = flag.name, instead = flag.instead, "a flag of ingress-nginx that changes nothing here");
    }
    let mut signals = Signals::take_over().map_err(StartError::Runtime)?;
    let notify = Notify::new(config.notify.clone());
    let options = translate_options(&config);
    let mut source = Source::open(&config, &options).await?;
    // Who watches the process is answered from the beginning, unless the agent before us answers.
    let refused = |source| StartError::Admin { addr: config.admin, source };
    let early = match admin::bind(config.admin) {
        Err(_) if config.takeover => None,
        bound => Some(Endpoint::new(bound.map_err(refused)?)),
    };
    if let Some(early) = &early {
        let admin = early.addr().map_err(refused)?;
        info!(%admin, source = source.name, "starting");
        early.start(Waiting::new(&config, source.awaited()));
    }
    let loaded = tokio::select! {
        loaded = source.first() => loaded,
        signal = signals.end() => {
            info!(signal, "ended before anything was known");
            return Ok(());
        }
    };
    // The agent before us is asked when our own input is known to be good.
    let mut before = Before::find(&config).await?;
    let (generation, takeovers) = before.so_far();
    let desired = Desired::new(&loaded, &options, generation + 1);

    let (sockets, admin) = before.sockets(config.admin);
    let options_of_proxy = l7::Options {
        http: config.http.clone(),
        https: config.https.clone(),
        workers: config.workers,
        ticket_keys: before.ticket_keys(),
        temp: l7::Temp { dir: config.temp_dir.clone(), bytes: config.temp_bytes },
        metering: config.metering.clone(),
    };
    let proxy = l7::Proxy::inherit(options_of_proxy, sockets)?;
    let taken = proxy.taken().clone();
    let admin = match (admin, early) {
        (Some(inherited), _) => Endpoint::new(inherited),
        (None, Some(early)) => {
            early.stop().await;
            early
        }
        (None, None) => Endpoint::new(admin::bind(config.admin).map_err(refused)?),
    };
    let admin_addr = admin.addr().map_err(refused)?;
    let reviews = review::start(&config, &source, desired.state.subscribe(), options.clone())?;
    // Nobody should be answered 503 because a name was not looked up yet.
    let l7 = dns::start(desired.l7.subscribe(), dns::Files::default()).await;
    // Nearly last of what can fail, because it changes the host.
    if config.datapath != DatapathMode::Off {
        before.let_go().await?;
    }
    let datapath = start_datapath(&config, &desired, &proxy.listeners()).await?;
    let proxy = match proxy.start(l7.clone()) {
        Ok(proxy) => Arc::new(proxy),
        Err(error) => {
            match &datapath {
                Some(datapath) if before.is_there() => drop(datapath.let_go().await),
                datapath => stop_datapath(datapath.as_deref()).await,
            }
            return Err(error.into());
        }
    };

    let state = desired.state.subscribe();
    let prober = checks::start(l7.clone(), &proxy);
    let reporter = source.reporter(&config);
    let parts = live::Parts {
        source: source.name.clone(),
        proxy: Arc::clone(&proxy),
        prober,
        datapath,
        told: live::InForce { state, l7 },
        failures: Arc::clone(&desired.failures),
        takeovers,
        reporter: reporter.clone(),
        announcer: announcing::start(&config, &desired, before.is_there()).await?,
    };
    let live = Arc::new(LiveAgent::new(&config, parts));
    if let Some(reviews) = &reviews {
        live.count_reviews(Arc::clone(&reviews.counts));
    }
    let (visits, mut visitors) = mpsc::channel(1);
    let ending = watch::Sender::new(false);
    let listener = Mutex::default();
    let agent =
        Arc::new(Running { config, desired, proxy, live, admin, takeovers, ending, visits, listener });
    before.serving(&agent, &taken).await?;
    agent.live.set_health(Health::Serving);
    agent.admin.start(agent.live.clone());
    let hop = (agent.config.datapath != DatapathMode::Off).then(|| {
        let live = Arc::clone(&agent.live);
        health_port::start(
            agent.desired.l4.subscribe(),
            Arc::new(move || admin::Live::health(&*live).is_ok()),
        )
    });
    agent.open_door(before.is_there());
    source.follow();
    announce(&agent, &source.name, admin_addr);
    tell(reporter.as_deref(), &loaded, &options, &agent).await;
    if !before.is_there() {
        notify.ready();
    }

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
                agent.desired.update(&now, &options).await;
                tell(reporter.as_deref(), &now, &options, &agent).await;
            }
            Some(mut successor) = visitors.recv() => {
                if succession.is_some() {
                    let reason = "another one is taking over".to_owned();
                    tokio::spawn(async move { successor.refuse(reason).await });
                    continue;
                }
                // It would not be there if we had not proven ourselves.
                before.settle().await;
                let peer = successor.peer();
                succession = Some((peer, tokio::spawn(successor::meet(Arc::clone(&agent), successor))));
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
            () = before.probation() => before.settle().await,
        }
    };

    match end {
        End::Succeeded(peer) => {
            notify.succeeded(peer.pid);
            // It hears of no change any more; the successor answers.
            drop(hop);
            // The successor is who we were.
            reporter.iter().for_each(|reporter| reporter.leave());
            agent.live.announcer().hush().await;
            agent.retire(&mut signals).await;
        }
        End::Told(signal) => {
            info!(signal, seconds = agent.deadline().as_secs(), "draining");
            notify.stopping();
            before.settle().await;
            agent.live.set_health(Health::Draining);
            // Packets come by others from now on; flows that run go on there.
            agent.live.announcer().leave().await;
            let farewell = async {
                if let Some(reporter) = &reporter {
                    reporter.end().await;
                }
            };
            tokio::join!(farewell, agent.drain(succession.map(|(_, meeting)| meeting), &mut signals));
        }
    }
    Ok(())
}

/// Tells the cluster, where there is one, what came of its newest state.
async fn tell(
    reporter: Option<&Reporter>,
    loaded: &Arc<Loaded>,
    options: &translate::Options,
    agent: &Running,
) {
    let Some(reporter) = reporter else { return };
    let state = Arc::clone(&agent.desired.state.borrow());
    let (objects, options) = (Arc::clone(loaded), options.clone());
    let served = tokio::task::spawn_blocking(move || -> BTreeSet<ObjectName> {
        translate::served(&objects.objects, &options).into_iter().map(|served| served.name.clone()).collect()
    });
    // It cannot fail but by a panic, which the translation before would have met.
    if let Ok(served) = served.await {
        reporter.report(loaded, served, &state);
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

/// The newest translation, published to each room as the part it understands.
struct Desired {
    translator: Arc<Mutex<Translator>>,
    l4: watch::Sender<Arc<crate::model::l4::L4>>,
    l7: watch::Sender<Arc<crate::model::l7::L7>>,
    state: watch::Sender<Arc<State>>,
    failures: Arc<metrics::Failures>,
}

/// What is in force and what could not be honoured.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// What it was made of.
    pub(crate) objects: Objects,
    pub(crate) snapshot: Snapshot,
    pub(crate) problems: Problems,
    /// Addresses that pools give to Services.
    pub(crate) given: Arc<Given>,
    /// Objects of which an earlier version is in force.
    pub(crate) kept: Vec<Kept>,
    /// How many translations there were.
    pub(crate) generation: u64,
    /// When this one was made.
    pub(crate) at: std::time::SystemTime,
}

impl Desired {
    fn new(loaded: &Loaded, options: &translate::Options, generation: u64) -> Self {
        let mut translator = Translator::default();
        let state = State::new(loaded, translator.translate(&loaded.objects, options), generation);
        state.log(&Problems::new());
        Self {
            translator: Arc::new(Mutex::new(translator)),
            l4: watch::Sender::new(Arc::clone(&state.snapshot.l4)),
            l7: watch::Sender::new(Arc::clone(&state.snapshot.l7)),
            state: watch::Sender::new(Arc::new(state)),
            failures: Arc::default(),
        }
    }

    /// Translates what was loaded and publishes only what differs: an unchanged half wakes nobody.
    async fn update(&self, loaded: &Arc<Loaded>, options: &translate::Options) {
        let (before, generation) = {
            let state = self.state.borrow();
            (Arc::clone(&state), state.generation + 1)
        };
        // A ConfigMap changes what all Ingresses come to, and ten thousand take long enough to hold up
        // everything else on this runtime.
        let translated = {
            let (loaded, options) = (Arc::clone(loaded), options.clone());
            let translator = Arc::clone(&self.translator);
            let translate = move || {
                let mut known = translator.lock().unwrap_or_else(PoisonError::into_inner);
                // Should it fail on its way, it has no half-known state left behind.
                let mut translator = std::mem::take(&mut *known);
                let translated = translator.translate(&loaded.objects, &options);
                *known = translator;
                translated
            };
            tokio::task::spawn_blocking(translate).await
        };
        let translated = match translated {
            Ok(translated) => translated,
            Err(error) => {
                self.failures.failed();
                tracing::error!(%error, "translation failed, the last snapshot stays in force; please report this");
                return;
            }
        };
        self.failures.succeeded();
        let state = State::new(loaded, translated, generation);
        state.log(&before.problems);
        self.l4.send_if_modified(|l4| replace_if_different(l4, &state.snapshot.l4));
        self.l7.send_if_modified(|l7| replace_if_different(l7, &state.snapshot.l7));
        self.state.send_replace(Arc::new(state));
    }
}

/// The same `Arc` is equal without a look.
fn replace_if_different<T: Eq>(slot: &mut Arc<T>, new: &Arc<T>) -> bool {
    let differs = slot != new;
    if differs {
        *slot = Arc::clone(new);
    }
    differs
}

impl State {
    fn new(loaded: &Loaded, translated: Translated, generation: u64) -> Self {
        let Translated { snapshot, mut problems, given } = translated;
        problems.extend(loaded.problems.iter().cloned().map(Arc::new));
        let (objects, kept) = (loaded.objects.clone(), loaded.kept.clone());
        Self { objects, snapshot, problems, given, kept, generation, at: std::time::SystemTime::now() }
    }

    /// One line for the change and one for each problem that is new; the rest stands in `status`.
    fn log(&self, known: &Problems) {
        let Snapshot { l4, l7 } = &self.snapshot;
        info!(
            generation = self.generation,
            pools = l4.pools.len(),
            hosts = l7.servers.len(),
            upstreams = l7.upstreams.len(),
            problems = self.problems.len(),
            "snapshot"
        );
        let new = known.diff(&self.problems).filter_map(|item| match item {
            DiffItem::Add(problem) => Some(problem),
            DiffItem::Remove(_) => None,
        });
        for problem in new.filter(|problem| problem.severity != Severity::Info) {
            warn!(
                object = %problem.object,
                severity = %problem.severity,
                field = problem.field,
                reason = problem.reason,
                fix = problem.fix,
                "{}", problem.message
            );
        }
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
    let datapath = datapath::spawn(options, desired.l4.subscribe()).await?;
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

/// The translation's view of the configuration. With a datapath the node's own listener ports are
/// punted, so it must know them.
pub(crate) fn translate_options(config: &Config) -> translate::Options {
    translate::Options {
        http_ports: config.http.iter().map(std::net::SocketAddr::port).collect(),
        https_ports: config.https.iter().map(std::net::SocketAddr::port).collect(),
        classes: if config.manifests.is_some() { Classes::Implied } else { Classes::Written },
        streams: match config.datapath {
            DatapathMode::Off => translate::StreamsBy::Proxy,
            _ => translate::StreamsBy::Kernel,
        },
        ..meaning_options(&config.translate)
    }
}

pub(crate) fn meaning_options(meaning: &TranslateConfig) -> translate::Options {
    let TranslateConfig {
        publish_service,
        default_backend_service,
        default_ssl_certificate,
        ingress_class,
        controller_class,
        ingress_class_by_name,
        config_map,
        tcp_services,
        udp_services,
        address_pools,
        watch_ingress_without_class,
        disable_catch_all,
        node_name,
        load_balancer_class,
        disable_svc_external_name,
        external_ips,
        enable_ssl_passthrough,
        snippet_policy,
    } = meaning.clone();
    let default = translate::Options::default();
    translate::Options {
        publish_service,
        default_backend_service,
        default_ssl_certificate,
        ingress_class: ingress_class.unwrap_or(default.ingress_class),
        controller_class: controller_class.unwrap_or(default.controller_class),
        ingress_class_by_name,
        config_map,
        tcp_services,
        udp_services,
        address_pools,
        watch_ingress_without_class,
        disable_catch_all,
        node: node_name,
        load_balancer_class,
        disable_external_names: disable_svc_external_name,
        external_ips,
        enable_ssl_passthrough,
        snippets: match snippet_policy {
            SnippetPolicy::Refuse => translate::SnippetPolicy::Refuse,
            SnippetPolicy::Ignore => translate::SnippetPolicy::Ignore,
        },
        ..default
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

fn start_logging() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_env("PENSTOCK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    // Fails only when a test in the same process was first; its subscriber then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .try_init();
}
