//! What a location does to its requests and responses beyond proxying them: one type a policy, one
//! file a family.
//!
//! The proxy applies them in ingress-nginx's order (`l7::filters`). A location that asks for none has none,
//! and pays for none.

mod access;
mod auth;
mod cors;
mod external;
mod headers;
mod limits;
mod mirror;
mod pages;
mod rewriting;

use std::sync::Arc;

use super::Traced;

pub use access::{Access, AddressSet};
pub use auth::{Auth, Basic, Password, Satisfy, Users};
pub use cors::{Cors, Origin, Origins};
pub use external::{External, Remember, RememberRule};
pub use headers::{FilledHeader, Header, Persistence, RequestHeaders, ResponseHeaders};
pub use limits::{Allowance, Limits};
pub use mirror::{Copied, Mirror};
pub use pages::ErrorPages;
pub use rewriting::{Rewriting, Swap};

/// Policies of one location; `None` each: not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies {
    /// Who may not enter, by address.
    pub access: Option<Access>,
    /// Who may enter, by what is shown.
    pub auth: Option<Auth>,
    /// Which other sites' scripts may read the answers.
    pub cors: Option<Cors>,
    /// How often a client may ask.
    pub limits: Option<Limits>,
    /// What the upstream is told otherwise than by the client.
    pub request: Option<RequestHeaders>,
    /// What the client is told beside what the upstream says.
    pub response: Option<ResponseHeaders>,
    /// What is rewritten in what the upstream says.
    pub rewriting: Option<Rewriting>,
    /// Which errors somebody else words.
    pub errors: Option<ErrorPages>,
    /// Who else gets its requests.
    pub mirror: Option<Mirror>,
    /// How its requests take part in traces.
    pub traced: Option<Arc<Traced>>,
}

impl Policies {
    /// Tells what their `Debug` does not.
    pub fn hidden(&self, tell: &mut dyn FnMut(&[u8])) {
        if let Some(basic) = self.auth.as_ref().and_then(|auth| auth.basic.as_ref()) {
            basic.users.hidden(tell);
        }
    }
}
