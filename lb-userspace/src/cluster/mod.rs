//! The cluster: the only room with a kube client. It follows what the API server says into
//! [`Loaded`], as `manifests` does with a directory, and writes back what the agent found.
//!
//! It knows how objects are heard and told, not what they mean: whether one may enter is asked of
//! the [`Admission`], which Secrets and ConfigMaps matter of [`Refer`], both the caller's. An API
//! server that is gone costs nothing but freshness: what was last heard stays in force.

mod addresses;
mod certificate;
mod connect;
mod events;
mod failure;
mod follow;
mod health;
mod hub;
mod lean;
mod lease;
mod parked;
mod reads;
mod referenced;
mod scope;
mod status;
mod store;
mod write;
mod write_health;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::objects::{Admission, Former, Kind, Loaded, Object, Refer};

use crate::backoff::Backoff;
use follow::{Metadata, Named, Selection, Step, Whole, follow};
use health::{Feed, Need};
use hub::{Addresses, Aside, Hub, News, Progress};
use referenced::{Note, Reading, Referenced, Wanted};
use store::Store;

pub use certificate::{Certificate, Entries, keep};
pub use connect::{Access, Cluster};
pub use health::Health;
pub use lease::Election;
pub use scope::{Beside, Scope};
pub use status::StatusOptions;
pub use write::{Lost, Report, WriteOptions, Writing, write};
pub use write_health::Holder;

/// News that wait for the hub; beyond, who follows waits.
const WAITING: usize = 1024;

/// Why the API server cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig does not say where and who.
    #[error("--kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// Neither a kubeconfig nor a pod.
    #[error("not in a pod of a cluster ({0}); give --kubeconfig FILE, or manifests in place of a cluster")]
    NoPod(String),
    /// Not a URL.
    #[error("--apiserver-host {0:?}: allowed: a URL such as https://10.0.0.1:6443")]
    Server(String),
    /// The authority cannot be read.
    #[error("--certificate-authority {}: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is said there cannot be used.
    #[error("the API server cannot be asked: {0}")]
    Client(String),
}

/// What to follow, and who judges it.
#[derive(Clone)]
pub struct Options {
    /// Which objects concern us.
    pub scope: Scope,
    /// Who may enter.
    pub admission: Admission,
    /// What is named by those who did.
    pub refer: Refer,
}

/// A cluster that is followed for as long as this lives.
pub struct Followed {
    /// What is in force. Nothing, until [`Followed::first`] returned.
    pub loaded: watch::Receiver<Arc<Loaded>>,
    /// How well we hear.
    pub health: Arc<Health>,
    aside: watch::Receiver<Arc<Aside>>,
    news: mpsc::Sender<News>,
    /// Ends with this.
    _tasks: JoinSet<()>,
}

impl Followed {
    /// Returns when everything is known, however long that takes.
    pub async fn first(&mut self) {
        // Without an error while its tasks run, which they do as long as this lives.
        let _ = self.loaded.changed().await;
    }

    /// Whose Ingresses may be ours.
    pub fn served(&self) -> Served {
        Served(self.aside.clone())
    }

    /// Has these stay in force where the newest version is not let in. Returns when they are, with what they name.
    pub async fn adopt(&mut self, former: Vec<Former>) {
        let (told, adopted) = oneshot::channel();
        if self.news.send(News::Former(former, told)).await.is_ok() && adopted.await == Ok(true) {
            // In vain where all of them are gone in the meantime.
            let published = self.loaded.wait_for(|loaded| !loaded.kept.is_empty());
            let _ = tokio::time::timeout(2 * hub::HOLD, published).await;
        }
    }
}

/// Tells which namespaces' Ingresses may be ours, as of now.
#[derive(Clone)]
pub struct Served(watch::Receiver<Arc<Aside>>);

impl Served {
    /// Whether those of this one may.
    pub fn has(&self, namespace: &str) -> bool {
        self.0.borrow().scope.serves(namespace)
    }
}

/// Begins to follow; must be called within a tokio runtime.
pub fn watch(cluster: &Cluster, options: Options) -> Followed {
    let Options { scope, admission, refer } = options;
    let health = Health::new();
    let (news, heard) = mpsc::channel(WAITING);
    let here = news.clone();
    let mut feeds =
        Feeds { client: cluster.client.clone(), health: Arc::clone(&health), news, tasks: JoinSet::new() };

    feeds.everywhere("ingressclasses", Kind::IngressClass, Need::May, lean::ingress_class);
    feeds.everywhere("nodes", Kind::Node, Need::May, lean::node);
    if let Some(selector) = &scope.selector {
        feeds.namespaces(selector);
    }
    feeds.ingresses(scope.namespace.clone());
    // What a flag names elsewhere may be missing; what is watched may not.
    let need = |namespace: &Option<String>| if scope.watches(namespace) { Need::Must } else { Need::May };
    for namespace in scope.namespaces(Kind::Service) {
        feeds.kind("services", Kind::Service, need(&namespace), namespace, lean::service);
    }
    for namespace in scope.namespaces(Kind::EndpointSlice) {
        feeds.kind("endpointslices", Kind::EndpointSlice, need(&namespace), namespace, lean::endpoint_slice);
    }
    let secrets = feeds.referenced("secrets", Kind::Secret, Need::May, &scope, lean::secret);
    let config_maps = feeds.referenced("configmaps", Kind::ConfigMap, Need::Must, &scope, lean::config_map);

    let (out, loaded) = watch::channel(Arc::default());
    let (told, aside) = watch::channel(Arc::default());
    let hub = Hub {
        store: Store::new(admission),
        scope,
        health: Arc::clone(&health),
        refer,
        news: heard,
        secrets,
        config_maps,
        aside: told,
        out,
        progress: Progress::default(),
    };
    let mut tasks = feeds.tasks;
    tasks.spawn(hub.run());
    Followed { loaded, health, aside, news: here, _tasks: tasks }
}

