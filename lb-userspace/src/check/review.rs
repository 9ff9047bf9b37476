//! One Ingress before it is stored, for the validating webhook: the findings of the report, split into what keeps
//! it out and what its author is told.
//!
//! It is kept out where nothing else in the cluster could make it work: fields and annotations that do not enter,
//! nginx configuration, a path that another Ingress has. What only waits for another object (a Secret that
//! cert-manager makes later, a Service of the same roll-out) is told. Milliseconds among ten thousand
//! Ingresses: only those of its hosts, and the Services they name, are translated beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend};
use serde_json::Value;

use crate::model::review::Review;
use crate::model::{ObjectName, Problem, Severity};
use crate::objects::{Map, Object, Objects};
use crate::translate::{self, Options, SnippetPolicy};

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
    let beside = beside(objects, &key.name, &object);
    let served = translate::served(&beside, options);
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
    review.refused.extend(overlaps(ingress, others.map(|served| (served.name, served.ingress))));
    let translated = translate::translate(&beside, options);
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

/// The part of the objects that an Ingress can have to do with, and itself.
fn beside(objects: &Objects, name: &ObjectName, object: &Object) -> Objects {
    let Object::Ingress(ingress) = object else { return Objects::default() };
    let own: BTreeSet<&str> = hosts(ingress).collect();
    let neighbours = objects
        .ingresses
        .iter()
        .filter(|(other, sourced)| *other != name && hosts(&sourced.object).any(|host| own.contains(host)));
    let mut ingresses: Map<_, _> =
        neighbours.map(|(name, sourced)| (name.clone(), sourced.clone())).collect();
    let mut services = Map::new();
    let named = ingresses.iter().map(|(name, sourced)| (name, &*sourced.object)).chain([(name, &**ingress)]);
    for (name, ingress) in named {
        for backend in backends(ingress) {
            let Some(service) = &backend.service else { continue };
            let name = ObjectName::new(&name.namespace, &service.name);
            if let Some(service) = objects.services.get(&name) {
                services.insert(name, service.clone());
            }
        }
    }
    ingresses.remove(name);
    let mut beside = Objects {
        ingresses,
        services,
        endpoint_slices: Map::new(),
        nodes: Map::new(),
        ingress_classes: objects.ingress_classes.clone(),
        secrets: objects.secrets.clone(),
        config_maps: objects.config_maps.clone(),
        unread: BTreeSet::new(),
    };
    beside.insert(object.clone(), "");
    beside
}

fn hosts(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let spec = ingress.spec.as_ref();
    let rules = spec.and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    let default = spec.and_then(|spec| spec.default_backend.as_ref()).map(|_| "");
    rules.iter().map(|rule| rule.host.as_deref().unwrap_or_default()).chain(default)
}

fn backends(ingress: &Ingress) -> impl Iterator<Item = &IngressBackend> {
    let spec = ingress.spec.as_ref();
    let rules = spec.and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    let paths = rules.iter().flat_map(|rule| rule.http.iter()).flat_map(|http| &http.paths);
    paths.map(|path| &path.backend).chain(spec.and_then(|spec| spec.default_backend.as_ref()))
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
    let texts = places(ingress).flat_map(|(host, path, _)| [host, path]).chain(tls_hosts);
    texts.filter_map(|text| {
        let found = INSPECTED.iter().find(|part| text.contains(**part))?;
        Some(format!("{text:?} contains {found:?}, as attacks on an nginx do; choose another"))
    })
}

/// Host, path and type of each path.
fn places(ingress: &Ingress) -> impl Iterator<Item = (&str, &str, &str)> {
    let rules = ingress.spec.as_ref().and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    rules.iter().flat_map(|rule| {
        let host = rule.host.as_deref().unwrap_or_default();
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        paths.map(move |path| (host, path.path.as_deref().unwrap_or("/"), path.path_type.as_str()))
    })
}

fn is_canary(ingress: &Ingress) -> bool {
    let annotations = ingress.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(&format!("{}/canary", translate::PREFIX)));
    value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// Paths that another Ingress has. A canary shares the paths of the one it belongs to.
fn overlaps<'a>(
    ingress: &Ingress,
    others: impl Iterator<Item = (&'a ObjectName, &'a Ingress)>,
) -> Vec<String> {
    let mut owners: BTreeMap<(&str, &str, &str), &ObjectName> = BTreeMap::new();
    for (name, other) in others.filter(|(_, other)| is_canary(other) == is_canary(ingress)) {
        for place in places(other) {
            owners.entry(place).or_insert(name);
        }
    }
    let taken = places(ingress).filter_map(|place| {
        let (host, path, path_type) = place;
        let owner = owners.get(&place)?;
        let host = if host.is_empty() { "*" } else { host };
        Some(format!("host {host:?} and path {path:?} ({path_type}) are defined in Ingress {owner} already"))
    });
    taken.collect()
}

#[cfg(test)]
mod tests;
