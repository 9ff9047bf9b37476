//! How reading goes of what something names, beside how its kind is followed: what exists and cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};

use super::failure::{Failure, Why};
use crate::model::{ObjectId, ObjectName, Problem, Severity};

/// An object that exists, by what is followed of its kind, and that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) failure: Failure,
    /// How often in a row.
    pub(super) tries: u32,
    /// An earlier version is known.
    pub(super) known: bool,
    /// An agent that starts cannot do without it.
    pub(super) needed: bool,
}

impl Unread {
    fn holds_up(&self) -> bool {
        self.needed && !self.known
    }
}

/// Of one kind.
#[derive(Debug, Default)]
pub(super) struct Reads {
    unread: BTreeMap<ObjectName, Unread>,
    /// Since when there are any, and whether that was told to somebody.
    since: Option<Instant>,
    told: bool,
    /// Reasons that the log has.
    logged: BTreeSet<Why>,
    pub(super) failures: BTreeMap<Why, u64>,
}

impl Reads {
    /// These are all by now; whether that is something to say.
    pub(super) fn are(&mut self, unread: &BTreeMap<ObjectName, Unread>) -> bool {
        let says = |unread: &BTreeMap<ObjectName, Unread>| {
            let first = first(unread);
            first.map(|(name, first)| {
                (name.clone(), first.failure.clone(), (first.known, first.needed), unread.len())
            })
        };
        let is_news = says(&self.unread) != says(unread);
        self.unread.clone_from(unread);
        if unread.is_empty() {
            (self.since, self.told) = (None, false);
            self.logged.clear();
        } else {
            self.since.get_or_insert_with(Instant::now);
        }
        is_news
    }

    /// One was asked for in vain; whether the log does not have that reason yet.
    pub(super) fn failed(&mut self, failure: &Failure) -> bool {
        *self.failures.entry(failure.why).or_default() += 1;
        self.logged.insert(failure.why)
    }

    /// What an agent that starts cannot do without; `None`: nothing.
    pub(super) fn wants(&self, resource: &str) -> Option<String> {
        let (name, unread) = first(&self.unread).filter(|(_, unread)| unread.holds_up())?;
        Some(format!("{resource}: {name} cannot be read: {}", unread.failure.message))
    }

    /// When it has lasted for so long that somebody should know, if nobody was told.
    pub(super) fn next_look(&self, tolerated: Duration) -> Option<Instant> {
        self.since.filter(|_| !self.told).map(|since| since + tolerated)
    }

    /// What somebody should know.
    pub(super) fn problem(&mut self, resource: &str, tolerated: Duration) -> Option<Problem> {
        let (name, Unread { failure, known, needed, .. }) = first(&self.unread)?;
        let at_once = matches!(failure.why, Why::Refused | Why::Unauthorized);
        if !at_once && self.since.is_none_or(|since| since.elapsed() < tolerated) {
            return None;
        }
        self.told = true;
        let which = match self.unread.len() {
            1 => name.to_string(),
            all => format!("{name} and {} more", all - 1),
        };
        let verdict = match (*known, *needed) {
            (true, _) => "the versions read before stay in force",
            (false, true) => "an agent that starts waits for them",
            (false, false) => "what names them is served without",
        };
        let (reason, fix) = match failure.why {
            Why::Refused => ("read-refused", format!("let our account get {resource}")),
            Why::Unauthorized => ("read-refused", "see to the account's token".to_owned()),
            _ => ("read-broken", String::new()),
        };
        Some(Problem {
            object: ObjectId { origin: "the cluster".to_owned(), ..ObjectId::default() },
            severity: if *known { Severity::Warning } else { Severity::Error },
            reason,
            field: resource.to_owned(),
            message: format!("cannot be read ({which}): {}; {verdict}", failure.message),
            fix,
        })
    }
}

/// The one to speak of: one that holds up who starts, if there is any.
fn first(unread: &BTreeMap<ObjectName, Unread>) -> Option<(&ObjectName, &Unread)> {
    unread.iter().find(|(_, unread)| unread.holds_up()).or_else(|| unread.first_key_value())
}
