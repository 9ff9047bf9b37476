//! One request and its response through an upstream: endpoint, connection, both bodies, retries.

mod ahead;
mod handover;
mod interim;
mod outgoing;
mod reading;
mod ready;

use std::future::{Future, poll_fn};
use std::hint::cold_path;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use self::ahead::Output;
use self::interim::Said;
pub(super) use self::outgoing::{Copying, Hold, Outgoing};
use super::buffer::{BUFFER_BYTES, Buf, Scratch};
use super::carrier::Carrier;
use super::compress::{Packed, Packing};
use super::connection::{Connection, Crawl};
use super::h1::Body;
use super::h1::head::Unsayable;
use super::heads::{self, After};
use super::hold::hold;
use super::metrics::Failure;
use super::relay::{Broken, Coding, Leg, Waits};
use super::snapshot::Snapshot;
use super::timers::Due;
use super::upstream::{Attempts, Lease, Next, Progress, Record, Speech, Traffic};
use crate::model::l7::{Compression, ReadAhead};
use crate::model::upstream::Protocol;

/// Longest body that is waited for, a turn, once its head is there: it fits into a buffer behind that.
const GATHERED: u64 = 24 * 1024;

/// The filters an exchange depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    send: Duration,
    read: Duration,
    max_body_bytes: Option<u64>,
    /// Longest head of a response.
    head_bytes: usize,
    ahead: Option<ReadAhead>,
}

impl Limits {
    pub(super) fn of(filters: &crate::model::l7::Filters) -> Self {
        let is_grpc = matches!(filters.protocol, Protocol::Grpc | Protocol::Grpcs);
        Self {
            send: filters.send_timeout,
            read: filters.read_timeout,
            max_body_bytes: filters.max_body_bytes,
            // Heads of gRPC come in frames, which have a limit of their own.
            head_bytes: match is_grpc {
                true => BUFFER_BYTES.max(filters.buffers.head_bytes),
                false => filters.buffers.head_bytes,
            },
            ahead: filters.buffers.response.filter(|_| !is_grpc),
        }
    }
}

/// What the client got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// A whole response.
    Response { status: u16, after: After },
    /// A part of one, or the client left.
    Broken { status: u16 },
    /// A part of one, which its endpoint broke off.
    CutOff { status: u16, failure: Failure },
    /// Nothing yet; this status should be answered. All of the request was read, or its end is unknown.
    Nothing { status: u16, read: bool },
}

/// Why one attempt gave no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// The endpoint's fault.
    Upstream(Failure, Progress),
    /// The endpoint's answer is not wanted while others can be asked.
    Rejected,
    /// The fault of no endpoint; nobody else has to be asked.
    Client { status: u16 },
    /// An answer that somebody else words.
    Replaced { status: u16 },
}

