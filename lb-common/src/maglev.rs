//! Slot arithmetic: from a hash to the cell of a Maglev table, and the word that names the tables.

use crate::BackendId;
use crate::maps::POOL_SLOTS;

/// Which tables a VIP uses: one word, so that one store switches them.
///
/// Bits 0 to 22 what a slot's offset in bytes is masked with, which is twice the table's size less two (0: no table); 23 to 38
/// base of the current table in units of [`Descriptor::UNIT`] slots, 39 to 54 base of the previous owners' table of the
/// same size, 55 whether there is one, 56 to 63 a generation. A base is a multiple of the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// No table: no backend.
    pub const NONE: Self = Self(0);
    /// Slots per unit of a base.
    pub const UNIT: u32 = 64;
    const PREVIOUS: u64 = 1 << 55;
    /// Offsets in bytes within the pool.
    const OFFSETS: u64 = 2 * (POOL_SLOTS as u64 - 1);
    /// Those of bases.
    const BASES: u64 = 2 * (POOL_SLOTS - Self::UNIT) as u64;
    /// The largest sum of both, which no descriptor of ours has: its table would lie outside the pool.
    pub const FARTHEST: u64 = Self::OFFSETS + Self::BASES;

    /// Descriptor of a settled table of `1 << bits` slots starting at slot `base`; `bits` 0: none.
    pub const fn settled(base: u32, bits: u32, generation: u8) -> Self {
        let mask = ((1u64 << (bits & 31)) - 1) << 1;
        Self(mask & Self::OFFSETS | Self::unit(base) << 23 | (generation as u64) << 56)
    }

    /// The same while some of its slots are contested: their previous owners stand in a table of
    /// the same size at `previous`.
    pub const fn contested(self, previous: u32) -> Self {
        Self(self.0 & !(0xffff << 39) | Self::unit(previous) << 39 | Self::PREVIOUS)
    }

    const fn unit(base: u32) -> u64 {
        (base / Self::UNIT) as u64 & 0xffff
    }

    /// Whether there is no table.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 & Self::OFFSETS == 0
    }

    /// First slot of the current table.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        (self.0 >> 23) as u16 as u32 * Self::UNIT
    }

    /// log2 of the size of both tables.
    pub const fn bits(self) -> u32 {
        (self.0 & Self::OFFSETS).count_ones()
    }

    /// First slot of the previous owners' table, if slots are contested.
    #[inline(always)]
    pub const fn previous(self) -> Option<u32> {
        if self.0 & Self::PREVIOUS == 0 {
            return None;
        }
        Some((self.0 >> 39) as u16 as u32 * Self::UNIT)
    }

    /// Count of switches so far, modulo 2^8.
    pub const fn generation(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Slot of a hash within the table.
    #[inline(always)]
    pub const fn slot(self, hash: u64) -> u32 {
        ((hash & (self.0 & Self::OFFSETS) >> 1) & u32::MAX as u64) as u32
    }

    /// Index into the pool of the slot that a hash falls into.
    #[inline(always)]
    pub const fn pool_index(self, hash: u64) -> u32 {
        self.base() + self.slot(hash)
    }

    /// The same in bytes: what the fast path adds to the pool's address. At most [`Descriptor::FARTHEST`], whatever the
    /// word says; a sum, because of two numbers joined by `|` the verifier knows no bound before Linux 6.10.
    #[inline(always)]
    pub const fn pool_offset(self, hash: u64) -> u64 {
        (hash << 1 & Self::OFFSETS & self.0) + (self.0 >> 16 & Self::BASES)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_descriptor_says_what_it_was_made_of(
            bits in 6u32..17, base in any::<u32>(), previous in any::<u32>(), generation in any::<u8>(), hash in any::<u64>(),
        ) {
            let aligned = |slot: u32| slot & (POOL_SLOTS - 1) & !((1 << bits) - 1);
            let (base, previous) = (aligned(base), aligned(previous));

            let settled = Descriptor::settled(base, bits, generation);
            let contested = settled.contested(previous);

            prop_assert_eq!((settled.previous(), contested.previous()), (None, Some(previous)));
            for descriptor in [settled, contested] {
                prop_assert_eq!((descriptor.base(), descriptor.bits()), (base, bits));
                prop_assert_eq!((descriptor.generation(), descriptor.is_none()), (generation, false));
                prop_assert_eq!(descriptor.slot(hash), hash as u32 & ((1 << bits) - 1));
                prop_assert_eq!(descriptor.pool_index(hash), base + descriptor.slot(hash));
                prop_assert_eq!(descriptor.pool_offset(hash), 2 * u64::from(descriptor.pool_index(hash)));
            }
        }
    }

    #[test]
    fn no_table_is_none_whatever_its_generation() {
        assert!(Descriptor::NONE.is_none() && Descriptor::settled(64, 0, 3).is_none());
    }
}
