//! Sends a packet on: Ethernet header, an outer header where the mode wants one, then the same
//! interface or another one.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, xdp_action},
    helpers::{bpf_fib_lookup, bpf_xdp_adjust_head},
    programs::XdpContext,
};
use lb_common::{
    Addr, BackendId, Mac, Mode, TCP, Tags, UDP, Verdict,
    backend::{self, Identity, NextHop},
    config, csum,
    steer::{Choice, Memory},
    tunnel::{self, Round},
    verdict::Event,
};

use crate::{
    carry::{At, Carry},
    maps::{self, Pair, Tables},
    packet::Packet,
    parse::{ETHERNET, Family},
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
    /// Mode, port, MTU.
    pub identity: Identity,
    /// VLAN tags that its frames leave with.
    pub tags: Tags,
}

/// Reads the way to a backend; asks the kernel's routing where user space has not resolved it.
#[inline(always)]
pub fn way(ctx: &XdpContext, tables: &Tables, id: BackendId) -> Result<Way, Verdict> {
    let backends = tables.backends();
    let known = backend::next_hop(&backends, id);
    let identity = backend::identity(&backends, id);
    if known.ifindex != 0 {
        return Ok(Way { next_hop: known, identity, tags: Tags::NONE });
    }
    let (next_hop, tags) = backend::tagged_next_hop(&backends, id);
    if next_hop.ifindex != 0 {
        return Ok(Way { next_hop, identity, tags });
    }
    // A variable of its own: whose address is taken, lives in memory.
    let mut next_hop = known;
    let ifindex = ctx.ingress_ifindex() as u32;
    if !resolve(raw(ctx), ifindex, &backend::addr(&backends, id), &mut next_hop) {
        return Err(Verdict::Unresolved);
    }
    Ok(Way { next_hop, identity, tags: Tags::NONE })
}

/// Forwards a packet whose addresses stay as they are: by its MAC alone, or within another packet.
/// Tags that it came with are left behind. `Err`: why not; with [`Verdict::TooBig`] the size that would have fitted.
#[inline(always)]
pub fn untouched<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    choice: &Choice,
    hash: u64,
    at: At,
) -> Result<Outcome, (Verdict, u16)> {
    sent_on::<F>(ctx, packet, head, tables, choice, hash, at, Round::First)
}

/// The same for a packet that balancers may have sent on before.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "they are registers, not a structure in memory")]
pub fn sent_on<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    choice: &Choice,
    hash: u64,
    at: At,
    round: Round,
) -> Result<Outcome, (Verdict, u16)> {
    let way = way(ctx, tables, choice.backend).map_err(|verdict| (verdict, 0))?;
    let lines = tables.backend(choice.backend);
    let to = To { id: choice.backend, lines, other: choice.other, round, way, l3: at.l3 };
    along::<F>(ctx, packet, head, tables, &to, hash)
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
    /// The way there.
    pub way: Way,
    /// Where the IP header begins; whatever is in front of it stays behind.
    pub l3: usize,
}

/// [`untouched`] where the way is known.
#[inline(always)]
pub fn along<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    tables: &Tables,
    to: &To,
    hash: u64,
) -> Result<Outcome, (Verdict, u16)> {
    let To { id, lines, other, round, way: Way { next_hop, identity, tags }, l3 } = *to;
    let mtu = identity.mtu() as u32;
    let length = F::length(head);
    let mode = identity.mode();
    if mode == Mode::L2 as u8 {
        if length > mtu {
            return Err((Verdict::TooBig, mtu as u16));
        }
        return Ok(send::<F>(ctx, packet, l3, next_hop, tags, Verdict::ForwardedL2));
    }
    let outer = Outer {
        src: backend::source(&lines, id),
        dst: backend::addr(&lines, id),
        tos: F::tos(head),
        inner: F::INNER,
        hash,
    };
    let is_v4 = !identity.is_outer_v6();
    let sum = backend::outer_sum(&lines, id);
    if mode == Mode::Ipip as u8 {
        let overhead = if is_v4 { 20 } else { 40 };
        if length + overhead > mtu {
            return Err((Verdict::TooBig, mtu.saturating_sub(overhead) as u16));
        }
        let wrapped = if is_v4 {
            wrap::<{ ETHERNET + 20 }>(ctx, l3, 20, next_hop, |view| {
                outer.v4_of(view, length + 20, outer.inner, sum)
            })
        } else {
            wrap::<{ ETHERNET + 40 }>(ctx, l3, 40, next_hop, |view| outer.v6(view, length, outer.inner))
        };
        return wrapped
            .map(|()| leave(packet, next_hop, tags, Verdict::ForwardedIpip))
            .map_err(|verdict| (verdict, 0));
    }
    if mode == Mode::Tunnel as u8 {
        let overhead = if is_v4 { tunnel::OVERHEAD_V4 } else { tunnel::OVERHEAD_V6 } as u32;
        if length + overhead > mtu {
            return Err((Verdict::TooBig, mtu.saturating_sub(overhead) as u16));
        }
        let config = tables.config();
        let header = Header {
            port: config::tunnel_port(&config),
            cluster: tunnel::cluster(config::hash_key(&config)),
            backend: backend::tunnel_tag(&lines, id),
            other: backend::tunnel_tag(&tables.backends(), other),
            round,
        };
        let wrapped = if is_v4 {
            wrap::<{ ETHERNET + tunnel::OVERHEAD_V4 }>(ctx, l3, tunnel::OVERHEAD_V4, next_hop, |view| {
                outer.v4_of(view, length + tunnel::OVERHEAD_V4 as u32, UDP, sum);
                header.write(view, ETHERNET + 20, &outer, length);
            })
        } else {
            wrap::<{ ETHERNET + tunnel::OVERHEAD_V6 }>(ctx, l3, tunnel::OVERHEAD_V6, next_hop, |view| {
                outer.v6(view, length + tunnel::OVERHEAD_V6 as u32 - 40, UDP);
                header.write(view, ETHERNET + 40, &outer, length);
            })
        };
        let verdict = if let Round::First = round { Verdict::ForwardedTunnel } else { Verdict::PassedOn };
        return wrapped.map(|()| leave(packet, next_hop, tags, verdict)).map_err(|verdict| (verdict, 0));
    }
    Err((Verdict::Corrupt, 0))
}

