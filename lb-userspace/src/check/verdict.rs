//! What becomes of an object when it moves here from ingress-nginx, and which finding means what.

use serde::Serialize;

use crate::model::{Problem, Severity};

/// What becomes of an object, or of a part of it; the later the more it takes to put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Does what it does with ingress-nginx; a finding of this kind is a note.
    Identical,
    /// As if it were not written.
    Ignored,
    /// Works, but not quite as with ingress-nginx.
    Differs,
    /// Works only in part, or not as its author means, until somebody acts.
    NeedsAction,
    /// Does not work: its paths answer 503, or this version of it does not enter.
    Refused,
}

/// Reasons of problems that mean "as if it were not written".
const IGNORED: [&str; 32] = [
    "bad-annotation",
    "bad-flow-memory",
    "bad-forwarding-mode",
    "bad-value",
    "bad-weight",
    "canary-conflict",
    "canary-is-primary",
    "canary-without-primary",
    "catch-all-disabled",
    "external-ips-off",
    "fqdn-slice",
    "host-setting-conflict",
    "ignored-on-canary",
    "ignored-snippet",
    "kind-not-read",
    "l2-node-port",
    "no-effect",
    "not-yet",
    "other-class",
    "other-load-balancer-class",
    "other-service-proxy",
    "path-conflict",
    "port-not-served",
    "removed-annotation",
    "removed-key",
    "resource-backend",
    "slice-without-service",
    "tls-host-without-rule",
    "unknown-annotation",
    "unknown-field",
    "unknown-key",
    "unsupported-protocol",
];

/// Reasons of warnings about what ingress-nginx does alike: nothing changes by moving.
const ALIKE: [&str; 10] = [
    "alias-of-all",
    "exact-in-regex-host",
    "forgeable-log",
    "host-without-tls",
    "missing-path-type",
    "pattern-as-cookie-path",
    "regex-host",
    "regex-without-use-regex",
    "relative-rewrite-target",
    "upstream-setting-conflict",
];

/// Reasons of what works in another way here.
const DIFFERS: [&str; 10] = [
    "limited",
    "mode-does-not-fit",
    "no-cipher",
    "new-effect",
    "old-protocol",
    "snippets-never-run",
    "unknown-cipher",
    "unknown-curve",
    "unknown-variable",
    "without-firewall",
];

impl Verdict {
    /// From the worst to the best, as a report is read.
    pub const WORST_FIRST: [Self; 5] =
        [Self::Refused, Self::NeedsAction, Self::Differs, Self::Ignored, Self::Identical];

    /// What a problem means for the object that holds it.
    pub fn of(problem: &Problem) -> Self {
        match problem.severity {
            Severity::Error => Self::Refused,
            _ if IGNORED.contains(&problem.reason) => Self::Ignored,
            _ if DIFFERS.contains(&problem.reason) => Self::Differs,
            _ if ALIKE.contains(&problem.reason) => Self::Identical,
            Severity::Warning => Self::NeedsAction,
            Severity::Info => Self::Identical,
        }
    }

    /// As a person reads it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Ignored => "ignored",
            Self::Differs => "differs",
            Self::NeedsAction => "needs action",
            Self::Refused => "refused",
        }
    }

    /// What it means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Identical => "does what it does with ingress-nginx",
            Self::Ignored => "as if it were not there",
            Self::Differs => "works, but not quite as with ingress-nginx",
            Self::NeedsAction => "somebody has to put something right",
            Self::Refused => "does not work: its paths answer 503, or it does not enter at all",
        }
    }

    /// One character in front of a line.
    pub fn symbol(self) -> char {
        match self {
            Self::Identical => '✓',
            Self::Ignored => '-',
            Self::Differs => '~',
            Self::NeedsAction => '!',
            Self::Refused => '✗',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectId;

    #[test]
    fn an_error_is_refused_whatever_its_reason_and_a_warning_wants_somebody_to_act() {
        let cases = [
            (Severity::Error, "bad-annotation", Verdict::Refused),
            (Severity::Warning, "bad-annotation", Verdict::Ignored),
            (Severity::Warning, "regex-host", Verdict::Identical),
            (Severity::Info, "unknown-cipher", Verdict::Differs),
            (Severity::Warning, "something-new", Verdict::NeedsAction),
            (Severity::Warning, "missing-class", Verdict::NeedsAction),
            (Severity::Info, "something-new", Verdict::Identical),
        ];
        for (severity, reason, expected) in cases {
            let problem = Problem {
                object: ObjectId::default(),
                severity,
                reason,
                field: String::new(),
                message: String::new(),
                fix: String::new(),
            };

            assert_eq!(Verdict::of(&problem), expected, "{severity} {reason}");
        }
    }

    #[test]
    fn a_reason_has_one_meaning() {
        let mut all = [&IGNORED[..], &ALIKE, &DIFFERS].concat();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
