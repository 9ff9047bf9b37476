//! Interfaces that packets may be redirected to: all that a way leads to, and those that we are attached to.

use std::collections::BTreeSet;

use tracing::warn;

use super::Error;
use super::choice::Choice;
use super::network::View;
use super::want::{Ways, changed_ways};

/// Those that were allowed.
#[derive(Debug, Default)]
pub(super) struct Devices {
    indices: BTreeSet<u32>,
    /// The ways whose interfaces are among them.
    ways: Ways,
}

impl Devices {
    /// Allows what is new in `view`. One that is refused is tried again the next time.
    pub(super) fn follow(&mut self, view: &View, choice: &Choice, allow: impl Fn(u32) -> Result<(), Error>) {
        let known = self.indices.len();
        self.indices.retain(|ifindex| view.interfaces.contains_key(ifindex));
        if self.indices.len() < known {
            self.ways.clear();
        }
        let changed = changed_ways(&self.ways, &view.network.ways);
        let changed = changed.filter_map(|addr| view.network.ways.get(addr)?.as_ref().ok());
        let ways = changed.map(|way| way.next_hop.ifindex);
        let own = view.interfaces.values().filter(|one| choice.covers(one)).map(|one| one.ifindex);
        let mut refused = false;
        for ifindex in ways.chain(own).filter(|ifindex| *ifindex != 0) {
            if self.indices.contains(&ifindex) {
                continue;
            }
            match allow(ifindex) {
                Ok(()) => _ = self.indices.insert(ifindex),
                Err(error) => {
                    refused = true;
                    warn!(%error, "packets cannot be redirected");
                }
            }
        }
        if !refused {
            self.ways = view.network.ways.clone();
        }
    }
}
