//! Canary Ingresses: they own nothing, but take a part of what the
//! upstream of a primary with the same host, path and kind of path gets, wherever it gets it.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressServiceBackend};

use super::super::annotations::{self, Policy};
use super::super::classes::Served;
use super::super::findings::{About, Findings};
use super::super::routes::Draft;
use super::super::upstreams::{Reach, Split, Upstreams, Without};
use super::{Host, host_match};
use crate::model::canary::{Rules, Sessions};
use crate::model::l7::{Action, HostMatch, UpstreamName};

/// A canary Ingress, waiting until every primary is known.
pub(super) struct Waiting<'a> {
    pub(super) served: Served<'a>,
    pub(super) policy: Policy,
    pub(super) rules: Rules,
}

/// What the paths of each host lead to.
pub(super) struct Primaries<'a>(HashMap<&'a HostMatch, HashSet<&'a UpstreamName>>);

impl<'a> Primaries<'a> {
    pub(super) fn of(hosts: &'a BTreeMap<HostMatch, Host>) -> Self {
        let upstream = |draft: &'a Draft| match &draft.action {
            Action::Proxy(upstream) => Some(upstream),
            _ => None,
        };
        Self(
            hosts
                .iter()
                .map(|(name, host)| (name, host.drafts.iter().filter_map(upstream).collect()))
                .collect(),
        )
    }
}

/// Gives the primaries their canary, the oldest where there are several.
pub(super) fn attach(
    waiting: &Waiting<'_>,
    hosts: &BTreeMap<HostMatch, Host>,
    primaries: &Primaries<'_>,
    upstreams: &mut Upstreams<'_>,
    findings: &mut Findings,
) {
    let Waiting { served, policy, rules } = waiting;
    let mut about = findings.about(&served.id);
    let Some(spec) = &served.ingress.spec else { return };
    if spec.default_backend.is_some() {
        let message = "a canary takes no requests but those of its primary; ignored";
        about.warn("ignored-on-canary", "spec.defaultBackend", message, "write the path as a rule");
    }
    if spec.tls.as_ref().is_some_and(|tls| !tls.is_empty()) {
        let message = "ignored: the certificate is that of the primary";
        about.info("ignored-on-canary", "spec.tls", message, "");
    }
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        let host = host_match(rule.host.as_deref().unwrap_or_default());
        for (path_index, path) in rule.http.iter().flat_map(|http| &http.paths).enumerate() {
            let field = format!("spec.rules[{index}].http.paths[{path_index}]");
            let Some(service) = &path.backend.service else {
                let message = "resource backends are not served; every request goes to the primary";
                about.warn(
                    "resource-backend",
                    format!("{field}.backend.resource"),
                    message,
                    "name a service",
                );
                continue;
            };
            let Some((primary, draft)) = primary(&host, path, hosts, &format!("{field}.path"), &mut about)
            else {
                continue;
            };
            let field = format!("{field}.backend");
            let place = Place { host: &host, primary, service, reach: policy.reach, field: &field };
            let split = Split {
                owner: served.name.clone(),
                canary: upstreams.name_of(&served.name.namespace, service),
                rules: rules.clone(),
                sessions: match (policy.at_canary, draft.policy.at_canary) {
                    (Sessions::Stay, Sessions::Stay) => Sessions::Stay,
                    _ => Sessions::DecidedAnew,
                },
            };
            let Some(canary) = add(&place, served, split, primaries, upstreams, &mut about) else { continue };
            // What it is asked in is the primary's protocol, by checks too.
            let policy = Policy { protocol: draft.policy.protocol, ..policy.clone() };
            upstreams.keep_sessions(&canary, &policy, &host, &draft.path, &mut about);
            upstreams.settle(&canary, &policy, || {
                let proxy_ssl = draft.proxy_ssl.as_ref();
                proxy_ssl.map(|ssl| ssl.towards(&served.name.namespace, &service.name)).unwrap_or_default()
            });
        }
    }
}

/// A path of a canary that has a primary.
struct Place<'a> {
    host: &'a HostMatch,
    primary: &'a UpstreamName,
    service: &'a IngressServiceBackend,
    reach: Reach,
    /// Of the backend.
    field: &'a str,
}

/// The upstream of the path that owns the place, and the path.
fn primary<'a>(
    name: &HostMatch,
    path: &HTTPIngressPath,
    hosts: &'a BTreeMap<HostMatch, Host>,
    field: &str,
    about: &mut About<'_>,
) -> Option<(&'a UpstreamName, &'a Draft)> {
    let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let host = hosts.get(name);
    let owner = host.and_then(|host| {
        let index = host.owners.get(&(text.to_owned(), path.path_type == "Exact"))?;
        host.drafts.get(*index).filter(|draft| draft.specific == (path.path_type == "ImplementationSpecific"))
    });
    match owner.map(|draft| (&draft.action, draft)) {
        Some((Action::Proxy(upstream), draft)) => return Some((upstream, draft)),
        Some(_) => {
            let message =
                format!("the primary of {name}{text} leads to no Service; nothing goes to this canary");
            about.warn("canary-without-primary", field, message, "");
        }
        None => {
            let kind = &path.path_type;
            let message = format!("no other Ingress has {name}{text} as {kind}; nothing goes to this canary");
            let fix = "give it the host, path and pathType of its primary";
            about.warn("canary-without-primary", field, message, fix);
        }
    }
    None
}

/// Gives the primary this canary, if it can have it. Name of the canary's upstream.
fn add(
    place: &Place<'_>,
    served: &Served<'_>,
    split: Split,
    primaries: &Primaries<'_>,
    upstreams: &mut Upstreams<'_>,
    about: &mut About<'_>,
) -> Option<UpstreamName> {
    let Place { host, primary, service, reach, field } = place;
    if primaries.0.get(host).is_some_and(|upstreams| upstreams.contains(&split.canary)) {
        let message =
            format!("{} is a primary on {host}, so it cannot be a canary there; ignored", split.canary.0);
        about.warn("canary-is-primary", format!("{field}.service"), message, "use a Service of its own");
        return None;
    }
    if let Err(owner) = upstreams.split(primary, split) {
        let message = format!("{} has the canary of Ingress {owner} already; this one is ignored", primary.0);
        let fix =
            "a Service and port has one canary, wherever it is used: give one of them a Service of its own";
        about.warn("canary-conflict", annotations::field("canary"), message, fix);
        return None;
    }
    let namespace = &served.name.namespace;
    Some(upstreams.of_backend(namespace, service, *reach, Without::AskPrimary, field, about))
}
