//! Who may enter, by what a client shows of itself.

use std::collections::BTreeMap;
use std::fmt;

use super::External;

/// What has to be shown, beside an address (`auth-*`, `satisfy`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// How many of the checks have to be passed, that of the address among them.
    pub satisfy: Satisfy,
    /// A password.
    pub basic: Option<Basic>,
    /// Whatever another service wants to see.
    pub external: Option<External>,
}

/// `satisfy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Satisfy {
    /// Each of them.
    #[default]
    All,
    /// One of them.
    Any,
}

/// `auth-type: basic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basic {
    /// `auth-realm`: what the user is told; neither quotes nor line breaks.
    pub realm: String,
    /// Who may enter.
    pub users: Users,
}

/// Users and their passwords.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Users(pub BTreeMap<Vec<u8>, Password>);

impl Users {
    /// Tells what their `Debug` does not.
    pub fn hidden(&self, tell: &mut dyn FnMut(&[u8])) {
        for (user, password) in &self.0 {
            tell(user);
            tell(password.kind().as_bytes());
            tell(password.text().as_bytes());
            match password {
                Password::Sha1 { digest, salt } => {
                    tell(digest);
                    tell(salt);
                }
                Password::Plain(text) => tell(text),
                _ => {}
            }
        }
    }
}

impl fmt::Debug for Users {
    /// Passwords never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.0.len())
    }
}

/// A password as a Secret keeps it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// bcrypt: `$2a$`, `$2b$`, `$2y$`.
    Bcrypt(String),
    /// 1,000 rounds of MD5: `$apr1$`, `$1$`.
    Md5 {
        /// What it starts with.
        magic: &'static str,
        /// Eight characters at most.
        salt: String,
        /// 22 characters.
        hash: String,
    },
    /// SHA-256 or SHA-512, many rounds: `$5$`, `$6$`.
    ShaCrypt(String),
    /// One round of SHA-1: `{SHA}`, and with salt `{SSHA}`.
    Sha1 {
        /// Of password and salt.
        digest: [u8; 20],
        /// May be empty.
        salt: Vec<u8>,
    },
    /// The oldest crypt(3): the first eight characters, by DES.
    Des([u8; 13]),
    /// As it is: `{PLAIN}`.
    Plain(Vec<u8>),
    /// Nobody's.
    Unusable,
}

impl Password {
    /// What tells it from others that take long to check.
    pub fn text(&self) -> String {
        match self {
            Self::Bcrypt(text) | Self::ShaCrypt(text) => text.clone(),
            Self::Md5 { magic, salt, hash } => format!("{magic}{salt}${hash}"),
            Self::Des(text) => String::from_utf8_lossy(text).into_owned(),
            Self::Sha1 { .. } | Self::Plain(_) | Self::Unusable => String::new(),
        }
    }

    /// A word for the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bcrypt(_) => "bcrypt",
            Self::Md5 { .. } => "md5",
            Self::ShaCrypt(_) => "sha-crypt",
            Self::Sha1 { .. } => "sha1",
            Self::Des(_) => "des",
            Self::Plain(_) => "plain",
            Self::Unusable => "unusable",
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}
