//! Who asks, and by which address: what the connection says, corrected by those who stand in front of us
//! as far as they are believed.
//!
//! Pure. The proxy and `explain` run the same function.

use std::net::{IpAddr, SocketAddr};

use super::filters::Scheme;
use super::h1;
use super::heads::Client;
use super::policy::Headers;
use crate::model::l4::Prefix;
use crate::model::l7::forwarding::{Address, Behind, Words};
use crate::model::l7::{Forwarding, Mode};

/// A request's client, scheme, host and port as policies, the log and upstreams take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effective<'b> {
    pub(super) addr: IpAddr,
    pub(super) scheme: Scheme,
    /// As it was sent, with or without port. Locations are found by the Host header, whatever this is.
    pub(super) host: &'b [u8],
    pub(super) port: u16,
    /// What those in front call the scheme, where that is no word of ours: it decides nothing and is passed on.
    pub(super) word: Option<&'b [u8]>,
}

impl<'b> Effective<'b> {
    /// Without a word of anybody.
    pub(super) fn of(client: &Client, host: &'b [u8]) -> Self {
        Self { addr: client.addr, scheme: client.scheme, host, port: client.port, word: None }
    }

    /// The scheme as upstreams are told (`$pass_access_scheme`).
    pub(super) fn scheme_word(&self) -> &[u8] {
        self.word.unwrap_or_else(|| self.scheme.as_str().as_bytes())
    }
}

/// `arrived` as the request's headers correct it. What cannot be read corrects nothing.
pub(super) fn effective<'b>(
    forwarding: &Forwarding,
    mode: Mode,
    arrived: Effective<'b>,
    headers: &Headers<'b>,
) -> Effective<'b> {
    let Some(Behind { words, address, trusted }) = &forwarding.behind else { return arrived };
    let addr = match address {
        Address::Connection => arrived.addr,
        Address::Told => walk(&forwarding.header, trusted, arrived.addr, headers),
    };
    let are_believed = match (words, mode) {
        (Words::Ignored, _) => false,
        (Words::Believed, Mode::Compat) => true,
        (Words::Believed, Mode::Strict) | (Words::OfTrusted, _) => is_among(trusted, arrived.addr),
    };
    if !are_believed {
        return Effective { addr, ..arrived };
    }
    let said = |name| headers.first(name).and_then(first);
    // A PROXY header that names the port of https is not contradicted.
    let is_settled = *address == Address::Connection && arrived.scheme == Scheme::Https;
    let word = said("x-forwarded-proto").filter(|word| !is_settled && is_scheme(word));
    let scheme = word.and_then(scheme);
    let host = said("x-forwarded-host").filter(|host| h1::valid_host(host));
    let port = said("x-forwarded-port").and_then(port);
    Effective {
        addr,
        scheme: scheme.unwrap_or(arrived.scheme),
        host: host.unwrap_or(arrived.host),
        port: port.unwrap_or(arrived.port),
        word: word.filter(|_| scheme.is_none()),
    }
}

/// From the peer backwards: a hop names the one before it, and is believed if it is trusted.
fn walk(header: &str, trusted: &[Prefix], peer: IpAddr, headers: &Headers<'_>) -> IpAddr {
    let mut addr = peer;
    let lines = headers.lines().rev().filter(|(name, _)| name.eq_ignore_ascii_case(header));
    let hops = lines.flat_map(|(_, value)| value.rsplit(|byte| matches!(byte, b',' | b' ' | b'\t')));
    for hop in hops.filter(|hop| !hop.is_empty()) {
        if !is_among(trusted, addr) {
            break;
        }
        let Some(before) = address(hop) else { break };
        addr = before;
    }
    addr
}

fn is_among(trusted: &[Prefix], addr: IpAddr) -> bool {
    trusted.iter().any(|range| range.contains(addr))
}

/// An address, with or without port and brackets.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().ok().map(|with_port: SocketAddr| with_port.ip());
    bare.parse().ok().or_else(with_port).map(|addr: IpAddr| addr.to_canonical())
}

/// First element of a list: what the proxy next to the client said.
fn first(value: &[u8]) -> Option<&[u8]> {
    value.split(|byte| *byte == b',').next().map(<[u8]>::trim_ascii).filter(|first| !first.is_empty())
}

fn scheme(word: &[u8]) -> Option<Scheme> {
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("https") || is("wss") => Some(Scheme::Https),
        () if is("http") || is("ws") => Some(Scheme::Http),
        () => None,
    }
}

/// As RFC 3986 3.1 has it.
fn is_scheme(word: &[u8]) -> bool {
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    word.first().is_some_and(u8::is_ascii_alphabetic) && word.iter().all(is_inner)
}

