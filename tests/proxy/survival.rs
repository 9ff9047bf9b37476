//! The built agent where its surroundings fail it: a log that nobody reads or that cannot be written, signals that it
//! does not know, too few descriptors, names without addresses.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};

use lb_tests::agent::{binary, eventually};

use crate::rig::{Client, DEADLINE, nobody};
use crate::takeover::{Agents, HOST};

/// An agent without any object: whatever is asked gets a 404 by itself.
struct Alone {
    agent: Child,
    http: SocketAddr,
    admin: SocketAddr,
    log: Option<BufReader<ChildStderr>>,
    _dir: tempfile::TempDir,
}

impl Alone {
    /// Started by a shell that has set this limit before.
    fn start(limit: &str) -> Self {
        Self::with(limit, &[], "")
    }

    /// The same with these flags and objects.
    fn with(limit: &str, flags: &[&str], objects: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("manifests")).expect("writable");
        std::fs::write(dir.path().join("manifests/all.yaml"), objects).expect("writable");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit} exec \"$0\" \"$@\"")]).arg(binary().expect("built"));
        command.args(["run", "--datapath", "off", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0"]);
        command.args(["--admin", "127.0.0.1:0", "--workers", "1"]).args(flags);
        command.arg("--manifests").arg(dir.path().join("manifests"));
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut agent = command.spawn().expect("start penstock");
        let mut log = BufReader::new(agent.stderr.take().expect("piped"));
        let mut text = String::new();
        while !text.contains("ready admin=") {
            assert_ne!(log.read_line(&mut text).expect("text"), 0, "it ended: {text}");
        }
        let addr = |what: &str| {
            let (_, rest) = text.split_once(what).unwrap_or_else(|| panic!("{what}: {text}"));
            rest.split_whitespace().next().expect("an address").parse().expect("an address")
        };
        let (http, admin) = (addr("listener=Http addr="), addr("ready admin="));
        Self { agent, http, admin, log: Some(log), _dir: dir }
    }

    /// Heaps of glibc beside the first: they begin at multiples of 64 MiB.
    fn heaps(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.agent.id())).expect("maps");
        let start = |line: &str| u64::from_str_radix(line.split('-').next()?, 16).ok();
        let is_heap = |line: &&str| {
            let nameless = line.split_whitespace().count() == 5;
            nameless && line.contains(" rw-p ") && start(line).is_some_and(|start| start % (64 << 20) == 0)
        };
        maps.lines().filter(is_heap).count()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.agent.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "{signal}");
    }

    /// One request, on a connection that stays open.
    fn asks(&self) -> Client {
        let mut client = Client::connect(self.http);
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
        assert_eq!(client.reply().status, 404);
        client
    }

    fn metric(&self, name: &str) -> f64 {
        let mut client = Client::connect(self.admin);
        client.send("GET /metrics HTTP/1.1\r\nHost: admin\r\n\r\n");
        let page = String::from_utf8(client.reply().body).expect("text");
        let line =
            page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {page}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

#[test]
fn there_are_no_more_heaps_than_workers_and_one() {
    let alone = Alone::start("");

    drop(alone.asks());

    // There are many more threads.
    assert!(alone.heaps() <= 1, "{} heaps beside the first", alone.heaps());
}

#[test]
fn a_log_that_nobody_reads_is_lost_and_nothing_else() {
    let mut alone = Alone::start("");
    drop(alone.log.take());

    // One that is logged.
    alone.signal("-USR1");

    let lost = || (alone.metric("penstock_agent_log_lost_lines_total") > 0.0).then_some(());
    eventually(DEADLINE, lost).expect("counted");
    alone.asks();
    alone.signal("-TERM");
    assert!(alone.agent.wait().expect("ended").success());
}

#[test]
fn signals_of_other_programs_change_nothing() {
    let mut alone = Alone::start("");
    let mut kept = alone.asks();

    for signal in ["-USR1", "-USR2", "-ALRM", "-IO", "-PROF", "-VTALRM"] {
        alone.signal(signal);
    }

    // All of them have arrived when the last one is told.
    let mut text = String::new();
    let log = alone.log.as_mut().expect("read");
    while text.matches("means nothing here").count() < 6 {
        assert_ne!(log.read_line(&mut text).expect("text"), 0, "it ended: {text}");
    }
    kept.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(kept.reply().status, 404);
}

#[test]
fn the_soft_limit_of_descriptors_is_none() {
    let alone = Alone::start("ulimit -Hn 4096; ulimit -Sn 64;");

    let kept: Vec<_> = (0..200).map(|_| alone.asks()).collect();

    assert_eq!(kept.len(), 200);
}

#[test]
fn silent_clients_make_room_where_descriptors_are_few() {
    let alone = Alone::start("ulimit -n 200;");
    let silent: Vec<_> = (0..150).map(|_| Client::connect(alone.http)).collect();

    alone.asks();

    assert!(alone.metric("penstock_l7_connection_limit_reached_total") > 0.0);
    drop(silent);
}

#[test]
fn datagrams_leave_descriptors_for_connections() {
    let (port, endpoint) = (nobody().port(), std::net::UdpSocket::bind("127.0.0.1:0").expect("bind"));
    let to = endpoint.local_addr().expect("bound").port();
    let flags = ["--udp-services-configmap", "ingress-nginx/udp-services"];
    let alone = Alone::with("ulimit -n 400;", &flags, &udp_service(port, to));
    let senders: Vec<_> = (0..600).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("bind")).collect();

    // Each waits for an answer for ten minutes.
    for sender in &senders {
        sender.send_to(b"?", ("127.0.0.1", port)).expect("sent");
    }
    let exchanges =
        || (alone.metric("penstock_l7_stream_connections_total{protocol=\"udp\"}") > 50.0).then_some(());
    eventually(DEADLINE, exchanges).expect("datagrams are passed on");

    alone.asks();
    assert_eq!(alone.metric("penstock_l7_connection_limit_reached_total"), 0.0);
}

