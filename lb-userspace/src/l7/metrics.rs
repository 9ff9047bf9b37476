//! What one worker counts, and all workers' counts as metrics. A worker counts in plain integers
//! of its own; a scrape asks each for a copy.

mod causes;
mod report;
mod series;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(super) use causes::{Cause, Denied, Failure, Limited, Method, Mirrored, Refused};
pub(super) use series::Finished;
use series::Requests;

use super::route::{Labels, Router, Site};
use super::spill;
use crate::model::metering::Metering;
use crate::model::upstream::UpstreamName;

/// Connections that were handed on unopened.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Passthrough {
    pub(super) connections: u64,
    /// From clients.
    pub(super) up_bytes: u64,
    /// To clients.
    pub(super) down_bytes: u64,
}

impl Passthrough {
    fn add(&mut self, other: Self) {
        let Self { connections, up_bytes, down_bytes } = other;
        self.connections += connections;
        self.up_bytes += up_bytes;
        self.down_bytes += down_bytes;
    }
}

/// What connections of clients are about, as nginx tells them apart.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct States {
    /// All that are open.
    pub(super) active: u64,
    /// A request's head has begun to come.
    pub(super) reading: u64,
    /// Requests that are served; several on one connection of HTTP/2.
    pub(super) writing: u64,
}

impl States {
    fn add(&mut self, other: Self) {
        self.active += other.active;
        self.reading += other.reading;
        self.writing += other.writing;
    }
}

/// Counters of one worker, or of several added up; these pass from process to process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Counters {
    /// By what they were.
    by_labels: Requests,
    refused: HashMap<u16, u64>,
    failures: HashMap<Failure, u64>,
    /// Attempts that failed, by the name of their upstream.
    failed_attempts: HashMap<String, HashMap<Failure, u64>>,
    refused_connections: HashMap<Refused, u64>,
    spill_failures: HashMap<spill::Cause, u64>,
    denied: HashMap<Denied, u64>,
    limited: HashMap<Limited, u64>,
    mirrored: HashMap<Mirrored, u64>,
    /// TLS, by its name.
    pub(super) passthrough: Passthrough,
    /// TCP, by its port.
    pub(super) streams: Passthrough,
    /// Datagrams by their port: exchanges with an endpoint, and bytes.
    pub(super) datagrams: Passthrough,
    pub(super) accepted: u64,
    #[serde(skip)]
    pub(super) connections: States,
    /// Times a worker stopped accepting because of its connection limit.
    pub(super) full: u64,
    pub(super) failed_handshakes: u64,
    /// HTTP/2 connections ended because of frames without use.
    pub(super) http2_floods: u64,
    pub(super) upstream_connections: u64,
    #[serde(skip)]
    pub(super) idle_upstream: u64,
    /// Connections to endpoints that carry HTTP/2.
    #[serde(skip)]
    pub(super) http2_upstream: u64,
    requests: u64,
}

impl Counters {
    /// Of nothing so far.
    pub(super) fn new(metering: &Metering) -> Self {
        Self { by_labels: Requests::new(metering), ..Self::default() }
    }

    /// The same, for those of several workers added up.
    pub(super) fn sum(metering: &Metering) -> Self {
        Self { by_labels: Requests::sum(metering), ..Self::default() }
    }

    /// Of nothing so far, in the same manner.
    pub(super) fn anew(&self) -> Self {
        Self { by_labels: self.by_labels.anew(), ..Self::default() }
    }

    /// One finished request; `route`: the number of its route, if that is still there.
    pub(super) fn request(&mut self, route: Option<usize>, labels: &Arc<Labels>, finished: &Finished<'_>) {
        self.requests += 1;
        self.by_labels.count(route, labels, finished);
    }

    /// A head that was refused before it had a route.
    pub(super) fn refused(&mut self, status: u16) {
        self.requests += 1;
        *self.refused.entry(status).or_default() += 1;
    }

    /// A connection that came to no request.
    pub(super) fn refused_connection(&mut self, cause: Refused) {
        *self.refused_connections.entry(cause).or_default() += 1;
    }

