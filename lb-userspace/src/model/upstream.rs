//! What the proxy knows of an upstream and how it deals with it: endpoints, protocol, TLS, retries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ObjectName;
use super::canary::Canary;
use super::expression::Expression;
use super::health::Check;
use super::l7::{Certificate, TlsVersions};
use super::session::Affinity;

/// `<namespace>-<service>-<port>`, ingress-nginx's name for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UpstreamName(pub String);

/// Where the requests of a Service port go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstream {
    /// Ready endpoints. Empty: 503.
    pub endpoints: BTreeSet<SocketAddr>,
    /// A name whose addresses are the endpoints, at any time (an ExternalName Service). The translation, which
    /// asks nobody, leaves them out.
    pub external: Option<External>,
    /// Parts that endpoints get of the requests, beside those that are not named here and get 1. A key's
    /// subset is drawn from evenly.
    pub weights: BTreeMap<SocketAddr, u32>,
    /// How one of them is chosen.
    pub balance: Balance,
    /// How those are treated that are new or fail.
    pub care: Care,
    /// Idle connections that each worker keeps to them (`upstream-keepalive-connections`); `None`: as many as fit
    /// into [`Keepalive::connections`], beside those of others.
    pub idle: Option<usize>,
    /// How they are asked whether they are well; `None`: nobody asks.
    pub check: Option<Arc<Check>>,
    /// How sessions are kept; it counts more than `balance`.
    pub affinity: Option<Affinity>,
    /// Who serves a part of the requests instead.
    pub canary: Option<Canary>,
}

/// Endpoints by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The Service that stands for it.
    pub service: ObjectName,
    /// Lower case; what it is short for, the resolver knows.
    pub name: String,
    /// Of every address.
    pub port: u16,
    /// Why no address is known, where somebody has asked.
    pub flaw: Option<String>,
}

/// How an endpoint is chosen for a request (`load-balance`, `upstream-hash-by*`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The better of two at random, by the time they took lately and what they have to do.
    PeakEwma,
    /// The less busy of two at random.
    LeastRequests,
    /// The same key goes to the same endpoint.
    Hash(Expression),
    /// The same key goes to the same few endpoints.
    Subset {
        /// The key.
        key: Expression,
        /// How many.
        size: usize,
    },
}

/// How endpoints are treated that are new or fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Care {
    /// How long an endpoint that comes beside others takes until it gets its full part; zero: none.
    pub slow_start: Duration,
    /// When one that fails is left alone.
    pub ejection: Ejection,
}

/// When an endpoint that fails is left alone, and for how long. A failure is an attempt without a
/// response; a status is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// After so many failures in a row; 0: never.
    pub after: u32,
    /// The first pause; each further one is twice as long,
    pub pause: Duration,
    /// but not longer than this.
    pub longest: Duration,
}

impl Default for Ejection {
    /// Five failures, 5 seconds, up to a minute.
    fn default() -> Self {
        Self { after: 5, pause: Duration::from_secs(5), longest: Duration::from_secs(60) }
    }
}

/// How long connections to endpoints are kept between requests, by each worker (`upstream-keepalive-*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle connections to all endpoints together, but those of upstreams with a number of their own; the
    /// one that idles longest makes room. As many again that speak HTTP/2.
    pub connections: usize,
    /// Requests that one carries.
    pub requests: u32,
    /// How long one may idle.
    pub idle: Duration,
    /// How old one may get.
    pub age: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            connections: 320,
            requests: 10_000,
            idle: Duration::from_secs(60),
            age: Duration::from_secs(3600),
        }
    }
}

/// What an upstream speaks (`backend-protocol`). It belongs to the location: the same upstream may be asked in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/1.1, over TLS where the client came by TLS.
    AutoHttp,
    /// HTTP/2 with prior knowledge.
    Grpc,
    /// HTTP/2 over TLS.
    Grpcs,
    /// FastCGI.
    FastCgi,
}

/// TLS towards an upstream (`proxy-ssl-*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Our certificate, if the upstream asks for one.
    pub identity: Option<Arc<Certificate>>,
    /// `None`: any certificate will do, as with nginx.
    pub verify: Option<Verify>,
    /// SNI; `None` sends none.
    pub server_name: Option<String>,
    /// Versions offered.
    pub versions: TlsVersions,
}

impl UpstreamTls {
    /// Tells what its `Debug` does not.
    pub fn hidden(&self, tell: &mut dyn FnMut(&[u8])) {
        if let Some(identity) = &self.identity {
            identity.hidden(tell);
        }
        if let Some(verify) = &self.verify {
            tell(&verify.roots_pem);
        }
    }
}

impl Default for UpstreamTls {
    /// Without `proxy-ssl-secret`: encrypted and unverified.
    fn default() -> Self {
        Self { identity: None, verify: None, server_name: None, versions: TlsVersions::Both }
    }
}

