//! Shows packets to `penstock capture`: what became of each, and its first bytes as it left.
//!
//! A program of its own behind a tail call: the ladder tests one word of the configuration line,
//! and pays for nothing else while nobody looks.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    },
    macros::xdp,
    programs::{TcContext, XdpContext},
};
use lb_common::{
    Addr, Flow, TCP, UDP, Verdict,
    capture::{BURST_NS, Filter, HEAD, Handover, Head, SNAP, state},
    config,
    maps::Program,
    tunnel,
};

use crate::{
    maps::{self, Shot, Tables},
    packet,
    parse::{ETHERNET, ETHERTYPE_QINQ, ETHERTYPE_VLAN},
};

/// `BPF_RB_NO_WAKEUP`: the reader looks by itself, often enough.
const NO_WAKEUP: u64 = 1;

/// Where the flow of a packet stands as it came.
#[derive(Clone, Copy)]
pub enum Origin {
    /// In the packet, perhaps behind an outer header.
    Packet = 0,
    /// In the carry, too: the packet may have been translated.
    Carry = 1,
}

/// Hands a packet over to [`penstock_capture`] while somebody captures; returns otherwise.
#[inline(always)]
pub fn show(ctx: &XdpContext, tables: &Tables, verdict: Verdict, action: u32, origin: Origin) {
    if !config::capturing(&tables.config()) {
        return;
    }
    core::hint::cold_path();
    let Some(scratch) = maps::scratch() else { return };
    let handover =
        Handover { verdict: verdict as u8, action: action as u8, carried: origin as u8, padding: 0 };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    unsafe { (*scratch).handover = handover };
    maps::call(ctx, Program::Capture);
}

/// The last program of a packet while somebody captures.
#[xdp(frags)]
pub fn penstock_capture(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return xdp_action::XDP_ABORTED };
    // SAFETY: as above.
    let handover = unsafe { (*scratch).handover };
    let _ = capture(&ctx, handover);
    handover.action as u32
}

/// Shows a packet that leaves. (A tail call leads to programs of the same kind alone.)
#[inline(never)]
pub fn show_out(ctx: &TcContext, verdict: Verdict) {
    let tables = maps::tables();
    if config::capturing(&tables.config()) {
        let action = xdp_action::XDP_PASS as u8;
        let _ = capture(ctx, Handover { verdict: verdict as u8, action, carried: 0, padding: 0 });
    }
}

/// A packet on its way in or out.
trait Frame {
    /// Bytes of it.
    fn bytes(&self) -> u64;
    /// Copies so many of them.
    fn load(&self, to: &mut [u8; SNAP], bytes: u32) -> bool;
    /// Interface that it came by, or goes by.
    fn ifindex(&self) -> u32;
}

impl Frame for XdpContext {
    #[inline(always)]
    fn bytes(&self) -> u64 {
        // SAFETY: this is the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }

    #[inline(always)]
    fn load(&self, to: &mut [u8; SNAP], bytes: u32) -> bool {
        // SAFETY: as above; the buffer has SNAP bytes, and the verifier proves that `bytes` is no more.
        unsafe { bpf_xdp_load_bytes(self.ctx, 0, to.as_mut_ptr().cast(), bytes) == 0 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }
}

impl Frame for TcContext {
    #[inline(always)]
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    #[inline(always)]
    fn load(&self, to: &mut [u8; SNAP], bytes: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), 0, to.as_mut_ptr().cast(), bytes) == 0 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the verifier knows the context's fields.
        unsafe { (*self.skb.skb).ifindex }
    }
}

#[inline(always)]
fn capture(ctx: &impl Frame, handover: Handover) -> Option<()> {
    let filter = Filter::read(&maps::tables().config());
    if !filter.wants(handover.verdict) {
        return None;
    }
    let (shot, state) = (maps::shot()?, maps::capture_state()?);
    // SAFETY: the value is this CPU's own, and XDP does not nest.
    let shot = unsafe { &mut *shot };
    let length = ctx.bytes();
    // The headers are read from the copy; what is shown of it is decided below.
    let loaded = bounded(length)?;
    if !ctx.load(&mut shot.bytes, loaded as u32) {
        return None;
    }
    let at = l3(&shot.bytes);
    let skip = overhead(&shot.bytes, handover.verdict);
    // The outer flow first: what is read last is what the event says.
    let mut concerned = if skip == 0 { 0 } else { penstock_shown_flow(at, loaded) };
    concerned |= penstock_shown_flow(at + skip, loaded);
    if handover.carried != 0 {
        concerned |= penstock_carried_flow();
    }
    if concerned == 0 {
        return None;
    }

    state[state::MATCHED] += 1;
    if filter.every > 1 && state[state::MATCHED] % filter.every as u64 != 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let next = state[state::NEXT_NS].max(now);
    if next > now.wrapping_add(BURST_NS) {
        state[state::HELD_BACK] += 1;
        return None;
    }
    state[state::NEXT_NS] = next.wrapping_add(filter.interval_ns);

    let shown = bounded(loaded.min(filter.snap as u64))?;
    shot.head.time_ns = now;
    shot.head.ifindex = ctx.ifindex();
    shot.head.length = length as u32;
    shot.head.captured = shown as u16;
    shot.head.verdict = handover.verdict;
    shot.head.action = handover.action;
    shot.head.padding = 0;
    let size = HEAD + shown as usize;
    // SAFETY: the event has HEAD + SNAP bytes; the verifier proves that `size` is no more.
    let event = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(shot).cast::<u8>(), size) };
    if maps::CAPTURED.output_untyped::<[u8]>(event, NO_WAKEUP).is_err() {
        state[state::LOST] += 1;
    }
    Some(())
}

