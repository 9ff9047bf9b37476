//! Ports beside http and https that a worker listens on, as the snapshot of now has them. Each worker has a socket
//! of its own on each; the kernel tells clients apart.

mod datagrams;
mod shelf;
mod udp;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::datagrams::Datagrams;
pub(super) use self::shelf::Shelf;
pub(super) use self::udp::Crowd;
use super::arrival;
use super::gate::{self, LAST_ARRIVALS};
use super::listen::{self, StreamPlace};
use super::log::Ended;
use super::worker::{ACCEPT_PAUSE, Open, Worker};
use crate::model::l4::Protocol;
use crate::panics;

type Port = (Protocol, u16);

/// The sockets of one worker.
pub(super) struct Ports {
    /// Where http is listened on.
    ips: BTreeSet<IpAddr>,
    /// Whose these are, and how many there are; the first speaks for all.
    worker: usize,
    of: usize,
    shelf: Shelf,
    open: RefCell<BTreeMap<Port, Vec<Listening>>>,
    /// Ports that cannot be listened on, which is told once.
    failed: RefCell<BTreeSet<Port>>,
    closed: Cell<bool>,
}

/// A socket that is looked after until this is dropped, or told that another process does.
struct Listening {
    at: StreamPlace,
    stop: oneshot::Sender<HandedOver>,
}

/// Why a socket is no more looked after, where it is not closed.
#[derive(Debug)]
struct HandedOver;

impl Ports {
    pub(super) fn new(ips: BTreeSet<IpAddr>, (worker, of): (usize, usize), shelf: Shelf) -> Self {
        let (open, failed, closed) = Default::default();
        Self { ips, worker, of, shelf, open, failed, closed }
    }

    /// Nothing is accepted any more; connections go on. In these places another process accepts.
    pub(super) fn close(&self, handed_over: &HashSet<StreamPlace>) {
        self.closed.set(true);
        self.shelf.forget(self.worker, |_| true, handed_over);
        let open = std::mem::take(&mut *self.open.borrow_mut());
        for Listening { at, stop } in open.into_values().flatten() {
            if handed_over.contains(&at) {
                let _ = stop.send(HandedOver);
            }
        }
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
    let is_closed = |(protocol, addr): StreamPlace| !wanted.contains_key(&(protocol, addr.port()));
    ports.shelf.forget(ports.worker, is_closed, &HashSet::new());
    ports.failed.borrow_mut().retain(|port| wanted.contains_key(port));
    for port in wanted.keys() {
        if open.contains_key(port) {
            continue;
        }
        let (protocol, number) = *port;
        let addrs = ports.ips.iter().map(|ip| SocketAddr::new(*ip, number));
        let listening = addrs.map(|addr| listen_on(worker, (protocol, addr))).collect::<io::Result<Vec<_>>>();
        if listening.is_err() {
            let is_it = |(protocol, addr): StreamPlace| (protocol, addr.port()) == *port;
            ports.shelf.forget(ports.worker, is_it, &HashSet::new());
        }
        match listening {
            Ok(listening) => {
                ports.failed.borrow_mut().remove(port);
                open.insert(*port, listening.into_iter().flatten().collect());
            }
            Err(error) if ports.failed.borrow_mut().insert(*port) && ports.worker == 0 => {
                tracing::warn!(%protocol, port = number, %error, "port of a TCP or UDP service: cannot listen");
            }
            Err(_) => {}
        }
    }
}

/// Of an agent before us there may be several sockets.
fn listen_on(worker: &Rc<Worker>, at: StreamPlace) -> io::Result<Vec<Listening>> {
    let Ports { worker: number, of, shelf, .. } = &worker.streams;
    let mut sockets = shelf.take(at, *number, *of);
    if sockets.is_empty() {
        sockets.push(listen::stream(at)?);
    }
    sockets.into_iter().map(|socket| look_after(worker, at, socket)).collect()
}

fn look_after(worker: &Rc<Worker>, at: StreamPlace, socket: OwnedFd) -> io::Result<Listening> {
    let Ports { worker: number, shelf, .. } = &worker.streams;
    shelf.note(at, *number, &socket)?;
    let (stop, stopped) = oneshot::channel();
    let (worker, (protocol, addr)) = (Rc::clone(worker), at);
    match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::from_std(socket.into())?;
            tokio::task::spawn_local(panics::vital(accept(worker, socket, addr.port(), stopped)));
        }
        Protocol::Udp => {
            let socket = Datagrams::new(UdpSocket::from(socket))?;
            tokio::task::spawn_local(panics::vital(udp::serve(worker, socket, addr.port(), stopped)));
        }
    }
    Ok(Listening { at, stop })
}

async fn accept(
    worker: Rc<Worker>,
    listening: TcpListener,
    port: u16,
    mut stop: oneshot::Receiver<HandedOver>,
) {
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
                stopped = &mut stop => {
                    // A filter would be the other process's as well.
                    closing = stopped.is_err() && gate::keep_away(&listening).is_ok();
                    if closing { continue } else { return }
                }
            }
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let stopped = match closing {
            true => None,
            false => tokio::select! {
                biased;
                () = worker.room() => None,
                // This one is served whatever the limit: until the socket is closed, others are sent here in vain.
                stopped = &mut stop => Some(stopped),
            },
        };
        let _ = stream.set_nodelay(true);
        worker.counters.borrow_mut().accepted += 1;
        let open = Open::new(&worker);
        tokio::task::spawn_local(async move {
            arrival::serve_stream(Rc::clone(&open.0), stream, peer, port).await;
        });
        if let Some(stopped) = stopped {
            closing = stopped.is_err() && gate::keep_away(&listening).is_ok();
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
