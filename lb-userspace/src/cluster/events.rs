//! Events on the objects that have problems, and on Ingresses and ConfigMaps that were taken up: what `kubectl
//! describe` shows. Only the holder of the Lease writes them; each is told once while it lasts, and no
//! faster than an API server likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::Report;
use super::failure::{Failure, Why};
use super::hub::Aside;
use super::parked::{Joined, Parked};
use super::write_health::{Work, WriteHealth};
use crate::allowance::Allowance;
use crate::model::{ObjectName, Problem, Severity};
use crate::objects::{Key, Kind, Object};

/// As ingress-nginx signs them.
const COMPONENT: &str = "nginx-ingress-controller";
/// What lasts is told again so often: the API server forgets Events after an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// Between two looks at all that is the case. Events may be that late.
const GLANCE: Duration = Duration::from_millis(250);
/// Told at once, before the pace counts.
const BURST: u32 = 25;
/// Time for one Event, as an API server likes it.
const PACE: Duration = Duration::from_millis(200);
/// Events that wait at most, but for those of namespaces that take none; more are dropped and counted.
const WAITING: usize = 1000;
/// What passes within this as a rule is told only if it does not: objects of one application come one after the other,
/// and slices and Secrets are made by controllers that take a while.
const SETTLING: Duration = Duration::from_secs(5);
/// Reasons of such problems; a certificate is bad, too, whose Secret is not there yet.
const FLEETING: [&str; 4] = ["no-endpoints", "missing-service", "missing-secret", "bad-certificate"];
/// Of any object's name, as the API server has it.
const LONGEST_NAME: usize = 253;
/// Longest wait for one to be taken.
const ANSWER: Duration = Duration::from_secs(10);

/// Tells Events while it holds the Lease.
pub(super) struct Recorder {
    pub(super) client: Client,
    /// Our pod.
    pub(super) instance: String,
    /// Tell which Ingresses are taken up, too.
    pub(super) sync: bool,
    pub(super) report: watch::Receiver<Arc<Report>>,
    pub(super) aside: watch::Receiver<Arc<Aside>>,
    pub(super) leads: watch::Receiver<bool>,
    pub(super) counts: Arc<Counts>,
    pub(super) health: Arc<WriteHealth>,
    pub(super) memory: Memory,
}

/// For metrics.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) told: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Counts {
    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was told and what is to be.
#[derive(Default)]
pub(super) struct Memory {
    told: BTreeMap<u64, Instant>,
    /// What may pass, and since when it is there.
    fleeting: BTreeMap<u64, Instant>,
    queue: VecDeque<What>,
    /// Of namespaces where we may not tell any for the moment.
    parked: Parked<What>,
    /// Ingresses that were taken up and are to be told of when nothing else is: there may be thousands, all at once when we begin to lead.
    taken_up: BTreeSet<ObjectName>,
    /// We led when the report before came.
    leads: bool,
    /// The report before, to see which Ingresses are new.
    before: Option<Arc<Report>>,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
struct What {
    about: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
    /// For how long it has to last before it is told.
    patience: Duration,
}

impl What {
    /// Where the Event stands: that of an object without a namespace as the API server wants it.
    fn namespace(&self) -> String {
        self.about.namespace.clone().unwrap_or_else(|| "default".to_owned())
    }

    /// Of the Event: that of the object, as far as there is room for it, and what tells it from others.
    fn name(&self) -> String {
        let object = self.about.name.as_deref().unwrap_or_default();
        let room = object.floor_char_boundary(LONGEST_NAME - ".0123456789abcdef".len());
        let object = object.get(..room).unwrap_or_default().trim_end_matches(['-', '.']);
        format!("{object}.{:016x}", self.id())
    }

    /// The same for whoever tells it of the same object.
    fn id(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.about.uid.as_deref(), self.kind, &self.reason, &self.message).hash(&mut hasher);
        hasher.finish()
    }
}

