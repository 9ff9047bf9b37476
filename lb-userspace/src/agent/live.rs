//! What the admin endpoint can ask the running agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::{oneshot, watch};

use super::{State, capture, question, status};
use crate::admin::{self, Live, exposition};
use crate::capture::Question;
use crate::config::Config;
use crate::health::Prober;
use crate::model::health::Unwell;
use crate::model::l4::FiveTuple;
use crate::model::l7::L7;
use crate::model::report::{Explanation, Metric, MetricKind, Sample};
use crate::{datapath, l7};

/// Whether the agent should get traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Starting,
    Serving,
    Draining,
}

/// What is in force.
pub(super) struct Told {
    pub(super) state: watch::Receiver<Arc<State>>,
    /// With the addresses of names.
    pub(super) l7: watch::Receiver<Arc<L7>>,
}

/// The running agent as [`Live`] sees it.
pub(super) struct LiveAgent {
    health: Mutex<Health>,
    started: Instant,
    source: String,
    health_path: String,
    proxy: Arc<l7::Running>,
    prober: Prober,
    datapath: Mutex<Option<Arc<datapath::Handle>>>,
    told: Told,
    /// Takeovers that led to this agent.
    takeovers: u64,
    /// Ends the capture that runs.
    stop_capture: Mutex<Option<oneshot::Sender<()>>>,
}

