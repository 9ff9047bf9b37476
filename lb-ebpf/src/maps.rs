//! Map statics, and the only code that touches them. User space lays the tables out (see
//! lb-common); here they are read through masked indices. Written are what packets leave behind: flows, translations
//! and their leases, marks of slots in use, counters.

use aya_ebpf::{
    EbpfContext,
    btf_maps::{DevMapHash, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf, SockMap, lpm_trie::Key},
    helpers::bpf_jiffies64,
    macros::btf_map,
};
use lb_common::{
    Addr, BackendId, Descriptor, Lines, Record, Slot,
    capture::{self, Handover},
    flows::{self, Entry, FlowWords, Noted},
    lease::{LEASES, LeaseWords},
    maps::{self, LINE, Program, at},
    nat::{Forward, Reverse},
    rate::Bucket,
    shortcut::{self, Folded},
    steer::Memory,
};

pub use crate::counts::counts;
use crate::{carry::Carry, tags::Exit};

#[btf_map]
static PROGRAMS: ProgramArray<{ Program::ALL.len() }> = ProgramArray::new();

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

/// Packets shown to who asked for them.
#[btf_map]
pub static CAPTURED: RingBuf<Shot, { capture::RING_BYTES }> = RingBuf::new();
#[btf_map]
static CAPTURE_STATE: PerCpuArray<[u64; capture::state::WORDS], 1> = PerCpuArray::new();
#[btf_map]
static SHOT: PerCpuArray<Shot, 1> = PerCpuArray::new();

/// An event while it is being made.
#[repr(C)]
pub struct Shot {
    /// What is known of the packet.
    pub head: capture::Head,
    /// Its first bytes.
    pub bytes: [u8; capture::SNAP],
}

/// This CPU's event.
#[inline(always)]
pub fn shot() -> Option<*mut Shot> {
    SHOT.get_ptr_mut(0)
}

/// What this CPU keeps while it captures.
#[inline(always)]
pub fn capture_state() -> Option<&'static mut [u64; capture::state::WORDS]> {
    // SAFETY: the value is this CPU's own, and XDP does not nest; user space clears it between
    // captures only.
    CAPTURE_STATE.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}

#[btf_map]
static RANGES: LpmTrie<Range, u8, { maps::RANGES_ENTRIES }> = LpmTrie::new();

/// A source in a set of ranges.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    set: u32,
    addr: [u32; 4],
}

/// Whether a source may use the VIP of a record. A call of its own: few VIPs ask.
#[inline(never)]
pub fn may_use(record: u32, src: &Addr) -> bool {
    let tables = tables();
    let set = Record::read(&tables.records(), record).ranges;
    let addr = [src.hi as u32, (src.hi >> 32) as u32, src.lo as u32, (src.lo >> 32) as u32];
    RANGES.get(&Key::new(maps::RANGE_BITS, Range { set, addr })).is_some()
}

/// `BPF_F_NO_PREALLOC`: memory for what there is, not for what there may be.
const AS_NEEDED: usize = 1;

#[btf_map]
static PEERS: HashMap<Addr, u32, { maps::PEERS_ENTRIES }, AS_NEEDED> = HashMap::new();
#[btf_map]
static TUNNEL_TAGS: HashMap<u64, u32, { maps::BACKENDS as usize }, AS_NEEDED> = HashMap::new();

/// Whether an address is another balancer's; notes when it was heard last.
#[inline(always)]
pub fn hear_peer(addr: &Addr) -> bool {
    let Some(heard) = PEERS.get_ptr_mut(addr) else { return false };
    let now = counts().map_or(0, |row| row.clock());
    // SAFETY: the value of an entry is an aligned word that no program reads but this.
    if unsafe { heard.read_volatile() } != now {
        // SAFETY: as above; whichever CPU writes last, it is the same second.
        unsafe { heard.write_volatile(now) };
    }
    true
}

