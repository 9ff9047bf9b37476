//! The encapsulation between balancers: outer IP, UDP, then this header, then the packet as the
//! client sent it, its destination still the VIP. Whoever receives it therefore knows the VIP of
//! every packet, whatever it missed before.
//!
//! ```text
//!  0       4       8              16             24             31
//!  +-------+-------+--------------+-----------------------------+
//!  | vers. | round | inner proto  | 0                           |
//!  +-------+-------+--------------+-----------------------------+
//!  | cluster: who may talk to whom, made from the hash key      |
//!  +------------------------------------------------------------+
//!  | backend: tag of the one chosen                             |
//!  +------------------------------------------------------------+
//!  | other: tag of the slot's other owner, 0 for none           |
//!  +------------------------------------------------------------+
//! ```
//!
//! Backends are named by tags instead of addresses: a receiver delivers to backends that it knows
//! itself and to nothing else, whatever a forged header says.

use crate::config::Past;
use crate::steer::{Choice, Kind, Owners};
use crate::{Addr, BackendId, Flow, HashKey, Mode};

/// Bytes of the header behind the UDP header.
pub const HEADER: usize = 16;
/// Bytes of an IPv4 outer header with UDP and the tunnel's.
pub const OVERHEAD_V4: usize = 20 + 8 + HEADER;
/// Bytes of an IPv6 outer header with UDP and the tunnel's.
pub const OVERHEAD_V6: usize = 40 + 8 + HEADER;
/// UDP port where none is configured.
pub const PORT: u16 = 7183;

const VERSION: u32 = 1;

/// How often a packet was sent on: every balancer that sends it on raises it, from `First` over `Second` and `Third` to `Last`,
/// so that none runs in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Round {
    /// By the balancer that the client's packet came to.
    First = 0,
    /// By the first owner, which does not know the flow, to the slot's other owner.
    Second = 1,
    /// Who does not know the flow either keeps it.
    Last = 2,
    /// By one that may have forgotten the flow, or asks in the name of such a one: who does not know it sends it back. Balancers that
    /// do not know this round take it for the last one.
    Third = 3,
}

/// What a packet asks the balancer that gets it through the tunnel and does not remember its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The packet's.
    pub round: Round,
    /// What it tells about the flow.
    pub kind: Kind,
    /// The backend that it names, as known here; id 0: it is not.
    pub chosen: BackendId,
    /// The slot's other owner that it names; id 0: it names none, or one that is not known here.
    pub other: BackendId,
    /// The slot's owners by the tables here.
    pub own: Owners,
    /// What is not known here of the time before the tables.
    pub past: Past,
}

/// Whom a packet is sent on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Onward {
    /// The backend.
    pub chosen: BackendId,
    /// Who gets it if that one does not know it; id 0: nobody.
    pub other: BackendId,
    /// The next round.
    pub round: Round,
    /// The tables here alone tell of the backend: their slot must not settle while flows depend on it.
    pub is_told_here: bool,
}

impl Question {
    /// Who may know the flow; `None`: it is delivered here. `node` tells by which balancer a backend is reached, unless it is here.
    ///
    /// A node knows all flows of its backends, unless its tables began anew: so whoever says no is not asked again, and who may have
    /// forgotten the flow is asked last and keeps it. Of two such nodes, the one with the slot's owner of now does.
    #[inline(always)]
    pub fn onward(self, node: impl Fn(BackendId) -> Option<Addr>) -> Option<Onward> {
        let Self { round, kind, chosen, mut other, own, past } = self;
        if matches!(round, Round::Last) || matches!(kind, Kind::Syn) {
            return None;
        }
        // A datagram may begin a flow: it goes to the two owners that its sender knows.
        let is_older = !matches!(kind, Kind::Datagram);
        let has_forgotten = is_older && past.is_forgotten();
        let owns_it = chosen.0 == own.current.0 && node(chosen).is_none();
        if has_forgotten && owns_it && !matches!(round, Round::First) {
            return None;
        }
        let previous = own.previous;
        let is_told_here = is_older
            && !past.is_guessed()
            && !matches!(round, Round::Third)
            && previous.0 != own.current.0
            && previous.0 != chosen.0
            && previous.0 != other.0;
        let mut elsewhere = node(other);
        if is_told_here && let Some(there) = node(previous) {
            if other.0 != own.current.0 {
                // Whoever that was, it has none of the slot's flows.
                (other, elsewhere) = (previous, Some(there));
            } else if elsewhere != Some(there) {
                let round = if matches!(round, Round::First) { Round::Second } else { Round::Third };
                let other = if elsewhere.is_some() { other } else { chosen };
                return Some(Onward { chosen: previous, other, round, is_told_here });
            }
        }
        elsewhere?;
        let round = match round {
            Round::First => Round::Second,
            Round::Second if has_forgotten => Round::Third,
            _ => Round::Last,
        };
        let back = if matches!(round, Round::Last) { BackendId(0) } else { chosen };
        Some(Onward {
            chosen: other,
            other: back,
            round,
            is_told_here: is_told_here && other.0 == previous.0,
        })
    }
}

