//! Leases: what a translated flow's packets need, for a few seconds, without a look at the flow.
//!
//! A flow of `nat` or `local` mode is remembered in kernel hash maps ([`crate::nat`]), which are the
//! truth: they hand out ports, and expire. A packet of a flow that was looked up there a moment ago
//! finds backend and port in a flat table instead, four to a cache line. A lease ends with the
//! stamp of its time: the flow's next packet asks the truth, which notes that the flow lives. That is
//! far more often than flows expire, and who removes a flow clears its lease. Losing one costs a
//! lookup.
//!
//! Two CPUs may write one place at once, and user space clears it meanwhile. So the first word of a
//! place is hash and lease combined: halves of two writes belong to no flow.

use crate::BackendId;

/// Leases at most, two words each (4 MiB): twice as many as translated flows.
pub const LEASES: u32 = 1 << 18;
/// Places of a bucket.
pub const WAYS: u32 = 4;

/// What holds the leases.
pub trait LeaseWords {
    /// Word `word` (0 to 7) of the bucket that begins at place `first`.
    fn lease_word(&self, first: u32, word: u32) -> u64;
    /// Writes it.
    fn set_lease_word(&self, first: u32, word: u32, value: u64);
    /// See [`crate::flows::FlowWords::sign`].
    #[inline(always)]
    fn sign(word: u64) -> u64 {
        (word as i64 >> 63) as u64
    }
}

/// Backend in bits 0 to 15, our port towards it in bits 16 to 31, then what has to be the same still:
/// the time's stamp in bits 32 to 39, end of the sender's MAC in bits 40 to 63. 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Lease(pub u64);

impl Lease {
    /// A lease. `stamp`: see [`stamp`]; `sender`: the last three bytes of the MAC that the client's packets come from, and the
    /// interface (exclusive or), because answers go back there.
    #[inline(always)]
    pub const fn new(backend: BackendId, wire_port: u16, stamp: u8, sender: u32) -> Self {
        let terms = stamp as u64 | (sender as u64 & 0xff_ffff) << 8;
        Self(backend.0 as u64 | (wire_port as u64) << 16 | terms << 32)
    }

    /// Where the flow's packets go.
    #[inline(always)]
    pub const fn backend(self) -> BackendId {
        BackendId(self.0 as u16)
    }

    /// Source port towards the backend, in wire order.
    #[inline(always)]
    pub const fn wire_port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether it holds at this time for a packet from this sender.
    #[inline(always)]
    pub const fn holds(self, stamp: u8, sender: u32) -> bool {
        let Self(terms) = Self::new(BackendId(0), 0, stamp, sender);
        self.backend().0 != 0 && (self.0 ^ terms) >> 32 == 0
    }
}

/// Stamp of a time in the kernel's ticks: another one every second to ten, as the kernel was built.
#[inline(always)]
pub const fn stamp(ticks: u64) -> u8 {
    (ticks >> 10) as u8
}

#[inline(always)]
fn bucket(hash: u64) -> u32 {
    ((hash >> 32) as u32 & (LEASES / WAYS - 1)) * WAYS
}

/// The lease of the flow with this hash, without a branch: which place it has cannot be predicted.
#[inline(always)]
pub fn find<T: LeaseWords>(table: &T, hash: u64) -> Lease {
    let first = bucket(hash);
    let mut found = 0;
    for way in 0..WAYS {
        let (check, lease) = (table.lease_word(first, 2 * way), table.lease_word(first, 2 * way + 1));
        let differs = check ^ lease ^ hash;
        let it = T::sign(!(differs | differs.wrapping_neg()));
        found ^= it & (lease ^ found);
    }
    Lease(found)
}

/// Writes the lease of a flow, if need be in the place of one that does not hold, or of any other.
#[inline(always)]
pub fn grant<T: LeaseWords>(table: &T, hash: u64, lease: Lease) {
    let first = bucket(hash);
    let mut place = hash as u32 & (WAYS - 1);
    for way in 0..WAYS {
        let held = table.lease_word(first, 2 * way + 1);
        if table.lease_word(first, 2 * way) == hash ^ held {
            place = way;
            break;
        }
        // Bits 32 to 39: another stamp.
        if (held ^ lease.0) >> 32 & 0xff != 0 {
            place = way;
        }
    }
    table.set_lease_word(first, 2 * place, hash ^ lease.0);
    table.set_lease_word(first, 2 * place + 1, lease.0);
}

/// Ends the lease of a flow.
pub fn end<T: LeaseWords>(table: &T, hash: u64) {
    let first = bucket(hash);
    for way in 0..WAYS {
        if table.lease_word(first, 2 * way) == hash ^ table.lease_word(first, 2 * way + 1) {
            table.set_lease_word(first, 2 * way + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::vec::Vec;

    struct Table(RefCell<Vec<u64>>);

    impl LeaseWords for Table {
        fn lease_word(&self, first: u32, word: u32) -> u64 {
            self.0.borrow()[(first * 2 + word) as usize]
        }

        fn set_lease_word(&self, first: u32, word: u32, value: u64) {
            self.0.borrow_mut()[(first * 2 + word) as usize] = value;
        }
    }

    fn table() -> Table {
        Table(RefCell::new(std::vec![0; 2 * LEASES as usize]))
    }

    fn lease(number: u16) -> Lease {
        Lease::new(BackendId(number), 1000 + number, 7, 0xab_cdef)
    }

    #[test]
    fn a_lease_is_found_by_its_hash_alone_until_it_ends() {
        let table = table();
        let hashes: Vec<u64> = (1..5u64).map(|number| number << 60 | 0x1234_0000_0000 | number).collect();
        for (number, hash) in (1..).zip(&hashes) {
            grant(&table, *hash, lease(number));
        }

        for (number, hash) in (1..).zip(&hashes) {
            assert_eq!(find(&table, *hash), lease(number));
        }
        assert_eq!(find(&table, hashes[0] ^ 1 << 20), Lease(0));
        end(&table, hashes[1]);
        let left: Vec<u16> = hashes.iter().map(|hash| find(&table, *hash).backend().0).collect();
        assert_eq!(left, [1, 0, 3, 4]);
    }

    #[test]
    fn another_lease_of_a_flow_takes_the_place_of_its_first() {
        let table = table();
        grant(&table, 5, lease(1));
        grant(&table, 5, lease(2));
        end(&table, 5);

        assert_eq!(find(&table, 5), Lease(0));
    }

    #[test]
    fn a_lease_holds_for_its_time_and_its_sender() {
        let lease = lease(3);

        assert_eq!((lease.backend(), lease.wire_port()), (BackendId(3), 1003));
        assert!(lease.holds(7, 0xab_cdef));
        assert!(!lease.holds(8, 0xab_cdef));
        assert!(!lease.holds(7, 0xab_cdee));
        assert!(!Lease(0).holds(0, 0));
    }

    #[test]
    fn halves_of_two_leases_belong_to_no_flow() {
        let table = table();
        grant(&table, 9, lease(1));

        let way = (0..WAYS).find(|way| table.lease_word(0, 2 * way + 1) == lease(1).0).expect("granted");
        table.set_lease_word(0, 2 * way + 1, lease(2).0);

        assert_eq!(find(&table, 9), Lease(0));
    }
}
