//! What was decided about a request, for when the bytes of its head are gone.

use std::cell::RefCell;
use std::hint::cold_path;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::super::auth::Checks;
use super::super::buffer::Scratch;
use super::super::canary::Side;
use super::super::exchange::{Limits, Outgoing};
use super::super::fcgi;
use super::super::filters::{Answer, Decision, Next};
use super::super::h1::Body;
use super::super::h1::head::Refusal;
use super::super::heads::{After, Form};
use super::super::limit_zones::{self, UnderWay};
use super::super::log::{self, Place, Subject};
use super::super::metrics::Method;
use super::super::pages::Page;
use super::super::policy::HeaderEdits;
use super::super::route::{At, Route, Router};
use super::super::snapshot::Snapshot;
use super::super::trace::{self, Begun};
use super::super::upstream::{Lead, Record, Speech};
use super::super::variable::{self, Known};
use super::super::worker::Worker;
use crate::model::l7::{Buffers, Filters};
use crate::model::upstream::{Condition, Conditions, Retry};

/// What the bytes that were read are.
pub(super) enum Head {
    Incomplete,
    Planned(Placed),
    /// The preface of HTTP/2.
    Http2,
    Refused(Refusal),
}

/// Which bytes of a head are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The first ones.
    Request,
    /// Others, behind those that came.
    Rest,
}

/// What came of waiting for bytes.
pub(super) enum Filled {
    Bytes,
    End,
    Late,
}

/// Plans whose memory a thread keeps; beyond that a burst allocates and frees.
const SPARE_MAX: usize = 256;

thread_local! {
    /// Memory of plans that were carried out; empty.
    #[expect(clippy::vec_box, reason = "the boxes are what is used again")]
    static SPARE: RefCell<Vec<Box<Slot>>> = const { RefCell::new(Vec::new()) };
}

/// Where a plan may lie.
#[derive(Default)]
struct Slot(Option<Plan>);

/// A plan in memory that the thread uses again: an allocator has few pieces of a size at hand, and every request under
/// way holds one. Of the size of a pointer, for it stands more than once in a request's future, which has to stay small
/// enough for the allocator to have pieces of its size at hand at all. `None` only while it is dropped.
pub(super) struct Placed(Option<Box<Slot>>);

impl Placed {
    pub(super) fn new(plan: Plan) -> Self {
        let mut place = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        place.0 = Some(plan);
        Self(Some(place))
    }
}

impl Deref for Placed {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        self.0.as_ref().and_then(|place| place.0.as_ref()).expect("the plan it was made of")
    }
}

impl DerefMut for Placed {
    fn deref_mut(&mut self) -> &mut Plan {
        self.0.as_mut().and_then(|place| place.0.as_mut()).expect("the plan it was made of")
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let Some(mut place) = self.0.take() else { return };
        place.0 = None;
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(place);
            }
        });
    }
}

/// A decided request, free of the bytes it was read from.
pub(super) struct Plan {
    pub(super) started: Instant,
    /// The client wants the connection to end with its response, and all of the request is here.
    pub(super) is_farewell: bool,
    pub(super) head_len: usize,
    pub(super) method: Method,
    pub(super) form: Form,
    pub(super) after: After,
    pub(super) body: Body,
    pub(super) checks: Option<Box<Checks>>,
    /// What becomes of errors that somebody else words.
    pub(super) page: Option<Box<Page>>,
    pub(super) step: Step,
    pub(super) edits: HeaderEdits,
    pub(super) route: (At, Side),
    pub(super) filters: Limits,
    pub(super) snapshot: Rc<Snapshot>,
    pub(super) account: Account,
    /// How long its head took to come, where it came in pieces.
    pub(super) waited: Duration,
    /// To be kept until the request has ended. Boxed, as `checks`: few requests have them, all
    /// connections the place.
    pub(super) under_way: Option<Box<UnderWay>>,
    /// What its attempts came to.
    pub(super) record: Record,
    /// Somebody else words its error.
    pub(super) is_worded: bool,
}

/// What becomes of it.
pub(super) enum Step {
    /// The client is gone.
    Nothing,
    Answer(Answer),
    Exchange(Outgoing),
}

/// All of a body that is so small that a copy of it costs little.
pub(super) fn small<'b>(body: &Body, here: &'b [u8]) -> Option<&'b [u8]> {
    const SMALL: u64 = 8 * 1024;
    match body {
        Body::Length(length) if (1..=SMALL).contains(length) => here.get(..usize::try_from(*length).ok()?),
        _ => None,
    }
}

