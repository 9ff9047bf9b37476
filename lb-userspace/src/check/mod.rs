//! The report behind `penstock check`: what becomes of every object that comes from ingress-nginx,
//! with the reason and the fix. Pure: objects, problems and the time in; text, JSON or JUnit out.
//!
//! Most findings are problems of the translation. What only somebody who moves wants to know, or
//! what shows when objects are looked at together, is found by `traps`.

mod effects;
mod json;
mod junit;
mod review;
mod started;
mod text;
mod traps;
mod verdict;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::model::{ObjectId, ObjectName, Problem, Severity};
use crate::objects::{Bystander, Key, Kind, Objects};
use crate::translate::{self, MISSING_SECRET, Options, Translated};

pub use json::render_json;
pub use junit::render_junit;
pub use review::review;
pub use started::{Controller, FlagFate, Started, StartedFlag, controllers};
pub use text::{Paint, Style, render_text};
pub use traps::METRICS;
pub use verdict::Verdict;

/// What a report is made of.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Objects in force.
    pub objects: &'a Objects,
    /// What decides their meaning.
    pub options: &'a Options,
    /// What they come to.
    pub translated: &'a Translated,
    /// What could not be read or did not enter.
    pub load_problems: &'a [Problem],
    /// Objects beside those.
    pub bystanders: &'a [Bystander],
    /// How ingress-nginx was started.
    pub started: &'a [Started],
    /// Seconds since the epoch; certificates expire.
    pub now: i64,
}

/// Everything there is to say about a set of objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many objects came to each verdict.
    pub summary: BTreeMap<Verdict, usize>,
    /// What the set as a whole lacks to be judged, and what holds for all of it.
    pub hints: Vec<String>,
    /// By file and document, then name.
    pub objects: Vec<ObjectReport>,
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
    /// What is not simply honoured, the worst first.
    pub findings: Vec<Finding>,
}

/// One finding about an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

impl Report {
    /// Something came to this verdict or to a worse one.
    pub fn reaches(&self, threshold: Verdict) -> bool {
        self.summary.iter().any(|(verdict, count)| *verdict >= threshold && *count > 0)
    }
}

/// Groups everything there is to say by the object that holds its cause.
pub fn report(input: &Input<'_>) -> Report {
    let Input { objects, options, translated, load_problems, started, .. } = *input;
    let mut absent = Absent::of(objects);
    let mut about: BTreeMap<ObjectId, Gathered<'_>> = BTreeMap::new();
    for id in objects.ids() {
        about.entry(id).or_default();
    }
    let problems = load_problems.iter().chain(translated.problems.iter().map(Arc::as_ref));
    // A workload is no object of ours, but its flags are.
    let is_flags = |problem: &&Problem| started.iter().any(|started| started.id == problem.object);
    for problem in problems.filter(|problem| !absent.explains(problem) && !is_flags(problem)) {
        about.entry(problem.object.clone()).or_default().problems.push(problem);
    }
    for (id, trap) in traps::find(input) {
        about.entry(id).or_default().traps.push(trap);
    }
    for started in started {
        about.entry(started.id.clone()).or_default().traps.extend(started.findings());
    }
    let world = Judged {
        absent: &absent,
        started,
        honoured: translate::honoured_annotations(objects),
        routes: effects::routes(&translated.snapshot),
        vips: effects::vips(&translated.snapshot),
        closed: effects::closed(&translated.snapshot),
    };
    let mut reports: Vec<_> = about.into_iter().map(|(id, gathered)| world.object(id, gathered)).collect();
    reports.sort_by_cached_key(|report| (natural(&report.origin), report.kind.clone(), report.name.clone()));
    let mut summary = BTreeMap::new();
    for report in &reports {
        *summary.entry(report.verdict).or_insert(0) += 1;
    }
    let hints = absent.hints().into_iter().chain(streamed_bodies(objects, options)).collect();
    Report { summary, hints, objects: reports }
}

