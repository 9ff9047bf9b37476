//! From an accepted TCP connection to requests: the PROXY header where one is due, then, on a TLS
//! listener, the name in the ClientHello, which decides whether the bytes are handed on unopened or
//! the handshake is ours. What comes to a port beside http and https is always handed on.
//!
//! Each step has its deadline and its bound; what fails is counted by its name and closed.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use tokio::net::TcpStream;

use super::balance;
use super::buffer::Buf;
use super::carrier::Carrier;
use super::client_auth::{Authority, Session};
use super::client_hello::{self, Hello};
use super::connection::{Connection, PATIENCE, SETTLE, linger};
use super::filters::Scheme;
use super::heads::Client;
use super::log::Ended;
use super::metrics::Refused;
use super::passthrough::{self, Course, Way};
use super::proxy_protocol::{self, HEADER_MAX};
use super::socket::Link;
use super::timers::Alarm;
use super::tls::Offer;
use super::worker::{Open, Worker};
use crate::model::l4::{Listener, Protocol};
use crate::model::l7::{Preamble, ProxyProtocol};
use crate::model::upstream::Retry;

/// Port of https to the outside, by which a PROXY header says that the client came by TLS.
const HTTPS: u16 = 443;
/// Longest silence of both sides of TLS that is handed on.
const HANDED_ON_IDLE: Duration = Duration::from_secs(600);
/// Alert record: TLS 1.2, fatal, `unrecognized_name` (RFC 6066 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client hears that speaks plain HTTP where TLS is spoken.
const NOT_TLS: &str = "<html>\r\n\
    <head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n<body>\r\n\
    <center><h1>400 Bad Request</h1></center>\r\n\
    <center>The plain HTTP request was sent to HTTPS port</center>\r\n<hr><center>nginx</center>\r\n\
    </body>\r\n</html>\r\n";

/// A connection on its way to its first request.
pub(super) struct Arrival {
    worker: Rc<Worker>,
    link: Link,
    /// What was read ahead.
    buf: Buf,
    alarm: Alarm,
    client: Client,
}

/// A connection up to its first byte of HTTP; `None` where it is over already.
pub(super) type Arriving = Pin<Box<dyn Future<Output = Option<Arrival>>>>;

/// Receives an accepted connection. Apart, so that one that waits for requests does not carry how it arrived.
pub(super) fn arrive(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Listener,
) -> Arriving {
    Box::pin(receive(worker, stream, peer, listener))
}

/// Serves a connection to its end; until then it is one of those that are open.
pub(super) async fn serve(arriving: Arriving, _open: Open) {
    let Some(Arrival { worker, mut link, buf, alarm, client }) = arriving.await else { return };
    let mut connection = Connection::arrived(&worker, link.socket(), buf, alarm, Rc::new(client));
    connection.serve().await;
}

async fn receive(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Listener,
) -> Option<Arrival> {
    let scheme = match listener {
        Listener::Http => Scheme::Http,
        Listener::Https => Scheme::Https,
    };
    let mut arrival = Arrival::new(worker, stream, peer, scheme);

    let due = arrival.worker.current.load().router.edge.proxy_protocol.clone();
    if let Some(protocol) = due
        && !arrival.proxy_header(&protocol).await
    {
        arrival.refused(Refused::ProxyHeader);
        return None;
    }
    match listener {
        Listener::Http => Some(arrival),
        // Apart, so that others are received in memory that an allocator has at hand.
        Listener::Https => Box::pin(arrival.tls()).await,
    }
}

/// Serves one accepted connection to a port beside http and https to its end.
pub(super) async fn serve_stream(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, port: u16) {
    let began = Instant::now();
    let mut arrival = Arrival::new(worker, stream, peer, Scheme::Http);
    let (found, idle, retry, is_told) = {
        let snapshot = arrival.worker.current.load();
        let Some(found) = snapshot.router.streams.get(&(Protocol::Tcp, port)) else { return };
        let terms = &snapshot.router.edge.streams;
        let is_told = found.received == Preamble::None || arrival.proxy_header(&terms.header).await;
        (found.clone(), terms.idle, terms.retry, is_told)
    };
    let Arrival { worker, link, buf, alarm, client } = arrival;
    let (source, server) = (client.source(), SocketAddr::new(client.server, client.port));
    // Meanwhile another router may serve, where the upstream stands elsewhere, or nowhere.
    let upstream = worker.current.load().router.place_of(&found.upstream);
    let course = match upstream {
        Some(upstream) if is_told => {
            let preamble = match found.sent {
                Preamble::None => Vec::new(),
                Preamble::Proxy => proxy_protocol::Addresses { source, destination: server }.header(),
            };
            let key = worker.random.word();
            let way = Way { upstream, retry, key, idle, preamble, counts: |counters| &mut counters.streams };
            passthrough::serve(&worker, link, buf, alarm, way).await
        }
        Some(_) | None if !is_told => {
            refused(&worker, &client, Refused::ProxyHeader);
            Course { status: 400, ..Course::default() }
        }
        Some(_) | None => {
            refused(&worker, &client, Refused::NoEndpoint);
            Course { status: 502, ..Course::default() }
        }
    };
    worker.log_stream(&Ended {
        protocol: Protocol::Tcp,
        client: source,
        told: client.told.map(|told| *told),
        server,
        serial: client.serial,
        status: course.status,
        took: began.elapsed(),
        up: course.up,
        down: course.down,
        upstream: &found.upstream.0,
        record: &course.record,
    });
}

