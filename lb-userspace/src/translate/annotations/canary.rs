//! `canary-*`: which requests of another Ingress go to the backend of this one.

use std::collections::BTreeMap;

use super::super::findings::About;
use super::{field, value};
use crate::model::canary::{HeaderRule, HeaderValue, Rules, Weight};
use crate::model::l7::{BadPattern, Pattern};

/// Whether an annotation means anything on a canary: those of its own upstream do, in all else its
/// requests are treated as the primary says.
pub(super) fn counts(name: &str) -> bool {
    const OWN: [&str; 7] = [
        "canary",
        "affinity",
        "session-cookie-",
        "load-balance",
        "upstream-hash-by",
        "upstream-health-check-",
        "upstream-keepalive-connections",
    ];
    OWN.iter().any(|own| name.starts_with(own))
}

/// The rules of a canary; `None` where `canary` is not true.
pub(super) fn read(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) -> Option<Rules> {
    let text = |name: &str| valid.get(name).copied();
    match text("canary").and_then(value::boolean) {
        Some(true) => {}
        Some(false) => {
            for name in valid.keys().filter(|name| name.starts_with("canary-")) {
                about.info("no-effect", field(name), "has no effect while canary is false", "");
            }
            return None;
        }
        None => return None,
    }
    let header = text("canary-by-header").map(|name| {
        let value = match (text("canary-by-header-value"), text("canary-by-header-pattern")) {
            (Some(value), _) => HeaderValue::Equal(value.to_owned()),
            (None, Some(pattern)) => found(pattern, about),
            (None, None) => HeaderValue::AlwaysOrNever,
        };
        HeaderRule { name: name.to_owned(), value }
    });
    let number = |name: &str| text(name).and_then(|text| text.parse::<u32>().ok());
    let total = number("canary-weight-total");
    let of = total.unwrap_or_default().max(Weight::LEAST_TOTAL);
    if let Some(total) = total.filter(|total| *total < Weight::LEAST_TOTAL) {
        let message = format!("{total} counts as {of}, below which ingress-nginx takes no total");
        about.warn(
            "bad-annotation",
            field("canary-weight-total"),
            message,
            format!("write {of}, and the weight as a part of that"),
        );
    }
    let rules = Rules {
        header,
        cookie: text("canary-by-cookie").map(str::to_owned),
        weight: Weight { part: number("canary-weight").unwrap_or_default(), of },
    };
    if rules.header.is_none() && rules.cookie.is_none() && rules.weight.part == 0 {
        let message = "no request goes to this canary: it has neither header nor cookie nor weight";
        about.info("idle-canary", field("canary"), message, "set canary-weight, or another of the canary-*");
    }
    Some(rules)
}

fn found(pattern: &str, about: &mut About<'_>) -> HeaderValue {
    Pattern::subject(pattern).map_or_else(
        |error| {
            let message = format!(
                "pattern {pattern:?} cannot be used ({error}): whoever sends the header is answered by the primary"
            );
            about.warn("bad-pattern", field("canary-by-header-pattern"), message, BadPattern::FIX);
            HeaderValue::Unusable
        },
        HeaderValue::Found,
    )
}
