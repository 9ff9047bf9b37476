//! Headers of requests as the upstream gets them, and of responses as the client does.

use super::super::Template;
use crate::model::expression::Expression;

/// What the upstream is told otherwise than by the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHeaders {
    /// `upstream-vhost`: Host; `None`: the client's.
    pub host: Option<Expression>,
    /// `x-forwarded-prefix`, with the captures of the rewrite, and variables; sent where there is one.
    pub prefix: Option<Template>,
    /// `proxy-set-headers`: take the place of the client's, and of ours, of the same names. What comes
    /// out empty is not sent.
    pub set: Vec<FilledHeader>,
    /// `connection-proxy-header`; `None`: as the request needs it.
    pub connection: Option<Persistence>,
    /// `proxy-http-version: "1.0"`: no chunked bodies, no upgrades, one request a connection.
    pub speaks_http10: bool,
}

impl RequestHeaders {
    /// A request may become a conversation.
    pub fn upgrades(&self) -> bool {
        self.connection.is_none() && !self.speaks_http10
    }
}

/// What the upstream is asked to do with a connection, whatever the request needs; so nothing is upgraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// `close`.
    Close,
    /// `keep-alive`.
    KeepAlive,
}

/// A header line whose value the request fills in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilledHeader {
    /// A token.
    pub name: String,
    /// Its literal text holds no line break.
    pub value: Expression,
}

/// What responses say beside what the upstream says; ours and the upstream's alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHeaders {
    /// Take the place of the upstream's of the same names (`custom-headers`). Without a value: there
    /// is none.
    pub set: Vec<Header>,
}

/// A header line; neither part can end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// A token.
    pub name: String,
    /// Without line breaks.
    pub value: String,
}
