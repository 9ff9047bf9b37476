//! Chunked transfer coding, strict: CRLF only, sizes of bounded length, trailers that cannot
//! change the meaning of the message. Bytes that pass may be forwarded exactly as they are.

use std::io::Write as _;

use super::head::is_of_token;

/// Hex digits of a chunk size; 16 would already overflow sizes anybody can send.
const SIZE_DIGITS: u8 = 15;
/// Bytes of extensions one chunk may carry.
const EXTENSION_BYTES: u16 = 256;
/// Bytes of all trailer lines of a request, and of a response: there as much as heads of gRPC may have.
const TRAILER_BYTES: u16 = 8 * 1024;
pub(in crate::l7) const RESPONSE_TRAILER_BYTES: u16 = 31 * 1024;
/// Longest trailer name compared with [`FORBIDDEN_TRAILERS`].
const NAME_BYTES: usize = 20;

/// Trailers that would change framing, routing or authority if somebody merged them into the head.
const FORBIDDEN_TRAILERS: [&[u8]; 8] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"connection",
    b"trailer",
    b"upgrade",
    b"authorization",
    b"expect",
];

/// Those that say nothing to a client behind a response: of the connection, or for us alone, or too late.
const IDLE_TRAILERS: [&[u8]; 4] = [b"keep-alive", b"proxy-connection", b"set-cookie", b"x-pad"];

/// Room for the size line and the line end of a chunk that [`write`] makes.
pub(in crate::l7) const OVERHEAD: usize = 4 + 2 + 2;
/// Content of such a chunk, so that its size has four digits.
const CHUNK_MAX: usize = 0xffff;

/// Not chunked coding as RFC 9112 7.1 has it, or beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked body")]
pub(in crate::l7) struct Malformed;

/// A run of bytes of one sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Piece {
    /// Bytes of the body itself.
    Content(usize),
    /// Sizes and line ends.
    Framing(usize),
    /// Trailer lines and the empty line that ends the body.
    Trailers(usize),
}

impl Piece {
    /// Bytes in it.
    pub(in crate::l7) fn len(self) -> usize {
        match self {
            Self::Content(n) | Self::Framing(n) | Self::Trailers(n) => n,
        }
    }
}

/// A trailer line of a response, which goes on as a whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Trailer {
    /// More of it is to come.
    Begun,
    /// So many bytes, line end included.
    Whole(usize),
}

/// Reads a chunked body in whatever slices it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::l7) struct Decoder {
    state: State,
    content: u64,
    of: Message,
}

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Size { size: u64, digits: u8 },
    Extension { size: u64, seen: u16 },
    SizeLf { size: u64 },
    Content { left: u64 },
    ContentCr,
    ContentLf,
    TrailerStart { seen: u16 },
    TrailerName { seen: u16, name: [u8; NAME_BYTES], len: usize },
    TrailerValue { seen: u16 },
    TrailerLf { seen: u16 },
    LastLf,
    Done,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(Message::Request)
    }
}

impl Decoder {
    /// The body of a response; the default is a request's.
    pub(in crate::l7) fn of_response() -> Self {
        Self::new(Message::Response)
    }

