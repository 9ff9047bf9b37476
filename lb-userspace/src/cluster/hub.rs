//! Where all that is heard of the cluster comes together and leaves as one state: the first change at
//! once, the next ones at most every [`PACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::api::networking::v1::IngressLoadBalancerIngress;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{debug, info};

use super::health::Health;
use super::referenced::{Here, Wanted};
use super::scope::Scope;
use super::store::{Refused, Store};
use crate::model::ObjectName;
use crate::objects::{Former, Key, Kind, Loaded, Object, Objects, Refer};

/// Shortest time between two states.
const PACE: Duration = Duration::from_millis(20);
/// Longest wait for what a change names, as the Secret of a new Ingress.
pub(super) const HOLD: Duration = Duration::from_secs(1);
/// Longest wait of an agent that starts, and knows all else, for Secrets: each of thousands may take its time to be refused.
const PATIENCE: Duration = Duration::from_secs(30);
/// News taken in at a time.
const BATCH: usize = 256;

/// What is heard.
#[derive(Debug)]
pub(super) enum News {
    /// All objects of a kind, in one namespace or in all; with the addresses in their status.
    Listed {
        kind: Kind,
        namespace: Option<String>,
        objects: Vec<(Object, Addresses)>,
    },
    /// A version of an object.
    Applied(Object, Addresses),
    Removed(Key),
    /// Namespaces that are selected: all of them, one more, one less.
    Namespaces(BTreeSet<String>),
    Namespace(String),
    NoNamespace(String),
    /// Earlier versions, of another agent's; whether one of them counts.
    Former(Vec<Former>, oneshot::Sender<bool>),
    /// What was wanted is here, as far as it exists and can be read.
    Fetched(Kind, Here),
}

/// Of an Ingress, what its status says.
pub(super) type Addresses = Option<Vec<IngressLoadBalancerIngress>>;

/// What is known beside the state: for those who write back.
#[derive(Debug, Clone, Default)]
pub(super) struct Aside {
    /// What the status of each Ingress says; those that say nothing are left out.
    pub(super) addresses: OrdMap<ObjectName, Vec<IngressLoadBalancerIngress>>,
    /// Newest versions of objects that were not let in.
    pub(super) refused: Refused,
    /// Which namespaces concern us.
    pub(super) scope: Scope,
}

/// Ends of the hub.
pub(super) struct Hub {
    pub(super) store: Store,
    pub(super) scope: Scope,
    pub(super) health: Arc<Health>,
    pub(super) refer: Refer,
    pub(super) news: mpsc::Receiver<News>,
    pub(super) secrets: watch::Sender<Wanted>,
    pub(super) config_maps: watch::Sender<Wanted>,
    pub(super) aside: watch::Sender<Arc<Aside>>,
    pub(super) out: watch::Sender<Arc<Loaded>>,
    pub(super) progress: Progress,
}

/// How far the hub has come.
#[derive(Default)]
pub(super) struct Progress {
    /// Objects outside of the selected namespaces, which may be selected later.
    outside: BTreeMap<Key, Object>,
    /// What is here of what is wanted.
    fetched: BTreeMap<Kind, Here>,
    /// Something changed that was not published, since when.
    dirty: Option<Instant>,
    /// What is named may have changed.
    references: bool,
    published: Option<Instant>,
    /// When all was listed for the first time.
    complete: Option<Instant>,
    /// As [`Aside`] has it, and whether it has it yet.
    addresses: OrdMap<ObjectName, Vec<IngressLoadBalancerIngress>>,
    addresses_changed: bool,
}

