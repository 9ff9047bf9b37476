//! What `nat` and `local` mode remember of a flow: one entry per direction.
//!
//! Both are found by the keyed 64-bit hash of the packet's five-tuple; the entry holds the
//! five-tuple itself, so a collision is noticed and never misdirects. Claiming the reverse entry
//! (insert only if absent) is what allocates a port: no two flows can hold the same one towards
//! the same backend. Where none is free, a flow that is over gives its port away, or one that is no more
//! than begun ([`Reverse::gives_way`]). In `local` mode the client keeps its address, and its port
//! unless another flow to the same backend has it.

use crate::backend::{Identity, NextHop};
use crate::steer::Kind;
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
    /// What a client acknowledges that hears the backend ([`Reverse::is_heard`]); 0: not known.
    pub offered: u32,
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
    /// Of the client's direction: nothing behind what began the flow shows that it goes on
    /// ([`super::Forward::goes_on`]).
    pub const BEGUN: u16 = 64;
    /// What no SYN changes while a flow lasts.
    pub const LASTING: u16 = LOCAL | TUNNEL_V4 | TUNNEL_V6 | BEGUN;

    /// Whether a side with these bits is alive: it sent something, and no reset since.
    #[inline(always)]
    pub const fn is_alive(bits: u16) -> bool {
        bits & (SEEN | RST) == SEEN
    }

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

/// How far behind what a backend offered an acknowledgement may be to show that its sender hears the backend. Whoever
/// forges one has to guess one number of 256, within the ten seconds that a beginning has. A client that is taken up in the middle of
/// a download may acknowledge a whole window at once, when what got lost has come: 16 MiB, the most that Linux
/// gives one unless told otherwise.
const HEARD: u32 = 1 << 24;

/// How long a UDP flow that went on, or one by TCP that its backend alone has closed, has to be silent before it gives
/// its port away (RFC 4787, REQ-5).
const IDLE: u32 = 120;

/// How long a question by UDP that was not answered keeps its port from others: resolvers ask again after five
/// seconds.
pub const UDP_ANSWER: u32 = 5;

/// How long a flow is remembered after its last packet in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, open.
    pub tcp_open: u32,
    /// TCP, closed by its backend alone.
    pub tcp_closing: u32,
    /// TCP, closed.
    pub tcp_closed: u32,
    /// TCP whose client showed no more than what began it, since its last packet; or that no backend answered.
    pub tcp_begun: u32,
    /// UDP whose client went on, and was answered.
    pub udp: u32,
    /// UDP, a question and perhaps an answer: a flood of forged sources must not fill the table for long.
    pub udp_begun: u32,
}

impl Default for Timeouts {
    /// RFC 5382 (two hours and four minutes; four minutes for what is closing) and RFC 4787 (five minutes), but one minute
    /// for TCP that is closed, as long as Linux keeps it: the port range is small. Whoever takes longer than ten
    /// seconds to open a connection sends his SYN again, which begins anew.
    fn default() -> Self {
        Self { tcp_open: 7440, tcp_closing: 240, tcp_closed: 60, tcp_begun: 10, udp: 300, udp_begun: 30 }
    }
}

impl Timeouts {
    /// Whether a flow is over at `now`.
    pub fn expired(&self, now: u32, forward: Option<&Forward>, reverse: &Reverse) -> bool {
        let udp = reverse.is_udp();
        let limit = match reverse.stage(forward) {
            Stage::Begun if udp => self.udp_begun,
            Stage::Begun => self.tcp_begun,
            Stage::Open if udp => self.udp,
            Stage::Open => self.tcp_open,
            Stage::Closing => self.tcp_closing,
            Stage::Closed => self.tcp_closed,
        };
        reverse.silence(forward, now) > limit
    }
}

/// How far a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Only one side has shown that it is there: anybody could have forged that.
    Begun,
    /// Both have.
    Open,
    /// TCP, closed by its backend, whose client may be gone without a word: the backend forgets the connection after some
    /// minutes, and does not say so either. The other way round an upload may have ended whose answer takes its time.
    Closing,
    /// TCP, reset or closed by both.
    Closed,
}

const _: () = assert!(size_of::<Forward>() == 64);
const _: () = assert!(size_of::<Reverse>() == 120);

