//! A copy of each request for somebody else (`mirror-*`).

use crate::model::expression::Expression;
use crate::model::upstream::UpstreamName;

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Over TLS; the target proves nothing by it.
    pub tls: bool,
    /// Host, and the port if it is written.
    pub host: Expression,
    /// Path and query; `None`: the client's.
    pub target: Option<Expression>,
    /// Where the host is a Service that we know; `None`: found by DNS.
    pub upstream: Option<UpstreamName>,
    /// `mirror-host`: the copy's Host; `None`: the target's, without the port.
    pub named: Option<Expression>,
    /// `mirror-request-body`.
    pub body: Copied,
}

/// What of a request is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copied {
    /// All of it.
    #[default]
    Whole,
    /// Not its body.
    Head,
}
