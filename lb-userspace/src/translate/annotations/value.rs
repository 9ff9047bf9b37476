//! Forms of annotation values, as ingress-nginx reads them.

use std::net::IpAddr;
use std::time::Duration;

use super::errors;
use super::table::Value;
use crate::model::health::Check;
use crate::model::l4::Prefix;
use crate::model::l7::policy::AddressSet;

/// Whether a non-empty value has the form; says what is wrong.
pub fn check(value: Value, text: &str) -> Result<(), String> {
    // A list may have a line for each entry; what its entries hold besides is checked one by one.
    let is_list = matches!(value, Value::Origins | Value::Ranges | Value::Names);
    if text.contains(['\r', '\n', '\0']) && !is_list {
        return Err("the value holds a line break".to_owned());
    }
    let (legal, wanted) = match value {
        Value::Bool => (boolean(text).is_some(), "true or false"),
        Value::Int => (text.parse::<i32>().is_ok(), "a whole number without a unit"),
        Value::From(least) => {
            if text.parse().is_ok_and(|number: i32| number >= least) {
                return Ok(());
            }
            return Err(format!("{text:?} is not a whole number from {least}, without a unit"));
        }
        Value::ErrorStatus => {
            (text.parse().is_ok_and(|status: u16| (400..600).contains(&status)), "a status from 400 to 599")
        }
        Value::Statuses => (errors::statuses(text).is_some(), "a list of statuses from 400 to 599"),
        Value::One(words) => {
            if words.iter().any(|word| word.eq_ignore_ascii_case(text)) {
                return Ok(());
            }
            return Err(format!("{text:?} is none of {}", words.join(", ")));
        }
        Value::Word(words) => {
            if words.contains(&text) {
                return Ok(());
            }
            return Err(format!("{text:?} is none of {}", words.join(", ")));
        }
        Value::Words(words) => {
            if text.split_ascii_whitespace().all(|word| words.contains(&word)) {
                return Ok(());
            }
            return Err(format!("{text:?} holds something else than {}", words.join(", ")));
        }
        Value::Interval => (
            time(text).is_some_and(|time| (Duration::from_secs(1)..=Check::LONGEST).contains(&time)),
            "a number of seconds or a time like 90s or 10m, from a second to a day",
        ),
        Value::Size => (size(text).is_some(), "a number of bytes with an optional k, m or g"),
        Value::Ranges => (ranges(text).is_some(), "a list of addresses and CIDR ranges"),
        Value::Reference => {
            (text.split('/').count() <= 2 && text.split('/').all(is_token), "a name or namespace/name")
        }
        Value::Token => (is_token(text), "one word of letters, digits, `-`, `.`, `_`"),
        Value::Path => {
            (text.starts_with('/') && !text.contains(char::is_whitespace), "a path that starts with `/`")
        }
        Value::Url => (is_url(text), "an http or https URL"),
        Value::Target => (is_target(text), "a URL or a path"),
        Value::Chars(others) => {
            let is_legal = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
            if text.chars().all(is_legal) {
                return Ok(());
            }
            return Err(format!("{text:?} holds something else than letters, digits and {others}"));
        }
        Value::Names => {
            let is_legal = |c: char| c.is_ascii_alphanumeric() || NAMES.contains(c);
            if text.split([',', '\n', '\r']).all(|name| name.trim().chars().all(is_legal)) {
                return Ok(());
            }
            return Err(format!("{text:?} holds something else than letters, digits and {NAMES}"));
        }
        Value::Text | Value::Origins => (true, ""),
    };
    if legal { Ok(()) } else { Err(format!("{text:?} is not {wanted}")) }
}

/// What names of hosts and patterns for them are made of, as ingress-nginx lets them in.
pub(super) const NAMES: &str = "-._~/:^$[](){}*+?|&=\\";

