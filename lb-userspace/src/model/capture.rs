//! Packets that the kernel program shows, and which of them are asked for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Which packets to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Names of verdicts, beginnings of names with `*`, or `pass`, `drop`, `send`; empty: all.
    pub verdicts: BTreeSet<String>,
    /// Only packets from or to this address, and this port unless it is 0.
    pub vip: Option<(IpAddr, u16)>,
    /// Only packets from or to this address.
    pub host: Option<IpAddr>,
    /// One packet in this many.
    pub every: u32,
    /// Packets per second and CPU at most; 0: as many as there are.
    pub rate: u32,
    /// Bytes shown of each packet.
    pub snap: u16,
}

/// What the program did with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Left to the stack.
    Pass,
    /// Discarded.
    Drop,
    /// Sent out.
    Send,
}

/// One packet as it left, or, if it was dropped or passed, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When, since the epoch.
    pub at: Duration,
    /// Interface that it came in by.
    pub interface: String,
    /// Name of its verdict.
    pub verdict: &'static str,
    /// What the program did.
    pub action: Action,
    /// The number that it returned to the kernel.
    pub xdp_action: u8,
    /// Protocol, source and destination as they came, where they could be read.
    pub flow: Option<(u8, SocketAddr, SocketAddr)>,
    /// Bytes of the whole frame.
    pub length: u32,
    /// Its beginning.
    pub bytes: Vec<u8>,
}

/// How a capture went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Packets that the filter wanted, before sampling.
    pub matched: u64,
    /// Those held back by the rate.
    pub held_back: u64,
    /// Those that came faster than they were read.
    pub lost: u64,
}
