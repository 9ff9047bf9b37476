//! Names and sizes of the maps. What user space lays out and packets read is one map, [`TABLES`],
//! whose address the loader puts into the program, so that packets look nothing up; one word in it tells the
//! layout's version. Every size is a power of two, so that an index is made safe by a mask.

/// Words of a 64-byte line.
pub const LINE: usize = 8;

/// Lines of one half of the address table (1 MiB a half).
pub const ADDR_LINES: u32 = 1 << 14;
/// Lines of one half of the VIP table (1 MiB a half).
pub const VIP_LINES: u32 = 1 << 14;
/// Records, one per balanced VIP (1 MiB).
pub const RECORDS: u32 = 1 << 14;
/// Backends of two lines each (4 MiB); an id fits beside the contested mark of a slot.
pub const BACKENDS: u32 = 1 << 15;
/// Maglev slots of two bytes, all tables together (8 MiB).
pub const POOL_SLOTS: u32 = 1 << 22;
/// Our interfaces' MACs by `ifindex % INTERFACES`.
pub const INTERFACES: u32 = 1 << 10;
/// Remembered flows at most, of one word each (8 MiB); [`crate::config::flow_bits`] says how many
/// are in use.
pub const FLOWS: u32 = 1 << 20;

/// What is said of an interface: its MAC in bits 16 to 63 (0: do not check), and flags. The MAC stands where a frame that is
/// shifted by 16 bits has its destination, so one comparison finds a frame that is another host's and
/// one that the ladder has to see.
#[inline(always)]
pub const fn interface(mac: crate::Mac) -> u64 {
    mac.word() << 16
}

/// Flag of an interface that frames leave by a redirect even where they came in by it.
///
/// veth does not wake its peer for `XDP_TX` unless the peer has an XDP program of its own
/// (`veth_xdp_flush` in drivers/net/veth.c); a redirect always does.
pub const NO_XDP_TX: u64 = 1;
/// Flag of every interface while packets are shown ([`crate::config::capturing`]): the fast path shows none. Above all
/// flags that it bears.
pub const SHOWN: u64 = 2;

/// Where [`TABLES`] lies, as the program says it: the loader finds the loads of an address with this
/// upper half and lets the kernel put the map's true address there, so that no packet looks it up.
pub const TABLES_ADDRESS: u64 = 0x7e5b_1e50 << 32;
/// The same for [`COUNTS`].
pub const COUNTS_ADDRESS: [u64; BANKS] =
    [0x7e5b_1e51 << 32, 0x7e5b_1e54 << 32, 0x7e5b_1e55 << 32, 0x7e5b_1e56 << 32];
/// Where the loader puts the first CPU whose counters are not in this one of [`COUNTS`], nor in one before.
pub const COUNTS_END: [u64; BANKS] =
    [0x7e5b_1e52 << 32, 0x7e5b_1e57 << 32, 0x7e5b_1e58 << 32, 0x7e5b_1e59 << 32];

/// Where each table begins within [`TABLES`], in words.
pub mod at {
    use super::*;

    /// Epoch and settings, then the filter of [`crate::capture`]; a page of its own.
    pub const CONFIG: usize = 0;
    /// MACs of our interfaces.
    pub const INTERFACES: usize = 64 * LINE;
    /// Address table, both halves.
    pub const ADDRS: usize = INTERFACES + super::INTERFACES as usize;
    /// VIP table, both halves.
    pub const VIPS: usize = ADDRS + 2 * ADDR_LINES as usize * LINE;
    /// VIP records.
    pub const RECORDS: usize = VIPS + 2 * VIP_LINES as usize * LINE;
    /// Backends.
    pub const BACKENDS: usize = RECORDS + super::RECORDS as usize * LINE;
    /// Maglev slots, four to a word.
    pub const POOL: usize = BACKENDS + 2 * super::BACKENDS as usize * LINE;
    /// Remembered flows.
    pub const FLOWS: usize = POOL + POOL_SLOTS as usize / 4;
    /// Leases of translated flows.
    pub const LEASES: usize = FLOWS + super::FLOWS as usize;
    /// Bytes of [`crate::shortcut::FILTER`].
    pub const FILTER: usize = LEASES + 2 * crate::lease::LEASES as usize;
    /// Words in all (29 MiB).
    pub const END: usize = FILTER + crate::shortcut::FILTER as usize / 8;
}

