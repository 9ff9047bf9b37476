//! The real binary as an agent of the API server, on loopback and without a kernel part.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lb_tests::agent::{DEADLINE, binary, eventually};
use lb_tests::{echo, tier};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::rig::Rig;

/// A running agent; killed when dropped.
pub struct Agent {
    dir: tempfile::TempDir,
    child: Child,
    /// The process that took over from it, which is no child of ours: its number may be another's once it ended,
    /// this is not.
    successor: Option<OwnedFd>,
    pub http: SocketAddr,
    pub https: SocketAddr,
    admin: SocketAddr,
}

/// How it is started.
pub struct Start<'a> {
    pub kubeconfig: &'a Path,
    pub flags: &'a [&'a str],
    /// `POD_NAME` and so on.
    pub env: &'a [(&'a str, &'a str)],
}

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Agent {
    /// One that follows the test's namespace.
    pub fn of(rig: &Rig) -> Self {
        let namespace = format!("--watch-namespace={}", rig.namespace);
        Self::start(&Start { kubeconfig: &rig.kubeconfig, flags: &[&namespace], env: &[] })
    }

    /// Starts one and waits until it serves.
    pub fn start(start: &Start<'_>) -> Self {
        Self::launch(start).serving()
    }

    /// Starts one, which may have to wait for its cluster.
    pub fn launch(start: &Start<'_>) -> Self {
        let kubeconfig = format!("--kubeconfig={}", start.kubeconfig.display());
        Self::spawn(&[&[kubeconfig.as_str()], start.flags].concat(), start.env)
    }

    /// Starts one that knows of its API server by these flags alone.
    pub fn launch_by(flags: &[&str]) -> Self {
        Self::spawn(flags, &[])
    }

    fn spawn(flags: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let log = File::create(dir.path().join("log")).expect("writable");
        let mut command = Command::new(binary().expect("built"));
        command.args(["run", "--datapath", "off", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0"]);
        command.args(["--admin", "127.0.0.1:0", "--workers", "1", "--drain-seconds", "1"]);
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.args(flags).envs(env.iter().copied()).env_remove("KUBECONFIG");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("start penstock");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { dir, child, successor: None, http: nowhere, https: nowhere, admin: nowhere }
    }

    /// Waits until it answers for itself, though it may serve nothing yet.
    pub fn answering(mut self) -> Self {
        let addr = || self.log().split_once("starting admin=")?.1.split_whitespace().next()?.parse().ok();
        self.admin = eventually(DEADLINE, addr).unwrap_or_else(|| panic!("no admin: {}", self.log()));
        self
    }

    /// Waits until it serves.
    pub fn serving(mut self) -> Self {
        let addr = |what: &str| {
            let addr = || self.log().split_once(what)?.1.split_whitespace().next()?.parse().ok();
            eventually(DEADLINE, addr).unwrap_or_else(|| panic!("{what}: {}", self.log()))
        };
        let (http, https) = (addr("listener=Http addr="), addr("listener=Https addr="));
        let admin = addr("ready admin=");
        (self.http, self.https, self.admin) = (http, https, admin);
        self
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn wait_for_log(&self, words: &str) {
        let seen = eventually(DEADLINE, || self.log().contains(words).then_some(()));
        assert!(seen.is_some(), "{words}: {}", self.log());
    }

    pub fn get(&self, host: &str, path: &str) -> Reply {
        get(self.http, host, path)
    }

    /// Asks until the answer is as it should be.
    pub fn until(&self, host: &str, path: &str, case: &str, good: impl Fn(&Reply) -> bool) -> Reply {
        let answer = eventually(DEADLINE, || Some(self.get(host, path)).filter(&good));
        answer.unwrap_or_else(|| panic!("{case}: {:?}\n{}", self.get(host, path), self.log()))
    }

    /// Asks until the backend of that name answers.
    pub fn until_backend(&self, host: &str, name: &str) {
        self.until(host, "/", name, |reply| reply.backend() == Some(name));
    }

    /// An answer of the admin endpoint.
    pub fn admin(&self, path: &str) -> Reply {
        get(self.admin, "admin", path)
    }

    /// A page of the admin endpoint.
    pub fn ask(&self, path: &str) -> String {
        get(self.admin, "admin", path).body
    }

    /// Asks for a page until it is as it should be.
    pub fn ask_until(&self, path: &str, case: &str, good: impl Fn(&str) -> bool) -> String {
        let answer = eventually(DEADLINE, || Some(self.ask(path)).filter(|answer| good(answer)));
        answer.unwrap_or_else(|| panic!("{case}: {}\n{}", self.ask(path), self.log()))
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.ask("/metrics");
        let of_it = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        of_it.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Has a new process take over; returns when that answers alone.
    pub fn replace(&mut self) {
        let first = self.child.id();
        Command::new("kill").args(["-HUP", &first.to_string()]).status().expect("kill");
        let successor = || {
            let pid = self.pid().filter(|pid| *pid != first)?;
            let process = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
            let handle = pidfd_open(process, PidfdFlags::empty()).ok()?;
            // It still answers, so the handle is its own.
            (self.pid() == Some(pid)).then_some(handle)
        };
        let successor = eventually(DEADLINE, successor);
        self.successor = Some(successor.unwrap_or_else(|| panic!("no successor: {}", self.log())));
        let ended = eventually(DEADLINE, || self.child.try_wait().expect("a child"));
        assert!(ended.is_some(), "does not end: {}", self.log());
    }

    /// The process that answers.
    fn pid(&self) -> Option<u32> {
        let status: serde_json::Value = serde_json::from_str(&self.ask("/status?format=json")).ok()?;
        u32::try_from(status["pid"].as_u64()?).ok()
    }

    /// Ends it in order.
    pub fn end(mut self) -> String {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        let ended = eventually(DEADLINE, || self.child.try_wait().expect("a child"));
        assert!(ended.is_some(), "does not end: {}", self.log());
        self.log()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(successor) = &self.successor {
            // In vain where it has ended.
            let _ = pidfd_send_signal(successor, Signal::KILL);
        }
    }
}

impl Reply {
    pub fn backend(&self) -> Option<&str> {
        self.header("x-backend")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

fn get(addr: SocketAddr, host: &str, path: &str) -> Reply {
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("send");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// A backend that says its name. It listens on an address that an EndpointSlice may hold, which the
/// loopback's may not.
pub fn backend(name: &str) -> Option<SocketAddr> {
    let own = own_address();
    let here = tier::require("cluster", || {
        own.map(drop).ok_or_else(|| "this host has no address but the loopback's".into())
    });
    here.then(|| echo::http((own.expect("found"), 0), name).expect("a backend"))
}

/// The address towards everybody else; no packet is sent.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("198.51.100.1", 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

/// What `penstock` prints with these arguments, and its exit code.
pub fn cli(args: &[&str], kubeconfig: &PathBuf) -> (String, Option<i32>) {
    let mut command = Command::new(binary().expect("built"));
    let output = command.args(args).arg("--kubeconfig").arg(kubeconfig).output().expect("start penstock");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.code())
}