impl Hub {
    /// Until nobody listens.
    pub(super) async fn run(mut self) {
        self.progress.references = true;
        loop {
            if self.progress.complete.is_none() && self.health.is_complete() && self.scope.is_known() {
                self.progress.complete = Some(Instant::now());
            }
            let due = self.due();
            let look = self.health.next_look().filter(|_| self.progress.published.is_some());
            let health = Arc::clone(&self.health);
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => self.hear_all(news),
                    None => return,
                },
                () = health.changed.notified() => self.touch(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.publish(),
                () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => self.publish(),
                () = self.out.closed() => return,
            }
            self.want();
        }
    }

    fn touch(&mut self) {
        self.progress.dirty.get_or_insert_with(Instant::now);
    }

    /// When to publish; `None`: when something more has happened.
    fn due(&self) -> Option<Instant> {
        let dirty = self.progress.dirty?;
        let is_fetched = self.is_fetched(Kind::Secret) && self.is_fetched(Kind::ConfigMap);
        if let Some(published) = self.progress.published {
            let next = published + PACE;
            return Some(if is_fetched { next } else { next.max(dirty + HOLD) });
        }
        // What exists and is not known may keep somebody out, or say who has which address.
        let is_whole = |kind| {
            let lacks = self.progress.fetched.get(&kind).is_some_and(|here| here.is_worth_waiting);
            self.is_fetched(kind) && !lacks
        };
        // A list that was handed over and not heard yet is a part of it.
        if !is_whole(Kind::ConfigMap) || !self.news.is_empty() {
            return None;
        }
        let complete = self.progress.complete?;
        Some(if is_whole(Kind::Secret) { Instant::now() } else { complete + PATIENCE })
    }

    /// What is wanted of a kind is here, as far as it can be read.
    fn is_fetched(&self, kind: Kind) -> bool {
        let wanted = if kind == Kind::Secret { &self.secrets } else { &self.config_maps };
        let here = self.progress.fetched.get(&kind).map_or(0, |here| here.generation);
        here >= wanted.borrow().generation
    }

    fn hear_all(&mut self, news: News) {
        self.hear(news);
        for _ in 1..BATCH {
            let Ok(news) = self.news.try_recv() else { break };
            self.hear(news);
        }
        if std::mem::take(&mut self.progress.addresses_changed) {
            self.tell_aside();
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Listed { kind, namespace, objects } => self.listed(kind, namespace.as_deref(), objects),
            News::Applied(object, addresses) => self.applied(object, addresses),
            News::Removed(key) => self.removed(&key),
            News::Namespaces(namespaces) => {
                self.scope.select(namespaces);
                self.sort();
            }
            News::Namespace(name) => {
                if self.scope.add(name) {
                    self.sort();
                }
            }
            News::NoNamespace(name) => {
                if self.scope.take(&name) {
                    self.sort();
                }
            }
            News::Former(former, told) => {
                let mut adopted = false;
                for former in former {
                    let kind = former.object.kind();
                    if self.store.adopt(former) {
                        adopted = true;
                        self.changed(kind);
                    }
                }
                let _ = told.send(adopted);
            }
            News::Fetched(kind, here) => {
                // A ConfigMap that comes to an agent at work has no effect before it is read.
                if kind == Kind::Secret && self.store.lack(kind, &here.lacking) {
                    self.changed(kind);
                }
                self.progress.fetched.insert(kind, here);
            }
        }
    }

    fn listed(&mut self, kind: Kind, namespace: Option<&str>, objects: Vec<(Object, Addresses)>) {
        let here: BTreeSet<Key> = objects.iter().map(|(object, _)| object.key()).collect();
        let mut known = self.store.keys(kind);
        known.extend(self.progress.outside.keys().filter(|key| key.kind == kind).cloned());
        for key in known {
            let listed = namespace.is_none_or(|namespace| key.name.namespace == namespace);
            if listed && !here.contains(&key) {
                self.removed(&key);
            }
        }
        for (object, addresses) in objects {
            self.applied(object, addresses);
        }
        // There is something to say even where there is nothing.
        self.touch();
    }

    fn applied(&mut self, object: Object, addresses: Addresses) {
        let key = object.key();
        if key.kind == Kind::Ingress {
            self.addressed(&key.name, addresses.unwrap_or_default());
        }
        if !self.scope.has(&object) {
            if self.store.remove(&key) {
                self.changed(key.kind);
            }
            self.progress.outside.insert(key, object);
            return;
        }
        self.progress.outside.remove(&key);
        if self.store.apply(object) {
            self.changed(key.kind);
        }
    }

    fn removed(&mut self, key: &Key) {
        self.progress.outside.remove(key);
        if key.kind == Kind::Ingress {
            self.addressed(&key.name, Vec::new());
        }
        if self.store.remove(key) {
            self.changed(key.kind);
        }
    }

    fn addressed(&mut self, name: &ObjectName, addresses: Vec<IngressLoadBalancerIngress>) {
        let known = &mut self.progress.addresses;
        let before = if addresses.is_empty() {
            known.remove(name)
        } else {
            known.insert(name.clone(), addresses.clone())
        };
        self.progress.addresses_changed |= before.unwrap_or_default() != addresses;
    }

    fn changed(&mut self, kind: Kind) {
        self.touch();
        self.progress.references |= matches!(kind, Kind::Ingress | Kind::IngressClass | Kind::ConfigMap);
    }

    /// Other namespaces are selected than before.
    fn sort(&mut self) {
        for (_, object) in std::mem::take(&mut self.progress.outside) {
            let addresses = match object.kind() {
                Kind::Ingress => self.progress.addresses.get(&object.key().name).cloned(),
                _ => None,
            };
            self.applied(object, addresses);
        }
        let keys: Vec<Key> = Kind::ALL.into_iter().flat_map(|kind| self.store.keys(kind)).collect();
        for key in keys {
            let Some(object) = self.store.newest(&key) else { continue };
            if self.scope.has(&object) {
                continue;
            }
            self.store.remove(&key);
            self.progress.outside.insert(key.clone(), object);
            self.changed(key.kind);
        }
        self.touch();
    }

    /// Tells which Secrets and ConfigMaps are named.
    fn want(&mut self) {
        if !std::mem::take(&mut self.progress.references) {
            return;
        }
        let named = (self.refer)(self.store.objects());
        if self.scope.settings != named.of_settings {
            self.scope.settings.clone_from(&named.of_settings);
            self.sort();
        }
        // What is named without any Ingress is the operator's. Nobody else may keep an agent from starting.
        let settings =
            Objects { config_maps: self.store.objects().config_maps.clone(), ..Objects::default() };
        let needed = (self.refer)(&settings).config_maps;
        for (wanted, names, needed, called) in [
            (&self.secrets, named.secrets, BTreeSet::new(), BTreeSet::new()),
            (&self.config_maps, named.config_maps, needed, named.config_maps_called),
        ] {
            wanted.send_if_modified(|wanted| {
                let now = Wanted { generation: wanted.generation, names, needed, called };
                let differs = wanted.generation == 0 || *wanted != now;
                if differs {
                    *wanted = Wanted { generation: now.generation + 1, ..now };
                }
                differs
            });
        }
    }

    /// Nothing where nothing changed: whoever hears of it looks through all of it.
    fn tell_aside(&self) {
        let now = Aside {
            addresses: self.progress.addresses.clone(),
            refused: self.store.refused().clone(),
            scope: self.scope.clone(),
        };
        self.aside.send_if_modified(|aside| {
            let differs = !aside.addresses.ptr_eq(&now.addresses)
                || !aside.refused.ptr_eq(&now.refused)
                || aside.scope != now.scope;
            if differs {
                *aside = Arc::new(now);
            }
            differs
        });
    }

    fn publish(&mut self) {
        let first = self.progress.published.replace(Instant::now()).is_none();
        if first && !self.is_fetched(Kind::Secret) {
            // Who knows which of them there are.
            self.store.lack(Kind::Secret, &self.secrets.borrow().names);
        }
        let mut loaded = self.store.take();
        self.tell_aside();
        loaded.problems.extend(self.health.problems());
        loaded.problems.sort();
        self.progress.dirty = None;
        if first {
            info!(
                ingresses = loaded.objects.ingresses.len(),
                services = loaded.objects.services.len(),
                "the cluster is known"
            );
        }
        self.out.send_if_modified(|current| {
            if !first && **current == loaded {
                debug!("nothing changed");
                return false;
            }
            *current = Arc::new(loaded);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Admission, References};

    #[test]
    fn who_starts_waits_for_secrets_so_long_and_for_settings_longer() {
        let admission = Admission {
            alone: |_, _, _| Vec::new(),
            among: |_, _| Box::new(|_, _| Vec::new()),
            config_map: None,
            address_pools: None,
            renamed: None,
        };
        let name = ObjectName::new("shop", "named");
        let named = References { secrets: [name.clone()].into(), ..References::default() };
        let (_news, heard) = mpsc::channel(1);
        let (out, loaded) = watch::channel(Arc::default());
        let complete = Instant::now();
        let mut hub = Hub {
            store: Store::new(admission),
            scope: Scope::default(),
            health: Health::new(),
            refer: Arc::new(move |_| named.clone()),
            news: heard,
            secrets: watch::channel(Wanted::default()).0,
            config_maps: watch::channel(Wanted::default()).0,
            aside: watch::channel(Arc::default()).0,
            out,
            progress: Progress { references: true, complete: Some(complete), ..Progress::default() },
        };
        hub.listed(Kind::Ingress, None, Vec::new());
        hub.want();
        let all = |is_worth_waiting| Here { generation: 1, is_worth_waiting, ..Here::default() };

        assert_eq!(hub.due(), None, "the settings are not known");
        hub.hear(News::Fetched(Kind::ConfigMap, all(false)));
        assert_eq!(hub.due(), Some(complete + PATIENCE));
        hub.hear(News::Fetched(Kind::Secret, all(true)));
        assert_eq!(hub.due(), Some(complete + PATIENCE), "another try may do");
        hub.hear(News::Fetched(Kind::Secret, all(false)));
        assert!(hub.due().is_some_and(|due| due <= Instant::now()));

        hub.progress.fetched.remove(&Kind::Secret);
        hub.publish();
        let key = Key { kind: Kind::Secret, name };
        assert_eq!(loaded.borrow().objects.unread, [Some(key)].into(), "nobody knows what it says");
    }
}
