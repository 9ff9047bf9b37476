//! The policies of a location at work, a file each: pure functions of the policy and what was asked.
//!
//! [`refuse`] and [`preflight`] are steps of [`super::filters::decide`], which has ingress-nginx's
//! order; [`HeaderEdits`] goes along with the response, whoever makes it. What has to wait for somebody is no
//! step here: its place is in `connection`, between the decision and the exchange.

mod access;
mod auth;
pub(super) mod blocked;
mod common_headers;
mod cors;
mod header_edits;
mod limits;
mod request_headers;
mod rewriting;

use std::net::IpAddr;

use super::filters::{Answer, Asked};
use super::h1::head::{Block, LineSet};
use super::trace;
use crate::model::l7::Policies;
use crate::model::l7::policy::{
    ErrorPages, Limits, Mirror, Persistence, RequestHeaders, ResponseHeaders, Satisfy,
};

pub(super) use access::Entry;
pub(super) use common_headers::CommonHeaders;
pub(super) use header_edits::{HeaderEdits, give_way};
pub(super) use limits::Buckets;
pub(super) use request_headers::Set;

/// Headers of a request, wherever they stand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Headers<'a> {
    /// In the bytes of its head.
    Sent(Block<'a, 'a>),
    /// As somebody made them up to have the decision explained.
    Given(&'a [(String, String)]),
}

impl<'a> Headers<'a> {
    /// Names and values in order.
    pub(super) fn lines(self) -> impl DoubleEndedIterator<Item = (&'a str, &'a [u8])> {
        let count = match self {
            Self::Sent(block) => block.len(),
            Self::Given(pairs) => pairs.len(),
        };
        (0..count).filter_map(move |i| match self {
            Self::Sent(block) => block.line(i),
            Self::Given(pairs) => pairs.get(i).map(|(name, value)| (name.as_str(), value.as_bytes())),
        })
    }

    /// Value of the first header with this name.
    pub(super) fn first(&self, name: &str) -> Option<&'a [u8]> {
        match self {
            Self::Sent(block) => block.first(|known| known.eq_ignore_ascii_case(name)),
            Self::Given(pairs) => {
                let found = pairs.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.as_bytes())
            }
        }
    }

    /// Value of the first cookie with this name, in whichever line and in any case, as nginx has it.
    pub(super) fn cookie(&self, name: &str) -> Option<&'a [u8]> {
        self.find_in_cookies(|line| cookie_of(line, name))
    }

    /// What is found in the first cookie, `name=value`, in which anything is.
    pub(super) fn find_cookie<T>(&self, mut find: impl FnMut(&'a [u8]) -> Option<T>) -> Option<T> {
        self.find_in_cookies(|line| {
            line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).find_map(&mut find)
        })
    }

    /// What is found in the first `Cookie` line in which anything is.
    fn find_in_cookies<T>(&self, find: impl FnMut(&'a [u8]) -> Option<T>) -> Option<T> {
        let is_cookie = |name: &str| name.eq_ignore_ascii_case("cookie");
        self.lines().filter(|(name, _)| is_cookie(name)).map(|(_, line)| line).find_map(find)
    }
}

/// Value of a cookie of a `Cookie` line. As for nginx, a name may stand behind `,` as well, and a value ends with `;` alone.
fn cookie_of<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = line.trim_ascii_start();
    loop {
        if let Some(value) = value_of(rest, name) {
            return value.split(|byte| *byte == b';').next();
        }
        let end = rest.iter().position(|byte| matches!(byte, b';' | b','))?;
        rest = rest.get(end + 1..)?.trim_ascii_start();
    }
}

/// What stands behind `name=`, with the name in any case.
pub(super) fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (known, rest) = pair.split_at_checked(name.len())?;
    let value = rest.trim_ascii_start().strip_prefix(b"=")?;
    known.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii_start())
}

/// Answers a question of a browser about another site's script.
pub(super) fn preflight(policies: &Policies, asked: &Asked<'_>) -> Option<Answer> {
    let cors = policies.cors.as_ref().filter(|_| asked.method == "OPTIONS")?;
    cors::allowed(cors, &asked.headers).map(|_| Answer::Preflight)
}

/// The limits that a request counts towards; `None`: none. Who counts is no step of a
/// decision, which would not be the same twice.
pub(super) fn limits<'p>(policies: &'p Policies, asked: &Asked<'_>) -> Option<&'p Limits> {
    policies.limits.as_ref().filter(|limits| !limits.exempt.contains(asked.client))
}

