//! What the built agent logs beside requests, and where: connections of TCP and UDP Services, questions to an auth
//! service, lines for a collector.

use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

use lb_tests::agent::eventually;
use lb_tests::manifests::{self, Slice};

use crate::rig::{Backend, Client, DEADLINE, nobody};
use crate::takeover::{Agents, HOST};

/// Repeats what it is told, in twos.
fn doubling() -> Backend {
    Backend::start(|mut peer| {
        let told = peer.rest();
        peer.try_send(&[&told[..], &told].concat());
    })
}

fn slice(service: &str, protocol: &str, port: u16) -> String {
    let endpoints = [([127, 0, 0, 1], port).into()];
    Slice { name: service, service, port_name: "", protocol, endpoints: &endpoints, weight: 1 }.yaml()
}

fn config(keys: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ingress-nginx-controller, namespace: ingress-nginx}}\ndata:\n{keys}"
    )
}

/// The lines of a file that are there, once as many as expected are.
fn lines(agents: &Agents, file: &str, count: usize) -> Vec<String> {
    let enough = || {
        let text = agents.read(file);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count && text.ends_with('\n')).then_some(lines)
    };
    eventually(DEADLINE, enough)
        .unwrap_or_else(|| panic!("{file}: {:?}\n{}", agents.read(file), agents.log()))
}

