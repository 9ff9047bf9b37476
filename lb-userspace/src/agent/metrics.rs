//! What the agent tells of itself: the build, the snapshot in force, its certificates and problems.
//! ingress-nginx's names where it has one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use super::desired::State;
use super::{fingerprint, logging};
use crate::config::Config;
use crate::model::l7::{Action, Certificate, HostMatch, L7};
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::{ObjectName, Problems};
use crate::panics;

/// Metrics of ingress-nginx that say nothing of the controller they come from.
const WITHOUT_CONSTANTS: [&str; 3] = [
    "nginx_ingress_controller_build_info",
    "nginx_ingress_controller_ssl_expire_time_seconds",
    "nginx_ingress_controller_ssl_certificate_info",
];

/// Translations that did not come to an end, which no input may bring about.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: AtomicU64,
    /// The last one failed.
    is_last: AtomicBool,
}

impl Failures {
    pub(super) fn succeeded(&self) {
        self.is_last.store(false, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_last.store(true, Ordering::Relaxed);
    }
}

/// What stays the same while the agent runs, and what is not made anew for every scrape.
pub(super) struct Agent {
    class: String,
    /// Labels of every metric that bears ingress-nginx's name.
    constants: Vec<(&'static str, String)>,
    failures: Arc<Failures>,
    /// Of a generation.
    hash: Mutex<(u64, f64)>,
}

impl Agent {
    pub(super) fn new(config: &Config, failures: Arc<Failures>) -> Self {
        let class = config.translate.controller_class.as_deref().unwrap_or("k8s.io/ingress-nginx").to_owned();
        let constants = vec![
            ("controller_class", class.clone()),
            ("controller_namespace", config.pod.namespace.clone()),
            ("controller_pod", config.pod.name.clone()),
        ];
        Self { class, constants, failures, hash: Mutex::new((0, 0.0)) }
    }

