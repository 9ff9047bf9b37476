//! `status.loadBalancer` of the Ingresses of ours, and of the Services that have addresses of ours: where they
//! are reached, for people, external-dns and whoever else looks there. Only the holder of the Lease writes, one patch for each change.
//!
//! What somebody else wrote over ours is put right at intervals only: two controllers that both write
//! must not wear the API server out.

use std::collections::BTreeMap;
use std::fmt::Debug;
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
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::Report;
use super::addresses::{self, Address, Pods};
use super::failure::{Failure, Why};
use super::hub::Aside;
use super::write_health::{Work, WriteHealth};
use crate::backoff::Backoff;
use crate::model::ObjectName;
use crate::model::pool::GivenTo;
use crate::objects;

/// Written at a time.
const AT_ONCE: usize = 8;
/// Longest wait for one of them.
const ANSWER: Duration = Duration::from_secs(10);
/// Tries of one, where somebody else is faster.
const TRIES: usize = 3;
/// What a server says of a field that it does not know, where it is applied.
const UNKNOWN_FIELD: &str = "field not declared in schema";
/// Pause before what failed is tried again, at first, and between two rounds of such.
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
    /// The name under which agents like this one write the status of Services.
    pub writer: String,
}

impl StatusOptions {
    /// The status of a Service says just these, and that they are of us.
    fn is_written(&self, service: &Service, given: &GivenTo) -> bool {
        let is_nothing = given.addresses.is_empty();
        addresses::says(service, given) && (is_nothing || objects::wrote(service, &self.writer))
    }
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
    /// What we wrote last.
    pub(super) ingresses: Told<Vec<Address>>,
    pub(super) services: Told<GivenTo>,
    /// What the last round was made of.
    pub(super) last: Option<(Arc<Report>, Arc<Aside>)>,
}

/// What objects of a kind were told.
pub(super) struct Told<T> {
    /// By name, with the uid: an object that was made anew was told nothing.
    written: BTreeMap<ObjectName, (Option<String>, T)>,
    /// Those that did not take it. Each waits for itself.
    failed: BTreeMap<ObjectName, Failed>,
}

struct Failed {
    /// When it is tried again.
    again: Instant,
    backoff: Backoff,
}

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self { written: BTreeMap::new(), failed: BTreeMap::new() }
    }
}

impl<T: PartialEq> Told<T> {
    /// Forgets others, and failures of those that say by now what they should: a patch may take effect whose answer was
    /// late.
    fn keep(&mut self, is_there: impl Fn(&ObjectName) -> bool, is_right: impl Fn(&ObjectName) -> bool) {
        self.written.retain(|name, _| is_there(name));
        self.failed.retain(|name, _| is_there(name) && !is_right(name));
    }

    /// Whether that is to be written in this round, where it does not stand there.
    fn is_due(
        &self,
        name: &ObjectName,
        uid: Option<&str>,
        value: &T,
        (round, now): (Round, Instant),
    ) -> bool {
        let is_same =
            self.written.get(name).is_some_and(|(to, known)| to.as_deref() == uid && known == value);
        let may_try = self.failed.get(name).is_none_or(|failed| failed.again <= now);
        round == Round::Everything || !is_same && may_try
    }

    fn wrote(&mut self, name: ObjectName, uid: Option<String>, value: T) {
        self.failed.remove(&name);
        self.written.insert(name, (uid, value));
    }

    /// It could not be written; the pauses between tries grow to `longest`.
    fn failed(&mut self, name: ObjectName, longest: Duration, now: Instant) {
        self.written.remove(&name);
        let none_yet = || Failed { again: now, backoff: Backoff::between(RETRY, longest.max(RETRY)) };
        let failed = self.failed.entry(name).or_insert_with(none_yet);
        failed.again = now + failed.backoff.next();
    }

    /// When the first of those is tried again.
    fn again(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.again).min()
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// What is another than before.
    Changes,
    /// So it is, and it is time for what failed.
    Again,
    /// Even what others wrote over ours.
    Everything,
}

