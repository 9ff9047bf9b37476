//! What one program knows of a packet when the next one goes on with it.

use lb_common::{AddrEntry, BackendId, Flow, Record, Tags, Verdict, steer::Hashes};

use crate::{packet::Packet, parse::ETHERNET};

/// Handed over in this CPU's scratch memory. Offsets count from the start of the frame; the packet
/// itself is as it came in.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Carry {
    /// Five-tuple of the packet. Ports 0 where it has none.
    pub flow: Flow,
    /// Its hashes.
    pub hashes: Hashes,
    /// Record of its VIP.
    pub record: Record,
    /// Index of that record.
    pub record_index: u32,
    /// Whose the destination address is.
    pub addr: AddrEntry,
    /// Where the IP header begins.
    pub l3: u32,
    /// Where the transport header begins; 0: it has none, being a later fragment.
    pub l4: u32,
    /// See [`Packet::tx_ifindex`].
    pub tx_ifindex: u32,
    /// TCP's flag byte; 0 for UDP.
    pub tcp_flags: u32,
    /// Why the packet is refused.
    pub verdict: Verdict,
    /// Largest IP packet that would have fitted, for [`Verdict::TooBig`].
    pub mtu: u16,
    /// How it came, if another balancer sent it.
    pub tunnelled: Tunnelled,
    /// VLAN tags that the frame came with.
    pub tags: Tags,
    /// Interface that leads back to the sender; 0: the one that the packet came in by.
    pub back: u32,
}

/// What the tunnel says of a packet that came through it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tunnelled {
    /// The backend that the sender chose, if it is known here.
    pub backend: BackendId,
    /// Bytes that the tunnel took in front of the packet; 0: it came as the client sent it.
    pub overhead: u16,
}

impl Tunnelled {
    /// As the client sent it.
    pub const NOT: Self = Self { backend: BackendId(0), overhead: 0 };
}

impl Carry {
    /// Where the headers begin, as the family's functions want it.
    #[inline(always)]
    pub fn at(&self) -> At {
        At { l3: self.l3 as usize, l4: self.l4 as usize }
    }

    /// Tags that the frame came with and has lost: whoever unwraps a tunnelled packet takes them off, too.
    #[inline(always)]
    pub fn lost_tags(&self) -> Tags {
        if self.l3 as usize == ETHERNET { self.tags } else { Tags::NONE }
    }

    /// The packet, with what is known of its interface.
    #[inline(always)]
    pub fn packet(&self, ctx: &aya_ebpf::programs::XdpContext) -> Packet {
        Packet::of(ctx).leaving_by(self.tx_ifindex).shifted()
    }
}

/// Where the headers of a packet begin, in bytes from the start of the frame. Constants in the
/// fast path, where they vanish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// IP header.
    pub l3: usize,
    /// Transport header.
    pub l4: usize,
}
