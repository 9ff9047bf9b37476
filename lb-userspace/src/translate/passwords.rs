//! Users and passwords of a Secret (`auth-secret`), read once: how a password is kept is known from then on.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;

use crate::model::l7::policy::{Password, Users};

/// A bcrypt hash of this cost takes seconds; more is a mistake or an attack.
const COST_MAX: u32 = 16;
/// The same for the rounds of `$5$` and `$6$`.
const ROUNDS: std::ops::RangeInclusive<u32> = 1_000..=1_000_000;

/// `auth-secret-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An htpasswd file under the key `auth`.
    File,
    /// A key for each user.
    Map,
}

/// Users, and what is to be said about them.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// In the order of their names.
    pub users: Users,
    /// Kept as no password should be.
    pub weak: Vec<String>,
    /// They cannot log in.
    pub unusable: Vec<String>,
}

/// Reads a Secret; `None` if the key is missing.
pub fn read(secret: &Secret, form: Form) -> Option<Read> {
    let data = secret.data.as_ref();
    let mut read = Read { users: Users::default(), weak: Vec::new(), unusable: Vec::new() };
    match form {
        Form::File => {
            let file = data.and_then(|data| data.get("auth"))?;
            for line in file.0.split(|byte| *byte == b'\n') {
                let mut parts = line.strip_suffix(b"\r").unwrap_or(line).splitn(3, |byte| *byte == b':');
                if let (Some(user), Some(text)) = (parts.next(), parts.next())
                    && !user.is_empty()
                    && !user.starts_with(b"#")
                {
                    read.add(user, text);
                }
            }
        }
        Form::Map => {
            for (user, text) in data.into_iter().flatten() {
                read.add(user.as_bytes(), text.0.trim_ascii());
            }
        }
    }
    Some(read)
}

impl Read {
    /// The first line of a user counts.
    fn add(&mut self, user: &[u8], text: &[u8]) {
        if self.users.0.contains_key(user) {
            return;
        }
        let password = password(text);
        let name = || String::from_utf8_lossy(user).into_owned();
        match password {
            Password::Plain(_) | Password::Des(_) => self.weak.push(name()),
            Password::Unusable => self.unusable.push(name()),
            _ => {}
        }
        self.users.0.insert(user.to_vec(), password);
    }
}

/// What cannot be read is nobody's password.
fn password(bytes: &[u8]) -> Password {
    let Ok(text) = std::str::from_utf8(bytes) else { return Password::Unusable };
    md5(text, "$apr1$")
        .or_else(|| md5(text, "$1$"))
        .or_else(|| bcrypt(text))
        .or_else(|| sha_crypt(text))
        .or_else(|| sha1(text))
        .or_else(|| text.strip_prefix("{PLAIN}").map(|plain| Password::Plain(plain.as_bytes().to_vec())))
        .or_else(|| is_crypt_text(text).then(|| text.as_bytes().try_into().ok().map(Password::Des))?)
        .unwrap_or(Password::Unusable)
}

fn md5(text: &str, magic: &'static str) -> Option<Password> {
    let (salt, hash) = text.strip_prefix(magic)?.split_once('$')?;
    if hash.len() != 22 || !is_crypt_text(hash) {
        return None;
    }
    let salt = salt.chars().take(8).collect();
    Some(Password::Md5 { magic, salt, hash: hash.to_owned() })
}

fn bcrypt(text: &str) -> Option<Password> {
    let rest = ["$2a$", "$2b$", "$2y$"].into_iter().find_map(|magic| text.strip_prefix(magic))?;
    let (cost, rest) = rest.split_once('$')?;
    let is_fit = cost.len() == 2 && cost.parse::<u32>().is_ok_and(|cost| (4..=COST_MAX).contains(&cost));
    (is_fit && rest.len() == 53 && is_crypt_text(rest)).then(|| Password::Bcrypt(text.to_owned()))
}

fn sha_crypt(text: &str) -> Option<Password> {
    let (rest, length) = match (text.strip_prefix("$5$"), text.strip_prefix("$6$")) {
        (Some(rest), _) => (rest, 43),
        (_, Some(rest)) => (rest, 86),
        (None, None) => return None,
    };
    let rest = match rest.strip_prefix("rounds=") {
        Some(rest) => {
            let (rounds, rest) = rest.split_once('$')?;
            rounds.parse().ok().filter(|rounds| ROUNDS.contains(rounds))?;
            rest
        }
        None => rest,
    };
    let (_, hash) = rest.split_once('$')?;
    (hash.len() == length && is_crypt_text(hash)).then(|| Password::ShaCrypt(text.to_owned()))
}

