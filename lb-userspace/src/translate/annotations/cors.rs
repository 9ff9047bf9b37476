//! `enable-cors` and `cors-*`.

use super::super::findings::About;
use super::field;
use super::policies::Source;
use crate::model::l7::policy::{Cors, Origin, Origins};

const METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization";
/// Twenty days.
const MAX_AGE: i32 = 1_728_000;

pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<Cors> {
    source.boolean("enable-cors").filter(|on| *on)?;
    let mut list = |name: &str, legal: &str| {
        let text = source.text(name)?;
        let is_legal = |c: char| c.is_ascii_alphanumeric() || c == ',' || c == ' ' || legal.contains(c);
        if text.chars().all(is_legal) {
            return Some(text.to_owned());
        }
        let message = format!("{text:?} is not a list of names with commas");
        about.warn("bad-annotation", field(name), message, "the default is used");
        None
    };
    let methods = list("cors-allow-methods", "");
    let headers = list("cors-allow-headers", "-_");
    let expose = list("cors-expose-headers", "-_*");
    Some(Cors {
        origins: origins(source.text("cors-allow-origin"), about),
        methods: methods.unwrap_or_else(|| METHODS.to_owned()),
        headers: headers.unwrap_or_else(|| HEADERS.to_owned()),
        credentials: source.boolean("cors-allow-credentials").unwrap_or(true),
        expose,
        max_age: source.text("cors-max-age").and_then(|text| text.parse().ok()).unwrap_or(MAX_AGE),
    })
}

/// Any `*` makes all of it `*`; an entry that is no origin allows nobody.
fn origins(text: Option<&str>, about: &mut About<'_>) -> Origins {
    let Some(text) = text else { return Origins::Any };
    let entries = || text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    if entries().any(|entry| entry == "*") {
        return Origins::Any;
    }
    let mut listed = Vec::new();
    for entry in entries() {
        match origin(entry) {
            Some(origin) => listed.push(origin),
            None => {
                let message = format!("{entry:?} is no origin; it is left out");
                let fix = "write scheme://host, scheme://*.domain, with the port if there is one";
                about.warn("bad-origin", field("cors-allow-origin"), message, fix);
            }
        }
    }
    Origins::Listed(listed)
}

fn origin(entry: &str) -> Option<Origin> {
    let entry = entry.to_ascii_lowercase();
    if entry == "null" {
        return Some(Origin::Exact(entry));
    }
    let (scheme, host) = entry.split_once("://")?;
    let (named, one_label) = match host.strip_prefix("*.") {
        Some(domain) => (domain, true),
        None => (host, false),
    };
    let (name, port) = named.split_once(':').unwrap_or((named, "0"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let legal = !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !name.is_empty()
        && name.chars().all(is_name)
        && port.parse::<u16>().is_ok();
    if !legal {
        return None;
    }
    if one_label {
        return Some(Origin::OneLabel { scheme: format!("{scheme}://"), rest: format!(".{named}") });
    }
    Some(Origin::Exact(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_a_host_and_at_most_one_star() {
        let exact = |text: &str| Some(Origin::Exact(text.to_owned()));
        let below = |scheme: &str, rest: &str| {
            Some(Origin::OneLabel { scheme: scheme.to_owned(), rest: rest.to_owned() })
        };
        let cases = [
            ("https://A.example.com", exact("https://a.example.com")),
            ("http://localhost:3000", exact("http://localhost:3000")),
            ("null", exact("null")),
            ("https://*.example.com:8443", below("https://", ".example.com:8443")),
            ("a.example.com", None),
            ("https://", None),
            ("https://a.*.com", None),
            ("https://a.example.com/", None),
            ("https://a:x", None),
            ("https://a\"b", None),
        ];
        for (text, expected) in cases {
            assert_eq!(origin(text), expected, "{text}");
        }
    }
}
