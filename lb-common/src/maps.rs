//! Names and sizes of the maps. Tables are one-element arrays, so that user space can map them
//! into its memory; every size is a power of two, so that an index is made safe by a mask.

/// Words of a 64-byte line.
pub const LINE: usize = 8;

/// Lines of one half of the address table (1 MiB a half).
pub const ADDR_LINES: u32 = 1 << 14;
/// Lines of one half of the VIP table (1 MiB a half).
pub const VIP_LINES: u32 = 1 << 14;
/// Records, one per balanced VIP (1 MiB).
pub const RECORDS: u32 = 1 << 14;
/// Backend lines (2 MiB); an id fits beside the contested mark of a slot.
pub const BACKENDS: u32 = 1 << 15;
/// Maglev slots of two bytes, all tables together (8 MiB).
pub const POOL_SLOTS: u32 = 1 << 22;
/// Our interfaces' MACs by `ifindex % INTERFACES`.
pub const INTERFACES: u32 = 1 << 10;
/// Beside the MAC of an interface that frames leave by a redirect even where they came in by it.
///
/// veth does not wake its peer for `XDP_TX` unless the peer has an XDP program of its own
/// (`veth_xdp_flush` in drivers/net/veth.c); a redirect always does.
pub const NO_XDP_TX: u64 = 1 << 63;
/// Counters of one CPU for backends: packets and bytes.
pub const BACKEND_COUNTERS: usize = 2 * BACKENDS as usize;
/// Counters of one CPU for verdicts.
pub const VERDICTS: usize = 64;
/// Rows of the per-CPU counters at most; the loader makes as many as there are CPUs.
pub const CPUS: usize = 1024;
/// Translated flows at most.
pub const NAT_FLOWS: usize = 1 << 17;
/// Sockets per family and listener class.
pub const SOCKETS_PER_CLASS: u32 = 256;

/// Index of a worker's listener in the socket map.
#[inline(always)]
pub const fn socket_index(https: bool, ipv6: bool, worker: u32) -> u32 {
    (https as u32 * 2 + ipv6 as u32) * SOCKETS_PER_CLASS + (worker & (SOCKETS_PER_CLASS - 1))
}

/// Configuration line.
pub const CONFIG: &str = "CONFIG";
/// Address table.
pub const ADDRS: &str = "ADDRS";
/// VIP table.
pub const VIPS: &str = "VIPS";
/// VIP records.
pub const RECORD_LINES: &str = "RECORDS";
/// Maglev slots.
pub const POOL: &str = "POOL";
/// Backend lines.
pub const BACKEND_LINES: &str = "BACKENDS";
/// MACs of our interfaces.
pub const INTERFACE_MACS: &str = "INTERFACES";
/// Packets and bytes per backend, one row per CPU.
pub const COUNTS: &str = "COUNTS";
/// Packets per verdict, one row per CPU.
pub const VERDICT_COUNTS: &str = "VERDICTS";
/// Translated flows, client to backend.
pub const NAT_FORWARD: &str = "NAT_FORWARD";
/// Translated flows, backend to client.
pub const NAT_REVERSE: &str = "NAT_REVERSE";
/// Interfaces that can be redirected to.
pub const DEVICES: &str = "DEVICES";
/// Listening sockets of the proxy.
pub const SOCKETS: &str = "SOCKETS";
