//! One slice of load on one proxy: HTTP/1.1 by wrk, HTTP/2 by h2load, a fixed rate by ourselves.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::paced::{self, Target};
use super::process::{self, Process, Ticks};
use super::{BODY_BYTES, GRPC_PATH, HOST, LOAD_CPU, PROXY_CPU, grpc};

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Name in the table and in the JSON.
    pub name: &'static str,
    shape: Shape,
    /// What they ask for, and how long its body is.
    path: &'static str,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// HTTP/1.1 on so many connections, each for many requests or for one.
    Http1 { connections: u32, tls: bool, close: bool },
    /// HTTP/2 over TLS: 16 connections with 32 streams each.
    Http2 { grpc: bool },
    /// HTTP/1.1 on so many connections, by the clock.
    Paced { connections: u32 },
}

const fn http1(name: &'static str, connections: u32, path: &'static str, bytes: usize) -> Case {
    Case { name, shape: Shape::Http1 { connections, tls: false, close: false }, path, bytes }
}

const fn tls(name: &'static str, close: bool, path: &'static str, bytes: usize) -> Case {
    Case { name, shape: Shape::Http1 { connections: 64, tls: true, close }, path, bytes }
}

impl Case {
    /// All of them, in the order they are measured.
    pub const ALL: [Self; 11] = [
        http1("keepalive-1k", 64, "/", BODY_BYTES),
        http1("keepalive-1k-512", 512, "/", BODY_BYTES),
        Self {
            name: "close-1k",
            shape: Shape::Http1 { connections: 64, tls: false, close: true },
            path: "/",
            bytes: BODY_BYTES,
        },
        http1("keepalive-16k", 64, "/16k", 16 << 10),
        http1("keepalive-1m", 16, "/1m", 1 << 20),
        tls("tls-keepalive-1k", false, "/", BODY_BYTES),
        tls("tls-1m", false, "/1m", 1 << 20),
        tls("tls-handshake", true, "/", BODY_BYTES),
        Self { name: "h2-tls-1k", shape: Shape::Http2 { grpc: false }, path: "/", bytes: BODY_BYTES },
        Self {
            name: "grpc-unary",
            shape: Shape::Http2 { grpc: true },
            path: GRPC_PATH,
            bytes: grpc::MESSAGE.len(),
        },
        Self { name: "p99-half-rate", shape: Shape::Paced { connections: 64 }, path: "/", bytes: BODY_BYTES },
    ];

    /// The load whose rate is halved for the one that goes by the clock.
    pub const FULL_RATE: Self = Self::ALL[0];

    /// It goes by the clock, and latency is what counts.
    pub fn is_paced(self) -> bool {
        matches!(self.shape, Shape::Paced { .. })
    }

    /// By what proxies are compared: requests per CPU second, or the latency that one request in a hundred
    /// exceeds, of which less is better.
    pub fn figure(self, slice: &Slice) -> f64 {
        if self.is_paced() { slice.p99_us } else { slice.per_cpu_s }
    }
}

/// What one proxy did in one slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slice {
    /// Requests per second.
    pub rps: f64,
    /// Requests per second of the proxy's CPU time.
    pub per_cpu_s: f64,
    /// Share of a CPU that the proxy used; well below 1 means that the load was the limit.
    pub busy: f64,
    /// Share of the proxy's CPU that went to others, the host of a virtual machine among them.
    pub others: f64,
    /// Median of the answers' latency; without the handshake of the connection.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
}

