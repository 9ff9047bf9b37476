//! Clients that ask without a pause while agents take over from each other: by connections that are kept or not, over
//! TLS, over HTTP/2, and with bodies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use h2::Reason;
use http::Request;

use super::HOST;
use crate::h2_client;
use crate::rig::DEADLINE;
use crate::tls_client::{self, Tls};

/// What every request is answered.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";
/// A client whose SYN was lost sends it again after a second.
const SYN_AGAIN: Duration = Duration::from_millis(990);

#[derive(Clone, Copy)]
enum Kind {
    Kept,
    Close,
    Upload,
    Tls,
    Http2,
}

/// Sixteen of them.
const CLIENTS: [(Kind, usize); 5] =
    [(Kind::Kept, 8), (Kind::Close, 3), (Kind::Upload, 2), (Kind::Tls, 2), (Kind::Http2, 1)];

/// What became of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Requests that were answered.
    pub answered: u64,
    /// Connections that took so long that a SYN must have been lost.
    pub late: u64,
}

impl Done {
    fn connected(&mut self, since: Instant) {
        self.late += u64::from(since.elapsed() >= SYN_AGAIN);
    }
}

/// Clients that ask until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<Result<Done, String>>>,
}

impl Load {
    pub fn start(http: SocketAddr, https: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let kinds = CLIENTS.into_iter().flat_map(|(kind, n)| std::iter::repeat_n(kind, n));
        let clients = kinds.map(|kind| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || match kind {
                Kind::Http2 => http2(http, &stop),
                Kind::Tls => tls(https, &stop),
                _ => plain(http, kind, &stop),
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// The first request that was not answered is an error.
    pub fn stop(self) -> Result<Done, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Done::default();
        for client in self.clients {
            let Done { answered, late } = client.join().map_err(|_| "a client panicked".to_owned())??;
            all.answered += answered;
            all.late += late;
        }
        Ok(all)
    }
}

fn plain(http: SocketAddr, kind: Kind, stop: &AtomicBool) -> Result<Done, String> {
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut stream = TcpStream::connect(http).map_err(|error| format!("connect: {error}"))?;
        done.connected(began);
        stream.set_read_timeout(Some(DEADLINE)).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        requests(&mut stream, kind, stop, &mut done)?;
    }
    Ok(done)
}

fn tls(https: SocketAddr, stop: &AtomicBool) -> Result<Done, String> {
    let (mut done, sessions) = (Done::default(), tls_client::config(None, rustls::ALL_VERSIONS));
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let stream = TcpStream::connect(https).map_err(|error| format!("connect: {error}"))?;
        done.connected(began);
        let tls = Tls::over(stream, Arc::clone(&sessions), HOST);
        let mut tls = tls.map_err(|error| format!("handshake: {error}"))?;
        requests(&mut tls.0, Kind::Tls, stop, &mut done)?;
    }
    Ok(done)
}

/// Until the connection is to end.
fn requests(
    stream: &mut (impl Read + Write),
    kind: Kind,
    stop: &AtomicBool,
    done: &mut Done,
) -> Result<(), String> {
    loop {
        let goes_on = match kind {
            Kind::Upload => upload(stream)?,
            Kind::Close => exchange(stream, "close")?,
            _ => exchange(stream, "keep-alive")?,
        };
        done.answered += 1;
        if !goes_on || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

fn http2(http: SocketAddr, stop: &AtomicBool) -> Result<Done, String> {
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let client = h2_client::Client::connect(http);
        while !stop.load(Ordering::Relaxed) {
            let ready = client.requests.clone().ready();
            if client.runtime.block_on(h2_client::limited(ready)).is_err() {
                break;
            }
            let request =
                Request::get(format!("http://{HOST}/")).body(()).map_err(|error| error.to_string())?;
            match client.ask(request, &[]) {
                Ok(reply) if reply.head.status() == 200 && reply.body == b"hello\n" => done.answered += 1,
                Ok(reply) => return Err(format!("http/2: {reply:?}")),
                // To be asked elsewhere.
                Err(error) if error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) => break,
                Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => break,
                Err(error) => return Err(format!("http/2: {error}")),
            }
        }
    }
    Ok(done)
}

/// One request; says what went wrong, and else whether the connection goes on.
pub fn exchange(stream: &mut (impl Read + Write), connection: &str) -> Result<bool, String> {
    ask(stream, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\n\r\n").as_bytes())
}

/// The same with a body that comes behind its head.
fn upload(stream: &mut (impl Read + Write)) -> Result<bool, String> {
    static BODY: [u8; 100_000] = [7; 100_000];
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", BODY.len());
    stream.write_all(head.as_bytes()).map_err(|error| format!("send: {error}"))?;
    ask(stream, &BODY)
}

fn ask(stream: &mut (impl Read + Write), bytes: &[u8]) -> Result<bool, String> {
    stream.write_all(bytes).map_err(|error| format!("send: {error}"))?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    while !answer.ends_with(b"\r\n\r\nhello\n") {
        match stream.read(&mut bytes).map_err(|error| format!("receive: {error}"))? {
            0 => return Err(format!("ended after {:?}", String::from_utf8_lossy(&answer))),
            n => answer.extend_from_slice(&bytes[..n]),
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(String::from_utf8_lossy(&answer).into_owned());
    }
    Ok(!answer.to_ascii_lowercase().windows(17).any(|words| words == b"connection: close"))
}
