//! Later fragments have no ports: they go where the first one of their datagram went. What overtakes the
//! first one is lost, as RFC 4963 says it may be.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use lb_common::{Flow, maps::FRAGMENT_ENTRIES};

/// What the first fragment said, by source, destination, identification (in place of the ports) and protocol, see [`key`].
#[btf_map]
static FRAGMENTS: LruHashMap<Flow, u64, FRAGMENT_ENTRIES> = LruHashMap::new();

/// What later fragments need of the first.
#[derive(Clone, Copy)]
pub struct Remembered {
    /// As [`Flow::ports`].
    pub ports: u32,
    /// TCP or UDP.
    pub proto: u8,
}

/// The key of a fragment's datagram. `flow` has the identification as its ports, and the protocol that the fragment names: over
/// IPv6 that tells nothing, because an extension header behind the fragment header makes later fragments name that one
/// (RFC 8200 4.5).
#[inline(always)]
pub fn key(flow: Flow) -> Flow {
    if flow.src.is_v4() { flow } else { Flow { proto: 0, ..flow } }
}

/// Remembers the first fragment of a datagram.
#[inline(never)]
pub fn remember(key: &Flow, first: Remembered) {
    let word = first.ports as u64 | (first.proto as u64) << 32;
    // A failure costs the later fragments, which are then dropped by name.
    let _ = FRAGMENTS.insert(key, word, 0);
}

/// What the first fragment of a datagram said, if it was seen.
#[inline(never)]
pub fn recall(key: &Flow) -> Option<Remembered> {
    let word = FRAGMENTS.get_ptr(key)?;
    // SAFETY: a map entry stays readable for the whole run; one that is reused in this moment tells of another
    // datagram, as a wrapped identification would.
    let word = unsafe { *word };
    Some(Remembered { ports: word as u32, proto: (word >> 32) as u8 })
}