/// Puts load on the proxy for `length`, at `rate` if it goes by the clock. Handshakes of connections that are kept are in the proxy's CPU time,
/// about 2 % of a second on a quiet machine. An error means that the slice is void: nothing of it may be counted.
pub fn slice(
    case: Case,
    http: u16,
    https: u16,
    proxy: &Process,
    dir: &Path,
    (length, rate): (Duration, f64),
) -> Result<Slice> {
    let (mut command, interrupt) = match case.shape {
        Shape::Http1 { connections, tls, close } => {
            let (scheme, port) = if tls { ("https", https) } else { ("http", http) };
            let url = format!("{scheme}://{HOST}:{port}{}", case.path);
            (wrk(connections, close, &url, dir, length), true)
        }
        Shape::Http2 { grpc } => {
            let url = format!("https://{HOST}:{https}{}", case.path);
            (h2load(grpc, &url, dir, length), false)
        }
        Shape::Paced { connections } => return paced(http, rate, connections, proxy, length, case.bytes),
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

    let (before, ticks) = (proxy.cpu_time()?, Ticks::now(PROXY_CPU)?);
    let load = command.spawn().context("start the load")?;
    if interrupt {
        // The length of the slice itself, not a guess how long something takes.
        thread::sleep(length);
        process::signal(load.id(), Signal::INT);
    }
    let output = load.wait_with_output().context("wait for the load")?;
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    let all = Ticks::now(PROXY_CPU)?.busy_since(ticks);

    let text = String::from_utf8_lossy(&output.stdout);
    let counted = if interrupt { Counted::read(&text) } else { Counted::read_h2load(&text, length) };
    let Some(counted) = counted else {
        bail!("the load said {text:?} {:?}", String::from_utf8_lossy(&output.stderr));
    };
    counted.slice(cpu, all, case.bytes)
}

fn paced(
    http: u16,
    rate: f64,
    connections: u32,
    proxy: &Process,
    length: Duration,
    body: usize,
) -> Result<Slice> {
    let (before, ticks) = (proxy.cpu_time()?, Ticks::now(PROXY_CPU)?);
    let target = Target { port: http, hosts: &[HOST.to_owned()] };
    let took = paced::run(target, rate, connections as usize, length, body)?;
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    let all = Ticks::now(PROXY_CPU)?.busy_since(ticks);
    let share = |percent: usize| {
        let at = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        took.get(at).map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
    };
    let requests = took.len() as u64;
    let counted = Counted {
        requests,
        duration_us: u64::try_from(length.as_micros())?,
        bytes: requests * body as u64,
        p50_us: share(50),
        p99_us: share(99),
        ..Counted::default()
    };
    counted.slice(cpu, all, body)
}

fn wrk(connections: u32, close: bool, url: &str, dir: &Path, length: Duration) -> Command {
    // wrk counts in whole seconds; it is interrupted earlier, as a person would with ctrl-c.
    let longest = format!("{}s", length.as_secs() + 10);
    let mut command = process::pinned(LOAD_CPU, Path::new("wrk"));
    command.args(["-t1", &format!("-c{connections}"), "-d", &longest, "-s"]).arg(dir.join("report.lua"));
    if close {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(url);
    command
}

fn h2load(grpc: bool, url: &str, dir: &Path, length: Duration) -> Command {
    let mut command = process::pinned(LOAD_CPU, Path::new("h2load"));
    command.args(["-t1", "-c16", "-m32", "-D", &format!("{}ms", length.as_millis())]);
    if grpc {
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]);
        command.arg(dir.join("grpc-message"));
    }
    command.arg(url);
    command
}

/// The line that report.lua writes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    requests: u64,
    duration_us: u64,
    bytes: u64,
    p50_us: u64,
    p99_us: u64,
    /// What went wrong, and how often.
    errors: Vec<(String, u64)>,
}

