//! Where it is measured: a network namespace of its own with the API server, every endpoint and the agent, so that
//! nothing of the machine's own network counts or changes.
//!
//! The agent has CPU 0 to itself; API server, etcd, endpoints and load share CPU 1.

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::served;
use super::world::{self, NODES, PODS, POOLS, PORT, SETTINGS};
use crate::agent::binary;
use crate::apiserver::{self, ApiServer};
use crate::bench_l7::PROXY_CPU;
use crate::bench_l7::process::Process;
use crate::netns::Host;

/// Bytes of every body: the address of the endpoint, filled up.
pub const BODY: usize = 15;
/// Where the agent serves.
pub const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);

/// Longest wait for something of the agent's.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between questions whether it is so now: what is measured is that exact.
const PAUSE: Duration = Duration::from_micros(500);
/// Share of a CPU that an agent without work takes at most.
const IDLE: f64 = 0.02;

/// Everything but the agent.
pub struct Site {
    /// For the harness' own questions.
    pub client: Client,
    /// Where tasks of the harness run.
    pub runtime: tokio::runtime::Runtime,
    kernel: bool,
    server: ApiServer,
    dir: tempfile::TempDir,
}

/// A running agent.
pub struct Agent {
    /// Its process.
    pub process: Process,
    /// When it was started.
    pub started: Instant,
}

impl Site {
    /// Called on `host`, whose interface `eth0` leads to the other nodes.
    pub fn new(host: &Host, assets: &std::path::Path, kernel: bool) -> Result<Self> {
        // What is asked for from within is answered from within: every address of a pod is one of this host.
        host.run(&format!("ip route add local {PODS} dev lo"))?;
        // As every node with pods does; an agent on one that does not has a problem to tell with every change.
        host.run("sysctl -qw net.ipv4.ip_forward=1")?;
        for number in 1..NODES {
            let address = world::node_address(number);
            host.run(&format!(
                "ip neigh add {address} lladdr 02:00:00:00:01:{number:02x} dev eth0 nud permanent"
            ))?;
        }
        serve_endpoints()?;
        let server = ApiServer::start(assets)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(apiserver::client(&server.kubeconfig()))?;
        Ok(Self { client, runtime, kernel, server, dir: tempfile::tempdir()? })
    }

    /// Starts an agent and returns at once.
    pub fn start(&self) -> Result<Agent> {
        let at = |name: &str| self.dir.path().join(name).to_string_lossy().into_owned();
        let (run, kubeconfig) = (at("run"), self.server.kubeconfig().to_string_lossy().into_owned());
        let (node, pools) = (world::node(0), format!("--address-pools={POOLS}"));
        let settings = format!("--configmap={SETTINGS}");
        let mut args =
            vec!["run", "--run-dir", &run, "--kubeconfig", &kubeconfig, "--workers", "1", &pools, &settings];
        // Another one goes on where this one ends.
        args.extend(["--update-status-on-shutdown=false", "--drain-seconds", "0", "--node-name", &node]);
        let kernel = ["--interface", "eth0", "--pin", "off"];
        args.extend(if self.kernel { &kernel[..] } else { &["--datapath", "off"][..] });
        let started = Instant::now();
        let process = Process::start(PROXY_CPU, &binary()?, &args, &self.log())?;
        Ok(Agent { process, started })
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("penstock.log")
    }
}

impl Agent {
    /// Asks until this host is answered by an endpoint; how long after the start that was.
    pub fn serves(&mut self, host: &str) -> Result<Duration> {
        while self.started.elapsed() < PATIENCE {
            if self.process.has_ended() {
                bail!("penstock ended:\n{}", self.process.log());
            }
            if let Ok(mut asker) = Asker::new(host)
                && asker.ask().is_ok_and(|endpoint| endpoint.is_some())
            {
                return Ok(self.started.elapsed());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("{host} is not served:\n{}", self.process.log())
    }

    /// Waits until it has nothing more to do: status of every object is written when it starts.
    pub fn is_at_rest(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let (before, then) = (self.process.cpu_total()?, Instant::now());
            std::thread::sleep(Duration::from_secs(2));
            let used = self.process.cpu_total()?.saturating_sub(before);
            if used.as_secs_f64() < IDLE * then.elapsed().as_secs_f64() {
                return Ok(());
            }
        }
        bail!("the agent does not come to rest")
    }
}

/// Asks one host over one connection, again and again.
pub struct Asker {
    host: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Asker {
    /// Connects.
    pub fn new(host: &str) -> Result<Self> {
        Ok(Self { host: host.to_owned(), stream: Some(served::connect(AGENT)?) })
    }

    /// The address of the endpoint that answers; `None`: the agent answers itself.
    pub fn ask(&mut self) -> Result<Option<String>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(served::connect(AGENT)?),
        };
        let answer = served::ask(stream, &self.host)?;
        if answer.contains("connection: close") {
            self.stream = None;
        }
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        Ok(head.starts_with("http/1.1 200").then(|| body.trim().to_owned()))
    }

    /// Asks until this endpoint answers; when that was.
    pub fn until(&mut self, endpoint: &str) -> Result<Instant> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.ask()?.as_deref() == Some(endpoint) {
                return Ok(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("{endpoint} gets no request of {}", self.host)
    }
}

/// Answers at every address of this host by that address.
fn serve_endpoints() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("bind the endpoints")?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        // For as long as the process lives.
        let _ = runtime.block_on(accept(listener));
    });
    Ok(())
}

async fn accept(listener: TcpListener) -> std::io::Result<std::convert::Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(endpoint(stream));
    }
}

async fn endpoint(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{:<BODY$}",
        stream.local_addr()?.ip().to_string()
    );
    let mut request = Vec::with_capacity(2048);
    while stream.read_buf(&mut request).await? > 0 {
        if request.ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes()).await?;
            request.clear();
        }
    }
    Ok(())
}

/// Versions of what is measured with, for the report.
pub fn versions(assets: &std::path::Path) -> Result<String> {
    let output = Command::new(assets.join("kube-apiserver")).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
