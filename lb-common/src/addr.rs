//! Addresses, and the bucketed table that says which of them are ours.
//!
//! A bucket is one 64-byte line: three addresses (words 0 to 5), their values (words 6 and 7) and
//! an overflow mark. It says what [`crate::shortcut`] has to say of an address, and decides where that
//! does not. A full bucket spills into its neighbour and says so;
//! user space makes the table large enough for that to be rare.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Epoch, Lines, maps};

/// An IPv4 (as v4-mapped IPv6) or IPv6 address in wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(C)]
pub struct Addr {
    /// First eight bytes.
    pub hi: u64,
    /// Last eight bytes.
    pub lo: u64,
}

/// `lo` of a v4-mapped address without its last four bytes.
const MAPPED: u64 = 0xffff_0000;

impl Addr {
    /// IPv4 address in wire order.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        Self { hi: 0, lo: (raw as u64) << 32 | MAPPED }
    }

    /// The IPv4 address in wire order, whatever the family.
    #[inline(always)]
    pub const fn raw_v4(self) -> u32 {
        (self.lo >> 32) as u32
    }

    /// Whether this is an IPv4 address. An IPv6 packet that claims such an address is a forgery.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo as u32 as u64 == MAPPED
    }

    /// Whether no packet on a wire can come from here: unspecified, loopback, multicast, IPv4's reserved block
    /// and broadcast (RFC 1122, 3.2.1.3; RFC 4291, 2.5 and 2.7).
    #[inline(always)]
    pub const fn is_martian(self) -> bool {
        if self.is_v4() {
            let first = self.raw_v4() as u8;
            return first == 0 || first == 127 || first >= 224;
        }
        self.hi as u8 == 0xff || self.hi == 0 && (self.lo == 0 || self.lo == 1 << 56)
    }

    /// Bucket in a table of `1 << bits` lines. Unkeyed: who may choose VIPs can crowd a bucket, and the worst that does
    /// is to keep further ones out of it.
    pub const fn bucket(self, bits: u32) -> u32 {
        self.line(64 - bits)
    }

    /// [`Addr::bucket`] by what remains after a shift (see [`Epoch::addr_shift`]).
    #[inline(always)]
    const fn line(self, shift: u32) -> u32 {
        let mixed = (self.hi ^ self.lo.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (shift & 63)) as u32
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(u32::from_le_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let wide = u128::from_le_bytes(v6.octets());
                Self { hi: wide as u64, lo: (wide >> 64) as u64 }
            }
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return Self::V4(Ipv4Addr::from(addr.raw_v4().to_le_bytes()));
        }
        Self::V6(Ipv6Addr::from((u128::from(addr.lo) << 64 | u128::from(addr.hi)).to_le_bytes()))
    }
}

/// What the table says about an address: its id (never 0) and whose it is. 0: not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddrEntry(pub u32);

impl AddrEntry {
    /// Addresses of one bucket.
    pub const WAYS: usize = 3;
    /// Set in word 7 of a bucket that spilled into its neighbour.
    pub const OVERFLOW: u64 = 1 << 32;
    const NODE: u32 = 1 << 16;

    /// An address that is only a VIP: ports that nobody serves are closed, nothing of it reaches
    /// the host unless it is punted.
    pub const fn vip(id: u16) -> Self {
        Self(id as u32)
    }

    /// An address of the host itself: what we do not take is passed.
    pub const fn node(id: u16) -> Self {
        Self(id as u32 | Self::NODE)
    }

    /// Whether the address is not ours.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether the host owns the address.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.0 & Self::NODE != 0
    }

    /// Not 0 where the fast path does not take its packets: the host's own, and a flag that nobody has judged yet.
    /// Bits above 15.
    #[inline(always)]
    pub const fn odd(self) -> u64 {
        (self.0 & !0xffff) as u64
    }

    /// Key into the VIP table.
    #[inline(always)]
    pub const fn id(self) -> u16 {
        self.0 as u16
    }

    /// Looks `addr` up in the half of the table that `epoch` names.
    #[inline(always)]
    pub fn find(table: &impl Lines, epoch: Epoch, addr: Addr) -> Self {
        let line = epoch.half() * maps::ADDR_LINES + addr.line(epoch.addr_shift());
        if let Some(found) = Self::in_line(table, line, addr) {
            return found;
        }
        if table.word(line, 7) & Self::OVERFLOW == 0 {
            return Self(0);
        }
        Self::in_line(table, line ^ 1, addr).unwrap_or_default()
    }

    #[inline(always)]
    fn in_line(table: &impl Lines, line: u32, addr: Addr) -> Option<Self> {
        if table.word(line, 1) == addr.lo && table.word(line, 0) == addr.hi {
            return Some(Self(table.low(line, 6)));
        }
        if table.word(line, 3) == addr.lo && table.word(line, 2) == addr.hi {
            return Some(Self((table.word(line, 6) >> 32) as u32));
        }
        if table.word(line, 5) == addr.lo && table.word(line, 4) == addr.hi {
            return Some(Self(table.low(line, 7)));
        }
        None
    }
}

const _: () = assert!(size_of::<Addr>() == 16);
