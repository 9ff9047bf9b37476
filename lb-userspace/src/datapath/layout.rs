//! Lays the address and VIP tables out in buckets, as lb-common reads them.

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

/// Lays addresses out; `None` where they do not fit the largest table.
pub fn addrs(entries: &[(Addr, AddrEntry)]) -> Option<Buckets> {
    grow(entries.len(), maps::ADDR_LINES, |bits, lines| {
        entries.iter().all(|(addr, entry)| place_addr(lines, addr.bucket(bits), *addr, *entry))
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

/// Lays VIPs out; `None` where they do not fit the largest table.
pub fn vips(entries: &[VipEntry]) -> Option<Buckets> {
    grow(entries.len(), maps::VIP_LINES, |bits, lines| {
        entries.iter().all(|entry| place_vip(lines, VipEntry::bucket(entry.0 >> 31, bits), *entry))
    })
}

/// Tries ever larger tables, beginning with four lines per entry: then nearly every entry stands
/// alone and first in its line.
fn grow(entries: usize, most: u32, place: impl Fn(u32, &mut [[u64; LINE]]) -> bool) -> Option<Buckets> {
    let most = most.trailing_zeros();
    let first = entries.saturating_mul(4).next_power_of_two().trailing_zeros().clamp(3, most);
    (first..=most).find_map(|bits| {
        let mut lines = vec![[0; LINE]; 1 << bits];
        place(bits, &mut lines).then_some(Buckets { bits, lines })
    })
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
            let (addr_table, vip_table) = (addrs(&addresses).unwrap(), vips(&entries).unwrap());
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
}
