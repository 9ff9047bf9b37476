//! What happens to a request that found its location: the typed policies in ingress-nginx's order.
//!
//! Pure. The proxy and `explain` run the same function.

mod host;
mod told;

use std::hint::cold_path;
use std::net::IpAddr;

use regex::bytes::Captures;

use super::balance::Random;
use super::canary::{self, Side};
use super::client::{self, Effective};
use super::client_auth::{Flaw, Refused, Shown};
use crate::model::l7::policy::Limits;
use crate::model::l7::{Mode, PathMatch, RedirectQuery, RedirectStyle, SslRedirect, Template};

use super::path::{self, BadPath};
use super::policy::{self, Headers};
use super::route::{Found, HostFound, Route, RouteAction, Router, Site, bare_host};
use host::{answer_to, blocked, elsewhere, is_closed_to, is_shown, misdirected, refused_client, shown};
use told::{Subject, append_query, is_absolute};

/// Answered on hosts that no server names; load balancers in front probe it.
const HEALTH_PATH: &[u8] = b"/healthz";
/// Where the proxy tells of itself, to this host alone.
const FIGURES_PATH: &[u8] = b"/nginx_status";

/// Scheme by which the request came, decided by the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a decision depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    /// Of the client's side of whoever stands in front.
    pub(super) scheme: Scheme,
    /// Host header, as sent: the server is found by it.
    pub(super) host: &'a [u8],
    /// Host of redirects, as sent: what the client named to whoever stands in front.
    pub(super) named: &'a [u8],
    /// Path and query, as sent.
    pub(super) target: &'a [u8],
    /// `Content-Length`.
    pub(super) length: Option<u64>,
    /// Port the client connected to.
    pub(super) port: u16,
    /// Port of the TLS listener.
    pub(super) https_port: u16,
    /// Who asks.
    pub(super) client: IpAddr,
    /// Name that the client shook hands with; `None` without TLS, or a name.
    pub(super) server_name: Option<&'a str>,
    /// What is known of the client's certificate.
    pub(super) shown: Shown<'a>,
    pub(super) headers: Headers<'a>,
    /// Draws for the canary; `None` where nobody is led anywhere.
    pub(super) random: Option<&'a Random>,
}

/// What becomes of a request and by which location.
#[derive(Debug)]
pub(super) struct Decision<'r> {
    pub(super) site: &'r Site,
    pub(super) host: HostFound,
    pub(super) route: &'r Route,
    /// What it counts towards: it got so far, and its client is not exempt. Within the limits, `next` holds.
    pub(super) limits: Option<&'r Limits>,
    /// `next` stands behind the question who may enter, whatever it is.
    is_behind_access: bool,
    pub(super) next: Next,
}

impl Decision<'_> {
    /// The client gets what the location holds, or hears that it holds nothing: first it has to show what the
    /// location asks for. Everything else is told to anybody, redirects only where the location is not strict. A
    /// browser shows nothing with a preflight, so nothing is asked of one.
    pub(super) fn lets_in(&self) -> bool {
        match &self.next {
            Next::Proxy { .. } | Next::Answer(Answer::Status(404)) => true,
            Next::Answer(Answer::Redirect { .. }) => self.is_behind_access,
            Next::Answer(_) => false,
        }
    }
}

/// The last step of a [`Decision`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// To an upstream, which has endpoints.
    Proxy {
        /// Index in the router.
        upstream: usize,
        /// Whether that is the canary of the location's own.
        side: Side,
        /// Request target if it is not the client's.
        target: Option<Vec<u8>>,
        /// `X-Forwarded-Prefix`, where the target was rewritten and one is asked for.
        prefix: Option<Vec<u8>>,
    },
    /// Answered here.
    Answer(Answer),
}

impl Next {
    /// Which side of its upstream gets the request.
    pub(super) fn side(&self) -> Side {
        match self {
            Self::Proxy { side, .. } => *side,
            Self::Answer(_) => Side::Primary,
        }
    }

