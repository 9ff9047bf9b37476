//! The sockets that punted connections are given to.

use std::io;
use std::os::fd::AsFd;

use lb_common::maps;
use tracing::warn;

use super::Error;
use super::worker::Shared;
use crate::model::l4::Listener;

impl Shared {
    /// See [`super::Handle::set_listeners`].
    pub fn set_listeners<F: AsFd>(&self, listeners: &[(Listener, usize, F)]) -> Result<(), Error> {
        let mut engine = self.engine();
        let mut workers = 0;
        for (listener, worker, socket) in listeners {
            let slot = u32::try_from(*worker).unwrap_or(u32::MAX);
            if slot >= maps::SOCKETS_PER_CLASS {
                warn!(worker, "this worker gets no punted connections: too many workers");
                continue;
            }
            workers = workers.max(slot + 1);
            let https = *listener == Listener::Https;
            for ipv6 in families(socket).map_err(|source| Error::System {
                call: "inspect",
                object: format!("{listener:?} listener of worker {worker}"),
                source,
                hint: "",
            })? {
                engine.kernel.set_socket(maps::socket_index(https, *ipv6, slot), socket)?;
            }
        }
        engine.set_workers(u16::try_from(workers).unwrap_or(0));
        Ok(())
    }
}

/// Which families a listening socket serves; `true` is IPv6.
fn families(socket: &impl AsFd) -> io::Result<&'static [bool]> {
    let socket = socket2::SockRef::from(socket);
    let addr = socket.local_addr()?;
    if addr.is_ipv4() {
        return Ok(&[false]);
    }
    Ok(if socket.only_v6()? { &[true] } else { &[false, true] })
}
