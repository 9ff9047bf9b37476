//! What was announced since the network was last looked at, no more than has to be read anew.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::Notify;

use super::neighbours::{Hop, Neighbours, News};
use super::{ip, local};

/// Prefixes remembered one by one; with more, every route is asked for anew.
const PREFIXES: usize = 1024;

/// Shared by the listener, who writes, and the worker, who takes.
#[derive(Default)]
pub(super) struct Shared {
    /// Both; the lock is held for one message or one look.
    pub(super) state: Mutex<State>,
    /// One permit however much was announced.
    pub(super) notify: Notify,
}

/// What the listener keeps.
#[derive(Default)]
pub(super) struct State {
    pub(super) heard: Heard,
    pub(super) neighbours: Neighbours,
}

/// What has to be read anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Links or addresses.
    pub(super) links: bool,
    /// Every route.
    pub(super) all_routes: bool,
    /// Routes to addresses within these.
    pub(super) prefixes: BTreeSet<Prefix>,
    /// Next hops whose MAC changed, or that began or ceased to answer.
    pub(super) hops: BTreeSet<Hop>,
    /// Which port of a bridge leads where.
    pub(super) ports: bool,
    /// Addresses whose local route was deleted.
    pub(super) gone: BTreeSet<IpAddr>,
    /// Everything: announcements were lost.
    pub(super) lost: bool,
}

/// Destination of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

impl Prefix {
    pub(super) fn new(addr: IpAddr, length: u8) -> Self {
        match addr {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                let bits = u32::from(v4);
                let (first, last) = (Ipv4Addr::from(bits & !mask), Ipv4Addr::from(bits | mask));
                Self { first: first.into(), last: last.into() }
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                let bits = u128::from(v6);
                let (first, last) = (Ipv6Addr::from(bits & !mask), Ipv6Addr::from(bits | mask));
                Self { first: first.into(), last: last.into() }
            }
        }
    }

    fn of(route: &RouteMessage) -> Option<Self> {
        let any: IpAddr = match route.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(addr) => ip(addr),
            _ => None,
        });
        Some(Self::new(destination.unwrap_or(any), route.header.destination_prefix_length))
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announcements were lost.
    pub(super) fn lost(&self) {
        self.lock().heard.lost = true;
        self.notify.notify_one();
    }

    /// Something changed that routes depend on.
    pub(super) fn all_routes(&self) {
        self.lock().heard.all_routes = true;
        self.notify.notify_one();
    }

    /// One announcement. Nobody is woken for a neighbour that we have no use for, or that only
    /// changed its state: there are hundreds of those in a second.
    pub(super) fn hear(&self, message: RouteNetlinkMessage) {
        use RouteNetlinkMessage as Message;
        let mut state = self.lock();
        let State { heard, neighbours } = &mut *state;
        match message {
            Message::NewNeighbour(entry) => match neighbours.hear(&entry) {
                News::None => return,
                News::Hop(hop) => _ = heard.hops.insert(hop),
                News::Port => heard.ports = true,
            },
            Message::DelNeighbour(entry) => match neighbours.hear_gone(&entry) {
                News::None => return,
                News::Hop(hop) => _ = heard.hops.insert(hop),
                News::Port => heard.ports = true,
            },
            Message::NewRoute(ref route) | Message::DelRoute(ref route) => {
                if matches!(message, Message::DelRoute(_)) {
                    heard.gone.extend(local::destination(route));
                }
                let Some(prefix) = Prefix::of(route) else { return };
                heard.prefixes.insert(prefix);
                if heard.prefixes.len() > PREFIXES {
                    heard.prefixes.clear();
                    heard.all_routes = true;
                }
            }
            Message::NewLink(_) | Message::DelLink(_) | Message::NewAddress(_) | Message::DelAddress(_) => {
                heard.links = true;
            }
            Message::NewRule(_) | Message::DelRule(_) => heard.all_routes = true,
            _ => return,
        }
        drop(state);
        self.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_spans_its_addresses() {
        for (addr, length, first, last) in [
            ("10.1.2.3", 24, "10.1.2.0", "10.1.2.255"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
            ("0.0.0.0", 0, "0.0.0.0", "255.255.255.255"),
            ("fd01::1", 127, "fd01::", "fd01::1"),
            ("::", 0, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let prefix = Prefix::new(addr.parse().expect(addr), length);

            let wanted = Prefix { first: first.parse().expect(first), last: last.parse().expect(last) };
            assert_eq!(prefix, wanted, "{addr}/{length}");
        }
    }

    #[test]
    fn a_storm_of_routes_is_remembered_as_one_thing() {
        let shared = Shared::default();
        for number in 0..=u32::try_from(PREFIXES).expect("small") {
            let builder = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new();
            let route = builder.destination_prefix(Ipv4Addr::from(number << 8), 24).build();
            shared.hear(RouteNetlinkMessage::NewRoute(route));
        }

        let wanted = Heard { all_routes: true, ..Heard::default() };
        assert_eq!(shared.lock().heard, wanted);
    }
}
