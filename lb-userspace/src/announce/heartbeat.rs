//! Heartbeats: frames by which the agents of one link know each other, and who of them can hold what. Signed, so
//! that two clusters on a link do not take each other for their own, and numbered, so that none counts twice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aws_lc_rs::{constant_time, hmac};

use super::election;
use super::frame::{BROADCAST, HEADER, Mac, ethernet};

/// IEEE's number for experiments within one network.
pub(super) const ETHERTYPE: u16 = 0x88b5;
/// Addresses named in one of the two lists of a frame at most: it has 1,500 bytes.
pub(super) const NAMED: usize = 128;
/// Frames of one heartbeat at most, which is 32,640 addresses.
const PARTS: usize = u8::MAX as usize;

const MAGIC: &[u8; 8] = b"penstock";
const VERSION: u8 = 2;
const LEAVES: u8 = 1;
/// Magic, number, version, flags, length of the name, lengths of the lists, part and parts.
const FIXED: usize = 8 + 8 + 7;
const SIGNATURE: usize = 16;

/// What one agent says of itself, or a part of that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Heartbeat {
    /// Its node.
    pub(super) name: String,
    /// Each frame of a node has a higher one than those before.
    pub(super) number: u64,
    /// It is no member from now on.
    pub(super) leaves: bool,
    /// Which of the frames of this heartbeat it is.
    pub(super) part: u8,
    /// How many there are.
    pub(super) parts: u8,
    /// Addresses that its interface has, as [`election::tag`] has them: nobody else may hold those.
    pub(super) owns: BTreeSet<u32>,
    /// Addresses that it can serve. Not those that it cannot: who knows nothing of an address can neither serve nor
    /// decline it.
    pub(super) serves: BTreeSet<u32>,
}

/// What agents of one cluster sign with.
pub(super) fn key(hash_key: Option<[u8; 16]>) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &hash_key.unwrap_or_default())
}

