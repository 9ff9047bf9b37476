//! Addresses of names outside (ExternalName Services): fills them into the desired state and keeps them true.
//!
//! Between the translation, which knows names alone, and whoever sends requests, who wants addresses. The names
//! are asked of the servers in `/etc/resolv.conf`, as that file is at the time, and again when an answer has
//! run out. What leads back to this host is no address.

mod cache;
mod client;
mod message;
mod system;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::model::l7::{L7, Upstream};

use cache::Cache;
use client::Answer;
pub use message::fuzz;
pub use system::Files;

/// Names that are asked for at once.
const LOOKUPS: usize = 16;
/// Longest time that a start waits for the first answers.
const FIRST: Duration = Duration::from_secs(2);

/// The desired state with the addresses of its names, from now on. Returns when every name was asked for, or has
/// not answered for too long; ends with `desired`.
pub async fn start(desired: watch::Receiver<Arc<L7>>, files: Files) -> watch::Receiver<Arc<L7>> {
    let (told, filled) = watch::channel(Arc::clone(&desired.borrow()));
    let (ready, all_asked) = tokio::sync::oneshot::channel();
    tokio::spawn(keep(desired, files, told, ready));
    let _ = tokio::time::timeout(FIRST, all_asked).await;
    filled
}

/// The same state for who can ask nobody: `0.0.0.0`, which is no address of anybody, stands for those of each name.
pub fn unasked(l7: &L7) -> L7 {
    let mut filled = l7.clone();
    for (name, upstream) in &l7.upstreams {
        if let Some(external) = &upstream.external {
            let endpoints = [SocketAddr::from((Ipv4Addr::UNSPECIFIED, external.port))].into();
            filled.upstreams.insert(name.clone(), Upstream { endpoints, ..upstream.clone() });
        }
    }
    filled
}

type Lookup = (String, Result<Answer, client::Error>);

