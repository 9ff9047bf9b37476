//! Annotations of one Ingress as typed values, and what is to be said about each.

mod access;
mod auth;
mod buffers;
mod canary;
mod cors;
mod errors;
pub(super) mod external_auth;
mod fastcgi;
mod honour;
mod instead;
mod limits;
mod mirror;
mod named;
mod pointless;
mod policies;
mod policy;
mod redirects;
mod removed;
mod response_headers;
pub(super) mod rewriting;
mod session;
mod spelling;
pub(super) mod table;
pub(super) mod traced;
mod upstream_headers;
pub(super) mod value;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::honour::honour;
pub(super) use self::honour::load_balance;
pub use self::named::{PREFIX, as_read, known};
pub(super) use self::named::{field, honoured};
use self::named::{is_honoured, unknown};
use self::policies::Source;
pub(super) use self::policies::Unusable;
pub(super) use self::policy::{Policy, ProxySsl};
pub(super) use self::redirects::Elsewhere;
pub(super) use self::spelling::{meant, nearest};
use self::table::{Annotation, BadValue, Status, Value};
use super::config::{self, Settings};
use super::findings::About;
use super::view::View;
use super::{SnippetPolicy, checks, mode, ours};
use crate::model::expression::Expression;

/// Class A: a version of an Ingress with such a value is not admitted.
pub(super) fn admit(metadata: &ObjectMeta, about: &mut About<'_>) {
    for (row, text) in known(metadata).filter(|(row, text)| bad_value(row, text) == BadValue::Refuse) {
        if let Err(message) = value::check(row.value, text) {
            let fix = value::advice(row.value, text);
            let message = format!("{message}; this version of the Ingress is not served");
            about.error_fix("bad-annotation", field(row.name), message, fix);
        }
    }
}

/// What this value does if it is a bad one: what ingress-nginx lets in and cannot use costs itself alone.
fn bad_value(row: &Annotation, text: &str) -> BadValue {
    if value::is_dropped(row.value, text) { BadValue::Default } else { row.bad_value }
}

