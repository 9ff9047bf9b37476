//! The backend of all cases but gRPC: one thread that answers with bytes made beforehand. It parses no more
//! than a path and writes no log, so that a proxy waits for it as little as can be, and is itself the limit.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, listen, send, sockopt};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{BODY_BYTES, LOAD_CPU};

/// Connections that wait to be accepted: those of the largest case, of one proxy.
const BACKLOG: i32 = 4096;

/// Events taken at once, as nginx has it.
const EVENTS: usize = 512;

/// From this size on an answer is sent from a file, which copies less.
const FILE_BYTES: usize = 64 << 10;

/// By which the listener is known; connections have their places.
const LISTENER: u64 = u64::MAX;

/// Starts it on a thread of its own, on the CPU of the load; its port.
pub fn start() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind the backend")?;
    listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    // What is accepted has it from here: the end of an answer must not wait for an acknowledgement.
    sockopt::set_tcp_nodelay(&listener, true)?;
    let port = listener.local_addr()?.port();
    let answers = [("/ ", BODY_BYTES), ("/16k ", 16 << 10), ("/1m ", 1 << 20)]
        .map(|(path, bytes)| Answer::new(path, bytes))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
        let mut cpu = CpuSet::new();
        cpu.set(LOAD_CPU);
        // Without it the machine is too small for the bench, which the proxies will say.
        let _ = sched_setaffinity(None, &cpu);
        if let Err(error) = serve(&listener, &answers) {
            eprintln!("the backend has ended: {error:#}");
        }
    })?;
    Ok(port)
}

/// What a path is answered with.
struct Answer {
    /// With the space that ends it in a request.
    path: &'static str,
    /// Head and body.
    bytes: Vec<u8>,
    /// The same, where it is long.
    file: Option<OwnedFd>,
}

impl Answer {
    fn new(path: &'static str, body: usize) -> Result<Self> {
        let mut bytes = format!(
            "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n\
             Content-Length: {body}\r\n\r\n"
        )
        .into_bytes();
        bytes.resize(bytes.len() + body, b'x');
        let file = (body >= FILE_BYTES).then(|| -> Result<OwnedFd> {
            let mut file = File::from(memfd_create(c"answer", MemfdFlags::CLOEXEC)?);
            file.write_all(&bytes)?;
            Ok(file.into())
        });
        Ok(Self { path, file: file.transpose()?, bytes })
    }
}

/// A connection of a proxy.
struct Connection<'a> {
    stream: OwnedFd,
    /// The beginning of a request whose end has not come yet.
    begun: Vec<u8>,
    /// An answer that was not taken whole, and how much of it was.
    left: Option<(&'a Answer, u64)>,
}

fn serve(listener: &TcpListener, answers: &[Answer]) -> Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Option<Connection<'_>>> = Vec::new();
    let mut free = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    let mut buffer = vec![0; 16 << 10];
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        for event in events.drain(..) {
            let place = event.data.u64();
            if place == LISTENER {
                let Ok(stream) = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else {
                    continue;
                };
                let place = free.pop().unwrap_or(connections.len());
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                epoll::add(&epoll, &stream, EventData::new_u64(place as u64), flags)?;
                let connection = Some(Connection { stream, begun: Vec::new(), left: None });
                match connections.get_mut(place) {
                    Some(freed) => *freed = connection,
                    None => connections.push(connection),
                }
                continue;
            }
            let Some(slot) = usize::try_from(place).ok().and_then(|place| connections.get_mut(place)) else {
                continue;
            };
            let goes_on = slot.as_mut().map(|connection| connection.advance(answers, &mut buffer));
            if goes_on == Some(false) {
                *slot = None;
                free.push(place as usize);
            }
        }
    }
}

impl<'a> Connection<'a> {
    /// Does what can be done after an event, which is told once; false at the end of the connection.
    fn advance(&mut self, answers: &'a [Answer], buffer: &mut [u8]) -> bool {
        if !self.write() {
            return false;
        }
        loop {
            let n = match rustix::io::read(&self.stream, &mut *buffer) {
                Ok(0) => return false,
                Ok(n) => n,
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            };
            if !self.take(&buffer[..n], answers) || !self.write() {
                return false;
            }
            // Nothing is left: what comes from now on is another event.
            if n < buffer.len() {
                return true;
            }
        }
    }

    /// Takes in a part of a request; proxies send the next one when they have the answer. False if it is none that
    /// has an answer.
    fn take(&mut self, bytes: &[u8], answers: &'a [Answer]) -> bool {
        let whole = if self.begun.is_empty() {
            bytes
        } else {
            self.begun.extend_from_slice(bytes);
            &self.begun
        };
        if !whole.ends_with(b"\r\n\r\n") {
            if self.begun.is_empty() {
                self.begun.extend_from_slice(bytes);
            }
            return true;
        }
        let target = whole.strip_prefix(b"GET ").unwrap_or_default();
        let answer = answers.iter().find(|answer| target.starts_with(answer.path.as_bytes()));
        self.left = answer.map(|answer| (answer, 0));
        self.begun.clear();
        answer.is_some()
    }

    /// Writes what is taken of the answer; false if the proxy is gone.
    fn write(&mut self) -> bool {
        while let Some((answer, mut sent)) = self.left {
            let rest = answer.bytes.get(sent as usize..).unwrap_or_default();
            let written = match &answer.file {
                Some(file) => sendfile(&self.stream, file.as_fd(), Some(&mut sent), rest.len()),
                None => send(&self.stream, rest, SendFlags::NOSIGNAL).inspect(|n| sent += *n as u64),
            };
            match written {
                Ok(0) => return false,
                Ok(_) => self.left = (sent < answer.bytes.len() as u64).then_some((answer, sent)),
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn every_path_is_answered_with_its_length_on_one_connection() {
        let mut proxy = TcpStream::connect(("127.0.0.1", start().unwrap())).unwrap();

        for (path, length) in [("/", BODY_BYTES), ("/1m", 1 << 20), ("/16k", 16 << 10), ("/", BODY_BYTES)] {
            // In two parts, as a slow proxy might.
            proxy.write_all(format!("GET {path} HT").as_bytes()).unwrap();
            proxy.write_all(b"TP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            let mut byte = [0];
            while !answer.ends_with(b"\r\n\r\n") {
                proxy.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            let head = String::from_utf8(answer).unwrap();
            let mut body = vec![0; length];
            proxy.read_exact(&mut body).unwrap();

            assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
            assert!(head.contains(&format!("Content-Length: {length}\r\n")), "{path}: {head}");
            assert!(body.iter().all(|byte| *byte == b'x'), "{path}");
        }
    }
}
