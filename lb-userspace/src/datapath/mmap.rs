//! Maps a kernel array into our memory, waits for its readers, tells which network namespace it serves
//! and which programs sit where; and says how many heaps our own memory is in. The one place of the agent with
//! `unsafe` code.
#![expect(
    unsafe_code,
    reason = "neither aya 0.14 nor rustix 1 has these calls; everything else is built on them"
)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A shared mapping of a part of a BPF array.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    bytes: usize,
    /// Words before the part that was asked for, on its first page.
    before: usize,
}

/// Mappings begin and end at multiples of it: the largest page of any machine we run on.
const PAGE: usize = 1 << 16;

impl Mapping {
    /// Maps these words of the array behind `fd`, which was created with `BPF_F_MMAPABLE`.
    pub fn new(fd: BorrowedFd<'_>, words: Range<usize>) -> io::Result<Self> {
        let first = words.start * size_of::<AtomicU64>() / PAGE * PAGE;
        let bytes = words.end * size_of::<AtomicU64>() - first;
        let before = words.start - first / size_of::<AtomicU64>();
        let offset = libc::off_t::try_from(first).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours;
        // the kernel refuses a length beyond the array.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes, before })
    }

    /// The mapped words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: that many bytes are mapped, page-aligned, and nothing unmaps them while `self` is borrowed;
        // the kernel may write at any time, which atomics allow.
        let all =
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes / size_of::<AtomicU64>()) };
        all.get(self.before..).unwrap_or_default()
    }

    /// Maps no more than the first `words` words any longer, but for what stands on the same page. The pages of an
    /// array are there whether mapped or not, and count as ours while they are.
    pub fn truncate(&mut self, words: usize) {
        let kept = ((self.before + words) * size_of::<AtomicU64>()).next_multiple_of(PAGE);
        let Some(over) = self.bytes.checked_sub(kept).filter(|over| *over > 0) else { return };
        // SAFETY: the end of the range is the end of what `new` mapped, and nobody else has borrowed `self`.
        let failed =
            unsafe { libc::munmap(self.start.as_ptr().cast::<u8>().wrapping_add(kept).cast(), over) };
        if failed == 0 {
            self.bytes = kept;
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what is left of that which `new` mapped, and `self` is its only owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the mapping is plain shared memory, read and written through atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Has all threads allocate from so many heaps at most; called before there are others than this one. Left to itself glibc
/// makes one for nearly every thread, and what one frees serves no other: with the threads that come and go with
/// changes of a large cluster, a quarter of the memory was such holes.
pub fn share_heaps(most: usize) {
    #[cfg(target_env = "gnu")]
    {
        let most = libc::c_int::try_from(most).unwrap_or(libc::c_int::MAX);
        // SAFETY: the call takes two integers. A value that it does not take leaves all as it is.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Returns when every packet that could have read memory retired before the call has left the
/// program. `membarrier` with this command waits for an RCU grace period, which XDP runs inside.
/// Where it is refused (`nohz_full`), 50 ms stand in for it: a packet takes microseconds.
pub fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes two integers and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
    if done != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A number of the network namespace of this thread that no other one has until the next boot.
pub fn namespace_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes, all of them into `cookie`.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Where programs sit.
#[derive(Debug, Clone, Copy)]
pub enum Seat<'a> {
    /// On the way out of an interface.
    Out(u32),
    /// In the search for the socket of a network namespace.
    Lookup(BorrowedFd<'a>),
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes, `revision` (Linux 6.6) included: the kernel
/// writes it whatever size it is told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    unused: u32,
    beside: [u64; 3],
    revision: u64,
}

/// Numbers of the programs that sit there.
pub fn programs_in(seat: Seat<'_>) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    const BPF_SK_LOOKUP: u32 = 36;
    const BPF_TCX_EGRESS: u32 = 47;
    /// No seat has more (`BPF_MPROG_MAX`, `netns_bpf_max_progs`).
    const MOST: usize = 64;
    let (target, attach_type) = match seat {
        Seat::Out(ifindex) => (ifindex, BPF_TCX_EGRESS),
        Seat::Lookup(namespace) => (namespace.as_raw_fd().cast_unsigned(), BPF_SK_LOOKUP),
    };
    let mut programs = [0u32; MOST];
    let mut query = Query {
        target,
        attach_type,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes to `query`, which is as long as all that it writes there, and at most `count` numbers
    // to `programs`; both outlive the call.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(programs.into_iter().take(query.count as usize).collect())
}