fn port(word: &[u8]) -> Option<u16> {
    let is_number = word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| is_number)?.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::l7::forwarding::Chain;

    fn ranges(text: &str) -> Vec<Prefix> {
        let range = |range: &str| {
            let (addr, bits) = range.split_once('/')?;
            Prefix::new(addr.parse().ok()?, bits.parse().ok()?)
        };
        text.split_whitespace().map(|text| range(text).expect("a range")).collect()
    }

    fn arrived() -> Effective<'static> {
        let addr = IpAddr::from([10, 0, 0, 1]);
        Effective { addr, scheme: Scheme::Http, host: b"pod.internal", port: 80, word: None }
    }

    fn behind(words: Words, address: Address, trusted: Vec<Prefix>) -> Forwarding {
        Forwarding { behind: Some(Behind { words, address, trusted }), ..Forwarding::default() }
    }

    fn told(forwarding: &Forwarding, lines: &[(&str, &str)]) -> String {
        told_from(arrived(), forwarding, lines)
    }

    fn told_from(arrived: Effective<'_>, forwarding: &Forwarding, lines: &[(&str, &str)]) -> String {
        let lines: Vec<_> =
            lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        text(effective(forwarding, Mode::Compat, arrived, &Headers::Given(&lines)))
    }

    fn text(effective: Effective<'_>) -> String {
        let (addr, port, text) = (effective.addr, effective.port, String::from_utf8_lossy);
        format!("{addr} {} {} {port}", text(effective.scheme_word()), text(effective.host))
    }

    const ALL: [(&str, &str); 4] = [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example:8443, pod.internal"),
        ("X-Forwarded-Port", "8443"),
    ];

    #[test]
    fn each_key_believes_what_it_says_and_no_more() {
        let near = |words| behind(words, Address::Told, ranges("10.0.0.0/8"));
        let far = |words| behind(words, Address::Told, ranges("172.16.0.0/12"));
        let cases = [
            ("nothing set", Forwarding::default(), "10.0.0.1 http pod.internal 80"),
            ("use-forwarded-headers", near(Words::Believed), "192.0.2.1 https shop.example:8443 8443"),
            ("of a stranger", far(Words::Believed), "10.0.0.1 https shop.example:8443 8443"),
            ("enable-real-ip", near(Words::Ignored), "192.0.2.1 http pod.internal 80"),
            ("enable-real-ip of a stranger", far(Words::Ignored), "10.0.0.1 http pod.internal 80"),
            (
                "with use-proxy-protocol",
                behind(Words::Believed, Address::Connection, Vec::new()),
                "10.0.0.1 https shop.example:8443 8443",
            ),
            (
                "compute-full-forwarded-for changes what is sent, not who it is",
                Forwarding { chain: Chain::Appended, ..near(Words::Believed) },
                "192.0.2.1 https shop.example:8443 8443",
            ),
            (
                "another header",
                Forwarding { header: "cf-connecting-ip".to_owned(), ..near(Words::Ignored) },
                "10.0.0.1 http pod.internal 80",
            ),
        ];
        for (case, forwarding, expected) in cases {
            assert_eq!(told(&forwarding, &ALL), expected, "{case}");
        }
    }

    #[test]
    fn strictly_nobody_is_believed_who_is_not_trusted() {
        let lines: Vec<_> = ALL.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let all = "192.0.2.1 https shop.example:8443 8443";
        let nothing = "10.0.0.1 http pod.internal 80";
        let (near, far) = ("10.0.0.0/8", "172.16.0.0/12");
        let cases = [
            ("a location, trusted", Words::Believed, near, Mode::Strict, all),
            ("a location, a stranger", Words::Believed, far, Mode::Strict, nothing),
            ("the ConfigMap, trusted", Words::OfTrusted, near, Mode::Compat, all),
            ("the ConfigMap, a stranger", Words::OfTrusted, far, Mode::Compat, nothing),
            ("both, a stranger", Words::OfTrusted, far, Mode::Strict, nothing),
            ("nobody is trusted", Words::OfTrusted, "", Mode::Strict, nothing),
            ("neither", Words::Believed, far, Mode::Compat, "10.0.0.1 https shop.example:8443 8443"),
        ];
        for (case, words, trusted, mode, expected) in cases {
            let forwarding = behind(words, Address::Told, ranges(trusted));

            let told = effective(&forwarding, mode, arrived(), &Headers::Given(&lines));

            assert_eq!(text(told), expected, "{case}");
        }
    }

    #[test]
    fn the_address_is_the_first_stranger_from_the_right() {
        let forwarding = behind(Words::Ignored, Address::Told, ranges("10.0.0.0/8 fd00::/8"));
        let cases: [(&str, &[&str], &str); 12] = [
            ("nobody said anything", &[], "10.0.0.1"),
            ("one", &["192.0.2.1"], "192.0.2.1"),
            ("a client that lies", &["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
            ("two proxies", &["203.0.113.9, 192.0.2.1, 10.9.9.9"], "192.0.2.1"),
            ("only proxies", &["10.2.2.2, 10.9.9.9"], "10.2.2.2"),
            ("two lines", &["203.0.113.9", "192.0.2.1", "10.9.9.9"], "192.0.2.1"),
            ("ports", &["192.0.2.1:4711, 10.9.9.9:80"], "192.0.2.1"),
            ("IPv6", &["2001:db8::1, [fd00::1]:80, [fd00::2]"], "2001:db8::1"),
            ("IPv4 within IPv6", &["::ffff:192.0.2.1"], "192.0.2.1"),
            ("empty elements", &["192.0.2.1,, ", ""], "192.0.2.1"),
            ("nonsense ends it", &["192.0.2.1, unknown, 10.9.9.9"], "10.9.9.9"),
            ("nonsense alone", &["unknown"], "10.0.0.1"),
        ];
        for (case, values, expected) in cases {
            let lines: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();

            assert_eq!(told(&forwarding, &lines), format!("{expected} http pod.internal 80"), "{case}");
        }
    }

    #[test]
    fn words_that_say_nothing_change_nothing() {
        let forwarding = behind(Words::Believed, Address::Connection, Vec::new());
        let plain = "10.0.0.1 http pod.internal 80";
        let cases = [
            ("X-Forwarded-Proto", "", plain),
            ("X-Forwarded-Proto", "gopher", "10.0.0.1 gopher pod.internal 80"),
            ("X-Forwarded-Proto", "a b", plain),
            ("X-Forwarded-Proto", "1a", plain),
            ("X-Forwarded-Proto", "HTTPS, http", "10.0.0.1 https pod.internal 80"),
            ("X-Forwarded-Proto", "wss", "10.0.0.1 https pod.internal 80"),
            ("X-Forwarded-Host", "a b", plain),
            ("X-Forwarded-Host", "a/b", plain),
            ("X-Forwarded-Host", ", a", plain),
            ("X-Forwarded-Port", "0", plain),
            ("X-Forwarded-Port", "+1", plain),
            ("X-Forwarded-Port", "70000", plain),
            ("X-Forwarded-Port", "443,80", "10.0.0.1 http pod.internal 443"),
        ];
        for (name, value, expected) in cases {
            assert_eq!(told(&forwarding, &[(name, value)]), expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_listener_is_contradicted_and_a_proxy_header_is_not() {
        let https = Effective { scheme: Scheme::Https, port: 443, ..arrived() };
        let lines = [("X-Forwarded-Proto", "http")];
        let of_listener = behind(Words::Believed, Address::Told, Vec::new());
        let of_header = behind(Words::Believed, Address::Connection, Vec::new());

        assert_eq!(told_from(https, &of_listener, &lines), "10.0.0.1 http pod.internal 443");
        assert_eq!(told_from(https, &of_header, &lines), "10.0.0.1 https pod.internal 443");
    }

    proptest! {
        #[test]
        fn no_address_is_told_by_somebody_who_is_not_trusted(
            hops in proptest::collection::vec(0u8..4, 0..8),
            peer in 0u8..4,
            trusted in proptest::collection::vec(0u8..4, 0..4),
        ) {
            let addr = |n: u8| IpAddr::from([192, 0, 2, n]);
            let trusted: Vec<_> = trusted.into_iter().filter_map(|n| Prefix::new(addr(n), 32)).collect();
            let value = hops.iter().map(|n| addr(*n).to_string()).collect::<Vec<_>>().join(", ");
            let lines = [("X-Forwarded-For".to_owned(), value)];
            let headers = Headers::Given(&lines);
            let forwarding = behind(Words::Ignored, Address::Told, trusted.clone());
            let arrived = Effective { addr: addr(peer), ..arrived() };

            let found = effective(&forwarding, Mode::Compat, arrived, &headers).addr;

            let chain: Vec<_> = hops.iter().chain([&peer]).map(|n| addr(*n)).collect();
            let is_trusted = |hop: &IpAddr| trusted.iter().any(|range| range.contains(*hop));
            let told = (0..chain.len()).any(|i| chain[i] == found && chain[i + 1..].iter().all(is_trusted));
            prop_assert!(told, "{found} of {chain:?}, trusted {trusted:?}");
            prop_assert!(!is_trusted(&found) || found == chain[0], "{found} of {chain:?}, not gone far enough");
        }

        #[test]
        fn any_value_is_read_or_ignored(value in ".*") {
            for name in ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"] {
                let lines = [(name.to_owned(), value.clone())];
                let forwarding = behind(Words::Believed, Address::Told, ranges("0.0.0.0/0 ::/0"));
                let found = effective(&forwarding, Mode::Compat, arrived(), &Headers::Given(&lines));
                prop_assert!(h1::valid_host(found.host) && found.port > 0);
            }
        }
    }
}
