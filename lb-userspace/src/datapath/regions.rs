//! Hands out regions of the slot pool: power-of-two sizes, aligned to themselves.

use std::collections::BTreeSet;

/// Free regions by size (log2) and base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions {
    free: BTreeSet<(u32, u32)>,
}

impl Regions {
    /// One free region of `slots` (a power of two).
    pub fn new(slots: u32) -> Self {
        Self { free: BTreeSet::from([(slots.trailing_zeros(), 0)]) }
    }

    /// Base of a region of `size` (a power of two), cut from the smallest one that holds it.
    pub fn take(&mut self, size: u32) -> Option<u32> {
        let bits = size.trailing_zeros();
        let (mut have, base) = *self.free.range((bits, 0)..).next()?;
        self.free.remove(&(have, base));
        while have > bits {
            have -= 1;
            self.free.insert((have, base + (1 << have)));
        }
        Some(base)
    }

    /// Takes one region, which somebody uses already; `false` where it is not free or no region.
    pub fn reserve(&mut self, base: u32, size: u32) -> bool {
        if !size.is_power_of_two() || !base.is_multiple_of(size) {
            return false;
        }
        let bits = size.trailing_zeros();
        let around = (bits..32).map(|have| (have, base & !(1u32 << have).wrapping_sub(1)));
        let Some((mut have, from)) = around.into_iter().find(|region| self.free.contains(region)) else {
            return false;
        };
        self.free.remove(&(have, from));
        while have > bits {
            have -= 1;
            // The half that does not hold it stays free.
            let other = (base & !(1u32 << have).wrapping_sub(1)) ^ (1 << have);
            self.free.insert((have, other));
        }
        true
    }

    /// Takes a region back and joins it with its free neighbours.
    pub fn give_back(&mut self, mut base: u32, size: u32) {
        let mut bits = size.trailing_zeros();
        while self.free.remove(&(bits, base ^ (1 << bits))) {
            base &= !(1 << bits);
            bits += 1;
        }
        self.free.insert((bits, base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn regions_never_overlap_and_all_come_back(
            steps in proptest::collection::vec((6u32..12, any::<bool>()), 1..200)
        ) {
            let mut regions = Regions::new(1 << 14);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (bits, give) in steps {
                if give && !taken.is_empty() {
                    let (base, size) = taken.remove(bits as usize % taken.len());
                    regions.give_back(base, size);
                } else if let Some(base) = regions.take(1 << bits) {
                    let new = (base, 1u32 << bits);
                    prop_assert!(base % new.1 == 0);
                    prop_assert!(taken.iter().all(|old| old.0 + old.1 <= base || base + new.1 <= old.0));
                    taken.push(new);
                }
            }
            for (base, size) in taken {
                regions.give_back(base, size);
            }
            prop_assert_eq!(regions, Regions::new(1 << 14));
        }

        #[test]
        fn what_is_reserved_again_leaves_the_same_regions_free(
            steps in proptest::collection::vec((6u32..12, any::<bool>()), 1..200)
        ) {
            let mut regions = Regions::new(1 << 14);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (bits, give) in steps {
                if give && !taken.is_empty() {
                    let (base, size) = taken.remove(bits as usize % taken.len());
                    regions.give_back(base, size);
                } else {
                    taken.extend(regions.take(1 << bits).map(|base| (base, 1u32 << bits)));
                }
            }

            let mut again = Regions::new(1 << 14);
            for (base, size) in &taken {
                prop_assert!(again.reserve(*base, *size));
            }

            prop_assert_eq!(&again, &regions);
            for (base, size) in taken {
                prop_assert!(!again.reserve(base, size), "it is taken");
            }
        }
    }
}