/// Sends the request to endpoints in turn until one answers, as far as repeating it is safe. A body that was
/// read for it stays in `outgoing`; what each attempt came to stands in `record`.
#[expect(
    clippy::manual_async_fn,
    reason = "an async function keeps its arguments twice, and its state has to be small"
)]
pub(super) fn run(
    connection: &mut Connection<'_, '_>,
    snapshot: &Snapshot,
    outgoing: &mut Outgoing,
    limits: &Limits,
    after: After,
    mut begun: Instant,
    record: &mut Record,
) -> impl Future<Output = Sent> {
    async move {
        if outgoing.expects_continue && !Box::pin(connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")).await {
            return Sent::Broken { status: 499 };
        }
        if let Some(Copying { copy, here }) = &outgoing.copy {
            cold_path();
            let body = outgoing.head.len().saturating_sub(*here);
            copy.begin(&outgoing.body, outgoing.head.get(body..).unwrap_or_default());
        }
        if let Hold::UpTo(in_memory) = outgoing.hold {
            cold_path();
            match Box::pin(hold(connection, &outgoing.body, in_memory, limits.max_body_bytes)).await {
                Ok(held) => {
                    // A slow client is no fault of an endpoint, and takes no time from its attempts.
                    begun = Instant::now();
                    outgoing.hold = Hold::Here(Box::new(held));
                }
                Err(499) => return Sent::Broken { status: 499 },
                Err(status) => return Sent::Nothing { status, read: false },
            }
        }
        if let Hold::Here(held) = &outgoing.hold {
            cold_path();
            let length = held.len();
            if outgoing.body != Body::Length(length) {
                heads::add_length(length, &mut outgoing.head);
            }
            outgoing.body = Body::Length(length);
        }
        let (worker, together) = (connection.worker, connection.socket.together());
        let mut attempts = Attempts::new(worker, snapshot, outgoing.terms, together, begun, record);
        // gRPC compresses its messages itself.
        let compression = snapshot.router.compression.as_deref();
        let compression = compression.filter(|_| outgoing.terms.speech != Speech::Http2);
        let read = matches!(outgoing.hold, Hold::Here(_));
        loop {
            let mut lease = match connection.unless_gone(attempts.lease()).await {
                Some(Ok(lease)) => lease,
                Some(Err(status)) => {
                    cold_path();
                    attempts.ended(0, Instant::now());
                    return Sent::Nothing { status, read };
                }
                None => {
                    cold_path();
                    attempts.given_up(Instant::now());
                    return Sent::Broken { status: 499 };
                }
            };
            match (attempts.session(), &outgoing.cookie) {
                (Some((sessions, key)), Some(attributes)) => {
                    cold_path();
                    sessions.line(key, attributes, connection.edits.session());
                }
                _ => connection.edits.without_session(),
            }
            let attempt =
                attempt(connection, &mut attempts, &mut lease, outgoing, limits, compression, after);
            // Apart: both together are more than an allocator has at hand for a thread.
            let next = match Box::pin(attempt).await {
                Ok(Through { sent, keep, bytes, rest, waited }) => {
                    // What was here with its head, and was taken at once, ended then: the clock need not be asked again.
                    let now = attempts.answered_at().filter(|_| !waited).unwrap_or_else(Instant::now);
                    attempts.ended(bytes, now);
                    if keep && !outgoing.closes {
                        lease.keep(connection.worker, snapshot, outgoing.terms.upstream, now);
                    } else {
                        drop(lease);
                    }
                    // The endpoint is done with, the client perhaps not.
                    if let Some(rest) = rest {
                        cold_path();
                        return Box::pin(rest.send(connection)).await;
                    }
                    record.ended = Some(now);
                    return sent;
                }
                Err(Failed::Client { status }) => {
                    cold_path();
                    attempts.ended(0, Instant::now());
                    return match status {
                        499 => Sent::Broken { status },
                        _ => Sent::Nothing { status, read },
                    };
                }
                Err(Failed::Replaced { status }) => {
                    cold_path();
                    attempts.ended(0, Instant::now());
                    return Sent::Nothing { status, read };
                }
                Err(Failed::Rejected) => Next::Again,
                Err(Failed::Upstream(failure, progress)) => {
                    cold_path();
                    attempts.failed(lease, failure, progress)
                }
            };
            if let Next::Answer(status) = next {
                attempts.ended(0, Instant::now());
                return Sent::Nothing { status, read };
            }
        }
    }
}

/// An attempt that was answered.
struct Through {
    sent: Sent,
    /// Its connection can be kept.
    keep: bool,
    /// Bytes of the response's body.
    bytes: u64,
    /// All of it is here, and not yet with the client.
    rest: Option<Box<Output>>,
    /// It, or the client's taking it, was waited for after its head was there.
    waited: bool,
}

