//! Keys that say whose word about a client counts, and what upstreams are told.

use super::super::annotations::value::{is_header_name, prefix};
use super::super::mode;
use super::keys::{Keys, field};
use crate::model::l4::Prefix;
use crate::model::l7::Forwarding;
use crate::model::l7::forwarding::{Address, Behind, Chain, HeaderNames, Words};

pub(super) fn read(keys: &mut Keys<'_>, has_proxy_protocol: bool, trusted: Vec<Prefix>) -> Forwarding {
    let default = Forwarding::default();
    let mut is_on = |key| keys.boolean(key).unwrap_or(false);
    let (words, address) = (is_on("use-forwarded-headers"), is_on("enable-real-ip"));
    let (full, original_uri) = (is_on("compute-full-forwarded-for"), is_on("proxy-add-original-uri-header"));
    let header = keys.parsed("forwarded-for-header", "the name of a header", |text| {
        is_header_name(text).then(|| text.to_ascii_lowercase())
    });
    let is_strict = keys.text(mode::KEY) == Some("strict");
    if words && !is_strict {
        let message = "X-Forwarded-Proto, -Host and -Port are believed whoever sends them";
        let fix = "see that clients reach the proxy through those that set these headers, and only so";
        keys.about.info("believes-everybody", field("use-forwarded-headers"), message, fix);
    }
    let behind = (words || address).then_some(Behind {
        words: match (words, is_strict) {
            (true, false) => Words::Believed,
            (true, true) => Words::OfTrusted,
            (false, _) => Words::Ignored,
        },
        address: if has_proxy_protocol { Address::Connection } else { Address::Told },
        trusted,
    });
    Forwarding {
        behind,
        chain: if words && full { Chain::Appended } else { Chain::Replaced },
        header: header.unwrap_or(default.header),
        original_uri,
        request_id: keys.boolean("generate-request-id").unwrap_or(default.request_id),
    }
}

/// `proxy-real-ip-cidr`.
pub(super) fn trusted(keys: &mut Keys<'_>) -> Vec<Prefix> {
    let key = "proxy-real-ip-cidr";
    let Some(text) = keys.text(key) else {
        return ["0.0.0.0/0", "::/0"].into_iter().filter_map(prefix).collect();
    };
    let ranges: Option<Vec<_>> = text.split(',').map(|range| prefix(range.trim())).collect();
    ranges.unwrap_or_else(|| {
        // Who may name the client's address was restricted, though nobody can read to whom.
        let message = format!("{text:?} is not a list of addresses and CIDR ranges; nobody is believed");
        keys.about.warn("bad-value", field(key), message, "");
        Vec::new()
    })
}

pub(super) fn names(keys: &mut Keys<'_>) -> HeaderNames {
    let underscores = keys.boolean("enable-underscores-in-headers").unwrap_or(false);
    match (keys.boolean("ignore-invalid-headers").unwrap_or(true), underscores) {
        (false, _) => HeaderNames::All,
        (true, true) => HeaderNames::Underscores,
        (true, false) => HeaderNames::Plain,
    }
}