impl Memory {
    /// What of all that is the case is to be told now: it was not yet, or long ago, and has lasted.
    fn due(&mut self, all: Vec<What>, now: Instant) -> Vec<What> {
        let (told, fleeting) = (std::mem::take(&mut self.told), std::mem::take(&mut self.fleeting));
        let mut due = Vec::new();
        for what in all {
            let id = what.id();
            if let Some(told) = told.get(&id).filter(|told| now.duration_since(**told) < REPEAT) {
                self.told.insert(id, *told);
                continue;
            }
            let since = fleeting.get(&id).copied().unwrap_or(now);
            if !told.contains_key(&id) && now < since + what.patience {
                self.fleeting.insert(id, since);
            } else if self.told.insert(id, now).is_none() {
                due.push(what);
            }
        }
        due
    }

    /// When something may be told; `None`: nothing waits.
    fn waits(&self, now: Instant) -> Option<Instant> {
        let is_open = |name: &ObjectName| !self.parked.has(&name.namespace);
        match self.queue.is_empty() && !self.taken_up.iter().any(is_open) {
            true => self.parked.due(),
            false => Some(now),
        }
    }

    /// What is told next; an Ingress that is gone meanwhile is not.
    fn next(&mut self, now: Instant, counts: &Counts) -> Option<What> {
        if let Some(what) = self.parked.next(now) {
            return Some(what);
        }
        while let Some(what) = self.queue.pop_front() {
            let namespace = what.namespace();
            match self.parked.join(&namespace, what) {
                Joined::Free(what) => return Some(what),
                Joined::Waits => {}
                Joined::Instead(_) => counts.drop_one(),
            }
        }
        let report = self.before.as_ref()?;
        let is_open = |name: &&ObjectName| !self.parked.has(&name.namespace);
        while let Some(name) = self.taken_up.iter().find(is_open).cloned() {
            self.taken_up.remove(&name);
            if report.served.contains(&name)
                && let Some(ingress) = report.loaded.objects.ingresses.get(&name)
            {
                let object = Object::Ingress(Arc::clone(&ingress.object));
                return Some(normal(&object, "Sync", "Scheduled for sync".to_owned()));
            }
        }
        None
    }

    /// Queues what does not wait already. Where a namespace takes none, that is no matter of the others.
    fn queue(&mut self, due: Vec<What>, counts: &Counts) {
        for what in due {
            if self.parked.contains(&what.namespace(), &what) {
                continue;
            }
            if self.queue.len() >= WAITING {
                counts.drop_one();
            } else {
                self.queue.push_back(what);
            }
        }
    }

    /// When something has lasted long enough.
    fn settled(&self) -> Option<Instant> {
        self.fleeting.values().min().map(|since| *since + SETTLING)
    }
}

