//! Records of FastCGI 1.0: those we send, and a reader of those that come back. Pure.
//!
//! A connection carries one request, so its id is always the same and a record of another one is
//! a mistake.

/// Bytes of a record's header.
const HEADER: usize = 8;
/// Most content of one record.
const CONTENT_MAX: usize = 0xffff;
const VERSION: u8 = 1;
/// Id of our request; 0 is the application's own business (management records).
const REQUEST: u16 = 1;
const MANAGEMENT: u16 = 0;

/// Kinds of records that we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Begin = 1,
    Params = 4,
    Stdin = 5,
}

/// Kinds of records that we read.
const END_REQUEST: u8 = 3;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
/// Role, flags and reserved bytes of a `Begin`: a responder, and the connection is to be closed after.
const RESPONDER: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];

/// Begins the request.
pub(super) fn begin(out: &mut Vec<u8>) {
    record(Kind::Begin, &RESPONDER, out);
}

/// A stream's next bytes, in as many records as they need. No bytes, no record.
pub(super) fn stream(kind: Kind, bytes: &[u8], out: &mut Vec<u8>) {
    bytes.chunks(CONTENT_MAX).for_each(|content| record(kind, content, out));
}

/// The end of a stream.
pub(super) fn end(kind: Kind, out: &mut Vec<u8>) {
    record(kind, &[], out);
}

fn record(kind: Kind, content: &[u8], out: &mut Vec<u8>) {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let [id_high, id_low] = REQUEST.to_be_bytes();
    // Without padding: nothing here is read by words.
    out.extend_from_slice(&[VERSION, kind as u8, id_high, id_low, high, low, 0, 0]);
    out.extend_from_slice(content);
}

/// A parameter: its length and its value's, each in one byte or four, then both.
pub(super) fn pair(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    length(name.len(), out);
    length(value.len(), out);
    out.extend_from_slice(name);
    out.extend_from_slice(value);
}

fn length(length: usize, out: &mut Vec<u8>) {
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        // A head is far below the 31 bits that there are.
        _ => out.extend_from_slice(&(u32::try_from(length).unwrap_or(u32::MAX) | 1 << 31).to_be_bytes()),
    }
}

/// No answer as the protocol has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::l7) enum Malformed {
    /// A header of another version, of a record that no application sends, or of another request.
    #[error("unusable fastcgi record")]
    Record,
    /// The application's output does not begin with a CGI head.
    #[error("unusable cgi head")]
    Head,
    /// Its output ended within the head.
    #[error("no cgi head")]
    NoHead,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Carried out.
    Complete,
    /// Turned down before anything was done: overloaded, or not a responder.
    Refused,
}

/// A run of bytes of one sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Of the application's output.
    Output(usize),
    /// Of its complaints.
    Errors(usize),
    /// Headers, padding and what is of no interest.
    Framing(usize),
    /// The header that says that the output is complete.
    OutputEnd(usize),
    /// The rest of the record that ends the request. Nothing is read after it.
    End(usize, Outcome),
}

impl Piece {
    /// Bytes in it.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Output(n) | Self::Errors(n) | Self::Framing(n) | Self::OutputEnd(n) | Self::End(n, _) => n,
        }
    }
}

/// Reads records in whatever slices they arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decoder(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Header { seen: [u8; HEADER], len: usize },
    Content { of: Content, left: u16, padding: u8 },
    EndRequest { seen: [u8; 8], len: usize },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Output,
    Errors,
    Nothing,
}

impl Default for Decoder {
    fn default() -> Self {
        Self(State::start())
    }
}

impl State {
    fn start() -> Self {
        Self::Header { seen: [0; HEADER], len: 0 }
    }

    /// Behind content of this length.
    fn behind(padding: u8) -> Self {
        match padding {
            0 => Self::start(),
            padding => Self::Content { of: Content::Nothing, left: u16::from(padding), padding: 0 },
        }
    }
}

