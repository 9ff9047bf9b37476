//! What `penstock capture` asks for and what the program shows: the filter that user space writes
//! and the head of each event in the ring buffer. The packet's first bytes follow the head.

use crate::{Addr, Flow, Lines, Verdict};

/// Longest part of a packet that an event shows.
pub const SNAP: usize = 512;
/// Bytes of the ring buffer.
pub const RING_BYTES: usize = 1 << 20;
/// A CPU that was silent may show this much of its rate at once.
pub const BURST_NS: u64 = 100_000_000;

/// Line of the configuration that holds the filter.
const LINE: u32 = 1;

/// Which packets are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Bit `v`: packets with verdict `v`.
    pub verdicts: u64,
    /// Nanoseconds between two packets of one CPU, on average; 0: no limit.
    pub interval_ns: u64,
    /// One packet in this many; 1: each.
    pub every: u32,
    /// Bytes shown of each, at most [`SNAP`].
    pub snap: u16,
    /// Only packets from or to this address, `::` for any.
    pub vip: Addr,
    /// Only its port, in wire order; 0 for any.
    pub vip_port: u16,
    /// Only packets from or to this address, `::` for any.
    pub host: Addr,
}

impl Filter {
    /// The line as words.
    pub const fn words(self) -> [u64; 8] {
        let Self { verdicts, interval_ns, every, snap, vip, vip_port, host } = self;
        let sizes = every as u64 | (snap as u64) << 32 | (vip_port as u64) << 48;
        [verdicts, interval_ns, sizes, vip.hi, vip.lo, host.hi, host.lo, 0]
    }

    /// Reads the line.
    #[inline(always)]
    pub fn read(config: &impl Lines) -> Self {
        let sizes = config.word(LINE, 2);
        Self {
            verdicts: config.word(LINE, 0),
            interval_ns: config.word(LINE, 1),
            every: sizes as u32,
            snap: (sizes >> 32) as u16,
            vip: Addr { hi: config.word(LINE, 3), lo: config.word(LINE, 4) },
            vip_port: (sizes >> 48) as u16,
            host: Addr { hi: config.word(LINE, 5), lo: config.word(LINE, 6) },
        }
    }

    /// Whether packets with this verdict are wanted.
    #[inline(always)]
    pub const fn wants(&self, verdict: u8) -> bool {
        self.verdicts >> (verdict & 63) & 1 != 0
    }

    /// Whether a flow, in either direction, is of the VIP and of the host.
    #[inline(always)]
    pub fn concerns(&self, flow: &Flow) -> bool {
        let of_vip =
            |addr: Addr, port: u16| addr == self.vip && (self.vip_port == 0 || port == self.vip_port);
        (is_any(self.vip) || of_vip(flow.dst, flow.dst_port()) || of_vip(flow.src, flow.src_port()))
            && (is_any(self.host) || flow.src == self.host || flow.dst == self.host)
    }
}

#[inline(always)]
fn is_any(addr: Addr) -> bool {
    addr.hi | addr.lo == 0
}

/// What the ladder hands to the capturing program, beside the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Handover {
    /// The verdict's number.
    pub verdict: u8,
    /// The XDP action.
    pub action: u8,
    /// The packet's flow as it came stands in the carry; otherwise only in the packet.
    pub carried: u8,
    /// Nothing.
    pub padding: u8,
}

/// What an event says before the packet's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    /// Monotonic clock.
    pub time_ns: u64,
    /// The flow as it came, before anything was translated or wrapped; protocol 0 where the packet
    /// could not be read.
    pub flow: Flow,
    /// Interface it came in by, or left by if it was translated there.
    pub ifindex: u32,
    /// Bytes of the whole frame as it left.
    pub length: u32,
    /// Bytes of it that follow.
    pub captured: u16,
    /// The verdict's number.
    pub verdict: u8,
    /// The XDP action.
    pub action: u8,
    /// Nothing.
    pub padding: u32,
}

/// Bytes of a [`Head`].
pub const HEAD: usize = size_of::<Head>();