impl Recorder {
    /// Until nobody reports any more.
    pub(super) async fn run(mut self) {
        let mut allowance = Allowance::of(BURST, PACE, Instant::now().into_std());
        // What lasts is told again, whether or not anything else happens.
        let mut repeat = tokio::time::interval(REPEAT);
        let mut rested = Instant::now();
        // What could not be told is told when that has passed, whatever it was.
        let (mut backoff, mut again) = (super::pauses(), None::<Instant>);
        loop {
            let now = Instant::now();
            let allowed = Instant::from_std(allowance.next(now.into_std()));
            let next = self.memory.waits(now).map(|next| next.max(allowed));
            let next = next.map(|next| again.map_or(next, |again| next.max(again)));
            let settled = self.memory.settled();
            let report = &mut self.report;
            let reported = async move {
                sleep_until(rested).await;
                report.changed().await
            };
            let goes_on = tokio::select! {
                changed = reported => changed.is_ok(),
                changed = self.leads.changed() => changed.is_ok(),
                _ = repeat.tick() => true,
                () = sleep_until(settled.unwrap_or_else(Instant::now)), if settled.is_some() => true,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some(what) = self.memory.next(Instant::now(), &self.counts) {
                        // There is one: that was waited for.
                        allowance.take(Instant::now().into_std());
                        match self.tell(&what).await {
                            Told::Later { rest } => {
                                self.memory.queue.push_front(what);
                                again = Some(Instant::now() + backoff.next() + rest);
                            }
                            Told::Refused => {
                                self.memory.parked.refused(&what.namespace(), what, Instant::now());
                                (backoff, again) = (super::pauses(), None);
                            }
                            Told::Done => {
                                let mut waited = self.memory.parked.release(&what.namespace());
                                waited.append(&mut self.memory.queue);
                                self.memory.queue = waited;
                                if self.memory.parked.is_empty() {
                                    self.health.done(Work::Events);
                                }
                                (backoff, again) = (super::pauses(), None);
                            }
                        }
                    }
                    continue;
                }
            };
            if !goes_on {
                return;
            }
            let report = Arc::clone(&self.report.borrow_and_update());
            if *self.leads.borrow_and_update() {
                self.note(&report);
                rested = Instant::now() + GLANCE;
            } else {
                self.memory = Memory::default();
                self.health.done(Work::Events);
            }
            self.memory.before = Some(report);
        }
    }

    /// Queues what is new.
    fn note(&mut self, report: &Report) {
        let aside = Arc::clone(&self.aside.borrow_and_update());
        let mut all: Vec<What> = Vec::new();
        for problem in report.problems.iter().filter(|problem| problem.severity != Severity::Info) {
            let Some(key) = key(problem) else { continue };
            let refused = aside.refused.get(&key).map(|refused| refused.0.clone());
            let object = refused.or_else(|| report.loaded.objects.get(&key));
            all.extend(object.map(|object| of_problem(&object, problem)));
        }
        let mut due = self.memory.due(all, Instant::now());
        let before = self.memory.before.take();
        // Of what was there when we began to lead, too.
        let led = std::mem::replace(&mut self.memory.leads, true);
        let told = before.as_deref().filter(|_| led);
        if self.sync {
            self.memory.taken_up.extend(taken_up(told, report));
        }
        if let Some(before) = &before {
            note_settings(before, report, &mut due);
            note_lost(before, report, &mut due);
        }
        self.memory.queue(due, &self.counts);
    }

    async fn tell(&self, what: &What) -> Told {
        let outcome = match timeout(ANSWER, self.write(what)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Why::Slow, "no answer in time")),
        };
        match outcome {
            Ok(()) => {
                self.counts.told.fetch_add(1, Ordering::Relaxed);
                Told::Done
            }
            Err(failure) if is_in_vain(&failure) => {
                self.counts.drop_one();
                debug!(reason = failure.why.name(), failure.message, "an Event was not told");
                Told::Done
            }
            Err(failure) => {
                if self.health.failed(Work::Events, &failure) {
                    warn!(reason = failure.why.name(), failure.message, "Events wait until they can be told");
                }
                if failure.why == Why::Refused { Told::Refused } else { Told::Later { rest: failure.rest() } }
            }
        }
    }

    /// Writes it, or counts it once more where it stands already.
    async fn write(&self, what: &What) -> Result<(), Failure> {
        let namespace = what.namespace();
        let name = what.name();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: what.about.clone(),
            type_: Some(what.kind.to_owned()),
            reason: Some(what.reason.clone()),
            message: Some(what.message.clone()),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now.clone()),
            count: Some(1),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await.map_err(|error| Failure::of(&error)) {
            Err(failure) if failure.why == Why::Conflict => {}
            created => return created.map(drop),
        }
        // How often it was told, the answer to a patch says: to get it is not among what we may.
        let known = patch(&api, &name, &serde_json::json!({"lastTimestamp": now})).await?;
        let count = known.count.unwrap_or(1).saturating_add(1);
        patch(&api, &name, &serde_json::json!({"count": count})).await.map(drop)
    }
}

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It was told, or never will be.
    Done,
    /// We may tell none in its namespace.
    Refused,
    /// The API server takes none now, and asks for a while of rest.
    Later { rest: Duration },
}

