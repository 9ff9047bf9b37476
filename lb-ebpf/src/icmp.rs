//! ICMP to our addresses: echo to a VIP is answered, an error goes to whoever owns the flow that it is about.
//!
//! An error quotes the packet that could not be delivered: one that a backend sent to a client, or one of ours to
//! a backend. Eight bytes behind the quoted IP header name the flow. What is the stack's business is left to it:
//! everything on the host's own addresses that is about no flow of ours, and neighbour discovery anywhere.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    Addr, BackendId, Flow, Mode, Record, Rules, TCP, UDP, Verdict, VipEntry, backend, config,
    csum::Delta,
    maps::Program,
    steer::{Kind, Memory},
};

use crate::{
    carry::{At, Carry},
    end, finish_carried,
    forward::{self, Outcome},
    headers::{Behind, Headers, Part},
    maps::{self, Tables, Telling},
    nat, own_port,
    packet::{FARTHEST, Packet, View},
    parse::{Family, V4, V6},
    quietly,
    refuse::{Answer, swap_macs},
    steer,
};

/// Entry point by a tail call from `slow`.
#[xdp(frags)]
#[inline(always)]
pub fn penstock_icmp(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &(*scratch).carry };
    let Outcome { verdict, action } =
        if carry.flow.src.is_v4() { take::<V4>(&ctx, carry) } else { take::<V6>(&ctx, carry) };
    finish_carried(&ctx, verdict, action)
}

/// What ICMP has for an IP version.
pub trait Message: Headers + Answer {
    /// Types of an echo request and of its answer.
    const ECHO: (u8, u8);

    /// Whether a message of this type is an error about a packet.
    fn is_error(kind: u8) -> bool;
    /// The MTU that a router tells, if a message says "too big" and tells one.
    fn told_mtu(message: &View<8>) -> Option<u32>;
    /// Whether the stack has to see it, wherever it is addressed to.
    fn is_the_stacks(kind: u8) -> bool;
    /// Writes swapped addresses and a fresh hop limit.
    fn turn(head: &Self::Head, flow: &Flow);
    /// What a message's checksum has to follow of a change of addresses outside it.
    fn outside(addresses: Delta) -> Delta;
    /// What it has to follow of a change of addresses in the quoted header.
    fn quoted(old: &Flow, new: &Flow) -> Delta;
}

/// Hops of what we say ourselves.
const HOPS: u8 = 64;

impl Message for V4 {
    const ECHO: (u8, u8) = (8, 0);

    /// Unreachable, quench, time exceeded, parameter problem. (A redirect is about a router, not a flow.)
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn told_mtu(message: &View<8>) -> Option<u32> {
        let mtu = message.read::<u16>(6).swap_bytes();
        (message.read::<u16>(0) == 0x0403 && mtu != 0).then_some(mtu as u32)
    }

    #[inline(always)]
    fn is_the_stacks(_: u8) -> bool {
        false
    }

    #[inline(always)]
    fn turn(head: &Self::Head, flow: &Flow) {
        let (hops, proto): (u8, u8) = (head.read(8), head.read(9));
        let tail = (proto as u32) << 8;
        let csum = Delta::new().word(hops as u32 | tail, HOPS as u32 | tail).apply(head.read(10));
        head.write(8, HOPS);
        head.write(10, csum);
        head.write(12, flow.dst.raw_v4());
        head.write(16, flow.src.raw_v4());
    }

    #[inline(always)]
    fn outside(_: Delta) -> Delta {
        Delta::new()
    }

    /// Nothing: the quoted header's own checksum changes against its addresses.
    #[inline(always)]
    fn quoted(_: &Flow, _: &Flow) -> Delta {
        Delta::new()
    }
}

impl Message for V6 {
    const ECHO: (u8, u8) = (128, 129);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        kind < 128
    }

    #[inline(always)]
    fn told_mtu(message: &View<8>) -> Option<u32> {
        let mtu = message.read::<u32>(4).swap_bytes();
        (message.read::<u8>(0) == 2 && mtu != 0).then_some(mtu)
    }

    /// Multicast listeners (RFC 2710, 3810), neighbour discovery (RFC 4861), inverse discovery (RFC 3122).
    #[inline(always)]
    fn is_the_stacks(kind: u8) -> bool {
        (130..=143).contains(&kind)
    }

    #[inline(always)]
    fn turn(head: &Self::Head, flow: &Flow) {
        head.write(7, HOPS);
        head.write(8, flow.dst.hi);
        head.write(16, flow.dst.lo);
        head.write(24, flow.src.hi);
        head.write(32, flow.src.lo);
    }

    #[inline(always)]
    fn outside(addresses: Delta) -> Delta {
        addresses
    }

    #[inline(always)]
    fn quoted(old: &Flow, new: &Flow) -> Delta {
        addresses(old, new)
    }
}

/// What a change of both addresses does to a sum.
#[inline(always)]
fn addresses(old: &Flow, new: &Flow) -> Delta {
    Delta::new()
        .long(old.src.hi, new.src.hi)
        .long(old.src.lo, new.src.lo)
        .long(old.dst.hi, new.dst.hi)
        .long(old.dst.lo, new.dst.lo)
}

