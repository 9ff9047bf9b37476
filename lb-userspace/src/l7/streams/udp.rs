//! Exchanges of datagrams: those of one client to one address go to one endpoint, from a socket of their own, until the endpoint has
//! answered each as often as is expected (`proxy-stream-responses`) or both have been silent.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{Notify, oneshot};

use super::super::balance::Picked;
use super::super::log::Ended;
use super::super::metrics::{Cause, Failure};
use super::super::passthrough;
use super::super::snapshot::Snapshot;
use super::super::upstream::{Attempt, Attempts, Lead, Record, Speech, Terms, Traffic, Transport};
use super::super::worker::{ACCEPT_PAUSE, Worker};
use super::HandedOver;
use super::datagrams::{Asker, Datagrams, Said};
use crate::model::l4::Protocol;
use crate::model::upstream::UpstreamName;
use crate::panics;

/// How many are looked at for that one: a flood must not cost a walk through all for each datagram.
const SAMPLE: usize = 32;
/// After the end so long: the kernel still hands datagrams to this socket, and answers are under way.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Largest datagram.
const BYTES: usize = 65_536;

/// Clients that an endpoint may still answer.
type Exchanges = Rc<Clients>;
type Clients = RefCell<HashMap<Asker, Rc<Exchange>>>;

struct Exchange {
    endpoint: UdpSocket,
    /// The client's datagrams.
    asked: Cell<u64>,
    /// Bytes of those, and of the answers.
    up: Cell<u64>,
    down: Cell<u64>,
    /// When the first answer came.
    answered: Cell<Option<Instant>>,
    /// When either side last spoke.
    spoke: Cell<Instant>,
    /// It is to make room.
    over: Notify,
}

/// The clients of a worker, on all its ports: each has a socket. Of more than it may have, one of the port with most that has been
/// silent for long makes room.
pub(in crate::l7) struct Crowd {
    most: usize,
    /// Sockets towards endpoints.
    sockets: Cell<usize>,
    ports: RefCell<Vec<Weak<Clients>>>,
}

impl Crowd {
    /// Nobody yet, and never more than `most`.
    pub(in crate::l7) fn of(most: usize) -> Self {
        Self { most, sockets: Cell::new(0), ports: RefCell::default() }
    }

    fn add(&self, exchanges: &Exchanges) {
        let mut ports = self.ports.borrow_mut();
        ports.retain(|port| port.strong_count() > 0);
        ports.push(Rc::downgrade(exchanges));
    }

    /// Sockets that it has.
    pub(in crate::l7) fn sockets(&self) -> usize {
        self.sockets.get()
    }

    fn is_full(&self) -> bool {
        self.sockets.get() >= self.most
    }

    /// Ends one that has been silent for long at the port with most: a flood costs its own port alone. Whether there
    /// is room at once for one of `asking`. Where that has most itself there is not, and the datagram that asked is lost; its
    /// client's next one finds room.
    fn make_room(&self, asking: &Exchanges) -> bool {
        let ports = self.ports.borrow().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let Some(largest) = ports.into_iter().max_by_key(|port| port.borrow().len()) else { return false };
        dismiss_one(&largest);
        // It ends in a moment, and until then there is one socket more.
        largest.borrow().len() > asking.borrow().len()
    }
}

