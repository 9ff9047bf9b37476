//! Floors and wrappers for `cargo xtask bench l4`; never attached to an interface.
//!
//! BPF_PROG_TEST_RUN does not reset the packet between repeats, so a program that rewrites
//! addresses would see its own output the second time. The wrappers restore the headers first,
//! in whole words; `bench_restore_*` measures what that costs.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

use crate::{
    packet::{Packet, View},
    parse::ETHERNET,
};

/// The packet to restore: the first 80 bytes as words.
#[btf_map]
static BENCH_PACKET: Array<[u64; 10], 1> = Array::new();

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

/// The program over a restored IPv4 TCP packet.
#[xdp(frags)]
pub fn bench_v4(ctx: XdpContext) -> u32 {
    restore::<56>(&ctx);
    crate::run(&ctx)
}

/// The program over a restored IPv6 TCP packet.
#[xdp(frags)]
pub fn bench_v6(ctx: XdpContext) -> u32 {
    restore::<80>(&ctx);
    crate::run(&ctx)
}

/// What restoring an IPv4 packet costs.
#[xdp(frags)]
pub fn bench_restore_v4(ctx: XdpContext) -> u32 {
    restore::<56>(&ctx);
    xdp_action::XDP_TX
}

/// What restoring an IPv6 packet costs.
#[xdp(frags)]
pub fn bench_restore_v6(ctx: XdpContext) -> u32 {
    restore::<80>(&ctx);
    xdp_action::XDP_TX
}

#[inline(always)]
fn restore<const SIZE: usize>(ctx: &XdpContext) {
    let Some(saved) = BENCH_PACKET.get(0) else { return };
    let Some(view) = Packet::of(ctx).view::<SIZE>() else { return };
    let view: View<SIZE> = view;
    for (index, word) in saved.iter().enumerate() {
        if index * 8 < SIZE {
            view.write(index * 8, *word);
        }
    }
}
