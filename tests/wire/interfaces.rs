//! Interfaces appear, vanish, come back under another index, change name and address; and routes
//! lead over what is stacked on them.

use lb_tests::agent::{Agent, DEADLINE, binary, eventually};
use lb_tests::netns::{Host, Lab};

use crate::fork::{EDGE_LEFT, Fork, behind, services};
use crate::rig::{EDGE, lab};

/// The routes to the backends.
const LEFT_ONLY: &str = "ip route replace 10.9.0.0/24 via 10.2.0.2; ip route replace fd09::/64 via fd02::2";

/// Client and edge are connected, the backends are not: the edge has one interface.
fn half(interfaces: &[&str], more: &[&str]) -> Option<Fork> {
    let lab = lab()?;
    let build = |lab: Lab| -> anyhow::Result<Fork> {
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        let edge = lab.host("edge", &[("front", &["10.1.0.1/24", "fd01::1/64"])])?;
        for (vips, via) in [("203.0.113.0/24", EDGE[0]), ("2001:db8:113::/64", EDGE[1])] {
            client.route(vips, via.parse()?)?;
        }
        let left = behind(&lab, "left", "10.2.0", "fd02:")?;
        std::fs::create_dir_all(lab.scratch().join("manifests"))?;
        std::fs::write(lab.scratch().join("manifests/dns.yaml"), services())?;
        let agent = Agent::start_with(&lab, &edge, interfaces, lab.scratch(), more)?;
        Ok(Fork { agent, client, edge, left, lab })
    };
    Some(build(lab).unwrap_or_else(|error| panic!("build the lab: {error:#}")))
}

fn plug(lab: &Lab, edge: &Host) -> anyhow::Result<()> {
    lab.plug(edge, 1, "left", &EDGE_LEFT)?;
    edge.run(LEFT_ONLY).map(drop)
}

#[test]
fn an_interface_that_appears_later_is_used_and_again_when_it_comes_back() {
    let Some(fork) = half(&["eth0", "eth1"], &[]) else { return };
    fork.status_says("there is no interface eth1");

    fork.follows("appeared", 0, "left", || plug(&fork.lab, &fork.edge));
    fork.settled(1, "left");
    let status = fork.agent.cli(&["status"]).unwrap();
    assert!(!status.contains("there is no interface"), "{status}");

    fork.edge.run("ip link del eth1").unwrap();
    fork.status_says("there is no interface eth1");
    fork.follows("came back", 0, "left", || plug(&fork.lab, &fork.edge));
    // It has another MAC now, and the gateway would believe in the old one for half a minute.
    fork.left.run("ip -6 neigh flush all").unwrap();
    fork.settled(1, "left");
}

#[test]
fn the_program_follows_the_name_and_a_pattern_covers_what_it_matches() {
    let Some(fork) = half(&["eth*"], &[]) else { return };
    let attached = || {
        let links = fork.edge.run("ip -o link show").unwrap();
        let with = links.lines().filter(|line| line.contains("xdp"));
        let name = |line: &str| line.split([':', '@']).nth(1).unwrap_or_default().trim().to_owned();
        with.map(name).collect::<Vec<String>>()
    };
    let becomes = |names: &[&str]| {
        let same = eventually(DEADLINE, || (attached() == names).then_some(()));
        assert!(same.is_some(), "attached to {:?}, not {names:?}\n{}", attached(), fork.agent.log());
    };
    becomes(&["eth0"]);

    plug(&fork.lab, &fork.edge).unwrap();
    becomes(&["eth0", "eth1"]);
    fork.settled(0, "left");

    fork.edge.run("ip link add link eth1 name eth9 up type macvlan").unwrap();
    fork.edge.run("ip link set eth1 down; ip link set eth1 name wan1; ip link set wan1 up").unwrap();
    becomes(&["eth0"]);

    fork.edge
        .run(
            "ip link set wan1 down; ip link set wan1 name eth7; ip link set eth7 up
              ip route replace 10.9.0.0/24 via 10.2.0.2",
        )
        .unwrap();
    becomes(&["eth0", "eth7"]);
    fork.settled(0, "left");
}

