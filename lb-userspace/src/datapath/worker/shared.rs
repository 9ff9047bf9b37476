//! What the worker and its handle share. A panic while one of them held a lock leaves what is behind it readable.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::upkeep::Part;
use crate::datapath::engine::Engine;
use crate::datapath::kernel::{Attached, Translated};
use crate::model::Problem;

/// What the worker and the handle share.
pub struct Shared {
    engine: Mutex<Engine>,
    interfaces: Mutex<BTreeMap<String, Attached>>,
    problems: Mutex<Vec<Problem>>,
    translated: Mutex<Translated>,
    /// Problems of the traffic, since the last sweep.
    dropped: Mutex<Vec<Problem>>,
    /// How often we set again what somebody undid.
    restored: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shared {
    /// With an engine, and nothing known yet.
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            engine: Mutex::new(engine),
            interfaces: Mutex::default(),
            problems: Mutex::default(),
            translated: Mutex::default(),
            dropped: Mutex::default(),
            restored: Mutex::new(Part::ALL.map(|part| (part.as_str(), 0)).into()),
        }
    }

    /// The engine, locked.
    pub fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_interfaces(&self) -> MutexGuard<'_, BTreeMap<String, Attached>> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interfaces and how the program sits on them.
    pub fn interfaces(&self) -> BTreeMap<String, Attached> {
        self.lock_interfaces().clone()
    }

    /// Problems of the last update, and of the traffic.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.lock_problems().clone();
        problems.extend(self.lock_dropped().iter().cloned());
        problems.sort();
        problems
    }

    /// How often we set again what somebody undid, by what it is.
    pub fn restored(&self) -> BTreeMap<&'static str, u64> {
        self.lock_restored().clone()
    }

    pub(super) fn count_restored(&self, part: Part) {
        *self.lock_restored().entry(part.as_str()).or_default() += 1;
    }

    pub(super) fn lock_restored(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Translated flows at the last sweep.
    pub fn translated(&self) -> Translated {
        *self.lock_translated()
    }

    pub(super) fn lock_translated(&self) -> MutexGuard<'_, Translated> {
        self.translated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_problems(&self) -> MutexGuard<'_, Vec<Problem>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_dropped(&self) -> MutexGuard<'_, Vec<Problem>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