/// The backend of a pool that a tag names; id 0: none.
#[inline(always)]
pub fn tagged(pool_tag: u16, tunnel_tag: u32) -> BackendId {
    let Some(id) = TUNNEL_TAGS.get_ptr(maps::tag_key(pool_tag, tunnel_tag)) else { return BackendId(0) };
    // SAFETY: a hash map entry stays readable for the whole run, and ids are never reused within.
    BackendId(unsafe { *id } as u16)
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's own memory: what would not fit the stack, and what outlives a tail call.
#[repr(C)]
pub struct Scratch {
    /// What is known of the packet.
    pub carry: Carry,
    /// What became of it.
    pub handover: Handover,
    /// How it leaves, once it is tagged.
    pub exit: Exit,
    /// Backend to client, while it is being built.
    pub reverse: Reverse,
    /// Client to backend, while it is being built.
    pub forward: Forward,
    /// How often senders were told lately, by [`Telling`].
    pub told: [Bucket; 3],
    /// What an ICMP error quotes, followed by zeros.
    pub quote: [u64; QUOTE_WORDS],
}

/// Words that hold the longest quote and are zero behind it.
pub const QUOTE_WORDS: usize = 160;

/// What is told, each kind at most so often: a flood of one must not silence another.
#[derive(Clone, Copy)]
pub enum Telling {
    /// Nobody serves you here.
    Refusal,
    /// Your packet is too big.
    TooBig,
    /// Answers to echo requests.
    Echo,
}

/// Whether this CPU may tell something once more.
#[inline(always)]
pub fn may_tell(telling: Telling) -> bool {
    let Some(scratch) = scratch() else { return false };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { aya_ebpf::helpers::bpf_ktime_get_coarse_ns() };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    unsafe { (*scratch).told[telling as usize].take(now) }
}

/// This CPU's scratch value.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// Goes on in another program; returns only if that is not there.
#[inline(always)]
pub fn call(ctx: &impl EbpfContext, program: Program) {
    // SAFETY: nothing of this program needs to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program as u32) }
}

/// Everything that user space lays out, at an address that the loader puts into the program.
#[derive(Clone, Copy)]
pub struct Tables(*mut u64);

/// A table of `LINES` 64-byte lines at word `AT` of [`Tables`].
#[derive(Clone, Copy)]
pub struct Table<const AT: usize, const LINES: u32>(*const u64);

/// The configuration line, the filter of captures, and what is known of the past.
pub type Config = Table<{ at::CONFIG }, 16>;
/// Two lines whose place is known: a backend's, or the configuration's.
#[derive(Clone, Copy)]
pub struct Pair(*const u64);
/// Our addresses, both halves.
pub type Addrs = Table<{ at::ADDRS }, { 2 * maps::ADDR_LINES }>;
/// VIPs, both halves.
pub type Vips = Table<{ at::VIPS }, { 2 * maps::VIP_LINES }>;
/// Records of balanced VIPs.
pub type Records = Table<{ at::RECORDS }, { maps::RECORDS }>;
/// Backends, two lines each.
pub type Backends = Table<{ at::BACKENDS }, { 2 * maps::BACKENDS }>;

/// The same for the fast path, where the address is a constant: the compiler loads it wherever that
/// is cheaper than to keep it. In larger programs it would keep several sums of it instead.
#[inline(always)]
pub fn tables_nearby() -> Tables {
    Tables(maps::TABLES_ADDRESS as *mut u64)
}

/// The tables.
#[inline(always)]
pub fn tables() -> Tables {
    Tables(address())
}

impl Tables {
    /// The configuration line.
    #[inline(always)]
    pub fn config(&self) -> Config {
        Table(self.0)
    }

    /// The same for the fast path, which saves an addition, and the address of each word. Elsewhere it would only let the
    /// compiler keep more of the line in registers than there are.
    #[inline(always)]
    pub fn settings(&self) -> Pair {
        // The first line of all.
        const { assert!(at::CONFIG == 0) };
        Pair(address())
    }

    /// The two lines of a backend, to be read as those of any: the id that is asked for is this one.
    #[inline(always)]
    pub fn backend(&self, id: BackendId) -> Pair {
        let line = (lb_common::backend::line(id) & (2 * maps::BACKENDS - 1)) as usize;
        // SAFETY: the backends lie within the map.
        Pair(plus(unsafe { self.0.add(at::BACKENDS) }, (line * LINE * size_of::<u64>()) as u64))
    }

    /// The same by an id below [`Slot::MARK`] in bits 0 to 15, whatever the others are.
    #[inline(always)]
    pub fn backend_at(&self, choice: u64) -> Pair {
        let offset = choice << 7 & (BACKEND_BYTES * (maps::BACKENDS as u64 - 1));
        // SAFETY: the backends lie within the map.
        Pair(plus(unsafe { self.0.add(at::BACKENDS) }, offset))
    }

    /// Our addresses.
    #[inline(always)]
    pub fn addrs(&self) -> Addrs {
        Table(self.0)
    }

    /// VIPs.
    #[inline(always)]
    pub fn vips(&self) -> Vips {
        Table(self.0)
    }

    /// Records of balanced VIPs.
    #[inline(always)]
    pub fn records(&self) -> Records {
        Table(self.0)
    }

    /// Whether a destination may be ours; `false` is sure.
    #[inline(always)]
    pub fn may_be_ours(&self, dst: Folded) -> bool {
        // SAFETY: the filter lies within the map.
        let filter = unsafe { self.0.add(at::FILTER) }.cast::<u8>();
        let index = (dst.byte() & (shortcut::FILTER - 1)) as usize;
        // SAFETY: it has FILTER bytes, and the index is masked to them.
        unsafe { filter.wrapping_add(index).read_volatile() != 0 }
    }

    /// The line of a record.
    #[inline(always)]
    pub fn record(&self, index: u32) -> Pair {
        let line = (index & (maps::RECORDS - 1)) as usize;
        // SAFETY: the records lie within the map.
        Pair(plus(unsafe { self.0.add(at::RECORDS) }, (line * LINE * size_of::<u64>()) as u64))
    }

    /// A slot of the pool by its offset in bytes ([`lb_common::Descriptor::pool_offset`]).
    #[inline(always)]
    pub fn slot_at(&self, offset: u64) -> u64 {
        const {
            assert!(
                at::POOL * size_of::<u64>() + Descriptor::FARTHEST as usize + 2 <= at::END * size_of::<u64>()
            )
        };
        // SAFETY: the pool lies within the map.
        let pool = unsafe { self.0.add(at::POOL) };
        // Not masked: what lies farther than the pool lies within the map.
        load(pool.cast::<u8>().wrapping_add(offset as usize).cast())
    }

    /// What is said of one of our interfaces ([`maps::interface`]); 0: nothing.
    #[inline(always)]
    pub fn interface(&self, ifindex: u32) -> u64 {
        let index = at::INTERFACES + (ifindex & (maps::INTERFACES - 1)) as usize;
        // SAFETY: the index is masked to the INTERFACES words of the table.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }
}

/// Bytes of a backend's two lines.
const BACKEND_BYTES: u64 = 2 * (LINE * size_of::<u64>()) as u64;

/// `base` and `bytes` added, by an instruction of its own: the compiler would take the sum apart
/// and add up the address of every word of a line anew.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn plus(mut base: *const u64, bytes: u64) -> *const u64 {
    // SAFETY: an addition; nothing is read.
    unsafe { core::arch::asm!("{0} += {1}", inout(reg) base, in(reg) bytes, options(pure, nomem, nostack)) };
    base
}

/// One number or another, of which the compiler does not know the parts: it would keep each of them.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn or(mut one: u64, other: u64) -> u64 {
    // SAFETY: an operation on two registers.
    unsafe { core::arch::asm!("{0} |= {1}", inout(reg) one, in(reg) other, options(pure, nomem, nostack)) };
    one
}

