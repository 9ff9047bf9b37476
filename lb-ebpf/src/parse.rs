//! Headers by family: where the fields are, and which packets the fast path refuses.
//!
//! Two implementations of one trait instead of two programs; everything inlines, so each family
//! pays for itself only.

use lb_common::{Addr, Flow, HashKey, TCP, UDP, Verdict, csum::Delta};

use crate::packet::{Packet, View};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// EtherType of IPv4 and IPv6 in wire order.
pub const ETHERTYPE_V4: u16 = 0x0008;
pub const ETHERTYPE_V6: u16 = 0xdd86;

/// What the ladder asks of an IP version.
pub trait Family {
    /// Bytes up to the end of the fixed IP header.
    type Head: Copy;

    /// The IP header, if it is there and well-formed enough to have a destination.
    fn head(packet: &Packet) -> Option<Self::Head>;
    /// Destination address.
    fn dst(head: &Self::Head) -> Addr;
    /// Protocol and ports of a packet that is ours, or why it cannot be balanced.
    fn flow(packet: &Packet, head: &Self::Head, dst: Addr) -> Result<Flow, Verdict>;
    /// Length of the IP packet as its header tells.
    fn length(head: &Self::Head) -> u32;
    /// Destination MAC as a word.
    fn dst_mac(head: &Self::Head) -> u64;
    /// [`Flow::hash`] without asking for the family.
    fn hash(flow: &Flow, key: HashKey) -> u64;
    /// Hops left.
    fn ttl(head: &Self::Head) -> u8;
    /// Rewrites addresses and hop limit; returns what the transport checksum has to follow.
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow) -> Delta;
    /// Rewrites the ports and the transport checksum; `Err` where the header is cut short.
    /// Returns TCP's flag byte (0 for UDP).
    fn rewrite_transport(packet: &Packet, new: &Flow, delta: Delta) -> u8;
    /// Whether the whole transport header up to its checksum is there, and TCP's flag byte.
    fn tcp_flags(packet: &Packet, proto: u32) -> Result<u8, Verdict>;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

const V4_END: usize = ETHERNET + 20;
const V4_PORTS: usize = V4_END + 4;
const V4_UDP: usize = V4_END + 8;
const V4_TCP: usize = V4_END + 20;
const V6_END: usize = ETHERNET + 40;
const V6_PORTS: usize = V6_END + 4;
const V6_UDP: usize = V6_END + 8;
const V6_TCP: usize = V6_END + 20;

/// Offsets within a transport header.
const UDP_CSUM: usize = 6;
const TCP_FLAGS: usize = 13;
const TCP_CSUM: usize = 16;

impl Family for V4 {
    type Head = View<V4_END>;

    #[inline(always)]
    fn head(packet: &Packet) -> Option<Self::Head> {
        packet.view::<V4_END>()
    }

    #[inline(always)]
    fn dst(head: &Self::Head) -> Addr {
        Addr::v4(head.read(ETHERNET + 16))
    }

    #[inline(always)]
    fn flow(packet: &Packet, head: &Self::Head, dst: Addr) -> Result<Flow, Verdict> {
        let version_ihl: u8 = head.read(ETHERNET);
        if version_ihl != 0x45 {
            return Err(if version_ihl >> 4 == 4 && version_ihl & 15 > 5 {
                Verdict::IpOptions
            } else {
                Verdict::Truncated
            });
        }
        // More-fragments or an offset; wire order of 0x3fff.
        if head.read::<u16>(ETHERNET + 6) & 0xff3f != 0 {
            return Err(Verdict::Fragment);
        }
        let proto: u8 = head.read(ETHERNET + 9);
        if proto != TCP && proto != UDP {
            return Err(if proto == 1 { Verdict::Icmp } else { Verdict::OtherProtocol });
        }
        let Some(ports) = packet.view::<V4_PORTS>() else { return Err(Verdict::Truncated) };
        Ok(Flow {
            src: Addr::v4(head.read(ETHERNET + 12)),
            dst,
            ports: ports.read(V4_END),
            proto: proto as u32,
        })
    }

    #[inline(always)]
    fn length(head: &Self::Head) -> u32 {
        head.read::<u16>(ETHERNET + 2).swap_bytes() as u32
    }

    #[inline(always)]
    fn dst_mac(head: &Self::Head) -> u64 {
        head.read::<u64>(0) & 0xffff_ffff_ffff
    }

    #[inline(always)]
    fn hash(flow: &Flow, key: HashKey) -> u64 {
        flow.hash_v4(key)
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head.read(ETHERNET + 8)
    }

