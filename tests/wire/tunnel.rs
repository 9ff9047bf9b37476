//! Backends on other nodes, reached through the tunnel alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use lb_tests::agent::{DEADLINE, eventually};

use crate::nodes::{CLIENT, Cluster, Flow, TCP, UDP, manifests, node_addr, pod, vip};

#[test]
fn pods_of_another_node_see_the_client_and_answer_it_themselves() {
    // Outer headers of either family: each carries packets of both.
    for tunnel in [0, 1] {
        let Some(cluster) = Cluster::new(2, 1, &manifests(2, tunnel, "auto", &[pod(2, 1)])) else { return };

        for family in [0, 1] {
            let mut flow = cluster.connect(vip(family, TCP));
            assert_eq!(flow.pod, "p21");
            assert_eq!(flow.seen, flow.reader.get_ref().local_addr().unwrap());
            // In full segments: the SYN-ACK told what fits.
            flow.bulk(1 << 20).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));

            let client: IpAddr = CLIENT[family].parse().unwrap();
            let socket = cluster.client.within(|| UdpSocket::bind((client, 0)).unwrap());
            let answer = cluster.ask(&socket, vip(family, UDP));
            assert_eq!(answer, format!("p21 {}", socket.local_addr().unwrap()));
        }
        assert!(cluster.verdict(1, "forwarded-tunnel") > 0);
        assert!(cluster.verdict(2, "forwarded-local") > 0);
        assert_eq!(cluster.verdict(1, "forwarded-nat"), 0);
    }
}

/// New flows are translated, because the other node takes in nothing tunnelled any more, but of those who did before.
#[test]
fn flows_go_on_when_a_node_loses_its_tunnel_address() {
    let yaml = manifests(2, 0, "auto", &[pod(2, 1)]);
    let Some(mut cluster) = Cluster::new(2, 1, &yaml) else { return };
    // Nodes have to reach each other's pods for `nat`.
    cluster.nodes[0].host.route("10.22.0.0/24", node_addr(2)[0]).unwrap();
    let client: IpAddr = CLIENT[0].parse().unwrap();
    let mut flow = cluster.connect(vip(0, TCP));
    let socket = cluster.client.within(|| UdpSocket::bind((client, 0)).unwrap());
    let seen = format!("p21 {}", socket.local_addr().unwrap());
    assert_eq!((flow.seen.ip(), cluster.ask(&socket, vip(0, UDP))), (client, seen.clone()));

    let annotation = format!("penstock.dev/tunnel-address: \"{}\"", node_addr(2)[0]);
    cluster.apply(&yaml.replace(&annotation, "example.com/tunnel-address: none")).unwrap();
    let by_nat = || {
        let flow = cluster.client.within(|| Flow::open(vip(0, TCP)).ok())?;
        (flow.seen.ip() == node_addr(1)[0]).then_some(())
    };
    assert!(eventually(DEADLINE, by_nat).is_some(), "{}", cluster.logs());
    let shut = || cluster.nodes[1].agent.ask("/status").is_ok_and(|all| all.contains("nothing is tunnelled"));
    assert!(eventually(DEADLINE, || shut().then_some(())).is_some(), "{}", cluster.logs());

    flow.echoes("still there").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    assert_eq!(cluster.ask(&socket, vip(0, UDP)), seen);

    // So they do when the next agent never knew the peer.
    cluster.lab.kill(cluster.nodes[1].agent.pid()).unwrap();
    cluster.start_again(2, &[]).unwrap();
    flow.echoes("still there").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    assert_eq!(cluster.ask(&socket, vip(0, UDP)), seen);
    assert_eq!(cluster.verdict(2, "tunnel-foreign"), 0);
}

