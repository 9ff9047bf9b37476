//! From a file that changes to the first request that is served by what it says: reader, translation and
//! proxy as the agent joins them, in one process, by real files and TCP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use penstock::l7::{Options, Proxy, Temp};
use penstock::manifests;
use penstock::model::ObjectName;
use penstock::translate::{self, ADMISSION, Translator};
use tokio::sync::watch;

use super::cluster::Cluster;

const DEADLINE: Duration = Duration::from_secs(30);

/// No line for each request between the figures.
const SETTINGS: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: bench, name: settings}, \
                        data: {disable-access-log: \"true\"}}";

/// Times from a changed file to the request that is served by it; the reader waits for 4 ms of quiet
/// before it reads, which is part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Of an Ingress that redirects to another place.
    pub ingress: Duration,
    /// Of a slice with another endpoint.
    pub slice: Duration,
}

/// Measures both in a cluster of this size, each object in a file of its own; the best of `rounds`.
pub fn measure(ingresses: usize, rounds: usize) -> Result<Served> {
    let cluster = Cluster { ingresses };
    let dir = tempfile::tempdir().context("make a directory")?;
    let backends = [backend("one")?, backend("two")?];
    for (number, text) in (0..).zip(cluster.services()) {
        fs::write(dir.path().join(format!("services-{number}.yaml")), text)?;
    }
    for index in 0..ingresses {
        fs::write(dir.path().join(format!("ingress-{index}.yaml")), cluster.ingress(index, "60"))?;
        fs::write(dir.path().join(format!("slice-{index}.yaml")), Cluster::slice(index))?;
    }
    fs::write(dir.path().join("settings.yaml"), SETTINGS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let guard = runtime.enter();
    let (mut loaded, watcher) = manifests::watch(dir.path(), ADMISSION)?;
    drop(guard);
    let config_map = Some(ObjectName::new("bench", "settings"));
    let options = translate::Options { config_map, ..translate::Options::default() };
    let mut translator = Translator::default();
    let first = translator.translate(&loaded.borrow_and_update().objects, &options);
    let desired = watch::Sender::new(first.snapshot.l7);
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = Proxy::bind(Options {
        http: vec![local],
        https: Vec::new(),
        workers: 2,
        ticket_keys: None,
        metering: Default::default(),
        temp: Temp::default(),
    })?;
    let proxy = proxy.start(desired.subscribe())?;
    let addr = proxy.addrs().first().context("the proxy listens")?.1;
    runtime.spawn(watcher.run());
    runtime.spawn(async move {
        while loaded.changed().await.is_ok() {
            let now = Arc::clone(&loaded.borrow_and_update());
            desired.send_replace(translator.translate(&now.objects, &options).snapshot.l7);
        }
    });

    let mut served = Served { ingress: Duration::MAX, slice: Duration::MAX };
    // The first slice leads nowhere, so it is changed once before it counts.
    let slice = |round: usize| Cluster::slice_at(1, backends[round % 2].port());
    put(dir.path(), "slice-1", &slice(0))?;
    until(addr, &Cluster::host(1), "one")?;
    for round in 1..=rounds {
        let place = format!("/place-{round}");
        let begin = put(dir.path(), "ingress-2", &cluster.redirect(2, &place))?;
        served.ingress = served.ingress.min(until(addr, &Cluster::host(2), &place)? - begin);
        let begin = put(dir.path(), "slice-1", &slice(round))?;
        let answer = ["one", "two"][round % 2];
        served.slice = served.slice.min(until(addr, &Cluster::host(1), answer)? - begin);
    }
    runtime.block_on(proxy.stop());
    Ok(served)
}

/// Replaces a file as editors do; when that was done.
fn put(dir: &Path, name: &str, text: &str) -> Result<Instant> {
    let aside = dir.join(format!(".{name}"));
    fs::write(&aside, text)?;
    fs::rename(&aside, dir.join(format!("{name}.yaml")))?;
    Ok(Instant::now())
}

/// Asks again and again until the answer has this text; when that was.
fn until(addr: SocketAddr, host: &str, text: &str) -> Result<Instant> {
    let begin = Instant::now();
    let mut stream = None;
    while begin.elapsed() < DEADLINE {
        let connection = match &mut stream {
            Some(connection) => connection,
            // The proxy ends a connection after so many requests, as it says in the last one's answer.
            none => none.insert(connect(addr)?),
        };
        let answer = ask(connection, host)?;
        if answer.contains(text) {
            return Ok(Instant::now());
        }
        if answer.contains("connection: close") {
            stream = None;
        }
    }
    anyhow::bail!("nothing with {text:?} was served for {host}")
}

/// A connection to the proxy.
pub(super) fn connect(addr: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// The answer, its head in small letters.
pub(super) fn ask(stream: &mut BufReader<TcpStream>, host: &str) -> Result<String> {
    stream.get_mut().write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let (mut answer, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "the proxy closed the connection");
        line.make_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        answer.push_str(&line);
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    answer.push_str(&String::from_utf8_lossy(&body));
    Ok(answer)
}

/// Answers every request with this text, until the process ends.
fn backend(text: &'static str) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                    if line.trim_end().is_empty() {
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    Ok(addr)
}
