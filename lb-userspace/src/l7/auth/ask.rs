//! Asks another service: finds it, connects, sends a head, reads a head.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::ready;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::balance;
use super::super::buffer::Buf;
use super::super::carrier::Carrier;
use super::super::h1::chunked::Decoder;
use super::super::h1::head::Lines;
use super::super::h1::{Body, Response};
use super::super::outside::{Outside, split_port};
use super::super::snapshot::Snapshot;
use super::super::socket::{Link, Look};
use super::super::upstream::{Attempt, Peer, Pool, Record, Traffic};
use super::freshness::freshness;
use crate::model::l7::policy::External;
use crate::model::upstream::Keepalive;

/// Longest time to find the service and connect, and longest wait for its answer.
const CONNECT: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(60);
/// Addresses that are tried.
const TRIES: usize = 3;
/// Informational responses before the real one; more is not HTTP.
const INFORMATIONAL_MAX: u32 = 8;
/// Longest body that is read over so that its connection can be kept, and for how long.
const BODY_MAX: u64 = 64 * 1024;
const BODY: Duration = Duration::from_millis(100);
/// Connections that nobody has used for so long are closed, whatever their own limit.
const IDLE: Duration = Duration::from_secs(600);

/// Lookups of names at once.
const LOOKUPS: usize = 2;

/// What is needed to ask, and kept between questions.
pub(super) struct AuthClient {
    outside: Outside,
    idle: Pool,
    /// Idle connections to each service, by its URL as written: as many as it is to keep.
    kept: RefCell<HashMap<String, Rc<Cell<usize>>>>,
    /// [`READ`], but for tests.
    patience: Duration,
}

/// What the service answered, as far as anybody wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AuthResponse {
    pub(super) status: u16,
    /// Lines for the upstream, whole.
    pub(super) onward: Vec<u8>,
    /// `Set-Cookie` lines for the client, whole.
    pub(super) cookies: Vec<u8>,
    /// `WWW-Authenticate` lines, whole.
    pub(super) challenges: Vec<u8>,
    /// How long it may be remembered if that is asked for; `None`: it says nothing about it.
    pub(super) fresh: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("its host makes no sense")]
    Host,
    #[error("not found: {0}")]
    NotFound(io::Error),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no answer: {0}")]
    Read(io::Error),
    #[error("not in time")]
    Late,
}

impl AuthClient {
    pub(super) fn new() -> Self {
        let outside = Outside::new(LOOKUPS);
        Self { outside, idle: Pool::default(), kept: RefCell::default(), patience: READ }
    }

    /// Closes connections that idle for long.
    pub(super) fn sweep(&self) {
        self.idle.sweep_idle(IDLE);
        self.kept.borrow_mut().retain(|_, count| Rc::strong_count(count) > 1);
    }

    /// Sends a head to the service; what it answers. `spread` is any number: where there are several
    /// addresses it says which is the first. `record` takes up who was asked.
    pub(super) async fn ask(
        &self,
        snapshot: &Snapshot,
        external: &External,
        host: &str,
        head: &[u8],
        spread: u64,
        record: &mut Record,
    ) -> Result<AuthResponse, Unanswered> {
        let (name, port) = split_port(host).ok_or(Unanswered::Host)?;
        let port = port.unwrap_or(if external.tls { 443 } else { 80 });
        let begun = tokio::time::Instant::now();
        let found = tokio::time::timeout(
            CONNECT,
            self.outside.find(snapshot, external.upstream.as_ref(), name, port),
        );
        let addrs = found.await.map_err(|_| Unanswered::Late)?.map_err(Unanswered::NotFound)?;
        let left = CONNECT.saturating_sub(begun.elapsed());
        let first = usize::try_from(spread % addrs.len().max(1) as u64).unwrap_or(0);
        let addrs: Vec<_> = addrs.iter().cycle().skip(first).take(addrs.len().min(TRIES)).copied().collect();
        self.ask_one_of(&addrs, name, external, head, left, record).await
    }

