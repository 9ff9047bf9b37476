//! Finds the frames in the bytes of a connection, without parsing what is in them.

pub(super) const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// What the head of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) length: u32,
    pub(super) flags: u8,
    /// Of no stream, but of the connection.
    is_connections: bool,
}

impl Head {
    /// Requests, their bodies and trailers, and the empty DATA frame that may end one.
    pub(super) fn is_useful(&self) -> bool {
        match self.kind {
            DATA => self.length > 0 || self.flags & END_STREAM != 0,
            HEADERS => true,
            _ => false,
        }
    }

    /// A DATA frame that says nothing at all.
    pub(super) fn is_empty_data(&self) -> bool {
        let is_data = self.kind == DATA && !self.is_connections;
        is_data && self.length == 0 && self.flags & (END_STREAM | PADDED) == 0
    }

    /// A DATA frame with less than `bytes` of content, perhaps, and more to come.
    pub(super) fn is_small_data(&self, bytes: u32) -> bool {
        let is_small = self.length < bytes || self.flags & PADDED != 0;
        self.kind == DATA && self.length > 0 && self.flags & END_STREAM == 0 && is_small
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    /// Left out, if it is nothing but a head that came at once.
    Dropped,
}

/// Where in its frames a connection is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes up to the next frame head.
    skip: usize,
    head: [u8; 9],
    /// Bytes of the head that are there.
    have: usize,
}

impl Frames {
    /// So many bytes come before the first frame.
    pub(super) fn after(skip: usize) -> Self {
        Self { skip, ..Self::default() }
    }

    /// Goes over the next bytes, in whatever pieces they come. `fate` is asked of each frame when the last byte of its
    /// head is there, with whether all of the head is in `bytes`. Returns how many bytes are left at the front.
    pub(super) fn sift(&mut self, bytes: &mut [u8], mut fate: impl FnMut(Head, bool) -> Fate) -> usize {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            if kept != at {
                bytes.copy_within(at..at + skipped, kept);
            }
            (at, kept) = (at + skipped, kept + skipped);
            let n = (bytes.len() - at).min(self.head.len() - self.have);
            let (here, place) = (bytes.get(at..at + n), self.head.get_mut(self.have..self.have + n));
            if let (Some(here), Some(place)) = (here, place) {
                place.copy_from_slice(here);
            }
            self.have += n;
            let mut is_dropped = false;
            if self.have == self.head.len() {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                let is_connections = u32::from_be_bytes(stream) & (u32::MAX >> 1) == 0;
                let is_whole = n == self.head.len();
                let told = fate(Head { kind, length, flags, is_connections }, is_whole);
                is_dropped = told == Fate::Dropped && is_whole && length == 0;
                (self.have, self.skip) = (0, length as usize);
            }
            if !is_dropped {
                if kept != at {
                    bytes.copy_within(at..at + n, kept);
                }
                kept += n;
            }
            at += n;
        }
        kept
    }
}

/// For the fuzz target: however the bytes are cut, the same frames are seen in them, and what is left out of them is
/// nothing but empty ones.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    let seen = |size: usize| {
        let (mut frames, mut seen, mut dropped) = (Frames::default(), Vec::new(), 0);
        let mut left = Vec::new();
        for piece in bytes.chunks(size) {
            let mut piece = piece.to_vec();
            let kept = frames.sift(&mut piece, |head, is_whole| {
                seen.push(head);
                let drops = head.is_empty_data() && is_whole;
                dropped += usize::from(drops);
                if drops { Fate::Dropped } else { Fate::Kept }
            });
            left.extend_from_slice(piece.get(..kept).unwrap_or_default());
        }
        assert_eq!(left.len() + 9 * dropped, bytes.len(), "in pieces of {size}");
        seen
    };
    let whole = seen(bytes.len().max(1));
    for size in [1, 2, 10] {
        assert_eq!(seen(size), whole, "in pieces of {size}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn empty_data_is_left_out_where_its_head_comes_at_once() {
        let data = |payload: &[u8]| frame(DATA, 0, payload);
        let kept = [data(b"one"), frame(DATA, END_STREAM, b""), frame(HEADERS, 0, b"")].concat();
        let all = [data(b""), data(b"one"), data(b""), data(b""), kept[12..].to_vec(), data(b"")].concat();
        for cut in 0..=all.len() {
            let mut frames = Frames::default();
            let (mut first, mut second) = (all[..cut].to_vec(), all[cut..].to_vec());
            let mut passed = 0;
            let mut sift = |bytes: &mut Vec<u8>| {
                let n = frames.sift(bytes, |head, is_whole| {
                    passed += usize::from(head.is_empty_data() && !is_whole);
                    if head.is_empty_data() { Fate::Dropped } else { Fate::Kept }
                });
                bytes.truncate(n);
            };
            sift(&mut first);
            sift(&mut second);

            let left = [first, second].concat();
            assert_eq!(left.len(), kept.len() + 9 * passed, "cut at {cut}");
            assert!(passed == 0 && left == kept || passed == 1, "cut at {cut}: {left:?}");
        }
    }

    #[test]
    fn empty_data_is_useless_unless_it_ends_a_request() {
        let head = |kind, length, flags| Head { kind, length, flags, is_connections: false };
        let cases = [
            (head(DATA, 0, 0), false),
            (head(DATA, 0, END_STREAM), true),
            (head(DATA, 1, 0), true),
            (head(HEADERS, 0, 0), true),
            (head(6, 8, 0), false),
        ];
        for (head, is_useful) in cases {
            assert_eq!(head.is_useful(), is_useful, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn heads_are_found_in_whatever_slices_bytes_come(
            payloads in proptest::collection::vec(0usize..40, 1..12),
            cut in 1usize..23,
        ) {
            let bytes: Vec<u8> = std::iter::repeat_n(9u8, 24)
                .chain(payloads.iter().flat_map(|&n| frame(n as u8, 7, &vec![0xff; n])))
                .collect();
            let mut frames = Frames::after(24);
            let mut found = Vec::new();
            for slice in bytes.chunks(cut) {
                let kept = frames.sift(&mut slice.to_vec(), |head, _| {
                    found.push((head.kind, head.length, head.flags));
                    Fate::Kept
                });
                prop_assert_eq!(kept, slice.len());
            }
            let expected: Vec<_> = payloads.iter().map(|&n| (n as u8, n as u32, 7)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
