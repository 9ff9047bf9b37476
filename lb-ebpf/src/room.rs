//! Room for a new flow where all entries are taken: of the flows that began longest ago, the first that gives way leaves its
//! own.
//!
//! A flood of forged beginnings thus pushes out itself. Which flows began when, a ring says: a flow enters it as it begins. Who
//! was asked and stays enters another one, which is looked at where the first has nobody left: else many open flows in a row would
//! keep as many new ones out at each turn.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use lb_common::ports::{self, ROOM_PROBES};

use crate::nat;

/// Both rings, see [`ports::RINGS`].
#[btf_map]
static BEGUN: Array<u64, { ports::RINGS as usize * ports::RING as usize }> = Array::new();

/// Where a ring begins, and behind it the two numbers of [`ports::oldest_begun`].
#[derive(Clone, Copy)]
struct Ring(u32);

/// Flows that nobody has asked yet.
const NEW: Ring = Ring(0);
/// Those that stayed.
const OLD: Ring = Ring(ports::RING);

/// Notes that a flow began.
#[inline(always)]
pub fn began(hash: u64) {
    enter(NEW, hash);
}

#[inline(always)]
fn enter(ring: Ring, hash: u64) {
    let Some(number) = add(ring.0 + ports::COUNT) else { return };
    let place = (number & (ports::BEGUN - 1)) as u32;
    let Some(place) = BEGUN.get_ptr_mut(ring.0 + place) else { return };
    // SAFETY: an aligned word, which is written and read whole; what it says is looked up before it is believed.
    unsafe { place.write_volatile(hash) }
}

/// [`ports::Claims::make_room`]. A global function, whose loop the verifier follows once.
#[unsafe(no_mangle)]
#[inline(never)]
#[cold]
pub extern "C" fn penstock_make_room(now: u32) -> u64 {
    for _ in 0..ROOM_PROBES {
        let Some(hash) = oldest(NEW).or_else(|| oldest(OLD)) else { return 0 };
        match nat::gives_room(hash, now) {
            Some(true) => {
                nat::forget(hash);
                return 1;
            }
            Some(false) => enter(OLD, hash),
            None => {}
        }
    }
    0
}

/// The flow that has been in a ring longest.
#[inline(always)]
fn oldest(ring: Ring) -> Option<u64> {
    let looked_at = ring.0 + ports::LOOKED_AT;
    let next = ports::oldest_begun(read(ring.0 + ports::COUNT)?, read(looked_at)?)?;
    // Others may look at the same moment: the same flow twice does no harm.
    // SAFETY: as in `enter`.
    unsafe { BEGUN.get_ptr_mut(looked_at)?.write_volatile(next + 1) };
    read(ring.0 + (next & (ports::BEGUN - 1)) as u32)
}

#[inline(always)]
fn read(index: u32) -> Option<u64> {
    // SAFETY: as in `enter`.
    BEGUN.get_ptr(index).map(|word| unsafe { word.read_volatile() })
}

/// Adds 1 to a word in one step, and returns what it was.
#[inline(always)]
fn add(index: u32) -> Option<u64> {
    let place = BEGUN.get_ptr_mut(index)?;
    #[cfg(target_arch = "bpf")]
    {
        let mut word = 1u64;
        // SAFETY: `place` is an aligned word of the map. An instruction that the library does not have for this target.
        unsafe {
            core::arch::asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) word, in(reg) place, options(nostack))
        };
        Some(word)
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: as in `enter`; the host's compiler only checks this crate.
        Some(unsafe { place.read_volatile() })
    }
}
