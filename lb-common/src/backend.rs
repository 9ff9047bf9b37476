//! The two lines of a backend: where it is and how a packet gets there.
//!
//! The first holds what every packet needs, the second what only the tunnel and tagged ways do.

use crate::{Addr, Lines, Tags, csum, tunnel};

/// Index of a backend's line; 0 is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct BackendId(pub u16);

/// Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The bytes as the low 48 bits of a word, in wire order.
    pub const fn word(self) -> u64 {
        let Self([a, b, c, d, e, f]) = self;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How a packet reaches a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Destination MAC rewritten only.
    L2 = 1,
    /// Wrapped into IPv4 or IPv6 for a backend that unwraps it itself (RFC 2003, RFC 2473).
    Ipip = 2,
    /// Wrapped into UDP for the balancer on the backend's host (see [`crate::tunnel`]).
    Tunnel = 3,
    /// Destination and source translated.
    Nat = 4,
    /// Destination translated and left to the stack: a backend on this host.
    Local = 5,
}

impl Mode {
    /// The mode of a number; `None` for one that nobody writes.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::L2,
            2 => Self::Ipip,
            3 => Self::Tunnel,
            4 => Self::Nat,
            5 => Self::Local,
            _ => return None,
        })
    }

    /// Whether packets are translated, which takes state per flow.
    #[inline(always)]
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::Nat | Self::Local)
    }
}

/// What the packets of a backend get in front of them, in one number; 0: they are translated, or nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrap(pub u8);

impl Wrap {
    /// Not sent on as they are.
    pub const NONE: Self = Self(0);
    /// An Ethernet header.
    pub const ETHERNET: Self = Self(1);
    /// An IPv4 header.
    pub const IPIP_V4: Self = Self(2);
    /// An IPv6 header.
    pub const IPIP_V6: Self = Self(3);
    /// The tunnel's headers over IPv4.
    pub const TUNNEL_V4: Self = Self(4);
    /// The tunnel's headers over IPv6.
    pub const TUNNEL_V6: Self = Self(5);
    /// Nothing, because it goes nowhere: this host is the backend, and its stack delivers the packet as it came.
    pub const HERE: Self = Self(6);

    /// That of a mode, the family of the address that packets are sent to, and the next hop.
    const fn of(mode: Mode, is_v4: bool, next_hop: NextHop) -> Self {
        match (mode, is_v4) {
            (Mode::L2 | Mode::Ipip, _) if next_hop.is_here() => Self::HERE,
            (Mode::L2, _) => Self::ETHERNET,
            (Mode::Ipip, true) => Self::IPIP_V4,
            (Mode::Ipip, false) => Self::IPIP_V6,
            (Mode::Tunnel, true) => Self::TUNNEL_V4,
            (Mode::Tunnel, false) => Self::TUNNEL_V6,
            (Mode::Nat | Mode::Local, _) => Self::NONE,
        }
    }

    /// Bytes of the headers behind Ethernet's.
    const fn bytes(self) -> u16 {
        match self {
            Self::IPIP_V4 => 20,
            Self::IPIP_V6 => 40,
            Self::TUNNEL_V4 => tunnel::OVERHEAD_V4 as u16,
            Self::TUNNEL_V6 => tunnel::OVERHEAD_V6 as u16,
            _ => 0,
        }
    }
}

/// Destination and source MAC as they stand in front of a packet, and the interface to leave by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct NextHop {
    /// Bytes 0 to 7 of the Ethernet header: destination MAC, start of the source MAC.
    pub head: u64,
    /// Bytes 8 to 11: rest of the source MAC.
    pub tail: u32,
    /// Interface the packet leaves by; 0: unresolved.
    pub ifindex: u32,
}

impl NextHop {
    /// This host itself. Without an interface, so that the fast path leaves it to the ladder.
    pub const HERE: Self = Self { head: u64::MAX, tail: u32::MAX, ifindex: 0 };

    /// Whether it is [`NextHop::HERE`].
    pub const fn is_here(self) -> bool {
        let Self { head, tail, ifindex } = self;
        head == u64::MAX && tail == u32::MAX && ifindex == 0
    }

