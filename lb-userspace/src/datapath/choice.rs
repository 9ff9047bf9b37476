//! Which interfaces the program belongs on: those named, those that a pattern covers, or those
//! of the default routes. Pure; which exist is not its business.

use std::collections::BTreeSet;

use super::network::{Interface, Kind};

/// What the operator chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Names and patterns.
    Named(Vec<String>),
    /// The interfaces of default routes, and not those towards backends: whoever may write endpoints would choose devices,
    /// and many drivers reset their link for a program. One that was chosen stays while it exists, so that a default
    /// route that flaps costs no flows.
    Default(BTreeSet<String>),
}

impl Choice {
    /// From the command line: empty means the default routes.
    pub(super) fn new(named: Vec<String>) -> Self {
        if named.is_empty() { Self::Default(BTreeSet::new()) } else { Self::Named(named) }
    }

    /// Whether the program belongs on an interface.
    pub(super) fn covers(&self, interface: &Interface) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| matches(name, interface)),
            Self::Default(names) => names.contains(&interface.name),
        }
    }

    /// Goes on with an interface that an agent before us had chosen.
    pub(super) fn keep(&mut self, name: String) {
        if let Self::Default(names) = self {
            names.insert(name);
        }
    }

    /// Whether it was named without a pattern: that it cannot be used is the operator's error.
    pub(super) fn insists_on(&self, name: &str) -> bool {
        matches!(self, Self::Named(names) if names.iter().any(|named| named == name))
    }

    /// Names and patterns that cover none of these.
    pub(super) fn missing<'a>(&self, interfaces: impl Iterator<Item = &'a Interface> + Clone) -> Vec<&str> {
        let Self::Named(names) = self else { return Vec::new() };
        let missing = names.iter().filter(|name| !interfaces.clone().any(|one| matches(name, one)));
        missing.map(String::as_str).collect()
    }
}

/// A device whose driver may want a program on it to send what a program redirects to it.
pub(super) fn is_sender(exit: &Interface) -> bool {
    exit.kind == Kind::Device && exit.has_ethernet()
}

/// A name ends in `*` or, as iptables writes it, `+` where any rest is meant. A pattern covers devices, not what
/// is stacked on them: the program sees their frames on the device already.
fn matches(pattern: &str, interface: &Interface) -> bool {
    let Some(start) = pattern.strip_suffix(['*', '+']) else { return pattern == interface.name };
    let device = matches!(interface.kind, Kind::Device | Kind::Veth) && !interface.bond_port;
    device && interface.has_ethernet() && interface.name.starts_with(start)
}

#[cfg(test)]
mod tests {
    use lb_common::Mac;

    use super::*;

    fn interface(name: &str, kind: Kind) -> Interface {
        Interface { kind, ..Interface::device(1, name) }
    }

    #[test]
    fn a_name_covers_itself_and_a_pattern_covers_devices() {
        let vlan = Kind::Vlan { lower: Some(2), tag: lb_common::Tag::customer(5) };
        let lo = Interface { mac: Some(Mac::default()), ..interface("lo", Kind::Device) };
        let port = Interface { bond_port: true, ..interface("eth1", Kind::Device) };
        for (choice, interface, covered) in [
            ("eth0", interface("eth0", Kind::Device), true),
            ("eth0", interface("eth01", Kind::Device), false),
            ("eth0.5", interface("eth0.5", vlan.clone()), true),
            ("eth*", interface("eth0", Kind::Device), true),
            ("eth+", interface("eth7", Kind::Veth), true),
            ("eth*", interface("enp1s0", Kind::Device), false),
            ("eth*", interface("eth0.5", vlan), false),
            ("*", lo, false),
            ("eth*", port.clone(), false),
            ("eth1", port, true),
        ] {
            let choice = Choice::new(vec![choice.to_owned()]);

            assert_eq!(choice.covers(&interface), covered, "{choice:?} {}", interface.name);
        }
    }

    #[test]
    fn a_pattern_without_an_interface_is_missing_like_a_name() {
        let choice = Choice::new(["eth0", "eth1", "en*", "eth*"].map(str::to_owned).to_vec());
        let interfaces = [interface("eth0", Kind::Device)];

        assert_eq!(choice.missing(interfaces.iter()), ["eth1", "en*"]);
    }
}
