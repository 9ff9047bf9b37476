//! L7 desired state: hosts, locations, upstreams and certificates as the proxy serves them.
//!
//! Strings a user wrote appear here only as values to compare or copy, as a compiled
//! [`Template`] or as a compiled, linear-time [`Pattern`].

mod blocked;
mod buffers;
mod compression;
mod edge;
pub mod fastcgi;
mod flaws;
pub mod forwarding;
mod hosts;
pub mod log;
mod pattern;
pub mod policy;
mod redirects;
mod responses;
mod streams;
mod traces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::expression::Variable;
pub use super::upstream::{Keepalive, Protocol, Retry, Upstream, UpstreamName, UpstreamTls};
use super::{ObjectName, Shared};

pub use blocked::{Blocked, Listed};
pub use buffers::{Buffers, Rate, ReadAhead};
pub use compression::{Compression, Packing};
pub use edge::{
    Cipher, CipherOrder, Ciphers, ClientAuth, ClientLimits, Demand, Edge, Group, ProxyProtocol, Resumption,
    SharedTicketKey, TlsPolicy, TlsVersions, Trust, UnknownName, VerifyClient,
};
pub use fastcgi::FastCgi;
pub use flaws::{Flaw, days};
pub use forwarding::Forwarding;
pub use hosts::{Aliases, Moved};
pub use log::AccessLog;
pub use pattern::{BadPattern, Pattern};
pub use policy::Policies;
pub use redirects::RedirectStyle;
pub use responses::{Hsts, Responses};
pub use streams::{Preamble, Stream, StreamTerms, Streams};
pub use traces::{Choice, Collector, Sampler, Traced};

/// Everything the proxy has to serve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct L7 {
    /// Virtual servers by the host they answer for.
    pub servers: Shared<HostMatch, Server>,
    /// Further names of some of them.
    pub aliases: Aliases,
    /// Where each upstream's requests can go, by name (`<namespace>-<service>-<port>`).
    pub upstreams: Shared<UpstreamName, Upstream>,
    /// Upstream for requests no location takes (`--default-backend-service`). `None`, or without
    /// endpoints: the built-in 404.
    pub default_backend: Option<UpstreamName>,
    /// Certificates by SNI name; a host without one gets `default_certificate`.
    pub certificates: Shared<HostMatch, Certificate>,
    /// `--default-ssl-certificate`; `None`: the proxy serves the one it generated at start.
    pub default_certificate: Option<Arc<Certificate>>,
    /// How clients are received.
    pub edge: Edge,
    /// Hosts whose TLS is handed to an upstream unopened (`ssl-passthrough`), by SNI; lower case.
    pub passthrough: Shared<String, UpstreamName>,
    /// Ports beside http and https.
    pub streams: Arc<Streams>,
    /// `None`: requests are not logged.
    pub log: Option<Arc<AccessLog>>,
    /// Connections to endpoints between requests.
    pub keepalive: Keepalive,
    /// What every response says.
    pub responses: Responses,
    /// Who is turned away everywhere; `None`: nobody.
    pub blocked: Option<Arc<Blocked>>,
    /// Which responses are compressed; `None`: none.
    pub compression: Option<Arc<Compression>>,
    /// Who takes spans of traced requests; `None`: nobody.
    pub collector: Option<Arc<Collector>>,
}

/// Which Host header (or SNI) a server answers for. Lower case, no port, no trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostMatch {
    /// Exactly this name.
    Exact(String),
    /// `*.` + this suffix, one label deep: `Wildcard("example.com")` takes `a.example.com`, not
    /// `a.b.example.com`.
    Wildcard(String),
    /// Any host no other server takes (`_` in ingress-nginx).
    Any,
}

impl std::fmt::Display for HostMatch {
    /// As an Ingress writes it; `_` for [`HostMatch::Any`].
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("_"),
        }
    }
}

/// One virtual server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server {
    /// In the order of precedence: the first that matches takes the request. The translation
    /// sorts them (ordinary hosts longest path first, exact before prefix; regex hosts longest
    /// pattern first), so the proxy may scan or index but never re-order.
    pub locations: Vec<Location>,
    /// The host counts as TLS: `ssl-redirect` applies (a `spec.tls` entry lists it).
    pub tls: bool,
    /// `app-root`: a request for exactly `/` is answered 302 to this path on the scheme and Host
    /// (with its port) of the request, before any location is looked at; where its location is strict, once
    /// that has let the client in.
    pub app_root: Option<Template>,
    /// `auth-tls-*`; `None`: clients need no certificate.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// `ssl-ciphers`, `ssl-prefer-server-ciphers`; `None`: those of the [`Edge`].
    pub ciphers: Option<Ciphers>,
    /// `from-to-www-redirect` of another host: every request is sent there, and nothing else is served.
    pub moved: Option<Moved>,
}