/// Who is asked first by the balancer that the client's packet came to, which does not remember its flow: the slot's other owner,
/// where the chosen one is here.
#[inline(always)]
pub fn second_chance(choice: Choice, kind: Kind, mode: impl Fn(BackendId) -> u8) -> (Choice, Round) {
    let Choice { backend, other, .. } = choice;
    let is_elsewhere = mode(other) == Mode::Tunnel as u8;
    let is_here = mode(backend) == Mode::Local as u8;
    if other.0 == 0 || !is_elsewhere || !is_here || matches!(kind, Kind::Syn) {
        return (choice, Round::First);
    }
    (Choice { backend: other, other: backend, ..choice }, Round::Second)
}

/// The first word of the header, in wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head(pub u32);

impl Head {
    /// Head of a packet whose inner protocol (4 IPv4, 41 IPv6) is `inner`.
    #[inline(always)]
    pub const fn new(inner: u8, round: Round) -> Self {
        Self(VERSION | (round as u32) << 4 | (inner as u32) << 8)
    }

    /// Whether we understand it.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 & 15 == VERSION && matches!(self.inner(), 4 | 41)
    }

    /// How often it was sent on.
    #[inline(always)]
    pub const fn round(self) -> Round {
        match (self.0 >> 4) & 15 {
            0 => Round::First,
            1 => Round::Second,
            3 => Round::Third,
            _ => Round::Last,
        }
    }

    /// Inner protocol.
    #[inline(always)]
    pub const fn inner(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// What the balancers of one cluster write into the header, and no one without the key can.
#[inline(always)]
pub const fn cluster(HashKey(key): HashKey) -> u32 {
    let mixed = (key[0] ^ key[3]).wrapping_mul(key[1]);
    (mixed >> 32) as u32
}

/// Tag of the backend at an address and port (wire order), never 0.
pub const fn tag(addr: Addr, wire_port: u16, proto: u8, key: HashKey) -> u32 {
    let place = Flow { src: addr, dst: Addr { hi: 0, lo: 0 }, ports: wire_port as u32, proto: proto as u32 };
    let tag = (place.hash_v6(key) >> 32) as u32;
    if tag == 0 { 1 } else { tag }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On this node.
    const HERE: BackendId = BackendId(1);
    const A: BackendId = BackendId(2);
    const B: BackendId = BackendId(3);
    /// On the node of `B`.
    const BESIDE: BackendId = BackendId(4);
    const NOBODY: BackendId = BackendId(0);

    fn node(id: BackendId) -> Option<Addr> {
        let node = match id {
            A => 1,
            B | BESIDE => 2,
            _ => return None,
        };
        Some(Addr { hi: 0, lo: node })
    }

    /// Backends that a packet names, owners of its slot here, and the next ones that it names.
    type Case<'a> = (&'a str, Round, [BackendId; 2], [BackendId; 2], Option<(Round, [BackendId; 2])>);

    fn check(past: Past, kind: Kind, cases: &[Case<'_>]) {
        for (case, round, [chosen, other], [current, previous], expected) in cases.iter().copied() {
            let own = Owners { current, previous, place: 0 };

            let onward = Question { round, kind, chosen, other, own, past }.onward(node);

            assert_eq!(onward.map(|it| (it.round, [it.chosen, it.other])), expected, "{case}");
        }
    }

    use Round::{First, Last, Second, Third};

    #[test]
    fn who_does_not_know_a_flow_sends_it_to_whoever_may() {
        let cases: [Case<'_>; 15] = [
            ("to the other owner", First, [HERE, A], [A, HERE], Some((Second, [A, HERE]))),
            ("and back", Second, [HERE, A], [HERE, A], Some((Last, [A, NOBODY]))),
            ("where it stays", Last, [HERE, A], [HERE, A], None),
            ("the other one is here", First, [HERE, HERE], [HERE, HERE], None),
            ("the sender knows of no change", First, [HERE, NOBODY], [HERE, A], Some((Second, [A, HERE]))),
            ("nor does anybody here", First, [HERE, NOBODY], [HERE, NOBODY], None),
            ("a settled slot of this balancer's", First, [HERE, NOBODY], [A, NOBODY], None),
            ("a third owner, known here alone", First, [HERE, A], [A, B], Some((Second, [B, A]))),
            (
                "on one node with the owner of now",
                First,
                [HERE, BESIDE],
                [BESIDE, B],
                Some((Second, [BESIDE, HERE])),
            ),
            ("on one node with another", First, [HERE, BESIDE], [HERE, B], Some((Second, [B, HERE]))),
            ("which is here", First, [BackendId(9), A], [A, HERE], Some((Second, [A, BackendId(9)]))),
            ("no owner is named but this", Second, [HERE, A], [HERE, B], Some((Last, [B, NOBODY]))),
            ("in the name of one that has forgotten", Second, [HERE, A], [A, B], Some((Third, [B, A]))),
            ("which is not to go further", Third, [HERE, A], [HERE, B], Some((Last, [A, NOBODY]))),
            ("both on one node", Second, [HERE, BESIDE], [HERE, B], Some((Last, [B, NOBODY]))),
        ];

        check(Past::KNOWN, Kind::Segment, &cases);
        check(Past::KNOWN, Kind::Reset, &cases);
    }

    #[test]
    fn who_may_have_forgotten_a_flow_keeps_what_the_others_do_not_know() {
        check(
            Past::new(1),
            Kind::Segment,
            &[
                ("asked first", First, [HERE, A], [HERE, A], Some((Second, [A, HERE]))),
                ("asked alone", First, [HERE, NOBODY], [HERE, A], None),
                ("the owner of now, asked second", Second, [HERE, A], [HERE, A], None),
                ("an owner of before", Second, [HERE, A], [A, NOBODY], Some((Third, [A, HERE]))),
                ("to whom it comes back", Last, [HERE, NOBODY], [A, NOBODY], None),
                ("who is asked by another such one", Third, [HERE, A], [HERE, NOBODY], None),
                (
                    "an owner of before, asked by another",
                    Third,
                    [HERE, A],
                    [A, NOBODY],
                    Some((Last, [A, NOBODY])),
                ),
                ("what it guesses is not told", First, [HERE, A], [A, B], Some((Second, [A, HERE]))),
            ],
        );
    }

    /// Its tables began when nothing changed.
    #[test]
    fn who_may_have_forgotten_a_flow_and_guesses_nothing_tells_what_it_saw() {
        check(
            Past::new(1).without_guesses(),
            Kind::Segment,
            &[
                ("a previous owner", First, [HERE, NOBODY], [HERE, A], Some((Second, [A, HERE]))),
                ("a third one", First, [HERE, A], [A, B], Some((Second, [B, A]))),
                ("which is asked by another", Second, [HERE, A], [HERE, A], None),
            ],
        );
    }

    #[test]
    fn datagrams_and_beginnings_go_by_what_their_sender_knows() {
        for past in [Past::KNOWN, Past::new(1)] {
            check(
                past,
                Kind::Datagram,
                &[
                    ("to the other owner", First, [HERE, A], [A, B], Some((Second, [A, HERE]))),
                    ("and back", Second, [HERE, A], [HERE, B], Some((Last, [A, NOBODY]))),
                    ("to no previous one", First, [HERE, NOBODY], [HERE, A], None),
                ],
            );
            check(past, Kind::Syn, &[("a beginning", First, [HERE, A], [A, HERE], None)]);
        }
    }

    #[test]
    fn a_round_is_read_as_it_was_written() {
        for round in [First, Second, Third, Last] {
            assert_eq!(Head::new(4, round).round(), round);
        }
        assert_eq!(Head(Head::new(4, First).0 | 0xf0).round(), Last, "one that is not known");
    }
}
