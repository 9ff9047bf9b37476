//! TCP and IPv4 options: one list format, one walk.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{csum::Delta, verdict::Event};

use crate::{carry::At, maps, packet::Packet};

/// Bytes of options at most.
const LONGEST: usize = 40;
/// TCP's maximum segment size.
const MSS: u8 = 2;
/// IPv4's loose and strict source route.
const SOURCE_ROUTES: (u8, u8) = (131, 137);

/// Where the first option of one of two kinds begins in the list from `from` to `end`; 0: nowhere. A global
/// function: the verifier looks at the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_option(ctx: *mut xdp_md, from: u32, end: u32, kinds: u32) -> u32 {
    let packet = Packet::of(&XdpContext::new(ctx)).shifted();
    let mut at = from;
    for _ in 0..LONGEST {
        if at >= end {
            return 0;
        }
        let Some(one) = packet.view_at::<1>(at as usize) else { return 0 };
        let kind: u8 = one.read(0);
        if kind as u32 == kinds & 255 || kind as u32 == kinds >> 8 {
            return at;
        }
        // The end of the list, and a byte that only fills.
        if kind == 0 {
            return 0;
        }
        if kind == 1 {
            at += 1;
            continue;
        }
        let Some(length) = packet.view_at::<1>(at as usize + 1) else { return 0 };
        let length: u8 = length.read(0);
        if length < 2 {
            return 0;
        }
        at += length as u32;
    }
    0
}

/// Whether the IPv4 options between both headers choose the packet's way (RFC 7126 4.3: to be dropped).
#[inline(always)]
pub fn are_routed(ctx: &XdpContext, at: At) -> bool {
    let from = at.l3 as u32 + 20;
    let kinds = SOURCE_ROUTES.0 as u32 | (SOURCE_ROUTES.1 as u32) << 8;
    at.l4 as u32 > from && penstock_option(ctx.ctx, from, at.l4 as u32, kinds) != 0
}

/// Lowers the segment size that a SYN or SYN-ACK offers to `most`: what fits the way that such segments will
/// take. Otherwise each full one would be refused first.
#[inline(always)]
pub fn lower_mss(ctx: &XdpContext, packet: &Packet, l4: usize, most: u16) -> Option<()> {
    let tcp = packet.view_at::<20>(l4)?;
    let words = (tcp.read::<u8>(12) >> 4) as u32;
    let kinds = MSS as u32 | (MSS as u32) << 8;
    let end = l4 as u32 + words * 4;
    let at = penstock_option(ctx.ctx, l4 as u32 + 20, end, kinds) as usize;
    if at == 0 || at as u32 + 4 > end {
        return None;
    }
    let option = packet.view_at::<4>(at)?;
    let old: u16 = option.read(2);
    if option.read::<u8>(1) != 4 || old.swap_bytes() <= most {
        return None;
    }
    let new = most.swap_bytes();
    option.write(2, new);
    // The checksum's words begin at even offsets.
    let odd = (at ^ l4) & 1 != 0;
    let (from, to) = if odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
    tcp.write(16, Delta::new().word(from as u32, to as u32).apply(tcp.read(16)));
    maps::counts()?.event(Event::MssClamped);
    Some(())
}