impl Arrival {
    fn new(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, scheme: Scheme) -> Self {
        let unknown = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let local = stream.local_addr().unwrap_or(unknown);
        let client = Client {
            addr: peer.ip().to_canonical(),
            remote_port: peer.port(),
            scheme,
            server: local.ip().to_canonical(),
            port: if scheme == Scheme::Https { HTTPS } else { local.port() },
            session: Session::Plain,
            handshake: None,
            told: None,
            serial: worker.next_connection(),
        };
        let alarm = worker.timers.alarm();
        Self { worker, link: Link::plain(stream), buf: Buf::default(), alarm, client }
    }

    /// Ends TLS, or hands it on unopened.
    async fn tls(mut self) -> Option<Self> {
        let timeout = self.worker.limits().header_timeout;
        let Some(name) = self.name(timeout).await else {
            self.refused(Refused::Hello);
            return None;
        };
        // A method; no record of TLS begins with a letter.
        if self.buf.bytes().first().is_some_and(u8::is_ascii_uppercase) {
            let length = NOT_TLS.len();
            let head = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            self.say((head + NOT_TLS).as_bytes()).await;
            // What the client still sends must not become a reset that overtakes this.
            linger(&Carrier::Socket(self.link.socket()), &mut self.buf, &self.alarm).await;
            self.refused(Refused::Hello);
            return None;
        }
        let passed = name.as_deref().and_then(|name| self.worker.current.load().router.passthrough(name));
        if let Some(upstream) = passed {
            let Self { worker, link, buf, alarm, client } = self;
            let key = match client.addr {
                IpAddr::V4(addr) => balance::hash(&addr.octets()),
                IpAddr::V6(addr) => balance::hash(&addr.octets()),
            };
            // Apart, so that other connections do not carry its size.
            let way = Way {
                upstream,
                retry: Retry::default(),
                key,
                idle: HANDED_ON_IDLE,
                preamble: Vec::new(),
                counts: |counters| &mut counters.passthrough,
            };
            Box::pin(passthrough::serve(&worker, link, buf, alarm, way)).await;
            return None;
        }
        let (config, authority) = match self.worker.tls().current().offer(name.as_deref()) {
            Offer::Handshake { config, authority } => (config, authority),
            Offer::UnknownName => {
                self.say(&UNRECOGNIZED_NAME).await;
                self.refused(Refused::UnknownName);
                return None;
            }
        };
        self.handshake(name, config, authority, timeout).await
    }

    /// Reads the PROXY header; false if there is none in time.
    async fn proxy_header(&mut self, protocol: &ProxyProtocol) -> bool {
        let mut header = None;
        let read = self.read_ahead(protocol.timeout, |bytes| match proxy_protocol::parse(bytes) {
            Ok(Some(found)) => {
                header = Some(found);
                Ahead::Enough
            }
            Ok(None) if bytes.len() >= HEADER_MAX => Ahead::Wrong,
            Ok(None) => Ahead::More,
            Err(_) => Ahead::Wrong,
        });
        let (true, Some(header)) = (read.await, header) else { return false };
        self.buf.consume(header.len);
        self.client.told = header.addresses.map(|addresses| Box::new(addresses.source));
        let sender = self.client.addr;
        let is_believed = protocol.trusted.iter().any(|trusted| trusted.contains(sender));
        if let Some(addresses) = header.addresses.filter(|_| is_believed) {
            (self.client.addr, self.client.remote_port) = (addresses.source.ip(), addresses.source.port());
            (self.client.server, self.client.port) =
                (addresses.destination.ip(), addresses.destination.port());
            // Who stands in front may have ended TLS on its side.
            if addresses.destination.port() == HTTPS {
                self.client.scheme = Scheme::Https;
            }
        }
        true
    }

