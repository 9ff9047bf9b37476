//! The maps that packets do not look up: their addresses stand in the program.
//!
//! The kernel puts the address of an array's value into a program where an instruction asks for it
//! (`BPF_PSEUDO_MAP_VALUE`). aya does so for the sections of global variables alone, which it makes
//! itself, without `BPF_F_MMAPABLE`, and overwrites where they were pinned. So the program loads
//! numbers that nothing else uses ([`maps::TABLES_ADDRESS`] and others), and here the loads of them become what
//! they stand for, before aya sees the object.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError, MapType};
use lb_common::maps::{self, at, row};

use super::Error;

/// `BPF_F_MMAPABLE`.
const SHARED: u32 = 1 << 10;

/// The maps of this kind.
pub(super) struct Placed {
    /// What user space lays out.
    tables: Map,
    /// What packets count.
    counts: Vec<(&'static str, Map)>,
    banks: Banks,
}

/// How the rows of counters, one for each CPU and one that user space writes, are spread over maps: as many in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Banks {
    maps: u32,
    rows: u32,
}

impl Banks {
    /// For so many CPUs, in as few maps as there may be.
    pub fn of(cpus: usize) -> Result<Self, Error> {
        Self::with(cpus, maps::BANK_ROWS)
    }

    /// The same with `most` rows to a map.
    pub fn with(cpus: usize, most: usize) -> Result<Self, Error> {
        let rows = cpus.max(1) + 1;
        let count = rows.div_ceil(most);
        if count > maps::BANKS {
            return Err(Error::TooManyCpus(cpus));
        }
        Ok(Self { maps: count as u32, rows: rows.div_ceil(count) as u32 })
    }

    /// The maps.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        maps::COUNTS.into_iter().take(self.maps as usize)
    }

    /// The first row behind each map, of which a CPU of that number would have it; those that are not there end with the last one
    /// that is.
    fn ends(self) -> impl Iterator<Item = u32> {
        (1..=maps::BANKS as u32).map(move |bank| bank.min(self.maps) * self.rows)
    }

    /// Rows of each.
    pub(super) const fn rows(self) -> usize {
        self.rows as usize
    }
}

/// What they are made as.
pub(super) fn wanted(banks: Banks) -> Vec<(&'static str, aya_obj::Map)> {
    // An array of one value, because of no other one is the address known.
    let array = |bytes| aya_obj::Map::new_from_params(MapType::Array as u32, 4, bytes as u32, 1, SHARED);
    let counts = banks.names().map(|name| (name, array(banks.rows() * row::BYTES)));
    [(maps::TABLES, array(at::END * size_of::<u64>()))].into_iter().chain(counts).collect()
}

impl Placed {
    /// Opens those that an agent before us pinned, and makes the others.
    pub(super) fn open(pinned: &BTreeMap<&'static str, PathBuf>, banks: Banks) -> Result<Self, Error> {
        let opened = wanted(banks).into_iter().map(|(name, wanted)| {
            let data = match pinned.get(name) {
                Some(path) => MapData::from_pin(path),
                None => MapData::create(wanted, name, None),
            };
            let map = data.and_then(Map::from_map_data).map_err(|error| failed(name, error))?;
            Ok((name, map))
        });
        let mut counts = opened.collect::<Result<Vec<_>, Error>>()?;
        let (_, tables) = counts.remove(0);
        Ok(Self { tables, counts, banks })
    }

