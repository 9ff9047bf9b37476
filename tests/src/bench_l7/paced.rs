//! Requests at a fixed rate, by the clock and not by the answers: what a client waits that comes when it
//! comes. Latency counts from the moment a request was due, so a proxy that stalls pays for all that waited.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::LOAD_CPU;

/// Longest wait for answers after the last request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is asked: a port of this host, for these names in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Where the proxy listens.
    pub port: u16,
    /// What `Host` says, at least one.
    pub hosts: &'a [String],
}

/// One connection, with at most one request under way.
struct Client {
    stream: TcpStream,
    /// When its request was due.
    due: Instant,
    /// What of the answer is here.
    answer: Vec<u8>,
}

/// So many requests a second for `/`, over `connections`, for `length`; how long each took, in order. `body`:
/// bytes of the answer's body.
pub fn run(
    target: Target<'_>,
    rate: f64,
    connections: usize,
    length: Duration,
    body: usize,
) -> Result<Vec<Duration>> {
    let load = move || {
        let mut cpu = CpuSet::new();
        cpu.set(LOAD_CPU);
        sched_setaffinity(None, &cpu).context("pin the load")?;
        offer(target, rate, connections, length, body)
    };
    let loaded = std::thread::scope(|scope| scope.spawn(load).join());
    let mut took = loaded.map_err(|_| anyhow::anyhow!("the load panicked"))??;
    took.sort_unstable();
    Ok(took)
}

fn offer(
    Target { port, hosts }: Target<'_>,
    rate: f64,
    connections: usize,
    length: Duration,
    body: usize,
) -> Result<Vec<Duration>> {
    let request = |host: &String| format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").into_bytes();
    let requests: Vec<Vec<u8>> = hosts.iter().map(request).collect();
    let mut requests = requests.iter().cycle();
    let connect = |_| -> Result<Client> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client { stream, due: Instant::now(), answer: Vec::new() })
    };
    let mut clients: Vec<Client> = (0..connections).map(connect).collect::<Result<_>>()?;
    let mut free: Vec<usize> = (0..connections).collect();
    let mut busy: Vec<usize> = Vec::new();
    let mut waiting = VecDeque::new();
    let all = (rate * length.as_secs_f64()) as u64;
    let (start, mut made) = (Instant::now(), 0);
    let due = |number: u64| start + Duration::from_secs_f64(number as f64 / rate);
    let mut took = Vec::with_capacity(all as usize);
    while (took.len() as u64) < all {
        let now = Instant::now();
        if now > start + length + PATIENCE {
            bail!("{} of {all} requests answered in time", took.len());
        }
        while made < all && due(made) <= now {
            waiting.push_back(due(made));
            made += 1;
        }
        while let Some(due) = waiting.front()
            && let Some(number) = free.pop()
        {
            let client = &mut clients[number];
            client.due = *due;
            let request = requests.next().context("nobody to ask for")?;
            // A request is far smaller than any socket's buffer.
            if client.stream.write(request)? != request.len() {
                bail!("a request was not taken whole");
            }
            waiting.pop_front();
            busy.push(number);
        }
        let next = if made < all { due(made).saturating_duration_since(Instant::now()) } else { PATIENCE };
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(busy.len());
        polled.extend(busy.iter().map(|number| PollFd::new(&clients[*number].stream, PollFlags::IN)));
        poll(&mut polled, Some(&Timespec::try_from(next)?)).context("wait for answers")?;
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let mut still = Vec::with_capacity(busy.len());
        for (number, _) in busy.iter().zip(&ready).filter(|(_, ready)| !**ready) {
            still.push(*number);
        }
        for (number, _) in busy.iter().zip(&ready).filter(|(_, ready)| **ready) {
            let client = &mut clients[*number];
            if client.is_answered(body)? {
                took.push(client.due.elapsed());
                free.push(*number);
            } else {
                still.push(*number);
            }
        }
        busy = still;
    }
    Ok(took)
}

impl Client {
    /// Reads on; true with the last byte of the answer.
    fn is_answered(&mut self, body: usize) -> Result<bool> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("closed within an answer"),
            Ok(n) => self.answer.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("read an answer"),
        }
        let Some(head) = self.answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return Ok(false);
        };
        if !self.answer.starts_with(b"HTTP/1.1 200") {
            bail!("answered {:?}", String::from_utf8_lossy(&self.answer[..head]));
        }
        match self.answer.len().cmp(&(head + 4 + body)) {
            std::cmp::Ordering::Less => Ok(false),
            std::cmp::Ordering::Equal => {
                self.answer.clear();
                Ok(true)
            }
            std::cmp::Ordering::Greater => bail!("more than an answer came"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_stalls_pays_for_all_that_waited() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 1024];
            let mut is_first = true;
            while stream.read(&mut bytes).is_ok_and(|n| n > 0) {
                if std::mem::take(&mut is_first) {
                    std::thread::sleep(Duration::from_millis(100));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").unwrap();
            }
        });

        let target = Target { port, hosts: &["localhost".to_owned()] };
        let took = run(target, 100.0, 1, Duration::from_millis(200), 1).unwrap();

        assert_eq!(took.len(), 20);
        let late = took.iter().filter(|took| **took >= Duration::from_millis(15)).count();
        assert!(late >= 8, "{took:?}");
    }
}
