//! How a body is delimited, and how much of what was read belongs to it.

use super::chunked::{Decoder, Malformed, Piece};

/// Rest of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::l7) enum Body {
    /// This many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked(Decoder),
    /// Everything until the sender closes.
    UntilClose,
    /// The sender has closed.
    Closed,
}

impl Body {
    /// Nothing is left to come.
    pub(in crate::l7) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose => false,
            Self::Closed => true,
        }
    }

    /// The next byte is content, no framing.
    pub(in crate::l7) fn is_in_content(&self) -> bool {
        match self {
            Self::Chunked(decoder) => decoder.is_in_content(),
            Self::Length(_) | Self::UntilClose => true,
            Self::Closed => false,
        }
    }

    /// How many of the next `bytes` belong to this body, framing included.
    pub(in crate::l7) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                Ok(n)
            }
            Self::Chunked(decoder) => {
                let mut taken = 0;
                while !decoder.is_done() {
                    let rest = bytes.get(taken..).unwrap_or_default();
                    if rest.is_empty() {
                        break;
                    }
                    taken += decoder.next(rest)?.len();
                }
                Ok(taken)
            }
            Self::UntilClose => Ok(bytes.len()),
            Self::Closed => Ok(0),
        }
    }

    /// Bytes of this body that go no further, at the front of `bytes`: see [`Decoder::left_out`].
    pub(in crate::l7) fn left_out(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Chunked(decoder) => decoder.left_out(bytes),
            Self::Length(_) | Self::UntilClose | Self::Closed => Ok(0),
        }
    }

    /// As [`Self::take`], up to what goes no further.
    pub(in crate::l7) fn pass(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let Self::Chunked(decoder) = self else { return self.take(bytes) };
        let mut taken = 0;
        loop {
            match decoder.next_kept(bytes.get(taken..).unwrap_or_default())?.len() {
                0 => return Ok(taken),
                n => taken += n,
            }
        }
    }

    /// The next piece of `bytes`, which are not empty, and whether it is content or framing.
    pub(in crate::l7) fn piece(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        match self {
            Self::Chunked(decoder) => decoder.next(bytes),
            _ => self.take(bytes).map(Piece::Content),
        }
    }

    /// Content seen so far, for the limit of chunked bodies; 0 for the others, whose length is
    /// known beforehand.
    pub(in crate::l7) fn chunked_content(&self) -> u64 {
        match self {
            Self::Chunked(decoder) => decoder.content(),
            _ => 0,
        }
    }
}
