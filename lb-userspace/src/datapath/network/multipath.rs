//! The next hops of a route that has several, and in which order a backend prefers them. Pure.
//!
//! The order is drawn from the addresses of both by the hops' weights (rendezvous hashing): all packets of a backend take
//! the first hop that answers, many backends are spread over all of them, and of a hop that falls silent only its own
//! backends move. What the kernel picks goes by a secret of its own, and by no neighbour that does not answer.

use std::net::IpAddr;

use lb_common::Addr;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
};

use super::ip;
use super::neighbours::Hop;

/// One of the next hops of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) hop: Hop,
    /// Share of the backends.
    pub(super) weight: u16,
    /// Our address, where the route says which.
    pub(super) source: Option<IpAddr>,
}

/// Those of a route towards `to`, in its order of preference; none where it has only one. Hops that encapsulate are left out.
pub(super) fn candidates(to: IpAddr, route: &RouteMessage) -> Vec<Candidate> {
    if route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(addr) => ip(addr),
        _ => None,
    });
    let hops = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let usable = hops.into_iter().flatten().filter(|hop| is_usable(hop));
    let mut candidates: Vec<Candidate> = usable
        .map(|hop| Candidate {
            hop: (hop.interface_index, gateway(hop).unwrap_or(to)),
            weight: weight(hop),
            source,
        })
        .collect();
    candidates.sort_by(|one, other| arrival(to, one).total_cmp(&arrival(to, other)));
    candidates
}

fn is_usable(hop: &RouteNextHop) -> bool {
    let encapsulates = hop.attributes.iter().any(|one| matches!(one, RouteAttribute::Encap(_)));
    !hop.flags.contains(RouteNextHopFlags::Dead) && !encapsulates
}

fn gateway(hop: &RouteNextHop) -> Option<IpAddr> {
    hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

/// `rtnh_hops` counts from zero.
fn weight(hop: &RouteNextHop) -> u16 {
    u16::from(hop.hops) + 1
}

/// When a hop comes in, in a race in which each is as fast as its weight: it is first as often as its weight says, and who
/// is before whom depends on those two alone.
fn arrival(to: IpAddr, Candidate { hop: (ifindex, gateway), weight, .. }: &Candidate) -> f64 {
    let (to, gateway) = (Addr::from(to), Addr::from(*gateway));
    let words = [to.hi, to.lo, gateway.hi, gateway.lo, u64::from(*ifindex)];
    let hash = words.into_iter().fold(0, |hash, word| mix(hash ^ word));
    // Within (0, 1), by the 53 bits that a double has.
    let drawn = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -drawn.ln() / f64::from(*weight)
}

/// splitmix64: what is drawn for one hop says nothing of the draw for another.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::route::RouteAddress;

    use super::*;

    fn hop(ifindex: u32, last: u8, weight: u8) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = ifindex;
        hop.hops = weight - 1;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 2, 0, last)))];
        hop
    }

    fn route(hops: Vec<RouteNextHop>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::MultiPath(hops));
        route
    }

    fn first(to: IpAddr, hops: &[RouteNextHop]) -> Hop {
        candidates(to, &route(hops.to_vec())).first().expect("there are some").hop
    }

    fn backends() -> impl Iterator<Item = IpAddr> {
        (0..4000u16).map(|number| IpAddr::from([10, 9, (number >> 8) as u8, number as u8]))
    }

    #[test]
    fn backends_are_spread_over_the_hops_by_weight() {
        let hops = [hop(2, 1, 1), hop(2, 2, 3), hop(3, 1, 4)];

        let share = |at: usize| {
            let (ifindex, last) = [(2, 1), (2, 2), (3, 1)][at];
            let chosen = backends().filter(|to| first(*to, &hops) == (ifindex, [10, 2, 0, last].into()));
            chosen.count() as f64 / 4000.0
        };

        for (at, wanted) in [0.125, 0.375, 0.5].into_iter().enumerate() {
            assert!((share(at) - wanted).abs() < 0.03, "hop {at}: {} for {wanted}", share(at));
        }
    }

    #[test]
    fn of_a_hop_that_goes_only_its_own_backends_move() {
        let all = [hop(2, 1, 1), hop(2, 2, 3), hop(3, 1, 4)];

        for to in backends() {
            let order = candidates(to, &route(all.to_vec()));
            let left: Vec<_> = order.iter().skip(1).map(|one| one.hop).collect();
            let gone = order.first().expect("three").hop;
            let others: Vec<_> = all
                .iter()
                .filter(|one| (one.interface_index, gateway(one).expect("each has one")) != gone)
                .cloned()
                .collect();

            let now: Vec<_> = candidates(to, &route(others)).iter().map(|one| one.hop).collect();

            assert_eq!(now, left, "{to}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_no_hop() {
        let to = IpAddr::from([10, 9, 0, 1]);
        let mut dead = hop(2, 1, 1);
        dead.flags = RouteNextHopFlags::Dead;
        let mut encapsulating = hop(2, 2, 1);
        encapsulating.attributes.push(RouteAttribute::Encap(Vec::new()));
        let mut on_link = hop(3, 1, 1);
        on_link.attributes.clear();
        let mut with_source = route(vec![dead, encapsulating, on_link]);
        with_source
            .attributes
            .push(RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::new(10, 1, 0, 1))));
        let source = Some([10, 1, 0, 1].into());

        assert_eq!(candidates(to, &with_source), [Candidate { hop: (3, to), weight: 1, source }]);
        with_source.header.kind = RouteType::BlackHole;
        assert_eq!(candidates(to, &with_source), []);
        assert_eq!(candidates(to, &route(Vec::new())), []);
    }
}