fn sha1(text: &str) -> Option<Password> {
    let (encoded, is_salted) = match (text.strip_prefix("{SHA}"), text.strip_prefix("{SSHA}")) {
        (Some(encoded), _) => (encoded, false),
        (_, Some(encoded)) => (encoded, true),
        (None, None) => return None,
    };
    let bytes = STANDARD.decode(encoded).ok()?;
    let (digest, salt) = bytes.split_first_chunk::<20>()?;
    (is_salted || salt.is_empty()).then(|| Password::Sha1 { digest: *digest, salt: salt.to_vec() })
}

/// The alphabet of crypt(3).
fn is_crypt_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let entries =
            entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(entries.collect::<BTreeMap<_, _>>()), ..Secret::default() }
    }

    #[test]
    fn a_password_is_known_by_how_it_is_written_and_else_nobodys() {
        let cases = [
            ("$2y$05$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRYq", "bcrypt"),
            ("$2y$17$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRYq", "unusable"),
            ("$2y$05$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRY", "unusable"),
            ("$apr1$0DB6fZ3q$AkluBSoeMvHzx2AI5tEwh1", "md5"),
            ("$1$12345678$pJ99NihqXTXlUCG0LsoQc.", "md5"),
            ("$apr1$0DB6fZ3q$AkluBSoeMvHzx2AI5tEw", "unusable"),
            ("$5$RcCN2hWzVyWiiWFv$juklfwQmaCL4VlBBvw.t4lQ18tZnks7SDKrZzwDZ.A3", "sha-crypt"),
            ("$5$rounds=1234$abcdefgh$ZT4ER10Ay4RGhjQhuPPH6iIao5tBOGW6GFbckGq7Nq0", "sha-crypt"),
            ("$5$rounds=9000000$abcdefgh$ZT4ER10Ay4RGhjQhuPPH6iIao5tBOGW6GFbckGq7Nq0", "unusable"),
            ("{SHA}X9zPCbMFzMPlYX7+7QubnxKI7iM=", "sha1"),
            ("{SSHA}KuUE4mhZJO5GKzc0XC1w2djLNUZzYWx0MTIzNA==", "sha1"),
            ("{SHA}KuUE4mhZJO5GKzc0XC1w2djLNUZzYWx0MTIzNA==", "unusable"),
            ("{PLAIN}secret", "plain"),
            ("abMW7w36NW/Bk", "des"),
            ("abMW7w36NW/B", "unusable"),
            ("secret", "unusable"),
            ("", "unusable"),
        ];
        for (text, expected) in cases {
            assert_eq!(password(text.as_bytes()).kind(), expected, "{text}");
        }
    }

    #[test]
    fn a_file_holds_a_user_a_line_and_the_first_line_of_a_user_counts() {
        let file = "# who\nann:{PLAIN}a:Ann Other\r\nbob:{PLAIN}b\nann:{PLAIN}c\n:{PLAIN}d\nnobody\neve:x";

        let read = read(&secret(&[("auth", file)]), Form::File).expect("read");

        let users: Vec<_> = read.users.0.iter().collect();
        assert_eq!(
            users,
            [
                (&b"ann".to_vec(), &Password::Plain(b"a".to_vec())),
                (&b"bob".to_vec(), &Password::Plain(b"b".to_vec())),
                (&b"eve".to_vec(), &Password::Unusable),
            ]
        );
        assert_eq!(
            (read.weak, read.unusable),
            (vec!["ann".to_owned(), "bob".to_owned()], vec!["eve".to_owned()])
        );
    }

    #[test]
    fn a_map_holds_a_user_a_key_and_a_file_needs_its_key() {
        let map = secret(&[("ann", "{PLAIN}a\n"), ("bob", "{PLAIN}b")]);

        let users = read(&map, Form::Map).expect("read").users;

        assert_eq!(users.0.get(&b"ann"[..]), Some(&Password::Plain(b"a".to_vec())));
        assert_eq!(users.0.len(), 2);
        assert_eq!(read(&map, Form::File), None);
    }
}