    /// It is something that its location was written for, and no refusal.
    fn is_of_location(&self) -> bool {
        matches!(self, Self::Proxy { .. } | Self::Answer(Answer::Redirect { .. } | Answer::Preflight))
    }
}

/// A response of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// An error page.
    Status(u16),
    /// 400, and what is wrong with the client's certificate. No page of 400 takes its place: nginx has statuses of
    /// its own for these within.
    Certificate(Flaw),
    /// A redirect.
    Redirect {
        /// 300 to 308.
        status: u16,
        /// Location header.
        location: Vec<u8>,
    },
    /// 200 for `/healthz`.
    Healthy,
    /// 200 with this page, which is written when all workers were asked.
    NginxStatus(String),
    /// 204 for a browser that asks before it sends another site's request.
    Preflight,
}

/// Decides about one request by what is believed of its headers, which is less on a strict location.
/// `asked` says what the connection says, and comes back corrected.
pub(super) fn decide_by_words<'r, 'a>(
    router: &'r Router,
    arrived: Effective<'a>,
    asked: Asked<'a>,
) -> (Effective<'a>, Asked<'a>, Decision<'r>) {
    if router.edge.forwarding.behind.is_none() {
        // Nobody stands in front whose words could be believed.
        return (arrived, asked, decide(router, &asked));
    }
    let by = |mode| {
        let effective = client::effective(&router.edge.forwarding, mode, arrived, &asked.headers);
        let Effective { addr: client, scheme, host: named, port: _, word: _ } = effective;
        (effective, Asked { client, scheme, named, ..asked })
    };
    let (effective, asked) = by(Mode::Compat);
    let decision = decide(router, &asked);
    if decision.route.filters.mode == Mode::Strict {
        let (believed, asked) = by(Mode::Strict);
        if believed != effective {
            let decision = decide(router, &asked);
            return (believed, asked, decision);
        }
    }
    (effective, asked, decision)
}

/// Decides about one request.
pub(super) fn decide<'r>(router: &'r Router, asked: &Asked<'_>) -> Decision<'r> {
    let (site, host) = router.site(asked.host);
    let (raw_path, query) = path::split_query(asked.target);
    let normal = match path::normalize(raw_path) {
        Ok(normal) => normal,
        Err(BadPath) => {
            cold_path();
            let Found { route, .. } = site.find(b"/");
            let next = Next::Answer(Answer::Status(400));
            return Decision { site, host, route, limits: None, is_behind_access: false, next };
        }
    };
    let Found { route, add_slash } = site.find(&normal);
    let too_large =
        route.filters.max_body_bytes.is_some_and(|max| asked.length.is_some_and(|length| length > max));
    let refused = match refused_client(site, route, asked, &normal) {
        Some(Refused::Flawed(_, Some(page))) if blocked(router, asked).is_none() && is_shown(page, asked) => {
            cold_path();
            return shown(router, (site, host), page, asked);
        }
        Some(refused) => Some(answer_to(refused, asked)),
        None => misdirected(route, asked).or_else(|| blocked(router, asked)),
    };
    let root = site.app_root.as_ref().filter(|_| normal.as_ref() == b"/");
    let (mut limits, mut is_behind_access) = (None, false);
    let next = if let Some(answer) = refused {
        cold_path();
        Next::Answer(answer)
    } else if let Some(moved) = &site.moved {
        cold_path();
        Next::Answer(elsewhere(asked, moved))
    } else if let Some(root) = root.filter(|_| route.filters.mode == Mode::Compat) {
        cold_path();
        Next::Answer(app_root(root, Subject { asked, labels: &route.labels, path: &normal, query }))
    } else if too_large {
        cold_path();
        Next::Answer(Answer::Status(413))
    } else if add_slash && route.filters.mode == Mode::Compat {
        cold_path();
        Next::Answer(slash_redirect(asked, &normal, query, &route.filters.redirects))
    } else if is_ours(HEALTH_PATH, asked, host, &normal, route) {
        cold_path();
        Next::Answer(Answer::Healthy)
    } else if is_ours(FIGURES_PATH, asked, host, &normal, route) {
        cold_path();
        let answer = match asked.client.is_loopback() {
            true => Answer::NginxStatus(String::new()),
            false => Answer::Status(403),
        };
        Next::Answer(answer)
    } else {
        match filter(router, route, (root, add_slash), asked, &normal, query) {
            Err(answer) => {
                cold_path();
                Next::Answer(answer)
            }
            Ok(next) if next.is_of_location() && is_closed_to(site, route, asked, &normal) => {
                cold_path();
                Next::Answer(Answer::Status(403))
            }
            Ok(next) => {
                let policies = route.filters.policies.as_deref();
                limits = policies.and_then(|policies| policy::limits(policies, asked));
                is_behind_access = true;
                next
            }
        }
    };
    Decision { site, host, route, limits, is_behind_access, next }
}

