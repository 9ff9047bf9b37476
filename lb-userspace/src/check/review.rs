//! One Ingress before it is stored, for the validating webhook: the findings of the report, split into what keeps
//! it out and what its author is told.
//!
//! It is kept out where nothing else in the cluster could make it work: fields and annotations that do not enter,
//! nginx configuration, a path that another Ingress has. What only waits for another object (a Secret that
//! cert-manager makes later, a Service of the same roll-out) is told. Milliseconds, however many
//! Ingresses there are and however many of them share its host: few of those are translated beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::Ingress;
use serde_json::Value;

use crate::model::l7::Mode;
use crate::model::review::Review;
use crate::model::{ObjectName, Problem, Severity};
use crate::objects::{Map, Object, Objects};
use crate::translate::{self, Annotation, Options, Scope, SnippetPolicy, Value as Form};

/// Reasons that keep an Ingress out although they are no errors of its form.
const KEPT_OUT: [&str; 4] = ["refused-annotation", "bad-pattern", "bad-rewrite-target", "catch-all-disabled"];

/// Reasons that say nothing where only a part of the cluster was looked at, or that are the business of another
/// object.
const ELSEWHERE: [&str; 4] = ["host-closed", "no-endpoints", "path-conflict", "no-vip"];

/// What ingress-nginx's deep inspection looks for in hosts and paths. Nothing here becomes configuration; who has
/// such a path means harm, or has copied it from who does.
const INSPECTED: [&str; 7] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/nginx",
    "/etc/ingress-controller",
    "/var/run/secrets",
    "_by_lua",
];

/// Judges an Ingress as the API server sends it, beside the objects in force. One that is not ours is not judged.
pub fn review(objects: &Objects, options: &Options, ingress: Value) -> Review {
    let ingress: Arc<Ingress> = match serde_json::from_value(ingress) {
        Ok(ingress) => Arc::new(ingress),
        Err(error) => return Review::refuse(format!("not an Ingress: {error}")),
    };
    // It serves no longer than its finalizers take, and whoever removes those must not be kept from it.
    if ingress.metadata.deletion_timestamp.is_some() {
        return Review::default();
    }
    let admission = translate::admission(options);
    let object = admission.enter(Object::Ingress(ingress));
    let Object::Ingress(ingress) = &object else { return Review::default() };
    let key = object.key();
    let neighbours = neighbours(objects, &key.name, &object);
    let served = translate::served(&neighbours, options);
    if !served.iter().any(|served| *served.name == key.name) {
        return Review::default();
    }

    let id = key.id("");
    let mut problems = admission.alone(&object, &id);
    problems.extend(admission.among(&objects.config_maps)(&object, &id));
    let mut review = Review::default();
    problems.retain(|problem| problem.severity == Severity::Error);
    review.refused.extend(problems.iter().map(sentence));
    review.refused.extend(bad_uid(ingress));
    if options.snippets == SnippetPolicy::Refuse {
        review.refused.extend(snippets(ingress, options));
    }
    review.refused.extend(inspected(ingress));
    let others = served.iter().filter(|served| *served.name != key.name);
    let others: Vec<_> = others.map(|served| (served.name, served.ingress)).collect();
    review.refused.extend(overlaps(ingress, &others));
    let translated = translate::translate(&beside(objects, options, &key.name, ingress, &others), options);
    for problem in translated.problems.iter().filter(|problem| problem.object == id) {
        // What would become of it, if it were let in, is no matter any more.
        if problems.iter().any(|refused| (&refused.field, refused.reason) == (&problem.field, problem.reason))
        {
            continue;
        }
        let sentence = sentence(problem);
        if KEPT_OUT.contains(&problem.reason) {
            review.refused.push(sentence);
        } else if problem.severity != Severity::Info && !ELSEWHERE.contains(&problem.reason) {
            review.warnings.push(sentence);
        }
    }
    dedup(&mut review.refused);
    dedup(&mut review.warnings);
    review.warnings.retain(|warning| !review.refused.contains(warning));
    review
}

fn dedup(sentences: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    sentences.retain(|sentence| seen.insert(sentence.clone()));
}

/// The object is known to who reads it.
fn sentence(problem: &Problem) -> String {
    let Problem { object: _, severity: _, reason: _, field, message, fix } = problem;
    let mut sentence = match field.as_str() {
        "" => message.clone(),
        field => format!("{field}: {message}"),
    };
    if !fix.is_empty() {
        sentence.push_str("; ");
        sentence.push_str(fix);
    }
    sentence
}

