//! An error about a packet that we wrapped (`ipip`, `tunnel`): a router between us and the backend found it too
//! large. The client has to hear of it: it alone can send less.
//!
//! What the router quotes is our outer header and the begin of the client's packet. Everything in front of that is
//! taken off, and [`crate::refuse`] tells the client as it does where we know the size ourselves. A quote that ends
//! before the client's ports (RFC 792 asks for no more) is left to the stack: nobody can be told.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    Addr, AddrEntry, Flow, Record, Tags, UDP, Verdict, VipEntry, backend,
    backend::NextHop,
    config,
    maps::Program,
    steer::{Kind, Memory},
    tunnel::{self, Head},
};

use crate::{
    carry::{At, Carry},
    end, finish_carried, forward,
    headers::{Behind, Part},
    icmp::Message,
    maps,
    packet::{FARTHEST, Packet},
    parse::{ETHERNET, Family, V4, V6},
    steer,
};

/// UDP header and the tunnel's.
const HEADERS: usize = 8 + tunnel::HEADER;

/// What the error says.
struct Told {
    /// Where the client's packet begins.
    at: usize,
    /// Its IP version, as a protocol number.
    inner: u8,
    /// Largest packet of the client that would fit.
    mtu: u16,
    /// Whom we sent it to.
    to: Addr,
}

/// Entry point by a tail call from `icmp`.
#[xdp(frags)]
pub fn penstock_narrow(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &mut (*scratch).carry };
    let told = if carry.flow.src.is_v4() { told::<V4>(&ctx, carry) } else { told::<V6>(&ctx, carry) };
    let verdict = match told {
        None => Verdict::Icmp,
        Some(told) if told.inner == V4::INNER => tell::<V4>(&ctx, carry, &told).unwrap_or(Verdict::StrayIcmp),
        Some(told) => tell::<V6>(&ctx, carry, &told).unwrap_or(Verdict::StrayIcmp),
    };
    let outcome = forward::Outcome::from(verdict);
    finish_carried(&ctx, outcome.verdict, outcome.action)
}

#[inline(always)]
fn told<F: Message>(ctx: &XdpContext, carry: &Carry) -> Option<Told> {
    let packet = carry.packet(ctx);
    let mtu = F::told_mtu(&packet.view_at::<8>(carry.l4 as usize)?)?;
    let l3 = carry.l4 as usize + 8;
    if l3 > FARTHEST - 128 {
        return None;
    }
    let head = F::head(&packet, At { l3, l4: 0 })?;
    let Behind { part, proto, l4, .. } = F::behind(ctx, &head, l3);
    if part != Part::Whole || F::src(&head) != carry.flow.dst {
        return None;
    }
    let (inner, at) = if proto == UDP {
        let tables = maps::tables();
        let view = packet.view_at::<HEADERS>(l4)?;
        let (port, opened) = (view.read::<u16>(2), Head(view.read(8)));
        let config = tables.config();
        let cluster = config::cluster(&config);
        if port != config::tunnel_port(&config) || !opened.is_known() || view.read::<u32>(12) != cluster {
            return None;
        }
        (opened.inner(), l4 + HEADERS)
    } else {
        (proto, l4)
    };
    // Up to the client's ports, or it is nothing for us.
    match inner {
        V4::INNER => _ = packet.view_at::<28>(at)?,
        V6::INNER => _ = packet.view_at::<48>(at)?,
        _ => return None,
    }
    let mtu = mtu.saturating_sub((at - l3) as u32).min(u16::MAX as u32) as u16;
    Some(Told { at, inner, mtu, to: F::dst(&head) })
}

/// Only returns if nobody is told.
#[inline(always)]
fn tell<F: Family>(ctx: &XdpContext, carry: &mut Carry, told: &Told) -> Option<Verdict> {
    let ether = Packet::of(ctx).view::<ETHERNET>()?;
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    forward::move_start(ctx, (told.at & (FARTHEST - 1)) as i32 - ETHERNET as i32)?;
    let packet = Packet::of(ctx);
    let head = F::head(&packet, F::PLAIN)?;
    let proto = F::plain_proto(&head)?;
    let ports = packet.view_at::<8>(F::PLAIN.l4)?.read(0);
    let flow = Flow { src: F::src(&head), dst: F::dst(&head), ports, proto: proto as u32 };

    let tables = maps::tables();
    let (epoch, key) = (config::epoch(&tables.config()), config::hash_key(&tables.config()));
    let addr = AddrEntry::find(&tables.addrs(), epoch, flow.dst);
    let vip = VipEntry::find(&tables.vips(), epoch, VipEntry::key(addr, flow.dst_port(), proto));
    if addr.is_none() || vip.is_none() || vip.is_punted() {
        return None;
    }
    let record = Record::read(&tables.records(), vip.record());
    let hashes = steer::hashes(&flow, F::hash(&flow, key), record.rules, key);
    // As a reset: an error, which anybody can make up, is not remembered.
    let choice = steer::choose(&tables, vip.record(), &record, hashes, Kind::Reset);
    let backends = tables.backends();
    if backend::addr(&backends, choice.backend) != told.to
        && backend::addr(&backends, choice.other) != told.to
    {
        return None;
    }

    // The router may know no way to the client; the host does, if it forwards at all.
    let ingress = ctx.ingress_ifindex() as u32;
    let mut way = NextHop::default();
    let (mut front, mut rest, mut back) = (first, second, ingress);
    if forward::resolve(forward::raw(ctx), ingress, &flow.src, &mut way) {
        // Whoever tells the sender swaps them.
        let turned = NextHop::new(way.src(), way.dst(), way.ifindex);
        (front, rest, back) = (turned.head, turned.tail, way.ifindex);
        carry.tags = Tags::NONE;
    }
    let ether = Packet::of(ctx).view::<ETHERNET>()?;
    ether.write(0, front);
    ether.write(8, rest);
    ether.write(12, F::ETHERTYPE);
    carry.flow = flow;
    carry.addr = addr;
    (carry.l3, carry.l4) = (F::PLAIN.l3 as u32, F::PLAIN.l4 as u32);
    (carry.verdict, carry.mtu, carry.back) = (Verdict::TooBig, told.mtu, back);
    maps::call(ctx, Program::Refuse);
    None
}
