//! Sends a packet on: Ethernet header, an outer header where the mode wants one, then the same
//! interface or another one.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, xdp_action},
    helpers::{bpf_fib_lookup, bpf_xdp_adjust_head},
    programs::XdpContext,
};
use lb_common::{
    Addr, AddrEntry, BackendId, Mac, TCP, Tags, UDP, Verdict,
    backend::{self, NextHop, Wrap},
    config, csum,
    steer::{Choice, Memory},
    tunnel::{self, Round},
    verdict::Event,
};

use crate::{
    carry::{At, Carry},
    maps::{self, Pair, Tables},
    packet::{Packet, View},
    parse::{self, ETHERNET, Family},
    tags,
};

/// A verdict, and what to tell the kernel where the verdict alone does not say it.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// Name of what happened.
    pub verdict: Verdict,
    /// XDP action.
    pub action: u32,
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        let action = match verdict.action() {
            lb_common::Action::Pass => xdp_action::XDP_PASS,
            lb_common::Action::Drop => xdp_action::XDP_DROP,
            lb_common::Action::Send => xdp_action::XDP_TX,
        };
        Self { verdict, action }
    }
}

/// The way to a backend, read once.
#[derive(Clone, Copy)]
pub struct Way {
    /// MACs and interface.
    pub next_hop: NextHop,
    /// VLAN tags that its frames leave with.
    pub tags: Tags,
}

/// Reads the way to a backend; asks the kernel's routing where user space has not resolved it.
#[inline(always)]
pub fn way(ctx: &XdpContext, tables: &Tables, id: BackendId) -> Result<Way, Verdict> {
    let backends = tables.backends();
    let known = backend::next_hop(&backends, id);
    if known.ifindex != 0 {
        return Ok(Way { next_hop: known, tags: Tags::NONE });
    }
    let (next_hop, tags) = backend::tagged_next_hop(&backends, id);
    if next_hop.ifindex != 0 {
        return Ok(Way { next_hop, tags });
    }
    // A variable of its own: whose address is taken, lives in memory.
    let mut next_hop = known;
    let ifindex = ctx.ingress_ifindex() as u32;
    if !resolve(raw(ctx), ifindex, &backend::addr(&backends, id), &mut next_hop) {
        return Err(Verdict::Unresolved);
    }
    Ok(Way { next_hop, tags: Tags::NONE })
}

/// Forwards a packet whose addresses stay as they are: by its MAC alone, or within another packet.
/// Where this host is the backend it stays as it is. Tags that it came with are left behind. `addr`: whose its destination is.
/// `Err`: why not; with [`Verdict::TooBig`] the size that would have fitted.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "they are registers, not a structure in memory")]
pub fn untouched<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    addr: AddrEntry,
    choice: &Choice,
    hash: u64,
    at: At,
) -> Result<Outcome, (Verdict, u16)> {
    sent_on::<F>(ctx, packet, head, tables, addr, choice, hash, at, Round::First)
}

/// The same for a packet that balancers may have sent on before.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "they are registers, not a structure in memory")]
pub fn sent_on<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    addr: AddrEntry,
    choice: &Choice,
    hash: u64,
    at: At,
    round: Round,
) -> Result<Outcome, (Verdict, u16)> {
    let lines = tables.backend(choice.backend);
    if backend::wrap(&lines, choice.backend) == Wrap::HERE {
        return Ok(Verdict::ForwardedHere.into());
    }
    let way = way(ctx, tables, choice.backend).map_err(|verdict| (verdict, 0))?;
    let to = To { id: choice.backend, lines, other: choice.other, round, l3: at.l3 };
    along::<F>(ctx, packet, head, tables, addr, &to, way, hash)
}

/// A backend, the slot's other owner, and the way to the backend.
pub struct To {
    /// Where the packet goes.
    pub id: BackendId,
    /// Its lines.
    pub lines: Pair,
    /// Who may know the flow if that one does not; id 0: nobody.
    pub other: BackendId,
    /// How often balancers have sent it on.
    pub round: Round,
    /// Where the IP header begins; whatever is in front of it stays behind.
    pub l3: usize,
}