/// Whether this one alone is not taken: in a namespace that goes or is gone, nobody may write; and what the server cannot
/// make sense of gets no better.
fn is_in_vain(failure: &Failure) -> bool {
    failure.message.contains("being terminated")
        || matches!(failure.why, Why::Missing | Why::Conflict | Why::Gone | Why::Unreadable | Why::Rejected)
}

async fn patch(api: &Api<Event>, name: &str, patch: &serde_json::Value) -> Result<Event, Failure> {
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map_err(|error| Failure::of(&error))
}

/// Ingresses that came or changed since the report before; all of them where there was none.
fn taken_up<'a>(before: Option<&'a Report>, report: &'a Report) -> impl Iterator<Item = ObjectName> + 'a {
    let now = &report.loaded.objects.ingresses;
    let then = before.map(|before| &before.loaded.objects.ingresses);
    let same = then.is_some_and(|then| now.ptr_eq(then));
    let served = (!same).then(|| report.served.iter()).into_iter().flatten();
    let is_new = move |name: &&ObjectName| {
        let is = now.get(*name);
        let was = then.and_then(|then| then.get(*name));
        is.is_some_and(|is| was.is_none_or(|was| !Arc::ptr_eq(&was.object, &is.object)))
    };
    served.filter(is_new).cloned()
}

/// ConfigMaps that something in force names, and that came or changed since the report before: settings, and lists
/// of ports and headers.
fn note_settings(before: &Report, report: &Report, due: &mut Vec<What>) {
    let (now, then) = (&report.loaded.objects.config_maps, &before.loaded.objects.config_maps);
    if now.ptr_eq(then) {
        return;
    }
    for (name, settings) in now {
        let reason = match then.get(name) {
            Some(then) if Arc::ptr_eq(&then.object, &settings.object) => continue,
            Some(_) => "UPDATE",
            None => "CREATE",
        };
        let object = Object::ConfigMap(Arc::clone(&settings.object));
        due.push(normal(&object, reason, format!("ConfigMap {name}")));
    }
}

/// Services that had addresses of the pools before, however short ago the report before was.
fn note_lost(before: &Report, report: &Report, due: &mut Vec<What>) {
    for problem in report.lost.since(before.lost.newest()) {
        let object = key(problem).and_then(|key| report.loaded.objects.get(&key));
        due.extend(object.map(|object| of_problem(&object, problem)));
    }
}

/// Something that is as it should be.
fn normal(object: &Object, reason: &str, message: String) -> What {
    What {
        about: reference(object),
        kind: "Normal",
        reason: reason.to_owned(),
        message,
        patience: Duration::ZERO,
    }
}

/// The object that a problem is about, if it is one of the cluster.
fn key(problem: &Problem) -> Option<Key> {
    let id = &problem.object;
    let kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == id.kind)?;
    id.origin.is_empty().then(|| Key { kind, name: ObjectName::new(&id.namespace, &id.name) })
}

fn of_problem(object: &Object, problem: &Problem) -> What {
    let Problem { field, message, fix, reason, .. } = problem;
    let mut text = String::new();
    if !field.is_empty() {
        text.push_str(&format!("{field}: "));
    }
    text.push_str(message);
    if !fix.is_empty() {
        text.push_str(&format!("; {fix}"));
    }
    // The API server takes no more than 1024 bytes.
    let end = text.floor_char_boundary(1000);
    text.truncate(end);
    What {
        about: reference(object),
        kind: "Warning",
        reason: event_reason(object.kind(), field, reason),
        message: text,
        patience: if FLEETING.contains(reason) { SETTLING } else { Duration::ZERO },
    }
}

/// ingress-nginx's word where it has one, else ours, written as Kubernetes writes reasons.
fn event_reason(kind: Kind, field: &str, reason: &str) -> String {
    if kind == Kind::Ingress && field.starts_with("metadata.annotations") {
        return "AnnotationParsingFailed".to_owned();
    }
    reason.split('-').map(capitalised).collect()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn reference(object: &Object) -> ObjectReference {
    let (kind, metadata) = (object.kind(), object.metadata());
    ObjectReference {
        api_version: Some(kind.api_version().to_owned()),
        kind: Some(kind.to_string()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