/// Datagrams to this port of the proxy go to that one of an endpoint.
fn udp_service(port: u16, to: u16) -> String {
    format!(
        r#"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: udp-services, namespace: ingress-nginx}}, data: {{"{port}": "default/echo:53"}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: echo}}, spec: {{ports: [{{port: 53, protocol: UDP}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: echo-1, labels: {{kubernetes.io/service-name: echo}}}}
addressType: IPv4
ports: [{{name: "", protocol: UDP, port: {to}}}]
endpoints: [{{addresses: ["127.0.0.1"], conditions: {{ready: true}}}}]
"#
    )
}

#[test]
fn what_cannot_be_printed_is_told_and_no_success() {
    let alone = Alone::start("");
    let print = |args: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        let mut command = Command::new(binary().expect("built"));
        let output = command.args(args).stdout(full).output().expect("start penstock");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (admin, dir) = (alone.admin.to_string(), alone._dir.path().join("manifests"));
    for args in [
        &["status", "--admin", &admin][..],
        &["explain", "http://a.example/", "--admin", &admin],
        &["check", dir.to_str().expect("text"), "--output", "json"],
    ] {
        let (code, told) = print(args);

        assert_eq!(code, Some(71), "{args:?}: {told}");
        assert!(told.contains("standard output: No space left on device"), "{args:?}: {told}");
    }
}

#[test]
fn a_question_that_is_wrong_by_itself_needs_no_agent_to_say_so() {
    let nobody = crate::rig::nobody().to_string();
    for question in [&["ftp://a.example/"][..], &["--flow", "x"]] {
        let mut command = Command::new(binary().expect("built"));
        let output =
            command.arg("explain").args(question).args(["--admin", &nobody]).output().expect("it runs");

        assert_eq!(output.status.code(), Some(2), "{question:?}");
    }
}

#[test]
fn lines_that_are_lost_and_names_without_addresses_are_problems_in_the_status() {
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ingress-nginx-controller, namespace: ingress-nginx}\n\
                    data: {access-log-path: /nonexistent/access.log}\n";
    let outside = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {type: ExternalName, externalName: no-such-host.invalid, ports: [{port: 80}]}\n";
    let ingress = lb_tests::manifests::ingress("web", HOST, "web", None);
    let files = [("settings.yaml", settings), ("web.yaml", outside), ("ingress.yaml", &ingress)];
    let agents = Agents::over(&files, &[]);

    let mut client = Client::connect(agents.http);
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.reply().status, 503);

    let told = |words: &str| {
        let seen = eventually(DEADLINE, || agents.admin("/status").text().contains(words).then_some(()));
        assert!(seen.is_some(), "{words}: {}", agents.admin("/status").text());
    };
    told("cannot be written, lines are lost: /nonexistent/access.log: No such file or directory");
    told("no-such-host.invalid has no address");
    let explained = agents.admin(&format!("/explain?url=http://{HOST}/")).text();
    assert!(explained.contains("no-such-host.invalid has no address"), "{explained}");
}
