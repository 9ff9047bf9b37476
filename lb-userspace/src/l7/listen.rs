//! Listening sockets: one per address and worker, sharing the port by `SO_REUSEPORT`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Error, Options};
use crate::model::l4::{self, Listener};

/// Connections the kernel completes before they are accepted; `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// What sockets are for: those of one place, one for each worker, share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Plain or TLS.
    pub listener: Listener,
    /// As it was asked for; port 0: a free one.
    pub wanted: SocketAddr,
}

/// A listening socket of an agent before us, or for one after us.
#[derive(Debug)]
pub struct Inherited {
    /// What it is for.
    pub place: Place,
    /// Itself.
    pub socket: std::net::TcpListener,
}

/// A socket on a port beside http and https, of an agent before us or for one after us.
#[derive(Debug)]
pub struct InheritedStream {
    /// TCP or UDP, and the address as it was asked for.
    pub at: StreamPlace,
    /// Itself.
    pub socket: OwnedFd,
}

/// What such sockets are for.
pub type StreamPlace = (l4::Protocol, SocketAddr);

/// A listening socket and what it is for.
pub(super) struct Bound {
    pub(super) place: Place,
    pub(super) addr: SocketAddr,
    pub(super) socket: std::net::TcpListener,
}

impl Bound {
    /// For the kernel's socket map.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Another end of the same socket.
    pub(super) fn again(&self) -> io::Result<Self> {
        let Self { place, addr, socket } = self;
        Ok(Self { place: *place, addr: *addr, socket: socket.try_clone()? })
    }
}

/// One set of sockets for each worker, of `inherited` ones as far as they go. Those that are more
/// than there are workers are served as well: connections wait in each.
pub(super) fn bind(options: &Options, mut inherited: Vec<Inherited>) -> Result<Vec<Vec<Bound>>, Error> {
    let mut workers: Vec<Vec<Bound>> = (0..options.workers.max(1)).map(|_| Vec::new()).collect();
    let plain = options.http.iter().map(|addr| (Listener::Http, "http", *addr));
    let tls = options.https.iter().map(|addr| (Listener::Https, "https", *addr));
    for (listener, flag, wanted) in plain.chain(tls) {
        let mut addr = wanted;
        let failed = |source: io::Error| Error::Listen { flag, addr: wanted, hint: hint(&source), source };
        let place = Place { listener, wanted };
        let ours: Vec<_> = inherited.extract_if(.., |inherited| inherited.place == place).collect();
        let taken = ours.len();
        for (number, Inherited { socket, .. }) in ours.into_iter().enumerate() {
            addr = socket.local_addr().map_err(failed)?;
            let worker = number % workers.len();
            if let Some(worker) = workers.get_mut(worker) {
                worker.push(Bound { place, addr, socket });
            }
        }
        if taken == 0 {
            // Workers share the port; another process that would share it, too, serves something else.
            drop(for_address(addr, Port::Alone, Type::STREAM).map_err(failed)?);
        }
        for worker in workers.iter_mut().skip(taken) {
            let socket = for_address(addr, Port::Shared, Type::STREAM).map_err(failed)?;
            socket.set_nonblocking(true).map_err(failed)?;
            socket.listen(BACKLOG).map_err(failed)?;
            let socket = std::net::TcpListener::from(socket);
            // The first worker's choice of a free port binds the others.
            addr = socket.local_addr().map_err(failed)?;
            worker.push(Bound { place, addr, socket });
        }
    }
    Ok(workers)
}

/// A socket of one worker on a port beside http and https.
pub(super) fn stream((protocol, addr): StreamPlace) -> io::Result<OwnedFd> {
    let form = match protocol {
        l4::Protocol::Tcp => Type::STREAM,
        l4::Protocol::Udp => Type::DGRAM,
    };
    let socket = for_address(addr, Port::Shared, form)?;
    socket.set_nonblocking(true)?;
    if form == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// Whether other sockets may be bound to the same port.
#[derive(Clone, Copy)]
enum Port {
    Alone,
    Shared,
}

fn for_address(addr: SocketAddr, port: Port, form: Type) -> io::Result<Socket> {
    match bound(addr, port, form) {
        // A kernel without IPv6 still serves "every address".
        Err(error) if is_without_ipv6(&error) && addr.ip().is_unspecified() => {
            bound(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port()), port, form)
        }
        other => other,
    }
}

fn bound(addr: SocketAddr, port: Port, form: Type) -> io::Result<Socket> {
    let protocol = if form == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(addr), form, Some(protocol))?;
    if addr.is_ipv6() {
        // `[::]` takes IPv4 as well, so one socket serves every VIP.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(matches!(port, Port::Shared))?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE, or choose a higher port"
        }
        io::ErrorKind::AddrInUse => "; another program listens there (`ss -ltnp` names it)",
        io::ErrorKind::AddrNotAvailable => "; no interface has this address",
        _ => "",
    }
}
