//! Floors and wrappers for `cargo xtask bench l4`; never attached to an interface but by it.
//!
//! BPF_PROG_TEST_RUN does not reset the packet between repeats, so a program that encapsulates or
//! rewrites addresses would see its own output the second time. The wrappers undo that first and
//! then tail call the program: what runs is what is attached elsewhere, not a copy of it that the
//! compiler could fit to its wrapper. A wrapper that does not call on measures itself.
//!
//! Words are written as wide as the program reads them: a load that spans two stores waits for
//! both to reach the cache, a few nanoseconds that no real packet costs.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{bench::Generator, tunnel};

use crate::{
    packet::{Packet, View, Word},
    parse::ETHERNET,
};

#[btf_map]
static BENCH_GENERATOR: Array<Generator, 1> = Array::new();
/// The program to run.
#[btf_map]
static BENCH_PROGRAM: ProgramArray<1> = ProgramArray::new();
/// Frames that reached the sink.
#[btf_map]
static BENCH_SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Floor: the test loop alone.
#[xdp(frags)]
pub fn bench_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Floor: the least a forwarder can do.
#[xdp(frags)]
pub fn bench_swap(ctx: XdpContext) -> u32 {
    let packet = Packet::of(&ctx);
    let Some(ether) = packet.view::<ETHERNET>() else { return xdp_action::XDP_PASS };
    let (head, tail): (u64, u32) = (ether.read(0), ether.read(8));
    let source = head >> 48 | (tail as u64) << 16;
    ether.write(0, source | head << 48);
    ether.write(8, (head >> 16) as u32);
    xdp_action::XDP_TX
}

/// Floor: two moves of the packet's start, of which an encapsulation makes one and undoing it the
/// other.
#[xdp(frags)]
pub fn bench_adjust(ctx: XdpContext) -> u32 {
    adjust(&ctx, -20);
    adjust(&ctx, 20);
    xdp_action::XDP_TX
}

/// The same packet every time, without its encapsulation.
#[xdp(frags)]
pub fn bench_undo(ctx: XdpContext) -> u32 {
    run::<ETHERNET>(&ctx, |_, _| {})
}

/// Another flow every time.
#[xdp(frags)]
pub fn bench_vary_v4(ctx: XdpContext) -> u32 {
    run::<V4_PORTS>(&ctx, |view, generator| vary_v4(view, generator, ETHERNET))
}

/// Another flow every time.
#[xdp(frags)]
pub fn bench_vary_v6(ctx: XdpContext) -> u32 {
    run::<V6_PORTS>(&ctx, |view, generator| vary_v6(view, generator, ETHERNET))
}

/// Another flow every time, and hop limit and checksums as they came.
#[xdp(frags)]
pub fn bench_renew_v4(ctx: XdpContext) -> u32 {
    run::<V4_TCP>(&ctx, |view, generator| renew_v4(view, generator, ETHERNET))
}

/// Another flow every time, and hop limit and checksums as they came.
#[xdp(frags)]
pub fn bench_renew_v6(ctx: XdpContext) -> u32 {
    run::<V6_TCP>(&ctx, |view, generator| renew_v6(view, generator, ETHERNET))
}

/// The same within the tunnel, over the header of which an Ethernet header was written.
#[xdp(frags)]
pub fn bench_rewrap_v4(ctx: XdpContext) -> u32 {
    run::<{ tunnel::OVERHEAD_V4 + V4_TCP }>(&ctx, |view, generator| {
        let l3 = tunnel_header(view, generator, tunnel::OVERHEAD_V4);
        renew_v4(view, generator, l3);
    })
}

/// The same within the tunnel, over the header of which an Ethernet header was written.
#[xdp(frags)]
pub fn bench_rewrap_v6(ctx: XdpContext) -> u32 {
    run::<{ tunnel::OVERHEAD_V6 + V6_TCP }>(&ctx, |view, generator| {
        let l3 = tunnel_header(view, generator, tunnel::OVERHEAD_V6);
        renew_v6(view, generator, l3);
    })
}

/// Makes live frames (IPv4) and sends them out of the interface they pretend to come from. Pages
/// come back as they went, so every header is written anew.
#[xdp(frags)]
pub fn bench_generate(ctx: XdpContext) -> u32 {
    let Some(generator) = generator() else { return xdp_action::XDP_ABORTED };
    let packet = Packet::of(&ctx);
    let Some(view) = packet.view::<V4_TCP>() else { return xdp_action::XDP_ABORTED };
    ethernet(&view, generator);
    for word in 0..(V4_TCP - ETHERNET) / 4 {
        copy::<u32, _>(&view, generator, ETHERNET + 4 * word);
    }
    vary_v4(&view, generator, ETHERNET);
    xdp_action::XDP_TX
}

/// Counts frames and drops them.
#[xdp(frags)]
pub fn bench_sink(_: XdpContext) -> u32 {
    if let Some(count) = BENCH_SUNK.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own, and XDP does not nest.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}

const V4_PORTS: usize = ETHERNET + 24;
const V4_TCP: usize = ETHERNET + 40;
const V6_PORTS: usize = ETHERNET + 44;
const V6_TCP: usize = ETHERNET + 60;

