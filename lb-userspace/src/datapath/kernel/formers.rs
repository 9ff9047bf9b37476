//! Maps that say where segments go that no socket of this host knows: to the former holder of an announced VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::{Addr, Mac, maps};

use super::{Error, Kernel};
use crate::model::announce::Announced;

/// What writes these maps. It has them to itself: who announces a VIP cannot wait for a plan, because clients do not.
pub struct Formers {
    formers: HashMap<MapData, [u64; 3], u64>,
    agents: HashMap<MapData, u64, u8>,
    known: Array<MapData, u64>,
    /// What each link asks for, by its interface.
    links: BTreeMap<String, Wish>,
}

/// What the maps are to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wish {
    formers: BTreeMap<[u64; 3], u64>,
    agents: BTreeSet<u64>,
}

impl Formers {
    /// Has the kernel know the former holders of a link, and no others of that link.
    pub fn follow(&mut self, link: &Announced) -> Result<(), Error> {
        let before = self.wish();
        self.links.insert(link.interface.clone(), Wish::of(link));
        let now = self.wish();
        // Whoever is sent something has to be known as an agent first: what it sends on comes back no second time.
        let mut done = Ok(());
        for agent in now.agents.difference(&before.agents) {
            done = done.and(self.agents.insert(agent, 1, 0).map_err(|error| (maps::AGENTS, error)));
        }
        for (key, mac) in now.formers.iter().filter(|(key, mac)| before.formers.get(*key) != Some(mac)) {
            done = done.and(self.formers.insert(key, mac, 0).map_err(|error| (maps::FORMERS, error)));
        }
        let known = self.known.set(0, u64::from(!now.formers.is_empty()), 0);
        done = done.and(known.map_err(|error| (maps::FORMERS_KNOWN, error)));
        // One that is not there is as good as removed.
        for key in before.formers.keys().filter(|key| !now.formers.contains_key(*key)) {
            let _ = self.formers.remove(key);
        }
        for agent in before.agents.difference(&now.agents) {
            let _ = self.agents.remove(agent);
        }
        done.map_err(|(map, error)| failed("add to", map, io::Error::other(error)))
    }

    fn wish(&self) -> Wish {
        let mut all = Wish::default();
        for Wish { formers, agents } in self.links.values() {
            all.formers.extend(formers);
            all.agents.extend(agents);
        }
        all
    }
}

impl Wish {
    fn of(link: &Announced) -> Self {
        let own = Mac(link.mac).word();
        let entry = |(vip, former): (&std::net::IpAddr, &crate::model::announce::Former)| {
            (maps::former_key(Addr::from(*vip), own), Mac(former.mac).word())
        };
        Self {
            formers: link.formers.iter().map(entry).collect(),
            agents: link.agents.iter().map(|mac| Mac(*mac).word()).collect(),
        }
    }
}

impl Kernel {
    /// The maps of former holders, empty.
    pub fn formers(&self) -> Result<Formers, Error> {
        let wrong = |name| move |_| Error::Object(name);
        Ok(Formers {
            formers: HashMap::try_from(Map::HashMap(self.duplicate(maps::FORMERS)?))
                .map_err(wrong(maps::FORMERS))?,
            agents: HashMap::try_from(Map::HashMap(self.duplicate(maps::AGENTS)?))
                .map_err(wrong(maps::AGENTS))?,
            known: Array::try_from(Map::Array(self.duplicate(maps::FORMERS_KNOWN)?))
                .map_err(wrong(maps::FORMERS_KNOWN))?,
            links: BTreeMap::new(),
        })
    }

    /// The same map once more.
    fn duplicate(&self, name: &'static str) -> Result<MapData, Error> {
        let (Map::HashMap(data) | Map::Array(data)) = self.ebpf.map(name).ok_or(Error::Object(name))? else {
            return Err(Error::Object(name));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| failed("duplicate", name, source))?;
        MapData::from_fd(fd).map_err(|error| failed("open", name, io::Error::other(error)))
    }
}

fn failed(call: &'static str, map: &str, source: io::Error) -> Error {
    Error::System { call, object: format!("map {map}"), source, hint: "" }
}
