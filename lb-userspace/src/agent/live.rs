//! What the admin endpoint can ask the running agent.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::announcing::Announcer;
use super::desired::State;
use super::source::Reporter;
use super::{capture, certificates, metrics, process, question, status, trouble};
use crate::admin::{self, Live, exposition};
use crate::capture::Question;
use crate::config::Config;
use crate::export::Exporter;
use crate::health::Prober;
use crate::model::health::Unwell;
use crate::model::l4::FiveTuple;
use crate::model::l7::L7;
use crate::model::report::{Explanation, Metric};
use crate::model::{Problem, Problems};
use crate::{datapath, l7, webhook};

/// Whether the agent should get traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Starting,
    Serving,
    Draining,
}

/// What is in force.
pub(super) struct InForce {
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
    agent: metrics::Agent,
    proxy: Arc<l7::Running>,
    prober: Prober,
    exporter: Exporter,
    datapath: Mutex<Option<Arc<datapath::Handle>>>,
    told: InForce,
    /// What is wrong with certificates.
    certificates: watch::Receiver<Problems>,
    /// Takeovers that led to this agent.
    takeovers: u64,
    reporter: Option<Arc<Reporter>>,
    announcer: Announcer,
    /// Ends the capture that runs.
    stop_capture: Mutex<Option<oneshot::Sender<()>>>,
    /// Of the webhook, where there is one.
    reviews: OnceLock<Arc<webhook::Counts>>,
}

/// What a [`LiveAgent`] answers from.
pub(super) struct Parts {
    /// Where the objects come from, for people.
    pub(super) source: String,
    pub(super) proxy: Arc<l7::Running>,
    pub(super) prober: Prober,
    pub(super) exporter: Exporter,
    pub(super) datapath: Option<Arc<datapath::Handle>>,
    pub(super) told: InForce,
    /// What is wrong with certificates.
    pub(super) certificates: watch::Receiver<Problems>,
    pub(super) failures: Arc<metrics::Failures>,
    /// Takeovers that led to this agent.
    pub(super) takeovers: u64,
    /// Where the objects are a cluster's.
    pub(super) reporter: Option<Arc<Reporter>>,
    /// Who answers for VIPs on our links.
    pub(super) announcer: Announcer,
}

impl LiveAgent {
    pub(super) fn new(config: &Config, parts: Parts) -> Self {
        let Parts {
            source,
            proxy,
            prober,
            exporter,
            datapath,
            told,
            certificates,
            failures,
            takeovers,
            reporter,
            announcer,
        } = parts;
        Self {
            health: Mutex::new(Health::Starting),
            started: Instant::now(),
            source,
            health_path: config.health_path.clone(),
            agent: metrics::Agent::new(config, failures),
            proxy,
            prober,
            exporter,
            datapath: Mutex::new(datapath),
            told,
            certificates,
            takeovers,
            reporter,
            announcer,
            stop_capture: Mutex::default(),
            reviews: OnceLock::new(),
        }
    }

    /// Has the webhook's counts told with the others.
    pub(super) fn count_reviews(&self, counts: Arc<webhook::Counts>) {
        let _ = self.reviews.set(counts);
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

    /// Who answers for VIPs on our links.
    pub(super) fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Sends the last spans.
    pub(super) fn exporter(&self) -> &Exporter {
        &self.exporter
    }

    /// Where the objects come from.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.told.state.borrow())
    }

    /// What the proxy serves.
    fn l7(&self) -> Arc<L7> {
        Arc::clone(&self.told.l7.borrow())
    }

    fn flawed_certificates(&self) -> Problems {
        self.certificates.borrow().clone()
    }

    pub(super) fn unwell(&self) -> Arc<Unwell> {
        Arc::clone(&self.prober.unwell().borrow())
    }

    fn status(&self) -> status::Status {
        let datapath = self.datapath();
        let reporter = self.reporter.as_ref();
        let of_datapath = datapath.iter().flat_map(|datapath| datapath.problems());
        status::Status::new(status::Parts {
            takeovers: self.takeovers,
            uptime: self.started.elapsed(),
            source: &self.source,
            age: reporter.map(|reporter| reporter.age()),
            lease: reporter.and_then(|reporter| reporter.lease()),
            state: &self.state(),
            l7: &self.l7(),
            unwell: &self.unwell(),
            failing: &self.proxy.failing(),
            listeners: self.proxy.addrs(),
            datapath: datapath.as_ref().map(|datapath| datapath.status()),
            announced: &self.announcer.announced(),
            extra_problems: self
                .flawed_certificates()
                .iter()
                .map(|problem| Problem::clone(problem))
                .chain(of_datapath)
                .chain(self.exporter.problem())
                .chain(self.proxy.log_trouble().map(trouble::of_access_log))
                .chain(trouble::of_names(&self.l7()))
                .chain(self.announcer.problems())
                .chain(reporter.into_iter().flat_map(|reporter| reporter.problems()))
                .collect(),
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
        let mut page = exposition::Page::default();
        let mut tell = |metric: Metric| page.add(&metric, self.agent.constants(metric.name));
        let (state, flawed) = (self.state(), self.flawed_certificates());
        self.agent.metrics(&state, &flawed, &self.l7(), self.takeovers).into_iter().for_each(&mut tell);
        process::metrics().into_iter().for_each(&mut tell);
        self.proxy.tell_metrics(&mut tell);
        self.prober.metrics().into_iter().for_each(&mut tell);
        self.exporter.metrics().into_iter().for_each(&mut tell);
        self.reporter.iter().flat_map(|reporter| reporter.metrics()).for_each(&mut tell);
        self.reviews.get().into_iter().flat_map(|counts| counts.metrics()).for_each(&mut tell);
        self.announcer.metrics().into_iter().for_each(&mut tell);
        self.datapath().into_iter().flat_map(|datapath| datapath.metrics()).for_each(&mut tell);
        page.into_text()
    }

    fn status_text(&self) -> String {
        self.status().to_string()
    }

    fn status_json(&self) -> serde_json::Value {
        serde_json::to_value(self.status()).unwrap_or_default()
    }

    fn explain_url(&self, url: &str, headers: &[(String, String)]) -> Result<Explanation, String> {
        let question = question::parse(url, headers)?;
        let known = l7::explain::Known { unwell: self.unwell(), failing: self.proxy.failing() };
        let l7 = self.l7();
        let problems = &self.state().problems;
        let mut explanation = l7::explain::explain(&l7, Some(&known), problems, &question);
        if question.scheme == l7::explain::Scheme::Https {
            certificates::explain(&mut explanation, &l7, problems, &question.host, certificates::now());
        }
        Ok(explanation)
    }

    fn explain_flow(&self, flow: &str) -> Result<Explanation, String> {
        let flow: FiveTuple = flow.parse()?;
        match self.datapath() {
            Some(datapath) => {
                let mut explanation = datapath.explain(flow);
                explanation.steps.splice(..0, self.announcer.step(flow.dst.ip()));
                Ok(explanation)
            }
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
