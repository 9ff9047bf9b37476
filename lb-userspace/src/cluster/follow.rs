//! One kind, followed: listed, then watched from there on. A watch that ends is resumed where it
//! ended; the kind is listed anew only where the server no longer knows what we have seen.
//!
//! Every word of the server counts as a sign of life, so that the age of what we know can be told.
//! (The watcher of kube's runtime keeps bookmarks and resumed watches to itself.)

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, ObjectList, WatchParams};
use kube::core::{PartialObjectMeta, WatchEvent};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::failure::{Failure, Why};
use super::health::FeedHealth;
use crate::backoff::spread;
use crate::model::ObjectName;

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Longest wait for the answer to one question.
const ANSWER: Duration = Duration::from_secs(30);
/// A watch that is silent for longer has lost its connection without being told: by then the server would have ended
/// it in order.
const SILENCE: Duration = Duration::from_secs(90);
/// Longest life of a watch in seconds. Most servers say something once a minute (a bookmark), but not all of kinds
/// that nothing happens to.
const LIFE: f64 = 70.0;
const _: () = assert!(LIFE < 90.0);
/// A watch that the server ends sooner than this has failed.
const TOO_SOON: Duration = Duration::from_secs(1);
/// A watch that nothing is said on for so long goes on from where we are: a server that cannot do that says so at once.
const ACCEPTED: Duration = Duration::from_secs(1);

/// What happened to a kind.
#[derive(Debug)]
pub(super) enum Step<T> {
    /// These are all there are.
    Listed(Vec<T>),
    /// New, or another version.
    Applied(T),
    /// Gone; this was its last version.
    Deleted(T),
}

/// Where the objects of a kind come from.
pub(super) trait Source: Send + Sync {
    type Item: Clone + Send;

    fn list(&self, params: &ListParams) -> impl Future<Output = kube::Result<ObjectList<Self::Item>>> + Send;

    fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> impl Future<Output = kube::Result<Stream<Self::Item>>> + Send;

    fn version(item: &Self::Item) -> Option<String>;
}

type Stream<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// Objects as they are.
pub(super) struct Whole<K>(pub(super) Api<K>);

impl<K> Source for Whole<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    type Item = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<K>> {
        self.0.list(params).await
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<K>> {
        Ok(self.0.watch(params, version).await?.boxed())
    }

    fn version(item: &K) -> Option<String> {
        item.meta().resource_version.clone()
    }
}

/// Names and versions only. What else there is in their metadata is let go of with the page that it came with: a
/// namespace may have many objects whose annotations are as long as they may be.
pub(super) struct Metadata<K>(pub(super) Api<K>);

/// What is known of such an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: ObjectName,
    pub(super) version: String,
}

impl Named {
    fn of<K>(item: PartialObjectMeta<K>) -> Self {
        let ObjectMeta { namespace, name, resource_version, .. } = item.metadata;
        let name = ObjectName::new(namespace.unwrap_or_default(), name.unwrap_or_default());
        Self { name, version: resource_version.unwrap_or_default() }
    }
}

impl<K> Source for Metadata<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Item = Named;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Named>> {
        let ObjectList { types, metadata, items } = self.0.list_metadata(params).await?;
        Ok(ObjectList { types, metadata, items: items.into_iter().map(Named::of).collect() })
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<Named>> {
        let named = |event| match event {
            WatchEvent::Added(item) => WatchEvent::Added(Named::of(item)),
            WatchEvent::Modified(item) => WatchEvent::Modified(Named::of(item)),
            WatchEvent::Deleted(item) => WatchEvent::Deleted(Named::of(item)),
            WatchEvent::Bookmark(bookmark) => WatchEvent::Bookmark(bookmark),
            WatchEvent::Error(status) => WatchEvent::Error(status),
        };
        let events = self.0.watch_metadata(params, version).await?;
        Ok(events.map(move |event| event.map(named)).boxed())
    }

    fn version(item: &Named) -> Option<String> {
        Some(item.version.clone())
    }
}

