//! `status.loadBalancer` of the Ingresses of ours, and of the Services that have addresses of ours: where they
//! are reached, for people, external-dns and whoever else looks there. Only the holder of the Lease writes, one patch for each change.
//!
//! What somebody else wrote over ours is put right at intervals only: two controllers that both write
//! must not wear the API server out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Duration, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::Report;
use super::addresses::{self, Address, Pods};
use super::failure::{Failure, Why};
use super::hub::Aside;
use super::write_health::{Work, WriteHealth};
use crate::model::ObjectName;

/// Written at a time.
const AT_ONCE: usize = 8;
/// Longest wait for one of them.
const ANSWER: Duration = Duration::from_secs(10);
/// Tries of one, where somebody else is faster.
const TRIES: usize = 3;
/// Pause after a round in which something failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is written, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusOptions {
    /// The Service whose addresses count; it has to be followed.
    pub publish_service: Option<ObjectName>,
    /// Addresses and names that count more.
    pub addresses: Vec<String>,
    /// Of nodes, the inner address.
    pub internal: bool,
    /// How often what was written is compared with what stands there.
    pub interval: Duration,
    /// What was written goes when the last agent ends.
    pub clear: bool,
    /// The node that we are on.
    pub node: Option<String>,
}

/// Writes status while it holds the Lease.
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) options: StatusOptions,
    /// Our own pod, if we are in one.
    pub(super) pod: ObjectName,
    pub(super) report: watch::Receiver<Arc<Report>>,
    pub(super) aside: watch::Receiver<Arc<Aside>>,
    pub(super) leads: watch::Receiver<bool>,
    pub(super) health: Arc<WriteHealth>,
    /// The pods of agents, as far as they were asked for.
    pub(super) pods: Option<Pods>,
    /// What we wrote last, to Ingresses.
    pub(super) written: BTreeMap<ObjectName, Vec<Address>>,
    /// The same to Services.
    pub(super) balanced: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// What the last round was made of, unless something of it failed.
    pub(super) last: Option<(Arc<Report>, Arc<Aside>)>,
}

/// Whether what others wrote is overwritten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Changes,
    Everything,
}

