//! Balancers behind a router that spreads flows over them by a hash of its own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use lb_common::backend::NextHop;
use lb_common::steer::Kind;
use lb_common::{BackendId, Flow, HashKey, Tags};

use super::clients::{GONE, PORT, vip};
use super::{GRACE, Scheme};
use crate::datapath::maglev;
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want, Way};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

/// Where a packet was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The backend.
    pub backend: u16,
    /// The slot's other owner.
    pub other: u16,
}

/// All that serve the VIP.
pub struct Balancers {
    alive: Vec<Balancer>,
    key: HashKey,
}

#[expect(clippy::large_enum_variant, reason = "there are four of them at most")]
enum Balancer {
    Maglev { slots: Vec<BackendId> },
    Lru { slots: Vec<BackendId>, living: Vec<u16>, flows: Lru },
    Ours { balancer: Rehearsal, numbers: BTreeMap<BackendId, u16> },
}

/// log2 of the slots of the others' tables: as many as we use at most.
const BITS: u32 = *maglev::BITS.end();

impl Balancers {
    /// So many, all alike, with `1 << flow_bits` places in their flow tables.
    pub fn new(scheme: Scheme, count: usize, flow_bits: u8) -> Self {
        let key = HashKey::expand(*b"simulated flows!");
        let one = || match scheme {
            Scheme::Maglev => Balancer::Maglev { slots: Vec::new() },
            Scheme::MaglevLru => {
                Balancer::Lru { slots: Vec::new(), living: Vec::new(), flows: Lru::new(1 << flow_bits) }
            }
            Scheme::Ours | Scheme::OursSecondChance => {
                Balancer::Ours { balancer: Rehearsal::new(key, flow_bits, GRACE), numbers: BTreeMap::new() }
            }
        };
        Self { alive: (0..count).map(|_| one()).collect(), key }
    }

    /// One dies.
    pub fn lose(&mut self) {
        self.alive.pop();
    }

    /// Gives the backends these weights; 0: it drains.
    pub fn apply(&mut self, weights: &BTreeMap<u16, u16>, now: u32) {
        let shares =
            weights.iter().map(|(number, weight)| (addr(*number), (BackendId(*number + 1), *weight)));
        let shares = shares.collect();
        for balancer in &mut self.alive {
            match balancer {
                Balancer::Maglev { slots } => *slots = maglev::fill(BITS, &shares),
                Balancer::Lru { slots, living, flows: _ } => {
                    *slots = maglev::fill(BITS, &shares);
                    *living = weights.keys().copied().collect();
                }
                Balancer::Ours { balancer, numbers } => {
                    let _ = balancer.apply(&want(weights), now);
                    let id = |number: u16| balancer.book().backend_id(&pool(), addr(number));
                    *numbers = weights.keys().filter_map(|number| Some((id(*number)?, *number))).collect();
                }
            }
        }
    }

    /// Time passes.
    pub fn settle(&mut self, now: u32) {
        for balancer in &mut self.alive {
            if let Balancer::Ours { balancer, .. } = balancer {
                balancer.settle(now);
            }
        }
    }

    /// Sends a packet.
    pub fn send(&mut self, flow: &Flow, kind: Kind, now: u32) -> Sent {
        let hash = flow.hash(self.key);
        // The router hashes the same tuple in another way.
        let router = (super::clients::mix(hash) >> 32) as usize;
        let count = self.alive.len().max(1);
        let Some(balancer) = self.alive.get_mut(router % count) else {
            return Sent { backend: GONE, other: GONE };
        };
        let of_slot = |slots: &[BackendId]| {
            slots.get(hash as usize & ((1 << BITS) - 1)).map_or(GONE, |id| id.0.wrapping_sub(1))
        };
        match balancer {
            Balancer::Maglev { slots } => Sent { backend: of_slot(slots), other: GONE },
            Balancer::Lru { slots, living, flows } => {
                let known = flows.find(hash).filter(|backend| kind != Kind::Syn && living.contains(backend));
                let backend = known.unwrap_or_else(|| of_slot(slots));
                flows.touch(hash, backend);
                Sent { backend, other: GONE }
            }
            Balancer::Ours { balancer, numbers } => {
                let number = |id| numbers.get(&id).copied().unwrap_or(GONE);
                balancer.send(flow, kind, now).map_or(Sent { backend: GONE, other: GONE }, |choice| Sent {
                    backend: number(choice.backend),
                    other: number(choice.other),
                })
            }
        }
    }

    /// Most flows that one of them remembers.
    pub fn remembered(&self) -> usize {
        let one = |balancer: &Balancer| match balancer {
            Balancer::Maglev { .. } => 0,
            Balancer::Lru { flows, .. } => flows.entries.len(),
            Balancer::Ours { balancer, .. } => balancer.remembered(),
        };
        self.alive.iter().map(one).max().unwrap_or(0)
    }
}

/// Remembers the flows that were used last.
struct Lru {
    most: usize,
    /// Backend, and the number of the last use.
    entries: HashMap<u64, (u16, u64)>,
    uses: VecDeque<(u64, u64)>,
    used: u64,
}

impl Lru {
    fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new(), uses: VecDeque::new(), used: 0 }
    }

    fn find(&self, hash: u64) -> Option<u16> {
        self.entries.get(&hash).map(|(backend, _)| *backend)
    }

    fn touch(&mut self, hash: u64, backend: u16) {
        self.used += 1;
        self.entries.insert(hash, (backend, self.used));
        self.uses.push_back((hash, self.used));
        while self.entries.len() > self.most {
            let Some((oldest, number)) = self.uses.pop_front() else { return };
            if self.entries.get(&oldest).is_some_and(|(_, last)| *last == number) {
                self.entries.remove(&oldest);
            }
        }
        if self.uses.len() > 4 * self.most {
            let entries = &self.entries;
            self.uses.retain(|(hash, number)| entries.get(hash).is_some_and(|(_, last)| last == number));
        }
    }
}

fn addr(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 8080))
}

fn pool() -> PoolId {
    PoolId {
        service: ObjectName::new("simulated", "service").into(),
        port: PORT,
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

fn want(weights: &BTreeMap<u16, u16>) -> Want {
    let vip = IpAddr::from(vip());
    let mut want = Want::default();
    want.addrs.insert(vip, Owner::Vip);
    want.vips.insert(Place { addr: vip, port: PORT, protocol: Protocol::Tcp }, Target::Pool(pool()));
    let backend = |number: u16, weight: u16| {
        let to = addr(number).ip();
        let way = Way { source: vip, next_hop: NextHop::default(), mtu: 1500, tags: Tags::NONE };
        (addr(number), Backend { weight, draining: weight == 0, mode: ForwardingMode::Tunnel, to, way })
    };
    let backends = weights.iter().map(|(number, weight)| backend(*number, *weight)).collect();
    want.pools.insert(pool(), Pool { backends, ..Pool::default() });
    want
}