/// What may be answered in the place of what a location holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Who may not enter, by address.
    Address,
    Preflight,
    /// Of its host.
    AppRoot,
    Redirect,
    /// To the path with the slash that it lacks.
    Slash,
    /// Where a rewrite leads to a URL.
    Elsewhere,
    Https,
}

/// In ingress-nginx's order; there `app-root` and the slash come before everything here, and the address after it ([`onward`]).
const COMPAT: &[Step] = &[Step::Preflight, Step::Redirect, Step::Elsewhere, Step::Https];
/// On a strict location nothing of it is told to who may not enter. Only the way to https comes before what a
/// client has to show, which may be a password.
const STRICT: &[Step] = &[
    Step::Address,
    Step::Preflight,
    Step::Https,
    Step::AppRoot,
    Step::Redirect,
    Step::Slash,
    Step::Elsewhere,
];

/// The first answer that one of the steps has, else on to the upstream. The error is what is answered before the limits
/// of requests count.
fn filter(
    router: &Router,
    route: &Route,
    (root, add_slash): (Option<&Template>, bool),
    asked: &Asked<'_>,
    path: &[u8],
    query: Option<&[u8]>,
) -> Result<Next, Answer> {
    if route.action == RouteAction::Deny {
        return Err(Answer::Status(503));
    }
    let filters = &route.filters;
    let order = match filters.mode {
        Mode::Compat => COMPAT,
        Mode::Strict => STRICT,
    };
    let subject = Subject { asked, labels: &route.labels, path, query };
    let mut rewritten = None;
    for step in order {
        let answer = match step {
            Step::Address => refuse(router, route, asked),
            Step::Preflight => preflight(route, asked),
            Step::AppRoot => root.map(|root| app_root(root, subject)),
            Step::Redirect => redirect(route, asked, path, query),
            Step::Slash => add_slash.then(|| slash_redirect(asked, path, query, &filters.redirects)),
            Step::Elsewhere => {
                rewritten.get_or_insert_with(|| Rewritten::of(route, asked, path, query)).elsewhere()
            }
            Step::Https => to_https(route, asked),
        };
        match (answer, filters.mode) {
            (None, _) => {}
            (Some(answer), Mode::Strict) if *step != Step::Https => return Ok(Next::Answer(answer)),
            (Some(answer), _) => return Err(answer),
        }
    }
    let rewritten = rewritten.unwrap_or_else(|| Rewritten::of(route, asked, path, query));
    onward(router, route, subject, rewritten)
}

/// What a location's rewrite makes of a request.
struct Rewritten<'p> {
    captures: Option<Captures<'p>>,
    target: Option<Vec<u8>>,
}

