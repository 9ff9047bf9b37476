//! Hot restart of the real binary: a process takes the place of the one before under load, and one
//! that fails costs nothing.

mod load;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb_tests::agent::{binary, eventually};
use lb_tests::manifests::{self, Slice};
use penstock::takeover::{self, Link, Predecessor, Role};

use self::load::{ANSWER, Done, Load, exchange};
use crate::rig::{Backend, Client, DEADLINE, Reply, length_of, nobody};
use crate::tls_client::{self, Tls};

/// Takeovers in a row; `PENSTOCK_TAKEOVERS` has more of them for a whole night.
const TAKEOVERS: usize = 12;
pub const HOST: &str = "web.example.com";

/// Agents that succeed one another, from the first one on.
pub struct Agents {
    dir: tempfile::TempDir,
    group: Group,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub admin: SocketAddr,
}

impl Agents {
    pub fn start(backend: SocketAddr, flags: &[&str]) -> Self {
        Self::serving(backend, &[], flags)
    }

    /// One that reads these files as well, each with its name.
    fn serving(backend: SocketAddr, more: &[(&str, &str)], flags: &[&str]) -> Self {
        let slice = Slice {
            name: "web",
            service: "web",
            port_name: "",
            protocol: "TCP",
            endpoints: &[backend],
            weight: 1,
        };
        let web = format!("{}---\n{}", manifests::service("web", backend.port()), slice.yaml());
        let ingress = manifests::ingress("web", HOST, "web", None);
        let files = [&[("web.yaml", &*web), ("ingress.yaml", &*ingress)], more].concat();
        Self::over(&files, flags)
    }

    /// One that reads these files, each with its name.
    pub fn over(files: &[(&str, &str)], flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("manifests")).expect("writable");
        for (name, text) in files {
            std::fs::write(dir.path().join("manifests").join(name), text).expect("writable");
        }
        configure(dir.path(), 2);

        let mut first = command(dir.path(), flags);
        first.stdout(File::create(dir.path().join("out")).expect("writable"));
        let first = first.process_group(0).spawn().expect("start penstock");
        let group = Group { first, more: Vec::new() };
        let log = dir.path().join("log");
        let addr = |what: &str| {
            let addr = || {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let (_, rest) = text.split_once(what)?;
                rest.split_whitespace().next()?.parse().ok()
            };
            eventually(DEADLINE, addr).unwrap_or_else(|| panic!("{}", read(&log)))
        };
        let (http, https) = (addr("listener=Http addr="), addr("listener=Https addr="));
        let admin = addr("ready admin=");
        Self { dir, group, http, https, admin }
    }

    /// A new process by hand.
    fn take_over(&mut self) {
        let mut command = command(self.dir.path(), &[]);
        let group = i32::try_from(self.group.first.id()).expect("a process");
        self.group.more.push(command.arg("--takeover").process_group(group).spawn().expect("start penstock"));
    }

    pub fn log(&self) -> String {
        read(&self.dir.path().join("log"))
    }

    /// A file beside its manifests; its standard output is in `out`.
    pub fn read(&self, name: &str) -> String {
        read(&self.path(name))
    }

    /// Of a file beside its manifests.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn admin(&self, path: &str) -> Reply {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n"));
        client.reply()
    }

    /// The process that answers.
    pub fn pid(&self) -> u64 {
        let status: serde_json::Value =
            serde_json::from_slice(&self.admin("/status?format=json").body).expect("JSON");
        status["pid"].as_u64().expect("a process id")
    }

    pub fn signal(&self, pid: u64, signal: &str) {
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill");
        assert!(sent.success(), "{}", self.log());
    }

    /// The process that answers, once it is another one than `before`.
    fn successor_of(&self, before: u64) -> u64 {
        eventually(DEADLINE, || Some(self.pid()).filter(|pid| *pid != before))
            .unwrap_or_else(|| panic!("{}", self.log()))
    }

    pub fn wait_for(&self, words: &str) {
        let seen = eventually(DEADLINE, || self.log().contains(words).then_some(()));
        assert!(seen.is_some(), "{words}: {}", self.log());
    }

    /// Puts a manifest in place of the one before.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("manifests").join(name), text).expect("writable");
    }

    fn counted(&self) -> u64 {
        let text = self.admin("/metrics").text();
        let samples = text.lines().filter(|line| line.starts_with("nginx_ingress_controller_requests{"));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }
}