/// Said once and not of every Ingress: by default ingress-nginx reads bodies whole before it sends them on. Who has said
/// which way it is to be, knows.
fn streamed_bodies(objects: &Objects, options: &Options) -> Option<String> {
    const NAME: &str = "proxy-request-buffering";
    let controller = translate::controller(objects, options);
    let data = controller.iter().flat_map(|(_, map)| map.object.data.iter().flatten());
    if data.into_iter().any(|(key, text)| key == NAME && !text.trim().is_empty()) {
        return None;
    }
    let annotation = format!("{}/{NAME}", translate::PREFIX);
    let says = |served: &translate::Served<'_>| {
        served.ingress.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(&annotation))
    };
    translate::served(objects, options).iter().any(|served| !says(served)).then(|| {
        format!(
            "bodies of requests stream here, and ingress-nginx reads them whole first: a chunked one reaches the Service without \
             Content-Length; say {NAME}: \"on\" in the ConfigMap where an application cannot read that, else \"off\""
        )
    })
}

/// `a.yaml#10` after `a.yaml#9`.
fn natural(origin: &str) -> (String, usize, String) {
    let (file, place) = origin.split_once('#').unwrap_or((origin, ""));
    let digits = place.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = place.split_at(digits);
    (file.to_owned(), number.parse().unwrap_or_default(), rest.to_owned())
}

/// Kinds of which no object was given at all: a repository of Ingresses without the rest of the
/// cluster. What is said of every one that is missing is then said once.
struct Absent(Vec<Missing>);

struct Missing {
    kind: &'static str,
    /// Reason of the problems about it.
    reason: &'static str,
    /// What gets them out of a cluster; empty for keys, which had better stay where they are.
    command: &'static str,
    /// There were such problems.
    is_felt: bool,
}

impl Absent {
    fn of(objects: &Objects) -> Self {
        let Objects { services, endpoint_slices, secrets, .. } = objects;
        let missing = |kind, reason, command| Missing { kind, reason, command, is_felt: false };
        let mut absent = Vec::new();
        if services.is_empty() {
            absent.push(missing("Services", "missing-service", "kubectl get services -A -o yaml"));
        }
        if endpoint_slices.is_empty() {
            absent.push(missing("EndpointSlices", "no-endpoints", "kubectl get endpointslices -A -o yaml"));
        }
        if secrets.is_empty() {
            absent.push(missing("Secrets", "bad-certificate", ""));
            absent.push(missing("Secrets", MISSING_SECRET, ""));
        }
        Self(absent)
    }

    /// Whether a problem is about something that could not be there, and needs no telling.
    fn explains(&mut self, problem: &Problem) -> bool {
        let missing = self.0.iter_mut().find(|missing| missing.reason == problem.reason);
        missing.map(|missing| missing.is_felt = true).is_some() && problem.severity != Severity::Error
    }

    /// What is closed for want of something may well be there in a cluster.
    fn closes(&self, reason: &str) -> bool {
        self.0.iter().any(|missing| missing.reason == reason)
    }

    fn hints(&self) -> Vec<String> {
        let felt = self.0.iter().filter(|missing| missing.is_felt);
        let mut hints: Vec<_> = felt
            .map(|Missing { kind, command, .. }| {
                let add = if command.is_empty() { String::new() } else { format!("; add `{command}`") };
                format!("no {kind} are among the objects, so it is not told which of them are missing{add}")
            })
            .collect();
        hints.dedup();
        hints
    }
}

/// What was found about one object.
#[derive(Default)]
struct Gathered<'a> {
    problems: Vec<&'a Problem>,
    traps: Vec<Finding>,
}

/// What objects come to, as far as it is needed for each of them.
struct Judged<'a> {
    absent: &'a Absent,
    started: &'a [Started],
    honoured: BTreeMap<Key, Vec<&'static str>>,
    routes: BTreeMap<&'a ObjectName, Vec<String>>,
    vips: BTreeMap<&'a ObjectName, Vec<String>>,
    closed: BTreeSet<&'a ObjectName>,
}

