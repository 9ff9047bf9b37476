//! What is believed of a request's headers about its client, and what upstreams are told of it.

use super::super::l4::Prefix;

/// Keys of the ConfigMap that concern requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// `None`: clients connect to us, and what they say of themselves is not believed.
    pub behind: Option<Behind>,
    /// `compute-full-forwarded-for`, with `use-forwarded-headers`.
    pub chain: Chain,
    /// `forwarded-for-header`, lower case: where the address is said.
    pub header: String,
    /// `proxy-add-original-uri-header`: the target as the client sent it goes along as X-Original-URI.
    pub original_uri: bool,
    /// `generate-request-id`: a request without X-Request-ID gets one.
    pub request_id: bool,
}

impl Default for Forwarding {
    /// ingress-nginx's defaults.
    fn default() -> Self {
        let header = "x-forwarded-for".to_owned();
        Self { behind: None, chain: Chain::Replaced, header, original_uri: false, request_id: true }
    }
}

/// Another proxy stands in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Scheme, host and port.
    pub words: Words,
    /// Client address.
    pub address: Address,
    /// `proxy-real-ip-cidr`: who may say more than that he is there.
    pub trusted: Vec<Prefix>,
}

/// Whether `X-Forwarded-Proto`, `-Host` and `-Port` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// `use-forwarded-headers`: they do, whoever sends them; on a strict location those of the trusted alone.
    Believed,
    /// The same with `penstock-mode: strict`: those of the trusted count.
    OfTrusted,
    /// `enable-real-ip` alone: they do not.
    Ignored,
}

/// Where the address of the client is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// The connection, or its PROXY header: with `use-proxy-protocol` no other header is asked.
    Connection,
    /// The header, as far as the trusted tell it.
    Told,
}

/// What upstreams read in X-Forwarded-For.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// The client alone.
    Replaced,
    /// What was sent, and who sent it to us.
    Appended,
}

/// Names of request headers that are passed on; others are dropped in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderNames {
    /// Letters, digits and `-`.
    #[default]
    Plain,
    /// `enable-underscores-in-headers`: `_`, too.
    Underscores,
    /// `ignore-invalid-headers: false`: all that HTTP allows.
    All,
}
