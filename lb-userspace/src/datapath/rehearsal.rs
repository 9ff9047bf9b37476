//! A balancer without a kernel: the agent's book and the program's steering over tables in our own
//! memory, with the clock passed in. Properties and the simulation run the real code by it.

use std::collections::BTreeSet;

use lb_common::config::{Past, Settings};
use lb_common::flows::Noted;
use lb_common::steer::{Choice, Kind};
use lb_common::{BackendId, Flow, HashKey};

use super::memory::Tables;
use super::plan::{Book, Observed, Op, Plan};
use super::walk::{self, Balanced, Found};
use super::want::Want;
use crate::model::Problem;

/// The balancer.
#[derive(Debug)]
pub struct Rehearsal {
    tables: Tables,
    book: Book,
    want: Want,
    key: HashKey,
    grace: u16,
    /// Flows forgotten within the grace time that were needed.
    forgotten: u64,
    /// When the last one was that was spare.
    spared: Option<u32>,
}

impl Rehearsal {
    /// One with `1 << flow_bits` places in its flow table and a grace time in units of
    /// [`lb_common::flows::clock`].
    pub fn new(key: HashKey, flow_bits: u8, grace: u16) -> Self {
        Self::on(Tables::owned(), key, flow_bits, grace)
    }

    /// The same on tables that another one used: making some takes as long as a short history.
    pub fn on(tables: Tables, key: HashKey, flow_bits: u8, grace: u16) -> Self {
        tables.store_epoch(lb_common::Epoch::default());
        let settings = Settings { key, flow_bits, grace, ..Settings::default() };
        tables.store_settings(&settings);
        tables.clear_flows();
        tables.store_past(Past::KNOWN);
        let (book, want) = (Book::new(key), Want::default());
        Self { tables, book, want, key, grace, forgotten: 0, spared: None }
    }

    /// The tables, to be used again.
    pub fn into_tables(self) -> Tables {
        self.tables
    }

    /// Takes tables that are new to `want`, where other balancers had tables before.
    pub fn begin(&mut self, want: &Want, now: u32) -> Vec<Problem> {
        self.tables.store_past(Past::new(now));
        let plan = self.book.plan_anew(want, now);
        let problems = self.take(want, plan, now);
        self.tables.review_past(self.book.contested(), now, self.grace.into());
        problems
    }

    /// Takes the tables to `want`.
    pub fn apply(&mut self, want: &Want, now: u32) -> Vec<Problem> {
        let plan = self.book.plan(want, now);
        self.take(want, plan, now)
    }

    fn take(&mut self, want: &Want, Plan { ops, problems }: Plan, now: u32) -> Vec<Problem> {
        self.carry_out(&ops);
        self.book.look(&self.tables, now);
        self.want.clone_from(want);
        problems
    }

    /// Settles what can be settled.
    pub fn settle(&mut self, now: u32) {
        self.settle_beside(now, &BTreeSet::new());
    }

    /// The same while flows are translated to these backends.
    pub fn settle_beside(&mut self, now: u32, translated: &BTreeSet<BackendId>) {
        let observed = Observed {
            now,
            grace: self.grace.into(),
            spared: self.spared,
            translated: Some((now, translated)),
        };
        let (plan, is_over) = self.book.settle(&self.tables, &observed);
        self.carry_out(&plan.ops);
        if is_over {
            let plan = self.book.plan(&self.want, now);
            self.carry_out(&plan.ops);
            self.book.look(&self.tables, now);
        }
        self.tables.review_past(self.book.contested(), now, self.grace.into());
    }

    fn carry_out(&self, ops: &[Op]) {
        ops.iter().for_each(|op| op.apply(&self.tables, &mut ()));
    }

    /// Where a packet goes; `None` if no VIP takes it.
    pub fn send(&mut self, flow: &Flow, kind: Kind, now: u32) -> Option<Choice> {
        match walk::send(&self.tables, flow, kind, now, self.key) {
            Found::Balanced(Balanced { choice, .. }) => {
                self.forgotten += u64::from(choice.noted.has(Noted::NEEDED));
                if choice.noted.has(Noted::SPARE) {
                    self.spared = Some(now);
                }
                Some(choice)
            }
            Found::NotOurs | Found::NoVip { .. } | Found::Restricted | Found::Punted { .. } => None,
        }
    }

    /// What is installed.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Flows seen within the grace time that were forgotten for want of room, and needed.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Entries of the flow table in use.
    pub fn remembered(&self) -> usize {
        self.tables.flow_words().filter(|word| *word != 0).count()
    }
}
