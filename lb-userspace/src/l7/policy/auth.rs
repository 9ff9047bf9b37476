//! What a client has to show, in words; the checks themselves have to wait, and are no step of a decision.

use crate::model::l7::policy::{Access, Auth, Basic, External, Satisfy};

pub(super) fn explain(auth: &Auth, access: Option<&Access>) -> Vec<(&'static str, String)> {
    let Auth { satisfy, basic, external } = auth;
    let mut steps = Vec::new();
    if let Some(Basic { realm, users }) = basic {
        let users = users.0.len();
        steps.push(("basic-auth", format!("a password of one of {users} users for {realm:?}, else 401")));
    }
    if let Some(External { url, sign_in, .. }) = external {
        let unknown = if sign_in.is_some() { "sent to sign in" } else { "answered 401" };
        steps.push(("external-auth", format!("{url} is asked; who is not known is {unknown}")));
    }
    if *satisfy == Satisfy::Any {
        let listed =
            access.and_then(|access| access.allowed.as_ref()).map(|_| ", or an address that is listed");
        steps.push(("satisfy", format!("one of these is enough{}", listed.unwrap_or_default())));
    }
    steps
}
