//! Collects problems: one place that knows how a [`Problem`] is put together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::{Options, renamed};
use crate::model::{ObjectId, ObjectName, Problem, Problems, Severity};

/// Problems found so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Problem>);

impl Findings {
    /// Starts a finding about an object; each method of [`About`] keeps one.
    pub(super) fn about<'a>(&'a mut self, object: &'a ObjectId) -> About<'a> {
        About { findings: self, object }
    }

    /// Sorted by object, worst first, without duplicates.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0;
        problems.sort();
        problems.dedup();
        problems
    }

    /// The same, to be kept.
    pub(super) fn into_shared(self) -> Vec<Arc<Problem>> {
        self.into_sorted().into_iter().map(Arc::new).collect()
    }

    /// The same of Ingresses, in the words of who wrote them.
    pub(super) fn into_shared_as_written(self, options: &Options) -> Vec<Arc<Problem>> {
        let problems = self.into_sorted().into_iter();
        match renamed(options) {
            Some(renamed) => problems.map(|problem| Arc::new(renamed.problem(problem))).collect(),
            None => problems.map(Arc::new).collect(),
        }
    }
}

/// Problems of all that is kept, while parts of it come and go.
#[derive(Default)]
pub(super) struct ProblemSet {
    /// How many parts tell of each.
    times: HashMap<Arc<Problem>, usize>,
    all: Problems,
}

impl ProblemSet {
    pub(super) fn all(&self) -> &Problems {
        &self.all
    }

    /// Of a part that is new.
    pub(super) fn add(&mut self, problems: &[Arc<Problem>]) {
        for problem in problems {
            *self.times.entry(Arc::clone(problem)).or_default() += 1;
            if !self.all.contains(problem) {
                self.all.insert(Arc::clone(problem));
            }
        }
    }

    /// Of a part that is gone.
    pub(super) fn remove(&mut self, problems: &[Arc<Problem>]) {
        for problem in problems {
            let Entry::Occupied(mut times) = self.times.entry(Arc::clone(problem)) else { continue };
            *times.get_mut() -= 1;
            if *times.get() == 0 {
                times.remove();
                self.all.remove(problem);
            }
        }
    }
}

/// The object that findings are about.
pub(super) struct About<'a> {
    findings: &'a mut Findings,
    object: &'a ObjectId,
}

impl About<'_> {
    /// About another object, which a look at this one showed something of.
    pub(super) fn instead<'a>(&'a mut self, object: &'a ObjectId) -> About<'a> {
        About { findings: self.findings, object }
    }

    /// The object, or a part of it, does not work.
    pub(super) fn error(
        &mut self,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.say(Severity::Error, reason, field, message, "");
    }

    /// As [`About::error`], with what to do about it.
    pub(super) fn error_fix(
        &mut self,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(Severity::Error, reason, field, message, fix);
    }

    /// Works, but probably not as its author thinks.
    pub(super) fn warn(
        &mut self,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(Severity::Warning, reason, field, message, fix);
    }

    /// Worth knowing.
    pub(super) fn info(
        &mut self,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(Severity::Info, reason, field, message, fix);
    }

    /// Any finding.
    pub(super) fn say(
        &mut self,
        severity: Severity,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.findings.0.push(Problem {
            object: self.object.clone(),
            severity,
            reason,
            field: field.into(),
            message: message.into(),
            fix: fix.into(),
        });
    }
}

/// Reason of what a Secret closes by not being there. Where no Secrets are among the objects at all, that says
/// nothing about a cluster.
pub const MISSING_SECRET: &str = "missing-secret";

/// What is said about it.
pub(super) fn missing_secret(secret: &ObjectName) -> String {
    format!("Secret {secret} does not exist, or no version of it was usable")
}
