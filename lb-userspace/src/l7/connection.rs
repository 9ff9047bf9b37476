//! One client connection: reads heads, decides, answers or has the request exchanged, and keeps
//! the connection for the next one.

mod accounting;
mod answering;
mod checking;
mod crawl;
mod http2;
mod page;
mod parting;
mod plan;
mod reading;
mod refusing;

use std::future::{Future, poll_fn};
use std::hint::cold_path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub(super) use self::http2::serve_stream;
pub(super) use self::parting::linger;

pub(super) use self::crawl::Crawl;
use self::plan::{
    Awaited, Filled, Head, Placed, Plan, Step, begin_account, count, held, lead, params, small,
};
use super::auth::{self, Checks};
use super::body_memory::Share;
use super::buffer::{Buf, Scratch};
use super::canary::Side;
use super::carrier::Carrier;
use super::client::Effective;
use super::client_auth;
use super::compress::Accepts;
use super::exchange::{self, Copying, Hold, Outgoing, Sent};
use super::filters::{Answer, Asked, Next, decide_by_words};
use super::h1::head::Refusal;
use super::h1::{Body, Request};
use super::heads::{self, After, Client, Form, Onward};
use super::log::{self, Subject, Tally};
use super::metrics::Method;
use super::mirror::Copy;
use super::pages::{self, Page, Rest};
use super::policy::{self, HeaderEdits, Headers};
use super::session;
use super::socket::{Presence, Socket};
use super::timers::{Alarm, Due};
use super::trace::Context as Trace;
use super::upstream::{Record, Speech, Terms};
use super::variable::Known;
use super::worker::{During, Worker};
use crate::model::l7::ClientLimits;
use crate::model::l7::policy::RequestHeaders;

/// How long a client that has just connected may say nothing before it makes room for others.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// How long one may take that has begun to say something.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest silence of a client that should take a response (`send_timeout`).
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A client connection between and during requests.
pub(super) struct Connection<'w, 's> {
    pub(super) worker: &'w Rc<Worker>,
    pub(super) socket: Carrier<'s>,
    pub(super) buf: Buf,
    pub(super) alarm: Alarm,
    /// Apart, so that a connection that waits is small, and streams of one share it.
    pub(super) client: Rc<Client>,
    /// What it may take; as the snapshot says when a request begins.
    pub(super) limits: Rc<ClientLimits>,
    /// What the request at hand came to so far.
    pub(super) tally: Tally,
    /// What is changed in the head of its response.
    pub(super) edits: HeaderEdits,
    /// The heads of its response, where they are logged.
    pub(super) kept: Option<Box<log::Kept>>,
    /// From then on it makes room for others without having said anything, or all.
    settled: Due,
    requests: u32,
}

/// What a request leaves of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The next request may come.
    Open,
    /// It speaks HTTP/2 and was not served yet.
    Http2,
    /// All was said; body bytes may still arrive.
    Finished,
    /// All was said, by the client, too, which asked for the end.
    Over,
    /// Nothing more can be said.
    Broken,
}

impl<'w, 's> Connection<'w, 's> {
    /// One that has arrived; `first` was read from it already.
    pub(super) fn arrived(
        worker: &'w Rc<Worker>,
        socket: Socket<'s>,
        first: Buf,
        alarm: Alarm,
        client: Rc<Client>,
    ) -> Self {
        Self { buf: first, ..Self::new(worker, Carrier::Socket(socket), alarm, client) }
    }

    fn new(worker: &'w Rc<Worker>, socket: Carrier<'s>, alarm: Alarm, client: Rc<Client>) -> Self {
        let settled = alarm.due(SETTLE);
        let limits = worker.limits();
        let (tally, edits) = (Tally::default(), HeaderEdits::default());
        Self {
            worker,
            socket,
            buf: Buf::default(),
            alarm,
            client,
            limits,
            tally,
            edits,
            kept: None,
            settled,
            requests: 0,
        }
    }
}

impl Connection<'_, '_> {
    /// Of the memory for a body that is held.
    pub(super) fn share(&self) -> Share {
        Share::new(&self.worker.spills.memory, self.socket.together().cloned())
    }

