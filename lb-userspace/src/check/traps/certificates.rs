//! Certificates that clients refuse, or will soon.

use super::Caught;
use super::world::World;
use crate::model::Severity;
use crate::objects::{Key, Kind};

/// What is wrong with those that are served.
pub(super) fn flaws(world: &World<'_>, caught: &mut Caught) {
    for certificate in world.snapshot.l7.certificates_by_secret().values() {
        let secret = &certificate.secret;
        let Some(sourced) = world.objects.secrets.get(secret) else { continue };
        let id = Key { kind: Kind::Secret, name: secret.clone() }.id(&sourced.origin);
        for flaw in certificate.flaws(world.now) {
            let field = "data.tls.crt";
            match flaw.severity {
                Severity::Error => caught.needs_action(&id, flaw.reason, field, flaw.message, flaw.fix),
                Severity::Warning | Severity::Info => {
                    caught.note(&id, flaw.reason, field, flaw.message, flaw.fix);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{NOW, messages, secret, tls_ingress};

    #[test]
    fn an_expired_certificate_needs_action_and_one_that_ends_soon_is_noted() {
        let cases = [
            (NOW - 86_400 * 3, Some("the certificate is over since 3 days")),
            (NOW + 86_400 * 5 + 60, Some("the certificate is over in 5 days")),
            (NOW + 86_400 * 30, None),
        ];
        for (not_after, expected) in cases {
            let input = format!(
                "{}---\n{}",
                tls_ingress("a.example.com", "crt"),
                secret("crt", "a.example.com", not_after)
            );

            let found = messages(&input, &["expired-certificate", "certificate-expires"]);

            assert_eq!(found.first().map(String::as_str), expected);
        }
    }
}
