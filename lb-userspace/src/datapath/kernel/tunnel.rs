//! Maps of the tunnel's receiving end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData, MapError};
use lb_common::{Addr, BackendId, maps};

use super::{Error, Kernel};

impl Kernel {
    /// Makes these, and no others, the ones that may send us tunnelled packets. Who is new counts as heard `now`.
    pub fn set_peers(&mut self, peers: &BTreeSet<IpAddr>, now: u32) -> Result<(), Error> {
        let mut map: HashMap<_, [u64; 2], u32> = self.hash(maps::PEERS)?;
        let known: BTreeSet<[u64; 2]> = map.keys().filter_map(Result::ok).collect();
        let wanted = peers.iter().map(|peer| Addr::from(*peer)).map(|Addr { hi, lo }| [hi, lo]);
        let wanted: BTreeSet<[u64; 2]> = wanted.collect();
        for peer in known.difference(&wanted) {
            // One that is not there is as good as removed.
            let _ = map.remove(peer);
        }
        let mut new = wanted.difference(&known);
        new.try_for_each(|peer| map.insert(peer, now, 0)).map_err(|error| full(maps::PEERS, error))
    }

    /// Who may send us tunnelled packets, and when each did last, in units of [`lb_common::flows::clock`].
    pub fn peers(&mut self) -> Result<BTreeMap<IpAddr, u32>, Error> {
        let map: HashMap<_, [u64; 2], u32> = self.hash(maps::PEERS)?;
        let peers = map.iter().filter_map(Result::ok);
        Ok(peers.map(|([hi, lo], heard)| (Addr { hi, lo }.into(), heard)).collect())
    }

    /// Names backends for the tunnel.
    pub fn set_names(&mut self, names: &BTreeMap<u64, BackendId>) -> Result<(), Error> {
        let mut map: HashMap<_, u64, u32> = self.hash(maps::TUNNEL_TAGS)?;
        let named = names.iter().try_for_each(|(key, id)| map.insert(key, u32::from(id.0), 0));
        named.map_err(|error| full(maps::TUNNEL_TAGS, error))
    }

    /// Takes names back.
    pub fn clear_names(&mut self, names: &BTreeSet<u64>) -> Result<(), Error> {
        let mut map: HashMap<_, u64, u32> = self.hash(maps::TUNNEL_TAGS)?;
        for key in names {
            let _ = map.remove(key);
        }
        Ok(())
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, Error> {
        let map = self.ebpf.map_mut(name).ok_or(Error::Object(name))?;
        HashMap::try_from(map).map_err(|_| Error::Object(name))
    }
}

fn full(map: &'static str, error: MapError) -> Error {
    Error::System { call: "add to", object: format!("map {map}"), source: io::Error::other(error), hint: "" }
}
