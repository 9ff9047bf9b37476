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

    /// A word was added where nothing was: the sum of a header in the making.
    #[inline(always)]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The pseudo-header of a packet of our own: addresses, protocol and `length` of what follows the IP
    /// header. A v4-mapped address sums like the IPv4 address, because its other bytes are all ones.
    #[inline(always)]
    pub const fn pseudo(self, src: crate::Addr, dst: crate::Addr, proto: u8, length: u16) -> Self {
        self.long_added(src.hi)
            .long_added(src.lo)
            .long_added(dst.hi)
            .long_added(dst.lo)
            .add((proto as u32) << 8)
            .add(length.swap_bytes() as u32)
    }

    /// Eight bytes were added where nothing was.
    #[inline(always)]
    pub const fn long_added(self, long: u64) -> Self {
        self.add(long as u32).add((long >> 32) as u32)
    }

    /// The checksum of what was added.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !fold(self.0)
    }

    /// The change in 32 bits, as the kernel's helpers want it.
    #[inline(always)]
    pub const fn wide(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
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
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Unfolded sum of two IPv4 addresses.
#[inline(always)]
pub const fn addresses(src: u32, dst: u32) -> u64 {
    src as u64 + dst as u64
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn patched(bytes: &[u8], at: usize, new: u32) -> std::vec::Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
        bytes
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    proptest! {
        #[test]
        fn the_difference_equals_a_full_recompute(
            bytes in proptest::collection::vec(any::<u8>(), 16..64),
            changes in proptest::collection::vec((0usize..4, any::<u32>()), 0..8),
            ones in any::<bool>(),
        ) {
            // An odd length, all zeros and all ones among them.
            let mut bytes = if ones { std::vec![0xff; bytes.len()] } else { bytes };
            let before = full(0, &bytes);
            let mut delta = Delta::new();
            for (at, new) in changes {
                delta = delta.word(word(&bytes, at * 4), new);
                bytes = patched(&bytes, at * 4, new);
            }

            let after = delta.apply(before);

            // Data that is all zeros has the checksum ffff, for which a difference may yield 0:
            // the same number in one's complement.
            let recomputed = full(0, &bytes);
            prop_assert!(after == recomputed || (after, recomputed) == (0, 0xffff), "{after:#x} {recomputed:#x}");
        }

        #[test]
        fn a_udp_checksum_is_none_only_where_it_was(csum in any::<u16>(), old in any::<u32>(), new in any::<u32>()) {
            let after = Delta::new().word(old, new).apply_udp(csum);

            prop_assert_eq!(after == 0, csum == 0);
        }

        #[test]
        fn eight_bytes_are_two_words(old in any::<u64>(), new in any::<u64>(), csum in any::<u16>()) {
            let halves = Delta::new()
                .word(old as u32, new as u32)
                .word((old >> 32) as u32, (new >> 32) as u32);

            prop_assert_eq!(Delta::new().long(old, new).apply(csum), halves.apply(csum));
        }
    }
}