impl Writer {
    /// Until nobody reports any more.
    pub(super) async fn run(mut self) {
        let mut interval = interval(self.options.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = RETRY;
        loop {
            let mut round = Round::Changes;
            let goes_on = tokio::select! {
                changed = self.report.changed() => changed.is_ok(),
                changed = self.aside.changed() => changed.is_ok(),
                changed = self.leads.changed() => {
                    round = Round::Everything;
                    changed.is_ok()
                }
                _ = interval.tick() => {
                    round = Round::Everything;
                    true
                }
            };
            if !goes_on {
                return;
            }
            if !*self.leads.borrow_and_update() {
                self.written.clear();
                self.balanced.clear();
                self.health.done(Work::IngressStatus);
                self.health.done(Work::ServiceStatus);
                self.last = None;
                continue;
            }
            let now = (Arc::clone(&self.report.borrow()), Arc::clone(&self.aside.borrow()));
            // Most changes are of endpoints, dozens in a second, and none of those comes to anything here.
            if round == Round::Changes && self.last.as_ref().is_some_and(|last| comes_to_the_same(last, &now))
            {
                self.last = Some(now);
                continue;
            }
            if round == Round::Everything && self.takes_nodes() {
                self.pods = match addresses::pods(&self.client, &self.pod).await {
                    Ok(pods) => pods,
                    Err(failure) if addresses::forgivable(&failure) => None,
                    Err(failure) => {
                        debug!(reason = failure.why.name(), failure.message, "pods are not known");
                        self.pods.take()
                    }
                };
            }
            let outcomes = (self.services(round).await, self.ingresses(round).await);
            self.last = None;
            if outcomes.0.is_ok() && outcomes.1.is_ok() {
                pause = RETRY;
                self.last = Some(now);
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(self.options.interval.max(RETRY));
                // Whatever happened in the meantime comes with it.
                interval.reset_immediately();
            }
        }
    }

    fn takes_nodes(&self) -> bool {
        self.options.publish_service.is_none() && self.options.addresses.is_empty()
    }

    /// Writes the addresses that Services have where their status says others.
    async fn services(&mut self, round: Round) -> Result<(), Failure> {
        let report = Arc::clone(&self.report.borrow_and_update());
        self.balanced.retain(|name, _| report.given.contains_key(name));
        let differ = report.given.iter().filter(|(name, given)| {
            let is_news = round == Round::Everything || self.balanced.get(*name) != Some(given);
            let service = report.loaded.objects.services.get(*name);
            is_news && service.is_some_and(|service| !addresses::says(&service.object, given))
        });
        let differ: Vec<_> = differ.map(|(name, given)| (name.clone(), given.clone())).collect();
        let values = differ.iter().map(|(name, given)| (name.clone(), addresses::balanced(given)));
        let outcome = write_all::<Service>(&self.client, values.collect()).await;
        self.balanced.extend(differ);
        if let Err((name, failure)) = outcome {
            if self.health.failed(Work::ServiceStatus, &failure) {
                warn!(service = %name, reason = failure.why.name(), failure.message, "its status was not written");
            }
            self.balanced.remove(&name);
            return Err(failure);
        }
        self.health.done(Work::ServiceStatus);
        Ok(())
    }

    /// Writes what differs.
    async fn ingresses(&mut self, round: Round) -> Result<(), Failure> {
        let report = Arc::clone(&self.report.borrow_and_update());
        let aside = Arc::clone(&self.aside.borrow_and_update());
        let Some(wanted) = self.wanted(&report) else { return Ok(()) };
        self.written.retain(|name, _| report.served.contains(name));
        let none = Vec::new();
        let differ = report.served.iter().filter(|name| {
            let is_news = round == Round::Everything || self.written.get(*name) != Some(&wanted);
            is_news && aside.addresses.get(*name).unwrap_or(&none) != &wanted
        });
        let differ: BTreeSet<ObjectName> = differ.cloned().collect();
        let values = differ.iter().map(|name| (name.clone(), serde_json::json!(wanted)));
        let outcome = write_all::<Ingress>(&self.client, values.collect()).await;
        for name in differ {
            self.written.insert(name, wanted.clone());
        }
        if let Err((name, failure)) = outcome {
            if self.health.failed(Work::IngressStatus, &failure) {
                warn!(ingress = %name, reason = failure.why.name(), failure.message, "its status was not written");
            }
            self.written.remove(&name);
            return Err(failure);
        }
        self.health.done(Work::IngressStatus);
        Ok(())
    }

    /// `None`: not known, so nothing is written.
    fn wanted(&self, report: &Report) -> Option<Vec<Address>> {
        let StatusOptions { publish_service, addresses, internal, node, .. } = &self.options;
        if !addresses.is_empty() {
            return Some(addresses::of_texts(addresses));
        }
        let objects = &report.loaded.objects;
        if let Some(name) = publish_service {
            return Some(addresses::of_service(&objects.services.get(name)?.object));
        }
        let nodes = match &self.pods {
            Some(pods) => pods.nodes.clone(),
            None => node.iter().cloned().collect(),
        };
        let found = nodes.iter().filter_map(|node| objects.nodes.get(node));
        let found = addresses::sorted(found.filter_map(|node| addresses::of_node(&node.object, *internal)));
        (!found.is_empty()).then_some(found)
    }

    /// Takes everything out again, unless another agent goes on.
    pub(super) async fn clear(&self) {
        if !self.options.clear || !*self.leads.borrow() {
            return;
        }
        match addresses::pods(&self.client, &self.pod).await {
            Ok(Some(pods)) if pods.others => return info!("other agents go on; status stays"),
            Ok(_) => {}
            Err(failure) if addresses::forgivable(&failure) => {}
            Err(failure) => return warn!(failure.message, "nobody knows who goes on; status stays"),
        }
        let report = Arc::clone(&self.report.borrow());
        let nothing = |name: &ObjectName| (name.clone(), Value::Array(Vec::new()));
        let ingresses = report.served.iter().map(nothing).collect();
        if let Err((name, failure)) = write_all::<Ingress>(&self.client, ingresses).await {
            warn!(ingress = %name, failure.message, "its status was not cleared");
        }
        let services = report.given.keys().map(nothing).collect();
        if let Err((name, failure)) = write_all::<Service>(&self.client, services).await {
            warn!(service = %name, failure.message, "its status was not cleared");
        }
    }
}

/// Whether two reports share everything that status is made of: if not, it may still be equal.
fn comes_to_the_same(last: &(Arc<Report>, Arc<Aside>), now: &(Arc<Report>, Arc<Aside>)) -> bool {
    let ((last, told), (now, tells)) = (last, now);
    let (before, objects) = (&last.loaded.objects, &now.loaded.objects);
    last.served.ptr_eq(&now.served)
        && Arc::ptr_eq(&last.given, &now.given)
        && before.services.ptr_eq(&objects.services)
        && before.nodes.ptr_eq(&objects.nodes)
        && told.addresses.ptr_eq(&tells.addresses)
}

/// The first failure, where there is one.
async fn write_all<K>(client: &Client, values: Vec<(ObjectName, Value)>) -> Result<(), (ObjectName, Failure)>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let writing = stream::iter(values).map(|(name, value)| {
        let client = client.clone();
        async move { write::<K>(&client, &name, value).await.map_err(|failure| (name, failure)) }
    });
    let outcomes: Vec<_> = writing.buffer_unordered(AT_ONCE).collect().await;
    outcomes.into_iter().collect()
}

/// Writes `status.loadBalancer.ingress`, of an Ingress or of whatever has one, too.
async fn write<K>(client: &Client, name: &ObjectName, addresses: Value) -> Result<(), Failure>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), &name.namespace);
    let is_empty = addresses.as_array().is_none_or(Vec::is_empty);
    let ingress = if is_empty { Value::Null } else { addresses };
    let patch = serde_json::json!({"status": {"loadBalancer": {"ingress": ingress}}});
    let mut last = Failure::new(Why::Conflict, "others were faster");
    for _ in 0..TRIES {
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        match timeout(ANSWER, api.patch_status(&name.name, &params, &patch)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = Failure::of(&error),
            Err(_) => last = Failure::new(Why::Slow, "no answer in time"),
        }
        match last.why {
            // It has gone in the meantime.
            Why::Missing => return Ok(()),
            Why::Conflict => {}
            _ => break,
        }
    }
    Err(last)
}
