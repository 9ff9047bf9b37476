//! What is written back: by the holder of the Lease, from what the agent reports.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};
use tracing::warn;

use super::events::{Counts, Memory, Recorder};
use super::lease::{self, Election};
use super::status::{StatusOptions, Told, Writer};
use super::write_health::{Holder, WriteHealth};
use super::{Cluster, Followed};
use crate::model::pool::Given;
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::{Names, ObjectName, Problem, Problems};
use crate::objects::Loaded;

/// Longest time for what is written at the end: as long as that takes, and for each object that may have to be
/// written, up to a minute more.
const FAREWELL: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_millis(30);
const MOST: Duration = Duration::from_secs(60);

/// So many of those before are kept with a report.
const LATELY: usize = 1000;

/// What the agent made of a state.
#[derive(Debug, Default)]
pub struct Report {
    /// The state.
    pub loaded: Arc<Loaded>,
    /// Ingresses of ours.
    pub served: Names,
    /// Addresses that Services have of us; their status is ours to write.
    pub given: Arc<Given>,
    /// Of all objects.
    pub problems: Problems,
    /// Services that lost addresses of the pools.
    pub lost: Lost,
}

/// Problems of a moment, of this report and of those before it, because not every report is looked at.
#[derive(Debug, Clone, Default)]
pub struct Lost(Arc<Vec<(u64, Problem)>>);

impl Lost {
    /// With those of another state, by its number.
    pub fn with(&self, generation: u64, more: &[Problem]) -> Self {
        if more.is_empty() || generation <= self.newest() {
            return self.clone();
        }
        let old = self.0.get(self.0.len().saturating_sub(LATELY)..).unwrap_or_default().iter().cloned();
        Self(Arc::new(old.chain(more.iter().map(|one| (generation, one.clone()))).collect()))
    }

    /// The number of the last state that had any.
    pub(super) fn newest(&self) -> u64 {
        self.0.last().map_or(0, |(generation, _)| *generation)
    }

    /// Those of later states.
    pub(super) fn since(&self, generation: u64) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(move |(of, _)| *of > generation).map(|(_, problem)| problem)
    }
}

/// Who writes what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// Who of several agents writes; `None`: we do.
    pub election: Option<Election>,
    /// `None`: status is left alone.
    pub status: Option<StatusOptions>,
    /// Tell which Ingresses are taken up.
    pub sync_events: bool,
    /// The pod that we are.
    pub pod: ObjectName,
}

/// Writes for as long as it lives.
pub struct Writing {
    client: kube::Client,
    options: WriteOptions,
    leads: watch::Receiver<bool>,
    report: watch::Receiver<Arc<Report>>,
    aside: watch::Receiver<Arc<super::Aside>>,
    counts: Arc<Counts>,
    health: Arc<WriteHealth>,
    tasks: JoinSet<()>,
}

/// Begins to write what is reported.
pub fn write(
    cluster: &Cluster,
    followed: &Followed,
    options: WriteOptions,
    report: watch::Receiver<Arc<Report>>,
) -> Writing {
    let client = cluster.client.clone();
    let (sender, leads) = watch::channel(options.election.is_none());
    let (mut tasks, health) = (JoinSet::new(), Arc::<WriteHealth>::default());
    match &options.election {
        Some(election) => {
            tasks.spawn(lease::stand(client.clone(), election.clone(), sender, Arc::clone(&health)));
        }
        None => {
            // For as long as somebody asks.
            tasks.spawn(async move { sender.closed().await });
        }
    }
    let counts = Arc::new(Counts::default());
    let writing =
        Writing { client, options, leads, report, aside: followed.aside.clone(), counts, health, tasks };
    writing.begin()
}

impl Writing {
    fn begin(mut self) -> Self {
        if let Some(writer) = self.writer() {
            self.tasks.spawn(writer.run());
        }
        let recorder = Recorder {
            client: self.client.clone(),
            instance: self.options.pod.name.clone(),
            sync: self.options.sync_events,
            report: self.report.clone(),
            aside: self.aside.clone(),
            leads: self.leads.clone(),
            counts: Arc::clone(&self.counts),
            health: Arc::clone(&self.health),
            memory: Memory::default(),
        };
        self.tasks.spawn(recorder.run());
        self
    }

