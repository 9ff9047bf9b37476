//! Loads the kernel object, maps its tables and attaches its programs. aya stops here.

mod attach;
mod capture;
mod formers;
mod inherit;
mod look;
mod measure;
mod out;
pub(super) mod refusal;
mod repin;
mod sweep;
mod tables;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, DevMapHash, HashMap, LpmTrie, Map, MapData, ProgramArray, SockMap};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SkLookup, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::maps::{self, Program, row};
use lb_common::nat::{Forward, Reverse, state};
use lb_common::{Addr, HashKey, ports};

use super::Error;
use super::explain::Translations;
use super::memory::{Counters, Tables};
use super::mmap::Mapping;
use super::pins::Pins;
use crate::model::l4::Prefix;

pub use attach::{loaded, names};
pub use capture::Ring;
pub use formers::Formers;
use inherit::Inherited;
pub use look::{Ended, Seen};
pub use out::remove_filters;
pub use sweep::{Look, Sweeper, Swept, Translated};
pub use tables::Banks;
use tables::Placed;

/// The object that `cargo xtask build-ebpf` builds; empty where it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/penstock.bpf.o"));

const PROGRAM: &str = "penstock";
const LOOKUP: &str = "penstock_lookup";

/// Maps and programs in the kernel. Dropping it detaches everything that is not pinned.
pub struct Kernel {
    ebpf: Ebpf,
    /// The maps that packets do not look up.
    placed: Placed,
    /// By interface, and how.
    xdp: BTreeMap<u32, (Attached, XdpLink)>,
    /// By interface.
    out: BTreeMap<u32, out::Out>,
    lookup: Option<FdLink>,
    pins: Option<Pins>,
    /// Where our maps are pinned; `None` as well where somebody removed names of ours.
    set: Option<PathBuf>,
}

/// A kernel part that was loaded.
pub struct Loaded {
    /// Programs and maps.
    pub kernel: Kernel,
    /// The shared tables.
    pub tables: Tables,
    /// The counters.
    pub counters: Counters,
    /// The tables are those of an agent before us, and in force.
    pub inherited: bool,
    /// What of that agent's did not serve, and why.
    pub told: Vec<String>,
}

/// How a program sits on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attached {
    /// In the driver.
    Native,
    /// In the stack, for drivers without XDP.
    Generic,
}

