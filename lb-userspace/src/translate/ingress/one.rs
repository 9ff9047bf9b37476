//! One Ingress among those that have a host in common: what its annotations come to, and its rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{IngressBackend, IngressRule, IngressSpec};

use super::canaries::Waiting;
use super::tls::{Entries, tls, unused_tls};
use super::{
    DefaultBackend, Host, Making, app_root, client_auth, error_backend, further, hand_on, host_ciphers,
    host_match,
};
use crate::model::l7::{Action, HostMatch, ServicePort, UpstreamName};
use crate::translate::annotations::{self, Policy, Unusable};
use crate::translate::classes::Served;
use crate::translate::config::Gate;
use crate::translate::findings::{About, Findings};
use crate::translate::routes::Draft;
use crate::translate::upstream_tls::ProxySsl;
use crate::translate::upstreams::{self, Reach, Upstreams, Without};

/// Adds what an Ingress says; one that is a canary comes back.
pub(super) fn add<'a>(
    served: Served<'a>,
    making: &mut Making<'_>,
    findings: &mut Findings,
) -> Option<Waiting<'a>> {
    let Served { name, id, ingress } = &served;
    let spec = ingress.spec.as_ref()?;
    let mut about = findings.about(id);
    if making.options.disable_catch_all && spec.default_backend.is_some() {
        about.warn(
            "catch-all-disabled",
            "spec.defaultBackend",
            "ignored, because of --disable-catch-all",
            "",
        );
        return None;
    }
    let (settings, snippets) = (making.settings, making.options.snippets);
    let mut policy = annotations::read(&ingress.metadata, settings, making.objects, snippets, &mut about);
    if let Some(rules) = policy.canary.take() {
        return Some(Waiting { served, policy, rules });
    }
    policy.denied |= making.gate == Gate::Closed;
    let proxy_ssl = proxy_ssl(&name.namespace, &mut policy, making, &mut about);
    error_backend::add(&served, &mut policy, making.options, &mut making.upstreams, &mut about);
    if let Some((service, port)) = policy.asks.take() {
        let field = annotations::field("auth-url");
        policy.ask_at(making.upstreams.of_number(&service, port, &field, &mut about));
    }
    if let Some((service, port)) = policy.copies_to.take() {
        let field = annotations::field("mirror-target");
        policy.copy_to(making.upstreams.of_number(&service, port, &field, &mut about));
    }
    let (reach, upstreams) = (policy.reach, &mut making.upstreams);
    let default = spec.default_backend.as_ref().map(|backend| {
        let (action, backend) =
            action(&name.namespace, backend, reach, "spec.defaultBackend", upstreams, &mut about);
        DefaultBackend { ingress: (*name).clone(), action, backend }
    });
    let common = Common { served: &served, policy: Arc::new(policy), default, proxy_ssl };
    common.default_backend(spec, making, &mut about);
    let mut listed = Entries::of(spec);
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        common.rule((index, rule), spec, &mut listed, making, &mut about);
    }
    unused_tls(spec, &common.policy, &mut about);
    None
}

/// What `proxy-ssl-*` comes to; what cannot be used closes the Ingress.
fn proxy_ssl(
    namespace: &str,
    policy: &mut Policy,
    making: &mut Making<'_>,
    about: &mut About<'_>,
) -> Option<Arc<ProxySsl>> {
    let asked = policy.proxy_ssl.take()?;
    match ProxySsl::read(&asked, namespace, making.objects, &mut making.certificates) {
        Ok(proxy_ssl) => Some(Arc::new(proxy_ssl)),
        Err(Unusable { name, reason, message }) => {
            policy.denied = true;
            about.error(reason, annotations::field(name), format!("{message}: its paths answer 503"));
            None
        }
    }
}

/// What all rules of one Ingress have in common.
struct Common<'s, 'a> {
    served: &'s Served<'a>,
    policy: Arc<Policy>,
    default: Option<DefaultBackend>,
    proxy_ssl: Option<Arc<ProxySsl>>,
}

impl Common<'_, '_> {
    /// Says how an upstream is dealt with that the Ingress leads to.
    fn settle(
        &self,
        upstream: &UpstreamName,
        backend: Option<&Arc<ServicePort>>,
        proxy_ssl: Option<&Arc<ProxySsl>>,
        upstreams: &mut Upstreams<'_>,
    ) {
        let namespace = &self.served.name.namespace;
        let service = backend.map_or("", |backend| &backend.service);
        upstreams.settle(upstream, &self.policy, || {
            proxy_ssl.map(|proxy_ssl| proxy_ssl.towards(namespace, service)).unwrap_or_default()
        });
    }

