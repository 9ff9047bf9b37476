//! The ring buffer in which the program shows packets, and what each CPU counts beside it.

use std::io;
use std::os::fd::AsFd;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use lb_common::capture::{Head, state};
use lb_common::maps;

use super::{Error, Kernel};
use crate::model::capture::Tally;

type State = [u64; state::WORDS];

/// The reader's end of the ring buffer.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// The oldest event that was not read yet: its head and the packet's beginning.
    pub fn take(&mut self) -> Option<(Head, Vec<u8>)> {
        loop {
            let event = self.0.next()?;
            if let Some((head, bytes)) = Head::parse(&event) {
                return Some((head, bytes.to_vec()));
            }
        }
    }
}

impl Kernel {
    /// Opens the ring buffer, empty, and forgets what the CPUs counted.
    pub fn open_ring(&mut self) -> Result<Ring, Error> {
        let zero = vec![State::default(); cpus()?];
        let zero =
            PerCpuValues::try_from(zero).map_err(|source| failed("clear", maps::CAPTURE_STATE, source))?;
        let map = self.ebpf.map_mut(maps::CAPTURE_STATE).ok_or(Error::Object(maps::CAPTURE_STATE))?;
        let mut states: PerCpuArray<_, State> =
            PerCpuArray::try_from(map).map_err(|_| Error::Object(maps::CAPTURE_STATE))?;
        states
            .set(0, zero, 0)
            .map_err(|error| failed("clear", maps::CAPTURE_STATE, io::Error::other(error)))?;

        let Some(Map::RingBuf(data)) = self.ebpf.map(maps::CAPTURED) else {
            return Err(Error::Object(maps::CAPTURED));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| failed("duplicate", maps::CAPTURED, source))?;
        let opened = MapData::from_fd(fd).and_then(|data| RingBuf::try_from(Map::RingBuf(data)));
        let opened = opened.map_err(|error| failed("map", maps::CAPTURED, io::Error::other(error)))?;
        let mut ring = Ring(opened);
        while ring.take().is_some() {}
        Ok(ring)
    }

    /// What the CPUs counted since the ring buffer was opened.
    pub fn capture_tally(&self) -> Result<Tally, Error> {
        let map = self.ebpf.map(maps::CAPTURE_STATE).ok_or(Error::Object(maps::CAPTURE_STATE))?;
        let states: PerCpuArray<_, State> =
            PerCpuArray::try_from(map).map_err(|_| Error::Object(maps::CAPTURE_STATE))?;
        let states = states
            .get(&0, 0)
            .map_err(|error| failed("read", maps::CAPTURE_STATE, io::Error::other(error)))?;
        let mut tally = Tally::default();
        for [_, matched, held_back, lost] in states.iter() {
            tally.matched += matched;
            tally.held_back += held_back;
            tally.lost += lost;
        }
        Ok(tally)
    }
}

fn cpus() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(what, source)| failed("read", what, source))
}

fn failed(call: &'static str, object: &str, source: io::Error) -> Error {
    Error::System { call, object: object.to_owned(), source, hint: "" }
}
