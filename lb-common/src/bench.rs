//! What the measuring programs do to a packet before each run. Only `cargo xtask bench l4` uses
//! it; nothing here reaches a packet of anybody.

/// Bytes of the frame that the generator can write.
pub const FRAME: usize = 144;

/// Flows per client address: the rest of the flow's number goes into the address.
pub const PORTS_PER_CLIENT: u32 = 1024;
/// First client port.
pub const FIRST_PORT: u32 = 1024;

/// Sets the wrappers up: what the next packet looks like and what happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Generator {
    /// The frame to write headers from.
    pub frame: [u8; FRAME],
    /// Number of the next flow; the program counts it up.
    pub next: u32,
    /// Flows: a power of two less one. Every packet has a new flow with all bits set.
    pub flow_mask: u32,
    /// VIPs that packets are spread over, by the last two bytes of the address; 0: that of `frame`.
    pub vips: u32,
    /// Whether to run the program afterwards; else the wrapper alone is measured.
    pub run: u32,
    /// Bytes that the program puts in front, or the wrapper where it does not run the program; below 0: takes off.
    pub grow: i32,
    /// Bytes that were put in front by the last run: 0 before the first.
    pub grown: i32,
}

/// Words of a [`Generator`].
pub const WORDS: usize = FRAME / 8 + 3;

const _: () = assert!(size_of::<Generator>() == 8 * WORDS);

impl Generator {
    /// Words as a map holds them.
    pub fn words(&self) -> [u64; WORDS] {
        let Self { frame, next, flow_mask, vips, run, grow, grown } = *self;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let sizes = pair(grow.cast_unsigned(), grown.cast_unsigned());
        words[FRAME / 8..].copy_from_slice(&[pair(next, flow_mask), pair(vips, run), sizes]);
        words
    }

    /// Host part of the client's address and its port, both in wire order.
    #[inline(always)]
    pub const fn client(flow: u32) -> (u32, u32) {
        let port = FIRST_PORT + flow % PORTS_PER_CLIENT;
        ((flow / PORTS_PER_CLIENT).swap_bytes(), (port as u16).swap_bytes() as u32)
    }

    /// Which VIP a packet of a flow goes to, as the last two bytes of its address in wire order.
    #[inline(always)]
    pub const fn vip(flow: u32, vips: u32) -> u32 {
        let spread = flow.wrapping_mul(0x9e37_79b1);
        (((spread as u64 * vips as u64) >> 32) as u32).swap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_distinct_and_vips_evenly_used() {
        let clients: std::collections::BTreeSet<_> = (0..1 << 20).map(Generator::client).collect();
        let mut used = std::collections::BTreeMap::<u32, u32>::new();
        for flow in 0..400_000 {
            *used.entry(Generator::vip(flow, 4000)).or_default() += 1;
        }

        assert_eq!(clients.len(), 1 << 20);
        assert_eq!(used.len(), 4000);
        assert!(used.values().all(|packets| (50..200).contains(packets)));
    }
}
