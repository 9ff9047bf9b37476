//! Secrets and ConfigMaps: of all of them the names and versions are followed, of those that
//! something names the contents are fetched.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::failure::{Failure, Why};
use super::follow::{Named, Step};
use super::health::ReadHealth;
use super::hub::News;
use super::reads::Unread;
use crate::backoff::spread;
use crate::model::ObjectName;
use crate::objects::{Key, Kind, Object};

/// Fetched at a time.
const AT_ONCE: usize = 16;
/// Longest wait for one object.
const ANSWER: Duration = Duration::from_secs(10);
/// Pauses before what failed is asked for again, at first and at most: with a thousand of them, and an agent on each
/// node, a server in trouble is asked for nothing else.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// The same for what we may not read.
const REFUSED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Times that an agent that starts asks for what it can do without.
const TRIES: u32 = 3;
/// The same for what we may not follow and therefore have to look after.
const UNFOLLOWED: Duration = Duration::from_secs(30);

/// Which objects of one kind are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Counts the changes of this.
    pub(super) generation: u64,
    pub(super) names: BTreeSet<ObjectName>,
    /// Those of them that an agent that starts cannot do without.
    pub(super) needed: BTreeSet<ObjectName>,
    /// Those of this name in whatever namespace, which are needed, too.
    pub(super) called: BTreeSet<String>,
}

impl Wanted {
    fn has(&self, name: &ObjectName) -> bool {
        self.names.contains(name) || self.called.contains(&name.name)
    }

    fn needs(&self, name: &ObjectName) -> bool {
        self.needed.contains(name) || self.called.contains(&name.name)
    }
}

/// A change of names and versions in one of the namespaces that are followed (`None`: in all).
pub(super) struct Note {
    pub(super) namespace: Option<String>,
    pub(super) step: Step<Named>,
}

/// What is read.
pub(super) struct Reading<K> {
    pub(super) kind: Kind,
    pub(super) lean: fn(K) -> Object,
    /// Namespaces whose names are followed; `None`: all at once.
    pub(super) namespaces: BTreeSet<Option<String>>,
    pub(super) health: ReadHealth,
}

/// What of a kind is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Here {
    /// Of what was wanted.
    pub(super) generation: u64,
    /// Exists, and could not be read yet.
    pub(super) lacking: BTreeSet<ObjectName>,
    /// Who starts had better wait for those.
    pub(super) is_worth_waiting: bool,
}

/// Fetches what is wanted of one kind.
pub(super) struct Referenced<K> {
    client: Client,
    kind: Kind,
    lean: fn(K) -> Object,
    wanted: watch::Receiver<Wanted>,
    notes: mpsc::Receiver<Note>,
    news: mpsc::Sender<News>,
    /// Versions there are, by the newest note.
    there: BTreeMap<ObjectName, String>,
    /// Versions that were told on.
    told: BTreeMap<ObjectName, String>,
    /// Asked for, or about to be.
    asked: BTreeSet<ObjectName>,
    /// Noted while they were asked for, so that the answer may be older than the note.
    overtaken: BTreeSet<ObjectName>,
    asking: FuturesUnordered<BoxFuture<'static, Answer<K>>>,
    queue: VecDeque<ObjectName>,
    /// To be asked for again, and when.
    again: BTreeMap<ObjectName, Instant>,
    /// Exist, and could not be read when they were last asked for.
    unread: BTreeMap<ObjectName, Unread>,
    health: ReadHealth,
    namespaces: BTreeSet<Option<String>>,
    /// Those whose names are known.
    listed: BTreeSet<Option<String>>,
    /// What was told to be here.
    here: Here,
}

type Answer<K> = (ObjectName, Result<Option<K>, Failure>);

impl<K> Referenced<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default,
{
    pub(super) fn new(
        client: Client,
        reading: Reading<K>,
        wanted: watch::Receiver<Wanted>,
        notes: mpsc::Receiver<Note>,
        news: mpsc::Sender<News>,
    ) -> Self {
        let Reading { kind, lean, namespaces, health } = reading;
        Self {
            client,
            kind,
            lean,
            wanted,
            notes,
            news,
            there: BTreeMap::new(),
            told: BTreeMap::new(),
            asked: BTreeSet::new(),
            overtaken: BTreeSet::new(),
            asking: FuturesUnordered::new(),
            queue: VecDeque::new(),
            again: BTreeMap::new(),
            unread: BTreeMap::new(),
            health,
            namespaces,
            listed: BTreeSet::new(),
            here: Here::default(),
        }
    }

