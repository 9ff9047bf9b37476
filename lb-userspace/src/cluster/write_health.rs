//! How writing back goes: who holds the Lease, and what the API server does not take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::failure::{Failure, Why};
use crate::model::{ObjectId, Problem, Severity};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Who writes.
    Lease,
    /// `status` of Ingresses.
    IngressStatus,
    /// `status` of Services.
    ServiceStatus,
    /// Events.
    Events,
}

/// Who of several agents writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// As it calls itself; a pod's name.
    pub identity: String,
    /// This agent.
    pub is_us: bool,
}

/// Shared by those who write and those who ask.
#[derive(Debug, Default)]
pub(super) struct WriteHealth(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    /// The last failure of each, and why there were any since it worked.
    failing: BTreeMap<Work, (Failure, BTreeSet<Why>)>,
}

impl WriteHealth {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Lease was read.
    pub(super) fn held(&self, holder: Holder) {
        self.state().holder = Some(holder);
    }

    /// Who holds the Lease, as far as it is known.
    pub(super) fn holder(&self) -> Option<Holder> {
        self.state().holder.clone()
    }

    /// It did not work, and is tried again; whether that is worth telling: each reason is once, until it works.
    pub(super) fn failed(&self, work: Work, failure: &Failure) -> bool {
        let mut state = self.state();
        let none_yet = || (failure.clone(), BTreeSet::new());
        let (last, reasons) = state.failing.entry(work).or_insert_with(none_yet);
        last.clone_from(failure);
        reasons.insert(failure.why)
    }

    /// It worked, or is not ours to do any more.
    pub(super) fn done(&self, work: Work) {
        self.state().failing.remove(&work);
    }

    /// For people.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.state().failing.iter().map(|(work, (failure, _))| problem(*work, failure)).collect()
    }
}

impl Work {
    /// As rules of a role call it, and what may be done with it.
    fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Lease => ("leases", "get, create and update leases in its own namespace"),
            Self::IngressStatus => ("ingresses/status", "patch ingresses/status"),
            Self::ServiceStatus => ("services/status", "patch services/status"),
            Self::Events => ("events", "create and patch events"),
        }
    }

    /// What comes of it.
    fn verdict(self) -> &'static str {
        match self {
            Self::Lease => "while it does not hold one, this agent writes neither status nor Events",
            Self::IngressStatus => "nobody sees by which addresses Ingresses are reached",
            Self::ServiceStatus => "nobody sees which addresses Services were given",
            Self::Events => "nobody sees Events of problems",
        }
    }
}

fn problem(work: Work, failure: &Failure) -> Problem {
    let (resource, verbs) = work.resource();
    let (reason, fix) = match failure.why {
        Why::Refused => ("write-refused", format!("let our account {verbs}")),
        Why::Unauthorized => ("write-refused", "see to the account's token".to_owned()),
        _ => ("write-broken", String::new()),
    };
    Problem {
        object: ObjectId { origin: "the cluster".to_owned(), ..ObjectId::default() },
        severity: Severity::Warning,
        reason,
        field: resource.to_owned(),
        message: format!("cannot be written: {}; {}", failure.message, work.verdict()),
        fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_news_once_and_a_problem_until_it_works() {
        let health = WriteHealth::default();
        let refused = Failure::new(Why::Refused, "events is forbidden (403)");

        let news = [health.failed(Work::Events, &refused), health.failed(Work::Events, &refused)];
        let told: Vec<String> = health
            .problems()
            .into_iter()
            .map(|it| format!("{}: {}; {}", it.field, it.message, it.fix))
            .collect();
        health.done(Work::Events);

        assert_eq!(news, [true, false]);
        let expected = "events: cannot be written: events is forbidden (403); nobody sees Events of problems; let \
                        our account create and patch events";
        assert_eq!(told, [expected]);
        assert_eq!(health.problems(), []);
    }

    #[test]
    fn two_reasons_in_turns_are_news_once_each() {
        let health = WriteHealth::default();
        let both = [Failure::new(Why::Refused, "403"), Failure::new(Why::Rejected, "422")];
        let round = || both.each_ref().map(|failure| health.failed(Work::IngressStatus, failure));

        assert_eq!([round(), round()], [[true, true], [false, false]]);
        assert!(health.problems()[0].message.contains("422"), "the last one");
        health.done(Work::IngressStatus);
        assert_eq!(round(), [true, true]);
    }
}
