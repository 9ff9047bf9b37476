//! What one worker counts, and all workers' counts as metrics. A worker counts in plain integers
//! of its own; a scrape asks each for a copy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::route::{Labels, Router};
use super::spill::Cause;
use super::upstream::Attempt;
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::upstream::Condition;

/// Upper bounds of the duration buckets in seconds, Prometheus' defaults as ingress-nginx has them.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Methods as metrics tell them apart; unknown ones share one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl Method {
    pub(super) fn of(method: &str) -> Self {
        match method {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// How an upstream let a request down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Failure {
    /// Refused or unreachable.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// No TLS: refused, unverified, or not spoken there.
    Tls,
    /// Closed without a response.
    Closed,
    /// No response in time.
    Timeout,
    /// Not HTTP/1.x.
    BadResponse,
    /// The head of the response is longer than `proxy-buffer-size`.
    HeadTooLarge,
    /// Stopped in the middle of a response.
    CutOff,
}

impl Failure {
    /// What the client is answered, where it still can be.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::ConnectTimeout | Self::Timeout => 504,
            Self::Connect
            | Self::Tls
            | Self::Closed
            | Self::BadResponse
            | Self::HeadTooLarge
            | Self::CutOff => 502,
        }
    }

    /// What nginx calls it where it decides about another attempt.
    pub(super) fn condition(self) -> Condition {
        match self {
            Self::ConnectTimeout | Self::Timeout => Condition::Timeout,
            Self::Connect | Self::Tls | Self::Closed | Self::CutOff => Condition::Error,
            Self::BadResponse | Self::HeadTooLarge => Condition::InvalidHeader,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::BadResponse => "bad-response",
            Self::HeadTooLarge => "head-too-large",
            Self::CutOff => "cut-off",
        }
    }
}

/// Why a connection was closed before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Refused {
    /// No PROXY header where one is due.
    ProxyHeader,
    /// No ClientHello in time, or none that fits a buffer.
    Hello,
    /// A name that no server has (`ssl-reject-handshake`).
    UnknownName,
    /// TLS to be handed on, and nobody to take it.
    NoEndpoint,
}

impl Refused {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ProxyHeader => "proxy-header",
            Self::Hello => "client-hello",
            Self::UnknownName => "unknown-name",
            Self::NoEndpoint => "no-endpoint",
        }
    }
}

/// Why a client was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Denied {
    /// No password, or not the right one.
    Password,
    /// Too many passwords are being checked.
    Busy,
    /// An address that is not listed, where nothing else was shown that would do.
    Address,
    /// An auth service said no.
    Service,
    /// An auth service did not say yes or no.
    Unanswered,
}

impl Denied {
    fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Busy => "busy",
            Self::Address => "address",
            Self::Service => "service",
            Self::Unanswered => "unanswered",
        }
    }
}

/// TLS that was handed on unopened.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Passthrough {
    pub(super) connections: u64,
    /// From clients.
    pub(super) up_bytes: u64,
    /// To clients.
    pub(super) down_bytes: u64,
}

/// How long something took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Times {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

impl Times {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.seconds += seconds;
        let reached = BUCKETS.iter().position(|bound| seconds <= *bound);
        if let Some(bucket) = reached.and_then(|at| self.buckets.get_mut(at)) {
            *bucket += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// Requests of one route, method and status.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Series {
    requests: Times,
    /// Those of the upstream, of requests that one attempt was enough for.
    connect: Times,
    header: Times,
    response: Times,
}

impl Series {
    fn add(&mut self, other: &Self) {
        let Self { requests, connect, header, response } = other;
        self.requests.add(requests);
        self.connect.add(connect);
        self.header.add(header);
        self.response.add(response);
    }
}

/// Counters of one worker, or of several added up; these pass from process to process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Counters {
    /// By number of the route in the snapshot of the moment.
    #[serde(skip)]
    live: HashMap<(usize, Method, u16), (Arc<Labels>, Series)>,
    /// Of earlier snapshots, for as long as their routes exist.
    #[serde(with = "as_list")]
    settled: HashMap<(Arc<Labels>, Method, u16), Series>,
    refused: HashMap<u16, u64>,
    failures: HashMap<Failure, u64>,
    refused_connections: HashMap<Refused, u64>,
    spill_failures: HashMap<Cause, u64>,
    denied: HashMap<Denied, u64>,
    pub(super) passthrough: Passthrough,
    pub(super) accepted: u64,
    #[serde(skip)]
    pub(super) active: u64,
    /// Times a worker stopped accepting because of its connection limit.
    pub(super) full: u64,
    pub(super) failed_handshakes: u64,
    /// HTTP/2 connections ended because of frames without use.
    pub(super) http2_floods: u64,
    pub(super) upstream_connections: u64,
    #[serde(skip)]
    pub(super) idle_upstream: u64,
    /// Connections to endpoints that carry HTTP/2.
    pub(super) http2_upstream: u64,
    requests: u64,
}

