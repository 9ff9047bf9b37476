//! `limit-rps`, `limit-rpm`, `limit-connections`: how often a client may ask. What a value that cannot be
//! read does, the table says: the version of the Ingress is not admitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::findings::About;
use super::policies::Source;
use super::{field, value};
use crate::model::ObjectName;
use crate::model::expression::{Expression, Part, Variable};
use crate::model::l7::Mode;
use crate::model::l7::policy::{Allowance, Limits};

/// `limit-burst-multiplier` where it is not set.
const MULTIPLIER: i64 = 5;
/// Answer to what is too often or too many, where the ConfigMap names none: "unavailable", as if the
/// application were at fault, or what it is.
const STATUS: u16 = 503;
const STRICT_STATUS: u16 = 429;
/// Names of the list of those without limits; the first that is set counts.
const EXEMPT: [&str; 2] = ["limit-allowlist", "limit-whitelist"];

pub(super) fn read(source: &Source<'_>) -> Option<Limits> {
    // A limit of 0 or below is none.
    let count = |name: &str| source.valid.get(name)?.parse::<u32>().ok().filter(|count| *count > 0);
    let multiplier = source.valid.get("limit-burst-multiplier").and_then(|text| text.parse().ok());
    let multiplier = multiplier.unwrap_or(MULTIPLIER);
    let allowance = |name: &str| {
        let requests = count(name)?;
        // Below 0 nginx would not start; no burst comes nearest.
        let burst = i64::from(requests).saturating_mul(multiplier);
        Some(Allowance { requests, burst: u64::try_from(burst).unwrap_or(0) })
    };
    let usual = match source.mode {
        Mode::Compat => STATUS,
        Mode::Strict => STRICT_STATUS,
    };
    let status = |name: &str| source.settings.text(name).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let exempt = EXEMPT.iter().find_map(|name| source.valid.get(name));
    let limits = Limits {
        ingress: ObjectName::new(source.namespace, source.name),
        per_second: allowance("limit-rps"),
        per_minute: allowance("limit-rpm"),
        often_status: status("limit-req-status-code"),
        at_once: count("limit-connections"),
        at_once_status: status("limit-conn-status-code"),
        by: by(source),
        exempt: exempt.and_then(|text| value::ranges(text)).unwrap_or_default(),
    };
    let limits_something =
        limits.per_second.is_some() || limits.per_minute.is_some() || limits.at_once.is_some();
    limits_something.then_some(limits)
}

/// Says which numbers are none, and what they come to.
pub(super) fn tell(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    let unlimited = "nothing is limited by it";
    let all = [
        ("limit-connections", unlimited),
        ("limit-rps", unlimited),
        ("limit-rpm", unlimited),
        ("limit-rate", unlimited),
        ("limit-rate-after", "the rate holds from the first byte"),
        ("limit-burst-multiplier", "no burst is allowed"),
    ];
    for (name, then) in all {
        if let Some(text) = valid.get(name).filter(|text| text.starts_with('-')) {
            about.warn("bad-annotation", field(name), format!("{text:?} is not a number from 0; {then}"), "");
        }
    }
}

/// What tells clients apart, where that is not their address.
fn by(source: &Source<'_>) -> Option<Arc<Expression>> {
    let text = source.settings.text("limit-conn-zone-variable")?;
    let expression = Expression::parse(text).ok()?;
    (expression.0 != [Part::Variable(Variable::RemoteAddr)]).then(|| Arc::new(expression))
}
