//! Tells balancers in front whether this node is a good next hop: the `healthCheckNodePort` of Services whose
//! `externalTrafficPolicy` is `Local`, answered as kube-proxy does.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep, timeout};
use tracing::warn;

use crate::accept::{self, Place};
use crate::model::l4::{HealthPort, L4};

/// A question has arrived and its answer left by then. Whoever asks has nothing else to do.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest head of a question.
const HEAD: usize = 8192;
/// Pause before a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Whether the balancer itself is well.
pub type Healthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// Answers for as long as it lives.
pub struct Handle {
    _tasks: JoinSet<()>,
}

/// Begins to answer at the ports that are desired. Needs a tokio runtime.
pub fn start(desired: watch::Receiver<Arc<L4>>, healthy: Healthy) -> Handle {
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(desired, healthy));
    Handle { _tasks: tasks }
}

/// Opens and closes ports as Services come and go.
async fn follow(mut desired: watch::Receiver<Arc<L4>>, healthy: Healthy) {
    let mut open: BTreeMap<u16, JoinSet<()>> = BTreeMap::new();
    loop {
        let l4 = Arc::clone(&desired.borrow_and_update());
        open.retain(|port, _| l4.health_ports.contains_key(port));
        for port in l4.health_ports.keys() {
            open.entry(*port).or_insert_with(|| {
                let mut tasks = JoinSet::new();
                tasks.spawn(listen(*port, desired.clone(), Arc::clone(&healthy)));
                tasks
            });
        }
        if desired.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(port: u16, desired: watch::Receiver<Arc<L4>>, healthy: Healthy) {
    let listener = loop {
        match bind(port) {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(port, %error, "health checks of a Service are not answered for the moment");
                sleep(RETRY).await;
            }
        }
    };
    // Never told: the port closes with the task.
    let (_stop, stopped) = oneshot::channel();
    let serve = move |stream, _, _, place| {
        let entry = desired.borrow().health_ports.get(&port).cloned();
        let answer = entry.map(|entry| answer(&entry, healthy()));
        async move {
            if let Some(answer) = answer {
                let _ = timeout(TIMEOUT, serve(stream, &place, &answer)).await;
            }
        }
    };
    accept::each("health port", listener, stopped, serve).await;
}

/// On every address. An agent and its successor may both listen, each accepts what it gets.
fn bind(port: u16) -> io::Result<TcpListener> {
    let of = |domain: Domain, addr: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(128)?;
        Ok(socket)
    };
    let both = of(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into());
    // A host without IPv6.
    let socket = match both {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            of(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())?
        }
        both => both?,
    };
    TcpListener::from_std(socket.into())
}

/// Whatever is asked, the answer is the same.
async fn serve(mut stream: TcpStream, place: &Place, answer: &str) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let _answering = place.answer();
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// As kube-proxy words it.
fn answer(entry: &HealthPort, is_healthy: bool) -> String {
    let HealthPort { service, local } = entry;
    let status = if *local > 0 && is_healthy { "200 OK" } else { "503 Service Unavailable" };
    let body = serde_json::json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local,
        "serviceProxyHealthy": is_healthy,
    });
    let body = format!("{body}\n");
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {local}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn a_node_without_endpoints_or_without_a_proxy_is_no_hop() {
        let entry = |local| HealthPort { service: ObjectName::new("shop", "web"), local };
        for (case, local, healthy, expected) in [
            ("endpoints here", 2, true, "HTTP/1.1 200 "),
            ("none here", 0, true, "HTTP/1.1 503 "),
            ("endpoints here, but we end", 2, false, "HTTP/1.1 503 "),
        ] {
            let answer = answer(&entry(local), healthy);
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");

            assert!(head.starts_with(expected), "{case}: {head}");
            assert!(
                head.contains(&format!("\r\nX-Load-Balancing-Endpoint-Weight: {local}\r\n")),
                "{case}: {head}"
            );
            let expected = serde_json::json!({"service": {"namespace": "shop", "name": "web"},
                "localEndpoints": local, "serviceProxyHealthy": healthy});
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON"), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn who_holds_connections_and_asks_nothing_keeps_nobody_from_asking() {
        let port =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        let entry = HealthPort { service: ObjectName::new("shop", "web"), local: 1 };
        let l4 = L4 { health_ports: BTreeMap::from([(port, entry)]), ..L4::default() };
        let desired = watch::Sender::new(Arc::new(l4));
        let _handle = start(desired.subscribe(), Arc::new(|| true));
        let mut silent = Vec::new();
        let opening = async {
            while silent.len() < 200 {
                match TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(stream) => silent.push(stream),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(Duration::from_secs(10), opening).await.expect("all are connected");

        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("asked");
        let mut answer = String::new();
        let answered = timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;

        assert!(answered.is_ok_and(|read| read.is_ok()), "the silent ones kept their places");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn ports_open_and_close_with_their_services_and_tell_the_newest_count() {
        // A port that is free now, and was given to nobody since.
        let port =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        let with = |local| {
            let entry = HealthPort { service: ObjectName::new("shop", "web"), local };
            Arc::new(L4 { health_ports: BTreeMap::from([(port, entry)]), ..L4::default() })
        };
        let desired = watch::Sender::new(with(1));
        let _handle = start(desired.subscribe(), Arc::new(|| true));
        let ask = async || -> io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        let until = async |expected: &str| {
            let asking = async {
                loop {
                    let answer = ask().await.unwrap_or_else(|error| format!("{:?}", error.kind()));
                    if answer.starts_with(expected) {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            assert!(timeout(Duration::from_secs(10), asking).await.is_ok(), "never {expected}");
        };

        until("HTTP/1.1 200").await;
        desired.send_replace(with(0));
        until("HTTP/1.1 503").await;
        desired.send_replace(Arc::new(L4::default()));
        until("ConnectionRefused").await;
    }
}