/// The first process and its successors, all of one group. They end with this, also where a test fails before the first
/// is ready.
struct Group {
    first: Child,
    more: Vec<Child>,
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_raw(i32::try_from(self.first.id()).unwrap_or(0));
        let group = group.expect("a process group");
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.first.wait();
        self.more.iter_mut().for_each(|child| drop(child.wait()));
    }
}

fn command(dir: &Path, flags: &[&str]) -> Command {
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("writable");
    let mut command = Command::new(binary().expect("built"));
    command.args(["run", "--datapath", "off", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0"]);
    command.args(["--admin", "127.0.0.1:0"]);
    command.arg("--manifests").arg(dir.join("manifests"));
    command.arg("--config").arg(dir.join("config.yaml"));
    command.arg("--run-dir").arg(dir.join("run"));
    command.env("POD_NAMESPACE", "edge").env("POD_NAME", "edge-0");
    command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

fn configure(dir: &Path, workers: usize) {
    std::fs::write(dir.join("config.yaml"), format!("drain-seconds: 600\nworkers: {workers}\n"))
        .expect("writable");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// `/` answers once it has the body, `/drip` for as long as `stop` is not set, an upgrade echoes.
fn backend(stop: &Arc<AtomicBool>) -> Backend {
    let stop = Arc::clone(stop);
    Backend::start(move |mut peer| {
        // Idle connections are kept for longer than this test lets its clients wait.
        peer.stream.set_read_timeout(None).expect("no timeout");
        while let Some(head) = peer.head() {
            if head.starts_with("GET /drip") {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                while !stop.load(Ordering::SeqCst) {
                    if !peer.try_send(b"5\r\ndrip\n\r\n") {
                        return;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                peer.send("4\r\nend\n\r\n0\r\n\r\n");
            } else if head.to_ascii_lowercase().contains("\r\nupgrade:") {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: t\r\nConnection: Upgrade\r\n\r\n");
                let mut bytes = [0; 64];
                while let Ok(n @ 1..) = peer.stream.read(&mut bytes) {
                    if !peer.try_send(&bytes[..n]) {
                        return;
                    }
                }
                return;
            } else {
                peer.exactly(length_of(&head));
                if !peer.try_send(ANSWER) {
                    return;
                }
            }
        }
    })
}

#[test]
fn takeovers_under_load_with_websockets_and_downloads_open_lose_nothing() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let mut agents = Agents::start(backend.addr, &[]);
    let http = agents.http;
    let open = |request: &str| {
        let mut client = Client::connect(http);
        client.send(format!("GET {request}\r\nHost: {HOST}\r\n\r\n"));
        client
    };
    let websocket = || {
        let mut client = open("/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: t");
        assert_eq!(client.reply().status, 101);
        client
    };
    let mut downloads: Vec<_> = (0..3).map(|_| open("/drip HTTP/1.1")).collect();
    let mut websockets = vec![websocket()];
    let sessions = tls_client::config(None, &[&rustls::version::TLS13]);
    let tls = |agents: &Agents| {
        let mut tls = Tls::with(Arc::clone(&sessions), agents.https, HOST).expect("handshake");
        assert_eq!(tls.status(HOST, "/"), 200);
        tls.is_resumed()
    };
    assert!(!tls(&agents), "the first handshake is a whole one");
    let clients = Load::start(http, agents.https);
    let begun = std::time::Instant::now();
    let takeovers = std::env::var("PENSTOCK_TAKEOVERS").ok().and_then(|n| n.parse().ok());
    let takeovers = takeovers.unwrap_or(TAKEOVERS);

    let (mut pid, mut counted) = (agents.pid(), 0);
    for takeover in 0..takeovers {
        // Another number of workers each time; by signal, and by hand.
        configure(agents.dir.path(), 1 + takeover % 3);
        if takeover % 4 == 1 {
            agents.take_over()
        } else {
            agents.signal(pid, "-HUP")
        }
        pid = agents.successor_of(pid);
        let now = agents.counted();
        assert!(now >= counted, "takeover {takeover}: {counted} requests counted, then {now}");
        counted = now;
        assert!(tls(&agents), "takeover {takeover}: the session is not resumed");
        if takeover < 4 {
            websockets.push(websocket());
        }
        for websocket in &mut websockets {
            websocket.send("ping");
            assert_eq!(websocket.exactly(4), b"ping", "takeover {takeover}");
        }
    }

    let done = clients.stop();
    let Done { answered, late } = done.unwrap_or_else(|lost| panic!("{lost}\n{}", agents.log()));
    let took = begun.elapsed();
    ends.store(true, Ordering::SeqCst);
    for download in &mut downloads {
        let body = download.reply().text();
        assert!(body.starts_with("drip\n") && body.ends_with("drip\nend\n"), "{body:.60}");
    }
    let opened = websockets.len() + downloads.len() + takeovers + 1;
    drop((websockets, downloads));
    // What the agents before the last one counted arrives there as well.
    let all = answered + opened as u64;
    let counted = eventually(DEADLINE, || Some(agents.counted()).filter(|counted| *counted >= all));
    assert_eq!(counted, Some(all), "{}", agents.log());
    println!(
        "{takeovers} takeovers in {:.1} s, {answered} requests ({:.0} a second), {late} late connections",
        took.as_secs_f64(),
        answered as f64 / took.as_secs_f64()
    );
    // One or two may be the machine's; lost SYNs would be some of each takeover.
    assert!(late < takeovers.div_ceil(2) as u64, "{late} connections took a second");
    let text = agents.admin("/metrics").text();
    assert!(text.contains(&format!("penstock_agent_takeovers_total {takeovers}\n")), "{text}");
}

#[test]
fn what_is_cut_off_after_a_takeover_is_counted_by_the_successor() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let agents = Agents::start(backend.addr, &["--drain-seconds", "1"]);
    let mut client = Client::connect(agents.http);
    client.send(format!("GET /drip HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert!(client.head().is_some_and(|head| head.starts_with("HTTP/1.1 200 ")));

    let before = agents.pid();
    agents.signal(before, "-HUP");
    agents.successor_of(before);

    let is_counted = || {
        let text = agents.admin("/metrics").text();
        let mut lines = text.lines().filter(|line| line.starts_with("nginx_ingress_controller_requests{"));
        lines.any(|line| line.contains("status=\"499\"") && line.ends_with(" 1")).then_some(())
    };
    assert!(eventually(DEADLINE, is_counted).is_some(), "{}", agents.log());
    ends.store(true, Ordering::SeqCst);
}

#[test]
fn an_agent_that_is_full_of_downloads_parts_and_ends_them_well() {
    for signal in ["-HUP", "-TERM"] {
        let ends = Arc::new(AtomicBool::new(false));
        let backend = backend(&ends);
        let limit = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ingress-nginx-controller, \
                     namespace: ingress-nginx}\ndata: {max-worker-connections: \"2\"}\n";
        let agents = Agents::serving(backend.addr, &[("limit.yaml", limit)], &["--workers", "1"]);
        let open = |path: &str| {
            let mut client = Client::connect(agents.http);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
            client
        };
        let mut downloads = [open("/drip"), open("/drip")];
        for download in &mut downloads {
            assert!(download.head().is_some_and(|head| head.starts_with("HTTP/1.1 200 ")));
        }
        // One more is accepted and waits for a place among them.
        let mut waiting = open("/");
        let is_full = || {
            let text = agents.admin("/metrics").text();
            let mut lines = text.lines();
            lines.any(|line| line == "penstock_l7_connection_limit_reached_total 1").then_some(())
        };
        eventually(DEADLINE, is_full).expect("the worker is full");

        let pid = agents.pid();
        agents.signal(pid, signal);

        assert_eq!(waiting.reply().status, 200, "{signal}");
        if signal == "-HUP" {
            agents.successor_of(pid);
            assert_eq!(open("/").reply().status, 200);
        }
        ends.store(true, Ordering::SeqCst);
        for download in &mut downloads {
            let other = std::iter::repeat_with(|| download.chunk()).find(|chunk| chunk != b"drip\n");
            assert_eq!(other.as_deref(), Some(&b"end\n"[..]));
        }
    }
}

/// Plays a successor, which this test may let fail wherever it likes.
fn play<T>(run_dir: &Path, play: impl AsyncFnOnce(Predecessor) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let link: Link = takeover::connect(run_dir).await.expect("reached").expect("an agent is there");
        play(Predecessor::meet(link, None).await.expect("met")).await
    })
}

#[test]
fn a_successor_that_fails_leaves_the_agent_serving() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let agents = Agents::start(backend.addr, &[]);
    let pid = agents.pid();
    let serves = |case: &str| {
        let mut stream = TcpStream::connect(agents.http).expect("connect");
        exchange(&mut stream, "close").unwrap_or_else(|lost| panic!("{case}: {lost}\n{}", agents.log()));
        assert_eq!(agents.pid(), pid, "{case}");
    };

    std::fs::write(agents.dir.path().join("config.yaml"), "wokers: 3\n").expect("writable");
    agents.signal(pid, "-HUP");
    agents.wait_for("the successor ended; this agent goes on status=exit status: 64");
    serves("its configuration is refused");

    play(&agents.run_dir(), async |predecessor| drop(predecessor));
    agents.wait_for("the takeover failed; this agent goes on");
    serves("it ends before it serves");

    let mut waiting = play(&agents.run_dir(), async |mut predecessor| {
        let sockets = std::mem::take(&mut predecessor.sockets);
        let roles: Vec<Role> = sockets.iter().map(|socket| socket.role).collect();
        let counts = predecessor.serving(roles).await.expect("parked");
        assert!(counts.is_object());
        // It holds the sockets and accepts nothing: this one waits in a queue.
        let mut waiting = TcpStream::connect(agents.http).expect("connect");
        waiting.set_read_timeout(Some(DEADLINE)).expect("timeout");
        write!(waiting, "GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").expect("send");
        waiting
    });
    let mut answer = [0; 12];
    waiting.read_exact(&mut answer).expect("answered by the agent that went on");
    assert_eq!(&answer, b"HTTP/1.1 200");
    serves("it ends after it served");
    assert!(agents.counted() >= 4, "what it was given is counted here again");

    configure(agents.dir.path(), 2);
    agents.signal(pid, "-HUP");
    assert_ne!(agents.successor_of(pid), pid, "the next one succeeds");
}

/// Numbers of the sockets that listen on a port, by the kernel's table of this protocol.
fn sockets_of(protocol: &str, port: u16) -> BTreeSet<u64> {
    let table = std::fs::read_to_string(format!("/proc/net/{protocol}")).expect("a table");
    let here = format!(":{port:04X}");
    let listening = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // Listening, or bound.
        let listens = fields.get(1)?.ends_with(&here) && matches!(*fields.get(3)?, "0A" | "07");
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    });
    listening.collect()
}

#[test]
fn sockets_of_tcp_and_udp_services_pass_on() {
    let tcp = Backend::start(|mut peer| {
        let told = peer.rest();
        peer.try_send(&told);
    });
    let udp = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
    let names = udp.local_addr().expect("bound");
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, client)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], client);
        }
    });
    let [tcp_port, udp_port] = std::array::from_fn(|_| nobody().port());
    let ports = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tcp}}\ndata: {{\"{tcp_port}\": default/words:80}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: udp}}\ndata: {{\"{udp_port}\": default/names:53}}\n"
    );
    let slice = |service, protocol, addr| {
        Slice { name: service, service, port_name: "", protocol, endpoints: &[addr], weight: 1 }.yaml()
    };
    let services = [
        manifests::service("words", tcp.addr.port()),
        slice("words", "TCP", tcp.addr),
        "apiVersion: v1\nkind: Service\nmetadata: {name: names}\nspec: {ports: [{port: 53, protocol: UDP}]}\n".to_owned(),
        slice("names", "UDP", names),
    ]
    .join("---\n");
    let agents = Agents::over(
        &[("ports.yaml", &ports), ("services.yaml", &services)],
        &["--tcp-services-configmap", "default/tcp", "--udp-services-configmap", "default/udp"],
    );
    let all = || (sockets_of("tcp", tcp_port), sockets_of("udp", udp_port));
    let are_there = || Some(all()).filter(|(tcp, udp)| (tcp.len(), udp.len()) == (2, 2));
    let before = eventually(DEADLINE, are_there).unwrap_or_else(|| panic!("{}", agents.log()));
    let serves = |case: &str| {
        let mut client = Client::connect(([127, 0, 0, 1], tcp_port).into());
        client.send("hello");
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        assert_eq!(client.rest(), b"hello", "{case}\n{}", agents.log());
        let client = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
        client.connect(("127.0.0.1", udp_port)).expect("connected");
        client.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
        // Any may be lost.
        let asked = || {
            client.send(b"name").ok()?;
            let mut answer = [0; 64];
            client.recv(&mut answer).ok().map(|length| answer[..length].to_vec())
        };
        assert_eq!(eventually(DEADLINE, asked).as_deref(), Some(&b"name"[..]), "{case}\n{}", agents.log());
    };
    serves("the first one");

    play(&agents.run_dir(), async |mut predecessor| {
        let roles: Vec<Role> = predecessor.sockets.iter().map(|socket| socket.role).collect();
        assert!(roles.iter().any(|role| matches!(role, Role::Udp(_))), "{roles:?}");
        predecessor.serving(roles).await.expect("parked");
    });
    agents.wait_for("the takeover failed; this agent goes on");
    let pid = agents.pid();
    serves("one that failed has given them back");
    assert_eq!(all(), before, "one that failed has given them back");

    agents.signal(pid, "-HUP");
    agents.successor_of(pid);
    agents.wait_for("a successor serves, the last connections may end");
    serves("a successor");
    assert_eq!(all(), before, "a successor");
}