/// Reads the annotations of an Ingress; says what is wrong or ignored.
pub(super) fn read(
    metadata: &ObjectMeta,
    settings: &Settings,
    objects: &View<'_>,
    snippets: SnippetPolicy,
    about: &mut About<'_>,
) -> Policy {
    unknown(metadata, about);
    ours::of_ingress(metadata, about);
    let mut valid: BTreeMap<&str, &str> = BTreeMap::new();
    let mut policy = Policy::default();
    let is_canary =
        known(metadata).any(|(row, text)| row.name == "canary" && value::boolean(text) == Some(true));
    for (row, text) in known(metadata) {
        if is_canary && !canary::counts(row.name) {
            let message = "ignored: a canary's requests are treated as its primary says";
            about.info("ignored-on-canary", field(row.name), message, "");
            continue;
        }
        // A snippet has lines; it is refused for what it is.
        let is_snippet = row.status == Status::Refused && row.value == Value::Text;
        let verdict = if is_snippet { Ok(()) } else { value::check(row.value, text) };
        match verdict {
            Ok(()) => {
                valid.insert(row.name, text);
            }
            Err(message) => match (row.status, bad_value(row, text)) {
                // What guards something and cannot be read still guards it.
                (Status::Refused, _) | (_, BadValue::Deny | BadValue::Refuse) => {
                    policy.denied = true;
                    let fix = "its locations answer 503 until it is corrected";
                    about.error_fix("bad-annotation", field(row.name), message, fix);
                }
                // No Secret has such a name, which is told where the Secret is looked for.
                (_, BadValue::Close) => {
                    valid.insert(row.name, text);
                }
                (_, BadValue::Default) => {
                    let message = format!("{message}; {}", instead::instead(row.name, settings));
                    about.warn("bad-annotation", field(row.name), message, value::advice(row.value, text));
                }
            },
        }
    }
    policy.canary = canary::read(&valid, about);
    policy.affinity = session::read(&valid, about);
    policy.at_canary = session::at_canary(&valid);
    let refusals = Refusals { snippets, firewall: settings.boolean(config::WITHOUT_FIREWALL) != Some(true) };
    for (row, text) in known(metadata).filter(|(row, _)| valid.contains_key(row.name)) {
        status(row, text, &valid, refusals, &mut policy, about);
    }
    honour(&valid, settings, &mut policy);
    policy.mode = mode::of(metadata, settings);
    if known(metadata).any(|(row, _)| row.name == "temporal-redirect" && !valid.contains_key(row.name)) {
        // As in ingress-nginx, where a bad one takes the permanent one with it.
        policy.redirect = None;
    }
    unknown_variable(&valid, about);
    old_versions(&valid, about);
    redirects::tell(&valid, about);
    limits::tell(&valid, about);
    pointless::tell(&valid, settings, &policy, about);
    if is_canary {
        return policy;
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let source = Source { valid: &valid, settings, objects, namespace, name, mode: policy.mode };
    policies::read(&source, &mut policy, about);
    fastcgi::complete(&source, &mut policy, about);
    new_effects(&valid, about);
    checks::tell(&policy, about);
    policy
}

/// What closes its locations.
#[derive(Debug, Clone, Copy)]
struct Refusals {
    snippets: SnippetPolicy,
    /// What asks for a web application firewall does.
    firewall: bool,
}

/// What there is to say about a valid annotation that is not simply honoured.
fn status(
    row: &Annotation,
    text: &str,
    valid: &BTreeMap<&str, &str>,
    refusals: Refusals,
    policy: &mut Policy,
    about: &mut About<'_>,
) {
    let off = row.value == Value::Bool && value::boolean(text) == Some(false);
    match row.status {
        Status::Honoured => {}
        _ if off => {}
        Status::With(other) if valid.contains_key(other) && is_honoured(other) => {}
        Status::With(other) if valid.contains_key(other) => {
            about.info(
                "not-yet",
                field(row.name),
                format!("goes with {other}, which is not honoured yet"),
                "",
            );
        }
        Status::With(other) => {
            about.info("no-effect", field(row.name), format!("has no effect without {other}"), "");
        }
        Status::NoEffect => {
            about.info("no-effect", field(row.name), format!("accepted without effect ({})", row.doc), "")
        }
        Status::Refused if !refusals.firewall && config::is_firewall(row.name) => {
            let (message, fix) = config::without_firewall(row.doc);
            about.warn("without-firewall", field(row.name), message, fix);
        }
        Status::Refused
            if refusals.snippets == SnippetPolicy::Ignore
                && row.name.ends_with("-snippet")
                && !config::is_firewall(row.name) =>
        {
            let message = format!("never honoured ({}); ignored, as --snippet-policy says", row.doc);
            about.warn("ignored-snippet", field(row.name), message, native_alternative(row.name));
        }
        Status::Refused => {
            policy.denied = true;
            // Of the whole server, as nginx calls it: of all Ingresses that have the host in common.
            policy.closes_hosts |= row.name == "server-snippet";
            let closed =
                if policy.closes_hosts { "its hosts answer 503" } else { "its locations answer 503" };
            about.error_fix(
                "refused-annotation",
                field(row.name),
                format!("never honoured ({}); {closed}", row.doc),
                native_alternative(row.name),
            );
        }
    }
}

fn native_alternative(name: &str) -> &'static str {
    if name.ends_with("-snippet") {
        "say the same with annotations: redirects, custom headers, source ranges, timeouts"
    } else {
        "no web application firewall runs here; put one in front and remove the annotation, or set penstock-without-modsecurity in the ConfigMap"
    }
}

/// What `upstream-hash-by` names and nobody knows.
fn unknown_variable(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    if let Some(Err(message)) = valid.get("upstream-hash-by").map(|text| Expression::parse(text)) {
        let fix = "$request_uri, $uri, $args, $host, $remote_addr, $scheme, $request_method, $http_*, $arg_*, $cookie_*";
        about.warn("unknown-variable", field("upstream-hash-by"), format!("{message}; not hashed"), fix);
    }
}

/// What of `proxy-ssl-protocols` is not spoken.
fn old_versions(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    const NAME: &str = "proxy-ssl-protocols";
    let text =
        valid.get(NAME).filter(|_| valid.contains_key("proxy-ssl-secret")).copied().unwrap_or_default();
    let (spoken, old): (Vec<_>, Vec<_>) =
        text.split_ascii_whitespace().partition(|word| ["TLSv1.2", "TLSv1.3"].contains(word));
    if !old.is_empty() {
        let rest = if spoken.is_empty() { "; the default, TLSv1.2, is used" } else { "" };
        let message = format!("only TLSv1.2 and TLSv1.3 are spoken; ignored: {}{rest}", old.join(", "));
        about.warn("old-protocol", field(NAME), message, "");
    }
}

/// What ingress-nginx does not know: whoever comes from there wrote it in vain until now.
fn new_effects(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    for name in [checks::PATH, checks::INTERVAL, "upstream-keepalive-connections"] {
        if valid.contains_key(name) {
            let message = "has no effect with ingress-nginx and takes effect here";
            about.info("new-effect", field(name), message, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::table::TABLE;
    use super::*;

    #[test]
    fn the_table_names_each_annotation_once_and_only_known_companions() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for row in TABLE {
            if let Status::With(other) = row.status {
                assert!(names.contains(&other), "{}: {other}", row.name);
            }
        }
    }
}
