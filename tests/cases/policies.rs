//! Policies of a location, a line each.

use penstock::model::l7::Policies;
use penstock::model::l7::policy::{
    Access, Allowance, Auth, Basic, Cors, ErrorPages, External, FilledHeader, Header, Limits, Mirror,
    Remember, RememberRule, RequestHeaders, ResponseHeaders, Rewriting, Satisfy, Swap,
};

use crate::dump::template;

/// In the order in which a request meets them.
pub fn lines(policies: &Policies) -> Vec<String> {
    let Policies { access, auth, cors, limits, request, response, rewriting, errors, mirror, traced } =
        policies;
    let mut lines = Vec::new();
    if let Some(Cors { origins, methods, headers, credentials, expose, max_age }) = cors {
        lines.push(format!(
            "cors {origins:?}, methods {methods}, headers {headers}, credentials {credentials}, expose {expose:?}, for {max_age} s"
        ));
    }
    if let Some(limits) = limits {
        let Limits { ingress, per_second, per_minute, often_status, at_once, at_once_status, by, exempt } =
            limits;
        let rates = [(per_second, "second"), (per_minute, "minute")];
        let rates = rates.into_iter().filter_map(|(allowance, period)| {
            let Allowance { requests, burst } = (*allowance)?;
            Some(format!("{requests} a {period}, burst {burst}, else {often_status}"))
        });
        let at_once = at_once.map(|most| format!("{most} at once, else {at_once_status}"));
        let told: Vec<_> = rates.chain(at_once).collect();
        let by = by.as_ref().map_or(String::new(), |by| format!(" by {by}"));
        lines.push(format!("limits of {ingress}{by} but for [{exempt}]: {}", told.join("; ")));
    }
    if let Some(Access { denied, allowed }) = access {
        let allowed = allowed.as_ref().map_or("all".to_owned(), |allowed| format!("[{allowed}]"));
        lines.push(format!("access to {allowed} but [{denied}]"));
    }
    if let Some(Auth { satisfy, basic, external }) = auth {
        if *satisfy == Satisfy::Any {
            lines.push("one of these is enough".to_owned());
        }
        lines.extend(basic.iter().map(|Basic { realm, users }| {
            let each =
                users.0.iter().map(|(user, kept)| format!("{} by {kept:?}", String::from_utf8_lossy(user)));
            format!("password for {realm:?} of {}", each.collect::<Vec<_>>().join(", "))
        }));
        lines.extend(external.iter().flat_map(question));
    }
    if let Some(RequestHeaders { host, prefix, set, connection, speaks_http10 }) = request {
        lines.extend(host.iter().map(|host| format!("upstream gets Host: {}", host)));
        lines.extend(prefix.iter().map(|prefix| format!("upstream gets prefix {}", template(prefix))));
        let filled = |FilledHeader { name, value }: &_| format!("upstream gets {name}: {}", value);
        lines.extend(set.iter().map(filled));
        lines.extend(connection.map(|connection| format!("upstream gets Connection: {connection:?}")));
        if *speaks_http10 {
            lines.push("upstream is asked by HTTP/1.0".to_owned());
        }
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
    if let Some(ErrorPages { statuses, only_ours, backend }) = errors {
        let whose = if *only_ours { " of ours" } else { "" };
        let by = backend.as_ref().map_or("the default backend", |backend| backend.0.as_str());
        lines.push(format!("errors {statuses:?}{whose} worded by {by}"));
    }
    if let Some(traced) = traced {
        lines.push(format!("{traced:?}"));
    }
    if let Some(Mirror { tls, host, target, upstream, named, body }) = mirror {
        let scheme = if *tls { "https" } else { "http" };
        let target = target.as_ref().map_or("(the client's)".to_owned(), ToString::to_string);
        let at = upstream.as_ref().map(|upstream| format!(" at {}", upstream.0)).unwrap_or_default();
        let named = named.as_ref().map(|named| format!(" as {named}")).unwrap_or_default();
        lines.push(format!("copies {body:?} to {scheme}://{host} {target}{at}{named}"));
    }
    lines
}

/// Whom an auth service's questions go to, and what becomes of its answers.
fn question(external: &External) -> Vec<String> {
    let External { url: _, tls, host, target, upstream, method, sign_in, .. } = external;
    let External { response_headers, request_redirect, set_headers, always_set_cookie, .. } = external;
    let External { remember, keepalive, .. } = external;
    let scheme = if *tls { "https" } else { "http" };
    let at = upstream.as_ref().map(|upstream| format!(" at {}", upstream.0)).unwrap_or_default();
    let method = method.as_deref().unwrap_or("(GET)");
    let mut lines = vec![format!("asks {method} {scheme}://{}{}{at}", host, target)];
    lines.extend(sign_in.iter().map(|to| format!("sends to sign in at {}", to)));
    if !response_headers.is_empty() {
        lines.push(format!("upstream gets of the answer {}", response_headers.join(", ")));
    }
    lines.extend(request_redirect.iter().map(|to| format!("service hears of redirect {}", to)));
    let filled = |FilledHeader { name, value }: &_| format!("service gets {name}: {}", value);
    lines.extend(set_headers.iter().map(filled));
    if *always_set_cookie {
        lines.push("client always gets cookies of the answer".to_owned());
    }
    if let Some(Remember { key, rules }) = remember {
        let rules = rules.iter().map(|RememberRule { statuses, time }| format!("{statuses:?} for {time:?}"));
        let rules = rules.collect::<Vec<_>>().join(", ");
        lines.push(format!("answers remembered by {}: {rules}", key));
    }
    if keepalive.connections > 0 {
        lines.push(format!("{keepalive:?} to the service"));
    }
    lines
}