    fn new(of: Message) -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, content: 0, of }
    }

    /// The last chunk and its trailers were read.
    pub(in crate::l7) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Content announced by chunk sizes so far.
    pub(in crate::l7) fn content(&self) -> u64 {
        self.content
    }

    /// Takes the next piece from `bytes`. Empty only if `bytes` is, or the body is done.
    pub(in crate::l7) fn next(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        self.run(bytes, |_, _| false)
    }

    /// The same up to what goes no further: see [`Self::left_out`], or to a line of [`Self::trailer`]. Empty where that
    /// comes next, too.
    pub(super) fn next_kept(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        self.run(bytes, |state, next| state.leaves_out(next) || state.begins_trailer(next))
    }

    fn begins_trailer(&self, next: u8) -> bool {
        let is_between = matches!(self.state, State::TrailerStart { .. });
        self.of == Message::Response && is_between && next != b'\r'
    }

    /// The trailer line of a response that begins with `bytes`; `None` where something else comes next.
    pub(in crate::l7) fn trailer(&self, bytes: &[u8]) -> Result<Option<Trailer>, Malformed> {
        if !bytes.first().is_some_and(|next| self.begins_trailer(*next)) {
            return Ok(None);
        }
        let left = usize::from(RESPONSE_TRAILER_BYTES.saturating_sub(self.trailer_bytes()));
        let end = bytes.iter().take(left).position(|&byte| !is_text(byte));
        let Some(end) = end else {
            return if bytes.len() < left { Ok(Some(Trailer::Begun)) } else { Err(Malformed) };
        };
        match bytes.get(end..) {
            Some([b'\r', b'\n', ..]) => Ok(Some(Trailer::Whole(end + 2))),
            Some(b"\r") => Ok(Some(Trailer::Begun)),
            _ => Err(Malformed),
        }
    }

    /// A trailer line of so many bytes was taken, or left out.
    pub(in crate::l7) fn past_trailer(&mut self, line: usize) {
        if let State::TrailerStart { seen } = &mut self.state {
            *seen = seen.saturating_add(u16::try_from(line).unwrap_or(u16::MAX));
        }
    }

    fn run(&mut self, bytes: &[u8], ends: impl Fn(&Self, u8) -> bool) -> Result<Piece, Malformed> {
        if let State::Content { left } = &mut self.state {
            let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= n as u64;
            if *left == 0 {
                self.state = State::ContentCr;
            }
            return Ok(Piece::Content(n));
        }
        let trailers = self.is_in_trailers();
        let mut n = 0;
        for &byte in bytes {
            let is_content = matches!(self.state, State::Content { .. } | State::Done);
            if is_content || self.is_in_trailers() != trailers || ends(self, byte) {
                break;
            }
            self.step(byte)?;
            n += 1;
        }
        Ok(if trailers { Piece::Trailers(n) } else { Piece::Framing(n) })
    }

    /// Takes bytes that go no further. 0: what comes next is something else.
    ///
    /// Extensions of a chunk mean nothing to anybody, but parsers differ in where a quoted one ends. And no upstream is to take
    /// a client's word, in the trailers of a request, for a header that we write or take away; nginx passes none of them either.
    pub(in crate::l7) fn left_out(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut n = 0;
        for &byte in bytes {
            if !self.leaves_out(byte) {
                break;
            }
            self.step(byte)?;
            n += 1;
        }
        Ok(n)
    }

    /// Whether the next byte is one of those.
    fn leaves_out(&self, next: u8) -> bool {
        let is_in_line = match self.state {
            State::TrailerStart { .. } => next != b'\r',
            State::TrailerName { .. } | State::TrailerValue { .. } | State::TrailerLf { .. } => true,
            _ => false,
        };
        let is_in_extension = match self.state {
            State::Size { digits, .. } => digits > 0 && next == b';',
            State::Extension { .. } => next != b'\r',
            _ => false,
        };
        is_in_extension || self.of == Message::Request && is_in_line
    }

    /// The next byte is content.
    pub(in crate::l7) fn is_in_content(&self) -> bool {
        matches!(self.state, State::Content { .. })
    }

    fn is_in_trailers(&self) -> bool {
        matches!(
            self.state,
            State::TrailerStart { .. }
                | State::TrailerName { .. }
                | State::TrailerValue { .. }
                | State::TrailerLf { .. }
                | State::LastLf
        )
    }

    /// Bytes of trailer lines so far.
    fn trailer_bytes(&self) -> u16 {
        match self.state {
            State::TrailerStart { seen }
            | State::TrailerName { seen, .. }
            | State::TrailerValue { seen }
            | State::TrailerLf { seen } => seen,
            _ => 0,
        }
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        // Whatever the byte: lines that are nearly empty count as long ones do.
        let most = match self.of {
            Message::Request => TRAILER_BYTES,
            Message::Response => RESPONSE_TRAILER_BYTES,
        };
        if self.trailer_bytes() >= most {
            return Err(Malformed);
        }
        self.state = match (&mut self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if *digits == SIZE_DIGITS {
                    return Err(Malformed);
                }
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                State::Size { size: *size * 16 + u64::from(digit), digits: *digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Malformed),
            (State::Size { size, .. } | State::Extension { size, .. }, b'\r') => {
                State::SizeLf { size: *size }
            }
            (State::Size { size, .. }, b';') => State::Extension { size: *size, seen: 1 },
            (State::Extension { size, seen }, _) if is_text(byte) && *seen < EXTENSION_BYTES => {
                State::Extension { size: *size, seen: *seen + 1 }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart { seen: 0 },
            (State::SizeLf { size }, b'\n') => {
                self.content = self.content.saturating_add(*size);
                State::Content { left: *size }
            }
            (State::ContentCr, b'\r') => State::ContentLf,
            (State::ContentLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::TrailerStart { .. }, b'\r') => State::LastLf,
            (State::LastLf, b'\n') => State::Done,
            // Whatever is no trailer behind a response is left out where it is passed on.
            (State::TrailerStart { seen }, _) if self.of == Message::Response && is_text(byte) => {
                State::TrailerValue { seen: *seen + 1 }
            }
            (State::TrailerStart { seen }, _) if is_of_token(byte) => {
                let mut name = [0; NAME_BYTES];
                name[0] = byte.to_ascii_lowercase();
                State::TrailerName { seen: *seen + 1, name, len: 1 }
            }
            (State::TrailerName { seen, name, len }, b':') => {
                let name = name.get(..*len).unwrap_or_default();
                if FORBIDDEN_TRAILERS.contains(&name) {
                    return Err(Malformed);
                }
                State::TrailerValue { seen: *seen + 1 }
            }
            (State::TrailerName { seen, name, len }, _) if is_of_token(byte) => {
                if let Some(place) = name.get_mut(*len) {
                    *place = byte.to_ascii_lowercase();
                }
                State::TrailerName { seen: *seen + 1, name: *name, len: *len + 1 }
            }
            (State::TrailerValue { seen }, b'\r') => State::TrailerLf { seen: *seen + 1 },
            (State::TrailerValue { seen }, _) if is_text(byte) => State::TrailerValue { seen: *seen + 1 },
            (State::TrailerLf { seen }, b'\n') => State::TrailerStart { seen: *seen + 1 },
            _ => return Err(Malformed),
        };
        Ok(())
    }
}

