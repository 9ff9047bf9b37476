//! Services of both address families and both protocols, by an address of a pool and by the port of a node, as a client
//! on the wire sees them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use lb_tests::agent::DEADLINE;
use serde_json::Value;

use crate::data_path::{Edge, Flow, TCP, UDP, addr, addr6, shares};

/// Addresses of the agent's node.
const NODE: [&str; 2] = ["10.1.0.1", "fd01::1"];

/// The slices of the Service `db`, one for each family.
fn apply_slices(edge: &Edge, backends: &[usize]) {
    for (family, of) in [("IPv4", addr as fn(usize) -> String), ("IPv6", addr6)] {
        let endpoint = |number: &usize| {
            let node = if *number < 4 { ", nodeName: NAMESPACE-edge" } else { "" };
            format!("- {{addresses: ['{}']{node}, conditions: {{ready: true}}}}\n", of(*number))
        };
        let endpoints: String = backends.iter().map(endpoint).collect();
        edge.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-{}, labels: \
             {{kubernetes.io/service-name: db}}}}\naddressType: {family}\nports:\n- {{name: tcp, port: {TCP}, protocol: \
             TCP}}\n- {{name: udp, port: {UDP}, protocol: UDP}}\nendpoints:\n{endpoints}",
            family.to_lowercase()
        ));
    }
}

fn apply_service(edge: &Edge, kind: &str) {
    edge.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec:\n  type: {kind}\n  ipFamilyPolicy: RequireDualStack\n  \
         ipFamilies: [IPv4, IPv6]\n  ports:\n  - {{name: tcp, port: {TCP}, protocol: TCP}}\n  - {{name: udp, port: {UDP}, protocol: \
         UDP}}\n"
    ));
}

/// A UDP flow, which is one as long as its socket.
struct Datagrams(UdpSocket);

impl Datagrams {
    fn to(service: SocketAddr) -> Result<Self> {
        let own: IpAddr = if service.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((own, 0))?;
        socket.connect(service)?;
        socket.set_read_timeout(Some(DEADLINE / 10))?;
        Ok(Self(socket))
    }

    /// Who answers.
    fn ask(&self) -> Result<String> {
        self.0.send(b"who?")?;
        let mut answer = [0; 64];
        let length = self.0.recv(&mut answer).context("no answer")?;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        let name = text.strip_suffix(" who?").with_context(|| format!("{text:?}"))?;
        Ok(name.to_owned())
    }
}

/// Whom so many new flows of UDP get.
fn asked(service: SocketAddr, flows: usize) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for _ in 0..flows {
        *shares.entry(Datagrams::to(service)?.ask()?).or_default() += 1;
    }
    Ok(shares)
}

/// Where a Service is reached: its ports of TCP and UDP.
type Reached = (IpAddr, u16, u16);

/// Waits until new flows of TCP get these and no others.
fn until_among(edge: &Edge, case: &str, services: &[Reached], names: &[&str]) {
    for (addr, tcp, _) in services {
        edge.until(&format!("{case}: TCP to {addr}"), || {
            shares(SocketAddr::new(*addr, *tcp), 30).ok().filter(|shares| shares.keys().eq(names.iter()))
        });
    }
}

/// The same of UDP, where a flow that is not known may be older than a change: it gets nobody new as long as whoever
/// had it before is there.
fn until_among_by_udp(edge: &Edge, case: &str, services: &[Reached], names: &[&str]) {
    for (addr, _, udp) in services {
        edge.until(&format!("{case}: UDP to {addr}"), || {
            asked(SocketAddr::new(*addr, *udp), 30).ok().filter(|shares| shares.keys().eq(names.iter()))
        });
    }
}

fn get(edge: &Edge) -> Value {
    edge.rig.get("Service", "db").map(|object| object.data).unwrap_or_default()
}