/// One host + path entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// What it matches.
    pub path: PathMatch,
    /// The `path` of the Ingress, as written: metrics label and `explain`.
    pub path_label: String,
    /// The Ingress it came from; `None` for the implicit `/` of a host.
    pub ingress: Option<ObjectName>,
    /// What it names to lead requests to; `None`: nothing.
    pub backend: Option<Arc<ServicePort>>,
    /// What happens to a request it takes.
    pub action: Action,
    /// Typed policies, applied in the order that `l7::filters` has.
    pub filters: Filters,
}

/// What an Ingress names for a location, whether or not its action leads there: by this requests are told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service.
    pub service: String,
    /// Its port, as the Ingress writes it.
    pub port: String,
    /// The upstream of both.
    pub upstream: UpstreamName,
}

impl Location {
    /// Name of its Service; empty without one.
    pub fn service(&self) -> &str {
        self.backend.as_ref().map_or("", |backend| &backend.service)
    }
}

/// Path condition, applied to the decoded, normalised path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The same path, case-sensitive.
    Exact(String),
    /// The path itself and everything below it, split at `/`. `/` takes everything. A value with
    /// a trailing slash (`/foo/`) additionally answers a request for `/foo` with 301 to `/foo/`.
    Prefix(String),
    /// Case-insensitive regex anchored at the start (regex hosts).
    Regex(Pattern),
}

/// Terminal step for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Proxy to this upstream; without endpoints 503.
    Proxy(UpstreamName),
    /// The global default backend, or its built-in 404.
    DefaultBackend,
    /// Answer with a redirect, before the https redirect and everything after it.
    Redirect(Redirect),
    /// Refuse with 503: the Ingress holds something that must fail closed (class B).
    Deny,
}

/// `permanent-redirect`, `temporal-redirect`, or a `rewrite-target` that is an absolute URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 300 to 308.
    pub status: u16,
    /// Location header. Captures are those of the location's [`PathMatch::Regex`]; empty on any
    /// other location.
    pub location: Template,
    /// What becomes of the request's query string.
    pub query: RedirectQuery,
}

/// Query string of a [`Redirect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectQuery {
    /// The Location is sent as it is (`return`).
    Drop,
    /// The request's query is appended, behind arguments of the Location's own if it has any, unless the Location
    /// ends with `?` (`rewrite`).
    Append,
}

/// Policies of one location. Default: none, nothing paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    /// Whether plain HTTP is sent to https, with the status of [`Self::redirects`].
    pub ssl_redirect: SslRedirect,
    /// How redirects to https, and those that add a slash, are written.
    pub redirects: Arc<RedirectStyle>,
    /// `rewrite-target`.
    pub rewrite: Option<Rewrite>,
    /// Time to connect to an endpoint.
    pub connect_timeout: Duration,
    /// Longest silence while sending the request upstream.
    pub send_timeout: Duration,
    /// Longest silence while reading the response from upstream.
    pub read_timeout: Duration,
    /// `client_max_body_size`; `None`: unlimited.
    pub max_body_bytes: Option<u64>,
    /// `backend-protocol`.
    pub protocol: Protocol,
    /// How TLS is spoken where the protocol asks for it.
    pub upstream_tls: Arc<UpstreamTls>,
    /// Parameters of requests where the protocol is FastCGI; `None`: those of the head alone.
    pub fastcgi: Option<Arc<FastCgi>>,
    /// `proxy-next-upstream*`.
    pub retry: Retry,
    /// `proxy-buffer*`.
    pub buffers: Buffers,
    /// `enable-access-log`.
    pub logged: bool,
    /// `enable-rewrite-log`: what [`Self::rewrite`] makes of a request is told in the log of the program.
    pub logs_rewrites: bool,
    /// What of a request counts, and in which order.
    pub mode: Mode,
    /// What else is asked for; `None`: nothing.
    pub policies: Option<Arc<Policies>>,
}

