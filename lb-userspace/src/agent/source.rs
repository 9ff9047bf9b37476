//! Where the objects come from: a directory or a cluster. From here on nobody asks which, except who
//! writes back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use super::StartError;
use super::desired::State;
use crate::cluster::{self, Cluster, Followed, Report, Writing};
use crate::config::{ClusterConfig, Config, TranslateConfig};
use crate::model::report::Metric;
use crate::model::{ObjectName, Problem};
use crate::objects::{self, Former, Loaded, Refer};
use crate::takeover::Unread;
use crate::webhook::authority;
use crate::{manifests, translate};

/// A source that is followed for as long as this lives.
pub(super) struct Source {
    /// What is in force; of a cluster, nothing until [`Source::first`] returned.
    pub(super) loaded: watch::Receiver<Arc<Loaded>>,
    /// For people.
    pub(super) name: String,
    origin: Origin,
}

enum Origin {
    Directory { watcher: Option<Box<manifests::Watcher>>, following: Option<JoinHandle<()>> },
    Cluster(Box<Watched>),
}

/// What is waited for before anything is known.
pub(super) struct Awaited {
    name: String,
    health: Option<Arc<cluster::Health>>,
}

impl Awaited {
    /// For people.
    pub(super) fn reason(&self) -> String {
        let Self { name, health } = self;
        match health.as_ref().and_then(|health| health.wants()) {
            Some(wants) => format!("starting: waiting for {name}: {wants}"),
            None => "starting".to_owned(),
        }
    }

    /// How it goes.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.health.iter().flat_map(|health| health.metrics()).collect()
    }
}

struct Watched {
    cluster: Cluster,
    followed: Followed,
}

impl Source {
    /// Opens what the configuration names.
    pub(super) async fn open(config: &Config, options: &translate::Options) -> Result<Self, StartError> {
        if let Some(path) = &config.manifests {
            let (loaded, watcher) = manifests::watch(path, translate::admission(options))?;
            let origin = Origin::Directory { watcher: Some(Box::new(watcher)), following: None };
            return Ok(Self { loaded, name: path.display().to_string(), origin });
        }
        let watched = watch(&config.cluster, &config.translate, options).await?;
        let (loaded, name) = (watched.followed.loaded.clone(), watched.cluster.server().to_owned());
        Ok(Self { loaded, name, origin: Origin::Cluster(Box::new(watched)) })
    }

    /// Returns when there is something to begin with.
    pub(super) async fn first(&mut self) -> Arc<Loaded> {
        if let Origin::Cluster(watched) = &mut self.origin {
            watched.followed.first().await;
        }
        Arc::clone(&self.loaded.borrow_and_update())
    }

    /// What cannot be read of a directory, or at all; an agent that we take over from may know earlier versions of
    /// that, and of what was refused.
    pub(super) fn unread(&self) -> Option<Unread> {
        match &self.origin {
            Origin::Directory { watcher: Some(watcher), .. } => {
                Some(Unread { source: self.name.clone(), places: watcher.troubled() })
            }
            Origin::Directory { watcher: None, .. } => None,
            Origin::Cluster(_) => Some(Unread { source: self.name.clone(), places: Vec::new() }),
        }
    }

    /// Has these stay in force where what is written now cannot be read. To be called before [`Source::follow`].
    pub(super) async fn adopt(&mut self, former: Vec<Former>) -> Arc<Loaded> {
        match &mut self.origin {
            Origin::Directory { watcher: Some(watcher), .. } => watcher.adopt(former),
            Origin::Directory { watcher: None, .. } => {}
            Origin::Cluster(watched) => watched.followed.adopt(former).await,
        }
        let loaded = Arc::clone(&self.loaded.borrow_and_update());
        if !loaded.kept.is_empty() {
            info!(objects = loaded.kept.len(), "last good versions are taken over from the agent before");
        }
        loaded
    }

