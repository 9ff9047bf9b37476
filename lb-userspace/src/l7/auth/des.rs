//! The oldest crypt(3): DES, 25 times over nothing, with two characters of salt. Only the first eight characters
//! of a password count. FIPS 46-3 numbers bits from 1 at the left; so do the tables.

const ROUNDS: usize = 25;

/// The 13 characters that a password comes to; `None` if the salt is none.
pub(super) fn crypt(password: &[u8], salt: [u8; 2]) -> Option<[u8; 13]> {
    let mut key = [0; 8];
    // Seven bits of each character; the eighth would be parity.
    key.iter_mut().zip(password).for_each(|(to, from)| *to = from << 1);
    let keys = schedule(u64::from_be_bytes(key));
    let swaps = swaps(salt)?;
    let (mut left, mut right) = (0, 0);
    for _ in 0..ROUNDS {
        for key in keys {
            (left, right) = (right, left ^ scramble(right, key, swaps));
        }
        (left, right) = (right, left);
    }
    let bits = u128::from(pick((u64::from(left) << 32) | u64::from(right), 64, &FINAL)) << 2;
    let mut text = [0; 13];
    for (at, place) in text.iter_mut().enumerate() {
        *place = match at.checked_sub(2) {
            None => salt[at],
            Some(at) => ALPHABET[(bits >> (60 - 6 * at)) as usize & 63],
        };
    }
    Some(text)
}

/// The bits of a word that a table names, as a new word.
fn pick(word: u64, bits: u32, table: &[u8]) -> u64 {
    table.iter().fold(0, |picked, at| (picked << 1) | ((word >> (bits - u32::from(*at))) & 1))
}

/// The key of each of the sixteen steps.
fn schedule(key: u64) -> [u64; 16] {
    const HALF: u64 = (1 << 28) - 1;
    let both = pick(key, 64, &CHOICE_1);
    let (mut left, mut right) = (both >> 28, both & HALF);
    SHIFTS.map(|by| {
        left = ((left << by) | (left >> (28 - by))) & HALF;
        right = ((right << by) | (right >> (28 - by))) & HALF;
        pick((left << 28) | right, 56, &CHOICE_2)
    })
}

/// Which of the 24 bits of one half of the expansion change places with the other half's.
fn swaps(salt: [u8; 2]) -> Option<u64> {
    let digit = |char: u8| ALPHABET.iter().position(|known| *known == char);
    let bits = digit(salt[0])? | (digit(salt[1])? << 6);
    Some((0..12).filter(|bit| bits >> bit & 1 == 1).fold(0, |mask, bit| mask | 1 << (23 - bit)))
}

fn scramble(half: u32, key: u64, swaps: u64) -> u32 {
    // Each group of four bits with its neighbours on both sides.
    let wide =
        (0..8).fold(0, |wide, group: u32| (wide << 6) | u64::from(half.rotate_left(4 * group + 5) & 63));
    let (high, low) = (wide >> 24, wide & 0xff_ffff);
    let swapped = (high ^ low) & swaps;
    let mixed = (((high ^ swapped) << 24) | (low ^ swapped)) ^ key;
    let mut out = 0;
    for (group, table) in S.iter().enumerate() {
        let six = (mixed >> (42 - 6 * group)) as usize & 63;
        let (row, column) = ((six >> 4 & 2) | (six & 1), six >> 1 & 15);
        out = (out << 4) | u64::from(table[row * 16 + column]);
    }
    pick(out, 32, &PERMUTATION) as u32
}

