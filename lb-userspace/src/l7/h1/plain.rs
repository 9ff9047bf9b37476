//! Heads as nearly everybody writes them, read in one pass: a first line of HTTP/1.1 and up to [`LINES_MAX`] header lines
//! `Name: value`, all of it visible ASCII and every line ended by CRLF.
//!
//! What is not whole, longer or of another form is left to those who read every head. Where these read one as well they
//! come to the same, to which tests hold both.

use httparse::Header;

use super::head::is_of_token;

/// Most header lines of a head that is read here.
pub(super) const LINES_MAX: usize = 24;

/// Room for them.
pub(super) type Room<'b> = [Header<'b>; LINES_MAX];

/// Method and target of a request, and the bytes of its first line.
pub(super) fn request_line(bytes: &[u8]) -> Option<(&str, &[u8], usize)> {
    let blank = bytes.iter().position(|byte| !byte.is_ascii_uppercase())?;
    let (method, rest) = bytes.split_at_checked(blank)?;
    let rest = rest.strip_prefix(b" ")?;
    let (target, behind) = rest.split_at_checked(end_of::<b'!'>(rest)?)?;
    let rest = behind.strip_prefix(b" HTTP/1.1\r\n")?;
    if method.is_empty() || target.is_empty() {
        return None;
    }
    Some((std::str::from_utf8(method).ok()?, target, bytes.len() - rest.len()))
}

/// Status and reason of a response, and the bytes of its first line.
pub(super) fn status_line(bytes: &[u8]) -> Option<(u16, &str, usize)> {
    let ([hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', units @ b'0'..=b'9', b' '], rest) =
        bytes.strip_prefix(b"HTTP/1.1 ")?.split_first_chunk()?
    else {
        return None;
    };
    let digit = |byte: &u8| u16::from(byte - b'0');
    let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(units);
    let (reason, behind) = rest.split_at_checked(end_of::<b' '>(rest)?)?;
    let rest = behind.strip_prefix(b"\r\n")?;
    Some((status, std::str::from_utf8(reason).ok()?, bytes.len() - rest.len()))
}

/// The header lines from `start` on, none longer than `longest`, and the bytes of the whole head.
pub(super) fn header_lines<'h, 'b>(
    bytes: &'b [u8],
    start: usize,
    longest: usize,
    room: &'h mut Room<'b>,
) -> Option<(&'h [Header<'b>], usize)> {
    let mut rest = bytes.get(start..)?;
    let mut count = 0;
    loop {
        if let Some(body) = rest.strip_prefix(b"\r\n") {
            return Some((room.get(..count)?, bytes.len() - body.len()));
        }
        let (name, value) =
            rest.split_at_checked(rest.iter().position(|byte| !OF_NAME[usize::from(*byte)])?)?;
        let value = value.strip_prefix(b":")?;
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let (value, behind) = value.split_at_checked(end_of::<b' '>(value)?)?;
        let behind = behind.strip_prefix(b"\r\n")?;
        let (Some(first), Some(last)) = (value.first(), value.last()) else { return None };
        if name.is_empty() || *first == b' ' || *last == b' ' || rest.len() - behind.len() > longest {
            return None;
        }
        *room.get_mut(count)? = Header { name: std::str::from_utf8(name).ok()?, value };
        (rest, count) = (behind, count + 1);
    }
}

/// Which bytes a name has.
static OF_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = is_of_token(byte);
        byte += 1;
    }
    table
};

/// Where the first byte stands that is not from `LEAST`, which is visible or the blank, to `~`. Eight bytes at a time.
fn end_of<const LEAST: u8>(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = bytes.as_chunks();
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The highest bit of each byte that is too small, DEL, or beyond ASCII. What is borrowed or carried changes only
        // bytes behind one of these.
        let others = (word.wrapping_sub(ONES * LEAST as u64) | word | word.wrapping_add(ONES)) & (ONES << 7);
        if others != 0 {
            return Some(place * 8 + others.trailing_zeros() as usize / 8);
        }
    }
    let end = rest.iter().position(|byte| !(LEAST..=b'~').contains(byte))?;
    Some(words.len() * 8 + end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_ends_where_its_first_other_byte_stands(
            text in "[ -~]{0,40}",
            behind in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = [text.as_bytes(), &behind].concat();
            let is = |least: u8| bytes.iter().position(|byte| !(least..=b'~').contains(byte));
            prop_assert_eq!((end_of::<b' '>(&bytes), end_of::<b'!'>(&bytes)), (is(b' '), is(b'!')));
        }
    }
}
