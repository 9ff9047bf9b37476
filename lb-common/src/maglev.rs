//! Slot arithmetic: from a hash to the cell of a Maglev table, and the word that names the table.

use crate::BackendId;

/// Which tables a VIP uses: one word, so that one store switches them.
///
/// Bits 0 to 15 base of the current table in units of [`Descriptor::UNIT`] slots, 16 to 20 log2 of
/// its size (0: no table), 21 to 36 and 37 to 41 the same for the previous table while a change
/// settles, 48 to 63 a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// No table: no backend.
    pub const NONE: Self = Self(0);
    /// Slots per unit of a base.
    pub const UNIT: u32 = 64;

    /// Descriptor of a settled table of `1 << bits` slots starting at slot `base`.
    pub const fn settled(base: u32, bits: u32, generation: u16) -> Self {
        Self((base / Self::UNIT) as u64 & 0xffff | (bits as u64 & 31) << 16 | (generation as u64) << 48)
    }

    /// Whether there is no table.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.bits() == 0
    }

    /// First slot of the current table.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        (self.0 as u32 & 0xffff) * Self::UNIT
    }

    /// log2 of the size of the current table.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        (self.0 >> 16) as u32 & 31
    }

    /// Count of switches so far, modulo 2^16.
    pub const fn generation(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Slot of a hash within the table, for `explain`.
    #[inline(always)]
    pub const fn slot(self, hash: u64) -> u32 {
        hash as u32 & ((1u32 << self.bits()) - 1)
    }

    /// Index into the pool of the slot that a hash falls into.
    #[inline(always)]
    pub const fn pool_index(self, hash: u64) -> u32 {
        self.base() + self.slot(hash)
    }
}

/// One cell of a table: a backend, and whether the previous table says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Slot(pub u16);

impl Slot {
    /// Set where the previous owner differs: the flow map has to be asked. Nothing sets it yet;
    /// the bit is kept free so that it will cost nothing when clear.
    pub const CONTESTED: u16 = 1 << 15;

    /// Its backend.
    #[inline(always)]
    pub const fn backend(self) -> BackendId {
        BackendId(self.0 & !Self::CONTESTED)
    }
}
