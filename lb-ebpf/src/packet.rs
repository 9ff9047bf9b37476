//! Bounds-checked views of a packet; the only pointer arithmetic on packet memory.
//!
//! Loads and stores may be unaligned (an Ethernet header is 14 bytes long): every architecture
//! that XDP drivers exist for allows it, and the verifier refuses the program where it does not.

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

/// Linear part of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    start: usize,
    end: usize,
    /// Interface it can leave by with `XDP_TX`: the same, or 0 for none.
    pub tx_ifindex: u32,
    /// Headers begin at offsets that are not constants.
    shifted: bool,
}

/// `SIZE` bytes of the packet, known to be there.
#[derive(Clone, Copy)]
pub struct View<const SIZE: usize>(usize);

impl Packet {
    /// The packet of this run, without an interface to leave by: whose the packet is comes first.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end(), tx_ifindex: 0, shifted: false }
    }

    /// The same packet, with the interface that it can leave by with `XDP_TX`.
    #[inline(always)]
    pub fn leaving_by(self, tx_ifindex: u32) -> Self {
        Self { tx_ifindex, ..self }
    }

    /// The same packet, to be viewed at offsets that are not constants.
    #[inline(always)]
    pub fn shifted(self) -> Self {
        Self { shifted: true, ..self }
    }

    /// Bytes of the linear part.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.end - self.start
    }

    /// The first `SIZE` bytes, if the packet has them.
    #[inline(always)]
    pub fn view<const SIZE: usize>(&self) -> Option<View<SIZE>> {
        self.view_at::<SIZE>(0)
    }

    /// `SIZE` bytes from `offset` on, if the packet has them. Offsets are taken modulo
    /// [`FARTHEST`]: the verifier wants to see a bound, and no header begins later.
    #[inline(always)]
    pub fn view_at<const SIZE: usize>(&self, offset: usize) -> Option<View<SIZE>> {
        // LLVM knows that what ends before a later byte ends before an earlier one, and removes the
        // second check; the verifier (6.18: "invalid access to packet") sees no relation between
        // pointers with different variable offsets. A hidden start has no relation to any other.
        let base = if self.shifted { core::hint::black_box(self.start) } else { self.start };
        let start = base + (offset & (FARTHEST - 1));
        (start + SIZE <= self.end).then_some(View(start))
    }
}

/// Bytes of the whole frame, its fragments included where the driver has put it into several.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> u32 {
    // SAFETY: `ctx` is the program's own context.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// Cuts the frame behind `length` bytes. Views die.
#[inline(always)]
pub fn cut(ctx: &XdpContext, length: u32) -> Option<()> {
    let less = length.wrapping_sub(self::length(ctx)) as i32;
    // SAFETY: `ctx` is the program's own context; the helper refuses what is out of bounds.
    (less <= 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, less) } == 0).then_some(())
}

/// A number of bytes, if it is 1 to `most`: helpers that copy want the verifier to see both. To test both at once LLVM
/// compares a copy that is smaller by one, and the verifier learns nothing of the original from that ("invalid zero-sized
/// read"). Here the smaller number is all that there is, and what was compared has one added to it.
#[inline(always)]
pub fn some_bytes(bytes: u64, most: u64) -> Option<u64> {
    let less = one_less(bytes);
    (less < most).then_some(less + 1)
}

/// One less, of which the compiler does not know that it is.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn one_less(mut number: u64) -> u64 {
    // SAFETY: an addition.
    unsafe { core::arch::asm!("{0} += -1", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// The same for the host's compiler, which only checks this crate.
#[cfg(not(target_arch = "bpf"))]
fn one_less(number: u64) -> u64 {
    number.wrapping_sub(1)
}

/// No header begins this far into a frame: two tags, an IPv6 header and a chain of extension
/// headers end before.
pub const FARTHEST: usize = 512;

/// Integers a header is made of.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl<const SIZE: usize> View<SIZE> {
    /// `PART` bytes of it from `offset` on, a constant with `offset + PART <= SIZE`.
    #[inline(always)]
    pub fn part<const PART: usize>(&self, offset: usize) -> View<PART> {
        View(self.0 + offset)
    }

    /// Where it begins, for helpers that read a header themselves.
    #[inline(always)]
    pub fn pointer(&self) -> *mut core::ffi::c_void {
        self.0 as *mut core::ffi::c_void
    }

    /// Reads an integer in wire order at `offset`, a constant with `offset + size <= SIZE`.
    #[inline(always)]
    pub fn read<T: Word>(&self, offset: usize) -> T {
        // SAFETY: the view spans SIZE bytes and offsets are constants within it; the verifier
        // proves the same or refuses the program.
        unsafe { *((self.0 + offset) as *const T) }
    }

    /// Writes an integer in wire order at `offset`, a constant with `offset + size <= SIZE`.
    #[inline(always)]
    pub fn write<T: Word>(&self, offset: usize, value: T) {
        // SAFETY: as in `read`; the packet belongs to this run of the program alone.
        unsafe { *((self.0 + offset) as *mut T) = value }
    }
}

/// Reads a view whatever its length: where the family decides on that.
pub trait Headers: Copy {
    /// [`View::read`].
    fn read<T: Word>(&self, offset: usize) -> T;
    /// The same from memory, whatever was read before: for rare ways, so that no register holds it for them.
    fn read_again<T: Word>(&self, offset: usize) -> T;
    /// [`View::part`].
    fn part<const PART: usize>(&self, offset: usize) -> View<PART>;
}

impl<const SIZE: usize> Headers for View<SIZE> {
    #[inline(always)]
    fn read<T: Word>(&self, offset: usize) -> T {
        View::read(self, offset)
    }

    #[inline(always)]
    fn read_again<T: Word>(&self, offset: usize) -> T {
        // SAFETY: as in `View::read`.
        unsafe { ((self.0 + offset) as *const T).read_volatile() }
    }

    #[inline(always)]
    fn part<const PART: usize>(&self, offset: usize) -> View<PART> {
        View::part(self, offset)
    }
}