#[test]
fn connections_of_tcp_and_udp_services_are_logged_as_the_config_map_says() {
    let (tcp, udp) = (doubling(), UdpSocket::bind(("127.0.0.1", 0)).expect("bind"));
    let names = udp.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, client)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], client);
        }
    });
    let gone = nobody();
    let [tcp_port, udp_port, none_port, odd_port, dry_port] = std::array::from_fn(|_| nobody().port());
    let ports = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tcp}}\ndata:\n  \
         \"{tcp_port}\": default/words:80\n  \"{none_port}\": default/none:80\n  \"{odd_port}\": default/words:80:PROXY\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: udp}}\ndata:\n  \"{udp_port}\": default/names:53\n  \
         \"{dry_port}\": default/dry:53\n"
    );
    let services = [
        manifests::service("words", tcp.addr.port()),
        slice("words", "TCP", tcp.addr.port()),
        manifests::service("none", 1),
        slice("none", "TCP", gone.port()),
        "apiVersion: v1\nkind: Service\nmetadata: {name: names}\nspec: {ports: [{port: 53, protocol: UDP}]}\n".to_owned(),
        slice("names", "UDP", names),
        "apiVersion: v1\nkind: Service\nmetadata: {name: dry}\nspec: {ports: [{port: 53, protocol: UDP}]}\n".to_owned(),
    ]
    .join("---\n");
    let agents = Agents::over(
        &[("ports.yaml", &ports), ("services.yaml", &services)],
        &[
            "--workers",
            "1",
            "--tcp-services-configmap",
            "default/tcp",
            "--udp-services-configmap",
            "default/udp",
        ],
    );
    let talk = |port, says: &str| {
        let stream =
            eventually(DEADLINE, || TcpStream::connect(("127.0.0.1", port)).ok()).expect("listened on");
        let own = stream.local_addr().expect("an address").port();
        let mut client = Client::over(stream);
        client.send(says);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        (client.rest(), own)
    };

    assert_eq!(talk(tcp_port, "hello").0, b"hellohello");

    // As ingress-nginx logs them, on standard output.
    let [line] = &lines(&agents, "out", 1)[..] else { panic!("one line") };
    assert!(line.starts_with("[127.0.0.1] [") && line.contains("] TCP 200 10 5 0."), "{line}");

    let path = agents.path("streams.log");
    let format = "$protocol $status $remote_port $server_port $bytes_sent/$bytes_received $proxy_upstream_name \
                  $upstream_addr $upstream_bytes_sent/$upstream_bytes_received $proxy_protocol_addr";
    let keys = format!("  log-format-stream: '{format}'\n  stream-access-log-path: {}\n", path.display());
    agents.write("config.yaml", &config(&keys));
    // Said anew, because the keys are in force a moment later; each line is written within a moment of its end.
    let told = |says: &dyn Fn() -> String| {
        let written = |line: &String| {
            let is_there = || agents.read("streams.log").lines().any(|it| it == line).then_some(());
            eventually(Duration::from_secs(2), is_there)
        };
        eventually(DEADLINE, || written(&says()))
            .unwrap_or_else(|| panic!("{}\n{}", agents.read("streams.log"), agents.log()));
    };
    let endpoint = tcp.addr;
    told(&|| {
        let (_, own) = talk(tcp_port, "hello");
        format!("TCP 200 {own} {tcp_port} 10/5 tcp-default-words-80 {endpoint} 5/10 -")
    });
    told(&|| {
        let (_, own) = talk(none_port, "");
        // Each of the three tries that ingress-nginx makes.
        let [tried, bytes] = [&gone.to_string()[..], "0"].map(|each| [each; 3].join(", "));
        format!("TCP 502 {own} {none_port} 0/0 tcp-default-none-80 {tried} {bytes}/{bytes} -")
    });
    told(&|| {
        let (_, own) = talk(odd_port, "no header\r\n");
        format!("TCP 400 {own} {odd_port} 0/0 tcp-default-words-80 - -/- -")
    });
    told(&|| {
        talk(odd_port, "PROXY TCP4 192.0.2.9 192.0.2.1 4000 5432\r\nhey");
        format!("TCP 200 4000 5432 6/3 tcp-default-words-80 {endpoint} 3/6 192.0.2.9")
    });
    told(&|| {
        let client = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
        client.connect(("127.0.0.1", dry_port)).expect("connect");
        let _ = client.send(b"who?");
        let own = client.local_addr().expect("an address").port();
        format!("UDP 502 {own} {dry_port} 0/4 udp-default-dry-53 - -/- -")
    });
    told(&|| {
        let client = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
        client.connect(("127.0.0.1", udp_port)).expect("connect");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let _ = client.send(b"who?");
        let _ = client.recv(&mut [0; 64]);
        let own = client.local_addr().expect("an address").port();
        format!("UDP 200 {own} {udp_port} 4/4 udp-default-names-53 127.0.0.1:{names} 4/4 -")
    });

    let snapshots = || agents.log().matches("snapshot generation=").count();
    let silent = eventually(DEADLINE, || {
        let before = snapshots();
        agents.write("config.yaml", &config(&format!("{keys}  disable-stream-access-log: 'true'\n")));
        eventually(DEADLINE, || (snapshots() > before).then_some(())).expect("read");
        let (_, quiet) = talk(tcp_port, "quiet");
        agents.write("config.yaml", &config(&keys));
        // Lines come in order: what is not there before this one does not come.
        told(&|| {
            let (_, own) = talk(tcp_port, "hello");
            format!("TCP 200 {own} {tcp_port} 10/5 tcp-default-words-80 {endpoint} 5/10 -")
        });
        (!agents.read("streams.log").contains(&format!("TCP 200 {quiet} "))).then_some(())
    });
    assert!(silent.is_some(), "still logged");
}

#[test]
fn what_a_rewrite_makes_of_a_request_is_told_where_that_is_asked_for() {
    let app = Backend::mirror();
    let ingress = |name: &str, host: &str, more: &str| {
        let annotations = format!("annotations:\n    nginx.ingress.kubernetes.io/rewrite-target: /$2{more}");
        let ingress = manifests::ingress(name, host, "web", None).replacen("annotations:", &annotations, 1);
        ingress.replace(
            "path: /\n        pathType: Prefix",
            "path: /api(/|$)(.*)\n        pathType: ImplementationSpecific",
        )
    };
    let told = ingress("told", HOST, "\n    nginx.ingress.kubernetes.io/enable-rewrite-log: \"true\"");
    let web = format!(
        "{}---\n{}---\n{told}---\n{}",
        manifests::service("web", app.addr.port()),
        slice("web", "TCP", app.addr.port()),
        ingress("quiet", "quiet.example.com", "")
    );
    let agents = Agents::over(&[("web.yaml", &web)], &["--workers", "1"]);
    let mut client = Client::connect(agents.http);

    for (host, path) in [("quiet.example.com", "/api/quiet"), (HOST, "/api/a?c")] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.reply().status, 200, "{}", agents.log());
    }

    let line = || agents.log().lines().find(|line| line.contains("rewritten")).map(str::to_owned);
    let line = eventually(DEADLINE, line).unwrap_or_else(|| panic!("not told: {}", agents.log()));
    for part in [&format!("host={HOST} "), "path=/api/a?c ", "pattern=", "/api(/|$)(.*)", " target=/a?c "] {
        assert!(line.contains(part), "{part:?} in {line}");
    }
    assert!(!agents.log().contains("path=/api/quiet"));
}