/// Whether a trailer of this name passes behind a response. Orders to nginx do not, as in heads.
pub(in crate::l7) fn may_trail(name: &[u8]) -> bool {
    let is_one_of = |names: &[&[u8]]| names.iter().any(|listed| name.eq_ignore_ascii_case(listed));
    let orders = name.get(..ORDERS.len()).is_some_and(|start| start.eq_ignore_ascii_case(ORDERS));
    let is_name = !name.is_empty() && name.iter().all(|&byte| is_of_token(byte));
    is_name && !orders && !is_one_of(&FORBIDDEN_TRAILERS) && !is_one_of(&IDLE_TRAILERS)
}

/// What orders to nginx begin with.
const ORDERS: &[u8] = b"x-accel-";

/// Writes the beginning of `content` as one chunk, as much as there is room for; returns the bytes
/// written, of which [`OVERHEAD`] are framing. 0: there is none, or no room.
pub(in crate::l7) fn write(content: &[u8], into: &mut [u8]) -> usize {
    let n = content.len().min(into.len().saturating_sub(OVERHEAD)).min(CHUNK_MAX);
    let Some(content) = content.get(..n).filter(|content| !content.is_empty()) else { return 0 };
    let room = into.len();
    let mut rest = into;
    // There is room for all of it.
    let _ = write!(rest, "{n:04x}\r\n");
    let _ = rest.write_all(content);
    let _ = rest.write_all(b"\r\n");
    room - rest.len()
}

