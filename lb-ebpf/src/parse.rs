//! Headers by family: where the fields are, and which packets the fast path leaves to the slow one.
//!
//! Two implementations of one trait instead of two programs; everything inlines, so each family
//! pays for itself only. Where a header begins is an argument ([`At`]): a constant in the fast path.

use lb_common::{Addr, Flow, HashKey, TCP, UDP, csum::Delta, steer::Kind};

use crate::{
    carry::At,
    packet::{Headers, Packet, View},
};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// EtherType of IPv4 in wire order.
pub const ETHERTYPE_V4: u16 = 0x0008;
/// EtherType of IPv6 in wire order.
pub const ETHERTYPE_V6: u16 = 0xdd86;
/// EtherType of a VLAN tag (802.1Q) in wire order.
pub const ETHERTYPE_VLAN: u16 = 0x0081;
/// EtherType of an outer VLAN tag (802.1ad) in wire order.
pub const ETHERTYPE_QINQ: u16 = 0xa888;

/// TCP flags.
pub mod tcp_flag {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// ACK.
    pub const ACK: u8 = 16;
    /// What a flow's state depends on.
    pub const BEGIN_OR_END: u8 = SYN | FIN | RST;
}

/// What the ladder asks of an IP version.
pub trait Family {
    /// The fixed part of the IP header.
    type Head: Headers;
    /// Where the headers are in a frame without tags, options or extension headers.
    const PLAIN: At;
    /// Protocol number of this family within IP.
    const INNER: u8;
    /// EtherType in wire order.
    const ETHERTYPE: u16;

    /// The IP header, if it is there.
    fn head(packet: &Packet, at: At) -> Option<Self::Head>;
    /// Destination address.
    fn dst(head: &Self::Head) -> Addr;
    /// Source address.
    fn src(head: &Self::Head) -> Addr;
    /// TCP or UDP right behind the fixed header, no fragment: what the fast path takes.
    fn plain_proto(head: &Self::Head) -> Option<u8>;
    /// Length of the IP packet as its header tells.
    fn length(head: &Self::Head) -> u32;
    /// TOS or traffic class.
    fn tos(head: &impl Headers) -> u8;
    /// Sets both bits of its ECN field: congestion was met (RFC 3168 5).
    fn mark_congested(head: &Self::Head);
    /// The first word of an IPv6 header around it, in wire order: version, its traffic class, and a flow label, which spreads
    /// the flows of one pair of hosts over paths and queues (RFC 6438).
    fn outer_v6(head: &impl Headers, hash: u64) -> u32;
    /// Hops left.
    fn ttl(head: &Self::Head) -> u8;
    /// Takes as many from the hop limit, which is not less.
    fn take_hops(head: &Self::Head, hops: u8);
    /// [`Flow::hash`] without asking for the family.
    fn hash(flow: &Flow, key: HashKey) -> u64;
    /// Rewrites addresses and takes `hops` from the hop limit; returns what the transport checksum has
    /// to follow.
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow, hops: u8) -> Delta;
}

/// The flow label in the first word of an IPv6 header in wire order.
const LABEL: u32 = 0x000f_ffffu32.swap_bytes();

