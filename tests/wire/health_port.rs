//! `healthCheckNodePort`: a balancer in front asks each node whether it has endpoints of a Service.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_tests::agent::{DEADLINE, eventually};

use crate::nodes::{Cluster, node_addr};

fn yaml(here: &str, ready: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: LoadBalancer, loadBalancerIP: 203.0.113.10, \
         externalTrafficPolicy: Local, healthCheckNodePort: 32100, ports: [{{name: main, port: 5432}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: main, port: 5432}}]\nendpoints:\n\
         - {{addresses: [\"10.21.0.11\"], nodeName: {here}, conditions: {{ready: {ready}}}}}\n"
    )
}

fn status(cluster: &Cluster, node: usize) -> Option<(String, String)> {
    let [v4, v6] = node_addr(node);
    let both = cluster.client.within(|| [v4, v6].map(|addr| ask(SocketAddr::new(addr, 32100)).ok()));
    let [v4, v6] = both;
    (v4 == v6).then_some(())?;
    let answer = v4?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.to_owned(), body.trim().to_owned()))
}

fn ask(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_node_is_a_hop_while_it_has_ready_endpoints_and_its_agent_serves() {
    let Some(cluster) = Cluster::new(2, 1, &yaml("n1", true)) else { return };
    let until = |node: usize, case: &str, code: &str, count: usize| {
        let wanted = |(status, body): &(String, String)| {
            status == code && body.contains(&format!("\"localEndpoints\":{count}"))
        };
        let met = eventually(DEADLINE, || status(&cluster, node).filter(wanted));
        assert!(met.is_some(), "{case}: {:?}\n{}", status(&cluster, node), cluster.logs());
    };

    until(1, "an endpoint here", "200", 1);
    until(2, "none here", "503", 0);
    cluster.apply(&yaml("n2", true)).unwrap();
    until(1, "it moved away", "503", 0);
    until(2, "it moved here", "200", 1);
    cluster.apply(&yaml("n2", false)).unwrap();
    until(2, "it is not ready", "503", 0);
}