impl LiveAgent {
    pub(super) fn new(
        config: &Config,
        proxy: Arc<l7::Running>,
        prober: Prober,
        datapath: Option<Arc<datapath::Handle>>,
        told: Told,
        takeovers: u64,
    ) -> Self {
        Self {
            health: Mutex::new(Health::Starting),
            started: Instant::now(),
            source: config.manifests.display().to_string(),
            health_path: config.health_path.clone(),
            proxy,
            prober,
            datapath: Mutex::new(datapath),
            told,
            takeovers,
            stop_capture: Mutex::default(),
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// The kernel part, if it is ours.
    pub(super) fn datapath(&self) -> Option<Arc<datapath::Handle>> {
        self.datapath.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another in its place; returns the one before.
    pub(super) fn replace_datapath(
        &self,
        next: Option<Arc<datapath::Handle>>,
    ) -> Option<Arc<datapath::Handle>> {
        std::mem::replace(&mut *self.datapath.lock().unwrap_or_else(PoisonError::into_inner), next)
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.told.state.borrow())
    }

    /// What the proxy serves.
    fn l7(&self) -> Arc<L7> {
        Arc::clone(&self.told.l7.borrow())
    }

    fn unwell(&self) -> Arc<Unwell> {
        Arc::clone(&self.prober.unwell().borrow())
    }

    fn status(&self) -> status::Status {
        let datapath = self.datapath();
        status::Status::new(status::Parts {
            takeovers: self.takeovers,
            uptime: self.started.elapsed(),
            source: &self.source,
            state: &self.state(),
            l7: &self.l7(),
            unwell: &self.unwell(),
            listeners: self.proxy.addrs(),
            datapath: datapath.as_ref().map(|datapath| datapath.status()),
            extra_problems: datapath.as_ref().map(|datapath| datapath.problems()).unwrap_or_default(),
        })
    }
}

impl Live for LiveAgent {
    fn health(&self) -> Result<(), String> {
        match *self.health.lock().unwrap_or_else(PoisonError::into_inner) {
            Health::Serving => Ok(()),
            Health::Starting => Err("starting".to_owned()),
            Health::Draining => Err("draining".to_owned()),
        }
    }

    fn health_path(&self) -> &str {
        &self.health_path
    }

    fn metrics(&self) -> String {
        let mut metrics = agent_metrics(&self.state(), self.takeovers);
        metrics.extend(self.proxy.metrics());
        metrics.extend(self.prober.metrics());
        metrics.extend(self.datapath().map(|datapath| datapath.metrics()).unwrap_or_default());
        exposition::render(&metrics)
    }

    fn status_text(&self) -> String {
        self.status().to_string()
    }

    fn status_json(&self) -> serde_json::Value {
        serde_json::to_value(self.status()).unwrap_or_default()
    }

    fn explain_url(&self, url: &str, headers: &[(String, String)]) -> Result<Explanation, String> {
        let question = question::parse(url, headers)?;
        Ok(l7::explain::explain(&self.l7(), Some(&self.unwell()), &question))
    }

    fn explain_flow(&self, flow: &str) -> Result<Explanation, String> {
        let flow: FiveTuple = flow.parse()?;
        match self.datapath() {
            Some(datapath) => Ok(datapath.explain(flow)),
            None => Err(OFF.to_owned()),
        }
    }

    fn capture(&self, words: &[(String, String)]) -> Result<admin::Stream, admin::Refused> {
        use datapath::capture::Error;
        let question = Question::parse(words).map_err(admin::Refused::Question)?;
        let datapath = self.datapath().ok_or_else(|| admin::Refused::Question(OFF.to_owned()))?;
        let capture = datapath.capture(&question.filter).map_err(|error| match error {
            Error::Verdict { .. } => admin::Refused::Question(error.to_string()),
            Error::Busy => admin::Refused::Busy(error.to_string()),
            Error::Kernel(_) => admin::Refused::Failed(error.to_string()),
        })?;
        let (stop, stopped) = oneshot::channel();
        *self.stop_capture.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
        Ok(capture::run(capture, question, stopped))
    }

    fn stop_capture(&self) {
        // Dropping the sender is what ends it.
        self.stop_capture.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Said by whatever needs the kernel part.
const OFF: &str = "this agent runs with --datapath off: the kernel balances no flows";

/// What the agent knows by itself: the build, the snapshot in force, its problems and
/// certificates. Names of reference 5.2 where ingress-nginx has one.
fn agent_metrics(state: &State, takeovers: u64) -> Vec<Metric> {
    let gauge = |name, help, samples| Metric { name, help, kind: MetricKind::Gauge, samples };
    let counter = |name, help, samples| Metric { name, help, kind: MetricKind::Counter, samples };
    let sample = |labels: Vec<(&'static str, String)>, value: f64| Sample { suffix: "", labels, value };
    let one = |value: f64| vec![sample(Vec::new(), value)];

    let version = env!("CARGO_PKG_VERSION").to_owned();
    let at = state.at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    let mut problems: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for problem in &state.problems {
        *problems.entry((problem.reason, problem.severity.to_string())).or_default() += 1;
    }
    let mut secrets: Vec<_> = state.snapshot.l7.certificates.iter().collect();
    secrets.sort_by(|a, b| a.0.cmp(b.0));

    vec![
        gauge(
            "nginx_ingress_controller_build_info",
            "A metric with a constant '1' labeled with information about the build.",
            vec![sample(
                vec![("release", version), ("build", String::new()), ("repository", "penstock".to_owned())],
                1.0,
            )],
        ),
        gauge(
            "nginx_ingress_controller_config_last_reload_successful",
            "Whether the last snapshot was put in force (nothing reloads here).",
            one(1.0),
        ),
        gauge(
            "nginx_ingress_controller_config_last_reload_successful_timestamp_seconds",
            "When the snapshot in force was made.",
            one(at),
        ),
        counter(
            "nginx_ingress_controller_success",
            "Snapshots put in force since the start.",
            one(state.generation as f64),
        ),
        gauge(
            "nginx_ingress_controller_ssl_expire_time_seconds",
            "Seconds since the epoch at which a certificate expires.",
            secrets
                .iter()
                .map(|(host, certificate)| {
                    sample(
                        vec![
                            ("host", host.to_string()),
                            ("namespace", certificate.secret.namespace.clone()),
                            ("secret_name", certificate.secret.name.clone()),
                        ],
                        certificate.not_after as f64,
                    )
                })
                .collect(),
        ),
        counter(
            "penstock_agent_takeovers_total",
            "Processes that took over from the one before without a loss, since the first start.",
            one(takeovers as f64),
        ),
        gauge(
            "penstock_translate_problems",
            "Problems of objects in force, by reason.",
            problems
                .into_iter()
                .map(|((reason, severity), n)| {
                    sample(vec![("reason", reason.to_owned()), ("severity", severity)], n as f64)
                })
                .collect(),
        ),
    ]
}