/// How much of a body that is read whole before an endpoint is chosen is held in memory; `None`: it streams.
/// What is a conversation cannot be held, which is not asked here.
pub(super) fn held(filters: &Filters, body: &Body, is_http10: bool, is_idempotent: bool) -> Option<usize> {
    // HTTP/1.0 has to tell the length of a body.
    let has_no_length = is_http10 && matches!(body, Body::Chunked(_));
    let held = filters.buffers.request.or(has_no_length.then_some(Buffers::REQUEST_BYTES));
    held.or_else(|| for_another_attempt(filters, body, is_idempotent))
}

/// How much of a body is held in memory because another attempt would need it: one that is
/// short, which costs next to nothing, and any where more than failures leads to the next endpoint.
fn for_another_attempt(filters: &Filters, body: &Body, is_idempotent: bool) -> Option<usize> {
    let Retry { on, tries, within: _ } = filters.retry;
    let repeats = tries != 1 && on != Conditions::default();
    let may_repeat = repeats && (is_idempotent || on.has(Condition::NonIdempotent));
    let in_memory = filters.buffers.again.filter(|_| may_repeat && !body.is_done())?;
    cold_path();
    let is_short = matches!(body, Body::Length(length) if *length <= in_memory as u64);
    (is_short || on.judges_answers()).then_some(in_memory)
}

/// What leads a request to its endpoint: its session, else the key of an upstream that has one.
pub(super) fn lead(
    pinned: Option<usize>,
    snapshot: &Snapshot,
    upstream: usize,
    known: Known<'_, '_, '_>,
) -> Lead {
    if let Some(pinned) = pinned {
        cold_path();
        return Lead::Endpoint(pinned);
    }
    let key = snapshot.router.upstreams.get(upstream).and_then(|entry| entry.key.as_ref());
    Lead::Hash(key.map_or(0, |key| variable::hash(key, known)))
}

/// Counts a request that has limits; one beyond them is answered instead.
pub(super) fn count(
    worker: &Worker,
    router: &Router,
    decision: &mut Decision<'_>,
    known: Known<'_, '_, '_>,
    started: Instant,
) -> Option<Box<UnderWay>> {
    let limits = decision.limits?;
    cold_path();
    let zone = router.limit_zones.get(&limits.ingress)?;
    let client = match &limits.by {
        None => limit_zones::Client::at(known.effective.addr),
        Some(by) => {
            let mut shown = Scratch::take();
            variable::fill_in(by, known, &mut shown);
            if shown.is_empty() {
                return None;
            }
            zone.client_of(&shown)
        }
    };
    let under_way = zone.admit(limits, client, started).unwrap_or_else(|limit| {
        let status = worker.limited(limits, limit, known.effective.addr);
        decision.next = Next::Answer(Answer::Status(status));
        None
    });
    under_way.map(Box::new)
}

/// What a FastCGI application is told of the request; nothing for others.
pub(super) fn params(
    route: &Route,
    (alternative, target): (&str, Option<&[u8]>),
    subject: Subject<'_, '_, '_>,
) -> fcgi::Params {
    let asks = route.speech() == Speech::FastCgi;
    let Some(location) = route.filters.fastcgi.as_ref().filter(|_| asks) else {
        return fcgi::Params::default();
    };
    cold_path();
    let place = Place { route, upstream: log::upstream_name(route), stand_in: "", alternative, target };
    fcgi::Params::of(location, &Subject { place: Some(place), ..subject })
}

/// What is begun of what is to be told of a request.
#[derive(Default)]
pub(super) struct Account {
    /// Its line in the access log, if it gets one.
    pub(super) line: Option<Scratch>,
    /// Its span, if it is recorded.
    pub(super) span: Option<Box<Begun>>,
}

/// The beginning of what is told of a request.
pub(super) fn begin_account(
    router: &Router,
    decision: &Decision<'_>,
    subject: Subject<'_, '_, '_>,
) -> Account {
    let target = match &decision.next {
        Next::Proxy { target, .. } => target.as_deref(),
        Next::Answer(_) => None,
    };
    let route = decision.route;
    let (upstream, alternative) = (log::upstream_name(route), log::alternative_name(router, &decision.next));
    let stand_in = log::stand_in_name(router, &decision.next);
    let place = Place { route, upstream, stand_in, alternative, target };
    let subject = Subject { place: Some(place), ..subject };
    let is_ours = matches!(decision.next, Next::Answer(Answer::Healthy | Answer::NginxStatus(_)));
    Account {
        line: log::begin(router, &decision.next, &subject),
        span: if is_ours { None } else { trace::begin(&subject) },
    }
}
