//! What is desired: the newest translation, and its parts for the rooms that follow them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use imbl::ordset::DiffItem;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::metrics::Failures;
use crate::model::l4::{InForce, L4};
use crate::model::l7::L7;
use crate::model::pool::Given;
use crate::model::{Names, Problem, Problems, Severity, Snapshot};
use crate::objects::{self, Kept, Loaded, Objects};
use crate::panics;
use crate::translate::{self, Translated, Translator};

/// The newest translation, published to each room as the part it understands.
pub(super) struct Desired {
    translator: Arc<Mutex<Translator>>,
    pub(super) l4: watch::Sender<Arc<L4>>,
    /// What the kernel part has of `l4`; nothing without one.
    pub(super) in_force: watch::Sender<Arc<InForce>>,
    pub(super) l7: watch::Sender<Arc<L7>>,
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) failures: Arc<Failures>,
}

/// What is in force and what could not be honoured.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// What it was made of.
    pub(super) objects: Objects,
    pub(super) snapshot: Snapshot,
    pub(super) problems: Problems,
    /// Addresses that pools give to Services.
    pub(super) given: Arc<Given>,
    /// Ingresses of ours.
    pub(super) served: Names,
    /// Services that had addresses of the pools in the state before.
    pub(super) lost: Vec<Problem>,
    /// Objects of which an earlier version is in force.
    pub(super) kept: Vec<Kept>,
    /// How many translations there were.
    pub(super) generation: u64,
    /// When this one was made.
    pub(super) at: SystemTime,
}

impl Desired {
    /// The first one.
    pub(super) fn new(loaded: &Loaded, options: &translate::Options, generation: u64) -> Self {
        let mut translator = Translator::default();
        let state = State::new(loaded, translator.translate(&loaded.objects, options), generation);
        state.log(&Problems::new());
        Self {
            translator: Arc::new(Mutex::new(translator)),
            l4: watch::Sender::new(Arc::clone(&state.snapshot.l4)),
            in_force: watch::Sender::default(),
            l7: watch::Sender::new(Arc::clone(&state.snapshot.l7)),
            state: watch::Sender::new(Arc::new(state)),
            failures: Arc::default(),
        }
    }

    /// Translates what was loaded and publishes only what differs: an unchanged half wakes nobody.
    pub(super) async fn update(&self, loaded: &Arc<Loaded>, options: &translate::Options) {
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
                let translated = panics::catch(|| translator.translate(&loaded.objects, &options))?;
                *known = translator;
                Ok(translated)
            };
            tokio::task::spawn_blocking(translate).await.map_err(|error| error.to_string()).flatten()
        };
        let translated = match translated {
            Ok(translated) => translated,
            Err(error) => {
                self.failures.failed();
                error!(error, "translation failed, the last snapshot stays in force; please report this");
                return;
            }
        };
        self.failures.succeeded();
        let mut state = State::new(loaded, translated, generation);
        state.log(&before.problems);
        state.lost = objects::lost((&before.objects, &before.given), (&state.objects, &state.given));
        state.lost.iter().for_each(log_one);
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
        let Translated { snapshot, mut problems, given, served } = translated;
        problems.extend(loaded.problems.iter().cloned().map(Arc::new));
        let (objects, kept) = (loaded.objects.clone(), loaded.kept.clone());
        let (lost, at) = (Vec::new(), SystemTime::now());
        Self { objects, snapshot, problems, given, served, lost, kept, generation, at }
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
        log_new(known, &self.problems);
    }
}

/// One line for each problem that is new and not merely worth knowing.
pub(super) fn log_new(known: &Problems, now: &Problems) {
    let new = known.diff(now).filter_map(|item| match item {
        DiffItem::Add(problem) => Some(problem),
        DiffItem::Remove(_) => None,
    });
    new.filter(|problem| problem.severity != Severity::Info).for_each(|problem| log_one(problem));
}

fn log_one(problem: &Problem) {
    warn!(
        object = %problem.object,
        severity = %problem.severity,
        field = said(&problem.field),
        reason = problem.reason,
        fix = said(&problem.fix),
        "{}", problem.message
    );
}

/// What is empty is left out of a line.
fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
