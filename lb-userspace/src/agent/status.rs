//! `penstock status`: the state of the live agent, for programs as it stands here ([`Serialize`]), for people as `text`
//! writes it.

mod text;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::certificates;
use super::desired::State;
use crate::model::Problem;
use crate::model::announce::Announced;
use crate::model::health::{Ejected, Failing, Failures, Finding, Unwell};
use crate::model::l4::Listener;
use crate::model::l7::{Action, L7, PathMatch};
use crate::{cluster, datapath};

/// Everything `penstock status` tells.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    pid: u32,
    takeovers: u64,
    uptime_seconds: u64,
    /// Where the objects come from: a directory, or the URL of an API server.
    manifests: String,
    /// Seconds since the cluster that the objects come from was last heard.
    cluster_age_seconds: Option<u64>,
    /// Whose holder writes status and Events.
    lease: Option<LeaseStatus>,
    generation: u64,
    snapshot_age_seconds: u64,
    listeners: Vec<ListenerStatus>,
    datapath: Option<datapath::Status>,
    announced: Vec<AnnouncedStatus>,
    routes: Vec<Route>,
    upstreams: Vec<UpstreamStatus>,
    certificates: Vec<CertificateStatus>,
    last_good: Vec<LastGood>,
    problems: Vec<ProblemStatus>,
}

#[derive(Debug, Serialize)]
struct LeaseStatus {
    name: String,
    /// Empty: nobody is known to.
    holder: String,
    is_us: bool,
}

#[derive(Debug, Serialize)]
struct ListenerStatus {
    scheme: &'static str,
    addr: SocketAddr,
}

/// Who answers for addresses on a link.
#[derive(Debug, Serialize)]
struct AnnouncedStatus {
    interface: String,
    /// Why nothing is announced there for the moment; empty if it is.
    trouble: String,
    members: Vec<String>,
    addresses: Vec<Holder>,
}

#[derive(Debug, Serialize)]
struct Holder {
    address: IpAddr,
    /// Empty: nobody can.
    by: String,
    /// Who held it before us and may have connections to it still; empty: nobody.
    #[serde(skip_serializing_if = "String::is_empty")]
    former: String,
}

#[derive(Debug, Serialize)]
struct Route {
    host: String,
    tls: bool,
    path: String,
    path_type: &'static str,
    ingress: String,
    action: String,
}

#[derive(Debug, Serialize)]
struct UpstreamStatus {
    name: String,
    endpoints: Vec<SocketAddr>,
    /// How they are checked; empty if they are not.
    check: String,
    unwell: Vec<UnwellStatus>,
    failing: Vec<FailingStatus>,
}

/// An endpoint that failed its checks.
#[derive(Debug, Serialize)]
struct UnwellStatus {
    endpoint: SocketAddr,
    fault: String,
    since_seconds: u64,
}

/// An endpoint that fails requests.
#[derive(Debug, Serialize)]
struct FailingStatus {
    endpoint: SocketAddr,
    cause: String,
    /// Since it last answered.
    failed_attempts: u64,
    last_seconds: u64,
    ejected: Option<EjectedStatus>,
}

#[derive(Debug, Serialize)]
struct EjectedStatus {
    since_seconds: u64,
    left_seconds: u64,
}

#[derive(Debug, Serialize)]
struct CertificateStatus {
    host: String,
    secret: String,
    expires_in_days: i64,
    /// For people.
    #[serde(skip)]
    expiry: String,
}

/// An object whose newest version cannot be used: an earlier one is in force.
#[derive(Debug, Serialize)]
struct LastGood {
    object: String,
    since_seconds: u64,
}

#[derive(Debug, Serialize)]
struct ProblemStatus {
    object: String,
    severity: String,
    reason: &'static str,
    field: String,
    message: String,
    fix: String,
}

/// What a [`Status`] is made from.
pub(super) struct Parts<'a> {
    /// Takeovers that led to this agent.
    pub(super) takeovers: u64,
    pub(super) uptime: Duration,
    pub(super) source: &'a str,
    /// Of a cluster: seconds since it was last heard.
    pub(super) age: Option<u64>,
    /// Name of the Lease and who holds it, where one decides who writes.
    pub(super) lease: Option<(String, Option<cluster::Holder>)>,
    pub(super) state: &'a State,
    /// With the addresses of names.
    pub(super) l7: &'a L7,
    /// What active checks found.
    pub(super) unwell: &'a Unwell,
    /// What requests found.
    pub(super) failing: &'a Failing,
    pub(super) listeners: Vec<(Listener, SocketAddr)>,
    pub(super) datapath: Option<datapath::Status>,
    pub(super) announced: &'a [Arc<Announced>],
    /// Problems that only show while the agent runs.
    pub(super) extra_problems: Vec<Problem>,
}

