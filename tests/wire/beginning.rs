//! A balancer without pods that begins with fresh tables while pods leave gets the flows of another.

use std::net::SocketAddr;

use lb_tests::agent::{DEADLINE, eventually};
use serde_json::Value;

use crate::nodes::{Backend, Cluster, Flow, TCP, manifests, pod, vip};

/// Nodes, of which the second has no pods.
const NODES: usize = 3;
const WITH_PODS: [usize; 2] = [1, 3];
/// Pods of a node, of which the first leaves.
const PODS: usize = 2;

#[test]
fn live_flows_find_their_pods_by_a_node_that_begins_while_pods_leave() {
    let Some(mut cluster) = Cluster::new(NODES, PODS, &step(0)) else { return };
    let mut flows: Vec<Flow> = (0..90).map(|number| cluster.connect(vip(number % 2, TCP))).collect();
    for leaving in 1..=WITH_PODS.len() {
        cluster.apply(&step(leaving)).unwrap();
        (1..=NODES).for_each(|node| wait_for(&cluster, node, leaving));
    }

    // These began when the first pods took none any more.
    cluster.send_to(2).unwrap();
    flows.extend((0..60).map(|number| cluster.connect(vip(number % 2, TCP))));

    let second = &cluster.nodes[1];
    cluster.lab.kill(second.agent.pid()).unwrap();
    let detached = || second.agent.cli(&["detach"]).ok();
    assert!(eventually(DEADLINE, detached).is_some(), "{}", cluster.logs());
    cluster.start_again(2, &[]).unwrap();
    wait_for(&cluster, 2, WITH_PODS.len());

    let mut broken = Vec::new();
    for flow in &mut flows {
        if flow.echoes("by way of the second").is_err() {
            broken.push(flow.pod.clone());
        }
    }
    assert!(broken.is_empty(), "{} of {}: {broken:?}\n{}", broken.len(), flows.len(), cluster.logs());
}

/// The first pods of so many nodes terminate, and serve.
fn step(leaving: usize) -> String {
    let backends: Vec<Backend> =
        WITH_PODS.into_iter().flat_map(|node| (1..=PODS).map(move |number| pod(node, number))).collect();
    let mut yaml = manifests(NODES, 0, "auto", &backends);
    for (node, addrs) in WITH_PODS.into_iter().take(leaving).map(|node| pod(node, 1)) {
        for addr in addrs {
            let endpoint = format!("- addresses: [\"{addr}\"]\n  nodeName: n{node}\n");
            assert!(yaml.contains(&endpoint), "{yaml}");
            let condition = "  conditions: {ready: false, serving: true, terminating: true}\n";
            yaml = yaml.replace(&endpoint, &format!("{endpoint}{condition}"));
        }
    }
    yaml
}

/// Until a node knows that the first pods of so many nodes leave.
fn wait_for(cluster: &Cluster, node: usize, leaving: usize) {
    let Some((_, addrs)) = leaving.checked_sub(1).map(|last| pod(WITH_PODS[last], 1)) else { return };
    let there = eventually(DEADLINE, || {
        let answer = cluster.nodes[node - 1].agent.ask("/status?format=json").ok()?;
        let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        let drains = |addr| is_draining(&status, &SocketAddr::new(addr, TCP).to_string());
        addrs.into_iter().all(drains).then_some(())
    });
    assert!(there.is_some(), "node {node} does not know that pods of {leaving} leave\n{}", cluster.logs());
}

/// Whether somewhere in `status` a backend of this address drains.
fn is_draining(status: &Value, addr: &str) -> bool {
    match status {
        Value::Object(fields) => {
            let is_it = fields.values().any(|value| value == addr);
            is_it && fields.get("draining") == Some(&Value::Bool(true))
                || fields.values().any(|value| is_draining(value, addr))
        }
        Value::Array(values) => values.iter().any(|value| is_draining(value, addr)),
        _ => false,
    }
}