    /// Until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            let again = self.again.values().min().copied();
            tokio::select! {
                note = self.notes.recv() => match note {
                    Some(note) => self.note(note).await,
                    None => return,
                },
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look().await;
                }
                Some((name, answer)) = self.asking.next(), if !self.asking.is_empty() => {
                    self.answered(name, answer).await;
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    let now = Instant::now();
                    let due = self.again.extract_if(.., |_, at| *at <= now).map(|(name, _)| name);
                    for name in due.collect::<Vec<_>>() {
                        self.ask(name);
                    }
                }
            }
            self.ask_on();
            if self.report().await.is_err() {
                return;
            }
        }
    }

    async fn note(&mut self, note: Note) {
        let Note { namespace, step } = note;
        match step {
            Step::Listed(items) => {
                let here =
                    |name: &ObjectName| namespace.as_ref().is_none_or(|known| *known == name.namespace);
                self.there.retain(|name, _| !here(name));
                self.there.extend(items.into_iter().map(|Named { name, version }| (name, version)));
                self.listed.insert(namespace);
                self.look().await;
            }
            Step::Applied(Named { name, version }) => {
                self.there.insert(name.clone(), version);
                self.consider(name).await;
            }
            Step::Deleted(Named { name, .. }) => {
                self.there.remove(&name);
                self.consider(name).await;
            }
        }
    }

    /// Looks at everything that is wanted, was told on, could not be read or is there.
    async fn look(&mut self) {
        let mut names: BTreeSet<ObjectName> = self.wanted.borrow_and_update().names.clone();
        names.extend(self.told.keys().chain(self.unread.keys()).cloned());
        let called = self.wanted.borrow().called.clone();
        names.extend(self.there.keys().filter(|name| called.contains(&name.name)).cloned());
        for name in names {
            self.consider(name).await;
        }
    }

    async fn consider(&mut self, name: ObjectName) {
        if !may_exist(&name) {
            return;
        }
        if self.asked.contains(&name) {
            self.overtaken.insert(name);
            return;
        }
        if !self.wanted.borrow().has(&name) {
            return self.gone(name).await;
        }
        match self.there.get(&name) {
            Some(version) if self.told.get(&name) == Some(version) => {}
            Some(_) if self.unread.contains_key(&name) && self.again.contains_key(&name) => {}
            Some(_) => self.ask(name),
            None if self.is_followed(&name) => self.gone(name).await,
            None if self.told.contains_key(&name) || self.again.contains_key(&name) => {}
            None => self.ask(name),
        }
    }

    /// Its namespace's names are known, so one that is not among them does not exist.
    fn is_followed(&self, name: &ObjectName) -> bool {
        self.listed.contains(&None) || self.listed.contains(&Some(name.namespace.clone()))
    }

    /// The names of all namespaces that are followed are known.
    fn is_listed(&self) -> bool {
        self.namespaces.is_subset(&self.listed)
    }

    async fn gone(&mut self, name: ObjectName) {
        self.again.remove(&name);
        self.unread.remove(&name);
        if self.told.remove(&name).is_some() {
            let _ = self.news.send(News::Removed(Key { kind: self.kind, name })).await;
        }
    }

    fn ask(&mut self, name: ObjectName) {
        self.again.remove(&name);
        if !self.asked.insert(name.clone()) {
            return;
        }
        if self.wanted.borrow().needs(&name) {
            self.queue.push_front(name);
        } else {
            self.queue.push_back(name);
        }
    }

    /// All that we may not read, where one of them may be read by now: rights come for many at once.
    fn ask_for_refused(&mut self) {
        let refused = self.unread.iter().filter(|(_, unread)| unread.failure.why == Why::Refused);
        let names: Vec<ObjectName> = refused.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.ask(name);
        }
    }

    fn ask_on(&mut self) {
        while self.asking.len() < AT_ONCE
            && let Some(name) = self.queue.pop_front()
        {
            let api: Api<K> = Api::namespaced(self.client.clone(), &name.namespace);
            let asking = async move {
                let answer = match timeout(ANSWER, api.get_opt(&name.name)).await {
                    Ok(answer) => answer.map_err(|error| Failure::of(&error)),
                    Err(_) => Err(Failure::new(Why::Slow, "no answer in time")),
                };
                (name, answer)
            };
            self.asking.push(asking.boxed());
        }
    }

    async fn answered(&mut self, name: ObjectName, answer: Result<Option<K>, Failure>) {
        self.asked.remove(&name);
        let overtaken = self.overtaken.remove(&name);
        let unread = self.unread.remove(&name);
        if !self.wanted.borrow().has(&name) {
            return;
        }
        let unfollowed = Some(name.clone()).filter(|name| !self.is_followed(name));
        match answer {
            // Gone in the meantime, or not wanted: whatever the answer was.
            Ok(_) if overtaken && self.is_followed(&name) && !self.there.contains_key(&name) => {
                self.gone(name).await;
            }
            Ok(Some(object)) => {
                let version = object.resource_version().unwrap_or_default();
                self.told.insert(name.clone(), version);
                let _ = self.news.send(News::Applied((self.lean)(object), None)).await;
                if overtaken {
                    self.consider(name).await;
                }
                if unread.is_some_and(|unread| unread.failure.why == Why::Refused) {
                    self.ask_for_refused();
                }
            }
            // It was made anew since.
            Ok(None) if overtaken => self.consider(name).await,
            Ok(None) => {
                self.there.remove(&name);
                self.gone(name).await;
            }
            Err(failure) => {
                self.health.failed(&name, &failure);
                let tries = unread.map_or(1, |unread| unread.tries.saturating_add(1));
                let needed = self.wanted.borrow().needs(&name);
                // What is needed is little, and somebody waits for it.
                let pause = pause(failure.why, if needed { 1 } else { tries }).mul_f64(spread());
                self.again.entry(name.clone()).or_insert_with(|| Instant::now() + pause);
                if self.there.contains_key(&name) {
                    let known = self.told.contains_key(&name);
                    self.unread.insert(name, Unread { failure, tries, known, needed });
                }
            }
        }
        // Whatever the answer was: nobody tells us of another.
        self.again.extend(unfollowed.map(|name| (name, Instant::now() + UNFOLLOWED)));
    }

    /// Says so when everything that is wanted was asked for and answered, if only once in vain, and what of it could
    /// not be read.
    async fn report(&mut self) -> Result<(), mpsc::error::SendError<News>> {
        let generation = self.wanted.borrow().generation;
        let may_be_missing = |name: &ObjectName| {
            let is_known = self.told.contains_key(name) || self.is_followed(name);
            is_known || self.again.contains_key(name) || !may_exist(name)
        };
        // Who is called so is known when the names are.
        let called = self.wanted.borrow().called.is_empty() || self.is_listed();
        let answered = self.asked.iter().all(|name| self.unread.contains_key(name));
        let here = called && answered && self.wanted.borrow().names.iter().all(may_be_missing);
        if !here {
            return Ok(());
        }
        // What is needed may have changed since it was asked for.
        for (name, unread) in &mut self.unread {
            unread.needed = self.wanted.borrow().needs(name);
        }
        self.health.are(&self.unread);
        let lacking = || self.unread.iter().filter(|(_, unread)| !unread.known);
        let may_come = |unread: &Unread| unread.failure.why != Why::Refused && unread.tries < TRIES;
        let here = Here {
            generation,
            lacking: lacking().map(|(name, _)| name.clone()).collect(),
            is_worth_waiting: lacking().any(|(_, unread)| unread.needed || may_come(unread)),
        };
        if here == self.here {
            return Ok(());
        }
        self.here = here.clone();
        self.news.send(News::Fetched(self.kind, here)).await
    }
}

