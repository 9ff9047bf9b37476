//! Interfaces, and by which of them a frame really leaves: XDP cannot hand one to a VLAN device or a
//! bridge, so those are followed down to a device that takes it. Pure, but for reading a link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::{Mac, Tag, Tags};
use rtnetlink::packet_route::link::{
    BondMode, InfoBond, InfoBridge, InfoData, InfoKind, InfoPortKind, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, LinkXdp, VlanProtocol,
};

use super::mac;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Ethernet address; `None` for interfaces that have none.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Something is at the other end.
    pub carrier: bool,
    /// What it is.
    pub kind: Kind,
    /// Bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The master is a bond, which has to be named in its place.
    pub bond_port: bool,
    /// Addresses.
    pub addrs: BTreeSet<IpAddr>,
}

/// What an interface is, as far as sending by it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A device that XDP can send by.
    Device,
    /// One end of a veth pair.
    Veth,
    /// Frames with a tag on another interface.
    Vlan {
        /// The other interface; `None`: in another network namespace.
        lower: Option<u32>,
        /// The tag.
        tag: Tag,
    },
    /// A switch.
    Bridge {
        /// It looks at VLAN tags.
        filtering: bool,
    },
    /// A kind of device that XDP cannot send by.
    Other(String),
}

/// How a frame to a next hop leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) ifindex: u32,
    /// Source MAC of the frame.
    pub(super) source: Mac,
    pub(super) tags: Tags,
    /// Destination MAC; `None`: not resolved, or nothing gets through at the moment.
    pub(super) neighbour: Option<Mac>,
    /// It has not fallen silent.
    pub(super) answers: bool,
    pub(super) mtu: u32,
}

impl Interface {
    /// Frames get through, as far as this end can tell.
    pub fn is_running(&self) -> bool {
        self.up && self.carrier
    }

    /// It has an Ethernet address; the loopback interface has one of zeros, which is none.
    pub fn has_ethernet(&self) -> bool {
        self.mac.is_some_and(|mac| mac != Mac::default())
    }

    pub(super) fn read(link: LinkMessage) -> Self {
        let flags = link.header.flags;
        let mut found = Self {
            name: String::new(),
            ifindex: link.header.index,
            mac: None,
            mtu: 1500,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            kind: Kind::Device,
            master: None,
            bond_port: false,
            addrs: BTreeSet::new(),
        };
        let (mut lower, mut elsewhere) = (None, false);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name = name,
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::Address(bytes) => found.mac = mac(&bytes),
                LinkAttribute::Link(ifindex) => lower = Some(ifindex),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::Controller(ifindex) => found.master = Some(ifindex),
                LinkAttribute::LinkInfo(infos) => {
                    found.bond_port = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bond));
                    found.kind = kind(&infos);
                }
                _ => {}
            }
        }
        if let Kind::Vlan { lower: of, .. } = &mut found.kind {
            *of = lower.filter(|_| !elsewhere);
        }
        found
    }
}

/// Name of an interface and number of the XDP program on it.
pub(super) fn xdp_program(link: &LinkMessage) -> Option<(String, u32)> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let program = xdp_programs(link).into_iter().next()?;
    Some((name, program))
}

