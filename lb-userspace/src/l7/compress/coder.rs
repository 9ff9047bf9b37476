//! The algorithms, a piece at a time, and the memory that they may take together.

use std::cell::{Cell, RefCell};
use std::io;

use brotli::enc::StandardAlloc;
use brotli::enc::encode::{BrotliEncoderOperation, BrotliEncoderParameter, BrotliEncoderStateStruct};
use flate2::{Compress, FlushCompress, Status};

use super::Algorithm;
use crate::l7::buffer::copy;

/// Most memory of all states of a worker; what would take more is sent as it is.
const MEMORY: usize = 128 << 20;
/// What a gzip state takes, whatever its level: window and hash chains.
const GZIP_BYTES: usize = 300 << 10;
/// Bits of gzip's window, its largest.
const GZIP_WINDOW: u8 = 15;
/// Bits of brotli's window: what its ring buffer takes, and how far it looks back.
const BROTLI_WINDOW: std::ops::RangeInclusive<u32> = 10..=18;
/// States of gzip kept per thread for the next responses: clearing one is cheaper than making it.
const POOLED: usize = 16;

thread_local! {
    static IN_USE: Cell<usize> = const { Cell::new(0) };
    static GZIP: RefCell<Vec<Gzip>> = const { RefCell::new(Vec::new()) };
}

/// One response on its way through an algorithm.
pub(super) struct Coder {
    /// `None` once it has ended.
    state: Option<State>,
    /// Its part of [`MEMORY`].
    bytes: usize,
}

enum State {
    /// What comes in goes out.
    Plain,
    Gzip(Gzip),
    Brotli(Box<Brotli>),
}

struct Gzip {
    level: u8,
    compress: Compress,
}

struct Brotli {
    encoder: BrotliEncoderStateStruct<StandardAlloc>,
    /// A flush is not through, and takes no content before it is.
    is_flushing: bool,
}

/// Bytes that were read, and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) written: usize,
    /// What was asked for is done.
    pub(super) done: bool,
}

impl Coder {
    /// For a response of this length, if that is known; `None` where there is no memory for it.
    pub(super) fn new(algorithm: Algorithm, level: u8, length: Option<u64>) -> Option<Self> {
        let bytes = match algorithm {
            Algorithm::Gzip => GZIP_BYTES,
            Algorithm::Brotli => brotli_bytes(level),
        };
        let in_use = IN_USE.get() + bytes;
        if in_use > MEMORY {
            return None;
        }
        IN_USE.set(in_use);
        let state = match algorithm {
            Algorithm::Gzip => State::Gzip(Gzip::take(level)),
            Algorithm::Brotli => State::Brotli(Box::new(Brotli::new(level, length))),
        };
        Some(Self { state: Some(state), bytes })
    }

    /// For a response that stays as it is.
    pub(super) fn plain() -> Self {
        Self { state: Some(State::Plain), bytes: 0 }
    }

    /// Takes some of `content`, and writes what comes of it.
    pub(super) fn press(&mut self, content: &[u8], out: &mut [u8]) -> io::Result<Step> {
        match self.state()? {
            State::Plain => Ok(pass(content, out)),
            State::Gzip(gzip) => gzip.step(content, out, FlushCompress::None),
            State::Brotli(brotli) => brotli.press(content, out),
        }
    }

    /// Writes what was held back, so that a reader has all there is.
    pub(super) fn flush(&mut self, out: &mut [u8]) -> io::Result<Step> {
        match self.state()? {
            State::Plain => Ok(pass(&[], out)),
            State::Gzip(gzip) => gzip.step(&[], out, FlushCompress::Sync),
            State::Brotli(brotli) => brotli.flush(out),
        }
    }

    /// Writes the end; done when all of it is written.
    pub(super) fn finish(&mut self, out: &mut [u8]) -> io::Result<Step> {
        let step = match self.state()? {
            State::Plain => Ok(pass(&[], out)),
            State::Gzip(gzip) => gzip.step(&[], out, FlushCompress::Finish),
            State::Brotli(brotli) => brotli.finish(out),
        }?;
        if step.done {
            self.give_back();
        }
        Ok(step)
    }

    fn state(&mut self) -> io::Result<&mut State> {
        self.state.as_mut().ok_or_else(|| io::Error::other("compression has ended"))
    }

    fn give_back(&mut self) {
        IN_USE.set(IN_USE.get().saturating_sub(std::mem::take(&mut self.bytes)));
        if let Some(State::Gzip(gzip)) = self.state.take() {
            gzip.give_back();
        }
    }
}

/// As it is.
fn pass(content: &[u8], out: &mut [u8]) -> Step {
    let n = copy(content, out);
    Step { read: n, written: n, done: true }
}

impl Drop for Coder {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Gzip {
    fn take(level: u8) -> Self {
        let pooled = GZIP.with_borrow_mut(|pool| {
            let at = pool.iter().position(|pooled| pooled.level == level)?;
            Some(pool.swap_remove(at))
        });
        pooled.unwrap_or_else(|| {
            let compress = Compress::new_gzip(flate2::Compression::new(level.into()), GZIP_WINDOW);
            Self { level, compress }
        })
    }

    fn give_back(mut self) {
        GZIP.with_borrow_mut(|pool| {
            if pool.len() < POOLED {
                self.compress.reset();
                pool.push(self);
            }
        });
    }

    fn step(&mut self, content: &[u8], out: &mut [u8], flush: FlushCompress) -> io::Result<Step> {
        let (before_in, before_out) = (self.compress.total_in(), self.compress.total_out());
        let status = self.compress.compress(content, out, flush).map_err(io::Error::other)?;
        let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let read = count(self.compress.total_in(), before_in);
        let written = count(self.compress.total_out(), before_out);
        let done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            // What did not fill the room left nothing behind.
            _ => written < out.len(),
        };
        Ok(Step { read, written, done })
    }
}

