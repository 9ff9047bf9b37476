//! Every policy a location may have, from its annotations and the ConfigMap's keys of the same names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::config::Settings;
use super::super::findings::{About, MISSING_SECRET, missing_secret};
use super::super::view::View;
use super::{
    Policy, access, auth, cors, errors, external_auth, field, limits, mirror, response_headers, rewriting,
    traced, upstream_headers, value,
};
use crate::model::ObjectName;
use crate::model::l7::{Mode, Policies};

/// What a policy is read from.
pub(super) struct Source<'a> {
    /// Annotations whose values have their form.
    pub valid: &'a BTreeMap<&'a str, &'a str>,
    pub settings: &'a Settings,
    /// Where ConfigMaps and Secrets are that annotations name.
    pub objects: &'a View<'a>,
    /// The Ingress's; empty without one.
    pub namespace: &'a str,
    /// So too.
    pub name: &'a str,
    pub mode: Mode,
}

impl<'a> Source<'a> {
    /// The annotation, else the setting of its name.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.valid.get(name).copied().or_else(|| self.settings.text(name))
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.text(name).and_then(value::boolean)
    }

    /// Objects of other namespaces may be named.
    pub(super) fn crosses(&self) -> bool {
        self.settings.crosses()
    }
}

/// Class B: the annotation asks for what cannot be done, and its locations stay closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::translate) struct Unusable {
    pub name: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Unusable {
    pub(in crate::translate) fn new(name: &'static str, message: String) -> Self {
        Self { name, reason: "unusable-policy", message }
    }

    /// The annotation names a Secret that is not among the objects.
    pub(in crate::translate) fn without_secret(name: &'static str, secret: &ObjectName) -> Self {
        Self { name, reason: MISSING_SECRET, message: missing_secret(secret) }
    }
}

/// Fills in [`Policy::policies`]; a policy that is unusable closes the locations.
pub(super) fn read(source: &Source<'_>, policy: &mut Policy, about: &mut About<'_>) {
    let policies = all(source, about).unwrap_or_else(|Unusable { name, reason, message }| {
        policy.denied = true;
        let fix = "its locations answer 503 until it is corrected";
        about.error_fix(reason, field(name), message, fix);
        Policies::default()
    });
    policy.unguarded = auth::unguarded(source);
    policy.asks = policies.auth.as_ref().and_then(|auth| external_auth::service_of(auth, source.objects));
    policy.copies_to = policies
        .mirror
        .as_ref()
        .and_then(|mirror| external_auth::service(&mirror.host, mirror.tls, source.objects));
    policy.policies = (policies != Policies::default()).then(|| Arc::new(policies));
}

/// In the order in which a request meets them.
fn all(source: &Source<'_>, about: &mut About<'_>) -> Result<Policies, Unusable> {
    Ok(Policies {
        cors: cors::read(source, about),
        limits: limits::read(source),
        access: access::read(source)?,
        auth: auth::read(source, about)?,
        request: upstream_headers::read(source, about),
        response: response_headers::read(source)?,
        rewriting: rewriting::read(source, about),
        errors: errors::read(source),
        mirror: mirror::read(source, about),
        traced: traced::read(source, about),
    })
}
