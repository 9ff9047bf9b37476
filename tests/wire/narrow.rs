//! Ways that are narrower than what a client sends: it is told the true size, and everything arrives.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;

use anyhow::Result;
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::Host;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::nodes::{self, CLIENT, Cluster, TCP, UDP, manifests, pod, vip};
use crate::rig::{Arms, Rig, greeted, still_echoes};

/// Client behind a router with a narrow link.
const FAR: [&str; 2] = ["10.8.0.7", "fd08::7"];
/// What the narrow link or next hop takes.
const NARROW: u32 = 1400;

/// A client behind a router that takes less towards it, which it does not know.
fn far_client(cluster: &Cluster, node: usize) -> Result<Host> {
    let front: (&str, &[&str]) = ("front", &["10.1.0.50/24", "fd01::50/64"]);
    let router = cluster.lab.host("router", &[front, ("far", &["10.8.0.1/24", "fd08::1/64"])])?;
    let far = cluster.lab.host("far", &[("far", &["10.8.0.7/24", "fd08::7/64"])])?;
    router.run(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip route replace 10.8.0.0/24 dev eth1 mtu {NARROW}; ip -6 route replace fd08::/64 dev eth1 metric 256 mtu {NARROW}
         ip route add 203.0.113.0/24 via 10.1.0.{node}; ip route add 2001:db8:113::/64 via fd01::{node}"
    ))?;
    far.run("ip route add default via 10.8.0.1; ip -6 route add default via fd08::1")?;
    let back = "ip route add 10.8.0.0/24 via 10.1.0.50; ip route add fd08::/64 via fd01::50";
    cluster.nodes[node - 1].host.run(back)?;
    Ok(far)
}

/// The size that a host has learned to send to an address in one piece.
fn path_mtu(host: &Host, to: IpAddr) -> Option<u32> {
    let route = host.run(&format!("ip route get {to}")).ok()?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

/// TCP and UDP on a VIP of each family with backend 1.
fn services(arms: Arms, mode: &str) -> String {
    let mut documents = Vec::new();
    for family in [0, 1] {
        for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
            let name = format!("{}-{family}", protocol.to_lowercase());
            let vip = vip(family, 0).ip();
            let service = LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode };
            documents.push(service.with_backends(&[(arms.backend(1)[family], 1)]));
        }
    }
    documents.join("---\n")
}

/// Unwraps what comes to this host in IP and delivers it to the host's own addresses.
fn unwrap(domain: Domain, proto: i32, vip: IpAddr) -> Result<()> {
    let wrapped = Socket::new(domain, Type::RAW, Some(Protocol::from(proto)))?;
    let inside = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?;
    let to = SockAddr::from(SocketAddr::new(vip, 0));
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = std::io::Read::read(&mut &wrapped, &mut buffer) {
            // IPv4 shows its header, IPv6 does not.
            let head = if vip.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let _ = inside.send_to(&buffer[head..length], &to);
        }
    });
    Ok(())
}

/// Eight kilobytes there and back by TCP and UDP; afterwards the client knows the size.
fn arrives(case: &str, rig: &Rig, family: usize, size: u32) {
    let log = || rig.agent.log();
    rig.client.within(|| {
        let flow = eventually(DEADLINE, || greeted(vip(family, 5432)).ok());
        let (_, mut flow) = flow.unwrap_or_else(|| panic!("{case}: no connection\n{}", log()));
        for _ in 0..5 {
            still_echoes(&mut flow, &"x".repeat(8000)).unwrap_or_else(|error| {
                panic!("{case}, family {family}: {error:#}\n{}", log());
            });
        }
        assert_eq!(path_mtu(&rig.client, vip(family, 0).ip()), Some(size), "{case}\n{}", log());
        let any: IpAddr = CLIENT[family].parse().unwrap();
        let socket = UdpSocket::bind((any, 0)).unwrap();
        let datagram: Vec<u8> = (0..8000).map(|byte| (byte % 251) as u8).collect();
        let answer = nodes::echoed(&socket, vip(family, 5353), &datagram);
        assert_eq!(answer.as_deref(), Some("b1"), "{case}, family {family}\n{}", log());
    });
}

#[test]
fn a_client_learns_what_the_next_hop_of_a_backend_takes() {
    for (mode, overhead) in [("l2", [0, 0]), ("ipip", [20, 40])] {
        let Some(rig) = Rig::new(Arms::One, &[("services.yaml", services(Arms::One, mode))]) else { return };
        let backend = &rig.backends[0];
        backend.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2").unwrap();
        for family in [0, 1] {
            let addr = vip(family, 0).ip();
            let nodad = if addr.is_ipv6() { "nodad" } else { "" };
            backend.run(&format!("ip addr add {addr} dev lo {nodad}")).unwrap();
            backend
                .within(|| -> Result<()> {
                    echo::tcp((addr, 5432), "b1")?;
                    echo::udp((addr, 5353), "b1")?;
                    match family {
                        0 => unwrap(Domain::IPV4, 4, addr),
                        _ => unwrap(Domain::IPV6, 41, addr),
                    }
                })
                .unwrap();
            let to = Arms::One.backend(1)[family];
            rig.edge.run(&format!("ip route add {to} dev eth0 mtu {NARROW}")).unwrap();
            let question = format!(
                "tcp {} > {}",
                SocketAddr::new(CLIENT[family].parse().unwrap(), 9),
                vip(family, 5432)
            );
            let known = eventually(DEADLINE, || {
                let answer = rig.agent.cli(&["explain", "--flow", &question]).ok()?;
                answer.contains(&format!("MTU {NARROW}")).then_some(())
            });
            assert!(known.is_some(), "{mode}: the route is not followed\n{}", rig.agent.log());

            arrives(mode, &rig, family, NARROW - overhead[family]);
        }
    }
}

