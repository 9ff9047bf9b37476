//! Fills a Maglev table: every backend walks its own permutation of the slots and takes the next
//! free one in turn, as often as its weight says.
//!
//! Deterministic in (backends, weights) alone: every balancer computes the same table. The size is
//! a power of two, so a slot is a mask away; any odd skip then visits every slot.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::{Addr, BackendId, Flow, HashKey, wire_port};

/// Smallest and largest log2 of a table's size.
pub const BITS: std::ops::RangeInclusive<u32> = 10..=16;

/// Table size for that many backends: at least a hundred slots each keep the error of the weights
/// below one per cent; log2.
pub fn bits_for(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(100).clamp(1 << BITS.start(), 1 << BITS.end());
    wanted.next_power_of_two().trailing_zeros()
}

/// Which backend owns each of `1 << bits` slots. Backends of weight 0 own none; empty where no
/// backend has a weight.
pub fn fill(bits: u32, backends: &BTreeMap<SocketAddr, (BackendId, u16)>) -> Vec<BackendId> {
    struct Walker {
        id: BackendId,
        weight: u64,
        next: u32,
        skip: u32,
        taken: u64,
    }
    let mask = (1u32 << bits) - 1;
    let mut walkers: Vec<Walker> = backends
        .iter()
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(addr, (id, weight))| {
            let place = place(*addr);
            Walker {
                id: *id,
                weight: u64::from(*weight),
                next: place as u32 & mask,
                skip: ((place >> 32) as u32 | 1) & mask,
                taken: 0,
            }
        })
        .collect();
    let Some(heaviest) = walkers.iter().map(|walker| walker.weight).max() else { return Vec::new() };

    let mut slots = vec![BackendId(0); 1 << bits];
    let mut free = slots.len();
    for round in 1u64.. {
        for walker in &mut walkers {
            // The heaviest takes a slot every round, the others in proportion.
            if walker.taken * heaviest >= round * walker.weight {
                continue;
            }
            walker.taken += 1;
            loop {
                let slot = &mut slots[walker.next as usize];
                walker.next = walker.next.wrapping_add(walker.skip) & mask;
                if *slot == BackendId(0) {
                    *slot = walker.id;
                    break;
                }
            }
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
    slots
}

/// Start and skip of a backend's permutation. Its key is public: the table is no secret, which
/// flow falls into which slot is.
fn place(addr: SocketAddr) -> u64 {
    let addr_port = Flow {
        src: Addr::from(addr.ip()),
        dst: Addr::default(),
        ports: Flow::ports(wire_port(addr.port()), 0),
        proto: 0,
    };
    addr_port.hash_v6(HashKey::expand(*b"penstock maglev!"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(weights: &[u16]) -> BTreeMap<SocketAddr, (BackendId, u16)> {
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| {
                let addr = SocketAddr::from(([10, 0, (index >> 8) as u8, index as u8], 8080));
                (addr, (BackendId(index as u16 + 1), *weight))
            })
            .collect()
    }

    fn share(slots: &[BackendId], id: u16) -> f64 {
        slots.iter().filter(|slot| slot.0 == id).count() as f64 / slots.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_backend_gets_its_share_within_two_per_cent(
            weights in proptest::collection::vec(1u16..20, 1..40)
        ) {
            let backends = backends(&weights);

            let slots = fill(bits_for(backends.len()), &backends);

            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (index, weight) in weights.iter().enumerate() {
                let wanted = f64::from(*weight) / total;
                let got = share(&slots, index as u16 + 1);
                prop_assert!((got - wanted).abs() < 0.02, "wanted {wanted}, got {got}");
            }
        }

        #[test]
        fn removing_one_backend_moves_few_slots_of_the_others(
            count in 3usize..40, gone in 0usize..40
        ) {
            let gone = gone % count;
            let before = backends(&vec![1; count]);
            let mut after = before.clone();
            after.retain(|_, (id, _)| usize::from(id.0) != gone + 1);

            // The same size, as within one step of `bits_for`.
            let (old, new) = (fill(13, &before), fill(13, &after));

            let moved = old
                .iter()
                .zip(&new)
                .filter(|(old, new)| usize::from(old.0) != gone + 1 && old != new)
                .count();
            prop_assert!(moved < old.len() / 12, "{moved} of {} moved needlessly", old.len());
        }
    }

    #[test]
    fn weight_zero_takes_no_slot() {
        let slots = fill(10, &backends(&[1, 0, 1]));

        assert_eq!(share(&slots, 2), 0.0);
        assert!(fill(10, &backends(&[0, 0])).is_empty());
    }

    #[test]
    fn the_table_grows_with_the_backends() {
        assert_eq!([0, 1, 10, 11, 700, 10_000].map(bits_for), [10, 10, 10, 11, 16, 16]);
    }
}