    /// Serves its requests. Borrowed: what a future is given stands in it beside what becomes of that.
    pub(super) async fn serve(&mut self) {
        if self.run().await == Left::Http2 {
            // Apart, so that a connection of HTTP/1.1 does not carry its size.
            Box::pin(self.serve_http2()).await;
        }
    }

    async fn run(&mut self) -> Left {
        if self.socket.is_http2() {
            return Left::Http2;
        }
        loop {
            match self.request().await {
                Left::Open => {}
                Left::Finished => {
                    cold_path();
                    Box::pin(self.linger()).await;
                    return Left::Broken;
                }
                Left::Over => {
                    cold_path();
                    if !self.has_parted() {
                        Box::pin(self.linger()).await;
                    }
                    return Left::Broken;
                }
                left @ (Left::Broken | Left::Http2) => return left,
            }
        }
    }

    /// One request from its first byte to the last byte of its response.
    async fn request(&mut self) -> Left {
        let ClientLimits { keep_alive, header_timeout, .. } = *self.worker.limits();
        let mut due = self.alarm.due(if self.requests == 0 { header_timeout } else { keep_alive });
        let mut awaited = Awaited::Request;
        loop {
            self.skip_empty_lines();
            if !self.buf.is_empty() {
                if awaited == Awaited::Request {
                    // As they are by now: the wait for this may have been long.
                    self.limits = self.worker.limits();
                }
                match self.read_head() {
                    Head::Incomplete if awaited == Awaited::Request => {
                        cold_path();
                        (awaited, due) = (Awaited::Rest, self.alarm.due(self.limits.header_timeout));
                        self.settled = self.alarm.due(PATIENCE);
                    }
                    Head::Incomplete => cold_path(),
                    Head::Http2 => {
                        cold_path();
                        return Left::Http2;
                    }
                    // As a whole: what is taken out of it here would keep its place in the future.
                    head => {
                        let waited = match awaited {
                            Awaited::Request => Duration::ZERO,
                            Awaited::Rest => {
                                cold_path();
                                self.waited(due)
                            }
                        };
                        return self.act(head, waited).await;
                    }
                }
            }
            match self.fill(due, awaited).await {
                Filled::Bytes => {}
                Filled::End => {
                    cold_path();
                    self.socket.close_notify();
                    return Left::Broken;
                }
                Filled::Late if awaited == Awaited::Rest && !self.worker.is_cut_off() => {
                    cold_path();
                    return Box::pin(self.answer_outside(408, self.waited(due))).await;
                }
                Filled::Late => {
                    cold_path();
                    return Left::Finished;
                }
            }
        }
    }

