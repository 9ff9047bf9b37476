//! What of an earlier agent's maps serves again. aya opens a pinned map without a look at it, and
//! the kernel would then copy entries of its size into buffers of ours; so every map is compared
//! with what the object wants before anything opens it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, MapInfo};
use lb_common::config::{self, HashKey};
use lb_common::maps::{self, at};
use lb_common::nat::{Forward, Reverse};
use lb_common::{ABI_READABLE, ABI_VERSION, Lines};

use super::tables::{self, Banks};
use super::{Error, Kernel, OBJECT};
use crate::datapath::memory::Cells;
use crate::datapath::mmap::Mapping;
use crate::datapath::pins::Pins;

/// Maps that outlive the program, the tables last: a set that has them is complete. What is not
/// here is part of the program: its tail calls and its scratch memory change with it, by the one
/// store that swaps the program of an attachment.
const KEPT: [&str; 13] = [
    maps::COUNTS[0],
    maps::COUNTS[1],
    maps::COUNTS[2],
    maps::COUNTS[3],
    maps::NAT_FORWARD,
    maps::NAT_REVERSE,
    maps::BEGUN,
    maps::DEVICES,
    maps::SOCKETS,
    maps::RANGES,
    maps::FRAGMENTS,
    maps::PEERS,
    maps::TABLES,
];

/// The maps to begin with.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Where each map is pinned that serves again.
    pub paths: BTreeMap<&'static str, PathBuf>,
    /// Maps whose entries serve again in a map of another size.
    migrating: Vec<(&'static str, PathBuf)>,
    /// What does not serve, and why.
    pub told: Vec<String>,
}

/// What a map is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl Inherited {
    /// Looks through what is pinned, the newest set first. `key`: the hash key that is asked for.
    pub(super) fn find(pins: &Pins, banks: Banks, key: Option<HashKey>) -> Result<Self, Error> {
        let wanted = shapes(banks)?;
        let mut told = Vec::new();
        for set in pins.sets() {
            match usable(&set, &wanted, key) {
                Ok(()) => return Ok(Self::of(&set, &wanted, told, pins.is_own(&set))),
                Err(why) => told.push(format!("{} does not serve again: {why}", set.display())),
            }
        }
        let others = pins.other_versions();
        if !others.is_empty() {
            let others = others.join(", ");
            told.push(format!("tables of layout {others} do not serve this program (v{ABI_VERSION})"));
        }
        Ok(Self { told, ..Self::default() })
    }

    /// Every map of a set with the right shape. `is_own`: of our own layout; an older one numbers what is counted otherwise.
    fn of(set: &Path, wanted: &BTreeMap<String, Shape>, told: Vec<String>, is_own: bool) -> Self {
        let mut inherited = Self { told, ..Self::default() };
        if !is_own {
            inherited.told.push("counters begin anew: the version before counted other things".to_owned());
        }
        for name in KEPT.into_iter().filter(|name| is_own || !maps::COUNTS.contains(name)) {
            let (path, Some(wanted)) = (set.join(name), wanted.get(name)) else { continue };
            match shape(&path) {
                Ok(shape) if shape == *wanted => drop(inherited.paths.insert(name, path)),
                Ok(shape) if migrates(name) && shape.resized(wanted.max_entries) == *wanted => {
                    inherited.told.push(format!("{name} has another size: its entries move to a new map"));
                    inherited.migrating.push((name, path));
                }
                Ok(shape) => inherited.told.push(format!("{name} is made anew: {shape}, wanted {wanted}")),
                Err(why) => inherited.told.push(format!("{name} is made anew: {why}")),
            }
        }
        inherited
    }
}

/// Whether the tables of a set can be used, and so the set.
fn usable(set: &Path, wanted: &BTreeMap<String, Shape>, key: Option<HashKey>) -> Result<(), String> {
    let path = set.join(maps::TABLES);
    let wanted = wanted.get(maps::TABLES).ok_or("the object has no such map")?;
    let shape = shape(&path)?;
    if shape != *wanted {
        return Err(format!("{} is {shape}, wanted {wanted}", maps::TABLES));
    }
    let data = MapData::from_pin(&path).map_err(|error| error.to_string())?;
    let page = Mapping::new(data.fd().as_fd(), 0..at::INTERFACES).map_err(|error| error.to_string())?;
    let config = Cells::Mapped(page.into(), 0..at::INTERFACES);
    match config.word(0, config::ABI_WORD) {
        // An agent that ended while it began.
        0 => return Err("it was never completed".to_owned()),
        version if !(u64::from(ABI_READABLE)..=u64::from(ABI_VERSION)).contains(&version) => {
            return Err(format!("its layout is version {version}, wanted {ABI_VERSION}"));
        }
        _ => {}
    }
    if key.is_some_and(|key| key != config::hash_key(&config)) {
        return Err("its flow hash has another key than --hash-key says".to_owned());
    }
    Ok(())
}

