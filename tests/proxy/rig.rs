//! The proxy on loopback, with backends that each test scripts and clients that speak bytes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use penstock::l7::{Options, Proxy, Running, Temp, TicketKeys};
use penstock::model::ObjectName;
use penstock::model::l4::Listener;
use penstock::model::l7::{
    Action, Filters, HostMatch, L7, Location, PathMatch, Server, Upstream, UpstreamName,
};
use tokio::sync::watch;

/// No single wait of a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A running proxy; stopped when dropped.
pub struct Rig {
    desired: watch::Sender<Arc<L7>>,
    pub running: Running,
    pub http: SocketAddr,
    pub https: SocketAddr,
}

impl Rig {
    /// One worker, so that pools and round robin are those of one thread.
    pub fn start(l7: L7) -> Self {
        Self::with_workers(l7, 1)
    }

    pub fn with_workers(l7: L7, workers: usize) -> Self {
        Self::with(l7, workers, None, Temp::default())
    }

    /// On every address of this host that `any` stands for.
    pub fn on(l7: L7, any: IpAddr) -> Self {
        Self::at(any, l7, 1, None, Temp::default())
    }

    /// With temporary files of its own.
    pub fn with_temp(l7: L7, temp: Temp) -> Self {
        Self::with(l7, 1, None, temp)
    }

    /// The successor of a proxy with these ticket keys.
    pub fn inheriting(l7: L7, ticket_keys: Option<TicketKeys>) -> Self {
        Self::with(l7, 1, ticket_keys, Temp::default())
    }

    fn with(l7: L7, workers: usize, ticket_keys: Option<TicketKeys>, temp: Temp) -> Self {
        Self::at([127, 0, 0, 1].into(), l7, workers, ticket_keys, temp)
    }

    fn at(ip: IpAddr, l7: L7, workers: usize, ticket_keys: Option<TicketKeys>, temp: Temp) -> Self {
        let any = SocketAddr::from((ip, 0));
        let metering = Default::default();
        let options = Options { http: vec![any], https: vec![any], workers, ticket_keys, temp, metering };
        let proxy = Proxy::bind(options).expect("bind");
        let desired = watch::Sender::new(Arc::new(l7));
        let running = proxy.start(desired.subscribe()).expect("start");
        let addr =
            |wanted| running.addrs().into_iter().find(|(listener, _)| *listener == wanted).expect("bound").1;
        let (http, https) = (addr(Listener::Http), addr(Listener::Https));
        Self { desired, running, http, https }
    }

    /// Publishes another state; requests that begin after [`Rig::settle`] see it.
    pub fn publish(&self, l7: L7) {
        self.desired.send_replace(Arc::new(l7));
    }

    pub fn client(&self) -> Client {
        Client::connect(self.http)
    }

    /// A metric without labels, or the sum over them.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.running.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).expect("a metric");
        metric.samples.iter().map(|sample| sample.value).sum()
    }

    /// One request on a connection of its own.
    pub fn ask(&self, request: &str) -> Reply {
        let mut client = self.client();
        client.send(request);
        client.reply()
    }

    /// Asks until the proxy answers with `status`: publishing is not instant.
    pub fn ask_until(&self, request: &str, status: u16) -> Reply {
        let started = std::time::Instant::now();
        loop {
            let reply = self.ask(request);
            if reply.status == status {
                return reply;
            }
            assert!(started.elapsed() < DEADLINE, "still {} instead of {status}", reply.status);
            std::thread::yield_now();
        }
    }
}

/// One host-less location `/` to these endpoints.
pub fn to(endpoints: &[SocketAddr]) -> L7 {
    to_with(endpoints, Filters { max_body_bytes: None, ..Filters::default() })
}

pub fn to_with(endpoints: &[SocketAddr], filters: Filters) -> L7 {
    let name = UpstreamName("default-echo-80".to_owned());
    let location = Location {
        path: PathMatch::Prefix("/".to_owned()),
        path_label: "/".to_owned(),
        ingress: Some(ObjectName::new("default", "echo")),
        backend: Some(Arc::new(penstock::model::l7::ServicePort {
            service: "echo".to_owned(),
            port: "80".to_owned(),
            upstream: name.clone(),
        })),
        action: Action::Proxy(name.clone()),
        filters,
    };
    let server = Server { locations: vec![location], ..Server::default() };
    L7 {
        servers: [(HostMatch::Any, server)].into(),
        upstreams: [(
            name,
            Upstream { endpoints: endpoints.iter().copied().collect(), ..Upstream::default() },
        )]
        .into(),
        ..L7::default()
    }
}

