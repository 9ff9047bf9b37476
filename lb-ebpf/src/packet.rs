//! Bounds-checked views of a packet; the only pointer arithmetic on packet memory.
//!
//! Loads and stores may be unaligned (an Ethernet header is 14 bytes long): every architecture
//! that XDP drivers exist for allows it, and the verifier refuses the program where it does not.

use aya_ebpf::programs::XdpContext;

/// Linear part of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    start: usize,
    end: usize,
    /// Interface the packet came in by.
    pub ifindex: u32,
    /// Interface it can leave by with `XDP_TX`: the same, or 0 for none.
    pub tx_ifindex: u32,
}

/// `SIZE` bytes of the packet, known to be there.
#[derive(Clone, Copy)]
pub struct View<const SIZE: usize>(usize);

impl Packet {
    /// The packet of this run.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        let ifindex = ctx.ingress_ifindex() as u32;
        Self { start: ctx.data(), end: ctx.data_end(), ifindex, tx_ifindex: ifindex }
    }

    /// The packet of an interface that takes redirects only.
    #[inline(always)]
    pub fn without_xdp_tx(&self) -> Self {
        Self { tx_ifindex: 0, ..*self }
    }

    /// The first `SIZE` bytes, if the packet has them.
    #[inline(always)]
    pub fn view<const SIZE: usize>(&self) -> Option<View<SIZE>> {
        (self.start + SIZE <= self.end).then_some(View(self.start))
    }
}

/// Integers a header is made of.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl<const SIZE: usize> View<SIZE> {
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
