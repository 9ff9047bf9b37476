//! Certificates that are over, or nearly.

use super::Caught;
use super::world::World;
use crate::model::ObjectName;
use crate::objects::{Key, Kind};

const DAY: i64 = 86_400;
/// Long enough to renew by hand; what renews by itself does so earlier.
const SOON: i64 = 14;

/// A certificate that clients refuse, or will within two weeks.
pub(super) fn expiry(world: &World<'_>, caught: &mut Caught) {
    let l7 = &world.snapshot.l7;
    let mut served: Vec<(&ObjectName, i64)> = l7
        .certificates
        .values()
        .chain(l7.default_certificate.as_deref())
        .map(|c| (&c.secret, c.not_after))
        .collect();
    served.sort();
    served.dedup();
    for (secret, not_after) in served {
        let left = not_after - world.now;
        if left >= SOON * DAY {
            continue;
        }
        let Some(sourced) = world.objects.secrets.get(secret) else { continue };
        let id = Key { kind: Kind::Secret, name: secret.clone() }.id(&sourced.origin);
        let fix = "renew it";
        match left {
            ..0 => {
                let message = format!("the certificate is over since {}", days(-left));
                caught.needs_action(&id, "expired-certificate", "data.tls.crt", message, fix);
            }
            _ => {
                let message = format!("the certificate is over in {}", days(left));
                caught.note(&id, "certificate-expires", "data.tls.crt", message, fix);
            }
        }
    }
}

fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
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
