//! The steps of a plan, and how each is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::flows::Entry;
use lb_common::maps::LINE;
use lb_common::{BackendId, Descriptor, Epoch, Rules, Slot};

use crate::datapath::layout;
use crate::datapath::memory::Tables;
use crate::model::l4::Prefix;

/// One step of a [`super::Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the lines of a backend.
    Backend(BackendId, [[u64; LINE]; 2]),
    /// Says who may send us tunnelled packets.
    Peers(BTreeSet<IpAddr>),
    /// Names backends for the tunnel (see [`lb_common::maps::tag_key`]).
    Names(BTreeMap<u64, BackendId>),
    /// Takes names back.
    NoNames(BTreeSet<u64>),
    /// Fills a region that no descriptor names.
    Table(u32, Vec<Slot>),
    /// Writes a record that no VIP names.
    Record(u16, [u64; LINE]),
    /// Gives a record that a VIP may name other rules: one store.
    Rules(u16, Rules),
    /// Fills a set of source ranges that no record names.
    Ranges(u16, BTreeSet<Prefix>),
    /// Switches the tables of a VIP: one store.
    Switch(u16, Descriptor),
    /// Writes a slot of a table in force: one store.
    Slot(u32, Slot),
    /// Clears the mark that packets left on a previous owner.
    Unmark(u32),
    /// Clears an entry of the flow table, unless it was written since.
    Unremember(u32, Entry),
    /// Says of an entry of the flow table that it is not spare, unless it was written since.
    Need(u32, Entry),
    /// Writes the half of the address and VIP tables that is not in force.
    Lookup(u32, layout::Buckets, layout::Buckets),
    /// Puts that half in force: one store.
    Epoch(Epoch),
    /// Waits until no packet reads what was retired.
    Grace,
    /// Marks a backend as gone: flows that remember it begin anew.
    Forget(BackendId),
    /// Clears the flow table of backends that are gone, so that their ids can be used again.
    Purge(BTreeSet<BackendId>),
    /// Empties a set of source ranges.
    NoRanges(u16),
}

/// What a plan changes outside the shared tables.
pub trait Outside {
    /// Returns when no packet reads what was retired before the call.
    fn wait_for_readers(&mut self);
    /// Fills a set of source ranges.
    fn set_ranges(&mut self, set: u16, ranges: &BTreeSet<Prefix>);
    /// Empties it.
    fn clear_ranges(&mut self, set: u16);
    /// Makes these, and no others, the ones that may send us tunnelled packets.
    fn set_peers(&mut self, peers: &BTreeSet<IpAddr>);
    /// Names backends for the tunnel.
    fn set_names(&mut self, names: &BTreeMap<u64, BackendId>);
    /// Takes names back.
    fn clear_names(&mut self, names: &BTreeSet<u64>);
}

/// Nothing there: tables in our own memory, that no packet reads.
impl Outside for () {
    fn wait_for_readers(&mut self) {}

    fn set_ranges(&mut self, _: u16, _: &BTreeSet<Prefix>) {}

    fn clear_ranges(&mut self, _: u16) {}

    fn set_peers(&mut self, _: &BTreeSet<IpAddr>) {}

    fn set_names(&mut self, _: &BTreeMap<u64, BackendId>) {}

    fn clear_names(&mut self, _: &BTreeSet<u64>) {}
}

impl Op {
    /// Carries the step out.
    pub fn apply(&self, tables: &Tables, outside: &mut impl Outside) {
        match self {
            Self::Backend(id, words) => tables.store_backend(*id, words),
            Self::Peers(peers) => outside.set_peers(peers),
            Self::Names(names) => outside.set_names(names),
            Self::NoNames(names) => outside.clear_names(names),
            Self::Table(base, slots) => tables.store_slots(*base, slots),
            Self::Record(index, words) => tables.store_record(*index, words),
            Self::Rules(index, rules) => tables.store_rules(*index, *rules),
            Self::Ranges(set, ranges) => outside.set_ranges(*set, ranges),
            Self::Switch(index, descriptor) => tables.switch(*index, *descriptor),
            Self::Slot(index, slot) => tables.store_slot(*index, *slot),
            Self::Unmark(index) => tables.unmark_slot(*index),
            Self::Unremember(place, entry) => tables.clear_flow(*place, *entry),
            Self::Need(place, entry) => tables.need_flow(*place, *entry),
            Self::Lookup(half, addrs, vips) => tables.store_lookup(*half, &addrs.lines, &vips.lines),
            Self::Epoch(epoch) => tables.store_epoch(*epoch),
            Self::Grace => outside.wait_for_readers(),
            Self::Forget(id) => tables.forget_backend(*id),
            Self::Purge(ids) => {
                tables.purge_flows(ids);
                tables.end_leases(ids);
            }
            Self::NoRanges(set) => outside.clear_ranges(*set),
        }
    }
}