impl Decoder {
    /// Takes the next piece from `bytes`. Empty only if `bytes` is, or the request has ended.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        match &mut self.0 {
            State::Ended => Ok(Piece::Framing(0)),
            State::Header { seen, len } => {
                let n = fill(seen, len, bytes);
                if *len < HEADER {
                    return Ok(Piece::Framing(n));
                }
                let header = *seen;
                self.begin(header, n)
            }
            State::EndRequest { seen, len } => {
                let n = fill(seen, len, bytes);
                if *len < seen.len() {
                    return Ok(Piece::Framing(n));
                }
                // Its first half is the exit status of a program, which says nothing about the answer.
                let outcome = match seen {
                    [_, _, _, _, 0, ..] => Outcome::Complete,
                    _ => Outcome::Refused,
                };
                self.0 = State::Ended;
                Ok(Piece::End(n, outcome))
            }
            State::Content { of, left, padding } => {
                let n = bytes.len().min(usize::from(*left));
                *left -= u16::try_from(n).unwrap_or(*left);
                let of = *of;
                if *left == 0 {
                    self.0 = State::behind(*padding);
                }
                Ok(match of {
                    Content::Output => Piece::Output(n),
                    Content::Errors => Piece::Errors(n),
                    Content::Nothing => Piece::Framing(n),
                })
            }
        }
    }

    /// A whole header, the last `n` bytes of which were read now.
    fn begin(&mut self, header: [u8; HEADER], n: usize) -> Result<Piece, Malformed> {
        let [version, kind, id_high, id_low, high, low, padding, _] = header;
        let id = u16::from_be_bytes([id_high, id_low]);
        let left = u16::from_be_bytes([high, low]);
        if version != VERSION {
            return Err(Malformed::Record);
        }
        let of = match (id, kind) {
            // Nothing was asked of it, so nothing that it says matters.
            (MANAGEMENT, _) => Content::Nothing,
            (REQUEST, STDOUT) => Content::Output,
            (REQUEST, STDERR) => Content::Errors,
            (REQUEST, END_REQUEST) if left == 8 => {
                self.0 = State::EndRequest { seen: [0; 8], len: 0 };
                return Ok(Piece::Framing(n));
            }
            _ => return Err(Malformed::Record),
        };
        self.0 = match left {
            0 => State::behind(padding),
            left => State::Content { of, left, padding },
        };
        Ok(if of == Content::Output && left == 0 { Piece::OutputEnd(n) } else { Piece::Framing(n) })
    }
}

