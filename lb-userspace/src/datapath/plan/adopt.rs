//! The book of tables that an agent before us left in force: read back from the tables themselves,
//! which cannot be stale, wherever in a plan that agent was killed. Pure.
//!
//! The tables name pools by tags. The first wish says which pool each VIP has, and so gives the tags
//! their names; a tag that gets none is a pool that is wanted no more, and the next plan removes it
//! like any other. What is in use and could not be read is kept out of the free ids and regions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::{
    Addr, AddrEntry, Backend, BackendId, Descriptor, Epoch, Record, Rules, UDP, VipEntry, backend, config,
    maps,
};

use super::former::{self, Guise, Standing};
use super::ids::Ids;
use super::tables::Table;
use super::{BackendKey, Book, Line, Lookup};
use crate::datapath::memory::Tables;
use crate::datapath::regions::Regions;
use crate::datapath::want::{self, Place, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{Family, PoolId, Prefix, Protocol};

impl Book {
    /// The book of `tables` and of the sets of source ranges beside them. `want` is the wish that
    /// will be planned next; `now`: see [`lb_common::flows::clock`].
    pub fn adopt(tables: &Tables, ranges: &BTreeMap<u16, BTreeSet<Prefix>>, want: &Want, now: u32) -> Self {
        let lookup = InForce::read(tables);
        let mut book = Self::new(config::hash_key(&tables.config));
        book.epoch = lookup.epoch;
        book.addr_ids = lookup.addrs.iter().map(|(addr, entry)| (*addr, entry.id())).collect();
        book.addr_id_pool = Ids::without(1, u16::MAX, &book.addr_ids.values().copied().collect());
        let names = lookup.names(want);
        book.adopt_records(&lookup, &names);
        book.adopt_ranges(ranges);
        book.adopt_backends(tables, &names);
        book.adopt_tables(tables, now);
        book.recognise(want, now);
        book.lookup = (!lookup.epoch.is_empty()).then(|| lookup.laid_out());
        book
    }

    /// The records that VIPs in force name.
    fn adopt_records(&mut self, lookup: &InForce, names: &BTreeMap<u16, PoolId>) {
        for (place, (entry, record)) in &lookup.vips {
            let Some(record) = record else { continue };
            let pool = (!entry.is_punted()).then(|| name(names, record.rules.pool_tag()));
            if let Some(pool) = &pool {
                self.tags.insert(pool.clone(), record.rules.pool_tag());
            }
            self.records.insert((*place, pool), (entry.record() as u16, *record));
        }
        let used = self.records.values().map(|(index, _)| *index).collect();
        self.record_ids = Ids::without(0, maps::RECORDS as u16, &used);
    }

    /// Sets of ranges, those without any range included.
    fn adopt_ranges(&mut self, ranges: &BTreeMap<u16, BTreeSet<Prefix>>) {
        let named: BTreeSet<u16> =
            self.records.values().map(|(_, record)| record.ranges as u16).filter(|set| *set != 0).collect();
        let used: BTreeSet<u16> = named.iter().chain(ranges.keys()).copied().collect();
        // Those that are named come last and win over a twin.
        for set in ranges.keys().filter(|set| !named.contains(set)).chain(&named) {
            let content = ranges.get(set).cloned().unwrap_or_default();
            if let Some(twin) = self.ranges.insert(content, *set) {
                self.lingering.ranges.push(twin);
            }
        }
        self.range_ids = Ids::without(1, u16::MAX, &used);
    }

    /// Every living line, whether a table names it or not.
    fn adopt_backends(&mut self, tables: &Tables, names: &BTreeMap<u16, PoolId>) {
        let mut used = BTreeSet::new();
        for id in (1..maps::BACKENDS as u16).map(BackendId) {
            let identity = backend::identity(&tables.backends, id);
            let last = backend::last_generation(&tables.backends, id);
            if let Some(generation) = self.generations.get_mut(usize::from(id.0)) {
                *generation = if identity.is_alive() { identity.generation() } else { last };
            }
            if !identity.is_alive() {
                continue;
            }
            used.insert(id.0);
            let tag = backend::pool_tag(&tables.backends, id);
            let line = backend::line(id);
            let words = [tables.backends.line(line), tables.backends.line(line + 1)];
            let line = Line { id, words, standing: Standing::Wanted };
            // One that we did not write.
            let Some(found) = line.backend() else {
                self.lingering.backends.push(id);
                continue;
            };
            let key = key(&found, name(names, tag));
            self.tags.insert(key.0.clone(), tag);
            if let Some(twin) = self.backends.insert(key, line) {
                self.lingering.backends.push(twin.id);
            }
        }
        self.backend_ids = Ids::without(1, maps::BACKENDS as u16, &used);
        self.tag_ids = Ids::without(1, u16::MAX, &self.tags.values().copied().collect());
    }

    /// The table of each pool. A plan that was interrupted switched some of its VIPs and not the
    /// others: the newest table is the pool's, and the next plan switches those that are behind.
    fn adopt_tables(&mut self, tables: &Tables, now: u32) {
        let mut regions = Regions::new(maps::POOL_SLOTS);
        let mut lingering = Vec::new();
        for pool in self.tags.keys() {
            let of_pool = self.records.iter().filter(|((_, id), _)| id.as_ref() == Some(pool));
            let of_pool: Vec<Record> = of_pool.map(|(_, (_, record))| *record).collect();
            let asked = of_pool.iter().any(|record| record.rules.any(Rules::AFFINITY | Rules::CONSERVATIVE));
            let all: BTreeSet<u64> = of_pool.iter().map(|record| record.descriptor.0).collect();
            let Some(newest) = all.iter().copied().map(Descriptor).reduce(newer) else { continue };
            let of_newest = regions_of(newest);
            // Regions that overlap: nothing that we wrote. The next plan writes a new table.
            let whole = of_newest.iter().all(|(base, size)| regions.reserve(*base, *size));
            let newest = if whole { newest } else { Descriptor::NONE };
            let others = all.iter().flat_map(|word| regions_of(Descriptor(*word)));
            lingering.extend(others.filter(|(base, size)| regions.reserve(*base, *size)));
            self.tables.insert(pool.clone(), Table::adopt(newest, asked, tables, now));
        }
        self.regions = regions;
        self.lingering.regions = lingering;
    }

    /// Backends that are wanted in another guise are former selves; pools whose table is the one that
    /// would be made now need no new one.
    fn recognise(&mut self, want: &Want, now: u32) {
        let mut want = want.clone();
        self.keep_lost(&mut want);
        let keys = want.pools.iter().flat_map(|(id, pool)| {
            let key = |(addr, backend): (&SocketAddr, &want::Backend)| {
                (id.clone(), *addr, Guise::new(backend.mode, backend.way.source))
            };
            pool.backends.iter().map(key)
        });
        self.note_former(&want, &keys.collect(), now);
        for (id, pool) in &want.pools {
            let shares = self.shares(id, &want);
            if shares.len() == pool.backends.len()
                && let Some(table) = self.tables.get_mut(id)
            {
                table.recognise(shares);
            }
        }
    }
}

/// The address and VIP tables in force.
struct InForce {
    epoch: Epoch,
    addrs: BTreeMap<IpAddr, AddrEntry>,
    /// With the record that a VIP names, if it names one.
    vips: BTreeMap<Place, (VipEntry, Option<Record>)>,
}

impl InForce {
    fn read(tables: &Tables) -> Self {
        let epoch = config::epoch(&tables.config);
        let mut all = Self { epoch, addrs: BTreeMap::new(), vips: BTreeMap::new() };
        if epoch.is_empty() {
            return all;
        }
        let mut by_id = BTreeMap::new();
        for line in lines(epoch.half() * maps::ADDR_LINES, epoch.addr_bits(), maps::ADDR_LINES) {
            let [a0, a1, b0, b1, c0, c1, first, last] = tables.addrs.line(line);
            let entries = [
                (Addr { hi: a0, lo: a1 }, first as u32),
                (Addr { hi: b0, lo: b1 }, (first >> 32) as u32),
                (Addr { hi: c0, lo: c1 }, last as u32),
            ];
            for (addr, entry) in entries.map(|(addr, word)| (IpAddr::from(addr), AddrEntry(word))) {
                if !entry.is_none() {
                    by_id.insert(entry.id(), addr);
                    all.addrs.insert(addr, entry);
                }
            }
        }
        for line in lines(epoch.half() * maps::VIP_LINES, epoch.vip_bits(), maps::VIP_LINES) {
            for entry in tables.vips.line(line).map(|word| VipEntry(word).plain()) {
                let (id, wire_port, protocol) = entry.place();
                let Some(addr) = by_id.get(&id).filter(|_| !entry.is_none()) else { continue };
                let protocol = if protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
                let place = Place { addr: *addr, port: wire_port.swap_bytes(), protocol };
                let record = !entry.is_punted() || entry.is_restricted();
                let record = record.then(|| Record::read(&tables.records, entry.record()));
                all.vips.insert(place, (entry, record));
            }
        }
        all
    }

    /// As the plan lays them out.
    fn laid_out(&self) -> Lookup {
        let addrs = self.addrs.iter().map(|(addr, entry)| (Addr::from(*addr), *entry)).collect();
        (addrs, self.vips.values().map(|(entry, _)| *entry).collect())
    }

    /// The pool of each tag: the one that most of its VIPs have in the wish.
    fn names(&self, want: &Want) -> BTreeMap<u16, PoolId> {
        let mut votes: BTreeMap<(u16, &PoolId), usize> = BTreeMap::new();
        for (place, (entry, record)) in &self.vips {
            if let (false, Some(record), Some(Target::Pool(id))) =
                (entry.is_punted(), record, want.vips.get(place))
            {
                *votes.entry((record.rules.pool_tag(), id)).or_default() += 1;
            }
        }
        let mut votes: Vec<_> = votes.into_iter().collect();
        votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let (mut names, mut taken) = (BTreeMap::new(), BTreeSet::new());
        for ((tag, id), _) in votes {
            if !names.contains_key(&tag) && taken.insert(id) {
                names.insert(tag, id.clone());
            }
        }
        names
    }
}

/// The lines of the half that begins at `first`. Sizes that no table has read as the largest.
fn lines(first: u32, bits: u32, most: u32) -> std::ops::Range<u32> {
    first..first + 1u32.checked_shl(bits).unwrap_or(most).min(most)
}

/// Name of the pool with a tag. One that nobody wants gets a name that no Service can have.
fn name(names: &BTreeMap<u16, PoolId>, tag: u16) -> PoolId {
    names.get(&tag).cloned().unwrap_or_else(|| PoolId {
        service: ObjectName::new("", format!("adopted pool {tag}")),
        port: 0,
        protocol: Protocol::Tcp,
        family: Family::V4,
    })
}

/// Key of a backend.
fn key(line: &Backend, pool: PoolId) -> BackendKey {
    let addr = SocketAddr::new(line.inner.into(), line.wire_port.swap_bytes());
    (pool, addr, Guise::new(former::mode(line.mode), line.source.into()))
}

/// The later of two descriptors of one pool. Those of one generation differ by how far it settled;
/// no table is older than any.
fn newer(one: Descriptor, other: Descriptor) -> Descriptor {
    let later = match other.generation().wrapping_sub(one.generation()) as i16 {
        _ if one.is_none() || other.is_none() => one.is_none(),
        0 => one.previous().is_some() && other.previous().is_none(),
        ahead => ahead > 0,
    };
    if later { other } else { one }
}

/// Regions that a descriptor names.
fn regions_of(descriptor: Descriptor) -> Vec<(u32, u32)> {
    if descriptor.is_none() {
        return Vec::new();
    }
    let size = 1 << descriptor.bits();
    let current = Some(descriptor.base());
    current.into_iter().chain(descriptor.previous()).map(|base| (base, size)).collect()
}

#[cfg(test)]
mod tests;
