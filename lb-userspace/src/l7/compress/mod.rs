//! Compressed responses: which ones are, what their heads say, and how their bodies are read.
//!
//! As nginx's filters decide, but that a client is asked for its preference, that `no-transform` is
//! respected, and that what was said of the bytes before is not said of those after.

mod coder;
mod packed;

use std::hint::cold_path;

use super::h1::head::{Block, LineSet};
use super::h1::{Body, Request, Response, Version};
use super::policy::HeaderEdits;
use crate::model::l7::{self, Compression};

use coder::Coder;

pub(super) use packed::Packed;

/// How a response is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Gzip,
    Brotli,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
        }
    }
}

/// What a client takes, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Accepts([Option<Algorithm>; 2]);

impl Accepts {
    /// What a request says, as far as anything is compressed at all.
    pub(super) fn of(compression: Option<&Compression>, request: &Request<'_, '_>) -> Self {
        let Some(compression) = compression else { return Self::default() };
        cold_path();
        // Its end could not be told to others.
        if request.version != Version::Http11 || forbids(&request.block) {
            return Self::default();
        }
        let agent = request.block.first(|name| name.eq_ignore_ascii_case("user-agent"));
        Self::named(compression, elements(&request.block, "accept-encoding"), agent.unwrap_or_default())
    }

    fn named<'b>(compression: &Compression, codings: impl Iterator<Item = &'b [u8]>, agent: &[u8]) -> Self {
        let (mut gzip, mut brotli) = (0, 0);
        for coding in codings {
            let mut parts = coding.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| {
                let (key, value) = part.split_at_checked(2)?;
                key.eq_ignore_ascii_case(b"q=").then(|| thousandths(value))
            });
            match name {
                _ if name.eq_ignore_ascii_case(b"gzip") => gzip = quality.unwrap_or(1000),
                _ if name.eq_ignore_ascii_case(b"br") => brotli = quality.unwrap_or(1000),
                _ => {}
            }
        }
        if gzip > 0
            && compression.without_gzip.as_ref().is_some_and(|pattern| pattern.regex().is_match(agent))
        {
            gzip = 0;
        }
        let gzip = (gzip, (gzip > 0).then_some(Algorithm::Gzip));
        let brotli = (brotli, (brotli > 0).then_some(Algorithm::Brotli));
        Self(if gzip.0 > brotli.0 { [gzip.1, brotli.1] } else { [brotli.1, gzip.1] })
    }
}

/// What may become of responses to this client, for people.
pub(super) fn explain(compression: &Compression, headers: &[(String, String)]) -> String {
    let of = |wanted: &'static str| {
        let found = headers.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_bytes())
    };
    let codings = of("accept-encoding").flat_map(|value| value.split(|byte| *byte == b','));
    let agent = of("user-agent").next().unwrap_or_default();
    let accepts = Accepts::named(compression, codings.map(<[u8]>::trim_ascii), agent);
    let ways = accepts.0.into_iter().flatten().filter_map(|algorithm| {
        let packing = by(algorithm, compression)?;
        let (name, least) = (algorithm.name(), packing.min_bytes);
        Some(format!("by {name} from {least} bytes on, of {}", packing.types.join(" ")))
    });
    let ways: Vec<_> = ways.collect();
    match ways.as_slice() {
        [] => "never for this client: its Accept-Encoding names nothing that is on".to_owned(),
        ways => format!(
            "where the response is 200, 403 or 404, and is no other way encoded: {}",
            ways.join("; else ")
        ),
    }
}

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is nothing that is compressed.
    Plain,
    /// It is, but not for this client.
    Varies,
    Packed(Algorithm),
}

/// What becomes of a response with this head.
pub(super) fn judge(
    compression: &Compression,
    accepts: Accepts,
    response: &Response<'_, '_>,
    edits: &HeaderEdits,
) -> Verdict {
    let block = &response.block;
    let value = |wanted: &str| block.first(|name| name.eq_ignore_ascii_case(wanted));
    let is_encoded = value("content-encoding").is_some() || edits.sets("Content-Encoding");
    if !matches!(response.status, 200 | 403 | 404) || is_encoded || forbids(block) {
        return Verdict::Plain;
    }
    let media = value("content-type").and_then(|value| value.split(|byte| *byte == b';').next());
    let media = media.unwrap_or_default().trim_ascii();
    let takes = |algorithm| {
        by(algorithm, compression).is_some_and(|packing| {
            packing.takes(media) && response.length.is_none_or(|length| length >= packing.min_bytes.max(1))
        })
    };
    if media.is_empty() || !(takes(Algorithm::Gzip) || takes(Algorithm::Brotli)) {
        return Verdict::Plain;
    }
    match accepts.0.into_iter().flatten().find(|algorithm| takes(*algorithm)) {
        Some(algorithm) => Verdict::Packed(algorithm),
        None => Verdict::Varies,
    }
}

