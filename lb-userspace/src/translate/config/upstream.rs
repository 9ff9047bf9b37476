//! Keys that say how upstreams are dealt with. One with the name of an annotation is
//! that annotation's default.

use std::collections::BTreeMap;

use super::super::annotations::table::Value::{
    self, Bool, ErrorStatus, Int, One, Ranges, Size, Statuses, Text, Token, Words,
};
use super::super::annotations::value;
use super::super::findings::About;
use super::super::header_map;
use super::super::mode;
use super::super::view::View;
use super::keys::{Keys, field};
use crate::model::expression::Expression;
use crate::model::l7::policy::FilledHeader;
use crate::model::upstream::{Condition, Keepalive};

/// Keys and the form of their values.
const KEYS: &[(&str, Value)] = &[
    (mode::KEY, One(&mode::WORDS)),
    ("allow-cross-namespace-resources", Bool),
    ("allowlist-source-range", Ranges),
    ("client-body-buffer-size", Size),
    ("custom-http-errors", Statuses),
    ("denylist-source-range", Ranges),
    ("disable-proxy-intercept-errors", Bool),
    ("force-ssl-redirect", Bool),
    ("global-allowed-response-headers", Text),
    ("global-auth-always-set-cookie", Bool),
    ("global-auth-cache-duration", Text),
    ("global-auth-cache-key", Text),
    ("global-auth-method", Token),
    ("global-auth-request-redirect", Text),
    ("global-auth-response-headers", Text),
    ("global-auth-signin", Text),
    ("global-auth-signin-redirect-param", Token),
    ("global-auth-url", Text),
    ("http-redirect-code", One(&["301", "302", "307", "308"])),
    ("limit-conn-status-code", ErrorStatus),
    ("limit-conn-zone-variable", Text),
    ("limit-rate", Int),
    ("limit-rate-after", Int),
    ("limit-req-status-code", ErrorStatus),
    ("load-balance", One(&["round_robin", "ewma", "least_requests"])),
    ("no-auth-locations", Text),
    ("no-tls-redirect-locations", Text),
    ("preserve-trailing-slash", Bool),
    ("proxy-body-size", Size),
    ("proxy-buffer-size", Size),
    ("proxy-buffering", One(&["on", "off"])),
    ("proxy-buffers-number", Int),
    ("proxy-connect-timeout", Int),
    ("proxy-cookie-domain", Text),
    ("proxy-cookie-path", Text),
    ("proxy-http-version", One(&["1.0", "1.1"])),
    ("proxy-max-temp-file-size", Size),
    ("proxy-next-upstream", Words(&Condition::WORDS)),
    ("proxy-next-upstream-timeout", Int),
    ("proxy-next-upstream-tries", Int),
    ("proxy-read-timeout", Int),
    ("proxy-redirect-from", Text),
    ("proxy-redirect-to", Text),
    ("proxy-request-buffering", One(&["on", "off"])),
    ("proxy-send-timeout", Int),
    ("proxy-ssl-location-only", Bool),
    ("relative-redirects", Bool),
    ("retry-non-idempotent", Bool),
    ("service-upstream", Bool),
    ("ssl-redirect", Bool),
    ("upstream-hash-by", Text),
    ("use-port-in-redirects", Bool),
    ("whitelist-source-range", Ranges),
];

/// `upstream-keepalive-*`.
pub(super) fn keepalive(keys: &mut Keys<'_>) -> Keepalive {
    let usual = Keepalive::default();
    let connections = keys.number("upstream-keepalive-connections");
    Keepalive {
        connections: connections.map_or(usual.connections, |number| number.try_into().unwrap_or(usize::MAX)),
        requests: keys.number("upstream-keepalive-requests").unwrap_or(usual.requests),
        idle: keys.time("upstream-keepalive-timeout").unwrap_or(usual.idle),
        age: keys.time("upstream-keepalive-time").unwrap_or(usual.age),
    }
}