    /// Next hop from its parts.
    pub const fn new(dst: Mac, src: Mac, ifindex: u32) -> Self {
        let src = src.word();
        Self { head: dst.word() | src << 48, tail: (src >> 16) as u32, ifindex }
    }

    /// Destination MAC.
    pub const fn dst(self) -> Mac {
        let [a, b, c, d, e, f, _, _] = self.head.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// Source MAC.
    pub const fn src(self) -> Mac {
        let [_, _, _, _, _, _, a, b] = self.head.to_le_bytes();
        let [c, d, e, f] = self.tail.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }
}

/// A backend as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Address that its packets are sent to: its own, or that of its host in `tunnel` mode.
    pub addr: Addr,
    /// Our address towards it: the source in `nat` mode and of outer headers.
    pub source: Addr,
    /// Where its packets go; `ifindex` 0 while unresolved, or [`NextHop::HERE`].
    pub next_hop: NextHop,
    /// VLAN tags that its frames leave with.
    pub tags: Tags,
    /// Port in wire order.
    pub wire_port: u16,
    /// How packets reach it.
    pub mode: Mode,
    /// Takes no new flows: it drains, or its weight is 0.
    pub draining: bool,
    /// Differs from the backend that had this id before, never 0: a remembered flow compares it.
    pub generation: u16,
    /// Largest IP packet the next hop takes.
    pub mtu: u16,
    /// Tag of its pool: a remembered flow must not lead out of it.
    pub pool_tag: u16,
    /// Its own address; differs from `addr` in `tunnel` mode only.
    pub inner: Addr,
    /// Its name within the tunnel (see [`crate::tunnel::tag`]).
    pub tunnel_tag: u32,
}

impl Backend {
    /// Words of both lines. The destination MAC and the identity (port, mode, generation) are one
    /// word each, so a store never shows half of either. Behind tags the interface stands in the second
    /// line alone: the fast path pushes none, and leaves what looks unresolved to the ladder.
    pub const fn words(self) -> [[u64; 8]; 2] {
        let Self { addr, source, next_hop, tags, wire_port, mode, .. } = self;
        let Self { draining, generation, mtu, pool_tag, inner, tunnel_tag, .. } = self;
        let draining = if draining { Identity::DRAINING } else { 0 };
        let wrap = Wrap::of(mode, addr.is_v4(), next_hop);
        let sum = csum::fold(csum::addresses(source.raw_v4(), addr.raw_v4()));
        let identity = wire_port as u64
            | (mode as u64) << 16
            | draining
            | (wrap.0 as u64) << 24
            | (generation as u64) << 32
            | (mtu.saturating_sub(wrap.bytes()) as u64) << 48;
        let outer = pool_tag as u64 | (sum as u64) << 32;
        let (plain, tagged) = if tags.is_none() { (next_hop.ifindex, 0) } else { (0, next_hop.ifindex) };
        [
            [
                addr.hi,
                addr.lo,
                source.hi,
                source.lo,
                next_hop.head,
                next_hop.tail as u64 | (plain as u64) << 32,
                identity,
                outer,
            ],
            [
                inner.hi,
                inner.lo,
                tunnel_tag as u64,
                generation as u64,
                tagged as u64 | (tags.0 as u64) << 32,
                0,
                0,
                0,
            ],
        ]
    }

    /// [`Backend::words`] undone; `None` where no backend lives, or one of a mode that nobody writes.
    pub const fn from_words(words: &[[u64; 8]; 2]) -> Option<Self> {
        let [[a0, a1, s0, s1, head, hop, identity, outer], [i0, i1, tunnel_tag, _, tagged, ..]] = *words;
        let tags = Tags((tagged >> 32) as u32);
        let ifindex = if tags.is_none() { (hop >> 32) as u32 } else { tagged as u32 };
        let identity = Identity(identity);
        let Some(mode) = Mode::from_number(identity.mode()) else { return None };
        if !identity.is_alive() {
            return None;
        }
        Some(Self {
            addr: Addr { hi: a0, lo: a1 },
            source: Addr { hi: s0, lo: s1 },
            next_hop: NextHop { head, tail: hop as u32, ifindex },
            tags,
            wire_port: identity.wire_port(),
            mode,
            draining: identity.is_draining(),
            generation: identity.generation(),
            mtu: identity.mtu(),
            pool_tag: outer as u16,
            inner: Addr { hi: i0, lo: i1 },
            tunnel_tag: tunnel_tag as u32,
        })
    }
}

