//! Interfaces that packets may be redirected to: all that a way leads to, and those that we are attached to. Packets of a bond
//! come in by its ports (Linux runs the bond's program there); what goes back to a port leaves by the bond, which chooses one.

use std::collections::BTreeSet;

use tracing::warn;

use super::Error;
use super::choice::Choice;
use super::interfaces::bond_ports;
use super::network::{Interface, View};
use super::want::{Ways, changed_ways};

/// Those that were allowed.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By the number that is asked for, and where that leads.
    indices: BTreeSet<(u32, u32)>,
    /// The ways whose interfaces are among them.
    ways: Ways,
}

impl Devices {
    /// By which packets leave, those that we are attached to among them.
    pub(super) fn exits(&self) -> impl Iterator<Item = u32> {
        self.indices.iter().map(|(_, to)| *to)
    }

    /// Allows what is new in `view`. One that is refused is tried again the next time. `forget`: the kernel knows of an interface by
    /// where it leads, and forgets one that went if that is the same.
    pub(super) fn follow(
        &mut self,
        view: &View,
        choice: &Choice,
        allow: impl Fn(u32, u32) -> Result<(), Error>,
        forget: impl Fn(u32),
    ) {
        let known = self.indices.len();
        let is_there = |ifindex: &u32| view.interfaces.contains_key(ifindex);
        let gone = self.indices.extract_if(.., |(ifindex, to)| !is_there(ifindex) || !is_there(to));
        gone.filter(|(_, to)| is_there(to)).for_each(|(ifindex, _)| forget(ifindex));
        if self.indices.len() < known {
            self.ways.clear();
        }
        let changed = changed_ways(&self.ways, &view.network.ways);
        let changed = changed.filter_map(|addr| view.network.ways.get(addr)?.as_ref().ok());
        let ways = changed.map(|way| way.next_hop.ifindex).map(|ifindex| (ifindex, ifindex));
        let chosen: Vec<&Interface> = view.interfaces.values().filter(|one| choice.covers(one)).collect();
        let ports = bond_ports(view.interfaces.values(), &chosen);
        let own = chosen.iter().map(|one| (one.ifindex, one.ifindex));
        let own = own.chain(ports.into_iter().map(|(port, bond)| (port.ifindex, bond.ifindex)));
        let mut refused = false;
        for (ifindex, to) in ways.chain(own).filter(|(ifindex, _)| *ifindex != 0) {
            if self.indices.contains(&(ifindex, to)) {
                continue;
            }
            match allow(ifindex, to) {
                Ok(()) => {
                    self.indices.retain(|(known, _)| *known != ifindex);
                    self.indices.insert((ifindex, to));
                }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use lb_common::Mac;

    use super::*;
    use crate::datapath::interfaces::{slot, word};
    use crate::datapath::network::Kind;

    fn interface(name: &str, ifindex: u32, master: Option<u32>) -> (u32, Interface) {
        let bond_port = master.is_some();
        (ifindex, Interface { master, bond_port, ..Interface::device(ifindex, name) })
    }

    #[test]
    fn what_goes_back_to_the_port_of_a_bond_leaves_by_the_bond() {
        let mut view = View {
            interfaces: [
                interface("bond0", 7, None),
                interface("eth0", 2, Some(7)),
                interface("eth1", 3, Some(7)),
                interface("eth2", 4, Some(9)),
            ]
            .into(),
            ..View::default()
        };
        let choice = Choice::new(vec!["bond0".to_owned()]);
        let (mut devices, allowed) = (Devices::default(), RefCell::new(Vec::new()));
        let allow = |ifindex, to| {
            allowed.borrow_mut().push((ifindex, to));
            Ok(())
        };
        let forgotten = RefCell::new(Vec::new());
        let forget = |ifindex| forgotten.borrow_mut().push(ifindex);

        devices.follow(&view, &choice, allow, forget);
        assert_eq!(allowed.take(), [(7, 7), (2, 7), (3, 7)]);
        devices.follow(&view, &choice, allow, forget);
        assert_eq!(allowed.take(), []);

        // A port that leaves the bond and is ours by itself leads to itself.
        view.interfaces.extend([interface("eth1", 3, None)]);
        let both = Choice::new(vec!["bond0".to_owned(), "eth1".to_owned()]);
        devices.follow(&view, &both, allow, forget);
        assert_eq!(allowed.take(), [(3, 3)]);

        // Of a port that is gone the bond would keep the entry, however many come and go.
        assert!(forgotten.borrow().is_empty());
        view.interfaces.remove(&2);
        view.interfaces.remove(&3);
        devices.follow(&view, &both, allow, forget);
        assert_eq!(forgotten.take(), [2]);
    }

    #[test]
    fn frames_by_the_port_of_a_bond_are_for_the_mac_of_the_bond() {
        let [(_, bond), (_, port)] = [interface("bond0", 7, None), interface("eth0", 2, Some(7))];
        let ports = bond_ports([&bond, &port].into_iter(), &[&bond]);

        assert_eq!(ports, [(&port, &bond)]);
        assert_ne!(slot(port.ifindex), slot(bond.ifindex));
        let known = [&bond, &port];
        assert_eq!(word(&port, Some(&bond), &known), word(&bond, None, &known));
        assert_eq!(bond_ports([&bond, &port].into_iter(), &[&port]), []);
    }

    #[test]
    fn frames_by_the_port_of_a_vrf_are_for_its_own_mac() {
        let [(_, vrf), (_, port)] = [interface("vrf1", 7, None), interface("eth0", 2, Some(7))];
        let vrf =
            Interface { kind: Kind::Other("vrf".to_owned()), mac: Some(Mac([2, 0, 0, 0, 0, 7])), ..vrf };
        let port = Interface { bond_port: false, mac: Some(Mac([2, 0, 0, 0, 0, 2])), ..port };

        assert_eq!(word(&port, Some(&vrf), &[&port]), word(&port, None, &[&port]));
        let bridge = Interface { kind: Kind::Bridge { filtering: false }, ..vrf };
        assert_ne!(word(&port, Some(&bridge), &[&port]), word(&port, None, &[&port]));
    }
}
