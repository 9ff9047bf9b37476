//! What every response says and does not say, whatever answers (keys of the ConfigMap).

use super::policy::{FilledHeader, Header};

/// Header lines of all responses. Default: ingress-nginx's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Responses {
    /// `hsts`: `Strict-Transport-Security` over TLS, in the place of the upstream's; `None`: not ours.
    pub hsts: Option<Hsts>,
    /// `server-tokens`: responses name a server of ours.
    pub names_server: bool,
    /// `allow-backend-server-header`: the upstream's Server reaches the client.
    pub passes_server: bool,
    /// `hide-headers`: names that never reach the client from an upstream; lower case.
    pub hidden: Vec<String>,
    /// `add-headers`: take the place of the upstream's of the same names.
    pub set: Vec<Header>,
    /// Those of them that a request fills in. What comes out empty is not sent.
    pub filled: Vec<FilledHeader>,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            hsts: Some(Hsts::default()),
            names_server: false,
            passes_server: false,
            hidden: Vec::new(),
            set: Vec::new(),
            filled: Vec::new(),
        }
    }
}

/// `hsts-*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hsts {
    /// Seconds.
    pub max_age: u32,
    /// `includeSubDomains`.
    pub subdomains: bool,
    /// `preload`.
    pub preload: bool,
}

impl Default for Hsts {
    /// A year, with subdomains.
    fn default() -> Self {
        Self { max_age: 31_536_000, subdomains: true, preload: false }
    }
}
