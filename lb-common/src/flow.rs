//! A flow and its keyed hash.
//!
//! Two multiplies for IPv4, three for IPv6, because BPF has no 128-bit multiply and byte-wise hashes cost three times as
//! much; what a VIP has in common for all its flows ([`seed`]) is computed before. The multipliers and masks are secret, so a client
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
    pub const fn hash_v4(&self, key: HashKey) -> u64 {
        let addresses = self.src.raw_v4() as u64 | (self.dst.raw_v4() as u64) << 32;
        Self::hash_of_v4(addresses, self.ports, self.seed(key), key.multipliers())
    }

    /// The same of both addresses as they stand in a packet, in one word, and of [`seed`].
    #[inline(always)]
    pub const fn hash_of_v4(addresses: u64, ports: u32, seed: u64, [first, second]: [u64; 2]) -> u64 {
        mix(mix(addresses, first) ^ ports as u64 ^ seed, second)
    }

    /// [`Flow::hash`] where both addresses are known to be IPv6.
    #[inline(always)]
    pub const fn hash_v6(&self, key: HashKey) -> u64 {
        Self::hash_of_v6(self.src, self.ports, self.seed(key), key.multipliers())
    }

    /// The same of the source and of [`seed`].
    #[inline(always)]
    pub const fn hash_of_v6(src: Addr, ports: u32, seed: u64, [first, second]: [u64; 2]) -> u64 {
        let src = turned(src.hi).wrapping_mul(first).wrapping_add(turned(src.lo).wrapping_mul(second));
        mix(src ^ src >> 32 ^ ports as u64 ^ seed, first)
    }

    #[inline(always)]
    const fn seed(&self, key: HashKey) -> u64 {
        seed(self.dst, self.dst_port(), self.proto, key)
    }
}

/// What a VIP adds to the hash of each of its flows: the fast path reads it with the VIP.
#[inline(always)]
pub const fn seed(dst: Addr, wire_port: u16, proto: u32, HashKey(key): HashKey) -> u64 {
    let dst = mix(turned(dst.hi) ^ key[0], key[1]).wrapping_add(mix(turned(dst.lo) ^ key[2], key[3]));
    mix(dst ^ (wire_port as u64 | (proto as u64) << 16), key[1])
}

/// Half of an IPv6 address. What differs between neighbours is its end, which wire order puts into the top byte; a
/// multiply only carries upwards.
#[inline(always)]
const fn turned(half: u64) -> u64 {
    half.swap_bytes()
}

#[inline(always)]
const fn mix(x: u64, multiplier: u64) -> u64 {
    let x = x.wrapping_mul(multiplier);
    x ^ (x >> 32)
}

const _: () = assert!(size_of::<Flow>() == 40);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TCP, wire_port};
    use core::net::IpAddr;
    use std::vec;

    fn flow(host: u32, port: u16, v6: bool) -> Flow {
        let src = if v6 {
            IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(host)).to_be_bytes())
        } else {
            IpAddr::from((0x0a00_0000 | host).to_be_bytes())
        };
        let dst = if v6 { IpAddr::from([0xfd; 16]) } else { IpAddr::from([203, 0, 113, 1]) };
        let ports = Flow::ports(wire_port(port), wire_port(443));
        Flow { src: src.into(), dst: dst.into(), ports, proto: TCP.into() }
    }

    /// Neighbouring hosts and ports, as a client fleet has them, must fill slots nearly like chance.
    /// Two multiplies do not make a perfect hash: chi-squared over 1,024 slots may be one and a half
    /// times that of chance, which is a fifth more spread of the load between slots.
    #[test]
    fn neighbouring_flows_spread_nearly_like_chance() {
        for (secret, v6) in [(1u8, false), (2, false), (77, false), (1, true), (2, true), (77, true)] {
            let key = HashKey::expand([secret; 16]);
            for shift in [0, 16, 32] {
                let mut slots = vec![0f64; 1024];
                for host in 0..256 {
                    for port in 0..256 {
                        let hash = flow(host, 40_000 + port, v6).hash(key) >> shift;
                        slots[hash as usize & 1023] += 1.0;
                    }
                }
                let chi: f64 = slots.iter().map(|count| (count - 64.0) * (count - 64.0) / 64.0).sum();
                let limit = 1023.0 * 1.5;
                assert!(chi < limit, "secret {secret}, v6 {v6}, bits from {shift}: {chi}");
            }
        }
    }

    /// With another hash every flow that nothing remembers has another backend, on the host that is upgraded and where
    /// its VIP moves to.
    #[test]
    fn the_hash_stays_what_it_is() {
        let key = HashKey::expand([7; 16]);
        let hashes = [flow(1, 40_000, false), flow(2, 40_001, false), flow(1, 40_000, true)]
            .map(|flow| flow.hash(key));
        assert_eq!(hashes, [0x9f9d_bf64_b092_a16a, 0xd418_d8fe_9720_2ba7, 0x0cb9_2fa9_ae9e_ebee]);
    }

    #[test]
    fn another_key_sends_most_flows_elsewhere() {
        let (one, two) = (HashKey::expand([1; 16]), HashKey::expand([2; 16]));
        let same = (0..4096)
            .filter(|port| {
                let flow = flow(7, *port, false);
                flow.hash(one) & 1023 == flow.hash(two) & 1023
            })
            .count();

        assert!(same < 20, "{same} of 4096 flows stayed");
    }
}