/// Counters of one backend on one CPU, as an offset into its four words.
pub mod count {
    /// Packets sent to it.
    pub const PACKETS: usize = 0;
    /// Bytes of their IP packets.
    pub const BYTES: usize = 1;
    /// Flows begun, as far as they can be told: TCP by its SYN, UDP where it is remembered.
    pub const FLOWS: usize = 2;
    /// Words per backend.
    pub const WORDS: usize = 4;
}

/// Where the counters of one CPU begin within its row of [`COUNTS`], in words.
pub mod row {
    use super::*;

    /// Verdicts and events (see [`crate::verdict`]).
    pub const VERDICTS: usize = 0;
    /// The kernel's ticks when this CPU last asked for the time, and what it was (see
    /// [`crate::flows::clock`]).
    pub const CLOCK: usize = 126;
    /// Backends, [`count::WORDS`] each.
    pub const BACKENDS: usize = 128;
    /// VIPs whose pool serves several, by record, [`count::WORDS`] each.
    pub const VIPS: usize = BACKENDS + count::WORDS * super::BACKENDS as usize;
    /// Words in all (1.5 MiB).
    pub const END: usize = VIPS + count::WORDS * RECORDS as usize;
    /// The same in bytes.
    pub const BYTES: usize = END * size_of::<u64>();
}

/// Maps of counters at most; the loader makes as many as it takes to have a row for each CPU and one more: one, but on very
/// large hosts.
pub const BANKS: usize = 4;
/// Rows of one of them at most: the verifier follows no variable offset of 512 MiB (`BPF_MAX_VAR_OFF`, Linux 6.18).
pub const BANK_ROWS: usize = 340;
const _: () = assert!(BANK_ROWS * row::BYTES < 1 << 29);
/// CPUs that a host may have: the last row is user space's own.
pub const CPUS: usize = BANKS * BANK_ROWS - 1;
/// Datagrams whose first fragment is remembered.
pub const FRAGMENT_ENTRIES: usize = 1 << 13;
/// Translated flows at most.
pub const NAT_FLOWS: usize = 1 << 17;
/// Source ranges at most, all sets together.
pub const RANGES_ENTRIES: usize = 1 << 16;
/// Balancers that may send us tunnelled packets, at most.
pub const PEERS_ENTRIES: usize = 1 << 14;
/// VIPs whose former holder is known at most: as many as a node can serve.
pub const FORMERS_ENTRIES: usize = 1 << 16;
/// Agents that share our links at most.
pub const AGENTS_ENTRIES: usize = 1 << 12;
/// Bits of a key of [`RANGES`]: the set's number, then an address (IPv4 as v4-mapped IPv6).
pub const RANGE_BITS: u32 = 32 + 128;
/// Sockets per family and listener class.
pub const SOCKETS_PER_CLASS: u32 = 256;

/// Key of [`FORMERS`]: a VIP, and our own MAC on the link on which we took it over.
#[inline(always)]
pub const fn former_key(vip: crate::Addr, own: u64) -> [u64; 3] {
    [vip.hi, vip.lo, own]
}

/// Index of a worker's listener in the socket map.
#[inline(always)]
pub const fn socket_index(https: bool, ipv6: bool, worker: u32) -> u32 {
    (https as u32 * 2 + ipv6 as u32) * SOCKETS_PER_CLASS + (worker & (SOCKETS_PER_CLASS - 1))
}

