//! KERNEL: what happens to one packet.
//!
//! `penstock` (XDP) is the fast path; what is not plain goes on in `penstock_ladder`, the ladder
//! below, and what is rare from there in further programs, by tail calls.
//! `penstock_out` (tc) translates what backends of this host answer, where it leaves. `penstock_lookup`
//! (sk_lookup) hands punted connections to the proxy's workers. Tables come from user space through shared memory. The `bench_*` programs are floors and wrappers for measuring,
//! never attached.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(missing_docs, reason = "the program macros make public functions that cannot carry a doc comment")]

mod bench;
mod capture;
mod carry;
mod claim;
mod counts;
mod errors;
mod fast;
mod former;
mod forward;
mod fragment;
mod headers;
mod icmp;
mod lookup;
mod maps;
mod narrow;
mod nat;
mod options;
mod out;
mod packet;
mod parse;
mod refuse;
mod room;
mod slow;
mod steer;
mod tags;
mod tunnel;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    AddrEntry, Epoch, Flow, Record, Rules, UDP, Verdict, VipEntry, config,
    maps::{NO_XDP_TX, Program},
};

use crate::{
    capture::Origin,
    carry::{At, Carry, Tunnelled},
    forward::Outcome,
    maps::Tables,
    packet::Packet,
    parse::{ETHERNET, ETHERTYPE_QINQ, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, Family, V4, V6},
};

/// Entry point of every packet. Inlined into what the macro makes of it: a call of its own would
/// cost as much as all lookups together where returns are guarded (SRSO).
#[xdp(frags)]
#[inline(always)]
pub fn penstock(ctx: XdpContext) -> u32 {
    fast::balance(&ctx)
}