    #[inline(always)]
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow) -> Delta {
        let addresses =
            Delta::new().word(old.src.raw_v4(), new.src.raw_v4()).word(old.dst.raw_v4(), new.dst.raw_v4());
        // TTL is the low byte of its 16-bit word in wire order.
        let hops: u16 = head.read(ETHERNET + 8);
        let fewer = hops.wrapping_sub(1);
        let csum = addresses.word(hops as u32, fewer as u32).apply(head.read(ETHERNET + 10));
        head.write(ETHERNET + 8, fewer);
        head.write(ETHERNET + 10, csum);
        head.write(ETHERNET + 12, new.src.raw_v4());
        head.write(ETHERNET + 16, new.dst.raw_v4());
        addresses.word(old.ports, new.ports)
    }

    #[inline(always)]
    fn rewrite_transport(packet: &Packet, new: &Flow, delta: Delta) -> u8 {
        if new.proto == TCP as u32 {
            let Some(tcp) = packet.view::<V4_TCP>() else { return 0 };
            tcp.write(V4_END, new.ports);
            tcp.write(V4_END + TCP_CSUM, delta.apply(tcp.read(V4_END + TCP_CSUM)));
            return tcp.read(V4_END + TCP_FLAGS);
        }
        if let Some(udp) = packet.view::<V4_UDP>() {
            udp.write(V4_END, new.ports);
            udp.write(V4_END + UDP_CSUM, delta.apply_udp(udp.read(V4_END + UDP_CSUM)));
        }
        0
    }

    #[inline(always)]
    fn tcp_flags(packet: &Packet, proto: u32) -> Result<u8, Verdict> {
        if proto == TCP as u32 {
            let tcp = packet.view::<V4_TCP>().ok_or(Verdict::Truncated)?;
            return Ok(tcp.read(V4_END + TCP_FLAGS));
        }
        packet.view::<V4_UDP>().map(|_| 0).ok_or(Verdict::Truncated)
    }
}

impl Family for V6 {
    type Head = View<V6_END>;

    #[inline(always)]
    fn head(packet: &Packet) -> Option<Self::Head> {
        packet.view::<V6_END>()
    }

    /// A v4-mapped destination on the wire would be found in the table as the IPv4 address; such
    /// a packet is nobody's, and `::` stands for that.
    #[inline(always)]
    fn dst(head: &Self::Head) -> Addr {
        let addr = Addr { hi: head.read(ETHERNET + 24), lo: head.read(ETHERNET + 32) };
        if addr.is_v4() { Addr::default() } else { addr }
    }

    #[inline(always)]
    fn flow(packet: &Packet, head: &Self::Head, dst: Addr) -> Result<Flow, Verdict> {
        if head.read::<u8>(ETHERNET) >> 4 != 6 {
            return Err(Verdict::Truncated);
        }
        let proto: u8 = head.read(ETHERNET + 6);
        if proto != TCP && proto != UDP {
            return Err(match proto {
                58 => Verdict::Icmp,
                44 => Verdict::Fragment,
                0 | 43 | 51 | 60 | 135 | 139 | 140 => Verdict::Ip6Extension,
                _ => Verdict::OtherProtocol,
            });
        }
        let Some(ports) = packet.view::<V6_PORTS>() else { return Err(Verdict::Truncated) };
        Ok(Flow {
            src: Addr { hi: head.read(ETHERNET + 8), lo: head.read(ETHERNET + 16) },
            dst,
            ports: ports.read(V6_END),
            proto: proto as u32,
        })
    }

    #[inline(always)]
    fn length(head: &Self::Head) -> u32 {
        head.read::<u16>(ETHERNET + 4).swap_bytes() as u32 + 40
    }

    #[inline(always)]
    fn dst_mac(head: &Self::Head) -> u64 {
        head.read::<u64>(0) & 0xffff_ffff_ffff
    }

    #[inline(always)]
    fn hash(flow: &Flow, key: HashKey) -> u64 {
        flow.hash_v6(key)
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head.read(ETHERNET + 7)
    }

    #[inline(always)]
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow) -> Delta {
        head.write(ETHERNET + 7, head.read::<u8>(ETHERNET + 7).wrapping_sub(1));
        head.write(ETHERNET + 8, new.src.hi);
        head.write(ETHERNET + 16, new.src.lo);
        head.write(ETHERNET + 24, new.dst.hi);
        head.write(ETHERNET + 32, new.dst.lo);
        Delta::new()
            .long(old.src.hi, new.src.hi)
            .long(old.src.lo, new.src.lo)
            .long(old.dst.hi, new.dst.hi)
            .long(old.dst.lo, new.dst.lo)
            .word(old.ports, new.ports)
    }

    #[inline(always)]
    fn rewrite_transport(packet: &Packet, new: &Flow, delta: Delta) -> u8 {
        if new.proto == TCP as u32 {
            let Some(tcp) = packet.view::<V6_TCP>() else { return 0 };
            tcp.write(V6_END, new.ports);
            tcp.write(V6_END + TCP_CSUM, delta.apply(tcp.read(V6_END + TCP_CSUM)));
            return tcp.read(V6_END + TCP_FLAGS);
        }
        if let Some(udp) = packet.view::<V6_UDP>() {
            udp.write(V6_END, new.ports);
            udp.write(V6_END + UDP_CSUM, delta.apply_udp(udp.read(V6_END + UDP_CSUM)));
        }
        0
    }

    #[inline(always)]
    fn tcp_flags(packet: &Packet, proto: u32) -> Result<u8, Verdict> {
        if proto == TCP as u32 {
            let tcp = packet.view::<V6_TCP>().ok_or(Verdict::Truncated)?;
            return Ok(tcp.read(V6_END + TCP_FLAGS));
        }
        packet.view::<V6_UDP>().map(|_| 0).ok_or(Verdict::Truncated)
    }
}
