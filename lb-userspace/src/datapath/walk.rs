//! The path of a packet through the tables, by the kernel program's own arithmetic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::backend::Wrap;
use lb_common::steer::{self, Choice, Hashes, Kind, Memory};
use lb_common::{AddrEntry, Flow, HashKey, Record, Rules, Slot, Verdict, VipEntry, backend, config, flows};

use super::memory::{ReadOnly, Tables};
use crate::model::l4::Prefix;

/// Source ranges by set.
pub type Ranges = BTreeMap<u16, BTreeSet<Prefix>>;

/// Who may use restricted VIPs: the kernel keeps that beside the tables.
#[derive(Debug, Clone, Copy)]
pub enum Sources<'a> {
    /// Nobody asks.
    Any,
    /// Those in the set that the VIP's record names.
    Listed(&'a Ranges),
}

impl Sources<'_> {
    fn may_use(self, record: &Record, source: IpAddr) -> bool {
        let Self::Listed(ranges) = self else { return true };
        let set = u16::try_from(record.ranges).ok().and_then(|set| ranges.get(&set));
        set.is_some_and(|ranges| ranges.iter().any(|range| range.contains(source)))
    }
}

/// Where the tables lead a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The destination is none of our addresses.
    NotOurs,
    /// Our address, but no VIP on that port.
    NoVip {
        /// The host's own address.
        node: bool,
    },
    /// A VIP whose source ranges the flow's source is in none of.
    Restricted,
    /// Left to the proxy.
    Punted {
        /// Its TLS listener.
        https: bool,
        /// Which worker.
        worker: Option<u32>,
    },
    /// Balanced.
    Balanced(Balanced),
}

/// What steering finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balanced {
    /// Keyed hashes of the packet.
    pub hashes: Hashes,
    /// Index of the VIP's record.
    pub index: u32,
    /// What the record says.
    pub record: Record,
    /// Slot within the table, and what stands there.
    pub slot: (u32, Slot),
    /// The slot's previous owner, while it is contested.
    pub previous: Option<Slot>,
    /// The backend, and why.
    pub choice: Choice,
    /// What becomes of the packet, as far as the tables decide it.
    pub verdict: Verdict,
}

impl Found {
    /// The verdict that follows, as far as the tables decide it.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NotOurs => Verdict::NotOurs,
            Self::NoVip { node: true } => Verdict::Node,
            Self::NoVip { node: false } => Verdict::ClosedPort,
            Self::Restricted => Verdict::SourceRange,
            Self::Punted { .. } => Verdict::Punted,
            Self::Balanced(balanced) => balanced.verdict,
        }
    }
}

/// Follows a packet. `key` is what the tables hold; passed for explanations made without an agent.
/// Nothing is remembered of it.
pub fn walk(tables: &Tables, sources: Sources<'_>, flow: &Flow, kind: Kind, now: u32, key: HashKey) -> Found {
    follow(tables, &ReadOnly(tables), sources, flow, kind, now, key)
}

/// Follows a packet and remembers of it what the program would.
pub fn send(tables: &Tables, flow: &Flow, kind: Kind, now: u32, key: HashKey) -> Found {
    follow(tables, tables, Sources::Any, flow, kind, now, key)
}

fn follow(
    tables: &Tables,
    memory: &impl Memory,
    sources: Sources<'_>,
    flow: &Flow,
    kind: Kind,
    now: u32,
    key: HashKey,
) -> Found {
    let epoch = config::epoch(&tables.config);
    if epoch.is_empty() {
        return Found::NotOurs;
    }
    let addr = AddrEntry::find(&tables.addrs, epoch, flow.dst);
    if addr.is_none() {
        return Found::NotOurs;
    }
    let vip_key = VipEntry::key(addr, flow.dst_port(), flow.proto as u8);
    let vip = VipEntry::find(&tables.vips, epoch, vip_key);
    if vip.is_none() {
        return Found::NoVip { node: addr.is_node() };
    }
    if vip.is_restricted() && !sources.may_use(&Record::read(&tables.records, vip.record()), flow.src.into())
    {
        return Found::Restricted;
    }
    let hash = flow.hash(key);
    if vip.is_punted() {
        let workers = u32::from(config::workers(&tables.config));
        let worker = ((hash >> 32) as u32).checked_rem(workers);
        return Found::Punted { https: vip.is_https(), worker };
    }
    let record = Record::read(&tables.records, vip.record());
    let hashes = Hashes { flow: hash, source: flows::source_hash(flow, record.rules.pool_tag(), key) };
    let choice = steer::choose(memory, &record, hashes, kind, now);
    let by = if record.rules.any(Rules::AFFINITY) { hashes.source } else { hashes.flow };
    let table = record.descriptor;
    let (slot, previous) = if table.is_none() {
        ((0, Slot::default()), None)
    } else {
        let slot = table.slot(by);
        ((slot, tables.slot(table.base() + slot)), table.previous().map(|base| tables.slot(base + slot)))
    };
    let mode = |id| backend::Mode::from_number(backend::identity(&tables.backends, id).mode());
    let martian = flow.src.is_martian() || !AddrEntry::find(&tables.addrs, epoch, flow.src).is_none();
    let verdict = match mode(choice.backend) {
        _ if choice.backend.0 == 0 && record.rules.any(Rules::REJECT) => refusal(flow),
        _ if choice.backend.0 == 0 => Verdict::NoBackend,
        Some(_) if backend::wrap(&tables.backends, choice.backend) == Wrap::HERE => Verdict::ForwardedHere,
        Some(backend::Mode::L2) => Verdict::ForwardedL2,
        Some(backend::Mode::Ipip) => Verdict::ForwardedIpip,
        Some(backend::Mode::Tunnel) => Verdict::ForwardedTunnel,
        Some(backend::Mode::Nat) if martian => Verdict::Martian,
        Some(backend::Mode::Nat) => Verdict::ForwardedNat,
        // Unless it is translated already: then it does not ask the slot.
        Some(backend::Mode::Local)
            if kind != Kind::Syn && mode(choice.other) == Some(backend::Mode::Tunnel) =>
        {
            Verdict::PassedOn
        }
        Some(backend::Mode::Local) if martian => Verdict::Martian,
        Some(backend::Mode::Local) => Verdict::ForwardedLocal,
        None => Verdict::Corrupt,
    };
    Found::Balanced(Balanced { hashes, index: vip.record(), record, slot, previous, choice, verdict })
}

fn refusal(flow: &Flow) -> Verdict {
    if flow.proto == u32::from(lb_common::TCP) { Verdict::ToldReset } else { Verdict::ToldUnreachable }
}
