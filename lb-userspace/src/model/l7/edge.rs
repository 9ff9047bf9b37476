//! How clients are received: what concerns a connection rather than a location.

use std::time::Duration;

use super::super::ObjectName;
use super::super::l4::Prefix;
use super::forwarding::{Forwarding, HeaderNames};
use super::{Pattern, StreamTerms};

/// The listeners' side of the proxy, by keys of the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// `use-proxy-protocol`: every connection starts with a PROXY header; `None`: none does.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whose word about the client counts.
    pub forwarding: Forwarding,
    /// What one connection may take.
    pub limits: ClientLimits,
    /// `max-worker-connections`: client connections of one worker.
    pub connections: usize,
    /// `worker-shutdown-timeout`: how long what runs may go on once the agent is told to end.
    pub shutdown: Duration,
    /// TLS towards clients.
    pub tls: TlsPolicy,
    /// What holds for ports beside http and https.
    pub streams: StreamTerms,
}

impl Default for Edge {
    /// ingress-nginx's defaults.
    fn default() -> Self {
        Self {
            proxy_protocol: None,
            forwarding: Forwarding::default(),
            limits: ClientLimits::default(),
            connections: 16_384,
            shutdown: Duration::from_secs(240),
            tls: TlsPolicy::default(),
            streams: StreamTerms::default(),
        }
    }
}

/// What one client connection may take: time, bytes, requests, names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// `keep-alive`: longest wait for the next request; zero: one request a connection.
    pub keep_alive: Duration,
    /// `keep-alive-requests`: requests of one connection.
    pub keep_alive_requests: u32,
    /// `http2-max-concurrent-streams`: requests of one HTTP/2 connection at once.
    pub http2_streams: u32,
    /// `client-header-timeout`: for a whole head, and for a TLS handshake.
    pub header_timeout: Duration,
    /// `client-body-timeout`: longest silence within a request body.
    pub body_timeout: Duration,
    /// Longest request line (414) and header line (400): the size in `large-client-header-buffers`.
    pub line_bytes: usize,
    /// Longest head (431): all of `large-client-header-buffers`, as far as a read buffer goes.
    pub head_bytes: usize,
    /// Header names that are passed on.
    pub names: HeaderNames,
}

impl ClientLimits {
    /// Most that `line_bytes` and `head_bytes` can be: what a read buffer holds.
    pub const HEAD_BYTES_MAX: usize = 32 * 1024;
    /// Most that `http2_streams` can be.
    pub const HTTP2_STREAMS_MAX: u32 = 1024;
}

impl Default for ClientLimits {
    /// ingress-nginx's defaults.
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(75),
            keep_alive_requests: 1000,
            http2_streams: 128,
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            line_bytes: 8 * 1024,
            head_bytes: Self::HEAD_BYTES_MAX,
            names: HeaderNames::Plain,
        }
    }
}

/// PROXY protocol on the listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// `proxy-protocol-header-timeout`.
    pub timeout: Duration,
    /// `proxy-real-ip-cidr`: whose header is believed. The header of others is read and its
    /// addresses are ignored.
    pub trusted: Vec<Prefix>,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    /// `use-http2`: it is offered beside HTTP/1.1.
    pub http2: bool,
    /// `ssl-protocols`.
    pub versions: TlsVersions,
    /// `ssl-ciphers`, of hosts that do not say otherwise.
    pub ciphers: Ciphers,
    /// `ssl-ecdh-curve`, best first.
    pub groups: Vec<Group>,
    /// `ssl-session-tickets` and `ssl-session-cache`.
    pub resumption: Resumption,
    /// `ssl-session-timeout`: how long a session can be resumed.
    pub session_timeout: Duration,
    /// `ssl-session-ticket-key`: shared by several balancers; `None`: made here, and changed now and then.
    pub ticket_key: Option<SharedTicketKey>,
    /// `ssl-reject-handshake`: what a name that no server has is told.
    pub unknown_name: UnknownName,
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self {
            http2: true,
            versions: TlsVersions::Both,
            ciphers: Ciphers::default(),
            groups: Group::ALL.to_vec(),
            resumption: Resumption::Tickets,
            session_timeout: Duration::from_secs(600),
            ticket_key: None,
            unknown_name: UnknownName::Default,
        }
    }
}

/// Versions of TLS that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    Both,
    /// 1.2 alone.
    Tls12,
    /// 1.3 alone.
    Tls13,
}

/// Cipher suites of TLS 1.2 and whose order counts. Those of TLS 1.3 are always allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ciphers {
    /// Best first; empty: TLS 1.2 is not spoken.
    pub suites: Vec<Cipher>,
    /// Whose order counts.
    pub order: CipherOrder,
}

