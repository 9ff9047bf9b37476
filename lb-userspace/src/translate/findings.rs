//! Collects problems: one place that knows how a [`Problem`] is put together.

use crate::model::{ObjectId, Problem, Severity};

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
}

/// The object that findings are about.
pub(super) struct About<'a> {
    findings: &'a mut Findings,
    object: &'a ObjectId,
}

impl About<'_> {
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