/// The agent of node 2 does not follow: it is known to be unready, and its tables have the first pod alone.
#[test]
fn a_new_pod_behind_a_silent_agent_is_reached_by_nat() {
    let edge = |ready: bool| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: edge, namespace: ingress-nginx}}\nspec: {{ports: [{{name: http, port: \
             80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: edge-1, namespace: ingress-nginx, \
             labels: {{kubernetes.io/service-name: edge}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:\n- \
             {{addresses: [{}], nodeName: n2, conditions: {{ready: {ready}}}}}\n---\n",
            node_addr(2)[0]
        )
    };
    let before = manifests(2, 0, "auto", &[pod(2, 1)]);
    let flags = ["--publish-service=ingress-nginx/edge"];
    let Some(cluster) = Cluster::with_flags(2, 2, &(edge(true) + &before), &flags) else { return };
    cluster.nodes[0].host.route("10.22.0.0/24", node_addr(2)[0]).unwrap();
    let client: IpAddr = CLIENT[0].parse().unwrap();
    let mut flow = cluster.connect(vip(0, TCP));
    assert_eq!((flow.pod.as_str(), flow.seen.ip()), ("p21", client));

    let after = manifests(2, 0, "auto", &[pod(2, 1), pod(2, 2)]);
    cluster.nodes[0].agent.apply("all.yaml", &(edge(false) + &after)).unwrap();
    let new = || cluster.client.within(|| Flow::open(vip(0, TCP)).ok()).filter(|flow| flow.pod == "p22");
    let found = eventually(DEADLINE, new).unwrap_or_else(|| panic!("{}", cluster.logs()));
    assert_eq!(found.seen.ip(), node_addr(1)[0]);
    let old = || cluster.client.within(|| Flow::open(vip(0, TCP)).ok()).filter(|flow| flow.pod == "p21");
    let found = eventually(DEADLINE, old).unwrap_or_else(|| panic!("{}", cluster.logs()));
    assert_eq!(found.seen.ip(), client, "as before, by the tunnel");
    flow.echoes("still there").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    let status = cluster.nodes[0].agent.ask("/status").unwrap();
    assert!(status.contains("its agent is not ready"), "{status}");

    cluster.apply(&(edge(true) + &after)).unwrap();
    let new = || new().filter(|flow| flow.seen.ip() == client).map(drop);
    assert!(eventually(DEADLINE, new).is_some(), "by the tunnel, too\n{}", cluster.logs());
}

#[test]
fn live_flows_outlive_a_rollout_while_the_router_changes_its_mind() {
    let before = [pod(1, 1), pod(2, 1)];
    let Some(cluster) = Cluster::new(3, 1, &manifests(3, 0, "auto", &before)) else { return };
    let mut flows = open(&cluster, 40);
    let mut questions = ask_from_many(&cluster, 40);

    // Scale up: some slots have a new owner, and are contested for minutes.
    let after = [pod(1, 1), pod(2, 1), pod(3, 1)];
    cluster.apply(&manifests(3, 0, "auto", &after)).unwrap();
    wait_for(&cluster, "10.23.0.11");
    flows.extend(open(&cluster, 40));
    questions.extend(ask_from_many(&cluster, 40));
    let pods: BTreeSet<String> = flows.iter().map(|flow| flow.pod.clone()).collect();
    assert_eq!(pods.len(), 3, "{pods:?}");

    // What began at one balancer before or during the rollout goes on by each of the others.
    for node in [2, 3, 1] {
        cluster.send_to(node).unwrap();
        for flow in &mut flows {
            let pod = flow.pod.clone();
            flow.echoes(&format!("by way of {node}")).unwrap_or_else(|error| {
                panic!("a flow of {pod} broke at node {node}: {error:#}\n{}", cluster.logs())
            });
        }
        all_answer(&cluster, &questions, node);
    }
    let passed_on: u64 = (1..=3).map(|node| cluster.verdict(node, "passed-on")).sum();
    assert!(passed_on > 0, "no flow needed its second chance");

    // The first pod goes. Flows of the second, an owner before all this, go on by whatever way; those
    // of the third by the balancer that they began at: where a slot returned to its old owner, no
    // other has heard of them.
    cluster.apply(&manifests(3, 0, "auto", &after[1..])).unwrap();
    let gone = eventually(DEADLINE, || {
        let here = cluster
            .nodes
            .iter()
            .all(|node| node.agent.ask("/metrics").is_ok_and(|all| !all.contains("10.21.0.11")));
        here.then_some(())
    });
    assert!(gone.is_some(), "{}", cluster.logs());
    for node in [2, 3, 1] {
        cluster.send_to(node).unwrap();
        for flow in flows.iter_mut().filter(|flow| flow.pod == "p21" || node == 1 && flow.pod == "p31") {
            let pod = flow.pod.clone();
            flow.echoes(&format!("again by way of {node}")).unwrap_or_else(|error| {
                panic!("a flow of {pod} broke at node {node}: {error:#}\n{}", cluster.logs())
            });
        }
        questions.retain(|(_, _, answer)| answer.starts_with("p21"));
        all_answer(&cluster, &questions, node);
    }
    assert!(questions.len() > 10, "{} of the second pod", questions.len());
}

#[test]
fn a_stranger_gets_nothing_through_the_tunnel() {
    let Some(cluster) = Cluster::new(2, 1, &manifests(2, 0, "auto", &[pod(2, 1)])) else { return };
    cluster.connect(vip(0, TCP));
    let stranger = cluster.lab.host("stranger", &[("front", &["10.1.0.66/24"])]).unwrap();
    let before = cluster.verdict(2, "tunnel-foreign");

    stranger.within(|| {
        let socket = UdpSocket::bind("10.1.0.66:0").unwrap();
        socket.send_to(&[1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x45], "10.1.0.2:7183").unwrap();
    });

    let counted = eventually(DEADLINE, || (cluster.verdict(2, "tunnel-foreign") > before).then_some(()));
    assert!(counted.is_some(), "{}", cluster.logs());
}

/// TCP flows of both families.
fn open(cluster: &Cluster, count: usize) -> Vec<Flow> {
    (0..count).map(|number| cluster.connect(vip(number % 2, TCP))).collect()
}

/// A UDP flow: its socket, its VIP, and what it is answered.
type Question = (UdpSocket, SocketAddr, String);

/// UDP flows of both families.
fn ask_from_many(cluster: &Cluster, count: usize) -> Vec<Question> {
    let ask = |number: usize| {
        let client: IpAddr = CLIENT[number % 2].parse().unwrap();
        let socket = cluster.client.within(|| UdpSocket::bind((client, 0)).unwrap());
        let vip = vip(number % 2, UDP);
        let answer = cluster.ask(&socket, vip);
        (socket, vip, answer)
    };
    (0..count).map(ask).collect()
}

/// Each has the pod that it had.
fn all_answer(cluster: &Cluster, questions: &[Question], node: usize) {
    for (socket, vip, answer) in questions {
        assert_eq!(cluster.ask(socket, *vip), *answer, "by way of {node}\n{}", cluster.logs());
    }
}

/// Until every node has a backend in its tables.
fn wait_for(cluster: &Cluster, backend: &str) {
    for node in &cluster.nodes {
        let there = eventually(DEADLINE, || {
            node.agent.ask("/metrics").is_ok_and(|metrics| metrics.contains(backend)).then_some(())
        });
        assert!(there.is_some(), "node {} does not know {backend}\n{}", node.number, cluster.logs());
    }
}
