//! What `nat` and `local` mode remember of a flow: one entry per direction.
//!
//! Both are found by the keyed 64-bit hash of the packet's five-tuple; the entry holds the
//! five-tuple itself, so a collision is noticed and never misdirects. Claiming the reverse entry
//! (insert only if absent) is what allocates a port: no two flows can hold the same one towards
//! the same backend. In `local` mode the client keeps its address, and its port unless another
//! flow to the same backend has it.

use crate::backend::{Identity, NextHop};
use crate::{Flow, Tags};

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
    /// Source port towards the backend, in wire order.
    pub snat_port: u16,
    /// [`state`] bits seen from the client.
    pub state: u16,
    /// Last four bytes of the sender's MAC, and its tags: when they change, [`Reverse::client`] follows.
    pub client_mac: u32,
}

/// Backend to client; key: hash of (backend, our address).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Reverse {
    /// Backend to us, in `local` mode to the client; to compare.
    pub flow: Flow,
    /// VIP to client: what the reply becomes.
    pub reply: Flow,
    /// Back to where the client's packets come from; nobody asks in `local` mode.
    pub client: NextHop,
    /// VLAN tags that the client's packets come with.
    pub tags: Tags,
    /// Nothing.
    pub padding: u32,
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
    /// Of a backend's direction: the backend is on this host, and its answers are translated where
    /// they leave.
    pub const LOCAL: u16 = 8;
    /// The flow began in a tunnel over IPv4: segments of full size would not fit it.
    pub const TUNNEL_V4: u16 = 16;
    /// The same over IPv6.
    pub const TUNNEL_V6: u16 = 32;
    /// What does not change while a flow lasts.
    pub const LASTING: u16 = LOCAL | TUNNEL_V4 | TUNNEL_V6;

    /// Whether a TCP flow with these bits seen from either side was reset, or closed by both.
    #[inline(always)]
    pub const fn is_closed(client: u16, backend: u16) -> bool {
        (client | backend) & RST != 0 || client & backend & FIN != 0
    }

    /// What a packet is to the connection of its flow.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Sent {
        /// A SYN, with or without an ACK: no old RST or FIN belongs to what begins here.
        Syn,
        /// Anything else. Who sends on has not been reset: the reset was another's, with this side's
        /// address.
        Other,
    }

    /// One side's bits after a packet of it that sets `bits`.
    #[inline(always)]
    pub const fn after(before: u16, sent: Sent, bits: u16) -> u16 {
        let kept = match sent {
            Sent::Syn => LASTING,
            Sent::Other => !RST,
        };
        before & kept | bits
    }
}

/// How long both sides have to be silent before a client's word lets a SYN begin another flow, in units of
/// [`crate::flows::clock`]. Anybody can forge its reset and its SYN, but not the silence of a flow that is in
/// use. Until then the SYN goes to the same backend, which knows whether the connection lives.
pub const SILENCE: u32 = 3;

/// How long a flow is remembered after its last packet in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, both directions seen, open.
    pub tcp_open: u32,
    /// TCP, opening or closing.
    pub tcp_transitory: u32,
    /// UDP, answered.
    pub udp: u32,
    /// UDP that no backend answered: a flood of forged sources must not fill the table for long.
    pub udp_transitory: u32,
}

impl Default for Timeouts {
    /// RFC 5382 (two hours and four minutes; four minutes) and RFC 4787 (five minutes), but one
    /// minute for TCP that is opening or closing: the port range is small.
    fn default() -> Self {
        Self { tcp_open: 7440, tcp_transitory: 60, udp: 300, udp_transitory: 30 }
    }
}

impl Timeouts {
    /// Whether a flow is over at `now`.
    pub fn expired(&self, now: u32, forward: Option<&Forward>, reverse: &Reverse) -> bool {
        let client = forward.map_or(0, |forward| forward.state);
        let seen = forward.map_or(reverse.seen, |forward| forward.seen.max(reverse.seen));
        let answered = client & reverse.state & state::SEEN != 0;
        let closed = state::is_closed(client, reverse.state);
        let limit = match (reverse.flow.proto == crate::UDP as u32, answered) {
            (true, true) => self.udp,
            (true, false) => self.udp_transitory,
            (false, true) if !closed => self.tcp_open,
            (false, _) => self.tcp_transitory,
        };
        now.saturating_sub(seen) > limit
    }
}

const _: () = assert!(size_of::<Forward>() == 64);
const _: () = assert!(size_of::<Reverse>() == 120);

