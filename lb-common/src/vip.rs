//! The VIP table: address id + port + protocol to a record, and the record itself.
//!
//! A bucket is one 64-byte line of eight entries of one word, filled from the front. A full
//! bucket spills into its neighbour and says so in the last entry's spare bits.

use crate::{AddrEntry, Descriptor, Epoch, Lines, UDP, maps};

/// One entry: key in bits 31 to 63, flags in bits 16 to 23, record index in bits 0 to 15. 0: empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VipEntry(pub u64);

impl VipEntry {
    /// Entries of one bucket.
    pub const WAYS: usize = 8;
    /// Set in the last entry of a bucket that spilled into its neighbour.
    pub const OVERFLOW: u64 = 1 << 23;
    const PUNT: u64 = 1 << 16;
    const HTTPS: u64 = 1 << 17;
    const RESTRICTED: u64 = 1 << 18;
    /// Where flags are.
    const FLAGS: u64 = 0xff << 16;
    /// Those of an entry that the fast path may take.
    const PLAIN: u64 = Self::OVERFLOW | Self::HTTPS;

    /// Key of (address id, port in wire order, protocol); 33 bits, never 0. The protocols differ in
    /// their last bit: TCP is 6, UDP is 17.
    #[inline(always)]
    pub const fn key(addr: AddrEntry, wire_port: u16, proto: u8) -> u64 {
        (addr.id() as u64) << 17 | (wire_port as u64) << 1 | (proto & 1) as u64
    }

    /// [`VipEntry::key`] of the entry.
    pub const fn key_of(self) -> u64 {
        self.0 >> 31
    }

    /// The parts of the entry's key: address id, port in wire order, protocol.
    pub const fn place(self) -> (u16, u16, u8) {
        let key = self.key_of();
        ((key >> 17) as u16, (key >> 1) as u16, if key & 1 == 0 { crate::TCP } else { UDP })
    }

    /// The entry as it was laid out, without what its place in the bucket added.
    pub const fn plain(self) -> Self {
        Self(self.0 & !Self::OVERFLOW)
    }

    /// Bucket of a key in a table of `1 << bits` lines.
    pub const fn bucket(key: u64, bits: u32) -> u32 {
        Self::line(key, 64 - bits)
    }

    /// [`VipEntry::bucket`] by what remains after a shift (see [`Epoch::vip_shift`]).
    #[inline(always)]
    const fn line(key: u64, shift: u32) -> u32 {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (shift & 63)) as u32
    }

    /// A VIP that is balanced: which record holds its table.
    pub const fn balanced(key: u64, record: u16) -> Self {
        Self(key << 31 | record as u64)
    }

    /// A VIP that is left to the proxy's plain-text or TLS listener.
    pub const fn punted(key: u64, https: bool) -> Self {
        Self(key << 31 | Self::PUNT | if https { Self::HTTPS } else { 0 })
    }

    /// The same for some sources only: those of [`Record::ranges`] of record `record`.
    pub const fn restricted(self, record: u16) -> Self {
        Self(self.0 & !0xffff | Self::RESTRICTED | record as u64)
    }

    /// Whether only some sources may use it.
    #[inline(always)]
    pub const fn is_restricted(self) -> bool {
        self.0 & Self::RESTRICTED != 0
    }

    /// Whether nothing was found.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Not 0 where the fast path does not take its packets: nobody's, the proxy's, some sources', and of a flag
    /// that nobody has judged yet. Bits above 15.
    #[inline(always)]
    pub const fn odd(self) -> u64 {
        if self.0 == 0 { Self::PUNT } else { self.0 & Self::FLAGS & !Self::PLAIN }
    }

    /// Whether the proxy serves it.
    #[inline(always)]
    pub const fn is_punted(self) -> bool {
        self.0 & Self::PUNT != 0
    }

    /// Whether it is the proxy's TLS listener that serves it.
    #[inline(always)]
    pub const fn is_https(self) -> bool {
        self.0 & Self::HTTPS != 0
    }

    /// Its [`Record`].
    #[inline(always)]
    pub const fn record(self) -> u32 {
        self.0 as u16 as u32
    }

    /// Looks a key up in the half of the table that `epoch` names.
    #[inline(always)]
    pub fn find(table: &impl Lines, epoch: Epoch, key: u64) -> Self {
        let line = epoch.half() * maps::VIP_LINES + Self::line(key, epoch.vip_shift());
        match Self::in_line(table, line, key) {
            Ok(found) => found,
            Err(last) if last & Self::OVERFLOW != 0 => {
                Self::in_line(table, line ^ 1, key).unwrap_or_default()
            }
            Err(_) => Self(0),
        }
    }

    /// The entry, or the last word looked at. Entries fill a bucket from the front, so the first
    /// empty one ends the search; the table is sparse and the first way nearly always answers.
    #[inline(always)]
    fn in_line(table: &impl Lines, line: u32, key: u64) -> Result<Self, u64> {
        let mut word = 0;
        for way in 0..Self::WAYS {
            word = table.word(line, way);
            if word >> 31 == key {
                return Ok(Self(word));
            }
            if word == 0 {
                break;
            }
        }
        Err(word)
    }
}