    /// Asks the first of the addresses that can be connected to; `left` is the time for connecting.
    async fn ask_one_of(
        &self,
        addrs: &[SocketAddr],
        name: &str,
        external: &External,
        head: &[u8],
        mut left: Duration,
        record: &mut Record,
    ) -> Result<AuthResponse, Unanswered> {
        let client = if external.tls { balance::hash(name.as_bytes()) | 1 } else { 0 };
        let mut last = Err(Unanswered::NotFound(io::ErrorKind::NotFound.into()));
        for (addr, still) in addrs.iter().zip((1..=TRIES.min(addrs.len())).rev()) {
            let peer = Peer { addr: *addr, client };
            if let Some(kept) = self.idle.take(peer, Look::AtSocket, &external.keepalive, Instant::now()) {
                let began = Instant::now();
                let exchanged =
                    self.exchange(kept.link, peer, kept.requests, kept.opened, external, head).await;
                match exchanged {
                    // It may have been closed just now; a question can be asked again.
                    Err(Unanswered::Read(_)) => {}
                    final_one => {
                        record.push(attempt(*addr, began, Some(Duration::ZERO), &final_one));
                        return final_one;
                    }
                }
            }
            // A share for each: one that is silent does not take it all.
            let share = left / u32::try_from(still).unwrap_or(1);
            let began = Instant::now();
            let connecting = self.outside.connect(*addr, external.tls.then_some(name));
            let failed = match tokio::time::timeout(share, connecting).await {
                Ok(Ok(link)) => {
                    let connect = began.elapsed();
                    let exchanged = self.exchange(link, peer, 0, Instant::now(), external, head).await;
                    record.push(attempt(*addr, began, Some(connect), &exchanged));
                    return exchanged;
                }
                Ok(Err(error)) => Err(Unanswered::Connect(error)),
                Err(_) => Err(Unanswered::Late),
            };
            record.push(attempt(*addr, began, None, &failed));
            last = failed;
            left = left.saturating_sub(began.elapsed());
        }
        last
    }

    async fn exchange(
        &self,
        mut link: Link,
        peer: Peer,
        requests: u32,
        opened: Instant,
        external: &External,
        head: &[u8],
    ) -> Result<AuthResponse, Unanswered> {
        let answered = tokio::time::timeout(self.patience, exchange(&mut link, external, head)).await;
        let (told, keeps) = answered.map_err(|_| Unanswered::Late)?.map_err(Unanswered::Read)?;
        let limits: &Keepalive = &external.keepalive;
        if keeps && limits.connections > 0 {
            let count = Rc::clone(self.kept.borrow_mut().entry(external.url.clone()).or_default());
            let own = Some((limits.connections, &count));
            self.idle.put(peer, link, (requests + 1, opened), own, limits, Instant::now());
        }
        Ok(told)
    }
}

/// How asking at one address went.
fn attempt(
    addr: SocketAddr,
    began: Instant,
    connect: Option<Duration>,
    told: &Result<AuthResponse, Unanswered>,
) -> Attempt {
    let response = began.elapsed();
    let (status, header) = match told {
        Ok(told) => (told.status, Some(response)),
        Err(Unanswered::Late) => (504, None),
        Err(_) => (502, None),
    };
    Attempt { addr, status, connect, header, response, bytes: 0, traffic: Traffic::default() }
}

/// The answer, and whether the connection can be used again.
async fn exchange(link: &mut Link, external: &External, head: &[u8]) -> io::Result<(AuthResponse, bool)> {
    let carrier = Carrier::Socket(link.socket());
    let mut sent = 0;
    poll_fn(|cx| {
        while let Some(rest) = head.get(sent..).filter(|rest| !rest.is_empty()) {
            sent += ready!(carrier.poll_write(cx, &[IoSlice::new(rest)]))?;
        }
        carrier.poll_flush(cx)
    })
    .await?;
    let mut buf = Buf::default();
    let mut informational = 0;
    let (told, mut body, persists) = loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        match read(buf.bytes(), external, now)? {
            Read::More if buf.is_full() => return Err(io::Error::other("its head is too long")),
            Read::More => {
                if poll_fn(|cx| buf.poll_fill(cx, &carrier)).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Read::Informational(len) => {
                informational += 1;
                if informational > INFORMATIONAL_MAX {
                    return Err(io::Error::other("it sends nothing but informational responses"));
                }
                buf.consume(len);
            }
            Read::Answer { len, told, body, persists } => {
                buf.consume(len);
                break (told, body, persists);
            }
        }
    };
    if !persists || external.keepalive.connections == 0 {
        return Ok((told, false));
    }
    // A body that does not come is no reason to wait for it, and one that breaks changes no answer.
    let over = tokio::time::timeout(BODY, read_over(&mut body, &mut buf, &carrier)).await;
    Ok((told, over.is_ok_and(|is_clean| is_clean)))
}

/// Reads the rest of a response; true if that is all there was.
async fn read_over(body: &mut Body, buf: &mut Buf, carrier: &Carrier<'_>) -> bool {
    let mut over = 0;
    while !body.is_done() && over <= BODY_MAX {
        let Ok(taken) = body.take(buf.bytes()) else { return false };
        buf.consume(taken);
        over += taken as u64;
        if !body.is_done() && !poll_fn(|cx| buf.poll_fill(cx, carrier)).await.is_ok_and(|read| read > 0) {
            return false;
        }
    }
    body.is_done() && buf.is_empty()
}

