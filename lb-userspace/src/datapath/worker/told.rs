//! What the worker tells of itself: in `status`, and in the log what is new of that.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::Worker;
use crate::datapath::choice::Choice;
use crate::datapath::problems::{blame_links, missing, renamed};
use crate::model::Problem;

impl Worker {
    /// Interfaces that were chosen and do not exist.
    pub(super) fn missing(&self) -> Vec<Problem> {
        let interfaces = &self.netlink.view().interfaces;
        if let Choice::Default(_) = self.choice {
            let none = !interfaces.values().any(|interface| self.choice.covers(interface));
            return none
                .then(|| missing("no interface has a default route".to_owned()))
                .into_iter()
                .collect();
        }
        let names = self.choice.missing(interfaces.values());
        let told = names.into_iter().map(|name| {
            let now = self.upkeep.known_as(name).and_then(|ifindex| interfaces.get(&ifindex));
            now.map_or_else(
                || missing(format!("there is no interface {name}")),
                |interface| renamed(name, &interface.name),
            )
        });
        told.collect()
    }

    /// Shows problems in `status`; those that are new also go to the log.
    pub(super) fn publish(&self) {
        let known = self.lasting.iter().chain(&self.problems);
        let mut problems: Vec<Problem> = known.cloned().collect();
        problems.extend(self.undone());
        blame_links(&mut problems);
        problems.sort();
        let mut shown = self.shared.lock_problems();
        tell_new(&problems, &shown);
        *shown = problems;
    }
}

/// What is shown for the first time also goes to the log, and what is over.
pub(super) fn tell_new(problems: &[Problem], shown: &[Problem]) {
    let (now, before): (BTreeSet<&Problem>, BTreeSet<&Problem>) =
        (problems.iter().collect(), shown.iter().collect());
    for problem in now.difference(&before) {
        warn!(object = %problem.object, field = problem.field, fix = problem.fix, "{}", problem.message);
    }
    for problem in before.difference(&now) {
        info!(object = %problem.object, field = problem.field, "over: {}", problem.message);
    }
}
