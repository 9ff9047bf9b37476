//! What clients hold against a certificate, or will before long.

use super::{Certificate, Chain};
use crate::model::Severity;

const DAY: i64 = 86_400;
/// Long enough to renew by hand; what renews by itself does so earlier.
const SOON: i64 = 14 * DAY;

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// How bad it is.
    pub severity: Severity,
    /// For metrics and filters.
    pub reason: &'static str,
    /// What it is.
    pub message: String,
    /// What to do about it.
    pub fix: &'static str,
}

impl Certificate {
    /// Its flaws at this time, in seconds since the epoch.
    pub fn flaws(&self, now: i64) -> Vec<Flaw> {
        let flaw = |severity, reason, message, fix| Flaw { severity, reason, message, fix };
        let (begins, left) = (self.leaf.not_before - now, self.not_after - now);
        // One that lives for a few days is not renewed two weeks before its end.
        let soon = SOON.min((self.not_after - self.leaf.not_before) / 4);
        let mut flaws = Vec::new();
        if left < 0 {
            let message = format!("the certificate is over since {}", days(-left));
            flaws.push(flaw(Severity::Error, "expired-certificate", message, "renew it"));
        } else if begins > 0 {
            let message =
                format!("the certificate is valid in {} only; clients refuse it till then", days(begins));
            let fix = "look at the clock of this host; else have it issued anew";
            flaws.push(flaw(Severity::Error, "certificate-not-yet-valid", message, fix));
        } else if left < soon {
            let message = format!("the certificate is over in {}", days(left));
            flaws.push(flaw(Severity::Warning, "certificate-expires", message, "renew it"));
        }
        let severity = match self.leaf.chain {
            Chain::Whole => return flaws,
            Chain::Alone => Severity::Info,
            Chain::Broken => Severity::Warning,
        };
        let issuer = &self.leaf.issuer;
        let message = format!(
            "tls.crt lacks the certificate of its issuer, {issuer}: clients that do not know it refuse it"
        );
        let fix = "append the certificates of the issuers to tls.crt, unless the issuer is a root that clients have";
        flaws.push(flaw(severity, "incomplete-chain", message, fix));
        flaws
    }
}

/// So many seconds for people.
pub fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Leaf;
    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn a_certificate_is_judged_by_the_time() {
        let cases = [
            ("in its time", -100, 100, None),
            ("over", -100, -1, Some("expired-certificate")),
            ("over soon", -100, 13, Some("certificate-expires")),
            ("one of a few days, in its time", -3, 4, None),
            ("the same, nearly over", -6, 1, Some("certificate-expires")),
            ("not yet", 5, 100, Some("certificate-not-yet-valid")),
        ];
        for (case, begins, ends, expected) in cases {
            let certificate = Certificate {
                secret: ObjectName::new("default", "tls"),
                chain_pem: Vec::new(),
                key_pem: Vec::new(),
                not_after: ends * DAY,
                leaf: Leaf { not_before: begins * DAY, ..Leaf::default() },
            };

            let flaws = certificate.flaws(0);

            assert_eq!(flaws.first().map(|flaw| flaw.reason), expected, "{case}");
            assert!(flaws.len() < 2, "{case}");
        }
    }
}