/// What is below `path` goes to another endpoint.
pub fn and_to(mut l7: L7, path: &str, endpoint: SocketAddr) -> L7 {
    let name = UpstreamName("default-other-80".to_owned());
    l7.upstreams.insert(name.clone(), Upstream { endpoints: [endpoint].into(), ..Upstream::default() });
    l7.servers.edit(|_, server| {
        let mut location = server.locations[0].clone();
        location.path = PathMatch::Prefix(path.to_owned());
        location.action = Action::Proxy(name.clone());
        location.filters = Filters { max_body_bytes: None, ..Filters::default() };
        server.locations.insert(0, location);
    });
    l7
}

/// A backend that runs `serve` for each connection, on a thread of its own.
pub struct Backend {
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Backend {
    pub fn start(serve: impl Fn(Client) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind backend");
        let addr = listener.local_addr().expect("bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (Arc::clone(&accepted), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(Client::over(stream)));
            }
        });
        Self { addr, accepted }
    }

    /// Answers every request with its whole head, in a body of known length.
    pub fn mirror() -> Self {
        Self::start(|mut peer| {
            while let Some(head) = peer.head() {
                let length = length_of(&head);
                let body = peer.exactly(length);
                let answer = [head.as_bytes(), &body].concat();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                if !peer.try_send(&[head.as_bytes(), &answer].concat()) {
                    return;
                }
            }
        })
    }

    /// Answers every request, whose body is chunked, with that body as it came.
    pub fn showing_chunks() -> Self {
        Self::start(|mut peer| {
            while let Some(head) = peer.head() {
                assert!(head.to_ascii_lowercase().contains("transfer-encoding: chunked\r\n"), "{head}");
                let mut body = Vec::new();
                while !body.ends_with(b"\r\n\r\n") {
                    body.extend(peer.exactly(1));
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                peer.send([answer.as_bytes(), &body].concat());
            }
        })
    }

    /// Answers every request with these bytes.
    pub fn saying(answer: &'static str) -> Self {
        Self::start(move |mut peer| {
            while peer.head().is_some() {
                if !peer.try_send(answer.as_bytes()) {
                    return;
                }
            }
        })
    }

    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A port where nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("free port")
}

/// One end of a connection, speaking bytes.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

/// A response, its body whatever its framing was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).expect("connect"))
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, read: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// False if the other side has gone.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// A head up to and with its empty line; `None` if the connection ends before it.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.read.drain(..at + 4).collect();
                return String::from_utf8(head).ok();
            }
            if self.fill() == 0 {
                return None;
            }
        }
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.fill() > 0, "ended after {} of {length} bytes", self.read.len());
        }
        self.read.drain(..length).collect()
    }

    /// What was read and not asked for yet.
    pub fn buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// Everything up to the end of the connection; a reset ends it as well.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        std::mem::take(&mut self.read)
    }

    /// The response to a request other than HEAD.
    pub fn reply(&mut self) -> Reply {
        let head = self.head().expect("a response head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let mut reply = Reply { status, head, body: Vec::new() };
        if reply.header("transfer-encoding").is_some() {
            reply.body = self.chunks();
        } else if reply.header("content-length").is_some() {
            reply.body = self.exactly(length_of(&reply.head));
        } else if status != 204 && status != 304 && status != 101 {
            reply.body = self.rest();
        }
        reply
    }

    /// Content of a chunked body, trailers appended as they stand.
    fn chunks(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().trim(), 16).expect("a chunk size");
            if size == 0 {
                loop {
                    let line = self.line();
                    if line.is_empty() {
                        return content;
                    }
                    content.extend_from_slice(line.as_bytes());
                }
            }
            content.extend(self.exactly(size));
            assert_eq!(self.exactly(2), b"\r\n");
        }
    }

    /// Content of the next chunk; empty for the last one.
    pub fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(self.line().trim(), 16).expect("a chunk size");
        let content = self.exactly(size);
        assert_eq!(self.exactly(2), b"\r\n");
        content
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..at + 2).collect();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            assert!(self.fill() > 0, "ended within a line");
        }
    }

    fn fill(&mut self) -> usize {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(n) => {
                self.read.extend_from_slice(&bytes[..n]);
                n
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("read: {error}"),
        }
    }
}

pub fn length_of(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
