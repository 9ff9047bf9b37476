//! What kubectl applies, as a client on the wire sees it: the agent on a host of its own with the kernel part,
//! pods behind it, one backend that is no pod of its node.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::netns::{self, Host, Lab};
use lb_tests::{echo, tier};

use crate::deploy;
use crate::objects;
use crate::relay::Relay;
use crate::rig::Rig;

const HOST: &str = "web.example.com";
const CLIENT: &str = "10.1.0.7";
/// Where the backends serve TCP and HTTP.
pub const TCP: u16 = 5432;
/// Where they serve UDP.
pub const UDP: u16 = 5353;
const HTTP: u16 = 8080;

/// The agent's host between a client and the backends, in both families.
pub struct Edge {
    pub rig: Rig,
    relay: Relay,
    pub agent: Agent,
    pub client: Host,
    _lab: Lab,
}

/// `b1` to `b3` are pods of the agent's node, `b4` is elsewhere.
pub fn addr(number: usize) -> String {
    format!("10.2.0.1{number}")
}

/// The same, of the other family.
pub fn addr6(number: usize) -> String {
    format!("fd02::1{number}")
}

impl Edge {
    /// Everything up, with a pool of addresses and nothing that has one. `None` where that cannot be.
    pub fn new() -> Option<Self> {
        let rig = Rig::new()?;
        if !tier::require("cluster", netns::possible) {
            return None;
        }
        Some(Self::build(rig).unwrap_or_else(|error| panic!("build the edge: {error:#}")))
    }

    fn build(rig: Rig) -> Result<Self> {
        let lab = Lab::new()?;
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        client.route("203.0.113.0/24", "10.1.0.1".parse()?)?;
        client.run("ip -6 route add 2001:db8:113::/64 via fd01::1")?;
        let back: (&str, &[&str]) = ("back", &["10.2.0.1/24", "fd02::1/64"]);
        let host = lab.host("edge", &[("front", &["10.1.0.1/24", "fd01::1/64"]), back])?;
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        for number in 1..=4 {
            let (name, addrs) = (format!("b{number}"), [addr(number), addr6(number)]);
            let [four, six] = [format!("{}/24", addrs[0]), format!("{}/64", addrs[1])];
            let backend = lab.host(&name, &[("back", &[&four, &six])])?;
            backend.route("default", "10.2.0.1".parse()?)?;
            backend.run("ip -6 route add default via fd02::1")?;
            backend.within(|| -> Result<()> {
                for addr in &addrs {
                    echo::tcp((addr.as_str(), TCP), &name)?;
                    echo::udp((addr.as_str(), UDP), &name)?;
                }
                echo::http((addrs[0].as_str(), HTTP), &name)?;
                Ok(())
            })?;
        }
        let relay = Relay::on(&host, &rig);
        rig.apply("apiVersion: v1\nkind: Node\nmetadata: {name: NAMESPACE-edge}\n");
        rig.apply(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: penstock-address-pools}\ndata:\n  edge: \"addresses: \
             ['203.0.113.10-203.0.113.19', '2001:db8:113::10-2001:db8:113::19']\"\n",
        );
        let [namespace, node, publish] =
            ["--watch-namespace=NAMESPACE", "--node-name=NAMESPACE-edge", "--publish-service=NAMESPACE/edge"]
                .map(|flag| flag.replace("NAMESPACE", &rig.namespace));
        let flags = [&namespace, &node, &publish, "--election-ttl=6s", "--status-update-interval=1"];
        let pod = (rig.namespace.as_str(), "edge-1");
        let agent = Agent::in_pod(&lab, &host, &["eth0", "eth1"], pod, relay.kubeconfig(), &flags)?;
        Ok(Self { rig, relay, agent, client, _lab: lab })
    }

    pub fn apply(&self, yaml: &str) {
        let yaml = yaml.replace("NAMESPACE", &self.rig.namespace);
        deploy::kubectl(&self.rig, &["--namespace", &self.rig.namespace, "apply", "--filename", "-"], &yaml);
    }

    /// The slice of the Service `db`: which backends, and whether they terminate.
    fn apply_slice(&self, backends: &[(usize, bool)]) {
        let endpoint = |(number, terminates): &(usize, bool)| {
            let node = if *number < 4 { "  nodeName: NAMESPACE-edge\n" } else { "" };
            let ready = !terminates;
            format!(
                "- addresses: [\"{}\"]\n{node}  conditions: {{ready: {ready}, serving: true, terminating: {terminates}}}\n",
                addr(*number)
            )
        };
        let endpoints: String = backends.iter().map(endpoint).collect();
        self.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-1, labels: \
             {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nports: [{{name: main, port: {TCP}, protocol: \
             TCP}}]\nendpoints:\n{endpoints}"
        ));
    }

    /// The address that kubectl shows for a Service or an Ingress, as soon as there is one.
    fn address(&self, kind: &str, name: &str) -> String {
        let ip = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let shown =
            || Some(self.rig.kubectl(&["get", kind, name, "--output", ip])).filter(|it| !it.is_empty());
        eventually(DEADLINE, shown)
            .unwrap_or_else(|| panic!("{kind} {name} has no address\n{}", self.agent.log()))
    }

    /// Waits for something that a change is to bring about.
    pub fn until<T>(&self, case: &str, ask: impl Fn() -> Option<T> + Send + Sync) -> T
    where
        T: Send,
    {
        let answer = self.client.within(|| eventually(DEADLINE, &ask));
        answer.unwrap_or_else(|| {
            panic!("{case}\n{}\n{}", self.agent.ask("/status").unwrap_or_default(), self.agent.log())
        })
    }

    /// Packets that the kernel part forwarded in this mode.
    pub fn forwarded(&self, verdict: &str) -> u64 {
        let metrics = self.agent.ask("/metrics").unwrap_or_default();
        let label = format!("\"{verdict}\"");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("penstock_datapath_packets_total") && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    /// What curl says of the Ingress' host at an address.
    fn curl(&self, vip: &str) -> Option<String> {
        self.client
            .run(&format!("curl -sS --max-time 5 --connect-to {HOST}::{vip}: http://{HOST}/x"))
            .ok()
            .filter(|answer| answer.contains("backend: "))
    }
}

