//! What request and response heads have in common: strict lines, names, framing headers.

use std::io;
use std::mem::MaybeUninit;

use super::super::buffer::BUFFER_BYTES;
use super::plain;
use crate::model::l7::ClientLimits;
use crate::model::l7::forwarding::HeaderNames;

/// Most header lines of a head; more is 431.
pub(in crate::l7) const HEADERS_MAX: usize = 128;
/// Elements that Connection headers may have, all together, empty ones too: each is compared with the name of each line.
const CONNECTION_TOKENS_MAX: usize = 64;

/// How long heads and their lines may be, and what they may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) struct Sizes {
    /// Longest request line (414) and longest header line (400).
    pub(in crate::l7) line: usize,
    /// Longest head (431).
    pub(in crate::l7) head: usize,
    /// Names that are passed on.
    pub(in crate::l7) names: HeaderNames,
}

impl Sizes {
    /// Those that clients are held to.
    pub(in crate::l7) fn of(limits: &ClientLimits) -> Self {
        let head = limits.head_bytes.min(BUFFER_BYTES);
        Self { line: limits.line_bytes, head, names: limits.names }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self { line: 8 * 1024, head: BUFFER_BYTES, names: HeaderNames::Plain }
    }
}

/// Room for the header lines of one head.
pub(in crate::l7) struct Lines<'b, const N: usize = HEADERS_MAX> {
    /// On the stack and not initialised.
    pub(super) usual: [MaybeUninit<httparse::Header<'b>>; N],
    /// For heads of the plainest form.
    pub(super) plain: plain::Room<'b>,
    /// For the few heads that are read in another way.
    pub(super) odd: Vec<httparse::Header<'b>>,
}

/// Room for a head that we wrote: as many lines as we take, and those that we add.
pub(in crate::l7) type OwnLines<'b> = Lines<'b, { HEADERS_MAX + 64 }>;

impl<const N: usize> Lines<'_, N> {
    /// Empty.
    pub(in crate::l7) fn new() -> Self {
        let plain = [httparse::EMPTY_HEADER; plain::LINES_MAX];
        Self { usual: [const { MaybeUninit::uninit() }; N], plain, odd: Vec::new() }
    }
}

/// Why a head that we wrote cannot be said in another protocol: the fault of no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::l7) enum Unsayable {
    /// Its Host is no authority of a URI.
    #[error("host is no authority")]
    Host,
    /// Too many lines, or too long.
    #[error("head of ours cannot be read")]
    Head,
}

impl Unsayable {
    /// That is what ended the writing.
    pub(in crate::l7) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// Status to answer the client with.
    pub(in crate::l7) fn status(self) -> u16 {
        match self {
            Self::Host => 400,
            Self::Head => 500,
        }
    }
}

impl From<Unsayable> for io::Error {
    fn from(unsayable: Unsayable) -> Self {
        Self::new(io::ErrorKind::InvalidData, unsayable)
    }
}

/// Protocol version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    /// That of `HTTP/1.1` and the like. RFC 9110 2.5: a minor version beyond those that we know is served as the highest of
    /// them.
    pub(super) fn named(word: &[u8]) -> Result<Self, Refusal> {
        match word.strip_prefix(b"HTTP/") {
            Some([b'1', b'.', b'0']) => Ok(Self::Http10),
            Some([b'1', b'.', b'1'..=b'9']) => Ok(Self::Http11),
            Some([b'0'..=b'9', b'.', b'0'..=b'9']) => Err(Refusal::Version),
            _ => Err(Refusal::Malformed),
        }
    }
}

/// Why a head is refused; each has its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::l7) enum Refusal {
    /// Not HTTP/1.x as the grammar has it.
    #[error("malformed head")]
    Malformed,
    /// A line that does not end in CRLF, or is folded.
    #[error("line not ended by crlf")]
    LineEnd,
    /// Content-Length twice, not a number, or beside Transfer-Encoding; Transfer-Encoding twice, or
    /// in HTTP/1.0.
    #[error("ambiguous body length")]
    Framing,
    /// Transfer-Encoding other than `chunked`.
    #[error("unknown transfer coding")]
    Coding,
    /// Missing, repeated or odd Host.
    #[error("missing or invalid host")]
    Host,
    /// Not `/...` or `http://host/...`.
    #[error("invalid request target")]
    Target,
    /// `http://host?query`, which has no path to send upstream as it is.
    #[error("request target without a path")]
    Pathless,
    /// A version other than 1.x.
    #[error("unsupported version")]
    Version,
    /// Request line longer than [`Sizes::line`].
    #[error("request line too long")]
    TargetTooLong,
    /// One header line longer than [`Sizes::line`].
    #[error("header line too long")]
    LineTooLong,
    /// More than [`HEADERS_MAX`] lines or [`Sizes::head`] bytes.
    #[error("head too large")]
    HeadTooLarge,
    /// A response that is to be found elsewhere (`X-Accel-Redirect`).
    #[error("x-accel-redirect is not followed")]
    Elsewhere,
    /// CONNECT or TRACE.
    #[error("method not allowed")]
    Method,
}

