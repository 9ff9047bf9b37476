//! Any bytes as an answer, for the fuzz target and the tests.

use super::super::h1::Response;
use super::super::h1::body::Body;
use super::super::h1::chunked::{Decoder, Piece};
use super::super::h1::head::{Lines, Refusal};
use super::answer::Answer;
use super::record::Malformed;

/// Everything that is read of an answer whose records arrive `size` bytes at a time, and why it ended
/// early if it did.
pub(super) fn read(records: &[u8], size: usize, head_only: bool) -> (Vec<u8>, Option<Malformed>) {
    let (mut answer, mut output) = (Answer::new(head_only), Vec::new());
    let mut into = [0; 1000];
    for piece in records.chunks(size.max(1)) {
        let mut rest = piece;
        while !rest.is_empty() {
            if !answer.is_ready() {
                match answer.look(rest) {
                    Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                    Err(malformed) => return (output, Some(malformed)),
                }
            }
            while answer.is_ready() {
                let (done, written) = answer.take(rest, &mut into);
                output.extend_from_slice(into.get(..written).unwrap_or_default());
                rest = rest.get(done..).unwrap_or_default();
                if written == 0 {
                    return (output, None);
                }
            }
        }
    }
    (output, None)
}

/// The head of an answer, its content and whether that is all of it; `None` without a head.
type Message = Option<(Vec<u8>, Vec<u8>, bool)>;

fn message(output: &[u8]) -> Message {
    let mut lines = Lines::new();
    let (len, mut body) = match Response::parse(output, &mut lines) {
        Ok(Some(response)) => match (response.chunked, response.length) {
            (true, _) => (response.len, Body::Chunked(Decoder::of_response())),
            (false, length) => (response.len, Body::Length(length.unwrap_or(0))),
        },
        // What is too much for the parser is refused there.
        Err(Refusal::HeadTooLarge | Refusal::LineTooLong) => return None,
        Ok(None) => {
            assert!(output.is_empty(), "a head is given as a whole");
            return None;
        }
        Err(other) => panic!("{other}: {:?}", output.escape_ascii().to_string()),
    };
    let (head, mut rest) = output.split_at_checked(len)?;
    let mut content = Vec::new();
    while !rest.is_empty() && !body.is_done() {
        let piece = body.piece(rest).expect("well-formed chunks");
        let (now, later) = rest.split_at_checked(piece.len())?;
        if let Piece::Content(_) = piece {
            content.extend_from_slice(now);
        }
        rest = later;
    }
    assert!(rest.is_empty(), "nothing follows the body");
    Some((head.to_vec(), content, body.is_done()))
}

/// An answer is the same however its records are cut, and what is made of it is a response that the
/// parser of HTTP/1.1 takes for one.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    for head_only in [false, true] {
        let (whole, why) = read(bytes, bytes.len(), head_only);
        let whole = message(&whole);
        for size in [1, 7, 60] {
            let (cut, cut_why) = read(bytes, size, head_only);
            assert_eq!((message(&cut), cut_why), (whole.clone(), why), "in pieces of {size}");
        }
    }
}
