//! Former selves of backends. A flow that began translated has to go on translated, from the same
//! address of ours, and one that began untouched must stay so, because the server knows it as it
//! began. So a backend that gets another mode becomes another one as far as flows are concerned:
//! the former self drains, and goes when nothing names it any more.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::flows::Entry;
use lb_common::{Backend, BackendId, Mode};

use super::{BackendKey, Book, Line, Observed, Op, Plan};
use crate::datapath::memory::Tables;
use crate::datapath::want::{self, Want, Ways};
use crate::model::l4::{ForwardingMode, PoolId};

/// How the addresses of a backend's flows are rewritten, as its server sees it. Modes with one rewrite can
/// take each other's place under a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rewrite {
    /// `l2`, `ipip`: from the client to the VIP.
    Untouched,
    /// `tunnel`: translated by the balancer on the backend's node.
    Tunnelled,
    /// `local`: from the client to the backend.
    Delivered,
    /// `nat`: from this address of ours to the backend.
    From(IpAddr),
}

impl Rewrite {
    pub(super) fn new(mode: ForwardingMode, source: IpAddr) -> Self {
        match mode {
            ForwardingMode::L2 | ForwardingMode::Ipip => Self::Untouched,
            ForwardingMode::Tunnel => Self::Tunnelled,
            ForwardingMode::Local => Self::Delivered,
            ForwardingMode::Nat => Self::From(source),
        }
    }

    /// Flows have entries in the tables of translations.
    fn is_translated(self) -> bool {
        matches!(self, Self::Delivered | Self::From(_))
    }
}

/// Whether a backend in the book is one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    Wanted,
    /// Its address is wanted, with another rewrite.
    Former {
        /// When something named it last.
        named: u32,
    },
    /// The same, and nothing names it: it goes with the next plan.
    Over,
}

impl Line {
    pub(super) fn backend(&self) -> Option<Backend> {
        Backend::from_words(&self.words)
    }
}

/// The model's word for a mode.
pub(super) fn mode(mode: Mode) -> ForwardingMode {
    match mode {
        Mode::L2 => ForwardingMode::L2,
        Mode::Ipip => ForwardingMode::Ipip,
        Mode::Tunnel => ForwardingMode::Tunnel,
        Mode::Nat => ForwardingMode::Nat,
        Mode::Local => ForwardingMode::Local,
    }
}

impl Book {
    /// Puts backends that no way leads to, and that are installed, back in the wish as they were.
    pub fn keep_lost(&self, want: &mut Want) {
        for (id, pool) in want.pools.clone().iter().filter(|(_, pool)| !pool.lost.is_empty()) {
            let known = pool.lost.iter().filter_map(|(addr, lost)| {
                let lines =
                    self.rewrites(id, *addr).filter_map(|(_, line)| Some((line.standing, line.backend()?)));
                let rewrite = |mode, line: &Backend| Rewrite::new(mode, line.source.into());
                let same =
                    lines.filter(|(_, line)| rewrite(lost.mode, line) == rewrite(mode(line.mode), line));
                // One that is wanted before one that was.
                let (_, line) = same.max_by_key(|(standing, _)| *standing == Standing::Wanted)?;
                Some((*addr, lost.clone().as_before(line.source.into(), line.mtu)))
            });
            let known: Vec<_> = known.collect();
            for (addr, backend) in known {
                if backend.mode == ForwardingMode::Nat {
                    want.addrs.entry(backend.way.source).or_insert(want::Owner::Node);
                }
                if let Some(pool) = want.pools.get_mut(id) {
                    pool.lost.remove(&addr);
                    pool.backends.insert(addr, backend);
                }
            }
        }
    }

    /// A backend's lines, one for each rewrite that it has or had.
    fn rewrites(&self, pool: &PoolId, addr: SocketAddr) -> impl Iterator<Item = (&BackendKey, &Line)> {
        let first = (pool.clone(), addr, Rewrite::Untouched);
        self.backends.range(first..).take_while(move |((of, at, _), _)| of == pool && *at == addr)
    }

    /// Id of a backend as it is wanted.
    pub fn backend_id(&self, pool: &PoolId, addr: SocketAddr) -> Option<BackendId> {
        let mut wanted = self.rewrites(pool, addr).filter(|(_, line)| line.standing == Standing::Wanted);
        wanted.next().map(|(_, line)| line.id)
    }

    /// Former selves of a pool's backends, with the mode that their flows go on in.
    pub fn former(&self, pool: &PoolId) -> impl Iterator<Item = (SocketAddr, ForwardingMode, BackendId)> {
        self.former_of(pool)
            .filter_map(|((_, addr, _), line)| Some((*addr, mode(line.backend()?.mode), line.id)))
    }

    fn former_of(&self, pool: &PoolId) -> impl Iterator<Item = (&BackendKey, &Line)> {
        self.of_pool(pool).filter(|(_, line)| line.standing != Standing::Wanted)
    }

    /// All lines of a pool.
    pub(super) fn of_pool(&self, pool: &PoolId) -> impl Iterator<Item = (&BackendKey, &Line)> {
        self.backends.range(first(pool)..).take_while(move |((of, _, _), _)| of == pool)
    }