/// What the upstream's certificate must be.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Verify {
    /// Certificates of authorities, PEM.
    pub roots_pem: Vec<u8>,
    /// Name the certificate must be good for: a DNS name or an address.
    pub name: String,
    /// Most certificates between its own and an authority's.
    pub depth: u32,
}

impl fmt::Debug for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify").field("name", &self.name).field("depth", &self.depth).finish_non_exhaustive()
    }
}

/// When a request goes to another endpoint (`proxy-next-upstream*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// After what.
    pub on: Conditions,
    /// Attempts in total; 0: no limit but the proxy's own.
    pub tries: u32,
    /// No further attempt begins later than this after the first; zero: no limit.
    pub within: Duration,
}

impl Default for Retry {
    /// ingress-nginx's: error and timeout, three attempts.
    fn default() -> Self {
        let on = Conditions::default().with(Condition::Error).with(Condition::Timeout);
        Self { on, tries: 3, within: Duration::ZERO }
    }
}

/// What may lead to another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Condition {
    /// Refused, reset, or closed without a response.
    Error = 1,
    /// No connection or no response in time.
    Timeout = 1 << 1,
    /// A response that is none, or whose head is too large.
    InvalidHeader = 1 << 2,
    /// Status 500.
    Http500 = 1 << 3,
    /// Status 502.
    Http502 = 1 << 4,
    /// Status 503.
    Http503 = 1 << 5,
    /// Status 504.
    Http504 = 1 << 6,
    /// Status 403.
    Http403 = 1 << 7,
    /// Status 404.
    Http404 = 1 << 8,
    /// Status 429.
    Http429 = 1 << 9,
    /// Any of these even for a POST, LOCK or PATCH that was sent.
    NonIdempotent = 1 << 10,
}

impl Condition {
    /// Every one, in the order of [`Self::WORDS`].
    const ALL: [Self; 11] = [
        Self::Error,
        Self::Timeout,
        Self::InvalidHeader,
        Self::Http500,
        Self::Http502,
        Self::Http503,
        Self::Http504,
        Self::Http403,
        Self::Http404,
        Self::Http429,
        Self::NonIdempotent,
    ];

    /// What `proxy-next-upstream` may hold.
    pub const WORDS: [&str; 12] = [
        "error",
        "timeout",
        "invalid_header",
        "http_500",
        "http_502",
        "http_503",
        "http_504",
        "http_403",
        "http_404",
        "http_429",
        "non_idempotent",
        "off",
    ];

    /// The condition that a status of an upstream fulfils.
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            403 => Some(Self::Http403),
            404 => Some(Self::Http404),
            429 => Some(Self::Http429),
            500 => Some(Self::Http500),
            502 => Some(Self::Http502),
            503 => Some(Self::Http503),
            504 => Some(Self::Http504),
            _ => None,
        }
    }
}

/// A set of [`Condition`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions(u16);

impl Conditions {
    /// The same and one more.
    #[must_use]
    pub fn with(self, condition: Condition) -> Self {
        Self(self.0 | condition as u16)
    }

    /// What nginx reads from a list of [`Condition::WORDS`]; `off` switches all off.
    pub fn parse(text: &str) -> Option<Self> {
        let mut conditions = Self::default();
        for word in text.split_ascii_whitespace() {
            let at = Condition::WORDS.iter().position(|known| *known == word)?;
            match Condition::ALL.get(at) {
                Some(condition) => conditions = conditions.with(*condition),
                None => return Some(Self::default()),
            }
        }
        Some(conditions)
    }

    /// Whether there may be another attempt although an endpoint has had all of the request, and answered.
    pub fn judges_answers(self) -> bool {
        let only_failures =
            Condition::Error as u16 | Condition::Timeout as u16 | Condition::InvalidHeader as u16;
        self.0 & !only_failures != 0
    }

    /// Whether it holds this one.
    pub fn has(self, condition: Condition) -> bool {
        self.0 & condition as u16 != 0
    }
}

impl fmt::Display for Conditions {
    /// As nginx writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = Condition::ALL
            .iter()
            .zip(Condition::WORDS)
            .filter(|(one, _)| self.has(**one))
            .map(|(_, word)| word)
            .collect();
        f.write_str(if words.is_empty() { "off".to_owned() } else { words.join(" ") }.as_str())
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conditions({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_written_as_nginx_does() {
        let cases = [
            ("error timeout", Some("error timeout")),
            ("non_idempotent  http_503", Some("http_503 non_idempotent")),
            ("off", Some("off")),
            ("error off", Some("off")),
            ("http_599", None),
        ];
        for (text, expected) in cases {
            let read = Conditions::parse(text).map(|conditions| conditions.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
        assert_eq!(Conditions::parse("error timeout"), Some(Retry::default().on));
    }
}