/// A flow to a backend that has told its name.
pub struct Flow {
    pub backend: String,
    reader: BufReader<TcpStream>,
}

impl Flow {
    /// Opens one from the namespace of this thread.
    pub fn open(to: SocketAddr) -> Result<Self> {
        Self::open_within(to, Duration::from_secs(2))
    }

    /// The same, where some of those that may be asked are gone.
    pub fn open_within(to: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, patience).context("connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut reader = BufReader::new(stream);
        let mut name = String::new();
        reader.read_line(&mut name).context("read the greeting")?;
        Ok(Self { backend: name.trim().to_owned(), reader })
    }

    pub fn echoes(&mut self) -> Result<()> {
        self.reader.get_mut().write_all(b"still here?\n")?;
        let mut back = String::new();
        self.reader.read_line(&mut back)?;
        ensure!(back == "still here?\n", "{back:?} came back from {}", self.backend);
        Ok(())
    }
}

/// Whom so many new flows get.
pub fn shares(to: SocketAddr, flows: usize) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for _ in 0..flows {
        *shares.entry(Flow::open(to)?.backend).or_default() += 1;
    }
    Ok(shares)
}

#[test]
fn a_service_of_kubectl_is_balanced_by_the_kernel_and_its_flows_outlive_changes() {
    let Some(edge) = Edge::new() else { return };
    edge.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{type: LoadBalancer, ports: [{{name: main, port: \
         {TCP}}}]}}\n"
    ));
    edge.apply_slice(&[(1, false), (2, false)]);
    let vip = SocketAddr::new(edge.address("service", "db").parse().unwrap(), TCP);
    let among = |names: &'static [&'static str]| {
        move || shares(vip, 40).ok().filter(|shares| shares.keys().eq(names.iter()))
    };

    edge.until("pods of this node", among(&["b1", "b2"]));
    let mut flows: Vec<Flow> =
        edge.client.within(|| (0..30).map(|_| Flow::open(vip).expect("served")).collect());
    let check = |flows: &mut Vec<Flow>, case: &str| {
        for flow in flows {
            flow.echoes().unwrap_or_else(|error| panic!("{case}: {error:#}\n{}", edge.agent.log()));
        }
    };

    edge.apply_slice(&[(1, false), (2, false), (3, false), (4, false)]);
    edge.until("scaled up", among(&["b1", "b2", "b3", "b4"]));
    check(&mut flows, "after the scale-up");
    flows.extend(
        edge.client.within(|| -> Vec<Flow> { (0..30).map(|_| Flow::open(vip).expect("served")).collect() }),
    );

    edge.apply_slice(&[(1, true), (2, false), (3, false), (4, false)]);
    edge.until("nothing new to one that terminates", among(&["b2", "b3", "b4"]));
    check(&mut flows, "while one terminates");
    edge.apply_slice(&[(2, false), (3, false), (4, false)]);
    edge.until("gone", || {
        let status = edge.agent.ask("/status").ok()?;
        (!status.contains(&format!("{}:{TCP}", addr(1)))).then_some(())
    });
    flows.retain(|flow| flow.backend != "b1");
    check(&mut flows, "after one has gone");
    assert!(flows.len() >= 20, "{}", flows.len());
    assert!(edge.forwarded("forwarded-local") > 0, "to the pods of this node");
    assert!(edge.forwarded("forwarded-nat") > 0, "to the backend elsewhere");

    // Without the API server everything goes on; what it learned meanwhile comes when it is back.
    edge.relay.cut();
    edge.apply_slice(&[(2, false), (4, false)]);
    edge.until("as before", among(&["b2", "b3", "b4"]));
    edge.relay.mend();
    edge.until("with the API server again", among(&["b2", "b4"]));

    edge.rig.kubectl(&["delete", "service", "db"]);
    edge.until("no Service, no address", || Flow::open(vip).err());
}