impl<'p> Rewritten<'p> {
    fn of(route: &Route, asked: &Asked<'_>, path: &'p [u8], query: Option<&[u8]>) -> Self {
        let Some(rewrite) = &route.filters.rewrite else { return Self { captures: None, target: None } };
        cold_path();
        let (raw_path, _) = path::split_query(asked.target);
        let captures = rewrite.pattern.regex().captures(path);
        let subject = Subject { asked, labels: &route.labels, path, query };
        let target = captures.as_ref().map(|captures| subject.target(&rewrite.target, captures, raw_path));
        Self { captures, target }
    }

    /// To a URL.
    fn elsewhere(&self) -> Option<Answer> {
        let location = self.target.as_ref().filter(|target| is_absolute(target))?;
        Some(Answer::Redirect { status: 302, location: location.clone() })
    }
}

fn preflight(route: &Route, asked: &Asked<'_>) -> Option<Answer> {
    policy::preflight(route.filters.policies.as_deref()?, asked)
}

fn to_https(route: &Route, asked: &Asked<'_>) -> Option<Answer> {
    let filters = &route.filters;
    let is_due = asked.scheme == Scheme::Http && filters.ssl_redirect == SslRedirect::Always;
    is_due.then(|| {
        cold_path();
        https_redirect(asked, &filters.redirects)
    })
}

/// Turns away by address.
fn refuse(router: &Router, route: &Route, asked: &Asked<'_>) -> Option<Answer> {
    if router.blocked.as_ref().is_some_and(|blocked| policy::blocked::holds(blocked, asked.client)) {
        return Some(Answer::Status(403));
    }
    policy::refuse(route.filters.policies.as_deref()?, asked)
}

/// Who is asked for what the location holds, and whether the client may.
fn onward(
    router: &Router,
    route: &Route,
    subject: Subject<'_>,
    rewritten: Rewritten<'_>,
) -> Result<Next, Answer> {
    let asked = subject.asked;
    let (upstream, without) = match route.action {
        RouteAction::Proxy(upstream) => (upstream, 503),
        RouteAction::DefaultBackend(upstream) => (upstream, 404),
        RouteAction::Redirect | RouteAction::Deny => (None, 503),
    };
    let ready = |&i: &usize| router.upstreams.get(i).is_some_and(|u| !u.endpoints.is_empty());
    let primary = upstream.filter(ready).map(|upstream| (upstream, Side::Primary));
    let stand_in = route.pages.as_ref().and_then(|pages| pages.stand_in).filter(|_| without == 503);
    let served = primary.or(stand_in.map(|upstream| (upstream, Side::StandIn)));
    // A Service without endpoints is as good as closed; what nobody claims is told to who may enter.
    if served.is_none() && without == 503 {
        return Err(Answer::Status(without));
    }
    if let Some(answer) = refuse(router, route, asked) {
        return Ok(Next::Answer(answer));
    }
    let Some((upstream, side)) = served else { return Ok(Next::Answer(Answer::Status(without))) };
    let canary = canary_choice(router, route, asked);
    let canary = canary.filter(|choice| choice.side == Side::Canary && side == Side::Primary);
    let (upstream, side) = canary.map_or((upstream, side), |c| (c.canary.upstream, Side::Canary));
    let Rewritten { captures, target } = rewritten;
    let asked_for = route.filters.policies.as_ref().and_then(|p| p.request.as_ref()?.prefix.as_ref());
    let prefix = asked_for.zip(captures.as_ref()).map(|(prefix, captures)| subject.header(prefix, captures));
    Ok(Next::Proxy { upstream, side, target, prefix })
}

/// What is decided about the canary of a location's upstream, if it has one.
pub(super) fn canary_choice<'r>(
    router: &'r Router,
    route: &Route,
    asked: &Asked<'_>,
) -> Option<canary::Choice<'r>> {
    let RouteAction::Proxy(Some(primary)) = route.action else { return None };
    canary::choose(router, router.upstreams.get(primary)?, &asked.headers, asked.random)
}

