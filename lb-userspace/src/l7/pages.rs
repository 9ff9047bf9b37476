//! Errors that another service words: what it is asked in the place of an answer.
//!
//! The question is written with the decision, while the request's bytes are there, and asked once it is known
//! that the answer would be one of those errors. By then everything else is decided: who may enter, and
//! which endpoints were tried. What comes of it is the answer, whatever it is.

use std::hint::cold_path;
use std::sync::Arc;

use super::buffer::Scratch;
use super::canary::Side;
use super::compress::Accepts;
use super::exchange::{Hold, Limits, Outgoing};
use super::fcgi;
use super::filters::{Answer, Next};
use super::h1::head::{Block, LineSet};
use super::h1::{Body, Request};
use super::heads::{self, Form, Onward};
use super::hold::Held;
use super::log::{self, Place, Subject};
use super::path;
use super::route::{Route, RouteAction, Router};
use super::upstream::{Lead, Speech, Terms, Transport};
use super::variable::Known;
use crate::model::l7::log::Early;
use crate::model::l7::{Filters, Forwarding, Policies};

/// What an error backend is told beside what any upstream is; clients have no say in it.
const NAMES: [&str; 7] = [
    "X-Code",
    "X-Format",
    "X-Original-URI",
    "X-Namespace",
    "X-Ingress-Name",
    "X-Service-Name",
    "X-Service-Port",
];

/// The question that a request with an error leads to.
pub(super) struct Page {
    /// Without what tells the length of its body, and without the empty line at the end.
    head: Scratch,
    /// Where the status is to be written.
    code_at: usize,
    /// Which upstream is asked; `None`: nobody is there.
    upstream: Option<usize>,
    policies: Arc<Policies>,
    /// What its own exchange keeps to.
    pub(super) limits: Limits,
    /// All of a body that is small and goes upstream with its head.
    small: Scratch,
    has_body: bool,
    expects_continue: bool,
    pub(super) form: Form,
    is_idempotent: bool,
    /// That of a default backend which nobody runs is an upstream's, like any other.
    spares_404: bool,
}

/// What is left of a request's body.
pub(super) enum Rest {
    /// Nothing that could be sent again.
    Nothing,
    /// All of it, with the client.
    Unread(Body),
    /// All of it, here.
    Held(Box<Held>),
}

impl Rest {
    /// Of a body that was to be held.
    pub(super) fn of(hold: Hold) -> Self {
        match hold {
            Hold::Here(held) => Self::Held(held),
            Hold::No | Hold::UpTo(_) => Self::Nothing,
        }
    }
}

impl Page {
    /// That of a request, if its location has errors worded by somebody else, and it may come to one.
    pub(super) fn of(
        router: &Router,
        route: &Route,
        next: &Next,
        subject: &Subject<'_, '_, '_>,
        known: Known<'_, '_, '_>,
    ) -> Option<Box<Self>> {
        let policies = route.filters.policies.as_ref()?;
        let errors = policies.errors.as_ref().filter(|errors| !errors.statuses.is_empty())?;
        cold_path();
        match next {
            Next::Proxy { .. } | Next::Answer(Answer::Status(404)) => {}
            Next::Answer(Answer::Status(status)) if errors.statuses.contains(status) => {}
            Next::Answer(_) => return None,
        }
        let Known { request, .. } = known;
        let framing = request.block.named(|name| name.eq_ignore_ascii_case("content-length"));
        let drop = request.drop.with(framing).with(request.transfer_encoding).with(told(&request.block));
        let drop = drop.with(super::policy::kept_back(policies, &request.block));
        let asked = Request { drop, upgrade: None, ..*request };
        let mut target = b"/".to_vec();
        if let (_, Some(query)) = path::split_query(request.target) {
            target.push(b'?');
            target.extend_from_slice(query);
        }
        let forwarding = Forwarding { original_uri: false, ..router.edge.forwarding.clone() };
        let onward = Onward {
            target: Some(&target),
            prefix: None,
            certificate: None,
            policy: None,
            forwarding: &forwarding,
        };
        let mut head = Scratch::take();
        heads::request(Known { request: &asked, ..known }, onward, &mut head);
        let code_at = tell(route, 0, Some(request.target), subject, &mut head);
        let end = head.len().saturating_sub(END.len());
        head.truncate(end);
        let filters = Filters { max_body_bytes: route.filters.max_body_bytes, ..Filters::default() };
        Some(Box::new(Self {
            head,
            code_at,
            upstream: route.pages.as_ref().and_then(|pages| pages.backend),
            policies: Arc::clone(policies),
            limits: Limits::of(&filters),
            small: Scratch::take(),
            has_body: request.chunked || request.length.is_some(),
            expects_continue: request.expects_continue,
            form: Form { version: request.version, is_head: request.method == "HEAD" },
            is_idempotent: !matches!(request.method, "POST" | "PATCH" | "LOCK"),
            spares_404: errors.only_ours && matches!(route.action, RouteAction::DefaultBackend(_)),
        }))
    }

