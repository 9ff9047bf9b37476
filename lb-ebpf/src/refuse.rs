//! Tells a sender that its packet went nowhere: a TCP reset, or an ICMP error that quotes the packet.
//!
//! The answer is made of the packet itself and goes back the way it came, tags included. Resets follow RFC
//! 9293 3.10.7.1, errors RFC 1812 4.3.2 and RFC 4443 2.4: never about an error or a later fragment, never to what
//! is no single host, never more often than [`maps::may_tell`] allows.

use aya_ebpf::{helpers::bpf_xdp_load_bytes, macros::xdp, programs::XdpContext};
use lb_common::{Addr, TCP, Verdict, csum::Delta};

use crate::{
    carry::Carry,
    end, finish_carried,
    forward::{self, Outcome, Outer},
    maps::{self, QUOTE_WORDS, Telling},
    packet::{self, Packet},
    parse::{ETHERNET, Family, V4, V6, tcp_flag},
    quietly,
};

/// Entry point by a tail call; [`Carry::verdict`] says what is wrong.
#[xdp(frags)]
pub fn penstock_refuse(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &(*scratch).carry };
    let Outcome { verdict, action } =
        if carry.flow.src.is_v4() { tell::<V4>(&ctx, carry) } else { tell::<V6>(&ctx, carry) };
    finish_carried(&ctx, verdict, action)
}

#[inline(always)]
fn tell<F: Answer>(ctx: &XdpContext, carry: &Carry) -> Outcome {
    let packet = carry.packet(ctx);
    let Some(head) = F::head(&packet, carry.at()) else { return Verdict::Corrupt.into() };
    let (l3, length) = (carry.l3, F::length(&head));
    let why = carry.verdict;
    // A later fragment has no transport header.
    if carry.l4 == 0 || !F::is_host(&carry.flow.src) {
        return why.into();
    }
    let held = packet::length(ctx).saturating_sub(l3);
    // What an error quoted may be cut short; it was whole when we sent it on.
    let quoted = carry.back != 0;
    if length > held && !quoted || carry.l4 - l3 >= held {
        return quietly(carry.addr, Verdict::Truncated);
    }
    let length = if length < held { length } else { held };
    let (telling, too_often) = match why {
        Verdict::TooBig => (Telling::TooBig, Verdict::TooBig),
        _ => (Telling::Refusal, Verdict::RateLimited),
    };
    let resets = carry.flow.proto == TCP as u32 && matches!(why, Verdict::NoBackend);
    if resets && carry.tcp_flags as u8 & tcp_flag::RST != 0 {
        return why.into();
    }
    if !maps::may_tell(telling) {
        return too_often.into();
    }
    let told = if resets {
        reset::<F>(ctx, carry, length)
    } else {
        let (error, verdict) = match why {
            Verdict::TooBig => (F::too_big(carry.mtu), Verdict::ToldTooBig),
            Verdict::NoBackend => (F::PORT_UNREACHABLE, Verdict::ToldUnreachable),
            _ => (F::TIME_EXCEEDED, Verdict::ToldTimeExceeded),
        };
        error_about::<F>(ctx, carry, length, error).map(|()| verdict)
    };
    match told {
        Ok(verdict) => forward::back(ctx, &carry.packet(ctx), carry, verdict),
        Err(verdict) => verdict.into(),
    }
}

/// First and second word of an ICMP error, without the checksum.
pub type Error = (u32, u32);

/// What answers need to know of an IP version.
pub trait Answer: Family {
    /// Bytes of its fixed header.
    const HEAD: u32;
    /// ICMP's protocol number.
    const ICMP: u8;
    /// Bytes of a packet that an error quotes at most, so that the error is never too big itself.
    const QUOTED: u32;
    /// Nobody serves this port.
    const PORT_UNREACHABLE: Error;
    /// The hop limit ended.
    const TIME_EXCEEDED: Error;

    /// The packet is larger than `mtu`.
    fn too_big(mtu: u16) -> Error;
    /// Whether an address can be a single host's.
    fn is_host(addr: &Addr) -> bool;
    /// Writes the header and its EtherType; `payload` bytes of `proto` follow.
    fn write(packet: &Packet, l3: usize, outer: &Outer, payload: u32, proto: u8) -> Option<()>;
    /// Sum of the pseudo-header of an ICMP message, where its checksum covers one.
    fn icmp_pseudo(outer: &Outer, length: u32) -> Delta;
}