/// At most [`SNAP`], and not nothing.
#[inline(always)]
fn bounded(bytes: u64) -> Option<u64> {
    packet::some_bytes(bytes.min(SNAP as u64), SNAP as u64)
}

/// Where the IP header begins, behind up to two tags.
#[inline(always)]
fn l3(bytes: &[u8; SNAP]) -> u64 {
    let is_tag = |kind: u16| kind == ETHERTYPE_VLAN || kind == ETHERTYPE_QINQ;
    let first = is_tag(read(bytes, ETHERNET as u64 - 2));
    let second = first && is_tag(read(bytes, ETHERNET as u64 + 2));
    ETHERNET as u64 + 4 * (first as u64 + second as u64)
}

/// Bytes that a packet with this verdict was wrapped in.
#[inline(always)]
fn overhead(bytes: &[u8; SNAP], verdict: u8) -> u64 {
    let is_v4 = read::<u8>(bytes, l3(bytes)) >> 4 == 4;
    if verdict == Verdict::ForwardedIpip as u8 {
        return if is_v4 { 20 } else { 40 };
    }
    if verdict == Verdict::ForwardedTunnel as u8 || verdict == Verdict::PassedOn as u8 {
        return if is_v4 { tunnel::OVERHEAD_V4 } else { tunnel::OVERHEAD_V6 } as u64;
    }
    0
}

/// Puts the flow of the IP packet at `at` into the event; tells whether it is asked for. A global
/// function as the next one, which the verifier looks at once: inlined three times, the branches
/// of all multiply.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_shown_flow(at: u64, loaded: u64) -> u32 {
    let tables = maps::tables();
    let Some(shot) = maps::shot() else { return 0 };
    // SAFETY: the value is this CPU's own, and XDP does not nest.
    let Shot { head, bytes } = unsafe { &mut *shot };
    let mut flow = Flow { src: Addr::default(), dst: Addr::default(), ports: 0, proto: 0 };
    let version = read::<u8>(bytes, at) >> 4;
    let mut transport = 0;
    // Beyond what was loaded stand the bytes of an earlier packet.
    if version == 4 && at + 20 <= loaded {
        flow.src = Addr::v4(read(bytes, at + 12));
        flow.dst = Addr::v4(read(bytes, at + 16));
        flow.proto = read::<u8>(bytes, at + 9) as u32;
        let is_later_fragment = read::<u16>(bytes, at + 6) & 0xff1f != 0;
        if !is_later_fragment {
            transport = at + 4 * (read::<u8>(bytes, at) & 15) as u64;
        }
    } else if version == 6 && at + 40 <= loaded {
        flow.src = Addr { hi: read(bytes, at + 8), lo: read(bytes, at + 16) };
        flow.dst = Addr { hi: read(bytes, at + 24), lo: read(bytes, at + 32) };
        flow.proto = read::<u8>(bytes, at + 6) as u32;
        transport = at + 40;
    }
    let has_ports = flow.proto == TCP as u32 || flow.proto == UDP as u32;
    if has_ports && transport != 0 && transport + 4 <= loaded {
        flow.ports = read(bytes, transport);
    }
    head.flow = flow;
    Filter::read(&tables.config()).concerns(&flow) as u32
}

/// Puts the flow of the carry into the event; tells whether it is asked for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_carried_flow() -> u32 {
    let tables = maps::tables();
    let (Some(shot), Some(scratch)) = (maps::shot(), maps::scratch()) else {
        return 0;
    };
    // SAFETY: as above.
    let flow = unsafe { (*scratch).carry.flow };
    // SAFETY: as above.
    unsafe { (*shot).head.flow = flow };
    Filter::read(&tables.config()).concerns(&flow) as u32
}

/// Reads an integer in wire order. Headers begin within the first half of the buffer.
#[inline(always)]
fn read<T: crate::packet::Word>(bytes: &[u8; SNAP], at: u64) -> T {
    let at = at as usize & (SNAP / 2 - 1);
    // SAFETY: the place and what follows lie within the buffer.
    unsafe { bytes.as_ptr().wrapping_add(at).cast::<T>().read_unaligned() }
}

const _: () = assert!(size_of::<Head>() == HEAD);
