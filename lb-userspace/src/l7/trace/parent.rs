//! `traceparent` and `tracestate` of a request, as <https://www.w3.org/TR/trace-context/> has them. What is not
//! written so is none.

use std::borrow::Cow;

use super::super::h1::head::Block;
use super::{LINES, TRACEPARENT};

/// The span that caused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// It is recorded.
    pub(super) sampled: bool,
}

impl Parent {
    /// The one that a request names; two lines name none.
    pub(super) fn of(block: &Block<'_, '_>) -> Option<Self> {
        let [name, _] = LINES;
        let mut lines = block.values(block.named(|line| line.eq_ignore_ascii_case(name)));
        let line = lines.next()?;
        lines.next().is_none().then(|| Self::parse(line)).flatten()
    }

    /// Of a later version as far as it is one of this version.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (known, rest) = line.split_at_checked(TRACEPARENT)?;
        let mut fields = known.split(|byte| *byte == b'-');
        let [version, trace, span, flags] = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        let version = number(version)?;
        let is_later = version > 0 && rest.first() == Some(&b'-');
        if lengths != [2, 32, 16, 2] || fields.next().is_some() || version == 0xff {
            return None;
        }
        if !rest.is_empty() && !is_later {
            return None;
        }
        let span = u64::try_from(number(span)?).ok()?;
        let parent = Self { trace: number(trace)?, span, sampled: number(flags)? & 1 == 1 };
        (parent.trace != 0 && parent.span != 0).then_some(parent)
    }
}

/// Up to 32 lower-case digits.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(digit))
    })
}

/// Most bytes of a state that is passed on: twice what everybody has to.
const STATE_MAX: usize = 1024;
/// Most members of one.
const MEMBERS_MAX: usize = 32;

/// The state that a request brings, its lines as one; empty where there is none, or one that is not written as one.
pub(super) fn state<'b>(block: &Block<'_, 'b>) -> Cow<'b, [u8]> {
    let [_, name] = LINES;
    let mut lines = block.values(block.named(|line| line.eq_ignore_ascii_case(name)));
    let Some(first) = lines.next() else { return Cow::Borrowed(b"") };
    let whole = lines.fold(Cow::Borrowed(first), |mut whole, line| {
        whole.to_mut().extend_from_slice(b",");
        whole.to_mut().extend_from_slice(line);
        whole
    });
    if is_state(&whole) { whole } else { Cow::Borrowed(b"") }
}

/// Members with keys and values. What those hold is for who wrote them to know.
fn is_state(whole: &[u8]) -> bool {
    let is_member = |member: &[u8]| {
        let member = member.trim_ascii();
        let mut halves = member.split(|byte| *byte == b'=');
        member.is_empty() || (halves.next().is_some_and(|key| !key.is_empty()) && halves.count() == 1)
    };
    whole.len() <= STATE_MAX
        && whole.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
        && whole.split(|byte| *byte == b',').count() <= MEMBERS_MAX
        && whole.split(|byte| *byte == b',').all(is_member)
}

/// What is read is written the same again, but for flags that nobody knows and what later versions add.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    let Some(parent) = Parent::parse(bytes) else { return };
    let Parent { trace, span, sampled } = parent;
    assert!(trace != 0 && span != 0);
    let written = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));
    assert_eq!(Parent::parse(written.as_bytes()), Some(parent));
    assert_eq!(bytes.get(3..52), written.as_bytes().get(3..52));
    is_state(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    #[test]
    fn a_parent_is_read_or_there_is_none() {
        let whole = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = |sampled| Some(Parent { trace: TRACE, span: SPAN, sampled });
        for (case, line, expected) in [
            ("recorded", whole.to_owned(), parent(true)),
            ("not recorded", whole.replace("-01", "-00"), parent(false)),
            ("unknown flags", whole.replace("-01", "-fe"), parent(false)),
            ("a later version", whole.replace("00-4", "cc-4"), parent(true)),
            ("one that says more", whole.replace("00-4", "01-4") + "-what", parent(true)),
            ("more of this version", format!("{whole}-what"), None),
            ("more without a dash", whole.replace("00-4", "01-4") + "what", None),
            ("the version that is none", whole.replace("00-4", "ff-4"), None),
            ("upper case", whole.to_uppercase(), None),
            ("no trace", whole.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), None),
            ("no span", whole.replace("00f067aa0ba902b7", &"0".repeat(16)), None),
            ("a dash elsewhere", whole.replace("4736-0", "473-60"), None),
            ("too short", whole[..54].to_owned(), None),
            ("no digit", whole.replace("4bf9", "4bg9"), None),
            ("nothing", String::new(), None),
        ] {
            assert_eq!(Parent::parse(line.as_bytes()), expected, "{case}");
        }
    }

    #[test]
    fn a_state_has_members_with_values() {
        let long = format!("a={}", "b".repeat(STATE_MAX));
        let many = ["a=b"; MEMBERS_MAX + 1].join(",");
        for (state, expected) in [
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", true),
            ("a@b=c , ,d=e", true),
            ("a", false),
            ("=b", false),
            ("a=b=c", false),
            ("a=b\u{e9}", false),
            (long.as_str(), false),
            (many.as_str(), false),
        ] {
            assert_eq!(is_state(state.as_bytes()), expected, "{state}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let line = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));

            let read = Parent::parse(line.as_bytes());

            proptest::prop_assert_eq!(read, Some(Parent { trace, span, sampled }));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            fuzz(&bytes);
        }
    }
}
