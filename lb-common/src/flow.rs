//! A flow and its keyed hash.
//!
//! Two multiplies and two shifts for IPv4, four for IPv6, because BPF has no 128-bit multiply and
//! byte-wise hashes cost three times as much. The multipliers and masks are secret, so a client
//! cannot compute which slot a source port falls into; it is not a cryptographic hash and need
//! not be: hitting one slot on purpose takes an answer from the slot, which nobody gives.

use crate::{Addr, HashKey};

/// Source, destination, ports and protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port in bits 0 to 15, destination port in bits 16 to 31, both in wire order.
    pub ports: u32,
    /// [`crate::TCP`] or [`crate::UDP`].
    pub proto: u32,
}

impl Flow {
    /// Ports word from two ports in wire order.
    #[inline(always)]
    pub const fn ports(src: u16, dst: u16) -> u32 {
        src as u32 | (dst as u32) << 16
    }

    /// Source port in wire order.
    #[inline(always)]
    pub const fn src_port(&self) -> u16 {
        self.ports as u16
    }

    /// Destination port in wire order.
    #[inline(always)]
    pub const fn dst_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// Hash of the five-tuple; all 64 bits are usable.
    #[inline(always)]
    pub const fn hash(&self, key: HashKey) -> u64 {
        if self.src.is_v4() { self.hash_v4(key) } else { self.hash_v6(key) }
    }

    /// [`Flow::hash`] where both addresses are known to be IPv4.
    #[inline(always)]
    pub const fn hash_v4(&self, HashKey(key): HashKey) -> u64 {
        let addresses = self.src.raw_v4() as u64 | (self.dst.raw_v4() as u64) << 32;
        let mixed = mix(addresses ^ key[0], key[1]);
        mix(mixed ^ self.tail() ^ key[2], key[3])
    }

    /// [`Flow::hash`] where both addresses are known to be IPv6.
    #[inline(always)]
    pub const fn hash_v6(&self, HashKey(key): HashKey) -> u64 {
        let network = mix(self.src.hi ^ self.dst.hi.rotate_left(32) ^ key[0], key[1]);
        let host = mix(self.src.lo ^ key[2], key[3]);
        let vip = (self.dst.lo ^ key[0]).wrapping_mul(key[3]);
        mix(network.wrapping_add(host.rotate_left(17)) ^ vip ^ self.tail() ^ key[2], key[3])
    }

    #[inline(always)]
    const fn tail(&self) -> u64 {
        self.ports as u64 | (self.proto as u64) << 32
    }
}

#[inline(always)]
const fn mix(x: u64, multiplier: u64) -> u64 {
    let x = x.wrapping_mul(multiplier);
    x ^ (x >> 32)
}

const _: () = assert!(size_of::<Flow>() == 40);
