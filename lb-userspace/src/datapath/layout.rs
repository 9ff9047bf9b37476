//! Lays the address and VIP tables out in buckets, as lb-common reads them.

use std::collections::BTreeMap;

use lb_common::maps::{self, LINE};
use lb_common::{Addr, AddrEntry, VipEntry};

/// Lines of a table and their number as log2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// log2 of the number of lines.
    pub bits: u32,
    /// The lines.
    pub lines: Vec<[u64; LINE]>,
}

/// A table, and which entries found no room in it, by their place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// The table.
    pub buckets: Buckets,
    /// Never any but in the largest table.
    pub left_out: Vec<usize>,
}

/// Lays addresses out. Where not all of them fit those come first that are in force, then the host's own.
pub fn addrs(entries: &[(Addr, AddrEntry)], in_force: impl Fn(&Addr) -> bool) -> Laid {
    let rank = |(addr, entry): &(Addr, AddrEntry)| (!in_force(addr), !entry.is_node());
    lay_out(entries, maps::ADDR_LINES, rank, |bits, lines, (addr, entry)| {
        place_addr(lines, addr.bucket(bits), *addr, *entry)
    })
}

/// The addresses of a line.
pub fn addrs_of(
    [a0, a1, b0, b1, c0, c1, first, last]: [u64; LINE],
) -> impl Iterator<Item = (Addr, AddrEntry)> {
    let entries = [
        (Addr { hi: a0, lo: a1 }, AddrEntry(first as u32)),
        (Addr { hi: b0, lo: b1 }, AddrEntry((first >> 32) as u32)),
        (Addr { hi: c0, lo: c1 }, AddrEntry(last as u32)),
    ];
    entries.into_iter().filter(|(_, entry)| !entry.is_none())
}

/// Lays VIPs out. Which of them share a bucket anybody can compute, so where not all fit nobody must be able to push others
/// out: those come first that are in force, then of each address one after the other.
pub fn vips(entries: &[VipEntry], in_force: impl Fn(VipEntry) -> bool) -> Laid {
    let most = maps::VIP_LINES.trailing_zeros();
    let mut of_address = BTreeMap::new();
    let rank = |entry: &VipEntry| {
        let (address, ..) = entry.place();
        let nth = of_address.entry((VipEntry::bucket(entry.key_of(), most) / 2, address)).or_insert(0u32);
        *nth += 1;
        (!in_force(*entry), *nth)
    };
    lay_out(entries, maps::VIP_LINES, rank, |bits, lines, entry| {
        place_vip(lines, VipEntry::bucket(entry.key_of(), bits), *entry)
    })
}

/// Tries ever larger tables, beginning with four lines per entry: then nearly every entry stands
/// alone and first in its line. `rank`: who comes first, the lowest one, where the largest table has no room for all.
fn lay_out<T, R: Ord>(
    entries: &[T],
    most: u32,
    rank: impl FnMut(&T) -> R,
    place: impl Fn(u32, &mut [[u64; LINE]], &T) -> bool,
) -> Laid {
    let most = most.trailing_zeros();
    let first = entries.len().saturating_mul(4).next_power_of_two().trailing_zeros().clamp(3, most);
    for bits in first..=most {
        let mut lines = vec![[0; LINE]; 1 << bits];
        if entries.iter().all(|entry| place(bits, &mut lines, entry)) {
            return Laid { buckets: Buckets { bits, lines }, left_out: Vec::new() };
        }
    }
    let ranks: Vec<R> = entries.iter().map(rank).collect();
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|one, other| ranks.get(*one).cmp(&ranks.get(*other)));
    let mut lines = vec![[0; LINE]; 1 << most];
    order.retain(|index| !entries.get(*index).is_some_and(|entry| place(most, &mut lines, entry)));
    Laid { buckets: Buckets { bits: most, lines }, left_out: order }
}

fn place_addr(lines: &mut [[u64; LINE]], bucket: u32, addr: Addr, entry: AddrEntry) -> bool {
    if put_addr(lines, bucket, addr, entry) {
        return true;
    }
    if let Some(line) = lines.get_mut(bucket as usize) {
        line[7] |= AddrEntry::OVERFLOW;
    }
    put_addr(lines, bucket ^ 1, addr, entry)
}

fn put_addr(lines: &mut [[u64; LINE]], bucket: u32, addr: Addr, entry: AddrEntry) -> bool {
    let Some(line) = lines.get_mut(bucket as usize) else { return false };
    let value = u64::from(entry.0);
    let (way, word, shift) = if line[6] & 0xffff_ffff == 0 {
        (0, 6, 0)
    } else if line[6] >> 32 == 0 {
        (2, 6, 32)
    } else if line[7] & 0xffff_ffff == 0 {
        (4, 7, 0)
    } else {
        return false;
    };
    line[way] = addr.hi;
    line[way + 1] = addr.lo;
    line[word] |= value << shift;
    true
}

fn place_vip(lines: &mut [[u64; LINE]], bucket: u32, entry: VipEntry) -> bool {
    if put_vip(lines, bucket, entry) {
        return true;
    }
    if let Some(line) = lines.get_mut(bucket as usize) {
        line[VipEntry::WAYS - 1] |= VipEntry::OVERFLOW;
    }
    put_vip(lines, bucket ^ 1, entry)
}

