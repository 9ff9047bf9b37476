//! Passwords as `htpasswd` and others write them.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use super::{Caught, listed};
use crate::model::ObjectName;
use crate::objects::{Key, Kind};

/// How a password is kept; what can be read by anybody or by nobody is told where it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hash {
    /// One round of a fast hash, or nearly.
    Fast,
    /// DES: eight characters count.
    Des,
    /// Another.
    Other,
}

/// Hashes that a thief of the Secret undoes in an afternoon.
pub(super) fn password_hashes(world: &World<'_>, caught: &mut Caught) {
    let mut forms: BTreeMap<ObjectName, bool> = BTreeMap::new();
    for ingress in world.primaries() {
        let Some(secret) = ingress.text("auth-secret") else { continue };
        let (namespace, name) = secret.split_once('/').unwrap_or((&ingress.name.namespace, secret));
        let is_map = ingress.text("auth-secret-type") == Some("auth-map");
        forms.insert(ObjectName::new(namespace, name), is_map);
    }
    for (name, is_map) in forms {
        let Some(sourced) = world.objects.secrets.get(&name) else { continue };
        let id = Key { kind: Kind::Secret, name: name.clone() }.id(&sourced.origin);
        let data = sourced.object.data.as_ref();
        let users: Vec<(String, Hash)> = if is_map {
            let entries = data.into_iter().flatten();
            entries.map(|(user, value)| (user.clone(), hash(&String::from_utf8_lossy(&value.0)))).collect()
        } else {
            let file = data.and_then(|data| data.get("auth")).map(|value| String::from_utf8_lossy(&value.0));
            file.iter().flat_map(|file| file.lines()).filter_map(user).collect()
        };
        let of = |wanted: Hash| -> Vec<&str> {
            let users = users.iter().filter(|(_, hash)| *hash == wanted).map(|(user, _)| user.as_str());
            users.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let field = if is_map { "data" } else { "data.auth" };
        let better = "make them anew with `htpasswd -B`";
        let users = of(Hash::Des);
        if !users.is_empty() {
            let message = format!(
                "the passwords of {} are kept by DES crypt, which looks at eight characters; it is not read here",
                listed(&users)
            );
            caught.needs_action(&id, "weak-password-hash", field, message, better);
        }
        let users = of(Hash::Fast);
        if !users.is_empty() {
            let message = format!("the passwords of {} are kept by a fast hash", listed(&users));
            caught.note(&id, "weak-password-hash", field, message, better);
        }
    }
}

/// A line of an `htpasswd` file; what follows a second colon is no part of the hash.
fn user(line: &str) -> Option<(String, Hash)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (user, rest) = line.split_once(':').unwrap_or((line, ""));
    // A password that stands there as it is may be the only one with a colon.
    let kept = rest.split(':').next().unwrap_or_default();
    Some((user.to_owned(), hash(kept)))
}

fn hash(text: &str) -> Hash {
    let text = text.trim();
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
    let is_crypt = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '/';
    if starts(&["$apr1$", "{SHA}", "{SSHA}", "$1$"]) {
        Hash::Fast
    } else if text.len() == 13 && text.chars().all(is_crypt) {
        Hash::Des
    } else {
        Hash::Other
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress, messages, passwords};
    use super::*;

    #[test]
    fn every_kind_of_hash_is_told_apart() {
        let cases = [
            ("$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", Hash::Other),
            ("$6$rounds=5000$salt$hash", Hash::Other),
            ("$apr1$salt$hash", Hash::Fast),
            ("{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=", Hash::Fast),
            ("{PLAIN}secret", Hash::Other),
            ("rl.3StKT.4T8M", Hash::Des),
            ("secret", Hash::Other),
            ("", Hash::Other),
        ];
        for (text, expected) in cases {
            assert_eq!(hash(text), expected, "{text}");
        }
    }

    #[test]
    fn users_with_weak_hashes_are_named_at_the_secret() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-type: basic
            nginx.ingress.kubernetes.io/auth-secret: users";
        let file = "# who\nann:$2y$05$abc\nbob:{PLAIN}b\ncid:$apr1$a$b:comment\n\ndan:rl.3StKT.4T8M";
        let input = format!("{}---\n{}", ingress("a", annotations), passwords("users", file));

        assert_eq!(
            messages(&input, &["weak-password-hash"]),
            [
                "the passwords of dan are kept by DES crypt, which looks at eight characters; it is not read here",
                "the passwords of cid are kept by a fast hash",
            ]
        );
    }
}
