//! Request paths: what is compared (decoded, normalised) and what is written (escaped).

use std::borrow::Cow;

use super::digits::hex;

/// The path cannot be normalised: a broken escape, an encoded NUL, or `..` above the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadPath;

/// Splits a target at its first `?`; the query comes without it.
pub(super) fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|&b| b == b'?') {
        Some(at) => (target.get(..at).unwrap_or_default(), target.get(at + 1..)),
        None => (target, None),
    }
}

/// Decodes `path`, merges slashes and resolves dot segments, as nginx does before it chooses a
/// location: escapes first, so `%2e%2e%2f` climbs like `../`.
pub(super) fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>, BadPath> {
    if !path.contains(&b'%') {
        if is_normal(path) {
            return Ok(Cow::Borrowed(path));
        }
        return resolve(path).map(Cow::Owned);
    }
    let decoded = decode(path)?;
    if is_normal(&decoded) {
        return Ok(Cow::Owned(decoded));
    }
    resolve(&decoded).map(Cow::Owned)
}

/// Nothing to merge, nothing to resolve. A segment that starts with a dot is left to `resolve`.
fn is_normal(path: &[u8]) -> bool {
    path.first() == Some(&b'/') && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

fn decode(path: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|&b| char::from(b).to_digit(16)).ok_or(BadPath);
        let value = u8::try_from(digit()? * 16 + digit()?).map_err(|_| BadPath)?;
        if value == 0 {
            return Err(BadPath);
        }
        decoded.push(value);
    }
    Ok(decoded)
}

fn resolve(path: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut resolved = Vec::with_capacity(path.len() + 1);
    // A path ends in a slash if it did, or if its last segment named a directory.
    let mut slash = true;
    for segment in path.split(|&b| b == b'/') {
        slash = true;
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = resolved.iter().rposition(|&b| b == b'/').ok_or(BadPath)?;
                resolved.truncate(parent);
            }
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(segment);
                slash = false;
            }
        }
    }
    if slash {
        resolved.push(b'/');
    }
    Ok(resolved)
}

/// Appends a decoded path so that it can stand in a request line or a Location header.
pub(super) fn escape_path(decoded: &[u8], out: &mut Vec<u8>) {
    escape(decoded, out, |b| matches!(b, b'%' | b'?' | b'#'));
}

/// Appends decoded bytes so that they stay within the argument of a query that they begin or go on with.
pub(super) fn escape_argument(decoded: &[u8], out: &mut Vec<u8>) {
    escape(decoded, out, |b| matches!(b, b'%' | b'?' | b'#' | b'&' | b'+' | b';'));
}

/// Appends text a user wrote as a URL; `%`, `?` and `#` mean there what they mean in a URL.
pub(super) fn escape_literal(text: &[u8], out: &mut Vec<u8>) {
    escape(text, out, |_| false);
}

/// Appends bytes so that they can stand in a query parameter.
pub(super) fn escape_component(bytes: &[u8], out: &mut Vec<u8>) {
    escape(bytes, out, |b| !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'.' | b'_' | b'~'));
}

fn escape(bytes: &[u8], out: &mut Vec<u8>, special: impl Fn(u8) -> bool) {
    for &byte in bytes {
        let unsafe_byte =
            matches!(byte, 0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{'..=b'}');
        if unsafe_byte || special(byte) {
            let [high, low] = hex(byte);
            out.extend_from_slice(&[b'%', high, low]);
        } else {
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_compared_decoded_merged_and_resolved() {
        let cases: [(&str, Result<&str, BadPath>); 17] = [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a/b/", Ok("/a/b/")),
            ("//a///b", Ok("/a/b")),
            ("/a/./b", Ok("/a/b")),
            ("/a/.", Ok("/a/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/../b", Ok("/b")),
            ("/a/.b/..c", Ok("/a/.b/..c")),
            ("/a%2Fb", Ok("/a/b")),
            ("/a/%2e%2E/b", Ok("/b")),
            ("/%61%20b", Ok("/a b")),
            ("/..", Err(BadPath)),
            ("/a/../../b", Err(BadPath)),
            ("/%", Err(BadPath)),
            ("/%4", Err(BadPath)),
            ("/%00", Err(BadPath)),
        ];
        for (path, expected) in cases {
            let normal = normalize(path.as_bytes());
            assert_eq!(normal.as_deref(), expected.map(str::as_bytes).as_ref().map(|b| *b), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(path in "/[a-z./%0-9A-F]{0,40}") {
            if let Ok(once) = normalize(path.as_bytes()) {
                let mut escaped = Vec::new();
                escape_path(&once, &mut escaped);
                prop_assert_eq!(normalize(&escaped), Ok(once));
            }
        }
    }
}