impl Reverse {
    /// Words of an entry as a map iteration yields them.
    pub fn from_words(words: &[u64; 15]) -> Self {
        let [a0, a1, a2, a3, a4, b0, b1, b2, b3, b4, head, hop, tags, forward_key, last] = *words;
        Self {
            flow: flow([a0, a1, a2, a3, a4]),
            reply: flow([b0, b1, b2, b3, b4]),
            client: NextHop { head, tail: hop as u32, ifindex: (hop >> 32) as u32 },
            tags: Tags(tags as u32),
            padding: 0,
            forward_key,
            seen: last as u32,
            backend: (last >> 32) as u16,
            state: (last >> 48) as u16,
        }
    }
}

impl Forward {
    /// Whether a SYN at `now` begins another flow: this TCP flow was reset by its `backend`, or both sides closed
    /// it and the backend drains, or it was silent for long enough to believe that it is closed or to leave
    /// a backend that drains.
    #[inline(always)]
    pub const fn is_over(&self, reverse: &Reverse, backend: Identity, now: u32) -> bool {
        let drains = backend.is_draining();
        let seen = if self.seen > reverse.seen { self.seen } else { reverse.seen };
        let silent = now.saturating_sub(seen) > SILENCE;
        let ended = self.state & reverse.state & state::FIN != 0;
        reverse.state & state::RST != 0
            || drains && (silent || ended)
            || silent && state::is_closed(self.state, reverse.state)
    }

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

#[cfg(test)]
mod tests {
    use super::state::Sent;
    use super::*;

    fn entries() -> (Forward, Reverse) {
        (Forward::from_words(&[0; 8]), Reverse::from_words(&[0; 15]))
    }

    #[test]
    fn a_reset_counts_until_its_side_sends_on() {
        let open = state::SEEN | state::LOCAL;

        let reset = state::after(open, Sent::Other, state::SEEN | state::RST);

        assert_eq!(reset, open | state::RST);
        assert_eq!(state::after(reset, Sent::Other, state::SEEN), open);
        assert_eq!(state::after(reset | state::FIN, Sent::Syn, state::SEEN), open);
    }

    #[test]
    fn a_syn_begins_anew_once_the_backend_resets_or_both_are_silent() {
        let (both, closed) = (state::SEEN, state::SEEN | state::FIN);
        // Bit 24 says that the backend drains.
        let (takes, drains) = (Identity(0), Identity(1 << 24));
        // What each side showed, its backend, and after which silences it is over.
        let cases = [
            ("open", both, both, takes, [false, false]),
            ("open, draining", both, both, drains, [false, true]),
            ("closed by the client alone", closed, both, takes, [false, false]),
            ("reset by the client", both | state::RST, both, takes, [false, true]),
            ("reset by the client, draining", both | state::RST, both, drains, [false, true]),
            ("closed by both", closed, closed, takes, [false, true]),
            ("closed by both, draining", closed, closed, drains, [true, true]),
            ("reset by the backend", both, both | state::RST, takes, [true, true]),
        ];
        for (case, client, server, backend, over) in cases {
            for (silent, over) in [SILENCE, SILENCE + 1].into_iter().zip(over) {
                for (client_ago, backend_ago) in [(silent, silent + 50), (silent + 50, silent)] {
                    let (mut forward, mut reverse) = entries();
                    (forward.state, reverse.state) = (client, server);
                    (forward.seen, reverse.seen) = (1_000 - client_ago, 1_000 - backend_ago);

                    assert_eq!(forward.is_over(&reverse, backend, 1_000), over, "{case}, {silent}");
                }
            }
        }
    }

    #[test]
    fn a_flow_is_remembered_as_long_as_it_has_shown_to_need() {
        let both = state::SEEN;
        let cases = [
            ("udp, answered", crate::UDP, both, both, 300),
            ("udp, never answered", crate::UDP, both, 0, 30),
            ("tcp, open", crate::TCP, both, both, 7440),
            ("tcp, never answered", crate::TCP, both, 0, 60),
            ("tcp, half closed", crate::TCP, both | state::FIN, both, 7440),
            ("tcp, closed", crate::TCP, both | state::FIN, both | state::FIN, 60),
            ("tcp, reset", crate::TCP, both, both | state::RST, 60),
        ];
        for (case, proto, client, backend, limit) in cases {
            let flow = Flow { proto: proto as u32, ..flow([0; 5]) };
            let (mut forward, mut reverse) = entries();
            (forward.state, forward.seen) = (client, 1000);
            (reverse.flow, reverse.state, reverse.seen) = (flow, backend, 900);
            let expired = |now| Timeouts::default().expired(now, Some(&forward), &reverse);

            assert!(!expired(1000 + limit), "{case}");
            assert!(expired(1001 + limit), "{case}");
        }
    }
}