impl Counted {
    /// `None` if the line is missing, or a number in it.
    fn read(output: &str) -> Option<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("counted "))?;
        let mut counted = Self::default();
        let mut fields = 0;
        for field in line.split_whitespace() {
            let (name, value) = field.split_once('=')?;
            let value = value.parse().ok()?;
            fields += 1;
            match name {
                "requests" => counted.requests = value,
                "duration_us" => counted.duration_us = value,
                "bytes" => counted.bytes = value,
                "p50_us" => counted.p50_us = value,
                "p99_us" => counted.p99_us = value,
                _ if value > 0 => counted.errors.push((name.to_owned(), value)),
                _ => {}
            }
        }
        (fields == 10).then_some(counted)
    }

    /// What h2load prints of `length`; it tells no percentiles.
    fn read_h2load(output: &str, length: Duration) -> Option<Self> {
        let number_before = |line: &str, word: &str| {
            let words: Vec<_> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|found| *found == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        let line = |start: &str| output.lines().find(|line| line.starts_with(start));
        let (requests, statuses, traffic) =
            (line("requests: ")?, line("status codes: ")?, line("traffic: ")?);
        let errors = ["failed", "errored", "timeout"].map(|what| (what, number_before(requests, what)));
        let statuses = ["3xx", "4xx", "5xx"].map(|what| (what, number_before(statuses, what)));
        let mut counted = Self {
            requests: number_before(requests, "succeeded")?,
            duration_us: u64::try_from(length.as_micros()).ok()?,
            // `traffic: 1.2MB (123) total, ... 1.1MB (110) data`: the last number in brackets.
            bytes: traffic.rsplit_once('(')?.1.split_once(')')?.0.parse().ok()?,
            ..Self::default()
        };
        for (what, count) in errors.into_iter().chain(statuses) {
            let count = count?;
            if count > 0 {
                counted.errors.push((what.to_owned(), count));
            }
        }
        Some(counted)
    }

    /// With the proxy's CPU time, and the share in which its CPU was busy with anything. Checks that every answer was the backend's, as far as its status and length tell.
    fn slice(&self, cpu: Duration, all_busy: f64, body: usize) -> Result<Slice> {
        let Self { requests, duration_us, bytes, p50_us, p99_us, errors } = self;
        if !errors.is_empty() {
            let list: Vec<String> = errors.iter().map(|(name, count)| format!("{count} {name}")).collect();
            bail!("errors among {requests} requests: {}", list.join(", "));
        }
        if *requests == 0 || *duration_us == 0 || cpu.is_zero() {
            bail!("{requests} requests in {duration_us} us with {cpu:?} of CPU time");
        }
        // wrk takes a redirect for a good answer; its body is too short.
        if *bytes < requests * body as u64 {
            bail!("{bytes} bytes for {requests} requests: not the backend's answers");
        }
        let seconds = *duration_us as f64 / 1e6;
        let busy = cpu.as_secs_f64() / seconds;
        Ok(Slice {
            rps: *requests as f64 / seconds,
            per_cpu_s: *requests as f64 / cpu.as_secs_f64(),
            busy,
            others: (all_busy - busy).max(0.0),
            p50_us: *p50_us as f64,
            p99_us: *p99_us as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 11s test @ http://localhost:1/\n  1 threads and 64 connections\n\
        counted requests=50000 duration_us=2000000 bytes=60000000 p50_us=700 p99_us=1500 connect=0 read=0 \
        write=0 status=0 timeout=0\n";

    #[test]
    fn a_slice_is_what_wrk_counted_over_the_cpu_time() {
        let slice = Counted::read(GOOD).unwrap().slice(Duration::from_millis(500), 0.5, 1024).unwrap();

        let expected =
            Slice { rps: 25e3, per_cpu_s: 100e3, busy: 0.25, others: 0.25, p50_us: 700.0, p99_us: 1500.0 };
        assert_eq!(slice, expected);
    }

    #[test]
    fn one_wrong_answer_makes_a_slice_void() {
        for (case, good, bad, reason) in [
            ("status", "status=0", "status=3", "errors among 50000 requests: 3 status"),
            ("connection", "read=0", "read=1", "errors among 50000 requests: 1 read"),
            (
                "redirect",
                "bytes=60000000",
                "bytes=20000000",
                "20000000 bytes for 50000 requests: not the backend's answers",
            ),
        ] {
            let counted = Counted::read(&GOOD.replace(good, bad)).unwrap();

            let error = counted.slice(Duration::from_secs(1), 1.0, 1024).unwrap_err();

            assert_eq!(error.to_string(), reason, "{case}");
        }
    }

    #[test]
    fn what_h2load_says_is_read() {
        let output = "finished in 1.00s, 900.00 req/s, 1.00MB/s\n\
            requests: 950 total, 960 started, 950 done, 900 succeeded, 0 failed, 2 errored, 0 timeout\n\
            status codes: 900 2xx, 0 3xx, 0 4xx, 1 5xx\n\
            traffic: 1.00MB (1000000) total, 10KB (10000) headers (space savings 90%), 900KB (921600) data\n";

        let counted = Counted::read_h2load(output, Duration::from_secs(1)).unwrap();

        let errors = vec![("errored".to_owned(), 2), ("5xx".to_owned(), 1)];
        let (requests, duration_us, bytes) = (900, 1_000_000, 921_600);
        assert_eq!(counted, Counted { requests, duration_us, bytes, errors, ..Counted::default() });
    }

    #[test]
    fn output_without_every_number_is_refused() {
        assert_eq!(Counted::read("unable to connect to localhost:1 Connection refused\n"), None);
        assert_eq!(Counted::read(&GOOD.replace(" timeout=0", "")), None);
        assert_eq!(Counted::read(&GOOD.replace("=700", "=-nan")), None);
    }
}
