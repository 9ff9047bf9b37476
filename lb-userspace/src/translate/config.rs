//! The ingress controller's ConfigMap: each section reads its keys, and what no section asked for
//! is told. A key that protects something and is not honoured closes every route.

mod blocked;
mod compression;
mod edge;
mod forwarding;
mod keys;
mod log;
mod responses;
mod rules;
pub(super) mod table;
mod traces;
mod upstream;

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::annotations::value;
use super::findings::Findings;
use super::nodes::Nodes;
use super::view::View;
use super::{Options, SnippetPolicy};
use crate::model::ObjectName;
use crate::model::l7::{AccessLog, Blocked, Collector, Compression, Edge, Keepalive, Responses};
use crate::objects::{Key, Kind, Map, Object, Objects, Sourced};

use keys::Keys;
pub(super) use keys::usual;
use table::{ConfigKey, Fate, Form, KEYS, KeyStatus};

pub(super) use rules::judge;
pub(super) use upstream::Settings;

/// Name under which ingress-nginx's chart installs it.
pub(super) const NAME: &str = "ingress-nginx-controller";
/// Keys that keep somebody out, if the ConfigMap is the one that counts.
const LISTS: [&str; 7] = [
    "allowlist-source-range",
    "block-cidrs",
    "block-referers",
    "block-user-agents",
    "denylist-source-range",
    "global-auth-url",
    "whitelist-source-range",
];

/// What the ConfigMap says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub gate: Gate,
    pub edge: Edge,
    /// Defaults of annotations.
    pub settings: Settings,
    /// `None`: requests are not logged.
    pub log: Option<AccessLog>,
    pub keepalive: Keepalive,
    pub responses: Responses,
    pub blocked: Option<Blocked>,
    pub compression: Option<Compression>,
    pub collector: Option<Collector>,
}

/// What the ConfigMap means for routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// Every route answers 503.
    Closed,
}

/// The controller's ConfigMap: the one that `--configmap` names, else of several with its name the
/// first by namespace.
pub fn controller<'a>(
    objects: &'a Objects,
    options: &Options,
) -> Option<(&'a ObjectName, &'a Sourced<ConfigMap>)> {
    chosen(&objects.config_maps, options.config_map.as_ref())
}

fn chosen<'a>(
    config_maps: &'a Map<ObjectName, ConfigMap>,
    flag: Option<&ObjectName>,
) -> Option<(&'a ObjectName, &'a Sourced<ConfigMap>)> {
    config_maps.iter().find(|(name, _)| may_count(name, flag))
}

/// Whether it can be the ConfigMap of the controller, by its name and by `--configmap`.
pub(super) fn may_count(name: &ObjectName, flag: Option<&ObjectName>) -> bool {
    flag.map_or(name.name == NAME, |flag| flag == name)
}

/// A ConfigMap that would count, could not be read, and has no version before.
pub(super) fn unread(objects: &Objects, options: &Options) -> Option<ObjectName> {
    let flag = options.config_map.as_ref();
    let unread = objects.unread.iter().flatten().filter(|key| key.kind == Kind::ConfigMap);
    unread
        .map(|key| &key.name)
        .find(|name| may_count(name, flag) && !objects.config_maps.contains_key(*name))
        .cloned()
}

/// Reads the ConfigMap and says what of it is not honoured. Of several with its name the first by
/// namespace counts, though each can close the gate; with `--configmap` only that one is looked at. What
/// is [`unread`] may have held a list that guards, so it closes the gate, too.
pub(super) fn read(
    config_maps: &Map<ObjectName, ConfigMap>,
    unread: Option<&ObjectName>,
    objects: &View<'_>,
    options: &Options,
    findings: &mut Findings,
) -> Config {
    let mut config = Config {
        gate: Gate::Open,
        edge: Edge::default(),
        settings: Settings::default(),
        log: Some(AccessLog::default()),
        keepalive: Keepalive::default(),
        responses: Responses::default(),
        blocked: None,
        compression: None,
        collector: None,
    };
    let mut is_first = true;
    let flag = options.config_map.as_ref();
    if let Some(name) = unread {
        config.gate = Gate::Closed;
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id("");
        let message =
            "cannot be read, nor was any version of it: every Ingress answers 503, rather than stand open";
        findings.about(&id).error_fix("unread-config-map", "", message, "correct it as its own problem says");
    } else if let Some(flag) = flag.filter(|flag| !config_maps.contains_key(*flag)) {
        let id = Key { kind: Kind::ConfigMap, name: flag.clone() }.id("");
        let message = "does not exist, though --configmap names it; every setting has its default";
        findings.about(&id).warn("missing-config-map", "", message, "add it, or leave out the flag");
    }
    for (name, sourced) in config_maps.iter().filter(|(name, _)| may_count(name, flag)) {
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
        let mut keys = Keys::new(&sourced.object, findings.about(&id));
        if refused(&mut keys, options.snippets) == Gate::Closed {
            config.gate = Gate::Closed;
        }
        if !std::mem::take(&mut is_first) {
            for key in LISTS {
                if keys.text(key).is_none() {
                    continue;
                }
                config.gate = Gate::Closed;
                let message = "another ConfigMap of this name counts; every Ingress answers 503, rather than stand open";
                keys.about.error_fix("protection-ignored", keys::field(key), message, "keep one of them");
            }
            keys.about.warn(
                "second-config-map",
                "",
                "another one of this name counts; this one is ignored",
                "",
            );
            continue;
        }
        config.edge = edge::read(&mut keys);
        config.settings = Settings::read(&mut keys, &name.namespace, objects).unwrap_or_else(|rest| {
            config.gate = Gate::Closed;
            rest
        });
        if config.settings.text("custom-http-errors").is_some() && options.default_backend_service.is_none() {
            let message = "nobody is there to word errors, unless an Ingress names a default-backend: clients are answered 404 instead";
            let fix = "start with --default-backend-service";
            keys.about.warn("no-error-backend", keys::field("custom-http-errors"), message, fix);
        }
        let (requests, streams) = log::read(&mut keys);
        (config.log, config.edge.streams.log) = (requests, streams.map(Arc::new));
        config.keepalive = upstream::keepalive(&mut keys);
        config.blocked = blocked::read(&mut keys).unwrap_or_else(|blocked::Unreadable| {
            config.gate = Gate::Closed;
            None
        });
        config.compression = compression::read(&mut keys);
        config.collector = traces::read(&mut keys);
        config.responses = responses::read(&mut keys, &name.namespace, objects);
        // What they demand of an Ingress was judged when it came in.
        rules::Rules::read(&mut keys);
        snippets_allowed(&mut keys);
        keys.tell_unasked();
    }
    config
}

