//! Services on addresses that are not of a load balancer: node ports, and `externalIPs` where they are asked for.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_tests::agent::DEADLINE;
use lb_tests::manifests::Slice;

use crate::rig::{Arms, EDGE, Rig, answered, greeted};

const NODE_PORTS: [u16; 2] = [30_432, 30_353];
const EXTERNAL: [&str; 2] = ["203.0.113.77", "2001:db8:113::77"];
const OPEN: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// A Service of each family with TCP 5432 and UDP 5353 on node ports and an external address; and one of a load
/// balancer beside them.
fn services() -> String {
    let mut documents = Vec::new();
    for (family, name) in [(0, "IPv4"), (1, "IPv6")] {
        for (kind, own) in [("NodePort", ""), ("LoadBalancer", "-open")] {
            let service = format!("echo-{}{own}", name.to_lowercase());
            let (addresses, node_ports) = match kind {
                "NodePort" => (
                    format!("externalIPs: [\"{}\"]", EXTERNAL[family]),
                    NODE_PORTS.map(|port| format!(", nodePort: {port}")),
                ),
                _ => (format!("loadBalancerIP: \"{}\"", OPEN[family]), [(); 2].map(|()| String::new())),
            };
            documents.push(format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {service}\nspec:\n  type: {kind}\n  {addresses}\n  \
                 ipFamilies: [{name}]\n  ports:\n  - {{name: tcp, protocol: TCP, port: 5432{}}}\n  \
                 - {{name: udp, protocol: UDP, port: 5353{}}}\n",
                node_ports[0], node_ports[1]
            ));
            for (port_name, protocol, port) in [("tcp", "TCP", 5432), ("udp", "UDP", 5353)] {
                let endpoints: Vec<SocketAddr> =
                    (1..=3).map(|number| SocketAddr::new(Arms::Two.backend(number)[family], port)).collect();
                let name = format!("{service}-{port_name}");
                let slice = Slice {
                    name: &name,
                    service: &service,
                    port_name,
                    protocol,
                    endpoints: &endpoints,
                    weight: 1,
                };
                documents.push(slice.yaml());
            }
        }
    }
    documents.join("---\n")
}

fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse::<IpAddr>().unwrap(), port)
}

#[test]
fn node_ports_and_external_addresses_lead_to_all_backends() {
    let Some(rig) = Rig::with(Arms::Two, &[("services.yaml", services())], &["--external-ips"]) else {
        return;
    };
    for family in [0, 1] {
        let places = [(EDGE[family], NODE_PORTS), (EXTERNAL[family], [5432, 5353])];
        for (addr, [tcp, udp]) in places {
            let tcp = rig.who_answers_tcp(at(addr, tcp), 60);
            let udp = rig.who_answers_udp(at(addr, udp), 60);
            assert_eq!((tcp.len(), udp.len()), (3, 3), "{addr}: {tcp:?}, {udp:?}");
        }
        // A node port is one of the node's addresses, and no other port of the node's is touched.
        rig.client.within(|| assert!(greeted(at(EDGE[family], 5432)).is_err()));
    }
}

#[test]
fn an_external_address_that_nobody_asked_for_is_not_served() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services())]) else { return };
    for family in [0, 1] {
        // Everything else of these Services is.
        rig.who_answers_tcp(at(OPEN[family], 5432), 1);
        rig.who_answers_tcp(at(EDGE[family], NODE_PORTS[0]), 1);

        rig.client.within(|| {
            assert!(greeted(at(EXTERNAL[family], 5432)).is_err());
            assert!(answered(at(EXTERNAL[family], 5353), Duration::from_millis(300)).is_err());
        });
    }
}

#[test]
fn an_address_for_some_sources_answers_nobody_else() {
    // The client's own addresses are in neither range, two more of it are.
    let ranges = "  type: LoadBalancer\n  loadBalancerSourceRanges: [\"10.1.0.128/25\", \"fd01::1:0/112\"]\n";
    let services = services().replace("  type: LoadBalancer\n", ranges);
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services)]) else { return };
    let inside = ["10.1.0.200", "fd01::1:7"];
    rig.client.run(&format!("ip addr add {}/24 dev eth0", inside[0])).unwrap();
    // Deprecated: it is not chosen unless it is asked for.
    rig.client.run(&format!("ip addr add {}/64 dev eth0 nodad preferred_lft 0", inside[1])).unwrap();
    for family in [0, 1] {
        // The node ports of the Service beside it are open, so everything is in force.
        rig.who_answers_tcp(at(EDGE[family], NODE_PORTS[0]), 1);
        let vip = at(OPEN[family], 5353);
        rig.client.within(|| {
            let socket = UdpSocket::bind((inside[family].parse::<IpAddr>().unwrap(), 0)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.connect(vip).unwrap();
            socket.send(b"?").unwrap();
            assert!(socket.recv(&mut [0; 64]).is_ok(), "{vip}: no answer to {}", inside[family]);

            assert!(answered(vip, Duration::from_millis(300)).is_err(), "{vip} answered");
            assert!(greeted(at(OPEN[family], 5432)).is_err(), "{vip} answered");
        });
    }
}
