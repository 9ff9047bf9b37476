//! Which certificate a host has: that of the entry of `spec.tls` that lists it, or that covers it.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{IngressSpec, IngressTLS};

use super::super::certificates::{Certificates, Checked};
use super::super::findings::About;
use super::Host;
use crate::model::ObjectName;
use crate::model::l7::HostMatch;

/// The host counts as TLS.
pub(super) struct Tls {
    /// `None`: the default certificate.
    pub(super) certificate: Option<Arc<Checked>>,
}

/// Gives the host the certificate of this Ingress, unless an older one decided already.
pub(super) fn tls(
    host: &mut Host,
    name: &HostMatch,
    namespace: &str,
    spec: &IngressSpec,
    certificates: &mut Certificates<'_>,
    about: &mut About<'_>,
) {
    let entries = spec.tls.as_deref().unwrap_or_default();
    if host.tls.is_some() || entries.is_empty() || *name == HostMatch::Any {
        return;
    }
    let text = name.to_string();
    let secret_of = |entry: &IngressTLS| {
        let secret = entry.secret_name.as_deref().filter(|secret| !secret.is_empty());
        secret.map(|secret| ObjectName::new(namespace, secret))
    };
    let listing = entries.iter().position(|entry| lists(entry, &text, false));
    let listing = listing.or_else(|| entries.iter().position(|entry| lists(entry, &text, true)));
    let Some((index, entry)) = listing.and_then(|index| Some((index, entries.get(index)?))) else {
        // Not listed: any Secret of the Ingress that covers the host will do.
        let covering = entries
            .iter()
            .filter_map(secret_of)
            .find_map(|secret| certificates.of(&secret).ok().filter(|checked| checked.covers(&text)));
        match covering {
            Some(checked) => host.tls = Some(Tls { certificate: Some(checked) }),
            None => about.warn(
                "host-without-tls",
                "spec.tls",
                format!("no entry lists {text} and no certificate covers it: the default certificate, no redirect to https"),
                "list the host in spec.tls[].hosts",
            ),
        }
        return;
    };
    let field = format!("spec.tls[{index}].secretName");
    let mut certificate = None;
    match secret_of(entry) {
        None => about.info(
            "default-certificate",
            field,
            format!("no Secret is named: {text} is served with the default certificate"),
            "",
        ),
        Some(secret) => match certificates.of(&secret) {
            Ok(checked) if checked.covers(&text) => certificate = Some(checked),
            Ok(checked) => about.warn(
                "certificate-of-other-host",
                field,
                format!(
                    "the certificate in Secret {secret} is good for {}, not for {text}: the default certificate is served",
                    checked.names.join(", ")
                ),
                "issue a certificate that names the host",
            ),
            Err(message) => about.warn(
                "bad-certificate",
                field,
                format!("{message}: {text} is served with the default certificate"),
                certificates.fix(&secret),
            ),
        },
    }
    host.tls = Some(Tls { certificate });
}

fn lists(entry: &IngressTLS, host: &str, by_wildcard: bool) -> bool {
    entry.hosts.iter().flatten().any(|listed| {
        let listed = listed.to_ascii_lowercase();
        if !by_wildcard {
            return listed == host;
        }
        listed
            .strip_prefix("*.")
            .is_some_and(|suffix| host.split_once('.').is_some_and(|(_, parent)| parent == suffix))
    })
}

/// TLS hosts without a rule do nothing.
pub(super) fn unused_tls(spec: &IngressSpec, about: &mut About<'_>) {
    let rules = spec.rules.as_deref().unwrap_or_default();
    for (index, entry) in spec.tls.iter().flatten().enumerate() {
        for (host_index, host) in entry.hosts.iter().flatten().enumerate() {
            let used = rules.iter().filter_map(|rule| rule.host.as_deref()).any(|rule| {
                rule.eq_ignore_ascii_case(host) || lists(entry, &rule.to_ascii_lowercase(), true)
            });
            if !used {
                about.warn(
                    "tls-host-without-rule",
                    format!("spec.tls[{index}].hosts[{host_index}]"),
                    format!("no rule of this Ingress is for {host}; the entry has no effect"),
                    "",
                );
            }
        }
    }
}