/// What an IP header of our own is made from.
pub struct Outer {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Protocol number of the packet within, where there is one.
    pub inner: u8,
    /// Hash of its flow.
    pub hash: u64,
}

type View<const SIZE: usize> = crate::packet::View<SIZE>;

/// Don't fragment: a path that is too narrow must say so (RFC 2003, 3.1).
const DONT_FRAGMENT: u32 = 0x0040_0000;
const HOPS: u8 = 64;

impl Outer {
    /// Writes an IPv4 header of `length` bytes with what follows it, and its EtherType.
    #[inline(always)]
    pub fn v4<const SIZE: usize>(&self, view: View<SIZE>, length: u32, proto: u8) {
        let sum = csum::fold(csum::addresses(self.src.raw_v4(), self.dst.raw_v4()));
        self.v4_of(view, length, proto, sum);
    }

    /// The same where the sum of the addresses is known.
    #[inline(always)]
    fn v4_of<const SIZE: usize>(&self, view: View<SIZE>, length: u32, proto: u8, sum: u16) {
        let first = 0x45 | (self.tos as u32) << 8;
        let length = (length as u16).swap_bytes() as u32;
        let third = HOPS as u32 | (proto as u32) << 8;
        // Five words of 16 bits: what the first fold leaves over, the second takes.
        let sum = sum as u32 + first + length + (DONT_FRAGMENT >> 16) + third;
        let sum = (sum & 0xffff) + (sum >> 16);
        let csum = !(sum + (sum >> 16)) << 16;
        view.write(ETHERNET, first | length << 16);
        view.write(ETHERNET + 4, DONT_FRAGMENT);
        view.write(ETHERNET + 8, third | csum);
        view.write(ETHERNET + 12, self.src.raw_v4());
        view.write(ETHERNET + 16, self.dst.raw_v4());
        view.write(12, crate::parse::ETHERTYPE_V4);
    }

    /// Writes an IPv6 header with `length` bytes behind it. The flow label spreads the flows of one
    /// pair of hosts over paths and queues (RFC 6438).
    #[inline(always)]
    pub fn v6<const SIZE: usize>(&self, view: View<SIZE>, length: u32, proto: u8) {
        let first = 6u32 << 28 | (self.tos as u32) << 20 | (self.hash >> 44) as u32;
        view.write(ETHERNET, first.swap_bytes());
        let second = (length as u16).swap_bytes() as u32 | (proto as u32) << 16 | (HOPS as u32) << 24;
        view.write(ETHERNET + 4, second);
        view.write(ETHERNET + 8, self.src.hi);
        view.write(ETHERNET + 16, self.src.lo);
        view.write(ETHERNET + 24, self.dst.hi);
        view.write(ETHERNET + 32, self.dst.lo);
        view.write(12, crate::parse::ETHERTYPE_V6);
    }
}

/// UDP and tunnel header (see [`tunnel`]).
struct Header {
    port: u16,
    cluster: u32,
    backend: u32,
    other: u32,
    round: Round,
}

impl Header {
    /// Writes both at `at`. The UDP checksum stays 0: the inner packet has its own (RFC 6935 allows
    /// it for IPv6, too). The source port carries the flow's hash, for the network's load balancing.
    #[inline(always)]
    fn write<const SIZE: usize>(&self, view: View<SIZE>, at: usize, outer: &Outer, length: u32) {
        let src = ((outer.hash >> 48) as u16 | 0xc000).swap_bytes();
        let bytes = (length + 8 + tunnel::HEADER as u32) as u16;
        view.write(at, src as u32 | (self.port as u32) << 16);
        view.write(at + 4, bytes.swap_bytes() as u32);
        view.write(at + 8, tunnel::Head::new(outer.inner, self.round).0);
        view.write(at + 12, self.cluster);
        view.write(at + 16, self.backend);
        view.write(at + 20, self.other);
    }
}

/// Makes room in front of the packet at `l3` for an outer header of `SIZE` bytes with Ethernet and
/// fills it.
#[inline(always)]
fn wrap<const SIZE: usize>(
    ctx: &XdpContext,
    l3: usize,
    overhead: usize,
    next_hop: NextHop,
    fill: impl FnOnce(View<SIZE>),
) -> Result<(), Verdict> {
    move_start(ctx, (l3 - ETHERNET) as i32 - overhead as i32).ok_or(Verdict::NoHeadroom)?;
    let view = Packet::of(ctx).view::<SIZE>().ok_or(Verdict::Truncated)?;
    view.write(0, next_hop.head);
    view.write(8, next_hop.tail);
    fill(view);
    Ok(())
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
    match maps::DEVICES.redirect(next_hop.ifindex, 0) {
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
