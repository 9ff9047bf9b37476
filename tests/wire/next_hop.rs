//! The network changes and traffic follows: links, neighbours, routes.

use std::time::Duration;

use crate::fork::{BACKENDS, Fork, LEFT, NETS, RIGHT};

const ALL: [&str; 3] = ["eth0", "eth1", "eth2"];

/// The left way is better while it is there.
const BOTH_WAYS: &str =
    "ip route add 10.9.0.0/24 via 10.2.0.2 metric 10; ip route add 10.9.0.0/24 via 10.3.0.2 metric 20
     ip route add fd09::/64 via fd02::2 metric 10; ip route add fd09::/64 via fd03::2 metric 20";

#[test]
fn traffic_leaves_a_link_whose_cable_is_pulled_and_comes_back() {
    let Some(fork) = Fork::new(BOTH_WAYS, &ALL) else { return };
    let switch = fork.lab.switch();
    let cable = |port: &str, state: &str| switch.run(&format!("ip link set {port} {state}")).map(drop);
    for family in [0, 1] {
        fork.settled(family, "left");

        fork.follows("cable pulled", family, "right", || cable("edge1", "down"));

        cable("edge2", "down").unwrap();
        fork.status_says("unresolved");
        assert_eq!(fork.until(family, "right", Duration::from_millis(200)), None);

        fork.follows("other cable back", family, "right", || cable("edge2", "up"));
        fork.follows("cable back", family, "left", || cable("edge1", "up"));
    }
}

#[test]
fn traffic_leaves_an_interface_that_is_set_down() {
    let Some(fork) = Fork::new(BOTH_WAYS, &ALL) else { return };
    for family in [0, 1] {
        fork.settled(family, "left");
    }

    fork.follows("link down", 0, "right", || fork.edge.run("ip link set eth1 down").map(drop));
    fork.follows("link down", 1, "right", || Ok(()));

    // The kernel has removed the routes, and IPv6 addresses, too.
    let up = "ip link set eth1 up; ip addr add fd02::1/64 dev eth1 nodad
              ip route add 10.9.0.0/24 via 10.2.0.2 metric 10; ip route add fd09::/64 via fd02::2 metric 10";
    fork.follows("link up", 0, "left", || fork.edge.run(up).map(drop));
    fork.follows("link up", 1, "left", || Ok(()));
}

#[test]
fn traffic_follows_a_gateway_whose_mac_changes() {
    let Some(fork) = Fork::new(BOTH_WAYS, &ALL) else { return };
    for family in [0, 1] {
        fork.settled(family, "left");
    }
    let mac =
        |last: u8| fork.left.run(&format!("ip link set eth0 address 02:00:00:00:99:{last:02x}")).map(drop);

    for (round, family) in [0, 1, 0, 1].into_iter().enumerate() {
        fork.follows("silent MAC change", family, "left", || mac(round as u8));
        fork.settled(1 - family, "left");
    }

    // The new MAC is announced: by a gratuitous ARP, an unsolicited neighbour advertisement.
    fork.left.run("sysctl -qw net.ipv4.conf.all.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1").unwrap();
    for (round, family) in [0, 1].into_iter().enumerate() {
        fork.follows("announced MAC change", family, "left", || mac(0x10 + round as u8));
        fork.settled(1 - family, "left");
    }
}

#[test]
fn traffic_follows_routes_of_every_shape() {
    let left = "ip route add 10.9.0.0/24 via 10.2.0.2; ip route add fd09::/64 via fd02::2";
    let Some(fork) = Fork::new(left, &ALL) else { return };
    for family in [0, 1] {
        fork.settled(family, "left");
        let (net, backend, left, right) = (NETS[family], BACKENDS[family], LEFT[family], RIGHT[family]);
        let bits = if family == 0 { 32 } else { 128 };
        let six = if family == 0 { "" } else { "-6" };
        let steps = [
            ("gateway replaced", format!("ip route replace {net} via {right}"), "right"),
            ("more specific route", format!("ip route add {backend}/{bits} via {left}"), "left"),
            ("more specific route gone", format!("ip route del {backend}/{bits}"), "right"),
            (
                "rule",
                format!("ip {six} rule add to {net} lookup 100; ip route add {net} via {left} table 100"),
                "left",
            ),
            ("rule gone", format!("ip {six} rule del to {net} lookup 100"), "right"),
            (
                "next hop object",
                format!(
                    "ip nexthop add id 7 via {left} dev eth1; ip route del {net}; ip route add {net} nhid 7"
                ),
                "left",
            ),
            ("next hop object replaced", format!("ip nexthop replace id 7 via {right} dev eth2"), "right"),
            (
                "one of two paths",
                format!(
                    "ip route del {net}; ip nexthop del id 7
                         ip route add {net} nexthop via {right} nexthop via {left}; ip link set eth2 down"
                ),
                "left",
            ),
        ];
        for (case, command, way) in steps {
            fork.follows(case, family, way, || fork.edge.run(&command).map(drop));
        }
        let restored = format!(
            "ip link set eth2 up; ip addr replace fd03::1/64 dev eth2 nodad; ip route replace {net} via {left}"
        );
        fork.edge.run(&restored).unwrap();
        fork.settled(family, "left");
    }
    fork.follows("IPv4 by an IPv6 gateway", 0, "right", || {
        fork.edge.run("ip route replace 10.9.0.0/24 via inet6 fd03::2").map(drop)
    });
}

#[test]
fn a_gateway_that_does_not_answer_is_told() {
    let Some(fork) = Fork::new(BOTH_WAYS, &ALL) else { return };
    fork.settled(0, "left");

    // Its own end: the edge's link stays up.
    fork.left.run("ip link set eth0 down").unwrap();

    fork.status_says(" on eth1 (ARP, neighbour discovery)");
}
