//! Packets to our addresses that the fast path does not take: tags, options, extension headers,
//! fragments, other protocols.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{AddrEntry, Verdict, config};

use crate::{
    finish,
    forward::Outcome,
    maps,
    packet::Packet,
    parse::{ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Family, V4, V6},
    quietly,
};

/// Entry point by a tail call from the ladder.
#[xdp(frags)]
pub fn penstock_slow(ctx: XdpContext) -> u32 {
    let packet = Packet::of(&ctx);
    let Some(ether) = packet.view::<ETHERNET>() else { return xdp_action::XDP_PASS };
    let Outcome { verdict, action } = match ether.read::<u16>(12) {
        ETHERTYPE_V4 => classify::<V4>(&packet, v4),
        ETHERTYPE_V6 => classify::<V6>(&packet, v6),
        _ => return xdp_action::XDP_PASS,
    };
    finish(&ctx, verdict, action)
}

#[inline(always)]
fn classify<F: Family>(packet: &Packet, why: impl Fn(&F::Head) -> Verdict) -> Outcome {
    let (Some(head), Some(tables)) = (F::head(packet, F::PLAIN), maps::tables()) else {
        return Verdict::NotOurs.into();
    };
    let addr = AddrEntry::find(&tables.addrs(), config::epoch(&tables.config()), F::dst(&head));
    if addr.is_none() {
        return Verdict::NotOurs.into();
    }
    match why(&head) {
        Verdict::Icmp => Verdict::Icmp.into(),
        verdict => quietly(addr, verdict),
    }
}

#[inline(always)]
fn v4(head: &<V4 as Family>::Head) -> Verdict {
    let version_ihl: u8 = head.read(0);
    if version_ihl >> 4 == 4 && version_ihl & 15 > 5 {
        return Verdict::IpOptions;
    }
    if version_ihl != 0x45 {
        return Verdict::Truncated;
    }
    if head.read::<u16>(6) & 0xff3f != 0 {
        return Verdict::Fragment;
    }
    if head.read::<u8>(9) == 1 { Verdict::Icmp } else { Verdict::OtherProtocol }
}

#[inline(always)]
fn v6(head: &<V6 as Family>::Head) -> Verdict {
    if head.read::<u8>(0) >> 4 != 6 {
        return Verdict::Truncated;
    }
    match head.read::<u8>(6) {
        58 => Verdict::Icmp,
        44 => Verdict::Fragment,
        0 | 43 | 51 | 60 | 135 | 139 | 140 => Verdict::Ip6Extension,
        _ => Verdict::OtherProtocol,
    }
}
