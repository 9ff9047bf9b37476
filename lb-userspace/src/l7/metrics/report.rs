//! The counts of all workers as metrics, under ingress-nginx's names where it has one.

use std::collections::BTreeMap;

use super::series::{Key, Measure, Scale, Series};
use super::{Counters, Passthrough, States};
use crate::l7::route::Labels;
use crate::model::metering::Metering;
use crate::model::report::{Metric, MetricKind, Sample};

/// Label names and values.
type Words = Vec<(&'static str, String)>;

/// Value of every label of the series for what was too much.
const OVERFLOW: &str = "overflow";

/// The histograms of requests.
const HISTOGRAMS: [(&str, &str, Measure); 7] = [
    (
        "nginx_ingress_controller_request_duration_seconds",
        "The request processing time in seconds.",
        Measure::Took,
    ),
    (
        "nginx_ingress_controller_connect_duration_seconds",
        "The time spent on establishing a connection with the upstream server.",
        Measure::Connect,
    ),
    (
        "nginx_ingress_controller_header_duration_seconds",
        "The time spent on receiving first header from the upstream server.",
        Measure::Header,
    ),
    (
        "nginx_ingress_controller_response_duration_seconds",
        "The time spent on receiving the response from the upstream server.",
        Measure::Response,
    ),
    (
        "nginx_ingress_controller_request_size",
        "The request length (including request line, header, and request body).",
        Measure::Received,
    ),
    (
        "nginx_ingress_controller_response_size",
        "The response length (including head and body).",
        Measure::Sent,
    ),
    (
        "nginx_ingress_controller_bytes_sent",
        "DEPRECATED The number of bytes sent to a client.",
        Measure::SentByMagnitude,
    ),
];

impl Counters {
    /// Everything but what is left out, one metric at a time: the samples of one are many.
    pub(in crate::l7) fn report(&self, workers: usize, metering: &Metering, tell: &mut dyn FnMut(Metric)) {
        self.of_requests(metering, &mut |metric: Metric| {
            if !metering.excludes(metric.name) {
                tell(metric);
            }
        });
        self.of_process(workers).into_iter().for_each(&mut *tell);
        self.of_l7().into_iter().for_each(tell);
    }

    fn of_requests(&self, metering: &Metering, tell: &mut dyn FnMut(Metric)) {
        let groups = self.groups(metering);
        let requests = groups.iter().map(|(words, series)| Sample {
            suffix: "",
            labels: words.clone(),
            value: series.requests as f64,
        });
        tell(Metric {
            name: "nginx_ingress_controller_requests",
            help: "The total number of client requests.",
            kind: MetricKind::Counter,
            samples: requests.collect(),
        });
        for (name, help, measure) in HISTOGRAMS {
            let mut samples = Vec::new();
            for (words, series) in &groups {
                histogram(&mut samples, words, series, &self.by_labels.scale, measure);
            }
            tell(Metric { name, help, kind: MetricKind::Histogram, samples });
        }
    }

    /// Series by what is told of them, which may be the same for several.
    fn groups(&self, metering: &Metering) -> BTreeMap<Words, Series> {
        let mut groups: BTreeMap<Words, Series> = BTreeMap::new();
        for (key, series) in &self.by_labels.settled {
            groups.entry(words(key, metering)).or_default().add(series);
        }
        if let Some(series) = &self.by_labels.overflow {
            let labels = ["host", "status", "method", "path", "namespace", "ingress", "service", "canary"];
            let labels = labels.into_iter().filter(|label| metering.per_host || *label != "host");
            let words = labels.map(|label| (label, OVERFLOW.to_owned())).collect();
            groups.entry(words).or_default().add(series);
        }
        groups
    }

    fn of_process(&self, workers: usize) -> Vec<Metric> {
        let States { active, reading, writing } = self.connections;
        let waiting = active.saturating_sub(reading + writing);
        let states = [("active", active), ("reading", reading), ("writing", writing), ("waiting", waiting)];
        let handled = [("accepted", self.accepted), ("handled", self.accepted)];
        vec![
            labelled(
                "nginx_ingress_controller_nginx_process_connections",
                "Current number of client connections by state.",
                MetricKind::Gauge,
                "state",
                states,
            ),
            labelled(
                "nginx_ingress_controller_nginx_process_connections_total",
                "Total number of client connections by state.",
                MetricKind::Counter,
                "state",
                handled,
            ),
            counter(
                "nginx_ingress_controller_nginx_process_requests_total",
                "Total number of client requests.",
                self.requests,
            ),
            gauge(
                "nginx_ingress_controller_nginx_process_num_procs",
                "Number of proxy workers.",
                workers as u64,
            ),
        ]
    }

    fn of_l7(&self) -> Vec<Metric> {
        let Passthrough { connections, up_bytes, down_bytes } = self.passthrough;
        let overflow = self.by_labels.overflow.as_ref().map_or(0, |series| series.requests);
        vec![
            counter(
                "penstock_l7_metrics_overflow_requests_total",
                "Requests counted in the series `overflow`, because there are --metrics-series others.",
                overflow,
            ),
            labelled(
                "penstock_l7_refused_heads_total",
                "Request heads refused before routing, by status.",
                MetricKind::Counter,
                "status",
                self.refused.iter().map(|(status, n)| (status, *n)),
            ),
            labelled(
                "penstock_l7_upstream_failures_total",
                "Attempts at an upstream that gave no whole response, by cause.",
                MetricKind::Counter,
                "cause",
                self.failures.iter().map(|(failure, n)| (failure.as_str(), *n)),
            ),
            self.failed_attempts(),
            counter(
                "penstock_l7_upstream_connections_total",
                "Connections opened to endpoints.",
                self.upstream_connections,
            ),
            gauge(
                "penstock_l7_upstream_idle_connections",
                "Idle keep-alive connections to endpoints.",
                self.idle_upstream,
            ),
            gauge(
                "penstock_l7_upstream_http2_connections",
                "Connections to endpoints that carry HTTP/2.",
                self.http2_upstream,
            ),
            labelled(
                "penstock_l7_refused_connections_total",
                "Connections closed before their first request, by cause.",
                MetricKind::Counter,
                "cause",
                self.refused_connections.iter().map(|(cause, n)| (cause.as_str(), *n)),
            ),
            labelled(
                "penstock_l7_temp_file_failures_total",
                "Bodies that could not be put into a temporary file, by cause.",
                MetricKind::Counter,
                "cause",
                self.spill_failures.iter().map(|(cause, n)| (cause.as_str(), *n)),
            ),
            labelled(
                "penstock_l7_denied_requests_total",
                "Requests whose client was not let in, by cause.",
                MetricKind::Counter,
                "cause",
                self.denied.iter().map(|(cause, n)| (cause.as_str(), *n)),
            ),
            labelled(
                "penstock_l7_limited_requests_total",
                "Requests beyond what their client may ask of an Ingress, by the limit.",
                MetricKind::Counter,
                "limit",
                self.limited.iter().map(|(limit, n)| (limit.as_str(), *n)),
            ),
            labelled(
                "penstock_l7_mirrored_requests_total",
                "Copies of requests for a mirror, by what became of them.",
                MetricKind::Counter,
                "outcome",
                self.mirrored.iter().map(|(outcome, n)| (outcome.as_str(), *n)),
            ),
            counter(
                "penstock_l7_passthrough_connections_total",
                "TLS connections handed to an upstream unopened.",
                connections,
            ),
            labelled(
                "penstock_l7_passthrough_bytes_total",
                "Bytes of TLS connections handed on unopened, by direction; counted at their end.",
                MetricKind::Counter,
                "direction",
                [("up", up_bytes), ("down", down_bytes)],
            ),
            labelled(
                "penstock_l7_stream_connections_total",
                "TCP connections to ports beside http and https, and exchanges of datagrams there.",
                MetricKind::Counter,
                "protocol",
                [("tcp", self.streams.connections), ("udp", self.datagrams.connections)],
            ),
            labelled(
                "penstock_l7_stream_bytes_total",
                "Bytes of those, both protocols, by direction; of TCP counted at a connection's end.",
                MetricKind::Counter,
                "direction",
                [
                    ("up", self.streams.up_bytes + self.datagrams.up_bytes),
                    ("down", self.streams.down_bytes + self.datagrams.down_bytes),
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

    fn failed_attempts(&self) -> Metric {
        let of_each = self.failed_attempts.iter().flat_map(|(upstream, causes)| {
            causes.iter().map(move |(failure, count)| Sample {
                suffix: "",
                labels: vec![("upstream", upstream.clone()), ("cause", failure.as_str().to_owned())],
                value: *count as f64,
            })
        });
        Metric {
            name: "penstock_l7_failed_attempts_total",
            help: "Attempts of requests that an upstream failed before its response began, by cause.",
            kind: MetricKind::Counter,
            samples: of_each.collect(),
        }
    }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    single(name, help, MetricKind::Counter, value)
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Metric {
    single(name, help, MetricKind::Gauge, value)
}

fn single(name: &'static str, help: &'static str, kind: MetricKind, value: u64) -> Metric {
    let sample = Sample { suffix: "", labels: Vec::new(), value: value as f64 };
    Metric { name, help, kind, samples: vec![sample] }
}

/// One sample for each value of the label.
fn labelled<V: ToString>(
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    label: &'static str,
    values: impl IntoIterator<Item = (V, u64)>,
) -> Metric {
    let sample = |(value, count): (V, u64)| Sample {
        suffix: "",
        labels: vec![(label, value.to_string())],
        value: count as f64,
    };
    Metric { name, help, kind, samples: values.into_iter().map(sample).collect() }
}

fn words((labels, method, status): &Key, metering: &Metering) -> Words {
    let Labels { host, path, namespace, ingress, service, canary } = &**labels;
    // A process before us may have told statuses apart.
    let status = match *status {
        class @ 0..100 => format!("{class}xx"),
        status if metering.status_classes => format!("{}xx", status / 100),
        status => status.to_string(),
    };
    let host = metering.per_host.then(|| ("host", host.clone()));
    host.into_iter()
        .chain([
            ("status", status),
            ("method", method.as_str().to_owned()),
            ("path", path.clone()),
            ("namespace", namespace.clone()),
            ("ingress", ingress.clone()),
            ("service", service.clone()),
            ("canary", canary.clone()),
        ])
        .collect()
}

/// Nothing of what never happened: seven histograms a series are many lines.
fn histogram(samples: &mut Vec<Sample>, words: &Words, series: &Series, scale: &Scale, measure: Measure) {
    let (count, sum) = series.total(measure);
    if count == 0 {
        return;
    }
    let with = |le: String| words.iter().cloned().chain([("le", le)]).collect::<Vec<_>>();
    let mut below = 0;
    for (bound, count) in scale.bounds(measure).iter().zip(series.buckets(scale, measure)) {
        below += count;
        samples.push(Sample { suffix: "_bucket", labels: with(go_number(*bound)), value: below as f64 });
    }
    samples.push(Sample { suffix: "_bucket", labels: with("+Inf".to_owned()), value: count as f64 });
    samples.push(Sample { suffix: "_sum", labels: words.clone(), value: sum });
    samples.push(Sample { suffix: "_count", labels: words.clone(), value: count as f64 });
}

/// As Go writes it, and with it the exposition of ingress-nginx: 1e6 is `1e+06`.
fn go_number(number: f64) -> String {
    let scientific = format!("{number:e}");
    let exponent = scientific
        .split_once('e')
        .and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)));
    match exponent {
        Some((digits, exponent)) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_dashboards_know_them() {
        let cases = [(0.005, "0.005"), (1.0, "1"), (2.5, "2.5"), (100_000.0, "100000"), (1e6, "1e+06")];
        for (number, text) in cases {
            assert_eq!(go_number(number), text);
        }
        assert_eq!(go_number(0.000_01), "1e-05");
    }
}