/// Per-VIP line: word 0 the table [`Descriptor`], word 1 flags, pool tag and affinity timeout,
/// word 2 the set of source ranges and, in its upper half, the record's own index; words 3 to 7 are [`crate::shortcut`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// Current table and, while slots are contested, that of their previous owners.
    pub descriptor: Descriptor,
    /// The pool's rules.
    pub rules: Rules,
    /// Set of source ranges that may use the VIP, where its entry is restricted.
    pub ranges: u32,
}

/// Word 1 of a [`Record`]: bits 0 to 15 flags, 16 to 31 the pool's tag, 32 to 63 the affinity
/// timeout in units of [`crate::flow::clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules(pub u64);

impl Rules {
    /// Some backend of the pool is translated to: a flow that was translated before is asked for
    /// before the slot is.
    pub const TRANSLATED: u64 = 2;
    /// Flows of one source go to one backend (ClientIP affinity).
    pub const AFFINITY: u64 = 4;
    /// Every flow is remembered, whether its slot is contested or not.
    pub const CONSERVATIVE: u64 = 8;
    /// This host is a backend itself, of those that get packets as they came. The ladder's: there a packet that another such
    /// host has sent is told from a client's.
    pub const HERE: u64 = 16;
    /// Without a backend the sender is told so; otherwise its packets vanish.
    pub const REJECT: u64 = 1 << 8;
    /// The VIP has its own counters, because its pool serves several. The lowest bit: the fast path sees by one
    /// comparison whether any other of its flags is set.
    pub const COUNTED: u64 = 1;

    /// Rules from their parts.
    pub const fn new(flags: u64, pool_tag: u16, affinity_timeout: u32) -> Self {
        Self(flags & 0xffff | (pool_tag as u64) << 16 | (affinity_timeout as u64) << 32)
    }

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn any(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// The flags that the fast path looks at. Above [`Rules::COUNTED`] where more than the slot decides.
    #[inline(always)]
    pub const fn plainly(self) -> u8 {
        self.0 as u8
    }

    /// Tag that the pool's backends carry, too.
    #[inline(always)]
    pub const fn pool_tag(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// How long a source keeps its backend without a new flow.
    #[inline(always)]
    pub const fn affinity_timeout(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Record {
    /// Words of the line, [`Record::descriptor`] first: it is the one that is switched alone.
    pub const fn words(self) -> [u64; 8] {
        [self.descriptor.0, self.rules.0, self.ranges as u64, 0, 0, 0, 0, 0]
    }

    /// Reads the index of a record that was found by a shortcut.
    #[inline(always)]
    pub fn index(table: &impl Lines, line: u32) -> u32 {
        table.high(line, 2)
    }

    /// Reads a record.
    #[inline(always)]
    pub fn read(table: &impl Lines, index: u32) -> Self {
        Self {
            descriptor: Descriptor(table.word(index, 0)),
            rules: Rules(table.word(index, 1)),
            ranges: table.word(index, 2) as u32,
        }
    }
}

// A flag that is new keeps packets off the fast path until that knows it.
const _: () = assert!(VipEntry(1 << 20 | 1 << 31).odd() != 0 && VipEntry::balanced(1, 0xffff).odd() == 0);
const _: () = assert!(AddrEntry(1 << 20 | 1).odd() != 0 && AddrEntry::vip(0xffff).odd() == 0);
const _: () = assert!(
    Rules(1 << 6).plainly() as u64 > Rules::COUNTED && Rules(Rules::HERE).plainly() as u64 > Rules::COUNTED
);
const _: () =
    assert!(Rules::new(Rules::REJECT | Rules::COUNTED, 0xffff, u32::MAX).plainly() as u64 == Rules::COUNTED);
