//! The access log: a line is begun when its request is decided, ended with its
//! response, collected by the worker and written by a thread of its own.

mod escape;
mod journal;
mod kept;
mod line;
mod stamp;
mod streams;
mod syslog;
mod writer;

use super::buffer::Scratch;
use super::canary::Side;
use super::filters::{Answer, Next};
use super::route::{Route, RouteAction, Router};
use crate::model::l7::AccessLog;
use crate::model::l7::log::{Early, Escape, Format, Late, Part};
use stamp::Stamp;

pub(super) use journal::{Journal, Outlet};
pub(super) use kept::Kept;
pub(super) use line::{End, Place, Subject};
pub(super) use streams::Ended;
pub(super) use writer::{Writer, start};

/// Name of the upstream of requests that go to the default backend.
const DEFAULT_BACKEND: &str = "upstream-default-backend";

/// What is counted while a request is served.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// Body bytes that were read from the client.
    pub(super) body_received: u64,
    /// Bytes that were written to the client.
    pub(super) head_sent: u64,
    pub(super) body_sent: u64,
}

impl Tally {
    /// Bytes of the request, whose head had so many, and of the response.
    pub(super) fn of_whole(&self, head: usize) -> (u64, u64) {
        (head as u64 + self.body_received, self.head_sent + self.body_sent)
    }
}

/// Begins the line of a decided request; `None` if it is not logged.
pub(super) fn begin(router: &Router, next: &Next, subject: &Subject<'_, '_, '_>) -> Option<Scratch> {
    let log = router.log.as_deref()?;
    let wanted = subject.place.is_none_or(|place| {
        let target = subject.request.map_or(&b""[..], |request| request.target);
        place.route.filters.logged
            && !matches!(next, Next::Answer(Answer::Healthy | Answer::NginxStatus(_)))
            && (log.unclaimed || !place.route.is_unclaimed())
            && !is_skipped(log, target)
    });
    wanted.then(|| line::begin(&log.format, subject))
}

/// Appends the value of a variable as it is, for another use than a line; nothing where there is none.
pub(super) fn expand(early: &Early, subject: &Subject<'_, '_, '_>, out: &mut Vec<u8>) {
    line::early_value(early, Escape::None, subject, out);
}

/// Begins a text that is made like a line, for another use.
pub(super) fn begin_text(format: &Format, subject: &Subject<'_, '_, '_>) -> Scratch {
    line::begin(format, subject)
}

/// Ends such a text: what was begun, and what the response tells but for its heads.
pub(super) fn end_text(format: &Format, begun: &[u8], end: &End<'_>, out: &mut Vec<u8>) {
    let mut stamp = Stamp::default();
    let is_of_time = |late: &Late| matches!(late, Late::TimeLocal | Late::TimeIso | Late::Epoch);
    if format.parts.iter().any(|part| matches!(part, Part::Late(late) if is_of_time(late))) {
        stamp.renew();
    }
    line::finish(format, begun, end, &stamp, out);
}

/// Begins the line of what was no request.
pub(super) fn begin_refused(router: &Router, subject: &Subject<'_, '_, '_>) -> Option<Scratch> {
    router.log.as_deref().map(|log| line::begin(&log.format, subject))
}

fn is_skipped(log: &AccessLog, target: &[u8]) -> bool {
    log.skip.iter().any(|url| url.takes(target))
}

/// Name of a route's upstream, whether or not the route leads there; empty without one.
pub(super) fn upstream_name(route: &Route) -> &str {
    match route.action {
        RouteAction::DefaultBackend(_) => DEFAULT_BACKEND,
        RouteAction::Proxy(_) | RouteAction::Redirect | RouteAction::Deny => {
            route.backend.as_ref().map_or("", |backend| &backend.upstream.0)
        }
    }
}

/// `$proxy_upstream_name` when the response has ended: who worded an error, else who stood in, else the route's own.
pub(super) fn answered_by<'r>(router: &'r Router, route: &'r Route, side: Side, is_worded: bool) -> &'r str {
    if !is_worded && side != Side::StandIn {
        return upstream_name(route);
    }
    let stand_in = route.pages.as_ref().and_then(|pages| router.upstreams.get(pages.stand_in?));
    stand_in.map_or(DEFAULT_BACKEND, |upstream| &upstream.name.0)
}

/// The same where the default backend of its Ingress stands in; empty otherwise.
pub(super) fn stand_in_name<'r>(router: &'r Router, next: &Next) -> &'r str {
    taken_by(router, next, Side::StandIn)
}

/// `$proxy_alternative_upstream_name`: that of the canary which takes the request; empty otherwise.
pub(super) fn alternative_name<'r>(router: &'r Router, next: &Next) -> &'r str {
    taken_by(router, next, Side::Canary)
}

fn taken_by<'r>(router: &'r Router, next: &Next, wanted: Side) -> &'r str {
    match next {
        Next::Proxy { upstream, side, .. } if *side == wanted => {
            router.upstreams.get(*upstream).map_or("", |upstream| &upstream.name.0)
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