/// A packet that is ours and not plain enough for the fast path.
#[xdp(frags)]
#[inline(always)]
pub fn penstock_ladder(ctx: XdpContext) -> u32 {
    let tables = maps::tables();
    let packet = Packet::of(&ctx);
    let Some(ether) = packet.view::<ETHERNET>() else { return xdp_action::XDP_PASS };
    match ether.read::<u16>(12) {
        ETHERTYPE_V4 => balance::<V4>(&ctx, &tables, &packet),
        ETHERTYPE_V6 => balance::<V6>(&ctx, &tables, &packet),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => {
            maps::call(&ctx, Program::Slow);
            xdp_action::XDP_PASS
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// Ends with a verdict that takes no more than to be counted.
#[inline(always)]
pub fn end(ctx: &XdpContext, verdict: Verdict) -> u32 {
    let Outcome { verdict, action } = verdict.into();
    finish(ctx, verdict, action)
}

/// Counts what became of a packet, and shows it to who asked for it.
#[inline(always)]
pub fn finish(ctx: &XdpContext, verdict: Verdict, action: u32) -> u32 {
    finish_as(ctx, verdict, action, Origin::Packet)
}

/// The same for a packet whose flow stands in the carry as it came.
#[inline(always)]
pub fn finish_carried(ctx: &XdpContext, verdict: Verdict, action: u32) -> u32 {
    finish_as(ctx, verdict, action, Origin::Carry)
}

/// What is not ours is not touched, not even to count it. What is still to be tagged is counted there.
#[inline(always)]
pub fn finish_as(ctx: &XdpContext, verdict: Verdict, action: u32, origin: Origin) -> u32 {
    if matches!(verdict, Verdict::NotOurs) {
        return action;
    }
    if action == tags::PUSH {
        return tags::push(ctx, origin);
    }
    if let Some(row) = maps::counts() {
        row.verdict(verdict);
    }
    capture::show(ctx, &maps::tables(), verdict, action, origin);
    action
}

/// Asks first whether the packet is ours, and parses no further if it is not.
#[inline(always)]
fn balance<F: Family>(ctx: &XdpContext, tables: &Tables, packet: &Packet) -> u32 {
    let Some(head) = F::head(packet, F::PLAIN) else { return xdp_action::XDP_PASS };
    let epoch = config::epoch(&tables.config());
    if epoch.is_empty() {
        return xdp_action::XDP_PASS;
    }
    let addr = AddrEntry::find(&tables.addrs(), epoch, F::dst(&head));
    if addr.is_none() {
        return xdp_action::XDP_PASS;
    }
    let Outcome { verdict, action } = ladder::<F>(ctx, tables, epoch, addr);
    finish(ctx, verdict, action)
}

/// The ladder of what is ours.
#[inline(always)]
fn ladder<F: Family>(ctx: &XdpContext, tables: &Tables, epoch: Epoch, addr: AddrEntry) -> Outcome {
    // Read again: cheaper than to have kept it.
    let packet = Packet::of(ctx);
    let Some(packet) = for_us(ctx, packet, tables) else { return Verdict::OtherMac.into() };
    let Some(head) = F::head(&packet, F::PLAIN) else { return Verdict::Truncated.into() };
    let Some(proto) = F::plain_proto(&head) else {
        maps::call(ctx, Program::Slow);
        return Verdict::Corrupt.into();
    };
    let Some(transport) = parse::transport(&packet, F::PLAIN, proto) else {
        return quietly(addr, Verdict::Truncated);
    };
    // Not as long as it says: cut short, or in several pieces.
    let length = F::length(&head);
    let least = (F::PLAIN.l4 - F::PLAIN.l3) as u32 + parse::least(proto);
    if length < least || packet.bytes() < F::PLAIN.l3 + length as usize {
        maps::call(ctx, Program::Slow);
        return Verdict::Corrupt.into();
    }
    let flow = Flow { src: F::src(&head), dst: F::dst(&head), ports: transport.ports, proto: proto as u32 };
    let arrived = Arrived { flow, addr, at: F::PLAIN, tcp_flags: transport.flags };
    onward::<F>(ctx, tables, epoch, &packet, &head, &arrived)
}

/// A packet to one of our addresses whose headers have been read.
#[derive(Clone, Copy)]
pub struct Arrived {
    /// Its five-tuple; ports 0 where it has none.
    pub flow: Flow,
    /// Whose the destination is.
    pub addr: AddrEntry,
    /// Where its headers begin: a constant in the ladder, so that all arithmetic with it vanishes.
    pub at: At,
    /// TCP's flag byte; 0 for UDP.
    pub tcp_flags: u8,
}

/// The ladder from the five-tuple on, the same for plain packets and for those of `slow`.
#[inline(always)]
pub fn onward<F: Family>(
    ctx: &XdpContext,
    tables: &Tables,
    epoch: Epoch,
    packet: &Packet,
    head: &F::Head,
    arrived: &Arrived,
) -> Outcome {
    let Arrived { flow, addr, at, tcp_flags } = *arrived;
    let proto = flow.proto as u8;
    let nobody = Known { arrived: *arrived, vip: 0, record: Record::default() };
    if addr.is_node()
        && let Some(program) = own_port(tables, &flow)
    {
        return carry_on::<F>(ctx, packet, &nobody, Verdict::Corrupt, 0, program);
    }

    let vip = VipEntry::find(&tables.vips(), epoch, VipEntry::key(addr, flow.dst_port(), proto));
    if vip.is_none() {
        return quietly(addr, Verdict::ClosedPort);
    }
    if vip.is_restricted() && !maps::may_use(vip.record(), &flow.src) {
        return Verdict::SourceRange.into();
    }
    if vip.is_punted() {
        if former::may_know(&flow, tcp_flags) {
            return carry_on::<F>(ctx, packet, &nobody, Verdict::Punted, 0, Program::Former);
        }
        return Verdict::Punted.into();
    }
    let record = Record::read(&tables.records(), vip.record());
    // Read again where it is handed on: all of it kept until then would not fit the stack, of which
    // a packet has 512 bytes in all.
    let known = || Known {
        arrived: *arrived,
        vip: vip.record(),
        record: Record::read(&tables.records(), vip.record()),
    };
    if record.rules.any(Rules::TRANSLATED) {
        return carry_on::<F>(ctx, packet, &known(), Verdict::Corrupt, 0, Program::Translate);
    }

    let key = config::hash_key(&tables.config());
    let hash = F::hash(&flow, key);
    let hashes = steer::hashes(&flow, hash, record.rules, key);
    let kind = parse::kind(proto, tcp_flags);
    // Asked for anew, here and below: nothing of it has to be kept over what follows.
    let tables = &maps::tables();
    let choice = steer::choose(tables, vip.record(), &record, hashes, kind);
    if choice.backend.0 == 0 {
        let program = if record.rules.any(Rules::REJECT) { Some(Program::Refuse) } else { None };
        return refuse::<F>(ctx, packet, &known(), Verdict::NoBackend, 0, program);
    }
    let length = F::length(head);
    let tables = &maps::tables();
    match forward::untouched::<F>(ctx, packet, head, tables, addr, &choice, hash, at) {
        Ok(outcome) => {
            let begins = steer::begins(kind, choice.how);
            // Looked up late: kept until here it would take stack, which is short.
            let Some(row) = maps::counts() else { return outcome };
            row.backend(choice.backend.0, length as u64, begins);
            if record.rules.any(Rules::COUNTED) {
                row.vip(vip.record(), length as u64, begins);
            }
            outcome
        }
        Err((Verdict::WouldCircle | Verdict::TtlOfVip, _)) if record.rules.any(Rules::HERE) => {
            Verdict::KeptHere.into()
        }
        Err((verdict @ (Verdict::TooBig | Verdict::TtlOfVip), mtu)) => {
            refuse::<F>(ctx, packet, &known(), verdict, mtu, Some(Program::Refuse))
        }
        Err((verdict, _)) => verdict.into(),
    }
}

/// The packet with what we know of its interface; `None` where the frame is another host's.
#[inline(always)]
pub fn for_us(ctx: &XdpContext, packet: Packet, tables: &Tables) -> Option<Packet> {
    let ifindex = ctx.ingress_ifindex() as u32;
    let interface = tables.interface(ifindex);
    let mac = interface >> 16;
    let ether = packet.view::<ETHERNET>()?;
    if mac != 0 && mac != ether.read::<u64>(0) & 0xffff_ffff_ffff {
        return None;
    }
    Some(packet.leaving_by(if interface & NO_XDP_TX == 0 { ifindex } else { 0 }))
}

/// What takes the packets to a port of the host that is ours: answers to translated flows, and
/// what other balancers send.
#[inline(always)]
pub fn own_port(tables: &Tables, flow: &Flow) -> Option<Program> {
    let (first, count) = config::nat_range(&tables.config());
    if flow.dst_port().swap_bytes().wrapping_sub(first) < count {
        return Some(Program::Reply);
    }
    let tunnel = config::tunnel_port(&tables.config());
    if tunnel != 0 && flow.dst_port() == tunnel && flow.proto == UDP as u32 {
        return Some(Program::Tunnel);
    }
    None
}

/// What the ladder knows of a packet to a VIP.
pub struct Known {
    /// Its headers.
    pub arrived: Arrived,
    /// Index of the VIP's record.
    pub vip: u32,
    /// That record.
    pub record: Record,
}

/// Goes on in another program with what is known of the packet; `verdict` and `mtu` are for
/// [`Program::Refuse`].
#[inline(always)]
pub fn carry_on<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    known: &Known,
    verdict: Verdict,
    mtu: u16,
    program: Program,
) -> Outcome {
    let tables = maps::tables();
    let Some(scratch) = maps::scratch() else {
        return Verdict::Corrupt.into();
    };
    let Known { arrived: Arrived { flow, addr, at, tcp_flags }, vip, record } = *known;
    let key = config::hash_key(&tables.config());
    let carry = Carry {
        flow,
        hashes: steer::hashes(&flow, F::hash(&flow, key), record.rules, key),
        record,
        record_index: vip,
        addr,
        l3: at.l3 as u32,
        l4: at.l4 as u32,
        tx_ifindex: packet.tx_ifindex,
        tcp_flags: tcp_flags as u32,
        verdict,
        mtu,
        tunnelled: Tunnelled::NOT,
        tags: tags::of(packet, at.l3),
        back: 0,
    };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    unsafe { (*scratch).carry = carry };
    maps::call(ctx, program);
    verdict.into()
}

/// A packet that nobody takes. Its sender is told by `program`, if any.
#[inline(always)]
fn refuse<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    known: &Known,
    verdict: Verdict,
    mtu: u16,
    program: Option<Program>,
) -> Outcome {
    match program {
        Some(program) => carry_on::<F>(ctx, packet, known, verdict, mtu, program),
        None => verdict.into(),
    }
}

/// What we do not take: the host's own business on the host's addresses; nothing at all on an
/// address that is only a VIP, so that a local route for punted ports opens no other port.
#[inline(always)]
pub fn quietly(addr: AddrEntry, verdict: Verdict) -> Outcome {
    if addr.is_node() { Verdict::Node.into() } else { verdict.into() }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
