//! The user that a Basic Authorization header names.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// As forgiving as nginx: clients that leave the padding out are named all the same.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Decoded from the header's value, unverified; `None` without one.
pub(super) fn user(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = LENIENT.decode(rest.trim_ascii()).ok()?;
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
            ("Basic  Ym9iOg ", Some("bob")),
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