/// The response, as far as it could be passed on. Without one the request can be sent again, with what the endpoint
/// took of the body and did nothing about.
async fn attempt(
    connection: &mut Connection<'_, '_>,
    attempts: &mut Attempts<'_>,
    lease: &mut Lease,
    outgoing: &mut Outgoing,
    limits: &Limits,
    compression: Option<&Compression>,
    after: After,
) -> Result<Through, Failed> {
    // Lent, until there is an answer.
    let head = std::mem::take(&mut outgoing.head);
    let mut exchange = Exchange::new(connection, lease, head, outgoing, limits, compression, after);
    let mut ready = {
        let answered = exchange.answered().await;
        exchange.count_received();
        attempts.moved(exchange.traffic(exchange.buf.bytes().len() as u64));
        let judged = match &answered {
            Ok(answered) => exchange.judge(answered, attempts),
            Err(failed) => Err(*failed),
        };
        let kept = exchange.upload.kept.take();
        match (answered, judged) {
            (Ok(Answered::Response(ready)), Ok(())) => ready,
            (Ok(Answered::Switched { head }), Ok(())) => {
                cold_path();
                return Ok(Box::pin(exchange.switch(head, attempts)).await);
            }
            (_, Err(failed)) | (Err(failed), Ok(())) => {
                cold_path();
                let head = exchange.upload.take_head();
                drop(exchange);
                outgoing.head = head;
                if let Some(unread) = kept {
                    outgoing.resend(&unread);
                }
                return Err(failed);
            }
        }
    };
    exchange.keep_sent(&ready.head);
    let keep_upstream = ready.keep_upstream;
    if let Some(packing) = ready.packing.take() {
        cold_path();
        let (upstream, buf) = (exchange.upstream, std::mem::take(&mut exchange.buf));
        exchange.upstream = Carrier::Packed(Box::new(Packed::new(upstream, buf, *packing)));
    }
    let (sent, bytes, rest) = match exchange.ahead(&ready) {
        // Apart, so that others do not carry its size.
        Some(limits) => {
            cold_path();
            exchange.waited = true;
            Box::pin(exchange.relay_ahead(ready, limits)).await
        }
        None => {
            exchange.gather(&ready.body).await;
            let Ready { status, head, body, coding, after, .. } = ready;
            let mut download = exchange.download(head, body, coding);
            let (sent, bytes) = exchange.relay(&mut download, status, after).await;
            (sent, bytes, None)
        }
    };
    match sent {
        Sent::CutOff { failure, .. } => attempts.broke_off(failure),
        // Of its body nothing could be used.
        Sent::Nothing { .. } => attempts.broke_off(Failure::BadResponse),
        Sent::Response { .. } | Sent::Broken { .. } => {}
    }
    let (bytes, is_read) = match &exchange.upstream {
        Carrier::Packed(packed) => {
            cold_path();
            (packed.taken(), packed.is_clean())
        }
        _ => (bytes, exchange.buf.is_empty()),
    };
    attempts.moved(exchange.traffic(bytes));
    let clean = exchange.upload.is_done() && is_read;
    let keep = keep_upstream && clean && matches!(sent, Sent::Response { .. });
    Ok(Through { sent, keep, bytes, rest, waited: exchange.waited })
}

