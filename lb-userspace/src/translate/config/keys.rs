//! Keys of a ConfigMap as values. A key is asked for once; one that cannot be read is told, and the
//! default is used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;

use super::super::annotations::table::Value;
use super::super::annotations::{meant, value};
use super::super::findings::About;
use super::table::{self, Fate};

/// The keys that are set, trimmed; an empty one counts as absent.
pub(super) struct Keys<'a> {
    data: BTreeMap<&'a str, &'a str>,
    asked: BTreeSet<&'static str>,
    /// For what a section has to say.
    pub about: About<'a>,
}

/// Field of a key, as problems name it.
pub(super) fn field(key: &str) -> String {
    format!("data.{key}")
}

/// What counts where a key says nothing that can be read.
pub(in crate::translate) fn usual(key: &str) -> String {
    match table::row(key).map(|row| row.default).filter(|default| !default.is_empty()) {
        Some(default) => format!("the default, {default}, is used"),
        None => "it is ignored".to_owned(),
    }
}

impl<'a> Keys<'a> {
    pub(super) fn new(object: &'a ConfigMap, about: About<'a>) -> Self {
        let data = object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.trim()));
        Self { data: data.filter(|(_, value)| !value.is_empty()).collect(), asked: BTreeSet::new(), about }
    }

    /// As written. Who asks for a key adds it to the table.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        debug_assert!(table::row(key).is_some(), "{key} is not in the table");
        self.asked.insert(key);
        self.data.get(key).copied()
    }

    /// As `parse` reads it; what it does not take is told as not being `wanted`.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.bad(key, format!("{text:?} is not {wanted}"), "");
        }
        parsed
    }

    /// The key counts as absent, for a reason and with what is to be done about it.
    pub(super) fn bad(&mut self, key: &'static str, message: String, fix: impl Into<String>) {
        self.about.warn("bad-value", field(key), format!("{message}; {}", usual(key)), fix);
    }

    fn of_form<T>(
        &mut self,
        key: &'static str,
        form: Value,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            let message = value::check(form, text).err();
            let message = message.unwrap_or_else(|| format!("{text:?} is out of range"));
            self.bad(key, message, value::advice(form, text));
        }
        parsed
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.of_form(key, Value::Bool, value::boolean)
    }

    pub(super) fn number(&mut self, key: &'static str) -> Option<u32> {
        self.of_form(key, Value::From(0), |text| text.parse().ok())
    }

    /// Seconds, or a time as nginx writes it.
    pub(super) fn time(&mut self, key: &'static str) -> Option<Duration> {
        self.parsed(key, "a number of seconds or a time like 90s or 10m", value::time)
    }

    pub(super) fn size(&mut self, key: &'static str) -> Option<u64> {
        self.of_form(key, Value::Size, value::size)
    }

    /// What no section asked for.
    pub(super) fn tell_unasked(mut self) {
        for key in self.data.keys().filter(|key| !self.asked.contains(*key)) {
            let field = field(key);
            let Some(row) = table::row(key) else {
                let fix = meant(key, table::KEYS.iter().map(|row| row.name));
                self.about.warn("unknown-key", field, "ingress-nginx has no such key; ignored", fix);
                continue;
            };
            match row.fate {
                Fate::Neutral => {
                    self.about.info("no-effect", field, format!("accepted without effect ({})", row.doc), "");
                }
                Fate::ByFlags if self.data.get(key) == Some(&row.default) => {}
                Fate::ByFlags => {
                    let message = format!("has no effect: listeners are set by flags ({})", row.doc);
                    self.about.warn(
                        "no-effect",
                        field,
                        message,
                        "start with --http ADDRESS:PORT and --https ADDRESS:PORT",
                    );
                }
                Fate::Removed(instead) => {
                    let message = "ingress-nginx has no such key any more; ignored";
                    self.about.warn("removed-key", field, message, instead);
                }
                // Who writes the default down misses nothing.
                Fate::Plain if self.data.get(key) == Some(&row.default) => {}
                Fate::Plain | Fate::Refused => {
                    let message = format!("not honoured yet ({}); {}", row.doc, usual(key));
                    self.about.warn("not-yet", field, message, "");
                }
            }
        }
    }
}

/// A name or an address without port, of IPv6 with or without the brackets that nginx wants; told without them.
pub(super) fn bare_host(text: &str) -> Option<&str> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_host = bare.parse::<Ipv6Addr>().is_ok() || (text.len() <= 253 && text.bytes().all(is_name));
    is_host.then_some(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for (text, expected) in [
            ("otel-coll-collector.otel.svc", Some("otel-coll-collector.otel.svc")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("[fd00::1]", Some("fd00::1")),
            ("otel:4317", None),
            ("http://otel", None),
            ("two words", None),
            ("[otel]", None),
            ("[10.0.0.1]", None),
        ] {
            assert_eq!(bare_host(text), expected, "{text}");
        }
        assert_eq!(bare_host(&"a".repeat(254)), None);
    }
}
