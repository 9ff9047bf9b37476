//! The one line of configuration that every packet reads.

use crate::{Lines, tunnel};

/// Word 0: which half of the address and VIP tables is valid, and how large it is. Storing it is
/// what switches both tables at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Epoch for `half` (0 or 1) with tables of `1 << addr_bits` and `1 << vip_bits` lines.
    /// `generation` makes every change visible to a reader that compares.
    pub const fn new(half: u32, addr_bits: u32, vip_bits: u32, generation: u32) -> Self {
        Self((half & 1) as u64 | shift(addr_bits) << 1 | shift(vip_bits) << 7 | (generation as u64) << 32)
    }

    /// Valid half.
    #[inline(always)]
    pub const fn half(self) -> u32 {
        self.0 as u32 & 1
    }

    /// By how much a 64-bit hash is shifted to give a line of the address table.
    #[inline(always)]
    pub const fn addr_shift(self) -> u32 {
        (self.0 >> 1) as u32 & 63
    }

    /// The same for the VIP table.
    #[inline(always)]
    pub const fn vip_shift(self) -> u32 {
        (self.0 >> 7) as u32 & 63
    }

    /// log2 of the lines of the address table.
    pub const fn addr_bits(self) -> u32 {
        shift(self.addr_shift()) as u32
    }

    /// log2 of the lines of the VIP table.
    pub const fn vip_bits(self) -> u32 {
        shift(self.vip_shift()) as u32
    }

    /// Count of switches so far.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Nothing was published yet: every packet passes.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// From log2 of a size to the shift that leaves so many bits of 64, and back.
const fn shift(bits: u32) -> u64 {
    (64 - bits as u64) & 63
}

/// Key of the flow hash: two masks and two odd multipliers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashKey(pub [u64; 4]);

impl HashKey {
    /// Spreads a 16-byte secret over the four words (splitmix64).
    pub const fn expand(secret: [u8; 16]) -> Self {
        let wide = u128::from_le_bytes(secret);
        let (low, high) = (wide as u64, (wide >> 64) as u64);
        Self([
            splitmix(low),
            splitmix(high ^ 0x6a09_e667_f3bc_c908) | 1,
            splitmix(high),
            splitmix(low ^ 0xbb67_ae85_84ca_a73b) | 1,
        ])
    }

    /// The two multipliers.
    #[inline(always)]
    pub const fn multipliers(self) -> [u64; 2] {
        let Self([_, first, _, second]) = self;
        [first, second]
    }
}

const fn splitmix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The whole line but the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Key of the flow hash.
    pub key: HashKey,
    /// First port of the SNAT range.
    pub nat_first: u16,
    /// How many ports the SNAT range has.
    pub nat_count: u16,
    /// Workers of the proxy; 0: nothing is steered to a socket.
    pub workers: u16,
    /// log2 of the remembered flows at most, 3 to 20.
    pub flow_bits: u8,
    /// UDP port that tunnelled packets arrive at, in wire order; 0: no tunnel.
    pub tunnel_port: u16,
    /// Packets are shown to [`crate::capture`].
    pub capturing: bool,
    /// The grace time, in units of [`crate::flows::clock`].
    pub grace: u16,
}

impl Settings {
    /// Words 1 to 6 of the line.
    pub const fn words(self) -> [u64; 6] {
        let Self {
            key: HashKey(key),
            nat_first,
            nat_count,
            workers,
            flow_bits,
            tunnel_port,
            capturing,
            grace,
        } = self;
        let ports = nat_first as u64 | (nat_count as u64) << 16 | (workers as u64) << 32;
        let more = (flow_bits as u64) << 48 | (capturing as u64) << 63;
        let cluster = tunnel::cluster(HashKey(key));
        let tunnel = tunnel_port as u64 | (grace as u64) << 16 | (cluster as u64) << 32;
        [key[0], key[1], key[2], key[3], ports | more, tunnel]
    }
}