impl Status {
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let Parts {
            takeovers,
            uptime,
            source,
            age,
            lease,
            state,
            l7,
            unwell,
            failing,
            listeners,
            datapath,
            announced,
            extra_problems,
        } = parts;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            takeovers,
            uptime_seconds: uptime.as_secs(),
            manifests: source.to_owned(),
            cluster_age_seconds: age,
            lease: lease.map(LeaseStatus::new),
            generation: state.generation,
            snapshot_age_seconds: state.at.elapsed().unwrap_or_default().as_secs(),
            listeners: listeners
                .into_iter()
                .map(|(listener, addr)| ListenerStatus { scheme: scheme(listener), addr })
                .collect(),
            datapath,
            announced: announced.iter().map(|link| AnnouncedStatus::new(link)).collect(),
            routes: routes(l7),
            upstreams: upstreams(l7, unwell, failing),
            certificates: of_hosts(l7),
            last_good: state
                .kept
                .iter()
                .map(|kept| LastGood {
                    object: kept.object.to_string(),
                    since_seconds: kept.since.elapsed().unwrap_or_default().as_secs(),
                })
                .collect(),
            problems: (state.problems.iter().map(Arc::as_ref).chain(&extra_problems))
                .map(ProblemStatus::new)
                .collect(),
        }
    }
}

fn scheme(listener: Listener) -> &'static str {
    match listener {
        Listener::Http => "http",
        Listener::Https => "https",
    }
}

fn routes(l7: &L7) -> Vec<Route> {
    let mut routes = Vec::new();
    for (host, server) in &l7.servers {
        for location in &server.locations {
            routes.push(Route {
                host: host.to_string(),
                tls: server.tls,
                path: location.path_label.clone(),
                path_type: match location.path {
                    PathMatch::Exact(_) => "exact",
                    PathMatch::Prefix(_) => "prefix",
                    PathMatch::Regex(_) => "regex",
                },
                ingress: location.ingress.as_ref().map(ToString::to_string).unwrap_or_default(),
                action: match &location.action {
                    Action::Proxy(upstream) => upstream.0.clone(),
                    Action::DefaultBackend => "default backend".to_owned(),
                    Action::Redirect(redirect) => format!("redirect {}", redirect.status),
                    Action::Deny => "refused (503)".to_owned(),
                },
            });
        }
    }
    routes
}

fn upstreams(l7: &L7, unwell: &Unwell, failing: &Failing) -> Vec<UpstreamStatus> {
    let found = |(endpoint, finding): (&SocketAddr, &Finding)| UnwellStatus {
        endpoint: *endpoint,
        fault: finding.fault.to_string(),
        since_seconds: finding.since.elapsed().unwrap_or_default().as_secs(),
    };
    let upstreams = l7.upstreams.iter().map(|(name, upstream)| UpstreamStatus {
        name: name.0.clone(),
        endpoints: upstream.endpoints.iter().copied().collect(),
        check: upstream.check.as_ref().map(ToString::to_string).unwrap_or_default(),
        unwell: unwell.of(name).map(found).collect(),
        failing: failing.of(name).map(FailingStatus::new).collect(),
    });
    upstreams.collect()
}

fn of_hosts(l7: &L7) -> Vec<CertificateStatus> {
    let now = certificates::now();
    l7.certificates
        .iter()
        .map(|(host, certificate)| CertificateStatus {
            host: host.to_string(),
            secret: certificate.secret.to_string(),
            expires_in_days: (certificate.not_after - now) / 86_400,
            expiry: certificates::expiry(certificate, now),
        })
        .collect()
}

impl FailingStatus {
    fn new((endpoint, failures): (&SocketAddr, &Failures)) -> Self {
        let Failures { cause, count, ago, ejected } = failures;
        let ejected = ejected.map(|Ejected { since, left }| EjectedStatus {
            since_seconds: since.as_secs(),
            left_seconds: left.as_secs(),
        });
        let (cause, last_seconds) = (cause.clone(), ago.as_secs());
        Self { endpoint: *endpoint, cause, failed_attempts: *count, last_seconds, ejected }
    }
}

impl LeaseStatus {
    fn new((name, holder): (String, Option<cluster::Holder>)) -> Self {
        let (holder, is_us) = holder.map_or_else(Default::default, |holder| (holder.identity, holder.is_us));
        Self { name, holder, is_us }
    }
}

impl AnnouncedStatus {
    fn new(announced: &Announced) -> Self {
        // Rivals are problems.
        let Announced { interface, own: _, trouble, members, holders, formers, mac: _, agents: _, rivals: _ } =
            announced;
        let holder = |(address, by): (&IpAddr, &Option<String>)| Holder {
            address: *address,
            by: by.clone().unwrap_or_default(),
            former: formers.get(address).map(|former| former.name.clone()).unwrap_or_default(),
        };
        Self {
            interface: interface.clone(),
            trouble: trouble.clone().unwrap_or_default(),
            members: members.clone(),
            addresses: holders.iter().map(holder).collect(),
        }
    }
}

impl ProblemStatus {
    fn new(problem: &Problem) -> Self {
        let Problem { object, severity, reason, field, message, fix } = problem;
        Self {
            object: object.to_string(),
            severity: severity.to_string(),
            reason,
            field: field.clone(),
            message: message.clone(),
            fix: fix.clone(),
        }
    }
}
