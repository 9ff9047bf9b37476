//! TLS that is not ours to open: a connection is handed, with the ClientHello it began with, to an
//! endpoint of the upstream that its name belongs to, and bytes go both ways until both have ended.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::buffer::{Buf, Scratch};
use super::carrier::Carrier;
use super::metrics::Refused;
use super::socket::Link;
use super::timers::Alarm;
use super::tunnel::{End, tunnel};
use super::upstream::{Attempts, Lead, Speech, Terms, Transport};
use super::worker::Worker;
use crate::model::upstream::Retry;

/// To connect to an endpoint (`proxy-connect-timeout`).
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence of both sides together (`proxy-stream-timeout`).
const IDLE: Duration = Duration::from_secs(600);

/// Serves one connection to its end; `hello` was read from it already.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    mut client: Link,
    mut hello: Buf,
    alarm: Alarm,
    upstream: usize,
) {
    let Some(mut link) = connect(worker, upstream).await else {
        // Nothing can be said to a client that expects TLS of somebody else.
        worker.counters.borrow_mut().refused_connection(Refused::NoEndpoint);
        return;
    };
    worker.counters.borrow_mut().passthrough.connections += 1;
    let (client, endpoint) = (Carrier::Socket(client.socket()), Carrier::Socket(link.socket()));
    let mut answer = Buf::default();
    let moved = tunnel(
        End { carrier: &client, buf: &mut hello },
        End { carrier: &endpoint, buf: &mut answer },
        Scratch::take(),
        IDLE,
        &alarm,
    )
    .await;
    let counted = &mut worker.counters.borrow_mut().passthrough;
    counted.up_bytes += moved.up;
    counted.down_bytes += moved.down;
}

/// A new connection to one of the endpoints; another is tried while nothing was sent.
async fn connect(worker: &Rc<Worker>, upstream: usize) -> Option<Link> {
    let snapshot = worker.current.load();
    let terms = Terms {
        upstream,
        transport: Transport::Plain,
        speech: Speech::Http1,
        connect: CONNECT,
        retry: Retry::default(),
        is_idempotent: true,
        lead: Lead::Hash(worker.random.word()),
    };
    Attempts::new(worker, &snapshot, terms, Instant::now()).connection().await
}
