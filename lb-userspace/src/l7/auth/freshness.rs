//! How long an answer of an auth service may be remembered, by what it says itself: read as nginx's cache reads it.
//!
//! Keeps no answer apart for each value of what `Vary` names: such an answer is not remembered at all.

use std::time::Duration;

use super::super::calendar;
use super::super::h1::head::Block;

/// `None`: it says nothing about it. Zero: not at all. `now`: seconds since the epoch.
pub(super) fn freshness(block: &Block<'_, '_>, now: u64) -> Option<Duration> {
    let lines = |name: &str| block.chosen(block.named(|known| known.eq_ignore_ascii_case(name)));
    if lines("vary").any(|(_, names)| !names.is_empty()) {
        return Some(Duration::ZERO);
    }
    // Meant for such a cache alone, and so before what everybody is told.
    let accelerated = lines("x-accel-expires").filter_map(|(_, value)| accelerated(value, now)).min();
    accelerated.or_else(|| controlled(lines("cache-control").map(|(_, value)| value))).or_else(|| {
        lines("expires").map(|(_, date)| until(calendar::parse(date).unwrap_or_default(), now)).min()
    })
}

/// `X-Accel-Expires`: seconds, or `@` and a moment. What it does not say by either counts as not said.
fn accelerated(value: &[u8], now: u64) -> Option<Duration> {
    match value.strip_prefix(b"@") {
        Some(moment) => number(moment).map(|moment| until(moment, now)),
        None => number(value).map(Duration::from_secs),
    }
}

/// All lines of `Cache-Control`, as one: what forbids it counts before every time, wherever it stands.
fn controlled<'b>(lines: impl Iterator<Item = &'b [u8]>) -> Option<Duration> {
    let list = lines.map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b',');
    let forbids = |word: &&str| behind(&list, word).next().is_some();
    if ["no-store", "no-cache", "private"].iter().any(forbids) {
        return Some(Duration::ZERO);
    }
    let shortest = |word| behind(&list, word).map(seconds).min();
    shortest("s-maxage=").or_else(|| shortest("max-age="))
}

/// What stands behind a word, each time that it is there. As for nginx it needs no separator in front, so that
/// none that is missing hides it.
fn behind<'l>(list: &'l [u8], word: &str) -> impl Iterator<Item = &'l [u8]> {
    (0..list.len()).filter_map(move |at| list.get(at..)?.strip_prefix(word.as_bytes()))
}

/// None where they cannot be read.
fn seconds(text: &[u8]) -> Duration {
    let digits = text.split(|byte| matches!(byte, b',' | b';' | b' ')).next();
    Duration::from_secs(digits.and_then(number).unwrap_or_default())
}

fn until(moment: u64, now: u64) -> Duration {
    Duration::from_secs(moment.saturating_sub(now))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::super::h1::Response;
    use super::super::super::h1::head::Lines;
    use super::*;

    const NOW: u64 = 784_111_777;

    #[test]
    fn the_nearest_word_for_a_cache_like_ours_counts() {
        let cases: [(&str, Option<u64>); 27] = [
            ("X-Else: 1", None),
            ("Cache-Control: public, immutable", None),
            ("Cache-Control: max-age=60", Some(60)),
            ("Cache-Control: Max-Age=60;public", Some(60)),
            ("Cache-Control: public max-age=60", Some(60)),
            ("Cache-Control: max-age=600, s-maxage=60", Some(60)),
            ("Cache-Control: max-age=60\r\nCache-Control: s-maxage=600", Some(600)),
            ("Cache-Control: max-age=60\r\nCache-Control: max-age=30", Some(30)),
            ("Cache-Control: max-age=", Some(0)),
            ("Cache-Control: max-age=\"60\"", Some(0)),
            ("Cache-Control: max-age=99999999999999999999", Some(0)),
            ("Cache-Control: max-age=60\r\nCache-Control: no-store", Some(0)),
            ("Cache-Control: \u{e9}, private", Some(0)),
            ("Cache-Control: no-cache=\"set-cookie\", max-age=60", Some(0)),
            ("Expires: Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Expires: Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Expires: 0", Some(0)),
            ("Expires:", Some(0)),
            ("Expires: 0\r\nCache-Control: max-age=60", Some(60)),
            ("Expires: 0\r\nCache-Control: public", Some(0)),
            ("Vary:", None),
            ("Vary: Accept-Encoding\r\nCache-Control: max-age=60", Some(0)),
            ("X-Accel-Expires: 0\r\nCache-Control: max-age=60", Some(0)),
            ("X-Accel-Expires: 60\r\nCache-Control: no-store\r\nExpires: 0", Some(60)),
            ("X-Accel-Expires: @784111837", Some(60)),
            ("X-Accel-Expires: @784111776", Some(0)),
            ("X-Accel-Expires: -1\r\nCache-Control: max-age=60", Some(60)),
        ];
        for (said, expected) in cases {
            let head = format!("HTTP/1.1 200 OK\r\n{said}\r\n\r\n");
            let mut lines = Lines::new();
            let response = Response::parse(head.as_bytes(), &mut lines).expect("legal").expect("whole");

            let fresh = freshness(&response.block, NOW);

            assert_eq!(fresh, expected.map(Duration::from_secs), "{said}");
        }
    }
}