impl Kernel {
    /// Loads the programs, over maps that an agent before us pinned where they serve. Until an
    /// attachment is swapped, no packet meets them. `key`: the hash key that is asked for.
    pub fn load(pins: Option<Pins>, key: Option<HashKey>) -> Result<Loaded, Error> {
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| Error::System {
            call: "read",
            object: what.to_owned(),
            source,
            hint: "",
        })?;
        Self::load_for(Banks::of(cpus)?, pins, key)
    }

    /// The same with counters as a host of other CPUs has them.
    pub fn load_for(banks: Banks, pins: Option<Pins>, key: Option<HashKey>) -> Result<Loaded, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotBuilt);
        }
        let mut inherited = match &pins {
            Some(pins) => Inherited::find(pins, banks, key)?,
            None => Inherited::default(),
        };
        let mut told = std::mem::take(&mut inherited.told);
        let mut kernel = match Self::load_over(&inherited, banks) {
            Err(error) if !inherited.paths.is_empty() => {
                told.push(format!("the program does not load over the maps that are pinned: {error}"));
                inherited = Inherited::default();
                Self::load_over(&inherited, banks)?
            }
            loaded => loaded?,
        };
        let tables = Tables::mapped(|words| kernel.mapping(maps::TABLES, words))?;
        let counts = banks.names().map(|name| kernel.mapping(name, 0..banks.rows() * row::END));
        let counters = Counters::mapped(counts.collect::<Result<_, _>>()?, banks.rows());
        told.extend(kernel.migrate(&inherited));
        if let Some(pins) = pins {
            kernel.set = Some(kernel.pin_set(&pins)?);
            kernel.pins = Some(pins);
        }
        Ok(Loaded { kernel, tables, counters, inherited: inherited.paths.contains_key(maps::TABLES), told })
    }

    fn load_over(inherited: &Inherited, banks: Banks) -> Result<Self, Error> {
        let placed = Placed::open(&inherited.paths, banks)?;
        let object = placed.linked(OBJECT)?;
        let mut loader = EbpfLoader::new();
        for (name, path) in &inherited.paths {
            loader.map_pin_path(name, path);
        }
        let ebpf = loader
            .load(&object)
            .map_err(|source| Error::Load { program: "the kernel object", source: Box::new(source) })?;
        let mut kernel = Self {
            ebpf,
            placed,
            xdp: BTreeMap::new(),
            out: BTreeMap::new(),
            lookup: None,
            pins: None,
            set: None,
        };
        kernel.xdp(PROGRAM)?.load().map_err(|source| load_error(PROGRAM, source))?;
        kernel.sk_lookup()?.load().map_err(|source| load_error(LOOKUP, source))?;
        kernel.load_out()?;
        for (program, name) in Program::ALL {
            kernel.load_behind(program, name)?;
        }
        Ok(kernel)
    }

    /// Loads a program of the ladder's tail calls and makes it reachable.
    fn load_behind(&mut self, program: Program, name: &'static str) -> Result<(), Error> {
        if self.ebpf.program(name).is_none() {
            return Ok(());
        }
        let loaded = self.xdp(name)?;
        loaded.load().map_err(|source| load_error(name, source))?;
        let fd = loaded.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|source| load_error(name, source))?;
        let map = self.ebpf.map_mut(maps::PROGRAMS).ok_or(Error::Object(maps::PROGRAMS))?;
        let mut programs = ProgramArray::try_from(map).map_err(|_| Error::Object(maps::PROGRAMS))?;
        programs.set(program as u32, &fd, 0).map_err(|source| Error::System {
            call: "put program into",
            object: format!("{}[{name}]", maps::PROGRAMS),
            source: io::Error::other(source),
            hint: "",
        })
    }

    /// A map of the program.
    fn map(&self, name: &str) -> Option<&Map> {
        let placed = self.placed.all().find(|(placed, _)| *placed == name);
        placed.map(|(_, map)| map).or_else(|| self.ebpf.map(name))
    }

    fn mapping(&self, name: &'static str, words: Range<usize>) -> Result<Mapping, Error> {
        let Some(Map::Array(data)) = self.map(name) else { return Err(Error::Object(name)) };
        Mapping::new(data.fd().as_fd(), words).map_err(|source| Error::System {
            call: "mmap",
            object: format!("map {name}"),
            source,
            hint: "",
        })
    }

    /// Puts these into a set of source ranges, and leaves those that found no room.
    pub fn set_ranges(&mut self, set: u16, ranges: &mut BTreeSet<Prefix>) -> Result<(), Error> {
        let mut map = self.ranges()?;
        while let Some(range) = ranges.first() {
            map.insert(&range_key(set, *range), 1, 0).map_err(|source| Error::System {
                call: "add source range to",
                object: format!("{}[{range}]", maps::RANGES),
                source: io::Error::other(source),
                hint: "",
            })?;
            ranges.pop_first();
        }
        Ok(())
    }

    /// Empties a set of source ranges.
    pub fn clear_ranges(&mut self, set: u16, ranges: &BTreeSet<Prefix>) -> Result<(), Error> {
        let mut map = self.ranges()?;
        for range in ranges {
            // One that is not there is as good as removed.
            let _ = map.remove(&range_key(set, *range));
        }
        Ok(())
    }

    /// The sets of source ranges that are there, those without any left out.
    pub fn all_ranges(&mut self) -> Result<BTreeMap<u16, BTreeSet<Prefix>>, Error> {
        let mut sets: BTreeMap<u16, BTreeSet<Prefix>> = BTreeMap::new();
        for key in self.ranges()?.keys() {
            let key = key.map_err(|source| Error::System {
                call: "read",
                object: maps::RANGES.to_owned(),
                source: io::Error::other(source),
                hint: "",
            })?;
            if let Some((set, range)) = range_of(&key) {
                sets.entry(set).or_default().insert(range);
            }
        }
        Ok(sets)
    }

    fn ranges(&mut self) -> Result<LpmTrie<&mut MapData, [u32; 5], u8>, Error> {
        let map = self.ebpf.map_mut(maps::RANGES).ok_or(Error::Object(maps::RANGES))?;
        LpmTrie::try_from(map).map_err(|_| Error::Object(maps::RANGES))
    }

    fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, Error> {
        let program = self.ebpf.program_mut(name).ok_or(Error::Object(name))?;
        program.try_into().map_err(|_| Error::Object(name))
    }

    fn sk_lookup(&mut self) -> Result<&mut SkLookup, Error> {
        let program = self.ebpf.program_mut(LOOKUP).ok_or(Error::Object(LOOKUP))?;
        program.try_into().map_err(|_| Error::Object(LOOKUP))
    }

    /// Puts a listening socket at `index`.
    pub fn set_socket(&mut self, index: u32, socket: impl AsFd) -> Result<(), Error> {
        let map = self.ebpf.map_mut(maps::SOCKETS).ok_or(Error::Object(maps::SOCKETS))?;
        let mut sockets = SockMap::try_from(map).map_err(|_| Error::Object(maps::SOCKETS))?;
        sockets.set(index, &socket.as_fd().as_raw_fd(), 0).map_err(|source| Error::System {
            call: "put listener into",
            object: format!("{}[{index}]", maps::SOCKETS),
            source: io::Error::other(source),
            hint: "",
        })
    }

    /// Allows redirecting to an interface. `to`: the one that such a packet leaves by.
    pub fn allow_device(&mut self, ifindex: u32, to: u32) -> Result<(), Error> {
        let map = self.ebpf.map_mut(maps::DEVICES).ok_or(Error::Object(maps::DEVICES))?;
        let mut devices = DevMapHash::try_from(map).map_err(|_| Error::Object(maps::DEVICES))?;
        devices.insert(ifindex, to, None, 0).map_err(|source| Error::System {
            call: "add interface to",
            object: format!("{}[{ifindex}]", maps::DEVICES),
            source: io::Error::other(source),
            hint: "",
        })
    }

    /// Takes an interface back that went.
    pub fn forget_device(&mut self, ifindex: u32) {
        let map = self.ebpf.map_mut(maps::DEVICES);
        let devices = map.and_then(|map| DevMapHash::try_from(map).ok());
        // One that is not there is what is wanted.
        let _ = devices.map(|mut devices: DevMapHash<_>| devices.remove(ifindex));
    }

    /// Whether any flow is translated.
    pub fn any_translated(&self) -> bool {
        let map = self.ebpf.map(maps::NAT_REVERSE);
        let map = map.and_then(|map| {
            HashMap::<_, u64, [u64; size_of::<Reverse>() / size_of::<u64>()]>::try_from(map).ok()
        });
        map.is_some_and(|map| map.keys().next().is_some())
    }

    /// What is remembered of a translated flow with this hash.
    pub fn translated(&self, hash: u64) -> Option<Forward> {
        self.forward(hash)
    }

    /// Makes translated flows silent for so much longer, in units of [`lb_common::flows::clock`]. For tests: the
    /// program's clock is the kernel's.
    pub fn age_translated(&mut self, units: u32) -> Result<(), Error> {
        let age = |seen: &mut u64| *seen -= u64::from(units.min(*seen as u32));
        self.edit::<8>(maps::NAT_FORWARD, 6, age)?;
        self.edit::<15>(maps::NAT_REVERSE, 14, age)
    }

    /// Notes an answer of the backend of each translated flow. For measuring.
    pub fn answer_translated(&mut self) -> Result<(), Error> {
        self.edit::<15>(maps::NAT_REVERSE, 14, |word| *word |= u64::from(state::SEEN) << 48)
    }

    /// Changes one word of every entry.
    fn edit<const WORDS: usize>(
        &mut self,
        name: &'static str,
        word: usize,
        change: impl Fn(&mut u64),
    ) -> Result<(), Error>
    where
        [u64; WORDS]: aya::Pod,
    {
        let map = self.ebpf.map_mut(name).ok_or(Error::Object(name))?;
        let mut map: HashMap<_, u64, [u64; WORDS]> =
            HashMap::try_from(map).map_err(|_| Error::Object(name))?;
        let entries: Vec<(u64, [u64; WORDS])> = map.iter().filter_map(Result::ok).collect();
        for (key, mut words) in entries {
            words.get_mut(word).into_iter().for_each(&change);
            map.insert(key, words, 0).map_err(|_| Error::Object(name))?;
        }
        Ok(())
    }

    /// Runs an XDP program of the object over one packet `repeat` times; the packet is not reset
    /// in between. For tests and measuring.
    pub fn test_run(&self, name: &'static str, packet: &[u8], repeat: u32) -> Result<Run, Error> {
        let mut out = vec![0; packet.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        let program: &Xdp =
            self.ebpf.program(name).and_then(|program| program.try_into().ok()).ok_or(Error::Object(name))?;
        let result = program.test_run(options).map_err(|error| Error::System {
            call: "test run of",
            object: name.to_owned(),
            source: io_error(error),
            hint: "",
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { action: result.return_value, packet: out, nanoseconds: result.duration.as_nanos() as u64 })
    }
}

impl Translations for Kernel {
    fn forward(&self, hash: u64) -> Option<Forward> {
        let map: HashMap<_, u64, [u64; 8]> = HashMap::try_from(self.ebpf.map(maps::NAT_FORWARD)?).ok()?;
        map.get(&hash, 0).ok().map(|words| Forward::from_words(&words))
    }

    fn reverse(&self, key: u64) -> Option<Reverse> {
        let map: HashMap<_, u64, [u64; 15]> = HashMap::try_from(self.ebpf.map(maps::NAT_REVERSE)?).ok()?;
        map.get(&key, 0).ok().map(|words| Reverse::from_words(&words))
    }

    fn are_full(&self) -> bool {
        let forward = self.ebpf.map(maps::NAT_FORWARD);
        let map = forward.and_then(|map| HashMap::<_, u64, [u64; 8]>::try_from(map).ok());
        // A flow has one entry in each map, but for the moment in which it loses its port to another.
        map.is_some_and(|map| map.keys().filter_map(Result::ok).count() >= maps::NAT_FLOWS)
    }

    fn oldest(&self) -> Vec<u64> {
        let begun = self.ebpf.map(maps::BEGUN).and_then(|map| Array::<_, u64>::try_from(map).ok());
        let Some(words) = begun else { return Vec::new() };
        let of_ring = |ring: u32| {
            let word = |index: u32| words.get(&(ring * ports::RING + index), 0).ok();
            let numbers = word(ports::COUNT).zip(word(ports::LOOKED_AT));
            let next = numbers.and_then(|(count, looked_at)| ports::oldest_begun(count, looked_at));
            let numbers = next.unwrap_or(0)..next.and(word(ports::COUNT)).unwrap_or(0);
            let some = numbers.take(ports::ROOM_PROBES as usize);
            some.filter_map(|number| word((number % ports::BEGUN) as u32)).collect::<Vec<_>>()
        };
        (0..ports::RINGS).flat_map(of_ring).take(ports::ROOM_PROBES as usize).collect()
    }
}

/// What one test run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// XDP action.
    pub action: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Time of one repeat, whole nanoseconds.
    pub nanoseconds: u64,
}

/// Key of a source range: the set, then the address with IPv4 as v4-mapped IPv6.
fn range_key(set: u16, range: Prefix) -> Key<[u32; 5]> {
    let addr = Addr::from(range.addr());
    let mapped = if range.addr().is_ipv4() { 96 } else { 0 };
    let data = [set.into(), addr.hi as u32, (addr.hi >> 32) as u32, addr.lo as u32, (addr.lo >> 32) as u32];
    Key::new(32 + mapped + u32::from(range.bits()), data)
}

/// [`range_key`] undone.
fn range_of(key: &Key<[u32; 5]>) -> Option<(u16, Prefix)> {
    let [set, a, b, c, d] = key.data();
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let addr = Addr { hi: word(a, b), lo: word(c, d) };
    let mapped = if addr.is_v4() { 96 } else { 0 };
    let bits = key.prefix_len().checked_sub(32 + mapped)?;
    Some((u16::try_from(set).ok()?, Prefix::new(addr.into(), u8::try_from(bits).ok()?)?))
}

fn load_error(program: &'static str, source: ProgramError) -> Error {
    Error::Load { program, source: Box::new(aya::EbpfError::ProgramError(source)) }
}

fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