/// Adds to what was seen of a structure; returns the bytes taken.
fn fill(seen: &mut [u8; 8], len: &mut usize, bytes: &[u8]) -> usize {
    let mut n = 0;
    for (place, byte) in seen.iter_mut().skip(*len).zip(bytes) {
        *place = *byte;
        n += 1;
    }
    *len += n;
    n
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_application(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("a record");
        let mut bytes = vec![VERSION, kind];
        bytes.extend(id.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend([padding, 0]);
        bytes.extend_from_slice(content);
        bytes.extend(vec![0xee; usize::from(padding)]);
        bytes
    }

    /// Output, complaints, and how it ended.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Read {
        output: Vec<u8>,
        errors: Vec<u8>,
        closed: bool,
        outcome: Option<Outcome>,
        rest: usize,
    }

    fn read(pieces: &[&[u8]]) -> Result<Read, Malformed> {
        let (mut decoder, mut found) = (Decoder::default(), Read::default());
        for bytes in pieces {
            let mut rest = *bytes;
            while !rest.is_empty() {
                let piece = decoder.next(rest)?;
                let (now, later) = rest.split_at(piece.len());
                match piece {
                    Piece::Output(_) => found.output.extend_from_slice(now),
                    Piece::Errors(_) => found.errors.extend_from_slice(now),
                    Piece::OutputEnd(_) => found.closed = true,
                    Piece::End(_, outcome) => found.outcome = Some(outcome),
                    Piece::Framing(0) => {
                        found.rest += rest.len();
                        break;
                    }
                    Piece::Framing(_) => {}
                }
                rest = later;
            }
        }
        Ok(found)
    }

    fn ended(protocol_status: u8) -> Vec<u8> {
        from_application(END_REQUEST, 1, &[0, 0, 0, 9, protocol_status, 0, 0, 0], 0)
    }

    #[test]
    fn an_answer_is_read_the_same_wherever_it_is_cut() {
        let bytes = [
            from_application(10, 0, b"\x0e\x01FCGI_MPXS_CONNS0", 3),
            from_application(STDOUT, 1, b"Status: 200\r\n\r\n", 1),
            from_application(STDERR, 1, b"PHP warning", 5),
            from_application(STDERR, 1, b"", 0),
            from_application(STDOUT, 1, b"body", 0),
            from_application(STDOUT, 1, b"", 8),
            ended(0),
            b"beyond".to_vec(),
        ]
        .concat();
        let expected = Read {
            output: b"Status: 200\r\n\r\nbody".to_vec(),
            errors: b"PHP warning".to_vec(),
            closed: true,
            outcome: Some(Outcome::Complete),
            rest: 6,
        };

        for at in 0..=bytes.len() {
            let (left, right) = bytes.split_at(at);
            assert_eq!(read(&[left, right]).as_ref(), Ok(&expected), "cut at {at}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(read(&single), Ok(expected));
    }

    #[test]
    fn a_request_can_be_turned_down() {
        for status in 1..=3 {
            let found = read(&[&ended(status)]).expect("well-formed");
            assert_eq!(found.outcome, Some(Outcome::Refused), "{status}");
        }
    }

    #[test]
    fn what_is_no_answer_of_ours_is_refused() {
        let mut other_version = from_application(STDOUT, 1, b"x", 0);
        other_version[0] = 2;
        let cases = [
            ("another version", other_version),
            ("another request", from_application(STDOUT, 2, b"x", 0)),
            ("an id in the high byte", from_application(STDOUT, 0x0101, b"x", 0)),
            ("a record that is ours to send", from_application(5, 1, b"x", 0)),
            ("an unknown record", from_application(99, 1, b"x", 0)),
            ("a short end", from_application(END_REQUEST, 1, &[0; 4], 0)),
            ("no records at all", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        ];
        for (case, bytes) in cases {
            assert_eq!(read(&[&bytes]), Err(Malformed::Record), "{case}");
        }
    }

    /// Pairs as an application reads them.
    fn pairs(mut bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        fn length(bytes: &mut &[u8]) -> usize {
            let (first, rest) = bytes.split_first().expect("a length");
            *bytes = rest;
            if first & 0x80 == 0 {
                return usize::from(*first);
            }
            let (more, rest) = bytes.split_at(3);
            *bytes = rest;
            more.iter().fold(usize::from(first & 0x7f), |n, byte| n << 8 | usize::from(*byte))
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (name, value) = (length(&mut bytes), length(&mut bytes));
            let (pair, rest) = bytes.split_at(name + value);
            let (name, value) = pair.split_at(name);
            found.push((name.to_vec(), value.to_vec()));
            bytes = rest;
        }
        found
    }

    proptest! {
        #[test]
        fn pairs_of_any_length_are_read_as_written(
            lengths in proptest::collection::vec((0usize..300, 0usize..70_000), 0..5),
        ) {
            let wanted: Vec<_> = lengths.iter().map(|(n, v)| (vec![b'N'; *n], vec![b'v'; *v])).collect();
            let mut bytes = Vec::new();
            for (name, value) in &wanted {
                pair(name, value, &mut bytes);
            }

            prop_assert_eq!(pairs(&bytes), wanted);
        }

        #[test]
        fn a_stream_is_cut_into_records_and_nothing_is_lost(length in 0usize..200_000) {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut bytes = Vec::new();
            stream(Kind::Stdin, &content, &mut bytes);
            end(Kind::Stdin, &mut bytes);
            // What we send is what an application would, but for the kind.
            let (mut at, mut headers) = (0, 0);
            while let Some(kind) = bytes.get_mut(at + 1) {
                *kind = STDOUT;
                headers += 1;
                at += HEADER + usize::from(u16::from_be_bytes([bytes[at + 4], bytes[at + 5]]));
            }

            let found = read(&[&bytes]).expect("well-formed");
            prop_assert_eq!(headers, length.div_ceil(CONTENT_MAX) + 1);
            prop_assert!(found.closed);
            prop_assert_eq!(found.output, content);
        }

        #[test]
        fn every_step_gets_on_and_the_end_is_the_end(
            records in proptest::collection::vec((0u8..12, 0u16..3, 0usize..0xffff, any::<u8>()), 0..20),
            tail in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let record = |(kind, id, length, padding)| from_application(kind, id, &vec![7; length], padding);
            let mut bytes = records.into_iter().map(record).collect::<Vec<_>>().concat();
            bytes.extend(tail);
            let (mut decoder, mut rest) = (Decoder::default(), &bytes[..]);
            while !rest.is_empty() {
                let Ok(piece) = decoder.next(rest) else { break };
                if piece == Piece::Framing(0) {
                    prop_assert_eq!(decoder.next(rest), Ok(Piece::Framing(0)), "it goes on after the end");
                    break;
                }
                prop_assert!((1..=rest.len()).contains(&piece.len()), "{piece:?} of {}", rest.len());
                rest = &rest[piece.len()..];
            }
        }
    }
}