    /// A body that could not be put into a file.
    pub(super) fn spill_failure(&mut self, cause: spill::Cause) {
        *self.spill_failures.entry(cause).or_default() += 1;
    }

    /// A request whose client was not let in.
    pub(super) fn denied(&mut self, cause: Denied) {
        *self.denied.entry(cause).or_default() += 1;
    }

    /// A request beyond a limit.
    pub(super) fn limited(&mut self, limit: Limited) {
        *self.limited.entry(limit).or_default() += 1;
    }

    /// A copy of a request.
    pub(super) fn mirrored(&mut self, outcome: Mirrored) {
        *self.mirrored.entry(outcome).or_default() += 1;
    }

    pub(super) fn upstream_failure(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// An attempt at an endpoint of this upstream.
    pub(super) fn failed_attempt(&mut self, upstream: &UpstreamName, failure: Failure) {
        self.upstream_failure(failure);
        if !self.failed_attempts.contains_key(&upstream.0) {
            self.failed_attempts.insert(upstream.0.clone(), HashMap::new());
        }
        if let Some(causes) = self.failed_attempts.get_mut(&upstream.0) {
            *causes.entry(failure).or_default() += 1;
        }
    }

    /// Upstreams of which attempts failed.
    pub(super) fn let_down_by(&self) -> impl Iterator<Item = UpstreamName> {
        self.failed_attempts.keys().cloned().map(UpstreamName)
    }

    /// Routes of these sites are gone.
    pub(super) fn settle<'r>(&mut self, gone: impl Iterator<Item = &'r Arc<Site>>, next: &Router) {
        self.forget_upstreams(next);
        self.by_labels.settle(gone, next);
    }

    /// Series of routes that are not there go; for those of another process.
    pub(super) fn forget_unknown(&mut self, router: &Router) {
        self.by_labels.forget_unknown(router);
        self.forget_upstreams(router);
    }

    fn forget_upstreams(&mut self, router: &Router) {
        self.failed_attempts.retain(|name, _| router.place_of(&UpstreamName(name.clone())).is_some());
    }

    /// nginx's page about itself.
    pub(super) fn nginx_status(&self) -> String {
        let States { active, reading, writing } = self.connections;
        let (accepted, requests) = (self.accepted, self.requests);
        let waiting = active.saturating_sub(reading + writing);
        format!(
            "Active connections: {active} \nserver accepts handled requests\n {accepted} {accepted} {requests} \n\
             Reading: {reading} Writing: {writing} Waiting: {waiting} \n"
        )
    }

