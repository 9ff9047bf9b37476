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
    /// Passed: ICMP to one of our addresses that is the host's business.
    Icmp,
    /// Passed: the hop limit ends at one of the host's own addresses; the stack answers for it.
    Ttl,
    /// Passed to the proxy's listener.
    Punted,
    /// Passed to the stack with the destination translated to a backend on this host.
    ForwardedLocal,
    /// The answer of a backend on this host, or an ICMP error of it, translated back where it left (tc).
    RepliedLocal,
    /// Passed to the stack as it came: this host is the backend, by `l2` or `ipip`.
    ForwardedHere,
    /// Passed to the stack as it came: the backend whose it is has just sent it here, where another backend of the VIP is.
    KeptHere,
    /// Sent to a backend, addresses untouched.
    ForwardedL2,
    /// Sent to a backend within IP.
    ForwardedIpip,
    /// Sent to the balancer on the backend's host.
    ForwardedTunnel,
    /// Sent to a backend, addresses translated.
    ForwardedNat,
    /// An ICMP error sent to the backend whose flow it is about.
    ForwardedIcmp,
    /// A backend's answer, translated back and sent to the client.
    RepliedNat,
    /// An ICMP error about a backend's answer or from a backend, translated back and sent to the
    /// client.
    RepliedIcmp,
    /// A tunnelled packet of a flow that nobody here knows, sent to the slot's other owner.
    PassedOn,
    /// A segment to the proxy or to a pod of this host whose connection it does not know, sent to the agent that held its VIP
    /// before.
    ForwardedFormer,
    /// Answered with a TCP reset: nobody serves the VIP.
    ToldReset,
    /// Answered with ICMP port unreachable: nobody serves the VIP.
    ToldUnreachable,
    /// Answered with ICMP packet too big and the largest size that fits.
    ToldTooBig,
    /// Answered with ICMP time exceeded.
    ToldTimeExceeded,
    /// An echo request to a VIP, answered.
    EchoAnswered,
    /// Dropped: the VIP's address is ours alone and nobody serves this port.
    ClosedPort,
    /// Dropped: neither TCP nor UDP nor ICMP, to an address that is only a VIP.
    OtherProtocol,
    /// Dropped: a fragment whose first one was not seen, to an address that is only a VIP.
    Fragment,
    /// Dropped: a source route among the IPv4 options, to an address that is only a VIP.
    IpOptions,
    /// Dropped: IPv6 extension headers that cannot be followed, to an address that is only a VIP.
    Ip6Extension,
    /// Dropped: shorter than its own headers say, to an address that is only a VIP.
    Truncated,
    /// Dropped: the hop limit ends here, at an address that is only a VIP, and the sender cannot be told.
    TtlOfVip,
    /// Dropped: the source is none of those that may use the VIP.
    SourceRange,
    /// Dropped: the VIP has no backend here, and its Service says nothing or the sender cannot be told.
    NoBackend,
    /// Dropped: larger than the next hop takes, and the sender was told too often already.
    TooBig,
    /// Dropped: the next hop's MAC is not known (yet).
    Unresolved,
    /// Dropped: the backend's interface cannot be redirected to.
    NoDevice,
    /// Dropped: the driver leaves no room in front of the frame for an outer header.
    NoHeadroom,
    /// Dropped: a reset of a flow that nobody remembers.
    StrayReset,
    /// Dropped: an ICMP message to an address that is only a VIP, about no flow of ours.
    StrayIcmp,
    /// Dropped: the sender would be told or its echo answered, but too many were in the last second.
    RateLimited,
    /// Dropped: no free SNAT port towards this backend.
    NatPortsExhausted,
    /// Dropped: the table of translated flows is full.
    NatTableFull,
    /// Dropped: two flows with one 64-bit hash; the later one loses.
    NatCollision,
    /// Dropped: a tunnelled packet that no balancer of this cluster sent.
    TunnelForeign,
    /// Dropped: a tunnelled packet for a backend that is not here.
    TunnelStray,
    /// Dropped: a table reads as no user space writes it.
    Corrupt,
    /// Dropped: a flow to be translated begins with a source that nobody can have, or that is an address of ours:
    /// a backend's answer to it would come back as a question, for ever.
    Martian,
    /// Dropped: the backend whose it is has just sent it here, and would get it back.
    WouldCircle,
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
    pub const ALL: [Self; 49] = [
        Self::NotOurs,
        Self::OtherMac,
        Self::Node,
        Self::NatReplyMiss,
        Self::Icmp,
        Self::Ttl,
        Self::Punted,
        Self::ForwardedLocal,
        Self::RepliedLocal,
        Self::ForwardedHere,
        Self::KeptHere,
        Self::ForwardedL2,
        Self::ForwardedIpip,
        Self::ForwardedTunnel,
        Self::ForwardedNat,
        Self::ForwardedIcmp,
        Self::RepliedNat,
        Self::RepliedIcmp,
        Self::PassedOn,
        Self::ForwardedFormer,
        Self::ToldReset,
        Self::ToldUnreachable,
        Self::ToldTooBig,
        Self::ToldTimeExceeded,
        Self::EchoAnswered,
        Self::ClosedPort,
        Self::OtherProtocol,
        Self::Fragment,
        Self::IpOptions,
        Self::Ip6Extension,
        Self::Truncated,
        Self::TtlOfVip,
        Self::SourceRange,
        Self::NoBackend,
        Self::TooBig,
        Self::Unresolved,
        Self::NoDevice,
        Self::NoHeadroom,
        Self::StrayReset,
        Self::StrayIcmp,
        Self::RateLimited,
        Self::NatPortsExhausted,
        Self::NatTableFull,
        Self::NatCollision,
        Self::TunnelForeign,
        Self::TunnelStray,
        Self::Corrupt,
        Self::Martian,
        Self::WouldCircle,
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
            Self::Punted => "punted",
            Self::ForwardedLocal => "forwarded-local",
            Self::RepliedLocal => "replied-local",
            Self::ForwardedHere => "forwarded-here",
            Self::KeptHere => "kept-here",
            Self::ForwardedL2 => "forwarded-l2",
            Self::ForwardedIpip => "forwarded-ipip",
            Self::ForwardedTunnel => "forwarded-tunnel",
            Self::ForwardedNat => "forwarded-nat",
            Self::ForwardedIcmp => "forwarded-icmp",
            Self::RepliedNat => "replied-nat",
            Self::RepliedIcmp => "replied-icmp",
            Self::PassedOn => "passed-on",
            Self::ForwardedFormer => "forwarded-former",
            Self::ToldReset => "told-reset",
            Self::ToldUnreachable => "told-unreachable",
            Self::ToldTooBig => "told-too-big",
            Self::ToldTimeExceeded => "told-time-exceeded",
            Self::EchoAnswered => "echo-answered",
            Self::ClosedPort => "closed-port",
            Self::OtherProtocol => "other-protocol",
            Self::Fragment => "fragment",
            Self::IpOptions => "ip-options",
            Self::Ip6Extension => "ip6-extension",
            Self::Truncated => "truncated",
            Self::TtlOfVip => "ttl-of-vip",
            Self::SourceRange => "source-range",
            Self::NoBackend => "no-backend",
            Self::TooBig => "too-big",
            Self::Unresolved => "unresolved-next-hop",
            Self::NoDevice => "no-device",
            Self::NoHeadroom => "no-headroom",
            Self::StrayReset => "stray-reset",
            Self::StrayIcmp => "stray-icmp",
            Self::RateLimited => "rate-limited",
            Self::NatPortsExhausted => "nat-ports-exhausted",
            Self::NatTableFull => "nat-table-full",
            Self::NatCollision => "nat-collision",
            Self::TunnelForeign => "tunnel-foreign",
            Self::TunnelStray => "tunnel-stray",
            Self::Corrupt => "corrupt",
            Self::Martian => "martian-source",
            Self::WouldCircle => "would-circle",
        }
    }

    /// What XDP does with the packet: the numbers are in this order, which makes it two comparisons
    /// in the packet path.
    #[inline(always)]
    pub const fn action(self) -> Action {
        if (self as u8) < Self::ForwardedL2 as u8 {
            Action::Pass
        } else if (self as u8) < Self::ClosedPort as u8 {
            Action::Send
        } else {
            Action::Drop
        }
    }
}