/// What the bytes are that came.
enum Read {
    More,
    Informational(usize),
    Answer { len: usize, told: AuthResponse, body: Body, persists: bool },
}

/// Apart, so that no future holds the lines.
fn read(bytes: &[u8], external: &External, now: u64) -> io::Result<Read> {
    if bytes.is_empty() {
        return Ok(Read::More);
    }
    let mut lines = Lines::new();
    let Some(response) = Response::parse(bytes, &mut lines).map_err(io::Error::other)? else {
        return Ok(Read::More);
    };
    if response.status < 200 && response.status != 101 {
        return Ok(Read::Informational(response.len));
    }
    let is_head = external.method.as_deref() == Some("HEAD");
    let body = match (response.chunked, response.length) {
        _ if is_head || matches!(response.status, 204 | 304) => Body::Length(0),
        (true, _) => Body::Chunked(Decoder::of_response()),
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::UntilClose,
    };
    let persists = response.persists && body != Body::UntilClose;
    Ok(Read::Answer { len: response.len, told: told(&response, external, now), body, persists })
}

/// `now`: seconds since the epoch.
fn told(response: &Response<'_, '_>, external: &External, now: u64) -> AuthResponse {
    let mut told = AuthResponse {
        status: response.status,
        onward: Vec::new(),
        cookies: Vec::new(),
        challenges: Vec::new(),
        fresh: freshness(&response.block, now),
    };
    let push = |lines: &mut Vec<u8>, name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    };
    for (name, value) in response.block.kept(response.drop) {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        if let Some(wanted) = external.response_headers.iter().find(|wanted| is(wanted))
            && !value.is_empty()
        {
            push(&mut told.onward, wanted, value);
        }
        if is("set-cookie") {
            push(&mut told.cookies, "Set-Cookie", value);
        } else if is("www-authenticate") {
            push(&mut told.challenges, "WWW-Authenticate", value);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::expression::Expression;

    const YES: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    fn external(url: &str, tls: bool) -> External {
        External {
            url: url.to_owned(),
            tls,
            host: Expression::default(),
            target: Expression::default(),
            upstream: None,
            method: None,
            sign_in: None,
            response_headers: Vec::new(),
            request_redirect: None,
            set_headers: Vec::new(),
            always_set_cookie: false,
            remember: None,
            keepalive: Keepalive { connections: 1, ..Keepalive::default() },
        }
    }

    /// Answers so, and keeps its connections.
    async fn service(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    while peer.read(&mut head).await.is_ok_and(|n| n > 0) {
                        if peer.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        addr
    }

    async fn ask(client: &AuthClient, addrs: &[SocketAddr], external: &External) -> Result<u16, Unanswered> {
        const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (left, record) = (Duration::from_millis(300), &mut Record::default());
        let told = client.ask_one_of(addrs, "localhost", external, HEAD, left, record).await;
        told.map(|told| told.status)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_service_has_its_own_number_of_kept_connections() {
        let client = AuthClient::new();
        for url in ["http://a/", "http://b/"] {
            let addr = service(YES).await;
            assert_eq!(ask(&client, &[addr], &external(url, false)).await.expect("an answer"), 200);
        }
        client.sweep();

        assert_eq!((client.idle.len(), client.kept.borrow().len()), (2, 2));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_body_that_stalls_or_breaks_takes_nothing_from_the_answer() {
        let client = AuthClient::new();
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            let addr = service(answer).await;
            let began = Instant::now();
            let status = ask(&client, &[addr], &external("http://a/", false)).await;
            assert!(began.elapsed() < READ / 2, "soon");
            assert_eq!((status.expect("an answer"), client.idle.len()), (200, 0), "{answer}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_service_that_says_nothing_more_is_waited_for_no_longer_than_that() {
        let patience = Duration::from_millis(50);
        let client = AuthClient { patience, ..AuthClient::new() };
        for answer in ["", "HTTP/1.1 200 OK\r\nX-Hal", "HTTP/1.1 100 Continue\r\n\r\n"] {
            let addr = service(answer).await;

            let asked = ask(&client, &[addr], &external("http://a/", false)).await;

            assert!(matches!(asked, Err(Unanswered::Late)), "{answer}: {asked:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_that_is_silent_leaves_time_for_the_next_one() {
        let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
        let gone = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
        let addrs = [silent.local_addr().expect("bound"), gone.local_addr().expect("bound")];
        drop(gone);

        // Its handshake gets no answer.
        let failed = ask(&AuthClient::new(), &addrs, &external("https://a/", true)).await;

        assert!(matches!(failed, Err(Unanswered::Connect(_))), "the second one was asked: {failed:?}");
    }
}
