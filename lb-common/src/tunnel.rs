//! The encapsulation between balancers: outer IP, UDP, then this header, then the packet as the
//! client sent it, its destination still the VIP. Whoever receives it therefore knows the VIP of
//! every packet, whatever it missed before.
//!
//! ```text
//!  0       4       8              16             24             31
//!  +-------+-------+--------------+-----------------------------+
//!  | vers. | round | inner proto  | 0                           |
//!  +-------+-------+--------------+-----------------------------+
//!  | cluster: who may talk to whom, made from the hash key      |
//!  +------------------------------------------------------------+
//!  | backend: tag of the one chosen                             |
//!  +------------------------------------------------------------+
//!  | other: tag of the slot's other owner, 0 for none           |
//!  +------------------------------------------------------------+
//! ```
//!
//! Backends are named by tags instead of addresses: a receiver delivers to backends that it knows
//! itself and to nothing else, whatever a forged header says.

use crate::{Addr, Flow, HashKey};

/// Bytes of the header behind the UDP header.
pub const HEADER: usize = 16;
/// Bytes of an IPv4 outer header with UDP and the tunnel's.
pub const OVERHEAD_V4: usize = 20 + 8 + HEADER;
/// Bytes of an IPv6 outer header with UDP and the tunnel's.
pub const OVERHEAD_V6: usize = 40 + 8 + HEADER;
/// UDP port where none is configured.
pub const PORT: u16 = 7183;

const VERSION: u32 = 1;

/// How often a packet was sent on. It only grows, so that no packet runs in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Round {
    /// By the balancer that the client's packet came to.
    First = 0,
    /// By the first owner, which does not know the flow, to the slot's other owner.
    Second = 1,
    /// Back to the first owner: nobody knows the flow, so it begins there.
    Last = 2,
}

/// The first word of the header, in wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head(pub u32);

impl Head {
    /// Head of a packet whose inner protocol (4 IPv4, 41 IPv6) is `inner`.
    #[inline(always)]
    pub const fn new(inner: u8, round: Round) -> Self {
        Self(VERSION | (round as u32) << 4 | (inner as u32) << 8)
    }

    /// Whether we understand it.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 & 15 == VERSION && matches!(self.inner(), 4 | 41)
    }

    /// How often it was sent on.
    #[inline(always)]
    pub const fn round(self) -> Round {
        match (self.0 >> 4) & 15 {
            0 => Round::First,
            1 => Round::Second,
            _ => Round::Last,
        }
    }

    /// Inner protocol.
    #[inline(always)]
    pub const fn inner(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// What the balancers of one cluster write into the header, and no one without the key can.
#[inline(always)]
pub const fn cluster(HashKey(key): HashKey) -> u32 {
    let mixed = (key[0] ^ key[3]).wrapping_mul(key[1]);
    (mixed >> 32) as u32
}

/// Tag of the backend at an address and port (wire order), never 0.
pub const fn tag(addr: Addr, wire_port: u16, proto: u8, key: HashKey) -> u32 {
    let place = Flow { src: addr, dst: Addr { hi: 0, lo: 0 }, ports: wire_port as u32, proto: proto as u32 };
    let tag = (place.hash_v6(key) >> 32) as u32;
    if tag == 0 { 1 } else { tag }
}