/// Follows the objects that `labels` and `fields` select (empty: all) until nobody listens.
pub(super) async fn follow<S: Source, M: Send>(
    source: S,
    selection: Selection,
    health: FeedHealth,
    out: mpsc::Sender<M>,
    say: impl Fn(Step<S::Item>) -> M + Send + Sync,
) {
    let mut version: Option<String> = None;
    let (mut backoff, mut is_forgetful) = (super::pauses(), false);
    while !out.is_closed() {
        let failure = match &mut version {
            None => match list(&source, &selection).await {
                Ok((objects, at)) => {
                    if !is_forgetful {
                        backoff = super::pauses();
                    }
                    version = Some(at);
                    if out.send(say(Step::Listed(objects))).await.is_err() {
                        return;
                    }
                    // Only now: whoever waits for the list takes it for heard.
                    health.listed();
                    continue;
                }
                Err(failure) => failure,
            },
            Some(version) => {
                let begun = Instant::now();
                let end = watch(&source, &selection, version, &health, &out, &say).await;
                if begun.elapsed() >= TOO_SOON {
                    (backoff, is_forgetful) = (super::pauses(), false);
                }
                match end {
                    End::Unheard => return,
                    End::Over if begun.elapsed() >= TOO_SOON => continue,
                    End::Over => Failure::new(Why::Broken, "the watch was ended at once"),
                    End::Failed(failure) => failure,
                }
            }
        };
        if failure.why == Why::Gone {
            version = None;
            // A server that says so is there: what it has is not to wait as long as a server that was not. Unless it says
            // so of each list.
            if !std::mem::replace(&mut is_forgetful, true) {
                backoff = super::pauses();
            }
        }
        let pause = backoff.next() + failure.rest();
        health.failed(failure);
        sleep(pause).await;
    }
}

/// Which objects of a kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    /// Label selector as the server reads it; empty: all.
    pub(super) labels: String,
    /// Field selector; empty: all.
    pub(super) fields: String,
}

impl Selection {
    fn lists(&self) -> ListParams {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = some(&self.labels);
        params.field_selector = some(&self.fields);
        params
    }

    fn watches(&self) -> WatchParams {
        let seconds = (LIFE * spread()) as u32;
        let mut params = WatchParams::default().timeout(seconds);
        params.label_selector = some(&self.labels);
        params.field_selector = some(&self.fields);
        params
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// All there are, page by page, and the version to watch from.
async fn list<S: Source>(source: &S, selection: &Selection) -> Result<(Vec<S::Item>, String), Failure> {
    let mut params = selection.lists();
    let mut objects = Vec::new();
    loop {
        let page = answer(source.list(&params)).await?;
        objects.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            let version = page.metadata.resource_version.filter(|version| !version.is_empty());
            let version = version.ok_or_else(|| Failure::new(Why::Unreadable, "a list without a version"))?;
            return Ok((objects, version));
        }
    }
}

async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(|error| Failure::of(&error)),
        Err(_) => Err(Failure::new(Why::Slow, format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// How a watch ended.
enum End {
    /// In order.
    Over,
    Failed(Failure),
    /// Nobody listens to us any more.
    Unheard,
}

async fn watch<S: Source, M: Send>(
    source: &S,
    selection: &Selection,
    version: &mut String,
    health: &FeedHealth,
    out: &mpsc::Sender<M>,
    say: &impl Fn(Step<S::Item>) -> M,
) -> End {
    let mut stream = match answer(source.watch(&selection.watches(), version)).await {
        Ok(stream) => stream,
        Err(failure) => return End::Failed(failure),
    };
    let mut patience = ACCEPTED;
    loop {
        let event = tokio::select! {
            event = timeout(patience, stream.next()) => event,
            () = out.closed() => return End::Unheard,
        };
        let is_accepted = patience == ACCEPTED && event.is_err();
        patience = SILENCE;
        let step = match event {
            Err(_) if is_accepted => {
                health.alive();
                continue;
            }
            Err(_) => {
                let message = format!("the watch was silent for {} s", SILENCE.as_secs());
                return End::Failed(Failure::new(Why::Silent, message));
            }
            Ok(None) => return End::Over,
            Ok(Some(Err(error))) => return End::Failed(Failure::of(&error)),
            Ok(Some(Ok(WatchEvent::Error(status)))) => return End::Failed(Failure::said(&status)),
            Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                *version = bookmark.metadata.resource_version;
                health.alive();
                continue;
            }
            Ok(Some(Ok(WatchEvent::Added(item) | WatchEvent::Modified(item)))) => Step::Applied(item),
            Ok(Some(Ok(WatchEvent::Deleted(item)))) => Step::Deleted(item),
        };
        health.alive();
        if let Step::Applied(item) | Step::Deleted(item) = &step
            && let Some(newer) = S::version(item).filter(|newer| !newer.is_empty())
        {
            *version = newer;
        }
        if out.send(say(step)).await.is_err() {
            return End::Unheard;
        }
    }
}
