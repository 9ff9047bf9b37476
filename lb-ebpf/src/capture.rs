//! Shows packets to `penstock capture`: what became of each, and its first bytes as it left.
//!
//! A program of its own behind a tail call: the ladder tests one word of the configuration line,
//! and pays for nothing else while nobody looks.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    },
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    Addr, Flow, TCP, UDP, Verdict,
    capture::{BURST_NS, Filter, HEAD, Handover, Head, SNAP, state},
    config,
    maps::Program,
    tunnel,
};

use crate::{
    maps::{self, Tables},
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
    let (handover, carried) = unsafe { ((*scratch).handover, (*scratch).carry.flow) };
    let carried = (handover.carried != 0).then_some(carried);
    let _ = capture(&ctx, handover, carried);
    handover.action as u32
}

#[inline(always)]
fn capture(ctx: &XdpContext, handover: Handover, carried: Option<Flow>) -> Option<()> {
    let filter = Filter::read(&maps::tables()?.config());
    if !filter.wants(handover.verdict) {
        return None;
    }
    let (shot, state) = (maps::shot()?, maps::capture_state()?);
    // SAFETY: the value is this CPU's own, and XDP does not nest.
    let shot = unsafe { &mut *shot };
    // SAFETY: `ctx` is the program's own context.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    // The headers are read from the copy; what is shown of it is decided below.
    let loaded = length.min(SNAP as u32);
    // SAFETY: the buffer has SNAP bytes.
    if loaded == 0 || unsafe { bpf_xdp_load_bytes(ctx.ctx, 0, shot.bytes.as_mut_ptr().cast(), loaded) } != 0 {
        return None;
    }
    shot.head.flow = flow(&shot.bytes, l3(&shot.bytes), loaded);
    let outer = filter.concerns(&shot.head.flow);
    let skip = overhead(&shot.bytes, handover.verdict);
    if skip != 0 {
        shot.head.flow = flow(&shot.bytes, l3(&shot.bytes) + skip, loaded);
    }
    let inner = filter.concerns(&shot.head.flow);
    if let Some(carried) = carried {
        shot.head.flow = carried;
    }
    if !(outer || inner || filter.concerns(&shot.head.flow)) {
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

    let shown = loaded.min(filter.snap as u32);
    shot.head.time_ns = now;
    shot.head.ifindex = ctx.ingress_ifindex() as u32;
    shot.head.length = length;
    shot.head.captured = shown as u16;
    shot.head.verdict = handover.verdict;
    shot.head.action = handover.action;
    shot.head.padding = 0;
    let size = HEAD + (shown & (2 * SNAP as u32 - 1)) as usize;
    // SAFETY: the event has HEAD + SNAP bytes; the verifier proves that `size` is no more.
    let event = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(shot).cast::<u8>(), size) };
    if maps::CAPTURED.output_untyped::<[u8]>(event, NO_WAKEUP).is_err() {
        state[state::LOST] += 1;
    }
    Some(())
}

/// Where the IP header begins, behind up to two tags.
#[inline(always)]
fn l3(bytes: &[u8; SNAP]) -> usize {
    let mut at = ETHERNET;
    for _ in 0..2 {
        let kind = read::<u16>(bytes, at - 2);
        if kind != ETHERTYPE_VLAN && kind != ETHERTYPE_QINQ {
            break;
        }
        at += 4;
    }
    at
}

/// Bytes that a packet with this verdict was wrapped in.
#[inline(always)]
fn overhead(bytes: &[u8; SNAP], verdict: u8) -> usize {
    let is_v4 = bytes[ETHERNET] >> 4 == 4;
    if verdict == Verdict::ForwardedIpip as u8 {
        return if is_v4 { 20 } else { 40 };
    }
    if verdict == Verdict::ForwardedTunnel as u8 || verdict == Verdict::PassedOn as u8 {
        return if is_v4 { tunnel::OVERHEAD_V4 } else { tunnel::OVERHEAD_V6 };
    }
    0
}

/// The flow of the IP packet at `at`; protocol 0 where there is none.
#[inline(never)]
fn flow(bytes: &[u8; SNAP], at: usize, loaded: u32) -> Flow {
    let none = Flow { src: Addr::default(), dst: Addr::default(), ports: 0, proto: 0 };
    let loaded = loaded as usize;
    // Beyond what was loaded stand the bytes of an earlier packet.
    let (mut flow, transport) = match read::<u8>(bytes, at) >> 4 {
        4 if at + 20 <= loaded => {
            let proto = read::<u8>(bytes, at + 9) as u32;
            let (src, dst) = (read::<u32>(bytes, at + 12), read::<u32>(bytes, at + 16));
            let later = read::<u16>(bytes, at + 6) & 0xff1f != 0;
            let head = if later { SNAP } else { 4 * (read::<u8>(bytes, at) & 15) as usize };
            (Flow { src: Addr::v4(src), dst: Addr::v4(dst), proto, ports: 0 }, at + head)
        }
        6 if at + 40 <= loaded => {
            let src = Addr { hi: read(bytes, at + 8), lo: read(bytes, at + 16) };
            let dst = Addr { hi: read(bytes, at + 24), lo: read(bytes, at + 32) };
            (Flow { src, dst, proto: read::<u8>(bytes, at + 6) as u32, ports: 0 }, at + 40)
        }
        _ => return none,
    };
    let has_ports = flow.proto == TCP as u32 || flow.proto == UDP as u32;
    if has_ports && transport + 4 <= loaded {
        flow.ports = read::<u32>(bytes, transport);
    }
    flow
}

/// Reads an integer in wire order; one that would end beyond the buffer from another place.
#[inline(always)]
fn read<T: crate::packet::Word>(bytes: &[u8; SNAP], at: usize) -> T {
    let at = (at & (SNAP - 1)).min(SNAP - size_of::<T>());
    // SAFETY: the place and what follows lie within the buffer.
    unsafe { bytes.as_ptr().wrapping_add(at).cast::<T>().read_unaligned() }
}

const _: () = assert!(size_of::<Head>() == HEAD);