/// An attempt that has its connection.
struct Exchange<'e, 'w, 's, 'u> {
    connection: &'e mut Connection<'w, 's>,
    upstream: Carrier<'u>,
    upload: Leg,
    /// When something of a body went on that its client had been waited for.
    paced: Option<Instant>,
    /// The upstream stopped taking the body; its response may still be good.
    upload_broken: bool,
    /// Where the body comes from, if not from the client.
    replay: Option<Box<(Carrier<'e>, Buf)>>,
    /// Bytes from the upstream.
    buf: Buf,
    /// Bytes of the heads that it sent.
    heads: usize,
    informational: u32,
    /// See [`Through`].
    waited: bool,
    outgoing: &'e Outgoing,
    limits: &'e Limits,
    compression: Option<&'e Compression>,
    after: After,
}

/// The upstream's answer, free of the bytes it was read from.
enum Answered {
    Response(Ready),
    Switched { head: Scratch },
}

struct Ready {
    status: u16,
    head: Scratch,
    body: Body,
    coding: Coding,
    after: After,
    keep_upstream: bool,
    /// The upstream asks that it is not read ahead.
    streams: bool,
    /// `WWW-Authenticate` lines, whole, of an answer that somebody else words: without them nobody would be
    /// asked who he is.
    challenge: Option<Scratch>,
    /// Its body is compressed or put into chunks on its way; then `body` is what comes of that.
    packing: Option<Box<Packing>>,
}

impl<'e, 'w, 's, 'u> Exchange<'e, 'w, 's, 'u>
where
    'e: 'u,
{
    fn new(
        connection: &'e mut Connection<'w, 's>,
        lease: &'u mut Lease,
        head: Scratch,
        outgoing: &'e Outgoing,
        limits: &'e Limits,
        compression: Option<&'e Compression>,
        after: After,
    ) -> Self {
        if let Some(kept) = &mut connection.kept {
            kept.asks();
        }
        let copy = outgoing.copy.as_ref().filter(|Copying { copy, .. }| match outgoing.resent {
            0 => copy.restart(&outgoing.body),
            _ => copy.goes_on(),
        });
        let mut upload = Leg::new(head, outgoing.body.clone(), Coding::Same, limits.max_body_bytes);
        upload.copy = copy.map(|copying| Rc::clone(&copying.copy));
        let upstream = lease.carrier(&outgoing.params);
        let replay = match &outgoing.hold {
            Hold::Here(held) => {
                cold_path();
                Some(Box::new((Carrier::Replay(held.replay()), Buf::default())))
            }
            Hold::No | Hold::UpTo(_) => None,
        };
        if upstream.may_refuse() && replay.is_none() {
            upload.keep(outgoing.resent);
        }
        Self {
            connection,
            upstream,
            upload,
            paced: None,
            upload_broken: false,
            replay,
            buf: Buf::default(),
            heads: 0,
            informational: 0,
            waited: false,
            outgoing,
            limits,
            compression,
            after,
        }
    }
}

impl Exchange<'_, '_, '_, '_> {
    /// What came is no reason to ask somebody else.
    fn judge(&mut self, answered: &Answered, attempts: &mut Attempts<'_>) -> Result<(), Failed> {
        let response = match answered {
            Answered::Response(response) => response,
            Answered::Switched { .. } => {
                cold_path();
                attempts.answered(101, self.paced);
                return Ok(());
            }
        };
        let status = response.status;
        if attempts.rejects(status, self.progress()) {
            cold_path();
            return Err(Failed::Rejected);
        }
        attempts.answered(status, self.paced);
        if !self.outgoing.is_replaced(status) {
            return Ok(());
        }
        cold_path();
        if let Some(challenge) = &response.challenge {
            self.connection.edits.challenge(challenge);
        }
        Err(Failed::Replaced { status })
    }

    /// Sends the request and waits for a head, both at once: an upstream may answer before it has read
    /// the whole body.
    async fn response_head(&mut self) -> Result<Said, Failed> {
        // Asked of the clock where something is waited for.
        let mut due = None;
        let mut moved = 0;
        let mut is_paced = false;
        let crawl = Crawl::default();
        poll_fn(|cx| {
            if let Poll::Ready(Err(failed)) = self.poll_upload(cx) {
                cold_path();
                return Poll::Ready(Err(failed));
            }
            if is_paced && self.upload.moved() != moved {
                cold_path();
                self.paced = Some(Instant::now());
            }
            match self.poll_head(cx) {
                Poll::Ready(Ok(said)) => return Poll::Ready(Ok(said)),
                Poll::Ready(Err(none)) => {
                    cold_path();
                    return Poll::Ready(Err(self.let_down(none.failure())));
                }
                Poll::Pending => {}
            }
            let waits_for_upstream = self.replay.is_some() || self.upload.is_done() || self.upload_broken;
            if waits_for_upstream && self.connection.poll_gone(cx) {
                cold_path();
                return Poll::Ready(Err(Failed::Client { status: 499 }));
            }
            if self.upload.moved() != moved {
                (moved, due) = (self.upload.moved(), None);
            }
            let from_client = !waits_for_upstream && self.upload.waits == Waits::ForSender;
            is_paced |= from_client;
            let Connection { alarm, worker, .. } = &*self.connection;
            if from_client && crawl.makes_room(self.upload.read, alarm, worker) {
                return Poll::Ready(Err(Failed::Client { status: 408 }));
            }
            let due = *due.get_or_insert_with(|| self.upload_due());
            if self.connection.alarm.poll_due(cx, due).is_pending() {
                return Poll::Pending;
            }
            cold_path();
            Poll::Ready(Err(match from_client {
                _ if worker.is_cut_off() => Failed::Client { status: 499 },
                true => Failed::Client { status: 408 },
                false => self.let_down(Failure::Timeout),
            }))
        })
        .await
    }

