//! Whether a request goes to the canary of its upstream.
//!
//! Pure: the draw is an argument. The proxy and `explain` run the same function.

use super::balance::Random;
use super::policy::Headers;
use super::route::{Router, UpstreamEntry};
use crate::model::canary::{HeaderRule, HeaderValue, Rules, Sessions, Weight};

/// Who serves a part of an upstream's requests instead.
#[derive(Debug)]
pub(super) struct CanaryEntry {
    /// Index of its upstream.
    pub(super) upstream: usize,
    pub(super) rules: Rules,
    pub(super) sessions: Sessions,
}

/// Which of two upstreams a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Canary,
    /// To neither: who words errors stands in for a primary without endpoints.
    StandIn,
}

/// What sends a request to its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The canary has no endpoints.
    Empty,
    /// Its session began on that side.
    Session,
    /// What the header says.
    Header,
    /// The pattern for the header cannot be used.
    UnusablePattern,
    /// What the cookie says.
    Cookie,
    /// A draw, or a weight that leaves nothing to it.
    Weight,
}

/// An upstream with a canary, decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice<'r> {
    pub(super) side: Side,
    pub(super) reason: Reason,
    pub(super) canary: &'r CanaryEntry,
}

/// Decides for an upstream that has a canary; `None`: it has none.
pub(super) fn choose<'r>(
    router: &'r Router,
    primary: &'r UpstreamEntry,
    headers: &Headers<'_>,
    random: Option<&Random>,
) -> Option<Choice<'r>> {
    let canary = primary.canary.as_ref()?;
    let holds = |entry: &UpstreamEntry| {
        let sessions = entry.sessions.as_ref().filter(|_| canary.sessions == Sessions::Stay);
        sessions.is_some_and(|sessions| sessions.holds(headers))
    };
    let (side, reason) = match router.upstreams.get(canary.upstream) {
        Some(entry) if entry.endpoints.is_empty() => (Side::Primary, Reason::Empty),
        None => (Side::Primary, Reason::Empty),
        Some(_) if holds(primary) => (Side::Primary, Reason::Session),
        Some(entry) if holds(entry) => (Side::Canary, Reason::Session),
        Some(_) => by_rules(&canary.rules, headers, random),
    };
    Some(Choice { side, reason, canary })
}

fn by_rules(rules: &Rules, headers: &Headers<'_>, random: Option<&Random>) -> (Side, Reason) {
    let Rules { header, cookie, weight } = rules;
    if let Some(decided) = header.as_ref().and_then(|rule| by_header(rule, headers)) {
        return decided;
    }
    let cookie = cookie.as_ref().and_then(|name| headers.cookie(name));
    if let Some(side) = cookie.and_then(always_or_never) {
        return (side, Reason::Cookie);
    }
    (by_weight(*weight, random), Reason::Weight)
}

fn by_header(rule: &HeaderRule, headers: &Headers<'_>) -> Option<(Side, Reason)> {
    let sent = headers.first(&rule.name)?;
    let canary = |is: bool| is.then_some((Side::Canary, Reason::Header));
    match &rule.value {
        HeaderValue::AlwaysOrNever => always_or_never(sent).map(|side| (side, Reason::Header)),
        HeaderValue::Equal(value) => canary(sent == value.as_bytes()),
        HeaderValue::Found(pattern) => canary(pattern.regex().is_match(sent)),
        HeaderValue::Unusable => Some((Side::Primary, Reason::UnusablePattern)),
    }
}

fn always_or_never(value: &[u8]) -> Option<Side> {
    match value {
        b"always" => Some(Side::Canary),
        b"never" => Some(Side::Primary),
        _ => None,
    }
}

/// Without a source of randomness, where it is explained, the draw is the one that comes last.
fn by_weight(weight: Weight, random: Option<&Random>) -> Side {
    let Weight { part, of } = weight;
    let below = |random: &Random| random.below(of as usize).and_then(|n| u32::try_from(n).ok());
    let drawn = match part {
        0 => return Side::Primary,
        _ => random.and_then(below).map_or(of, |n| n + 1),
    };
    if drawn <= part { Side::Canary } else { Side::Primary }
}

