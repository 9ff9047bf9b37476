//! VLAN tags of frames that leave: those of the way to a backend, or those that the client's packets came with.
//!
//! Everybody builds frames without tags. Where some are wanted, they are pushed at the very end, by a program
//! of its own: what leaves plain pays nothing, and the others stay free of offsets that are no constants.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{Tag, Tags, Verdict, maps::Program};

use crate::{
    capture::Origin,
    end, finish_as,
    forward::{self, Outcome},
    maps,
    packet::Packet,
    parse::ETHERNET,
};

/// In place of an XDP action: [`Exit`] says what is to be done, once tags are pushed.
pub const PUSH: u32 = u32::MAX;

/// How a tagged frame leaves, handed over in scratch memory.
#[derive(Clone, Copy)]
pub struct Exit {
    /// What to push.
    pub tags: Tags,
    /// Interface to redirect to; 0: `action` is done instead.
    pub ifindex: u32,
    /// XDP action.
    pub action: u32,
    /// Name of what happened.
    pub verdict: Verdict,
    /// Whether the flow stands in the carry.
    pub is_carried: bool,
    /// The packet goes on as if it had come with these tags, and the rest says nothing.
    pub begins_anew: bool,
}

/// The tags of a packet whose IP header begins at `l3`.
#[inline(always)]
pub fn of(packet: &Packet, l3: usize) -> Tags {
    let tag = |at: usize| Some(Tag::from_wire(packet.view_at::<4>(at)?.read(0)));
    let Some(outer) = (l3 > ETHERNET).then(|| tag(ETHERNET - 2)).flatten() else { return Tags::NONE };
    let Some(inner) = (l3 > ETHERNET + 4).then(|| tag(ETHERNET + 2)).flatten() else {
        return Tags::one(outer);
    };
    Tags::one(inner).within(outer).unwrap_or(Tags::NONE)
}

/// What leaves, or stays, once its tags are pushed. `ifindex` as in [`Exit`].
#[inline(always)]
pub fn behind(tags: Tags, ifindex: u32, outcome: Outcome) -> Outcome {
    let Outcome { verdict, action } = outcome;
    let Some(scratch) = maps::scratch() else { return Verdict::Corrupt.into() };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    unsafe {
        (*scratch).exit = Exit { tags, ifindex, action, verdict, is_carried: false, begins_anew: false }
    };
    Outcome { verdict, action: PUSH }
}

/// Goes on where tags are pushed.
#[inline(always)]
pub fn push(ctx: &XdpContext, origin: Origin) -> u32 {
    if let Some(scratch) = maps::scratch() {
        // SAFETY: as above.
        unsafe { (*scratch).exit.is_carried = matches!(origin, Origin::Carry) };
        maps::call(ctx, Program::Tagged);
    }
    xdp_action::XDP_ABORTED
}

/// Has a packet of no plain kind looked at once its tags are pushed.
#[inline(always)]
pub fn begin_anew(ctx: &XdpContext, tags: Tags) {
    let Some(scratch) = maps::scratch() else { return };
    let nothing = Outcome::from(Verdict::Corrupt);
    // SAFETY: as above.
    unsafe {
        (*scratch).exit = Exit {
            tags,
            ifindex: 0,
            action: nothing.action,
            verdict: nothing.verdict,
            is_carried: false,
            begins_anew: true,
        };
    }
    maps::call(ctx, Program::Tagged);
}

/// Pushes the tags and lets the frame go.
#[xdp(frags)]
pub fn penstock_tagged(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: as above.
    let exit = unsafe { (*scratch).exit };
    let Outcome { verdict, action } = match tagged(&ctx, &exit) {
        Ok(outcome) => {
            if exit.begins_anew {
                maps::call(&ctx, Program::Slow);
            }
            outcome
        }
        Err(verdict) => verdict.into(),
    };
    finish_as(&ctx, verdict, action, if exit.is_carried { Origin::Carry } else { Origin::Packet })
}

#[inline(always)]
fn tagged(ctx: &XdpContext, exit: &Exit) -> Result<Outcome, Verdict> {
    let Exit { tags, ifindex, action, verdict, .. } = *exit;
    let ether = Packet::of(ctx).view::<ETHERNET>().ok_or(Verdict::Truncated)?;
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    forward::move_start(ctx, -(tags.bytes() as i32)).ok_or(Verdict::NoHeadroom)?;
    let room = Packet::of(ctx).view::<{ ETHERNET + 6 }>().ok_or(Verdict::Truncated)?;
    room.write(0, first);
    room.write(8, second);
    room.write(12, tags.outer().wire());
    if let Some(inner) = tags.inner() {
        room.write(16, inner.wire());
    }
    if ifindex == 0 {
        return Ok(Outcome { verdict, action });
    }
    let action = maps::DEVICES.redirect(ifindex, 0).map_err(|_| Verdict::NoDevice)?;
    Ok(Outcome { verdict, action })
}
