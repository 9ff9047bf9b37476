//! The book of tables that an agent before us left in force: read back from the tables themselves,
//! which cannot be stale, wherever in a plan that agent was killed. Pure.
//!
//! The tables name pools by tags. The first wish says which pool each VIP has, and so gives the tags
//! their names; a tag that gets none is a pool that is wanted no more, and the next plan removes it
//! like any other. What is in use and could not be read is kept out of the free ids and regions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lb_common::{
    Addr, AddrEntry, Backend, BackendId, Descriptor, Epoch, Record, Rules, UDP, VipEntry, backend, config,
    maps,
};

use super::former::{self, Rewrite, Standing};
use super::ids::{Ids, RecordIds};
use super::tables::Table;
use super::{BackendKey, Book, Line, Lookup};
use crate::datapath::held::{self, Held};
use crate::datapath::layout;
use crate::datapath::memory::Tables;
use crate::datapath::regions::Regions;
use crate::datapath::want::{self, Place, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{
    Access, Affinity, Family, FlowMemory, IpMode, Listener, OnEmpty, PoolId, Prefix, Protocol, Punt, Vip,
    VipAddr,
};

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
        book.doubt();
        for (place, pool) in book.records.keys() {
            if let Some(pool) = pool {
                book.places.entry(pool.clone()).or_default().insert(*place);
            }
        }
        book
    }

    /// What is in force beyond `want`, to be read from a book that was adopted with it.
    pub fn left_over(&self, want: &Want) -> Held {
        let mut held = Held::default();
        for ((place, pool), (_, record)) in &self.records {
            let Some(id) = pool.as_ref().filter(|id| !want.pools.contains_key(*id)) else { continue };
            if want.vips.contains_key(place) {
                continue;
            }
            let pool = held.pools.entry(id.clone()).or_default();
            pool.affinity = record.rules.any(Rules::AFFINITY).then(|| {
                let timeout = u64::from(record.rules.affinity_timeout()) << 30;
                Affinity { timeout: Duration::from_nanos(timeout) }
            });
            if record.rules.any(Rules::CONSERVATIVE) {
                pool.memory = FlowMemory::Conservative;
            }
            pool.empty = if record.rules.any(Rules::REJECT) { OnEmpty::Reject } else { OnEmpty::Drop };
            let access = if record.ranges == 0 { Access::Open } else { Access::Restricted };
            pool.source_ranges.extend(self.sources(record).into_iter().flatten());
            pool.vips.insert(vip(*place), access);
        }
        for ((id, addr, _), line) in &self.backends {
            let is_wanted = want.pools.get(id).is_some_and(|pool| pool.holds(*addr));
            // Of one that had two modes, the one that takes new flows.
            let Some(line) = line.backend().filter(|_| !is_wanted) else { continue };
            let backend = held::backend(&line, former::mode(line.mode));
            if want.pools.contains_key(id) || held.pools.contains_key(id) {
                let pool = held.pools.entry(id.clone()).or_default();
                let known = pool.backends.entry(*addr).or_insert(backend);
                if !line.draining {
                    *known = backend;
                }
            }
        }
        for (place, entry) in self.punts() {
            if want.vips.contains_key(&place) {
                continue;
            }
            let record = self.records.get(&(place, None)).map(|(_, record)| record);
            let listener = if entry.is_https() { Listener::Https } else { Listener::Http };
            let sources = record.and_then(|record| self.sources(record)).cloned();
            // Only who announces asks for it, and by the wish.
            let ip_mode = IpMode::default();
            held.punts.insert(vip(place), Punt { listener, sources, ip_mode });
        }
        held
    }

    /// The set of source ranges that a record names.
    fn sources(&self, record: &Record) -> Option<&BTreeSet<Prefix>> {
        let mut named = self.ranges.iter().filter(|(_, set)| u32::from(**set) == record.ranges);
        named.next().map(|(ranges, _)| ranges).filter(|_| record.ranges != 0)
    }

    /// VIPs in force that are left to the proxy.
    fn punts(&self) -> Vec<(Place, VipEntry)> {
        let by_id: BTreeMap<u16, IpAddr> = self.addr_ids.iter().map(|(addr, id)| (*id, *addr)).collect();
        let entries = self.lookup.iter().flat_map(|(_, vips)| vips).filter(|entry| entry.is_punted());
        let punts = entries.filter_map(|entry| {
            let (id, wire_port, protocol) = entry.place();
            let protocol = if protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
            Some((Place { addr: *by_id.get(&id)?, port: wire_port.swap_bytes(), protocol }, *entry))
        });
        punts.collect()
    }

    /// Gives adopted pools that had no name the one of the pool that has their VIPs now: the wish for
    /// them could be read at last.
    pub fn name_adopted(&mut self, want: &Want) {
        let is_named = |id: &PoolId| !id.service.namespace.is_empty();
        // In their order those come first that have no name.
        if self.tags.keys().next().is_none_or(is_named) {
            return;
        }
        let mut names = BTreeMap::new();
        for (place, pool) in self.records.keys() {
            let unnamed = pool.as_ref().filter(|id| !is_named(id));
            if let (Some(from), Some(Target::Pool(to))) = (unnamed, want.vips.get(place))
                && !self.tags.contains_key(to)
                && !names.values().any(|taken| taken == to)
            {
                names.entry(from.clone()).or_insert_with(|| to.clone());
            }
        }
        for (from, to) in names {
            let name = |id: PoolId| if id == from { to.clone() } else { id };
            self.tags = std::mem::take(&mut self.tags).into_iter().map(|(id, tag)| (name(id), tag)).collect();
            let tables = std::mem::take(&mut self.tables);
            self.tables = tables.into_iter().map(|(id, table)| (name(id), table)).collect();
            let records = std::mem::take(&mut self.records);
            let named = records.into_iter().map(|((place, pool), record)| ((place, pool.map(name)), record));
            self.records = named.collect();
            let backends = std::mem::take(&mut self.backends);
            let named =
                backends.into_iter().map(|((id, addr, rewrite), line)| ((name(id), addr, rewrite), line));
            self.backends = named.collect();
            let again = std::mem::take(&mut self.again.pools);
            self.again.pools = again.into_iter().map(name).collect();
            let changing = std::mem::take(&mut self.changing);
            self.changing = changing.into_iter().map(name).collect();
            let places = std::mem::take(&mut self.places);
            self.places = places.into_iter().map(|(id, places)| (name(id), places)).collect();
            let lingering = std::mem::take(&mut self.lingering.backends);
            self.lingering.backends = lingering.into_iter().map(|(pool, id)| (name(pool), id)).collect();
        }
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
        self.record_ids = RecordIds::without(used);
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
            let pool = name(names, tag);
            let line = backend::line(id);
            let words = [tables.backends.line(line), tables.backends.line(line + 1)];
            let line = Line { id, words, standing: Standing::Wanted };
            // One that we did not write.
            let Some(found) = line.backend() else {
                self.lingering.backends.push((pool, id));
                continue;
            };
            self.tags.insert(pool.clone(), tag);
            if let Some(twin) = self.backends.insert(key(&found, pool.clone()), line) {
                self.lingering.backends.push((pool, twin.id));
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

    /// Backends that are wanted with another rewrite are former selves; pools whose table is the one that
    /// would be made now need no new one.
    fn recognise(&mut self, want: &Want, now: u32) {
        let mut want = want.clone();
        self.keep_lost(&mut want);
        let keys = want.pools.iter().flat_map(|(id, pool)| {
            let key = |(addr, backend): (&SocketAddr, &want::Backend)| {
                (id.clone(), *addr, Rewrite::new(backend.mode, backend.way.source))
            };
            pool.backends.iter().map(key)
        });
        let keys = keys.collect();
        self.note_former(&want, &self.tags.keys().cloned().collect(), &keys, now);
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
            for (addr, entry) in layout::addrs_of(tables.addrs.line(line)) {
                let addr = IpAddr::from(addr);
                by_id.insert(entry.id(), addr);
                all.addrs.insert(addr, entry);
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
        for (place, (entry, record)) in &self.vips {
            if let (false, Some(record)) = (entry.is_punted(), record) {
                let tag = record.rules.pool_tag();
                names.entry(tag).or_insert_with(|| unwanted(tag, *place));
            }
        }
        names
    }
}

/// The lines of the half that begins at `first`. Sizes that no table has read as the largest.
fn lines(first: u32, bits: u32, most: u32) -> std::ops::Range<u32> {
    first..first + 1u32.checked_shl(bits).unwrap_or(most).min(most)
}

/// Name of the pool with a tag, whatever VIP it has.
fn name(names: &BTreeMap<u16, PoolId>, tag: u16) -> PoolId {
    let nowhere = Place { addr: Ipv4Addr::UNSPECIFIED.into(), port: 0, protocol: Protocol::Tcp };
    names.get(&tag).cloned().unwrap_or_else(|| unwanted(tag, nowhere))
}

/// Name of a pool that nobody wants, with this VIP: no Service can have it.
fn unwanted(tag: u16, place: Place) -> PoolId {
    PoolId {
        service: ObjectName::new("", format!("adopted pool {tag}")).into(),
        port: place.port,
        protocol: place.protocol,
        family: Family::of(place.addr),
    }
}

/// Key of a backend.
fn key(line: &Backend, pool: PoolId) -> BackendKey {
    let addr = SocketAddr::new(line.inner.into(), line.wire_port.swap_bytes());
    (pool, addr, Rewrite::new(former::mode(line.mode), line.source.into()))
}

fn vip(Place { addr, port, protocol }: Place) -> Vip {
    Vip { addr: VipAddr::Ip(addr), port, protocol }
}

/// The later of two descriptors of one pool. Those of one generation differ by how far it settled;
/// no table is older than any.
fn newer(one: Descriptor, other: Descriptor) -> Descriptor {
    let later = match other.generation().wrapping_sub(one.generation()) as i8 {
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