#[test]
fn without_any_interface_it_starts_only_if_told_to_wait() {
    let Some(lab) = lab() else { return };
    let edge = lab.host("edge", &[("front", &["10.1.0.1/24"])]).unwrap();
    let mut command = edge.command(binary().unwrap());
    command.args(["run", "--interface", "eth8,en*", "--manifests"]).arg(lab.scratch());

    let output = command.output().unwrap();

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(67), "{said}");
    assert!(said.contains("interface eth8, en* does not exist; there are: lo, eth0"), "{said}");
    drop(lab);

    let Some(fork) = half(&["eth1"], &["--wait-interfaces"]) else { return };
    fork.status_says("there is no interface eth1");
    plug(&fork.lab, &fork.edge).unwrap();
    let seen = eventually(DEADLINE, || fork.agent.log().contains("xdp program attached").then_some(()));
    assert!(seen.is_some(), "{}", fork.agent.log());
}

#[test]
fn our_own_mac_may_change() {
    let Some(fork) = half(&["eth0", "eth1"], &[]) else { return };
    plug(&fork.lab, &fork.edge).unwrap();
    fork.settled(0, "left");
    // Otherwise the others believe in the old one for their own half minute.
    fork.edge.run("sysctl -qw net.ipv4.conf.all.arp_notify=1").unwrap();

    for (case, device) in [("front", "eth0"), ("back", "eth1")] {
        let change =
            format!("ip link set {device} address 02:00:00:00:77:0{}", device.trim_start_matches("eth"));
        fork.follows(&format!("own MAC, {case}"), 0, "left", || fork.edge.run(&change).map(drop));
    }
}

pub fn ifindex(host: &Host, device: &str) -> String {
    let line = host.run(&format!("ip -o link show {device}")).unwrap();
    line.split(':').next().unwrap_or_default().to_owned()
}

/// Moves the edge's addresses from `eth1` to an interface made by `make`.
fn stacked(make: &str, device: &str) -> String {
    let [v4, v6] = EDGE_LEFT;
    format!(
        "{make}; ip addr flush dev eth1 scope global; ip link set {device} up
         ip addr add {v4} dev {device}; ip addr add {v6} dev {device} nodad; {LEFT_ONLY}"
    )
}

#[test]
fn a_route_over_a_bridge_leaves_by_the_port_where_the_gateway_is() {
    let Some(fork) = half(&["eth0", "eth1"], &[]) else { return };
    let bridge =
        "ip link add br0 address 02:00:00:00:88:01 type bridge mcast_snooping 0; ip link set eth1 master br0";
    fork.lab.plug(&fork.edge, 1, "left", &EDGE_LEFT).unwrap();

    fork.edge.run(&stacked(bridge, "br0")).unwrap();

    for family in [0, 1] {
        fork.settled(family, "left");
    }
    fork.status_says(&format!("interface {}", ifindex(&fork.edge, "eth1")));
    let status = fork.agent.cli(&["status"]).unwrap();
    assert!(!status.contains("interface without our program"), "{status}");

    // The port changes: the gateway is behind another one now.
    let other = "ip link set eth1 nomaster; ip link set eth1 down";
    fork.edge.run(other).unwrap();
    fork.lab.plug(&fork.edge, 2, "left", &[]).unwrap();
    fork.edge.run("ip link set eth2 master br0").unwrap();
    fork.status_says(&format!("interface {}", ifindex(&fork.edge, "eth2")));
}

#[test]
fn a_route_over_what_xdp_cannot_send_by_is_a_problem() {
    let Some(fork) = half(&["eth0", "eth1"], &[]) else { return };
    fork.lab.plug(&fork.edge, 1, "left", &EDGE_LEFT).unwrap();

    fork.edge.run(&stacked("ip link add mac1 link eth1 type macvlan mode bridge", "mac1")).unwrap();

    fork.status_says("mac1 is a macvlan, which XDP cannot send by");
}