/// Whether ingress-nginx lets a value in that it then cannot use, so that it costs the value alone.
pub(super) fn is_dropped(value: Value, text: &str) -> bool {
    match value {
        Value::Size => {
            let digits = text.strip_suffix(['b', 'B', 'k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text);
            !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
        }
        Value::Statuses => {
            let mut rest = text.bytes().filter(|byte| *byte != b' ').peekable();
            while let Some(first) = rest.next() {
                let digits = [rest.next(), rest.next()];
                let is_digit = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_digit());
                if !matches!(first, b'4' | b'5') || !digits.into_iter().all(is_digit) {
                    return false;
                }
                let _ = rest.next_if_eq(&b',');
            }
            true
        }
        _ => false,
    }
}

/// How a value that was probably meant is written; empty where nobody can tell.
pub(in crate::translate) fn advice(value: Value, text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = lower.get(digits.len()..).unwrap_or_default();
    match value {
        Value::Bool => match lower.trim() {
            "yes" | "on" | "y" | "enabled" | "enable" | "true" => "write \"true\"".to_owned(),
            "no" | "off" | "n" | "disabled" | "disable" | "false" | "none" => "write \"false\"".to_owned(),
            _ => String::new(),
        },
        Value::Size
            if matches!(unit, "b" | "kb" | "mb" | "gb" | "ki" | "mi" | "gi" | "kib" | "mib" | "gib") =>
        {
            let unit = unit.trim_end_matches(['b', 'i']);
            format!(
                "write {digits}{unit}: with another suffix ingress-nginx dropped the value and used the default"
            )
        }
        Value::Int | Value::From(_) | Value::ErrorStatus if text.trim().parse::<i32>().is_ok() => {
            match text.trim() {
                trimmed if trimmed == text => String::new(),
                trimmed => format!("write \"{trimmed}\""),
            }
        }
        Value::One(words) | Value::Word(words) => {
            let meant = words.iter().find(|word| word.eq_ignore_ascii_case(text));
            meant.map_or(String::new(), |word| format!("write {word}"))
        }
        Value::Int | Value::From(_) => {
            let factor = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return String::new(),
            };
            let seconds = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
            seconds.map_or(String::new(), |seconds| format!("write \"{seconds}\", if seconds are meant"))
        }
        _ => String::new(),
    }
}

/// Go's ParseBool.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// nginx's sizes. A suffix `b`, which ingress-nginx lets pass and then drops, is refused.
pub(in crate::translate) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let factor: u64 = match text.get(digits.len()..)? {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Longest time that is read, as long as a bare number can say: no deadline may overflow by it.
const TIME_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// nginx's times: a bare number of seconds, or numbers with units, largest first.
pub(in crate::translate) fn time(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&digits| digits > 0)?;
        let (number, after) = rest.split_at_checked(digits)?;
        let number: u32 = number.parse().ok()?;
        let (unit, after) = match after.strip_prefix("ms") {
            Some(after) => (Duration::from_millis(1), after),
            None => {
                let mut chars = after.chars();
                let seconds = match chars.next()? {
                    's' => 1,
                    'm' => 60,
                    'h' => 3600,
                    'd' => 86_400,
                    'w' => 604_800,
                    _ => return None,
                };
                (Duration::from_secs(seconds), chars.as_str())
            }
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = after.trim_start();
    }
    (!text.is_empty() && total <= TIME_MAX).then_some(total)
}

/// Addresses and CIDR ranges with commas; `None` if one of them is none.
pub(in crate::translate) fn ranges(text: &str) -> Option<AddressSet> {
    text.split(',').map(|range| prefix(range.trim())).collect()
}