/// First word of an IPv6 header in wire order, with as much of `label` as has room.
#[inline(always)]
pub fn first_v6(tos: u8, label: u32) -> u32 {
    (6u32 << 28 | (tos as u32) << 20).swap_bytes() | label & LABEL
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    type Head = View<20>;

    const PLAIN: At = At { l3: ETHERNET, l4: ETHERNET + 20 };
    const INNER: u8 = 4;
    const ETHERTYPE: u16 = ETHERTYPE_V4;

    #[inline(always)]
    fn head(packet: &Packet, at: At) -> Option<Self::Head> {
        packet.view_at::<20>(at.l3)
    }

    #[inline(always)]
    fn dst(head: &Self::Head) -> Addr {
        Addr::v4(head.read(16))
    }

    #[inline(always)]
    fn src(head: &Self::Head) -> Addr {
        Addr::v4(head.read(12))
    }

    #[inline(always)]
    fn plain_proto(head: &Self::Head) -> Option<u8> {
        // More-fragments or an offset; wire order of 0x3fff.
        let fragment = head.read::<u16>(6) & 0xff3f != 0;
        let proto: u8 = head.read(9);
        let plain = head.read::<u8>(0) == 0x45 && !fragment && (proto == TCP || proto == UDP);
        plain.then_some(proto)
    }

    #[inline(always)]
    fn length(head: &Self::Head) -> u32 {
        head.read::<u16>(2).swap_bytes() as u32
    }

    #[inline(always)]
    fn tos(head: &impl Headers) -> u8 {
        head.read(1)
    }

    #[inline(always)]
    fn mark_congested(head: &Self::Head) {
        let word: u16 = head.read(0);
        let marked = word | 0x0003u16.swap_bytes();
        let csum = Delta::new().word(word as u32, marked as u32).apply(head.read(10));
        head.write(0, marked);
        head.write(10, csum);
    }

    #[inline(always)]
    fn outer_v6(head: &impl Headers, hash: u64) -> u32 {
        first_v6(Self::tos(head), (hash >> 32) as u32)
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head.read(8)
    }

    #[inline(always)]
    fn take_hops(head: &Self::Head, hops: u8) {
        // As in `rewrite`.
        let word: u16 = head.read(8);
        let fewer = word.wrapping_sub(hops as u16);
        let csum = Delta::new().word(word as u32, fewer as u32).apply(head.read(10));
        head.write(8, fewer);
        head.write(10, csum);
    }

    #[inline(always)]
    fn hash(flow: &Flow, key: HashKey) -> u64 {
        flow.hash_v4(key)
    }

    #[inline(always)]
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow, hops: u8) -> Delta {
        let addresses =
            Delta::new().word(old.src.raw_v4(), new.src.raw_v4()).word(old.dst.raw_v4(), new.dst.raw_v4());
        // TTL is the low byte of its 16-bit word in wire order.
        let word: u16 = head.read(8);
        let fewer = word.wrapping_sub(hops as u16);
        let csum = addresses.word(word as u32, fewer as u32).apply(head.read(10));
        head.write(8, fewer);
        head.write(10, csum);
        head.write(12, new.src.raw_v4());
        head.write(16, new.dst.raw_v4());
        addresses.word(old.ports, new.ports)
    }
}

impl Family for V6 {
    type Head = View<40>;

    const PLAIN: At = At { l3: ETHERNET, l4: ETHERNET + 40 };
    const INNER: u8 = 41;
    const ETHERTYPE: u16 = ETHERTYPE_V6;

    #[inline(always)]
    fn head(packet: &Packet, at: At) -> Option<Self::Head> {
        packet.view_at::<40>(at.l3)
    }

    /// A v4-mapped destination on the wire would be found in the table as the IPv4 address; such
    /// a packet is nobody's, and `::` stands for that.
    #[inline(always)]
    fn dst(head: &Self::Head) -> Addr {
        let addr = Addr { hi: head.read(24), lo: head.read(32) };
        if addr.is_v4() { Addr::default() } else { addr }
    }

    #[inline(always)]
    fn src(head: &Self::Head) -> Addr {
        Addr { hi: head.read(8), lo: head.read(16) }
    }

    #[inline(always)]
    fn plain_proto(head: &Self::Head) -> Option<u8> {
        let proto: u8 = head.read(6);
        let plain = head.read::<u8>(0) >> 4 == 6 && (proto == TCP || proto == UDP);
        plain.then_some(proto)
    }

    #[inline(always)]
    fn length(head: &Self::Head) -> u32 {
        head.read::<u16>(4).swap_bytes() as u32 + 40
    }

    #[inline(always)]
    fn tos(head: &impl Headers) -> u8 {
        (head.read::<u16>(0).swap_bytes() >> 4) as u8
    }

    #[inline(always)]
    fn mark_congested(head: &Self::Head) {
        head.write(0, head.read::<u16>(0) | 0x0030u16.swap_bytes());
    }

    /// Of its own one, all but the label.
    #[inline(always)]
    fn outer_v6(head: &impl Headers, hash: u64) -> u32 {
        head.read::<u32>(0) & !LABEL | (hash >> 32) as u32 & LABEL
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head.read(7)
    }

    #[inline(always)]
    fn take_hops(head: &Self::Head, hops: u8) {
        head.write(7, head.read::<u8>(7).wrapping_sub(hops));
    }

