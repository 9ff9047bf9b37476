//! Whose answer takes the place of an error.

use std::collections::BTreeSet;

use crate::model::upstream::UpstreamName;

/// Errors that another service words (`custom-http-errors`, `default-backend`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorPages {
    /// Statuses of which the client hears nothing: what it gets is the answer of the error backend, status
    /// included. 400 to 599.
    pub statuses: BTreeSet<u16>,
    /// `disable-proxy-intercept-errors`: the client gets those that come from the upstream itself.
    pub only_ours: bool,
    /// `default-backend`: the error backend, and who is asked in the place of an upstream without endpoints.
    /// `None`, or itself without endpoints: the default backend of all, which stands in for nobody.
    pub backend: Option<UpstreamName>,
}
