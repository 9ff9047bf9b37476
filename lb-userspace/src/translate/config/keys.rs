//! Keys of a ConfigMap as values. A key is asked for once; one that cannot be read is told, and the
//! default is used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;

use super::super::annotations::{nearest, value};
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
            let message = format!("{text:?} is not {wanted}; the default is used");
            self.about.warn("bad-value", field(key), message, "");
        }
        parsed
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.parsed(key, "true or false", value::boolean)
    }

    pub(super) fn number(&mut self, key: &'static str) -> Option<u32> {
        self.parsed(key, "a whole number", |text| text.parse().ok())
    }

    /// Seconds, or a time as nginx writes it.
    pub(super) fn time(&mut self, key: &'static str) -> Option<Duration> {
        self.parsed(key, "a number of seconds or a time like 90s or 10m", value::time)
    }

    pub(super) fn size(&mut self, key: &'static str) -> Option<u64> {
        self.parsed(key, "a number of bytes with an optional k, m or g", value::size)
    }

    /// What no section asked for.
    pub(super) fn tell_unasked(mut self) {
        for key in self.data.keys().filter(|key| !self.asked.contains(*key)) {
            let field = field(key);
            let Some(row) = table::row(key) else {
                let names = table::KEYS.iter().map(|row| row.name);
                let fix = nearest(key, names).map_or(String::new(), |name| format!("did you mean {name}?"));
                self.about.warn("unknown-key", field, "ingress-nginx has no such key; ignored", fix);
                continue;
            };
            match row.fate {
                Fate::Neutral => {
                    self.about.info("no-effect", field, format!("accepted without effect ({})", row.doc), "");
                }
                Fate::Removed(instead) => {
                    let message = "ingress-nginx has no such key any more; ignored";
                    self.about.warn("removed-key", field, message, instead);
                }
                Fate::Plain | Fate::Refused => {
                    let message = format!("not honoured yet ({}); the default is used", row.doc);
                    self.about.warn("not-yet", field, message, "");
                }
            }
        }
    }
}