fn put_vip(lines: &mut [[u64; LINE]], bucket: u32, entry: VipEntry) -> bool {
    let free = lines.get_mut(bucket as usize).and_then(|line| line.iter_mut().find(|word| **word == 0));
    free.map(|word| *word = entry.0).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::memory::Tables;
    use lb_common::{Epoch, TCP, UDP};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn ip(index: u32) -> IpAddr {
        if index.is_multiple_of(2) {
            Ipv4Addr::from(0x0a00_0000 + index).into()
        } else {
            Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(index)).into()
        }
    }

    #[test]
    fn finds_every_entry_of_a_large_table_and_nothing_else() {
        for count in [1u32, 3, 100, 4096, 16_000] {
            let addresses: Vec<(Addr, AddrEntry)> =
                (0..count).map(|index| (Addr::from(ip(index)), AddrEntry::vip(index as u16 + 1))).collect();
            let entries: Vec<VipEntry> = (0..count)
                .map(|index| {
                    let key = VipEntry::key(AddrEntry::vip(index as u16 + 1), 443, TCP);
                    VipEntry::balanced(key, index as u16)
                })
                .collect();
            let laid = (addrs(&addresses, |_| false), vips(&entries, |_| false));
            let (addr_table, vip_table) = (laid.0.buckets, laid.1.buckets);
            assert_eq!((laid.0.left_out, laid.1.left_out), (vec![], vec![]), "{count}");
            let tables = Tables::owned();
            let epoch = Epoch::new(1, addr_table.bits, vip_table.bits, 1);

            tables.store_lookup(1, &addr_table.lines, &vip_table.lines);

            for index in 0..count {
                let found = AddrEntry::find(&tables.addrs, epoch, ip(index).into());
                assert_eq!(found, AddrEntry::vip(index as u16 + 1), "address {index} of {count}");
                let vip = VipEntry::find(&tables.vips, epoch, VipEntry::key(found, 443, TCP));
                assert_eq!(vip.record(), index, "vip {index} of {count}");
                for (port, proto) in [(443, UDP), (80, TCP)] {
                    let other = VipEntry::find(&tables.vips, epoch, VipEntry::key(found, port, proto));
                    assert!(other.is_none(), "vip {index} of {count}");
                }
            }
            for index in count..count + 1000 {
                let found = AddrEntry::find(&tables.addrs, epoch, ip(index).into());
                assert!(found.is_none(), "address {index} of {count}");
            }
        }
    }

    /// Ports of one address, so many that one is left out of their two buckets.
    fn crowd(address: u16) -> Vec<VipEntry> {
        let mut pairs: BTreeMap<u32, Vec<VipEntry>> = BTreeMap::new();
        for (port, proto) in (1..=u16::MAX).flat_map(|port| [(port, TCP), (port, UDP)]) {
            let entry = VipEntry::balanced(VipEntry::key(AddrEntry::vip(address), port, proto), port);
            let pair = VipEntry::bucket(entry.key_of(), maps::VIP_LINES.trailing_zeros()) / 2;
            pairs.entry(pair).or_default().push(entry);
        }
        let mut crowd = pairs.into_values().find(|entries| entries.len() > 16).expect("16 are the average");
        crowd.truncate(17);
        crowd
    }

    #[test]
    fn who_crowds_a_bucket_is_left_out_and_nobody_else() {
        let crowd = crowd(9);
        let pair = VipEntry::bucket(crowd[0].key_of(), maps::VIP_LINES.trailing_zeros()) / 2;
        let ports =
            (1..=u16::MAX).map(|port| VipEntry::balanced(VipEntry::key(AddrEntry::vip(7), port, TCP), port));
        let beside = ports
            .filter(|entry| VipEntry::bucket(entry.key_of(), maps::VIP_LINES.trailing_zeros()) / 2 == pair);
        let elsewhere =
            (1..100).map(|id| VipEntry::balanced(VipEntry::key(AddrEntry::vip(id + 100), 443, TCP), id));
        let others: Vec<VipEntry> = beside.take(1).chain(elsewhere).collect();
        let all = [crowd.clone(), others.clone()].concat();

        let left_out = |in_force: &dyn Fn(VipEntry) -> bool| vips(&all, in_force).left_out;

        assert_eq!(
            left_out(&|_| false),
            [15, 16],
            "the last of the crowd, for one that has its place there, too"
        );
        assert_eq!(left_out(&|entry| entry != others[0]), [16, 17], "what is in force stays");
        assert_eq!(vips(&others, |_| false).left_out, [0; 0]);
    }

    #[test]
    fn addresses_that_crowd_a_bucket_cost_one_of_them() {
        let bits = maps::ADDR_LINES.trailing_zeros();
        let mut pairs: BTreeMap<u32, Vec<(Addr, AddrEntry)>> = BTreeMap::new();
        let all =
            (0..u16::MAX).map(|index| (Addr::from(ip(2 * u32::from(index) + 1)), AddrEntry::vip(index + 1)));
        for (addr, entry) in all {
            pairs.entry(addr.bucket(bits) / 2).or_default().push((addr, entry));
        }
        let mut crowd = pairs.into_values().find(|entries| entries.len() > 6).expect("there is one");
        crowd.truncate(7);
        let (last, _) = crowd[6];

        assert_eq!(addrs(&crowd, |_| false).left_out, [6]);
        assert_eq!(addrs(&crowd, |addr| *addr == last).left_out, [5]);
        crowd[6].1 = AddrEntry::node(7);
        assert_eq!(addrs(&crowd, |_| false).left_out, [5], "the host's own before VIPs");
    }
}
