//! A socket that takes datagrams to any address of this host, and answers each from the address that it came to. Left
//! to itself the kernel would choose the one that the way back prefers, which the client has not asked and does not
//! hear.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::cmsg_space;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Whoever sent a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asker {
    /// Where it came from.
    addr: SocketAddr,
    /// Which address of ours it came to; `None`: the kernel chooses where answers leave.
    to: Option<IpAddr>,
}

impl Asker {
    pub(super) fn client(self) -> SocketAddr {
        SocketAddr::new(self.addr.ip().to_canonical(), self.addr.port())
    }

    /// What it asked; unspecified where only the kernel knows.
    pub(super) fn server(self) -> IpAddr {
        self.to.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |to| to.to_canonical())
    }
}

pub(super) struct Datagrams(UdpSocket);

/// Room for what the kernel says of a datagram; one for many.
pub(super) struct Said(Vec<u8>);

impl Said {
    pub(super) fn new() -> Self {
        // The larger of both; only one is said.
        Self(cmsg_space!(in6_pktinfo))
    }
}

impl Datagrams {
    /// Takes over a bound socket.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        // An IPv6 socket says it of IPv4 as well, by mapped addresses.
        match socket.local_addr()? {
            SocketAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self(UdpSocket::from_std(socket)?))
    }

    /// The runtime takes a socket for full until it has heard otherwise.
    pub(super) async fn settle(&self) {
        let _ = self.0.writable().await;
    }

    /// Waits for a datagram; what `into` has no room for is lost.
    pub(super) async fn receive(&self, into: &mut [u8], said: &mut Said) -> io::Result<(usize, Asker)> {
        self.0.async_io(Interest::READABLE, || receive(&self.0, into, said)).await
    }

    /// Sends an answer, unless there is no room for it.
    pub(super) fn answer(&self, asker: Asker, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_io(Interest::WRITABLE, || answer(&self.0, asker, bytes))
    }
}

fn receive(socket: &UdpSocket, into: &mut [u8], Said(said): &mut Said) -> io::Result<(usize, Asker)> {
    let mut parts = [IoSliceMut::new(into)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(said.as_mut_slice()),
        MsgFlags::empty(),
    )?;
    let from = received.address.as_ref();
    let v4 = from.and_then(|from| from.as_sockaddr_in()).map(|from| SocketAddr::V4((*from).into()));
    let v6 = from.and_then(|from| from.as_sockaddr_in6()).map(|from| SocketAddr::V6((*from).into()));
    let addr = v4.or(v6).ok_or(io::ErrorKind::InvalidData)?;
    let to = received.cmsgs()?.find_map(|said| match said {
        ControlMessageOwned::Ipv4PacketInfo(said) => {
            Some(Ipv4Addr::from(u32::from_be(said.ipi_spec_dst.s_addr)).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(said) => Some(Ipv6Addr::from(said.ipi6_addr.s6_addr).into()),
        _ => None,
    });
    // Nothing leaves from a group's address.
    let to = to.filter(|to: &IpAddr| !to.is_multicast() && !to.is_unspecified());
    Ok((received.bytes, Asker { addr, to }))
}

fn answer(socket: &UdpSocket, Asker { addr, to }: Asker, bytes: &[u8]) -> io::Result<usize> {
    let (fd, parts, addr) = (socket.as_raw_fd(), [IoSlice::new(bytes)], SockaddrStorage::from(addr));
    let send = |from: &[ControlMessage<'_>]| sendmsg(fd, &parts, from, MsgFlags::empty(), Some(&addr));
    // Interface 0: the way back decides.
    let sent = match to {
        None => send(&[]),
        Some(IpAddr::V4(from)) => send(&[ControlMessage::Ipv4PacketInfo(&in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: in_addr { s_addr: 0 },
        })]),
        Some(IpAddr::V6(from)) => send(&[ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
            ipi6_addr: in6_addr { s6_addr: from.octets() },
            ipi6_ifindex: 0,
        })]),
    };
    Ok(sent?)
}
