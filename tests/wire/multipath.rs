//! A route with several gateways: a flow goes on by another one when its own falls silent, and comes back.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lb_tests::agent::DEADLINE;
use lb_tests::netns::Lab;
use penstock::datapath::network::Netlink;

use crate::fork::{BACKENDS, Fork, LEFT, NETS, RIGHT, VIPS, serve};
use crate::rig::lab;

/// Gateways on one link and on another, of which each holds the backends' addresses.
const GATEWAYS: [&str; 3] = ["left", "third", "right"];
/// Address of the third host, on the link of the left one.
const THIRD: [&str; 2] = ["10.2.0.3", "fd02::3"];

fn fork() -> Option<Fork> {
    let lab = lab()?;
    add_third(&lab).expect("a third gateway");
    let routes = [0, 1].map(|family| {
        let (net, left, third, right) = (NETS[family], LEFT[family], THIRD[family], RIGHT[family]);
        // All are known when the agent starts, so that each flow has its own at once.
        let known = [left, third, right].map(|gateway| format!("ping -c 1 -W 5 {gateway}")).join("\n");
        format!("ip route add {net} nexthop via {left} nexthop via {third} nexthop via {right}\n{known}")
    });
    Some(Fork::build(lab, &routes.join("\n"), &["eth0", "eth1", "eth2"]).expect("a fork"))
}

fn add_third(lab: &Lab) -> anyhow::Result<()> {
    let third = lab.host("third", &[("left", &["10.2.0.3/24", "fd02::3/64"])])?;
    third.run("ip route add default via 10.2.0.1; ip -6 route add default via fd02::1")?;
    serve(&third, "third")
}

/// One flow, whose datagrams are sent one by one.
struct Flow(UdpSocket);

impl Flow {
    fn new(fork: &Fork, family: usize) -> Self {
        let vip = SocketAddr::new(VIPS[family].parse().expect("an address"), 5353);
        let any = if family == 0 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = fork.client.within(|| UdpSocket::bind(any)).expect("a socket");
        socket.connect(vip).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        Self(socket)
    }

    /// Who answers the next datagram that is answered and that `suits`, and how long that took.
    fn answered(&self, suits: impl Fn(&str) -> bool) -> Option<(&'static str, Duration)> {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            let _ = self.0.send(b"?");
            let mut buffer = [0; 64];
            let Ok(length) = self.0.recv(&mut buffer) else { continue };
            let said = String::from_utf8_lossy(&buffer[..length]);
            let name = GATEWAYS.into_iter().find(|name| said.starts_with(name)).expect("one of the hosts");
            if suits(name) {
                return Some((name, begun.elapsed()));
            }
        }
        None
    }
}

/// Takes the gateway of a flow off its switch, then the next one's, and puts them back.
fn loses_and_finds(fork: &Fork, family: usize, case: &str) {
    let cable = |host: &str, state: &str| {
        fork.lab.switch().run(&format!("ip link set {host}0 {state}")).expect("a port");
    };
    let flow = Flow::new(fork, family);
    let answered = |what: &str, suits: &dyn Fn(&str) -> bool| {
        let Some((name, took)) = flow.answered(suits) else {
            panic!("{case}, {}: {what}: no answer\n{}", VIPS[family], fork.agent.log());
        };
        println!("{case}, {}: {what}: {name} after {} ms", VIPS[family], took.as_millis());
        name
    };
    let first = answered("all are there", &|_| true);

    cable(first, "down");
    let second = answered("the first fell silent", &|name| name != first);
    fork.status_says("take other next hops of their routes");
    cable(second, "down");
    answered("the second fell silent", &|name| name != first && name != second);

    cable(second, "up");
    answered("the second is back", &|name| name == second);
    cable(first, "up");
    answered("the first is back", &|name| name == first);
}

#[test]
fn a_flow_goes_on_by_another_gateway_of_its_route_when_its_own_falls_silent() {
    let Some(fork) = fork() else { return };
    for family in [0, 1] {
        loses_and_finds(&fork, family, "several gateways");
    }
}

#[test]
fn a_flow_goes_on_by_another_hop_of_a_group() {
    let Some(fork) = fork() else { return };
    for family in [0, 1] {
        let (net, backend) = (NETS[family], BACKENDS[family]);
        let ids = [1, 2, 3].map(|number| 10 * family + number);
        let hops = [(LEFT[family], "eth1"), (THIRD[family], "eth1"), (RIGHT[family], "eth2")];
        for (id, (via, device)) in ids.into_iter().zip(hops) {
            fork.edge.run(&format!("ip nexthop add id {id} via {via} dev {device}")).expect("a next hop");
        }
        let [left, third, right] = ids;
        let group = 10 * family + 9;
        let replace = format!(
            "ip nexthop add id {group} group {left}/{third}/{right}
             ip route del {net}; ip route add {net} nhid {group}"
        );
        fork.edge.run(&replace).expect("a group");
        let known = fork.edge.run(&format!("ip route get {backend}")).expect("a route");

        loses_and_finds(&fork, family, known.trim());
    }
}

#[test]
fn every_interface_of_a_default_route_is_one_of_those_that_are_chosen() {
    let Some(lab) = lab() else { return };
    let edge = lab.host("edge", &[("left", &["10.2.0.1/24"]), ("right", &["10.3.0.1/24"])]).expect("a host");
    edge.run("ip route add default nexthop via 10.2.0.2 nexthop via 10.3.0.2").expect("a route");

    let chosen = edge.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut netlink = Netlink::open().expect("a socket");
            netlink.refresh(|_| true).await.expect("the network");
            netlink.default_interfaces().await.expect("routes")
        })
    });

    assert_eq!(chosen.into_iter().collect::<Vec<_>>(), ["eth0", "eth1"]);
}
