//! Consistent hashing: an endpoint that comes or goes moves only the keys that are its own.

use std::net::SocketAddr;

/// Places of one endpoint on the ring: enough for shares within about a tenth of each other.
const PLACES: u64 = 160;

/// Places of all endpoints, in order.
#[derive(Debug)]
pub(in crate::l7) struct Ring(Vec<(u64, usize)>);

impl Ring {
    /// The same for the same addresses and weights, wherever it is made. The heaviest have all their
    /// places, the others the first few of theirs, so the lighter one is, the rougher its part; one without a weight has 1.
    pub(in crate::l7) fn new(endpoints: &[SocketAddr], weights: &[u32]) -> Self {
        let weight = |index: usize| weights.get(index).map_or(1, |weight| u64::from(*weight).max(1));
        let heaviest = (0..endpoints.len()).map(weight).max().unwrap_or(1);
        let mut places = Vec::with_capacity(endpoints.len() * PLACES as usize);
        for (index, addr) in endpoints.iter().enumerate() {
            let name = hash(addr.to_string().as_bytes());
            let of_it = (PLACES * weight(index) / heaviest).max(1);
            places.extend((0..of_it).map(|place| (mix(name ^ mix(place + 1)), index)));
        }
        places.sort_unstable();
        Self(places)
    }

    /// Endpoints in the order in which a key asks them, each as often as it has places.
    pub(in crate::l7) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let at = self.0.partition_point(|(place, _)| *place < key);
        let (before, after) = self.0.split_at_checked(at).unwrap_or_default();
        after.iter().chain(before).map(|(_, index)| *index)
    }
}

/// 64 well mixed bits (FNV-1a and a finaliser); stable, not secret.
pub(in crate::l7) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Vec<SocketAddr> {
        numbers.into_iter().map(|n| SocketAddr::from(([10, 0, 0, n], 8080))).collect()
    }

    fn owner(ring: &Ring, all: &[SocketAddr], key: u64) -> Option<SocketAddr> {
        ring.from(key).next().and_then(|index| all.get(index).copied())
    }

    proptest! {
        #[test]
        fn only_the_keys_of_the_one_that_leaves_move(
            numbers in prop::collection::btree_set(any::<u8>(), 2..20),
            keys in prop::collection::vec(any::<u64>(), 200),
            gone in any::<prop::sample::Index>(),
        ) {
            let all = endpoints(numbers);
            let gone = all[gone.index(all.len())];
            let left: Vec<_> = all.iter().copied().filter(|addr| *addr != gone).collect();
            let (before, after) = (Ring::new(&all, &[]), Ring::new(&left, &[]));
            for key in keys {
                let was = owner(&before, &all, key).expect("an owner");
                let is = owner(&after, &left, key).expect("an owner");
                prop_assert!(was == is || was == gone);
                // And it goes to whom it would have asked next.
                let next = before.from(key).map(|index| all[index]).find(|addr| *addr != gone);
                prop_assert_eq!(Some(is), next);
            }
        }
    }

    #[test]
    fn shares_are_about_those_of_the_weights() {
        let all = endpoints(0..4);
        let ring = Ring::new(&all, &[4, 2, 1, 1]);
        let mut counts = [0u32; 4];

        for key in 0..80_000u64 {
            counts[ring.from(mix(key)).next().expect("an owner")] += 1;
        }

        for (count, expected) in counts.iter().zip([40_000_f64, 20_000.0, 10_000.0, 10_000.0]) {
            assert!((f64::from(*count) / expected - 1.0).abs() < 0.4, "{counts:?}");
        }
    }

    #[test]
    fn shares_are_about_even() {
        let all = endpoints(0..10);
        let ring = Ring::new(&all, &[]);
        let mut counts = [0u32; 10];

        for key in 0..100_000u64 {
            counts[ring.from(mix(key)).next().expect("an owner")] += 1;
        }

        assert!(counts.iter().all(|count| (7_500..12_500).contains(count)), "{counts:?}");
    }
}
