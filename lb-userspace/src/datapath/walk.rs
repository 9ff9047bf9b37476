//! The path of a packet through the tables, by the kernel program's own arithmetic.

use lb_common::{AddrEntry, BackendId, Flow, HashKey, Record, Verdict, VipEntry, config};

use super::memory::Tables;

/// Where the tables lead a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The destination is none of our addresses.
    NotOurs,
    /// Our address, but no VIP on that port.
    NoVip {
        /// The host's own address.
        node: bool,
    },
    /// Left to the proxy.
    Punted {
        /// Its TLS listener.
        https: bool,
        /// Which worker.
        worker: Option<u32>,
    },
    /// Balanced.
    Balanced {
        /// Keyed hash of the flow.
        hash: u64,
        /// Index of the VIP's record.
        record: u32,
        /// What the record says.
        tables: Record,
        /// Slot within the table.
        slot: u32,
        /// Owner of the slot; `None` without a table.
        backend: Option<BackendId>,
    },
}

impl Found {
    /// The verdict that follows, as far as the tables decide it.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NotOurs => Verdict::NotOurs,
            Self::NoVip { node: true } => Verdict::Node,
            Self::NoVip { node: false } => Verdict::ClosedPort,
            Self::Punted { .. } => Verdict::Punted,
            Self::Balanced { backend: None, .. } => Verdict::NoBackend,
            Self::Balanced { tables, .. } if tables.stateful => Verdict::ForwardedNat,
            Self::Balanced { .. } => Verdict::ForwardedL2,
        }
    }
}

/// Follows a flow. `key` is what the tables hold; passed for explanations made without an agent.
pub fn walk(tables: &Tables, flow: &Flow, key: HashKey) -> Found {
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
    let hash = flow.hash(key);
    if vip.is_punted() {
        let workers = u32::from(config::workers(&tables.config));
        let worker = ((hash >> 32) as u32).checked_rem(workers);
        return Found::Punted { https: vip.is_https(), worker };
    }
    let record = Record::read(&tables.records, vip.record());
    let descriptor = record.descriptor;
    let backend = (!descriptor.is_none()).then(|| tables.slot(descriptor.pool_index(hash)).backend());
    let slot = if descriptor.is_none() { 0 } else { descriptor.slot(hash) };
    Found::Balanced { hash, record: vip.record(), tables: record, slot, backend }
}
