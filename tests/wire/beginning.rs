//! A balancer that begins with fresh tables in the middle of a rollout, as on a node that was rebooted, gets the flows of another.

use std::net::IpAddr;

use lb_tests::agent::{DEADLINE, eventually};

use crate::nodes::{Backend, Cluster, Flow, TCP, manifests, pod, vip};

const NODES: usize = 3;
/// Pods that a node has at first, one of which is replaced.
const FIRST: usize = 2;

#[test]
fn live_flows_find_their_pods_by_a_node_that_begins_amid_a_rollout() {
    let Some(mut cluster) = Cluster::new(NODES, FIRST + 1, &step(0)) else { return };
    let mut flows: Vec<Flow> = (0..90).map(|number| cluster.connect(vip(number % 2, TCP))).collect();
    for number in 1..=NODES {
        cluster.apply(&step(number)).unwrap();
        (1..=NODES).for_each(|node| wait_for(&cluster, node, number));
    }

    let second = &cluster.nodes[1];
    cluster.lab.kill(second.agent.pid()).unwrap();
    let detached = || second.agent.cli(&["detach"]).ok();
    assert!(eventually(DEADLINE, detached).is_some(), "{}", cluster.logs());
    cluster.start_again(2, &[]).unwrap();
    wait_for(&cluster, 2, NODES);
    cluster.send_to(2).unwrap();

    let mut broken = Vec::new();
    for flow in &mut flows {
        if flow.echoes("by way of the second").is_err() {
            broken.push(flow.pod.clone());
        }
    }
    assert!(broken.is_empty(), "{} of {}: {broken:?}\n{}", broken.len(), flows.len(), cluster.logs());
}

/// So many nodes have replaced their first pod, which terminates and serves.
fn step(replaced: usize) -> String {
    let first = (1..=NODES).flat_map(|node| (1..=FIRST).map(move |number| pod(node, number)));
    let new = (1..=replaced).map(|node| pod(node, FIRST + 1));
    let backends: Vec<Backend> = first.chain(new).collect();
    let mut yaml = manifests(NODES, 0, "auto", &backends);
    for (node, addrs) in (1..=replaced).map(|node| pod(node, 1)) {
        for addr in addrs {
            let endpoint = endpoint(node, addr);
            assert!(yaml.contains(&endpoint), "{yaml}");
            let condition = "  conditions: {ready: false, serving: true, terminating: true}\n";
            yaml = yaml.replace(&endpoint, &format!("{endpoint}{condition}"));
        }
    }
    yaml
}

fn endpoint(node: usize, addr: IpAddr) -> String {
    format!("- addresses: [\"{addr}\"]\n  nodeName: n{node}\n")
}

/// Until a node has the new pods of so many nodes in its tables.
fn wait_for(cluster: &Cluster, node: usize, replaced: usize) {
    let (_, addrs) = pod(replaced, FIRST + 1);
    let there = eventually(DEADLINE, || {
        let metrics = cluster.nodes[node - 1].agent.ask("/metrics").ok()?;
        addrs.iter().all(|addr| metrics.contains(&addr.to_string())).then_some(())
    });
    assert!(there.is_some(), "node {node} does not know the pods of {replaced}\n{}", cluster.logs());
}
