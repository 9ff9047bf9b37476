//! Keeps the host's own ARP off the VIPs that somebody announces. A VIP of the proxy has a local route, and Linux
//! answers for whatever is routed locally, on every node that has the route.

use std::io;

use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::socket::Batch;

/// `IPV4_DEVCONF_*` of linux/ip.h, and what each is set to.
const SETTINGS: [(&str, u16, u32); 2] = [
    // Never name a VIP as our own address in a question about somebody else's.
    ("arp_announce", 18, 2),
    // Answer for addresses of the interface alone.
    ("arp_ignore", 19, 1),
];
const AF_INET: u16 = libc::AF_INET as u16;
const IFLA_INET_CONF: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;

/// Sets what is not set yet. By netlink, because a container sees `/proc/sys` read-only.
pub(in crate::datapath) fn quiet(interface: &str) -> io::Result<()> {
    let missing = SETTINGS.iter().filter(|(name, _, value)| is_below(interface, name, *value));
    let settings: Vec<u8> =
        missing.flat_map(|(_, index, value)| attribute(*index, &value.to_ne_bytes())).collect();
    if settings.is_empty() {
        return Ok(());
    }
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    let of_family = attribute(AF_INET, &attribute(IFLA_INET_CONF, &settings));
    message.attributes.push(LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC, of_family)));
    match Batch::open()?.ask(vec![(0, RouteNetlinkMessage::SetLink(message))])?.pop() {
        Some(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

/// What cannot be read is set.
fn is_below(interface: &str, name: &str, wanted: u32) -> bool {
    let read = |of: &str| -> Option<u32> {
        std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/{name}")).ok()?.trim().parse().ok()
    };
    // The kernel takes the larger of the two.
    read(interface).max(read("all")).is_none_or(|value| value < wanted)
}

/// Length, type, value; every value here is a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len() + 4) as u16;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lie_within_each_other_as_the_kernel_reads_them() {
        let inner = attribute(19, &1_u32.to_ne_bytes());
        let whole = attribute(AF_INET, &attribute(IFLA_INET_CONF, &inner));

        let words: Vec<u16> =
            whole.chunks(2).map(|pair| u16::from_ne_bytes(pair.try_into().expect("two bytes"))).collect();
        assert_eq!(words[..6], [16, 2, 12, 1, 8, 19]);
        assert_eq!(whole[12..], 1_u32.to_ne_bytes());
    }
}
