//! ICMP messages of both families byte by byte, and errors that quote a packet.

use std::net::IpAddr;

use lb_common::{Mac, csum};

use crate::packet::{OURS, ROUTER, pseudo};

/// An ICMP or ICMPv6 message. Start from [`Icmp::new`] and change what the case is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    /// Destination MAC.
    pub dst_mac: Mac,
    /// Source MAC.
    pub src_mac: Mac,
    /// Source.
    pub src: IpAddr,
    /// Destination; the same family.
    pub dst: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type and code.
    pub kind: (u8, u8),
    /// Second word.
    pub rest: [u8; 4],
    /// What follows the eight bytes of the header: data, or the packet that an error quotes.
    pub body: Vec<u8>,
}

impl Icmp {
    /// A message from the router to us.
    pub fn new(src: &str, dst: &str, kind: (u8, u8), body: &[u8]) -> Self {
        Self {
            dst_mac: OURS,
            src_mac: ROUTER,
            src: src.parse().expect("test address"),
            dst: dst.parse().expect("test address"),
            tos: 0xc0,
            ttl: 64,
            kind,
            rest: [0; 4],
            body: body.to_vec(),
        }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { dst_mac, src_mac, src, dst, tos, ttl, kind, rest, body } = self;
        let mut message = vec![kind.0, kind.1, 0, 0];
        message.extend(rest);
        message.extend(body);
        let start = if src.is_ipv4() { 0 } else { pseudo(*src, *dst, 58, message.len()) };
        let sum = csum::full(start, &message).to_le_bytes();
        message[2..4].copy_from_slice(&sum);
        let mut frame = [dst_mac.0, src_mac.0].concat();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut head = vec![0x45, *tos];
                head.extend(((20 + message.len()) as u16).to_be_bytes());
                head.extend([0, 0, 0x40, 0, *ttl, 1, 0, 0]);
                head.extend(src.octets());
                head.extend(dst.octets());
                let sum = csum::full(0, &head).to_le_bytes();
                head[10..12].copy_from_slice(&sum);
                frame.extend([0x08, 0x00]);
                frame.extend(head);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0]);
                frame.extend((message.len() as u16).to_be_bytes());
                frame.extend([58, *ttl]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => panic!("mixed families in a test packet"),
        }
        frame.extend(message);
        frame
    }
}