/// Itself and the Ingresses that it has a host in common with.
fn neighbours(objects: &Objects, name: &ObjectName, object: &Object) -> Objects {
    let Object::Ingress(ingress) = object else { return Objects::default() };
    let own: BTreeSet<&str> = hosts(ingress).collect();
    let others = objects
        .ingresses
        .iter()
        .filter(|(other, sourced)| *other != name && hosts(&sourced.object).any(|host| own.contains(host)));
    let mut neighbours = Objects {
        ingresses: others.map(|(name, sourced)| (name.clone(), sourced.clone())).collect(),
        ingress_classes: objects.ingress_classes.clone(),
        ..Objects::default()
    };
    neighbours.insert(object.clone(), "");
    neighbours
}

/// The part of the objects that says what becomes of an Ingress: of the others, the oldest first, those that share a
/// path with it, and of each host the first one, the first with TLS, the first that makes patterns of its paths and the
/// first with each annotation that concerns more than its own paths. A host may have thousands. What is a canary or is
/// read strictly does not stand for what is not.
fn beside(
    objects: &Objects,
    options: &Options,
    name: &ObjectName,
    ingress: &Arc<Ingress>,
    others: &[(&ObjectName, &Ingress)],
) -> Objects {
    let own: BTreeSet<&str> = hosts(ingress).collect();
    let shared: BTreeSet<(&str, &str)> = places(ingress).collect();
    let config = translate::controller(objects, options);
    let usual_mode = config.and_then(|(_, config)| config.object.data.as_ref()?.get(translate::MODE_KEY));
    let usual_mode = usual_mode.map(|word| word.trim());
    let mut firsts = BTreeSet::new();
    let mut ingresses = Map::new();
    let mut named = translate::named_services(name, ingress);
    for (name, other) in others {
        let mut counts = places(other).any(|(host, path)| shared.contains(&(host, path)));
        let is_strict = translate::mode(&other.metadata, usual_mode) == Mode::Strict;
        let sort = (is_strict, is_canary(other));
        let traits: Vec<Trait> = Trait::of(other).collect();
        let hosts = hosts(other).flat_map(|host| traits.iter().map(move |one| (host, *one)));
        let patterns = with_patterns(other).map(|host| (host, Trait::Patterns));
        for (host, one) in hosts.chain(patterns).filter(|(host, _)| own.contains(host)) {
            counts |= firsts.insert((host, sort, one));
        }
        if let Some(sourced) = objects.ingresses.get(*name).filter(|_| counts) {
            named.extend(translate::named_services(name, other));
            ingresses.insert((*name).clone(), sourced.clone());
        }
    }
    let services = named.into_iter().filter_map(|name| objects.services.get_key_value(&name));
    let mut beside = Objects {
        ingresses,
        services: services.map(|(name, sourced)| (name.clone(), sourced.clone())).collect(),
        endpoint_slices: Map::new(),
        nodes: Map::new(),
        ingress_classes: objects.ingress_classes.clone(),
        secrets: objects.secrets.clone(),
        config_maps: objects.config_maps.clone(),
        unread: BTreeSet::new(),
    };
    beside.insert(Object::Ingress(Arc::clone(ingress)), "");
    beside
}

/// What of an Ingress can concern other paths of its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trait {
    /// It is there: the oldest makes the host.
    Presence,
    Tls,
    /// A path of it makes patterns of all paths of the host.
    Patterns,
    Annotation(&'static str, Worth),
}

/// What the value of an annotation is good for: one that says `false` or cannot be read stands for no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Bad,
    Off,
    Set,
}

impl Trait {
    /// All but [`Trait::Patterns`], which is not the same for each host.
    fn of(ingress: &Ingress) -> impl Iterator<Item = Self> {
        let spec = ingress.spec.as_ref();
        let tls = spec.and_then(|spec| spec.tls.as_deref()).filter(|tls| !tls.is_empty()).map(|_| Self::Tls);
        let wide = translate::known(&ingress.metadata).filter(|(row, _)| row.scope != Scope::Location);
        let annotations = wide.map(|(row, text)| Self::Annotation(row.name, Worth::of(row, text)));
        [Self::Presence].into_iter().chain(tls).chain(annotations)
    }
}

impl Worth {
    fn of(row: &Annotation, text: &str) -> Self {
        match translate::check_value(row.value, text) {
            Err(_) => Self::Bad,
            Ok(()) if row.value == Form::Bool && translate::boolean(text) == Some(false) => Self::Off,
            Ok(()) => Self::Set,
        }
    }
}