/// Word 6 of the first line, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub u64);

impl Identity {
    const DRAINING: u64 = 1 << 23;

    /// Port in wire order.
    #[inline(always)]
    pub const fn wire_port(self) -> u16 {
        self.0 as u16
    }

    /// [`Mode`] as its number; 0: no backend has this id.
    #[inline(always)]
    pub const fn mode(self) -> u8 {
        (self.0 >> 16) as u8 & 0x7f
    }

    /// Takes no new flows.
    #[inline(always)]
    pub const fn is_draining(self) -> bool {
        self.0 & Self::DRAINING != 0
    }

    /// What its packets get in front of them.
    #[inline(always)]
    pub const fn wrap(self) -> Wrap {
        Wrap((self.0 >> 24) as u8)
    }

    /// Generation; 0: no backend has this id.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Whether a backend has this id.
    #[inline(always)]
    pub const fn is_alive(self) -> bool {
        self.generation() != 0
    }

    /// The largest packet whose path takes it with what it gets in front. 0: nobody's.
    #[inline(always)]
    pub const fn room(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The largest IP packet that its path takes.
    pub const fn mtu(self) -> u16 {
        self.room().saturating_add(self.wrap().bytes())
    }
}

/// Line of a backend within the table.
#[inline(always)]
pub const fn line(id: BackendId) -> u32 {
    id.0 as u32 * 2
}

/// Reads the address that a backend's packets are sent to.
#[inline(always)]
pub fn addr(table: &impl Lines, id: BackendId) -> Addr {
    Addr { hi: table.word(line(id), 0), lo: table.word(line(id), 1) }
}

/// Reads our source address towards a backend.
#[inline(always)]
pub fn source(table: &impl Lines, id: BackendId) -> Addr {
    Addr { hi: table.word(line(id), 2), lo: table.word(line(id), 3) }
}

/// [`addr`] where it is known to be IPv4.
#[inline(always)]
pub fn addr_v4(table: &impl Lines, id: BackendId) -> u32 {
    table.high(line(id), 1)
}

/// [`source`] where it is known to be IPv4.
#[inline(always)]
pub fn source_v4(table: &impl Lines, id: BackendId) -> u32 {
    table.high(line(id), 3)
}

/// Reads the next hop of a backend; `ifindex` 0: unresolved, or [`tagged_next_hop`] has it.
#[inline(always)]
pub fn next_hop(table: &impl Lines, id: BackendId) -> NextHop {
    let rest = table.word(line(id), 5);
    NextHop { head: table.word(line(id), 4), tail: rest as u32, ifindex: (rest >> 32) as u32 }
}

/// Reads the identity of a backend.
#[inline(always)]
pub fn identity(table: &impl Lines, id: BackendId) -> Identity {
    Identity(table.word(line(id), 6))
}

/// Reads [`Identity::wrap`].
#[inline(always)]
pub fn wrap(table: &impl Lines, id: BackendId) -> Wrap {
    Wrap(table.byte(line(id), 6, 3))
}

/// Reads [`Identity::room`].
#[inline(always)]
pub fn room(table: &impl Lines, id: BackendId) -> u16 {
    table.quarter(line(id), 6, 3)
}

/// Reads the interface of a backend's next hop; 0 as in [`next_hop`].
#[inline(always)]
pub fn ifindex(table: &impl Lines, id: BackendId) -> u32 {
    table.high(line(id), 5)
}

/// Reads the tag of a backend's pool.
#[inline(always)]
pub fn pool_tag(table: &impl Lines, id: BackendId) -> u16 {
    table.word(line(id), 7) as u16
}

/// Reads the sum of both addresses of an outer IPv4 header, not negated.
#[inline(always)]
pub fn outer_sum(table: &impl Lines, id: BackendId) -> u16 {
    table.quarter(line(id), 7, 2)
}

/// Reads the next hop of a backend behind VLAN tags, and those; `ifindex` 0: there is none.
#[inline(always)]
pub fn tagged_next_hop(table: &impl Lines, id: BackendId) -> (NextHop, Tags) {
    let word = table.word(line(id) + 1, 4);
    (NextHop { ifindex: word as u32, ..next_hop(table, id) }, Tags((word >> 32) as u32))
}

/// Reads a backend's own address.
#[inline(always)]
pub fn inner(table: &impl Lines, id: BackendId) -> Addr {
    Addr { hi: table.word(line(id) + 1, 0), lo: table.word(line(id) + 1, 1) }
}

/// Reads the generation that an id had last; unlike the identity's it outlives the backend, so that
/// the next one gets another.
pub fn last_generation(table: &impl Lines, id: BackendId) -> u16 {
    table.word(line(id) + 1, 3) as u16
}

/// Reads a backend's name within the tunnel.
#[inline(always)]
pub fn tunnel_tag(table: &impl Lines, id: BackendId) -> u32 {
    table.word(line(id) + 1, 2) as u32
}

const _: () = assert!(size_of::<NextHop>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_read_from_its_words_as_it_was_written() {
        let plain = Backend {
            addr: Addr { hi: 1, lo: 2 },
            source: Addr { hi: 3, lo: 4 },
            next_hop: NextHop::new(Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]), 13),
            tags: Tags::NONE,
            wire_port: 14,
            mode: Mode::Nat,
            draining: true,
            generation: 15,
            mtu: 1500,
            pool_tag: 16,
            inner: Addr { hi: 17, lo: 18 },
            tunnel_tag: 19,
        };
        let tagged = Backend { tags: Tags(0x1234_5678), draining: false, ..plain };

