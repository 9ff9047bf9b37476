//! Policies of a location, a line each.

use penstock::model::l7::Policies;
use penstock::model::l7::policy::{
    Access, Auth, Basic, Cors, FilledHeader, Header, RequestHeaders, ResponseHeaders, Rewriting, Satisfy,
    Swap,
};

use crate::dump::template;

/// In the order in which a request meets them.
pub fn lines(policies: &Policies) -> Vec<String> {
    let Policies { access, auth, cors, request, response, rewriting } = policies;
    let mut lines = Vec::new();
    if let Some(Cors { origins, methods, headers, credentials, expose, max_age }) = cors {
        lines.push(format!(
            "cors {origins:?}, methods {methods}, headers {headers}, credentials {credentials}, expose {expose:?}, for {max_age} s"
        ));
    }
    if let Some(Access { denied, allowed }) = access {
        let allowed = allowed.as_ref().map_or("all".to_owned(), |allowed| format!("[{allowed}]"));
        lines.push(format!("access to {allowed} but [{denied}]"));
    }
    if let Some(Auth { satisfy, basic }) = auth {
        if *satisfy == Satisfy::Any {
            lines.push("one of these is enough".to_owned());
        }
        lines.extend(basic.iter().map(|Basic { realm, users }| {
            let each =
                users.0.iter().map(|(user, kept)| format!("{} by {kept:?}", String::from_utf8_lossy(user)));
            format!("password for {realm:?} of {}", each.collect::<Vec<_>>().join(", "))
        }));
    }
    if let Some(RequestHeaders { host, prefix, set }) = request {
        lines.extend(host.iter().map(|host| format!("upstream gets Host: {}", host)));
        lines.extend(prefix.iter().map(|prefix| format!("upstream gets prefix {}", template(prefix))));
        let filled = |FilledHeader { name, value }: &_| format!("upstream gets {name}: {}", value);
        lines.extend(set.iter().map(filled));
    }
    if let Some(ResponseHeaders { set }) = response {
        lines.extend(set.iter().map(|Header { name, value }| format!("client gets {name}: {value}")));
    }
    if let Some(Rewriting { cookie_domain, cookie_path, redirect }) = rewriting {
        for (what, swap) in
            [("cookie domain", cookie_domain), ("cookie path", cookie_path), ("redirect", redirect)]
        {
            let text = |Swap { from, to }: &_| format!("{what} {} becomes {}", from, to);
            lines.extend(swap.iter().map(text));
        }
    }
    lines
}
