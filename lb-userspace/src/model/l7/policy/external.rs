//! Another service that is asked whether a request may go on (`auth-url` and what goes with it).

use std::time::Duration;

use super::FilledHeader;
use crate::model::expression::Expression;
use crate::model::upstream::{Keepalive, UpstreamName};

/// Whom to ask, what, and what its answer means for the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// As written. What is remembered of its answers belongs to it.
    pub url: String,
    /// Over TLS; the service proves nothing by it.
    pub tls: bool,
    /// Host, and the port if it is written.
    pub host: Expression,
    /// Path and query.
    pub target: Expression,
    /// Where the host is a Service that we know; `None`: found by DNS.
    pub upstream: Option<UpstreamName>,
    /// `auth-method`; `None`: GET, and the service hears less.
    pub method: Option<String>,
    /// `auth-signin`, complete: where 401 sends the client.
    pub sign_in: Option<Expression>,
    /// `auth-response-headers`: headers of the answer that the upstream gets, and gets from nobody else.
    pub response_headers: Vec<String>,
    /// `auth-request-redirect`; `None`: what the client asks for.
    pub request_redirect: Option<Expression>,
    /// `auth-proxy-set-headers`.
    pub set_headers: Vec<FilledHeader>,
    /// `auth-always-set-cookie`: its cookies reach the client whatever the status of the response.
    pub always_set_cookie: bool,
    /// `auth-cache-key`; `None`: asked every time.
    pub remember: Option<Remember>,
    /// `auth-keepalive*`; without connections none is kept.
    pub keepalive: Keepalive,
}

/// How long answers are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remember {
    /// What they depend on.
    pub key: Expression,
    /// The first that knows the status counts; a status that none knows is not remembered.
    pub rules: Vec<RememberRule>,
}

/// One rule of `auth-cache-duration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberRule {
    /// Empty: any.
    pub statuses: Vec<u16>,
    /// From the answer on.
    pub time: Duration,
}
