//! Kernel, tables and book together: takes a [`Want`] to the kernel and reads back what happened.
//! No network, no runtime: the worker drives it, tests and benchmarks use it directly.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::config::{self, Settings};
use lb_common::maps::LINE;
use lb_common::{BackendId, HashKey, Verdict, backend};

use super::Error;
use super::explain;
use super::kernel::{Counters, Kernel};
use super::memory::Tables;
use super::mmap;
use super::plan::{Book, Op};
use super::want::Want;
use crate::model::Problem;
use crate::model::l4::{FiveTuple, ForwardingMode, PoolId};
use crate::model::report::Explanation;

/// The kernel part, loaded.
pub struct Engine {
    /// Programs and maps.
    pub kernel: Kernel,
    /// The shared tables.
    pub tables: Tables,
    /// The counters.
    pub counters: Counters,
    book: Book,
    want: Want,
    settings: Settings,
    /// Counters of a backend when it took its id over from another.
    since: BTreeMap<BackendId, (u16, Totals)>,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Totals {
    /// Packets sent to backends.
    pub packets: u64,
    /// Bytes of their IP packets.
    pub bytes: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, Self { packets, bytes }: Self) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

impl Engine {
    /// Loads programs and maps. `nat_ports`: first and last port of the SNAT range.
    pub fn load(hash_key: [u8; 16], nat_ports: (u16, u16)) -> Result<Self, Error> {
        let (kernel, tables, counters) = Kernel::load()?;
        let (first, last) = nat_ports;
        let settings = Settings {
            key: HashKey::expand(hash_key),
            nat_first: first,
            nat_count: last.checked_sub(first).map_or(0, |count| count.saturating_add(1)),
            workers: 0,
        };
        tables.store_settings(&settings);
        Ok(Self {
            kernel,
            tables,
            counters,
            book: Book::default(),
            want: Want::default(),
            settings,
            since: BTreeMap::new(),
        })
    }

    /// Takes the kernel from what it holds to `want`; returns what could not be done.
    pub fn apply(&mut self, want: Want) -> Vec<Problem> {
        let plan = self.book.plan(&want);
        for op in &plan.ops {
            if let Op::Backend(id, words) = op {
                self.note_backend(*id, words);
            }
            op.apply(&self.tables, &mut mmap::wait_for_readers);
        }
        if !plan.ops.is_empty() {
            tracing::debug!(steps = plan.ops.len(), vips = want.vips.len(), "tables switched");
        }
        self.want = want;
        plan.problems
    }

    /// Tells the MAC of an interface: frames to another one are left alone.
    pub fn set_interface(&self, ifindex: u32, mac: lb_common::Mac) {
        self.tables.store_interface(ifindex as usize, mac.word());
    }

    /// Tells how many workers the proxy has.
    pub fn set_workers(&mut self, workers: u16) {
        self.settings.workers = workers;
        self.tables.store_settings(&self.settings);
    }

    /// What is installed.
    pub fn want(&self) -> &Want {
        &self.want
    }

    /// Where a flow goes and why.
    pub fn explain(&self, flow: FiveTuple) -> Explanation {
        explain::explain(&self.tables, &self.book, &self.want, flow)
    }

    /// Slots of a pool's table.
    pub fn table_size(&self, pool: &PoolId) -> Option<u32> {
        self.book.table_size(pool)
    }

    /// What a backend got since it was added.
    pub fn totals(&self, pool: &PoolId, mode: ForwardingMode, addr: SocketAddr) -> Totals {
        let Some(id) = self.book.backend_id(pool, mode, addr) else { return Totals::default() };
        let now = self.raw_totals(id);
        let since = self.since.get(&id).map(|(_, totals)| *totals).unwrap_or_default();
        Totals {
            packets: now.packets.wrapping_sub(since.packets),
            bytes: now.bytes.wrapping_sub(since.bytes),
        }
    }

    /// Packets per verdict. What the program does not count by verdict is derived: forwarded by
    /// `l2` is what backends got in all less what `nat` sent; what is not ours is not counted.
    pub fn verdicts(&self) -> Vec<(Verdict, u64)> {
        let count = |verdict: Verdict| self.counters.verdicts.sum(verdict as usize);
        let sent: u64 =
            (0..lb_common::maps::BACKENDS as usize).map(|id| self.counters.backends.sum(2 * id)).sum();
        Verdict::ALL
            .into_iter()
            .filter(|verdict| *verdict != Verdict::NotOurs)
            .map(|verdict| match verdict {
                Verdict::ForwardedL2 => (verdict, sent.saturating_sub(count(Verdict::ForwardedNat))),
                other => (other, count(other)),
            })
            .collect()
    }

    /// The key in force.
    pub fn hash_key(&self) -> HashKey {
        config::hash_key(&self.tables.config)
    }

    fn raw_totals(&self, id: BackendId) -> Totals {
        let index = usize::from(id.0) * 2;
        Totals { packets: self.counters.backends.sum(index), bytes: self.counters.backends.sum(index + 1) }
    }

    fn note_backend(&mut self, id: BackendId, words: &[u64; LINE]) {
        let generation = backend::Identity(words[6]).generation();
        if self.since.get(&id).is_none_or(|(known, _)| *known != generation) {
            let totals = self.raw_totals(id);
            self.since.insert(id, (generation, totals));
        }
    }
}