#[test]
fn a_service_of_both_families_is_balanced_by_tcp_and_udp_and_its_flows_outlive_a_change() {
    let Some(edge) = Edge::new() else { return };
    apply_service(&edge, "LoadBalancer");
    apply_slices(&edge, &[1, 2]);
    let vips = edge.until("an address of each family", || {
        let ingress = get(&edge)["status"]["loadBalancer"]["ingress"].clone();
        let addrs = ingress.as_array()?.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok());
        Some(addrs.collect::<Vec<IpAddr>>()).filter(|addrs| addrs.len() == 2)
    });
    assert!(vips[0].is_ipv4() && vips[1].is_ipv6(), "{vips:?}");
    let services: Vec<_> = vips.iter().map(|vip| (*vip, TCP, UDP)).collect();
    until_among(&edge, "two", &services, &["b1", "b2"]);
    until_among_by_udp(&edge, "two", &services, &["b1", "b2"]);
    let (mut flows, datagrams) = edge.client.within(|| {
        let both = || vips.iter().cycle().take(24);
        let flows: Vec<Flow> =
            both().map(|vip| Flow::open(SocketAddr::new(*vip, TCP)).expect("served")).collect();
        let datagrams = both().map(|vip| {
            let flow = Datagrams::to(SocketAddr::new(*vip, UDP)).expect("a socket");
            let name = flow.ask().expect("an answer");
            (flow, name)
        });
        (flows, datagrams.collect::<Vec<_>>())
    });

    apply_slices(&edge, &[1, 2, 3, 4]);
    until_among(&edge, "scaled up", &services, &["b1", "b2", "b3", "b4"]);
    for flow in &mut flows {
        flow.echoes().unwrap_or_else(|error| panic!("{error:#}\n{}", edge.agent.log()));
    }
    for (flow, name) in &datagrams {
        assert_eq!(&flow.ask().expect("an answer"), name, "{}", edge.agent.log());
    }

    apply_slices(&edge, &[3, 4]);
    until_among(&edge, "those are gone", &services, &["b3", "b4"]);
    until_among_by_udp(&edge, "those are gone", &services, &["b3", "b4"]);
    for (flow, _) in &datagrams {
        // A backend that went is forgotten once no packet that is under way can be reading of it.
        edge.until("an old flow of UDP has another backend", || {
            flow.ask().ok().filter(|name| ["b3", "b4"].contains(&name.as_str()))
        });
    }
    assert!(edge.forwarded("forwarded-local") > 0 && edge.forwarded("forwarded-nat") > 0);
}

/// What a node says at the port where balancers in front ask.
fn hop(edge: &Edge, port: u64) -> Option<String> {
    let [four, six] = NODE.map(|addr| {
        let addr = if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() };
        let asked =
            format!("curl -sS --max-time 5 -o /dev/null -w %{{http_code}} http://{addr}:{port}/healthz");
        edge.client.run(&asked).ok()
    });
    four.filter(|four| six.as_ref() == Some(four))
}

#[test]
fn a_balancer_in_front_is_told_at_the_port_of_the_api_server_which_node_has_endpoints() {
    let Some(edge) = Edge::new() else { return };
    edge.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{type: LoadBalancer, externalTrafficPolicy: Local, ports: \
         [{{name: tcp, port: {TCP}}}]}}\n"
    ));
    apply_slices(&edge, &[1]);
    let port = get(&edge)["spec"]["healthCheckNodePort"].as_u64().expect("the API server gives it one");

    edge.until("a pod of this node", || hop(&edge, port).filter(|code| code == "200"));
    apply_slices(&edge, &[4]);
    edge.until("none of this node", || hop(&edge, port).filter(|code| code == "503"));
    edge.rig.kubectl(&["delete", "service", "db"]);
    edge.until("nobody asks any more", || hop(&edge, port).is_none().then_some(()));
}

#[test]
fn the_port_of_a_node_leads_to_the_backends_from_either_family() {
    let Some(edge) = Edge::new() else { return };
    apply_service(&edge, "NodePort");
    apply_slices(&edge, &[1, 4]);
    let spec = get(&edge)["spec"].clone();
    let port = |place: usize| {
        let port = spec["ports"][place]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        port.expect("the API server gives it one")
    };
    let services = NODE.map(|addr| (addr.parse().expect("an address"), port(0), port(1)));

    until_among(&edge, "by the node's address", &services, &["b1", "b4"]);
    until_among_by_udp(&edge, "by the node's address", &services, &["b1", "b4"]);
    assert!(edge.forwarded("forwarded-local") > 0 && edge.forwarded("forwarded-nat") > 0);

    apply_slices(&edge, &[2]);
    until_among(&edge, "another one", &services, &["b2"]);
    until_among_by_udp(&edge, "another one", &services, &["b2"]);
    edge.rig.kubectl(&["delete", "service", "db"]);
    for (addr, tcp, _) in services {
        edge.until("nobody's port any more", || Flow::open(SocketAddr::new(addr, tcp)).err());
    }
}
