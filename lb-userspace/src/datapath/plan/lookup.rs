//! The address and VIP tables: laid out whole, put in force by one store.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::{Addr, AddrEntry, Epoch, TCP, UDP, VipEntry, wire_port};

use super::{Book, Op, Plan, Retired, too_many};
use crate::datapath::layout;
use crate::datapath::want::{Owner, Place, Target, Want, problem};
use crate::model::ObjectName;
use crate::model::Problem;
use crate::model::l4::{Listener, PoolId, Protocol};

impl Book {
    /// `moved`: VIPs, or the records that they name, may be others than before. Returns whether other tables come in force.
    pub(super) fn plan_lookup(
        &mut self,
        want: &Want,
        moved: bool,
        plan: &mut Plan,
        retired: &mut Retired,
    ) -> bool {
        let former: BTreeSet<IpAddr> = self.former_sources().collect();
        if !moved && former == self.former_sources {
            plan.problems.extend(self.crowd.problems.iter().cloned());
            return false;
        }
        let mut owned = want.addrs.clone();
        for source in &former {
            owned.entry(*source).or_insert(Owner::Node);
        }
        self.former_sources = former;
        let gone: Vec<IpAddr> =
            self.addr_ids.keys().filter(|addr| !owned.contains_key(*addr)).copied().collect();
        for addr in gone {
            retired.addr_ids.extend(self.addr_ids.remove(&addr));
        }
        let mut addrs = Vec::new();
        for (addr, owner) in &owned {
            let id = match self.addr_ids.get(addr) {
                Some(id) => Some(*id),
                None => self.addr_id_pool.take(),
            };
            let Some(id) = id else {
                plan.problems.push(too_many(&format!("{addr}: too many addresses")));
                self.again.vips = true;
                continue;
            };
            self.addr_ids.insert(*addr, id);
            let entry = match owner {
                Owner::Vip => AddrEntry::vip(id),
                Owner::Node => AddrEntry::node(id),
            };
            addrs.push((Addr::from(*addr), entry));
        }
        let vips: Vec<(VipEntry, &Place)> = want
            .vips
            .iter()
            .filter_map(|(place, target)| Some((self.vip_entry(place, target, want)?, place)))
            .collect();
        let (vips, places): (Vec<VipEntry>, Vec<&Place>) = vips.into_iter().unzip();

        let lookup = (addrs, vips);
        if self.lookup.as_ref() == Some(&lookup) {
            plan.problems.extend(self.crowd.problems.iter().cloned());
            return false;
        }
        let in_force = LazyCell::new(|| self.in_force());
        let addr_lines = layout::addrs(&lookup.0, |addr| in_force.0.contains(addr));
        let vip_lines = layout::vips(&lookup.1, |entry| in_force.1.contains(&entry.key_of()));
        let addrs_out = addr_lines.left_out.iter().filter_map(|index| lookup.0.get(*index));
        let vips_out =
            vip_lines.left_out.iter().filter_map(|index| Some((lookup.1.get(*index)?, *places.get(*index)?)));
        self.crowd = Crowd::of(want, addrs_out.map(|(addr, _)| *addr).collect(), vips_out.collect());
        plan.problems.extend(self.crowd.problems.iter().cloned());
        let (addr_lines, vip_lines) = (addr_lines.buckets, vip_lines.buckets);
        let half = self.epoch.half() ^ 1;
        self.epoch =
            Epoch::new(half, addr_lines.bits, vip_lines.bits, self.epoch.generation().wrapping_add(1));
        plan.ops.push(Op::Lookup(half, addr_lines, vip_lines));
        plan.ops.push(Op::Epoch(self.epoch));
        self.lookup = Some(lookup);
        true
    }

    /// Addresses of VIPs that packets do not find, because there was no room for them.
    pub fn left_out(&self) -> BTreeSet<IpAddr> {
        let is_out = |addr: &IpAddr| {
            !self.addr_ids.contains_key(addr) || self.crowd.addrs.contains(&Addr::from(*addr))
        };
        let vips = self.planned.addrs.iter().filter(|(_, owner)| **owner == Owner::Vip);
        vips.map(|(addr, _)| *addr).filter(is_out).collect()
    }

    /// Addresses and keys of VIPs that packets find now.
    fn in_force(&self) -> (BTreeSet<Addr>, BTreeSet<u64>) {
        let (addrs, vips) = self.lookup.as_ref().map_or((&[][..], &[][..]), |(addrs, vips)| (addrs, vips));
        let addrs = addrs.iter().map(|(addr, _)| *addr).filter(|addr| !self.crowd.addrs.contains(addr));
        let vips = vips.iter().map(|entry| entry.key_of()).filter(|key| !self.crowd.vips.contains(key));
        (addrs.collect(), vips.collect())
    }

    /// Entry of a VIP; `None` while what it needs does not fit.
    fn vip_entry(&self, place: &Place, target: &Target, want: &Want) -> Option<VipEntry> {
        let id = *self.addr_ids.get(&place.addr)?;
        let proto = match place.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let key = VipEntry::key(AddrEntry::vip(id), wire_port(place.port), proto);
        let pool = match target {
            Target::Punt(_) => None,
            Target::Pool(pool) => Some(pool.clone()),
        };
        let record = self.records.get(&(*place, pool)).map(|(index, _)| *index);
        let entry = match target {
            Target::Punt(listener) => VipEntry::punted(key, *listener == Listener::Https),
            Target::Pool(_) => VipEntry::balanced(key, record?),
        };
        // Without its record it would be open to all.
        Some(if want.ranges.contains_key(place) { entry.restricted(record?) } else { entry })
    }
}

/// What found no room in the largest tables, because it shares its buckets with too many others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Crowd {
    addrs: BTreeSet<Addr>,
    /// Keys of VIPs.
    vips: BTreeSet<u64>,
    problems: Vec<Problem>,
}

impl Crowd {
    fn of(want: &Want, addrs: BTreeSet<Addr>, vips: Vec<(&VipEntry, &Place)>) -> Self {
        let (keys, mut places): (BTreeSet<u64>, Vec<&Place>) =
            vips.into_iter().map(|(entry, place)| (entry.key_of(), place)).unzip();
        if !addrs.is_empty() {
            let unserved = |place: &Place| addrs.contains(&Addr::from(place.addr));
            places.extend(want.vips.iter().map(|(place, _)| place).filter(|place| unserved(place)));
        }
        let mut of_service: BTreeMap<Option<&Arc<ObjectName>>, Vec<LeftOut<'_>>> = BTreeMap::new();
        for place in places {
            let pool = match want.vips.get(place) {
                Some(Target::Pool(id)) => Some(id),
                Some(Target::Punt(_)) | None => None,
            };
            of_service.entry(pool.map(|id| &id.service)).or_default().push((place, pool));
        }
        let problems = of_service.into_values().filter_map(|places| unserved(&places)).collect();
        Self { addrs, vips: keys, problems }
    }
}

/// A VIP that is left out, and its pool.
type LeftOut<'a> = (&'a Place, Option<&'a PoolId>);

/// What is said of those of one Service.
fn unserved(places: &[LeftOut<'_>]) -> Option<Problem> {
    let (Place { addr, port, protocol }, pool) = places.first()?;
    let message = format!(
        "{} of its VIPs are not served, {protocol} {} for one: their place in the lookup tables is taken by others",
        places.len(),
        SocketAddr::new(*addr, *port)
    );
    let fix = "another port or another address has another place".to_owned();
    let whose = match pool {
        Some(id) => problem(id, message),
        None => too_many(&message),
    };
    Some(Problem { reason: "datapath-full", fix, ..whose })
}
