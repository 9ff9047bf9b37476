//! The backends of the cases: they answer with what they were asked, or as the request itself tells them to.
//!
//! A backend obeys `Reply-Status`, `Reply-Header` (more than one), `Reply-Body` (so many bytes), `Reply-Head` (a header of so
//! many bytes), `Reply-After` (milliseconds), `Reply-Late` (once the test says so), `Reply-Never` and `Reply-Close` of a request; `Reply-Status-2` counts for the second
//! endpoint of its Service alone. The service that others ask who may enter obeys `Login-…` instead.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::rig::length_of;

/// What backends have seen.
#[derive(Debug, Clone, Default)]
pub struct Records(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Every request that was read, head and body.
    asked: Mutex<Vec<String>>,
    /// Those whose answer was sent to its last byte.
    answered: Mutex<Vec<String>>,
    /// Whether those that wait may be answered.
    is_over: Mutex<bool>,
    told: Condvar,
}

impl Records {
    fn wait(&self) {
        let waiting = lock(&self.0.is_over);
        drop(self.0.told.wait_while(waiting, |is_over| !*is_over));
    }

    /// Has those answered that wait for it.
    pub fn release(&self) {
        *lock(&self.0.is_over) = true;
        self.0.told.notify_all();
    }

    /// Whether a request was read that `wanted` says yes to.
    pub fn any(&self, wanted: impl Fn(&str) -> bool) -> bool {
        lock(&self.0.asked).iter().any(|request| wanted(request))
    }

    /// Whether one was answered whole.
    pub fn any_answered(&self, wanted: impl Fn(&str) -> bool) -> bool {
        lock(&self.0.answered).iter().any(|request| wanted(request))
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who answers, and by which words in a request.
#[derive(Debug, Clone)]
pub struct Echo {
    pub name: String,
    /// Its place among the endpoints of its Service, from 1.
    pub place: usize,
    /// `Reply` or `Login`.
    pub obeys: &'static str,
    pub records: Records,
}

impl Echo {
    /// Serves on a free port from now on.
    pub fn start(self) -> SocketAddr {
        accept(move |stream| self.serve(stream, &[]))
    }

    /// The same over TLS; it tells what the client showed of itself.
    pub fn start_tls(self, config: Arc<ServerConfig>) -> SocketAddr {
        accept(move |stream| {
            let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut stream = StreamOwned::new(session, stream);
            while stream.conn.is_handshaking() {
                if stream.conn.complete_io(&mut stream.sock).is_err() {
                    return;
                }
            }
            let told = [
                format!("X-Sni: {}", stream.conn.server_name().unwrap_or("none")),
                format!("X-Version: {:?}", stream.conn.protocol_version().expect("a version")),
                format!("X-Client: {}", stream.conn.peer_certificates().map_or(0, <[_]>::len)),
            ];
            self.serve(stream, &told);
        })
    }

    fn serve(&self, mut stream: impl Read + Write, told: &[String]) {
        let mut read = Vec::new();
        let mut nth = 0;
        while let Some((head, body)) = request(&mut stream, &mut read) {
            nth += 1;
            let asked = format!("{head}{}", String::from_utf8_lossy(&body));
            lock(&self.records.0.asked).push(asked.clone());
            let order = |what: &str| self.orders(&head, what).pop();
            if order("Never").is_some() {
                let _ = stream.read(&mut [0]);
                return;
            }
            if order("Close").is_some() {
                return;
            }
            if let Some(wait) = order("After").and_then(|wait| wait.parse().ok()) {
                thread::sleep(Duration::from_millis(wait));
            }
            let number = |what| order(what).and_then(|number| number.parse::<usize>().ok());
            let body = number("Body").map_or_else(|| asked.clone(), |length| "x".repeat(length));
            if order("Late").is_some() {
                self.records.wait();
            }
            let mut lines = vec![
                format!("HTTP/1.1 {} Said", order("Status").unwrap_or_else(|| "200".to_owned())),
                format!("X-Backend: {}", self.name),
                format!("X-Nth: {nth}"),
                format!("Content-Length: {}", body.len()),
            ];
            lines.extend(number("Head").map(|length| format!("X-Long: {}", "y".repeat(length))));
            lines.extend_from_slice(told);
            lines.extend(self.orders(&head, "Header"));
            let is_head = head.starts_with("HEAD ");
            let answer = format!("{}\r\n\r\n{}", lines.join("\r\n"), if is_head { "" } else { &body });
            if stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_err() {
                return;
            }
            lock(&self.records.0.answered).push(asked);
        }
    }

    fn orders(&self, head: &str, what: &str) -> Vec<String> {
        let (all, own) = (format!("{}-{what}", self.obeys), format!("{}-{what}-{}", self.obeys, self.place));
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let meant =
            lines.filter(|(name, _)| name.eq_ignore_ascii_case(&all) || name.eq_ignore_ascii_case(&own));
        meant.map(|(_, value)| value.to_owned()).collect()
    }
}

/// One that takes connections and reads nothing.
pub fn unread() -> SocketAddr {
    accept(|stream| {
        let _open = stream;
        thread::park();
    })
}

/// A port whose queue of connections is full, so that nobody answers another one.
pub fn unanswering() -> (SocketAddr, Vec<socket2::Socket>) {
    let socket =
        || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let listener = socket();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    listener.listen(0).expect("listen");
    let addr = listener.local_addr().ok().and_then(|addr| addr.as_socket()).expect("bound");
    let mut kept = vec![listener];
    for _ in 0..4 {
        let client = socket();
        client.set_nonblocking(true).expect("nonblocking");
        let _ = client.connect(&addr.into());
        kept.push(client);
    }
    (addr, kept)
}

fn accept(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let addr = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

/// The next request: its head, and its body whatever its framing.
fn request(stream: &mut impl Read, read: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, read)?;
    };
    let head: String = String::from_utf8_lossy(&read.drain(..end).collect::<Vec<_>>()).into_owned();
    if !head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked") {
        let length = length_of(&head);
        while read.len() < length {
            fill(stream, read)?;
        }
        return Some((head, read.drain(..length).collect()));
    }
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(at) = read.windows(2).position(|bytes| bytes == b"\r\n") {
                break read.drain(..at + 2).collect::<Vec<_>>();
            }
            fill(stream, read)?;
        };
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
        while read.len() < size + 2 {
            fill(stream, read)?;
        }
        body.extend(read.drain(..size));
        read.drain(..2);
        if size == 0 {
            return Some((head, body));
        }
    }
}

fn fill(stream: &mut impl Read, read: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 16 * 1024];
    let n = stream.read(&mut bytes).ok().filter(|n| *n > 0)?;
    read.extend_from_slice(&bytes[..n]);
    Some(())
}