impl Answer for V4 {
    const HEAD: u32 = 20;
    const ICMP: u8 = 1;
    // RFC 1812 4.3.2.3: 576 bytes in all.
    const QUOTED: u32 = 576 - 20 - 8;
    const PORT_UNREACHABLE: Error = (0x0303, 0);
    const TIME_EXCEEDED: Error = (0x000b, 0);

    #[inline(always)]
    fn too_big(mtu: u16) -> Error {
        (0x0403, (mtu.swap_bytes() as u32) << 16)
    }

    /// Neither 0.0.0.0/8 nor loopback, multicast, reserved or broadcast (RFC 1122 3.2.2).
    #[inline(always)]
    fn is_host(addr: &Addr) -> bool {
        let first = addr.raw_v4() as u8;
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn write(packet: &Packet, l3: usize, outer: &Outer, payload: u32, proto: u8) -> Option<()> {
        let view = packet.view_at::<{ ETHERNET + 20 }>(l3 - ETHERNET)?;
        outer.v4(view, payload + 20, proto);
        Some(())
    }

    #[inline(always)]
    fn icmp_pseudo(_: &Outer, _: u32) -> Delta {
        Delta::new()
    }
}

impl Answer for V6 {
    const HEAD: u32 = 40;
    const ICMP: u8 = 58;
    // RFC 4443 2.4 (c): the smallest MTU that IPv6 allows.
    const QUOTED: u32 = 1280 - 40 - 8;
    const PORT_UNREACHABLE: Error = (0x0401, 0);
    const TIME_EXCEEDED: Error = (0x0003, 0);

    #[inline(always)]
    fn too_big(mtu: u16) -> Error {
        (0x0002, (mtu.swap_bytes() as u32) << 16)
    }

    /// Neither unspecified nor loopback nor multicast.
    #[inline(always)]
    fn is_host(addr: &Addr) -> bool {
        addr.hi as u8 != 0xff && (addr.hi != 0 || addr.lo & 0xff_ffff_ffff_ffff != 0)
    }

    #[inline(always)]
    fn write(packet: &Packet, l3: usize, outer: &Outer, payload: u32, proto: u8) -> Option<()> {
        let view = packet.view_at::<{ ETHERNET + 40 }>(l3 - ETHERNET)?;
        outer.v6(view, payload, proto);
        Some(())
    }