    /// All of the body is in the head for the upstream.
    pub(super) fn keep_small(&mut self, body: &[u8]) {
        self.small.extend_from_slice(body);
    }

    /// The policies by which an upstream's answers are replaced; `None`: they are not. Who stands in words errors
    /// itself, and other protocols have their own.
    pub(super) fn intercepts(&self, speech: Speech, side: Side) -> Option<Arc<Policies>> {
        let errors = self.policies.errors.as_ref()?;
        let is_final = errors.only_ours || speech != Speech::Http1 || side == Side::StandIn;
        (!is_final).then(|| Arc::clone(&self.policies))
    }

    /// The client does not hear of this status.
    pub(super) fn replaces(&self, status: u16) -> bool {
        !(self.spares_404 && status == 404) && replaces(&self.policies, status)
    }

    /// The question about this status; `None`: there is nobody to ask.
    pub(super) fn question(self, status: u16, rest: Rest) -> Option<Outgoing> {
        let Self { mut head, code_at, upstream, small, has_body, .. } = self;
        let code = format!("{status:03}");
        if let Some(place) = head.get_mut(code_at..code_at + code.len()) {
            place.copy_from_slice(code.as_bytes());
        }
        head.extend_from_slice(END);
        let is_awaited = matches!(&rest, Rest::Unread(body) if !body.is_done());
        let (body, hold) = match rest {
            _ if !small.is_empty() => {
                heads::add_length(small.len() as u64, &mut head);
                head.extend_from_slice(&small);
                (Body::Length(0), Hold::No)
            }
            Rest::Held(held) => {
                heads::add_length(held.len(), &mut head);
                (Body::Length(held.len()), Hold::Here(held))
            }
            Rest::Unread(body @ Body::Chunked(_)) => {
                heads::add_chunks(&mut head);
                (body, Hold::No)
            }
            Rest::Unread(Body::Length(length)) if length > 0 => {
                heads::add_length(length, &mut head);
                (Body::Length(length), Hold::No)
            }
            Rest::Unread(_) | Rest::Nothing => {
                if has_body {
                    heads::add_length(0, &mut head);
                }
                (Body::Length(0), Hold::No)
            }
        };
        let usual = Filters::default();
        Some(Outgoing {
            head,
            body,
            resent: 0,
            hold,
            version: self.form.version,
            is_head: self.form.is_head,
            upgrades: false,
            closes: false,
            expects_continue: self.expects_continue && is_awaited,
            terms: Terms {
                upstream: upstream?,
                transport: Transport::Plain,
                speech: Speech::Http1,
                connect: usual.connect_timeout,
                retry: usual.retry,
                is_idempotent: self.is_idempotent,
                lead: Lead::Hash(0),
            },
            accepts: Accepts::default(),
            copy: None,
            params: fcgi::Params::default(),
            cookie: None,
            replaced: None,
        })
    }
}

const END: &[u8] = b"\r\n";

/// Whether answers of this status are replaced.
pub(super) fn replaces(policies: &Policies, status: u16) -> bool {
    policies.errors.as_ref().is_some_and(|errors| errors.statuses.contains(&status))
}

/// Lines of the client's that look like ours.
pub(super) fn told(block: &Block<'_, '_>) -> LineSet {
    let is_ours =
        |name: &str| NAMES.iter().any(|ours| super::policy::is_same_name(ours.as_bytes(), name.as_bytes()));
    block.named(is_ours)
}

/// Adds to a finished head what an error backend is told; where the status stands in it. `uri`: the target as it
/// was asked for, where that is told. As nginx, which sends no header without a value.
pub(super) fn tell(
    route: &Route,
    status: u16,
    uri: Option<&[u8]>,
    subject: &Subject<'_, '_, '_>,
    head: &mut Vec<u8>,
) -> usize {
    let upstream = log::upstream_name(route);
    let place = Place { route, upstream, stand_in: "", alternative: "", target: None };
    let subject = Subject { place: Some(place), ..*subject };
    let accept = subject.request.and_then(|request| request.headers("accept").next());
    let mut port = Scratch::take();
    log::expand(&Early::ServicePort, &subject, &mut port);
    let labels = &route.labels;
    head.truncate(head.len().saturating_sub(END.len()));
    let code = format!("{status:03}");
    let values: [&[u8]; 7] = [
        code.as_bytes(),
        accept.unwrap_or_default(),
        uri.unwrap_or_default(),
        labels.namespace.as_bytes(),
        labels.ingress.as_bytes(),
        labels.service.as_bytes(),
        &port,
    ];
    let code_at = head.len() + NAMES[0].len() + b": ".len();
    for (name, value) in NAMES.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
        for part in [name.as_bytes(), b": ", value, END] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(END);
    code_at
}
