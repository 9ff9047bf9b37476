//! Packets to our addresses that the ladder does not take as they are: tags, options, extension headers,
//! fragments, other protocols, frames in several pieces. Once their headers are found they go on as all do.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{AddrEntry, Flow, Record, TCP, UDP, Verdict, VipEntry, config, maps::Program};

use crate::{
    Arrived, Known,
    carry::{At, Carry},
    carry_on, end, finish, finish_carried, for_us,
    forward::Outcome,
    fragment,
    headers::{Behind, Headers, Part},
    maps::{self, Tables},
    onward, options, own_port,
    packet::{self, Packet},
    parse::{self, ETHERNET, ETHERTYPE_QINQ, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, V4, V6},
    quietly,
};

/// Entry point by a tail call from the ladder.
#[xdp(frags)]
pub fn penstock_slow(ctx: XdpContext) -> u32 {
    let tables = maps::tables();
    let packet = Packet::of(&ctx).shifted();
    let mut l3 = ETHERNET;
    let Some(mut kind) = ethertype(&packet, l3) else { return xdp_action::XDP_PASS };
    for _ in 0..2 {
        if kind == ETHERTYPE_VLAN || kind == ETHERTYPE_QINQ {
            l3 += 4;
            let Some(next) = ethertype(&packet, l3) else { return xdp_action::XDP_PASS };
            kind = next;
        }
    }
    let Outcome { verdict, action } = match kind {
        ETHERTYPE_V4 => classify::<V4>(&ctx, &tables, &packet, l3),
        ETHERTYPE_V6 => classify::<V6>(&ctx, &tables, &packet, l3),
        _ => return xdp_action::XDP_PASS,
    };
    finish(&ctx, verdict, action)
}

/// The ladder from the five-tuple on. A program of its own: the verifier would follow it anew for every shape of
/// packet that leads here. Inlined into what the macro makes of it, as below: a call counts with 32 bytes at least of the 512 of the
/// stack before Linux 6.8, and from here to the deepest one it takes all of them.
#[xdp(frags)]
#[inline(always)]
pub fn penstock_onward(ctx: XdpContext) -> u32 {
    let tables = maps::tables();
    let Some(scratch) = maps::scratch() else {
        return end(&ctx, Verdict::Corrupt);
    };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &(*scratch).carry };
    let Outcome { verdict, action } = if carry.flow.src.is_v4() {
        go_on::<V4>(&ctx, &tables, carry)
    } else {
        go_on::<V6>(&ctx, &tables, carry)
    };
    finish_carried(&ctx, verdict, action)
}

#[inline(always)]
fn go_on<F: Headers>(ctx: &XdpContext, tables: &Tables, carry: &Carry) -> Outcome {
    let packet = carry.packet(ctx);
    let Some(head) = F::head(&packet, carry.at()) else { return Verdict::Corrupt.into() };
    let arrived =
        Arrived { flow: carry.flow, addr: carry.addr, at: carry.at(), tcp_flags: carry.tcp_flags as u8 };
    onward::<F>(ctx, tables, config::epoch(&tables.config()), &packet, &head, &arrived)
}

/// EtherType in front of `l3`.
#[inline(always)]
fn ethertype(packet: &Packet, l3: usize) -> Option<u16> {
    Some(packet.view_at::<2>(l3 - 2)?.read(0))
}

#[inline(always)]
fn classify<F: Headers>(ctx: &XdpContext, tables: &Tables, packet: &Packet, l3: usize) -> Outcome {
    let Some(head) = F::head(packet, At { l3, l4: 0 }) else { return Verdict::NotOurs.into() };
    let epoch = config::epoch(&tables.config());
    if epoch.is_empty() {
        return Verdict::NotOurs.into();
    }
    let addr = AddrEntry::find(&tables.addrs(), epoch, F::dst(&head));
    if addr.is_none() {
        return Verdict::NotOurs.into();
    }
    let Some(packet) = for_us(ctx, *packet, tables) else { return Verdict::OtherMac.into() };
    let Behind { part, proto, l4, id } = F::behind(ctx, &head, l3);
    let length = F::length(&head);
    let mut flow = Flow { src: F::src(&head), dst: F::dst(&head), ports: id, proto: proto as u32 };
    let key = fragment::key(flow);
    let short = l3 as u32 + length > packet::length(ctx) || l3 as u32 + length < l4 as u32;
    match part {
        Part::Short => return quietly(addr, Verdict::Truncated),
        _ if short => return quietly(addr, Verdict::Truncated),
        Part::Strange => return quietly(addr, Verdict::Ip6Extension),
        Part::Later => {
            let Some(first) = fragment::recall(&key) else { return quietly(addr, Verdict::Fragment) };
            (flow.ports, flow.proto) = (first.ports, first.proto as u32);
            return found::<F>(
                ctx,
                &packet,
                Arrived { flow, addr, at: At { l3, l4: 0 }, tcp_flags: 0 },
                Program::Onward,
            );
        }
        Part::First | Part::Whole => {}
    }
    if F::ETHERTYPE == ETHERTYPE_V4 && options::are_routed(ctx, At { l3, l4 }) {
        return quietly(addr, Verdict::IpOptions);
    }
    if proto == F::ICMP {
        if part == Part::First {
            return quietly(addr, Verdict::Fragment);
        }
        flow.ports = 0;
        return found::<F>(
            ctx,
            &packet,
            Arrived { flow, addr, at: At { l3, l4 }, tcp_flags: 0 },
            Program::Icmp,
        );
    }
    if proto != TCP && proto != UDP {
        return quietly(addr, Verdict::OtherProtocol);
    }
    let at = At { l3, l4 };
    let transport = parse::transport(&packet, at, proto);
    let Some(transport) = transport.filter(|_| l4 as u32 + parse::least(proto) <= l3 as u32 + length) else {
        return quietly(addr, Verdict::Truncated);
    };
    flow.ports = transport.ports;
    if part == Part::First {
        if addr.is_node() && matches!(own_port(tables, &flow), Some(Program::Tunnel)) {
            // Reassembled, it would be wrapped in nothing: the stack has it, and nobody listens.
            return Verdict::Node.into();
        }
        let vip = VipEntry::find(&tables.vips(), epoch, VipEntry::key(addr, flow.dst_port(), proto));
        if !vip.is_none() || addr.is_node() && own_port(tables, &flow).is_some() {
            fragment::remember(&key, fragment::Remembered { ports: transport.ports, proto });
        }
    }
    found::<F>(ctx, &packet, Arrived { flow, addr, at, tcp_flags: transport.flags }, Program::Onward)
}

/// Goes on in another program with the headers that were found.
#[inline(always)]
fn found<F: Headers>(ctx: &XdpContext, packet: &Packet, arrived: Arrived, program: Program) -> Outcome {
    let known = Known { arrived, vip: 0, record: Record::default() };
    let otherwise = if matches!(program, Program::Icmp) { Verdict::Icmp } else { Verdict::Corrupt };
    carry_on::<F>(ctx, packet, &known, otherwise, 0, program)
}