/// For a person: what decided, and what else could have happened.
pub(super) fn explain(choice: &Choice<'_>, canary: &str) -> String {
    let Rules { header, cookie, weight } = &choice.canary.rules;
    let name = header.as_ref().map_or("", |rule| rule.name.as_str());
    let to = match choice.side {
        Side::Canary => format!("to the canary {canary}"),
        Side::Primary | Side::StandIn => format!("not to the canary {canary}"),
    };
    let Weight { part, of } = weight;
    match choice.reason {
        Reason::Empty => format!("{to}: it has no endpoints"),
        Reason::Session => format!("{to}, because its session is kept where it began"),
        Reason::Header => format!("{to}, because of the header {name}"),
        Reason::UnusablePattern => format!("{to}: the pattern for the header {name} cannot be used"),
        Reason::Cookie => format!("{to}, because of the cookie {}", cookie.as_deref().unwrap_or_default()),
        Reason::Weight if *part == 0 => format!("{to}: no rule sends it there"),
        Reason::Weight if part >= of => format!("{to}: {part} of {of} requests go there"),
        Reason::Weight => format!("by chance: {part} of {of} requests go to the canary {canary}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::l7::Pattern;

    fn decided(rules: &Rules, headers: &[(&str, &str)]) -> (Side, Reason) {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        by_rules(rules, &Headers::Given(&headers), Some(&Random::new(1)))
    }

    #[test]
    fn header_comes_before_cookie_before_weight_and_what_does_not_decide_is_passed_over() {
        use HeaderValue::{AlwaysOrNever, Equal, Found, Unusable};
        let rules = |value: Option<HeaderValue>, part: u32| Rules {
            header: value.map(|value| HeaderRule { name: "X-Canary".to_owned(), value }),
            cookie: Some("pick".to_owned()),
            weight: Weight { part, of: 100 },
        };
        let equal = || Some(Equal("Blue".to_owned()));
        let found = || Some(Found(Pattern::subject("de|at").unwrap()));
        let (canary, primary) = (Side::Canary, Side::Primary);
        let always = ("Cookie", "a=b; pick=always");
        let never = ("Cookie", "pick=never");
        type Sent<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&str, Rules, Sent<'_>, (Side, Reason)); 17] = [
            ("always", rules(Some(AlwaysOrNever), 0), &[("x-canary", "always")], (canary, Reason::Header)),
            (
                "never",
                rules(Some(AlwaysOrNever), 100),
                &[("x-canary", "never"), always],
                (primary, Reason::Header),
            ),
            (
                "other word",
                rules(Some(AlwaysOrNever), 0),
                &[("x-canary", "Always"), always],
                (canary, Reason::Cookie),
            ),
            ("no header", rules(Some(AlwaysOrNever), 100), &[], (canary, Reason::Weight)),
            ("value", rules(equal(), 0), &[("X-Canary", "Blue"), never], (canary, Reason::Header)),
            ("value in another case", rules(equal(), 0), &[("X-Canary", "blue")], (primary, Reason::Weight)),
            (
                "always means nothing beside a value",
                rules(equal(), 0),
                &[("X-Canary", "always")],
                (primary, Reason::Weight),
            ),
            ("never neither", rules(equal(), 100), &[("X-Canary", "never")], (canary, Reason::Weight)),
            (
                "mismatch, then the cookie",
                rules(equal(), 0),
                &[("X-Canary", "x"), always],
                (canary, Reason::Cookie),
            ),
            (
                "pattern in the middle",
                rules(found(), 0),
                &[("X-Canary", "xx-de-xx")],
                (canary, Reason::Header),
            ),
            ("pattern in another case", rules(found(), 0), &[("X-Canary", "DE")], (primary, Reason::Weight)),
            (
                "unusable",
                rules(Some(Unusable), 100),
                &[("X-Canary", "x"), always],
                (primary, Reason::UnusablePattern),
            ),
            ("unusable, not sent", rules(Some(Unusable), 0), &[always], (canary, Reason::Cookie)),
            ("cookie never", rules(None, 100), &[never], (primary, Reason::Cookie)),
            (
                "cookie of another value",
                rules(None, 100),
                &[("Cookie", "pick=maybe")],
                (canary, Reason::Weight),
            ),
            (
                "cookie in a second line",
                rules(None, 0),
                &[("Cookie", "a=b"), always],
                (canary, Reason::Cookie),
            ),
            ("nothing", Rules::default(), &[("X-Canary", "always"), always], (primary, Reason::Weight)),
        ];
        for (case, rules, headers, expected) in cases {
            assert_eq!(decided(&rules, headers), expected, "{case}");
        }
    }

    #[test]
    fn nobody_is_drawn_at_zero_and_everybody_from_the_total_on() {
        let random = Random::new(7);
        for _ in 0..10_000 {
            for (part, of, expected) in
                [(0, 100, Side::Primary), (100, 100, Side::Canary), (150, 100, Side::Canary)]
            {
                assert_eq!(by_weight(Weight { part, of }, Some(&random)), expected, "{part} of {of}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Six standard deviations: one in a thousand million.
        #[test]
        fn the_canary_gets_its_share(seed: u64, part in 1..1000_u32, more in 0..1000_u32) {
            const DRAWS: u32 = 20_000;
            let of = (part + more).max(Weight::LEAST_TOTAL);
            let random = Random::new(seed);

            let to_canary = (0..DRAWS)
                .filter(|_| by_weight(Weight { part, of }, Some(&random)) == Side::Canary)
                .count();

            let share = f64::from(part) / f64::from(of);
            let deviation = (f64::from(DRAWS) * share * (1.0 - share)).sqrt();
            let off = (to_canary as f64 - f64::from(DRAWS) * share).abs();
            prop_assert!(off <= 6.0 * deviation + 1.0, "{to_canary} of {DRAWS} at {part}/{of}");
        }
    }
}
