//! Sends a packet on: Ethernet header, then the same interface or another one.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, xdp_action},
    helpers::bpf_fib_lookup,
    programs::XdpContext,
};
use lb_common::{Addr, Mac, Verdict, backend::NextHop};

use crate::{maps, packet::Packet, parse::ETHERNET};

/// A verdict, and what to tell the kernel where the verdict alone does not say it.
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

/// Writes the MACs and leaves by the next hop's interface.
#[inline(always)]
pub fn send(packet: &Packet, next_hop: NextHop, verdict: Verdict) -> Outcome {
    let Some(ether) = packet.view::<ETHERNET>() else { return Verdict::Truncated.into() };
    ether.write(0, next_hop.head);
    ether.write(8, next_hop.tail);
    if next_hop.ifindex == packet.tx_ifindex {
        return verdict.into();
    }
    match maps::DEVICES.redirect(next_hop.ifindex, 0) {
        Ok(action) => Outcome { verdict, action },
        Err(_) => Verdict::NoDevice.into(),
    }
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