    fn writer(&self) -> Option<Writer> {
        Some(Writer {
            client: self.client.clone(),
            options: self.options.status.clone()?,
            pod: self.options.pod.clone(),
            report: self.report.clone(),
            aside: self.aside.clone(),
            leads: self.leads.clone(),
            health: Arc::clone(&self.health),
            pods: None,
            ingresses: Told::default(),
            services: Told::default(),
            last: None,
        })
    }

    /// Writes what is to be written when nobody goes on here, and lets others write.
    pub async fn end(mut self) {
        let leads = self.leads.clone();
        let led = *leads.borrow();
        let objects = {
            let report = self.report.borrow();
            report.served.len() + report.given.len()
        };
        let each = EACH.saturating_mul(u32::try_from(objects).unwrap_or(u32::MAX));
        let longest = FAREWELL + each.min(MOST);
        let farewell = async {
            let writer = self.writer();
            // Nobody writes meanwhile what is to be taken out.
            self.tasks.shutdown().await;
            if let Some(writer) = writer.filter(|_| led) {
                writer.clear().await;
            }
            if let Some(election) = &self.options.election
                && let Err(failure) = lease::release(self.client.clone(), election).await
            {
                warn!(lease = election.id, failure.message, "not given back; others wait until it is over");
            }
        };
        if timeout(longest, farewell).await.is_err() {
            warn!("the API server did not take the farewell in time");
        }
    }

    /// The Lease by whose holder all is written, and who that is, where it is known; `None`: nobody is asked.
    pub fn lease(&self) -> Option<(&str, Option<Holder>)> {
        let election = self.options.election.as_ref()?;
        // We know that we gave it up before the API server can tell who has it.
        let holder = self.health.holder().filter(|holder| !holder.is_us || *self.leads.borrow());
        Some((&election.id, holder))
    }

    /// What cannot be written.
    pub fn problems(&self) -> Vec<Problem> {
        self.health.problems()
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        let one = |labels, value| vec![Sample { suffix: "", labels, value }];
        let count =
            |counter: &std::sync::atomic::AtomicU64| one(Vec::new(), counter.load(Ordering::Relaxed) as f64);
        let name = self.options.election.as_ref().map_or("", |election| &election.id).to_owned();
        vec![
            Metric {
                name: "nginx_ingress_controller_leader_election_status",
                help: "Whether this agent holds the Lease and writes back.",
                kind: MetricKind::Gauge,
                samples: one(vec![("name", name)], f64::from(u8::from(*self.leads.borrow()))),
            },
            Metric {
                name: "penstock_cluster_events_total",
                help: "Events that were written.",
                kind: MetricKind::Counter,
                samples: count(&self.counts.told),
            },
            Metric {
                name: "penstock_cluster_events_dropped_total",
                help: "Events that were too many or not taken.",
                kind: MetricKind::Counter,
                samples: count(&self.counts.dropped),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectId, Severity};

    fn problem(name: &str) -> Problem {
        let object = ObjectId { name: name.to_owned(), ..ObjectId::default() };
        let (field, message, fix) = Default::default();
        Problem { object, severity: Severity::Warning, reason: "address-lost", field, message, fix }
    }

    #[test]
    fn what_was_lost_between_two_looks_is_seen_by_the_second() {
        let seen = Lost::default().with(3, &[problem("before")]);

        // Another state follows, and is another report, before anybody looks.
        let now = seen.with(4, &[problem("a"), problem("b")]).with(5, &[]).with(5, &[problem("c")]);

        let names =
            |lost: &Lost, since| lost.since(since).map(|it| it.object.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&now, seen.newest()), ["a", "b", "c"]);
        assert_eq!(names(&now.with(5, &[problem("c")]), now.newest()), [""; 0], "the same state");
    }

    #[test]
    fn of_what_was_lost_long_ago_so_much_is_kept() {
        let many: Vec<Problem> = (0..3 * LATELY).map(|one| problem(&one.to_string())).collect();

        let lost = Lost::default().with(1, &many).with(2, &[problem("last")]);

        assert_eq!(lost.since(0).count(), LATELY + 1);
    }
}