#[inline(always)]
fn take<F: Message>(ctx: &XdpContext, carry: &Carry) -> Outcome {
    let packet = carry.packet(ctx);
    let Some(icmp) = packet.view_at::<8>(carry.l4 as usize) else {
        return quietly(carry.addr, Verdict::Truncated);
    };
    let kind: u8 = icmp.read(0);
    if F::is_error(kind) {
        return error::<F>(ctx, &packet, carry);
    }
    if carry.addr.is_node() || F::is_the_stacks(kind) {
        return Verdict::Icmp.into();
    }
    if kind != F::ECHO.0 || !F::is_host(&carry.flow.src) {
        return Verdict::StrayIcmp.into();
    }
    if !maps::may_tell(Telling::Echo) {
        return Verdict::RateLimited.into();
    }
    let Some(head) = F::head(&packet, carry.at()) else { return Verdict::Truncated.into() };
    let (old, new) = (F::ECHO.0 as u32, F::ECHO.1 as u32);
    icmp.write(0, F::ECHO.1);
    icmp.write(2, Delta::new().word(old, new).apply(icmp.read(2)));
    F::turn(&head, &carry.flow);
    if swap_macs(&packet).is_none() {
        return Verdict::Truncated.into();
    }
    forward::back(ctx, &packet, carry, Verdict::EchoAnswered)
}

/// The packet that an error quotes.
struct Quoted {
    /// Where it begins.
    at: At,
    /// Its five-tuple as it was sent.
    flow: Flow,
}

#[inline(always)]
fn error<F: Message>(ctx: &XdpContext, packet: &Packet, carry: &Carry) -> Outcome {
    let stray = if carry.addr.is_node() { Verdict::Icmp } else { Verdict::StrayIcmp };
    let tables = maps::tables();
    let Some(quoted) = quoted::<F>(ctx, packet, carry) else {
        return stray.into();
    };
    // Whoever sent it is whom the error is sent to.
    if quoted.flow.src != carry.flow.dst {
        return stray.into();
    }
    // The flow in the direction that packets come to us.
    let Flow { src, dst, ports, proto } = quoted.flow;
    let flow = Flow { src: dst, dst: src, ports: ports.rotate_left(16), proto };
    let hash = F::hash(&flow, config::hash_key(&tables.config()));
    if carry.addr.is_node() && matches!(own_port(&tables, &flow), Some(Program::Reply)) {
        return to_client::<F>(ctx, packet, carry, &quoted, &flow, hash).unwrap_or(stray.into());
    }
    let key = VipEntry::key(carry.addr, flow.dst_port(), proto as u8);
    let vip = VipEntry::find(&tables.vips(), config::epoch(&tables.config()), key);
    if vip.is_none() {
        return stray.into();
    }
    if vip.is_punted() {
        return Verdict::Icmp.into();
    }
    let record = Record::read(&tables.records(), vip.record());
    if record.rules.any(Rules::TRANSLATED)
        && let Some(outcome) = to_translated::<F>(ctx, packet, carry, &quoted, &flow, hash, &tables)
    {
        return outcome;
    }
    let hashes = steer::hashes(&flow, hash, record.rules, config::hash_key(&tables.config()));
    // As a reset: what nobody remembers is not remembered for an error, which anybody can make up.
    let choice = steer::choose(&tables, vip.record(), &record, hashes, Kind::Reset);
    let Some(head) = F::head(packet, carry.at()) else { return stray.into() };
    let mode = backend::identity(&tables.backends(), choice.backend).mode();
    if choice.backend.0 == 0 || Mode::from_number(mode).is_none_or(Mode::is_translated) {
        return stray.into();
    }
    match forward::untouched::<F>(ctx, packet, &head, &tables, carry.addr, &choice, hash, carry.at()) {
        Ok(Outcome { action, .. }) => Outcome { verdict: Verdict::ForwardedIcmp, action },
        Err((Verdict::WouldCircle | Verdict::TtlOfVip, _)) if record.rules.any(Rules::HERE) => {
            Verdict::KeptHere.into()
        }
        Err((verdict, _)) => verdict.into(),
    }
}

#[inline(always)]
fn quoted<F: Message>(ctx: &XdpContext, packet: &Packet, carry: &Carry) -> Option<Quoted> {
    let l3 = carry.l4 as usize + 8;
    if l3 > FARTHEST - 128 {
        return None;
    }
    let head = F::head(packet, At { l3, l4: 0 })?;
    let Behind { part, proto, l4, .. } = F::behind(ctx, &head, l3);
    let named = matches!(part, Part::Whole | Part::First) && (proto == TCP || proto == UDP);
    let ports = packet.view_at::<8>(l4)?.read(0);
    let wrapped = proto == V4::INNER || proto == V6::INNER || proto == UDP && is_tunnels(ports);
    if wrapped && carry.addr.is_node() {
        let icmp = packet.view_at::<8>(carry.l4 as usize)?;
        if F::told_mtu(&icmp).is_some() {
            maps::call(ctx, Program::Narrow);
            return None;
        }
    }
    let flow = Flow { src: F::src(&head), dst: F::dst(&head), ports, proto: proto as u32 };
    named.then_some(Quoted { at: At { l3, l4 }, flow })
}

