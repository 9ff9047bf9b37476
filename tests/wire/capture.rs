//! `penstock capture` beside a live agent: what it writes is what was sent, as tshark reads it.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use lb_tests::agent::{ADMIN, DEADLINE, binary, eventually};
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, CLIENT, Rig};

const VIP: &str = "203.0.113.10";

fn rig() -> Option<Rig> {
    let backends = [(Arms::Two.backend(1)[0], 1)];
    let vip = VIP.parse().unwrap();
    let service =
        LoadBalancer { name: "dns", vip, protocol: "UDP", port: 5353, target_port: 5353, mode: "nat" };
    let rig = Rig::new(Arms::Two, &[("services.yaml", service.with_backends(&backends))])?;
    rig.who_answers_udp(SocketAddr::new(vip, 5353), 1);
    Some(rig)
}

/// Starts `penstock capture` on the edge host and waits until the agent shows it packets.
fn start(rig: &Rig, args: &[&str], log: &Path, file: &Path) -> u32 {
    let mut command = rig.edge.command(binary().unwrap());
    command.arg("capture").args(args);
    let pid = rig.lab.start(command, log).unwrap();
    let begun = || file.metadata().is_ok_and(|file| file.len() > 0).then_some(());
    assert!(eventually(DEADLINE, begun).is_some(), "{}", std::fs::read_to_string(log).unwrap_or_default());
    pid
}

fn interrupt(rig: &Rig, pid: u32) {
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
    assert!(eventually(DEADLINE, || (!rig.lab.is_running(pid)).then_some(())).is_some(), "does not end");
}

/// Sends a datagram from a port of the client's.
/// Sends a datagram. While the socket lives, the client does not refuse the answer by ICMP.
#[must_use]
fn send(rig: &Rig, from: u16, to: u16) -> UdpSocket {
    rig.client.within(|| {
        let socket = UdpSocket::bind((CLIENT[0], from)).unwrap();
        socket.send_to(b"hello", (VIP, to)).unwrap();
        socket
    })
}

#[test]
fn a_file_holds_what_was_forwarded_answered_and_dropped_with_the_verdicts() {
    let Some(rig) = rig() else { return };
    let (log, file) = (rig.lab.scratch().join("capture.log"), rig.lab.scratch().join("capture.pcapng"));
    let pid = start(&rig, &["--write", file.to_str().unwrap(), "--rate", "0"], &log, &file);

    let _sockets: Vec<UdpSocket> = (20_001..=20_005).map(|port| send(&rig, port, 5353)).collect();
    let _nowhere = send(&rig, 20_006, 9);
    let seen = eventually(DEADLINE, || {
        let rows = read(&file)?;
        // Five there, five back, one nowhere.
        (rows.len() >= 11).then_some(rows)
    });
    interrupt(&rig, pid);

    let mut rows = seen.unwrap_or_else(|| panic!("{:?}", read(&file)));
    let backend = Arms::Two.backend(1)[0].to_string();
    let count = |verdict: &str| rows.iter().filter(|row| row.comment.starts_with(verdict)).count();
    assert_eq!((count("forwarded-nat"), count("replied-nat"), count("closed-port")), (5, 5, 1), "{rows:#?}");
    rows.sort_by(|a, b| a.comment.cmp(&b.comment));
    let dropped = &rows[0];
    assert_eq!(dropped.comment, format!("closed-port {}:20006 > {VIP}:9", CLIENT[0]));
    assert_eq!([&dropped.src, &dropped.dst, &dropped.interface], [CLIENT[0], VIP, "eth0"]);
    for (row, port) in rows[1..6].iter().zip(20_001..) {
        assert_eq!(row.comment, format!("forwarded-nat {}:{port} > {VIP}:5353", CLIENT[0]));
        assert_eq!([&row.src, &row.dst, &row.interface], ["10.2.0.1", &backend, "eth0"], "as it left");
    }
    for row in &rows[6..11] {
        assert_eq!([&row.src, &row.dst, &row.interface], [VIP, CLIENT[0], "eth1"], "as it left");
    }
    let told = std::fs::read_to_string(&log).unwrap();
    assert_eq!(told.trim(), "11 packets shown of 11 that matched; 0 held back by the rate, 0 lost");
}

#[test]
fn lines_tell_the_flow_as_it_came_and_as_it_left() {
    let Some(rig) = rig() else { return };
    let log = rig.lab.scratch().join("capture.log");
    let file = rig.lab.scratch().join("other.pcapng");

    // A capture that waits shows that a second one is refused, and that its end makes room.
    let first = start(&rig, &["--host", "192.0.2.1", "--write", file.to_str().unwrap()], &log, &file);
    let refused = rig.agent.cli(&["capture", "--count", "1"]).unwrap_err().to_string();
    assert!(refused.contains("another capture is running; one at a time"), "{refused}");
    assert!(refused.contains("exit status: 68"), "{refused}");
    // SIGKILL: nobody says good-bye.
    assert!(Command::new("kill").args(["-KILL", &first.to_string()]).status().unwrap().success());

    let socket = send(&rig, 20_001, 5353);
    let lines = eventually(DEADLINE, || {
        socket.send_to(b"hello", (VIP, 5353)).unwrap();
        rig.agent.cli(&["capture", "--count", "2", "--seconds", "1", "--vip", VIP]).ok()
    });
    assert!(lines.is_some(), "the capture of a killed client does not end");
    let verdict = rig.agent.cli(&["capture", "--verdict", "nonsense"]).unwrap_err().to_string();
    assert!(verdict.contains("exit status: 2") && verdict.contains("forwarded-nat"), "{verdict}");

    let text = std::thread::scope(|scope| {
        let lines = scope.spawn(|| {
            let vip = format!("{VIP}:5353");
            let forwarded = ["--verdict", "forwarded-*", "--vip", &vip];
            rig.agent.cli(&[&["capture", "--count", "2", "--seconds", "20"], &forwarded[..]].concat())
        });
        // One socket: a process that is just being started holds a closed one for a moment.
        let socket = send(&rig, 20_002, 5353);
        let sent = eventually(DEADLINE, || {
            socket.send_to(b"hello", (VIP, 5353)).unwrap();
            lines.is_finished().then_some(())
        });
        assert!(sent.is_some());
        lines.join().unwrap().unwrap()
    });

    let came = format!(" eth0 forwarded-nat udp {}:20002 > {VIP}:5353 as udp 10.2.0.1:", CLIENT[0]);
    assert!(text.contains(&came), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn without_an_agent_the_answer_says_so() {
    let Some(lab) = crate::rig::lab() else { return };
    let host = lab.host("lonely", &[]).unwrap();

    let output = host.command(binary().unwrap()).args(["capture", "--admin", ADMIN]).output().unwrap();

    assert_eq!(output.status.code(), Some(68));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is penstock running"));
}

#[derive(Debug)]
struct Row {
    comment: String,
    interface: String,
    src: String,
    dst: String,
}

/// What tshark makes of a file; nothing where it cannot read it (yet).
fn read(file: &Path) -> Option<Vec<Row>> {
    let fields = ["frame.comment", "frame.interface_name", "ip.src", "ip.dst"];
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=|", "-r"]).arg(file);
    let output = command.args(fields.iter().flat_map(|field| ["-e", field])).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = text.lines().map(|line| {
        let mut cells = line.split('|').map(str::to_owned);
        let mut next = || cells.next().unwrap_or_default();
        Row { comment: next(), interface: next(), src: next(), dst: next() }
    });
    Some(rows.collect())
}