impl Refusal {
    /// Status to answer a client with.
    pub(in crate::l7) fn status(self) -> u16 {
        match self {
            Self::Malformed
            | Self::LineEnd
            | Self::Framing
            | Self::Host
            | Self::Target
            | Self::Pathless
            | Self::LineTooLong => 400,
            Self::Method => 405,
            Self::TargetTooLong => 414,
            Self::HeadTooLarge => 431,
            Self::Coding => 501,
            Self::Elsewhere => 502,
            Self::Version => 505,
        }
    }
}

/// A set of header lines by their index; [`HEADERS_MAX`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::l7) struct LineSet(u128);

impl LineSet {
    /// Adds line `i`.
    pub(super) fn insert(&mut self, i: usize) {
        self.0 |= 1u128.checked_shl(u32::try_from(i).unwrap_or(u32::MAX)).unwrap_or(0);
    }

    /// There is none in it.
    pub(in crate::l7) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Lines that are not in the other.
    pub(in crate::l7) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Lines in either.
    pub(in crate::l7) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn contains(self, i: usize) -> bool {
        self.0.checked_shr(u32::try_from(i).unwrap_or(u32::MAX)).is_some_and(|set| set & 1 == 1)
    }
}

/// Header lines of a head together with the bytes they stand in.
#[derive(Debug, Clone, Copy)]
pub(in crate::l7) struct Block<'h, 'b> {
    /// The whole head, up to and with its empty line.
    pub(super) bytes: &'b [u8],
    /// Its header lines in order.
    pub(super) lines: &'h [httparse::Header<'b>],
}

impl<'h, 'b> Block<'h, 'b> {
    /// Value of the first line whose name this is.
    pub(in crate::l7) fn first(&self, is: impl Fn(&str) -> bool) -> Option<&'b [u8]> {
        self.lines.iter().find(|line| is(line.name)).map(|line| line.value)
    }

    /// The whole head, as it was sent.
    pub(in crate::l7) fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// How many lines there are.
    pub(in crate::l7) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Name and value of line `i`.
    pub(in crate::l7) fn line(&self, i: usize) -> Option<(&'b str, &'b [u8])> {
        self.lines.get(i).map(|line| (line.name, line.value))
    }

    /// Lines whose name is one of these.
    pub(in crate::l7) fn named(&self, is: impl Fn(&str) -> bool) -> LineSet {
        let mut set = LineSet::default();
        for (i, line) in self.lines.iter().enumerate() {
            if is(line.name) {
                set.insert(i);
            }
        }
        set
    }

    /// Checks that every line from `start` (the first header line) on is ended by CRLF and that
    /// nothing stands between them. httparse takes a bare LF; we do not.
    pub(super) fn checked(
        bytes: &'b [u8],
        lines: &'h [httparse::Header<'b>],
        start: usize,
        sizes: Sizes,
    ) -> Result<Self, Refusal> {
        let block = Self { bytes, lines };
        let mut at = start;
        for (i, line) in lines.iter().enumerate() {
            let end = block.line_start(i + 1);
            if block.line_start(i) != at || end.saturating_sub(at) < 2 {
                return Err(Refusal::LineEnd);
            }
            if end - at > sizes.line {
                return Err(Refusal::LineTooLong);
            }
            let value_end = if line.value.is_empty() {
                // httparse points an empty value anywhere in the line; its name is a safe start.
                at + line.name.len() + 1
            } else {
                offset(bytes, line.value) + line.value.len()
            };
            let rest = bytes.get(value_end..end).ok_or(Refusal::LineEnd)?;
            let blank = rest.strip_suffix(b"\r\n").ok_or(Refusal::LineEnd)?;
            if !blank.iter().all(|b| matches!(b, b' ' | b'\t')) {
                return Err(Refusal::LineEnd);
            }
            at = end;
        }
        if bytes.get(at..) != Some(b"\r\n") {
            return Err(Refusal::LineEnd);
        }
        Ok(block)
    }

    /// Copies every line that is not in `drop` to `out`, as few runs as there are.
    pub(in crate::l7) fn copy_except(&self, drop: LineSet, out: &mut Vec<u8>) {
        let mut run = self.line_start(0);
        for i in 0..self.lines.len() {
            if !drop.contains(i) {
                continue;
            }
            let start = self.line_start(i);
            out.extend_from_slice(self.bytes.get(run..start).unwrap_or_default());
            run = self.line_start(i + 1);
        }
        let end = self.line_start(self.lines.len());
        out.extend_from_slice(self.bytes.get(run..end).unwrap_or_default());
    }

    /// Names and values of the lines that are not in `drop`.
    pub(in crate::l7) fn kept(&self, drop: LineSet) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        let lines = self.lines.iter().enumerate();
        lines.filter(move |(i, _)| !drop.contains(*i)).map(|(_, line)| (line.name, line.value))
    }

    /// Names and values of the lines in `set`.
    pub(in crate::l7) fn chosen(&self, set: LineSet) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        let lines = self.lines.iter().enumerate();
        lines.filter(move |(i, _)| set.contains(*i)).map(|(_, line)| (line.name, line.value))
    }

    /// Values of the lines in `set` that have one, as they were sent.
    pub(in crate::l7) fn values(&self, set: LineSet) -> impl Iterator<Item = &'b [u8]> {
        let lines = self.lines.iter().enumerate();
        lines.filter(move |(i, line)| set.contains(*i) && !line.value.is_empty()).map(|(_, line)| line.value)
    }

    /// Adds every line that a Connection header names to `drop`. Its own hop-by-hop headers may go
    /// so; the framing of the message may not.
    pub(super) fn drop_named_by_connection(&self, drop: &mut LineSet) {
        for connection in self.lines.iter().filter(|line| line.name.eq_ignore_ascii_case("connection")) {
            for (i, line) in self.lines.iter().enumerate() {
                let name = line.name;
                let framing = name.eq_ignore_ascii_case("content-length")
                    || name.eq_ignore_ascii_case("transfer-encoding");
                let named =
                    || tokens(connection.value).any(|token| token.eq_ignore_ascii_case(name.as_bytes()));
                if !framing && named() {
                    drop.insert(i);
                }
            }
        }
    }

    /// Where line `i` starts; past the last one, where the empty line starts.
    fn line_start(&self, i: usize) -> usize {
        match self.lines.get(i) {
            Some(line) => offset(self.bytes, line.name.as_bytes()),
            None => self.bytes.len().saturating_sub(2),
        }
    }
}