impl Default for Filters {
    /// ingress-nginx's defaults: 5 s / 60 s / 60 s, 1 MiB bodies.
    fn default() -> Self {
        Self {
            ssl_redirect: SslRedirect::Never,
            redirects: Arc::default(),
            rewrite: None,
            connect_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            max_body_bytes: Some(1 << 20),
            protocol: Protocol::Http,
            upstream_tls: Arc::default(),
            fastcgi: None,
            retry: Retry::default(),
            buffers: Buffers::default(),
            logged: true,
            logs_rewrites: false,
            mode: Mode::Compat,
            policies: None,
        }
    }
}

/// Whether requests are taken as ingress-nginx takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// To the letter.
    #[default]
    Compat,
    /// Who may enter is asked before redirects are answered, and by its address before preflights; `X-Forwarded-Proto`, `-Host` and
    /// `-Port` count from those alone who may name the client's address; and `Host` has to be the name
    /// that the TLS handshake was made with, where one was sent, else 421.
    Strict,
}

/// When plain HTTP is answered with a redirect to https.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslRedirect {
    /// Never.
    #[default]
    Never,
    /// Always for this location (`ssl-redirect` on a TLS host, or `force-ssl-redirect`).
    Always,
}

/// `rewrite-target`: where the pattern matches, the whole path becomes the expanded target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// The location's path as a regex, not anchored for the rewrite itself.
    pub pattern: Pattern,
    /// Target with `$1`..`$9` and variables.
    pub target: Template,
}

/// Text with capture references and variables, parsed once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(pub Vec<Piece>);

/// One piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Copied as it is.
    Literal(String),
    /// Capture group 1 to 9; empty where the group did not take part.
    Capture(usize),
    /// What the request has for it; what [`Variable::is_told_early`].
    Variable(Variable),
}

impl L7 {
    /// Each certificate that is served.
    pub fn certificates_by_secret(&self) -> BTreeMap<&ObjectName, &Certificate> {
        let all = self.certificates.values().chain(self.default_certificate.as_deref());
        all.map(|certificate| (&certificate.secret, certificate)).collect()
    }

    /// The certificate that a client gets which asks for this name (lower case), and the host whose it is; `None`:
    /// the default one.
    pub fn certificate_of(&self, name: &str) -> Option<(HostMatch, &Certificate)> {
        let parent = name.split_once('.').map(|(_, parent)| HostMatch::Wildcard(parent.to_owned()));
        [Some(HostMatch::Exact(name.to_owned())), parent].into_iter().flatten().find_map(|host| {
            let certificate = self.certificates.get(&host)?;
            Some((host, certificate))
        })
    }
}

/// Certificate chain and key of a `kubernetes.io/tls` Secret, checked by the translation: they
/// parse and belong together. PEM, because rustls types stop at `l7`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    /// The Secret.
    pub secret: ObjectName,
    /// `tls.crt`: leaf first.
    pub chain_pem: Vec<u8>,
    /// `tls.key`.
    pub key_pem: Vec<u8>,
    /// Seconds since the epoch at which the leaf expires.
    pub not_after: i64,
    /// What else the leaf says of itself.
    pub leaf: Leaf,
}

/// A certificate in the words that metrics have for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Leaf {
    /// Distinguished name of the issuer, its own name first, as `CN=ca,O=Example`.
    pub issuer: String,
    /// Its first organization; empty: none.
    pub issuer_organization: String,
    /// Its common name; empty: none.
    pub issuer_common_name: String,
    /// Decimal.
    pub serial: String,
    /// `RSA`, `ECDSA` or `Ed25519`; else its object identifier.
    pub key_algorithm: String,
    /// Seconds since the epoch from which on it is valid.
    pub not_before: i64,
    /// What comes with it.
    pub chain: Chain,
}

/// Whether a client that knows roots alone can follow a certificate to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Chain {
    /// Its issuer is there, or it is its own.
    #[default]
    Whole,
    /// It came alone, and its issuer may be a root.
    Alone,
    /// It came without its issuer, and says where that can be had: which those of roots do not.
    Broken,
}

impl Certificate {
    /// Tells what its `Debug` does not.
    pub fn hidden(&self, tell: &mut dyn FnMut(&[u8])) {
        tell(&self.chain_pem);
        tell(&self.key_pem);
    }
}

impl std::fmt::Debug for Certificate {
    /// The key never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("secret", &self.secret)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