#[test]
fn who_comes_while_another_takes_over_is_refused() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let agents = Agents::start(backend.addr, &[]);

    let refused = play(&agents.run_dir(), async |_first| {
        let link = takeover::connect(&agents.run_dir()).await.expect("reached").expect("an agent is there");
        Predecessor::meet(link, None).await.err().expect("refused")
    });

    assert!(refused.to_string().contains("another one is taking over"), "{refused}");
}

#[test]
fn health_goes_red_before_anything_is_refused() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let mut agents = Agents::start(backend.addr, &["--shutdown-grace-period", "3600"]);

    agents.signal(agents.pid(), "-TERM");

    let red = eventually(DEADLINE, || Some(agents.admin("/healthz")).filter(|reply| reply.status == 500));
    assert_eq!(red.map(|reply| reply.text()), Some("draining\n".to_owned()));
    let mut stream = TcpStream::connect(agents.http).expect("new connections are still taken");
    assert_eq!(exchange(&mut stream, "keep-alive"), Ok(true), "and kept");
    agents.signal(u64::from(agents.group.first.id()), "-TERM");
    assert!(agents.group.first.wait().expect("ended").success(), "the second signal ends it at once");
}

#[test]
fn a_successor_serves_the_last_good_versions_of_files_that_it_cannot_read() {
    let ends = Arc::new(AtomicBool::new(false));
    let backend = backend(&ends);
    let agents = Agents::start(backend.addr, &[]);
    let asks = || {
        let mut client = Client::connect(agents.http);
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        client.reply().status
    };
    let manifests = agents.dir.path().join("manifests");
    assert_eq!(asks(), 200);

    // One file is cut off, the other leads nowhere; the agent may have seen that, or not yet.
    let ingress = manifests::ingress("web", HOST, "web", None);
    agents.write("ingress.yaml", &ingress[..ingress.len() - 40].replace("spec:", "spec: ["));
    std::os::unix::fs::symlink("nowhere", agents.dir.path().join("link")).expect("writable");
    std::fs::rename(agents.dir.path().join("link"), manifests.join("web.yaml")).expect("writable");
    let mut pid = agents.pid();
    for takeover in 0..2 {
        agents.signal(pid, "-HUP");
        pid = agents.successor_of(pid);

        assert_eq!(asks(), 200, "takeover {takeover}: {}", agents.log());
        let status = agents.admin("/status").text();
        assert!(status.contains("last good versions in force"), "takeover {takeover}: {status}");
    }
    agents.wait_for("last good versions are taken over from the agent before");

    // They are nobody's from now on.
    std::fs::remove_file(manifests.join("ingress.yaml")).expect("writable");
    let gone = || (asks() == 404).then_some(());
    assert!(eventually(DEADLINE, gone).is_some(), "{}", agents.log());
}