impl Counters {
    /// One finished request; `route`: the number of its route, if its snapshot is the one in force.
    pub(super) fn request(
        &mut self,
        route: Option<usize>,
        labels: &Arc<Labels>,
        method: Method,
        status: u16,
        took: Duration,
        attempt: Option<&Attempt>,
    ) {
        self.requests += 1;
        let series = match route {
            Some(route) => {
                let known = self.live.entry((route, method, status));
                &mut known.or_insert_with(|| (Arc::clone(labels), Series::default())).1
            }
            None => self.settled.entry((Arc::clone(labels), method, status)).or_default(),
        };
        series.requests.observe(took);
        let Some(Attempt { connect, header, response, .. }) = attempt else { return };
        if let Some(connect) = connect {
            series.connect.observe(*connect);
        }
        if let Some(header) = header {
            series.header.observe(*header);
            series.response.observe(*response);
        }
    }

    /// A head that was refused before it had a route.
    pub(super) fn refused(&mut self, status: u16) {
        *self.refused.entry(status).or_default() += 1;
    }

    /// A connection that came to no request.
    pub(super) fn refused_connection(&mut self, cause: Refused) {
        *self.refused_connections.entry(cause).or_default() += 1;
    }

    /// A body that could not be put into a file.
    pub(super) fn spill_failure(&mut self, cause: Cause) {
        *self.spill_failures.entry(cause).or_default() += 1;
    }

    /// A request whose client was not let in.
    pub(super) fn denied(&mut self, cause: Denied) {
        *self.denied.entry(cause).or_default() += 1;
    }