/// Takes datagrams until a moment after it is told to stop. Then the socket is closed whatever is unanswered: the
/// kernel would hand it datagrams that nobody reads. Where another process reads them, it stays open for what is unanswered.
pub(super) async fn serve(
    worker: Rc<Worker>,
    socket: Datagrams,
    port: u16,
    mut stop: oneshot::Receiver<HandedOver>,
) {
    let (socket, exchanges) = (Rc::new(socket), Exchanges::default());
    let (mut datagram, mut said) = (vec![0; BYTES], Said::new());
    worker.exchanges.add(&exchanges);
    socket.settle().await;
    let mut end: Option<tokio::time::Instant> = None;
    loop {
        let received = tokio::select! {
            received = socket.receive(&mut datagram, &mut said) => received,
            stopped = &mut stop, if end.is_none() => match stopped {
                Ok(HandedOver) => return answer_all(socket, &exchanges).await,
                Err(_) => {
                    end = Some(tokio::time::Instant::now() + LAST_ANSWERS);
                    continue;
                }
            },
            () = tokio::time::sleep_until(end.unwrap_or_else(tokio::time::Instant::now)), if end.is_some() => return,
        };
        let Ok((length, asker)) = received else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let known = exchanges.borrow().get(&asker).cloned();
        let exchange = match known {
            Some(exchange) => {
                exchange.asked.set(exchange.asked.get() + 1);
                exchange
            }
            None if worker.exchanges.is_full() && !worker.exchanges.make_room(&exchanges) => continue,
            None => match begin(&worker, &socket, &exchanges, (asker, port), length).await {
                Some(exchange) => exchange,
                None => continue,
            },
        };
        exchange.spoke.set(Instant::now());
        // A full socket buffer is loss, as anywhere else on its way.
        let _ = exchange.endpoint.try_send(datagram.get(..length).unwrap_or_default());
        exchange.up.update(|up| up + length as u64);
        worker.counters.borrow_mut().datagrams.up_bytes += length as u64;
    }
}

/// Holds the socket until the last exchange is over: each takes itself out at its end.
async fn answer_all(socket: Rc<Datagrams>, exchanges: &Exchanges) {
    while !exchanges.borrow().is_empty() {
        tokio::time::sleep(LAST_ANSWERS).await;
    }
    drop(socket);
}

/// Ends one that has been silent for long.
fn dismiss_one(exchanges: &Exchanges) {
    let mut exchanges = exchanges.borrow_mut();
    let sample = exchanges.iter().take(SAMPLE);
    let silent = sample.min_by_key(|(_, exchange)| exchange.spoke.get()).map(|(asker, _)| *asker);
    if let Some(exchange) = silent.and_then(|asker| exchanges.remove(&asker)) {
        exchange.over.notify_one();
    }
}

/// A socket towards an endpoint, and a task that brings back what it answers. A datagram of this length that reaches nobody has its line in
/// the log, too.
async fn begin(
    worker: &Rc<Worker>,
    socket: &Rc<Datagrams>,
    exchanges: &Exchanges,
    (asker, port): (Asker, u16),
    length: usize,
) -> Option<Rc<Exchange>> {
    let snapshot = worker.current.load();
    let upstream = snapshot.router.streams.get(&(Protocol::Udp, port))?.upstream.clone();
    let Some((picked, endpoint)) = reach(worker, &snapshot, &upstream).await else {
        let unanswered = Told { status: 502, up: length as u64, ..Told::default() };
        log(worker, (asker, port), &upstream.0, unanswered);
        return None;
    };
    let began = Instant::now();
    let exchange = Rc::new(Exchange {
        endpoint,
        asked: Cell::new(1),
        up: Cell::new(0),
        down: Cell::new(0),
        answered: Cell::new(None),
        spoke: Cell::new(began),
        over: Notify::new(),
    });
    worker.exchanges.sockets.update(|sockets| sockets + 1);
    exchanges.borrow_mut().insert(asker, Rc::clone(&exchange));
    worker.counters.borrow_mut().datagrams.connections += 1;
    let (worker, socket) = (Rc::clone(worker), Rc::downgrade(socket));
    let (exchanges, answering) = (Rc::clone(exchanges), Rc::clone(&exchange));
    // What it puts in order at its end, nobody else would.
    tokio::task::spawn_local(panics::vital(async move {
        let answered =
            |now: Instant| worker.answered(&upstream, &picked, now.saturating_duration_since(began), now);
        let end = answer(&worker, &answering, &socket, asker, answered).await;
        log(&worker, (asker, port), &upstream.0, answering.told(picked.addr(), began, end));
        if end == End::Refused {
            let cause = Cause { failure: Failure::Connect, error: Some(ErrorKind::ConnectionRefused.into()) };
            worker.failed(&upstream, &picked, cause, began.elapsed());
        }
        worker.exchanges.sockets.update(|sockets| sockets.saturating_sub(1));
        let mut exchanges = exchanges.borrow_mut();
        if exchanges.get(&asker).is_some_and(|known| Rc::ptr_eq(known, &answering)) {
            exchanges.remove(&asker);
        }
    }));
    Some(exchange)
}

