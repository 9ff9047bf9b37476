//! Loads the kernel object, maps its tables and attaches its programs. aya stops here.

mod capture;
mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{DevMapHash, HashMap, LpmTrie, Map, MapData, ProgramArray, SockMap};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SkLookup, TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::Addr;
use lb_common::maps::{self, Program, at, row};
use lb_common::nat::{Forward, Reverse, Timeouts};

use super::Error;
use super::memory::{Counters, Tables};
use super::mmap::Mapping;
use crate::model::l4::Prefix;

pub use capture::Ring;

/// The object that `cargo xtask build-ebpf` builds; empty where it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/penstock.bpf.o"));

const PROGRAM: &str = "penstock";
const LOOKUP: &str = "penstock_lookup";

/// Maps and programs in the kernel. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    /// By interface.
    xdp: BTreeMap<u32, XdpLink>,
    lookup: Option<FdLink>,
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
    /// Creates the maps and loads both programs.
    pub fn load() -> Result<(Self, Tables, Counters), Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotBuilt);
        }
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| Error::System {
            call: "read",
            object: what.to_owned(),
            source,
            hint: "",
        })?;
        let rows = u32::try_from(cpus.clamp(1, maps::CPUS)).unwrap_or(1);
        let ebpf = EbpfLoader::new()
            .map_max_entries(maps::COUNTS, rows)
            .load(OBJECT)
            .map_err(|source| Error::Load { program: "the kernel object", source: Box::new(source) })?;
        let mut kernel = Self { ebpf, xdp: BTreeMap::new(), lookup: None };
        let tables = Tables::mapped(kernel.mapping(maps::TABLES, at::END)?);
        let counters = kernel.mapping(maps::COUNTS, rows as usize * row::END)?;
        kernel.xdp(PROGRAM)?.load().map_err(|source| load_error(PROGRAM, source))?;
        kernel.sk_lookup()?.load().map_err(|source| load_error(LOOKUP, source))?;
        for (program, name) in Program::ALL {
            kernel.load_behind(program, name)?;
        }
        Ok((kernel, tables, Counters::new(counters)))
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

    fn mapping(&self, name: &'static str, words: usize) -> Result<Mapping, Error> {
        let Some(Map::Array(data)) = self.ebpf.map(name) else { return Err(Error::Object(name)) };
        Mapping::new(data.fd().as_fd(), words).map_err(|source| Error::System {
            call: "mmap",
            object: format!("map {name}"),
            source,
            hint: "",
        })
    }

    /// Fills a set of source ranges.
    pub fn set_ranges(&mut self, set: u16, ranges: &BTreeSet<Prefix>) -> Result<(), Error> {
        let mut map = self.ranges()?;
        for range in ranges {
            map.insert(&range_key(set, *range), 1, 0).map_err(|source| Error::System {
                call: "add source range to",
                object: format!("{}[{range}]", maps::RANGES),
                source: io::Error::other(source),
                hint: "",
            })?;
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

    /// Attaches the XDP program to an interface.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: Attached) -> Result<(), Error> {
        let flags = match mode {
            Attached::Native => XdpMode::Driver,
            Attached::Generic => XdpMode::Skb,
        };
        let program = self.xdp(PROGRAM)?;
        let link = program.attach_to_if_index(ifindex, flags).and_then(|id| program.take_link(id));
        let link = link.map_err(|error| {
            let source = io_error(error);
            let hint = match source.raw_os_error() {
                Some(libc::EBUSY) => "another XDP program is attached: see ip link show",
                Some(libc::EPERM) => "needs CAP_NET_ADMIN and CAP_BPF",
                Some(libc::ERANGE) => "its MTU is too large for the driver's XDP",
                Some(libc::EOPNOTSUPP) => "its driver has no XDP: use --datapath generic",
                _ => "",
            };
            Error::System { call: "attach xdp to", object: name.to_owned(), source, hint }
        })?;
        self.xdp.insert(ifindex, link);
        Ok(())
    }

    /// Detaches the XDP program from an interface; one that is gone has let go of it already.
    pub fn detach_from(&mut self, ifindex: u32) {
        self.xdp.remove(&ifindex);
    }

    /// Detaches everything; maps stay.
    pub fn detach(&mut self) {
        self.xdp.clear();
        self.lookup = None;
    }

    /// Attaches the socket steering to our network namespace.
    pub fn attach_lookup(&mut self) -> Result<(), Error> {
        let namespace = "/proc/self/ns/net";
        let file = std::fs::File::open(namespace).map_err(|source| Error::System {
            call: "open",
            object: namespace.to_owned(),
            source,
            hint: "",
        })?;
        let failed = |error| Error::System {
            call: "attach sk_lookup to",
            object: namespace.to_owned(),
            source: io_error(error),
            hint: "needs CAP_NET_ADMIN and CAP_BPF, Linux 5.9 or newer",
        };
        let program = self.sk_lookup()?;
        let id = program.attach(file).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        self.lookup = Some(link.into());
        Ok(())
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

    /// Allows redirecting to an interface.
    pub fn allow_device(&mut self, ifindex: u32) -> Result<(), Error> {
        let map = self.ebpf.map_mut(maps::DEVICES).ok_or(Error::Object(maps::DEVICES))?;
        let mut devices = DevMapHash::try_from(map).map_err(|_| Error::Object(maps::DEVICES))?;
        devices.insert(ifindex, ifindex, None, 0).map_err(|source| Error::System {
            call: "add interface to",
            object: format!("{}[{ifindex}]", maps::DEVICES),
            source: io::Error::other(source),
            hint: "",
        })
    }

    /// Removes translated flows that are over; returns how many remain and how many went.
    pub fn sweep(&mut self, now: u32, timeouts: &Timeouts) -> Result<(usize, usize), Error> {
        let reverse_map = self.ebpf.map(maps::NAT_REVERSE).ok_or(Error::Object(maps::NAT_REVERSE))?;
        let forward_map = self.ebpf.map(maps::NAT_FORWARD).ok_or(Error::Object(maps::NAT_FORWARD))?;
        let reverses: HashMap<_, u64, [u64; 14]> =
            HashMap::try_from(reverse_map).map_err(|_| Error::Object(maps::NAT_REVERSE))?;
        let forwards: HashMap<_, u64, [u64; 8]> =
            HashMap::try_from(forward_map).map_err(|_| Error::Object(maps::NAT_FORWARD))?;
        let mut live = 0;
        let mut over = Vec::new();
        for (key, words) in reverses.iter().filter_map(Result::ok) {
            let reverse = Reverse::from_words(&words);
            let forward = forwards.get(&reverse.forward_key, 0).ok().map(|words| Forward::from_words(&words));
            // A forward entry that names another port belongs to a later flow of the same client.
            let forward = forward.filter(|forward| forward.reverse_key == key);
            if timeouts.expired(now, forward.as_ref(), &reverse) {
                over.push((key, forward.map(|_| reverse.forward_key)));
            } else {
                live += 1;
            }
        }
        for (reverse, forward) in &over {
            if let Some(forward) = forward {
                let _ = self.remove::<8>(maps::NAT_FORWARD, *forward);
            }
            let _ = self.remove::<14>(maps::NAT_REVERSE, *reverse);
        }
        Ok((live, over.len()))
    }

    fn remove<const WORDS: usize>(&mut self, name: &'static str, key: u64) -> Result<(), Error>
    where
        [u64; WORDS]: aya::Pod,
    {
        let map = self.ebpf.map_mut(name).ok_or(Error::Object(name))?;
        let mut map: HashMap<_, u64, [u64; WORDS]> =
            HashMap::try_from(map).map_err(|_| Error::Object(name))?;
        map.remove(&key).map_err(|_| Error::Object(name))
    }

    /// Runs an XDP program of the object over one packet `repeat` times; the packet is not reset
    /// in between. For tests and measuring.
    pub fn test_run(&mut self, name: &'static str, packet: &[u8], repeat: u32) -> Result<Run, Error> {
        let mut out = vec![0; packet.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        let result = self.xdp(name)?.test_run(options).map_err(|error| Error::System {
            call: "test run of",
            object: name.to_owned(),
            source: io_error(error),
            hint: "",
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { action: result.return_value, packet: out, nanoseconds: result.duration.as_nanos() as u64 })
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

fn load_error(program: &'static str, source: ProgramError) -> Error {
    Error::Load { program, source: Box::new(aya::EbpfError::ProgramError(source)) }
}

fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