    /// Adds another worker's counters.
    pub(super) fn add(&mut self, other: &Self) {
        self.by_labels.add(&other.by_labels);
        for (status, count) in &other.refused {
            *self.refused.entry(*status).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        for (upstream, causes) in &other.failed_attempts {
            let known = self.failed_attempts.entry(upstream.clone()).or_default();
            for (failure, count) in causes {
                *known.entry(*failure).or_default() += count;
            }
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
        for (limit, count) in &other.limited {
            *self.limited.entry(*limit).or_default() += count;
        }
        for (outcome, count) in &other.mirrored {
            *self.mirrored.entry(*outcome).or_default() += count;
        }
        self.passthrough.add(other.passthrough);
        self.streams.add(other.streams);
        self.datagrams.add(other.datagrams);
        self.accepted += other.accepted;
        self.connections.add(other.connections);
        self.full += other.full;
        self.failed_handshakes += other.failed_handshakes;
        self.http2_floods += other.http2_floods;
        self.upstream_connections += other.upstream_connections;
        self.idle_upstream += other.idle_upstream;
        self.http2_upstream += other.http2_upstream;
        self.requests += other.requests;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::canary::Side;
    use super::super::route::Maker;
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l7::{Action, Filters, HostMatch, L7, Location, PathMatch, Server, ServicePort};
    use crate::model::metering::Bounds;
    use crate::model::report::Metric;

    fn finished(millis: u64) -> Finished<'static> {
        let took = Duration::from_millis(millis);
        Finished { method: Method::Get, status: 200, took, attempt: None, received: 75, sent: 1234 }
    }

    fn with(hosts: &[&str]) -> L7 {
        let location = Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: Some(ObjectName::new("default", "web")),
            backend: Some(Arc::new(ServicePort {
                service: "web".to_owned(),
                port: "80".to_owned(),
                upstream: UpstreamName("default-web-80".to_owned()),
            })),
            action: Action::DefaultBackend,
            filters: Filters::default(),
        };
        let server = Server { locations: vec![location], ..Server::default() };
        let host = |name: &&str| (HostMatch::Exact((*name).to_owned()), server.clone());
        L7 { servers: hosts.iter().map(host).collect(), ..L7::default() }
    }

    fn all(counters: &Counters) -> Vec<Metric> {
        let mut all = Vec::new();
        counters.report(1, &Metering::default(), &mut |metric| all.push(metric));
        all
    }

    fn values(counters: &Counters, metric: &str, suffix: &str) -> Vec<f64> {
        let all = all(counters);
        let metric = all.iter().find(|m| m.name == metric).expect("metric");
        metric.samples.iter().filter(|s| s.suffix == suffix).map(|s| s.value).collect()
    }

    #[test]
    fn counters_pass_from_process_to_process_and_gauges_do_not() {
        let labels = Arc::new(Labels { host: "a".to_owned(), ..Labels::default() });
        let connections = States { active: 2, ..States::default() };
        let mut before = Counters { accepted: 3, connections, ..Counters::default() };
        before.request(Some(0), &labels, &finished(7));
        before.refused(400);
        before.failed_attempt(&UpstreamName("default-a-80".to_owned()), Failure::Closed);
        let mut total = Counters::default();
        total.add(&before);

        let passed: Counters =
            serde_json::from_value(serde_json::to_value(&total).expect("JSON")).expect("the same");

        total.connections = States::default();
        assert_eq!(format!("{:?}", all(&passed)), format!("{:?}", all(&total)));
        let of_a_later_version = serde_json::json!({"accepted": 3, "unheard-of": 1});
        assert_eq!(serde_json::from_value::<Counters>(of_a_later_version).expect("read").accepted, 3);
    }

    #[test]
    fn counters_of_workers_add_up_and_series_of_gone_routes_go() {
        let mut maker = Maker::default();
        let before = maker.make(&with(&["gone", "kept"]));
        let counted = |host: &str| before.site(host.as_bytes()).0.find(b"/").route.counted(Side::Primary);
        let ((kept, kept_labels), (gone, gone_labels)) = (counted("kept"), counted("gone"));
        let mut one = Counters::default();
        one.request(Some(kept), kept_labels, &finished(7));
        one.request(Some(gone), gone_labels, &finished(7));
        let mut other = Counters::default();
        other.request(Some(kept), kept_labels, &finished(20_000));

        let now = maker.make(&with(&["kept"]));
        one.settle(now.gone(&before), &now);
        let mut total = Counters::default();
        total.add(&one);
        total.add(&other);
        let values = |metric: &str, suffix: &str| values(&total, metric, suffix);

        assert_eq!(values("nginx_ingress_controller_requests", ""), [2.0]);
        assert_eq!(
            values("nginx_ingress_controller_request_duration_seconds", "_bucket"),
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
        );
        assert_eq!(values("nginx_ingress_controller_nginx_process_requests_total", ""), [3.0]);
    }

    #[test]
    fn what_is_too_much_to_be_told_apart_is_counted_together() {
        let metering = Metering { series: 2, ..Metering::default() };
        let mut one = Counters::new(&metering);
        let mut other = Counters::new(&metering);
        for n in 0..5 {
            let labels =
                Arc::new(Labels { path: format!("/{n}"), host: "a".to_owned(), ..Labels::default() });
            one.request(Some(n), &labels, &finished(7));
            other.request(None, &labels, &finished(7));
        }

        let mut total = Counters::new(&metering);
        total.add(&one);
        total.add(&other);

        let requests = values(&total, "nginx_ingress_controller_requests", "");
        assert_eq!(requests.len(), 3);
        assert_eq!(requests.iter().sum::<f64>(), 10.0);
        assert_eq!(values(&total, "penstock_l7_metrics_overflow_requests_total", ""), [6.0]);
    }

    #[test]
    fn each_worker_has_a_limit_and_their_sum_none() {
        let metering = Metering { series: 2, ..Metering::default() };
        let worker = |paths: [&str; 2]| {
            let mut counters = Counters::new(&metering);
            for (n, path) in paths.into_iter().enumerate() {
                let labels =
                    Arc::new(Labels { path: path.to_owned(), host: "a".to_owned(), ..Labels::default() });
                counters.request(Some(n), &labels, &finished(7));
            }
            counters
        };
        let mut total = Counters::sum(&metering);

        total.add(&worker(["/a", "/b"]));
        total.add(&worker(["/b", "/c"]));

        assert_eq!(values(&total, "nginx_ingress_controller_requests", "").len(), 3);
        assert_eq!(values(&total, "penstock_l7_metrics_overflow_requests_total", ""), [0.0]);
    }

    #[test]
    fn a_route_that_was_made_anew_goes_on_with_its_series() {
        let metering = Metering { series: 2, ..Metering::default() };
        let mut maker = Maker::default();
        let before = maker.make(&with(&["a", "b"]));
        let mut counters = Counters::new(&metering);
        let request = |router: &Router, counters: &mut Counters, host: &str| {
            let (number, labels) = router.site(host.as_bytes()).0.find(b"/").route.counted(Side::Primary);
            counters.request(Some(number), labels, &finished(7));
        };
        request(&before, &mut counters, "a");
        request(&before, &mut counters, "b");
        let mut changed = with(&["a", "b"]);
        changed.servers.edit(|_, server| server.app_root = Some(Default::default()));

        let now = maker.make(&changed);
        counters.settle(now.gone(&before), &now);
        request(&now, &mut counters, "a");
        request(&now, &mut counters, "b");

        let mut total = Counters::sum(&metering);
        total.add(&counters);
        assert_eq!(values(&total, "nginx_ingress_controller_requests", ""), [2.0, 2.0]);
        assert_eq!(values(&total, "penstock_l7_metrics_overflow_requests_total", ""), [0.0]);
    }

    #[test]
    fn requests_that_no_ingress_names_are_counted_where_it_is_asked_for() {
        let unclaimed = Arc::new(Labels { host: "_".to_owned(), ..Labels::default() });
        let default = Metering::default();
        let cases = [
            ("default", default.clone(), 0),
            ("undefined hosts, too", Metering { undefined_hosts: true, ..default.clone() }, 1),
            ("hosts not told apart", Metering { per_host: false, ..default }, 1),
        ];
        for (case, metering, expected) in cases {
            let mut counters = Counters::new(&metering);
            counters.request(Some(0), &unclaimed, &finished(7));

            let mut total = Counters::new(&metering);
            total.add(&counters);
            assert_eq!(values(&total, "nginx_ingress_controller_requests", "").len(), expected, "{case}");
            assert_eq!(values(&total, "nginx_ingress_controller_nginx_process_requests_total", ""), [1.0]);
        }
    }

    #[test]
    fn counts_of_a_process_that_sorted_otherwise_go_on_without_their_histograms() {
        let labels = Arc::new(Labels { host: "a".to_owned(), ..Labels::default() });
        let time = Bounds::parse("1,2").expect("bounds");
        let mut before = Counters::new(&Metering { time, ..Metering::default() });
        before.request(None, &labels, &finished(7));
        let mut now = Counters::default();

        now.add(&before);
        now.request(None, &labels, &finished(7));

        assert_eq!(values(&now, "nginx_ingress_controller_requests", ""), [2.0]);
        assert_eq!(values(&now, "nginx_ingress_controller_request_duration_seconds", "_count"), [1.0]);
    }
}
