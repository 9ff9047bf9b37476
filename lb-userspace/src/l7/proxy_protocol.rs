//! PROXY protocol header, versions 1 and 2: who the client is, said by whoever stands in front of
//! us. Pure and total; whether the sender is believed is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header we read. The addresses take 232 bytes at most; the rest are additions of the sender's.
pub(super) const HEADER_MAX: usize = 4096;
/// Longest header of version 1, by its specification.
const TEXT_MAX: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the header; what follows is the client's.
    pub(super) len: usize,
    /// `None`: the sender speaks for itself (a health check), or of no TCP connection.
    pub(super) addresses: Option<Addresses>,
}

/// The connection as the sender accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// No header of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed proxy protocol header")]
pub(super) struct Malformed;

/// Reads a header from the start of `bytes`; `None` while it is incomplete.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => text(bytes),
        Some(_) => binary(bytes),
    }
}

/// Version 1: one line of text.
fn text(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let start = b"PROXY ";
    let seen = bytes.len().min(start.len());
    if bytes.get(..seen) != start.get(..seen) {
        return Err(Malformed);
    }
    let window = bytes.get(..bytes.len().min(TEXT_MAX)).unwrap_or_default();
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= TEXT_MAX { Err(Malformed) } else { Ok(None) };
    };
    let line = bytes.get(start.len()..end).ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let len = end + 2;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Some(Header { len, addresses: None }));
    }
    let (source, destination) = (words.next().ok_or(Malformed)?, words.next().ok_or(Malformed)?);
    let (source, destination): (IpAddr, IpAddr) = match family {
        Some("TCP4") => (v4(source)?.into(), v4(destination)?.into()),
        Some("TCP6") => (v6(source)?.into(), v6(destination)?.into()),
        _ => return Err(Malformed),
    };
    let (from, to) = (port(words.next())?, port(words.next())?);
    if words.next().is_some() {
        return Err(Malformed);
    }
    Ok(Some(Header { len, addresses: Some(addresses(source, from, destination, to)) }))
}

fn v4(text: &str) -> Result<Ipv4Addr, Malformed> {
    text.parse().map_err(|_| Malformed)
}

fn v6(text: &str) -> Result<Ipv6Addr, Malformed> {
    text.parse().map_err(|_| Malformed)
}

/// Decimal, without a sign or a leading zero.
fn port(word: Option<&str>) -> Result<u16, Malformed> {
    let word = word.filter(|word| *word == "0" || !word.starts_with(['0', '+'])).ok_or(Malformed)?;
    word.parse().map_err(|_| Malformed)
}

/// Version 2: fixed fields, addresses, and additions that we skip.
fn binary(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes.get(..seen) != SIGNATURE.get(..seen) {
        return Err(Malformed);
    }
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else { return Ok(None) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let len = FIXED + rest;
    // Families and protocols beyond these are reserved, which a receiver has to refuse.
    let is_reserved = family >> 4 > 3 || family & 15 > 2;
    if command >> 4 != 2 || command & 15 > 1 || is_reserved || len > HEADER_MAX {
        return Err(Malformed);
    }
    let Some(body) = bytes.get(FIXED..len) else { return Ok(None) };
    // LOCAL, or anything but TCP over IP: the sender's own addresses count.
    let found = match (command & 15, family) {
        (1, 0x11) => Some(fixed::<4>(body).ok_or(Malformed)?),
        (1, 0x21) => Some(fixed::<16>(body).ok_or(Malformed)?),
        _ => None,
    };
    Ok(Some(Header { len, addresses: found }))
}

/// Two addresses of `N` bytes and two ports.
fn fixed<const N: usize>(body: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (from, rest) = rest.split_first_chunk::<2>()?;
    let (to, _) = rest.split_first_chunk::<2>()?;
    Some(addresses(
        IpAddr::from(*source),
        u16::from_be_bytes(*from),
        IpAddr::from(*destination),
        u16::from_be_bytes(*to),
    ))
}

fn addresses(source: IpAddr, from: u16, destination: IpAddr, to: u16) -> Addresses {
    Addresses {
        source: SocketAddr::new(source.to_canonical(), from),
        destination: SocketAddr::new(destination.to_canonical(), to),
    }
}

impl Addresses {
    /// A header of version 1 that says so. Of two families, the older one is written as the newer has it.
    pub(super) fn header(self) -> Vec<u8> {
        let Self { source, destination } = self;
        let (from, to) = (source.port(), destination.port());
        let line = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                format!("PROXY TCP4 {source} {destination} {from} {to}\r\n")
            }
            (source, destination) => {
                let (source, destination) = (mapped(source), mapped(destination));
                format!("PROXY TCP6 {source} {destination} {from} {to}\r\n")
            }
        };
        line.into_bytes()
    }
}

fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

/// For the fuzz target: never panics, and what it takes it has seen.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(Some(header)) = parse(bytes) {
        assert!(header.len <= bytes.len() && header.len <= HEADER_MAX);
        // No shorter piece is a whole header.
        for cut in 0..header.len.min(300) {
            assert_eq!(parse(bytes.get(..cut).unwrap_or_default()), Ok(None));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Result<Option<Header>, Malformed>;

    fn said(source: &str, destination: &str, len: usize) -> Read {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Ok(Some(Header { len, addresses: Some(Addresses { source, destination }) }))
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, body].concat()
    }

    #[test]
    fn reads_what_it_writes() {
        let cases = [
            ("192.0.2.1:40000", "203.0.113.7:443"),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ("192.0.2.1:1", "[2001:db8::2]:2"),
        ];
        for (source, destination) in cases {
            let addresses =
                Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() };

            let written = addresses.header();

            assert_eq!(parse(&written), said(source, destination, written.len()), "{source}");
        }
    }

    #[test]
    fn reads_both_versions() {
        let v4 = [192, 0, 2, 1, 203, 0, 113, 7, 0x9c, 0x40, 1, 0xbb];
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 80, 90);
        let with_more = [v4.as_slice(), b"\x04\0\x03abc"].concat();
        let line = "PROXY TCP4 192.0.2.1 203.0.113.7 40000 443\r\n";
        let none = |len| Ok(Some(Header { len, addresses: None }));
        let cases: [(&str, Vec<u8>, Read); 9] = [
            ("text v4", line.into(), said("192.0.2.1:40000", "203.0.113.7:443", line.len())),
            ("text v6", "PROXY TCP6 ::1 ::2 1 2\r\nGET".into(), said("[::1]:1", "[::2]:2", 24)),
            ("text mapped", "PROXY TCP6 ::ffff:1.2.3.4 ::2 1 2\r\n".into(), said("1.2.3.4:1", "[::2]:2", 35)),
            ("text unknown", "PROXY UNKNOWN whatever\r\nrest".into(), none(24)),
            ("binary v4", binary(0x21, 0x11, &v4), said("192.0.2.1:40000", "203.0.113.7:443", 28)),
            ("binary v6", binary(0x21, 0x21, &v6), said("[::1]:80", "[::2]:90", 52)),
            (
                "binary with additions",
                binary(0x21, 0x11, &with_more),
                said("192.0.2.1:40000", "203.0.113.7:443", 34),
            ),
            ("binary local", binary(0x20, 0, b""), none(16)),
            ("binary of a unix socket", binary(0x21, 0x31, &[0; 216]), none(232)),
        ];
        for (case, bytes, expected) in cases {
            assert_eq!(parse(&bytes), expected, "{case}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        let cases: [(&str, Vec<u8>); 15] = [
            ("a request", b"GET / HTTP/1.1\r\n".into()),
            ("a post", b"POST / HTTP/1.1\r\n".into()),
            ("a tls hello", b"\x16\x03\x01\x02\0".into()),
            ("no crlf", [b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat()),
            ("bare lf", b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\n\r\n".into()),
            ("family and address differ", b"PROXY TCP4 ::1 ::2 1 2\r\n".into()),
            ("missing port", b"PROXY TCP4 1.2.3.4 1.2.3.5 1\r\n".into()),
            ("signed port", b"PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n".into()),
            ("zero in front", b"PROXY TCP4 1.2.3.4 1.2.3.5 01 2\r\n".into()),
            ("word too many", b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2 3\r\n".into()),
            ("binary version 1", binary(0x11, 0x11, &[0; 12])),
            ("binary family 4", binary(0x21, 0x41, &[0; 12])),
            ("binary protocol 3", binary(0x21, 0x13, &[0; 12])),
            ("binary command 2", binary(0x22, 0x11, &[0; 12])),
            ("binary too short for its family", binary(0x21, 0x11, &[0; 11])),
        ];
        for (case, bytes) in cases {
            assert_eq!(parse(&bytes), Err(Malformed), "{case}");
        }
        let mut long = binary(0x21, 0x11, &[0; 12]);
        (long[14], long[15]) = (0xff, 0xff);
        assert_eq!(parse(&long), Err(Malformed), "binary too long");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&bytes);
            fuzz(&[SIGNATURE.as_slice(), &bytes].concat());
            fuzz(&[b"PROXY TCP4 ", bytes.as_slice()].concat());
        }
    }
}
