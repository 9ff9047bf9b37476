//! One slice of load on one proxy, by wrk.

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::process::{self, Process, Ticks};
use super::{BODY_BYTES, HOST, LOAD_CPU, PROXY_CPU};

/// Connections that are busy at once.
pub const CONNECTIONS: u32 = 64;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// One connection for many requests.
    KeepAlive,
    /// The same over TLS.
    TlsKeepAlive,
    /// A new connection for each request.
    Close,
}

impl Case {
    /// All of them, in the order they are measured.
    pub const ALL: [Self; 3] = [Self::KeepAlive, Self::TlsKeepAlive, Self::Close];

    /// Name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keepalive-1k",
            Self::TlsKeepAlive => "tls-keepalive-1k",
            Self::Close => "close-1k",
        }
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

/// Runs wrk for `length`. With TLS the handshakes of its connections are in the proxy's CPU time, about 2 % of
/// a second on a quiet machine. An error means that the slice is void: nothing of it may be counted.
pub fn slice(
    case: Case,
    http: u16,
    https: u16,
    proxy: &Process,
    script: &Path,
    length: Duration,
) -> Result<Slice> {
    let url = match case {
        Case::KeepAlive | Case::Close => format!("http://{HOST}:{http}/"),
        Case::TlsKeepAlive => format!("https://{HOST}:{https}/"),
    };
    // wrk counts in whole seconds; it is interrupted earlier, as a person would with ctrl-c.
    let longest = format!("{}s", length.as_secs() + 10);
    let mut command = process::pinned(LOAD_CPU, Path::new("wrk"));
    command.args(["-t1", &format!("-c{CONNECTIONS}"), "-d", &longest, "-s"]).arg(script);
    if case == Case::Close {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

    let (before, ticks) = (proxy.cpu_time()?, Ticks::now(PROXY_CPU)?);
    let wrk = command.spawn().context("start wrk")?;
    // The length of the slice itself, not a guess how long something takes.
    thread::sleep(length);
    process::signal(wrk.id(), Signal::INT);
    let output = wrk.wait_with_output().context("wait for wrk")?;
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    let all = Ticks::now(PROXY_CPU)?.busy_since(ticks);

    let text = String::from_utf8_lossy(&output.stdout);
    let Some(counted) = Counted::read(&text) else {
        bail!("wrk said {text:?} {:?}", String::from_utf8_lossy(&output.stderr));
    };
    counted.slice(cpu, all)
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

    /// With the proxy's CPU time, and the share in which its CPU was busy with anything. Checks that every answer was the backend's, as far as its status and length tell.
    fn slice(&self, cpu: Duration, all_busy: f64) -> Result<Slice> {
        let Self { requests, duration_us, bytes, p50_us, p99_us, errors } = self;
        if !errors.is_empty() {
            let list: Vec<String> = errors.iter().map(|(name, count)| format!("{count} {name}")).collect();
            bail!("errors among {requests} requests: {}", list.join(", "));
        }
        if *requests == 0 || *duration_us == 0 || cpu.is_zero() {
            bail!("{requests} requests in {duration_us} us with {cpu:?} of CPU time");
        }
        // wrk takes a redirect for a good answer; its body is too short.
        if *bytes < requests * BODY_BYTES as u64 {
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
        let slice = Counted::read(GOOD).unwrap().slice(Duration::from_millis(500), 0.5).unwrap();

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

            let error = counted.slice(Duration::from_secs(1), 1.0).unwrap_err();

            assert_eq!(error.to_string(), reason, "{case}");
        }
    }

    #[test]
    fn output_without_every_number_is_refused() {
        assert_eq!(Counted::read("unable to connect to localhost:1 Connection refused\n"), None);
        assert_eq!(Counted::read(&GOOD.replace(" timeout=0", "")), None);
        assert_eq!(Counted::read(&GOOD.replace("=700", "=-nan")), None);
    }
}