    pub(super) fn upstream_failure(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// A new snapshot numbers its routes anew. Series of routes that are gone go with them, which
    /// bounds the memory.
    pub(super) fn settle(&mut self, next: &Router) {
        let kept: std::collections::HashSet<&Labels> = next.labels.iter().map(|labels| &**labels).collect();
        self.settled.retain(|(labels, ..), _| kept.contains(&**labels));
        for ((_, method, status), (labels, series)) in self.live.drain() {
            if kept.contains(&*labels) {
                self.settled.entry((labels, method, status)).or_default().add(&series);
            }
        }
    }

    /// Adds another worker's counters.
    pub(super) fn add(&mut self, other: &Self) {
        for ((_, method, status), (labels, series)) in &other.live {
            self.settled.entry((Arc::clone(labels), *method, *status)).or_default().add(series);
        }
        for (key, series) in &other.settled {
            self.settled.entry(key.clone()).or_default().add(series);
        }
        for (status, count) in &other.refused {
            *self.refused.entry(*status).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        for (cause, count) in &other.refused_connections {
            *self.refused_connections.entry(*cause).or_default() += count;
        }
        for (cause, count) in &other.spill_failures {
            *self.spill_failures.entry(*cause).or_default() += count;
        }
        for (cause, count) in &other.denied {
            *self.denied.entry(*cause).or_default() += count;
        }
        self.passthrough.connections += other.passthrough.connections;
        self.passthrough.up_bytes += other.passthrough.up_bytes;
        self.passthrough.down_bytes += other.passthrough.down_bytes;
        self.accepted += other.accepted;
        self.active += other.active;
        self.full += other.full;
        self.failed_handshakes += other.failed_handshakes;
        self.http2_floods += other.http2_floods;
        self.upstream_connections += other.upstream_connections;
        self.idle_upstream += other.idle_upstream;
        self.http2_upstream += other.http2_upstream;
        self.requests += other.requests;
    }

    /// As metrics, under ingress-nginx's names where it has one (reference 5.1 and 5.3).
    pub(super) fn report(&self, workers: usize) -> Vec<Metric> {
        let mut series: Vec<_> = self.settled.iter().collect();
        series.sort_by(|a, b| a.0.cmp(b.0));
        let (mut requests, mut durations) = (Vec::new(), Vec::new());
        let (mut connects, mut headers, mut responses) = (Vec::new(), Vec::new(), Vec::new());
        for ((labels, method, status), series) in series {
            let labels = request_labels(labels, *method, *status);
            requests.push(Sample { suffix: "", labels: labels.clone(), value: series.requests.count as f64 });
            histogram(&mut durations, &labels, &series.requests);
            histogram(&mut connects, &labels, &series.connect);
            histogram(&mut headers, &labels, &series.header);
            histogram(&mut responses, &labels, &series.response);
        }
        let times = |name, help, samples| Metric { name, help, kind: MetricKind::Histogram, samples };
        let counter = |name, help, value: u64| Metric {
            name,
            help,
            kind: MetricKind::Counter,
            samples: vec![Sample { suffix: "", labels: Vec::new(), value: value as f64 }],
        };
        let labelled = |name, help, kind, label: &'static str, values: Vec<(String, u64)>| Metric {
            name,
            help,
            kind,
            samples: values
                .into_iter()
                .map(|(value, count)| Sample {
                    suffix: "",
                    labels: vec![(label, value)],
                    value: count as f64,
                })
                .collect(),
        };
        let refused = self.refused.iter().map(|(status, n)| (status.to_string(), *n)).collect();
        let failures = self.failures.iter().map(|(failure, n)| (failure.as_str().to_owned(), *n)).collect();
        vec![
            Metric {
                name: "nginx_ingress_controller_requests",
                help: "The total number of client requests.",
                kind: MetricKind::Counter,
                samples: requests,
            },
            Metric {
                name: "nginx_ingress_controller_request_duration_seconds",
                help: "The request processing time in seconds.",
                kind: MetricKind::Histogram,
                samples: durations,
            },
            times(
                "nginx_ingress_controller_connect_duration_seconds",
                "The time spent on establishing a connection with the upstream server.",
                connects,
            ),
            times(
                "nginx_ingress_controller_header_duration_seconds",
                "The time spent on receiving first header from the upstream server.",
                headers,
            ),
            times(
                "nginx_ingress_controller_response_duration_seconds",
                "The time spent on receiving the response from the upstream server.",
                responses,
            ),
            labelled(
                "nginx_ingress_controller_nginx_process_connections",
                "Current number of client connections by state.",
                MetricKind::Gauge,
                "state",
                vec![("active".to_owned(), self.active)],
            ),
            labelled(
                "nginx_ingress_controller_nginx_process_connections_total",
                "Total number of client connections by state.",
                MetricKind::Counter,
                "state",
                vec![("accepted".to_owned(), self.accepted), ("handled".to_owned(), self.accepted)],
            ),
            counter(
                "nginx_ingress_controller_nginx_process_requests_total",
                "Total number of client requests.",
                self.requests,
            ),
            Metric {
                name: "nginx_ingress_controller_nginx_process_num_procs",
                help: "Number of proxy workers.",
                kind: MetricKind::Gauge,
                samples: vec![Sample { suffix: "", labels: Vec::new(), value: workers as f64 }],
            },
            labelled(
                "penstock_l7_refused_heads_total",
                "Request heads refused before routing, by status.",
                MetricKind::Counter,
                "status",
                refused,
            ),
            labelled(
                "penstock_l7_upstream_failures_total",
                "Attempts at an upstream that gave no whole response, by cause.",
                MetricKind::Counter,
                "cause",
                failures,
            ),
            counter(
                "penstock_l7_upstream_connections_total",
                "Connections opened to endpoints.",
                self.upstream_connections,
            ),
            Metric {
                name: "penstock_l7_upstream_idle_connections",
                help: "Idle keep-alive connections to endpoints.",
                kind: MetricKind::Gauge,
                samples: vec![Sample { suffix: "", labels: Vec::new(), value: self.idle_upstream as f64 }],
            },
            Metric {
                name: "penstock_l7_upstream_http2_connections",
                help: "Connections to endpoints that carry HTTP/2.",
                kind: MetricKind::Gauge,
                samples: vec![Sample { suffix: "", labels: Vec::new(), value: self.http2_upstream as f64 }],
            },
            labelled(
                "penstock_l7_refused_connections_total",
                "Connections closed before their first request, by cause.",
                MetricKind::Counter,
                "cause",
                self.refused_connections.iter().map(|(cause, n)| (cause.as_str().to_owned(), *n)).collect(),
            ),
            labelled(
                "penstock_l7_temp_file_failures_total",
                "Bodies that could not be put into a temporary file, by cause.",
                MetricKind::Counter,
                "cause",
                self.spill_failures.iter().map(|(cause, n)| (cause.as_str().to_owned(), *n)).collect(),
            ),
            labelled(
                "penstock_l7_denied_requests_total",
                "Requests whose client was not let in, by cause.",
                MetricKind::Counter,
                "cause",
                self.denied.iter().map(|(cause, n)| (cause.as_str().to_owned(), *n)).collect(),
            ),
            counter(
                "penstock_l7_passthrough_connections_total",
                "TLS connections handed to an upstream unopened.",
                self.passthrough.connections,
            ),
            labelled(
                "penstock_l7_passthrough_bytes_total",
                "Bytes of TLS connections handed on unopened, by direction; counted at their end.",
                MetricKind::Counter,
                "direction",
                vec![
                    ("up".to_owned(), self.passthrough.up_bytes),
                    ("down".to_owned(), self.passthrough.down_bytes),
                ],
            ),
            counter(
                "penstock_l7_failed_handshakes_total",
                "TLS handshakes that did not complete.",
                self.failed_handshakes,
            ),
            counter(
                "penstock_l7_http2_floods_total",
                "HTTP/2 connections ended because of frames without use.",
                self.http2_floods,
            ),
            counter(
                "penstock_l7_connection_limit_reached_total",
                "Times a worker stopped accepting because of its connection limit.",
                self.full,
            ),
        ]
    }
}

/// Series as a list: JSON has no keys of several parts.
mod as_list {
    use serde::de::Deserializer;
    use serde::ser::Serializer;