impl Writer {
    /// Until nobody reports any more.
    pub(super) async fn run(mut self) {
        let mut interval = interval(self.options.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = None::<Instant>;
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
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    round = Round::Again;
                    true
                }
            };
            if !goes_on {
                return;
            }
            let now =
                (Arc::clone(&self.report.borrow_and_update()), Arc::clone(&self.aside.borrow_and_update()));
            if !*self.leads.borrow_and_update() {
                (self.ingresses, self.services, again) = (Told::default(), Told::default(), None);
                self.health.done(Work::IngressStatus);
                self.health.done(Work::ServiceStatus);
                self.last = None;
                continue;
            }
            // Most changes are of endpoints, dozens in a second, and none of those comes to anything here.
            if round == Round::Changes && self.last.as_ref().is_some_and(|last| comes_to_the_same(last, &now))
            {
                self.last = Some(now);
                continue;
            }
            // Who leads no more leaves off, however much there is still to be written.
            let mut leads = self.leads.clone();
            let is_done = tokio::select! {
                () = self.write(round, &now) => true,
                _ = leads.wait_for(|leads| !leads) => false,
            };
            self.last = is_done.then_some(now);
            let first = self.ingresses.again().into_iter().chain(self.services.again()).min();
            again = first.map(|first| first.max(Instant::now() + RETRY));
        }
    }

    async fn write(&mut self, round: Round, (report, aside): &(Arc<Report>, Arc<Aside>)) {
        if round == Round::Everything && self.takes_nodes() {
            self.pods = match timeout(ANSWER, addresses::pods(&self.client, &self.pod)).await {
                Ok(Ok(pods)) => pods,
                Ok(Err(failure)) if addresses::forgivable(&failure) => None,
                Ok(Err(failure)) => {
                    debug!(reason = failure.why.name(), failure.message, "pods are not known");
                    self.pods.take()
                }
                Err(_) => self.pods.take(),
            };
        }
        self.balance(round, report).await;
        self.route(round, report, aside).await;
    }

    fn takes_nodes(&self) -> bool {
        self.options.publish_service.is_none() && self.options.addresses.is_empty()
    }

    /// Writes the addresses that Services have where their status says others.
    async fn balance(&mut self, round: Round, report: &Report) {
        let at = (round, Instant::now());
        let is_right = |name: &ObjectName| {
            let service = report.loaded.objects.services.get(name);
            let given = report.given.get(name);
            service.zip(given).is_none_or(|(service, given)| self.options.is_written(&service.object, given))
        };
        self.services.keep(|name| report.given.contains_key(name), is_right);
        let differ = report.given.iter().filter_map(|(name, given)| {
            let service = &report.loaded.objects.services.get(name)?.object;
            let uid = service.metadata.uid.clone();
            let is_due = self.services.is_due(name, uid.as_deref(), given, at);
            let is_written = self.options.is_written(service, given);
            (is_due && !is_written).then(|| (name.clone(), (uid, given.clone())))
        });
        let mut differ: BTreeMap<_, _> = differ.collect();
        let values = differ.iter().map(|(name, (_, given))| (name.clone(), addresses::balanced(given)));
        let outcomes = write_all::<Service>(&self.client, Some(&self.options.writer), values.collect()).await;
        self.tell(Work::ServiceStatus, &outcomes);
        for (name, outcome) in outcomes {
            let Some((uid, given)) = differ.remove(&name) else { continue };
            match outcome {
                Ok(()) => self.services.wrote(name, uid, given),
                Err(_) => self.services.failed(name, self.options.interval, Instant::now()),
            }
        }
        if self.services.failed.is_empty() {
            self.health.done(Work::ServiceStatus);
        }
    }

    /// Writes where Ingresses are reached where their status says otherwise.
    async fn route(&mut self, round: Round, report: &Report, aside: &Aside) {
        let Some(wanted) = self.wanted(report) else {
            self.ingresses.failed.clear();
            return self.health.done(Work::IngressStatus);
        };
        let at = (round, Instant::now());
        let none = Vec::new();
        let is_right = |name: &ObjectName| aside.addresses.get(name).unwrap_or(&none) == &wanted;
        self.ingresses.keep(|name| report.served.contains(name), is_right);
        let differ = report.served.iter().filter_map(|name| {
            let ingress = report.loaded.objects.ingresses.get(name);
            let uid = ingress.and_then(|ingress| ingress.object.metadata.uid.clone());
            let is_due = self.ingresses.is_due(name, uid.as_deref(), &wanted, at);
            (is_due && !is_right(name)).then(|| (name.clone(), uid))
        });
        let mut differ: BTreeMap<_, _> = differ.collect();
        let values = differ.keys().map(|name| (name.clone(), serde_json::json!(wanted)));
        let outcomes = write_all::<Ingress>(&self.client, None, values.collect()).await;
        self.tell(Work::IngressStatus, &outcomes);
        for (name, outcome) in outcomes {
            let Some(uid) = differ.remove(&name) else { continue };
            match outcome {
                Ok(()) => self.ingresses.wrote(name, uid, wanted.clone()),
                Err(_) => self.ingresses.failed(name, self.options.interval, Instant::now()),
            }
        }
        if self.ingresses.failed.is_empty() {
            self.health.done(Work::IngressStatus);
        }
    }

    /// Says what was not written, once for each reason.
    fn tell(&self, work: Work, outcomes: &[Outcome]) {
        for (name, failure) in failures(outcomes) {
            if self.health.failed(work, failure) {
                warn!(%name, ?work, reason = failure.why.name(), failure.message, "a status was not written");
            }
        }
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
        if let Some((name, failure)) =
            failures(&write_all::<Ingress>(&self.client, None, ingresses).await).next()
        {
            warn!(ingress = %name, failure.message, "its status was not cleared");
        }
        let services = report.given.keys().map(nothing).collect();
        if let Some((name, failure)) =
            failures(&write_all::<Service>(&self.client, None, services).await).next()
        {
            warn!(service = %name, failure.message, "its status was not cleared");
        }
    }
}