impl Judged<'_> {
    fn object(&self, id: ObjectId, gathered: Gathered<'_>) -> ObjectReport {
        let started = self.started.iter().find(|started| started.id == id);
        let ObjectId { kind, namespace, name, origin } = id;
        let key = ObjectName::new(&namespace, &name);
        let mut effects = match kind.as_str() {
            "Ingress" => self.routes.get(&key).cloned().unwrap_or_default(),
            "Service" => self.vips.get(&key).cloned().unwrap_or_default(),
            _ if started.is_some() => vec!["runs ingress-nginx; penstock takes the same flags".to_owned()],
            _ => Vec::new(),
        };
        let warns = gathered.problems.iter().any(|problem| problem.severity == Severity::Warning);
        let mut findings = merge(gathered, self.absent);
        let is_explained = findings
            .iter()
            .any(|Finding { verdict, reason, .. }| *verdict == Verdict::Refused || *reason == MISSING_SECRET);
        let is_refused = findings.iter().any(|finding| finding.verdict == Verdict::Refused);
        if is_explained && !is_refused {
            for effect in &mut effects {
                *effect = effect.replace("503, refused", "503 without its Secret");
            }
        }
        if kind == "Ingress" && self.closed.contains(&key) && !is_explained {
            findings.insert(
                0,
                Finding {
                    verdict: Verdict::Refused,
                    reason: "closed-from-elsewhere",
                    field: String::new(),
                    message: "its paths answer 503, for a reason that another object holds".to_owned(),
                    fix: "put right what is refused in the ConfigMap, or in an older Ingress of the host"
                        .to_owned(),
                },
            );
        }
        let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Identical);
        let verdict = match worst {
            // Something of it is ignored, but not the object.
            Verdict::Ignored if (!effects.is_empty() || kind == "ConfigMap") && warns => Verdict::Differs,
            Verdict::Ignored if !effects.is_empty() || kind == "ConfigMap" => Verdict::Identical,
            worst => worst,
        };
        let of_kind = Kind::ALL.into_iter().find(|one| one.to_string() == kind);
        let honoured = of_kind.and_then(|kind| self.honoured.get(&Key { kind, name: key }).cloned());
        let mut honoured = honoured.or(started.map(Started::honoured)).unwrap_or_default();
        // Not both: what a finding is about is told there, and what goes with something idle is idle, too.
        let is_about = |finding: &Finding, name: &str| {
            let prefix = finding.field.strip_suffix(name).unwrap_or_default();
            finding.verdict != Verdict::Identical && prefix.ends_with(['/', '.'])
        };
        honoured.retain(|name| {
            let main = companion_of(name);
            !findings.iter().any(|finding| {
                let idles =
                    || traps::idles(finding.reason) && main.is_some_and(|main| is_about(finding, main));
                is_about(finding, name) || idles()
            })
        });
        ObjectReport { kind, namespace, name, origin, verdict, effects, honoured, findings }
    }
}

/// The annotation without which this one means nothing.
fn companion_of(name: &str) -> Option<&'static str> {
    let row = translate::TABLE.iter().find(|row| row.name == name)?;
    match row.status {
        translate::Status::With(main) => Some(main),
        _ => None,
    }
}

/// Findings of both sources, the worst first. A trap that is about the field of a problem says the
/// same thing better, so the problem gives way, though never to a better verdict.
fn merge(gathered: Gathered<'_>, absent: &Absent) -> Vec<Finding> {
    let Gathered { problems, mut traps } = gathered;
    let mut findings = BTreeSet::new();
    for problem in problems {
        if problem.reason == MISSING_SECRET && absent.closes(MISSING_SECRET) {
            findings.insert(unseen(problem));
            continue;
        }
        let verdict = Verdict::of(problem);
        let Problem { object: _, severity: _, reason, field, message, fix } = problem;
        let better =
            traps.iter_mut().find(|trap| trap.field == *field && traps::replaces(trap.reason, reason));
        if let Some(better) = better {
            better.verdict = better.verdict.max(verdict);
            continue;
        }
        findings.insert(Finding {
            verdict,
            reason,
            field: field.clone(),
            message: message.clone(),
            fix: fix.clone(),
        });
    }
    findings.extend(traps);
    let mut findings: Vec<_> = findings.into_iter().collect();
    findings.sort_by(|left, right| right.verdict.cmp(&left.verdict).then_with(|| left.cmp(right)));
    findings
}

/// A Secret that nobody could have seen among these objects: whether it is there, only the cluster tells.
fn unseen(problem: &Problem) -> Finding {
    Finding {
        verdict: Verdict::NeedsAction,
        reason: problem.reason,
        field: problem.field.clone(),
        message: format!(
            "{}; as no Secret is among the objects, that says nothing about the cluster",
            problem.message
        ),
        fix: "see to it that it is there before the Ingress moves: without it everybody is refused"
            .to_owned(),
    }
}
