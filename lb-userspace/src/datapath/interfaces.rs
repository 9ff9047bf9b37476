//! How the program gets onto an interface, and what it knows of it there.

use lb_common::maps;
use tracing::warn;

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
/// bridge or bond (`master`) are sent to that one's MAC.
pub(super) fn word(interface: &Interface, master: Option<&Interface>, chosen: &[&Interface]) -> u64 {
    let shares = |other: &&&Interface| slot(other.ifindex) == slot(interface.ifindex);
    if chosen.iter().filter(shares).count() > 1 {
        return maps::NO_XDP_TX;
    }
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

/// Native first where that is left to us.
pub(super) fn attach(engine: &mut Engine, interface: &Interface, how: Attach) -> Result<Attached, Error> {
    let Interface { name, ifindex, .. } = interface;
    let before = engine.kernel.attached_before(*ifindex);
    if how == Attach::Native || how == Attach::Auto && before != Some(Attached::Generic) {
        match engine.kernel.attach(name, *ifindex, Attached::Native) {
            Ok(()) => return Ok(Attached::Native),
            // What else sits there is in the way of either.
            Err(error) if how == Attach::Native || error.is_in_the_way() => return Err(error),
            Err(error) => warn!(
                interface = name,
                %error,
                "no XDP in the driver, falling back to the stack: slower, and GRO on this interface \
                 must be off (ethtool -K {name} gro off)"
            ),
        }
    }
    engine.kernel.attach(name, *ifindex, Attached::Generic)?;
    Ok(Attached::Generic)
}
