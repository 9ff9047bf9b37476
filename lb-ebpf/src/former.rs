//! Connections to the proxy, to a backend of its host or to one by `nat`, that were made at another agent: an announced VIP
//! moves, they do not.
//!
//! A segment that no socket of this host knows, nor, where its backend would be translated to, the memory of such flows, goes,
//! by its MAC alone, to the agent that held the VIP before us. That agent has the VIP as a local address and the socket, or
//! remembers the flow, and answers straight to the client. Left here, as ever, are handshakes, which begin here, and ICMP errors: what one says of a path is
//! lost for these connections.

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    btf_maps::{Array, HashMap},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{Flow, TCP, Verdict, backend::NextHop, maps as names};

use crate::{
    carry::Carry,
    end, finish_carried,
    forward::{self, Outcome},
    maps,
    parse::{ETHERNET, Family, V4, V6, tcp_flag},
};

/// `BPF_F_NO_PREALLOC`: memory for what there is.
const AS_NEEDED: usize = 1;
/// `BPF_F_CURRENT_NETNS`.
const OUR_NAMESPACE: u64 = u64::MAX;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;
/// A MAC within a word in wire order.
const MAC: u64 = 0xffff_ffff_ffff;

#[btf_map]
static FORMERS: HashMap<[u64; 3], u64, { names::FORMERS_ENTRIES }, AS_NEEDED> = HashMap::new();
#[btf_map]
static AGENTS: HashMap<u64, u8, { names::AGENTS_ENTRIES }, AS_NEEDED> = HashMap::new();
#[btf_map]
static FORMERS_KNOWN: Array<u64, 1> = Array::new();

/// Whether a packet may be of a connection that a former holder has. One load, as long as no VIP has
/// moved here.
#[inline(always)]
pub fn may_know(flow: &Flow, tcp_flags: u8) -> bool {
    if flow.proto != TCP as u32 || tcp_flags & tcp_flag::SYN != 0 {
        return false;
    }
    // SAFETY: the array has one value, which user space stores whole.
    FORMERS_KNOWN.get_ptr(0).is_some_and(|known| unsafe { known.read_volatile() } != 0)
}

/// Whether a segment is one to hand on, as far as that is not a matter of sockets.
#[inline(always)]
pub fn is_asked(ctx: &XdpContext, carry: &Carry) -> bool {
    holder(ctx, carry).is_some()
}

/// Whether packets from here were handed on by another agent.
#[inline(always)]
pub fn is_agent(sender: NextHop) -> bool {
    AGENTS.get_ptr(sender.head & MAC).is_some()
}

/// MAC of the former holder, for a frame that is to go there, and our own.
#[inline(always)]
fn holder(ctx: &XdpContext, carry: &Carry) -> Option<(u64, u64)> {
    let ether = carry.packet(ctx).view::<ETHERNET>()?;
    let (to, from) = (ether.read::<u64>(0) & MAC, ether.read::<u64>(6) & MAC);
    let former = FORMERS.get_ptr(names::former_key(carry.flow.dst, to))?;
    // SAFETY: a map entry stays readable for the whole run; one that is reused in this moment is another agent's.
    let former = unsafe { former.read_volatile() };
    // What another agent sent here is not sent on: two that take each other for the former holder would go on for ever.
    AGENTS.get_ptr(from).is_none().then_some((former, to))
}

/// A segment without SYN.
#[xdp(frags)]
pub fn penstock_former(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &(*scratch).carry };
    let sent =
        if carry.flow.src.is_v4() { send_back::<V4>(&ctx, carry) } else { send_back::<V6>(&ctx, carry) };
    let Outcome { verdict, action } = sent.unwrap_or(Verdict::Punted.into());
    finish_carried(&ctx, verdict, action)
}