    /// All with their names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Map)> {
        let counts = self.counts.iter().map(|(name, map)| (*name, map));
        [(maps::TABLES, &self.tables)].into_iter().chain(counts)
    }

    /// The object with what its numbers stand for.
    pub(super) fn linked(&self, object: &[u8]) -> Result<Vec<u8>, Error> {
        let mut object = object.to_vec();
        // Where there is no such map nothing comes to its address, which has to be one all the same.
        let counts = (0..maps::BANKS).filter_map(|bank| self.counts.get(bank).or(self.counts.first()));
        let counts = counts.zip(maps::COUNTS_ADDRESS).map(|((name, map), address)| (*name, map, address));
        for (name, map, address) in
            [(maps::TABLES, &self.tables, maps::TABLES_ADDRESS)].into_iter().chain(counts)
        {
            let Map::Array(data) = map else { return Err(Error::Object(name)) };
            let of_map = |offset| Load::OfMap { fd: data.fd().as_fd().as_raw_fd(), offset };
            if link(&mut object, address, of_map) == 0 {
                return Err(Error::Object(name));
            }
        }
        for (place, end) in maps::COUNTS_END.into_iter().zip(self.banks.ends()) {
            link(&mut object, place, |_| Load::Number(end));
        }
        Ok(object)
    }
}

/// What a load becomes.
enum Load {
    /// The address of a map's value, and an offset to it.
    OfMap { fd: i32, offset: [u8; 4] },
    /// A number.
    Number(u32),
}

/// Loads of a 64-bit number: two instructions of eight bytes, each with half of it at its end. Changes those with the
/// upper half of `address`, by their lower one.
fn link(object: &mut [u8], address: u64, load: impl Fn([u8; 4]) -> Load) -> usize {
    const LOAD: u8 = 0x18;
    const MAP_VALUE: u8 = 2 << 4;
    let upper = ((address >> 32) as u32).to_le_bytes();
    let mut found = 0;
    let mut at = 0;
    while let Some(pair) = object.get_mut(at..at + 16) {
        at += 8;
        let [LOAD, target @ 0..=9, 0, 0, a, b, c, d, 0, 0, 0, 0, rest @ ..] = pair else { continue };
        if *rest != upper {
            continue;
        }
        match load([*a, *b, *c, *d]) {
            Load::OfMap { fd, offset } => {
                *target |= MAP_VALUE;
                [*a, *b, *c, *d] = fd.to_le_bytes();
                rest.copy_from_slice(&offset);
            }
            Load::Number(number) => {
                [*a, *b, *c, *d] = number.to_le_bytes();
                rest.copy_from_slice(&[0; 4]);
            }
        }
        found += 1;
    }
    found
}

fn failed(program: &'static str, error: MapError) -> Error {
    Error::Load { program, source: Box::new(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loads_of_the_address_become_loads_of_the_map() {
        let [a, b, c, d] = ((maps::TABLES_ADDRESS >> 32) as u32).to_le_bytes();
        let other = [0x18, 3, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8];
        let load = [0x18, 4, 0, 0, 0x30, 0x12, 0, 0, 0, 0, 0, 0, a, b, c, d];
        let mut object = [other, load, other].concat();

        let found = link(&mut object, maps::TABLES_ADDRESS, |offset| Load::OfMap { fd: 0x0102, offset });

        let linked = [0x18, 0x24, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0x30, 0x12, 0, 0];
        assert_eq!((found, object), (1, [other, linked, other].concat()));
    }

    #[test]
    fn rows_are_spread_evenly_over_as_few_maps_as_hold_them() {
        for (cpus, maps, ends) in [
            (0, 1, [2, 2, 2, 2]),
            (339, 1, [340, 340, 340, 340]),
            (340, 2, [171, 342, 342, 342]),
            (384, 2, [193, 386, 386, 386]),
            (1024, 4, [257, 514, 771, 1028]),
            (1359, 4, [340, 680, 1020, 1360]),
        ] {
            let banks = Banks::of(cpus).expect("they fit");
            assert_eq!((banks.maps, banks.ends().collect::<Vec<_>>()), (maps, ends.to_vec()), "{cpus}");
        }
        assert!(matches!(Banks::of(1360), Err(Error::TooManyCpus(1360))));
    }

    #[test]
    fn a_load_of_the_number_of_rows_becomes_one_of_it() {
        let [a, b, c, d] = ((maps::COUNTS_END[0] >> 32) as u32).to_le_bytes();
        let mut object = [0x18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d];

        let found = link(&mut object, maps::COUNTS_END[0], |_| Load::Number(0x0102));

        assert_eq!((found, object), (1, [0x18, 4, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    }
}
