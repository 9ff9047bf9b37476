//! Flows stay although what the balancer knows of their backends changes: the way there, the mode.

use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, TcpStream};

use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, Rig, greeted, still_echoes};

const VIP: &str = "203.0.113.10";
const PORT: u16 = 5432;

/// The Service in a mode, over all three backends.
fn service(mode: &str) -> String {
    let backends: Vec<(IpAddr, u16)> = (1..=3).map(|number| (Arms::Two.backend(number)[0], 1)).collect();
    let vip = VIP.parse().unwrap();
    let service = LoadBalancer { name: "db", vip, protocol: "TCP", port: PORT, target_port: PORT, mode };
    service.with_backends(&backends)
}

fn at() -> SocketAddr {
    SocketAddr::new(VIP.parse().unwrap(), PORT)
}

/// The rig with backends that hold the VIP, too, for the modes that want it.
fn rig(mode: &str) -> Option<Rig> {
    let rig = Rig::new(Arms::Two, &[("db.yaml", service(mode))])?;
    for (number, backend) in rig.backends.iter().enumerate() {
        backend.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2").unwrap();
        backend.run(&format!("ip addr add {VIP} dev lo; ip route add 10.1.0.0/24 via 10.2.0.1")).unwrap();
        backend.within(|| echo::tcp(at(), &format!("b{}", number + 1)).unwrap());
    }
    // Answers of the modes that leave the client's address alone pass through the edge's stack.
    rig.edge.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0").unwrap();
    rig.who_answers_tcp(at(), 1);
    Some(rig)
}

type Flows = Vec<(String, BufReader<TcpStream>)>;

fn flows(rig: &Rig) -> Flows {
    rig.client.within(|| (0..30).map(|_| greeted(at()).unwrap()).collect())
}

fn all_echo(flows: &mut Flows, when: &str) {
    for (name, flow) in flows {
        still_echoes(flow, when).unwrap_or_else(|error| panic!("{when}: a flow of {name} broke: {error:#}"));
    }
}

fn status_says(agent: &Agent, text: &str, whether: bool) {
    let ask = || agent.cli(&["status"]).unwrap_or_default();
    let said = eventually(DEADLINE, || (ask().contains(text) == whether).then_some(()));
    assert!(said.is_some(), "{text:?}, {whether}, in\n{}\n{}", ask(), agent.log());
}

const ROUTE: &str = "ip route add 10.2.0.0/24 dev eth1 src 10.2.0.1";

#[test]
fn flows_outlive_the_loss_of_their_route_and_a_restart_meanwhile() {
    for mode in ["nat", "l2"] {
        let Some(mut rig) = rig(mode) else { return };
        let mut flows = flows(&rig);

        rig.edge.run("ip route del 10.2.0.0/24").unwrap();
        status_says(&rig.agent, "no route", true);
        rig.edge.run(ROUTE).unwrap();
        status_says(&rig.agent, "no route", false);
        all_echo(&mut flows, "with the route back");

        rig.edge.run("ip route del 10.2.0.0/24").unwrap();
        status_says(&rig.agent, "no route", true);
        rig.lab.kill(rig.agent.pid()).unwrap();
        let dir = rig.lab.scratch().to_owned();
        rig.agent = Agent::start_with(&rig.lab, &rig.edge, &["eth0", "eth1"], &dir, &[]).unwrap();
        status_says(&rig.agent, "no route", true);
        rig.edge.run(ROUTE).unwrap();
        status_says(&rig.agent, "no route", false);
        all_echo(&mut flows, "after a restart without the route");
    }
}

#[test]
fn flows_go_on_in_the_mode_that_they_began_in() {
    let Some(rig) = rig("nat") else { return };
    let mut all = flows(&rig);
    for mode in ["l2", "nat", "l2"] {
        rig.agent.apply("db.yaml", &service(mode)).unwrap();
        let explained = || {
            let flow = format!("tcp 10.1.0.7:1 > {VIP}:{PORT}");
            let text = rig.agent.cli(&["explain", "--flow", &flow]).unwrap_or_default();
            text.contains(&format!("mode {mode}, 3 backends")).then_some(())
        };
        assert!(eventually(DEADLINE, explained).is_some(), "{mode} is not in force\n{}", rig.agent.log());
        all_echo(&mut all, mode);
        all.extend(flows(&rig));
        all_echo(&mut all, mode);
    }
}
