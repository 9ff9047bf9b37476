//! Map statics, and the only code that touches them. User space lays the flat tables out (see
//! lb-common); here they are read through masked indices and never written.

use aya_ebpf::{
    btf_maps::{Array, DevMapHash, HashMap, PerCpuArray, SockMap},
    macros::btf_map,
};
use lb_common::{
    Lines,
    maps::{self, LINE},
    nat::{Forward, Reverse},
};

/// `BPF_F_MMAPABLE`.
const SHARED: usize = 1 << 10;

const ADDR_WORDS: usize = 2 * maps::ADDR_LINES as usize * LINE;
const VIP_WORDS: usize = 2 * maps::VIP_LINES as usize * LINE;
const RECORD_WORDS: usize = maps::RECORDS as usize * LINE;
const BACKEND_WORDS: usize = maps::BACKENDS as usize * LINE;

#[btf_map]
static CONFIG: Array<[u64; LINE], 1, SHARED> = Array::new();
#[btf_map]
static ADDRS: Array<[u64; ADDR_WORDS], 1, SHARED> = Array::new();
#[btf_map]
static VIPS: Array<[u64; VIP_WORDS], 1, SHARED> = Array::new();
#[btf_map]
static RECORDS: Array<[u64; RECORD_WORDS], 1, SHARED> = Array::new();
#[btf_map]
static POOL: Array<[u16; maps::POOL_SLOTS as usize], 1, SHARED> = Array::new();
#[btf_map]
static BACKENDS: Array<[u64; BACKEND_WORDS], 1, SHARED> = Array::new();
#[btf_map]
static INTERFACES: Array<[u64; maps::INTERFACES as usize], 1, SHARED> = Array::new();
#[btf_map]
static COUNTS: Array<[u64; maps::BACKEND_COUNTERS], { maps::CPUS }, SHARED> = Array::new();
#[btf_map]
static VERDICTS: Array<[u64; maps::VERDICTS], { maps::CPUS }, SHARED> = Array::new();

/// Translated flows, client to backend.
#[btf_map]
pub static NAT_FORWARD: HashMap<u64, Forward, { maps::NAT_FLOWS }> = HashMap::new();
/// Translated flows, backend to client.
#[btf_map]
pub static NAT_REVERSE: HashMap<u64, Reverse, { maps::NAT_FLOWS }> = HashMap::new();
/// Interfaces that can be redirected to, by ifindex.
#[btf_map]
pub static DEVICES: DevMapHash<1024> = DevMapHash::new();
/// Listening sockets of the proxy.
#[btf_map]
pub static SOCKETS: SockMap<{ 4 * maps::SOCKETS_PER_CLASS as usize }> = SockMap::new();

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Both entries of a flow while they are being built.
#[repr(C)]
pub struct Scratch {
    /// Backend to client.
    pub reverse: Reverse,
    /// Client to backend.
    pub forward: Forward,
}

/// This CPU's scratch value.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// A flat table of `LINES` 64-byte lines.
#[derive(Clone, Copy)]
pub struct Table<const LINES: u32>(*const u64);

impl<const LINES: u32> Lines for Table<LINES> {
    #[inline(always)]
    fn word(&self, line: u32, word: usize) -> u64 {
        let index = (line & (LINES - 1)) as usize * LINE + word;
        // SAFETY: the table has LINES lines of LINE words, the line is masked to it and every
        // caller names a word below LINE; the verifier checks the same.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }
}

/// Everything a packet may read, looked up once: a one-element array is an address known at load
/// time, so this costs a null check each.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $map:ident, $lines:expr) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> Option<Table<{ $lines }>> {
            $map.get_ptr(0).map(|table| Table(table.cast()))
        }
    };
}

table!(
    /// The configuration line.
    config, CONFIG, 1
);
table!(
    /// Our addresses, both halves.
    addrs, ADDRS, 2 * maps::ADDR_LINES
);
table!(
    /// VIPs, both halves.
    vips, VIPS, 2 * maps::VIP_LINES
);
table!(
    /// Records of balanced VIPs.
    records, RECORDS, maps::RECORDS
);
table!(
    /// Backends.
    backends, BACKENDS, maps::BACKENDS
);

/// Reads one Maglev slot.
#[inline(always)]
pub fn slot(index: u32) -> Option<u16> {
    let pool = POOL.get_ptr(0)?.cast::<u16>();
    let index = (index & (maps::POOL_SLOTS - 1)) as usize;
    // SAFETY: the pool has POOL_SLOTS slots and the index is masked to them.
    Some(unsafe { pool.wrapping_add(index).read_volatile() })
}

/// MAC of one of our interfaces as a word, with [`maps::NO_XDP_TX`]; 0: not known, do not check.
#[inline(always)]
pub fn interface(ifindex: u32) -> u64 {
    let Some(macs) = INTERFACES.get_ptr(0) else { return 0 };
    let index = (ifindex & (maps::INTERFACES - 1)) as usize;
    // SAFETY: the table has INTERFACES words and the index is masked to them.
    unsafe { macs.cast::<u64>().wrapping_add(index).read_volatile() }
}

/// Adds a packet to a backend's counters on this CPU.
#[inline(always)]
pub fn count_backend(backend: u16, bytes: u64) {
    let Some(row) = COUNTS.get_ptr_mut(cpu()) else { return };
    let index = (backend as usize & (maps::BACKENDS as usize - 1)) * 2;
    // SAFETY: the row has two words per backend and the index is masked to them.
    let packets = unsafe { row.cast::<u64>().add(index) };
    // SAFETY: the word behind `packets`, within the same row.
    let total = unsafe { packets.add(1) };
    // SAFETY: only this CPU writes this row, and XDP does not nest.
    unsafe { *packets += 1 };
    // SAFETY: as above.
    unsafe { *total += bytes };
}

/// Counts a verdict on this CPU.
#[inline(always)]
pub fn count_verdict(verdict: u8) {
    let Some(row) = VERDICTS.get_ptr_mut(cpu()) else { return };
    let index = verdict as usize & (maps::VERDICTS - 1);
    // SAFETY: the row has VERDICTS words and the index is masked to them.
    let count = unsafe { row.cast::<u64>().add(index) };
    // SAFETY: only this CPU writes this row, and XDP does not nest.
    unsafe { *count += 1 };
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() }
}
