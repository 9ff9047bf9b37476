//! The user that a Basic Authorization header names.

/// Decoded from the header's value, unverified; `None` without one.
pub(super) fn user(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = Vec::with_capacity(rest.len());
    let (mut bits, mut held) = (0_u32, 0);
    for byte in rest.trim_ascii().iter().take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push((bits >> held) as u8);
        }
    }
    let end = decoded.iter().position(|byte| *byte == b':').filter(|end| *end > 0)?;
    decoded.truncate(end);
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_what_stands_before_the_first_colon() {
        for (header, expected) in [
            ("Basic YWxpY2U6c2VjcmV0OjE=", Some("alice")),
            ("basic Ym9iOg==", Some("bob")),
            ("Basic OnNlY3JldA==", None),
            ("Basic YWxpY2U=", None),
            ("Basic !!", None),
            ("Bearer YWxpY2U6c2VjcmV0", None),
            ("", None),
        ] {
            assert_eq!(user(header.as_bytes()).as_deref(), expected.map(str::as_bytes), "{header}");
        }
    }
}
