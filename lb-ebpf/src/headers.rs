//! Where the transport header begins behind IPv4 options or IPv6 extension headers, and whether the packet
//! is a fragment.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::{TcContext, XdpContext},
};
use lb_common::{TCP, UDP};

use crate::{
    packet::{FARTHEST, Packet, View},
    parse::{Family, V4, V6},
};

/// What stands behind the fixed IP header.
#[derive(Clone, Copy)]
pub struct Behind {
    /// What kind of packet this is.
    pub part: Part,
    /// Protocol of what begins at `l4`; of a later fragment: what its fragment header says.
    pub proto: u8,
    /// Where that begins, from the start of the frame.
    pub l4: usize,
    /// Identification of the datagram, if this is a fragment.
    pub id: u32,
}

/// A packet, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// The whole.
    Whole = 0,
    /// The first fragment, which has the transport header.
    First,
    /// Another fragment.
    Later,
    /// The headers cannot be followed.
    Strange,
    /// The headers are cut short, or of another version than the EtherType says.
    Short,
}

impl Behind {
    #[inline(always)]
    const fn pack(self) -> u64 {
        let Self { part, proto, l4, id } = self;
        part as u64 | (proto as u64) << 8 | (l4 as u64 & 0xffff) << 16 | (id as u64) << 32
    }

    /// What [`penstock_chain`] and [`penstock_chain_out`] return.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let part = match word as u8 {
            0 => Part::Whole,
            1 => Part::First,
            2 => Part::Later,
            3 => Part::Strange,
            _ => Part::Short,
        };
        let l4 = (word >> 16) as usize & (FARTHEST - 1);
        Self { part, proto: (word >> 8) as u8, l4, id: (word >> 32) as u32 }
    }
}

/// What `slow` and `icmp` ask of an IP version beside what the ladder does.
pub trait Headers: Family {
    /// ICMP's protocol number.
    const ICMP: u8;
    /// Bytes of the fixed header.
    const FIXED: usize;

    /// What stands behind a header that begins at `l3`.
    fn behind(ctx: &XdpContext, head: &Self::Head, l3: usize) -> Behind;
}

impl Headers for V4 {
    const ICMP: u8 = 1;
    const FIXED: usize = 20;

    #[inline(always)]
    fn behind(_: &XdpContext, head: &View<20>, l3: usize) -> Behind {
        let (first, proto, id): (u8, u8, u16) = (head.read(0), head.read(9), head.read(4));
        let words = (first & 15) as usize;
        let fragment = head.read::<u16>(6).swap_bytes() & 0x3fff;
        let part = match fragment {
            _ if first >> 4 != 4 || words < 5 => Part::Short,
            0 => Part::Whole,
            0x2000 => Part::First,
            _ => Part::Later,
        };
        Behind { part, proto, l4: l3 + words * 4, id: id as u32 }
    }
}

impl Headers for V6 {
    const ICMP: u8 = 58;
    const FIXED: usize = 40;

    #[inline(always)]
    fn behind(ctx: &XdpContext, head: &View<40>, l3: usize) -> Behind {
        let (first, next): (u8, u8) = (head.read(0), head.read(6));
        let l4 = l3 + Self::FIXED;
        if first >> 4 != 6 {
            return Behind { part: Part::Short, proto: 0, l4, id: 0 };
        }
        if next == TCP || next == UDP || next == Self::ICMP {
            return Behind { part: Part::Whole, proto: next, l4, id: 0 };
        }
        Behind::unpack(penstock_chain(ctx.ctx, l4 as u32, next as u32))
    }
}

/// Extension headers that are followed. RFC 8200 4.1 knows six kinds, each at most once but one.
const CHAIN: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

impl Behind {
    /// Whether an extension header begins at `l4`.
    #[inline(always)]
    const fn is_extension(self) -> bool {
        matches!(
            self.proto,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6
        )
    }

    /// What stands behind the extension header at `l4`, whose first eight bytes these are, in wire order. `Err`:
    /// and the chain is not followed beyond.
    #[inline(always)]
    const fn past(mut self, header: u64) -> Result<Self, Self> {
        let (kind, length) = (self.proto, (header >> 8) as u8);
        self.proto = header as u8;
        if kind == FRAGMENT {
            let place = ((header >> 16) as u16).swap_bytes();
            self.id = (header >> 32) as u32;
            if place & 0xfff8 != 0 {
                return Err(Self { part: Part::Later, ..self });
            }
            // A fragment that is the whole datagram (RFC 6946) is as good as none.
            if place & 1 != 0 {
                self.part = Part::First;
            }
            self.l4 += 8;
        } else {
            // Towards its final destination the addresses would be others.
            if kind == ROUTING && (header >> 24) as u8 != 0 {
                return Err(Self { part: Part::Strange, ..self });
            }
            let unit =
                if kind == AUTHENTICATION { 4 * (length as usize + 2) } else { 8 * (length as usize + 1) };
            self.l4 += unit;
        }
        if self.l4 > FARTHEST - 64 {
            return Err(Self { part: Part::Strange, ..self });
        }
        Ok(self)
    }
}

/// Follows the chain of extension headers from `from` on, whose first is of kind `next`; returns
/// [`Behind`] in a word. A global function: the verifier looks at the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_chain(ctx: *mut xdp_md, from: u32, next: u32) -> u64 {
    let packet = Packet::of(&XdpContext::new(ctx)).shifted();
    follow(from, next, |at| Some(packet.view_at::<8>(at)?.read(0)))
}

/// The same for a packet that leaves.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_chain_out(ctx: *mut __sk_buff, from: u32, next: u32) -> u64 {
    let ctx = TcContext::new(ctx);
    follow(from, next, |at| ctx.load(at).ok())
}

#[inline(always)]
fn follow(from: u32, next: u32, header: impl Fn(usize) -> Option<u64>) -> u64 {
    let mut behind =
        Behind { part: Part::Whole, proto: next as u8, l4: from as usize & (FARTHEST - 1), id: 0 };
    for _ in 0..=CHAIN {
        if !behind.is_extension() {
            return behind.pack();
        }
        let Some(header) = header(behind.l4) else {
            return Behind { part: Part::Short, ..behind }.pack();
        };
        match behind.past(header) {
            Ok(next) => behind = next,
            Err(end) => return end.pack(),
        }
    }
    Behind { part: Part::Strange, ..behind }.pack()
}