async fn keep(
    mut desired: watch::Receiver<Arc<L7>>,
    files: Files,
    told: watch::Sender<Arc<L7>>,
    ready: tokio::sync::oneshot::Sender<()>,
) {
    let mut cache = Cache::default();
    let mut ready = Some(ready);
    let mut lookups: JoinSet<Lookup> = JoinSet::new();
    let turns = Arc::new(Semaphore::new(LOOKUPS));
    let mut l7 = Arc::clone(&desired.borrow_and_update());
    cache.want(&l7);
    told.send_replace(cache.filled(&l7));
    loop {
        for name in cache.begin(Instant::now()) {
            let (files, turns) = (files.clone(), Arc::clone(&turns));
            lookups.spawn(async move {
                // Never closed.
                let _turn = turns.acquire_owned().await;
                let found = client::look_up(&name, &files).await;
                (name, found)
            });
        }
        if lookups.is_empty()
            && let Some(ready) = ready.take()
        {
            let _ = ready.send(());
        }
        let due = cache.due();
        tokio::select! {
            changed = desired.changed() => {
                if changed.is_err() {
                    return;
                }
                l7 = Arc::clone(&desired.borrow_and_update());
                cache.want(&l7);
                told.send_replace(cache.filled(&l7));
            }
            Some(looked_up) = lookups.join_next() => {
                let Ok((name, found)) = looked_up else {
                    cache.lose(Instant::now());
                    continue;
                };
                if cache.learn(&name, found, Instant::now()) {
                    told.send_replace(cache.filled(&l7));
                }
            }
            () = sleep_until(due) => {}
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::model::ObjectName;
    use crate::model::upstream::{External, UpstreamName};

    /// A server that answers what `answer` makes of a question, by UDP and by TCP.
    async fn server(answer: impl Fn(&[u8], bool) -> Vec<u8> + Send + Sync + 'static) -> u16 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = tcp.local_addr().expect("bound");
        let udp = UdpSocket::bind(addr).await.expect("the same port");
        let answer = Arc::new(answer);
        let by_tcp = Arc::clone(&answer);
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, peer)) = udp.recv_from(&mut question).await {
                let _ = udp.send_to(&answer(&question[..length], false), peer).await;
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut question = vec![0; stream.read_u16().await.unwrap_or(0).into()];
                let _ = stream.read_exact(&mut question).await;
                let said = by_tcp(&question, true);
                let length = u16::try_from(said.len()).unwrap().to_be_bytes();
                let _ = stream.write_all(&[&length[..], &said].concat()).await;
            }
        });
        addr.port()
    }

    /// An answer with these addresses of the asked kind, if it is that of IPv4.
    fn addresses(question: &[u8], addrs: &[[u8; 4]], ttl: u32) -> Vec<u8> {
        let asks_v4 = question.ends_with(&[0, 1, 0, 1]);
        let addrs = if asks_v4 { addrs } else { &[] };
        let mut out = question.to_vec();
        out.splice(2..4, [0x81, 0x80]);
        out.splice(6..8, u16::try_from(addrs.len()).unwrap().to_be_bytes());
        for addr in addrs {
            out.extend([0xc0, 12, 0, 1, 0, 1]);
            out.extend(ttl.to_be_bytes());
            out.extend([0, 4]);
            out.extend(addr);
        }
        out
    }

    fn files(dir: &tempfile::TempDir, port: u16) -> Files {
        let (resolv, hosts) = (dir.path().join("resolv.conf"), dir.path().join("hosts"));
        std::fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:10 attempts:1\n").expect("a file");
        std::fs::write(&hosts, "").expect("a file");
        Files { resolv, hosts, port }
    }

    fn state(name: &str) -> Arc<L7> {
        let external = Some(External {
            service: ObjectName::new("default", name),
            name: name.to_owned(),
            port: 80,
            flaw: None,
        });
        let upstream = (UpstreamName("u".to_owned()), Upstream { external, ..Upstream::default() });
        Arc::new(L7 { upstreams: [upstream].into(), ..L7::default() })
    }

    fn endpoints(l7: &L7) -> Vec<SocketAddr> {
        l7.upstreams.values().flat_map(|upstream| upstream.endpoints.iter().copied()).collect()
    }

    async fn until(filled: &mut watch::Receiver<Arc<L7>>, wanted: &[&str]) {
        let wanted: Vec<SocketAddr> = wanted.iter().map(|addr| addr.parse().expect("an address")).collect();
        let waited = filled.wait_for(|l7| endpoints(l7) == wanted);
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("in time").expect("it goes on");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_waits_for_addresses_and_changes_are_followed_when_answers_run_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let port = server(move |question, _| {
            let both = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) / 2;
            let last = if both == 0 { 1 } else { 2 };
            addresses(question, &[[192, 0, 2, last]], 1)
        })
        .await;
        let desired = watch::Sender::new(state("a.example"));

        let mut filled = start(desired.subscribe(), files(&dir, port)).await;

        assert_eq!(endpoints(&filled.borrow_and_update()), ["192.0.2.1:80".parse().expect("an address")]);
        until(&mut filled, &["192.0.2.2:80"]).await;
        desired.send_replace(Arc::new(L7::default()));
        until(&mut filled, &[]).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_that_does_not_fit_is_asked_for_by_tcp() {
        let dir = tempfile::tempdir().expect("a directory");
        let many: Vec<[u8; 4]> = (1..=60).map(|last| [192, 0, 2, last]).collect();
        let all = many.len();
        let port = server(move |question, tcp| {
            let mut answer = addresses(question, if tcp { &many } else { &[] }, 60);
            answer[2] |= if tcp { 0 } else { 2 };
            answer
        })
        .await;
        let desired = watch::Sender::new(state("a.example"));

        let filled = start(desired.subscribe(), files(&dir, port)).await;

        assert_eq!(endpoints(&filled.borrow()).len(), all);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_hosts_file_counts_more_and_what_leads_back_is_left_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = files(&dir, 9);
        std::fs::write(&files.hosts, "192.0.2.7 a.example\n127.0.0.1 a.example\n").expect("a file");
        let desired = watch::Sender::new(state("a.example"));

        let filled = start(desired.subscribe(), files).await;

        assert_eq!(endpoints(&filled.borrow()), ["192.0.2.7:80".parse().expect("an address")]);
    }
}
