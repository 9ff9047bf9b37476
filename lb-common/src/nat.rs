//! What `nat` mode remembers of a flow: one entry per direction.
//!
//! Both are found by the keyed 64-bit hash of the packet's five-tuple; the entry holds the
//! five-tuple itself, so a collision is noticed and never misdirects. Claiming the reverse entry
//! (insert only if absent) is what allocates a port: no two flows can hold the same one towards
//! the same backend.

use crate::Flow;
use crate::backend::NextHop;

/// Client to backend; key: hash of (client, VIP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Forward {
    /// Client to VIP, to compare.
    pub flow: Flow,
    /// Key of the [`Reverse`] entry.
    pub reverse_key: u64,
    /// Last packet, seconds of the coarse monotonic clock.
    pub seen: u32,
    /// Backend it goes to.
    pub backend: u16,
    /// That backend's generation when the flow began.
    pub generation: u16,
    /// Our port, in wire order.
    pub snat_port: u16,
    /// [`state`] bits seen from the client.
    pub state: u16,
    /// Last four bytes of the sender's MAC: when it changes, [`Reverse::client`] follows.
    pub client_mac: u32,
}

/// Backend to client; key: hash of (backend, our address).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Reverse {
    /// Backend to us, to compare.
    pub flow: Flow,
    /// VIP to client: what the reply becomes.
    pub reply: Flow,
    /// Back to where the client's packets come from.
    pub client: NextHop,
    /// Key of the [`Forward`] entry.
    pub forward_key: u64,
    /// Last packet, seconds of the coarse monotonic clock.
    pub seen: u32,
    /// Backend, for its counters.
    pub backend: u16,
    /// [`state`] bits seen from the backend.
    pub state: u16,
}

/// Bits of a direction's state.
pub mod state {
    /// FIN seen.
    pub const FIN: u16 = 1;
    /// RST seen.
    pub const RST: u16 = 2;
    /// Any packet seen.
    pub const SEEN: u16 = 4;
}

/// How long a flow is remembered after its last packet in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, both directions seen, open.
    pub tcp_open: u32,
    /// TCP, opening or closing.
    pub tcp_transitory: u32,
    /// UDP.
    pub udp: u32,
}

impl Default for Timeouts {
    /// RFC 5382 (two hours and four minutes; four minutes) and RFC 4787 (five minutes), but one
    /// minute for TCP that is opening or closing: the port range is small.
    fn default() -> Self {
        Self { tcp_open: 7440, tcp_transitory: 60, udp: 300 }
    }
}

impl Timeouts {
    /// Whether a flow is over at `now`.
    pub fn expired(&self, now: u32, forward: Option<&Forward>, reverse: &Reverse) -> bool {
        let client = forward.map_or(0, |forward| forward.state);
        let seen = forward.map_or(reverse.seen, |forward| forward.seen.max(reverse.seen));
        let limit = if reverse.flow.proto == crate::UDP as u32 {
            self.udp
        } else {
            let both = client & reverse.state;
            let closed = (client | reverse.state) & state::RST != 0 || both & state::FIN != 0;
            if closed || both & state::SEEN == 0 { self.tcp_transitory } else { self.tcp_open }
        };
        now.saturating_sub(seen) > limit
    }
}

const _: () = assert!(size_of::<Forward>() == 64);
const _: () = assert!(size_of::<Reverse>() == 112);

impl Reverse {
    /// Words of an entry as a map iteration yields them.
    pub fn from_words(words: &[u64; 14]) -> Self {
        let [a0, a1, a2, a3, a4, b0, b1, b2, b3, b4, head, hop, forward_key, last] = *words;
        Self {
            flow: flow([a0, a1, a2, a3, a4]),
            reply: flow([b0, b1, b2, b3, b4]),
            client: NextHop { head, tail: hop as u32, ifindex: (hop >> 32) as u32 },
            forward_key,
            seen: last as u32,
            backend: (last >> 32) as u16,
            state: (last >> 48) as u16,
        }
    }
}

impl Forward {
    /// Words of an entry as a map lookup yields them.
    pub fn from_words(words: &[u64; 8]) -> Self {
        let [a0, a1, a2, a3, a4, reverse_key, seen, last] = *words;
        Self {
            flow: flow([a0, a1, a2, a3, a4]),
            reverse_key,
            seen: seen as u32,
            backend: (seen >> 32) as u16,
            generation: (seen >> 48) as u16,
            snat_port: last as u16,
            state: (last >> 16) as u16,
            client_mac: (last >> 32) as u32,
        }
    }
}

fn flow([src_hi, src_lo, dst_hi, dst_lo, rest]: [u64; 5]) -> Flow {
    Flow {
        src: crate::Addr { hi: src_hi, lo: src_lo },
        dst: crate::Addr { hi: dst_hi, lo: dst_lo },
        ports: rest as u32,
        proto: (rest >> 32) as u32,
    }
}
