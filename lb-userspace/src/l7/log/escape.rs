//! Values as they may stand in a line.

use super::super::digits::hex;
use crate::model::l7::log::Escape;

/// Writes a value that is there, which may be empty.
pub(super) fn value(bytes: &[u8], escape: Escape, out: &mut Vec<u8>) {
    let special = match escape {
        Escape::None => return out.extend_from_slice(bytes),
        Escape::Default => &SPECIAL,
        Escape::Json => &SPECIAL_IN_JSON,
    };
    // Nearly every value has nothing to escape: one look, one copy.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| special[usize::from(*byte)]) {
        let (clean, dirty) = rest.split_at(at);
        out.extend_from_slice(clean);
        let Some((byte, after)) = dirty.split_first() else { break };
        match escape {
            Escape::Json => json(*byte, out),
            Escape::Default | Escape::None => {
                out.extend_from_slice(b"\\x");
                out.extend_from_slice(&hex(*byte));
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// Which bytes are escaped.
static SPECIAL: [bool; 256] = specials(0x7e);
static SPECIAL_IN_JSON: [bool; 256] = specials(u8::MAX);

const fn specials(last: u8) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = byte < 0x20 || byte > last as usize || matches!(byte as u8, b'"' | b'\\');
        byte += 1;
    }
    table
}

/// Writes that there is no value.
pub(super) fn absent(escape: Escape, out: &mut Vec<u8>) {
    if escape == Escape::Default {
        out.push(b'-');
    }
}

fn json(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&hex(byte));
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_end_its_field_or_its_line() {
        let evil = b"a\"b\\c\nd\x7fe\xc3\xa9\x01";
        for (escape, expected) in [
            (Escape::Default, &br"a\x22b\x5Cc\x0Ad\x7Fe\xC3\xA9\x01"[..]),
            (Escape::Json, b"a\\\"b\\\\c\\nd\x7fe\xc3\xa9\\u0001"),
            (Escape::None, evil),
        ] {
            let mut out = Vec::new();

            value(evil, escape, &mut out);

            assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{escape:?}");
        }
    }
}
