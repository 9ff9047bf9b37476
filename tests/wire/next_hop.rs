//! The network changes and traffic follows: links, neighbours, routes, interfaces.
//!
//! An edge host with two ways, `left` and `right`, to hosts that both hold the backends' addresses:
//! who answers tells which way a packet took.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::{Host, Lab};

use crate::rig::{EDGE, answered, lab};

/// Longest time that a change may take until traffic follows.
const SOON: Duration = Duration::from_secs(1);

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const BACKENDS: [&str; 2] = ["10.9.0.11", "fd09::11"];
const NETS: [&str; 2] = ["10.9.0.0/24", "fd09::/64"];
const LEFT: [&str; 2] = ["10.2.0.2", "fd02::2"];
const RIGHT: [&str; 2] = ["10.3.0.2", "fd03::2"];

struct Fork {
    agent: Agent,
    client: Host,
    edge: Host,
    left: Host,
    lab: Lab,
}

impl Fork {
    /// Everything up; `routes` run on the edge before the agent starts.
    fn new(routes: &str, interfaces: &[&str]) -> Option<Self> {
        let lab = lab()?;
        Some(Self::build(lab, routes, interfaces).unwrap_or_else(|error| panic!("build the fork: {error:#}")))
    }

    fn build(lab: Lab, routes: &str, interfaces: &[&str]) -> Result<Self> {
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        let edge = lab.host(
            "edge",
            &[
                ("front", &["10.1.0.1/24", "fd01::1/64"]),
                ("left", &["10.2.0.1/24", "fd02::1/64"]),
                ("right", &["10.3.0.1/24", "fd03::1/64"]),
            ],
        )?;
        for (vips, via) in [("203.0.113.0/24", EDGE[0]), ("2001:db8:113::/64", EDGE[1])] {
            client.route(vips, via.parse()?)?;
        }
        let left = behind(&lab, "left", "10.2.0", "fd02:")?;
        behind(&lab, "right", "10.3.0", "fd03:")?;
        if !routes.is_empty() {
            edge.run(routes)?;
        }
        let manifests = lab.scratch().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        std::fs::write(manifests.join("dns.yaml"), services())?;
        let agent = Agent::start(&lab, &edge, interfaces, lab.scratch())?;
        Ok(Self { agent, client, edge, left, lab })
    }

    /// Waits until somebody of this name answers through a VIP; gives the time it took.
    fn until(&self, family: usize, name: &str, deadline: Duration) -> Option<Duration> {
        let vip = SocketAddr::new(VIPS[family].parse().expect("an address"), 5353);
        let begun = Instant::now();
        self.client.within(|| {
            while begun.elapsed() < deadline {
                // A fresh flow each time; one that is lost is asked again at once.
                if answered(vip, Duration::from_millis(20)).is_ok_and(|answer| answer == name) {
                    return Some(begun.elapsed());
                }
            }
            None
        })
    }

    /// That traffic flows this way, however long it takes to begin.
    fn settled(&self, family: usize, name: &str) {
        let settled = self.until(family, name, DEADLINE);
        assert!(settled.is_some(), "{name} never answers {}\n{}", VIPS[family], self.agent.log());
    }

    /// That traffic goes to `name` within a second after `change`.
    fn follows(&self, case: &str, family: usize, name: &str, change: impl FnOnce() -> Result<()>) {
        let begun = Instant::now();
        change().unwrap_or_else(|error| panic!("{case}: {error:#}"));
        let made = begun.elapsed();
        let followed = self.until(family, name, DEADLINE);
        let took = made + followed.unwrap_or(DEADLINE);
        println!("{case}, {}: {} ms", VIPS[family], took.as_millis());
        assert!(took < SOON, "{case}: {name} answers {} after {took:?}\n{}", VIPS[family], self.agent.log());
    }

    /// Waits until `status` says this.
    fn status_says(&self, text: &str) {
        let ask = || self.agent.cli(&["status"]).unwrap_or_default();
        let said = eventually(DEADLINE, || ask().contains(text).then_some(()));
        assert!(said.is_some(), "{text:?} is missing in\n{}\n{}", ask(), self.agent.log());
    }
}

/// A host behind the edge that has the backends' addresses.
fn behind(lab: &Lab, name: &'static str, v4: &str, v6: &str) -> Result<Host> {
    let host = lab.host(name, &[(name, &[&format!("{v4}.2/24"), &format!("{v6}:2/64")])])?;
    host.run(&format!("ip route add default via {v4}.1; ip -6 route add default via {v6}:1"))?;
    serve(&host, name)?;
    Ok(host)
}

/// Gives a host the backends' addresses and lets it answer there.
fn serve(host: &Host, name: &'static str) -> Result<()> {
    host.run(&format!(
        "ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad",
        BACKENDS[0], BACKENDS[1]
    ))?;
    host.within(|| {
        for address in BACKENDS {
            echo::udp((address.parse::<IpAddr>()?, 5353), name)?;
        }
        Ok(())
    })
}

fn services() -> String {
    let documents = [0, 1].map(|family| {
        let name = format!("dns-{family}");
        let vip = VIPS[family].parse().expect("an address");
        let service =
            LoadBalancer { name: &name, vip, protocol: "UDP", port: 5353, target_port: 5353, mode: "nat" };
        service.with_backends(&[(BACKENDS[family].parse().expect("an address"), 1)])
    });
    documents.join("---\n")
}

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