/// Turns away who may not have this location, once it is within its limits.
/// What a client has to show comes behind the addresses, and where one of both is enough (`satisfy any`), it decides.
pub(super) fn refuse(policies: &Policies, asked: &Asked<'_>) -> Option<Answer> {
    if policies.auth.as_ref().is_some_and(|auth| auth.satisfy == Satisfy::Any) {
        return None;
    }
    policies.access.as_ref().and_then(|access| access::refuse(access, asked.client))
}

/// What a client's address comes to.
pub(super) fn entry(policies: &Policies, client: IpAddr) -> Entry {
    policies.access.as_ref().map_or(Entry::Open, |access| access::entry(access, client))
}

/// Lines of the client's that do not reach the upstream: its password is for us, and what an auth service says
/// of it nobody else may.
pub(super) fn kept_back(policies: &Policies, block: &Block<'_, '_>) -> LineSet {
    let Some(auth) = &policies.auth else { return LineSet::default() };
    let told = auth.external.iter().flat_map(|external| &external.response_headers);
    let password = auth.basic.iter().map(|_| "authorization");
    let names: Vec<_> = told.map(String::as_str).chain(password).collect();
    block.named(|name| names.iter().any(|kept| is_same_name(kept.as_bytes(), name.as_bytes())))
}

/// The names are one to those who read them: frameworks take `X_User` for `X-User`.
pub(super) fn is_same_name(a: &[u8], b: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    a.len() == b.len() && a.iter().map(plain).eq(b.iter().map(plain))
}

/// What the policies do to this request, a step each: name and detail.
pub(super) fn explain(policies: &Policies, asked: &Asked<'_>) -> Vec<(&'static str, String)> {
    let Policies { access, auth, cors, limits, request, response, rewriting, errors, mirror, traced } =
        policies;
    let mut steps = Vec::new();
    steps.extend(cors.as_ref().map(|cors| ("cors", cors::explain(cors, &asked.headers))));
    steps.extend(limits.as_ref().map(|limits| ("limits", limits::explain(limits, asked.client))));
    steps.extend(access.as_ref().map(|access| ("source-range", access::explain(access, asked.client))));
    steps.extend(auth.iter().flat_map(|auth| auth::explain(auth, access.as_ref())));
    if let Some(RequestHeaders { host, prefix: _, set, connection, speaks_http10 }) = request {
        steps.extend(host.iter().map(|host| ("upstream-vhost", format!("the upstream gets Host: {host}"))));
        let names: Vec<_> = set.iter().map(|header| header.name.as_str()).collect();
        if !names.is_empty() {
            steps.push(("proxy-set-headers", format!("the upstream gets {}", names.join(", "))));
        }
        steps.extend(connection.map(|connection| {
            let word = if connection == Persistence::Close { "close" } else { "keep-alive" };
            ("connection-proxy-header", format!("the upstream gets Connection: {word}, and no upgrade"))
        }));
        if *speaks_http10 {
            steps.push(("proxy-http-version", "the upstream is asked by HTTP/1.0".to_owned()));
        }
    }
    steps.extend(rewriting.iter().flat_map(rewriting::explain));
    if let Some(Mirror { tls, host, .. }) = mirror {
        let scheme = if *tls { "https" } else { "http" };
        steps.push(("mirror-target", format!("{scheme}://{host} gets a copy")));
    }
    steps.extend(traced.as_ref().map(|traced| ("opentelemetry", trace::explain(traced))));
    if let Some(ResponseHeaders { set }) = response {
        let names: Vec<_> = set.iter().map(|header| header.name.as_str()).collect();
        steps.push(("custom-headers", format!("the client gets {}", names.join(", "))));
    }
    if let Some(ErrorPages { statuses, only_ours, backend }) =
        errors.as_ref().filter(|e| !e.statuses.is_empty())
    {
        let statuses: Vec<_> = statuses.iter().map(ToString::to_string).collect();
        let whose = if *only_ours { " (not the upstream's own)" } else { "" };
        let by = backend.as_ref().map_or("the default backend", |backend| backend.0.as_str());
        steps.push(("custom-http-errors", format!("{}{whose} are worded by {by}", statuses.join(", "))));
    }
    steps
}
