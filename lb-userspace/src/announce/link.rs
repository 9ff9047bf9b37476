//! The sockets of one link. What the kernel takes off the wire for us are ARP, solicitations with their answers and heartbeats
//! alone: a socket for each, so that no other packet costs anything.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::frame::{self, Mac};
use super::groups::Groups;
use super::heartbeat;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// Frames are no longer than that.
const LONGEST: usize = 2048;
/// Frames that wait in a socket at most: `net.core.rmem_default` is 208 KiB, of which each takes more than 256 bytes.
const QUEUED: usize = 1024;
/// Frames taken of one socket before the next has its turn.
const TURN: usize = 64;

/// An open link.
pub(super) struct Link {
    arp: Socket,
    neighbours: Socket,
    heartbeats: Socket,
    groups: Groups,
    index: u32,
    pub(super) mac: Mac,
}

impl Link {
    /// Opens the link behind an interface.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let (addr, mac) = device(interface)?;
        Ok(Self {
            arp: packets(&addr, libc::ETH_P_ARP as u16, &[])?,
            neighbours: packets(&addr, libc::ETH_P_IPV6 as u16, &neighbours())?,
            heartbeats: packets(&addr, heartbeat::ETHERTYPE, &[])?,
            groups: Groups::on(addr.ifindex() as u32),
            index: addr.ifindex() as u32,
            mac,
        })
    }

    /// Fails where the interface was made anew, or has another hardware address than we tell all.
    pub(super) fn is_as_opened(&self, interface: &str) -> io::Result<()> {
        let (addr, mac) = device(interface)?;
        if (addr.ifindex() as u32, mac) != (self.index, self.mac) {
            return Err(io::Error::other("its hardware address is another one now"));
        }
        Ok(())
    }

    /// Waits so many milliseconds for frames at most, and hands on what came.
    pub(super) fn receive(&self, milliseconds: u8, mut heard: impl FnMut(&[u8])) -> io::Result<()> {
        let sockets = [&self.arp, &self.neighbours, &self.heartbeats];
        let mut ready = sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        match poll(&mut ready, milliseconds) {
            Err(Errno::EINTR) | Ok(0) => return Ok(()),
            polled => drop(polled?),
        }
        let mut frame = [0; LONGEST];
        for (socket, ready) in sockets.into_iter().zip(&ready) {
            if !ready.any().unwrap_or(true) {
                continue;
            }
            for _ in 0..TURN {
                match io::Read::read(&mut &*socket, &mut frame) {
                    Ok(length) => heard(frame.get(..length).unwrap_or_default()),
                    // Told once when the interface goes down; it may come back.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NetworkDown) => {
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Sends a frame, whose head says to whom.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.arp.send(frame) {
            // Said again soon; nobody may hold up the rest for it.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NetworkDown) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Joins the groups of addresses, and leaves those of others.
    pub(super) fn join(&mut self, vips: impl Iterator<Item = IpAddr>) {
        let wanted = vips.filter_map(|vip| match vip {
            IpAddr::V6(vip) => Some(frame::solicited_group(vip)),
            IpAddr::V4(_) => None,
        });
        self.groups.join(&wanted.collect());
    }
}

fn device(interface: &str) -> io::Result<(LinkAddr, Mac)> {
    let addr = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.as_ref()?.as_link_addr().copied());
    let addr = addr.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "no such interface"))?;
    let mac = addr.addr().filter(|_| addr.hatype() == ETHERNET && addr.halen() == 6);
    let mac = mac.ok_or_else(|| io::Error::new(ErrorKind::Unsupported, "it is no Ethernet interface"))?;
    Ok((addr, mac))
}

/// Addresses of an interface.
pub(super) fn addresses(interface: &str) -> BTreeSet<IpAddr> {
    let Ok(entries) = getifaddrs() else { return BTreeSet::new() };
    let own = entries.filter(|entry| entry.interface_name == interface);
    let ip = own.filter_map(|entry| {
        let addr = entry.address?;
        let v4 = addr.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
        v4.or_else(|| addr.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip())))
    });
    ip.collect()
}

fn packets(addr: &LinkAddr, ethertype: u16, filter: &[SockFilter]) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ethertype.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))?;
    if !filter.is_empty() {
        socket.attach_filter(filter)?;
    }
    // The address names no protocol, so the socket's own stays.
    bind(socket.as_raw_fd(), addr)?;
    drain(&socket);
    Ok(socket)
}

/// Takes off what came from other interfaces before the socket was bound to its own. No more than its queue
/// holds: where the link is flooded, more comes for ever.
fn drain(mut socket: impl io::Read) {
    let mut frame = [0; LONGEST];
    for _ in 0..QUEUED {
        if socket.read(&mut frame).is_err() {
            break;
        }
    }
}

/// Classic BPF over the frame: an ICMPv6 packet of type 135 or 136.
fn neighbours() -> [SockFilter; 7] {
    let op = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    [
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 20),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 4, 58),
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 54),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 135),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 136),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_flooded_is_opened_all_the_same() {
        drain(io::repeat(0));
    }
}
