//! `penstock status`: the state of the live agent for people ([`Display`]) and programs
//! ([`Serialize`]).

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::certificates;
use super::desired::State;
use crate::datapath::exhaustion::Fullest;
use crate::datapath::kernel::Translated;
use crate::model::announce::Announced;
use crate::model::health::{Ejected, Failing, Failures, Finding, Unwell};
use crate::model::l4::Listener;
use crate::model::l7::{Action, L7, PathMatch};
use crate::model::{Problem, Severity};
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
        let Announced { interface, own: _, trouble, members, holders, formers, mac: _, agents: _ } =
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

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "penstock {}, up {} s, {} (snapshot {}, {} s old)",
            self.version, self.uptime_seconds, self.manifests, self.generation, self.snapshot_age_seconds
        )?;
        if let Some(age) = self.cluster_age_seconds {
            writeln!(f, "the API server last confirmed what is known of the cluster {age} s ago")?;
        }
        match &self.lease {
            None => {}
            Some(LeaseStatus { name, is_us: true, .. }) => {
                writeln!(f, "status and Events are written by this agent, which holds the Lease {name}")?;
            }
            Some(LeaseStatus { name, holder, .. }) if holder.is_empty() => {
                writeln!(f, "status and Events are not written: nobody is known to hold the Lease {name}")?;
            }
            Some(LeaseStatus { name, holder, .. }) => {
                writeln!(f, "status and Events are written by {holder}, which holds the Lease {name}")?;
            }
        }
        let listeners = self.listeners.iter().map(|l| vec![l.scheme.to_owned(), l.addr.to_string()]);
        section(f, "listeners", &["scheme", "address"], listeners)?;
        match &self.datapath {
            Some(datapath) => fmt_datapath(f, datapath)?,
            None => writeln!(f, "\ndatapath off: the kernel balances nothing")?,
        }
        self.announced.iter().try_for_each(|link| fmt_announced(f, link))?;
        let routes = self.routes.iter().map(|r| {
            let tls = if r.tls { "tls" } else { "" };
            vec![
                r.host.clone(),
                r.path.clone(),
                r.path_type.to_owned(),
                tls.to_owned(),
                r.action.clone(),
                r.ingress.clone(),
            ]
        });
        section(f, "routes", &["host", "path", "type", "", "to", "ingress"], routes)?;
        let upstreams = self.upstreams.iter().map(|u| {
            let endpoints: Vec<String> = u.endpoints.iter().map(ToString::to_string).collect();
            vec![
                u.name.clone(),
                if endpoints.is_empty() { "none (503)".to_owned() } else { endpoints.join(" ") },
                u.check.clone(),
            ]
        });
        section(f, "upstreams", &["name", "endpoints", "checked by"], upstreams)?;
        let unwell = self.upstreams.iter().flat_map(|u| {
            u.unwell.iter().map(|unwell| {
                let since = format!("{} s ago", unwell.since_seconds);
                vec![u.name.clone(), unwell.endpoint.to_string(), unwell.fault.clone(), since]
            })
        });
        section(f, "unwell endpoints", &["of", "endpoint", "why", "since"], unwell)?;
        let failing = self.upstreams.iter().flat_map(|u| {
            u.failing.iter().map(|failing| {
                let ejected = failing.ejected.as_ref().map_or_else(
                    || "no".to_owned(),
                    |e| format!("since {} s, for {} s more", e.since_seconds, e.left_seconds),
                );
                let last = format!("{} s ago", failing.last_seconds);
                let count = failing.failed_attempts.to_string();
                vec![
                    u.name.clone(),
                    failing.endpoint.to_string(),
                    failing.cause.clone(),
                    count,
                    last,
                    ejected,
                ]
            })
        });
        let header = ["of", "endpoint", "why", "attempts", "last", "ejected"];
        section(f, "failing endpoints", &header, failing)?;
        let certificates =
            self.certificates.iter().map(|c| vec![c.host.clone(), c.secret.clone(), c.expiry.clone()]);
        section(f, "certificates", &["host", "secret", "expires in"], certificates)?;
        let kept = self.last_good.iter();
        let kept = kept.map(|kept| vec![kept.object.clone(), format!("{} s ago", kept.since_seconds)]);
        section(f, "last good versions in force", &["object", "since"], kept)?;
        self.fmt_problems(f)
    }
}

