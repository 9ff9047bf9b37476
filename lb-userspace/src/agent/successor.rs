//! The running agent's side of a takeover: starts a successor, leaves it what it asks for, and takes
//! everything back if it fails.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::former;
use super::running::Running;
use crate::admin::Live as _;
use crate::config::Config;
use crate::datapath;
use crate::l7::{self, Place, StreamPlace};
use crate::model::l4::{Listener, Protocol};
use crate::takeover::{self, Peer, Role, Secret, Socket, State, Successor, Wish};

/// Longest time from a successor's first word until it serves; it reads all manifests before it.
const START: Duration = Duration::from_secs(60);
/// Longest wait for the end of a successor that failed.
const END: Duration = Duration::from_secs(10);
/// Pauses between attempts to have the kernel part back, and how many.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES: u32 = 300;
/// How often an agent that drains delivers what it counted.
pub(super) const DELIVERY: Duration = Duration::from_secs(1);

/// Starts the binary of the same name anew, with the same arguments, to take our place. Resolves to
/// how it ended.
pub(super) fn launch(config: &Config) -> io::Result<oneshot::Receiver<io::Result<ExitStatus>>> {
    let mut words = config.command.iter();
    let program = words.next().ok_or_else(|| io::Error::other("this process does not know its command"))?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    if !config.takeover {
        command.arg("--takeover");
    }
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", Path::new(program).display()));
    let mut child = command.spawn().map_err(named)?;
    info!(pid = child.id(), "a successor starts");
    let (ended, result) = oneshot::channel();
    // A thread that nobody waits for: the successor outlives us.
    std::thread::Builder::new().name("penstock-child".to_owned()).spawn(move || ended.send(child.wait()))?;
    Ok(result)
}

/// Has the successor do what we were asked for.
pub(super) fn pass_on(peer: Peer) {
    if let Some(pid) = Pid::from_raw(peer.pid)
        && let Err(error) = kill_process(pid, Signal::HUP)
    {
        warn!(pid = peer.pid, %error, "SIGHUP not passed on to the successor");
    }
}

/// How a meeting with a successor ended.
pub(super) enum Outcome {
    /// It serves; we are to end.
    Succeeded(Peer),
    /// We go on as before.
    Kept,
}

/// What a successor has of ours.
#[derive(Default)]
struct Given {
    datapath: Option<Arc<datapath::Handle>>,
    /// It accepts, and answers for us.
    serves: bool,
    counts: Option<Value>,
}

/// Meets a successor, from its first word until it needs us no more or is gone.
pub(super) async fn meet(agent: Arc<Running>, mut successor: Successor) -> Outcome {
    let peer = successor.peer();
    info!(pid = peer.pid, "a successor is here");
    let mut given = Given::default();
    let mut ending = agent.ending.subscribe();
    let handed_over = tokio::select! {
        handed_over = tokio::time::timeout(START, hand_over(&agent, &mut successor, &mut given)) => {
            handed_over.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not serve after {} s", START.as_secs())))
        }
        _ = ending.wait_for(|ending| *ending) => Err(anyhow::anyhow!("this agent is told to end")),
    };
    let trouble = match handed_over {
        Ok(()) => tokio::select! {
            wish = successor.wish() => match wish {
                Ok(Wish::Settled) => return Outcome::Succeeded(peer),
                Ok(wish) => anyhow::anyhow!("{wish:?} was not expected"),
                Err(error) => error.into(),
            },
            _ = ending.wait_for(|ending| *ending) => return Outcome::Succeeded(peer),
        },
        Err(trouble) => trouble,
    };
    warn!(pid = peer.pid, error = format!("{trouble:#}"), "the takeover failed; this agent goes on");
    send_away(successor, &trouble).await;
    take_back(&agent, given).await;
    Outcome::Kept
}

/// Waits until a successor that failed has let go of everything: ended.
async fn send_away(mut successor: Successor, trouble: &anyhow::Error) {
    if matches!(trouble.downcast_ref(), Some(takeover::Error::Ended)) {
        return;
    }
    let _ = successor.refuse(format!("{trouble:#}")).await;
    if tokio::time::timeout(END, successor.ended()).await.is_ok() {
        return;
    }
    // While its link is open, the number is no other process's.
    if let Some(pid) = Pid::from_raw(successor.peer().pid) {
        let _ = kill_process(pid, Signal::KILL);
        let _ = tokio::time::timeout(END, successor.ended()).await;
    }
}

