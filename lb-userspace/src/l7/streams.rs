//! Ports beside http and https that a worker listens on, as the snapshot of now has them. Each worker has a socket
//! of its own on each; the kernel tells clients apart.

mod datagrams;
mod udp;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::datagrams::Datagrams;
pub(super) use self::udp::Crowd;
use super::arrival;
use super::gate::{self, LAST_ARRIVALS};
use super::listen;
use super::log::Ended;
use super::worker::{ACCEPT_PAUSE, Open, Worker};
use crate::model::l4::Protocol;
use crate::panics;

type Port = (Protocol, u16);

/// The sockets of one worker.
pub(super) struct Ports {
    /// Where http is listened on.
    ips: BTreeSet<IpAddr>,
    /// One of the workers speaks for all.
    tells: bool,
    open: RefCell<BTreeMap<Port, Vec<Listening>>>,
    /// Ports that cannot be listened on, which is told once.
    failed: RefCell<BTreeSet<Port>>,
    closed: Cell<bool>,
}

/// A socket that is looked after until this is dropped.
type Listening = oneshot::Sender<()>;

impl Ports {
    pub(super) fn new(ips: BTreeSet<IpAddr>, worker: usize) -> Self {
        let (open, failed, closed) = Default::default();
        Self { ips, tells: worker == 0, open, failed, closed }
    }

    /// Nothing is accepted any more; connections go on.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.open.borrow_mut().clear();
    }

    /// Nobody took over, after all.
    pub(super) fn open_again(&self) {
        self.closed.set(false);
    }
}

/// Listens on what the snapshot names and on nothing else. What could not be had is tried again.
pub(super) fn follow(worker: &Rc<Worker>) {
    let ports = &worker.streams;
    let wanted = Rc::clone(&worker.current.load());
    let wanted = &wanted.router.streams;
    let mut open = ports.open.borrow_mut();
    if ports.closed.get() || wanted.is_empty() && open.is_empty() {
        return;
    }
    open.retain(|port, _| wanted.contains_key(port));
    ports.failed.borrow_mut().retain(|port| wanted.contains_key(port));
    for port in wanted.keys() {
        if open.contains_key(port) {
            continue;
        }
        let (protocol, number) = *port;
        let addrs = ports.ips.iter().map(|ip| SocketAddr::new(*ip, number));
        match addrs.map(|addr| listen_on(worker, protocol, addr)).collect::<io::Result<Vec<_>>>() {
            Ok(listening) => {
                ports.failed.borrow_mut().remove(port);
                open.insert(*port, listening);
            }
            Err(error) if ports.failed.borrow_mut().insert(*port) && ports.tells => {
                tracing::warn!(%protocol, port = number, %error, "port of a TCP or UDP service: cannot listen");
            }
            Err(_) => {}
        }
    }
}

fn listen_on(worker: &Rc<Worker>, protocol: Protocol, addr: SocketAddr) -> io::Result<Listening> {
    let (listening, stop) = oneshot::channel();
    let worker = Rc::clone(worker);
    match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::from_std(listen::stream(addr)?)?;
            tokio::task::spawn_local(panics::vital(accept(worker, socket, addr.port(), stop)));
        }
        Protocol::Udp => {
            let socket = Datagrams::new(listen::datagrams(addr)?)?;
            tokio::task::spawn_local(panics::vital(udp::serve(worker, socket, addr.port(), stop)));
        }
    }
    Ok(listening)
}

async fn accept(worker: Rc<Worker>, listening: TcpListener, port: u16, mut stop: oneshot::Receiver<()>) {
    let mut closing = false;
    loop {
        let accepted = if closing {
            // Who was told that he is connected is served; who comes later has been kept away.
            match tokio::time::timeout(LAST_ARRIVALS, listening.accept()).await {
                Ok(accepted) => accepted,
                Err(_) => return,
            }
        } else {
            tokio::select! {
                biased;
                accepted = listening.accept() => accepted,
                _ = &mut stop => {
                    closing = gate::keep_away(&listening).is_ok();
                    if closing { continue } else { return }
                }
            }
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let stopped = !closing
            && tokio::select! {
                biased;
                () = worker.room() => false,
                // This one is served whatever the limit: until the socket is closed, others are sent here in vain.
                _ = &mut stop => true,
            };
        let _ = stream.set_nodelay(true);
        worker.counters.borrow_mut().accepted += 1;
        let open = Open::new(&worker);
        tokio::task::spawn_local(async move {
            arrival::serve_stream(Rc::clone(&open.0), stream, peer, port).await;
        });
        if stopped {
            closing = gate::keep_away(&listening).is_ok();
            if !closing {
                return;
            }
        }
    }
}

impl Worker {
    /// Logs a connection, or an exchange, that is over as the settings of now say.
    pub(super) fn log_stream(&self, ended: &Ended<'_>) {
        if let Some(log) = &self.current.load().router.edge.streams.log {
            self.stream_journal.tell(log, ended);
        }
    }
}