/// Hosts of the paths that make patterns of their neighbours: those of `use-regex`, and those that a target differs from.
fn with_patterns(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let (mut all, mut target) = (false, None);
    for (row, text) in translate::known(&ingress.metadata) {
        match (row.name, Worth::of(row, text)) {
            ("use-regex", Worth::Set) => all = true,
            ("rewrite-target", Worth::Set) => target = Some(text),
            _ => {}
        }
    }
    let makes = move |path: &str| all || target.is_some_and(|target| target != path);
    places(ingress).filter(move |(_, path)| makes(path)).map(|(host, _)| host)
}

fn hosts(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let spec = ingress.spec.as_ref();
    let rules = spec.and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    let default = spec.and_then(|spec| spec.default_backend.as_ref()).map(|_| "");
    rules.iter().map(|rule| rule.host.as_deref().unwrap_or_default()).chain(default)
}

/// An API server gives UUIDs (RFC 9562). ingress-nginx writes them into its configuration, which another one aims at.
fn bad_uid(ingress: &Ingress) -> Option<String> {
    let uid = ingress.metadata.uid.as_deref().filter(|uid| !uid.is_empty())?;
    let is_legal = |(place, byte)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => u8::is_ascii_hexdigit(&byte),
    };
    if uid.len() == 36 && uid.bytes().enumerate().all(is_legal) {
        return None;
    }
    Some(format!("metadata.uid: {uid:?} is no UUID; leave it to the API server"))
}

/// Annotations that would be configuration by their name, those that nobody knows among them.
fn snippets(ingress: &Ingress, options: &Options) -> impl Iterator<Item = String> {
    let renamed = translate::renamed(options);
    let keys = ingress.metadata.annotations.iter().flatten().map(|(key, _)| key);
    let named = keys.filter(|key| {
        let name = key.strip_prefix(translate::PREFIX).and_then(|rest| rest.strip_prefix('/'));
        // Rules of a firewall are refused by what the ConfigMap says, which the translation tells.
        name.is_some_and(|name| name.ends_with("-snippet") && name != "modsecurity-snippet")
    });
    named.map(move |key| {
        let field = format!("metadata.annotations.{key}");
        let field = renamed.as_ref().map_or(field.clone(), |renamed| renamed.field(field));
        format!(
            "{field}: configuration is never taken from annotations; say the same with \
             annotations: redirects, custom headers, source ranges, timeouts"
        )
    })
}

/// Hosts and paths with what is [`INSPECTED`].
fn inspected(ingress: &Ingress) -> impl Iterator<Item = String> {
    let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    let tls_hosts = tls.flat_map(|tls| tls.hosts.iter().flatten()).map(String::as_str);
    let texts = places(ingress).flat_map(|(host, path)| [host, path]).chain(tls_hosts);
    texts.filter_map(|text| {
        let found = INSPECTED.iter().find(|part| text.contains(**part))?;
        Some(format!("{text:?} contains {found:?}, as attacks on an nginx do; choose another"))
    })
}

/// Host and path of each path.
fn places(ingress: &Ingress) -> impl Iterator<Item = (&str, &str)> {
    let rules = ingress.spec.as_ref().and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    rules.iter().flat_map(|rule| {
        let host = rule.host.as_deref().unwrap_or_default();
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        paths.map(move |path| (host, path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/")))
    })
}

fn is_canary(ingress: &Ingress) -> bool {
    let annotations = ingress.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(&format!("{}/canary", translate::PREFIX)));
    value.and_then(|value| translate::boolean(value)) == Some(true)
}

/// Paths that another Ingress has, of whatever type. A canary shares the paths of the one it belongs to.
fn overlaps(ingress: &Ingress, others: &[(&ObjectName, &Ingress)]) -> Vec<String> {
    let mut owners: BTreeMap<(&str, &str), &ObjectName> = BTreeMap::new();
    for (name, other) in others.iter().filter(|(_, other)| is_canary(other) == is_canary(ingress)) {
        for (host, path) in places(other) {
            owners.entry((host, path)).or_insert(name);
        }
    }
    let taken = places(ingress).filter_map(|(host, path)| {
        let owner = owners.get(&(host, path))?;
        let host = if host.is_empty() { "*" } else { host };
        Some(format!("host {host:?} and path {path:?} are defined in Ingress {owner} already"))
    });
    taken.collect()
}

#[cfg(test)]
mod tests;
