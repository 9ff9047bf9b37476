//! Keys that say how upstreams are dealt with. One with the name of an annotation is
//! that annotation's default.

use std::collections::BTreeMap;

use super::super::annotations::table::Value::{
    self, Bool, ErrorStatus, From, One, Ranges, Size, Statuses, Text, Token, Word, Words,
};
use super::super::annotations::{external_auth, rewriting, traced, value};
use super::super::findings::About;
use super::super::header_map;
use super::super::mode;
use super::super::view::View;
use super::WITHOUT_FIREWALL;
use super::keys::{Keys, bare_host, field};
use super::traces::COLLECTOR;
use crate::model::expression::Expression;
use crate::model::l7::policy::FilledHeader;
use crate::model::upstream::{Condition, Keepalive};

/// Keys and the form of their values.
const KEYS: &[(&str, Value)] = &[
    (mode::KEY, Word(&mode::WORDS)),
    (WITHOUT_FIREWALL, Bool),
    ("allow-cross-namespace-resources", Bool),
    ("allowlist-source-range", Ranges),
    ("client-body-buffer-size", Size),
    ("custom-http-errors", Statuses),
    ("denylist-source-range", Ranges),
    ("disable-proxy-intercept-errors", Bool),
    ("enable-opentelemetry", Bool),
    ("force-ssl-redirect", Bool),
    ("global-allowed-response-headers", Text),
    ("global-auth-always-set-cookie", Bool),
    ("global-auth-cache-duration", Text),
    ("global-auth-cache-key", Text),
    ("global-auth-method", Text),
    ("global-auth-request-redirect", Text),
    ("global-auth-response-headers", Text),
    ("global-auth-signin", Text),
    ("global-auth-signin-redirect-param", Token),
    ("global-auth-url", Text),
    ("http-redirect-code", One(&["301", "302", "307", "308"])),
    ("limit-conn-status-code", ErrorStatus),
    ("limit-conn-zone-variable", Text),
    ("limit-rate", From(0)),
    ("limit-rate-after", From(0)),
    ("limit-req-status-code", ErrorStatus),
    ("load-balance", One(&["round_robin", "ewma", "least_requests"])),
    ("no-auth-locations", Text),
    ("no-tls-redirect-locations", Text),
    ("preserve-trailing-slash", Bool),
    ("opentelemetry-operation-name", Text),
    ("opentelemetry-trust-incoming-span", Bool),
    ("otel-sampler", One(&["AlwaysOn", "AlwaysOff", "TraceIdRatioBased"])),
    ("otel-sampler-parent-based", Bool),
    ("otel-sampler-ratio", Text),
    ("otlp-collector-host", Text),
    ("proxy-body-size", Size),
    ("proxy-buffer-size", Size),
    ("proxy-buffering", One(&["on", "off"])),
    ("proxy-buffers-number", From(1)),
    ("proxy-connect-timeout", From(0)),
    ("proxy-cookie-domain", Text),
    ("proxy-cookie-path", Text),
    ("proxy-http-version", One(&["1.0", "1.1"])),
    ("proxy-max-temp-file-size", Size),
    ("proxy-next-upstream", Words(&Condition::WORDS)),
    ("proxy-next-upstream-timeout", From(0)),
    ("proxy-next-upstream-tries", From(0)),
    ("proxy-read-timeout", From(0)),
    ("proxy-redirect-from", Text),
    ("proxy-redirect-to", Text),
    ("proxy-request-buffering", One(&["on", "off"])),
    ("proxy-send-timeout", From(0)),
    ("proxy-ssl-location-only", Bool),
    ("relative-redirects", Bool),
    ("retry-non-idempotent", Bool),
    ("service-upstream", Bool),
    ("ssl-redirect", Bool),
    ("upstream-hash-by", Text),
    ("use-port-in-redirects", Bool),
    ("whitelist-source-range", Ranges),
];

/// Who lets requests pass, by the ConfigMap.
const GUARD: &str = "global-auth-url";
/// Without these nobody is asked as the author wants it.
const CLOSES: [&str; 3] = [GUARD, "global-auth-method", "global-auth-response-headers"];

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
            let kept = match each_by_itself(key) {
                Some(is_legal) => usable_among(key, text, is_legal, &mut keys.about),
                None => text.to_owned(),
            };
            let text = kept.as_str();
            match legal(key, *form, text) {
                Ok(()) => {
                    values.insert(*key, text.to_owned());
                }
                Err(message) if *form == Ranges || (*key == GUARD && value::check(*form, text).is_err()) => {
                    guards = false;
                    let fix = "every Ingress answers 503 until it is corrected";
                    keys.about.error_fix("bad-value", field(key), message, fix);
                }
                // It stays, and closes what it would have guarded.
                Err(message) if CLOSES.contains(key) => {
                    values.insert(*key, text.to_owned());
                    let fix = "the Ingresses that it guards answer 503 until it is corrected";
                    keys.about.error_fix("bad-value", field(key), message, fix);
                }
                Err(message) => keys.bad(key, message, value::advice(*form, text)),
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

    /// Objects of other namespaces may be named.
    pub(in crate::translate) fn crosses(&self) -> bool {
        self.boolean("allow-cross-namespace-resources").unwrap_or(false)
    }

    /// Headers for every upstream.
    pub(in crate::translate) fn proxy_headers(&self) -> &[FilledHeader] {
        &self.proxy_headers
    }
}

/// One of a list, and what it is to be.
type Legal = (fn(&str) -> bool, &'static str);

/// Of these keys each entry counts by itself.
fn each_by_itself(key: &str) -> Option<Legal> {
    Some(match key {
        "custom-http-errors" => {
            (|status| value::check(ErrorStatus, status).is_ok(), "is not a status from 400 to 599")
        }
        "no-auth-locations" | "no-tls-redirect-locations" => {
            (|path| path.starts_with('/'), "does not begin with `/`, as every path does")
        }
        "global-allowed-response-headers" => (value::is_header_name, "is no name of a header"),
        _ => return None,
    })
}

/// The entries of a list that can be used; all, where none can.
fn usable_among(key: &str, text: &str, (is_legal, wanted): Legal, about: &mut About<'_>) -> String {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let (usable, others): (Vec<_>, Vec<_>) = entries.partition(|entry| is_legal(entry));
    if usable.is_empty() && key == "custom-http-errors" {
        return text.to_owned();
    }
    for other in others {
        about.warn("bad-value", field(key), format!("{other:?} {wanted}; it is left out"), "");
    }
    usable.join(",")
}

fn legal(key: &str, form: Value, text: &str) -> Result<(), String> {
    value::check(form, text)?;
    match key {
        "upstream-hash-by" | "limit-conn-zone-variable" => {
            Expression::parse(text).map(drop).map_err(|message| format!("{text:?}: {message}"))
        }
        "proxy-cookie-domain" | "proxy-cookie-path" | "proxy-redirect-from" | "proxy-redirect-to" => {
            rewriting::check(key, text)
        }
        traced::OPERATION | traced::RATIO => traced::check(key, text),
        COLLECTOR => {
            bare_host(text).map(|_| ()).ok_or_else(|| format!("{text:?} is neither a name nor an address"))
        }
        _ => external_auth::check_global(key, text),
    }
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
