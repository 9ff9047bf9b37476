//! Internet checksum by difference (RFC 1624, equation 3).
//!
//! Sums run over words in wire order: the one's-complement sum does not care about byte order as
//! long as all words share it.

/// What a change of header words adds to a checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Nothing changed.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// An aligned 4-byte word changed.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// An aligned 8-byte word changed.
    #[inline(always)]
    pub const fn long(self, old: u64, new: u64) -> Self {
        self.word(old as u32, new as u32).word((old >> 32) as u32, (new >> 32) as u32)
    }

    /// The checksum after the change.
    #[inline(always)]
    pub const fn apply(self, csum: u16) -> u16 {
        !fold(self.0 + !csum as u64)
    }

    /// The UDP checksum after the change: 0 means "none" over IPv4 and stays, and a computed 0 is
    /// sent as all ones (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, csum: u16) -> u16 {
        if csum == 0 {
            return 0;
        }
        let new = self.apply(csum);
        if new == 0 { 0xffff } else { new }
    }
}

/// Folds a sum of words to 16 bits. `!csum` of 16 bits is widened before it is added, so at most
/// 2^30 words fit; four folds are enough for any `u64`.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Checksum of `bytes` from scratch, on top of `start` (an unfolded sum of wire-order words, 0 for
/// none): what user space and tests compare with.
pub fn full(start: u64, bytes: &[u8]) -> u16 {
    !fold(sum(start, bytes))
}

/// Unfolded sum, to feed [`full`] with a pseudo header.
pub fn sum(start: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let low = pair.first().copied().unwrap_or(0);
        let high = pair.get(1).copied().unwrap_or(0);
        sum + u64::from(u16::from_le_bytes([low, high]))
    })
}
