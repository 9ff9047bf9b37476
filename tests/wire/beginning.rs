//! A balancer that begins with fresh tables while pods leave or are replaced gets the flows of another.

use std::net::SocketAddr;

use lb_tests::agent::{DEADLINE, eventually};
use serde_json::Value;

use crate::nodes::{Backend, Cluster, Flow, TCP, manifests, pod, vip};

const NODES: usize = 3;
/// Where the second has no pods.
const WITH_PODS: [usize; 2] = [1, 3];
/// Pods of a node, of which the first leaves.
const PODS: usize = 2;

/// The first pods of all nodes are replaced. What a node that begins anew has forgotten of two pods of its own that had a slot, nobody
/// else can tell apart: it has gone to the one that has it now.
#[test]
fn live_flows_find_their_pods_by_a_node_that_begins_while_pods_are_replaced() {
    let all = [1, 2, 3];
    let Some(mut cluster) = Cluster::new(NODES, PODS + 1, &replaced(&all, 0)) else { return };
    let mut older: Vec<Flow> = (0..90).map(|number| cluster.connect(vip(number % 2, TCP))).collect();
    for step in 1..=NODES {
        cluster.apply(&replaced(&all, step)).unwrap();
        (1..=NODES).for_each(|node| wait_for(&cluster, node, step));
    }
    cluster.send_to(2).unwrap();
    let mut younger: Vec<Flow> = (0..60).map(|number| cluster.connect(vip(number % 2, TCP))).collect();

    begin_anew(&mut cluster, 2);
    wait_for(&cluster, 2, NODES);

    let broken = |flows: &mut Vec<Flow>| -> Vec<String> {
        let silent = flows
            .iter_mut()
            .filter_map(|flow| flow.echoes("by the second").is_err().then(|| flow.pod.clone()));
        silent.collect()
    };
    assert_eq!(broken(&mut younger), [""; 0], "{}", cluster.logs());
    let older = broken(&mut older);
    assert!(older.iter().all(|pod| pod.starts_with("p2")), "{older:?}\n{}", cluster.logs());
}

#[test]
fn live_flows_find_their_pods_by_a_node_that_begins_while_pods_leave() {
    let Some(mut cluster) = Cluster::new(NODES, PODS, &step(0)) else { return };
    let mut flows: Vec<Flow> = (0..90).map(|number| cluster.connect(vip(number % 2, TCP))).collect();
    for leaving in 1..=WITH_PODS.len() {
        cluster.apply(&step(leaving)).unwrap();
        (1..=NODES).for_each(|node| wait_for(&cluster, node, WITH_PODS[leaving - 1]));
    }

    // These began when the first pods took none any more.
    cluster.send_to(2).unwrap();
    flows.extend((0..60).map(|number| cluster.connect(vip(number % 2, TCP))));

    begin_anew(&mut cluster, 2);
    wait_for(&cluster, 2, 3);

    let mut broken = Vec::new();
    for flow in &mut flows {
        if flow.echoes("by way of the second").is_err() {
            broken.push(flow.pod.clone());
        }
    }
    assert!(broken.is_empty(), "{} of {}: {broken:?}\n{}", broken.len(), flows.len(), cluster.logs());
}

/// A node loses its tables.
fn begin_anew(cluster: &mut Cluster, node: usize) {
    let agent = &cluster.nodes[node - 1].agent;
    cluster.lab.kill(agent.pid()).unwrap();
    let detached = || agent.cli(&["detach"]).ok();
    assert!(eventually(DEADLINE, detached).is_some(), "{}", cluster.logs());
    cluster.start_again(node, &[]).unwrap();
}

/// The first pods of so many nodes terminate, and serve.
fn step(leaving: usize) -> String {
    terminating(&WITH_PODS, leaving, &pods(&WITH_PODS))
}

/// The same, and each of them has another in its place.
fn replaced(nodes: &[usize], count: usize) -> String {
    let mut all = pods(nodes);
    all.extend(nodes.iter().take(count).map(|node| pod(*node, PODS + 1)));
    terminating(nodes, count, &all)
}

fn pods(nodes: &[usize]) -> Vec<Backend> {
    nodes.iter().flat_map(|node| (1..=PODS).map(|number| pod(*node, number))).collect()
}

fn terminating(nodes: &[usize], count: usize, backends: &[Backend]) -> String {
    let mut yaml = manifests(NODES, 0, "auto", backends);
    for (node, addrs) in nodes.iter().take(count).map(|node| pod(*node, 1)) {
        for addr in addrs {
            let endpoint = format!("- addresses: [\"{addr}\"]\n  nodeName: n{node}\n");
            assert!(yaml.contains(&endpoint), "{yaml}");
            let condition = "  conditions: {ready: false, serving: true, terminating: true}\n";
            yaml = yaml.replace(&endpoint, &format!("{endpoint}{condition}"));
        }
    }
    yaml
}

/// Until a node knows that the first pod of another one leaves.
fn wait_for(cluster: &Cluster, node: usize, leaving: usize) {
    let (_, addrs) = pod(leaving, 1);
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
