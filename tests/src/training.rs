//! What an agent serves while it counts which of its code runs, and how often: the compiler puts that together, and what
//! does not run elsewhere (profile-guided optimisation). Other hosts, heads, policies and settings than `bench l7` has:
//! what is measured there is not what was learned by heart.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::agent::eventually;
use crate::bench_l7::process::signal;
use crate::bench_l7::proxy::{Certificate, fill, find, free_ports};
use crate::bench_l7::{GRPC_PATH, backend, grpc};
use crate::{echo, manifests};

/// Longest wait for the agent to serve, and to end: one that counts is slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// Hosts that nobody asks for, whose objects are read and translated.
const OTHER_HOSTS: usize = 300;

/// How often the objects change while requests run.
const CHANGES: usize = 20;

/// What clients do, one after the other: a program and its arguments; `@HTTP@` and `@HTTPS@` are the agent's ports.
/// The seconds of each are its weight.
const LOAD: [&[&str]; 11] = [
    &["wrk", "-t1", "-c64", "-d5s", "-s", "@DIR@/train.lua", "http://localhost:@HTTP@", "--", "named"],
    &["wrk", "-t1", "-c400", "-d2s", "-s", "@DIR@/train.lua", "http://localhost:@HTTP@", "--", "named"],
    &[
        "wrk",
        "-t1",
        "-c32",
        "-d3s",
        "-s",
        "@DIR@/train.lua",
        "http://localhost:@HTTP@",
        "--",
        "named",
        "close",
    ],
    &["wrk", "-t1", "-c16", "-d1s", "http://localhost:@HTTP@/16k"],
    &["wrk", "-t1", "-c8", "-d1s", "http://localhost:@HTTP@/1m"],
    &["wrk", "-t1", "-c64", "-d4s", "-s", "@DIR@/train.lua", "https://localhost:@HTTPS@", "--", "one"],
    &[
        "wrk",
        "-t1",
        "-c32",
        "-d3s",
        "-s",
        "@DIR@/train.lua",
        "https://localhost:@HTTPS@",
        "--",
        "one",
        "close",
    ],
    &["wrk", "-t1", "-c8", "-d1s", "https://localhost:@HTTPS@/1m"],
    &[
        "h2load",
        "-t1",
        "-c8",
        "-m20",
        "-D4",
        "https://localhost:@HTTPS@/",
        "https://localhost:@HTTPS@/items/7?page=2",
    ],
    &["h2load", "-t1", "-c4", "-m10", "-D1", "-d@DIR@/upload", "https://localhost:@HTTPS@/pictures/7"],
    &[
        "h2load",
        "-t1",
        "-c8",
        "-m20",
        "-D3",
        "-Hcontent-type: application/grpc",
        "-Hte: trailers",
        "-d@DIR@/message",
        "https://localhost:@HTTPS@@CALL@",
    ],
];