/// Names of addresses, as many as a heartbeat takes.
pub(super) fn tags(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<u32> {
    addresses.map(election::tag).take(NAMED * PARTS).collect()
}

/// A heartbeat in as many frames as it takes, not yet numbered.
pub(super) fn parted(name: &str, owns: &BTreeSet<u32>, serves: &BTreeSet<u32>) -> Vec<Heartbeat> {
    let count = owns.len().max(serves.len()).div_ceil(NAMED).clamp(1, PARTS) as u8;
    let part =
        |of: &BTreeSet<u32>, n: u8| of.iter().skip(usize::from(n) * NAMED).take(NAMED).copied().collect();
    let heartbeat = |n| Heartbeat {
        name: name.to_owned(),
        part: n,
        parts: count,
        owns: part(owns, n),
        serves: part(serves, n),
        ..Heartbeat::default()
    };
    (0..count).map(heartbeat).collect()
}

impl Heartbeat {
    /// The frame.
    pub(super) fn to_frame(&self, own: Mac, key: &hmac::Key) -> Vec<u8> {
        let Self { name, number, leaves, part, parts, owns, serves } = self;
        let name: Vec<u8> = name.bytes().take(255).collect();
        let mut frame = ethernet(BROADCAST, own, ETHERTYPE);
        frame.extend_from_slice(MAGIC);
        frame.extend_from_slice(&number.to_be_bytes());
        let (owned, served) = (owns.len().min(NAMED), serves.len().min(NAMED));
        let flags = if *leaves { LEAVES } else { 0 };
        frame.extend_from_slice(&[
            VERSION,
            flags,
            name.len() as u8,
            owned as u8,
            served as u8,
            *part,
            *parts,
        ]);
        frame.extend_from_slice(&name);
        for tag in owns.iter().take(owned).chain(serves.iter().take(served)) {
            frame.extend_from_slice(&tag.to_be_bytes());
        }
        let signed = frame.get(HEADER..).unwrap_or_default();
        let signature = hmac::sign(key, signed);
        frame.extend(signature.as_ref().iter().take(SIGNATURE));
        frame
    }

    /// What a frame says; `None`: it is none of ours.
    pub(super) fn of_frame(frame: &[u8], key: &hmac::Key) -> Option<Self> {
        let signed = Self::signed(frame)?;
        let signature = frame.get(HEADER + signed.len()..)?.get(..SIGNATURE)?;
        let expected = hmac::sign(key, signed);
        constant_time::verify_slices_are_equal(expected.as_ref().get(..SIGNATURE)?, signature).ok()?;
        let (head, rest) = signed.split_at_checked(FIXED)?;
        let (number, head) = head.get(MAGIC.len()..)?.split_first_chunk::<8>()?;
        let &[_, flags, name, owned, _, part, parts] = <&[u8; 7]>::try_from(head).ok()?;
        let (name, lists) = rest.split_at_checked(name.into())?;
        let mut tags = lists.chunks_exact(4).filter_map(|tag| Some(u32::from_be_bytes(tag.try_into().ok()?)));
        let owns = tags.by_ref().take(owned.into()).collect();
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?.to_owned();
        let (number, leaves) = (u64::from_be_bytes(*number), flags & LEAVES != 0);
        Some(Self { name, number, leaves, part, parts, owns, serves: tags.collect() })
    }

    /// What the signature of a frame is about: all between the Ethernet header and itself.
    pub(super) fn signed(frame: &[u8]) -> Option<&[u8]> {
        if frame.get(12..HEADER)? != ETHERTYPE.to_be_bytes() {
            return None;
        }
        let body = frame.get(HEADER..)?;
        let (magic, head) = body.split_first_chunk::<8>()?;
        let &[version, _, name, owned, served, part, parts] = head.get(8..)?.first_chunk::<7>()?;
        if magic != MAGIC || version != VERSION || part >= parts {
            return None;
        }
        body.get(..FIXED + usize::from(name) + (usize::from(owned) + usize::from(served)) * 4)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    #[test]
    fn a_heartbeat_is_read_as_it_was_written_and_only_with_the_key() {
        let heartbeat = Heartbeat {
            name: "node-1".to_owned(),
            number: 1 << 40,
            leaves: true,
            part: 1,
            parts: 3,
            owns: BTreeSet::from([7]),
            serves: (0..NAMED as u32).collect(),
        };
        let mut frame = heartbeat.to_frame([2; 6], &key(Some([1; 16])));
        assert!(frame.len() <= 1514);

        assert_eq!(Heartbeat::of_frame(&frame, &key(Some([2; 16]))), None, "another cluster");
        // Short frames arrive padded.
        frame.extend([0; 20]);
        assert_eq!(Heartbeat::of_frame(&frame, &key(Some([1; 16]))), Some(heartbeat));
        frame[24] ^= 1;
        assert_eq!(Heartbeat::of_frame(&frame, &key(Some([1; 16]))), None, "changed on its way");
    }

    #[test]
    fn a_heartbeat_of_many_addresses_comes_in_parts_that_make_it_up() {
        let (owns, serves) = (BTreeSet::from([7]), (0..300).collect::<BTreeSet<u32>>());

        let parts = parted("node-1", &owns, &serves);

        assert_eq!(
            parts.iter().map(|heartbeat| (heartbeat.part, heartbeat.parts)).collect::<Vec<_>>(),
            [(0, 3), (1, 3), (2, 3)]
        );
        assert_eq!(
            parts.iter().flat_map(|heartbeat| heartbeat.serves.iter().copied()).collect::<BTreeSet<_>>(),
            serves
        );
        assert_eq!(
            parts.iter().flat_map(|heartbeat| heartbeat.owns.iter().copied()).collect::<BTreeSet<_>>(),
            owns
        );
        assert_eq!(
            parted("node-1", &BTreeSet::new(), &BTreeSet::new()).len(),
            1,
            "who has nothing to say lives, too"
        );
    }

    proptest! {
        #[test]
        fn no_frame_is_too_odd_to_be_looked_at(mut frame in prop::collection::vec(any::<u8>(), 0..200), like in any::<bool>()) {
            if like && frame.len() > 38 {
                frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
                frame[14..22].copy_from_slice(MAGIC);
                frame[30] = VERSION;
            }
            fuzz(&frame);
            prop_assert_eq!(Heartbeat::of_frame(&frame, &key(None)), None, "nobody signed it");
        }
    }
}