    fn upload_due(&self) -> Due {
        let alarm = &self.connection.alarm;
        match self.upload.waits {
            _ if self.upload.is_done() || self.upload_broken => alarm.due(self.limits.read),
            Waits::ForReceiver => alarm.due(self.limits.send),
            Waits::ForSender => alarm.due(self.connection.limits.body_timeout),
        }
    }

    fn let_down(&self, failure: Failure) -> Failed {
        Failed::Upstream(failure, self.progress())
    }

    /// It can be sent to somebody else.
    fn has_whole_body(&self) -> bool {
        self.replay.is_some() || self.upload.is_whole()
    }

    fn progress(&self) -> Progress {
        match () {
            () if self.upload.written == 0 => Progress::Unsent,
            () if !self.has_whole_body() => Progress::Consumed,
            () if self.upstream.was_refused() => Progress::Unsent,
            () => Progress::Sent,
        }
    }

    /// Moves the request on. Ready only with the fault of no endpoint.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if self.upload.is_done() || self.upload_broken {
            return Poll::Ready(Ok(()));
        }
        let Connection { socket, buf, .. } = &mut *self.connection;
        let (polled, lost) = match self.replay.as_deref_mut() {
            Some((replay, buf)) => {
                cold_path();
                (self.upload.poll(cx, replay, buf, &self.upstream), 500)
            }
            None => (self.upload.poll(cx, socket, buf, &self.upstream), 499),
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(broken)) => Poll::Ready(self.upload_ended(&broken, lost)),
        }
    }

    /// The request cannot be moved on; `lost` is answered where its sender is gone.
    #[cold]
    fn upload_ended(&mut self, broken: &Broken, lost: u16) -> Result<(), Failed> {
        let status = match broken {
            Broken::Receiver(error) => match Unsayable::of(error) {
                Some(unsayable) => {
                    tracing::debug!(%unsayable, "request cannot be sent");
                    unsayable.status()
                }
                None => {
                    self.upload_broken = true;
                    return Ok(());
                }
            },
            Broken::Sender(_) => lost,
            Broken::Framing => 400,
            Broken::TooLarge => 413,
        };
        Err(Failed::Client { status })
    }

    /// Gives the rest of a short body one turn to arrive. Servers send head and body apart, a moment after
    /// each other; together they leave in one call and wake the client once.
    async fn gather(&mut self, body: &Body) {
        let Body::Length(length) = body else { return };
        let here = self.buf.bytes().len() as u64;
        if *length <= here || *length > GATHERED {
            return;
        }
        self.waited = true;
        tokio::task::yield_now().await;
        // What cannot be read now, or never, is for the relay to find.
        poll_fn(|cx| {
            let _ = self.buf.poll_fill(cx, &self.upstream);
            Poll::Ready(())
        })
        .await;
    }

    /// The way of a response.
    fn download(&self, head: Scratch, body: Body, coding: Coding) -> Leg {
        let has_trailers = matches!(body, Body::Chunked(_));
        let mut leg = Leg::new(head, body, coding, None);
        if has_trailers {
            cold_path();
            leg.withholding = self.connection.edits.withholding();
        }
        leg
    }

    /// The client gets this head.
    fn keep_sent(&mut self, head: &[u8]) {
        if let Some(kept) = &mut self.connection.kept {
            kept.sent(head);
        }
    }

    /// What went to the upstream, and what came: heads, and so much of bodies.
    fn traffic(&self, body: u64) -> Traffic {
        Traffic { sent: self.upload.written, received: self.heads as u64 + body }
    }

    /// What was read before an endpoint was chosen is counted already.
    fn count_received(&mut self) {
        if self.replay.is_none() {
            self.connection.tally.body_received = self.outgoing.resent + self.upload.body_written();
        }
    }
}
