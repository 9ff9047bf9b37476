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

use crate::steer::Owners;
use crate::{Addr, BackendId, Flow, HashKey};

/// Bytes of the header behind the UDP header.
pub const HEADER: usize = 16;
/// Bytes of an IPv4 outer header with UDP and the tunnel's.
pub const OVERHEAD_V4: usize = 20 + 8 + HEADER;
/// Bytes of an IPv6 outer header with UDP and the tunnel's.
pub const OVERHEAD_V6: usize = 40 + 8 + HEADER;
/// UDP port where none is configured.
pub const PORT: u16 = 7183;

const VERSION: u32 = 1;

/// How often a packet was sent on. It only grows, so that no packet runs in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Round {
    /// By the balancer that the client's packet came to.
    First = 0,
    /// By the first owner, which does not know the flow, to the slot's other owner.
    Second = 1,
    /// Back to the first owner: nobody knows the flow, so it begins there.
    Last = 2,
}

/// The backends that a header names, as its receiver knows them; id 0: it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The one chosen.
    pub chosen: BackendId,
    /// The slot's other owner.
    pub other: BackendId,
}

impl Named {
    /// Who is asked next for a flow that the receiver does not know, and whom that one may ask in turn. `own`: owners of the slot at
    /// the receiver, if those count; they know of changes that were before the sender's time. `node`: the balancer that a backend
    /// is reached by, if it is not here.
    #[inline(always)]
    pub fn next(self, own: Option<Owners>, node: impl Fn(BackendId) -> Option<Addr>) -> Option<Self> {
        let Self { chosen, other } = self;
        let elsewhere = node(other);
        let Some(Owners { current, previous }) = own else {
            return elsewhere.map(|_| Self { chosen: other, other: chosen });
        };
        let nobody = BackendId(0);
        let is_untold = ![nobody.0, current.0, chosen.0, other.0].contains(&previous.0);
        if !is_untold {
            // Who was chosen without knowing of a change has no flow of it.
            let is_owner = chosen.0 == current.0 || chosen.0 == previous.0;
            return elsewhere.map(|_| Self { chosen: other, other: if is_owner { chosen } else { nobody } });
        }
        match node(previous) {
            // One node tells of all its flows at once, and what it does not know is older.
            Some(there) if elsewhere.is_none_or(|it| it == there) => {
                Some(Self { chosen: previous, other: nobody })
            }
            _ => elsewhere.map(|_| Self { chosen: other, other: previous }),
        }
    }
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

    #[test]
    fn who_does_not_know_a_flow_sends_it_to_whoever_may() {
        let own = |current, previous| Some(Owners { current, previous });
        type Case<'a> = (&'a str, [BackendId; 2], Option<Owners>, Option<[BackendId; 2]>);
        let cases: [Case<'_>; 10] = [
            ("to the other owner, and back", [HERE, A], None, Some([A, HERE])),
            ("where it is, the other one being here", [A, HERE], None, None),
            ("the same tables here", [HERE, A], own(A, HERE), Some([A, HERE])),
            ("the sender knows of no change", [HERE, NOBODY], own(HERE, A), Some([A, NOBODY])),
            ("nor does anybody here", [HERE, NOBODY], own(HERE, NOBODY), None),
            ("chosen for want of one who knows", [HERE, A], own(A, NOBODY), Some([A, NOBODY])),
            ("the same, and it had another one before", [HERE, A], own(A, B), Some([A, B])),
            ("which is on one node with the other", [HERE, BESIDE], own(BESIDE, B), Some([B, NOBODY])),
            ("which is here", [BackendId(9), A], own(A, HERE), Some([A, HERE])),
            ("a settled slot of this balancer's", [HERE, NOBODY], own(A, NOBODY), None),
        ];
        for (case, [chosen, other], own, expected) in cases {
            let next = Named { chosen, other }.next(own, node);

            assert_eq!(next.map(|next| [next.chosen, next.other]), expected, "{case}");
        }
    }
}
