//! How a body is delimited, and how much of what was read belongs to it.

use super::chunked::{Decoder, Malformed, Piece, Trailer, may_trail};

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

    /// Bytes of this body that go no further, at the front of `bytes`: see [`Decoder::left_out`]; and trailers of a
    /// response that may not stand there, or that are `withheld` by their names.
    pub(in crate::l7) fn left_out(
        &mut self,
        bytes: &[u8],
        withheld: impl Fn(&[u8]) -> bool,
    ) -> Result<usize, Malformed> {
        let Self::Chunked(decoder) = self else { return Ok(0) };
        let out = decoder.left_out(bytes)?;
        let rest = bytes.get(out..).unwrap_or_default();
        let Some(Trailer::Whole(line)) = decoder.trailer(rest)? else { return Ok(out) };
        let name = rest.get(..line).and_then(|line| line.split(|&byte| byte == b':').next());
        let has_name = |name: &&[u8]| name.len() < line && may_trail(name) && !withheld(name);
        if name.filter(has_name).is_some() {
            return Ok(out);
        }
        decoder.past_trailer(line);
        Ok(out + line)
    }

    /// As [`Self::take`], up to what may go no further: a trailer of a response has been seen by [`Self::left_out`],
    /// where it stands in front.
    pub(in crate::l7) fn pass(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let Self::Chunked(decoder) = self else { return self.take(bytes) };
        if let Some(Trailer::Whole(line)) = decoder.trailer(bytes)? {
            decoder.past_trailer(line);
            return Ok(line);
        }
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