/// Numbers of the XDP programs on an interface: there is more than one only where the device itself runs one.
pub(super) fn xdp_programs(link: &LinkMessage) -> BTreeSet<u32> {
    let attached = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(attached) => Some(attached),
        _ => None,
    });
    let numbers = attached.flatten().filter_map(|one| match one {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    });
    numbers.collect()
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    match (kind, data) {
        (None, _) => Kind::Device,
        (Some(InfoKind::Veth), _) => Kind::Veth,
        (Some(InfoKind::Vlan), Some(InfoData::Vlan(vlan))) => {
            let service = vlan.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
            let id = vlan.iter().find_map(|info| match info {
                InfoVlan::Id(id) => Some(*id),
                _ => None,
            });
            let id = id.unwrap_or_default();
            Kind::Vlan { lower: None, tag: if service { Tag::service(id) } else { Tag::customer(id) } }
        }
        (Some(InfoKind::Bridge), Some(InfoData::Bridge(bridge))) => {
            Kind::Bridge { filtering: bridge.contains(&InfoBridge::VlanFiltering(true)) }
        }
        (Some(InfoKind::Bond), Some(InfoData::Bond(bond))) => {
            // The others refuse XDP (bond_xdp_check in drivers/net/bonding/bond_main.c).
            use BondMode::{ActiveBackup, BalanceRr, BalanceXor, Ieee8023Ad};
            let mode = bond.iter().find_map(|info| match info {
                InfoBond::Mode(mode) => Some(*mode),
                _ => None,
            });
            match mode {
                Some(ActiveBackup | BalanceRr | BalanceXor | Ieee8023Ad) | None => Kind::Device,
                Some(other) => Kind::Other(format!("bond in mode {other}")),
            }
        }
        // tun has a device's way in for XDP frames; virtual devices for tests have, too.
        (Some(InfoKind::Tun | InfoKind::Netdevsim | InfoKind::Dsa), _) => Kind::Device,
        (Some(other), _) => Kind::Other(other.to_string()),
    }
}

/// How frames to `neighbour` leave where a route names `ifindex`. `Err`: they cannot leave by
/// XDP, and why. `port`: behind which port of a bridge a MAC lives.
pub(super) fn exit(
    links: &BTreeMap<u32, Interface>,
    port: impl Fn(u32, Mac) -> Option<u32>,
    ifindex: u32,
    neighbour: Option<Mac>,
) -> Result<Exit, String> {
    let named = links.get(&ifindex).ok_or("the interface is gone")?;
    let source = named.mac.ok_or("it has no Ethernet address")?;
    let mut exit = Exit { ifindex, source, tags: Tags::NONE, neighbour, answers: true, mtu: named.mtu };
    let mut at = named;
    loop {
        if !at.is_running() {
            exit.neighbour = None;
        }
        exit.ifindex = at.ifindex;
        exit.mtu = exit.mtu.min(at.mtu);
        match &at.kind {
            // A frame with two tags is redirected only where it is no longer than one of full size with one
            // (xdp_ok_fwd_dev in include/linux/filter.h).
            Kind::Device | Kind::Veth if exit.tags.inner().is_some() => {
                return Ok(Exit { mtu: exit.mtu.min(at.mtu.saturating_sub(4)), ..exit });
            }
            Kind::Device | Kind::Veth => return Ok(exit),
            Kind::Vlan { lower: None, .. } => {
                return Err(lies(at, "on an interface in another network namespace"));
            }
            Kind::Vlan { lower: Some(lower), tag } => {
                exit.tags =
                    exit.tags.within(*tag).ok_or_else(|| lies(at, "below two other VLANs: three tags"))?;
                at = links.get(lower).ok_or_else(|| lies(at, "on an interface that is gone"))?;
            }
            // Which ports a VLAN leaves by, and whether with its tag, is the bridge's own business.
            Kind::Bridge { filtering: true } => return Err(lies(at, "a bridge that filters VLANs")),
            Kind::Bridge { filtering: false } if !exit.tags.is_none() => {
                return Err(lies(at, "a bridge below a VLAN"));
            }
            Kind::Bridge { filtering: false } => {
                let Some(mac) = exit.neighbour else { return Ok(exit) };
                let Some(port) = port(at.ifindex, mac) else {
                    // Not learned yet; a frame from there tells.
                    return Ok(Exit { neighbour: None, ..exit });
                };
                at = links.get(&port).ok_or_else(|| lies(at, "a bridge whose port is gone"))?;
            }
            Kind::Other(kind) => return Err(lies(at, &format!("a {kind}, which XDP cannot send by"))),
        }
    }
}

fn lies(interface: &Interface, what: &str) -> String {
    format!("{} is {what}", interface.name)
}

