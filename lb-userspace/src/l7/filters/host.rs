//! What a host decides about a request before its location has a say: who may come, and who is sent elsewhere.

use super::super::client_auth::{self, Refused, Shown};
use super::super::path::{self, BadPath};
use super::super::policy;
use super::super::route::{Found, HostFound, Route, Router, Site, bare_host};
use super::{Answer, Asked, Decision, Next, Scheme, filter, push_port, split_port};
use crate::model::l7::{ClientAuth, Mode, Moved};

/// HTTP-01 challenges have to arrive over plain HTTP whatever their host demands.
const CHALLENGES: &str = "/.well-known/acme-challenge";

/// To the same target on another host, by the same scheme, one trailing slash cut. The port
/// is always named, as in ingress-nginx: the one that the client named itself, else that of the scheme.
pub(super) fn elsewhere(asked: &Asked<'_>, moved: &Moved) -> Answer {
    let usual = if asked.scheme == Scheme::Https { 443 } else { 80 };
    let (_, port) = split_port(asked.named);
    let mut location = format!("{}://{}", asked.scheme.as_str(), moved.to).into_bytes();
    push_port(port.unwrap_or(usual), &mut location);
    location.extend_from_slice(asked.target.strip_suffix(b"/").unwrap_or(asked.target));
    Answer::Redirect { status: moved.status, location }
}

/// The page that a refused client is shown in the place of what it asked for, as the location of that page has it. A
/// client that has shown nothing has nothing to say there either: it may only look.
pub(super) fn shown<'r>(
    router: &'r Router,
    (site, host): (&'r Site, HostFound),
    page: &str,
    asked: &Asked<'_>,
) -> Decision<'r> {
    let asked = Asked { target: page.as_bytes(), length: None, ..*asked };
    let (raw_path, query) = path::split_query(asked.target);
    let normal = path::normalize(raw_path);
    let Found { route, add_slash } = site.find(normal.as_deref().unwrap_or(b"/"));
    let next = match &normal {
        Ok(normal) => filter(router, route, (None, add_slash), &asked, normal, query),
        Err(BadPath) => Err(Answer::Status(400)),
    };
    let is_behind_access = next.is_ok();
    let next = match next {
        Ok(Next::Proxy { upstream, side, target: None, prefix }) => {
            Next::Proxy { upstream, side, target: Some(page.as_bytes().to_vec()), prefix }
        }
        Ok(next) => next,
        Err(answer) => Next::Answer(answer),
    };
    let policies = route.filters.policies.as_deref().filter(|_| is_behind_access);
    let limits = policies.and_then(|policies| policy::limits(policies, &asked));
    Decision { site, host, route, limits, is_behind_access, next }
}

/// The page is one of the host's own, and the client does not send anything.
pub(super) fn is_shown(page: &str, asked: &Asked<'_>) -> bool {
    let says_more = asked.length.is_some_and(|length| length > 0)
        || ["transfer-encoding", "upgrade"].iter().any(|name| asked.headers.first(name).is_some());
    page.starts_with('/') && matches!(asked.method, "GET" | "HEAD") && !says_more
}

pub(super) fn answer_to(refused: Refused<'_>, asked: &Asked<'_>) -> Answer {
    match refused {
        Refused::Answered(answer) => answer,
        Refused::Flawed(_, Some(page)) if !page.starts_with('/') && !is_of_itself(page, asked) => {
            Answer::Redirect { status: 302, location: page.as_bytes().to_vec() }
        }
        Refused::Flawed(flaw, _) => Answer::Certificate(flaw),
    }
}

/// Whoever is sent there asks for the same again.
fn is_of_itself(page: &str, asked: &Asked<'_>) -> bool {
    let here = [asked.scheme.as_str().as_bytes(), b"://", asked.named, asked.target].concat();
    page.as_bytes() == here
}

/// Who does not get as far as a location.
pub(super) fn refused_client<'r>(
    site: &'r Site,
    route: &Route,
    asked: &Asked<'_>,
    path: &[u8],
) -> Option<Refused<'r>> {
    match site.client_auth.as_deref()? {
        ClientAuth::Unusable => Some(Refused::Answered(Answer::Status(403))),
        // The authority that renews the host's certificate has none itself.
        ClientAuth::Verify(_) if is_challenge(route, asked, path) => None,
        ClientAuth::Verify(verify) => client_auth::refuse(&site.host, verify, asked.shown),
    }
}

/// A host that keeps to itself is not had through another one's handshake.
pub(super) fn misdirected(route: &Route, asked: &Asked<'_>) -> Option<Answer> {
    let name = asked.server_name.filter(|_| route.filters.mode == Mode::Strict)?;
    (!bare_host(asked.host).eq_ignore_ascii_case(name.as_bytes())).then_some(Answer::Status(421))
}

/// By what it says of itself.
pub(super) fn blocked(router: &Router, asked: &Asked<'_>) -> Option<Answer> {
    let blocked = router.blocked.as_deref()?;
    policy::blocked::names(blocked, &asked.headers).then_some(Answer::Status(403))
}

/// Plain HTTP would be the way around a certificate that the host demands.
pub(super) fn is_closed_to(site: &Site, route: &Route, asked: &Asked<'_>, path: &[u8]) -> bool {
    match site.client_auth.as_deref() {
        Some(ClientAuth::Verify(verify)) => {
            client_auth::is_closed_to_plain(verify, asked.shown) && !is_challenge(route, asked, path)
        }
        Some(ClientAuth::Unusable) | None => false,
    }
}

/// An HTTP-01 challenge, which has to be answered over plain HTTP whatever the host demands. The Ingress has to have
/// its path for that: what an application behind another one makes of a path that begins so (`..;/`) is its own affair.
fn is_challenge(route: &Route, asked: &Asked<'_>, path: &[u8]) -> bool {
    let (own, asks) = (route.labels.path.as_bytes(), matches!(asked.shown, Shown::Plain));
    let below = |path: &[u8]| path.strip_prefix(CHALLENGES.as_bytes()).map(|rest| rest.first().copied());
    asks && matches!(below(own), Some(None | Some(b'/'))) && below(path) == Some(Some(b'/'))
}
