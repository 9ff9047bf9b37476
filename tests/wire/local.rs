//! Backends on the host that balances: delivered by the host's own stack, answered by the VIP.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::nodes::{CLIENT, Cluster, TCP, UDP, manifests, node_addr, pod, serve, vip};

#[test]
fn pods_of_this_host_see_the_client_and_answer_as_the_vip() {
    let yaml = manifests(1, 0, "local", &[pod(1, 1), pod(1, 2)]);
    let Some(cluster) = Cluster::new(1, 2, &yaml) else { return };

    for family in [0, 1] {
        let client: IpAddr = CLIENT[family].parse().unwrap();
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let mut flow = cluster.connect(vip(family, TCP));
            assert_eq!(flow.seen, flow.reader.get_ref().local_addr().unwrap());
            flow.echoes("hello").unwrap();
            pods.insert(flow.pod);
        }
        assert_eq!(pods.len(), 2, "{pods:?}");
        cluster.connect(vip(family, TCP)).bulk(1 << 20).unwrap();

        let socket = cluster.client.within(|| UdpSocket::bind((client, 0)).unwrap());
        let answer = cluster.ask(&socket, vip(family, UDP));
        assert!(answer.ends_with(&socket.local_addr().unwrap().to_string()), "{answer}");
    }
    assert!(cluster.verdict(1, "forwarded-local") > 0);
}

#[test]
fn filters_with_connection_tracking_and_masquerading_do_not_disturb() {
    let yaml = manifests(1, 0, "local", &[pod(1, 1)]);
    let Some(cluster) = Cluster::new(1, 1, &yaml) else { return };
    cluster.nodes[0]
        .host
        .run(
            "nft -f - <<'END'
table inet filter {
  chain forward { type filter hook forward priority 0; ct state invalid drop; ct state established,related accept; }
}
table inet nat {
  chain postrouting { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }
}
END",
        )
        .unwrap();

    for family in [0, 1] {
        let mut flow = cluster.connect(vip(family, TCP));
        assert_eq!(flow.seen, flow.reader.get_ref().local_addr().unwrap());
        flow.bulk(1 << 20).unwrap();
        let client: IpAddr = CLIENT[family].parse().unwrap();
        let socket = cluster.client.within(|| UdpSocket::bind((client, 0)).unwrap());
        for _ in 0..3 {
            let answer = cluster.ask(&socket, vip(family, UDP));
            assert!(answer.ends_with(&socket.local_addr().unwrap().to_string()), "{answer}");
        }
    }
}

/// Requests and answers of four kilobytes, in fragments both ways.
fn large_datagrams(case: &str, cluster: &Cluster, pod: &str) {
    let datagram: Vec<u8> = (0..4000).map(|byte| (byte % 251) as u8).collect();
    for family in [0, 1] {
        let client: IpAddr = CLIENT[family].parse().unwrap();
        cluster.client.within(|| {
            let socket = UdpSocket::bind((client, 0)).unwrap();
            let answer = crate::nodes::echoed(&socket, vip(family, UDP), &datagram);
            let expected = format!("{pod} {}", socket.local_addr().unwrap());
            assert_eq!(answer, Some(expected), "{case}\n{}", cluster.logs());
        });
    }
}

#[test]
fn answers_larger_than_the_mtu_come_from_the_vip_fragment_by_fragment() {
    let (pod, host) = (pod(1, 1), (1, node_addr(1)));
    let Some(cluster) = Cluster::new(1, 1, &manifests(1, 0, "local", &[pod])) else { return };
    large_datagrams("a pod", &cluster, "p11");

    // With connection tracking the stack puts fragments together and cuts them anew.
    let tracked = "nft add table inet t; nft add chain inet t f '{ type filter hook forward priority 0; }'
                   nft add rule inet t f ct state established accept";
    cluster.nodes[0].host.run(tracked).unwrap();
    large_datagrams("a pod behind connection tracking", &cluster, "p11");

    for addr in node_addr(1) {
        cluster.nodes[0].host.within(|| serve(addr, "host")).unwrap();
    }
    cluster.apply(&manifests(1, 0, "local", &[host])).unwrap();
    // Flows of the pod end with it; new ones find the host.
    let socket = cluster.client.within(|| UdpSocket::bind((CLIENT[0], 0)).unwrap());
    let there = lb_tests::agent::eventually(lb_tests::agent::DEADLINE, || {
        crate::nodes::ask(&socket, vip(0, UDP)).ok().filter(|answer| answer.starts_with("host")).map(drop)
    });
    assert!(there.is_some(), "{}", cluster.logs());
    large_datagrams("a server of the host", &cluster, "host");
}

#[test]
fn a_server_of_the_host_itself_can_be_a_backend() {
    let host = (1, node_addr(1));
    let Some(cluster) = Cluster::new(1, 0, &manifests(1, 0, "local", &[host])) else { return };
    for addr in node_addr(1) {
        cluster.nodes[0].host.within(|| serve(addr, "host")).unwrap();
    }

    for family in [0, 1] {
        let mut flow = cluster.connect(vip(family, TCP));

        assert_eq!(flow.pod, "host");
        assert_eq!(flow.seen, flow.reader.get_ref().local_addr().unwrap());
        flow.bulk(1 << 20).unwrap();
    }
}

#[test]
fn answers_that_leave_by_another_interface_are_translated_there() {
    let yaml = manifests(1, 0, "local", &[pod(1, 1)]);
    let Some(lab) = Cluster::with_interfaces(1, 1, &yaml, &["eth0", "eth2"]) else { return };
    let (cluster, node) = (&lab, &lab.nodes[0].host);
    cluster.lab.plug(node, 2, "side", &["10.3.0.1/24"]).unwrap();
    cluster.lab.plug(&cluster.client, 1, "side", &["10.3.0.7/24"]).unwrap();
    cluster.client.run("ip addr add 10.9.0.7/32 dev lo").unwrap();
    node.run("ip route add 10.9.0.7/32 via 10.3.0.7").unwrap();

    let answered = lb_tests::agent::eventually(lb_tests::agent::DEADLINE, || {
        let socket = cluster.client.within(|| UdpSocket::bind("10.9.0.7:0").unwrap());
        let answer = crate::nodes::ask(&socket, vip(0, UDP)).ok()?;
        Some((answer, socket.local_addr().unwrap()))
    });

    let (answer, from): (String, SocketAddr) = answered.unwrap_or_else(|| panic!("{}", cluster.logs()));
    assert_eq!(answer, format!("p11 {from}"));
}

#[test]
fn a_client_hears_that_nobody_listens_on_the_backend() {
    let Some(cluster) = Cluster::new(1, 1, &manifests(1, 0, "local", &[pod(1, 2)])) else { return };
    // An address of the first pod on which nothing is served.
    let pod = cluster.lab.named("p11");
    pod.run("ip addr add 10.21.0.12/24 dev eth0; ip addr add fd21::12/64 dev eth0 nodad").unwrap();

    for family in [0, 1] {
        let client: IpAddr = CLIENT[family].parse().unwrap();
        let refused = cluster.client.within(|| {
            let socket = UdpSocket::bind((client, 0)).unwrap();
            lb_tests::agent::eventually(lb_tests::agent::DEADLINE, || {
                let error = crate::nodes::ask(&socket, vip(family, UDP)).err()?;
                let error = error.downcast::<std::io::Error>().ok()?;
                (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            })
        });
        assert!(refused.is_some(), "family {family}\n{}", cluster.logs());
    }
}
