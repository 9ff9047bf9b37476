//! Two nodes of one cluster on the client's link, each with an agent and a pod: who answers for a VIP, by what kubectl
//! says of the nodes and when one of them is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::netns::{self, Host, Lab};
use lb_tests::{echo, tier};
use serde_json::Value;

use crate::data_path::{Flow, TCP, shares};
use crate::deploy;
use crate::relay::Relay;
use crate::rig::Rig;

const KEY: &str = "00112233445566778899aabbccddeeff";
/// Longest time without traffic when a holder is gone.
const PROMISE: Duration = Duration::from_secs(3);

struct Node {
    name: String,
    host: Host,
    agent: Agent,
    /// Keeps the way to the API server.
    _relay: Relay,
}

struct Nodes {
    rig: Rig,
    nodes: Vec<Node>,
    client: Host,
    lab: Lab,
}

impl Nodes {
    /// `None` where that cannot be.
    fn new() -> Option<Self> {
        let rig = Rig::new()?;
        if !tier::require("cluster", netns::possible) {
            return None;
        }
        Some(Self::build(rig).unwrap_or_else(|error| panic!("build the nodes: {error:#}")))
    }

    fn build(rig: Rig) -> Result<Self> {
        let lab = Lab::new()?;
        let client = lab.host("client", &[("front", &["10.1.0.7/24"])])?;
        client.run("ip route add 203.0.113.0/24 dev eth0")?;
        let numbers = [1, 2];
        for number in numbers {
            rig.apply(&format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: NAMESPACE-n{number}, annotations: \
                 {{penstock.dev/tunnel-address: 10.1.0.{number}}}}}\n"
            ));
        }
        rig.apply(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: penstock-address-pools}\ndata:\n  edge: \"addresses: \
             [203.0.113.10-203.0.113.19]\"\n",
        );
        let mut nodes = Vec::new();
        for number in numbers {
            let (front, pods) = (format!("10.1.0.{number}/24"), format!("10.2{number}.0.1/24"));
            let network = format!("pods{number}");
            let host = lab
                .host(&format!("n{number}"), &[("front", &[front.as_str()]), (&network, &[pods.as_str()])])?;
            host.run("sysctl -qw net.ipv4.ip_forward=1")?;
            let (name, addr) = (format!("p{number}"), format!("10.2{number}.0.11"));
            let pod = lab.host(&name, &[(&network, &[&format!("{addr}/24")])])?;
            pod.route("default", format!("10.2{number}.0.1").parse()?)?;
            pod.within(|| echo::tcp((addr.as_str(), TCP), &name))?;
            let relay = Relay::on(&host, &rig);
            let name = format!("{}-n{number}", rig.namespace);
            let watch = format!("--watch-namespace={}", rig.namespace);
            let node = format!("--node-name={name}");
            let key = format!("--hash-key={KEY}");
            let flags =
                [&watch, &node, &key, "--announce=eth0", "--election-ttl=6s", "--status-update-interval=1"];
            let pod = format!("edge-{number}");
            let pod = (rig.namespace.as_str(), pod.as_str());
            let agent = Agent::in_pod(&lab, &host, &["eth0", "eth1"], pod, relay.kubeconfig(), &flags)?;
            nodes.push(Node { name, host, agent, _relay: relay });
        }
        Ok(Self { rig, nodes, client, lab })
    }

    fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("{}:\n{}\n", node.name, node.agent.log())).collect()
    }

    /// Waits for something that the client or the agents are to see.
    fn until<T: Send>(&self, case: &str, ask: impl Fn() -> Option<T> + Send + Sync) -> T {
        let answer = self.client.within(|| eventually(DEADLINE, &ask));
        answer.unwrap_or_else(|| panic!("{case}\n{}", self.logs()))
    }

    /// Who answers for an address, as this node sees it.
    fn holder(node: &Node, vip: &str) -> Option<String> {
        let answer = node.agent.ask("/status?format=json").ok()?;
        let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        let addresses = status["announced"][0]["addresses"].as_array()?;
        let entry = addresses.iter().find(|entry| entry["address"] == vip)?;
        entry["by"].as_str().filter(|by| !by.is_empty()).map(str::to_owned)
    }

    /// Whether it has heard the other.
    fn knows_both(node: &Node) -> bool {
        let metrics = node.agent.ask("/metrics").unwrap_or_default();
        metrics.lines().any(|line| line.starts_with("penstock_announce_members") && line.ends_with(" 2"))
    }

    /// The place of the node that both take for the holder, if it is not `before`.
    fn agreed(&self, vip: &str, before: Option<usize>) -> Option<usize> {
        if !self.nodes.iter().all(Self::knows_both) {
            return None;
        }
        let said: Vec<_> = self.nodes.iter().map(|node| Self::holder(node, vip)).collect::<Option<_>>()?;
        let place = self.nodes.iter().position(|node| said.iter().all(|by| *by == node.name))?;
        (Some(place) != before).then_some(place)
    }

    /// Whether the client sends to that node's hardware address.
    fn believes(&self, vip: &str, place: usize) -> bool {
        let entry = self.client.run(&format!("ip neigh show {vip} dev eth0")).unwrap_or_default();
        let link = self.nodes[place].host.run("ip -brief link show eth0").unwrap_or_default();
        link.split_whitespace().nth(2).is_some_and(|mac| entry.contains(mac))
    }
}

