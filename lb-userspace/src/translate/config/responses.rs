//! Keys that say what every response tells.

use super::super::annotations::value;
use super::super::header_map;
use super::super::view::View;
use super::keys::{Keys, field};
use crate::model::expression::Expression;
use crate::model::l7::policy::{FilledHeader, Header};
use crate::model::l7::{Hsts, Responses};

pub(super) fn read(keys: &mut Keys<'_>, namespace: &str, objects: &View<'_>) -> Responses {
    let (set, filled) = added(keys, namespace, objects);
    Responses {
        hsts: hsts(keys),
        names_server: keys.boolean("server-tokens").unwrap_or(false),
        passes_server: keys.boolean("allow-backend-server-header").unwrap_or(false),
        hidden: hidden(keys),
        set,
        filled,
    }
}

fn hsts(keys: &mut Keys<'_>) -> Option<Hsts> {
    let default = Hsts::default();
    let is_on = keys.boolean("hsts").unwrap_or(true);
    let hsts = Hsts {
        max_age: keys.number("hsts-max-age").unwrap_or(default.max_age),
        subdomains: keys.boolean("hsts-include-subdomains").unwrap_or(default.subdomains),
        preload: keys.boolean("hsts-preload").unwrap_or(default.preload),
    };
    is_on.then_some(hsts)
}

fn hidden(keys: &mut Keys<'_>) -> Vec<String> {
    const KEY: &str = "hide-headers";
    let mut names = Vec::new();
    for name in keys.text(KEY).unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if value::is_header_name(name) && !header_map::delimits(name) {
            names.push(name.to_ascii_lowercase());
        } else {
            keys.about.warn(
                "bad-value",
                field(KEY),
                format!("{name:?} cannot be hidden; it is left out"),
                "",
            );
        }
    }
    names
}

/// Those that are the same in every response, and those with variables. One that cannot be set leaves the others in
/// force: they protect whoever reads the answers.
fn added(keys: &mut Keys<'_>, namespace: &str, objects: &View<'_>) -> (Vec<Header>, Vec<FilledHeader>) {
    const KEY: &str = "add-headers";
    let (mut set, mut filled): (Vec<Header>, Vec<FilledHeader>) = Default::default();
    let Some(reference) = keys.text(KEY) else { return (set, filled) };
    let config_map = match header_map::find(reference, namespace, true, objects) {
        Ok((_, config_map)) => config_map,
        Err(message) => {
            keys.about.error("bad-headers", field(KEY), format!("{message}; no headers are added"));
            return (set, filled);
        }
    };
    for (name, text) in config_map.data.iter().flatten() {
        let read = header_map::one(name, text).and_then(|header| {
            let value = header.value.contains('$').then(|| Expression::parse(&header.value)).transpose()?;
            Ok((header, value))
        });
        let (header, value) = match read {
            Ok(read) => read,
            Err(message) => {
                keys.about.error("bad-headers", field(KEY), format!("{name} is left out: {message}"));
                continue;
            }
        };
        // Keys may differ in case alone; then the last counts.
        set.retain(|known| !known.name.eq_ignore_ascii_case(name));
        filled.retain(|known| !known.name.eq_ignore_ascii_case(name));
        match value {
            Some(value) => filled.push(FilledHeader { name: header.name, value }),
            None => set.push(header),
        }
    }
    (set, filled)
}