/// [`untouched`] where the way is known.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "they are registers, not a structure in memory")]
fn along<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    addr: AddrEntry,
    to: &To,
    way: Way,
    hash: u64,
) -> Result<Outcome, (Verdict, u16)> {
    let Way { next_hop, tags } = way;
    let (wrap, room) = (backend::wrap(&to.lines, to.id), backend::room(&to.lines, to.id));
    if wrap == Wrap::NONE {
        return Err((Verdict::Corrupt, 0));
    }
    if F::length(head) > room as u32 {
        return Err((Verdict::TooBig, room));
    }
    if wrap == Wrap::ETHERNET {
        if came_from(packet, next_hop) {
            return Err((Verdict::WouldCircle, 0));
        }
        // Three hosts that each take the next one for the backend: as many rounds as hops are left, and no more.
        if addr.is_node() {
            if F::ttl(head) <= 1 {
                return Err((Verdict::TtlOfVip, 0));
            }
            parse::leave_few_hops::<F>(head);
        }
        return Ok(send::<F>(ctx, packet, to.l3, next_hop, tags, Verdict::ForwardedL2));
    }
    let verdict = wrapped::<F>(ctx, head, tables, to, wrap, hash, || next_hop).map_err(|why| (why, 0))?;
    Ok(leave(packet, next_hop, tags, verdict))
}

/// Whether the host that a packet is to go to has just sent it: between two hosts that each take the other for the backend it
/// would go to and fro.
#[inline(always)]
fn came_from(packet: &Packet, next_hop: NextHop) -> bool {
    let Some(ether) = packet.view::<ETHERNET>() else { return false };
    ether.read::<u32>(6) == next_hop.head as u32 && ether.read::<u16>(10) == (next_hop.head >> 32) as u16
}

/// Wraps a packet that there is room for; returns what that is called. What its header is made from is read when it is
/// written: kept over the call that makes room it would only be put onto the stack and fetched from there.
#[inline(always)]
pub fn wrapped<F: Family>(
    ctx: &XdpContext,
    head: &F::Head,
    tables: &Tables,
    to: &To,
    wrap: Wrap,
    hash: u64,
    next_hop: impl Fn() -> NextHop,
) -> Result<Verdict, Verdict> {
    let l3 = to.l3;
    let outside = Outside { tables, to, length: F::length(head), hash };
    match wrap {
        Wrap::IPIP_V4 => {
            const MORE: usize = 20;
            let view = prepend::<{ ETHERNET + MORE + INNER }>(ctx, l3, MORE, next_hop)?;
            outside.v4::<F>(view.part(0), view.part(ETHERNET + MORE), MORE, F::INNER);
        }
        Wrap::IPIP_V6 => {
            const MORE: usize = 40;
            let view = prepend::<{ ETHERNET + MORE + INNER }>(ctx, l3, MORE, next_hop)?;
            outside.v6::<F>(view.part(0), view.part(ETHERNET + MORE), MORE, F::INNER);
        }
        Wrap::TUNNEL_V4 => {
            const MORE: usize = tunnel::OVERHEAD_V4;
            let view = prepend::<{ ETHERNET + MORE + INNER }>(ctx, l3, MORE, next_hop)?;
            outside.v4::<F>(view.part(0), view.part(ETHERNET + MORE), MORE, UDP);
            outside.header::<F>(view.part(ETHERNET + 20));
        }
        Wrap::TUNNEL_V6 => {
            const MORE: usize = tunnel::OVERHEAD_V6;
            let view = prepend::<{ ETHERNET + MORE + INNER }>(ctx, l3, MORE, next_hop)?;
            outside.v6::<F>(view.part(0), view.part(ETHERNET + MORE), MORE, UDP);
            outside.header::<F>(view.part(ETHERNET + 40));
        }
        _ => return Err(Verdict::Corrupt),
    }
    Ok(match (wrap, to.round) {
        (Wrap::IPIP_V4 | Wrap::IPIP_V6, _) => Verdict::ForwardedIpip,
        (_, Round::First) => Verdict::ForwardedTunnel,
        (_, _) => Verdict::PassedOn,
    })
}

/// What outer headers are made from.
struct Outside<'a> {
    tables: &'a Tables,
    to: &'a To,
    /// Of the packet inside.
    length: u32,
    hash: u64,
}

impl Outside<'_> {
    /// Writes an IPv4 header in front of `inner`, `more` bytes before it.
    #[inline(always)]
    fn v4<F: Family>(&self, view: View<{ ETHERNET + 20 }>, inner: View<INNER>, more: usize, proto: u8) {
        let To { id, lines, .. } = self.to;
        let (src, dst) = (backend::source_v4(lines, *id), backend::addr_v4(lines, *id));
        let sum = backend::outer_sum(lines, *id);
        v4(view, [src, dst], F::tos(&inner), self.length + more as u32, proto, sum);
    }

    /// The same with an IPv6 header.
    #[inline(always)]
    fn v6<F: Family>(&self, view: View<{ ETHERNET + 40 }>, inner: View<INNER>, more: usize, proto: u8) {
        let To { id, lines, .. } = self.to;
        let (src, dst) = (backend::source(lines, *id), backend::addr(lines, *id));
        v6(view, [src, dst], F::outer_v6(&inner, self.hash), self.length + more as u32 - 40, proto);
    }

    /// Writes what follows in the tunnel.
    #[inline(always)]
    fn header<F: Family>(&self, view: View<{ 8 + tunnel::HEADER }>) {
        let To { id, lines, other, round, .. } = self.to;
        let config = self.tables.config();
        let header = Header {
            port: config::tunnel_port(&config),
            cluster: config::cluster(&config),
            backend: backend::tunnel_tag(lines, *id),
            other: backend::tunnel_tag(&self.tables.backends(), *other),
            head: tunnel::Head::new(F::INNER, *round),
        };
        header.write(view, self.hash, self.length);
    }
}