/// On `_` over plain HTTP, unless a user's location claims the path.
fn is_ours(ours: &[u8], asked: &Asked<'_>, host: HostFound, path: &[u8], route: &Route) -> bool {
    matches!(asked.shown, Shown::Plain)
        && host == HostFound::Unnamed
        && path == ours
        && route.literal_len() < ours.len()
}

/// `permanent-redirect` and its kin, with the captures of a regex location.
fn redirect(route: &Route, asked: &Asked<'_>, path: &[u8], query: Option<&[u8]>) -> Option<Answer> {
    let redirect = route.redirect.as_ref()?;
    cold_path();
    let captures = match &route.path {
        Some(PathMatch::Regex(pattern)) => pattern.regex().captures(path),
        _ => None,
    };
    let mut location = Vec::new();
    let subject = Subject { asked, labels: &route.labels, path, query };
    subject.put_location(&redirect.location, captures.as_ref(), &mut location);
    if location.starts_with(b"/") {
        let mut whole = Vec::with_capacity(asked.named.len() + location.len() + 16);
        push_own_host(asked, &route.filters.redirects, &mut whole);
        whole.append(&mut location);
        location = whole;
    }
    if redirect.query == RedirectQuery::Append {
        append_query(&mut location, query);
    }
    Some(Answer::Redirect { status: redirect.status, location })
}

/// To `app-root`, on the host and port the client named.
fn app_root(root: &Template, subject: Subject<'_>) -> Answer {
    let asked = subject.asked;
    let mut location = [asked.scheme.as_str().as_bytes(), b"://", asked.named].concat();
    subject.put_location(root, None, &mut location);
    Answer::Redirect { status: 302, location }
}

/// What nginx puts before a path that a client is sent to: scheme and host as the client wrote it, without a port,
/// unless the location wants it otherwise.
fn push_own_host(asked: &Asked<'_>, style: &RedirectStyle, location: &mut Vec<u8>) {
    if style.is_relative {
        return;
    }
    location.extend_from_slice(asked.scheme.as_str().as_bytes());
    location.extend_from_slice(b"://");
    location.extend_from_slice(bare_host(asked.named));
    let usual = if asked.scheme == Scheme::Https { 443 } else { 80 };
    if style.names_port && asked.port != usual {
        push_port(asked.port, location);
    }
}

/// nginx's directory redirect.
fn slash_redirect(asked: &Asked<'_>, path: &[u8], query: Option<&[u8]>, style: &RedirectStyle) -> Answer {
    let mut location = Vec::with_capacity(asked.named.len() + path.len() + 16);
    push_own_host(asked, style, &mut location);
    path::escape_path(path, &mut location);
    location.push(b'/');
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        location.push(b'?');
        location.extend_from_slice(query);
    }
    Answer::Redirect { status: 301, location }
}

/// To the same target over https, one trailing slash cut. Without a port whatever the client
/// named, unless `use-port-in-redirects` asks for it.
fn https_redirect(asked: &Asked<'_>, style: &RedirectStyle) -> Answer {
    let target = match asked.target.strip_suffix(b"/") {
        Some(cut) if !style.keeps_slash => cut,
        _ => asked.target,
    };
    let mut location = Vec::with_capacity(asked.named.len() + target.len() + 8);
    location.extend_from_slice(b"https://");
    location.extend_from_slice(bare_host(asked.named));
    if style.names_port {
        push_port(asked.https_port, &mut location);
    }
    location.extend_from_slice(target);
    Answer::Redirect { status: style.status, location }
}

fn push_port(port: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(format!(":{port}").as_bytes());
}

/// A Host header as its name and the port it names.
fn split_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let name = bare_host(host);
    let port = host.iter().rposition(|&byte| byte == b':').and_then(|at| host.get(at + 1..));
    (name, port.and_then(|port| std::str::from_utf8(port).ok()?.parse().ok()))
}

#[cfg(test)]
mod tests;
