//! Connections that are not ours to open, TLS by its name (`ssl-passthrough`) or whatever comes to a port beside
//! http and https: one is handed, with the bytes it began with, to an endpoint of its upstream, and bytes go both
//! ways until both have ended.

use std::future::poll_fn;
use std::io::IoSlice;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::balance::Picked;
use super::buffer::{Buf, Scratch};
use super::carrier::Carrier;
use super::metrics::{Counters, Passthrough, Refused};
use super::socket::Link;
use super::timers::{Alarm, Due};
use super::tunnel::{End, Moved, tunnel};
use super::upstream::{Attempt, Attempts, Lead, Opened, Record, Speech, Terms, Traffic, Transport};
use super::worker::Worker;
use crate::model::upstream::Retry;

/// To connect to an endpoint (`proxy-connect-timeout`).
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// Why a connection was not handed on, for the log: no endpoint takes it, or its client has gone.
const NO_ENDPOINT: u16 = 502;
const GONE: u16 = 499;

/// Where a connection goes, and how.
pub(super) struct Way {
    /// Index of the upstream in the router of now.
    pub(super) upstream: usize,
    pub(super) retry: Retry,
    /// What leads to its endpoint, where the upstream chooses by a hash.
    pub(super) key: u64,
    /// Longest silence of both sides together.
    pub(super) idle: Duration,
    /// What the endpoint is sent first.
    pub(super) preamble: Vec<u8>,
    /// Where it is counted.
    pub(super) counts: fn(&mut Counters) -> &mut Passthrough,
}

/// How a connection went, for those who log it.
#[derive(Default)]
pub(super) struct Course {
    /// As nginx has it for its stream log.
    pub(super) status: u16,
    /// Bytes from the client and to it.
    pub(super) up: u64,
    pub(super) down: u64,
    /// Endpoints that were tried.
    pub(super) record: Record,
}

/// Serves one connection to its end; `ahead` was read from it already.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    mut client: Link,
    mut ahead: Buf,
    alarm: Alarm,
    way: Way,
) -> Course {
    let Way { upstream, retry, key, idle, preamble, counts } = way;
    let mut record = Record::default();
    let (mut link, opened, _picked) =
        match connect(worker, &client, &alarm, upstream, retry, key, &mut record).await {
            Ok(connected) => connected,
            Err(status) => {
                // Nothing can be said to a client that expects somebody else's words.
                if status == NO_ENDPOINT {
                    worker.counters.borrow_mut().refused_connection(Refused::NoEndpoint);
                }
                return Course { status, up: 0, down: 0, record };
            }
        };
    counts(&mut worker.counters.borrow_mut()).connections += 1;
    let mut moved = Moved { up: 0, down: 0, answered: None };
    let said = say(&mut link, &preamble, &alarm).await;
    if said {
        let (client, endpoint) = (Carrier::Socket(client.socket()), Carrier::Socket(link.socket()));
        let mut answer = Buf::default();
        let client = End { carrier: &client, buf: &mut ahead };
        let endpoint = End { carrier: &endpoint, buf: &mut answer };
        moved = tunnel(client, endpoint, Scratch::take(), idle, &alarm).await;
        let mut counters = worker.counters.borrow_mut();
        let counted = counts(&mut counters);
        counted.up_bytes += moved.up;
        counted.down_bytes += moved.down;
    }
    let Moved { up, down, answered } = moved;
    let status = if said { 200 } else { NO_ENDPOINT };
    record.push(Attempt {
        addr: opened.addr,
        status,
        connect: Some(opened.connect),
        header: answered.map(|answered| answered.saturating_duration_since(opened.began)),
        response: opened.began.elapsed(),
        bytes: down,
        traffic: Traffic { sent: up, received: down },
    });
    Course { status, up, down, record }
}

/// Writes what goes before the client's bytes; false if the endpoint does not take it in time.
async fn say(link: &mut Link, bytes: &[u8], alarm: &Alarm) -> bool {
    let (due, mut rest) = (alarm.due(CONNECT), bytes);
    let socket = link.socket();
    poll_fn(|cx| {
        while !rest.is_empty() {
            match socket.poll_write(cx, &[IoSlice::new(rest)]) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(n)) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Pending => return alarm.poll_due(cx, due).map(|()| false),
            }
        }
        Poll::Ready(true)
    })
    .await
}

/// A new connection to one of the endpoints; another is tried while nothing was sent and the client is there. One that
/// says no more may still listen.
async fn connect(
    worker: &Rc<Worker>,
    client: &Link,
    alarm: &Alarm,
    upstream: usize,
    retry: Retry,
    key: u64,
    record: &mut Record,
) -> Result<(Link, Opened, Picked), u16> {
    let snapshot = worker.current.load();
    let terms = Terms {
        upstream,
        transport: Transport::Plain,
        speech: Speech::Http1,
        connect: CONNECT,
        retry,
        is_idempotent: true,
        lead: Lead::Hash(key),
    };
    let mut attempts = Attempts::new(worker, &snapshot, terms, None, Instant::now(), record);
    let connected = tokio::select! {
        biased;
        connected = attempts.connection() => connected.ok_or(NO_ENDPOINT),
        () = client.broken() => Err(GONE),
        // At the end of everything.
        () = poll_fn(|cx| alarm.poll_due(cx, Due::MAX)) => Err(GONE),
    };
    if let Err(GONE) = connected {
        attempts.given_up(Instant::now());
    }
    connected
}