/// Bytes of the packet that is wrapped of which the outer header takes something.
const INNER: usize = 4;

/// What the IP header of an answer of our own is made from.
pub struct Outer {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// TOS or traffic class.
    pub tos: u8,
}

impl Outer {
    /// Writes an IPv4 header of `length` bytes with what follows it, and its EtherType.
    #[inline(always)]
    pub fn v4(&self, view: View<{ ETHERNET + 20 }>, length: u32, proto: u8) {
        let addrs = [self.src, self.dst].map(Addr::raw_v4);
        let sum = csum::fold(csum::addresses(addrs[0], addrs[1]));
        v4(view, addrs, self.tos, length, proto, sum);
    }

    /// Writes an IPv6 header with `length` bytes behind it, and its EtherType.
    #[inline(always)]
    pub fn v6(&self, view: View<{ ETHERNET + 40 }>, length: u32, proto: u8) {
        v6(view, [self.src, self.dst], parse::first_v6(self.tos, 0), length, proto);
    }
}

/// Don't fragment: a path that is too narrow must say so (RFC 2003, 3.1).
const DONT_FRAGMENT: u32 = 0x0040_0000;
const HOPS: u8 = 64;

/// [`Outer::v4`] where the sum of the addresses is known.
#[inline(always)]
fn v4(view: View<{ ETHERNET + 20 }>, [src, dst]: [u32; 2], tos: u8, length: u32, proto: u8, sum: u16) {
    let first = 0x45 | (tos as u32) << 8;
    let length = (length as u16).swap_bytes() as u32;
    let third = HOPS as u32 | (proto as u32) << 8;
    // Five words of 16 bits: what the first fold leaves over, the second takes.
    let sum = sum as u32 + first + length + (DONT_FRAGMENT >> 16) + third;
    let sum = (sum & 0xffff) + (sum >> 16);
    let csum = !(sum + (sum >> 16)) << 16;
    view.write(ETHERNET, first | length << 16);
    view.write(ETHERNET + 4, DONT_FRAGMENT);
    view.write(ETHERNET + 8, third | csum);
    view.write(ETHERNET + 12, src);
    view.write(ETHERNET + 16, dst);
    view.write(12, parse::ETHERTYPE_V4);
}

/// [`Outer::v6`] with the first word of the header in wire order: version, traffic class and flow label.
#[inline(always)]
fn v6(view: View<{ ETHERNET + 40 }>, [src, dst]: [Addr; 2], first: u32, length: u32, proto: u8) {
    view.write(ETHERNET, first);
    let second = (length as u16).swap_bytes() as u32 | (proto as u32) << 16 | (HOPS as u32) << 24;
    view.write(ETHERNET + 4, second);
    view.write(ETHERNET + 8, src.hi);
    view.write(ETHERNET + 16, src.lo);
    view.write(ETHERNET + 24, dst.hi);
    view.write(ETHERNET + 32, dst.lo);
    view.write(12, parse::ETHERTYPE_V6);
}

/// UDP and tunnel header (see [`tunnel`]).
struct Header {
    port: u16,
    head: tunnel::Head,
    cluster: u32,
    backend: u32,
    other: u32,
}

impl Header {
    /// Writes both. The UDP checksum stays 0: the inner packet has its own (RFC 6935 allows
    /// it for IPv6, too). The source port carries the flow's hash, for the network's load balancing.
    #[inline(always)]
    fn write(&self, view: View<{ 8 + tunnel::HEADER }>, hash: u64, length: u32) {
        let src = ((hash >> 48) as u16 | 0xc000).swap_bytes();
        let bytes = (length + 8 + tunnel::HEADER as u32) as u16;
        view.write(0, src as u32 | (self.port as u32) << 16);
        view.write(4, bytes.swap_bytes() as u32);
        view.write(8, self.head.0);
        view.write(12, self.cluster);
        view.write(16, self.backend);
        view.write(20, self.other);
    }
}

