//! Packets as pcapng (draft-ietf-opsawg-pcapng): one section, an interface block for each
//! interface when it is first met, a comment with the verdict on every packet.

use std::time::Duration;

use crate::model::capture::{Packet, Tally};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const ETHERNET: u16 = 1;
/// Timestamps count 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Options.
const END: u16 = 0;
const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const SHB_USERAPPL: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const EPB_VERDICT: u16 = 7;
const IF_TSRESOL: u16 = 9;

/// `epb_verdict` of this kind holds what an XDP program returned.
const LINUX_XDP: u8 = 2;

/// Writes one section.
#[derive(Debug)]
pub struct Writer {
    snap: u16,
    /// In the order of their numbers.
    interfaces: Vec<String>,
}

impl Writer {
    /// A writer, and the head of its section.
    pub fn new(snap: u16) -> (Self, Vec<u8>) {
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4du32.to_le_bytes());
        body.extend([1, 0, 0, 0]);
        // The section's length is not known yet.
        body.extend(u64::MAX.to_le_bytes());
        option(&mut body, SHB_USERAPPL, concat!("penstock ", env!("CARGO_PKG_VERSION")).as_bytes());
        let mut out = Vec::new();
        block(&mut out, SECTION, body);
        (Self { snap, interfaces: Vec::new() }, out)
    }

    /// Appends a packet, after its interface if that is new.
    pub fn packet(&mut self, out: &mut Vec<u8>, packet: &Packet) {
        let interface = match self.interfaces.iter().position(|name| *name == packet.interface) {
            Some(number) => number,
            None => self.interface(out, &packet.interface),
        };
        let mut body = Vec::with_capacity(packet.bytes.len() + 80);
        body.extend((interface as u32).to_le_bytes());
        timestamp(&mut body, packet.at);
        body.extend((packet.bytes.len() as u32).to_le_bytes());
        body.extend(packet.length.to_le_bytes());
        body.extend(&packet.bytes);
        pad(&mut body);
        let mut comment = packet.verdict.to_owned();
        if let Some((_, src, dst)) = packet.flow {
            comment.push_str(&format!(" {src} > {dst}"));
        }
        option(&mut body, COMMENT, comment.as_bytes());
        let mut verdict = vec![LINUX_XDP];
        verdict.extend(u64::from(packet.xdp_action).to_le_bytes());
        option(&mut body, EPB_VERDICT, &verdict);
        block(out, PACKET, body);
    }

    fn interface(&mut self, out: &mut Vec<u8>, name: &str) -> usize {
        let mut body = Vec::new();
        body.extend(ETHERNET.to_le_bytes());
        body.extend([0, 0]);
        body.extend(u32::from(self.snap).to_le_bytes());
        option(&mut body, IF_NAME, name.as_bytes());
        option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
        block(out, INTERFACE, body);
        self.interfaces.push(name.to_owned());
        self.interfaces.len() - 1
    }

    /// Statistics. The counts are not kept by interface; the first one carries them.
    pub fn end(&self, at: Duration, tally: Tally) -> Vec<u8> {
        let mut out = Vec::new();
        if self.interfaces.is_empty() {
            return out;
        }
        let mut body = Vec::new();
        body.extend(0u32.to_le_bytes());
        timestamp(&mut body, at);
        option(&mut body, ISB_IFDROP, &tally.lost.saturating_add(tally.held_back).to_le_bytes());
        option(&mut body, ISB_FILTERACCEPT, &tally.matched.to_le_bytes());
        block(&mut out, STATISTICS, body);
        out
    }
}

fn timestamp(body: &mut Vec<u8>, at: Duration) {
    let nanoseconds = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    body.extend(((nanoseconds >> 32) as u32).to_le_bytes());
    body.extend((nanoseconds as u32).to_le_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..value.len().min(u16::MAX.into())).unwrap_or_default();
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

/// Every part ends at a multiple of four.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A block with its options ended, and its length before and behind it.
fn block(out: &mut Vec<u8>, kind: u32, mut body: Vec<u8>) {
    option(&mut body, END, &[]);
    let length = (body.len() as u32 + 12).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(length);
    out.extend(body);
    out.extend(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::capture::Action;

    #[test]
    fn a_packet_makes_these_bytes() {
        let packet = Packet {
            at: Duration::from_nanos(0x0102_0304_0506_0708),
            interface: "eth0".to_owned(),
            verdict: "no-backend",
            action: Action::Drop,
            xdp_action: 1,
            flow: None,
            length: 60,
            bytes: vec![0xaa, 0xbb, 0xcc, 0xdd, 0xee],
        };
        let (mut writer, head) = Writer::new(96);
        let mut out = Vec::new();
        writer.packet(&mut out, &packet);
        let both = out.len();
        writer.packet(&mut out, &packet);

        assert_eq!(head[..8], [0x0a, 0x0d, 0x0d, 0x0a, head.len() as u8, 0, 0, 0]);
        assert_eq!(head[8..16], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        #[rustfmt::skip]
        let interface = [
            1, 0, 0, 0,  40, 0, 0, 0,  1, 0, 0, 0,  96, 0, 0, 0,
            2, 0, 4, 0,  b'e', b't', b'h', b'0',  9, 0, 1, 0,  9, 0, 0, 0,
            0, 0, 0, 0,  40, 0, 0, 0,
        ];
        #[rustfmt::skip]
        let body = [
            6, 0, 0, 0,  76, 0, 0, 0,  0, 0, 0, 0,
            0x04, 0x03, 0x02, 0x01,  0x08, 0x07, 0x06, 0x05,
            5, 0, 0, 0,  60, 0, 0, 0,  0xaa, 0xbb, 0xcc, 0xdd,  0xee, 0, 0, 0,
            1, 0, 10, 0,  b'n', b'o', b'-', b'b', b'a', b'c', b'k', b'e', b'n', b'd', 0, 0,
            7, 0, 9, 0,  2, 1, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
            0, 0, 0, 0,  76, 0, 0, 0,
        ];
        assert_eq!(out[..40], interface);
        assert_eq!(out[40..both], body[..]);
        assert_eq!(out[both..], body[..], "the interface is described once");
    }

    #[test]
    fn the_end_says_what_is_missing() {
        let (writer, _) = Writer::new(96);
        assert!(writer.end(Duration::ZERO, Tally::default()).is_empty(), "no interface to say it of");

        let writer = Writer { snap: 96, interfaces: vec!["eth0".to_owned()] };
        let end = writer.end(Duration::from_nanos(1), Tally { matched: 9, held_back: 3, lost: 2 });
        #[rustfmt::skip]
        let expected = [
            5, 0, 0, 0,  52, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  1, 0, 0, 0,
            5, 0, 8, 0,  5, 0, 0, 0,  0, 0, 0, 0,
            6, 0, 8, 0,  9, 0, 0, 0,  0, 0, 0, 0,
            0, 0, 0, 0,  52, 0, 0, 0,
        ];
        assert_eq!(end, expected);
    }
}