async fn hand_over(agent: &Running, successor: &mut Successor, given: &mut Given) -> anyhow::Result<()> {
    let sockets = agent.sockets(successor.takes_streams).context("share the listening sockets")?;
    let state = State {
        datapath: agent.live.datapath().is_some(),
        generation: agent.desired.state.borrow().generation,
        takeovers: agent.takeovers,
        tickets: Secret(agent.proxy.ticket_keys().to_bytes()),
        unwell: serde_json::to_value(&*agent.live.unwell()).unwrap_or_default(),
    };
    let documents = match &successor.unread {
        Some(unread) if agent.live.source() == unread.source => {
            former::documents(&agent.desired.state.borrow(), &unread.places)
        }
        _ => Vec::new(),
    };
    successor.welcome(&sockets, documents, state).await?;
    drop(sockets);
    loop {
        match successor.wish().await? {
            Wish::LetGo => {
                if let Some(datapath) = agent.live.datapath() {
                    agent.live.stop_capture();
                    if !datapath.let_go().await {
                        anyhow::bail!("the kernel part is not pinned, so it would end with this agent");
                    }
                    given.datapath = agent.live.replace_datapath(None);
                }
                successor.gone().await?;
            }
            Wish::Serving(taken) => {
                given.serves = true;
                let places = taken.iter().copied().filter_map(place).collect();
                agent.proxy.hand_over(&places, &taken.into_iter().filter_map(stream_place).collect()).await;
                agent.admin.stop().await;
                let proxy = Arc::clone(&agent.proxy);
                let counts = tokio::task::spawn_blocking(move || proxy.yield_counts()).await?;
                given.counts = Some(counts.clone());
                successor.parked(counts).await?;
                return Ok(());
            }
            Wish::Settled => anyhow::bail!("it settles before it serves"),
        }
    }
}

async fn take_back(agent: &Running, given: Given) {
    let Given { datapath, serves, counts } = given;
    if serves {
        if let Err(error) = agent.proxy.take_back() {
            // Whoever supervises us starts an agent that serves; this one would be there for nobody.
            error!(%error, "the listening sockets cannot be used again: the process ends");
            std::process::abort();
        }
        if let Some(counts) = counts {
            agent.proxy.add_counts(counts).await;
        }
        agent.admin.start(agent.live.clone());
        agent.accept_successors(takeover::Listener::succeed);
    }
    let Some(let_go) = datapath else { return };
    for attempt in 1..=RETRIES {
        match agent.start_datapath().await {
            Ok(datapath) => {
                agent.live.announcer().send_back_by(datapath.as_deref());
                agent.live.replace_datapath(datapath);
                break;
            }
            Err(error) if attempt == RETRIES => {
                error!(%error, "the kernel part goes on as it is, and follows no change until a restart");
            }
            // The process that has it may still be ending.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    // What it still holds in the kernel goes when something else stands there.
    drop(let_go);
}

/// Delivers what is still counted here to whoever serves now. Not to be dropped before its end: then the counts are lost.
pub(super) async fn deliver_once(agent: &Running) {
    let proxy = Arc::clone(&agent.proxy);
    let Ok(counts) = tokio::task::spawn_blocking(move || proxy.yield_counts()).await else { return };
    let delivered = async {
        let link = takeover::connect(&agent.config.run_dir).await?.ok_or(takeover::Error::Ended)?;
        takeover::deliver(link, counts.clone()).await
    };
    let delivered = tokio::time::timeout(END, delivered).await;
    if let Err(error) = delivered.unwrap_or(Err(takeover::Error::Ended)) {
        tracing::debug!(%error, "counts not delivered, they stay here");
        agent.proxy.add_counts(counts).await;
    }
}

impl Running {
    /// Every listening socket, of TCP and UDP services where they are wanted.
    fn sockets(&self, with_streams: bool) -> io::Result<Vec<Socket>> {
        let proxys = self.proxy.sockets()?.into_iter().map(|l7::Inherited { place, socket }| {
            let role = match place.listener {
                Listener::Http => Role::Http(place.wanted),
                Listener::Https => Role::Https(place.wanted),
            };
            Socket { role, fd: socket.into() }
        });
        let admin = Socket { role: Role::Admin(self.config.admin), fd: self.admin.socket()?.into() };
        let streams = if with_streams { self.proxy.stream_sockets()? } else { Vec::new() };
        let streams = streams
            .into_iter()
            .map(|l7::InheritedStream { at, socket }| Socket { role: stream_role(at), fd: socket });
        Ok(proxys.chain([admin]).chain(streams).collect())
    }
}

/// Where the proxy listens; `None` for what is not the proxy's.
pub(super) fn place(role: Role) -> Option<Place> {
    let (listener, wanted) = match role {
        Role::Http(wanted) => (Listener::Http, wanted),
        Role::Https(wanted) => (Listener::Https, wanted),
        Role::Admin(_) | Role::Tcp(_) | Role::Udp(_) => return None,
    };
    Some(Place { listener, wanted })
}

/// The same for ports of TCP and UDP services.
pub(super) fn stream_place(role: Role) -> Option<StreamPlace> {
    match role {
        Role::Tcp(addr) => Some((Protocol::Tcp, addr)),
        Role::Udp(addr) => Some((Protocol::Udp, addr)),
        Role::Http(_) | Role::Https(_) | Role::Admin(_) => None,
    }
}

/// What a socket of such a port is for.
pub(super) fn stream_role((protocol, addr): StreamPlace) -> Role {
    match protocol {
        Protocol::Tcp => Role::Tcp(addr),
        Protocol::Udp => Role::Udp(addr),
    }
}