impl Verdict {
    /// The same for a response whose body is not compressed after all.
    pub(super) fn without_body(self) -> Self {
        match self {
            Self::Plain => Self::Plain,
            Self::Varies | Self::Packed(_) => Self::Varies,
        }
    }

    /// Lines of the upstream that are true no more.
    pub(super) fn untrue(self, response: &Response<'_, '_>) -> LineSet {
        const OF_THE_BYTES: [&str; 8] = [
            "accept-ranges",
            "content-digest",
            "content-length",
            "content-md5",
            "digest",
            "etag",
            "repr-digest",
            "transfer-encoding",
        ];
        match self {
            Self::Plain | Self::Varies => LineSet::default(),
            Self::Packed(_) => response
                .block
                .named(|name| OF_THE_BYTES.iter().any(|listed| listed.eq_ignore_ascii_case(name))),
        }
    }

    /// Writes what is true instead. `gone`: lines that the client does not get, or others in their place.
    pub(super) fn put_on(self, response: &Response<'_, '_>, gone: LineSet, out: &mut Vec<u8>) {
        if self == Self::Plain {
            return;
        }
        let kept =
            |wanted: &str| response.block.named(|name| name.eq_ignore_ascii_case(wanted)).without(gone);
        let names = |known: &[u8]| known == b"*" || known.eq_ignore_ascii_case(b"accept-encoding");
        if !elements_of(&response.block, kept("vary")).any(names) {
            out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
        }
        let Self::Packed(algorithm) = self else { return };
        let etag = response.block.values(kept("etag")).next();
        for part in match etag {
            Some(strong) if strong.starts_with(b"\"") => [&b"ETag: W/"[..], strong, b"\r\n"],
            Some(weak) if weak.starts_with(b"W/\"") => [b"ETag: ", weak, b"\r\n"],
            _ => [&b""[..]; 3],
        } {
            out.extend_from_slice(part);
        }
        for part in ["Content-Encoding: ", algorithm.name(), "\r\nTransfer-Encoding: chunked\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// A body that is going to be compressed, or only put into chunks.
pub(super) struct Packing {
    /// As the upstream sends it.
    body: Body,
    coder: Coder,
}

impl Packing {
    /// Chunks, and nothing else: for a body whose end only its sender's close tells. The client learns of it
    /// whether it is whole, and keeps its connection.
    pub(super) fn chunks(body: Body) -> Box<Self> {
        Box::new(Self { body, coder: Coder::plain() })
    }

    /// `None` where there is no memory for it.
    pub(super) fn new(
        compression: &Compression,
        algorithm: Algorithm,
        length: Option<u64>,
        body: Body,
    ) -> Option<Box<Self>> {
        let coder = Coder::new(algorithm, by(algorithm, compression)?.level, length)?;
        Some(Box::new(Self { body, coder }))
    }
}

/// `Cache-Control: no-transform` (RFC 9111 5.2).
fn forbids(block: &Block<'_, '_>) -> bool {
    elements(block, "cache-control").any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

/// How an algorithm is used, if it is.
fn by(algorithm: Algorithm, compression: &Compression) -> Option<&l7::Packing> {
    match algorithm {
        Algorithm::Gzip => compression.gzip.as_ref(),
        Algorithm::Brotli => compression.brotli.as_ref(),
    }
}

/// Elements of the lists that the lines of this name are.
fn elements<'b>(block: &Block<'_, 'b>, wanted: &str) -> impl Iterator<Item = &'b [u8]> {
    elements_of(block, block.named(|name| name.eq_ignore_ascii_case(wanted)))
}

fn elements_of<'b>(block: &Block<'_, 'b>, lines: LineSet) -> impl Iterator<Item = &'b [u8]> {
    block.values(lines).flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// A quality of RFC 9110 12.4.2; 0 for what is none.
fn thousandths(value: &[u8]) -> u16 {
    let (whole, rest) = value.split_at_checked(1).unwrap_or_default();
    let digits = rest.strip_prefix(b".").unwrap_or(rest);
    if rest.len() == digits.len() && !rest.is_empty() || digits.len() > 3 {
        return 0;
    }
    let mut padded = [b'0'; 3];
    for (place, digit) in padded.iter_mut().zip(digits) {
        *place = *digit;
    }
    let number = padded
        .iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u16::from(digit - b'0')));
    match (whole, number) {
        (b"1", Some(0)) => 1000,
        (b"0", Some(rest)) => rest,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
