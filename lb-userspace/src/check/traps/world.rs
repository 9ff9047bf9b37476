//! What traps look at: the Ingresses that are served with their annotations and paths, and the
//! controller's ConfigMap.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::IngressBackend;

use super::super::Input;
use crate::model::l7::Mode;
use crate::model::{ObjectId, ObjectName, Snapshot};
use crate::objects::{Bystander, Key, Kind, Objects};
use crate::translate::{self, Options, PREFIX, Served};

/// Everything a trap may look at.
pub(super) struct World<'a> {
    pub objects: &'a Objects,
    pub options: &'a Options,
    pub snapshot: &'a Snapshot,
    /// Objects beside those that are read.
    pub bystanders: &'a [Bystander],
    /// Seconds since the epoch.
    pub now: i64,
    /// Ours, oldest first.
    pub ingresses: Vec<Seen<'a>>,
    /// Keys of the controller's ConfigMap that are set, trimmed.
    pub config: BTreeMap<&'a str, &'a str>,
    /// The ConfigMap.
    pub config_id: ObjectId,
}

/// An Ingress of ours.
pub(super) struct Seen<'a> {
    pub id: ObjectId,
    pub name: &'a ObjectName,
    /// Short names and trimmed values; what is empty counts as absent.
    pub annotations: BTreeMap<&'a str, &'a str>,
    pub paths: Vec<Place<'a>>,
    /// Whether `penstock.dev/mode` or the ConfigMap has it read strictly.
    pub is_strict: bool,
    /// Hosts of its rules, lower case; empty for rules without one.
    pub hosts: Vec<String>,
}

/// One path of a rule.
pub(super) struct Place<'a> {
    pub host: String,
    pub path: &'a str,
    pub path_type: &'a str,
    /// Field of the entry, to which `.path` or `.backend` is added.
    pub field: String,
    pub target: Option<Target<'a>>,
}

/// Service and port as a path names them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    pub port: Port<'a>,
}

/// Port of a Service as a path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port<'a> {
    Number(i32),
    Name(&'a str),
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:", self.namespace, self.service)?;
        match self.port {
            Port::Number(number) => write!(f, "{number}"),
            Port::Name(name) => f.write_str(name),
        }
    }
}

impl<'a> World<'a> {
    pub(super) fn new(input: &Input<'a>) -> Self {
        let Input { objects, options, translated, load_problems: _, bystanders, started: _, now } = *input;
        let config = translate::controller(objects, options);
        let data = config.iter().flat_map(|(_, sourced)| sourced.object.data.iter().flatten());
        let data = data.map(|(key, value)| (key.as_str(), value.trim()));
        let data: BTreeMap<_, _> = data.filter(|(_, value)| !value.is_empty()).collect();
        let usual = data.get(translate::MODE_KEY).copied();
        let served = translate::served(objects, options);
        Self {
            objects,
            options,
            snapshot: &translated.snapshot,
            bystanders,
            now,
            ingresses: served.into_iter().map(|served| Seen::new(served, usual)).collect(),
            config: data,
            config_id: config.map_or_else(ObjectId::default, |(name, sourced)| {
                Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin)
            }),
        }
    }

    /// A switch of the ConfigMap that is on.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(|text| translate::boolean(text) == Some(true))
    }

    /// Ingresses that are no canaries: those that make hosts and own paths.
    pub(super) fn primaries(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.ingresses.iter().filter(|ingress| !ingress.is_on("canary"))
    }
}

impl<'a> Seen<'a> {
    fn new(served: Served<'a>, usual_mode: Option<&str>) -> Self {
        let Served { name, id, ingress } = served;
        let is_strict = translate::mode(&ingress.metadata, usual_mode) == Mode::Strict;
        let annotations = ingress.metadata.annotations.iter().flatten();
        let annotations = annotations.filter_map(|(name, text)| {
            let short = name.strip_prefix(PREFIX)?.strip_prefix('/')?;
            Some((short, translate::as_read(short, text)))
        });
        let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
        let (mut paths, mut hosts) = (Vec::new(), Vec::new());
        for (index, rule) in rules.enumerate() {
            let host = rule.host.as_deref().unwrap_or_default();
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            for (path_index, path) in rule.http.iter().flat_map(|http| &http.paths).enumerate() {
                paths.push(Place {
                    host: host.clone(),
                    path: path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/"),
                    path_type: &path.path_type,
                    field: format!("spec.rules[{index}].http.paths[{path_index}]"),
                    target: target(&name.namespace, &path.backend),
                });
            }
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let annotations = annotations.filter(|(_, text)| !text.is_empty()).collect();
        Self { id, name, annotations, paths, is_strict, hosts }
    }

    /// Value of an annotation, by its short name.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.annotations.get(name).copied()
    }

    /// A switch that is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.text(name).and_then(translate::boolean) == Some(true)
    }

    /// The first of these annotations that is set.
    pub(super) fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.annotations.contains_key(name))
    }
}

fn target<'a>(namespace: &'a str, backend: &'a IngressBackend) -> Option<Target<'a>> {
    let service = backend.service.as_ref()?;
    let port = service.port.as_ref();
    let name = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
    let port = match name {
        Some(name) => Port::Name(name),
        None => Port::Number(port.and_then(|port| port.number).unwrap_or_default()),
    };
    Some(Target { namespace, service: &service.name, port })
}

/// Field of an annotation, as problems name it.
pub(super) fn field(name: &str) -> String {
    format!("metadata.annotations.{PREFIX}/{name}")
}

/// Field of a key of the ConfigMap, as problems name it.
pub(super) fn key(name: &str) -> String {
    format!("data.{name}")
}

/// A host as people write it.
pub(super) fn shown(host: &str) -> &str {
    if host.is_empty() { "every other host" } else { host }
}
