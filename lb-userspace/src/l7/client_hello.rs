//! The name in a ClientHello, seen before anything is decided: pure, total and bounded by the read
//! buffer. What TLS makes of the same bytes is rustls' business; a hello that is odd here is handed
//! to it without a name, for the alert it deserves.

use std::borrow::Cow;

/// Record type and handshake type, RFC 8446 5.1 and 4.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Longest fragment of a record in the clear.
const FRAGMENT_MAX: usize = 1 << 14;
/// Extension and name type, RFC 6066 3.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Longest host name.
const NAME_MAX: usize = 255;

/// What the first bytes of a TLS connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// More bytes have to come.
    Incomplete,
    /// The name asked for, lower case and without a trailing dot; `None`: no name.
    Named(Option<String>),
    /// No ClientHello.
    Other,
}

/// Reads a ClientHello from the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Hello {
    match fragments(bytes) {
        Fragments::Incomplete => Hello::Incomplete,
        Fragments::Other => Hello::Other,
        Fragments::Whole(message) => names(&message).map_or(Hello::Other, Hello::Named),
    }
}

/// The handshake message that a connection starts with.
enum Fragments<'b> {
    Incomplete,
    Other,
    Whole(Cow<'b, [u8]>),
}

/// Puts the message together: most hellos are one record, some are spread over several.
fn fragments(bytes: &[u8]) -> Fragments<'_> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        match message_len(&message) {
            Err(Odd) => return Fragments::Other,
            Ok(Some(wanted)) if message.len() >= wanted => {
                let body = match message {
                    Cow::Borrowed(whole) => Cow::Borrowed(whole.get(4..wanted).unwrap_or_default()),
                    Cow::Owned(whole) => Cow::Owned(whole.get(4..wanted).unwrap_or_default().to_vec()),
                };
                return Fragments::Whole(body);
            }
            Ok(_) => {}
        }
        // Its first byte tells plain HTTP from TLS.
        match rest.first() {
            None => return Fragments::Incomplete,
            Some(&HANDSHAKE) => {}
            Some(_) => return Fragments::Other,
        }
        let Some(&[_, major, _, high, low]) = rest.get(..5) else { return Fragments::Incomplete };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if major != 3 || len == 0 || len > FRAGMENT_MAX {
            return Fragments::Other;
        }
        let Some(fragment) = rest.get(5..5 + len) else { return Fragments::Incomplete };
        rest = rest.get(5 + len..).unwrap_or_default();
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
    }
}

/// No ClientHello, or a malformed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Odd;

/// Length of the message with its own head; `None` while unknown.
fn message_len(message: &[u8]) -> Result<Option<usize>, Odd> {
    match message {
        [CLIENT_HELLO, a, b, c, ..] => {
            let len = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).map_err(|_| Odd)?;
            Ok(Some(len + 4))
        }
        [] | [CLIENT_HELLO, ..] => Ok(None),
        _ => Err(Odd),
    }
}

/// The host name among the extensions.
fn names(body: &[u8]) -> Result<Option<String>, Odd> {
    let mut reader = Reader(body);
    // Version and random.
    reader.take(2 + 32)?;
    reader.short_vector()?;
    // Cipher suites, compression methods.
    reader.long_vector()?;
    reader.short_vector()?;
    if reader.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Reader(reader.long_vector()?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.long_vector()?;
        if kind != SERVER_NAME {
            continue;
        }
        // Twice the same extension is an error, RFC 8446 4.2.
        if found.is_some() {
            return Err(Odd);
        }
        let mut names = Reader(Reader(content).long_vector()?);
        let kind = names.take(1)?;
        let name = names.long_vector()?;
        if kind != [HOST_NAME] || !names.0.is_empty() {
            return Err(Odd);
        }
        found = Some(host_name(name)?);
    }
    Ok(found)
}

/// Letters, digits, `-`, `_` and single dots.
fn host_name(name: &[u8]) -> Result<String, Odd> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_MAX || !name.iter().all(legal) {
        return Err(Odd);
    }
    String::from_utf8(name.to_ascii_lowercase()).map_err(|_| Odd)
}

/// Takes fields off the front.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, n: usize) -> Result<&'b [u8], Odd> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Odd)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, Odd> {
        let (number, rest) = self.0.split_first_chunk::<2>().ok_or(Odd)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*number))
    }

    /// With a length of one byte in front.
    fn short_vector(&mut self) -> Result<&'b [u8], Odd> {
        let (len, rest) = self.0.split_first().ok_or(Odd)?;
        self.0 = rest;
        self.take(usize::from(*len))
    }

    /// With a length of two bytes in front.
    fn long_vector(&mut self) -> Result<&'b [u8], Odd> {
        let len = self.number()?;
        self.take(usize::from(len))
    }
}

/// For the fuzz target: never panics, and every beginning of a hello is one that waits for more.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Hello::Named(name) = parse(bytes) {
        assert!(name.is_none_or(|name| name.len() <= NAME_MAX && name == name.to_ascii_lowercase()));
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
            // The hello may end before the bytes do.
            assert_ne!(parse(bytes.get(..cut).unwrap_or_default()), Hello::Other);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a real client sends first.
    fn hello(name: &str, sni: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.enable_sni = sni;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        session.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn named(name: &str) -> Hello {
        Hello::Named(Some(name.to_owned()))
    }

    /// The message of a single record, as records of at most `size` bytes.
    fn split(record: &[u8], size: usize) -> Vec<u8> {
        let pieces = record[5..].chunks(size).map(|piece| {
            let len = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&record[..3], &len, piece].concat()
        });
        pieces.collect::<Vec<_>>().concat()
    }

    #[test]
    fn a_real_hello_has_its_name() {
        assert_eq!(parse(&hello("A.Example.COM", true)), named("a.example.com"));
        assert_eq!(parse(&hello("a.example.com", false)), Hello::Named(None));
        assert_eq!(parse(&hello("192.0.2.1", true)), Hello::Named(None), "an address is no name");
    }

    #[test]
    fn a_hello_spread_over_records_is_the_same_hello() {
        let whole = hello("a.example.com", true);
        for size in [1, 2, 3, 5, 100, 1000] {
            assert_eq!(parse(&split(&whole, size)), named("a.example.com"), "{size}");
        }
    }

    #[test]
    fn every_beginning_waits_for_more() {
        let whole = hello("a.example.com", true);
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Hello::Incomplete, "{cut}");
        }
        assert_eq!(parse(&[whole.as_slice(), b"more"].concat()), named("a.example.com"));
    }

    #[test]
    fn what_is_no_hello_is_told_from_one_at_once() {
        let cases: [(&str, &[u8]); 7] = [
            ("http", b"GET / HTTP/1.1\r\n"),
            ("ssl 2", b"\x80\x2e\x01\x03\x01"),
            ("an alert", b"\x15\x03\x01\0\x02\x02\x28"),
            ("another handshake message", b"\x16\x03\x01\0\x04\x02\0\0\0"),
            ("an empty record", b"\x16\x03\x01\0\0"),
            ("a record too long", b"\x16\x03\x01\x40\x01"),
            ("version 4", b"\x16\x04\x01\0\x01"),
        ];
        for (case, bytes) in cases {
            assert_eq!(parse(bytes), Hello::Other, "{case}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&bytes);
            fuzz(&[b"\x16\x03\x01\x01\0\x01", bytes.as_slice()].concat());
        }

        #[test]
        fn a_changed_hello_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = hello("a.example.com", true);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            parse(&bytes);
        }
    }
}
