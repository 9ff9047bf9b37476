//! Slot arithmetic: from a hash to the cell of a Maglev table, and the word that names the tables.

use crate::BackendId;

/// Which tables a VIP uses: one word, so that one store switches them.
///
/// Bits 0 to 15 base of the current table in units of [`Descriptor::UNIT`] slots, 16 to 20 log2 of
/// its size (0: no table), 21 to 36 base of the previous owners' table of the same size, 37 whether
/// there is one, 48 to 63 a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// No table: no backend.
    pub const NONE: Self = Self(0);
    /// Slots per unit of a base.
    pub const UNIT: u32 = 64;
    const PREVIOUS: u64 = 1 << 37;

    /// Descriptor of a settled table of `1 << bits` slots starting at slot `base`.
    pub const fn settled(base: u32, bits: u32, generation: u16) -> Self {
        Self((base / Self::UNIT) as u64 & 0xffff | (bits as u64 & 31) << 16 | (generation as u64) << 48)
    }

    /// The same while some of its slots are contested: their previous owners stand in a table of
    /// the same size at `previous`.
    pub const fn contested(self, previous: u32) -> Self {
        let cleared = self.0 & !(0xffff << 21);
        Self(cleared | ((previous / Self::UNIT) as u64 & 0xffff) << 21 | Self::PREVIOUS)
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

    /// log2 of the size of both tables.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        (self.0 >> 16) as u32 & 31
    }

    /// First slot of the previous owners' table, if slots are contested.
    #[inline(always)]
    pub const fn previous(self) -> Option<u32> {
        if self.0 & Self::PREVIOUS == 0 {
            return None;
        }
        Some(((self.0 >> 21) as u32 & 0xffff) * Self::UNIT)
    }

    /// Count of switches so far, modulo 2^16.
    pub const fn generation(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Slot of a hash within the table.
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

/// One cell of a table: a backend, and whether the flows of this slot may have another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Slot(pub u16);

impl Slot {
    /// In a current table: the slot changed its owner and has not settled, the flow table has to be
    /// asked. In a previous owners' table: [`Slot::is_used`].
    pub const MARK: u16 = 1 << 15;

    /// The owner alone.
    pub const fn settled(owner: BackendId) -> Self {
        Self(owner.0)
    }

    /// The owner of a slot that has not settled.
    pub const fn contested(owner: BackendId) -> Self {
        Self(owner.0 | Self::MARK)
    }

    /// Its backend; id 0: nobody.
    #[inline(always)]
    pub const fn backend(self) -> BackendId {
        BackendId(self.0 & !Self::MARK)
    }

    /// Whether the flow table has to be asked.
    #[inline(always)]
    pub const fn is_contested(self) -> bool {
        self.0 & Self::MARK != 0
    }

    /// Of a previous owner: a flow that is not remembered was sent to it since user space looked
    /// last.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.0 & Self::MARK != 0
    }
}
