//! What a plan changes outside the shared tables: maps of the kernel that may have no room, or no memory, for what is put
//! there. What they refuse is told as long as it is missing, and tried again every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::{BackendId, Verdict, maps};

use super::kernel::Kernel;
use super::mmap;
use super::plan::Outside;
use super::problems::of_datapath;
use super::want::{Place, Target, Want, problem};
use super::{Error, engine};
use crate::model::Problem;
use crate::model::l4::Prefix;

/// The kernel's part of a plan beside the shared tables.
pub(super) struct Beside<'a> {
    pub(super) kernel: &'a mut Kernel,
    /// Source ranges by set, to remove them again.
    pub(super) ranges: &'a mut BTreeMap<u16, BTreeSet<Prefix>>,
    pub(super) refused: &'a mut Refused,
}

impl Outside for Beside<'_> {
    fn wait_for_readers(&mut self) {
        mmap::wait_for_readers();
    }

    fn set_ranges(&mut self, set: u16, ranges: &BTreeSet<Prefix>) {
        self.ranges.insert(set, ranges.clone());
        self.refused.ranges.insert(set, ranges.clone());
        self.refused.put_ranges(self.kernel, set);
    }

    fn clear_ranges(&mut self, set: u16) {
        self.refused.ranges.remove(&set);
        let Some(ranges) = self.ranges.remove(&set) else { return };
        let result = self.kernel.clear_ranges(set, &ranges);
        self.refused.note(result);
    }

    fn set_peers(&mut self, peers: &BTreeSet<IpAddr>) {
        self.refused.peers = Some(peers.clone());
        self.refused.put_peers(self.kernel);
    }

    fn set_names(&mut self, names: &BTreeMap<u64, BackendId>) {
        self.refused.names.extend(names);
        self.refused.put_names(self.kernel);
    }

    fn clear_names(&mut self, names: &BTreeSet<u64>) {
        self.refused.names.retain(|key, _| !names.contains(key));
        let result = self.kernel.clear_names(names);
        self.refused.note(result);
    }
}

/// What is wished of these maps and not there.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Of each set of source ranges those that are missing.
    ranges: BTreeMap<u16, BTreeSet<Prefix>>,
    /// Who may send us tunnelled packets, if not all of them may.
    peers: Option<BTreeSet<IpAddr>>,
    /// Names of backends for the tunnel.
    names: BTreeMap<u64, BackendId>,
    /// Why, the last time.
    why: String,
}

impl Refused {
    /// Tries once more; whether something got in that was missing.
    pub(super) fn retry(&mut self, kernel: &mut Kernel) -> bool {
        let before = self.missing();
        if before == 0 {
            return false;
        }
        let sets: Vec<u16> = self.ranges.keys().copied().collect();
        sets.into_iter().for_each(|set| self.put_ranges(kernel, set));
        self.put_peers(kernel);
        self.put_names(kernel);
        self.missing() < before
    }

    fn missing(&self) -> usize {
        let peers = self.peers.as_ref().map_or(0, BTreeSet::len);
        self.ranges.values().map(BTreeSet::len).sum::<usize>() + peers + self.names.len()
    }

    /// Puts those in that are missing of a set. Where one finds no room the next one does not either.
    fn put_ranges(&mut self, kernel: &mut Kernel, set: u16) {
        let Some(missing) = self.ranges.get_mut(&set) else { return };
        let result = kernel.set_ranges(set, missing);
        if missing.is_empty() {
            self.ranges.remove(&set);
        }
        self.note(result);
    }

    fn put_peers(&mut self, kernel: &mut Kernel) {
        let Some(peers) = &self.peers else { return };
        let result = kernel.set_peers(peers, engine::now());
        if result.is_ok() {
            self.peers = None;
        }
        self.note(result);
    }

    fn put_names(&mut self, kernel: &mut Kernel) {
        let result = kernel.set_names(&self.names);
        if result.is_ok() {
            self.names.clear();
        }
        self.note(result);
    }

    fn note(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.why = error.to_string();
        }
    }

    /// What is told of it; `ranges`: source ranges by set.
    pub(super) fn problems(&self, want: &Want, ranges: &BTreeMap<u16, BTreeSet<Prefix>>) -> Vec<Problem> {
        let sets = self.ranges.iter().filter_map(|(set, missing)| {
            let all = ranges.get(set)?;
            let mut users = want.ranges.iter().filter(|(_, ranges)| *ranges == all);
            let (place, _) = users.next()?;
            Some(self.missing_ranges(want, place, users.count(), missing, all.len()))
        });
        let peers = self.peers.iter().map(|peers| {
            let most = maps::PEERS_ENTRIES;
            self.missing_elsewhere(
                format!(
                    "not all of {} agents may send us tunnelled packets (there is room for {most})",
                    peers.len()
                ),
                &format!("what the others send is dropped as {}", Verdict::TunnelForeign.as_str()),
            )
        });
        let names = (!self.names.is_empty()).then(|| {
            self.missing_elsewhere(
                format!("{} backends are not known to the tunnel's end here", self.names.len()),
                &format!(
                    "packets that other agents send for them are dropped as {}, or go to another backend of the \
                     Service",
                    Verdict::TunnelStray.as_str()
                ),
            )
        });
        sets.chain(peers).chain(names).collect()
    }

    fn missing_ranges(
        &self,
        want: &Want,
        place: &Place,
        others: usize,
        missing: &BTreeSet<Prefix>,
        all: usize,
    ) -> Problem {
        let more = match others {
            0 => String::new(),
            others => format!(" (and of {others} further VIPs with the same ranges)"),
        };
        let first = missing.first().map(ToString::to_string).unwrap_or_default();
        let message = format!(
            "{} of {all} source ranges of {}{more} are not in force, {first} for one: clients in them are dropped as \
             {}: {}",
            missing.len(),
            place.addr,
            Verdict::SourceRange.as_str(),
            self.why
        );
        let whose = match want.vips.get(place) {
            Some(Target::Pool(id)) => problem(id, message),
            _ => of_datapath(message),
        };
        let fix = format!(
            "there is room for {} source ranges of all Services together: fewer spec.loadBalancerSourceRanges, or wider \
             ones",
            maps::RANGES_ENTRIES
        );
        Problem { reason: "datapath-full", fix, ..whose }
    }

    fn missing_elsewhere(&self, what: String, hence: &str) -> Problem {
        let fix =
            "it is tried again every few seconds; does the kernel lack memory? (free, dmesg)".to_owned();
        Problem { reason: "datapath-full", fix, ..of_datapath(format!("{what}: {hence}: {}", self.why)) }
    }
}