/// Whether a datagram of ours with these ports went to another balancer.
#[inline(always)]
fn is_tunnels(ports: u32) -> bool {
    let tables = maps::tables();
    let port = config::tunnel_port(&tables.config());
    port != 0 && (ports >> 16) as u16 == port
}

/// An error about what we sent to a `nat` backend: the client's packet, as far as it knows.
#[inline(always)]
fn to_client<F: Message>(
    ctx: &XdpContext,
    packet: &Packet,
    carry: &Carry,
    quoted: &Quoted,
    flow: &Flow,
    hash: u64,
) -> Option<Outcome> {
    let entry = maps::NAT_REVERSE.get_ptr(hash)?;
    // SAFETY: a hash map entry stays readable for the whole run; a concurrent removal may reuse it, which the
    // comparison notices but for the moment of the race itself.
    let entry = unsafe { &*entry };
    if entry.flow != *flow {
        return None;
    }
    let reply = &entry.reply;
    let asked = Flow {
        src: reply.dst,
        dst: reply.src,
        ports: Flow::ports(reply.dst_port(), reply.src_port()),
        proto: flow.proto,
    };
    let (client, tags) = (entry.client, entry.tags);
    // Whoever it is from: the client talks to the VIP, and what is behind it is not the client's business.
    translate::<F>(packet, carry, quoted, reply.src, reply.dst, &asked, 1)?;
    Some(forward::send::<F>(ctx, packet, carry.l3 as usize, client, tags, Verdict::RepliedIcmp))
}

/// An error about an answer of a backend that is translated to: the packet that the backend sent.
#[inline(always)]
fn to_translated<F: Message>(
    ctx: &XdpContext,
    packet: &Packet,
    carry: &Carry,
    quoted: &Quoted,
    flow: &Flow,
    hash: u64,
    tables: &Tables,
) -> Option<Outcome> {
    let entry = maps::NAT_FORWARD.get_ptr(hash)?;
    // SAFETY: as above.
    let entry = unsafe { &*entry };
    let id = BackendId(entry.backend);
    let backends = tables.backends();
    let identity = backend::identity(&backends, id);
    if entry.flow != *flow || identity.generation() != entry.generation {
        return None;
    }
    // Else its port is another flow's by now.
    nat::own_reverse(entry, hash)?;
    let local = identity.mode() == Mode::Local as u8;
    let source = backend::source(&backends, id);
    let addr = backend::addr(&backends, id);
    let answered = Flow {
        src: addr,
        dst: if local { flow.src } else { source },
        ports: Flow::ports(identity.wire_port(), entry.snat_port),
        proto: flow.proto,
    };
    if local {
        translate::<F>(packet, carry, quoted, carry.flow.src, addr, &answered, 0)?;
        let pass = Outcome::from(Verdict::ForwardedLocal).action;
        return Some(Outcome { verdict: Verdict::ForwardedIcmp, action: pass });
    }
    let way = match forward::way(ctx, tables, id) {
        Ok(way) => way,
        Err(verdict) => return Some(verdict.into()),
    };
    translate::<F>(packet, carry, quoted, source, addr, &answered, 1)?;
    let l3 = carry.l3 as usize;
    Some(forward::send::<F>(ctx, packet, l3, way.next_hop, way.tags, Verdict::ForwardedIcmp))
}

/// Writes new addresses outside, and a new five-tuple into the quoted packet, with every checksum that is there.
#[inline(always)]
fn translate<F: Message>(
    packet: &Packet,
    carry: &Carry,
    quoted: &Quoted,
    src: Addr,
    dst: Addr,
    new: &Flow,
    hops: u8,
) -> Option<()> {
    let old = &quoted.flow;
    let icmp = packet.view_at::<8>(carry.l4 as usize)?;
    let head = F::head(packet, carry.at())?;
    let inner = F::head(packet, quoted.at)?;
    let ports = packet.view_at::<8>(quoted.at.l4)?;
    if F::ttl(&head) <= hops {
        return None;
    }
    let from = Flow { ports: 0, ..carry.flow };
    let to = Flow { src, dst, ports: 0, proto: from.proto };
    F::rewrite(&head, &from, &to, hops);
    let mut delta = F::outside(addresses(&from, &to)).and(F::quoted(old, new)).word(old.ports, new.ports);

    let transport = F::rewrite(&inner, old, new, 0);
    ports.write(0, new.ports);
    if old.proto == UDP as u32 {
        let csum: u16 = ports.read(6);
        let after = transport.apply_udp(csum);
        ports.write(6, after);
        delta = delta.word(csum as u32, after as u32);
    } else if let Some(tcp) = packet.view_at::<18>(quoted.at.l4) {
        let csum: u16 = tcp.read(16);
        let after = transport.apply(csum);
        tcp.write(16, after);
        delta = delta.word(csum as u32, after as u32);
    }
    icmp.write(2, delta.apply(icmp.read(2)));
    Some(())
}
