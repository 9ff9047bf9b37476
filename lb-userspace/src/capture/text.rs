//! A packet as a line: when, where, verdict, the flow as it came, and how it left if that differs.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::decode::{Layer, TCP, UDP, layers};
use crate::model::capture::Packet;

/// The line, without its end.
pub fn line(packet: &Packet) -> String {
    let Packet { at, interface, verdict, flow, length, bytes, .. } = packet;
    let seconds = at.as_secs() % 86_400;
    let mut line = format!(
        "{:02}:{:02}:{:02}.{:06} {interface} {verdict}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        at.subsec_micros()
    );
    let layers = layers(bytes, matches!(*verdict, "forwarded-tunnel" | "passed-on"));
    let came = *flow;
    if let Some((proto, src, dst)) = came {
        let _ = write!(line, " {}", ends(proto, src, dst));
    }
    if let Some(flags) = layers.last().and_then(|layer| layer.tcp_flags) {
        let _ = write!(line, " [{}]", flag_letters(flags));
    }
    if let Some(outer) = layers.first()
        && came != Some((outer.proto, outer.src, outer.dst))
    {
        let _ = write!(line, " as {}", left_as(outer));
    }
    let _ = write!(line, " {length} bytes");
    line
}

fn left_as(Layer { proto, src, dst, .. }: &Layer) -> String {
    ends(*proto, *src, *dst)
}

fn ends(proto: u8, src: SocketAddr, dst: SocketAddr) -> String {
    match proto {
        TCP => format!("tcp {src} > {dst}"),
        UDP => format!("udp {src} > {dst}"),
        1 => format!("icmp {} > {}", src.ip(), dst.ip()),
        58 => format!("icmp6 {} > {}", src.ip(), dst.ip()),
        4 | 41 => format!("ipip {} > {}", src.ip(), dst.ip()),
        other => format!("proto-{other} {} > {}", src.ip(), dst.ip()),
    }
}

/// As tcpdump has them.
fn flag_letters(flags: u8) -> String {
    let letters = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (32, 'U'), (16, '.')];
    let set = letters.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter);
    let text: String = set.collect();
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::capture::Action;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    fn tcp_v4(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip.extend(src);
        ip.extend(dst);
        ip.extend(sport.to_be_bytes());
        ip.extend(dport.to_be_bytes());
        ip.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0]);
        ip
    }

    fn packet(verdict: &'static str, ip: &[u8]) -> Packet {
        let mut bytes = vec![0; 12];
        bytes.extend([8, 0]);
        bytes.extend(ip);
        Packet {
            at: Duration::new(1_700_000_000, 123_456_789),
            interface: "eth0".to_owned(),
            verdict,
            action: Action::Send,
            xdp_action: 3,
            flow: Some((6, addr("198.51.100.7:4000"), addr("203.0.113.1:80"))),
            length: bytes.len() as u32,
            bytes,
        }
    }

    #[test]
    fn a_packet_that_left_as_it_came_is_told_once() {
        let packet = packet("forwarded-l2", &tcp_v4([198, 51, 100, 7], [203, 0, 113, 1], 4000, 80));

        assert_eq!(
            line(&packet),
            "22:13:20.123456 eth0 forwarded-l2 tcp 198.51.100.7:4000 > 203.0.113.1:80 [S.] 54 bytes"
        );
    }

    #[test]
    fn a_translated_or_wrapped_packet_is_told_as_it_came_and_as_it_left() {
        let nat = packet("forwarded-nat", &tcp_v4([10, 0, 0, 9], [10, 0, 0, 1], 61000, 8080));
        assert_eq!(
            line(&nat),
            "22:13:20.123456 eth0 forwarded-nat tcp 198.51.100.7:4000 > 203.0.113.1:80 [S.] \
             as tcp 10.0.0.9:61000 > 10.0.0.1:8080 54 bytes"
        );

        let mut outer = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 4, 0, 0, 10, 0, 0, 9, 10, 0, 0, 3];
        outer.extend(tcp_v4([198, 51, 100, 7], [203, 0, 113, 1], 4000, 80));
        assert_eq!(
            line(&packet("forwarded-ipip", &outer)),
            "22:13:20.123456 eth0 forwarded-ipip tcp 198.51.100.7:4000 > 203.0.113.1:80 [S.] \
             as ipip 10.0.0.9 > 10.0.0.3 74 bytes"
        );
    }

    #[test]
    fn a_frame_cut_anywhere_still_makes_a_line() {
        let whole = packet("forwarded-l2", &tcp_v4([198, 51, 100, 7], [203, 0, 113, 1], 4000, 80));
        for length in 0..whole.bytes.len() {
            let cut = Packet { bytes: whole.bytes[..length].to_vec(), flow: None, ..whole.clone() };

            assert!(line(&cut).starts_with("22:13:20.123456 eth0 forwarded-l2"), "{length}");
        }
    }
}
