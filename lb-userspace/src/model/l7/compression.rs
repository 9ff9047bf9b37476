//! Which responses reach their clients compressed (keys of the ConfigMap).

use super::Pattern;

/// What is compressed, by which algorithm. At least one is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compression {
    /// `use-gzip`.
    pub gzip: Option<Packing>,
    /// `enable-brotli`.
    pub brotli: Option<Packing>,
    /// `gzip-disable`: clients whose User-Agent this matches get nothing by gzip.
    pub without_gzip: Option<Pattern>,
}

/// How one algorithm is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// How hard it tries: 1 to 9 for gzip, 0 to 11 for brotli.
    pub level: u8,
    /// A response that says it is shorter is left alone.
    pub min_bytes: u64,
    /// Media types without parameters, lower case; `*` takes all.
    pub types: Vec<String>,
}

impl Packing {
    /// Whether it is meant for this media type (without parameters, in any case).
    pub fn takes(&self, media: &[u8]) -> bool {
        self.types.iter().any(|listed| listed == "*" || listed.as_bytes().eq_ignore_ascii_case(media))
    }
}
