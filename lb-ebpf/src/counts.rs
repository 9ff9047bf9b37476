//! A row of counters, where each CPU has its own, and the time beside it.

use core::hint::cold_path;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use lb_common::{
    BackendId, Verdict, flows,
    maps::{self, count, row},
    verdict::Event,
};

use crate::maps::{number, plus};

/// This CPU's counters.
#[inline(always)]
pub fn counts() -> Option<Row> {
    let cpu = cpu();
    if cpu >= number::<{ maps::COUNTS_END[0] }>() {
        cold_path();
        return in_further_maps(cpu);
    }
    Some(row_at(maps::COUNTS_ADDRESS[0], cpu))
}

/// The row of a CPU that has none in the first map. To the verifier the ends are constants: without further maps nothing
/// of this is left in the program. That there is no further one is asked first, by two constants; before Linux 6.8 the verifier
/// follows a branch in which the number of the CPU is two at once.
#[inline(always)]
fn in_further_maps(cpu: u64) -> Option<Row> {
    if number::<{ maps::COUNTS_END[0] }>() == number::<{ maps::COUNTS_END[1] }>() {
        return None;
    }
    if cpu < number::<{ maps::COUNTS_END[1] }>() {
        let first = number::<{ maps::COUNTS_END[0] }>();
        return Some(row_at(number::<{ maps::COUNTS_ADDRESS[1] }>(), cpu - first));
    }
    if number::<{ maps::COUNTS_END[1] }>() == number::<{ maps::COUNTS_END[2] }>() {
        return None;
    }
    if cpu < number::<{ maps::COUNTS_END[2] }>() {
        let first = number::<{ maps::COUNTS_END[1] }>();
        return Some(row_at(number::<{ maps::COUNTS_ADDRESS[2] }>(), cpu - first));
    }
    if number::<{ maps::COUNTS_END[2] }>() == number::<{ maps::COUNTS_END[3] }>() {
        return None;
    }
    if cpu < number::<{ maps::COUNTS_END[3] }>() {
        let first = number::<{ maps::COUNTS_END[2] }>();
        return Some(row_at(number::<{ maps::COUNTS_ADDRESS[3] }>(), cpu - first));
    }
    None
}

#[inline(always)]
fn row_at(address: u64, row: u64) -> Row {
    Row(plus(address as *const u64, row * row::BYTES as u64).cast_mut())
}

/// This CPU's number as the helper gives it: the library takes the lower half, which costs two shifts.
#[inline(always)]
fn cpu() -> u64 {
    let number = aya_ebpf::bindings::bpf_func_id::BPF_FUNC_get_smp_processor_id as usize;
    // SAFETY: the helper of this number takes nothing and returns a word.
    let helper: extern "C" fn() -> u64 = unsafe { core::mem::transmute(number) };
    helper()
}

/// Counters of this CPU. Only this CPU writes them, and XDP does not nest.
#[derive(Clone, Copy)]
pub struct Row(*mut u64);

impl Row {
    /// Time in units of [`flows::clock`], asked for once a tick: the helper costs ten times as much as
    /// to compare ticks, which are a variable to the program.
    #[inline(always)]
    pub fn clock(self) -> u32 {
        // SAFETY: the helper has no preconditions.
        let ticks = unsafe { bpf_jiffies64() };
        if self.word(row::CLOCK) != ticks {
            // SAFETY: as above.
            let now = flows::clock(unsafe { bpf_ktime_get_coarse_ns() });
            self.set(row::CLOCK, ticks);
            self.set(row::CLOCK + 1, now as u64);
        }
        self.word(row::CLOCK + 1) as u32
    }

    #[inline(always)]
    fn word(self, index: usize) -> u64 {
        // SAFETY: callers name a word below `row::BACKENDS`.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }

    #[inline(always)]
    fn set(self, index: usize, word: u64) {
        // SAFETY: as above; only this CPU writes its row.
        unsafe { self.0.wrapping_add(index).write_volatile(word) }
    }

    /// Counts a verdict.
    #[inline(always)]
    pub fn verdict(self, verdict: Verdict) {
        self.add(row::VERDICTS + verdict as usize, 1);
    }

    /// Counts an event.
    #[inline(always)]
    pub fn event(self, event: Event) {
        self.add(row::VERDICTS + event as usize, 1);
    }

    /// Counts an event that may have happened.
    #[inline(always)]
    pub fn event_if(self, happened: bool, event: Event) {
        self.add(row::VERDICTS + event as usize, happened as u64);
    }

    /// Counts a packet to a backend.
    #[inline(always)]
    pub fn backend(self, backend: u16, bytes: u64, begins: bool) {
        self.packet(Self::of_backend(backend), bytes, begins);
    }

    /// Counts a packet to a VIP.
    #[inline(always)]
    pub fn vip(self, record: u32, bytes: u64, begins: bool) {
        let index = row::VIPS + (record as usize & (maps::RECORDS as usize - 1)) * count::WORDS;
        self.packet(index, bytes, begins);
    }

    /// Counts a new flow to a backend.
    #[inline(always)]
    pub fn begun(self, backend: BackendId) {
        self.flow(Self::of_backend(backend.0));
    }

    #[inline(always)]
    const fn of_backend(backend: u16) -> usize {
        row::BACKENDS + (backend as usize & (maps::BACKENDS as usize - 1)) * count::WORDS
    }

    #[inline(always)]
    fn packet(self, index: usize, bytes: u64, begins: bool) {
        self.add(index + count::PACKETS, 1);
        self.add(index + count::BYTES, bytes);
        if begins {
            self.flow(index);
        }
    }

    #[inline(always)]
    fn flow(self, index: usize) {
        self.add(index + count::FLOWS, 1);
    }

    #[inline(always)]
    fn add(self, index: usize, more: u64) {
        let word = self.0.wrapping_add(index);
        // SAFETY: every index above is masked to its part of the row.
        unsafe { *word += more };
    }
}