impl Brotli {
    fn new(level: u8, length: Option<u64>) -> Self {
        use BrotliEncoderParameter::{BROTLI_PARAM_LGWIN, BROTLI_PARAM_QUALITY};
        let mut encoder = BrotliEncoderStateStruct::new(StandardAlloc::default());
        let (least, most) = (*BROTLI_WINDOW.start(), *BROTLI_WINDOW.end());
        let window = length.map_or(most, |length| (u64::BITS - length.leading_zeros()).clamp(least, most));
        encoder.set_parameter(BROTLI_PARAM_QUALITY, level.into());
        encoder.set_parameter(BROTLI_PARAM_LGWIN, window);
        Self { encoder, is_flushing: false }
    }

    fn press(&mut self, content: &[u8], out: &mut [u8]) -> io::Result<Step> {
        if self.is_flushing {
            let flushed = self.flush(out)?;
            return Ok(Step { done: false, ..flushed });
        }
        self.step(BrotliEncoderOperation::BROTLI_OPERATION_PROCESS, content, out)
    }

    fn flush(&mut self, out: &mut [u8]) -> io::Result<Step> {
        let step = self.step(BrotliEncoderOperation::BROTLI_OPERATION_FLUSH, &[], out)?;
        self.is_flushing = !step.done;
        Ok(step)
    }

    fn finish(&mut self, out: &mut [u8]) -> io::Result<Step> {
        if self.is_flushing {
            let flushed = self.flush(out)?;
            return Ok(Step { done: false, ..flushed });
        }
        let step = self.step(BrotliEncoderOperation::BROTLI_OPERATION_FINISH, &[], out)?;
        Ok(Step { done: self.encoder.is_finished(), ..step })
    }

    fn step(&mut self, op: BrotliEncoderOperation, content: &[u8], out: &mut [u8]) -> io::Result<Step> {
        let (mut left, mut room) = (content.len(), out.len());
        let (mut read, mut written) = (0, 0);
        let is_well = self.encoder.compress_stream(
            op,
            &mut left,
            content,
            &mut read,
            &mut room,
            out,
            &mut written,
            &mut None,
            &mut |_, _, _, _| (),
        );
        if !is_well {
            return Err(io::Error::other("brotli failed"));
        }
        Ok(Step { read, written, done: !self.encoder.has_more_output() })
    }
}

/// About what a brotli state takes: hash tables grow with the level, the window is the least of it.
fn brotli_bytes(level: u8) -> usize {
    match level {
        0..=4 => 2 << 20,
        5..=6 => 4 << 20,
        7 => 10 << 20,
        8 => 18 << 20,
        _ => 34 << 20,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn unpacked(algorithm: Algorithm, packed: &[u8]) -> Vec<u8> {
        let mut content = Vec::new();
        match algorithm {
            Algorithm::Gzip => flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut content),
            Algorithm::Brotli => brotli::Decompressor::new(packed, 4096).read_to_end(&mut content),
        }
        .expect("well packed");
        content
    }

    /// All of `content`, flushed after each piece, through an output of so few bytes.
    fn packed(algorithm: Algorithm, level: u8, pieces: &[&[u8]], room: usize) -> Vec<u8> {
        let mut coder = Coder::new(algorithm, level, None).expect("memory");
        let (mut packed, mut out) = (Vec::new(), vec![0; room]);
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let step = coder.press(rest, &mut out).expect("pressed");
                packed.extend_from_slice(&out[..step.written]);
                rest = &rest[step.read..];
            }
            loop {
                let step = coder.flush(&mut out).expect("flushed");
                packed.extend_from_slice(&out[..step.written]);
                if step.done {
                    break;
                }
            }
        }
        loop {
            let step = coder.finish(&mut out).expect("finished");
            packed.extend_from_slice(&out[..step.written]);
            if step.done {
                return packed;
            }
        }
    }

    #[test]
    fn what_is_packed_in_any_pieces_is_unpacked_as_it_was() {
        let text: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_string().into_bytes())
            .collect();
        for (algorithm, level) in [
            (Algorithm::Gzip, 1),
            (Algorithm::Gzip, 9),
            (Algorithm::Brotli, 0),
            (Algorithm::Brotli, 4),
            (Algorithm::Brotli, 5),
        ] {
            for room in [16, 5000] {
                let pieces: Vec<_> = text.chunks(70_001).collect();
                let packed = packed(algorithm, level, &pieces, room);

                let case = format!("{algorithm:?} {level} in {room}");
                assert!(packed.len() < text.len() * 3 / 4, "{case}: {}", packed.len());
                assert!(unpacked(algorithm, &packed) == text, "{case}");
            }
        }
    }

    #[test]
    fn nothing_packed_is_still_a_whole_stream() {
        for algorithm in [Algorithm::Gzip, Algorithm::Brotli] {
            assert_eq!(unpacked(algorithm, &packed(algorithm, 4, &[], 64)), b"", "{algorithm:?}");
        }
    }

    #[test]
    fn a_state_that_is_used_again_remembers_nothing() {
        let first = packed(Algorithm::Gzip, 6, &[b"one and the same"], 4096);
        let again = packed(Algorithm::Gzip, 6, &[b"one and the same"], 4096);

        assert_eq!(first, again);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut coders = Vec::new();
        while let Some(coder) = Coder::new(Algorithm::Brotli, 11, None) {
            coders.push(coder);
        }
        assert_eq!(coders.len(), MEMORY / brotli_bytes(11));
        assert!(Coder::new(Algorithm::Brotli, 11, None).is_none());

        coders.pop();
        assert!(Coder::new(Algorithm::Brotli, 11, None).is_some());
    }
}
