//! The name of everything that can happen to a packet. Metrics, documents, tests and `explain`
//! use these names and no others.

/// What became of a packet, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Verdict {
    /// Passed: the destination is none of our addresses (or it is no IP packet). Not counted in
    /// the packet path; the interface's own counters tell.
    NotOurs = 0,
    /// Passed: the frame was sent to another host's MAC and only seen because the interface
    /// listens to everything.
    OtherMac,
    /// Passed: for one of the host's own addresses, on a port that no VIP uses.
    Node,
    /// Passed: a port in the SNAT range, but no flow of ours.
    NatReplyMiss,
    /// Passed: ICMP to one of our addresses.
    Icmp,
    /// Passed: the hop limit ends at one of the host's own addresses; the stack answers for it.
    Ttl,
    /// Passed to the proxy's listener.
    Punted,
    /// Sent to a backend, addresses untouched. Counted per backend.
    ForwardedL2,
    /// Sent to a backend, addresses translated. Counted per backend.
    ForwardedNat,
    /// A backend's answer, translated back and sent to the client.
    RepliedNat,
    /// Dropped: the VIP's address is ours alone and nobody serves this port.
    ClosedPort,
    /// Dropped: neither TCP nor UDP nor ICMP, to an address that is only a VIP.
    OtherProtocol,
    /// Dropped: a fragment to an address that is only a VIP.
    Fragment,
    /// Dropped: IPv4 options, to an address that is only a VIP.
    IpOptions,
    /// Dropped: IPv6 extension headers, to an address that is only a VIP.
    Ip6Extension,
    /// Dropped: shorter than its own headers say, to an address that is only a VIP.
    Truncated,
    /// Dropped: the hop limit ends here, at an address that is only a VIP.
    TtlOfVip,
    /// Dropped: the VIP has no backend.
    NoBackend,
    /// Dropped: larger than the next hop takes.
    TooBig,
    /// Dropped: the next hop's MAC is not known (yet).
    Unresolved,
    /// Dropped: the backend's interface cannot be redirected to.
    NoDevice,
    /// Dropped: a reset of a flow that nobody remembers.
    StrayReset,
    /// Dropped: no free SNAT port towards this backend.
    NatPortsExhausted,
    /// Dropped: the table of translated flows is full.
    NatTableFull,
    /// Dropped: two flows with one 64-bit hash; the later one loses.
    NatCollision,
    /// Dropped: a table reads as no user space writes it.
    Corrupt,
}

/// What XDP does with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Left to the stack.
    Pass,
    /// Discarded.
    Drop,
    /// Sent out, through the same or another interface.
    Send,
}

impl Verdict {
    /// Every verdict, in the order of its number.
    pub const ALL: [Self; 26] = [
        Self::NotOurs,
        Self::OtherMac,
        Self::Node,
        Self::NatReplyMiss,
        Self::Icmp,
        Self::Ttl,
        Self::Punted,
        Self::ForwardedL2,
        Self::ForwardedNat,
        Self::RepliedNat,
        Self::ClosedPort,
        Self::OtherProtocol,
        Self::Fragment,
        Self::IpOptions,
        Self::Ip6Extension,
        Self::Truncated,
        Self::TtlOfVip,
        Self::NoBackend,
        Self::TooBig,
        Self::Unresolved,
        Self::NoDevice,
        Self::StrayReset,
        Self::NatPortsExhausted,
        Self::NatTableFull,
        Self::NatCollision,
        Self::Corrupt,
    ];

    /// Kebab-case name: the label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotOurs => "not-ours",
            Self::OtherMac => "other-mac",
            Self::Node => "node",
            Self::NatReplyMiss => "nat-reply-miss",
            Self::Icmp => "icmp",
            Self::Ttl => "ttl",
            Self::Ip6Extension => "ip6-extension",
            Self::Punted => "punted",
            Self::ForwardedL2 => "forwarded-l2",
            Self::ForwardedNat => "forwarded-nat",
            Self::RepliedNat => "replied-nat",
            Self::ClosedPort => "closed-port",
            Self::OtherProtocol => "other-protocol",
            Self::Fragment => "fragment",
            Self::IpOptions => "ip-options",
            Self::Truncated => "truncated",
            Self::TtlOfVip => "ttl-of-vip",
            Self::NoBackend => "no-backend",
            Self::TooBig => "too-big",
            Self::Unresolved => "unresolved-next-hop",
            Self::NoDevice => "no-device",
            Self::StrayReset => "stray-reset",
            Self::NatPortsExhausted => "nat-ports-exhausted",
            Self::NatTableFull => "nat-table-full",
            Self::NatCollision => "nat-collision",
            Self::Corrupt => "corrupt",
        }
    }

    /// What XDP does with the packet.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::NotOurs
            | Self::OtherMac
            | Self::Node
            | Self::NatReplyMiss
            | Self::Icmp
            | Self::Ttl
            | Self::Punted => Action::Pass,
            Self::ForwardedL2 | Self::ForwardedNat | Self::RepliedNat => Action::Send,
            Self::ClosedPort
            | Self::OtherProtocol
            | Self::Fragment
            | Self::IpOptions
            | Self::Ip6Extension
            | Self::Truncated
            | Self::TtlOfVip
            | Self::NoBackend
            | Self::TooBig
            | Self::Unresolved
            | Self::NoDevice
            | Self::StrayReset
            | Self::NatPortsExhausted
            | Self::NatTableFull
            | Self::NatCollision
            | Self::Corrupt => Action::Drop,
        }
    }
}