/// Word of the line that holds [`crate::ABI_VERSION`]: whoever finds the map pinned reads it before
/// anything else.
pub const ABI_WORD: usize = 7;

/// Word that holds the time (see [`crate::flows::clock`]) at which the tables were made: behind the
/// lines that the program reads.
pub const BORN_WORD: usize = 8 * crate::maps::LINE;

/// Word that holds [`Past`].
pub const PAST_WORD: usize = 9 * crate::maps::LINE;

/// What tables do not know of the time before them, if others had flows then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Past(pub u64);

impl Past {
    /// Nothing, or everything is known.
    pub const KNOWN: Self = Self(0);
    const GUESSED: u64 = 1;
    const FORGOTTEN: u64 = 2;

    /// That of tables that begin at a time (see [`crate::flows::clock`]).
    pub const fn new(began: u32) -> Self {
        Self((began as u64) << 32 | Self::GUESSED | Self::FORGOTTEN)
    }

    /// When they began.
    pub const fn began(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Without guesses.
    pub const fn without_guesses(self) -> Self {
        Self(self.0 & !Self::GUESSED)
    }

    /// Once every flow was seen.
    pub const fn remembered(self) -> Self {
        Self(self.0 & !Self::FORGOTTEN)
    }

    /// Whether previous owners are guesses.
    #[inline(always)]
    pub const fn is_guessed(self) -> bool {
        self.0 & Self::GUESSED != 0
    }

    /// Whether backends here may have flows that are not remembered.
    #[inline(always)]
    pub const fn is_forgotten(self) -> bool {
        self.0 & Self::FORGOTTEN != 0
    }
}

/// Reads word 0.
#[inline(always)]
pub fn epoch(config: &impl Lines) -> Epoch {
    Epoch(config.word(0, 0))
}

/// Reads the hash key.
#[inline(always)]
pub fn hash_key(config: &impl Lines) -> HashKey {
    HashKey([config.word(0, 1), config.word(0, 2), config.word(0, 3), config.word(0, 4)])
}

/// Reads [`HashKey::multipliers`].
#[inline(always)]
pub fn multipliers(config: &impl Lines) -> [u64; 2] {
    [config.word(0, 2), config.word(0, 4)]
}

/// SNAT ports: the first and how many.
#[inline(always)]
pub fn nat_range(config: &impl Lines) -> (u16, u16) {
    let word = config.word(0, 5);
    (word as u16, (word >> 16) as u16)
}

/// Number of the proxy's workers.
#[inline(always)]
pub fn workers(config: &impl Lines) -> u16 {
    (config.word(0, 5) >> 32) as u16
}

/// log2 of the remembered flows at most.
#[inline(always)]
pub fn flow_bits(config: &impl Lines) -> u32 {
    (config.word(0, 5) >> 48) as u32 & 31
}

/// UDP port of the tunnel in wire order; 0: no tunnel.
#[inline(always)]
pub fn tunnel_port(config: &impl Lines) -> u16 {
    config.word(0, 6) as u16
}

/// Whether packets are shown to [`crate::capture`].
#[inline(always)]
pub fn capturing(config: &impl Lines) -> bool {
    config.word(0, 5) >> 63 != 0
}

/// [`tunnel::cluster`] of the key.
#[inline(always)]
pub fn cluster(config: &impl Lines) -> u32 {
    config.high(0, 6)
}

/// The grace time, in units of [`crate::flows::clock`].
#[inline(always)]
pub fn grace(config: &impl Lines) -> u32 {
    (config.word(0, 6) >> 16) as u16 as u32
}

/// Reads [`Past`].
#[inline(always)]
pub fn past(config: &impl Lines) -> Past {
    const { assert!(PAST_WORD.is_multiple_of(crate::maps::LINE)) };
    Past(config.word((PAST_WORD / crate::maps::LINE) as u32, 0))
}