/// Whether two reports share everything that status is made of: if not, it may still be equal.
fn comes_to_the_same(last: &(Arc<Report>, Arc<Aside>), now: &(Arc<Report>, Arc<Aside>)) -> bool {
    let ((last, told), (now, tells)) = (last, now);
    let (before, objects) = (&last.loaded.objects, &now.loaded.objects);
    last.served.ptr_eq(&now.served)
        && before.ingresses.ptr_eq(&objects.ingresses)
        && Arc::ptr_eq(&last.given, &now.given)
        && before.services.ptr_eq(&objects.services)
        && before.nodes.ptr_eq(&objects.nodes)
        && told.addresses.ptr_eq(&tells.addresses)
}

type Outcome = (ObjectName, Result<(), Failure>);

/// Each as it went; with the name of a `writer` the API server notes it, even where it says the same already.
async fn write_all<K>(client: &Client, writer: Option<&str>, values: Vec<(ObjectName, Value)>) -> Vec<Outcome>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let writing = stream::iter(values).map(|(name, value)| {
        let client = client.clone();
        async move {
            let outcome = write::<K>(&client, writer, &name, value).await;
            (name, outcome)
        }
    });
    writing.buffer_unordered(AT_ONCE).collect().await
}

fn failures(outcomes: &[Outcome]) -> impl Iterator<Item = (&ObjectName, &Failure)> {
    outcomes.iter().filter_map(|(name, outcome)| Some((name, outcome.as_ref().err()?)))
}

/// Writes `status.loadBalancer.ingress`, of an Ingress or of whatever has one, too.
async fn write<K>(
    client: &Client,
    writer: Option<&str>,
    name: &ObjectName,
    addresses: Value,
) -> Result<(), Failure>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), &name.namespace);
    let is_empty = addresses.as_array().is_none_or(Vec::is_empty);
    let status = |ingress: &Value| serde_json::json!({"loadBalancer": {"ingress": ingress}});
    let patch_to = |addresses: &Value| match writer.filter(|_| !is_empty) {
        Some(writer) => {
            let types = K::DynamicType::default();
            let object = serde_json::json!({"apiVersion": K::api_version(&types), "kind": K::kind(&types),
                "metadata": {"name": name.name}, "status": status(addresses)});
            (PatchParams::apply(writer).force(), Patch::Apply(object))
        }
        None => {
            let ingress = if is_empty { &Value::Null } else { addresses };
            (PatchParams::default(), Patch::Merge(serde_json::json!({"status": status(ingress)})))
        }
    };
    let (mut params, mut patch) = patch_to(&addresses);
    let mut last = Failure::new(Why::Conflict, "others were faster");
    for _ in 0..TRIES {
        match timeout(ANSWER, api.patch_status(&name.name, &params, &patch)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = Failure::of(&error),
            Err(_) => last = Failure::new(Why::Slow, "no answer in time"),
        }
        match last.why {
            // It has gone in the meantime.
            Why::Missing => return Ok(()),
            Why::Conflict => {}
            _ if last.message.contains(UNKNOWN_FIELD) => {
                (params, patch) = patch_to(&addresses::without_mode(addresses.clone()));
            }
            _ => break,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn what_failed_waits_for_its_time_and_what_was_made_anew_was_told_nothing() {
        let (mut told, name, now) = (Told::default(), ObjectName::new("shop", "web"), Instant::now());
        let due = |told: &Told<u8>, uid, value| {
            let at = |round, at| told.is_due(&name, Some(uid), &value, (round, at));
            [at(Round::Changes, now), at(Round::Again, now + RETRY), at(Round::Everything, now)]
        };
        assert_eq!(due(&told, "a", 1), [true, true, true]);

        told.failed(name.clone(), LONGEST, now);
        assert_eq!(due(&told, "a", 1), [false, true, true], "refused");

        told.wrote(name.clone(), Some("a".to_owned()), 1);
        assert_eq!(due(&told, "a", 1), [false, false, true], "written");
        assert_eq!(due(&told, "a", 2), [true, true, true], "another value");
        assert_eq!(due(&told, "b", 1), [true, true, true], "another object");
    }

    #[test]
    fn one_that_never_takes_its_status_has_no_other_wait() {
        let (mut told, begun) = (Told::<u8>::default(), Instant::now());
        let [never, later] = ["never", "later"].map(|name| ObjectName::new("shop", name));
        let mut now = begun;
        for _ in 0..20 {
            told.failed(never.clone(), LONGEST, now);
            now = told.again().expect("it is tried again");
        }
        assert!(now - begun > 10 * LONGEST / 2, "{:?}", now - begun);

        told.failed(never, LONGEST, now);
        told.failed(later.clone(), LONGEST, now);

        assert!(told.again().is_some_and(|again| again <= now + RETRY));
        told.keep(|_| true, |name| *name != later);
        assert_eq!(told.failed.len(), 1, "the other one says what it should by now");
        assert!(told.is_due(&later, None, &1, (Round::Again, now + RETRY)));
    }
}