    fn default_backend(&self, spec: &IngressSpec, making: &mut Making<'_>, about: &mut About<'_>) {
        let Self { served, policy, default, proxy_ssl } = self;
        let Some(default) = default else { return };
        if let DefaultBackend { action: Action::Proxy(upstream), backend, .. } = default {
            self.settle(upstream, backend.as_ref(), proxy_ssl.as_ref(), &mut making.upstreams);
        }
        if spec.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
            return;
        }
        if policy.affinity.is_some() {
            let message = "has no effect without rules: cookies belong to their hosts and paths";
            about.info(
                "no-effect",
                annotations::field("affinity"),
                message,
                "write a rule, if need be without a host",
            );
        }
        catch_all(served, default, policy, proxy_ssl.clone(), &mut making.hosts, about);
    }

    fn rule(
        &self,
        (index, rule): (usize, &IngressRule),
        spec: &IngressSpec,
        listed: &mut Entries,
        making: &mut Making<'_>,
        about: &mut About<'_>,
    ) {
        let Self { served, policy, default, proxy_ssl } = self;
        let Making { objects, options, settings, hosts, passthrough, upstreams, certificates, .. } = making;
        let Served { name, id, .. } = served;
        let by_location = settings.boolean("proxy-ssl-location-only").unwrap_or(false);
        let field = format!("spec.rules[{index}]");
        let host_match = host_match(rule.host.as_deref().unwrap_or_default());
        let host = hosts.entry(host_match.clone()).or_default();
        match &host.oldest {
            None => {
                host.oldest = Some((id.clone(), policy.clone()));
                host.default.clone_from(default);
            }
            Some((oldest, _)) if oldest != id && default.is_some() => about.warn(
                "host-setting-conflict",
                "spec.defaultBackend",
                format!(
                    "an older Ingress has {host_match}, and says what becomes of other paths; ignored there"
                ),
                "write the path / as a rule",
            ),
            Some(_) => {}
        }
        app_root(host, &host_match, served, policy, about);
        if policy.closes_hosts {
            host.closed_by.get_or_insert_with(|| (*name).clone());
        }
        further::claim(host, &host_match, served, index, policy, about);
        if host.proxy_ssl.is_none() {
            host.proxy_ssl = proxy_ssl.clone();
        } else if proxy_ssl.is_some() && host.proxy_ssl != *proxy_ssl && !by_location {
            about.warn(
                "host-setting-conflict",
                annotations::field("proxy-ssl-secret"),
                format!("an older Ingress set proxy-ssl-* for {host_match} already; these are ignored"),
                "set proxy-ssl-location-only in the ConfigMap",
            );
        }
        client_auth(host, &host_match, served, policy, objects, about);
        host_ciphers(host, &host_match, policy, about);
        for (index, path) in rule.http.iter().flat_map(|http| &http.paths).enumerate() {
            let field = format!("{field}.http.paths[{index}]");
            let of_backend = format!("{field}.backend");
            let (action, backend) =
                action(&name.namespace, &path.backend, policy.reach, &of_backend, upstreams, about);
            let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
            if let Action::Proxy(upstream) = &action {
                let proxy_ssl = if by_location { proxy_ssl } else { &host.proxy_ssl };
                self.settle(upstream, backend.as_ref(), proxy_ssl.as_ref(), upstreams);
                upstreams.keep_sessions(upstream, policy, &host_match, text, about);
            }
            let draft = Draft {
                path: text.to_owned(),
                exact: path.path_type == "Exact",
                specific: path.path_type == "ImplementationSpecific",
                field: format!("{field}.path"),
                ingress: Some((*name).clone()),
                id: id.clone(),
                backend,
                action,
                policy: policy.clone(),
                proxy_ssl: proxy_ssl.clone(),
            };
            super::add(host, &host_match, draft, about);
        }
        tls(host, &host_match, (&name.namespace, spec), listed, certificates, about);
        if policy.ssl_passthrough {
            hand_on(host, &host_match, options, passthrough, upstreams, about);
        }
    }
}

/// An Ingress with nothing but a default backend takes what no host does.
fn catch_all(
    served: &Served<'_>,
    default: &DefaultBackend,
    policy: &Policy,
    proxy_ssl: Option<Arc<ProxySsl>>,
    hosts: &mut BTreeMap<HostMatch, Host>,
    about: &mut About<'_>,
) {
    let DefaultBackend { ingress, action, backend } = default.clone();
    let policy = super::of_catch_all(policy);
    let draft = Draft {
        path: "/".to_owned(),
        exact: false,
        specific: false,
        field: "spec.defaultBackend".to_owned(),
        ingress: Some(ingress),
        id: served.id.clone(),
        backend,
        action,
        policy: Arc::new(policy),
        proxy_ssl,
    };
    super::add(hosts.entry(HostMatch::Any).or_default(), &HostMatch::Any, draft, about);
}

fn action(
    namespace: &str,
    backend: &IngressBackend,
    reach: Reach,
    field: &str,
    upstreams: &mut Upstreams<'_>,
    about: &mut About<'_>,
) -> (Action, Option<Arc<ServicePort>>) {
    match &backend.service {
        Some(service) => {
            let upstream = upstreams.of_backend(namespace, service, reach, Without::Answer503, field, about);
            let (name, port) = (service.name.clone(), upstreams::port_text(service));
            let backend = ServicePort { service: name, port, upstream: upstream.clone() };
            (Action::Proxy(upstream), Some(Arc::new(backend)))
        }
        None => {
            about.warn(
                "resource-backend",
                format!("{field}.resource"),
                "resource backends are not served; requests get the default backend",
                "name a service",
            );
            (Action::DefaultBackend, None)
        }
    }
}