/// `None`: it is the stack's.
#[inline(always)]
fn send_back<F: Socket>(ctx: &XdpContext, carry: &Carry) -> Option<Outcome> {
    let (former, to) = holder(ctx, carry)?;
    if is_known::<F>(ctx, carry) {
        return None;
    }
    let packet = carry.packet(ctx);
    let ether = packet.view::<ETHERNET>()?;
    ether.write(0, former | to << 48);
    ether.write(8, (to >> 16) as u32);
    Some(forward::back(ctx, &packet, carry, Verdict::ForwardedFormer))
}

/// What looking for a socket asks of an IP version.
trait Socket: Family {
    /// Bytes of its fixed header.
    const HEAD: usize;
    /// Bytes of [`bpf_sock_tuple`] that it takes.
    const TUPLE: u32;

    /// The flow as the helper wants it.
    fn tuple(flow: &Flow) -> bpf_sock_tuple;
}

impl Socket for V4 {
    const HEAD: usize = 20;
    const TUPLE: u32 = 12;

    #[inline(always)]
    fn tuple(flow: &Flow) -> bpf_sock_tuple {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        tuple.__bindgen_anon_1.ipv4.saddr = flow.src.raw_v4();
        tuple.__bindgen_anon_1.ipv4.daddr = flow.dst.raw_v4();
        tuple.__bindgen_anon_1.ipv4.sport = flow.ports as u16;
        tuple.__bindgen_anon_1.ipv4.dport = flow.dst_port();
        tuple
    }
}

impl Socket for V6 {
    const HEAD: usize = 40;
    const TUPLE: u32 = 36;

    #[inline(always)]
    fn tuple(flow: &Flow) -> bpf_sock_tuple {
        let words = |addr: lb_common::Addr| {
            [addr.hi as u32, (addr.hi >> 32) as u32, addr.lo as u32, (addr.lo >> 32) as u32]
        };
        // SAFETY: as above.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        tuple.__bindgen_anon_1.ipv6.saddr = words(flow.src);
        tuple.__bindgen_anon_1.ipv6.daddr = words(flow.dst);
        tuple.__bindgen_anon_1.ipv6.sport = flow.ports as u16;
        tuple.__bindgen_anon_1.ipv6.dport = flow.dst_port();
        tuple
    }
}

/// Whether this host has the connection: a socket other than a listener, be it one that was closed a moment ago or whose
/// handshake is under way. A handshake that is answered by a SYN cookie leaves no socket until its last segment.
#[inline(always)]
fn is_known<F: Socket>(ctx: &XdpContext, carry: &Carry) -> bool {
    let mut tuple = F::tuple(&carry.flow);
    // SAFETY: `ctx` is the program's own context, and the tuple has the size that is told.
    let socket = unsafe { bpf_skc_lookup_tcp(forward::raw(ctx), &mut tuple, F::TUPLE, OUR_NAMESPACE, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the socket is there until it is released.
    let state = unsafe { &raw const (*socket).state };
    // SAFETY: as above; it changes meanwhile, and is read once.
    let state = unsafe { state.read_volatile() };
    let known = state != LISTEN || ends_cookie::<F>(ctx, carry, socket.cast());
    // SAFETY: it came by the lookup, and is not used any more.
    unsafe { bpf_sk_release(socket.cast()) };
    known
}

/// Whether a segment ends a handshake that this listener answered by a SYN cookie.
#[inline(always)]
fn ends_cookie<F: Socket>(ctx: &XdpContext, carry: &Carry, listener: *mut core::ffi::c_void) -> bool {
    // A later fragment has no TCP header.
    if carry.l4 == 0 {
        return false;
    }
    let packet = carry.packet(ctx);
    let (Some(ip), Some(tcp)) =
        (packet.view_at::<40>(carry.l3 as usize), packet.view_at::<20>(carry.l4 as usize))
    else {
        return false;
    };
    // SAFETY: both headers are in the packet. 40 bytes are there behind either IP header's begin, as TCP's follows.
    let valid =
        unsafe { bpf_tcp_check_syncookie(listener, ip.pointer(), F::HEAD as u32, tcp.pointer().cast(), 20) };
    valid == 0
}