/// The same for the host's compiler, which only checks this crate.
#[cfg(not(target_arch = "bpf"))]
pub fn or(one: u64, other: u64) -> u64 {
    one | other
}

/// A slot as a number of which the compiler does not know that it has 16 bits: it would extend the sign to test the
/// highest one.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn load(slot: *const u16) -> u64 {
    let word: u64;
    // SAFETY: callers point into the pool; the verifier checks the same.
    unsafe {
        core::arch::asm!("{0} = *(u16 *)({1} + 0)", out(reg) word, in(reg) slot, options(readonly, nostack))
    };
    word
}

/// The same for the host's compiler, which only checks this crate.
#[cfg(not(target_arch = "bpf"))]
fn load(slot: *const u16) -> u64 {
    // SAFETY: as above.
    unsafe { slot.read_volatile() as u64 }
}

/// The address of the tables, of which the compiler knows nothing: it keeps it and no sums of it.
#[inline(always)]
fn address() -> *mut u64 {
    number::<{ maps::TABLES_ADDRESS }>() as *mut u64
}

/// The same for the host's compiler, which only checks this crate.
#[cfg(not(target_arch = "bpf"))]
pub fn plus(base: *const u64, bytes: u64) -> *const u64 {
    base.wrapping_byte_add(bytes as usize)
}