    /// The name under which agents like this one write the status of Services; `None`: none of them does.
    pub(super) fn writer(&self, config: &Config) -> Option<String> {
        match &self.origin {
            Origin::Cluster(watched) => Some(writer(config, &watched.cluster)),
            Origin::Directory { .. } => None,
        }
    }

    /// What [`Source::first`] waits for.
    pub(super) fn awaited(&self) -> Awaited {
        let health = match &self.origin {
            Origin::Cluster(watched) => Some(Arc::clone(&watched.followed.health)),
            Origin::Directory { .. } => None,
        };
        Awaited { name: self.name.clone(), health }
    }

    /// Whose Ingresses may be ours; `None`: everybody's.
    pub(super) fn served(&self) -> Option<cluster::Served> {
        match &self.origin {
            Origin::Cluster(watched) => Some(watched.followed.served()),
            Origin::Directory { .. } => None,
        }
    }

    /// Keeps the webhook's certificate in the cluster, for as long as anybody looks at it.
    pub(super) fn keep_certificate(
        &self,
        config: &Config,
        name: &str,
    ) -> Result<watch::Receiver<Option<Arc<cluster::Entries>>>, StartError> {
        let Origin::Cluster(watched) = &self.origin else { return Err(StartError::WebhookWithoutCluster) };
        let certificate = cluster::Certificate {
            name: name.to_owned(),
            namespace: own_namespace(config, &watched.cluster).to_owned(),
            authority: authority::AUTHORITY,
            renew: Arc::new(|held, names| {
                authority::renewed(held, names, SystemTime::now()).map_err(|error| error.to_string())
            }),
        };
        Ok(cluster::keep(&watched.cluster, certificate))
    }

    /// Follows changes from now on.
    pub(super) fn follow(&mut self) {
        if let Origin::Directory { watcher, following } = &mut self.origin {
            *following = watcher.take().map(|watcher| tokio::spawn(watcher.run()));
        }
    }

    /// Who tells the cluster what came of it; `None`: there is no cluster.
    pub(super) fn reporter(&self, config: &Config) -> Option<Arc<Reporter>> {
        let Origin::Cluster(watched) = &self.origin else { return None };
        let Watched { cluster, followed } = &**watched;
        let (reports, reported) = watch::channel(Arc::default());
        let writing = cluster::write(cluster, followed, write_options(config, cluster), reported);
        let health = Arc::clone(&followed.health);
        Some(Arc::new(Reporter { health, reports, writing: Mutex::new(Some(writing)) }))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Origin::Directory { following: Some(following), .. } = &self.origin {
            following.abort();
        }
    }
}

/// Everything that a cluster says now, once; it has to be said within `patience`.
pub(super) async fn once(
    config: &ClusterConfig,
    meaning: &TranslateConfig,
    options: &translate::Options,
    patience: Duration,
) -> Result<Arc<Loaded>, StartError> {
    let mut watched = watch(config, meaning, options).await?;
    if tokio::time::timeout(patience, watched.followed.first()).await.is_err() {
        return Err(StartError::Silent {
            server: watched.cluster.server().to_owned(),
            seconds: patience.as_secs(),
            wants: watched.followed.health.wants().unwrap_or_default(),
        });
    }
    Ok(Arc::clone(&watched.followed.loaded.borrow()))
}