/// Undoes what the last run did, changes some of the first `SIZE` bytes, and calls the program.
#[inline(always)]
fn run<const SIZE: usize>(ctx: &XdpContext, change: impl FnOnce(&View<SIZE>, &mut Generator)) -> u32 {
    let Some(generator) = generator() else { return xdp_action::XDP_ABORTED };
    if generator.grown != 0 {
        adjust(ctx, generator.grown);
    }
    generator.grown = generator.grow;
    let packet = Packet::of(ctx);
    let Some(view) = packet.view::<SIZE>() else { return xdp_action::XDP_ABORTED };
    ethernet(&view, generator);
    change(&view, generator);
    if generator.run != 0 {
        // SAFETY: nothing here needs to be dropped.
        unsafe { BENCH_PROGRAM.tail_call(ctx, 0) };
        return xdp_action::XDP_ABORTED;
    }
    if generator.grow != 0 {
        adjust(ctx, -generator.grow);
    }
    xdp_action::XDP_TX
}

#[inline(always)]
fn ethernet<const SIZE: usize>(view: &View<SIZE>, generator: &Generator) {
    copy::<u64, SIZE>(view, generator, 0);
    copy::<u32, SIZE>(view, generator, 8);
    copy::<u16, SIZE>(view, generator, 12);
}

/// The tunnel's header, which ends an Ethernet header in front of the packet inside; returns where that begins.
#[inline(always)]
fn tunnel_header<const SIZE: usize>(view: &View<SIZE>, generator: &Generator, overhead: usize) -> usize {
    let inner = ETHERNET + overhead;
    copy::<u64, _>(view, generator, inner - tunnel::HEADER);
    copy::<u64, _>(view, generator, inner - tunnel::HEADER + 8);
    inner
}

#[inline(always)]
fn renew_v4<const SIZE: usize>(view: &View<SIZE>, generator: &mut Generator, l3: usize) {
    // TTL, protocol and header checksum; TCP's checksum and urgent pointer.
    copy::<u32, _>(view, generator, l3 + 8);
    copy::<u32, _>(view, generator, l3 + 36);
    vary_v4(view, generator, l3);
}

#[inline(always)]
fn renew_v6<const SIZE: usize>(view: &View<SIZE>, generator: &mut Generator, l3: usize) {
    copy::<u64, _>(view, generator, l3);
    copy::<u32, _>(view, generator, l3 + 56);
    vary_v6(view, generator, l3);
}

#[inline(always)]
fn vary_v4<const SIZE: usize>(view: &View<SIZE>, generator: &mut Generator, l3: usize) {
    let (flow, host, ports) = next(generator, l3 + 20);
    let src = saved::<u32>(generator, l3 + 12) | host;
    let vip = saved::<u32>(generator, l3 + 16) | Generator::vip(flow, generator.vips);
    view.write(l3 + 12, src as u64 | (vip as u64) << 32);
    view.write(l3 + 20, ports);
}

#[inline(always)]
fn vary_v6<const SIZE: usize>(view: &View<SIZE>, generator: &mut Generator, l3: usize) {
    let (flow, host, ports) = next(generator, l3 + 40);
    copy::<u64, _>(view, generator, l3 + 8);
    view.write(l3 + 16, saved::<u64>(generator, l3 + 16) | (host as u64) << 32);
    copy::<u64, _>(view, generator, l3 + 24);
    let vip = saved::<u64>(generator, l3 + 32);
    view.write(l3 + 32, vip | (Generator::vip(flow, generator.vips) as u64) << 32);
    view.write(l3 + 40, ports);
}

/// The next flow: its number, the client's host part and the ports word, of which the frame gives
/// the destination.
#[inline(always)]
fn next(generator: &mut Generator, ports: usize) -> (u32, u32, u32) {
    let flow = generator.next & generator.flow_mask;
    generator.next = generator.next.wrapping_add(1);
    let (host, port) = Generator::client(flow);
    (flow, host, saved::<u32>(generator, ports) & 0xffff_0000 | port)
}

#[inline(always)]
fn copy<T: Word, const SIZE: usize>(view: &View<SIZE>, generator: &Generator, offset: usize) {
    view.write(offset, saved::<T>(generator, offset));
}

/// Reads the saved frame, unaligned as the packet is.
#[inline(always)]
fn saved<T: Word>(generator: &Generator, offset: usize) -> T {
    let at = generator.frame.as_ptr().wrapping_add(offset).cast::<T>();
    // SAFETY: callers name a field of the first bytes; the verifier proves it.
    unsafe { *at }
}

#[inline(always)]
fn generator() -> Option<&'static mut Generator> {
    // SAFETY: one CPU measures at a time, and the bench writes the value between runs only.
    BENCH_GENERATOR.get_ptr_mut(0).map(|generator| unsafe { &mut *generator })
}

#[inline(always)]
fn adjust(ctx: &XdpContext, bytes: i32) {
    // SAFETY: the helper checks the range; every view is made anew afterwards.
    unsafe { bpf_xdp_adjust_head(ctx.ctx, bytes) };
}
