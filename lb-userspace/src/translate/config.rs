//! The ingress controller's ConfigMap: each section reads its keys, and what no section asked for
//! is told. A key that protects something and is not honoured closes every route.

mod blocked;
mod edge;
mod forwarding;
mod keys;
mod log;
mod responses;
mod upstream;

use k8s_openapi::api::core::v1::ConfigMap;

use super::findings::Findings;
use crate::model::ObjectName;
use crate::model::l7::{AccessLog, Blocked, Edge, Keepalive, Responses};
use crate::objects::{Key, Kind, Objects, Sourced};

use keys::Keys;

pub(super) use upstream::Settings;

/// Name under which ingress-nginx's chart installs it.
const NAME: &str = "ingress-nginx-controller";
/// Keys that may keep somebody out and are not honoured.
const PROTECTING: [&str; 1] = ["global-auth-snippet"];
/// Keys that do, if the ConfigMap is the one that counts.
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
}

/// What the ConfigMap means for routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// Every route answers 503.
    Closed,
}

/// The controller's ConfigMap: of several with its name the first by namespace.
pub fn controller(objects: &Objects) -> Option<(&ObjectName, &Sourced<ConfigMap>)> {
    objects.config_maps.iter().find(|(name, _)| name.name == NAME)
}

/// Reads the ConfigMap and says what of it is not honoured. Of several with its name the first by
/// namespace counts, though each can close the gate.
pub(super) fn read(objects: &Objects, findings: &mut Findings) -> Config {
    let mut config = Config {
        gate: Gate::Open,
        edge: Edge::default(),
        settings: Settings::default(),
        log: Some(AccessLog::default()),
        keepalive: Keepalive::default(),
        responses: Responses::default(),
        blocked: None,
    };
    let mut is_first = true;
    for (name, sourced) in objects.config_maps.iter().filter(|(name, _)| name.name == NAME) {
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
        let mut keys = Keys::new(&sourced.object, findings.about(&id));
        for key in PROTECTING {
            if keys.text(key).is_some() {
                config.gate = Gate::Closed;
                keys.about.error_fix(
                    "protection-not-yet",
                    keys::field(key),
                    "not honoured yet; every Ingress answers 503, rather than stand open",
                    "remove it only if something else protects these hosts",
                );
            }
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
        config.log = log::read(&mut keys);
        config.keepalive = upstream::keepalive(&mut keys);
        config.blocked = blocked::read(&mut keys).unwrap_or_else(|blocked::Unreadable| {
            config.gate = Gate::Closed;
            None
        });
        config.responses = responses::read(&mut keys, &name.namespace, objects);
        keys.tell_unasked();
    }
    config
}