/// Starts what follows.
struct Feeds {
    client: Client,
    health: Arc<Health>,
    news: mpsc::Sender<News>,
    tasks: JoinSet<()>,
}

impl Feeds {
    /// A kind without namespaces.
    fn everywhere<K>(&mut self, resource: &'static str, kind: Kind, need: Need, lean: fn(K) -> Object)
    where
        K: Resource<Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        self.follow(Feed { resource, namespace: None, need }, kind, api, move |item| (lean(item), None));
    }

    fn kind<K>(
        &mut self,
        resource: &'static str,
        kind: Kind,
        need: Need,
        namespace: Option<String>,
        lean: fn(K) -> Object,
    ) where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
        K::DynamicType: Default,
    {
        let api: Api<K> = api(&self.client, namespace.as_deref());
        self.follow(Feed { resource, namespace, need }, kind, api, move |item| (lean(item), None));
    }

    fn ingresses(&mut self, namespace: Option<String>) {
        let api: Api<Ingress> = api(&self.client, namespace.as_deref());
        let feed = Feed { resource: "ingresses", namespace, need: Need::Must };
        self.follow(feed, Kind::Ingress, api, |mut ingress: Ingress| {
            let balancer = ingress.status.take().and_then(|status| status.load_balancer);
            (lean::ingress(ingress), balancer.and_then(|balancer| balancer.ingress))
        });
    }

    fn follow<K>(
        &mut self,
        feed: Feed,
        kind: Kind,
        api: Api<K>,
        lean: impl Fn(K) -> (Object, Addresses) + Send + Sync + 'static,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let namespace = feed.namespace.clone();
        let say = move |step: Step<K>| match step {
            Step::Listed(items) => News::Listed {
                kind,
                namespace: namespace.clone(),
                objects: items.into_iter().map(&lean).collect(),
            },
            Step::Applied(item) => {
                let (object, addresses) = lean(item);
                News::Applied(object, addresses)
            }
            Step::Deleted(item) => News::Removed(lean(item).0.key()),
        };
        let health = self.health.of(feed);
        self.tasks.spawn(follow(Whole(api), Selection::default(), health, self.news.clone(), say));
    }

    /// Namespaces with these labels.
    fn namespaces(&mut self, selector: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let say = |step: Step<Named>| match step {
            Step::Listed(items) => News::Namespaces(items.into_iter().map(|item| item.name.name).collect()),
            Step::Applied(item) => News::Namespace(item.name.name),
            Step::Deleted(item) => News::NoNamespace(item.name.name),
        };
        let health = self.health.of(Feed { resource: "namespaces", namespace: None, need: Need::Must });
        let selection = Selection { labels: selector.to_owned(), ..Selection::default() };
        self.tasks.spawn(follow(Metadata(api), selection, health, self.news.clone(), say));
    }

    /// A kind of which only what is named is read.
    fn referenced<K>(
        &mut self,
        resource: &'static str,
        kind: Kind,
        need: Need,
        scope: &Scope,
        lean: fn(K) -> Object,
    ) -> watch::Sender<Wanted>
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
        K::DynamicType: Default,
    {
        let (notes, noted) = mpsc::channel(WAITING);
        let namespaces = scope.namespaces(kind);
        for namespace in namespaces.clone() {
            let api: Api<K> = api(&self.client, namespace.as_deref());
            let health = self.health.of(Feed { resource, namespace: namespace.clone(), need });
            let say = move |step| Note { namespace: namespace.clone(), step };
            self.tasks.spawn(follow(Metadata(api), Selection::default(), health, notes.clone(), say));
        }
        let (wanted, wants) = watch::channel(Wanted::default());
        let health = self.health.reads(resource);
        let reading = Reading { kind, lean, namespaces: namespaces.into_iter().collect(), health };
        let referenced = Referenced::new(self.client.clone(), reading, wants, noted, self.news.clone());
        self.tasks.spawn(referenced.run());
        wanted
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Between attempts: an API server that comes back is found within ten seconds.
fn pauses() -> Backoff {
    Backoff::between(Duration::from_millis(200), Duration::from_secs(10))
}