/// Maps whose entries mean the same in a map of another size.
fn migrates(name: &str) -> bool {
    [maps::NAT_FORWARD, maps::NAT_REVERSE].contains(&name)
}

/// Words of an entry.
const fn words<T>() -> usize {
    size_of::<T>() / size_of::<u64>()
}

/// What the object's maps are made as.
fn shapes(banks: Banks) -> Result<BTreeMap<String, Shape>, Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|_| Error::Object("maps"))?;
    let shape = |(name, map): (&str, &aya_obj::Map)| {
        let is_devmap = [aya::maps::MapType::DevMap, aya::maps::MapType::DevMapHash]
            .map(|kind| kind as u32)
            .contains(&map.map_type());
        let shape = Shape {
            kind: map.map_type(),
            key_size: map.key_size(),
            // As the loader makes it: with the program that could run there.
            value_size: if is_devmap { 8 } else { map.value_size() },
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        };
        (name.to_owned(), shape)
    };
    let maps = object.maps.iter().map(|(name, map)| (name.as_str(), map));
    let placed = tables::wanted(banks);
    Ok(maps.chain(placed.iter().map(|(name, map)| (*name, map))).map(shape).collect())
}

fn shape(path: &Path) -> Result<Shape, String> {
    // The kernel adds this to every DEVMAP (dev_map_alloc in kernel/bpf/devmap.c).
    const RDONLY_PROG: u32 = 1 << 7;
    let info = MapInfo::from_pin(path).map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{}: {source}", path.display()),
        None => format!("{}: {error}", path.display()),
    })?;
    Ok(Shape {
        kind: info.map_type().map_err(|error| error.to_string())? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags() & !RDONLY_PROG,
    })
}

impl Shape {
    fn resized(self, max_entries: u32) -> Self {
        Self { max_entries, ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key_size, value_size, max_entries, flags } = self;
        write!(f, "type {kind}, key {key_size}, value {value_size}, entries {max_entries}, flags {flags:#x}")
    }
}

impl Kernel {
    /// Copies the entries of maps that have another size now, as many as fit. Returns what did not.
    pub(super) fn migrate(&mut self, inherited: &Inherited) -> Vec<String> {
        let mut told = Vec::new();
        for (name, path) in &inherited.migrating {
            let copied = match *name {
                maps::NAT_FORWARD => self.copy::<{ words::<Forward>() }>(name, path),
                _ => self.copy::<{ words::<Reverse>() }>(name, path),
            };
            match copied {
                Ok(0) => {}
                Ok(lost) => told.push(format!("{lost} entries of {name} did not fit its new size")),
                Err(error) => told.push(error.to_string()),
            }
        }
        told
    }

    fn copy<const WORDS: usize>(&mut self, name: &'static str, from: &Path) -> Result<usize, Error>
    where
        [u64; WORDS]: aya::Pod,
    {
        let failed = |error| Error::System {
            call: "copy",
            object: name.to_owned(),
            source: io::Error::other(error),
            hint: "",
        };
        let old = aya::maps::Map::from_map_data(MapData::from_pin(from).map_err(failed)?).map_err(failed)?;
        let old: HashMap<_, u64, [u64; WORDS]> = HashMap::try_from(&old).map_err(failed)?;
        let new = self.ebpf.map_mut(name).ok_or(Error::Object(name))?;
        let mut new: HashMap<_, u64, [u64; WORDS]> = HashMap::try_from(new).map_err(failed)?;
        let entries = old.iter().filter_map(Result::ok);
        Ok(entries.filter(|(key, value)| new.insert(key, value, 0).is_err()).count())
    }

    /// Pins the maps that are to outlive us as a new set. The program array with them: without a
    /// name and without us the kernel would empty it.
    pub(super) fn pin_set(&mut self, pins: &Pins) -> Result<PathBuf, Error> {
        let set = pins.new_set()?;
        for path in self.pinned_maps(&set) {
            let name = path.file_name().and_then(OsStr::to_str);
            let Some(map) = name.and_then(|name| self.map(name)) else { continue };
            map.pin(&path).map_err(|error| Error::System {
                call: "pin",
                object: path.display().to_string(),
                source: io::Error::other(error),
                hint: "",
            })?;
        }
        Ok(set)
    }

    /// Names that our maps have in a set.
    pub(super) fn pinned_maps(&self, set: &Path) -> impl Iterator<Item = PathBuf> {
        let names = [maps::PROGRAMS].into_iter().chain(KEPT).filter(|name| self.map(name).is_some());
        names.map(|name| set.join(name))
    }
}
