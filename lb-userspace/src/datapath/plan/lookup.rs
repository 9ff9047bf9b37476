//! The address and VIP tables: laid out whole, put in force by one store.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::{Addr, AddrEntry, Epoch, TCP, UDP, VipEntry, wire_port};

use super::{Book, Halves, Op, Plan, Retired, too_many};
use crate::datapath::layout;
use crate::datapath::want::{Owner, Place, Target, Want};
use crate::model::l4::{Listener, Protocol};

impl Book {
    /// `moved`: VIPs, or the records that they name, may be others than before.
    pub(super) fn plan_lookup(
        &mut self,
        want: &Want,
        moved: bool,
        plan: &mut Plan,
        retired: &mut Retired,
    ) -> Halves {
        let former: BTreeSet<IpAddr> = self.former_sources().collect();
        if !moved && former == self.former_sources {
            return Halves::InForce;
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
        let vips: Vec<VipEntry> =
            want.vips.iter().filter_map(|(place, target)| self.vip_entry(place, target, want)).collect();

        let lookup = (addrs, vips);
        if self.lookup.as_ref() == Some(&lookup) {
            return Halves::InForce;
        }
        let (Some(addr_lines), Some(vip_lines)) = (layout::addrs(&lookup.0), layout::vips(&lookup.1)) else {
            plan.problems.push(too_many("the VIP table does not fit; the old one stays"));
            self.again.vips = true;
            return Halves::Stale;
        };
        let half = self.epoch.half() ^ 1;
        self.epoch =
            Epoch::new(half, addr_lines.bits, vip_lines.bits, self.epoch.generation().wrapping_add(1));
        plan.ops.push(Op::Lookup(half, addr_lines, vip_lines));
        plan.ops.push(Op::Epoch(self.epoch));
        self.lookup = Some(lookup);
        Halves::Switched
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