#[test]
fn an_ingress_of_kubectl_is_served_on_the_address_that_its_status_shows() {
    let Some(edge) = Edge::new() else { return };
    let at = |number: usize| SocketAddr::new(addr(number).parse().unwrap(), HTTP);
    edge.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: edge}\nspec:\n  type: LoadBalancer\n  ports:\n  - {name: http, \
         port: 80, targetPort: http}\n  - {name: https, port: 443, targetPort: https}\n",
    );
    let web =
        [objects::class(), objects::service("web", &[at(1)]), objects::ingress("web", HOST, "web", &[])];
    edge.apply(&web.join("---\n"));
    let vip = edge.address("ingress", "web");
    assert_eq!(vip, edge.address("service", "edge"));

    let answer = edge.until("served on the VIP", || edge.curl(&vip));
    assert!(answer.contains("backend: b1\n") && answer.contains("path: /x\n"), "{answer}");
    assert!(answer.contains(&format!("x-real-ip: {CLIENT}\n")), "the punt keeps who asks: {answer}");
    assert!(edge.forwarded("punted") > 0);

    edge.apply(&objects::slice("web", &[at(2), at(4)]));
    edge.until("others from now on", || edge.curl(&vip).filter(|answer| !answer.contains("b1\n")));
    let answers: Vec<String> = (0..4).filter_map(|_| edge.curl(&vip)).collect();
    for name in ["b2", "b4"] {
        assert!(answers.iter().any(|answer| answer.contains(&format!("backend: {name}\n"))), "{answers:?}");
    }

    edge.rig.kubectl(&["delete", "ingress", "web"]);
    edge.until("nobody's host any more", || edge.curl(&vip).is_none().then_some(()));
}