/// Keys that are never honoured and may hold what keeps somebody out.
fn refused(keys: &mut Keys<'_>, snippets: SnippetPolicy) -> Gate {
    let mut gate = Gate::Open;
    let is_known = keys.boolean(WITHOUT_FIREWALL) == Some(true);
    for row in KEYS.iter().filter(|row| row.fate == Fate::Refused) {
        let Some(text) = keys.text(row.name) else { continue };
        if row.form == Form::Bool && value::boolean(text) == Some(false) {
            continue;
        }
        let (field, doc) = (keys::field(row.name), row.doc);
        match snippets {
            _ if is_known && is_firewall(row.name) => {
                let (message, fix) = without_firewall(doc);
                keys.about.warn("without-firewall", field, message, fix);
            }
            SnippetPolicy::Ignore if row.name.ends_with("-snippet") && !is_firewall(row.name) => {
                let message = format!("never honoured ({doc}); ignored, as --snippet-policy says");
                keys.about.warn("ignored-snippet", field, message, "");
            }
            SnippetPolicy::Refuse | SnippetPolicy::Ignore => {
                gate = Gate::Closed;
                let message = format!("never honoured ({doc}); every Ingress answers 503");
                let fix = match is_firewall(row.name) {
                    true => {
                        "remove it, or set penstock-without-modsecurity to do without a web application firewall"
                    }
                    false => "remove it if it keeps nobody out, and say the rest with annotations",
                };
                keys.about.error_fix("refused-key", field, message, fix);
            }
        }
    }
    gate
}

/// Key by which an operator knows that no web application firewall runs here.
pub(super) const WITHOUT_FIREWALL: &str = "penstock-without-modsecurity";

/// What looks at requests for attacks is nothing that one can do without unawares.
pub(super) fn is_firewall(name: &str) -> bool {
    name.contains("modsecurity") || name == "enable-owasp-core-rules"
}

/// What is said of an annotation or a key that asks for one, where that is known; and what to do about it.
pub(super) fn without_firewall(doc: &str) -> (String, &'static str) {
    let message =
        format!("{doc}: none runs here, and requests are served without it, as {WITHOUT_FIREWALL} says");
    (message, "put a web application firewall in front, or behind")
}

fn snippets_allowed(keys: &mut Keys<'_>) {
    if keys.boolean("allow-snippet-annotations") == Some(true) {
        let message = "snippets are never run here; each is told at its Ingress";
        keys.about.warn("snippets-never-run", keys::field("allow-snippet-annotations"), message, "");
    }
}

/// What this version does with each key: by reading a ConfigMap that has all of them.
pub fn key_statuses() -> Vec<(&'static ConfigKey, KeyStatus)> {
    // A value that no key has for its default.
    let data = KEYS.iter().map(|row| (row.name.to_owned(), "?".to_owned())).collect();
    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
    let object = ConfigMap { data: Some(data), metadata, ..ConfigMap::default() };
    let mut objects = Objects::default();
    objects.insert(Object::ConfigMap(Arc::new(object)), "");
    let mut findings = Findings::default();
    let nodes = Nodes::default();
    read(&objects.config_maps, None, &View::new(&objects, &nodes), &Options::default(), &mut findings);
    let problems = findings.into_sorted();
    let is_told = |row: &ConfigKey, reason: &str| {
        let field = keys::field(row.name);
        problems.iter().any(|problem| problem.reason == reason && problem.field == field)
    };
    let status = |row: &'static ConfigKey| match row.fate {
        Fate::Neutral | Fate::ByFlags => KeyStatus::NoEffect,
        Fate::Refused => KeyStatus::Refused,
        Fate::Removed(_) => KeyStatus::Removed,
        Fate::Plain if is_told(row, "not-yet") => KeyStatus::NotYet,
        Fate::Plain => KeyStatus::Honoured,
    };
    KEYS.iter().map(|row| (row, status(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_asked_for_stands_in_the_table() {
        let statuses = key_statuses();

        let honoured = |name: &str| {
            statuses.iter().any(|(row, status)| row.name == name && *status == KeyStatus::Honoured)
        };
        for name in ["keep-alive", "ssl-protocols", "proxy-real-ip-cidr", "log-format-upstream"] {
            assert!(honoured(name), "{name}");
        }
    }
}
