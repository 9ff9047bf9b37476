//! How an upstream's own names become those that clients know it by.

use crate::model::expression::Expression;

/// What is rewritten in an upstream's response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewriting {
    /// `proxy-cookie-domain`: Domain of cookies, compared whole.
    pub cookie_domain: Option<Swap>,
    /// `proxy-cookie-path`: the start of their Path.
    pub cookie_path: Option<Swap>,
    /// `proxy-redirect-from` and `-to`: the start of Location, and of the URL in Refresh.
    pub redirect: Option<Swap>,
}

/// What is looked for and what takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// As the upstream says it.
    pub from: Expression,
    /// As the client gets it.
    pub to: Expression,
}