/// Visible characters, space, tab, and bytes above ASCII: no CR, no LF, no other control.
pub(in crate::l7) fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Body;
    use super::*;

    /// Content, bytes of the body, and whether it is complete, reading `pieces` in turn.
    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut decoder = Decoder::default();
        let (mut content, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() && !decoder.is_done() {
                let read = decoder.next(rest)?;
                let (now, later) = rest.split_at(read.len());
                if let Piece::Content(_) = read {
                    content.extend_from_slice(now);
                }
                taken += now.len();
                rest = later;
            }
        }
        Ok((content, taken, decoder.is_done()))
    }

    #[test]
    fn trailers_may_have_any_name_that_is_a_token() {
        for mut decoder in [Decoder::default(), Decoder::of_response()] {
            let body = b"0\r\nx_cost.ms: 5\r\n\r\n";

            let taken = decoder.next(body).map(Piece::len).and_then(|n| decoder.next(&body[n..]));

            assert_eq!(taken, Ok(Piece::Trailers(body.len() - 3)));
        }
        assert_eq!(decode(&[b"0\r\nx[: 5\r\n\r\n"]), Err(Malformed));
    }

    #[test]
    fn reads_chunks_extensions_and_trailers() {
        let cases: [(&str, &[u8], &[u8]); 5] = [
            ("empty", b"0\r\n\r\n", b""),
            ("one", b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (
                "hex in both cases",
                b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
                b"01234567890123456789",
            ),
            ("extension", b"1;x=\"y z\"\r\n!\r\n0;last\r\n\r\n", b"!"),
            ("trailers", b"1\r\n!\r\n0\r\nX-Sum: 1\r\nGrpc-Status: 0\r\n\r\n", b"!"),
        ];
        for (case, bytes, content) in cases {
            assert_eq!(decode(&[bytes]), Ok((content.to_vec(), bytes.len(), true)), "{case}");
        }
    }

    #[test]
    fn refuses_what_another_parser_could_read_differently() {
        let cases: [(&str, &[u8]); 14] = [
            ("bare lf after the size", b"1\n!\r\n0\r\n\r\n"),
            ("bare lf after the content", b"1\r\n!\n0\r\n\r\n"),
            ("bare lf in an extension", b"1;a\n!\r\n0\r\n\r\n"),
            ("cr in an extension", b"1;a\rb\r\n!\r\n0\r\n\r\n"),
            ("no size", b"\r\n!\r\n0\r\n\r\n"),
            ("sign", b"+1\r\n!\r\n0\r\n\r\n"),
            ("prefix", b"0x1\r\n!\r\n0\r\n\r\n"),
            ("space before the size", b" 1\r\n!\r\n0\r\n\r\n"),
            ("space after the size", b"1 \r\n!\r\n0\r\n\r\n"),
            ("size too long", b"1000000000000000\r\n"),
            ("content longer than its size", b"1\r\n!!\r\n0\r\n\r\n"),
            ("trailer that frames", b"0\r\nContent-Length: 5\r\n\r\n"),
            ("trailer without a name", b"0\r\n: x\r\n\r\n"),
            ("folded trailer", b"0\r\nX-A: 1\r\n 2\r\n\r\n"),
        ];
        for (case, bytes) in cases {
            assert_eq!(decode(&[bytes]), Err(Malformed), "{case}");
        }
    }

    /// What passes of a body that comes in pieces of so many bytes.
    fn passed(decoder: &Decoder, bytes: &[u8], step: usize) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut body, mut passed, mut waiting) = (Body::Chunked(decoder.clone()), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            waiting.extend_from_slice(piece);
            while !waiting.is_empty() && !body.is_done() {
                let out = body.left_out(&waiting, |name| name.eq_ignore_ascii_case(b"x-secret"))?;
                waiting.drain(..out);
                let on = body.pass(&waiting)?;
                passed.extend(waiting.drain(..on));
                if out + on == 0 {
                    break;
                }
            }
        }
        Ok((passed, body.is_done()))
    }

    #[test]
    fn extensions_go_no_further_and_trailers_only_behind_a_response() {
        let bytes = b"3;a=\"b\r\nabc\r\n1;;=\r\n;\r\n0;last\r\nX-Sum: 1\r\nX-Secret: 1\r\nX: 2\r\n\r\n";
        let cases: [(_, &[u8]); 2] = [
            (Decoder::default(), b"3\r\nabc\r\n1\r\n;\r\n0\r\n\r\n"),
            (Decoder::of_response(), b"3\r\nabc\r\n1\r\n;\r\n0\r\nX-Sum: 1\r\nX: 2\r\n\r\n"),
        ];
        for (decoder, expected) in cases {
            for step in 1..=bytes.len() {
                let passed = passed(&decoder, bytes, step);
                assert_eq!(passed, Ok((expected.to_vec(), true)), "{step} bytes at a time");
            }
        }
    }

    #[test]
    fn trailers_of_a_response_that_may_not_stand_there_are_left_out() {
        let cases = [
            "Connection: close",
            "content-LENGTH: 5",
            "Transfer-Encoding: chunked",
            "Set-Cookie: a=b",
            "X-Accel-Redirect: /x",
            "no colon",
            ": no name",
            " folded",
            "a b: c",
            "x[: 5",
        ];
        for line in cases {
            let bytes = format!("1\r\n!\r\n0\r\nA: 1\r\n{line}\r\nB: 2\r\n\r\n");
            for step in 1..=bytes.len() {
                let passed = passed(&Decoder::of_response(), bytes.as_bytes(), step);
                let expected = b"1\r\n!\r\n0\r\nA: 1\r\nB: 2\r\n\r\n";
                assert_eq!(passed, Ok((expected.to_vec(), true)), "{line:?}, {step} bytes at a time");

                let mut body = Body::Chunked(Decoder::of_response());
                let read: Result<usize, _> =
                    bytes.as_bytes().chunks(step).map(|piece| body.take(piece)).sum();
                assert_eq!((read, body.is_done()), (Ok(bytes.len()), true), "{line:?} is read");
            }
        }
    }

    #[test]
    fn trailers_of_a_response_are_lines_of_text_and_bounded() {
        let long = format!("A: {}\r\n", "x".repeat(31 * 1024));
        let many = "a:\r\n".repeat(8 * 1024);
        for lines in ["A: 1\n", "A: \r1\r\n", "A\0: 1\r\n", "\n", long.as_str(), many.as_str()] {
            let bytes = format!("0\r\n{lines}\r\n");
            // Each piece is looked at with what came before of its line.
            let least = bytes.len() / 1024 + 1;
            for step in [least, 2 * least, bytes.len()] {
                let passed = passed(&Decoder::of_response(), bytes.as_bytes(), step);
                assert_eq!(
                    passed,
                    Err(Malformed),
                    "{:?}, {step} bytes at a time",
                    &bytes[..10.min(bytes.len())]
                );
            }
        }
        let fits = format!("0\r\nA: {}\r\n\r\n", "x".repeat(31 * 1024 - 10));
        assert!(passed(&Decoder::of_response(), fits.as_bytes(), fits.len()).is_ok_and(|(_, done)| done));
    }

    #[test]
    fn leaves_what_follows_the_body_alone() {
        let (_, taken, done) = decode(&[b"0\r\n\r\nGET / HTTP/1.1"]).unwrap();

        assert_eq!((taken, done), (5, true));
    }

    /// Lines of whatever length: what they add up to is limited, not only the longest.
    #[test]
    fn refuses_trailers_beyond_their_bytes() {
        for line in ["a:\r\n", "name: value of some length\r\n"] {
            let of_bytes = |bytes: usize| [b"0\r\n", line.repeat(bytes / line.len()).as_bytes()].concat();
            let few = [of_bytes(usize::from(TRAILER_BYTES) - line.len()), b"\r\n".to_vec()].concat();

            assert!(decode(&[&few]).unwrap().2, "{line:?}");
            assert_eq!(
                decode(&[&of_bytes(usize::from(TRAILER_BYTES) + line.len())]),
                Err(Malformed),
                "{line:?}"
            );
            assert_eq!(decode(&[&of_bytes(200_000)]), Err(Malformed), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trips_under_any_split(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in proptest::collection::vec(0usize..400, 0..8),
        ) {
            let mut coded = Vec::new();
            for chunk in &chunks {
                coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                coded.extend_from_slice(chunk);
                coded.extend_from_slice(b"\r\n");
            }
            coded.extend_from_slice(b"0\r\n\r\n");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(coded.len())).collect();
            cuts.extend([0, coded.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &coded[cut[0]..cut[1]]).collect();

            prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), coded.len(), true)));
        }

        #[test]
        fn every_step_gets_on_and_every_part_has_its_limit(
            begin in prop_oneof![Just("0\r\n"), Just("0"), Just("")],
            unit in prop_oneof!["a:\r\n", "a{0,2}:[ a]{0,3}\r\n", ";[a-z]{0,4}", "1\r\n!\r\n", "[0-9a-f]", "[a-z0-9;:\r\n]{1,6}"],
            times in 0usize..40_000,
        ) {
            let bytes = [begin, &unit.repeat(times)].concat();
            let (mut decoder, mut rest) = (Decoder::default(), bytes.as_bytes());
            let (mut trailers, mut framing) = (0, 0);
            while !rest.is_empty() && !decoder.is_done() {
                let Ok(piece) = decoder.next(rest) else { break };
                prop_assert!((1..=rest.len()).contains(&piece.len()), "{piece:?} of {}", rest.len());
                match piece {
                    Piece::Content(_) => framing = 0,
                    Piece::Framing(n) => framing += n,
                    Piece::Trailers(n) => trailers += n,
                }
                rest = &rest[piece.len()..];
            }
            // A byte or two of what ends a line may come after the last one that counts.
            prop_assert!(trailers <= usize::from(TRAILER_BYTES) + 4, "{trailers} bytes of trailers");
            prop_assert!(framing <= usize::from(EXTENSION_BYTES) + 32, "{framing} bytes of framing");
        }
    }
}