/// Whether the API server has such names. Users wrote some of them, and what is asked for is a path made of them.
fn may_exist(name: &ObjectName) -> bool {
    let is_good = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')) && !text.starts_with('.')
    };
    is_good(&name.namespace) && is_good(&name.name)
}

/// Before it is asked for again, after so many tries.
fn pause(why: Why, tries: u32) -> Duration {
    let (first, longest) = if why == Why::Refused { REFUSED } else { RETRY };
    first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::Config;

    use super::super::health::Health;
    use super::super::lean;
    use super::*;

    /// Of Secrets in `shop`, all of which are wanted and there, and those needed that are called so; of a server that
    /// nobody asks.
    fn referenced(names: &[&str]) -> (Referenced<Secret>, mpsc::Receiver<News>) {
        let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().expect("a URL")));
        let health = Health::new().reads("secrets");
        let reading = Reading { kind: Kind::Secret, lean: lean::secret, namespaces: [None].into(), health };
        let names = names.iter().map(|name| ObjectName::new("shop", *name));
        let needed = names.clone().filter(|name| name.name == "needed").collect();
        let wanted =
            Wanted { generation: 1, names: names.clone().collect(), needed, called: BTreeSet::new() };
        let ((_, wants), (_, notes), (news, heard)) =
            (watch::channel(wanted), mpsc::channel(1), mpsc::channel(16));
        let mut referenced = Referenced::new(client.expect("a client"), reading, wants, notes, news);
        referenced.listed.insert(None);
        referenced.there.extend(names.map(|name| (name, "7".to_owned())));
        (referenced, heard)
    }

    fn refused() -> Failure {
        Failure::new(Why::Refused, "403")
    }

    #[test]
    fn what_cannot_be_read_is_asked_for_less_often_each_time() {
        let pauses = |why| [1, 2, 3, 20, u32::MAX].map(|tries| pause(why, tries).as_secs());

        assert_eq!(pauses(Why::Refused), [5, 10, 20, 300, 300]);
        assert_eq!(pauses(Why::Server), [2, 4, 8, 30, 30]);
    }

    #[tokio::test]
    async fn what_is_needed_is_asked_for_first_and_as_often_as_before() {
        let (mut secrets, _heard) = referenced(&["blog", "needed"]);
        secrets.look().await;
        assert_eq!(secrets.queue.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["needed", "blog"]);
        let begun = Instant::now();

        for _ in 0..6 {
            for name in ["blog", "needed"].map(|name| ObjectName::new("shop", name)) {
                secrets.ask(name.clone());
                secrets.answered(name, Err(refused())).await;
            }
        }

        let again = |name| secrets.again[&ObjectName::new("shop", name)];
        assert!(again("blog") > begun + REFUSED.0 * 16, "half of the sixth pause");
        assert!(again("needed") <= Instant::now() + REFUSED.0);
    }

    #[tokio::test]
    async fn what_is_no_name_is_asked_for_nowhere() {
        let (mut secrets, mut heard) =
            referenced(&["fine", "x/../../configmaps/y", "x?watch=true", "..", "X"]);
        secrets.listed.clear();
        secrets.namespaces.clear();

        secrets.look().await;
        let asked: Vec<_> = secrets.queue.drain(..).collect();
        for name in asked.clone() {
            secrets.answered(name, Ok(None)).await;
        }
        secrets.report().await.expect("somebody listens");

        assert_eq!(asked, [ObjectName::new("shop", "fine")]);
        let here = Here { generation: 1, ..Here::default() };
        let told = heard.try_recv().expect("told");
        assert!(matches!(&told, News::Fetched(Kind::Secret, told) if *told == here), "{told:?}");
    }

    #[tokio::test]
    async fn what_does_not_exist_where_names_are_not_known_holds_up_nobody_and_is_looked_for_again() {
        let (mut secrets, mut heard) = referenced(&["missing"]);
        (secrets.there, secrets.listed) = Default::default();
        secrets.namespaces.clear();
        let missing = ObjectName::new("shop", "missing");
        secrets.look().await;

        secrets.answered(missing.clone(), Ok(None)).await;
        secrets.report().await.expect("somebody listens");

        let told = heard.try_recv().expect("told");
        assert!(matches!(&told, News::Fetched(_, told) if told.lacking.is_empty()), "{told:?}");
        assert!(secrets.again.contains_key(&missing));
    }

    #[tokio::test]
    async fn what_waits_is_asked_for_in_its_turn_whatever_else_is_wanted() {
        let (mut secrets, _heard) = referenced(&["one", "two"]);
        secrets.look().await;
        assert_eq!(secrets.queue.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["one", "two"]);
        for name in std::mem::take(&mut secrets.queue) {
            secrets.answered(name, Err(refused())).await;
        }

        secrets.look().await;

        assert_eq!(secrets.queue, [], "asked for at once");
        assert_eq!(secrets.again.len(), 2);
    }

    #[tokio::test]
    async fn a_right_that_came_for_one_is_tried_for_all() {
        let (mut secrets, _heard) = referenced(&["one", "three", "two"]);
        secrets.look().await;
        for name in std::mem::take(&mut secrets.queue) {
            secrets.answered(name, Err(refused())).await;
        }
        let one = ObjectName::new("shop", "one");
        secrets.ask(one.clone());
        secrets.queue.clear();

        secrets.answered(one, Ok(Some(Secret::default()))).await;

        assert_eq!(secrets.queue.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["three", "two"]);
    }

    #[tokio::test]
    async fn what_nobody_names_any_more_is_no_trouble_any_more() {
        let (mut secrets, _heard) = referenced(&["one"]);
        secrets.look().await;
        secrets.queue.clear();
        secrets.answered(ObjectName::new("shop", "one"), Err(refused())).await;
        assert_eq!((secrets.unread.len(), secrets.again.len()), (1, 1));

        secrets.wanted = watch::channel(Wanted { generation: 2, ..Wanted::default() }).1;
        secrets.look().await;

        assert_eq!((secrets.unread.len(), secrets.again.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_starts_waits_for_no_answer_to_what_was_asked_for_in_vain_before() {
        let (mut secrets, mut heard) = referenced(&["one", "two"]);
        secrets.look().await;
        secrets.queue.clear();
        let [one, two] = ["one", "two"].map(|name| ObjectName::new("shop", name));
        secrets.answered(one.clone(), Err(refused())).await;
        secrets.ask(one.clone());
        secrets.report().await.expect("somebody listens");
        assert!(heard.try_recv().is_err(), "nobody knows yet what becomes of the other one");

        // The first one was asked for anew, and hangs.
        secrets.answered(two.clone(), Err(refused())).await;
        secrets.report().await.expect("somebody listens");

        let here = Here { generation: 1, lacking: [one, two].into(), is_worth_waiting: false };
        let told = heard.try_recv().expect("told");
        assert!(matches!(&told, News::Fetched(Kind::Secret, told) if *told == here), "{told:?}");
    }
}