/// An endpoint, and a socket that talks to it.
async fn reach(
    worker: &Rc<Worker>,
    snapshot: &Rc<Snapshot>,
    upstream: &UpstreamName,
) -> Option<(Picked, UdpSocket)> {
    let terms = Terms {
        upstream: snapshot.router.place_of(upstream)?,
        transport: Transport::Plain,
        speech: Speech::Http1,
        connect: passthrough::CONNECT,
        retry: snapshot.router.edge.streams.retry,
        is_idempotent: true,
        lead: Lead::Hash(worker.random.word()),
    };
    let picked =
        Attempts::new(worker, snapshot, terms, None, Instant::now(), &mut Record::default()).endpoint()?;
    let any: SocketAddr = match picked.addr() {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = UdpSocket::bind(any).await.ok()?;
    endpoint.connect(picked.addr()).await.ok()?;
    // The runtime takes a socket for full until it has heard otherwise.
    endpoint.writable().await.ok()?;
    Some((picked, endpoint))
}

/// How an exchange went.
#[derive(Default)]
struct Told {
    status: u16,
    up: u64,
    down: u64,
    took: Duration,
    record: Record,
}

impl Exchange {
    fn told(&self, addr: SocketAddr, began: Instant, end: End) -> Told {
        let (up, down, took) = (self.up.get(), self.down.get(), began.elapsed());
        let status = if end == End::Refused { 502 } else { 200 };
        let mut record = Record::default();
        record.push(Attempt {
            addr,
            status,
            connect: Some(Duration::ZERO),
            header: self.answered.get().map(|answered| answered.saturating_duration_since(began)),
            response: took,
            bytes: down,
            traffic: Traffic { sent: up, received: down },
        });
        Told { status, up, down, took, record }
    }
}

/// Logs an exchange that is over.
fn log(worker: &Worker, (asker, port): (Asker, u16), upstream: &str, told: Told) {
    let Told { status, up, down, took, record } = told;
    worker.log_stream(&Ended {
        protocol: Protocol::Udp,
        client: asker.client(),
        told: None,
        server: SocketAddr::new(asker.server(), port),
        serial: worker.next_connection(),
        status,
        took,
        up,
        down,
        upstream,
        record: &record,
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Enough was said, or nothing for long enough.
    Done,
    /// Nobody listens at the endpoint.
    Refused,
}

/// Brings answers to the client until there have been enough, or silence; `first` hears of the first one.
async fn answer(
    worker: &Worker,
    exchange: &Exchange,
    socket: &Weak<Datagrams>,
    asker: Asker,
    first: impl Fn(Instant),
) -> End {
    let mut answers = 0;
    loop {
        let (idle, responses) = {
            let terms = &worker.current.load().router.edge.streams;
            (terms.idle, terms.responses)
        };
        if answers >= u64::from(responses) * exchange.asked.get() {
            return End::Done;
        }
        let due = exchange.spoke.get() + idle;
        let readable = tokio::select! {
            () = exchange.over.notified() => return End::Done,
            readable = tokio::time::timeout_at(due.into(), exchange.endpoint.readable()) => readable,
        };
        let Some(socket) = socket.upgrade() else { return End::Done };
        match readable {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Refused,
            Err(_) if exchange.spoke.get() + idle > Instant::now() => continue,
            Err(_) => return End::Done,
        }
        let length = {
            let mut datagram = DATAGRAM.take();
            datagram.resize(BYTES, 0);
            let received = exchange.endpoint.try_recv(&mut datagram);
            let sent = received.map(|length| {
                let answer = datagram.get(..length).unwrap_or_default();
                socket.answer(asker, answer).unwrap_or(0)
            });
            DATAGRAM.set(datagram);
            match sent {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                // Nobody listens there: the client's next datagram goes elsewhere.
                Err(_) => return End::Refused,
            }
        };
        exchange.spoke.set(Instant::now());
        worker.counters.borrow_mut().datagrams.down_bytes += length as u64;
        exchange.down.update(|down| down + length as u64);
        if answers == 0 {
            exchange.answered.set(Some(exchange.spoke.get()));
            first(exchange.spoke.get());
        }
        answers += 1;
    }
}

thread_local! {
    /// Where an answer passes through; one for all exchanges of a worker.
    static DATAGRAM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}
