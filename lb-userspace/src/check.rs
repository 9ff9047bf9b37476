//! The report behind `penstock check`: for every object what is honoured, surprising, ignored or
//! refused. Pure: objects and problems in, text or JSON out.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::model::l4::{Access, BackendState, Pool};
use crate::model::l7::{Action, Location, PathMatch};
use crate::model::{ObjectId, ObjectName, Problem, Severity, Snapshot};
use crate::objects::{Key, Kind, Objects};
use crate::translate::{self, Translated};

/// Reasons of problems that mean "as if it were not written".
const IGNORED: [&str; 20] = [
    "canary-not-yet",
    "catch-all-disabled",
    "external-ips-off",
    "fqdn-slice",
    "kind-not-read",
    "l2-node-port",
    "missing-class",
    "no-effect",
    "not-yet",
    "other-class",
    "other-load-balancer-class",
    "other-service-proxy",
    "path-conflict",
    "port-not-served",
    "resource-backend",
    "slice-without-service",
    "tls-host-without-rule",
    "unknown-annotation",
    "unknown-field",
    "unsupported-protocol",
];

/// Everything there is to say about a set of objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By file and document, then name.
    pub objects: Vec<ObjectReport>,
    /// How many objects came to each verdict.
    pub summary: BTreeMap<Verdict, usize>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectReport {
    /// Kubernetes kind; empty for a file.
    pub kind: String,
    /// Namespace, where it has one.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// File and document.
    pub origin: String,
    /// The worst of its findings; an object that brings something about is never ignored.
    pub verdict: Verdict,
    /// What it brings about, one line each.
    pub effects: Vec<String>,
    /// Annotations that do what they say.
    pub honoured: Vec<&'static str>,
    /// What is not simply honoured.
    pub findings: Vec<Finding>,
}

/// One finding about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it means for the object.
    pub verdict: Verdict,
    /// Stable word for filters.
    pub reason: &'static str,
    /// Path of the field.
    pub field: String,
    /// What is the case.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// What becomes of an object or a part of it; the later the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Does what it says.
    Honoured,
    /// As if it were not written.
    Ignored,
    /// Works, but perhaps not as its author thinks.
    Surprising,
    /// Does not work.
    Refused,
}

impl Verdict {
    fn of(problem: &Problem) -> Self {
        match problem.severity {
            Severity::Error => Self::Refused,
            _ if IGNORED.contains(&problem.reason) => Self::Ignored,
            Severity::Warning => Self::Surprising,
            Severity::Info => Self::Honoured,
        }
    }

    fn symbol(self) -> char {
        match self {
            Self::Honoured => '✓',
            Self::Ignored => '-',
            Self::Surprising => '!',
            Self::Refused => '✗',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Ignored => "ignored",
            Self::Surprising => "surprising",
            Self::Refused => "refused",
        }
    }
}

impl Report {
    /// Something does not work: `check` exits with 1.
    pub fn has_errors(&self) -> bool {
        self.summary.get(&Verdict::Refused).is_some_and(|count| *count > 0)
    }
}

/// Groups all problems by the object that holds their cause.
pub fn report(objects: &Objects, translated: &Translated, load_problems: &[Problem]) -> Report {
    let mut findings: BTreeMap<ObjectId, Vec<&Problem>> = BTreeMap::new();
    for id in objects.ids() {
        findings.entry(id).or_default();
    }
    for problem in load_problems.iter().chain(&translated.problems) {
        findings.entry(problem.object.clone()).or_default().push(problem);
    }
    let annotations = translate::honoured_annotations(objects);
    let mut reports: Vec<_> =
        findings.into_iter().map(|(id, problems)| object(id, problems, translated, &annotations)).collect();
    reports.sort_by(|left, right| {
        let place =
            |report: &ObjectReport| (natural(&report.origin), report.kind.clone(), report.name.clone());
        place(left).cmp(&place(right))
    });
    let mut summary = BTreeMap::new();
    for report in &reports {
        *summary.entry(report.verdict).or_insert(0) += 1;
    }
    Report { objects: reports, summary }
}

/// `a.yaml#10` after `a.yaml#9`.
fn natural(origin: &str) -> (String, usize, String) {
    let (file, place) = origin.split_once('#').unwrap_or((origin, ""));
    let digits = place.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = place.split_at(digits);
    (file.to_owned(), number.parse().unwrap_or_default(), rest.to_owned())
}