/// Makes room for `more` bytes between the packet at `l3` and an Ethernet header, and writes that. `WHOLE`: bytes that are
/// viewed afterwards.
#[inline(always)]
fn prepend<const WHOLE: usize>(
    ctx: &XdpContext,
    l3: usize,
    more: usize,
    next_hop: impl Fn() -> NextHop,
) -> Result<View<WHOLE>, Verdict> {
    move_start(ctx, (l3 - ETHERNET) as i32 - more as i32).ok_or(Verdict::NoHeadroom)?;
    let view = Packet::of(ctx).view::<WHOLE>().ok_or(Verdict::Truncated)?;
    let next_hop = next_hop();
    view.write(0, next_hop.head);
    view.write(8, next_hop.tail);
    Ok(view)
}

/// Moves the start of the frame by `bytes`, forward or back. Views die.
#[inline(always)]
pub fn move_start(ctx: &XdpContext, bytes: i32) -> Option<()> {
    // SAFETY: `ctx` is the program's own context; the helper refuses what is out of bounds.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, bytes) } == 0).then_some(())
}

/// Writes the MACs in front of the packet at `l3` and leaves by the next hop's interface.
#[inline(always)]
pub fn send<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    l3: usize,
    next_hop: NextHop,
    tags: Tags,
    verdict: Verdict,
) -> Outcome {
    let mut start = *packet;
    if l3 != ETHERNET {
        if move_start(ctx, (l3 - ETHERNET) as i32).is_none() {
            return Verdict::NoHeadroom.into();
        }
        start = Packet::of(ctx);
    }
    let Some(ether) = start.view::<ETHERNET>() else { return Verdict::Truncated.into() };
    ether.write(0, next_hop.head);
    ether.write(8, next_hop.tail);
    if l3 != ETHERNET {
        ether.write(12, F::ETHERTYPE);
    }
    leave(packet, next_hop, tags, verdict)
}

/// Leaves by the next hop's interface, once it has these tags.
#[inline(always)]
pub fn leave(packet: &Packet, next_hop: NextHop, tags: Tags, verdict: Verdict) -> Outcome {
    if !tags.is_none() {
        let there = if next_hop.ifindex == packet.tx_ifindex { 0 } else { next_hop.ifindex };
        return tags::behind(tags, there, verdict.into());
    }
    if next_hop.ifindex == packet.tx_ifindex {
        return verdict.into();
    }
    redirected(next_hop.ifindex, verdict)
}

/// Leaves by another interface than it came by.
#[inline(always)]
pub fn redirected(ifindex: u32, verdict: Verdict) -> Outcome {
    match maps::DEVICES.redirect(ifindex, 0) {
        Ok(action) => Outcome { verdict, action },
        Err(_) => Verdict::NoDevice.into(),
    }
}

/// Goes back to where it came from, MACs swapped already, with the tags that it has lost.
#[inline(always)]
pub fn back(ctx: &XdpContext, packet: &Packet, carry: &Carry, verdict: Verdict) -> Outcome {
    let ifindex = if carry.back == 0 { ctx.ingress_ifindex() as u32 } else { carry.back };
    leave(packet, NextHop { head: 0, tail: 0, ifindex }, carry.lost_tags(), verdict)
}

/// Asks the kernel's own routing for a next hop that user space has not resolved yet.
#[cold]
#[inline(never)]
pub fn resolve(ctx: *mut core::ffi::c_void, ifindex: u32, to: &Addr, hop: &mut NextHop) -> bool {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut fib: Fib = unsafe { core::mem::zeroed() };
    fib.ifindex = ifindex;
    if to.is_v4() {
        fib.family = 2;
        fib.__bindgen_anon_4.ipv4_dst = to.raw_v4();
    } else {
        fib.family = 10;
        fib.__bindgen_anon_4.ipv6_dst =
            [to.hi as u32, (to.hi >> 32) as u32, to.lo as u32, (to.lo >> 32) as u32];
    }
    if let Some(row) = maps::counts() {
        row.event(Event::Fib);
    }
    // SAFETY: `ctx` is the program's own context and the struct is passed with its size.
    let found = unsafe { bpf_fib_lookup(ctx, &mut fib, size_of::<Fib>() as i32, 0) };
    if found != 0 {
        return false;
    }
    *hop = NextHop::new(Mac(fib.dmac), Mac(fib.smac), fib.ifindex);
    true
}

/// Context as the helpers want it.
#[inline(always)]
pub fn raw(ctx: &XdpContext) -> *mut core::ffi::c_void {
    ctx.ctx.cast()
}

const _: () = assert!(TCP == 6 && UDP == 17);