/// Has `program` serve all of it, and leave in `counts` what it counted.
pub fn run(program: &Path, counts: &Path) -> Result<()> {
    for tool in ["wrk", "h2load"] {
        if find(tool).is_none() {
            bail!("no {tool} on this machine; `cargo xtask setup release` brings it");
        }
    }
    let dir = tempfile::tempdir().context("make a directory for the training")?;
    let [http, https, admin] = free_ports()?;
    let (service, _) = GRPC_PATH.rsplit_once('/').context("a path of gRPC has a service")?;
    let certificate = Certificate::new(dir.path())?;
    let values = [
        ("DIR", dir.path().display().to_string()),
        ("HTTP", http.to_string()),
        ("HTTPS", https.to_string()),
        ("CALL", GRPC_PATH.to_owned()),
    ];
    let backends = [
        ("LOG", dir.path().join("access.log").display().to_string()),
        ("CERTIFICATE", certificate.secret()),
        ("WEB", web()?.to_string()),
        ("LARGE", backend::start()?.to_string()),
        ("CALLS", grpc::start()?.to_string()),
        ("CALL", service.to_owned()),
    ];
    std::fs::write(dir.path().join("train.lua"), include_str!("../bench/train.lua"))?;
    std::fs::write(dir.path().join("message"), grpc::MESSAGE)?;
    std::fs::write(dir.path().join("upload"), vec![b'u'; 20_000])?;
    let objects = dir.path().join("manifests");
    std::fs::create_dir(&objects)?;
    std::fs::write(objects.join("served.yaml"), fill(include_str!("../bench/train.yaml.in"), &backends))?;
    change(&objects, 0)?;

    let at = |port: u16| format!("127.0.0.1:{port}");
    let mut command = Command::new(program);
    command
        .args(["run", "--datapath", "off", "--workers", "1", "--manifests"])
        .arg(&objects)
        .args(["--http", &at(http), "--https", &at(https), "--admin", &at(admin)])
        .arg("--run-dir")
        .arg(dir.path().join("run"))
        .env("LLVM_PROFILE_FILE", counts.join("%p-%m.profraw"));
    let log = File::create(counts.with_extension("log")).context("create the agent's log")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut agent = Agent(command.spawn().with_context(|| format!("start {}", program.display()))?);
    eventually(DEADLINE, || {
        ask(http, "shop.example", "/").ok().filter(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .context("the agent does not serve")?;
    for line in LOAD {
        let words: Vec<_> = line.iter().map(|word| fill(word, &values)).collect();
        load(&words, &objects, admin)?;
    }
    agent.end()
}

/// Runs one program while objects change. What comes to nothing but errors would teach the compiler these.
fn load(words: &[String], objects: &Path, admin: u16) -> Result<()> {
    let line = words.join(" ");
    println!("{line}");
    let (tool, args) = words.split_first().context("a line names its program")?;
    let load = Command::new(tool).args(args).stdout(Stdio::piped()).spawn().context("start the load")?;
    for number in 1..=CHANGES {
        change(objects, number)?;
        ask(admin, "admin", "/metrics")?;
        // Not all at once, so that most requests meet no change.
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let output = load.wait_with_output().context("wait for the load")?;
    let said = String::from_utf8_lossy(&output.stdout);
    match Outcome::read(&said) {
        Some(outcome) if output.status.success() && outcome.is_good() => Ok(()),
        _ => bail!("{line} failed ({}):\n{said}", output.status),
    }
}

/// What wrk or h2load counted.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answered: u64,
    failed: u64,
}

impl Outcome {
    /// `None` if it is neither's report.
    fn read(said: &str) -> Option<Self> {
        let numbers = |line: &str| -> Vec<u64> {
            line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
        };
        let of = |start: &str| said.lines().map(str::trim).find_map(|line| line.strip_prefix(start));
        if let Some(statuses) = of("status codes:") {
            // Those of 200, 300, 400 and 500.
            let (answered, others) =
                numbers(statuses).split_first().map(|(first, rest)| (*first, rest.iter().sum::<u64>()))?;
            return Some(Self { answered, failed: others });
        }
        let all = said.lines().find(|line| line.contains(" requests in "))?;
        let all = *numbers(all).first()?;
        let failed = of("Non-2xx or 3xx responses:").map_or(0, |line| numbers(line).iter().sum())
            + of("Socket errors:").map_or(0, |line| numbers(line).iter().sum::<u64>());
        Some(Self { answered: all.saturating_sub(failed), failed })
    }

    /// A busy machine may be late once in a while.
    fn is_good(&self) -> bool {
        self.answered > 0 && self.failed * 100 <= self.answered
    }
}

/// Three endpoints of one port.
fn web() -> Result<u16> {
    let port = echo::http("127.0.0.1:0", "web")?.port();
    for addr in ["127.0.0.2", "127.0.0.3"] {
        echo::http((addr, port), "web")?;
    }
    Ok(port)
}

/// Objects of hosts that nobody asks for; another number, and some of them are others.
fn change(objects: &Path, number: usize) -> Result<()> {
    let others = (0..OTHER_HOSTS).map(|host| {
        let name = format!("other-{host}");
        let changing = if host % 10 == number % 10 { format!("{name}-{number}") } else { name.clone() };
        manifests::ingress(&name, &format!("{changing}.example"), "web", None)
    });
    let hidden = objects.join(".others.new");
    std::fs::write(&hidden, others.collect::<Vec<_>>().join("---\n"))?;
    std::fs::rename(&hidden, objects.join("others.yaml")).context("put the objects in place")
}

/// Head and body of an answer.
fn ask(port: u16, host: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Ends with its guard.
struct Agent(Child);

impl Agent {
    /// Ends as it should, by which it writes what it counted.
    fn end(&mut self) -> Result<()> {
        signal(self.0.id(), rustix::process::Signal::TERM);
        let status =
            eventually(DEADLINE, || self.0.try_wait().ok().flatten()).context("the agent does not end")?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_gets_errors_is_no_training() {
        for (said, expected, good) in [
            (
                "  70958 requests in 5.02s, 122.83MB read\nRequests/sec:  14140.54\n",
                Some(Outcome { answered: 70_958, failed: 0 }),
                true,
            ),
            (
                "  500 requests in 5.02s, 1.83MB read\n  Non-2xx or 3xx responses: 500\n",
                Some(Outcome { answered: 0, failed: 500 }),
                false,
            ),
            (
                "  1000 requests in 3.05s, 24.65MB read\n  Socket errors: connect 0, read 75, write 0, timeout 0\n",
                Some(Outcome { answered: 925, failed: 75 }),
                false,
            ),
            (
                "requests: 33007 total, 33007 done\nstatus codes: 33007 2xx, 0 3xx, 3 4xx, 2 5xx\n",
                Some(Outcome { answered: 33_007, failed: 5 }),
                true,
            ),
            (
                "status codes: 0 2xx, 0 3xx, 0 4xx, 812 5xx\n",
                Some(Outcome { answered: 0, failed: 812 }),
                false,
            ),
            ("unable to connect to localhost:1 Connection refused\n", None, false),
        ] {
            let outcome = Outcome::read(said);

            assert_eq!(outcome, expected, "{said}");
            assert_eq!(outcome.is_some_and(|outcome| outcome.is_good()), good, "{said}");
        }
    }
}
