//! Clients that a cookie leads back to their endpoint (`affinity`, `session-cookie-*`).

use std::collections::BTreeSet;

/// How the sessions of an upstream are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// What the cookie holds.
    pub mode: Mode,
    /// How the cookie is written.
    pub cookie: SessionCookie,
    /// What becomes of a session whose endpoint fails.
    pub on_failure: OnFailure,
    /// Where the cookie is handed out: host, as `HostMatch` writes it, and path as its Ingress does.
    /// Elsewhere one that was handed out still counts.
    pub places: BTreeSet<(String, String)>,
}

/// What leads from a cookie to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A consistent hash of it: endpoints that come take some sessions over.
    #[default]
    Balanced,
    /// The endpoint itself, disguised: a session stays as long as it does.
    Persistent,
}

/// What becomes of a session whose endpoint fails (`session-cookie-change-on-failure`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// It stays, and its requests fail.
    #[default]
    Stay,
    /// It gets another one.
    Move,
}

/// A cookie, but for its value. No part can end its line or an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCookie {
    /// A token.
    pub name: String,
    /// `None`: that of the location.
    pub path: Option<String>,
    /// `None`: the host alone.
    pub domain: Option<String>,
    /// Seconds from now to `Expires`.
    pub expires: Option<i64>,
    /// `Max-Age`, in seconds.
    pub max_age: Option<i64>,
    /// `Secure`.
    pub secure: Secure,
    /// `SameSite`; `None`: the attribute is left out.
    pub same_site: Option<SameSite>,
}

impl Default for SessionCookie {
    /// ingress-nginx's.
    fn default() -> Self {
        Self {
            name: "INGRESSCOOKIE".to_owned(),
            path: None,
            domain: None,
            expires: None,
            max_age: None,
            secure: Secure::OverTls,
            same_site: None,
        }
    }
}

/// When a cookie is for TLS only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Secure {
    /// If the client came by TLS.
    #[default]
    OverTls,
    /// Always.
    Always,
}

/// Which sites' requests carry the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// Its own.
    Strict,
    /// Its own, and whoever follows a link.
    Lax,
    /// All.
    None,
    /// All; not said to browsers known to take it for something else.
    NoneIfUnderstood,
}
