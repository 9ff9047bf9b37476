//! What is not ours passes untouched: the node's own services, ping, ARP, and everything once the
//! agent is gone.

use std::net::SocketAddr;

use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, EDGE, Rig, greeted};

fn one_service() -> String {
    let vip = "203.0.113.10".parse().unwrap();
    let service =
        LoadBalancer { name: "db", vip, protocol: "TCP", port: 5432, target_port: 5432, mode: "nat" };
    service.with_backends(&[(Arms::One.backend(1)[0], 1)])
}

/// The client forgets the edge's MAC address, pings it, and logs in to its "SSH".
fn node_is_reachable(rig: &Rig) {
    rig.client.run("ip neigh flush all").unwrap();
    for address in EDGE {
        rig.client.run(&format!("ping -c 1 -W 5 {address}")).unwrap();
        let ssh = SocketAddr::new(address.parse().unwrap(), 22);
        assert_eq!(rig.client.within(|| greeted(ssh)).unwrap().0, "ssh");
    }
}

#[test]
fn the_node_itself_stays_reachable_with_the_agent_and_after_it_stopped() {
    let Some(rig) = Rig::new(Arms::One, &[("db.yaml", one_service())]) else { return };
    rig.edge.within(|| echo::tcp("[::]:22", "ssh").unwrap());

    rig.who_answers_tcp("203.0.113.10:5432".parse().unwrap(), 1);
    node_is_reachable(&rig);

    let status = rig.lab.stop(rig.agent.pid()).unwrap();
    assert!(status.success(), "{status}\n{}", rig.agent.log());
    node_is_reachable(&rig);
}

#[test]
fn an_agent_that_was_killed_leaves_the_node_reachable() {
    let Some(rig) = Rig::new(Arms::One, &[("db.yaml", one_service())]) else { return };
    rig.edge.within(|| echo::tcp("[::]:22", "ssh").unwrap());

    rig.edge.run(&format!("kill -KILL {}", rig.agent.pid())).unwrap();

    node_is_reachable(&rig);
}

#[test]
fn the_nodes_own_connections_to_a_backend_are_left_alone() {
    let Some(rig) = Rig::new(Arms::One, &[("db.yaml", one_service())]) else { return };
    let backend = SocketAddr::new(Arms::One.backend(1)[0], 5432);

    let (name, _) = rig.edge.within(|| greeted(backend)).unwrap();

    assert_eq!(name, "b1");
}
