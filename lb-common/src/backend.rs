//! The line of a backend: where it is and how a packet gets there.

use crate::{Addr, Lines};

/// Index of a backend's line; 0 is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct BackendId(pub u16);

/// Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The bytes as the low 48 bits of a word, in wire order.
    pub const fn word(self) -> u64 {
        let Self([a, b, c, d, e, f]) = self;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How a packet reaches a backend. Kept in a byte: more modes will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Destination MAC rewritten only.
    L2 = 1,
    /// Destination and source translated.
    Nat = 2,
}

/// Destination and source MAC as they stand in front of a packet, and the interface to leave by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct NextHop {
    /// Bytes 0 to 7 of the Ethernet header: destination MAC, start of the source MAC.
    pub head: u64,
    /// Bytes 8 to 11: rest of the source MAC.
    pub tail: u32,
    /// Interface the packet leaves by; 0: unresolved.
    pub ifindex: u32,
}

impl NextHop {
    /// Next hop from its parts.
    pub const fn new(dst: Mac, src: Mac, ifindex: u32) -> Self {
        let src = src.word();
        Self { head: dst.word() | src << 48, tail: (src >> 16) as u32, ifindex }
    }

    /// Destination MAC.
    pub const fn dst(self) -> Mac {
        let [a, b, c, d, e, f, _, _] = self.head.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// Source MAC.
    pub const fn src(self) -> Mac {
        let [_, _, _, _, _, _, a, b] = self.head.to_le_bytes();
        let [c, d, e, f] = self.tail.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }
}

/// A backend as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Address.
    pub addr: Addr,
    /// Our address towards it, the source in `nat` mode.
    pub snat: Addr,
    /// Where its packets go; `ifindex` 0 while unresolved.
    pub next_hop: NextHop,
    /// Port in wire order.
    pub wire_port: u16,
    /// How packets reach it.
    pub mode: Mode,
    /// Differs from the backend that had this id before, never 0: a remembered flow compares it.
    pub generation: u16,
    /// Largest IP packet the next hop takes.
    pub mtu: u16,
}

impl Backend {
    /// Words of the line. The destination MAC and the identity (port, mode, generation) are one
    /// word each, so a store never shows half of either.
    pub const fn words(self) -> [u64; 8] {
        let Self { addr, snat, next_hop, wire_port, mode, generation, mtu } = self;
        [
            addr.hi,
            addr.lo,
            snat.hi,
            snat.lo,
            next_hop.head,
            next_hop.tail as u64 | (next_hop.ifindex as u64) << 32,
            wire_port as u64 | (mode as u64) << 16 | (generation as u64) << 32 | (mtu as u64) << 48,
            0,
        ]
    }
}

/// Word 6 of a line, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub u64);

impl Identity {
    /// Port in wire order.
    #[inline(always)]
    pub const fn wire_port(self) -> u16 {
        self.0 as u16
    }

    /// [`Mode`] as its number; 0: no backend has this id.
    #[inline(always)]
    pub const fn mode(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Generation; 0: no backend has this id.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Largest IP packet.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// Reads the address of a backend.
#[inline(always)]
pub fn addr(table: &impl Lines, id: BackendId) -> Addr {
    Addr { hi: table.word(id.0 as u32, 0), lo: table.word(id.0 as u32, 1) }
}

/// Reads our source address towards a backend.
#[inline(always)]
pub fn snat(table: &impl Lines, id: BackendId) -> Addr {
    Addr { hi: table.word(id.0 as u32, 2), lo: table.word(id.0 as u32, 3) }
}

/// Reads the next hop of a backend.
#[inline(always)]
pub fn next_hop(table: &impl Lines, id: BackendId) -> NextHop {
    let rest = table.word(id.0 as u32, 5);
    NextHop { head: table.word(id.0 as u32, 4), tail: rest as u32, ifindex: (rest >> 32) as u32 }
}

/// Reads the identity of a backend.
#[inline(always)]
pub fn identity(table: &impl Lines, id: BackendId) -> Identity {
    Identity(table.word(id.0 as u32, 6))
}

const _: () = assert!(size_of::<NextHop>() == 16);
