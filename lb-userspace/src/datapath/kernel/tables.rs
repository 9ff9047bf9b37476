//! The one map that packets do not look up: its address stands in the program.
//!
//! The kernel puts the address of an array's value into a program where an instruction asks for it
//! (`BPF_PSEUDO_MAP_VALUE`). aya does so for the sections of global variables alone, which it makes
//! itself, without `BPF_F_MMAPABLE`, and overwrites where they were pinned. So the program loads a
//! number that nothing else uses ([`maps::TABLES_ADDRESS`]), and here the loads of it become what
//! they stand for, before aya sees the object.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError, MapType};
use lb_common::maps::{self, at};

use super::Error;

/// `BPF_F_MMAPABLE`.
const SHARED: u32 = 1 << 10;

/// What the map is made as.
pub(super) const fn wanted() -> aya_obj::Map {
    aya_obj::Map::new_from_params(MapType::Array as u32, 4, (at::END * size_of::<u64>()) as u32, 1, SHARED)
}

/// Opens the map that an agent before us pinned, or makes it.
pub(super) fn open(pinned: Option<&PathBuf>) -> Result<Map, Error> {
    let data = match pinned {
        Some(path) => MapData::from_pin(path),
        None => MapData::create(wanted(), maps::TABLES, None),
    };
    data.and_then(Map::from_map_data).map_err(failed)
}

/// The object with the map's address wherever a program loads it.
pub(super) fn linked(object: &[u8], tables: &Map) -> Result<Vec<u8>, Error> {
    let Map::Array(data) = tables else { return Err(Error::Object(maps::TABLES)) };
    let mut object = object.to_vec();
    if link(&mut object, data.fd().as_fd().as_raw_fd()) == 0 {
        return Err(Error::Object(maps::TABLES));
    }
    Ok(object)
}

/// Loads of a 64-bit number: two instructions of eight bytes, each with half of it at its end.
fn link(object: &mut [u8], fd: i32) -> usize {
    const LOAD: u8 = 0x18;
    const MAP_VALUE: u8 = 2 << 4;
    let upper = ((maps::TABLES_ADDRESS >> 32) as u32).to_le_bytes();
    let mut found = 0;
    let mut at = 0;
    while let Some(pair) = object.get_mut(at..at + 16) {
        at += 8;
        let [LOAD, target @ 0..=9, 0, 0, a, b, c, d, 0, 0, 0, 0, rest @ ..] = pair else { continue };
        if *rest == upper {
            *target |= MAP_VALUE;
            let offset = [*a, *b, *c, *d];
            [*a, *b, *c, *d] = fd.to_le_bytes();
            rest.copy_from_slice(&offset);
            found += 1;
        }
    }
    found
}

fn failed(error: MapError) -> Error {
    Error::Load { program: maps::TABLES, source: Box::new(error.into()) }
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

        let found = link(&mut object, 0x0102);

        let linked = [0x18, 0x24, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0x30, 0x12, 0, 0];
        assert_eq!((found, object), (1, [other, linked, other].concat()));
    }
}
