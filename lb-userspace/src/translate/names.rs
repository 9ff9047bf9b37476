//! What the API server accepts as a name, a host or a path. Each check says what is wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::pool::Block;

const MAX_SUBDOMAIN: usize = 253;
const MAX_LABEL: usize = 63;

/// RFC 1123 label: namespaces, and Services, whose names may begin with a digit where
/// Kubernetes has `RelaxedServiceNameValidation` (from 1.34).
pub(super) fn label(text: &str) -> Result<(), String> {
    if text.len() <= MAX_LABEL && is_word(text) {
        return Ok(());
    }
    Err(format!("{text:?} must be 1 to 63 lower-case letters, digits and inner dashes"))
}

/// RFC 1123 subdomain: names of most objects, and hosts. As for the API server, a part may be longer than one of a
/// name in DNS: a controller's objects have a Service's name and more.
pub(super) fn subdomain(text: &str) -> Result<(), String> {
    if text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_word) {
        return Ok(());
    }
    Err(format!(
        "{text:?} must be 1 to 253 lower-case letters, digits and dashes, in parts separated by dots"
    ))
}

fn is_word(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Host of an Ingress rule or TLS entry.
pub(super) fn host(text: &str) -> Result<(), String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text:?} is an address; a host must be a DNS name"));
    }
    match text.strip_prefix("*.") {
        Some(suffix) => subdomain(suffix),
        None if text.contains('*') => Err(format!("{text:?} has a wildcard elsewhere than in front (`*.`)")),
        None => subdomain(text),
    }
}

/// Name of a Service or container port (IANA service name).
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let legal = (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    if legal {
        return Ok(());
    }
    Err(format!("{text:?} must be 1 to 15 lower-case letters, digits and inner dashes, one letter at least"))
}

/// 1 to 65535.
pub(super) fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("port {number} is not between 1 and 65535")),
    }
}

/// Path of type Exact or Prefix.
pub(super) fn strict_path(path: &str) -> Result<(), String> {
    absolute_path(path)?;
    let lower = path.to_ascii_lowercase();
    for part in ["//", "/./", "/../", "%2f"] {
        if lower.contains(part) {
            return Err(format!("{path:?} must not contain {part:?}"));
        }
    }
    for end in ["/..", "/."] {
        if path.ends_with(end) {
            return Err(format!("{path:?} must not end with {end:?}"));
        }
    }
    Ok(())
}

/// Any path: absolute, one line.
pub(super) fn absolute_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} must start with `/`"));
    }
    if path.contains(['\r', '\n', '\0']) {
        return Err(format!("{path:?} must be one line"));
    }
    Ok(())
}

/// Why no client could ever be served on this address.
pub(super) fn unusable_vip(addr: IpAddr) -> Option<&'static str> {
    if addr.is_unspecified() {
        return Some("is the unspecified address");
    }
    if addr.is_loopback() {
        return Some("is a loopback address");
    }
    if addr.is_multicast() {
        return Some("is a multicast address");
    }
    match addr {
        IpAddr::V4(v4) if v4.is_link_local() => Some("is a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("is a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4-mapped address"),
        _ => None,
    }
}

/// Where blocks begin of which [`unusable_vip`] refuses each address.
const UNUSABLE: [IpAddr; 10] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)),
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)),
    IpAddr::V4(Ipv4Addr::BROADCAST),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
    IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
];

/// The first address of a block that cannot be a VIP, and why; `None`: all can be one.
pub(super) fn unusable_vip_within(block: &Block) -> Option<(IpAddr, &'static str)> {
    let begins = UNUSABLE.into_iter().filter(|addr| block.contains(*addr));
    let mut addrs = std::iter::once(block.first()).chain(begins);
    addrs.find_map(|addr| Some((addr, unusable_vip(addr)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_as_usable_as_its_worst_address() {
        for (text, expected) in [
            ("192.0.2.0/24", None),
            ("127.0.0.0/8", Some("127.0.0.0")),
            ("127.1.0.0/16", Some("127.1.0.0")),
            ("0.0.0.0/0", Some("0.0.0.0")),
            ("223.255.255.0-224.0.0.1", Some("224.0.0.0")),
            ("255.255.255.254/31", Some("255.255.255.255")),
            ("255.255.255.255", Some("255.255.255.255")),
            ("2001:db8::/64", None),
            ("2001:db8::/1", Some("::")),
            ("::1", Some("::1")),
            ("fe80::/10", Some("fe80::")),
            ("f000::/4", Some("fe80::")),
            ("::ffff:192.0.2.1", Some("::ffff:192.0.2.1")),
        ] {
            let block: Block = text.parse().expect(text);
            let found = unusable_vip_within(&block).map(|(addr, _)| addr);
            let expected = expected.map(|addr| addr.parse::<IpAddr>().expect(addr));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn accepts_and_refuses_as_the_api_server_does() {
        type Check = fn(&str) -> Result<(), String>;
        let [at_most, long] = [63, 64].map(|length| "a".repeat(length));
        let [whole, too_long] = [253, 254].map(|length| "a".repeat(length));
        let cases: [(&str, Check, &[&str], &[&str]); 5] = [
            ("label", label, &["a", "a-1", "1a", &at_most], &["", "-a", "a-", "A", "a.b", "a_b", &long]),
            ("subdomain", subdomain, &["a.b", "a", &long, &whole], &["a..b", ".a", "a.", "A.b", &too_long]),
            (
                "host",
                host,
                &["a.example.com", "*.example.com"],
                &["*", "a.*.com", "10.0.0.1", "::1", "A.com", "a:80"],
            ),
            ("port name", port_name, &["http", "h2-c"], &["", "80", "http_1", "a--b", "averyveryverylong"]),
            (
                "path",
                strict_path,
                &["/", "/a/b", "/a/"],
                &["", "a", "/a//b", "/a/../b", "/a/..", "/%2F", "/a\n"],
            ),
        ];
        for (case, check, good, bad) in cases {
            for text in good {
                assert_eq!(check(text), Ok(()), "{case}: {text}");
            }
            for text in bad {
                assert!(check(text).is_err(), "{case}: {text}");
            }
        }
    }
}
