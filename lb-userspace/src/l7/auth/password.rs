//! Whether a password is the one that a Secret keeps. Pure; some of it is made to take long.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use md5::{Digest, Md5};
use sha_crypt::{PasswordHashRef, PasswordVerifier, ShaCrypt};

use super::des;
use crate::model::l7::policy::Password;

/// Longest password that is compared: some of the hashes cost more, the longer it is.
const LONGEST: usize = 256;

/// The check takes longer than an event loop may be held up.
pub(super) fn is_costly(kept: &Password, given: &[u8]) -> bool {
    match kept {
        _ if given.len() > LONGEST => false,
        Password::Bcrypt(_) | Password::Md5 { .. } | Password::ShaCrypt(_) | Password::Des(_) => true,
        Password::Sha1 { .. } | Password::Plain(_) | Password::Unusable => false,
    }
}

/// The password given is the one kept.
pub(super) fn is(kept: &Password, given: &[u8]) -> bool {
    let same = |a: &[u8], b: &[u8]| verify_slices_are_equal(a, b).is_ok();
    match kept {
        _ if given.len() > LONGEST => false,
        Password::Bcrypt(text) => bcrypt::verify(given, text).unwrap_or(false),
        Password::Md5 { magic, salt, hash } => {
            same(&md5_crypt(magic.as_bytes(), salt.as_bytes(), given), hash.as_bytes())
        }
        Password::ShaCrypt(text) => PasswordHashRef::new(text)
            .is_ok_and(|hash| ShaCrypt::default().verify_password(given, hash).is_ok()),
        Password::Sha1 { digest: kept, salt } => {
            same(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[given, salt].concat()).as_ref(), kept)
        }
        Password::Des(kept) => {
            let [first, second, ..] = *kept;
            des::crypt(given, [first, second]).is_some_and(|made| same(&made, kept))
        }
        Password::Plain(kept) => same(kept, given),
        Password::Unusable => false,
    }
}

/// `$1$` of crypt(3), and Apache's variant with another magic.
fn md5_crypt(magic: &[u8], salt: &[u8], password: &[u8]) -> [u8; 22] {
    let inner = Md5::digest([password, salt, password].concat());
    let mut outer = Md5::new();
    for part in [password, magic, salt] {
        outer.update(part);
    }
    for (at, _) in password.iter().enumerate() {
        outer.update(inner.get(at % 16..=at % 16).unwrap_or_default());
    }
    let mut length = password.len();
    while length > 0 {
        // The letter or a zero, by the bits of the length: a slip of the first author, kept ever since.
        outer.update(if length & 1 == 1 { &[0] } else { password.get(..1).unwrap_or_default() });
        length >>= 1;
    }
    let mut state: [u8; 16] = outer.finalize().into();
    for round in 0..1000 {
        let mut next = Md5::new();
        let (first, last): (&[u8], &[u8]) =
            if round & 1 == 1 { (password, &state) } else { (&state, password) };
        next.update(first);
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(last);
        state = next.finalize().into();
    }
    encode(state)
}

/// Six bits a character, in the order that crypt(3) has.
fn encode(state: [u8; 16]) -> [u8; 22] {
    let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15] = state;
    let groups = [[s0, s6, s12], [s1, s7, s13], [s2, s8, s14], [s3, s9, s15], [s4, s10, s5], [0, 0, s11]];
    let words = groups.map(|[high, middle, low]| u32::from_be_bytes([0, high, middle, low]));
    std::array::from_fn(|at| {
        let word = words.get(at / 4).copied().unwrap_or_default();
        des::ALPHABET[(word >> (6 * (at % 4))) as usize & 63]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn md5(magic: &'static str, salt: &str, hash: &str) -> Password {
        Password::Md5 { magic, salt: salt.to_owned(), hash: hash.to_owned() }
    }

    #[test]
    fn what_htpasswd_openssl_and_libcrypt_made_is_known_again() {
        let sha1 = |digest, salt: &str| Password::Sha1 { digest, salt: salt.into() };
        let carol = [
            0x5f, 0xdc, 0xcf, 0x09, 0xb3, 0x05, 0xcc, 0xc3, 0xe5, 0x61, 0x7e, 0xfe, 0xed, 0x0b, 0x9b, 0x9f,
            0x12, 0x88, 0xee, 0x23,
        ];
        let ivory = [
            0x2a, 0xe5, 0x04, 0xe2, 0x68, 0x59, 0x24, 0xee, 0x46, 0x2b, 0x37, 0x34, 0x5c, 0x2d, 0x70, 0xd9,
            0xd8, 0xcb, 0x35, 0x46,
        ];
        let long = "$6$jwQ/.49iqi24YLc9$RdBQqfmC1e08pFLYY4p3Z412C8l4dJojG3T1KHjwRcIFtMg2bdE1L1O0B52jGyFLJnO2j5Apo17.38zViNCbf1";
        let cases = [
            (
                "htpasswd -B",
                Password::Bcrypt("$2y$05$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRYq".to_owned()),
                "wonderland",
            ),
            ("htpasswd -m", md5("$apr1$", "0DB6fZ3q", "AkluBSoeMvHzx2AI5tEwh1"), "builder"),
            ("openssl -1", md5("$1$", "12345678", "pJ99NihqXTXlUCG0LsoQc."), "grace"),
            ("htpasswd -s", sha1(carol, ""), "singer"),
            ("salted", sha1(ivory, "salt1234"), "ivory"),
            (
                "htpasswd -2",
                Password::ShaCrypt(
                    "$5$RcCN2hWzVyWiiWFv$juklfwQmaCL4VlBBvw.t4lQ18tZnks7SDKrZzwDZ.A3".to_owned(),
                ),
                "digger",
            ),
            (
                "rounds",
                Password::ShaCrypt(
                    "$5$rounds=1234$abcdefgh$ZT4ER10Ay4RGhjQhuPPH6iIao5tBOGW6GFbckGq7Nq0".to_owned(),
                ),
                "digger",
            ),
            ("htpasswd -5", Password::ShaCrypt(long.to_owned()), "echoes"),
            ("htpasswd -d", Password::Des(*b"pPHeaPIKUJo8Q"), "fisher"),
            ("plain", Password::Plain(b"as it is".to_vec()), "as it is"),
        ];
        for (case, kept, given) in cases {
            assert!(is(&kept, given.as_bytes()), "{case}");
            for other in ["", "Wonderland", &given[1..]] {
                assert!(!is(&kept, other.as_bytes()), "{case} {other}");
            }
        }
        assert!(!is(&Password::Unusable, b""));
        assert!(!is(&Password::Bcrypt("$2y$05$short".to_owned()), b""));
        assert!(!is(&Password::ShaCrypt("$5$".to_owned()), b""));
    }
    #[test]
    fn a_password_that_is_too_long_is_wrong_and_costs_nothing() {
        let long = [b'a'; LONGEST + 1];
        let kept = Password::Plain(long.to_vec());
        let costly = Password::Des(*b"pPHeaPIKUJo8Q");

        assert!(!is(&kept, &long) && !is_costly(&costly, &long));
        assert!(is(&Password::Plain(long[1..].to_vec()), &long[1..]) && is_costly(&costly, &long[1..]));
    }
}