async fn watch(
    config: &ClusterConfig,
    meaning: &TranslateConfig,
    options: &translate::Options,
) -> Result<Watched, StartError> {
    let access = cluster::Access {
        kubeconfig: config.kubeconfig.clone(),
        server: config.apiserver_host.clone(),
        authority: config.certificate_authority.clone(),
    };
    let cluster = Cluster::connect(&access).await?;
    let TranslateConfig {
        publish_service,
        default_backend_service,
        default_ssl_certificate,
        config_map,
        tcp_services,
        udp_services,
        address_pools,
        own_pools,
        ..
    } = meaning.clone();
    let beside = cluster::Beside {
        services: publish_service.into_iter().collect(),
        backends: default_backend_service.into_iter().collect(),
        secrets: default_ssl_certificate.into_iter().collect(),
        config_maps: [config_map, tcp_services, udp_services, address_pools.or(own_pools)]
            .into_iter()
            .flatten()
            .collect(),
    };
    let (namespace, selector) = (config.namespace.clone(), config.namespace_selector.clone());
    let scope = cluster::Scope::new(namespace, selector, beside);
    let options = options.clone();
    let admission = translate::admission(&options);
    let refer: Refer = Arc::new(move |objects| translate::references(objects, &options));
    let options = cluster::Options { scope, admission, refer };
    let followed = cluster::watch(&cluster, options);
    Ok(Watched { cluster, followed })
}

/// Behind the Lease's name, where another controller holds that.
const BESIDE: &str = "-beside";

fn write_options(config: &Config, cluster: &Cluster) -> cluster::WriteOptions {
    let Config { cluster: ours, pod, translate, .. } = config;
    let namespace = own_namespace(config, cluster);
    let election = ours.election.as_ref().map(|election| cluster::Election {
        id: match ours.update_status {
            true => election.id.clone(),
            // Who leaves status to another controller must not keep it from its Lease.
            false => format!("{}{BESIDE}", election.id),
        },
        namespace: namespace.to_owned(),
        identity: pod.name.clone(),
        ttl: election.ttl,
    });
    let status = ours.update_status.then(|| cluster::StatusOptions {
        publish_service: translate.publish_service.clone(),
        addresses: ours.status_addresses.clone(),
        internal: ours.internal_node_addresses,
        interval: ours.status_interval,
        clear: ours.clear_status,
        node: translate.node_name.clone(),
        writer: writer(config, cluster),
    });
    let pod = ObjectName::new(namespace, &pod.name);
    cluster::WriteOptions { election, status, sync_events: ours.sync_events, pod }
}

/// By the Lease of those who write status, even where this one leaves that to others.
fn writer(config: &Config, cluster: &Cluster) -> String {
    let lease = config.cluster.election.as_ref().map(|election| election.id.as_str());
    objects::writer(own_namespace(config, cluster), lease)
}

fn own_namespace<'a>(config: &'a Config, cluster: &'a Cluster) -> &'a str {
    let said = &config.pod.namespace;
    if said.is_empty() { cluster.own_namespace() } else { said }
}

/// Tells the cluster what the agent made of its objects.
pub(super) struct Reporter {
    health: Arc<cluster::Health>,
    reports: watch::Sender<Arc<Report>>,
    writing: Mutex<Option<Writing>>,
}

impl Reporter {
    /// Another state is in force.
    pub(super) fn report(&self, loaded: &Arc<Loaded>, state: &State) {
        let (problems, given) = (state.problems.clone(), Arc::clone(&state.given));
        let served = state.served.clone();
        let lost = self.reports.borrow().lost.with(state.generation, &state.lost);
        let report = Report { loaded: Arc::clone(loaded), served, given, problems, lost };
        self.reports.send_replace(Arc::new(report));
    }

    /// Takes leave of the cluster.
    pub(super) async fn end(&self) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writing) = writing {
            writing.end().await;
        }
    }

    /// Leaves everything to a successor, which is who we are.
    pub(super) fn leave(&self) {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The Lease by whose holder all is written; `None`: nobody is asked.
    pub(super) fn lease(&self) -> Option<(String, Option<cluster::Holder>)> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, holder) = writing.as_ref()?.lease()?;
        Some((name.to_owned(), holder))
    }

    /// What the API server does not let us write.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.iter().flat_map(Writing::problems).collect()
    }

    /// Seconds since the API server last confirmed what we know of it.
    pub(super) fn age(&self) -> u64 {
        self.health.age().as_secs()
    }

    /// For `/metrics`.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.health.metrics();
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.extend(writing.iter().flat_map(Writing::metrics));
        metrics
    }
}