impl Default for Ciphers {
    fn default() -> Self {
        Self { suites: Cipher::ALL.to_vec(), order: CipherOrder::Ours }
    }
}

/// Who decides among the suites that both sides allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherOrder {
    /// The first of ours.
    Ours,
    /// The first of the client's.
    Clients,
}

/// A cipher suite of TLS 1.2: ECDHE throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// `ECDHE-ECDSA-AES128-GCM-SHA256`.
    EcdsaAes128,
    /// `ECDHE-RSA-AES128-GCM-SHA256`.
    RsaAes128,
    /// `ECDHE-ECDSA-AES256-GCM-SHA384`.
    EcdsaAes256,
    /// `ECDHE-RSA-AES256-GCM-SHA384`.
    RsaAes256,
    /// `ECDHE-ECDSA-CHACHA20-POLY1305`.
    EcdsaChaCha20,
    /// `ECDHE-RSA-CHACHA20-POLY1305`.
    RsaChaCha20,
}

impl Cipher {
    /// In the order of Mozilla's intermediate list.
    pub const ALL: [Self; 6] = [
        Self::EcdsaAes128,
        Self::RsaAes128,
        Self::EcdsaAes256,
        Self::RsaAes256,
        Self::EcdsaChaCha20,
        Self::RsaChaCha20,
    ];

    /// OpenSSL's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaAes128 => "ECDHE-ECDSA-AES128-GCM-SHA256",
            Self::RsaAes128 => "ECDHE-RSA-AES128-GCM-SHA256",
            Self::EcdsaAes256 => "ECDHE-ECDSA-AES256-GCM-SHA384",
            Self::RsaAes256 => "ECDHE-RSA-AES256-GCM-SHA384",
            Self::EcdsaChaCha20 => "ECDHE-ECDSA-CHACHA20-POLY1305",
            Self::RsaChaCha20 => "ECDHE-RSA-CHACHA20-POLY1305",
        }
    }
}

/// A group for the key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// X25519 together with ML-KEM-768.
    X25519MlKem768,
    /// Curve25519.
    X25519,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Group {
    /// Best first.
    pub const ALL: [Self; 4] = [Self::X25519MlKem768, Self::X25519, Self::P256, Self::P384];
}

/// How a client comes back without a whole handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resumption {
    /// The client keeps the session, encrypted by a key that changes.
    Tickets,
    /// We keep at most this many sessions.
    Cache(usize),
    /// It does not.
    Off,
}

/// Secret that balancers share so that each can resume the others' sessions.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedTicketKey(pub Vec<u8>);

impl std::fmt::Debug for SharedTicketKey {
    /// The key never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedTicketKey(..)")
    }
}

/// What a TLS client hears that names no server of ours, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownName {
    /// The default certificate.
    Default,
    /// The alert `unrecognized_name`.
    Reject,
}

/// Client certificates of one host (`auth-tls-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// The authority is missing or unusable: every request of the host is answered 403.
    Unusable,
    /// Asked for and checked.
    Verify(Box<VerifyClient>),
}

/// How a host checks its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyClient {
    /// Whom it trusts; `None` does not ask for a certificate (`auth-tls-verify-client: off`).
    pub trust: Option<Trust>,
    /// `auth-tls-error-page`: where a refused client is sent instead of 400.
    pub error_page: Option<String>,
    /// `auth-tls-pass-certificate-to-upstream`.
    pub pass_certificate: bool,
    /// `auth-tls-match-cn`: what the subject has to match, else 403.
    pub subject: Option<Pattern>,
}

/// Authority of client certificates, and what happens without one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Trust {
    /// `auth-tls-secret`.
    pub secret: ObjectName,
    /// `ca.crt`, checked to hold certificates.
    pub ca_pem: Vec<u8>,
    /// `ca.crl`; empty: none.
    pub crl_pem: Vec<u8>,
    /// `auth-tls-verify-client`.
    pub demand: Demand,
    /// `auth-tls-verify-depth`: intermediate certificates of a chain at most.
    pub depth: u8,
}

impl Trust {
    /// Tells what its `Debug` does not.
    pub fn hidden(&self, tell: &mut dyn FnMut(&[u8])) {
        tell(&self.ca_pem);
        tell(&self.crl_pem);
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { secret, demand, depth, ca_pem: _, crl_pem: _ } = self;
        f.debug_struct("Trust")
            .field("secret", secret)
            .field("demand", demand)
            .field("depth", depth)
            .finish_non_exhaustive()
    }
}

/// How much is demanded of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Demand {
    /// A certificate of the authority, else 400.
    Required,
    /// None, or one of the authority, else 400.
    Optional,
    /// None, or any that is in order but for its authority; the upstream decides.
    OptionalAnyAuthority,
}