impl Reverse {
    /// How willingly this flow gives its port to one that finds none free, the more the sooner; 0: not at all.
    /// `forward`: its other entry, if that is there.
    ///
    /// First goes what is closed: at once where both sides said so or the backend reset it, after [`SILENCE`] where
    /// the client alone did, whom anybody can pretend to be. Then, however young, what is no more than begun, so
    /// that a flood of forged beginnings pushes out itself and not the flows that are in use, but a question by UDP
    /// only when it was answered or after [`UDP_ANSWER`]; then UDP, and TCP that its backend has closed, that has been silent for minutes. Of each, what was silent longest. An open TCP flow keeps its port.
    ///
    /// A backend that still remembers the flow before answers the SYN of the next by an ACK out of place, its client
    /// resets that, and sends its SYN again after some milliseconds (RFC 9293, 3.10.7): what has begun and was
    /// reset by its client is therefore no more willing than what has begun.
    #[inline(always)]
    pub const fn gives_way(&self, forward: Option<&Forward>, now: u32) -> u32 {
        let (class, least) = match self.stage(forward) {
            Stage::Closed if self.state & state::RST != 0 => (3, 0),
            Stage::Closed if is_begun(forward) => (2, 0),
            Stage::Closed if client_state(forward) & self.state & state::FIN != 0 => (3, 0),
            Stage::Closed => (3, SILENCE + 1),
            // Whoever claims it at this moment has not said yet for whom.
            Stage::Begun if forward.is_none() => (2, SILENCE + 1),
            // Whoever had the port next would get the answer that is still to come.
            Stage::Begun if self.is_udp() && self.state & state::SEEN == 0 => (2, UDP_ANSWER + 1),
            Stage::Begun => (2, 0),
            Stage::Open if self.is_udp() => (1, IDLE + 1),
            Stage::Closing => (1, IDLE + 1),
            Stage::Open => return 0,
        };
        let silence = self.silence(forward, now);
        if silence < least {
            return 0;
        }
        let capped = if silence > 0xff_ffff { 0xff_ffff } else { silence };
        class << 24 | capped
    }

    /// Notes what a TCP segment of the backend offers, which `begins` with a SYN or does not: the number behind that,
    /// or its own.
    #[inline(always)]
    pub const fn offer(&mut self, sequence: u32, begins: bool) {
        self.offered = sequence.wrapping_add(begins as u32);
    }

    /// Whether an acknowledgement shows that its sender hears the backend. Anybody can send a SYN with the address of
    /// another, but not the number that the SYN-ACK asks for. A reset shows nothing: its number is the
    /// forger's own (RFC 9293, 3.10.7.1). Of what an agent before us noted the number is not known.
    #[inline(always)]
    pub const fn is_heard(&self, acknowledged: u32) -> bool {
        state::is_alive(self.state) && (self.offered == 0 || acknowledged.wrapping_sub(self.offered) < HEARD)
    }

    /// Whether this flow gives its entry to another where no entry is free, which has another port or client: in `local` mode
    /// nobody could get the answer to a question that was given up for it.
    #[inline(always)]
    pub const fn gives_room(&self, forward: &Forward, now: u32) -> bool {
        is_begun(Some(forward)) && self.state & state::LOCAL != 0 || self.gives_way(Some(forward), now) != 0
    }

    #[inline(always)]
    const fn is_udp(&self) -> bool {
        self.flow.proto == crate::UDP as u32
    }

    #[inline(always)]
    const fn stage(&self, forward: Option<&Forward>) -> Stage {
        let client = client_state(forward);
        if !self.is_udp() && state::is_closed(client, self.state) {
            return Stage::Closed;
        }
        if client & state::BEGUN != 0 || client & self.state & state::SEEN == 0 {
            return Stage::Begun;
        }
        if self.state & state::FIN != 0 { Stage::Closing } else { Stage::Open }
    }

    /// How long nothing was sent. That a backend offers again and again to open what its client has begun does
    /// not count.
    #[inline(always)]
    const fn silence(&self, forward: Option<&Forward>, now: u32) -> u32 {
        let seen = match forward {
            Some(forward) if forward.seen > self.seen => forward.seen,
            Some(begun) if !self.is_udp() && is_begun(forward) => begun.seen,
            _ => self.seen,
        };
        now.saturating_sub(seen)
    }

