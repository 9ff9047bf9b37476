//! `use-gzip`, `enable-brotli` and what belongs to them.

use std::ops::RangeInclusive;

use super::keys::{Keys, field};
use crate::model::l7::{BadPattern, Compression, Packing, Pattern};

/// What ingress-nginx compresses by default. `text/html` is compressed in any case.
const TYPES: &str = "application/atom+xml application/javascript application/x-javascript application/json \
    application/rss+xml application/vnd.ms-fontobject application/x-font-ttf \
    application/x-web-app-manifest+json application/xhtml+xml application/xml font/opentype image/svg+xml \
    image/x-icon text/css text/javascript text/plain text/x-component";
/// By brotli this, too.
const BROTLI_TYPE: &str = "application/xml+rss";
/// The one value of `gzip-disable` that is no pattern: browsers before Internet Explorer 7.
const OLD_BROWSERS: (&str, &str) = ("msie6", r"MSIE [4-6]\.");

/// `None`: nothing is compressed.
pub(super) fn read(keys: &mut Keys<'_>) -> Option<Compression> {
    let gzip = keys.boolean("use-gzip").unwrap_or(false);
    let brotli = keys.boolean("enable-brotli").unwrap_or(false);
    // All are read, so that what is wrong is told before it is switched on.
    let compression = Compression {
        gzip: Some(Packing {
            level: level(keys, "gzip-level", 1..=9).unwrap_or(1),
            min_bytes: keys.number("gzip-min-length").unwrap_or(256).into(),
            types: listed(keys, "gzip-types").unwrap_or_else(|| types(TYPES)),
        })
        .filter(|_| gzip),
        brotli: Some(Packing {
            level: level(keys, "brotli-level", 0..=11).unwrap_or(4),
            min_bytes: keys.number("brotli-min-length").unwrap_or(20).into(),
            types: listed(keys, "brotli-types").unwrap_or_else(|| types(&[TYPES, " ", BROTLI_TYPE].concat())),
        })
        .filter(|_| brotli),
        without_gzip: without_gzip(keys),
    };
    (gzip || brotli).then_some(compression)
}

fn level(keys: &mut Keys<'_>, key: &'static str, levels: RangeInclusive<u8>) -> Option<u8> {
    let wanted = format!("a level from {} to {}", levels.start(), levels.end());
    keys.parsed(key, &wanted, |text| text.parse().ok().filter(|level| levels.contains(level)))
}

/// Those that a key lists; says which of them no response can have.
fn listed(keys: &mut Keys<'_>, key: &'static str) -> Option<Vec<String>> {
    let mut types = types(keys.text(key)?);
    types.retain(|media| {
        let parts = media.split_once('/');
        let is_type = media == "*" || parts.is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty());
        if !is_type {
            let message = format!("{media:?} is no type like text/css; it is left out");
            keys.about.warn("bad-value", field(key), message, "");
        }
        is_type
    });
    Some(types)
}

fn types(text: &str) -> Vec<String> {
    let mut types: Vec<_> = text
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|media| !media.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    types.push("text/html".to_owned());
    types.sort_unstable();
    types.dedup();
    types
}

fn without_gzip(keys: &mut Keys<'_>) -> Option<Pattern> {
    const KEY: &str = "gzip-disable";
    let text = keys.text(KEY)?;
    let source = if text == OLD_BROWSERS.0 { OLD_BROWSERS.1 } else { text };
    match Pattern::unanchored(source) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let message = format!("{text:?} is no pattern that can be used ({error}); everybody gets gzip");
            keys.about.warn("bad-value", field(KEY), message, BadPattern::FIX);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::super::super::findings::Findings;
    use super::*;
    use crate::model::ObjectId;

    /// What the keys come to, and the fields that are complained of.
    fn compression(data: &[(&str, &str)]) -> (Option<Compression>, Vec<String>) {
        let data: BTreeMap<_, _> =
            data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let object = ConfigMap { data: Some(data), ..ConfigMap::default() };
        let (id, mut findings) = (ObjectId::default(), Findings::default());
        let compression = read(&mut Keys::new(&object, findings.about(&id)));
        (compression, findings.into_sorted().into_iter().map(|problem| problem.field).collect())
    }

    #[test]
    fn nothing_is_compressed_unless_a_key_says_so() {
        assert_eq!(compression(&[("gzip-level", "9"), ("brotli-level", "9")]), (None, vec![]));
        assert_eq!(compression(&[("use-gzip", "false")]), (None, vec![]));
    }

    #[test]
    fn html_is_compressed_whatever_the_types() {
        let keys = [
            ("use-gzip", "true"),
            ("gzip-types", "Text/CSS,text/plain  text/html"),
            ("gzip-level", "5"),
            ("gzip-min-length", "1000"),
            ("gzip-disable", "msie6"),
        ];

        let (read, told) = compression(&keys);

        let types = ["text/css", "text/html", "text/plain"].map(str::to_owned).to_vec();
        let expected = Compression {
            gzip: Some(Packing { level: 5, min_bytes: 1000, types }),
            brotli: None,
            without_gzip: Pattern::unanchored(r"MSIE [4-6]\.").ok(),
        };
        assert_eq!((read, told), (Some(expected), vec![]));
    }

    #[test]
    fn a_key_that_cannot_be_read_is_told_and_its_default_used() {
        let keys = [
            ("enable-brotli", "true"),
            ("brotli-level", "12"),
            ("gzip-level", "0"),
            ("gzip-disable", "("),
            ("gzip-types", "text/css plain"),
        ];

        let (read, told) = compression(&keys);

        let brotli = read.as_ref().and_then(|read| read.brotli.as_ref()).expect("brotli");
        assert_eq!((brotli.level, brotli.min_bytes), (4, 20));
        assert!(
            brotli.takes(b"application/xml+rss") && brotli.takes(b"TEXT/HTML") && !brotli.takes(b"image/png")
        );
        assert_eq!(read.map(|read| (read.gzip, read.without_gzip)), Some((None, None)));
        assert_eq!(told, ["data.brotli-level", "data.gzip-disable", "data.gzip-level", "data.gzip-types"]);
    }
}
