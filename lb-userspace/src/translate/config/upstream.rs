//! Keys that say how upstreams are dealt with (reference 2.2). One with the name of an annotation is
//! that annotation's default.

use std::collections::BTreeMap;

use super::super::annotations::table::Value::{self, Bool, Int, One, Size, Words};
use super::super::annotations::value;
use super::keys::{Keys, field};
use crate::model::upstream::{Condition, Keepalive};

/// Keys and the form of their values.
const KEYS: &[(&str, Value)] = &[
    ("load-balance", One(&["round_robin", "ewma", "least_requests"])),
    ("proxy-body-size", Size),
    ("proxy-buffer-size", Size),
    ("proxy-connect-timeout", Int),
    ("proxy-next-upstream", Words(&Condition::WORDS)),
    ("proxy-next-upstream-timeout", Int),
    ("proxy-next-upstream-tries", Int),
    ("proxy-read-timeout", Int),
    ("proxy-send-timeout", Int),
    ("proxy-ssl-location-only", Bool),
    ("retry-non-idempotent", Bool),
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
    pub(super) fn read(keys: &mut Keys<'_>) -> Self {
        let mut values = BTreeMap::new();
        for (key, form) in KEYS {
            let Some(text) = keys.text(key) else { continue };
            match value::check(*form, text) {
                Ok(()) => {
                    values.insert(*key, text.to_owned());
                }
                Err(message) => keys.about.warn("bad-value", field(key), message, "the default is used"),
            }
        }
        Self(values)
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