    /// The name in the ClientHello, or that there is none; `None` if the client sends none in time.
    async fn name(&mut self, timeout: Duration) -> Option<Option<String>> {
        let mut name = None;
        let read = self.read_ahead(timeout, |bytes| match client_hello::parse(bytes) {
            Hello::Incomplete => Ahead::More,
            Hello::Named(found) => {
                name = found;
                Ahead::Enough
            }
            // Left to rustls, which knows the alert for it.
            Hello::Other => Ahead::Enough,
        });
        read.await.then_some(name)
    }

    /// Reads until `look` has seen enough; false if that does not happen in time, or in one buffer.
    async fn read_ahead(&mut self, timeout: Duration, mut look: impl FnMut(&[u8]) -> Ahead) -> bool {
        let due = self.alarm.due(timeout);
        let (silent, slow) = (self.alarm.due(SETTLE), self.alarm.due(PATIENCE));
        let socket = Carrier::Socket(self.link.socket());
        let (buf, alarm, worker) = (&mut self.buf, &self.alarm, &self.worker);
        poll_fn(|cx| {
            loop {
                if !buf.is_empty() {
                    match look(buf.bytes()) {
                        Ahead::Enough => return Poll::Ready(true),
                        Ahead::More if !buf.is_full() => {}
                        Ahead::More | Ahead::Wrong => return Poll::Ready(false),
                    }
                }
                match buf.poll_fill(cx, &socket) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        buf.park();
                        let settled = if buf.is_empty() { silent } else { slow };
                        let ends = buf.is_empty() && worker.ends_idle();
                        if alarm.is_past(settled) && (ends || worker.dismisses()) {
                            return Poll::Ready(false);
                        }
                        let due = if ends { due.min(silent) } else { due };
                        return alarm.poll_due(cx, due).map(|()| false);
                    }
                }
            }
        })
        .await
    }

    /// Ends the handshake and judges the client's certificate where one was asked for.
    async fn handshake(
        self,
        name: Option<String>,
        config: Arc<ServerConfig>,
        authority: Option<Arc<Authority>>,
        timeout: Duration,
    ) -> Option<Self> {
        let Self { worker, link, buf, alarm, mut client } = self;
        let (due, slow) = (alarm.due(timeout), alarm.due(PATIENCE));
        let mut done = false;
        let mut link = link.into_tls(config, buf).ok();
        if let Some(link) = &mut link {
            let socket = link.socket();
            let shaken = poll_fn(|cx| match socket.poll_handshake(cx) {
                Poll::Ready(shaken) => Poll::Ready(shaken.is_ok()),
                Poll::Pending if alarm.is_past(slow) && worker.dismisses() => Poll::Ready(false),
                Poll::Pending => alarm.poll_due(cx, due).map(|()| false),
            });
            done = shaken.await;
        }
        let Some(link) = link.filter(|_| done) else {
            worker.counters.borrow_mut().failed_handshakes += 1;
            return None;
        };
        client.handshake = link.handshake(name.as_deref()).map(Rc::new);
        client.session = match authority {
            Some(authority) => {
                Session::Identified(Rc::new(authority.judge(&link.peer_certificates(), UnixTime::now())))
            }
            None => Session::Tls,
        };
        Some(Self { worker, link, buf: Buf::default(), alarm, client })
    }

    /// Writes a few bytes to a client that gets nothing else.
    async fn say(&mut self, bytes: &[u8]) {
        let due = self.alarm.due(Duration::from_secs(1));
        let socket = self.link.socket();
        poll_fn(|cx| match socket.poll_write(cx, &[IoSlice::new(bytes)]) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.alarm.poll_due(cx, due),
        })
        .await;
    }

    fn refused(self, cause: Refused) {
        refused(&self.worker, &self.client, cause);
    }
}

fn refused(worker: &Worker, client: &Client, cause: Refused) {
    tracing::debug!(client = %client.addr, cause = cause.as_str(), "connection refused");
    worker.counters.borrow_mut().refused_connection(cause);
}

/// What has been seen of the bytes so far.
enum Ahead {
    More,
    Enough,
    Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of what a function returns that is never called.
    fn size_of_output<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_does_not_carry_a_request() {
        let size = size_of_output(serve);

        println!("{size} bytes a connection");
        // The runtime adds 104 bytes of its own and rounds up to the next multiple of 128: 512 in all.
        assert!(size <= 408, "{size} bytes a connection");
    }
}
