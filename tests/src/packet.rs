//! Builds packets byte by byte, with every length and checksum right, and recomputes checksums
//! from scratch: what the program's own arithmetic is compared with.

use std::net::{IpAddr, SocketAddr};

use lb_common::{Mac, TCP, UDP, csum};

/// MAC of the router in front of us.
pub const ROUTER: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);
/// Our MAC.
pub const OURS: Mac = Mac([0x02, 0, 0, 0, 0, 0x02]);

/// A packet as fields. Start from [`tcp`] or [`udp`] and change what the case is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Destination MAC.
    pub dst_mac: Mac,
    /// Source MAC.
    pub src_mac: Mac,
    /// Source.
    pub src: SocketAddr,
    /// Destination; the same family.
    pub dst: SocketAddr,
    /// IP protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's TOS.
    pub tos: u8,
    /// IPv4's identification.
    pub id: u16,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP window.
    pub window: u16,
    /// TCP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Bytes after the transport header.
    pub payload: Vec<u8>,
    /// Send UDP without a checksum.
    pub no_csum: bool,
}

/// TCP FIN flag.
pub const FIN: u8 = 1;
/// TCP SYN flag.
pub const SYN: u8 = 2;
/// TCP ACK flag.
pub const ACK: u8 = 16;

/// A TCP segment from the router to us.
pub fn tcp(src: &str, dst: &str) -> Packet {
    Packet {
        dst_mac: OURS,
        src_mac: ROUTER,
        src: src.parse().expect("test address"),
        dst: dst.parse().expect("test address"),
        proto: TCP,
        ttl: 64,
        tos: 0x10,
        id: 0x1234,
        flags: ACK,
        seq: 1,
        ack: 2,
        window: 0xffff,
        options: Vec::new(),
        payload: b"hello".to_vec(),
        no_csum: false,
    }
}

/// A UDP datagram from the router to us.
pub fn udp(src: &str, dst: &str) -> Packet {
    Packet { proto: UDP, ..tcp(src, dst) }
}

impl Packet {
    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = Vec::new();
        frame.extend(self.dst_mac.0);
        frame.extend(self.src_mac.0);
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([0x08, 0x00]);
                let length = (20 + transport.len()) as u16;
                let mut head = vec![0x45, self.tos];
                head.extend(length.to_be_bytes());
                head.extend(self.id.to_be_bytes());
                head.extend([0x40, 0x00, self.ttl, self.proto, 0, 0]);
                head.extend(src.octets());
                head.extend(dst.octets());
                let sum = csum::full(0, &head).to_le_bytes();
                head[10..12].copy_from_slice(&sum);
                frame.extend(head);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((transport.len() as u16).to_be_bytes());
                frame.extend([self.proto, self.ttl]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => panic!("mixed families in a test packet"),
        }
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src.port().to_be_bytes());
        bytes.extend(self.dst.port().to_be_bytes());
        let csum_at = match self.proto {
            TCP => {
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.ack.to_be_bytes());
                bytes.extend([0x50 + 4 * self.options.len() as u8, self.flags]);
                bytes.extend(self.window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.options);
                16
            }
            UDP => {
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            _ => {
                bytes.extend([0; 16]);
                bytes.extend(&self.payload);
                return bytes;
            }
        };
        bytes.extend(&self.payload);
        if !self.no_csum {
            let mut sum = csum::full(pseudo(self.src.ip(), self.dst.ip(), self.proto, bytes.len()), &bytes);
            if self.proto == UDP && sum == 0 {
                sum = 0xffff;
            }
            bytes[csum_at..csum_at + 2].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }
}

/// Whether every checksum of a frame is right by a full recompute. Frames without IP are.
pub fn csums_are_right(frame: &[u8]) -> bool {
    let Some(kind) = frame.get(12..14) else { return true };
    let (src, dst, proto, transport): (IpAddr, IpAddr, u8, &[u8]) = match kind {
        [0x08, 0x00] => {
            let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let head = &frame[14..34];
            if csum::full(0, head) != 0 {
                return false;
            }
            let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("4 bytes"));
            (addr(26), addr(30), frame[23], &frame[34..14 + length])
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes"));
            (addr(22), addr(38), frame[20], &frame[54..54 + length])
        }
        _ => return true,
    };
    if proto == UDP && transport[6..8] == [0, 0] {
        return src.is_ipv4();
    }
    if proto == 1 {
        return csum::full(0, transport) == 0;
    }
    csum::full(pseudo(src, dst, proto, transport.len()), transport) == 0
}

pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, length: usize) -> u64 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let sum = csum::sum(csum::sum(0, &octets(src)), &octets(dst));
    csum::sum(csum::sum(sum, &[0, proto]), &(length as u16).to_be_bytes())
}
