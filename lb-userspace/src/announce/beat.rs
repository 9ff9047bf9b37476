//! Heartbeats: frames by which the agents of one link know each other, and who of them cannot hold what. Signed, so
//! that two clusters on a link do not take each other for their own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aws_lc_rs::hmac;

use super::election;
use super::frame::{BROADCAST, HEADER, Mac, ethernet};

/// IEEE's number for experiments within one network.
pub(super) const ETHERTYPE: u16 = 0x88b5;
/// Addresses named in one of the two lists at most: a frame has 1,500 bytes.
pub(super) const NAMED: usize = 128;

const MAGIC: &[u8; 8] = b"penstock";
const VERSION: u8 = 1;
const LEAVES: u8 = 1;
/// Magic, version, flags, length of the name, lengths of the lists.
const FIXED: usize = 8 + 5;
const SIGNATURE: usize = 16;

/// What one agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Beat {
    /// Its node.
    pub(super) name: String,
    /// It is no member from now on.
    pub(super) leaves: bool,
    /// Addresses that its interface has, as [`election::tag`] has them: nobody else may hold those.
    pub(super) owns: BTreeSet<u32>,
    /// Addresses that it cannot serve.
    pub(super) declines: BTreeSet<u32>,
}

/// What agents of one cluster sign with.
pub(super) fn key(hash_key: Option<[u8; 16]>) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &hash_key.unwrap_or_default())
}

/// Names of addresses, as many as a heartbeat takes.
pub(super) fn tags(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<u32> {
    addresses.map(election::tag).take(NAMED).collect()
}

impl Beat {
    /// The frame.
    pub(super) fn to_frame(&self, own: Mac, key: &hmac::Key) -> Vec<u8> {
        let Self { name, leaves, owns, declines } = self;
        let name: Vec<u8> = name.bytes().take(255).collect();
        let mut frame = ethernet(BROADCAST, own, ETHERTYPE);
        frame.extend_from_slice(MAGIC);
        let (owned, declined) = (owns.len().min(NAMED), declines.len().min(NAMED));
        let flags = if *leaves { LEAVES } else { 0 };
        frame.extend_from_slice(&[VERSION, flags, name.len() as u8, owned as u8, declined as u8]);
        frame.extend_from_slice(&name);
        for tag in owns.iter().take(owned).chain(declines.iter().take(declined)) {
            frame.extend_from_slice(&tag.to_be_bytes());
        }
        let signed = frame.get(HEADER..).unwrap_or_default();
        let signature = hmac::sign(key, signed);
        frame.extend(signature.as_ref().iter().take(SIGNATURE));
        frame
    }

    /// What a frame says; `None`: it is none of ours.
    pub(super) fn of_frame(frame: &[u8], key: &hmac::Key) -> Option<Self> {
        if frame.get(12..HEADER)? != ETHERTYPE.to_be_bytes() {
            return None;
        }
        let body = frame.get(HEADER..)?;
        let (head, rest) = body.split_at_checked(FIXED)?;
        let (magic, &[version, flags, name, owned, declined]) = head
            .split_first_chunk::<8>()
            .and_then(|(magic, rest)| Some((magic, <&[u8; 5]>::try_from(rest).ok()?)))?;
        if magic != MAGIC || version != VERSION {
            return None;
        }
        let lists = (usize::from(owned) + usize::from(declined)) * 4;
        let (name, after) = rest.split_at_checked(name.into())?;
        let (lists, after) = after.split_at_checked(lists)?;
        let signature = after.get(..SIGNATURE)?;
        let signed = body.get(..FIXED + name.len() + lists.len())?;
        let expected = hmac::sign(key, signed);
        if expected.as_ref().get(..SIGNATURE)? != signature {
            return None;
        }
        let mut tags = lists.chunks_exact(4).filter_map(|tag| Some(u32::from_be_bytes(tag.try_into().ok()?)));
        let owns = tags.by_ref().take(owned.into()).collect();
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?.to_owned();
        Some(Self { name, leaves: flags & LEAVES != 0, owns, declines: tags.collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_beat_is_read_as_it_was_written_and_only_with_the_key() {
        let beat = Beat {
            name: "node-1".to_owned(),
            leaves: true,
            owns: BTreeSet::from([7]),
            declines: (0..NAMED as u32).collect(),
        };
        let mut frame = beat.to_frame([2; 6], &key(Some([1; 16])));
        assert!(frame.len() <= 1514);

        assert_eq!(Beat::of_frame(&frame, &key(Some([2; 16]))), None, "another cluster");
        // Short frames arrive padded.
        frame.extend([0; 20]);
        assert_eq!(Beat::of_frame(&frame, &key(Some([1; 16]))), Some(beat));
        frame[30] ^= 1;
        assert_eq!(Beat::of_frame(&frame, &key(Some([1; 16]))), None, "changed on its way");
    }

    proptest! {
        #[test]
        fn no_frame_is_too_odd_to_be_looked_at(mut frame in prop::collection::vec(any::<u8>(), 0..200), like in any::<bool>()) {
            if like && frame.len() > 30 {
                frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
                frame[14..22].copy_from_slice(MAGIC);
                frame[22] = VERSION;
            }
            prop_assert_eq!(Beat::of_frame(&frame, &key(None)), None);
        }
    }
}