#[test]
fn a_backend_learns_what_the_link_of_the_clients_takes() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services(Arms::Two, "nat"))]) else { return };
    let wide = 3_000;
    rig.edge.run(&format!("ip link set eth1 mtu {wide}")).unwrap();
    rig.lab.switch().run(&format!("ip link set edge1 mtu {wide}; ip link set b10 mtu {wide}")).unwrap();
    rig.backends[0].run(&format!("ip link set eth0 mtu {wide}")).unwrap();
    let datagram: Vec<u8> = (0..wide - 300).map(|byte| (byte % 251) as u8).collect();
    for family in [0, 1] {
        let any: IpAddr = CLIENT[family].parse().unwrap();
        let answer = rig.client.within(|| {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            nodes::echoed(&socket, vip(family, 5353), &datagram)
        });

        assert_eq!(answer.as_deref(), Some("b1"), "family {family}\n{}", rig.agent.log());
        let edge: IpAddr = ["10.2.0.1", "fd02::1"][family].parse().unwrap();
        assert_eq!(path_mtu(&rig.backends[0], edge), Some(1500), "family {family}");
    }
}

/// Eight kilobytes and more through the tunnel of two nodes; afterwards the client knows the size.
fn tunnelled(case: &str, cluster: &Cluster, size: u32) {
    let datagram: Vec<u8> = (0..8000).map(|byte| (byte % 251) as u8).collect();
    for family in [0, 1] {
        let mut flow = cluster.connect(vip(family, TCP));
        flow.bulk(200_000).unwrap_or_else(|error| panic!("{case}, {family}: {error:#}\n{}", cluster.logs()));
        assert_eq!(path_mtu(&cluster.client, vip(family, 0).ip()), Some(size), "{case}, {family}");
        cluster.client.within(|| {
            let client: IpAddr = CLIENT[family].parse().unwrap();
            let socket = UdpSocket::bind((client, 0)).unwrap();
            let answer = nodes::echoed(&socket, vip(family, UDP), &datagram);
            let expected = format!("p21 {}", socket.local_addr().unwrap());
            assert_eq!(answer, Some(expected), "{case}, {family}\n{}", cluster.logs());
        });
    }
}

#[test]
fn a_client_learns_what_the_next_hop_to_another_node_takes() {
    for (tunnel, overhead) in [(0, 44), (1, 64)] {
        let Some(cluster) = Cluster::new(2, 1, &manifests(2, tunnel, "auto", &[pod(2, 1)])) else { return };
        let to = nodes::node_addr(2)[tunnel];
        cluster.connect(vip(0, TCP));
        cluster.nodes[0].host.run(&format!("ip route add {to} dev eth0 mtu {NARROW}")).unwrap();
        let question = format!("tcp {}:9 > {}", CLIENT[0], vip(0, TCP));
        let known = eventually(DEADLINE, || {
            let answer = cluster.nodes[0].agent.cli(&["explain", "--flow", &question]).ok()?;
            answer.contains(&format!("MTU {NARROW}")).then_some(())
        });
        assert!(known.is_some(), "the route is not followed\n{}", cluster.logs());

        tunnelled("next hop", &cluster, NARROW - overhead);
    }
}

#[test]
fn a_client_learns_what_a_router_between_two_nodes_takes() {
    for (tunnel, overhead) in [(0, 44), (1, 64)] {
        let (near, far) = (nodes::node_addr(2)[tunnel], ["10.5.0.2", "fd05::2"][tunnel]);
        let yaml = manifests(2, tunnel, "auto", &[pod(2, 1)]);
        let yaml = yaml.replace(&format!("\"{near}\""), &format!("\"{far}\""));
        let Some(cluster) = Cluster::with_interfaces(2, 1, &yaml, &["eth0", "eth2"]) else { return };
        let lab = &cluster.lab;
        let front: (&str, &[&str]) = ("front", &["10.1.0.50/24", "fd01::50/64"]);
        let router = lab.host("router", &[front, ("deep", &["10.5.0.1/24", "fd05::1/64"])]).unwrap();
        router
            .run(&format!(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link set eth1 mtu {NARROW}"
            ))
            .unwrap();
        lab.plug(&cluster.nodes[1].host, 2, "deep", &["10.5.0.2/24", "fd05::2/64"]).unwrap();
        let there = "ip route add 10.5.0.0/24 via 10.1.0.50; ip route add fd05::/64 via fd01::50";
        cluster.nodes[0].host.run(there).unwrap();

        tunnelled("router", &cluster, NARROW - overhead);
    }
}

#[test]
fn a_pod_learns_of_a_router_that_its_answers_are_too_large_for() {
    let Some(cluster) = Cluster::new(1, 1, &manifests(1, 0, "local", &[pod(1, 1)])) else { return };
    let far = far_client(&cluster, 1).unwrap();
    for family in [0, 1] {
        let flow = far.within(|| eventually(DEADLINE, || nodes::Flow::open(vip(family, TCP)).ok()));
        let mut flow = flow.unwrap_or_else(|| panic!("no connection\n{}", cluster.logs()));

        flow.bulk(200_000).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));

        let pod = cluster.lab.named("p11");
        assert_eq!(path_mtu(&pod, FAR[family].parse().unwrap()), Some(1400));
    }
    assert!(cluster.verdict(1, "forwarded-icmp") > 0);
}
