//! WIRE: what the kernel program and the agent agree on, and the pure arithmetic both run.
//! No std, no allocation, no I/O; every shared struct has its size asserted here.
//!
//! Byte order: whatever comes from a packet is kept in *wire order*, that is the bytes of the
//! packet read as a little-endian integer. A value then means the same on every machine, and on
//! the little-endian ones loading it costs nothing.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod backend;
pub mod bench;
pub mod capture;
pub mod config;
pub mod csum;
pub mod flow;
pub mod flows;
pub mod lease;
pub mod maglev;
pub mod maps;
pub mod nat;
pub mod ports;
pub mod rate;
pub mod shortcut;
pub mod steer;
pub mod tunnel;
pub mod verdict;
pub mod vip;
pub mod vlan;

#[cfg(test)]
mod abi;

pub use addr::{Addr, AddrEntry};
pub use backend::{Backend, BackendId, Mac, Mode};
pub use config::{Epoch, HashKey};
pub use flow::Flow;
pub use maglev::{Descriptor, Slot};
pub use verdict::{Action, Verdict};
pub use vip::{Record, Rules, VipEntry};
pub use vlan::{Tag, Tags};

/// Version of everything in this crate that both sides of the kernel line must agree on. Bump it
/// with any change of a layout or of the meaning of a field.
pub const ABI_VERSION: u32 = 11;
/// The oldest version whose maps mean the same to this one, but for what counters count: an agent that is upgraded goes on
/// with them. Who bumps the version sets this to it, unless that is still true.
pub const ABI_READABLE: u32 = 10;

/// TCP's IP protocol number.
pub const TCP: u8 = 6;
/// UDP's IP protocol number.
pub const UDP: u8 = 17;

/// A flat table of 64-byte lines, eight words each: how both sides read what user space lays out.
/// The kernel masks the line number, so a wild index reads a wrong line and never a wrong page.
pub trait Lines {
    /// Word `word` (0 to 7) of line `line`.
    fn word(&self, line: u32, word: usize) -> u64;

    /// The lower half of that word.
    #[inline(always)]
    fn low(&self, line: u32, word: usize) -> u32 {
        self.word(line, word) as u32
    }

    /// The upper half of that word.
    #[inline(always)]
    fn high(&self, line: u32, word: usize) -> u32 {
        (self.word(line, word) >> 32) as u32
    }

    /// One of its quarters, the lowest first.
    #[inline(always)]
    fn quarter(&self, line: u32, word: usize, quarter: usize) -> u16 {
        (self.word(line, word) >> (16 * quarter)) as u16
    }

    /// One of its bytes, the lowest first.
    #[inline(always)]
    fn byte(&self, line: u32, word: usize, byte: usize) -> u8 {
        (self.word(line, word) >> (8 * byte)) as u8
    }
}

/// Port in wire order.
#[inline(always)]
pub const fn wire_port(port: u16) -> u16 {
    port.swap_bytes()
}
