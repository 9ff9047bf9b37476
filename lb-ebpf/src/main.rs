//! KERNEL: what happens to one packet.
//!
//! `penstock` (XDP) is the ladder below; `penstock_lookup` (sk_lookup) hands punted connections to
//! the proxy's workers. Tables come from user space through shared memory; nothing here writes
//! them. The `bench_*` programs are floors and wrappers for measuring, never attached.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros make public functions that cannot carry a doc comment")]

mod bench;
mod forward;
mod lookup;
mod maps;
mod nat;
mod packet;
mod parse;
mod steer;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{AddrEntry, Mode, Record, Verdict, VipEntry, backend, config, maps::NO_XDP_TX};

use crate::{
    forward::Outcome,
    packet::Packet,
    parse::{ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Family, V4, V6},
};

/// Entry point of every packet.
#[xdp(frags)]
pub fn penstock(ctx: XdpContext) -> u32 {
    run(&ctx)
}

/// The program without its attribute, shared with the benchmark's wrappers.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let packet = Packet::of(ctx);
    let Some(ether) = packet.view::<ETHERNET>() else { return xdp_action::XDP_PASS };
    let Outcome { verdict, action } = match ether.read::<u16>(12) {
        ETHERTYPE_V4 => balance::<V4>(ctx, &packet),
        ETHERTYPE_V6 => balance::<V6>(ctx, &packet),
        _ => return xdp_action::XDP_PASS,
    };
    // What `l2` forwards is counted with its backend, and what is not ours is not touched.
    if !matches!(verdict, Verdict::NotOurs | Verdict::ForwardedL2) {
        maps::count_verdict(verdict as u8);
    }
    action
}

/// The ladder. Ask first whether the packet is ours, and parse no further if it is not.
#[inline(always)]
fn balance<F: Family>(ctx: &XdpContext, packet: &Packet) -> Outcome {
    let Some(head) = F::head(packet) else { return Verdict::NotOurs.into() };
    let dst = F::dst(&head);
    let (Some(config), Some(addrs)) = (maps::config(), maps::addrs()) else {
        return Verdict::NotOurs.into();
    };
    let epoch = config::epoch(&config);
    if epoch.is_empty() {
        return Verdict::NotOurs.into();
    }
    let addr = AddrEntry::find(&addrs, epoch, dst);
    if addr.is_none() {
        return Verdict::NotOurs.into();
    }

    let interface = maps::interface(packet.ifindex);
    let mac = interface & !NO_XDP_TX;
    if mac != 0 && mac != F::dst_mac(&head) {
        return Verdict::OtherMac.into();
    }
    let packet = &if interface == mac { *packet } else { packet.without_xdp_tx() };
    let flow = match F::flow(packet, &head, dst) {
        Ok(flow) => flow,
        Err(verdict) => return refuse(addr, verdict),
    };
    let key = config::hash_key(&config);
    if addr.is_node() {
        let (first, count) = config::nat_range(&config);
        if flow.dst_port().swap_bytes().wrapping_sub(first) < count {
            return nat::to_client::<F>(packet, &head, &flow, key);
        }
    }

    let Some(vips) = maps::vips() else { return Verdict::Corrupt.into() };
    let vip = VipEntry::find(&vips, epoch, VipEntry::key(addr, flow.dst_port(), flow.proto as u8));
    if vip.is_none() {
        return refuse(addr, Verdict::ClosedPort);
    }
    if vip.is_punted() {
        return Verdict::Punted.into();
    }
    let Some(records) = maps::records() else { return Verdict::Corrupt.into() };
    let record = Record::read(&records, vip.record());
    if record.stateful {
        return nat::to_backend::<F>(ctx, packet, &head, &flow, record.descriptor, key, addr);
    }

    let Some(id) = steer::pick(record.descriptor, F::hash(&flow, key)) else {
        return Verdict::NoBackend.into();
    };
    let Some(backends) = maps::backends() else { return Verdict::Corrupt.into() };
    let line = backend::identity(&backends, id);
    if line.mode() != Mode::L2 as u8 {
        return Verdict::Corrupt.into();
    }
    let length = F::length(&head);
    if length > line.mtu() as u32 {
        return Verdict::TooBig.into();
    }
    let mut next_hop = backend::next_hop(&backends, id);
    if next_hop.ifindex == 0 {
        let addr = backend::addr(&backends, id);
        if !forward::resolve(forward::raw(ctx), packet.ifindex, &addr, &mut next_hop) {
            return Verdict::Unresolved.into();
        }
    }
    maps::count_backend(id.0, length as u64);
    forward::send(packet, next_hop, Verdict::ForwardedL2)
}

/// What we do not take: the host's own business on the host's addresses; nothing at all on an
/// address that is only a VIP, so that a local route for punted ports opens no other port. ICMP
/// is left to the stack in both cases.
#[inline(always)]
fn refuse(addr: AddrEntry, verdict: Verdict) -> Outcome {
    if matches!(verdict, Verdict::Icmp) {
        return verdict.into();
    }
    if addr.is_node() { Verdict::Node.into() } else { verdict.into() }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
