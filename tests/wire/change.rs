//! Nothing ever reloads: a hundred changes of endpoints, routes and certificates under load lose nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::{self, Authority, Slice};

use crate::rig::{Arms, Rig, still_echoes};

const VIP: &str = "203.0.113.80:80";
const CHANGES: usize = 100;
const CLIENTS: usize = 64;
/// `keep-alive-requests` of ingress-nginx.
const KEEP_ALIVE_REQUESTS: usize = 1000;
/// More than all buffers on the way hold together, so that the download really is under way.
const DOWNLOAD_BYTES: usize = 64 << 20;

/// The state after a change: two of three endpoints, another path, another certificate.
fn state(change: usize, authority: &Authority) -> [(&'static str, String); 3] {
    let endpoints: Vec<SocketAddr> = (1..=3)
        .filter(|number| *number != change % 3 + 1)
        .map(|number| (Arms::Two.backend(number)[0], 8080).into())
        .collect();
    let slice = Slice {
        name: "web",
        service: "web",
        port_name: "",
        protocol: "TCP",
        endpoints: &endpoints,
        weight: 1,
    };
    let extra =
        manifests::ingress(&format!("extra-{change}"), &format!("h{change}.example.com"), "web", None);
    let ingress = manifests::ingress("web", "web.example.com", "web", Some("cert"));
    [
        ("slice.yaml", slice.yaml()),
        ("ingress.yaml", format!("{ingress}---\n{extra}")),
        ("cert.yaml", authority.secret("cert", "web.example.com").expect("a certificate")),
    ]
}

/// Sends a head and reads the head of the answer.
fn exchange(stream: &mut BufReader<TcpStream>, request: &str) -> Result<String> {
    stream.get_mut().write_all(request.as_bytes())?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            bail!("connection closed after {head:?}");
        }
    }
    Ok(head)
}

fn connect() -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&VIP.parse()?, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn content_length(head: &str) -> Result<usize> {
    let value = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    Ok(value.with_context(|| format!("no Content-Length in {head:?}"))?.parse()?)
}

/// One keep-alive connection, request after request until told to stop. Counts its answers. The
/// proxy may end a connection only as announced, after as many requests as ingress-nginx would.
fn keep_asking(stop: &AtomicBool, answers: &AtomicUsize) -> Result<()> {
    let (mut stream, mut requests) = (connect()?, 0);
    while !stop.load(Ordering::Relaxed) {
        let head = exchange(&mut stream, "GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            .with_context(|| format!("after {requests} requests"))?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("answered {head:?}");
        }
        let mut body = vec![0; content_length(&head)?];
        stream.read_exact(&mut body)?;
        answers.fetch_add(1, Ordering::Relaxed);
        requests += 1;
        if head.to_ascii_lowercase().contains("connection: close") {
            if requests < KEEP_ALIVE_REQUESTS {
                bail!("closed after {requests} requests");
            }
            (stream, requests) = (connect()?, 0);
        }
    }
    Ok(())
}

#[test]
fn a_hundred_changes_under_load_lose_nothing() {
    let authority = Authority::new("Wire test authority").unwrap();
    let mut files = state(0, &authority).to_vec();
    files.push(("ingress-service.yaml", manifests::ingress_service(&["203.0.113.80".parse().unwrap()])));
    files.push(("service.yaml", manifests::service("web", 8080)));
    let Some(rig) = Rig::new(Arms::Two, &files) else { return };
    let get = "GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n";
    let ready = || {
        let head = rig.client.within(|| connect().and_then(|mut stream| exchange(&mut stream, get)));
        head.is_ok_and(|head| head.starts_with("HTTP/1.1 200")).then_some(())
    };
    assert!(eventually(DEADLINE, ready).is_some(), "not served\n{}", rig.agent.log());

    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outcome = rig.client.within(|| {
        std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..CLIENTS).map(|_| scope.spawn(|| keep_asking(&stop, &answers))).collect();
            let changed = change_a_hundred_times(&rig, &authority, &answers);
            stop.store(true, Ordering::Relaxed);
            let lost: Vec<_> =
                clients.into_iter().filter_map(|client| client.join().expect("no panic").err()).collect();
            changed.map(|()| lost)
        })
    });

    let lost = outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", rig.agent.log()));
    assert!(lost.is_empty(), "{} of {CLIENTS} connections lost, the first: {:#}", lost.len(), lost[0]);
    assert!(answers.load(Ordering::Relaxed) > CHANGES, "the load was real");
}

/// Applies every change while a WebSocket talks and a download crawls.
fn change_a_hundred_times(rig: &Rig, authority: &Authority, answers: &AtomicUsize) -> Result<()> {
    let mut socket = connect()?;
    let upgrade = "GET /ws HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let head = exchange(&mut socket, upgrade)?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 101"), "upgrade answered {head:?}");
    let mut download = connect()?;
    let request = format!("GET /download/{DOWNLOAD_BYTES} HTTP/1.1\r\nHost: web.example.com\r\n\r\n");
    let head = exchange(&mut download, &request)?;
    anyhow::ensure!(content_length(&head)? == DOWNLOAD_BYTES, "download answered {head:?}");

    let mut left = DOWNLOAD_BYTES;
    let mut piece = vec![0; DOWNLOAD_BYTES / CHANGES];
    for change in 1..=CHANGES {
        for (name, yaml) in state(change, authority) {
            rig.agent.apply(name, &yaml)?;
        }
        let in_force = || {
            let host = format!("GET / HTTP/1.1\r\nHost: h{change}.example.com\r\nConnection: close\r\n\r\n");
            let head = connect().and_then(|mut stream| exchange(&mut stream, &host));
            head.is_ok_and(|head| head.starts_with("HTTP/1.1 200")).then_some(())
        };
        eventually(DEADLINE, in_force).with_context(|| format!("change {change} did not take effect"))?;

        still_echoes(&mut socket, &format!("message {change}")).context("the WebSocket")?;
        let before = answers.load(Ordering::Relaxed);
        download.read_exact(&mut piece).context("the download")?;
        left -= piece.len();
        eventually(DEADLINE, || (answers.load(Ordering::Relaxed) > before).then_some(()))
            .context("the load stalled")?;
    }
    let rest = std::io::copy(&mut download.take(left as u64), &mut std::io::sink())?;
    anyhow::ensure!(rest == left as u64, "{left} bytes of the download were left, {rest} came");
    Ok(())
}
