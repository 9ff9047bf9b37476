//! A balancer that begins with fresh tables while backends leave, beside one that saw it: flows that the router brings to it find
//! their backend.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::steer::{Choice, Kind};
use lb_common::{BackendId, HashKey};
use proptest::prelude::*;

use super::histories::{addr_of, backend, flow};
use crate::datapath::rehearsal::Rehearsal;
use crate::datapath::want::{Backend, Owner, Place, Pool, Target, Want};
use crate::model::ObjectName;
use crate::model::l4::{Family, ForwardingMode, PoolId, Protocol};

const GRACE: u16 = 280;
const NOW: u32 = 1000;
const KEY: [u8; 16] = [5; 16];

/// Backends by number, and whether they leave.
type Backends = BTreeMap<u8, bool>;

fn want(protocol: Protocol, backends: &Backends, mode: impl Fn(u8) -> ForwardingMode) -> Want {
    let id = PoolId {
        service: ObjectName::new("default", "beginning").into(),
        port: 80,
        protocol,
        family: Family::V4,
    };
    let vip = IpAddr::from(Ipv4Addr::new(203, 0, 113, 1));
    let one = |(number, leaves): (&u8, &bool)| {
        (addr_of(*number), Backend { mode: mode(*number), ..backend(*number, 1, *leaves) })
    };
    let leaving =
        backends.iter().filter(|(_, leaves)| **leaves).map(|(number, _)| addr_of(*number)).collect();
    let pool = Pool { backends: backends.iter().map(one).collect(), leaving, ..Pool::default() };
    let mut want = Want::default();
    want.addrs.insert(vip, Owner::Vip);
    want.vips.insert(Place { addr: vip, port: 80, protocol }, Target::Pool(id.clone()));
    want.pools.insert(id, pool);
    want
}

/// One that saw backends leave one after the other, and one that begins behind the last.
fn balancers(protocol: Protocol, count: u8, leave: &[u8]) -> [Rehearsal; 2] {
    let mut backends: Backends = (0..count).map(|number| (number, false)).collect();
    let [mut old, mut new] = [(); 2].map(|()| Rehearsal::new(HashKey::expand(KEY), 10, GRACE));
    let want = |backends: &_| want(protocol, backends, |_| ForwardingMode::L2);
    assert_eq!(old.apply(&want(&backends), NOW), []);
    for number in leave {
        backends.insert(number % count, true);
        // Where all leave, all serve on.
        if backends.values().any(|leaves| !leaves) {
            assert_eq!(old.apply(&want(&backends), NOW), []);
        } else {
            backends.insert(number % count, false);
        }
    }
    assert_eq!(new.begin(&want(&backends), false, NOW), []);
    [old, new]
}

fn owners(balancer: &mut Rehearsal, number: u32, protocol: Protocol, kind: Kind) -> [Option<SocketAddr>; 2] {
    let Choice { backend, other, .. } = balancer.send(&flow(number, protocol), kind, NOW).expect("served");
    let addr = |id: BackendId| balancer.book().backend_of(id).map(|(_, addr)| addr);
    [addr(backend), addr(other)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_that_begins_while_backends_leave_knows_what_the_others_do(
        count in 2u8..12, leave in proptest::collection::vec(any::<u8>(), 1..8)
    ) {
        let [mut old, mut new] = balancers(Protocol::Tcp, count, &leave);

        for number in 0..500 {
            for kind in [Kind::Segment, Kind::Syn] {
                let expected = owners(&mut old, number, Protocol::Tcp, kind);

                prop_assert_eq!(owners(&mut new, number, Protocol::Tcp, kind), expected, "{:?} of {}", kind, number);
            }
        }
    }
}

/// Which of the others' would be older than the change, nobody tells.
#[test]
fn datagrams_that_come_to_one_that_begins_go_to_no_backend_that_leaves() {
    let [_, mut new] = balancers(Protocol::Udp, 4, &[0, 1]);

    let leaving = [0, 1].map(|number| Some(addr_of(number)));
    for number in 0..500 {
        let [backend, _] = owners(&mut new, number, Protocol::Udp, Kind::Datagram);
        assert!(!leaving.contains(&backend), "{number}");
    }
}

/// What a node had translated is lost with its tables, but not the backends that it has, unless the host is new.
#[test]
fn segments_that_nobody_remembers_are_of_those_that_leave_where_nobody_here_can_have_them() {
    let backends: Backends = (0..6).map(|number| (number, number < 2)).collect();
    let leaving = [0, 1].map(|number| Some(addr_of(number)));
    let sent_to_leaving = |mode: fn(u8) -> ForwardingMode, is_host_new| {
        let mut new = Rehearsal::new(HashKey::expand(KEY), 10, GRACE);
        assert_eq!(new.begin(&want(Protocol::Tcp, &backends, mode), is_host_new, NOW), []);
        let of = |number| owners(&mut new, number, Protocol::Tcp, Kind::Segment);
        (0..500).map(of).any(|[backend, _]| leaving.contains(&backend))
    };
    let some_here = |number| if number % 2 == 0 { ForwardingMode::Local } else { ForwardingMode::Tunnel };
    let elsewhere = |_| ForwardingMode::Tunnel;

    assert!(!sent_to_leaving(some_here, false));
    assert!(sent_to_leaving(some_here, true));
    assert!(sent_to_leaving(elsewhere, false));
}