#[test]
fn lines_go_to_a_collector_and_questions_to_an_auth_service_are_lines_of_their_own() {
    let (app, login) = (
        Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        Backend::saying("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"),
    );
    let collector = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
    collector.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let port = collector.local_addr().expect("bound").port();
    let keys = format!(
        "  enable-syslog: 'true'\n  syslog-host: localhost\n  syslog-port: '{port}'\n  enable-auth-access-log: 'true'\n  \
         log-format-upstream: '$request_uri $status $upstream_addr $upstream_status'\n"
    );
    let auth = format!("annotations:\n    nginx.ingress.kubernetes.io/auth-url: http://{}/check", login.addr);
    let ingress = manifests::ingress("web", HOST, "web", None).replacen("annotations:", &auth, 1);
    assert!(ingress.contains("auth-url"), "{ingress}");
    let web = format!(
        "{}---\n{}",
        manifests::service("web", app.addr.port()),
        slice("web", "TCP", app.addr.port())
    );
    let agents = Agents::over(
        &[("web.yaml", &web), ("ingress.yaml", &ingress), ("keys.yaml", &config(&keys))],
        &["--workers", "1"],
    );
    let mut client = Client::connect(agents.http);
    client.send(format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.reply().status, 200, "{}", agents.log());

    let next = || {
        let mut datagram = [0; 512];
        let length = eventually(DEADLINE, || collector.recv(&mut datagram).ok()).expect("a line");
        let line = String::from_utf8_lossy(&datagram[..length]).into_owned();
        let (header, line) = line.split_once(" nginx: ").expect("a tag");
        assert!(header.starts_with("<190>"), "{header}");
        line.to_owned()
    };

    assert_eq!(next(), format!("/a 202 {} 202", login.addr));
    assert_eq!(next(), format!("/a 200 {} 200", app.addr));
    assert_eq!(agents.read("out"), "", "nowhere else");
}

/// So that `journalctl --priority warning` finds what it is meant to find. Whose standard error is redirected to a file
/// still has the name of the stream.
#[test]
fn what_systemd_takes_for_its_journal_begins_with_a_level_and_nothing_else_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let run = |stream: &dyn Fn(&std::fs::Metadata) -> String| {
        let log = std::fs::File::create(&path).expect("a file");
        let named = stream(&log.metadata().expect("what it is"));
        let status = Command::new(lb_tests::agent::binary().expect("the agent is built"))
            .args(["run", "--datapath", "off", "--manifests"])
            .arg(dir.path())
            // An address of nobody.
            .args(["--admin", "127.0.0.1:0", "--http", "192.0.2.1:80", "--https", "127.0.0.1:0", "--run-dir"])
            .arg(dir.path())
            .env("JOURNAL_STREAM", named)
            .stderr(log)
            .status()
            .expect("started");
        assert!(!status.success());
        std::fs::read_to_string(&path).expect("the log")
    };

    let journal = run(&|log| format!("{}:{}", log.dev(), log.ino()));
    let file = run(&|log| format!("{}:{}", log.dev(), log.ino() + 1));

    let has = |log: &str, start: &str, text: &str| {
        log.lines().any(|line| line.starts_with(start) && line.contains(text))
    };
    assert!(has(&journal, "<6>", "penstock::agent: starting"), "{journal}");
    assert!(has(&journal, "<3>penstock: ", "192.0.2.1"), "{journal}");
    assert!(journal.lines().all(|line| line.starts_with('<')), "{journal}");
    assert!(has(&file, "penstock: ", "192.0.2.1"), "{file}");
    assert!(!file.contains('<'), "{file}");
}