    #[inline(always)]
    fn hash(flow: &Flow, key: HashKey) -> u64 {
        flow.hash_v6(key)
    }

    #[inline(always)]
    fn rewrite(head: &Self::Head, old: &Flow, new: &Flow, hops: u8) -> Delta {
        head.write(7, head.read::<u8>(7).wrapping_sub(hops));
        head.write(8, new.src.hi);
        head.write(16, new.src.lo);
        head.write(24, new.dst.hi);
        head.write(32, new.dst.lo);
        Delta::new()
            .long(old.src.hi, new.src.hi)
            .long(old.src.lo, new.src.lo)
            .long(old.dst.hi, new.dst.hi)
            .long(old.dst.lo, new.dst.lo)
            .word(old.ports, new.ports)
    }
}

/// Most hops that are left to a packet which balancers that differ for a moment might send round and round: for that moment, and
/// for the way to the pod.
const HOPS_LEFT: u8 = 4;

/// Takes one from the hop limit, which is more than that, and as many more as leave few.
#[inline(always)]
pub fn leave_few_hops<F: Family>(head: &F::Head) {
    let hops = F::ttl(head);
    F::take_hops(head, hops - (hops - 1).min(HOPS_LEFT));
}

/// What a TCP or UDP header tells: the ports word, and TCP's flag byte (0 for UDP).
#[derive(Clone, Copy)]
pub struct Transport {
    /// As [`Flow::ports`].
    pub ports: u32,
    /// TCP's flag byte; 0 for UDP.
    pub flags: u8,
}

/// Where a TCP header has its sequence number.
pub const TCP_SEQUENCE: usize = 4;
/// Where it has the number that it acknowledges.
pub const TCP_ACKNOWLEDGED: usize = 8;

/// Offsets within a transport header.
const UDP_CSUM: usize = 6;
const TCP_FLAGS: usize = 13;
const TCP_CSUM: usize = 16;

/// Reads the transport header; `None` where it is cut short.
#[inline(always)]
pub fn transport(packet: &Packet, at: At, proto: u8) -> Option<Transport> {
    if proto == TCP {
        let tcp = packet.view_at::<20>(at.l4)?;
        return Some(Transport { ports: tcp.read(0), flags: tcp.read(TCP_FLAGS) });
    }
    let udp = packet.view_at::<8>(at.l4)?;
    Some(Transport { ports: udp.read(0), flags: 0 })
}

/// Bytes of the shortest transport header.
#[inline(always)]
pub fn least(proto: u8) -> u32 {
    if proto == TCP { 20 } else { 8 }
}

/// Rewrites the ports and the transport checksum. Does nothing where there is no header: in a later
/// fragment (`l4` is 0), and where it is cut short, which [`transport`] has ruled out.
#[inline(always)]
pub fn rewrite_transport(packet: &Packet, at: At, new: &Flow, delta: Delta) {
    if at.l4 == 0 {
        return;
    }
    if new.proto == TCP as u32 {
        let Some(tcp) = packet.view_at::<20>(at.l4) else { return };
        tcp.write(0, new.ports);
        tcp.write(TCP_CSUM, delta.apply(tcp.read(TCP_CSUM)));
        return;
    }
    if let Some(udp) = packet.view_at::<8>(at.l4) {
        udp.write(0, new.ports);
        udp.write(UDP_CSUM, delta.apply_udp(udp.read(UDP_CSUM)));
    }
}

/// The same for a header of which so much is known to be there: as much as a UDP frame has, too.
#[inline(always)]
pub fn rewrite_plain(header: View<20>, new: &Flow, delta: Delta) {
    header.write(0, new.ports);
    if new.proto == TCP as u32 {
        header.write(TCP_CSUM, delta.apply(header.read(TCP_CSUM)));
    } else {
        header.write(UDP_CSUM, delta.apply_udp(header.read(UDP_CSUM)));
    }
}

/// What steering wants to know of a packet.
#[inline(always)]
pub fn kind(proto: u8, flags: u8) -> Kind {
    if proto != TCP {
        return Kind::Datagram;
    }
    if flags & tcp_flag::RST != 0 {
        return Kind::Reset;
    }
    // A SYN-ACK comes from nobody who connects to a VIP.
    if flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN { Kind::Syn } else { Kind::Segment }
}