    /// What follows from a head, apart: a connection that waits does not carry the size of a request, and
    /// those under way use the same few pieces of memory, warm in the cache.
    /// `waited`: how long it took to come.
    fn act(&mut self, head: Head, waited: Duration) -> Pin<Box<dyn Future<Output = Left> + '_>> {
        match head {
            Head::Planned(mut plan) => {
                plan.waited = waited;
                Box::pin(self.carry_out(plan))
            }
            Head::Refused(refusal) => {
                cold_path();
                Box::pin(self.refuse(refusal, waited))
            }
            // Nothing is left to wait for.
            Head::Incomplete | Head::Http2 => {
                cold_path();
                Box::pin(self.refuse(Refusal::HeadTooLarge, waited))
            }
        }
    }

    /// How long ago the head began that may take until `due`.
    fn waited(&self, due: Due) -> Duration {
        self.alarm.since(due, self.limits.header_timeout)
    }

    /// Not an async function, which would keep its arguments twice.
    fn fill(&mut self, mut due: Due, awaited: Awaited) -> impl Future<Output = Filled> {
        let (begun, worker) = (awaited == Awaited::Rest, self.worker);
        let reading = begun.then(|| During::of(&worker.reading));
        poll_fn(move |cx| {
            // Counted for as long as this waits.
            let _ = &reading;
            if let Poll::Ready(read) = self.buf.poll_fill(cx, &self.socket) {
                return Poll::Ready(match read {
                    Ok(0) | Err(_) => Filled::End,
                    Ok(_) => Filled::Bytes,
                });
            }
            self.buf.park();
            // A client that has just connected may have something to say, one that has begun may say more.
            let may_end = (self.requests > 0 && !begun) || self.alarm.is_past(self.settled);
            let ends = self.worker.ends_idle();
            if !begun && may_end && ends {
                cold_path();
                return Poll::Ready(Filled::Late);
            }
            if may_end && self.worker.dismisses() {
                cold_path();
                return Poll::Ready(Filled::End);
            }
            if !begun && self.requests > 0 {
                // It may have become shorter since the wait began.
                due = due.min(self.alarm.due(self.worker.limits().keep_alive));
            }
            let due = if !begun && ends { due.min(self.settled) } else { due };
            self.alarm.poll_due(cx, due).map(|()| Filled::Late)
        })
    }

    /// Everything that has to be known once the head's bytes are gone.
    fn plan(&self, request: &Request<'_, '_>) -> Placed {
        let started = Instant::now();
        let snapshot = self.worker.current.load();
        let forwarding = &snapshot.router.edge.forwarding;
        let headers = Headers::Sent(request.block);
        let arrived = Effective::of(&self.client, request.host);
        let asked = Asked {
            method: request.method,
            scheme: arrived.scheme,
            host: request.host,
            named: arrived.host,
            target: request.target,
            length: request.length,
            port: self.client.port,
            https_port: self.worker.https_port,
            client: arrived.addr,
            server_name: self
                .client
                .handshake
                .as_ref()
                .and_then(|handshake| handshake.server_name.as_deref()),
            shown: self.client.session.shown(),
            headers,
            random: Some(&self.worker.random),
        };
        let (effective, asked, mut decision) = decide_by_words(&snapshot.router, arrived, asked);
        let policies = decision.route.filters.policies.as_deref();
        let is_idempotent = !matches!(request.method, "POST" | "PATCH" | "LOCK");
        let mut body = match (request.chunked, request.length) {
            (true, _) => Body::Chunked(Default::default()),
            (false, length) => Body::Length(length.unwrap_or(0)),
        };
        let mut head_len = request.len;
        let ClientLimits { keep_alive, keep_alive_requests, .. } = *self.limits;
        let is_last =
            self.requests + 1 >= keep_alive_requests || keep_alive.is_zero() || self.worker.is_draining();
        let is_made = forwarding.request_id && request.request_id.is_none();
        let fresh = is_made.then(|| self.worker.request_id());
        let made = fresh.as_ref().map_or(&b""[..], |id| &id[..]);
        let trace = Trace::of(policies, &request.block, &self.worker.random);
        let subject = Subject {
            request: Some(request),
            line: b"",
            place: None,
            client: &self.client,
            effective,
            is_http2: self.socket.is_stream(),
            id: request.request_id.unwrap_or(made),
            requests: self.requests + 1,
            trace: trace.as_ref(),
        };
        let known = Known {
            request,
            client: &self.client,
            effective,
            id: subject.id,
            found: Some((&snapshot.router, decision.route)),
            is_http2: subject.is_http2,
            requests: subject.requests,
            trace: subject.trace,
        };
        let under_way = count(self.worker, &snapshot.router, &mut decision, known, started);
        let account = begin_account(&snapshot.router, &decision, subject);
        let policy = decision.route.filters.policies.as_ref().filter(|_| decision.lets_in());
        let certificate = client_auth::told(decision.site.client_auth.as_deref(), &self.client.session);
        let shown = auth::Subject { known, route: decision.route, certificate };
        let mut checks = Checks::of(policy, &asked, shown, &snapshot, &self.worker.authenticator);
        let alternative = log::alternative_name(&snapshot.router, &decision.next);
        let side = decision.next.side();
        let mut page = Page::of(&snapshot.router, decision.route, &decision.next, &subject, known);
        let step = match decision.next {
            Next::Answer(answer) => {
                cold_path();
                Step::Answer(answer)
            }
            Next::Proxy { upstream, target, prefix, side: _ } => {
                if let Some(target) = target.as_deref().filter(|_| decision.route.filters.logs_rewrites) {
                    cold_path();
                    self.worker.rewrites.tell(&asked, decision.route, target, started);
                }
                let mut head = Scratch::take();
                let told = policies.and_then(|policies| policies.request.as_ref());
                let without_some;
                let request = match policies {
                    None => request,
                    Some(policies) => {
                        cold_path();
                        without_some = Request {
                            drop: request.drop.with(policy::kept_back(policies, &request.block)),
                            upgrade: request.upgrade.filter(|_| told.is_none_or(RequestHeaders::upgrades)),
                            ..*request
                        };
                        &without_some
                    }
                };
                let speech = decision.route.speech();
                let is_http10 = told.is_some_and(|told| told.speaks_http10);
                let held = held(&decision.route.filters, &body, is_http10, is_idempotent);
                let held = held.filter(|_| speech != Speech::Http2 && request.upgrade.is_none());
                let mut sent = request;
                let retold;
                if held.is_some() || side == Side::StandIn {
                    cold_path();
                    // Its length will be known, and told.
                    let framing = held.map(|_| request.transfer_encoding);
                    let of_pages = (side == Side::StandIn).then(|| pages::told(&request.block));
                    let drop = request.drop.with(framing.unwrap_or_default());
                    retold = Request { drop: drop.with(of_pages.unwrap_or_default()), ..*request };
                    sent = &retold;
                }
                let onward = Onward {
                    target: target.as_deref(),
                    prefix: prefix.as_deref(),
                    certificate,
                    policy: told,
                    forwarding,
                };
                heads::request(Known { request: sent, ..known }, onward, &mut head);
                if side == Side::StandIn {
                    cold_path();
                    pages::tell(decision.route, 503, None, &subject, &mut head);
                }
                if let Some(checks) = &mut checks {
                    cold_path();
                    checks.head_is(head.len());
                }
                let subject = Subject { request: Some(request), ..subject };
                let led = (alternative, target.as_deref());
                let params = params(decision.route, led, subject);
                let here = self.buf.bytes().get(request.len..).unwrap_or_default();
                let mut copied = 0;
                if (is_idempotent || held.is_some())
                    && let Some(whole) = small(&body, here)
                {
                    cold_path();
                    // Kept with the head it can be sent again; a larger one goes past and is gone.
                    head.extend_from_slice(whole);
                    if let Some(page) = &mut page {
                        page.keep_small(whole);
                    }
                    copied = whole.len();
                    head_len += copied;
                    body = Body::Length(0);
                }
                let copy = policies.and_then(|policies| {
                    cold_path();
                    let known = Known { request, ..known };
                    let copy = Copy::new(policies.mirror.as_ref()?, known, self.worker, &snapshot)?;
                    Some(Copying { copy, here: copied })
                });
                let entry = snapshot.router.upstreams.get(upstream);
                let (pinned, cookie) =
                    session::of(entry.map(|entry| &**entry), decision.route, &headers, self.client.scheme);
                Step::Exchange(Outgoing {
                    head,
                    body: body.clone(),
                    resent: 0,
                    version: request.version,
                    is_head: request.method == "HEAD",
                    hold: held.filter(|_| !body.is_done()).map_or(Hold::No, Hold::UpTo),
                    upgrades: request.upgrade.is_some() && speech == Speech::Http1,
                    closes: is_http10,
                    expects_continue: request.expects_continue && !body.is_done(),
                    terms: Terms {
                        upstream,
                        transport: decision.route.transport(self.client.scheme),
                        speech,
                        connect: decision.route.filters.connect_timeout,
                        retry: decision.route.filters.retry,
                        is_idempotent,
                        lead: lead(pinned, &snapshot, upstream, known),
                    },
                    accepts: Accepts::of(snapshot.router.compression.as_deref(), request),
                    copy,
                    params,
                    cookie,
                    replaced: page.as_ref().and_then(|page| page.intercepts(speech, side)),
                })
            }
        };
        let is_farewell = !request.persists && body.is_done();
        Placed::new(Plan {
            started,
            is_farewell,
            head_len,
            method: Method::of(request.method),
            form: Form { version: request.version, is_head: request.method == "HEAD" },
            after: if request.persists && !is_last { After::Keep } else { After::Close },
            body,
            checks,
            page,
            step,
            edits: HeaderEdits::of(&snapshot, policies, known),
            route: (decision.route.at(), side),
            filters: exchange::Limits::of(&decision.route.filters),
            waited: Duration::ZERO,
            snapshot: Rc::clone(&snapshot),
            account,
            under_way,
            record: Record::default(),
            is_worded: false,
        })
    }

    /// Works on the plan where it lies: what is moved out of it would have a second place in the future.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps its arguments twice, and its state has to be small"
    )]
    fn carry_out(&mut self, mut plan: Placed) -> impl Future<Output = Left> {
        async move {
            let _writing = During::of(&self.worker.writing);
            self.requests += 1;
            self.buf.consume(plan.head_len);
            (self.tally, self.edits) = (Tally::default(), std::mem::take(&mut plan.edits));
            self.kept = plan.account.line.as_ref().and_then(|_| log::Kept::wanted(&plan.snapshot.router));
            // What has to wait for somebody does so here: with the step at hand, before anything goes upstream.
            let mut begun = plan.started;
            if let Some(checks) = plan.checks.take() {
                cold_path();
                let step = std::mem::replace(&mut plan.step, Step::Nothing);
                // Apart, so that others do not carry its size.
                let line = plan.account.line.as_ref().map(|line| &line[..]);
                plan.step = Box::pin(self.check(&checks, line, step)).await;
                begun = Instant::now();
            }
            let Plan { step, snapshot, filters, record, after, .. } = &mut *plan;
            let (status, left) = match step {
                Step::Nothing => (499, Left::Broken),
                Step::Answer(_) => {
                    cold_path();
                    Box::pin(self.tell(&mut plan)).await
                }
                Step::Exchange(outgoing) => {
                    match exchange::run(self, snapshot, outgoing, filters, *after, begun, record).await {
                        Sent::Response { status, after: After::Keep } => (status, Left::Open),
                        Sent::Response { status, after: After::Close } => (status, Left::Finished),
                        Sent::Broken { status } | Sent::CutOff { status, .. } => (status, Left::Broken),
                        Sent::Nothing { status, read } => {
                            cold_path();
                            Box::pin(self.make_up(&mut plan, status, read)).await
                        }
                    }
                }
            };
            self.edits = HeaderEdits::default();
            self.account(&mut plan, status, left);
            drop(plan.under_way.take());
            if left == Left::Finished && plan.is_farewell { Left::Over } else { left }
        }
    }

    /// Answers a request that goes to no endpoint.
    async fn tell(&mut self, plan: &mut Plan) -> (u16, Left) {
        let answer = match std::mem::replace(&mut plan.step, Step::Nothing) {
            Step::Answer(Answer::NginxStatus(_)) => Answer::NginxStatus(self.worker.nginx_status().await),
            Step::Answer(answer) => answer,
            Step::Nothing | Step::Exchange(_) => return (499, Left::Broken),
        };
        // A target that cannot be understood says little for what follows it, and who is not
        // taken here has to shake hands anew.
        let is_last = matches!(answer, Answer::Status(400 | 421) | Answer::Certificate(_));
        let after = if is_last { After::Close } else { plan.after };
        match page::instead_of(&answer, &mut plan.page) {
            Some(page) => {
                plan.is_worded = true;
                let rest = Rest::Unread(plan.body.clone());
                self.word(page, rest, after, &plan.snapshot, &mut plan.record).await
            }
            None => self.answer(&answer, plan.form, after, plan.body.clone()).await,
        }
    }

    /// Answers a request of whose endpoints none did.
    async fn make_up(&mut self, plan: &mut Plan, status: u16, read: bool) -> (u16, Left) {
        self.edits.without_session();
        // Nothing went to the client yet, so it can still be told what happened. What is left of a body
        // that was not read whole is unknown by now, so the connection ends.
        let keep = plan.body.is_done() || read;
        let after = if keep { plan.after } else { After::Close };
        let answer = Answer::Status(status);
        match (page::instead_of(&answer, &mut plan.page), &mut plan.step) {
            (Some(page), Step::Exchange(outgoing)) => {
                plan.is_worded = true;
                let rest = Rest::of(std::mem::replace(&mut outgoing.hold, Hold::No));
                self.word(page, rest, after, &plan.snapshot, &mut plan.record).await
            }
            _ => self.answer(&answer, plan.form, after, Body::Length(0)).await,
        }
    }

    /// Whether the client went away while its response is awaited; only asked while none of its
    /// bytes are waiting in our buffer.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        self.buf.is_empty() && self.socket.poll_presence(cx) == Poll::Ready(Presence::Gone)
    }
}
