//! Passwords as `htpasswd` and others write them.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use super::{Caught, listed};
use crate::model::ObjectName;
use crate::model::l7::policy::Password;
use crate::objects::{Key, Kind};
use crate::translate::{PasswordForm, read_passwords};

/// Hashes that a thief of the Secret undoes in an afternoon. What everybody can read, or nobody, is told where
/// the Secret is used.
pub(super) fn password_hashes(world: &World<'_>, caught: &mut Caught) {
    let mut forms: BTreeMap<ObjectName, PasswordForm> = BTreeMap::new();
    for ingress in world.primaries() {
        let Some(secret) = ingress.text("auth-secret") else { continue };
        let (namespace, name) = secret.split_once('/').unwrap_or((&ingress.name.namespace, secret));
        let form = match ingress.text("auth-secret-type") {
            Some("auth-map") => PasswordForm::Map,
            _ => PasswordForm::File,
        };
        forms.insert(ObjectName::new(namespace, name), form);
    }
    for (name, form) in forms {
        let Some(sourced) = world.objects.secrets.get(&name) else { continue };
        let Some(read) = read_passwords(&sourced.object, form) else { continue };
        let fast = read.users.0.iter().filter(|(_, password)| is_fast(password));
        let users: BTreeSet<_> = fast.map(|(user, _)| String::from_utf8_lossy(user)).collect();
        if !users.is_empty() {
            let id = Key { kind: Kind::Secret, name }.id(&sourced.origin);
            let field = if form == PasswordForm::Map { "data" } else { "data.auth" };
            let users: Vec<_> = users.into_iter().collect();
            let message = format!("the passwords of {} are kept by a fast hash", listed(&users));
            caught.note(&id, "weak-password-hash", field, message, "make them anew with `htpasswd -B`");
        }
    }
}

/// One round of a fast hash, or nearly.
fn is_fast(password: &Password) -> bool {
    match password {
        Password::Md5 { .. } | Password::Sha1 { .. } => true,
        Password::Bcrypt(_) | Password::ShaCrypt(_) => false,
        Password::Des(_) | Password::Plain(_) | Password::Unusable => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress, messages, passwords, reported};

    #[test]
    fn users_with_fast_hashes_are_named_at_the_secret_and_others_where_it_is_used() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-type: basic
            nginx.ingress.kubernetes.io/auth-secret: users";
        let file = "# who\nann:$2y$05$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRYq\nbob:{PLAIN}b\n\
                    cid:$apr1$0DB6fZ3q$AkluBSoeMvHzx2AI5tEwh1:comment\nsue:{SHA}X9zPCbMFzMPlYX7+7QubnxKI7iM=\n\n\
                    dan:abMW7w36NW/Bk";
        let input = format!("{}---\n{}", ingress("a", annotations), passwords("users", file));

        assert_eq!(
            messages(&input, &["weak-password-hash"]),
            ["the passwords of cid, sue are kept by a fast hash"]
        );
        assert_eq!(
            messages(&input, &["weak-password"]),
            ["whoever reads Secret default/users has, or soon finds, the password of bob, dan"]
        );
    }

    #[test]
    fn a_secret_is_not_called_missing_where_no_secret_could_be_seen() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-type: basic
            nginx.ingress.kubernetes.io/auth-secret: users";
        let alone = ingress("a", annotations);
        let with_another = format!("{alone}---\n{}", passwords("others", "a:b"));
        let reasons = ["missing-secret", "closed-from-elsewhere"];

        assert_eq!(
            reported(&alone, &reasons),
            ["Ingress default/a needs action: auth-secret [missing-secret]"]
        );
        assert_eq!(
            reported(&with_another, &reasons),
            ["Ingress default/a refused: auth-secret [missing-secret]"]
        );
    }
}
