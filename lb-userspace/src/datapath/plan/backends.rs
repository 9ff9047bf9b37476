//! Backends: an id each, and the lines that say where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_common::maps::BACKENDS;
use lb_common::{Addr, BackendId, Mode, TCP, UDP, tunnel, wire_port};

use super::former::{Rewrite, Standing};
use super::{Book, Line, Op, Plan, Retired};
use crate::datapath::want::{Backend, Want, Ways, problem};
use crate::model::Problem;
use crate::model::l4::{ForwardingMode, PoolId, Protocol};

impl Book {
    /// Tags of the pools: what a backend's line and a VIP's record share.
    pub(super) fn plan_tags(
        &mut self,
        want: &Want,
        touched: &BTreeSet<PoolId>,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let (wanted, gone): (Vec<_>, Vec<_>) = touched.iter().partition(|id| want.pools.contains_key(*id));
        for id in wanted {
            if self.tags.contains_key(id) {
                continue;
            }
            match self.tag_ids.take() {
                Some(tag) => drop(self.tags.insert(id.clone(), tag)),
                None => {
                    plan.problems.push(problem(id, "no pool tag is left".to_owned()));
                    self.again.pools.insert(id.clone());
                }
            }
        }
        retired.tags.extend(gone.into_iter().filter_map(|id| self.tags.remove(id)));
    }

    pub(super) fn plan_backends(
        &mut self,
        want: &Want,
        touched: &BTreeSet<PoolId>,
        now: u32,
        plan: &mut Plan,
        retired: &mut Retired,
    ) {
        let (mut keep, mut without) = (BTreeSet::new(), Vec::new());
        for (pool_id, pool) in touched.iter().filter_map(|id| Some((id, want.pools.get(id)?))) {
            let Some(tag) = self.tags.get(pool_id).copied() else { continue };
            for (addr, backend) in &pool.backends {
                let key = (pool_id.clone(), *addr, Rewrite::new(backend.mode, backend.way.source));
                let id = match self.backends.get(&key) {
                    Some(line) => Some(line.id),
                    None => self.take_backend_id(plan),
                };
                let Some(id) = id else {
                    without.push((pool_id, *addr));
                    self.again.pools.insert(pool_id.clone());
                    continue;
                };
                if !self.backends.contains_key(&key)
                    && let Some(generation) = self.generations.get_mut(usize::from(id.0))
                {
                    *generation = generation.wrapping_add(1).max(1);
                }
                let words = self.line(id, pool_id, *addr, backend, tag);
                let line = Line { id, words, standing: Standing::Wanted };
                if self.backends.insert(key.clone(), line).is_none_or(|old| old.words != words) {
                    plan.ops.push(Op::Backend(id, words));
                }
                keep.insert(key);
            }
        }
        plan.problems.extend(without.first().map(|(id, addr)| too_many(id, *addr, without.len())));
        self.note_former(want, touched, &keep, now);
        self.reroute_former(&want.ways, plan);
        for pool in touched {
            for key in self.over(pool) {
                retired.backends.extend(self.backends.remove(&key).map(|line| (pool.clone(), line.id)));
            }
            self.note_changing(pool);
        }
    }

    /// Plans another way to backends that are installed, and to former selves of some; others are
    /// left to [`Book::plan`].
    pub fn reroute<'a>(
        &mut self,
        moved: impl IntoIterator<Item = (&'a PoolId, SocketAddr, &'a Backend)>,
        ways: &Ways,
    ) -> Plan {
        let mut plan = Plan::default();
        for (pool, addr, backend) in moved {
            let key = (pool.clone(), addr, Rewrite::new(backend.mode, backend.way.source));
            let (Some(tag), Some(line)) = (self.tags.get(pool), self.backends.get(&key)) else { continue };
            let (id, words) = (line.id, self.line(line.id, pool, addr, backend, *tag));
            if line.words != words {
                plan.ops.push(Op::Backend(id, words));
                self.backends.insert(key, Line { id, words, standing: Standing::Wanted });
                // It is another than the last plan has made it.
                self.again.pools.insert(pool.clone());
            }
        }
        self.reroute_former(ways, &mut plan);
        plan
    }

    fn line(
        &self,
        id: BackendId,
        pool: &PoolId,
        addr: SocketAddr,
        backend: &Backend,
        pool_tag: u16,
    ) -> [[u64; 8]; 2] {
        let Backend { weight, draining, mode, to, way } = backend;
        let proto = match pool.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let inner = Addr::from(addr.ip());
        lb_common::Backend {
            addr: (*to).into(),
            source: way.source.into(),
            next_hop: way.next_hop,
            tags: way.tags,
            wire_port: wire_port(addr.port()),
            mode: number(*mode),
            draining: *draining || *weight == 0,
            generation: self.generations.get(usize::from(id.0)).copied().unwrap_or(1),
            mtu: way.mtu,
            pool_tag,
            inner,
            tunnel_tag: tunnel::tag(inner, wire_port(addr.port()), proto, self.key),
        }
        .words()
    }

    /// Living ids of a pool, with their addresses and weights.
    pub(super) fn shares(&self, id: &PoolId, want: &Want) -> BTreeMap<SocketAddr, (BackendId, u16)> {
        let Some(pool) = want.pools.get(id) else { return BTreeMap::new() };
        pool.backends
            .iter()
            .filter_map(|(addr, backend)| {
                let weight = if backend.draining { 0 } else { backend.weight };
                Some((*addr, (self.backend_id(id, *addr)?, weight)))
            })
            .collect()
    }
}

/// So many backends find no line, the first of them this one.
fn too_many(id: &PoolId, addr: SocketAddr, count: usize) -> Problem {
    let most = BACKENDS - 1;
    let message = format!(
        "{count} backends get nothing, the first is {addr}: there is room for {most}, of all Services, ports, protocols \
         and families together"
    );
    let fix = "fewer endpoints, or fewer ports of each, on one balancer".to_owned();
    Problem { reason: "datapath-full", fix, ..problem(id, message) }
}

fn number(mode: ForwardingMode) -> Mode {
    match mode {
        ForwardingMode::L2 => Mode::L2,
        ForwardingMode::Ipip => Mode::Ipip,
        ForwardingMode::Tunnel => Mode::Tunnel,
        ForwardingMode::Nat => Mode::Nat,
        ForwardingMode::Local => Mode::Local,
    }
}