/// What is counted beside the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Event {
    /// A flow was written into the flow table.
    Remembered = 64,
    /// A flow seen within the grace time was forgotten to remember another: the flow table is too
    /// small for what changes and begins.
    Forgot,
    /// The same of a flow that keeps its backend without being remembered, as its slot stands.
    Spared,
    /// A packet's flow was found in the flow table.
    FlowHit,
    /// A flow that was not remembered kept its slot's previous owner.
    Kept,
    /// The kernel's routing was asked for a next hop.
    Fib,
    /// The MSS option of a SYN-ACK was lowered.
    MssClamped,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 7] = [
        Self::Remembered,
        Self::Forgot,
        Self::Spared,
        Self::FlowHit,
        Self::Kept,
        Self::Fib,
        Self::MssClamped,
    ];

    /// Kebab-case name: the label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Remembered => "flows-remembered",
            Self::Forgot => "flows-forgotten",
            Self::Spared => "flows-spared",
            Self::FlowHit => "flow-hits",
            Self::Kept => "flows-kept",
            Self::Fib => "fib-lookups",
            Self::MssClamped => "mss-clamped",
        }
    }
}

const _: () = assert!(Verdict::ALL.len() <= Event::ALL[0] as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_numbers_and_says_what_is_done() {
        for (number, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, number, "{}", verdict.as_str());
        }
        assert_eq!(Verdict::ForwardedLocal.action(), Action::Pass);
        assert_eq!(Verdict::KeptHere.action(), Action::Pass);
        assert_eq!(Verdict::ForwardedL2.action(), Action::Send);
        assert_eq!(Verdict::EchoAnswered.action(), Action::Send);
        assert_eq!(Verdict::ClosedPort.action(), Action::Drop);
    }
}