#[cfg(test)]
impl Interface {
    /// A device with a carrier, for tests.
    pub(in crate::datapath) fn device(ifindex: u32, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ifindex,
            mac: Some(Mac([2, 0, 0, 0, 1, ifindex as u8])),
            mtu: 1500,
            up: true,
            carrier: true,
            kind: Kind::Device,
            master: None,
            bond_port: false,
            addrs: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn own(ifindex: u32) -> Mac {
        Mac([2, 0, 0, 0, 1, ifindex as u8])
    }

    fn link(ifindex: u32, kind: Kind) -> Interface {
        Interface { kind, ..Interface::device(ifindex, &format!("if{ifindex}")) }
    }

    fn leaves(links: impl IntoIterator<Item = Interface>, port: Option<u32>) -> Result<Exit, String> {
        let links = links.into_iter().map(|link| (link.ifindex, link)).collect();
        exit(&links, |_, _| port, 1, Some(PEER))
    }

    fn vlan(lower: u32, id: u16) -> Kind {
        Kind::Vlan { lower: Some(lower), tag: Tag::customer(id) }
    }

    const BRIDGE: Kind = Kind::Bridge { filtering: false };

    #[test]
    fn a_route_over_a_stacked_interface_leaves_by_the_device_below() {
        let plain = Exit {
            ifindex: 1,
            source: own(1),
            tags: Tags::NONE,
            neighbour: Some(PEER),
            answers: true,
            mtu: 1500,
        };
        let in_five = Tags::one(Tag::customer(5));
        let service = Kind::Vlan { lower: Some(3), tag: Tag::service(100) };
        let small = Interface { mtu: 1400, ..link(2, Kind::Device) };
        for (case, links, port, wanted) in [
            ("device", vec![link(1, Kind::Device)], None, plain),
            (
                "vlan",
                vec![link(1, vlan(2, 5)), link(2, Kind::Veth)],
                None,
                Exit { ifindex: 2, tags: in_five, ..plain },
            ),
            (
                "mtu",
                vec![link(1, vlan(2, 5)), small],
                None,
                Exit { ifindex: 2, tags: in_five, mtu: 1400, ..plain },
            ),
            (
                "two tags",
                vec![link(1, vlan(2, 5)), link(2, service), link(3, Kind::Device)],
                None,
                Exit {
                    ifindex: 3,
                    tags: in_five.within(Tag::service(100)).expect("room"),
                    mtu: 1496,
                    ..plain
                },
            ),
            ("bridge", vec![link(1, BRIDGE), link(2, Kind::Device)], Some(2), Exit { ifindex: 2, ..plain }),
            ("unlearned", vec![link(1, BRIDGE)], None, Exit { neighbour: None, ..plain }),
            (
                "vlan as a port",
                vec![link(1, BRIDGE), link(2, vlan(3, 7)), link(3, Kind::Device)],
                Some(2),
                Exit { ifindex: 3, tags: Tags::one(Tag::customer(7)), ..plain },
            ),
        ] {
            assert_eq!(leaves(links, port), Ok(wanted), "{case}");
        }
    }

    #[test]
    fn nothing_leaves_by_a_link_that_is_down_at_any_depth() {
        let no_carrier = Interface { carrier: false, ..link(2, Kind::Device) };
        let down = Interface { up: false, ..link(1, Kind::Device) };

        for links in [vec![down], vec![link(1, vlan(2, 5)), no_carrier]] {
            assert_eq!(leaves(links, None).map(|exit| exit.neighbour), Ok(None));
        }
    }

    #[test]
    fn what_xdp_cannot_send_by_is_told() {
        for (links, reason) in [
            (vec![], "the interface is gone"),
            (vec![link(1, Kind::Other("macvlan".to_owned()))], "if1 is a macvlan, which XDP cannot send by"),
            (
                vec![link(1, vlan(2, 5)), link(2, vlan(3, 6)), link(3, vlan(4, 7)), link(4, Kind::Device)],
                "if3 is below two other VLANs: three tags",
            ),
            (vec![link(1, Kind::Bridge { filtering: true })], "if1 is a bridge that filters VLANs"),
            (vec![link(1, vlan(2, 5)), link(2, BRIDGE)], "if2 is a bridge below a VLAN"),
        ] {
            assert_eq!(leaves(links, Some(9)), Err(reason.to_owned()));
        }
    }
}