/// An address, or a CIDR range.
pub(in crate::translate) fn prefix(text: &str) -> Option<Prefix> {
    let (addr, bits) = match text.split_once('/') {
        Some((addr, bits)) => (addr, Some(bits)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().ok()?;
    let longest = if addr.is_ipv4() { 32 } else { 128 };
    Prefix::new(addr, bits.map_or(Some(longest), |bits| bits.parse().ok())?)
}

/// A token of RFC 9110 as ingress-nginx takes it.
pub(in crate::translate) fn is_header_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Where the path or the query of a URL begins, seen from the host on. A variable that holds a path may stand right
/// behind the host: what it holds begins with `/`, whatever follows.
pub(super) fn host_end(url: &str) -> usize {
    const PATHS: [&str; 6] =
        ["$request_uri", "${request_uri}", "$uri", "${uri}", "$document_uri", "${document_uri}"];
    let path = PATHS.iter().filter_map(|path| url.find(path)).min();
    url.find(['/', '?']).into_iter().chain(path).min().unwrap_or(url.len())
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_target)
}

/// What may stand in a Location header.
fn is_target(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant_is_proposed() {
        let cases = [
            (Value::Bool, "yes", "write \"true\""),
            (Value::Bool, "Off", "write \"false\""),
            (Value::Bool, "false\n", "write \"false\""),
            (Value::Bool, "perhaps", ""),
            (
                Value::Size,
                "50mb",
                "write 50m: with another suffix ingress-nginx dropped the value and used the default",
            ),
            (
                Value::Size,
                "1b",
                "write 1: with another suffix ingress-nginx dropped the value and used the default",
            ),
            (Value::Size, "much", ""),
            (Value::Int, "5m", "write \"300\", if seconds are meant"),
            (Value::Int, "x", ""),
            (Value::From(1), "1 ", "write \"1\""),
            (Value::From(1), "0", ""),
            (Value::Word(&["off", "on"]), "OFF", "write off"),
            (Value::Word(&["off", "on"]), "of", ""),
        ];
        for (value, text, expected) in cases {
            assert_eq!(advice(value, text), expected, "{value:?} {text:?}");
        }
    }

    #[test]
    fn accepts_and_refuses_as_ingress_nginx_does() {
        let cases: [(Value, &[&str], &[&str]); 17] = [
            (
                Value::Bool,
                &["true", "T", "1", "False", "f", "0"],
                &["yes", "on", "TrUe", "enabled", "2", "true ", " 1", "false\n"],
            ),
            (
                Value::Int,
                &["0", "10", "-1", "+10"],
                &["10s", "1.5", "++1", "+", "", "99999999999", "1 ", " 1"],
            ),
            (Value::From(1), &["1", "+1", "2147483647"], &["0", "-1", "+0", "1s", "2147483648"]),
            (Value::Statuses, &["404", "404, 503,599"], &["404,", "200", "404 503", "x"]),
            (Value::ErrorStatus, &["400", "429", "599"], &["399", "600", "200", "-1", "x"]),
            (
                Value::Interval,
                &["5", "5s", "1m30s", "1d"],
                &["0", "999ms", "soon", "-1", "5 s x", "86401", "1w"],
            ),
            (Value::One(&["HTTP", "GRPC"]), &["http", "GRPC"], &["HTTP2"]),
            (Value::Word(&["cookie"]), &["cookie"], &["Cookie", "cookie cookie", "header"]),
            (Value::Names, &["a.example, *.b.example\n~^w[0-9]+\\."], &["ali;as.t", "a b", "a\u{7f}"]),
            (Value::Origins, &["https://a", "https://a\nhttps://b"], &[]),
            (Value::Size, &["0", "8k", "50m", "1G"], &["50mb", "1b", "m", "-1", "1 m", "99999999999g"]),
            (
                Value::Ranges,
                &["10.0.0.0/8, 172.16.0.0/12", "1.2.3.4", "2001:db8::/32"],
                &["10.0.0.0/33", "a", ""],
            ),
            (Value::Reference, &["a", "ns/a"], &["a/b/c", "/a", "a/", "a b", "a;"]),
            (Value::Url, &["https://a/b", "http://a$1"], &["ftp://a", "/a", "https://", "http://a b"]),
            (Value::Target, &["https://a/b", "/a", "a.com", "ftp://a", "$1"], &["a b", "/a\u{7f}", "\"a\""]),
            (Value::Chars("/$"), &["/a/$1", "a"], &["/a b", "/;", "/ü"]),
            (Value::Text, &["anything at all"], &["two\nlines", "cr\r"]),
        ];
        for (value, good, bad) in cases {
            for text in good {
                assert_eq!(check(value, text), Ok(()), "{value:?} {text:?}");
            }
            for text in bad {
                assert!(check(value, text).is_err(), "{value:?} {text:?}");
            }
        }
    }

    #[test]
    fn what_ingress_nginx_lets_in_and_cannot_use_is_dropped() {
        let cases: [(Value, &[&str], &[&str]); 3] = [
            (Value::Size, &["1b", "99999999999g"], &["50mb", "m", "", "-1", "1 m", "1\n"]),
            (
                Value::Statuses,
                &["404,", "404 503", "404503"],
                &["404,fakeint", "404,302", "200", "40", "404\n503"],
            ),
            (Value::Text, &[], &["a"]),
        ];
        for (value, dropped, refused) in cases {
            for text in dropped {
                assert!(is_dropped(value, text), "{value:?} {text:?}");
            }
            for text in refused {
                assert!(!is_dropped(value, text), "{value:?} {text:?}");
            }
        }
    }

    #[test]
    fn reads_times_as_nginx_does() {
        let cases = [
            ("75", Some(75_000)),
            ("90s", Some(90_000)),
            ("10m", Some(600_000)),
            ("1h 30m", Some(5_400_000)),
            ("1h30m", Some(5_400_000)),
            ("500ms", Some(500)),
            ("", None),
            ("s", None),
            ("10x", None),
            ("-1", None),
            ("1s2", None),
            ("99999999999", None),
            ("4294967295", Some(4_294_967_295_000)),
            ("4294967295w", None),
            ("4294967295s 1ms", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text), expected.map(Duration::from_millis), "{text:?}");
        }
    }
}
