//! Annotations that another one, or the want of one, leaves without effect.

use std::collections::BTreeMap;

use super::super::config::Settings;
use super::super::findings::About;
use super::field;
use super::policy::Policy;
use crate::model::session::Mode;

/// Says which of them there are. ingress-nginx has them alike but for where a persistent session begins.
pub(super) fn tell(
    valid: &BTreeMap<&str, &str>,
    settings: &Settings,
    policy: &Policy,
    about: &mut About<'_>,
) {
    redirects(valid, policy, about);
    balancing(valid, policy, about);
    limits(valid, about);
    rates(valid, settings, policy, about);
}

fn without(names: &[&str], valid: &BTreeMap<&str, &str>, other: &str, about: &mut About<'_>) {
    for name in names.iter().filter(|name| valid.contains_key(**name)) {
        about.info("no-effect", field(name), format!("has no effect without {other}"), "");
    }
}

fn beside(names: &[&str], valid: &BTreeMap<&str, &str>, other: &str, about: &mut About<'_>) {
    for name in names.iter().filter(|name| valid.contains_key(**name)) {
        let message = format!("has no effect beside {other}, which counts more");
        about.info("no-effect", field(name), message, "remove one of both");
    }
}

fn redirects(valid: &BTreeMap<&str, &str>, policy: &Policy, about: &mut About<'_>) {
    let by = policy.redirect.as_ref().map(|redirect| redirect.by);
    if by != Some("temporal-redirect") {
        without(&["temporal-redirect-code"], valid, "temporal-redirect", about);
    }
    match by {
        Some("permanent-redirect") => {}
        Some(other) => beside(&["permanent-redirect", "permanent-redirect-code"], valid, other, about),
        None => without(&["permanent-redirect-code"], valid, "permanent-redirect", about),
    }
}

fn balancing(valid: &BTreeMap<&str, &str>, policy: &Policy, about: &mut About<'_>) {
    const WAYS: [&str; 4] =
        ["upstream-hash-by", "upstream-hash-by-subset", "upstream-hash-by-subset-size", "load-balance"];
    match policy.affinity.as_ref().map(|affinity| affinity.mode) {
        Some(Mode::Balanced) => beside(&WAYS, valid, "affinity", about),
        Some(Mode::Persistent) => {
            for name in WAYS.iter().filter(|name| valid.contains_key(**name)) {
                let message =
                    "says here where a session begins; beside affinity it has no effect with ingress-nginx";
                about.info("new-effect", field(name), message, "");
            }
        }
        None if policy.hash_by.is_some() => beside(&["load-balance"], valid, "upstream-hash-by", about),
        None => {}
    }
}

fn limits(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    let is_set =
        |name: &&str| valid.get(*name).and_then(|text| text.parse::<u32>().ok()).is_some_and(|n| n > 0);
    if !["limit-rps", "limit-rpm"].iter().any(is_set) {
        without(&["limit-burst-multiplier"], valid, "limit-rps or limit-rpm", about);
    }
    if !["limit-rps", "limit-rpm", "limit-connections"].iter().any(is_set) {
        let names = ["limit-allowlist", "limit-whitelist"];
        without(&names, valid, "limit-rps, limit-rpm or limit-connections", about);
    }
}

/// A response has a rate where it is read ahead of its client.
fn rates(valid: &BTreeMap<&str, &str>, settings: &Settings, policy: &Policy, about: &mut About<'_>) {
    let is_off = |name: &str| valid.get(name).is_none_or(|text| *text == "0");
    let says_rate = !is_off("limit-rate") || settings.text("limit-rate").is_some();
    if !says_rate {
        return without(&["limit-rate-after"], valid, "limit-rate", about);
    }
    if policy.buffers.response.is_some() {
        return;
    }
    for name in ["limit-rate", "limit-rate-after"].into_iter().filter(|name| !is_off(name)) {
        let message = "has no effect where responses are not read ahead of their clients";
        about.info("no-effect", field(name), message, "set proxy-buffering: \"on\"");
    }
}
