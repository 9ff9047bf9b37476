//! Active checks: endpoints are asked how they are, where an upstream says so, and who is unwell is
//! told to whoever sends requests there.
//!
//! One prober for all workers, away from every request. Who should be left alone and when all are
//! asked nevertheless is not decided here. TLS is spoken by [`Encrypt`], which is passed in.

mod checks;
mod probe;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use checks::{Checks, Due, News};
pub use probe::{Encrypt, Encrypting, Stream};

use crate::model::health::{Fault, Unwell};
use crate::model::l7::L7;
use crate::model::report::{Metric, MetricKind, Sample};

/// Of the descriptors that the process may open, probes have one in so many.
const DESCRIPTORS: u64 = 16;

/// The prober; it ends when this is dropped.
pub struct Prober {
    checks: Arc<Mutex<Checks>>,
    unwell: watch::Receiver<Arc<Unwell>>,
    task: JoinHandle<()>,
}

impl Prober {
    /// Checks what `desired` asks for, from now on and after every change. Who is `known` to be unwell begins so. `seed`
    /// decides the jitter.
    pub fn start(desired: watch::Receiver<Arc<L7>>, known: Unwell, encrypt: Encrypt, seed: u64) -> Self {
        let checks = Arc::new(Mutex::new(Checks::knowing(known, seed)));
        let (tell, unwell) = watch::channel(Arc::default());
        let task = tokio::spawn(run(Arc::clone(&checks), desired, encrypt, tell));
        Self { checks, unwell, task }
    }

    /// Who is unwell, from now on.
    pub fn unwell(&self) -> watch::Receiver<Arc<Unwell>> {
        self.unwell.clone()
    }

    /// What was asked and what came of it.
    pub fn metrics(&self) -> Vec<Metric> {
        let checks = lock(&self.checks);
        let mut well = Vec::new();
        for (target, finding) in checks.all() {
            let labels =
                vec![("upstream", target.upstream.0.clone()), ("endpoint", target.endpoint.to_string())];
            let value = if finding.is_none() { 1.0 } else { 0.0 };
            well.push(Sample { suffix: "", labels, value });
        }
        let mut probes = Vec::new();
        for (upstream, counts) in checks.counts() {
            let bad = Fault::LABELS.iter().map(|label| (*label, counts.bad.get(label).copied()));
            for (outcome, count) in [("good", Some(counts.good))].into_iter().chain(bad) {
                let labels = vec![("upstream", upstream.0.clone()), ("outcome", outcome.to_owned())];
                probes.push(Sample { suffix: "", labels, value: count.unwrap_or(0) as f64 });
            }
        }
        vec![
            Metric {
                name: "penstock_health_endpoint_well",
                help: "Whether active checks have nothing against an endpoint, of those that are checked.",
                kind: MetricKind::Gauge,
                samples: well,
            },
            Metric {
                name: "penstock_health_probes_total",
                help: "Probes of endpoints by what came of them.",
                kind: MetricKind::Counter,
                samples: probes,
            },
        ]
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Never held across an await.
fn lock(checks: &Mutex<Checks>) -> MutexGuard<'_, Checks> {
    checks.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    checks: Arc<Mutex<Checks>>,
    mut desired: watch::Receiver<Arc<L7>>,
    encrypt: Encrypt,
    tell: watch::Sender<Arc<Unwell>>,
) {
    let mut running: JoinSet<(Due, Result<(), Fault>)> = JoinSet::new();
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(descriptors / DESCRIPTORS).unwrap_or(usize::MAX).max(1);
    let follow = |l7: Arc<L7>| lock(&checks).follow(&l7, Instant::now());
    follow(Arc::clone(&desired.borrow_and_update()));
    let tell_unwell = || {
        let unwell = lock(&checks).unwell();
        tell.send_if_modified(|known| {
            let differs = **known != unwell;
            if differs {
                *known = Arc::new(unwell);
            }
            differs
        });
    };
    tell_unwell();
    loop {
        let at_once = lock(&checks).at_once().min(most);
        while running.len() < at_once
            && let Some(due) = lock(&checks).begin(Instant::now())
        {
            let encrypt = Arc::clone(&encrypt);
            running.spawn(async move {
                let outcome = probe::probe(due.target.endpoint, &due.check, &encrypt).await;
                (due, outcome)
            });
        }
        let next = lock(&checks).next().filter(|_| running.len() < at_once);
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => follow(Arc::clone(&desired.borrow_and_update())),
                Err(_) => return,
            },
            Some(ended) = running.join_next() => {
                let Ok((due, outcome)) = ended else { continue };
                let news = lock(&checks).ended(&due, outcome, Instant::now(), SystemTime::now());
                let (endpoint, upstream) = (due.target.endpoint, &due.target.upstream.0);
                match (news, outcome) {
                    (None, _) => continue,
                    (Some(News::Fell), Err(fault)) => {
                        tracing::warn!(%endpoint, upstream, %fault, "endpoint is unwell");
                    }
                    (Some(News::Rose), _) => tracing::info!(%endpoint, upstream, "endpoint is well again"),
                    (Some(News::Fell | News::OtherFault), _) => {}
                }
            }
            () = at(next) => continue,
        }
        tell_unwell();
    }
}

/// Never, where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
