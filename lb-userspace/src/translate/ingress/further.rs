//! Names beside those that rules have: `server-alias` and `from-to-www-redirect` (reference ingress-nginx
//! 4.2, 4.18). Whether a name is free is known when all hosts are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::annotations::{self, Policy};
use super::super::classes::{Seniority, Served};
use super::super::findings::{About, Findings};
use super::super::routes::PatternBudget;
use super::{Host, Output, host_match};
use crate::model::l7::{HostMatch, Moved, Pattern, Server};
use crate::model::{ObjectId, ObjectName};

/// Further names that an Ingress wants for a host.
pub(super) struct Claim {
    names: Vec<String>,
    seniority: Seniority,
    /// Number of the rule that has the host: of one Ingress the first rule wins.
    rule: usize,
    owner: ObjectName,
    id: ObjectId,
}

/// Notes what an Ingress wants for a host of its rules.
pub(super) fn claim(
    host: &mut Host,
    host_match: &HostMatch,
    served: &Served<'_>,
    rule: usize,
    policy: &Policy,
    about: &mut About<'_>,
) {
    if policy.redirects_www && !policy.denied {
        host.www.get_or_insert_with(|| (policy.redirects.status, served.id.clone()));
    }
    if policy.aliases.is_empty() {
        return;
    }
    match &host.aliases {
        None => {
            host.aliases = Some(Claim {
                names: policy.aliases.clone(),
                seniority: served.seniority(),
                rule,
                owner: served.name.clone(),
                id: served.id.clone(),
            });
        }
        Some(known) if known.owner != *served.name => about.warn(
            "host-setting-conflict",
            annotations::field("server-alias"),
            format!("{host_match} has aliases from Ingress {} already; these are ignored", known.owner),
            "",
        ),
        Some(_) => {}
    }
}

/// Adds aliases and twins that are free, with the certificates that cover them.
pub(super) fn add(
    hosts: &BTreeMap<HostMatch, Host>,
    output: &mut Output,
    patterns: &mut PatternBudget,
    findings: &mut Findings,
) {
    let mut claims: Vec<_> =
        hosts.iter().filter_map(|(name, host)| Some((host.aliases.as_ref()?, name, host))).collect();
    claims.sort_by_key(|(claim, ..)| (&claim.seniority, claim.rule));
    for (claim, name, host) in claims {
        let mut about = findings.about(&claim.id);
        for text in &claim.names {
            for alias in read(text, &claim.id, patterns, &mut about) {
                match alias {
                    Alias::Name(alias) => add_name(alias, name, host, hosts, output, &mut about),
                    Alias::Pattern(pattern) => {
                        let place = (claim.seniority.clone(), claim.rule);
                        output.patterns.push((place, pattern, name.clone()));
                    }
                }
            }
        }
    }
    for (name, host) in hosts {
        if let Some((status, id)) = &host.www {
            add_twin(name, host, *status, hosts, output, &mut findings.about(id));
        }
    }
}

/// What one word of `server-alias` stands for.
enum Alias {
    Name(HostMatch),
    Pattern(Pattern),
}

