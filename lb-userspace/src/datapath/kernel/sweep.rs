//! Looks through the translated flows. Where the tables are full that takes half a second, so it reads by handles of its own, and
//! nobody waits for it.

use std::collections::{BTreeSet, HashMap as Counts};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::maps::{HashMap, Map, MapData};
use lb_common::nat::{Forward, Reverse, Timeouts, state};
use lb_common::{Addr, BackendId, Flow, maps};

use super::{Error, Kernel};
use crate::datapath::exhaustion::Fullest;

/// Translated flows, by mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Translated {
    /// To backends elsewhere, each with a port of ours.
    pub nat: usize,
    /// To backends on this host.
    pub local: usize,
    /// The backend with most of those by `nat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fullest: Option<Fullest>,
}

/// What a sweep through the translated flows found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// Flows that remain.
    pub live: Translated,
    /// Flows that went.
    pub over: usize,
    /// Hashes of their clients' packets: they may have leases still.
    pub hashes: Vec<u64>,
    /// Backends of those that remain.
    pub backends: BTreeSet<BackendId>,
}

/// Both directions of all translated flows.
pub struct Sweeper {
    forwards: HashMap<MapData, u64, [u64; 8]>,
    reverses: HashMap<MapData, u64, [u64; 15]>,
}

impl Kernel {
    /// Handles to look through the translated flows by.
    pub fn sweeper(&self) -> Result<Sweeper, Error> {
        let forwards = HashMap::try_from(self.another(maps::NAT_FORWARD)?);
        let reverses = HashMap::try_from(self.another(maps::NAT_REVERSE)?);
        Ok(Sweeper {
            forwards: forwards.map_err(|_| Error::Object(maps::NAT_FORWARD))?,
            reverses: reverses.map_err(|_| Error::Object(maps::NAT_REVERSE))?,
        })
    }

    /// Another handle of a hash map.
    fn another(&self, name: &'static str) -> Result<Map, Error> {
        let Some(Map::HashMap(data)) = self.ebpf.map(name) else { return Err(Error::Object(name)) };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|source| failed(name, source))?;
        let data = MapData::from_fd(fd).map_err(|error| failed(name, io::Error::other(error)))?;
        Ok(Map::HashMap(data))
    }
}

/// Which entries are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Flows.
    Flows,
    /// Also what is left of some: two CPUs that end a flow and give its port to another one at the same moment may
    /// leave the client's direction behind, and nobody finds that any more.
    Remains,
}

/// How many ports each backend's flows have: TCP and UDP have some of their own.
#[derive(Debug, Default)]
struct Ports(Counts<(Addr, u16, u32), usize>);

impl Ports {
    /// Takes a flow, as its backend answers.
    fn count(&mut self, flow: &Flow) {
        *self.0.entry((flow.src, flow.src_port(), flow.proto)).or_default() += 1;
    }

    fn fullest(self) -> Option<Fullest> {
        let fullest = self.0.into_iter().max_by_key(|(backend, flows)| (*flows, *backend));
        fullest.map(|((addr, port, _), flows)| Fullest {
            backend: (IpAddr::from(addr), u16::from_be(port)).into(),
            flows,
        })
    }
}

impl Sweeper {
    /// Removes flows that are over.
    pub fn sweep(&mut self, now: u32, timeouts: &Timeouts, look: Look) -> Swept {
        let mut swept = Swept::default();
        let (mut over, mut ports) = (Vec::new(), Ports::default());
        for (key, words) in self.reverses.iter().filter_map(Result::ok) {
            let reverse = Reverse::from_words(&words);
            if timeouts.expired(now, self.forward(reverse.forward_key, key).as_ref(), &reverse) {
                over.push(key);
                continue;
            }
            match reverse.state & state::LOCAL {
                0 => {
                    swept.live.nat += 1;
                    ports.count(&reverse.flow);
                }
                _ => swept.live.local += 1,
            }
            swept.backends.insert(BackendId(reverse.backend));
        }
        swept.live.fullest = ports.fullest();
        for key in over {
            // Its port may have been given to another flow meanwhile.
            let Some(reverse) = self.reverse(key) else { continue };
            let forward = self.forward(reverse.forward_key, key);
            if !timeouts.expired(now, forward.as_ref(), &reverse) {
                continue;
            }
            if forward.is_some() {
                let _ = self.forwards.remove(&reverse.forward_key);
                swept.hashes.push(reverse.forward_key);
            }
            let _ = self.reverses.remove(&key);
            swept.over += 1;
        }
        if look == Look::Remains {
            self.sweep_remains(now, timeouts, &mut swept);
        }
        swept
    }

    /// Removes clients' directions that have no other one. A client that sends on has that done by its next packet.
    fn sweep_remains(&mut self, now: u32, timeouts: &Timeouts, swept: &mut Swept) {
        let is_left = |(hash, words): &(u64, [u64; 8])| {
            let forward = Forward::from_words(words);
            let is_silent = now.wrapping_sub(forward.seen) > timeouts.tcp_closed;
            is_silent && self.reverse(forward.reverse_key).is_none_or(|reverse| reverse.forward_key != *hash)
        };
        let left: Vec<_> = self.forwards.iter().filter_map(Result::ok).filter(is_left).collect();
        for (hash, _) in left {
            let _ = self.forwards.remove(&hash);
            swept.hashes.push(hash);
            swept.over += 1;
        }
    }

    /// The client's direction of a flow. One that names another port belongs to a later flow of the same client.
    fn forward(&self, hash: u64, reverse_key: u64) -> Option<Forward> {
        let forward = self.forwards.get(&hash, 0).ok().map(|words| Forward::from_words(&words));
        forward.filter(|forward| forward.reverse_key == reverse_key)
    }

    fn reverse(&self, key: u64) -> Option<Reverse> {
        self.reverses.get(&key, 0).ok().map(|words| Reverse::from_words(&words))
    }

    /// Removes the backend's direction of all flows alone, as if CPUs had met over them. For tests.
    pub fn leave_remains(&mut self) {
        let keys: Vec<u64> = self.reverses.keys().filter_map(Result::ok).collect();
        for key in keys {
            let _ = self.reverses.remove(&key);
        }
    }
}

fn failed(map: &'static str, source: io::Error) -> Error {
    Error::System { call: "duplicate", object: map.to_owned(), source, hint: "" }
}

#[cfg(test)]
mod tests {
    use lb_common::{TCP, UDP, wire_port};

    use super::*;

    #[test]
    fn ports_of_one_protocol_are_none_of_the_others() {
        let mut ports = Ports::default();
        for proto in [TCP, UDP, TCP, UDP, TCP] {
            let ip = |last| IpAddr::from([10, 0, 0, last]).into();
            let (from, to) = (wire_port(8080), wire_port(61_000));
            ports.count(&Flow { src: ip(1), dst: ip(9), ports: Flow::ports(from, to), proto: proto.into() });
        }

        let backend = "10.0.0.1:8080".parse().expect("an address");
        assert_eq!(ports.fullest(), Some(Fullest { backend, flows: 3 }));
    }
}
