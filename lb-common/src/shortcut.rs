//! The fast path's shortcuts: which destinations are surely not ours, and which record a VIP has, each by one
//! load.
//!
//! Both follow the address and VIP tables, which stay the truth. A byte of the [`FILTER`] that is set says
//! "perhaps ours", and a VIP that is not found here has to be looked up there. So whoever changes the tables
//! sets bytes and closes records before, and clears and opens them after: in between the tables decide alone.
//! A VIP's record stands where its [`Key`] says, or within the same [`WAYS`] lines, and names its VIP itself. One that
//! stands elsewhere is not found, and works as well by the tables.

use crate::Addr;
use crate::maps::RECORDS;

/// Bytes of the filter.
pub const FILTER: u32 = 1 << 17;
/// Lines that a record may stand in.
pub const WAYS: u32 = 8;

/// Word of a record's line that holds its [`Key`], if it is open; else 0.
pub const KEY_WORD: usize = 3;
/// Words that hold the address of a VIP over IPv6, first half first.
pub const ADDR_WORDS: [usize; 2] = [4, 5];
/// Word of a line that is not 0 where a record that was to stand in it stands in another one.
pub const MORE_WORD: usize = 6;
/// Word that holds the VIP's [`crate::flow::seed`].
pub const SEED_WORD: usize = 7;

/// The multiplier of xorshift64*: of ten well-known ones the one under which neighbours spread best, which the golden
/// ratio does not do for all of them.
const MULTIPLIER: u64 = 0x2545_f491_4f6c_dd1d;

/// A destination, mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    mixed: u64,
    /// What of it stands in a [`Key`].
    part: u64,
}

impl Folded {
    /// An IPv4 address in wire order.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        Self { mixed: (raw as u64).wrapping_mul(MULTIPLIER), part: raw as u64 }
    }

    /// An IPv6 address. What differs between neighbours is the end of either half, which wire order puts into the
    /// top byte: one half is turned, so that they do not cancel out.
    #[inline(always)]
    pub const fn v6(addr: Addr) -> Self {
        let mixed = (addr.hi ^ addr.lo.swap_bytes()).wrapping_mul(MULTIPLIER);
        Self { mixed, part: mixed >> 32 | Key::V6 }
    }

    /// An address of either family.
    pub const fn of(addr: Addr) -> Self {
        if addr.is_v4() { Self::v4(addr.raw_v4()) } else { Self::v6(addr) }
    }

    /// Its byte of the filter.
    #[inline(always)]
    pub const fn byte(self) -> u32 {
        (self.mixed >> (64 - FILTER.trailing_zeros())) as u32
    }
}

/// A VIP in one word: an IPv4 address, or what an IPv6 address was folded to, in bits 0 to 31; protocol in bits 32 to 39,
/// family in bit 40, port in wire order in bits 48 to 63. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Key(pub u64);

impl Key {
    const V6: u64 = 1 << 40;

    /// Key of a VIP.
    #[inline(always)]
    pub const fn new(dst: Folded, wire_port: u16, proto: u8) -> Self {
        Self(dst.part | (proto as u64) << 32 | (wire_port as u64) << 48)
    }

    /// The VIP's protocol.
    pub const fn proto(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The VIP's port in wire order.
    pub const fn wire_port(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The line that its record stands in, if no other one does.
    #[inline(always)]
    pub const fn line(self) -> u32 {
        (self.0.wrapping_mul(MULTIPLIER) >> (64 - RECORDS.trailing_zeros())) as u32
    }
}

/// The lines that a record may stand in, the first one first.
pub fn ways(first: u32) -> impl Iterator<Item = u32> {
    (0..WAYS).map(move |way| first ^ way)
}

/// The open record of a VIP. `record` gives the one of a line, `word` a word of it; `is_of` tells whether it is of the
/// whole address, of which a key holds not all over IPv6.
#[inline(always)]
pub fn find<Line: Copy>(
    key: Key,
    record: impl Fn(u32) -> Line,
    word: impl Fn(Line, usize) -> u64,
    is_of: impl Fn(Line) -> bool,
) -> Option<Line> {
    let line = key.line();
    let first = record(line);
    if word(first, KEY_WORD) == key.0 && is_of(first) {
        return Some(first);
    }
    core::hint::cold_path();
    if word(first, MORE_WORD) == 0 {
        return None;
    }
    for way in 1..WAYS {
        let other = record(line ^ way);
        if word(other, KEY_WORD) == key.0 && is_of(other) {
            return Some(other);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TCP, UDP};
    use core::net::IpAddr;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn folded(ip: &str) -> Folded {
        Folded::of(ip.parse::<IpAddr>().expect("an address").into())
    }

    #[test]
    fn keys_tell_addresses_ports_protocols_and_families_apart() {
        let dsts =
            ["203.0.113.1", "203.0.113.2", "::203.0.113.1", "2001:db8::1", "2001:db8::2", "2001:db8:1::1"];
        let keys: Vec<Key> = dsts
            .into_iter()
            .flat_map(|dst| {
                [(80, TCP), (80, UDP), (81, TCP)].map(|(port, proto)| Key::new(folded(dst), port, proto))
            })
            .collect();

        let different: BTreeSet<&Key> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert!(keys.iter().all(|key| key.0 != 0));
    }

    /// An IPv6 packet that claims a mapped address is nobody's.
    #[test]
    fn a_mapped_address_over_ipv6_has_no_key_of_ipv4() {
        let mapped = Addr::v4(0x0171_00cb);

        let (v4, v6) =
            (Key::new(Folded::v4(mapped.raw_v4()), 80, TCP), Key::new(Folded::v6(mapped), 80, TCP));

        assert_ne!(v4, v6);
    }

    #[test]
    fn neighbours_rarely_share_a_byte_of_the_filter_or_a_line() {
        let v4 = (0..4096u32).map(|host| Folded::v4((0x0a00_0000 + host).swap_bytes()));
        let v6 = (0..4096u64).map(|host| {
            let (subnet, host) = (host / 64, host % 64);
            Folded::v6(Addr { hi: 0x2001_0db8_0000_0000u64.swap_bytes() | (subnet << 56), lo: host << 56 })
        });
        for dsts in [v4.collect::<Vec<_>>(), v6.collect()] {
            let bytes: BTreeSet<u32> = dsts.iter().map(|dst| dst.byte()).collect();
            let lines: BTreeSet<u32> = dsts.iter().map(|dst| Key::new(*dst, 443, TCP).line()).collect();

            assert!(bytes.len() > 3900, "{} bytes", bytes.len());
            // By chance 3,624.
            assert!(lines.len() > 3500, "{} lines", lines.len());
        }
    }
}