        for backend in [plain, tagged] {
            assert_eq!(Backend::from_words(&backend.words()), Some(backend));
        }
        assert_eq!(Backend::from_words(&[[0; 8]; 2]), None);
    }

    /// What the kernel program compares alone, whatever else stands in the line.
    #[test]
    fn a_line_says_what_packets_get_in_front_and_how_much_fits_behind() {
        let v4 = Addr::v4(0x0100_000a);
        let v6 = Addr { hi: 1, lo: 2 };
        let (there, here) = (NextHop::default(), NextHop::HERE);
        let cases = [
            (Mode::L2, v4, there, Wrap::ETHERNET, 1500),
            (Mode::L2, v6, there, Wrap::ETHERNET, 1500),
            (Mode::Ipip, v4, there, Wrap::IPIP_V4, 1480),
            (Mode::Ipip, v6, there, Wrap::IPIP_V6, 1460),
            (Mode::Tunnel, v4, there, Wrap::TUNNEL_V4, 1456),
            (Mode::Tunnel, v6, there, Wrap::TUNNEL_V6, 1436),
            (Mode::Nat, v4, there, Wrap::NONE, 1500),
            (Mode::Local, v6, there, Wrap::NONE, 1500),
            (Mode::L2, v4, here, Wrap::HERE, 1500),
            (Mode::Ipip, v6, here, Wrap::HERE, 1500),
        ];
        for (mode, addr, next_hop, wrap, room) in cases {
            for draining in [false, true] {
                let backend = Backend {
                    addr,
                    source: addr,
                    next_hop,
                    tags: Tags::NONE,
                    wire_port: u16::MAX,
                    mode,
                    draining,
                    generation: u16::MAX,
                    mtu: 1500,
                    pool_tag: u16::MAX,
                    inner: addr,
                    tunnel_tag: u32::MAX,
                };

                let identity = Identity(backend.words()[0][6]);

                let told = (identity.wrap(), identity.room(), identity.mtu(), identity.mode());
                assert_eq!(told, (wrap, room, 1500, mode as u8), "{mode:?} {addr:?}");
                assert_eq!(identity.is_draining(), draining);
            }
        }
    }
}
