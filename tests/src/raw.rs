//! Frames as they are on a cable, with whatever tags stand in them.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Every EtherType, in wire order (`ETH_P_ALL`).
const ALL: u16 = 3u16.to_be();

/// `struct sockaddr_ll` (packet(7)).
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    ifindex: i32,
    kind: u16,
    packet: u8,
    length: u8,
    address: [u8; 8],
}

/// One end of a cable: sends frames, and sees those that come in and go out.
pub struct Tap(Socket);

impl Tap {
    /// On an interface of this thread's namespace.
    pub fn on(device: &str) -> Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ALL))))
            .context("open a packet socket")?;
        let ifindex =
            rustix::net::netdevice::name_to_index(&socket, device).context("look the interface up")?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: the address of a packet socket is a `LinkAddress`, and smaller than the storage.
        let address: &mut LinkAddress = unsafe { storage.view_as() };
        address.family = rustix::net::AddressFamily::PACKET.as_raw();
        address.protocol = ALL;
        address.ifindex = i32::try_from(ifindex)?;
        // SAFETY: so many bytes of the storage are such an address.
        let address = unsafe { SockAddr::new(storage, size_of::<LinkAddress>() as u32) };
        socket.bind(&address).with_context(|| format!("bind to {device}"))?;
        Ok(Self(socket))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.0.send(frame).map(drop).context("send a frame")
    }

    /// The first frame that `wanted` makes something of, until the deadline.
    pub fn find<T>(&self, deadline: Duration, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + deadline;
        let mut buffer = [0; 2048];
        loop {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.0.set_read_timeout(Some(left)).ok()?;
            let length = (&self.0).read(&mut buffer).ok()?;
            if let Some(found) = buffer.get(..length).and_then(&mut wanted) {
                return Some(found);
            }
        }
    }
}