    use super::{Arc, Deserialize, HashMap, Labels, Method, Series};

    type Settled = HashMap<(Arc<Labels>, Method, u16), Series>;

    pub(super) fn serialize<S: Serializer>(settled: &Settled, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            settled.iter().map(|((labels, method, status), series)| (&**labels, method, status, series)),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Settled, D::Error> {
        let list = Vec::<(Labels, Method, u16, Series)>::deserialize(from)?;
        Ok(list
            .into_iter()
            .map(|(labels, method, status, series)| ((labels.into(), method, status), series))
            .collect())
    }
}

fn request_labels(labels: &Labels, method: Method, status: u16) -> Vec<(&'static str, String)> {
    let Labels { host, path, namespace, ingress, service, canary } = labels;
    vec![
        ("host", host.clone()),
        ("status", status.to_string()),
        ("method", method.as_str().to_owned()),
        ("path", path.clone()),
        ("namespace", namespace.clone()),
        ("ingress", ingress.clone()),
        ("service", service.clone()),
        ("canary", canary.clone()),
    ]
}

/// Nothing of what never happened: four histograms a series are many lines.
fn histogram(samples: &mut Vec<Sample>, labels: &[(&'static str, String)], series: &Times) {
    if series.count == 0 {
        return;
    }
    let with = |le: String| labels.iter().cloned().chain([("le", le)]).collect::<Vec<_>>();
    let mut below = 0;
    for (bound, count) in BUCKETS.iter().zip(series.buckets) {
        below += count;
        samples.push(Sample { suffix: "_bucket", labels: with(bound.to_string()), value: below as f64 });
    }
    samples.push(Sample { suffix: "_bucket", labels: with("+Inf".to_owned()), value: series.count as f64 });
    samples.push(Sample { suffix: "_sum", labels: labels.to_vec(), value: series.seconds });
    samples.push(Sample { suffix: "_count", labels: labels.to_vec(), value: series.count as f64 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::l7::L7;

    #[test]
    fn counters_pass_from_process_to_process_and_gauges_do_not() {
        let labels = Arc::new(Labels { host: "a".to_owned(), ..Labels::default() });
        let mut before = Counters { accepted: 3, active: 2, ..Counters::default() };
        before.request(Some(0), &labels, Method::Get, 200, Duration::from_millis(7), None);
        before.refused(400);
        before.upstream_failure(Failure::Closed);
        let mut total = Counters::default();
        total.add(&before);

        let passed: Counters =
            serde_json::from_value(serde_json::to_value(&total).expect("JSON")).expect("the same");

        total.active = 0;
        assert_eq!(format!("{:?}", passed.report(1)), format!("{:?}", total.report(1)));
        let of_a_later_version = serde_json::json!({"accepted": 3, "unheard-of": 1});
        assert_eq!(serde_json::from_value::<Counters>(of_a_later_version).expect("read").accepted, 3);
    }

    #[test]
    fn counters_of_workers_add_up_and_series_of_gone_routes_go() {
        let router = Router::new(&L7::default());
        let kept = Arc::clone(router.labels.first().expect("the catch-all"));
        let gone = Arc::new(Labels { path: "/gone".to_owned(), ..Labels::default() });
        let mut one = Counters::default();
        one.request(Some(0), &kept, Method::Get, 200, Duration::from_millis(7), None);
        one.request(Some(1), &gone, Method::Get, 200, Duration::from_millis(7), None);
        let mut other = Counters::default();
        other.request(Some(0), &kept, Method::Get, 200, Duration::from_secs(20), None);

        one.settle(&router);
        let mut total = Counters::default();
        total.add(&one);
        total.add(&other);
        let report = total.report(2);

        let values = |metric: &str, suffix: &str| -> Vec<f64> {
            let metric = report.iter().find(|m| m.name == metric).expect("metric");
            metric.samples.iter().filter(|s| s.suffix == suffix).map(|s| s.value).collect()
        };
        assert_eq!(values("nginx_ingress_controller_requests", ""), [2.0]);
        assert_eq!(
            values("nginx_ingress_controller_request_duration_seconds", "_bucket"),
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
        );
        assert_eq!(values("nginx_ingress_controller_nginx_process_requests_total", ""), [3.0]);
    }
}