/// As nginx reads names of servers.
fn read(text: &str, id: &ObjectId, patterns: &mut PatternBudget, about: &mut About<'_>) -> Vec<Alias> {
    let field = annotations::field("server-alias");
    let mut not = |message: String, fix: &str| {
        about.warn("bad-alias", field.as_str(), format!("{message}; it is ignored"), fix);
        Vec::new()
    };
    if let Some(source) = text.strip_prefix('~') {
        if matches!(source, "" | "^") {
            return not(
                format!("the pattern {text:?} is empty"),
                "leave the host out of the rule to have every name",
            );
        }
        return match patterns.compile(id, || Pattern::unanchored(source)) {
            Ok(pattern) if pattern.takes_nothing() => {
                let message = format!("{text:?} takes every name that no host has");
                about.warn("alias-of-all", field, message, "write the pattern so that it needs a name");
                vec![Alias::Pattern(pattern)]
            }
            Ok(pattern) => vec![Alias::Pattern(pattern)],
            Err((error, _)) => {
                not(format!("the pattern {source:?} cannot be used ({error})"), "list the names instead")
            }
        };
    }
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let plain = name.strip_prefix("*.").or_else(|| name.strip_suffix(".*")).unwrap_or(&name);
    let plain = plain.strip_prefix('.').unwrap_or(plain);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if plain.is_empty() || !plain.bytes().all(is_host) || plain.split('.').any(str::is_empty) {
        return not(format!("{text:?} is no host"), "");
    }
    if name.ends_with(".*") {
        let anchored = || Pattern::anchored(&format!("{}\\.", regex::escape(plain)));
        return match patterns.compile(id, anchored) {
            Ok(pattern) => vec![Alias::Pattern(pattern)],
            Err((error, _)) => not(format!("{text:?} cannot be used ({error})"), ""),
        };
    }
    if name.starts_with('.') {
        return vec![Alias::Name(host_match(plain)), Alias::Name(HostMatch::Wildcard(plain.to_owned()))];
    }
    vec![Alias::Name(host_match(&name))]
}

fn add_name(
    alias: HostMatch,
    name: &HostMatch,
    host: &Host,
    hosts: &BTreeMap<HostMatch, Host>,
    output: &mut Output,
    about: &mut About<'_>,
) {
    let field = annotations::field("server-alias");
    if hosts.contains_key(&alias) {
        let message = format!("{alias} is a host of its own; it is no alias of {name}");
        about.warn("alias-is-host", field, message, "remove it here, or the rule for that host");
        return;
    }
    let (names, text) = match &alias {
        HostMatch::Exact(text) => (&mut output.aliases.exact, text),
        HostMatch::Wildcard(text) => (&mut output.aliases.below, text),
        HostMatch::Any => return,
    };
    match names.get(text) {
        Some(known) if known != name => {
            let message = format!("{alias} is an alias of {known} already; it is none of {name}");
            about.warn(
                "alias-conflict",
                field,
                message,
                "an alias belongs to one host; the older Ingress wins",
            );
        }
        Some(_) => {}
        None => {
            names.insert(text.clone(), name.clone());
            certify(&alias, host, output);
        }
    }
}

/// The host's certificate serves this name, too, if it covers it; else the default one does.
fn certify(name: &HostMatch, host: &Host, output: &mut Output) {
    let checked = host.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
    if let Some(checked) = checked.filter(|checked| checked.covers(&name.to_string())) {
        output.certificates.insert(name.clone(), checked.certificate.clone());
    }
}

/// `www.` in front of the host, or taken off.
fn add_twin(
    name: &HostMatch,
    host: &Host,
    status: u16,
    hosts: &BTreeMap<HostMatch, Host>,
    output: &mut Output,
    about: &mut About<'_>,
) {
    let field = annotations::field("from-to-www-redirect");
    let HostMatch::Exact(to) = name else {
        let message = format!("{name} has no twin: it is no name");
        return about.warn("no-twin", field, message, "write the names as rules of their own");
    };
    let twin = to.strip_prefix("www.").map_or_else(|| format!("www.{to}"), str::to_owned);
    let place = HostMatch::Exact(twin.clone());
    let is_host = hosts.contains_key(&place);
    if is_host || output.aliases.exact.contains_key(&twin) {
        let what = if is_host { "a host of its own" } else { "an alias" };
        let message = format!("{twin} is {what}; nothing is redirected from there to {to}");
        return about.info("no-twin", field, message, "");
    }
    let moved = Moved { to: to.clone(), status };
    output.servers.insert(place.clone(), Arc::new(Server { moved: Some(moved), ..Server::default() }));
    certify(&place, host, output);
    let has_tls = host.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
    if has_tls && !output.certificates.contains_key(&place) {
        let message =
            format!("the certificate of {to} does not cover {twin}, which is served with the default one");
        about.warn("certificate-of-other-host", field, message, "issue a certificate that names both");
    }
}