impl Status {
    fn fmt_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.problems.is_empty() {
            return writeln!(f, "\nno problems");
        }
        writeln!(f, "\nproblems")?;
        for severity in [Severity::Error, Severity::Warning, Severity::Info] {
            for problem in self.problems.iter().filter(|p| p.severity == severity.to_string()) {
                let ProblemStatus { object, severity, reason: _, field, message, fix } = problem;
                let at = if field.is_empty() { String::new() } else { format!("{field}: ") };
                writeln!(f, "  {severity:<8} {object}: {at}{message}")?;
                if !fix.is_empty() {
                    writeln!(f, "           fix: {fix}")?;
                }
            }
        }
        Ok(())
    }
}

fn fmt_datapath(f: &mut fmt::Formatter<'_>, datapath: &datapath::Status) -> fmt::Result {
    let interfaces = datapath
        .interfaces
        .iter()
        .map(|(name, attached)| vec![name.clone(), format!("{attached:?}").to_lowercase()]);
    section(f, "interfaces", &["name", "xdp"], interfaces)?;
    let tables = &datapath.tables;
    let (made, stay) = (
        if tables.adopted { "taken over from the agent before" } else { "made by this agent" },
        if tables.pinned { "pinned" } else { "not pinned" },
    );
    writeln!(f, "\ntables {made}, {} s old, {stay}", tables.age_seconds)?;
    let vips = datapath.vips.iter().map(|v| {
        vec![
            v.protocol.clone(),
            v.addr.to_string(),
            v.target.clone(),
            v.totals.packets.to_string(),
            v.totals.bytes.to_string(),
            v.totals.flows.to_string(),
        ]
    });
    section(f, "vips", &["", "address", "to", "packets", "bytes", "flows"], vips)?;
    let pools = datapath.pools.iter().map(|p| {
        vec![
            p.pool.clone(),
            p.slots.to_string(),
            p.contested.to_string(),
            p.backends.len().to_string(),
            p.totals.packets.to_string(),
            p.totals.bytes.to_string(),
        ]
    });
    section(f, "pools", &["service port", "slots", "contested", "backends", "packets", "bytes"], pools)?;
    let backends = datapath.pools.iter().flat_map(|pool| {
        pool.backends.iter().map(|b| {
            vec![
                pool.pool.clone(),
                b.addr.to_string(),
                b.mode.to_owned(),
                if b.draining { "draining".to_owned() } else { b.weight.to_string() },
                b.next_hop.clone(),
                b.totals.packets.to_string(),
                b.totals.bytes.to_string(),
                b.totals.flows.to_string(),
            ]
        })
    });
    let header = ["of", "address", "mode", "weight", "next hop", "packets", "bytes", "flows"];
    section(f, "backends", &header, backends)?;
    let verdicts = datapath.verdicts.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]);
    section(f, "verdicts", &["name", "packets"], verdicts)?;
    let events = datapath.events.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]);
    section(f, "events", &["name", "times"], events)?;
    let (used, size) = datapath.flow_table;
    let Translated { nat, local, fullest } = datapath.translated_flows;
    write!(f, "\n{used} of {size} flows remembered, {} translated ({local} to this host", nat + local)?;
    if let Some(Fullest { backend, flows }) = fullest {
        write!(f, "; {flows} of {} nat ports towards {backend}", datapath.nat_ports)?;
    }
    writeln!(f, ")")
}

fn fmt_announced(f: &mut fmt::Formatter<'_>, link: &AnnouncedStatus) -> fmt::Result {
    let AnnouncedStatus { interface, trouble, members, addresses } = link;
    if trouble.is_empty() && members.is_empty() {
        writeln!(f, "\nannounced on {interface} by nobody yet: this agent listens first")?;
    } else if trouble.is_empty() {
        writeln!(f, "\nannounced on {interface} by {}", members.join(" "))?;
    } else {
        writeln!(f, "\nnothing is announced on {interface}: {trouble}")?;
    }
    let rows = addresses.iter().map(|Holder { address, by, former }| {
        let by = if by.is_empty() { "nobody can" } else { by };
        vec![address.to_string(), by.to_owned(), former.clone()]
    });
    // The last column is for those that have moved here alone.
    let header = if addresses.iter().any(|holder| !holder.former.is_empty()) {
        &["address", "held by", "before by"][..]
    } else {
        &["address", "held by"]
    };
    section(f, &format!("addresses on {interface}"), header, rows)
}

/// A titled table with aligned columns; nothing where there are no rows.
fn section(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> fmt::Result {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    writeln!(f, "\n{title}")?;
    writeln!(f, "  {}", line(&mut header.iter().copied()))?;
    for row in &rows {
        writeln!(f, "  {}", line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}
