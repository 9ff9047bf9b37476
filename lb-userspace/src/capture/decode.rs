//! The headers of a captured frame, as far as it is shown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// IP protocol numbers.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
const V4_IN_IP: u8 = 4;
const V6_IN_IP: u8 = 41;

/// UDP and tunnel header.
const TUNNEL: usize = 8 + 16;

/// One IP header and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// IP protocol.
    pub proto: u8,
    /// Source; port 0 where there is none.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// TCP's flags.
    pub tcp_flags: Option<u8>,
    /// Where what it carries begins.
    payload: usize,
}

/// The IP headers of an Ethernet frame from the outermost on; `in_tunnel`: what the first one's
/// UDP carries is a packet, too.
pub fn layers(frame: &[u8], in_tunnel: bool) -> Vec<Layer> {
    let mut at = 14;
    while at < 22 && matches!(frame.get(at - 2..at), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    let mut layers = Vec::new();
    while layers.len() < 2
        && let Some(layer) = layer(frame, at)
    {
        layers.push(layer);
        at = match layer.proto {
            V4_IN_IP | V6_IN_IP => layer.payload,
            UDP if in_tunnel && layers.len() == 1 => layer.payload + TUNNEL,
            _ => break,
        };
    }
    layers
}

fn layer(frame: &[u8], at: usize) -> Option<Layer> {
    let ip = frame.get(at..)?;
    let (proto, src, dst, length): (u8, IpAddr, IpAddr, usize) = match ip.first()? >> 4 {
        4 => {
            let v4 =
                |at: usize| ip.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
            let later = matches!(ip.get(6..8)?, [a, b] if a & 0x1f != 0 || *b != 0);
            let length = if later { usize::MAX / 2 } else { usize::from(ip.first()? & 15) * 4 };
            (*ip.get(9)?, v4(12)?.into(), v4(16)?.into(), length)
        }
        6 => {
            let v6 = |at: usize| {
                ip.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(Ipv6Addr::from)
            };
            (*ip.get(6)?, v6(8)?.into(), v6(24)?.into(), 40)
        }
        _ => return None,
    };
    let transport = ip.get(length..).unwrap_or_default();
    let ports = match (proto, transport) {
        (TCP | UDP, [a, b, c, d, ..]) => [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])],
        _ => [0, 0],
    };
    let [sport, dport] = ports;
    Some(Layer {
        proto,
        src: SocketAddr::new(src, sport),
        dst: SocketAddr::new(dst, dport),
        tcp_flags: (proto == TCP).then(|| transport.get(13).copied()).flatten(),
        payload: at.saturating_add(length),
    })
}