    /// Labels that this metric has beside its own.
    pub(super) fn constants(&self, metric: &str) -> &[(&'static str, String)] {
        if metric.starts_with("nginx_ingress_controller_") && !WITHOUT_CONSTANTS.contains(&metric) {
            return &self.constants;
        }
        &[]
    }

    /// What the agent itself has to tell; `flawed`: certificates, `l7`: that of the state, with the addresses of names.
    pub(super) fn metrics(&self, state: &State, flawed: &Problems, l7: &L7, takeovers: u64) -> Vec<Metric> {
        let gauge = |name, help, samples| Metric { name, help, kind: MetricKind::Gauge, samples };
        let counter = |name, help, samples| Metric { name, help, kind: MetricKind::Counter, samples };
        let sample = |labels: Vec<(&'static str, String)>, value: f64| Sample { suffix: "", labels, value };
        let one = |value: f64| vec![sample(Vec::new(), value)];

        let version = env!("CARGO_PKG_VERSION").to_owned();
        let at = state.at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
        let mut problems: BTreeMap<(&str, String), u64> = BTreeMap::new();
        for problem in state.problems.iter().chain(flawed) {
            *problems.entry((problem.reason, problem.severity.to_string())).or_default() += 1;
        }
        let problems = problems.into_iter().map(|((reason, severity), n)| {
            sample(vec![("reason", reason.to_owned()), ("severity", severity)], n as f64)
        });
        let build =
            vec![("release", version), ("build", String::new()), ("repository", "penstock".to_owned())];
        let (expiries, certificates) = certificates(&state.snapshot.l7, &self.class);
        let is_failing = self.failures.is_last.load(Ordering::Relaxed);

        vec![
            gauge(
                "nginx_ingress_controller_build_info",
                "A metric with a constant '1' labeled with information about the build.",
                vec![sample(build, 1.0)],
            ),
            gauge(
                "nginx_ingress_controller_config_hash",
                "Running configuration hash: the same for the same snapshot.",
                one(self.hash(state)),
            ),
            gauge(
                "nginx_ingress_controller_config_last_reload_successful",
                "Whether the last snapshot was put in force (nothing reloads here).",
                one(f64::from(u8::from(!is_failing))),
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
            counter(
                "nginx_ingress_controller_errors",
                "Snapshots that could not be made since the start.",
                one(self.failures.count.load(Ordering::Relaxed) as f64),
            ),
            gauge(
                "nginx_ingress_controller_ssl_expire_time_seconds",
                "Seconds since the epoch at which a certificate expires.",
                expiries,
            ),
            gauge(
                "nginx_ingress_controller_ssl_certificate_info",
                "Holds all labels associated to a certificate.",
                certificates,
            ),
            gauge(
                "nginx_ingress_controller_orphan_ingress",
                "Gauge reporting status of ingress orphanage, 1 indicates orphaned ingress.",
                orphans(l7, &state.problems),
            ),
            counter(
                "penstock_agent_takeovers_total",
                "Processes that took over from the one before without a loss, since the first start.",
                one(takeovers as f64),
            ),
            counter(
                "penstock_agent_log_lost_lines_total",
                "Lines of the agent's log that standard error did not take.",
                one(logging::lost_lines() as f64),
            ),
            counter(
                "penstock_agent_panics_total",
                "Errors of the program itself that cost one connection, object or answer.",
                one(panics::contained() as f64),
            ),
            gauge(
                "penstock_translate_problems",
                "Problems of objects in force, by reason.",
                problems.collect(),
            ),
        ]
    }

    fn hash(&self, state: &State) -> f64 {
        let mut known = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != state.generation {
            *known = (state.generation, fingerprint::of(&state.snapshot));
        }
        known.1
    }
}

/// When each host's certificate expires, and what it says of itself.
fn certificates(l7: &L7, class: &str) -> (Vec<Sample>, Vec<Sample>) {
    let of_host = |(host, certificate): (&HostMatch, &Certificate)| {
        let leaf = &certificate.leaf;
        let labels = vec![
            ("namespace", certificate.secret.namespace.clone()),
            ("class", class.to_owned()),
            ("host", host.to_string()),
            ("secret_name", certificate.secret.name.clone()),
            ("identifier", format!("{}-{}", leaf.issuer, leaf.serial)),
        ];
        let further = [
            ("issuer_organization", leaf.issuer_organization.clone()),
            ("issuer_common_name", leaf.issuer_common_name.clone()),
            ("serial_number", leaf.serial.clone()),
            ("public_key_algorithm", leaf.key_algorithm.clone()),
        ];
        let info = labels.iter().cloned().chain(further).collect();
        let expiry = Sample { suffix: "", labels, value: certificate.not_after as f64 };
        (expiry, Sample { suffix: "", labels: info, value: 1.0 })
    };
    l7.certificates.iter().map(of_host).unzip()
}

/// For each Ingress whether a Service that it names is missing, and whether one has no endpoint.
fn orphans(l7: &L7, problems: &Problems) -> Vec<Sample> {
    let missing: BTreeSet<_> = problems
        .iter()
        .filter(|problem| problem.object.kind == "Ingress" && problem.reason == "missing-service")
        .map(|problem| (problem.object.namespace.as_str(), problem.object.name.as_str()))
        .collect();
    let mut ingresses: BTreeMap<&ObjectName, bool> = BTreeMap::new();
    for location in l7.servers.values().flat_map(|server| &server.locations) {
        let Some(ingress) = &location.ingress else { continue };
        let is_empty = match &location.action {
            Action::Proxy(name) => {
                l7.upstreams.get(name).is_none_or(|upstream| upstream.endpoints.is_empty())
            }
            _ => false,
        };
        *ingresses.entry(ingress).or_default() |= is_empty;
    }
    let sample = |ingress: &ObjectName, kind: &str, is_so: bool| Sample {
        suffix: "",
        labels: vec![
            ("namespace", ingress.namespace.clone()),
            ("ingress", ingress.name.clone()),
            ("type", kind.to_owned()),
        ],
        value: f64::from(u8::from(is_so)),
    };
    ingresses
        .into_iter()
        .flat_map(|(ingress, is_empty)| {
            let lacks = missing.contains(&(ingress.namespace.as_str(), ingress.name.as_str()));
            [sample(ingress, "no-service", lacks), sample(ingress, "no-endpoint", is_empty && !lacks)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Snapshot;
    use crate::model::l7::{HostMatch, Location, PathMatch, Server, Upstream, UpstreamName};
    use crate::model::problem::{ObjectId, Problem, Severity};

    #[test]
    fn an_ingress_whose_addresses_come_by_dns_is_no_orphan() {
        let name = UpstreamName("external".to_owned());
        let location = Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: Some(ObjectName::new("default", "external")),
            backend: None,
            action: Action::Proxy(name.clone()),
            filters: Default::default(),
        };
        let server = Server { locations: vec![location], ..Server::default() };
        let translated = L7 {
            servers: [(HostMatch::Any, server)].into(),
            upstreams: [(name, Upstream::default())].into(),
            ..L7::default()
        };
        let mut filled = translated.clone();
        let addr = "192.0.2.1:443".parse().unwrap();
        filled.upstreams.edit(|_, upstream| {
            upstream.endpoints.insert(addr);
        });
        let state = State {
            objects: Default::default(),
            snapshot: Snapshot { l7: Arc::new(translated), ..Snapshot::default() },
            problems: Problems::new(),
            given: Arc::default(),
            served: Default::default(),
            lost: Vec::new(),
            kept: Vec::new(),
            generation: 1,
            at: UNIX_EPOCH,
        };
        let agent = Agent {
            class: String::new(),
            constants: Vec::new(),
            failures: Arc::default(),
            hash: Mutex::default(),
        };

        let told = agent.metrics(&state, &Problems::new(), &filled, 0);

        let orphans = told.iter().find(|metric| metric.name == "nginx_ingress_controller_orphan_ingress");
        let values: Vec<_> = orphans.expect("told").samples.iter().map(|sample| sample.value).collect();
        assert_eq!(values, [0.0, 0.0]);
    }

    #[test]
    fn an_ingress_is_an_orphan_while_its_service_or_its_endpoints_are_missing() {
        let location = |ingress: &str| Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: Some(ObjectName::new("default", ingress)),
            backend: None,
            action: Action::Proxy(UpstreamName(ingress.to_owned())),
            filters: Default::default(),
        };
        let locations = ["fine", "empty", "lost"].map(location).to_vec();
        let fine = Upstream { endpoints: ["10.0.0.1:80".parse().unwrap()].into(), ..Upstream::default() };
        let l7 = L7 {
            servers: [(HostMatch::Any, Server { locations, ..Server::default() })].into(),
            upstreams: [
                (UpstreamName("fine".to_owned()), fine),
                (UpstreamName("empty".to_owned()), Upstream::default()),
                (UpstreamName("lost".to_owned()), Upstream::default()),
            ]
            .into(),
            ..L7::default()
        };
        let object = ObjectId {
            kind: "Ingress".to_owned(),
            namespace: "default".to_owned(),
            name: "lost".to_owned(),
            ..ObjectId::default()
        };
        let problem = Problem {
            object,
            severity: Severity::Warning,
            reason: "missing-service",
            field: String::new(),
            message: String::new(),
            fix: String::new(),
        };

        let found: Vec<_> = orphans(&l7, &Problems::unit(Arc::new(problem)))
            .into_iter()
            .map(|sample| {
                let words: Vec<_> = sample.labels.into_iter().map(|(_, value)| value).collect();
                format!("{} {}", words.join(" "), sample.value)
            })
            .collect();

        assert_eq!(
            found,
            [
                "default empty no-service 0",
                "default empty no-endpoint 1",
                "default fine no-service 0",
                "default fine no-endpoint 0",
                "default lost no-service 1",
                "default lost no-endpoint 0",
            ]
        );
    }
}