    /// Words of an entry as a map iteration yields them.
    pub fn from_words(words: &[u64; 15]) -> Self {
        let [a0, a1, a2, a3, a4, b0, b1, b2, b3, b4, head, hop, tags, forward_key, last] = *words;
        Self {
            flow: flow([a0, a1, a2, a3, a4]),
            reply: flow([b0, b1, b2, b3, b4]),
            client: NextHop { head, tail: hop as u32, ifindex: (hop >> 32) as u32 },
            tags: Tags(tags as u32),
            offered: (tags >> 32) as u32,
            forward_key,
            seen: last as u32,
            backend: (last >> 32) as u16,
            state: (last >> 48) as u16,
        }
    }
}

/// What the client showed, if it is known.
#[inline(always)]
const fn client_state(forward: Option<&Forward>) -> u16 {
    match forward {
        Some(forward) => forward.state,
        None => state::BEGUN,
    }
}

#[inline(always)]
const fn is_begun(forward: Option<&Forward>) -> bool {
    client_state(forward) & state::BEGUN != 0
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

    /// Whether a packet of this kind at `now`, behind the one that began the flow, shows that its client goes on: of
    /// TCP a segment that acknowledges what the backend sent, of UDP one that comes later by the clock. Two questions
    /// at once are no conversation. `acknowledged`: the number, if it has one.
    #[inline(always)]
    pub const fn goes_on(&self, reverse: &Reverse, kind: Kind, acknowledged: Option<u32>, now: u32) -> bool {
        match (kind, acknowledged) {
            (Kind::Segment, Some(number)) => reverse.is_heard(number),
            (Kind::Datagram, _) => now != self.seen,
            _ => false,
        }
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
        // Bit 23 says that the backend drains.
        let (takes, drains) = (Identity(0), Identity(1 << 23));
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

    /// What each side showed, in an entry of each direction.
    fn shown(proto: u8, client: u16, backend: u16) -> (Forward, Reverse) {
        let (mut forward, mut reverse) = entries();
        reverse.flow.proto = proto.into();
        (forward.state, reverse.state) = (client, backend);
        (forward, reverse)
    }

    const BOTH: u16 = state::SEEN;
    const BEGUN: u16 = state::SEEN | state::BEGUN;
    const FIN: u16 = state::SEEN | state::FIN;
    const RST: u16 = state::SEEN | state::RST;

    #[test]
    fn a_flow_is_remembered_as_long_as_it_has_shown_to_need() {
        let cases = [
            ("udp, went on", crate::UDP, BOTH, BOTH, 300),
            ("udp, never answered", crate::UDP, BOTH, 0, 30),
            ("udp, a question", crate::UDP, BEGUN, 0, 30),
            ("udp, a question and an answer", crate::UDP, BEGUN, BOTH, 30),
            ("tcp, open", crate::TCP, BOTH, BOTH, 7440),
            ("tcp, never answered", crate::TCP, BOTH, 0, 10),
            ("tcp, a SYN and its answer", crate::TCP, BEGUN, BOTH, 10),
            ("tcp, closed by the client alone", crate::TCP, FIN, BOTH, 7440),
            ("tcp, closed by the backend alone", crate::TCP, BOTH, FIN, 240),
            ("tcp, closed", crate::TCP, FIN, FIN, 60),
            ("tcp, reset", crate::TCP, BOTH, RST, 60),
        ];
        for (case, proto, client, backend, limit) in cases {
            let (mut forward, mut reverse) = shown(proto, client, backend);
            (forward.seen, reverse.seen) = (1000, 900);
            let expired = |now| Timeouts::default().expired(now, Some(&forward), &reverse);

            assert!(!expired(1000 + limit), "{case}");
            assert!(expired(1001 + limit), "{case}");
        }
    }

    #[test]
    fn a_backend_that_offers_a_connection_again_and_again_does_not_hold_it() {
        let (mut forward, mut reverse) = shown(crate::TCP, BEGUN, BOTH);

        (forward.seen, reverse.seen) = (1000, 1011);

        assert!(Timeouts::default().expired(1011, Some(&forward), &reverse));
    }

    #[test]
    fn a_flow_gives_its_port_away_after_the_silence_that_its_state_asks_for() {
        // From which silence on; none: never.
        let cases = [
            ("tcp, open", crate::TCP, BOTH, BOTH, None),
            ("tcp, closed by the client alone", crate::TCP, FIN, BOTH, None),
            ("tcp, closed by the backend alone", crate::TCP, BOTH, FIN, Some(121)),
            ("tcp, closed by both", crate::TCP, FIN, FIN, Some(0)),
            ("tcp, reset by the client", crate::TCP, RST, BOTH, Some(SILENCE + 1)),
            ("tcp, closed by the backend, reset by the client", crate::TCP, RST, FIN, Some(SILENCE + 1)),
            ("tcp, reset by the backend", crate::TCP, BOTH, RST, Some(0)),
            ("tcp, a SYN", crate::TCP, BEGUN, 0, Some(0)),
            ("tcp, a SYN and its answer", crate::TCP, BEGUN, BOTH, Some(0)),
            ("tcp, a SYN and a reset behind it", crate::TCP, BEGUN | state::RST, BOTH, Some(0)),
            ("udp, a question", crate::UDP, BEGUN, 0, Some(UDP_ANSWER + 1)),
            ("udp, a question and an answer", crate::UDP, BEGUN, BOTH, Some(0)),
            ("udp, went on", crate::UDP, BOTH, BOTH, Some(121)),
        ];
        for (case, proto, client, backend, from) in cases {
            let (mut forward, mut reverse) = shown(proto, client, backend);
            (forward.seen, reverse.seen) = (1000, 1000);
            for silence in [0, 1, SILENCE, SILENCE + 1, UDP_ANSWER, UDP_ANSWER + 1, 120, 121, 10_000] {
                let gives = reverse.gives_way(Some(&forward), 1000 + silence) > 0;

                assert_eq!(gives, from.is_some_and(|from| silence >= from), "{case}, {silence}");
            }
        }
        let (_, claimed) = shown(crate::TCP, 0, 0);
        assert_eq!(claimed.gives_way(None, SILENCE), 0, "whoever claims it is not known yet");
        assert!(claimed.gives_way(None, SILENCE + 1) > 0);
    }

    #[test]
    fn what_is_over_gives_way_before_what_has_begun_and_the_longest_silence_first() {
        let over = shown(crate::TCP, FIN, FIN);
        let begun = shown(crate::TCP, BEGUN, BOTH);
        let retried = shown(crate::TCP, BEGUN | state::RST, BOTH);
        let idle = shown(crate::UDP, BOTH, BOTH);
        let after = |(forward, reverse): &(Forward, Reverse), now| reverse.gives_way(Some(forward), now);

        assert!(after(&over, 9) > after(&over, 8));
        assert!(after(&over, 8) > after(&begun, 5_000));
        assert!(after(&begun, 1) > after(&begun, 0));
        assert_eq!(after(&retried, 1), after(&begun, 1), "its client sends its SYN again");
        assert!(after(&begun, 0) > after(&idle, 5_000));
        assert!(after(&idle, 201) > after(&idle, 200));
        assert!(after(&over, u32::MAX) > after(&begun, u32::MAX));
    }

    #[test]
    fn a_client_goes_on_by_an_acknowledgement_or_by_a_later_datagram() {
        let (forward, mut reverse) = shown(crate::TCP, BEGUN, BOTH);
        let goes_on = |reverse: &Reverse, kind, number, now| forward.goes_on(reverse, kind, number, now);
        reverse.offer(u32::MAX - 10, true);
        let offered = reverse.offered;

        for number in [offered, offered.wrapping_add(11), offered.wrapping_add(HEARD - 1)] {
            assert!(goes_on(&reverse, Kind::Segment, Some(number), 0), "{number}");
            for kind in [Kind::Syn, Kind::Reset] {
                assert!(!goes_on(&reverse, kind, Some(number), 1), "{kind:?}");
            }
        }
        for number in [None, Some(offered - 1), Some(offered.wrapping_add(HEARD)), Some(0x7fff_ffff)] {
            assert!(!goes_on(&reverse, Kind::Segment, number, 1), "{number:?}");
        }
        for (case, state) in [("not answered", 0), ("reset", RST)] {
            let reverse = Reverse { state, ..reverse };
            assert!(!goes_on(&reverse, Kind::Segment, Some(offered), 1), "{case}");
        }
        let of_an_agent_before = Reverse { offered: 0, ..reverse };
        assert!(goes_on(&of_an_agent_before, Kind::Segment, Some(7), 0));
        assert!(!goes_on(&of_an_agent_before, Kind::Segment, None, 0));
        assert!(goes_on(&reverse, Kind::Datagram, None, 1));
        assert!(!goes_on(&reverse, Kind::Datagram, None, 0), "two questions at once");
    }
}