    #[inline(always)]
    fn icmp_pseudo(outer: &Outer, length: u32) -> Delta {
        Delta::new().pseudo(outer.src, outer.dst, Self::ICMP, length as u16)
    }
}

/// Turns the packet into the reset that answers it.
#[inline(always)]
fn reset<F: Answer>(ctx: &XdpContext, carry: &Carry, length: u32) -> Result<Verdict, Verdict> {
    let packet = carry.packet(ctx);
    let tcp = packet.view_at::<20>(carry.l4 as usize).ok_or(Verdict::Truncated)?;
    let flags = carry.tcp_flags as u8;
    let header = (tcp.read::<u8>(12) >> 4) as u32 * 4;
    let (seq, ack): (u32, u32) = (tcp.read(4), tcp.read(8));
    let (seq, ack, flags) = if flags & tcp_flag::ACK != 0 {
        (ack, 0, tcp_flag::RST)
    } else {
        let controls = (flags & tcp_flag::SYN != 0) as u32 + (flags & tcp_flag::FIN != 0) as u32;
        let bytes = length.saturating_sub(carry.l4 - carry.l3 + header);
        let next = seq.swap_bytes().wrapping_add(bytes + controls);
        (0, next.swap_bytes(), tcp_flag::RST | tcp_flag::ACK)
    };
    let ports = carry.flow.ports.rotate_left(16);
    let fourth = 0x50 | (flags as u32) << 8;
    let outer = Outer { src: carry.flow.dst, dst: carry.flow.src, tos: 0 };
    let csum = Delta::new().pseudo(outer.src, outer.dst, TCP, 20).add(ports).add(seq).add(ack).add(fourth);

    packet::cut(ctx, carry.l3 + F::HEAD + 20).ok_or(Verdict::Truncated)?;
    let packet = carry.packet(ctx);
    swap_macs(&packet).ok_or(Verdict::Truncated)?;
    F::write(&packet, carry.l3 as usize, &outer, 20, TCP).ok_or(Verdict::Truncated)?;
    let tcp = packet.view_at::<20>((carry.l3 + F::HEAD) as usize).ok_or(Verdict::Truncated)?;
    tcp.write(0, ports);
    tcp.write(4, seq);
    tcp.write(8, ack);
    tcp.write(12, fourth);
    tcp.write(16, csum.finish() as u32);
    Ok(Verdict::ToldReset)
}

/// Turns the packet into an ICMP error that quotes it.
#[inline(always)]
fn error_about<F: Answer>(ctx: &XdpContext, carry: &Carry, length: u32, error: Error) -> Result<(), Verdict> {
    let quoted = if length < F::QUOTED { length } else { F::QUOTED };
    load_quote(ctx, carry.l3, quoted).ok_or(Verdict::Truncated)?;
    let outer = Outer { src: carry.flow.dst, dst: carry.flow.src, tos: CONTROL };
    let (first, second) = error;
    let csum = F::icmp_pseudo(&outer, quoted + 8)
        .long_added(penstock_quote_sum(quoted))
        .add(first)
        .add(second)
        .finish();

    packet::cut(ctx, carry.l3 + quoted).ok_or(Verdict::Truncated)?;
    let packet = carry.packet(ctx);
    let ether = packet.view::<ETHERNET>().ok_or(Verdict::Truncated)?;
    let (head, tail): (u64, u32) = (ether.read(0), ether.read(8));
    let tag = |at: usize| packet.view_at::<4>(at).map_or(0, |view| view.read::<u32>(0));
    let tags = (tag(ETHERNET - 2), tag(ETHERNET + 2));
    forward::move_start(ctx, -((F::HEAD + 8) as i32)).ok_or(Verdict::NoHeadroom)?;

    let packet = carry.packet(ctx);
    let ether = packet.view::<ETHERNET>().ok_or(Verdict::Truncated)?;
    ether.write(0, head);
    ether.write(8, tail);
    swap_macs(&packet).ok_or(Verdict::Truncated)?;
    let room = packet.view::<{ ETHERNET + 8 }>().ok_or(Verdict::Truncated)?;
    if carry.l3 as usize > ETHERNET {
        room.write(ETHERNET - 2, tags.0);
    }
    if carry.l3 as usize > ETHERNET + 4 {
        room.write(ETHERNET + 2, tags.1);
    }
    F::write(&packet, carry.l3 as usize, &outer, quoted + 8, F::ICMP).ok_or(Verdict::Truncated)?;
    let icmp = packet.view_at::<8>((carry.l3 + F::HEAD) as usize).ok_or(Verdict::Truncated)?;
    icmp.write(0, first | (csum as u32) << 16);
    icmp.write(4, second);
    Ok(())
}

/// Precedence of errors: internetwork control (RFC 1812 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// Copies what is to be quoted into scratch memory, zeros behind it.
#[inline(always)]
fn load_quote(ctx: &XdpContext, from: u32, length: u32) -> Option<()> {
    let scratch = maps::scratch()?;
    let length = packet::some_bytes(length as u64, (QUOTE_WORDS as u64 - 1) * 8)?;
    // SAFETY: the scratch value is this CPU's own, and the last word is within it.
    let quote = unsafe { &mut (*scratch).quote };
    *quote.get_mut(length as usize / 8)? = 0;
    // SAFETY: the memory has at least `length` bytes.
    let done = unsafe { bpf_xdp_load_bytes(ctx.ctx, from, quote.as_mut_ptr().cast(), length as u32) };
    (done == 0).then_some(())
}

/// Sum of the first `length` bytes of the quote. A global function, so that the verifier looks at the loop
/// once and not with every path that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_quote_sum(length: u32) -> u64 {
    let Some(scratch) = maps::scratch() else { return 0 };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let quote = unsafe { &(*scratch).quote };
    let mut sum = 0u64;
    for word in 0..QUOTE_WORDS {
        if word * 8 >= length as usize {
            break;
        }
        // SAFETY: the quote has QUOTE_WORDS words.
        let long = unsafe { *quote.get_unchecked(word) };
        sum += (long & 0xffff_ffff) + (long >> 32);
    }
    sum
}

/// Swaps source and destination MAC.
#[inline(always)]
pub fn swap_macs(packet: &Packet) -> Option<()> {
    let ether = packet.view::<ETHERNET>()?;
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    let (dst, src) = (first & 0xffff_ffff_ffff, first >> 48 | (second as u64) << 16);
    ether.write(0, src | dst << 48);
    ether.write(8, (dst >> 16) as u32);
    Some(())
}
