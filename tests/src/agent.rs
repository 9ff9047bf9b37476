//! The real `penstock` binary on a host of a lab, with a directory of manifests or a cluster.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::{Host, Lab};

/// Longest wait for something that takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// An agent loads its kernel part first, which a loaded machine's verifier takes its time for.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// As long as an agent waits for its successor: on a busy machine the verifier takes its time.
const LONGEST_TAKEOVER: Duration = Duration::from_secs(60);

/// Where the agent answers questions; a host has its loopback to itself.
pub const ADMIN: &str = "127.0.0.1:10254";

/// A running agent. It ends with its lab.
pub struct Agent {
    host: Host,
    pid: u32,
    manifests: PathBuf,
    log: PathBuf,
    args: Vec<OsString>,
}

impl Agent {
    /// Starts the agent on `host` with the kernel program on `interfaces`, the manifests and the log in `dir`,
    /// and waits until it is healthy.
    pub fn start(lab: &Lab, host: &Host, interfaces: &[&str], dir: &Path) -> Result<Self> {
        Self::start_with(lab, host, interfaces, dir, &[])
    }

    /// The same with more arguments.
    pub fn start_with(
        lab: &Lab,
        host: &Host,
        interfaces: &[&str],
        dir: &Path,
        more: &[&str],
    ) -> Result<Self> {
        Self::start_binary(&binary()?, lab, host, interfaces, dir, more)
    }

    /// The same of another build.
    pub fn start_binary(
        binary: &Path,
        lab: &Lab,
        host: &Host,
        interfaces: &[&str],
        dir: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let manifests = dir.join("manifests");
        std::fs::create_dir_all(&manifests)?;
        let mut more: Vec<OsString> = more.iter().map(OsString::from).collect();
        more.extend(["--manifests".into(), manifests.into()]);
        Self::launch(lab, host, host.command(binary), interfaces, dir, more)
    }

    /// One in a pod (its namespace and name) of the cluster that the kubeconfig leads to.
    pub fn in_pod(
        lab: &Lab,
        host: &Host,
        interfaces: &[&str],
        (namespace, name): (&str, &str),
        kubeconfig: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = host.command(binary()?);
        command.env("POD_NAMESPACE", namespace).env("POD_NAME", name).env_remove("KUBECONFIG");
        let mut more: Vec<OsString> = more.iter().map(OsString::from).collect();
        more.extend(["--kubeconfig".into(), kubeconfig.into()]);
        let dir = lab.scratch().join(name);
        std::fs::create_dir_all(&dir)?;
        Self::launch(lab, host, command, interfaces, &dir, more)
    }

    fn launch(
        lab: &Lab,
        host: &Host,
        mut command: Command,
        interfaces: &[&str],
        dir: &Path,
        more: Vec<OsString>,
    ) -> Result<Self> {
        let log = dir.join("penstock.log");
        let fixed = ["run", "--admin", ADMIN, "--workers", "2", "--run-dir"];
        let mut args: Vec<OsString> = fixed.map(OsString::from).to_vec();
        args.push(dir.join("run").into());
        if !more.iter().any(|arg| arg == "--drain-seconds") {
            args.extend(["--drain-seconds", "5"].map(OsString::from));
        }
        args.extend(interfaces.iter().map(|interface| OsString::from(format!("--interface={interface}"))));
        args.extend(more);
        command.args(&args);
        let pid = lab.start(command, &log)?;
        let agent = Self { host: host.clone(), pid, manifests: dir.join("manifests"), log, args };
        let up = eventually(STARTS_WITHIN, || {
            if !lab.is_running(pid) {
                return Some(false);
            }
            agent.ask("/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(true)
        });
        match up {
            Some(true) => Ok(agent),
            Some(false) => bail!("penstock ended at once:\n{}", agent.log()),
            None => bail!("penstock did not become healthy:\n{}", agent.log()),
        }
    }

    /// Starts another process with the same arguments that is to take over from this one, and waits
    /// until it answers.
    pub fn taken_over(&self, lab: &Lab) -> Result<Self> {
        let mut command = self.host.command(binary()?);
        command.args(&self.args).arg("--takeover");
        let log = self.log.with_extension(format!("after-{}", self.pid));
        let pid = lab.start(command, &log)?;
        let agent = Self {
            host: self.host.clone(),
            pid,
            log,
            manifests: self.manifests.clone(),
            args: self.args.clone(),
        };
        let answers = || self.answering().is_ok_and(|answering| answering == pid).then_some(());
        eventually(LONGEST_TAKEOVER, answers)
            .with_context(|| format!("no takeover:\n{}{}", self.log(), agent.log()))?;
        Ok(agent)
    }

    /// The process that answers on this host.
    pub fn answering(&self) -> Result<u32> {
        let answer = self.ask("/status?format=json")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer with a body")?;
        let status: serde_json::Value = serde_json::from_str(body)?;
        status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a process id")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Directory that it watches, if it does.
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// Puts a file of manifests in place, whole.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let hidden = self.manifests.join(format!(".{name}.new"));
        std::fs::write(&hidden, yaml).with_context(|| format!("write {}", hidden.display()))?;
        std::fs::rename(&hidden, self.manifests.join(name)).with_context(|| format!("put {name} in place"))
    }

    /// Answer of its admin endpoint, head and body.
    pub fn ask(&self, path: &str) -> Result<String> {
        self.host.within(|| {
            let addr: SocketAddr = ADMIN.parse()?;
            let mut stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// What `penstock` says on this host with these arguments.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let output = self.host.command(binary()?).args(args).output()?;
        if !output.status.success() {
            bail!(
                "penstock {} ended with {}: {}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Asks until there is an answer, or the time is over.
pub fn eventually<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        // A pause between questions, not a guess how long something takes.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The binary that cargo built beside this program.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("penstock")).find(|file| file.is_file());
    found.context("no penstock binary beside this program; run `cargo build --bin penstock` first")
}
