//! `allowlist-source-range`, `denylist-source-range`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::l4::Prefix;

/// Who may enter; anybody else is answered 403.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// These may not, whatever else is said.
    pub denied: AddressSet,
    /// Only these may; `None`: everybody else.
    pub allowed: Option<AddressSet>,
}

/// A set of addresses, as sorted ranges that do not touch; asking costs a binary search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSet {
    /// The address is in it. An IPv4 address written as IPv6 is the IPv4 address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr.to_canonical() {
            IpAddr::V4(addr) => is_within(&self.v4, addr.to_bits()),
            IpAddr::V6(addr) => is_within(&self.v6, addr.to_bits()),
        }
    }

    /// No address is.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<Prefix> for AddressSet {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            let (addr, bits) = (prefix.addr(), prefix.bits());
            // `::ffff:10.0.0.0/104` is 10.0.0.0/8.
            match (addr.to_canonical(), addr) {
                (IpAddr::V4(first), IpAddr::V6(_)) if bits >= 96 => set.add_v4(first, bits - 96),
                (_, IpAddr::V4(first)) => set.add_v4(first, bits),
                (_, IpAddr::V6(first)) => {
                    let first = first.to_bits();
                    let hosts = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
                    set.v6.push((first, first | hosts));
                }
            }
        }
        Self { v4: merged(set.v4, 1), v6: merged(set.v6, 1) }
    }
}

impl AddressSet {
    fn add_v4(&mut self, first: Ipv4Addr, bits: u8) {
        let first = first.to_bits();
        let hosts = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
        self.v4.push((first, first | hosts));
    }
}

fn is_within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= value);
    behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| value <= *last)
}

/// Sorted; ranges that overlap or follow each other are one.
fn merged<T: Ord + Copy + std::ops::Sub<Output = T>>(mut ranges: Vec<(T, T)>, one: T) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end || first - *end == one => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged.shrink_to_fit();
    merged
}

impl fmt::Display for AddressSet {
    /// Ranges from the first to the last address, IPv4 before IPv6.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.iter().map(|(first, last)| {
            (IpAddr::V4(Ipv4Addr::from_bits(*first)), IpAddr::V4(Ipv4Addr::from_bits(*last)))
        });
        let v6 = self.v6.iter().map(|(first, last)| {
            (IpAddr::V6(Ipv6Addr::from_bits(*first)), IpAddr::V6(Ipv6Addr::from_bits(*last)))
        });
        for (number, (first, last)) in v4.chain(v6).enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first} to {last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &[(&str, u8)]) -> AddressSet {
        prefixes.iter().filter_map(|(addr, bits)| Prefix::new(addr.parse().unwrap(), *bits)).collect()
    }

    #[test]
    fn a_set_holds_the_addresses_of_its_ranges_and_no_others() {
        let set = set(&[("10.0.0.0", 8), ("192.0.2.7", 32), ("2001:db8::", 32), ("::ffff:172.16.0.0", 108)]);
        let cases = [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("9.255.255.255", false),
            ("11.0.0.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.1.2.3", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ];
        for (addr, expected) in cases {
            assert_eq!(set.contains(addr.parse().unwrap()), expected, "{addr}");
        }
        assert!(!AddressSet::default().contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let all = set(&[("0.0.0.0", 1), ("128.0.0.0", 1), ("10.0.0.0", 8), ("::", 0)]);

        assert_eq!(
            all.to_string(),
            "0.0.0.0 to 255.255.255.255, :: to ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        );
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert_eq!(set(&[("10.0.0.0", 9), ("10.128.0.0", 9)]), set(&[("10.0.0.0", 8)]));
    }
}