/// Values of [`KEYS`] that are set and legal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::translate) struct Settings {
    values: BTreeMap<&'static str, String>,
    /// `proxy-set-headers`.
    proxy_headers: Vec<FilledHeader>,
}

impl Settings {
    /// The error keeps what can be used beside a list that guards something and cannot be read.
    pub(super) fn read(keys: &mut Keys<'_>, namespace: &str, objects: &View<'_>) -> Result<Self, Self> {
        let mut guards = true;
        let mut values = BTreeMap::new();
        for (key, form) in KEYS {
            let Some(text) = keys.text(key) else { continue };
            // Of these each counts by itself.
            let kept = if *form == Statuses { errors_among(text, &mut keys.about) } else { text.to_owned() };
            let text = kept.as_str();
            match legal(key, *form, text) {
                Ok(()) => {
                    values.insert(*key, text.to_owned());
                }
                Err(message) if *form == Ranges || *key == "global-auth-url" => {
                    guards = false;
                    let fix = "every Ingress answers 503 until it is corrected";
                    keys.about.error_fix("bad-value", field(key), message, fix);
                }
                Err(message) => keys.about.warn("bad-value", field(key), message, "the default is used"),
            }
        }
        let settings = Self { values, proxy_headers: proxy_headers(keys, namespace, objects) };
        if guards { Ok(settings) } else { Err(settings) }
    }

    /// Not every address may come.
    pub(in crate::translate) fn restricts_sources(&self) -> bool {
        KEYS.iter().any(|(key, form)| *form == Ranges && self.text(key).is_some())
    }

    /// As written.
    pub(in crate::translate) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// True or false.
    pub(in crate::translate) fn boolean(&self, key: &str) -> Option<bool> {
        self.text(key).and_then(value::boolean)
    }

    /// Headers for every upstream.
    pub(in crate::translate) fn proxy_headers(&self) -> &[FilledHeader] {
        &self.proxy_headers
    }
}

/// Those of a list of statuses that are errors.
fn errors_among(text: &str, about: &mut About<'_>) -> String {
    let (errors, others): (Vec<_>, Vec<_>) =
        text.split(',').map(str::trim).partition(|status| value::check(ErrorStatus, status).is_ok());
    if errors.is_empty() {
        return text.to_owned();
    }
    for other in others.iter().filter(|other| !other.is_empty()) {
        let message = format!("{other:?} is not a status from 400 to 599; it is left out");
        about.warn("bad-value", field("custom-http-errors"), message, "");
    }
    errors.join(",")
}

fn legal(key: &str, form: Value, text: &str) -> Result<(), String> {
    value::check(form, text)?;
    if matches!(key, "upstream-hash-by" | "limit-conn-zone-variable") {
        Expression::parse(text)?;
    }
    Ok(())
}

/// Those of the ConfigMap that `proxy-set-headers` names. One that cannot be filled in is sent by nobody, the
/// client included; its author wanted no client to say it.
fn proxy_headers(keys: &mut Keys<'_>, namespace: &str, objects: &View<'_>) -> Vec<FilledHeader> {
    const KEY: &str = "proxy-set-headers";
    let Some(reference) = keys.text(KEY) else { return Vec::new() };
    let config_map = match header_map::find(reference, namespace, true, objects) {
        Ok((_, config_map)) => config_map,
        Err(message) => {
            keys.about.error("bad-headers", field(KEY), format!("{message}; no headers are added"));
            return Vec::new();
        }
    };
    let mut headers: Vec<FilledHeader> = Vec::new();
    for (name, text) in config_map.data.iter().flatten() {
        let filled = header_map::one(name, text).and_then(|header| Expression::parse(&header.value));
        let value = filled.unwrap_or_else(|message| {
            keys.about.error("bad-headers", field(KEY), format!("{name} is left out: {message}"));
            Expression::default()
        });
        if header_map::is_settable(name) {
            // Keys may differ in case alone; then the last counts.
            headers.retain(|known| !known.name.eq_ignore_ascii_case(name));
            headers.push(FilledHeader { name: name.clone(), value });
        }
    }
    headers
}