/// Header lines of a head that we wrote.
pub(super) struct OwnBlock<'h, 'b>(pub(super) &'h [httparse::Header<'b>]);

impl<'b> OwnBlock<'_, 'b> {
    /// Those that mean something beyond this connection.
    pub(super) fn beyond(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        const HOP_BY_HOP: [&str; 5] =
            ["connection", "upgrade", "keep-alive", "transfer-encoding", "http2-settings"];
        let hop_by_hop = |name: &str| HOP_BY_HOP.iter().any(|hop| hop.eq_ignore_ascii_case(name));
        self.0.iter().filter(move |line| !hop_by_hop(line.name)).map(|line| (line.name, line.value))
    }

    /// Value of the first line of this name.
    pub(super) fn value(&self, name: &str) -> Option<&'b [u8]> {
        self.0.iter().find(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value)
    }

    pub(super) fn length(&self) -> Option<u64> {
        content_length(self.value("content-length")?).ok()
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.value("transfer-encoding").is_some()
    }
}

/// Where `part` starts in `whole`; `part` was cut out of it.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(whole.as_ptr().addr())
}

/// `tchar` of RFC 9110 5.6.2: what else is visible stands in no name that anybody passes on.
pub(in crate::l7) const fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Whether the name of a header, all of it visible, is this one, which is given in lower case.
#[inline]
pub(super) fn is_name<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    // No visible byte but the two cases of a letter becomes that letter, and none but itself anything else of ours.
    let differs = |(is, wanted): (&u8, &u8)| (is | 0x20) ^ wanted;
    <&[u8; N]>::try_from(name)
        .is_ok_and(|name| name.iter().zip(lower).fold(0, |any, pair| any | differs(pair)) == 0)
}

/// Elements of a comma-separated header value.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// `Content-Length`: digits only, no sign, no list, and what a signed number of 64 bits holds: with more, somebody
/// behind us might begin anew at zero.
pub(in crate::l7) fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 19 {
        return Err(Refusal::Framing);
    }
    let length = value.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'9' => Ok(n * 10 + u64::from(b - b'0')),
        _ => Err(Refusal::Framing),
    })?;
    i64::try_from(length).map_err(|_| Refusal::Framing)?;
    Ok(length)
}

/// What the framing headers of a head say, collected line by line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// A Content-Length line.
    pub(super) fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked || self.length.is_some() {
            return Err(Refusal::Framing);
        }
        self.length = Some(content_length(value)?);
        Ok(())
    }

    /// A Transfer-Encoding line. Anything but one `chunked` is refused: what we do not decode we
    /// could not delimit.
    pub(super) fn transfer_encoding(&mut self, value: &[u8], version: Version) -> Result<(), Refusal> {
        if self.chunked || self.length.is_some() || version == Version::Http10 {
            return Err(Refusal::Framing);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            // RFC 9112 6.1; the connection ends with it, so nobody reads on.
            return Err(Refusal::Coding);
        }
        self.chunked = true;
        Ok(())
    }
}

/// What Connection headers say, collected line by line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// It names other headers.
    pub(super) names_others: bool,
    tokens: usize,
}

impl Connection {
    /// A Connection line. Refused is what would have to be looked for too often among the other lines.
    pub(super) fn add(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.tokens += 1 + value.iter().filter(|&&b| b == b',').count();
        if self.tokens > CONNECTION_TOKENS_MAX {
            return Err(Refusal::Malformed);
        }
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.names_others = true;
            }
        }
        Ok(())
    }

    /// Whether the connection outlives the message.
    pub(super) fn persists(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}