/// Key of [`TUNNEL_TAGS`]: the pool's tag here, and the backend's name within the tunnel. A tag that
/// matches by accident thus never leads to another Service.
#[inline(always)]
pub const fn tag_key(pool_tag: u16, tunnel_tag: u32) -> u64 {
    (pool_tag as u64) << 32 | tunnel_tag as u64
}

/// Everything that user space lays out, mapped by it.
pub const TABLES: &str = "TABLES";
/// Counters, a row for each CPU and one of user space's own, as many in each of them.
pub const COUNTS: [&str; BANKS] = ["COUNTS", "COUNTS_1", "COUNTS_2", "COUNTS_3"];
/// Translated flows, client to backend.
pub const NAT_FORWARD: &str = "NAT_FORWARD";
/// Translated flows, backend to client.
pub const NAT_REVERSE: &str = "NAT_REVERSE";
/// Translated flows in the order in which they began, see [`crate::ports::RINGS`].
pub const BEGUN: &str = "BEGUN";
/// Interfaces that can be redirected to.
pub const DEVICES: &str = "DEVICES";
/// Listening sockets of the proxy.
pub const SOCKETS: &str = "SOCKETS";
/// Backends on this host, and on those that we tunnel to, by [`tag_key`].
pub const TUNNEL_TAGS: &str = "TUNNEL_TAGS";
/// Tunnel addresses of the other balancers.
pub const PEERS: &str = "PEERS";
/// Sources that may use a VIP: (set of ranges, address) to nothing, longest prefix first.
pub const RANGES: &str = "RANGES";
/// Ports of a datagram whose first fragment was seen.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// MACs of the agents that held VIPs of the proxy before us, by [`former_key`].
pub const FORMERS: &str = "FORMERS";
/// MACs of the other agents on our links.
pub const AGENTS: &str = "AGENTS";
/// Not 0 while there are [`FORMERS`].
pub const FORMERS_KNOWN: &str = "FORMERS_KNOWN";
/// Packets shown to [`crate::capture`].
pub const CAPTURED: &str = "CAPTURED";
/// What each CPU keeps while it captures ([`crate::capture::state`]).
pub const CAPTURE_STATE: &str = "CAPTURE_STATE";
/// The programs behind the ladder's tail calls, by [`Program`].
pub const PROGRAMS: &str = "PROGRAMS";

/// Places in the program array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Program {
    /// Tags, options, extension headers, fragments.
    Slow = 0,
    /// Translation towards a backend (`nat`, `local`).
    Translate = 1,
    /// A backend's answer to a translated flow.
    Reply = 2,
    /// ICMP to one of our addresses.
    Icmp = 3,
    /// Tells the sender that its packet went nowhere.
    Refuse = 4,
    /// A packet that another balancer sent through the tunnel.
    Tunnel = 5,
    /// Shows the packet to who asked for it, whatever became of it.
    Capture = 6,
    /// The whole ladder, for what is not plain enough for the fast path.
    Ladder = 7,
    /// The ladder from the five-tuple on, for a packet whose headers `Slow` has found.
    Onward = 8,
    /// Pushes the VLAN tags that a frame leaves with.
    Tagged = 9,
    /// An error about a packet that we wrapped: it was too large for a router on its way.
    Narrow = 10,
    /// A segment to the proxy whose connection may have been made at the VIP's former holder.
    Former = 11,
}

impl Program {
    /// Every program with its name in the object.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Slow, "penstock_slow"),
        (Self::Translate, "penstock_translate"),
        (Self::Reply, "penstock_reply"),
        (Self::Icmp, "penstock_icmp"),
        (Self::Refuse, "penstock_refuse"),
        (Self::Tunnel, "penstock_tunnel"),
        (Self::Capture, "penstock_capture"),
        (Self::Ladder, "penstock_ladder"),
        (Self::Onward, "penstock_onward"),
        (Self::Tagged, "penstock_tagged"),
        (Self::Narrow, "penstock_narrow"),
        (Self::Former, "penstock_former"),
    ];
}