fn object(
    id: ObjectId,
    mut problems: Vec<&Problem>,
    translated: &Translated,
    annotations: &BTreeMap<Key, Vec<&'static str>>,
) -> ObjectReport {
    problems.sort();
    problems.dedup();
    let warns = problems.iter().any(|problem| problem.severity == Severity::Warning);
    let findings: Vec<_> = problems
        .into_iter()
        .map(|problem| Finding {
            verdict: Verdict::of(problem),
            reason: problem.reason,
            field: problem.field.clone(),
            message: problem.message.clone(),
            fix: problem.fix.clone(),
        })
        .collect();
    let ObjectId { kind, namespace, name, origin } = id;
    let key = ObjectName::new(&namespace, &name);
    let effects = match kind.as_str() {
        "Ingress" => routes(&key, &translated.snapshot),
        "Service" => vips(&key, &translated.snapshot),
        _ => Vec::new(),
    };
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Honoured);
    let verdict = match worst {
        Verdict::Refused => Verdict::Refused,
        // Something of it is ignored, but not the object.
        _ if !effects.is_empty() && warns => Verdict::Surprising,
        _ if !effects.is_empty() => Verdict::Honoured,
        worst => worst,
    };
    let of_kind = Kind::ALL.into_iter().find(|one| one.to_string() == kind);
    let honoured = of_kind.and_then(|kind| annotations.get(&Key { kind, name: key }).cloned());
    let mut honoured = honoured.unwrap_or_default();
    // Not both: what a finding is about is told there.
    honoured.retain(|name| {
        !findings.iter().any(|Finding { verdict, field, .. }| {
            let prefix = field.strip_suffix(name).unwrap_or_default();
            *verdict != Verdict::Honoured && prefix.ends_with(['/', '.'])
        })
    });
    ObjectReport { kind, namespace, name, origin, verdict, effects, honoured, findings }
}

fn routes(ingress: &ObjectName, snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for (host, server) in &snapshot.l7.servers {
        for location in server.locations.iter().filter(|location| location.ingress.as_ref() == Some(ingress))
        {
            let scheme = if server.tls { "https" } else { "http" };
            let kind = match location.path {
                PathMatch::Exact(_) => "exactly ",
                PathMatch::Prefix(_) => "",
                PathMatch::Regex(_) => "~ ",
            };
            lines.push(format!(
                "{kind}{scheme}://{host}{} -> {}",
                location.path_label,
                target(location, snapshot)
            ));
        }
    }
    lines
}

fn target(location: &Location, snapshot: &Snapshot) -> String {
    match &location.action {
        Action::Proxy(upstream) => {
            let endpoints =
                snapshot.l7.upstreams.get(upstream).map_or(0, |upstream| upstream.endpoints.len());
            format!("{} ({})", upstream.0, count(endpoints, "endpoint"))
        }
        Action::DefaultBackend => "the default backend".to_owned(),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status),
        Action::Deny => "503, refused".to_owned(),
    }
}

fn vips(service: &ObjectName, snapshot: &Snapshot) -> Vec<String> {
    let pools = snapshot.l4.pools.iter().filter(|(id, _)| id.service == *service);
    pools
        .flat_map(|(_, pool)| {
            let backends = backends(pool);
            pool.vips.iter().map(move |(vip, access)| match access {
                Access::Open => format!("{vip} -> {backends}"),
                Access::Restricted => format!("{vip} from {} -> {backends}", sources(pool)),
            })
        })
        .collect()
}

fn sources(pool: &Pool) -> String {
    const SHOWN: usize = 4;
    let mut ranges = pool.source_ranges.iter();
    let shown: Vec<_> = ranges.by_ref().take(SHOWN).map(ToString::to_string).collect();
    match (shown.is_empty(), ranges.count()) {
        (true, _) => "nobody".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `3 backends, nat`, or `3 backends, 1 local, 2 tunnel`.
fn backends(pool: &Pool) -> String {
    let mut modes: BTreeMap<&str, usize> = BTreeMap::new();
    for backend in pool.backends.values() {
        *modes.entry(backend.mode.as_str()).or_default() += 1;
    }
    let mut text = count(pool.backends.len(), "backend");
    let draining = pool.backends.values().filter(|backend| backend.state == BackendState::Draining).count();
    if draining > 0 {
        text += &format!(" ({draining} draining)");
    }
    let mixed = modes.len() > 1;
    for (mode, number) in modes {
        text += &if mixed { format!(", {number} {mode}") } else { format!(", {mode}") };
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// For people.
pub fn render_text(report: &Report) -> String {
    let mut out = String::new();
    for object in &report.objects {
        // Writing to a String cannot fail.
        let _ = render_object(&mut out, object);
    }
    let counts: Vec<_> =
        report.summary.iter().map(|(verdict, count)| format!("{count} {}", verdict.word())).collect();
    let summary = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    let _ = writeln!(out, "{summary}");
    out
}

fn render_object(out: &mut String, object: &ObjectReport) -> std::fmt::Result {
    let ObjectReport { kind, namespace, name, origin, verdict, effects, honoured, findings } = object;
    write!(out, "{} ", verdict.symbol())?;
    if kind.is_empty() {
        writeln!(out, "{origin}")?;
    } else {
        let slash = if namespace.is_empty() { "" } else { "/" };
        writeln!(out, "{kind} {namespace}{slash}{name}  ({origin})")?;
    }
    for line in effects {
        writeln!(out, "    {line}")?;
    }
    if !honoured.is_empty() {
        writeln!(out, "    honoured: {}", honoured.join(", "))?;
    }
    for Finding { verdict, reason, field, message, fix } in findings {
        let word = if *verdict == Verdict::Honoured { "note" } else { verdict.word() };
        let colon = if field.is_empty() { "" } else { ": " };
        writeln!(out, "    {} {word}: {field}{colon}{message} [{reason}]", verdict.symbol())?;
        if !fix.is_empty() {
            writeln!(out, "        fix: {fix}")?;
        }
    }
    writeln!(out)
}

/// For programs.
pub fn render_json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}
