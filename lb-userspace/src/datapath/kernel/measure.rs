//! The object's measuring programs: `cargo xtask bench l4` is their only user.

use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, Map, MapError, PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpLink;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, XdpMode};
use lb_common::bench::{Generator, WORDS};

use super::{Error, Kernel, PROGRAM, io_error, load_error};

const GENERATOR: &str = "BENCH_GENERATOR";
const NEXT_PROGRAM: &str = "BENCH_PROGRAM";
const SUNK: &str = "BENCH_SUNK";

/// Frames that are made and sent together; the kernel allows 256.
const BATCH: u32 = 64;

/// A program on an interface until this is dropped.
#[must_use]
pub struct OnInterface(#[expect(dead_code, reason = "held for its drop")] XdpLink);

impl Kernel {
    /// Loads measuring programs, and lets the wrappers among them call the real one.
    pub fn load_bench(&mut self, names: &[&'static str]) -> Result<(), Error> {
        for name in names {
            self.xdp(name)?.load().map_err(|source| load_error(name, source))?;
        }
        let program = self.xdp(PROGRAM)?.fd().and_then(|fd| Ok(fd.try_clone()?));
        let program = program.map_err(|source| load_error(PROGRAM, source))?;
        let map = self.ebpf.map_mut(NEXT_PROGRAM).ok_or(Error::Object(NEXT_PROGRAM))?;
        let mut next = ProgramArray::try_from(map).map_err(|_| Error::Object(NEXT_PROGRAM))?;
        next.set(0, &program, 0).map_err(|error| map_error("put the program into", NEXT_PROGRAM, error))
    }

    /// Instructions that the kernel's verifier looked at for each program that packets run through: what loading
    /// costs, whatever else the machine does.
    pub fn verified(&self) -> Vec<(String, u32)> {
        let programs = self.ebpf.programs().filter(|(name, _)| name.starts_with(PROGRAM));
        let counts = programs.filter_map(|(name, program)| {
            let info = program.info().ok()?;
            Some((name.to_owned(), info.verified_instruction_count()?))
        });
        counts.collect()
    }

    /// Tells the wrappers what to make of a packet.
    pub fn set_generator(&mut self, generator: &Generator) -> Result<(), Error> {
        let map = self.ebpf.map_mut(GENERATOR).ok_or(Error::Object(GENERATOR))?;
        let mut map: Array<_, [u64; WORDS]> = Array::try_from(map).map_err(|_| Error::Object(GENERATOR))?;
        map.set(0, generator.words(), 0).map_err(|error| map_error("set up", GENERATOR, error))
    }

    /// Sends `frames` live frames as if they had come in by an interface; returns nanoseconds per
    /// frame. Whatever receives them may be on this CPU, and is then part of the time.
    pub fn send_live(
        &mut self,
        name: &'static str,
        frame: &[u8],
        frames: u32,
        ifindex: u32,
    ) -> Result<u64, Error> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len()).unwrap_or(0);
        let context: Vec<u8> = [0, length, 0, ifindex, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = frames;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let result = self.xdp(name)?.test_run(options).map_err(|error| Error::System {
            call: "send live frames with",
            object: name.to_owned(),
            source: io_error(error),
            hint: "needs Linux 5.18 or newer",
        })?;
        Ok(result.duration.as_nanos() as u64)
    }

    /// Puts any XDP program of the object on an interface.
    pub fn attach_bench(&mut self, name: &'static str, ifindex: u32) -> Result<OnInterface, Error> {
        let program = self.xdp(name)?;
        let link = program.attach_to_if_index(ifindex, XdpMode::Driver).and_then(|id| program.take_link(id));
        link.map(OnInterface).map_err(|error| Error::System {
            call: "attach",
            object: format!("{name} to interface {ifindex}"),
            source: io_error(error),
            hint: "",
        })
    }

    /// Frames that the sink has counted.
    pub fn sunk(&self) -> Result<u64, Error> {
        let map = self.ebpf.map(SUNK).ok_or(Error::Object(SUNK))?;
        let map: PerCpuArray<&_, u64> = PerCpuArray::try_from(map).map_err(|_| Error::Object(SUNK))?;
        let counts = map.get(&0, 0).map_err(|error| map_error("read", SUNK, error))?;
        Ok(counts.iter().sum())
    }

    /// Bytes of kernel memory of each map of the data path, as the kernel accounts them.
    pub fn memory(&self) -> Vec<(String, u64)> {
        let all = self.ebpf.maps().chain(self.placed.all());
        let of_packets = all.filter(|(name, _)| !name.starts_with("BENCH_"));
        let mut maps: Vec<_> =
            of_packets.filter_map(|(name, map)| Some((name.to_owned(), memlock(map)?))).collect();
        maps.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        maps
    }
}

/// What the kernel says of a map's descriptor.
fn memlock(map: &Map) -> Option<u64> {
    // The kinds that the object has or could have; aya has no accessor for all of them.
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::LpmTrie(data)
    | Map::DevMap(data)
    | Map::DevMapHash(data)
    | Map::SockMap(data)
    | Map::SockHash(data)
    | Map::ProgramArray(data)
    | Map::RingBuf(data)
    | Map::Unsupported(data)) = map
    else {
        return None;
    };
    let fd = data.fd().as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

fn map_error(call: &'static str, map: &'static str, error: MapError) -> Error {
    Error::System { call, object: map.to_owned(), source: std::io::Error::other(error), hint: "" }
}
