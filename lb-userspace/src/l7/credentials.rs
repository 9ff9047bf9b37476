//! What a Basic Authorization header holds.

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

/// User and password, unverified.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: Vec<u8>,
    pub(super) password: Vec<u8>,
}

impl Credentials {
    /// Decoded from the header's value; `None` if it holds none, or no user.
    pub(super) fn read(authorization: &[u8]) -> Option<Self> {
        let (scheme, rest) = authorization.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let mut decoded = LENIENT.decode(rest.trim_ascii()).ok()?;
        let end = decoded.iter().position(|byte| *byte == b':').filter(|end| *end > 0)?;
        let password = decoded.split_off(end + 1);
        decoded.truncate(end);
        Some(Self { user: decoded, password })
    }
}

impl std::fmt::Debug for Credentials {
    /// The password never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Credentials").field(&String::from_utf8_lossy(&self.user)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_what_stands_before_the_first_colon_and_the_password_the_rest() {
        for (header, expected) in [
            ("Basic YWxpY2U6c2VjcmV0OjE=", Some(("alice", "secret:1"))),
            ("basic Ym9iOg==", Some(("bob", ""))),
            ("Basic  Ym9iOg ", Some(("bob", ""))),
            ("Basic OnNlY3JldA==", None),
            ("Basic YWxpY2U=", None),
            ("Basic !!", None),
            ("Bearer YWxpY2U6c2VjcmV0", None),
            ("", None),
        ] {
            let read = Credentials::read(header.as_bytes());

            let expected =
                expected.map(|(user, password)| Credentials { user: user.into(), password: password.into() });
            assert_eq!(read, expected, "{header}");
        }
    }
}
