//! The answers of backends on this host, on their way out: what `nat` made of the client's packets in
//! `local` mode is undone at the interface that the answer leaves by.
//!
//! Here the stack is done with the packet: its own translation (masquerading, connection tracking)
//! saw backend and client alone and has nothing to do with the VIP. The packet may be larger than
//! the wire takes and its checksum may be left to the device, so everything goes through the
//! helpers that know.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC},
    helpers::bpf_check_mtu,
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    Addr, Flow, TCP, UDP, Verdict, config,
    csum::Delta,
    nat::{Reverse, state},
    tunnel,
    verdict::Event,
};

use crate::{
    capture, errors, fragment,
    headers::{Behind, Headers, Part, penstock_chain_out},
    maps, nat,
    parse::{
        ETHERNET, ETHERTYPE_QINQ, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, TCP_SEQUENCE, V4, V6, tcp_flag,
    },
    steer,
};

/// Offsets within headers.
const TCP_FLAGS: usize = 13;
const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;
const V4_CSUM: usize = 10;
/// TCP's option "maximum segment size", and how many options are looked at for it; everybody sends
/// it first.
const MSS: u8 = 2;
const OPTIONS: usize = 6;

/// Entry point of every packet that leaves by one of our interfaces. Whatever is done to it, it goes
/// on as before.
#[classifier]
pub fn penstock_out(ctx: TcContext) -> i32 {
    if answer(&ctx).is_some() {
        // Interrupts that XDP runs in are held off while a packet leaves: this CPU's memory is still ours.
        if let Some(row) = maps::counts() {
            row.verdict(Verdict::RepliedLocal);
        }
        capture::show_out(&ctx, Verdict::RepliedLocal);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn answer(ctx: &TcContext) -> Option<()> {
    let mut l3 = ETHERNET;
    let mut kind: u16 = ctx.load(12).ok()?;
    // Most devices take tags beside the packet; others find them in it.
    for _ in 0..2 {
        if kind == ETHERTYPE_VLAN || kind == ETHERTYPE_QINQ {
            kind = ctx.load(l3 + 2).ok()?;
            l3 += 4;
        }
    }
    match kind {
        ETHERTYPE_V4 => v4(ctx, l3),
        ETHERTYPE_V6 => v6(ctx, l3),
        _ => None,
    }
}

#[inline(always)]
fn v4(ctx: &TcContext, l3: usize) -> Option<()> {
    let [first, second, third, src, dst]: [u32; 5] = ctx.load(l3).ok()?;
    let length = (first & 15) as usize * 4;
    let proto = (third >> 8) as u8;
    if first as u8 >> 4 != 4 || length < 20 {
        return None;
    }
    // More-fragments and the offset, in wire order.
    let part = match (second >> 16) & 0xff3f {
        0 => Part::Whole,
        0x0020 => Part::First,
        _ => Part::Later,
    };
    let behind = Behind { part, proto, l4: l3 + length, id: second & 0xffff };
    if proto == <V4 as Headers>::ICMP && part == Part::Whole {
        return errors::v4(ctx, l3, behind.l4, dst);
    }
    let (old, new, ways) = translated(ctx, Addr::v4(src), Addr::v4(dst), &behind)?;
    let addresses = Delta::new().word(src, new.src.raw_v4());
    if part != Part::Later {
        transport(ctx, behind.l4, &old, &new, addresses)?;
    }
    ctx.l3_csum_replace(l3 + V4_CSUM, 0, addresses.wide() as u64, 0).ok()?;
    ctx.store(l3 + 12, &new.src.raw_v4(), 0).ok()?;
    if part != Part::Later {
        clamp(ctx, behind.l4, &new, ways, 20);
    }
    Some(())
}

#[inline(always)]
fn v6(ctx: &TcContext, l3: usize) -> Option<()> {
    let head: [u32; 2] = ctx.load(l3).ok()?;
    let proto = (head[1] >> 16) as u8;
    if head[0] as u8 >> 4 != 6 {
        return None;
    }
    let [src, dst]: [Addr; 2] = ctx.load(l3 + 8).ok()?;
    let l4 = l3 + 40;
    let behind = if proto == TCP || proto == UDP {
        Behind { part: Part::Whole, proto, l4, id: 0 }
    } else {
        Behind::unpack(penstock_chain_out(ctx.skb.skb, l4 as u32, proto as u32))
    };
    if behind.proto == <V6 as Headers>::ICMP && behind.part == Part::Whole {
        return errors::v6(ctx, l3, behind.l4, &dst);
    }
    let (old, new, ways) = translated(ctx, src, dst, &behind)?;
    let addresses = Delta::new().long(src.hi, new.src.hi).long(src.lo, new.src.lo);
    if behind.part != Part::Later {
        transport(ctx, behind.l4, &old, &new, addresses)?;
    }
    ctx.store(l3 + 8, &new.src, 0).ok()?;
    if behind.part != Part::Later {
        clamp(ctx, behind.l4, &new, ways, 40);
    }
    Some(())
}

/// What the backend sent, what the client has to see of it, and the lasting bits of the flow's [`state`]; `None`:
/// no flow of ours. The stack has cut what is too large before it comes here, the first fragment first.
#[inline(always)]
fn translated(ctx: &TcContext, src: Addr, dst: Addr, behind: &Behind) -> Option<(Flow, Flow, u16)> {
    let Behind { part, proto, l4, id } = *behind;
    let mut old = Flow { src, dst, ports: id, proto: proto as u32 };
    let key = fragment::key(old);
    let mut flags = 0;
    match part {
        Part::Whole | Part::First if proto == TCP || proto == UDP => {
            old.ports = ctx.load(l4).ok()?;
            if proto == TCP {
                flags = ctx.load(l4 + TCP_FLAGS).ok()?;
            }
        }
        Part::Later => {
            let first = fragment::recall(&key)?;
            (old.ports, old.proto) = (first.ports, first.proto as u32);
        }
        _ => return None,
    }
    let (new, ways) = known(ctx, &old, flags, l4)?;
    if part == Part::First {
        fragment::remember(&key, fragment::Remembered { ports: old.ports, proto });
    }
    Some((old, new, ways))
}

/// Finds the flow of an answer, and notes that it lives.
#[inline(always)]
fn known(ctx: &TcContext, old: &Flow, flags: u8, l4: usize) -> Option<(Flow, u16)> {
    let entry = flow(old)?;
    let lasting = entry.state & state::LASTING;
    let now = steer::now();
    if entry.seen != now {
        entry.seen = now;
    }
    nat::answered(entry, flags, || ctx.load(l4 + TCP_SEQUENCE).ok());
    Some((entry.reply, lasting))
}

/// What is remembered of the flow of an answer, if the backend is on this host.
#[inline(always)]
pub fn flow(answer: &Flow) -> Option<&'static mut Reverse> {
    let tables = maps::tables();
    let key = answer.hash(config::hash_key(&tables.config()));
    let entry = maps::NAT_REVERSE.get_ptr_mut(key)?;
    // SAFETY: a hash map entry stays readable for the whole run; a concurrent removal may reuse
    // it, which the comparison below notices but for the moment of the race itself.
    let entry = unsafe { &mut *entry };
    (entry.flow == *answer && entry.state & state::LOCAL != 0).then_some(entry)
}

/// Rewrites the ports and the transport checksum.
#[inline(always)]
fn transport(ctx: &TcContext, l4: usize, old: &Flow, new: &Flow, addresses: Delta) -> Option<()> {
    let (csum, zero) =
        if old.proto == TCP as u32 { (TCP_CSUM, 0) } else { (UDP_CSUM, BPF_F_MARK_MANGLED_0 as u64) };
    let pseudo = BPF_F_PSEUDO_HDR as u64 | zero;
    ctx.l4_csum_replace(l4 + csum, 0, addresses.wide() as u64, pseudo).ok()?;
    if old.ports == new.ports {
        return Some(());
    }
    let ports = Delta::new().word(old.ports, new.ports);
    ctx.l4_csum_replace(l4 + csum, 0, ports.wide() as u64, zero).ok()?;
    ctx.store(l4, &new.ports, 0).ok()
}

/// Lowers the segment size that a SYN-ACK offers to what fits through the tunnel that the client's
/// packets come by: full segments would be refused one by one.
#[inline(always)]
fn clamp(ctx: &TcContext, l4: usize, new: &Flow, ways: u16, ip_header: u32) {
    if new.proto != TCP as u32 || ways & (state::TUNNEL_V4 | state::TUNNEL_V6) == 0 {
        return;
    }
    let Ok(flags) = ctx.load::<u8>(l4 + TCP_FLAGS) else { return };
    if flags & tcp_flag::SYN == 0 {
        return;
    }
    let overhead = if ways & state::TUNNEL_V4 != 0 { tunnel::OVERHEAD_V4 } else { tunnel::OVERHEAD_V6 };
    // The tunnel's packets come in by an interface like the one that the answer leaves by.
    let mut mtu = 0u32;
    // SAFETY: `ctx` is the program's own context, and the result is written to `mtu`.
    let found = unsafe { bpf_check_mtu(ctx.as_ptr(), 0, &mut mtu, 0, 0) };
    if found < 0 || mtu < 576 {
        return;
    }
    let most = mtu - overhead as u32 - ip_header - 20;
    let _ = lower_mss(ctx, l4, most as u16);
}

/// A function of its own: the loop over options is verified once.
#[inline(never)]
fn lower_mss(ctx: &TcContext, l4: usize, most: u16) -> Option<()> {
    let words: u8 = ctx.load(l4 + 12).ok()?;
    let end = l4 + (words >> 4) as usize * 4;
    let mut at = l4 + 20;
    for _ in 0..OPTIONS {
        if at + 4 > end {
            return None;
        }
        let [kind, length]: [u8; 2] = ctx.load(at).ok()?;
        if kind == MSS && length == 4 {
            let old: u16 = ctx.load(at + 2).ok()?;
            if old.swap_bytes() <= most {
                return None;
            }
            let new = most.swap_bytes();
            ctx.store(at + 2, &new, 0).ok()?;
            // The checksum's words begin at even offsets.
            let odd = at & 1 != l4 & 1;
            let (from, to) = if odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
            ctx.l4_csum_replace(l4 + TCP_CSUM, from as u64, to as u64, 2).ok()?;
            maps::counts()?.event(Event::MssClamped);
            return Some(());
        }
        // 0 ends the list, 1 fills a byte.
        if kind == 0 || kind != 1 && length < 2 {
            return None;
        }
        at += if kind == 1 { 1 } else { length as usize };
    }
    None
}