impl Lines for Pair {
    #[inline(always)]
    fn word(&self, line: u32, word: usize) -> u64 {
        let index = (line & 1) as usize * LINE + word;
        // SAFETY: the first line of a pair has an even number, and every caller names a word below
        // LINE; the verifier checks that it lies within the map.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }

    #[inline(always)]
    fn low(&self, line: u32, word: usize) -> u32 {
        self.half(line, word, 0)
    }

    #[inline(always)]
    fn high(&self, line: u32, word: usize) -> u32 {
        self.half(line, word, 1)
    }

    #[inline(always)]
    fn quarter(&self, line: u32, word: usize, quarter: usize) -> u16 {
        let index = 4 * ((line & 1) as usize * LINE + word) + quarter;
        // SAFETY: as in `word`; the lowest quarter is the first one in memory.
        unsafe { self.0.cast::<u16>().wrapping_add(index).read_volatile() }
    }

    #[inline(always)]
    fn byte(&self, line: u32, word: usize, byte: usize) -> u8 {
        let index = 8 * ((line & 1) as usize * LINE + word) + byte;
        // SAFETY: as in `word`; the lowest byte is the first one in memory.
        unsafe { self.0.cast::<u8>().wrapping_add(index).read_volatile() }
    }
}

impl Pair {
    #[inline(always)]
    fn half(&self, line: u32, word: usize, half: usize) -> u32 {
        let index = 2 * ((line & 1) as usize * LINE + word) + half;
        // SAFETY: as in `word`; the first half in memory is the lower one.
        unsafe { self.0.cast::<u32>().wrapping_add(index).read_volatile() }
    }
}

impl<const AT: usize, const LINES: u32> Lines for Table<AT, LINES> {
    #[inline(always)]
    fn word(&self, line: u32, word: usize) -> u64 {
        let start = (AT + (line & (LINES - 1)) as usize * LINE) * size_of::<u64>();
        // SAFETY: the table has LINES lines of LINE words from AT on, the line is masked to it and
        // every caller names a word below LINE; the verifier checks the same.
        unsafe { plus(self.0, start as u64).wrapping_add(word).read_volatile() }
    }

    #[inline(always)]
    fn low(&self, line: u32, word: usize) -> u32 {
        let start = (AT + (line & (LINES - 1)) as usize * LINE) * size_of::<u64>();
        // SAFETY: as in `word`; the first half in memory is the lower one.
        unsafe { plus(self.0, start as u64).wrapping_add(word).cast::<u32>().read_volatile() }
    }
}

impl FlowWords for Tables {
    #[inline(always)]
    fn flow(&self, index: u32) -> u64 {
        let index = at::FLOWS + (index & (maps::FLOWS - 1)) as usize;
        // SAFETY: the index is masked to the table's FLOWS words.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }

    #[inline(always)]
    fn way(&self, first: u32, way: u32) -> u64 {
        let first = at::FLOWS + (first & (maps::FLOWS - 1) & !(flows::WAYS - 1)) as usize;
        let bucket = plus(self.0, (first * size_of::<u64>()) as u64);
        // SAFETY: the bucket lies within the table's FLOWS words, and `way` is below its length.
        unsafe { bucket.wrapping_add(way as usize).read_volatile() }
    }

    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn swap_flow(&self, index: u32, mut word: u64) -> u64 {
        let index = at::FLOWS + (index & (maps::FLOWS - 1)) as usize;
        let place = self.0.wrapping_add(index);
        // SAFETY: as in `flow`. An instruction that the library does not have for this target.
        unsafe {
            core::arch::asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) word, in(reg) place, options(nostack))
        };
        word
    }