#[test]
fn a_vip_leaves_a_node_that_will_be_gone_in_time_and_one_that_is_gone_soon_and_flows_go_on() {
    let Some(cluster) = Nodes::new() else { return };
    let node = |place: usize| cluster.nodes[place].name.as_str();
    let endpoints: String = [0, 1]
        .map(|place| format!("- {{addresses: [10.2{}.0.11], nodeName: {}}}\n", place + 1, node(place)))
        .concat();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{type: LoadBalancer, ports: [{{name: main, port: \
         {TCP}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-1, labels: \
         {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nports: [{{name: main, port: {TCP}, protocol: \
         TCP}}]\nendpoints:\n{endpoints}"
    );
    deploy::kubectl(
        &cluster.rig,
        &["--namespace", &cluster.rig.namespace, "apply", "--filename", "-"],
        &service,
    );
    let ip = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    let shown =
        || Some(cluster.rig.kubectl(&["get", "service", "db", "--output", ip])).filter(|ip| !ip.is_empty());
    let addr = eventually(DEADLINE, shown).unwrap_or_else(|| panic!("no address\n{}", cluster.logs()));
    let vip = SocketAddr::new(addr.parse().expect("an address"), TCP);
    cluster.until("both pods", || shares(vip, 20).ok().filter(|shares| shares.keys().eq(&["p1", "p2"])));
    let first = cluster.until("both agree", || cluster.agreed(&addr, None));
    let mut flows: Vec<Flow> =
        cluster.client.within(|| (0..20).map(|_| Flow::open(vip).expect("served")).collect());
    let check = |flows: &mut Vec<Flow>, case: &str| {
        for flow in flows {
            flow.echoes().unwrap_or_else(|error| panic!("{case}: {error:#}\n{}", cluster.logs()));
        }
    };

    // What happens to a node that its group is to lose, while it still forwards.
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    cluster.rig.kubectl(&["taint", "node", node(first), taint]);
    let second = cluster.until("the other takes over", || cluster.agreed(&addr, Some(first)));
    cluster.until("the client knows", || cluster.believes(&addr, second).then_some(()));
    check(&mut flows, "after the VIP has moved");
    cluster.until("both pods by the other", || shares(vip, 20).ok().filter(|shares| shares.len() == 2));

    cluster.rig.kubectl(&["taint", "node", node(first), &format!("{taint}-")]);
    let back = cluster.until("as before", || cluster.agreed(&addr, Some(second)));
    assert_eq!(back, first);
    cluster.until("the client knows again", || cluster.believes(&addr, first).then_some(()));
    check(&mut flows, "after it has come back");

    // The whole host.
    let begun = Instant::now();
    cluster.lab.kill(cluster.nodes[first].agent.pid()).expect("killed");
    cluster.nodes[first].host.run("ip link set eth0 down").expect("down");
    let stays = format!("p{}", second + 1);
    // Half of the new flows are for the pod that has gone with its node, which the API server knows later.
    let patience = Duration::from_millis(200);
    cluster.until("traffic again", || {
        Flow::open_within(vip, patience).ok().filter(|flow| flow.backend == stays)
    });
    let took = begun.elapsed();
    eprintln!("traffic again after {took:?}");
    assert!(took < PROMISE, "{took:?}\n{}", cluster.logs());
    flows.retain(|flow| flow.backend == stays);
    assert!(!flows.is_empty());
    check(&mut flows, "after the holder has gone");
}
