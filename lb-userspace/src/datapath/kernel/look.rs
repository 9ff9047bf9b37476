//! Whether our programs are still where we put them: whoever has the rights may take them off, and nobody tells us.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;

use super::attach::NAMESPACE;
use super::out::{self, Out};
use super::{Kernel, LOOKUP, PROGRAM};
use crate::datapath::mmap::{self, Seat};

/// What was found on interfaces of ours, each that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// XDP programs.
    pub xdp: BTreeMap<u32, BTreeSet<u32>>,
    /// Programs of filters on the way out, in their order, where ours is one ([`Kernel::filtered`]).
    pub filters: BTreeMap<u32, Vec<u32>>,
}

/// Attachments that somebody else ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// The XDP program, by interface.
    pub xdp: BTreeSet<u32>,
    /// The program on the way out, by interface.
    pub out: BTreeSet<u32>,
    /// The socket steering.
    pub lookup: bool,
}

impl Ended {
    /// Nothing was.
    pub fn is_empty(&self) -> bool {
        let Self { xdp, out, lookup } = self;
        xdp.is_empty() && out.is_empty() && !lookup
    }

    /// These as well.
    pub fn extend(&mut self, Self { xdp, out, lookup }: Self) {
        self.xdp.extend(xdp);
        self.out.extend(out);
        self.lookup |= lookup;
    }
}

impl Kernel {
    /// Finds the attachments that somebody ended, and forgets them: they can be made again.
    pub fn forget_ended(&mut self, seen: &Seen) -> Ended {
        let mut ended = Ended::default();
        if let Some(ours) = self.number(PROGRAM) {
            let without = seen.xdp.iter().filter(|(_, programs)| !programs.contains(&ours));
            ended.xdp = without.map(|(ifindex, _)| *ifindex).collect();
        }
        if let Some(ours) = self.number(out::PROGRAM) {
            let without = self.rows(seen).filter(|(_, row)| !row.contains(&ours));
            ended.out = without.map(|(ifindex, _)| ifindex).collect();
        }
        ended.lookup = self.lookup.is_some() && self.has_lost_lookup();
        ended.xdp.iter().for_each(|ifindex| self.detach_in(*ifindex));
        ended.out.iter().for_each(|ifindex| self.detach_out(*ifindex));
        if ended.lookup {
            self.lookup = None;
        }
        ended
    }

    /// The programs that are asked before ours on the way out, by interface; 0: a filter that is no eBPF program. Behind
    /// one that does not hand a packet on nobody is asked.
    pub fn preceded(&self, seen: &Seen) -> BTreeMap<u32, Vec<u32>> {
        let Some(ours) = self.number(out::PROGRAM) else { return BTreeMap::new() };
        let before = |row: Vec<u32>| row.into_iter().take_while(|program| *program != ours).collect();
        let rows = self.rows(seen).filter(|(_, row)| row.contains(&ours));
        rows.map(|(ifindex, row)| (ifindex, before(row))).filter(|(_, row)| !Vec::is_empty(row)).collect()
    }

    /// The programs on the way out of each interface that is there, in the order in which they are asked.
    fn rows(&self, seen: &Seen) -> impl Iterator<Item = (u32, Vec<u32>)> {
        let row = |ifindex: u32| match self.out.get(&ifindex)? {
            Out::Tcx(_) => mmap::programs_in(Seat::Out(ifindex)).ok(),
            Out::Filter(_) => seen.filters.get(&ifindex).cloned(),
        };
        seen.xdp.keys().filter_map(move |ifindex| Some((*ifindex, row(*ifindex)?)))
    }

    /// Interfaces where our program on the way out is a filter.
    pub fn filtered(&self) -> BTreeSet<u32> {
        let filters = self.out.iter().filter(|(_, out)| matches!(out, Out::Filter(_)));
        filters.map(|(ifindex, _)| *ifindex).collect()
    }

    fn has_lost_lookup(&self) -> bool {
        let Some(ours) = self.number(LOOKUP) else { return false };
        let Ok(namespace) = File::open(NAMESPACE) else { return false };
        mmap::programs_in(Seat::Lookup(namespace.as_fd())).is_ok_and(|programs| !programs.contains(&ours))
    }

    /// Interfaces that a program of ours sits on.
    pub fn interfaces(&self) -> BTreeSet<u32> {
        self.xdp.keys().chain(self.out.keys()).copied().collect()
    }

    /// Whether our program is on the way out of an interface.
    pub fn is_out(&self, ifindex: u32) -> bool {
        self.out.contains_key(&ifindex)
    }

    /// Whether the socket steering is attached.
    pub fn has_lookup(&self) -> bool {
        self.lookup.is_some()
    }

    /// What the kernel calls a program of ours.
    fn number(&self, program: &str) -> Option<u32> {
        Some(self.ebpf.program(program)?.info().ok()?.id())
    }
}