impl Head {
    /// Reads an event: its head and what is shown of the packet. `None`: no program wrote that.
    pub fn parse(event: &[u8]) -> Option<(Self, &[u8])> {
        let (head, bytes) = event.split_at_checked(HEAD)?;
        let mut words = [0u64; HEAD / 8];
        for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        let [time_ns, src_hi, src_lo, dst_hi, dst_lo, transport, place, what] = words;
        let flow = Flow {
            src: Addr { hi: src_hi, lo: src_lo },
            dst: Addr { hi: dst_hi, lo: dst_lo },
            ports: transport as u32,
            proto: (transport >> 32) as u32,
        };
        let head = Self {
            time_ns,
            flow,
            ifindex: place as u32,
            length: (place >> 32) as u32,
            captured: what as u16,
            verdict: (what >> 16) as u8,
            action: (what >> 24) as u8,
            padding: 0,
        };
        Some((head, bytes.get(..head.captured.into())?))
    }

    /// What became of the packet.
    pub fn verdict(&self) -> Option<Verdict> {
        Verdict::ALL.get(usize::from(self.verdict)).copied()
    }
}

/// What one CPU keeps while it captures, in words.
pub mod state {
    /// When the rate allows the next packet (monotonic clock).
    pub const NEXT_NS: usize = 0;
    /// Packets that the filter wanted.
    pub const MATCHED: usize = 1;
    /// Packets held back by the rate.
    pub const HELD_BACK: usize = 2;
    /// Packets for which the ring buffer had no room.
    pub const LOST: usize = 3;
    /// Words of it.
    pub const WORDS: usize = 4;
}

const _: () = assert!(HEAD == 64 && size_of::<Handover>() == 4);
const _: () = assert!(Verdict::ALL.len() <= 64, "a verdict is a bit of the filter");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TCP;

    struct Config([u64; 8]);

    impl Lines for Config {
        fn word(&self, line: u32, word: usize) -> u64 {
            assert_eq!(line, LINE);
            self.0[word]
        }
    }

    fn addr(text: &str) -> Addr {
        text.parse::<core::net::IpAddr>().expect("test address").into()
    }

    fn filter() -> Filter {
        Filter {
            verdicts: 1 << Verdict::ForwardedNat as u8,
            interval_ns: 1_000_000,
            every: 7,
            snap: 96,
            vip: addr("203.0.113.1"),
            vip_port: 80u16.to_be(),
            host: addr("198.51.100.7"),
        }
    }

    #[test]
    fn the_filter_reads_back_as_it_was_written() {
        assert_eq!(Filter::read(&Config(filter().words())), filter());
    }

    #[test]
    fn a_filter_takes_both_directions_and_nothing_else() {
        let flow = |src: &str, sport: u16, dst: &str, dport: u16| Flow {
            src: addr(src),
            dst: addr(dst),
            ports: Flow::ports(sport.to_be(), dport.to_be()),
            proto: TCP.into(),
        };
        let (vip, host, other) = ("203.0.113.1", "198.51.100.7", "198.51.100.8");
        let filter = filter();

        assert!(filter.concerns(&flow(host, 4000, vip, 80)));
        assert!(filter.concerns(&flow(vip, 80, host, 4000)));
        assert!(!filter.concerns(&flow(host, 80, vip, 4000)), "the port is the VIP's");
        assert!(!filter.concerns(&flow(other, 4000, vip, 80)), "the host is another");
        assert!(Filter { host: Addr::default(), ..filter }.concerns(&flow(other, 4000, vip, 80)));
        assert!(Filter { vip: Addr::default(), ..filter }.concerns(&flow(host, 1, other, 2)));
        assert!(filter.wants(Verdict::ForwardedNat as u8) && !filter.wants(Verdict::NoBackend as u8));
    }

    #[test]
    fn what_is_shorter_than_it_says_is_no_event() {
        let mut event = [0u8; HEAD + 4];
        event[56] = 4;
        assert!(Head::parse(&event).is_some());

        event[56] = 5;
        assert!(Head::parse(&event).is_none());
        assert!(Head::parse(&event[..HEAD - 1]).is_none());
    }
}
