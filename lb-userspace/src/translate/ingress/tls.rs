//! Which certificate a host has: that of the entry of `spec.tls` that lists it, or that covers it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{IngressSpec, IngressTLS};

use super::super::annotations::Policy;
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

/// `spec.tls` of one Ingress by the hosts in it: Ingresses may have thousands of hosts and entries.
#[derive(Default)]
pub(super) struct Entries {
    /// The first entry that lists a host, as it is listed but for its case.
    listing: HashMap<String, usize>,
    /// For each name in a certificate of the entries the first of them, made when it is first asked for.
    covering: Option<HashMap<String, (usize, Arc<Checked>)>>,
}

impl Entries {
    pub(super) fn of(spec: &IngressSpec) -> Self {
        let mut entries = Self::default();
        for (index, entry) in spec.tls.iter().flatten().enumerate() {
            for host in entry.hosts.iter().flatten() {
                entries.listing.entry(host.to_ascii_lowercase()).or_insert(index);
            }
        }
        entries
    }

    /// By its name, else by the wildcard above it.
    fn listing(&self, host: &str) -> Option<usize> {
        self.listing.get(host).or_else(|| self.listing.get(&wildcard_above(host)?)).copied()
    }

    fn covering(
        &mut self,
        host: &str,
        secrets: impl Iterator<Item = ObjectName>,
        certificates: &mut Certificates<'_>,
    ) -> Option<Arc<Checked>> {
        let by_name = self.covering.get_or_insert_with(|| {
            let mut by_name = HashMap::new();
            let mut seen = HashSet::new();
            for (index, secret) in secrets.enumerate().filter(|(_, secret)| seen.insert(secret.clone())) {
                let Ok(checked) = certificates.of(&secret) else { continue };
                for name in &checked.names {
                    by_name.entry(name.clone()).or_insert_with(|| (index, checked.clone()));
                }
            }
            by_name
        });
        let named = [Some(host.to_owned()), wildcard_above(host)].into_iter().flatten();
        let found = named.filter_map(|name| by_name.get(&name)).min_by_key(|(index, _)| *index);
        found.map(|(_, checked)| checked.clone())
    }
}

/// `*.example.com` for `a.example.com`.
fn wildcard_above(host: &str) -> Option<String> {
    host.split_once('.').map(|(_, parent)| format!("*.{parent}"))
}

/// Gives the host the certificate of this Ingress, unless an older one decided already.
pub(super) fn tls(
    host: &mut Host,
    name: &HostMatch,
    (namespace, spec): (&str, &IngressSpec),
    listed: &mut Entries,
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
    let listing = listed.listing(&text).and_then(|index| Some((index, entries.get(index)?)));
    let Some((index, entry)) = listing else {
        // Not listed: any Secret of the Ingress that covers the host will do.
        match listed.covering(&text, entries.iter().filter_map(secret_of), certificates) {
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

/// TLS hosts without a rule do nothing, unless they are other names of hosts that have one.
pub(super) fn unused_tls(spec: &IngressSpec, policy: &Policy, about: &mut About<'_>) {
    let hosts = spec.rules.iter().flatten().filter_map(|rule| rule.host.as_deref());
    let hosts: HashSet<_> = hosts.map(str::to_ascii_lowercase).collect();
    let aliases: HashSet<_> = policy.aliases.iter().map(|alias| alias.to_ascii_lowercase()).collect();
    let above: HashSet<_> = hosts.union(&aliases).filter_map(|host| wildcard_above(host)).collect();
    // What a pattern takes is not looked at: better nothing is told than something wrong.
    let has_patterns = aliases.iter().any(|alias| alias.starts_with(['~', '.']) || alias.ends_with('*'));
    let is_alias = |listed: &str| {
        has_patterns
            || aliases.contains(listed)
            || wildcard_above(listed).is_some_and(|above| aliases.contains(&above))
    };
    let is_twin = |listed: &str| {
        let other = match listed.strip_prefix("www.") {
            Some(bare) => bare.to_owned(),
            None => format!("www.{listed}"),
        };
        policy.redirects_www && hosts.contains(&other)
    };
    for (index, entry) in spec.tls.iter().flatten().enumerate() {
        for (host_index, host) in entry.hosts.iter().flatten().enumerate() {
            let listed = host.to_ascii_lowercase();
            let is_served = hosts.contains(&listed) || above.contains(&listed);
            if !is_served && !is_alias(&listed) && !is_twin(&listed) {
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
