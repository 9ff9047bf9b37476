//! Keys that say how upstreams are dealt with (reference 2.2). One with the name of an annotation is
//! that annotation's default.

use std::collections::BTreeMap;

use super::super::annotations::table::Value::{self, Bool, Int, One, Ranges, Size, Text, Words};
use super::super::annotations::value;
use super::keys::{Keys, field};
use crate::model::upstream::{Condition, Keepalive};

/// Keys and the form of their values.
const KEYS: &[(&str, Value)] = &[
    ("allow-cross-namespace-resources", Bool),
    ("allowlist-source-range", Ranges),
    ("client-body-buffer-size", Size),
    ("denylist-source-range", Ranges),
    ("global-allowed-response-headers", Text),
    ("limit-rate", Int),
    ("limit-rate-after", Int),
    ("load-balance", One(&["round_robin", "ewma", "least_requests"])),
    ("no-auth-locations", Text),
    ("proxy-body-size", Size),
    ("proxy-buffer-size", Size),
    ("proxy-buffering", One(&["on", "off"])),
    ("proxy-buffers-number", Int),
    ("proxy-connect-timeout", Int),
    ("proxy-max-temp-file-size", Size),
    ("proxy-next-upstream", Words(&Condition::WORDS)),
    ("proxy-next-upstream-timeout", Int),
    ("proxy-next-upstream-tries", Int),
    ("proxy-read-timeout", Int),
    ("proxy-request-buffering", One(&["on", "off"])),
    ("proxy-send-timeout", Int),
    ("proxy-ssl-location-only", Bool),
    ("retry-non-idempotent", Bool),
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
pub(in crate::translate) struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// The error keeps what can be used beside a list that guards something and cannot be read.
    pub(super) fn read(keys: &mut Keys<'_>) -> Result<Self, Self> {
        keys.without_effect(&["proxy-busy-buffers-size"]);
        let mut guards = true;
        let mut values = BTreeMap::new();
        for (key, form) in KEYS {
            let Some(text) = keys.text(key) else { continue };
            match value::check(*form, text) {
                Ok(()) => {
                    values.insert(*key, text.to_owned());
                }
                Err(message) if *form == Ranges => {
                    guards = false;
                    let fix = "every Ingress answers 503 until it is corrected";
                    keys.about.error_fix("bad-value", field(key), message, fix);
                }
                Err(message) => keys.about.warn("bad-value", field(key), message, "the default is used"),
            }
        }
        if guards { Ok(Self(values)) } else { Err(Self(values)) }
    }

    /// As written.
    pub(in crate::translate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// True or false.
    pub(in crate::translate) fn boolean(&self, key: &str) -> Option<bool> {
        self.text(key).and_then(value::boolean)
    }
}