    fn all_former(&self) -> impl Iterator<Item = (&BackendKey, &Line)> {
        self.changing.iter().flat_map(|pool| self.former_of(pool))
    }

    /// Where the packets of all former selves go: the way there has to be known as before.
    pub fn former_destinations(&self) -> BTreeSet<IpAddr> {
        self.all_former().filter_map(|(_, line)| Some(line.backend()?.addr.into())).collect()
    }

    /// Our addresses that answers to former selves come to.
    pub(super) fn former_sources(&self) -> impl Iterator<Item = IpAddr> {
        self.all_former().filter_map(|((_, _, rewrite), _)| match rewrite {
            Rewrite::From(source) => Some(*source),
            Rewrite::Untouched | Rewrite::Tunnelled | Rewrite::Delivered => None,
        })
    }

    /// Tells of the lines of these pools that are not wanted which are former selves, and which are over.
    pub(super) fn note_former(
        &mut self,
        want: &Want,
        pools: &BTreeSet<PoolId>,
        wanted: &BTreeSet<BackendKey>,
        now: u32,
    ) {
        for id in pools {
            let pool = want.pools.get(id);
            for (key, line) in of_pool_mut(&mut self.backends, id).filter(|(key, _)| !wanted.contains(*key)) {
                line.standing = match line.standing {
                    _ if !pool.is_some_and(|pool| pool.holds(key.1)) => Standing::Over,
                    Standing::Wanted => Standing::Former { named: now },
                    former => former,
                };
            }
            self.note_changing(id);
        }
    }

    /// Notes whether a pool has former selves.
    pub(super) fn note_changing(&mut self, pool: &PoolId) {
        if self.former_of(pool).next().is_some() {
            self.changing.insert(pool.clone());
        } else {
            self.changing.remove(pool);
        }
    }

    /// Backends of a pool that are to go.
    pub(super) fn over(&self, pool: &PoolId) -> Vec<BackendKey> {
        let over = self.former_of(pool).filter(|(_, line)| line.standing == Standing::Over);
        over.map(|(key, _)| key.clone()).collect()
    }

    /// Another way for former selves.
    pub(super) fn reroute_former(&mut self, ways: &Ways, plan: &mut Plan) {
        let Self { changing, backends, .. } = self;
        for pool in &*changing {
            let former = of_pool_mut(backends, pool).map(|(_, line)| line);
            let former = former.filter(|line| matches!(line.standing, Standing::Former { .. }));
            former.for_each(|line| line.follow(ways, plan));
        }
    }

    /// Notes which former selves are still named: as previous owner, by the flow table, by a
    /// translation. One that is not goes with the next plan; returns whether there are any.
    pub(super) fn review_former(&mut self, tables: &Tables, observed: &Observed<'_>) -> bool {
        if self.changing.is_empty() {
            return false;
        }
        let Observed { now, grace, .. } = *observed;
        let fresh =
            tables.flow_words().map(Entry).filter(|entry| !entry.is_none() && entry.age(now) <= grace);
        let remembered: HashSet<BackendId> = fresh.map(Entry::backend).collect();
        let mut any = false;
        let Self { changing, backends, tables, again, .. } = self;
        for pool in &*changing {
            let table = tables.get(pool);
            for ((_, _, rewrite), line) in of_pool_mut(backends, pool) {
                let Standing::Former { named } = &mut line.standing else { continue };
                if table.is_some_and(|table| table.names(line.id)) || remembered.contains(&line.id) {
                    *named = now;
                    continue;
                }
                let is_over = match observed.translated {
                    _ if !rewrite.is_translated() => true,
                    // A look that began before it was named last may have missed a flow.
                    Some((then, ids)) => (then.wrapping_sub(*named) as i32) > 0 && !ids.contains(&line.id),
                    None => false,
                };
                if is_over {
                    line.standing = Standing::Over;
                    again.pools.insert(pool.clone());
                    any = true;
                }
            }
        }
        any
    }
}

/// Comes before all keys of a pool.
fn first(pool: &PoolId) -> BackendKey {
    (pool.clone(), SocketAddr::from(([0, 0, 0, 0], 0)), Rewrite::Untouched)
}

fn of_pool_mut<'a>(
    backends: &'a mut BTreeMap<BackendKey, Line>,
    pool: &'a PoolId,
) -> impl Iterator<Item = (&'a BackendKey, &'a mut Line)> {
    backends.range_mut(first(pool)..).take_while(move |((of, _, _), _)| of == pool)
}

impl Line {
    /// Drains, and takes the way that leads where its packets go.
    fn follow(&mut self, ways: &Ways, plan: &mut Plan) {
        let Some(mut backend) = self.backend() else { return };
        backend.draining = true;
        if let Some(Ok(way)) = ways.get(&IpAddr::from(backend.addr)) {
            backend.next_hop = way.next_hop;
            backend.tags = way.tags;
            backend.mtu = way.mtu;
        }
        let words = backend.words();
        if words != self.words {
            plan.ops.push(Op::Backend(self.id, words));
            self.words = words;
        }
    }
}
