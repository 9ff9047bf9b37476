//! How the program gets onto an interface, and what it knows of it there.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::maps;
use tracing::warn;

use super::choice::is_sender;
use super::engine::Engine;
use super::kernel::Attached;
use super::network::{Interface, Kind};
use super::{Attach, Error};

/// Where the kernel program finds what it knows of an interface.
pub(super) fn slot(ifindex: u32) -> usize {
    ifindex as usize % maps::INTERFACES as usize
}

/// What it finds there. Interfaces that share a slot cannot have their MAC checked: the other's
/// frames would be taken for another host's. Frames to this host that come in by the port of a
/// bridge or bond (`master`) are sent to that one's MAC; a VRF is no device but a routing table, and its ports keep theirs.
pub(super) fn word(interface: &Interface, master: Option<&Interface>, chosen: &[&Interface]) -> u64 {
    let shares = |other: &&&Interface| slot(other.ifindex) == slot(interface.ifindex);
    if chosen.iter().filter(shares).count() > 1 {
        return maps::NO_XDP_TX;
    }
    let master = master.filter(|master| !matches!(&master.kind, Kind::Other(kind) if kind == "vrf"));
    let word = maps::interface(master.unwrap_or(interface).mac.unwrap_or_default());
    if interface.kind == Kind::Veth { word | maps::NO_XDP_TX } else { word }
}

/// The ports of those bonds that are among `chosen`, each with its bond, unless it was chosen itself.
pub(super) fn bond_ports<'a>(
    interfaces: impl Iterator<Item = &'a Interface>,
    chosen: &[&'a Interface],
) -> Vec<(&'a Interface, &'a Interface)> {
    let bond_of = |port: &Interface| {
        let bond = port.master.filter(|_| port.bond_port)?;
        chosen.iter().copied().find(|one| one.ifindex == bond)
    };
    let ports = interfaces.filter(|one| chosen.iter().all(|chosen| chosen.ifindex != one.ifindex));
    ports.filter_map(|port| Some((port, bond_of(port)?))).collect()
}

/// Native first where that is left to us. `all`: the interfaces of this host.
pub(super) fn attach(
    engine: &mut Engine,
    interface: &Interface,
    all: &BTreeMap<u32, Interface>,
    how: Attach,
) -> Result<Attached, Error> {
    let Interface { name, ifindex, .. } = interface;
    let before = engine.kernel.attached_before(*ifindex);
    if how == Attach::Native || how == Attach::Auto && before != Some(Attached::Generic) {
        match engine.kernel.attach(name, *ifindex, Attached::Native) {
            Ok(()) => return Ok(Attached::Native),
            // What else sits there is in the way of either.
            Err(error) if how == Attach::Native || error.is_in_the_way() => return Err(error),
            Err(error) => {
                warn!(interface = name, %error, fix = in_the_stack(interface, all), "no XDP in the driver, falling back to the stack");
            }
        }
    }
    engine.kernel.attach(name, *ifindex, Attached::Generic)?;
    Ok(Attached::Generic)
}

/// Names of the devices that a program in a driver redirects frames to, and that have none themselves: most drop them.
pub(super) fn unattached_exits<'a>(
    exits: impl Iterator<Item = u32>,
    attached: &BTreeMap<u32, (String, Attached)>,
    all: &'a BTreeMap<u32, Interface>,
) -> BTreeSet<&'a str> {
    if attached.values().all(|(_, mode)| *mode == Attached::Generic) {
        return BTreeSet::new();
    }
    let exits = exits.filter(|exit| !attached.contains_key(exit)).filter_map(|exit| all.get(&exit));
    exits.filter(|exit| is_sender(exit)).map(|exit| exit.name.as_str()).collect()
}

/// What an operator is to know of a program in the stack. A VLAN interface gets its frames from the device below, whose GRO
/// has joined them by then.
fn in_the_stack(interface: &Interface, all: &BTreeMap<u32, Interface>) -> String {
    let (mut device, mut tags) = (interface, 0);
    while let Kind::Vlan { lower: Some(lower), .. } = device.kind
        && let Some(below) = all.get(&lower)
        && tags < 2
    {
        (device, tags) = (below, tags + 1);
    }
    let name = &device.name;
    let gro = format!("slower, and GRO on {name} must be off (ethtool -K {name} gro off)");
    if tags == 0 {
        return gro;
    }
    format!(
        "{gro}; or have the program on {name} (--interface {name}), where it serves all VLANs: for that the device must \
         leave the tags in the frames (ethtool -K {name} rxvlan off)"
    )
}

#[cfg(test)]
mod tests {
    use lb_common::Tag;

    use super::*;

    fn interface(ifindex: u32, name: &str, kind: Kind) -> Interface {
        Interface { kind, ..Interface::device(ifindex, name) }
    }

    #[test]
    fn a_device_that_frames_are_redirected_to_wants_the_program_where_a_driver_sends_them() {
        let all = [
            interface(1, "eth0", Kind::Device),
            interface(2, "eth1", Kind::Device),
            interface(3, "veth0", Kind::Veth),
        ];
        let all: BTreeMap<u32, Interface> = all.into_iter().map(|one| (one.ifindex, one)).collect();
        for (case, attached, wanted) in [
            ("in the driver", vec![(1, Attached::Native)], vec!["eth1"]),
            ("in the stack, which sends by any", vec![(1, Attached::Generic)], vec![]),
            ("on both", vec![(1, Attached::Native), (2, Attached::Native)], vec![]),
        ] {
            let attached = attached.into_iter().map(|(one, mode)| (one, (String::new(), mode))).collect();

            let found = unattached_exits([1, 2, 3, 4].into_iter(), &attached, &all);

            assert_eq!(found.into_iter().collect::<Vec<_>>(), wanted, "{case}");
        }
    }

    #[test]
    fn what_to_do_about_a_program_in_the_stack_is_done_to_the_device_below() {
        let vlan = |lower, id| Kind::Vlan { lower, tag: Tag::customer(id) };
        let all = [
            interface(1, "eth0", Kind::Device),
            interface(2, "eth0.5", vlan(Some(1), 5)),
            interface(3, "eth0.5.7", vlan(Some(2), 7)),
            interface(4, "elsewhere.5", vlan(None, 5)),
        ];
        let all: BTreeMap<u32, Interface> = all.into_iter().map(|one| (one.ifindex, one)).collect();

        let below = "slower, and GRO on eth0 must be off (ethtool -K eth0 gro off)";
        let named = format!(
            "{below}; or have the program on eth0 (--interface eth0), where it serves all VLANs: for that the device must leave \
             the tags in the frames (ethtool -K eth0 rxvlan off)"
        );
        let elsewhere = "slower, and GRO on elsewhere.5 must be off (ethtool -K elsewhere.5 gro off)";
        for (ifindex, wanted) in [(1, below), (2, &named), (3, &named), (4, elsewhere)] {
            assert_eq!(in_the_stack(&all[&ifindex], &all), wanted, "{ifindex}");
        }
    }
}
