//! Who holds an address: rendezvous hashing, so every member comes to the same without asking, a member that goes
//! moves its own addresses alone, and they spread over all that are left.

use std::net::IpAddr;

/// What a member bids for an address, and its name. The highest bid has it.
pub(super) type Bid<'a> = (u64, &'a str);

/// The member's.
pub(super) fn bid(vip: IpAddr, member: &str) -> Bid<'_> {
    (weight(vip, member), member)
}

/// The address in four bytes, for heartbeats.
pub(super) fn tag(addr: IpAddr) -> u32 {
    (weight(addr, "") >> 32) as u32
}

fn weight(vip: IpAddr, member: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = member.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let mut sum = match vip {
        IpAddr::V4(vip) => vip.octets().into_iter().fold(seed, hash),
        IpAddr::V6(vip) => vip.octets().into_iter().fold(seed, hash),
    };
    // FNV leaves the high bits of similar texts similar.
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        sum = (sum ^ (sum >> 33)).wrapping_mul(factor);
    }
    sum ^ (sum >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use super::*;

    fn vips() -> impl Iterator<Item = IpAddr> {
        (0..1000_u32).map(|n| IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + n)))
    }

    fn holder(vip: IpAddr, members: &[&'static str]) -> Option<&'static str> {
        members.iter().map(|member| bid(vip, member)).max().map(|(_, member)| member)
    }

    #[test]
    fn addresses_are_shared_evenly() {
        let members = ["node-1", "node-2", "node-3", "node-4"];
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for vip in vips() {
            *held.entry(holder(vip, &members).expect("somebody")).or_default() += 1;
        }

        assert!(held.len() == 4 && held.values().all(|count| (200..300).contains(count)), "{held:?}");
    }

    #[test]
    fn who_goes_moves_only_what_it_held() {
        let (all, left) = (["a", "b", "c"], ["a", "c"]);

        for vip in vips() {
            let before = holder(vip, &all);
            let after = holder(vip, &left);
            assert!(before == Some("b") || before == after, "{vip}");
        }
    }

    #[test]
    fn tags_tell_addresses_apart() {
        assert_eq!(vips().map(tag).collect::<BTreeSet<_>>().len(), 1000);
    }
}