/// Six bits a character, for all that crypt(3) makes.
pub(super) const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SHIFTS: [u32; 16] = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1];
#[rustfmt::skip]
const CHOICE_1: [u8; 56] = [
    57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18,
    10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36,
    63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22,
    14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4,
];
#[rustfmt::skip]
const CHOICE_2: [u8; 48] = [
    14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10,
    23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2,
    41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48,
    44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
];
#[rustfmt::skip]
const PERMUTATION: [u8; 32] = [
    16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10,
    2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25,
];
#[rustfmt::skip]
const FINAL: [u8; 64] = [
    40, 8, 48, 16, 56, 24, 64, 32, 39, 7, 47, 15, 55, 23, 63, 31,
    38, 6, 46, 14, 54, 22, 62, 30, 37, 5, 45, 13, 53, 21, 61, 29,
    36, 4, 44, 12, 52, 20, 60, 28, 35, 3, 43, 11, 51, 19, 59, 27,
    34, 2, 42, 10, 50, 18, 58, 26, 33, 1, 41, 9, 49, 17, 57, 25,
];
/// The eight substitutions, a line a row.
#[rustfmt::skip]
const S: [[u8; 64]; 8] = [
    [
        14, 4, 13, 1, 2, 15, 11, 8, 3, 10, 6, 12, 5, 9, 0, 7,
        0, 15, 7, 4, 14, 2, 13, 1, 10, 6, 12, 11, 9, 5, 3, 8,
        4, 1, 14, 8, 13, 6, 2, 11, 15, 12, 9, 7, 3, 10, 5, 0,
        15, 12, 8, 2, 4, 9, 1, 7, 5, 11, 3, 14, 10, 0, 6, 13,
    ],
    [
        15, 1, 8, 14, 6, 11, 3, 4, 9, 7, 2, 13, 12, 0, 5, 10,
        3, 13, 4, 7, 15, 2, 8, 14, 12, 0, 1, 10, 6, 9, 11, 5,
        0, 14, 7, 11, 10, 4, 13, 1, 5, 8, 12, 6, 9, 3, 2, 15,
        13, 8, 10, 1, 3, 15, 4, 2, 11, 6, 7, 12, 0, 5, 14, 9,
    ],
    [
        10, 0, 9, 14, 6, 3, 15, 5, 1, 13, 12, 7, 11, 4, 2, 8,
        13, 7, 0, 9, 3, 4, 6, 10, 2, 8, 5, 14, 12, 11, 15, 1,
        13, 6, 4, 9, 8, 15, 3, 0, 11, 1, 2, 12, 5, 10, 14, 7,
        1, 10, 13, 0, 6, 9, 8, 7, 4, 15, 14, 3, 11, 5, 2, 12,
    ],
    [
        7, 13, 14, 3, 0, 6, 9, 10, 1, 2, 8, 5, 11, 12, 4, 15,
        13, 8, 11, 5, 6, 15, 0, 3, 4, 7, 2, 12, 1, 10, 14, 9,
        10, 6, 9, 0, 12, 11, 7, 13, 15, 1, 3, 14, 5, 2, 8, 4,
        3, 15, 0, 6, 10, 1, 13, 8, 9, 4, 5, 11, 12, 7, 2, 14,
    ],
    [
        2, 12, 4, 1, 7, 10, 11, 6, 8, 5, 3, 15, 13, 0, 14, 9,
        14, 11, 2, 12, 4, 7, 13, 1, 5, 0, 15, 10, 3, 9, 8, 6,
        4, 2, 1, 11, 10, 13, 7, 8, 15, 9, 12, 5, 6, 3, 0, 14,
        11, 8, 12, 7, 1, 14, 2, 13, 6, 15, 0, 9, 10, 4, 5, 3,
    ],
    [
        12, 1, 10, 15, 9, 2, 6, 8, 0, 13, 3, 4, 14, 7, 5, 11,
        10, 15, 4, 2, 7, 12, 9, 5, 6, 1, 13, 14, 0, 11, 3, 8,
        9, 14, 15, 5, 2, 8, 12, 3, 7, 0, 4, 10, 1, 13, 11, 6,
        4, 3, 2, 12, 9, 5, 15, 10, 11, 14, 1, 7, 6, 0, 8, 13,
    ],
    [
        4, 11, 2, 14, 15, 0, 8, 13, 3, 12, 9, 7, 5, 10, 6, 1,
        13, 0, 11, 7, 4, 9, 1, 10, 14, 3, 5, 12, 2, 15, 8, 6,
        1, 4, 11, 13, 12, 3, 7, 14, 10, 15, 6, 8, 0, 5, 9, 2,
        6, 11, 13, 8, 1, 4, 10, 7, 9, 5, 0, 15, 14, 2, 3, 12,
    ],
    [
        13, 2, 8, 4, 6, 15, 11, 1, 10, 9, 3, 14, 5, 0, 12, 7,
        1, 15, 13, 8, 10, 3, 7, 4, 12, 5, 6, 11, 0, 14, 9, 2,
        7, 11, 4, 1, 9, 12, 14, 2, 0, 6, 10, 13, 15, 3, 5, 8,
        2, 1, 14, 7, 4, 10, 8, 13, 15, 12, 9, 0, 3, 5, 6, 11,
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_to_what_libcrypt_comes_to() {
        for (password, expected) in [
            ("fisher", "abMW7w36NW/Bk"),
            ("fisher", "pPHeaPIKUJo8Q"),
            ("averylongpassword", "zZTOPEAnceju."),
            ("averylon", "zZTOPEAnceju."),
        ] {
            let salt = [expected.as_bytes()[0], expected.as_bytes()[1]];

            assert_eq!(
                crypt(password.as_bytes(), salt).as_ref(),
                expected.as_bytes().first_chunk(),
                "{password}"
            );
        }
        assert_eq!(crypt(b"x", *b"$1"), None);
    }
}