    #[cfg(not(target_arch = "bpf"))]
    fn swap_flow(&self, index: u32, _: u64) -> u64 {
        self.flow(index)
    }

    #[inline(always)]
    fn remember(&self, entry: Entry, hash: u64, now: u32) -> Noted {
        Noted(penstock_remember(entry.0, hash, now))
    }

    #[inline(always)]
    fn flow_bits(&self) -> u32 {
        lb_common::config::flow_bits(&self.config())
    }

    #[inline(always)]
    fn grace(&self) -> u32 {
        lb_common::config::grace(&self.config())
    }

    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn sign(mut word: u64) -> u64 {
        // SAFETY: a shift; nothing is read.
        unsafe { core::arch::asm!("{0} s>>= 63", inout(reg) word, options(pure, nomem, nostack)) };
        word
    }
}

/// [`flows::insert`]. A global function, which the verifier looks at once and not with every path that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
#[cold]
pub extern "C" fn penstock_remember(entry: u64, hash: u64, now: u32) -> u64 {
    flows::insert(&tables_nearby(), Entry(entry), hash, now).0
}

impl LeaseWords for Tables {
    #[inline(always)]
    fn lease_word(&self, first: u32, word: u32) -> u64 {
        // SAFETY: `bucket` gives eight words, and `word` is below.
        unsafe { lease_bucket(self, first).wrapping_add(word as usize).read_volatile() }
    }

    #[inline(always)]
    fn set_lease_word(&self, first: u32, word: u32, value: u64) {
        let word = lease_bucket(self, first).wrapping_add((word & 7) as usize).cast_mut();
        // SAFETY: as above; an aligned store of one word is never seen by halves.
        unsafe { word.write_volatile(value) }
    }

    #[inline(always)]
    fn sign(word: u64) -> u64 {
        <Self as FlowWords>::sign(word)
    }
}

/// Eight words of the leases from place `first` on, whose place is masked.
#[inline(always)]
fn lease_bucket(tables: &Tables, first: u32) -> *const u64 {
    let first = at::LEASES + 2 * (first & (LEASES - 1) & !3) as usize;
    plus(tables.0, (first * size_of::<u64>()) as u64)
}

impl Memory for Tables {
    type Backends<'a> = Backends;

    #[inline(always)]
    fn backends(&self) -> Backends {
        Table(self.0)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Slot {
        // SAFETY: the pool lies within the map.
        let pool = unsafe { self.0.add(at::POOL) }.cast::<u16>();
        let index = (index & (maps::POOL_SLOTS - 1)) as usize;
        // SAFETY: the pool has POOL_SLOTS slots and the index is masked to them.
        Slot(unsafe { pool.wrapping_add(index).read_volatile() })
    }

    /// In one step: user space may give the slot to another one at the same moment.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn mark_used(&self, index: u32) {
        let index = index & (maps::POOL_SLOTS - 1);
        let place = self.0.wrapping_add(at::POOL + index as usize / 4);
        let mark = (Slot::MARK as u64) << (16 * (index % 4));
        // SAFETY: the pool has POOL_SLOTS slots from `at::POOL` on, four to a word, and the index is masked to them.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) place, in(reg) mark, options(nostack))
        };
    }

    #[cfg(not(target_arch = "bpf"))]
    fn mark_used(&self, _: u32) {}
}

/// What the loader puts in the place of a number, of which the compiler knows nothing. Loaded wherever it is asked for.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn number<const PLACE: u64>() -> u64 {
    let number: u64;
    // SAFETY: loads a number.
    unsafe { core::arch::asm!("{0} = {1} ll", out(reg) number, const PLACE, options(nomem, nostack)) };
    number
}

/// The same for the host's compiler, which only checks this crate.
#[cfg(not(target_arch = "bpf"))]
pub fn number<const PLACE: u64>() -> u64 {
    PLACE
}

/// Stamp of now, for leases.
#[inline(always)]
pub fn stamp() -> u8 {
    // SAFETY: the helper has no preconditions.
    lb_common::lease::stamp(unsafe { bpf_jiffies64() })
}
