//! Hosts that balance a VIP and are its backends, too: `l2` to each other, the VIP on `lo` of both.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use lb_tests::agent::{DEADLINE, eventually};

use crate::nodes::{Cluster, Flow, TCP, VIPS, manifests, node_addr, serve, vip};

/// Frames that two hosts may exchange in a second of their own: neighbours are verified.
const FEW: u64 = 100;

fn both() -> Option<Cluster> {
    let hosts = [1, 2].map(|node| (node, node_addr(node)));
    let cluster = Cluster::new(2, 0, &manifests(2, 0, "l2", &hosts))?;
    for node in &cluster.nodes {
        node.host.run(&format!("ip addr add {}/32 dev lo", VIPS[0])).unwrap();
        node.host.run(&format!("ip addr add {}/128 dev lo nodad", VIPS[1])).unwrap();
        let name = format!("n{}", node.number);
        for addr in VIPS {
            node.host.within(|| serve(addr.parse().unwrap(), &name)).unwrap();
        }
    }
    Some(cluster)
}

/// Frames that the hosts received within a second.
fn frames_in_a_second(cluster: &Cluster) -> u64 {
    let received = || -> u64 {
        let of_host = |host: &lb_tests::netns::Host| -> u64 {
            host.run("cat /sys/class/net/eth0/statistics/rx_packets").unwrap().trim().parse().unwrap()
        };
        cluster.nodes.iter().map(|node| of_host(&node.host)).sum()
    };
    let before = received();
    thread::sleep(Duration::from_secs(1));
    received() - before
}

#[test]
fn hosts_that_are_backends_of_the_vip_that_they_balance_serve_it_together() {
    let Some(cluster) = both() else { return };

    for (number, family) in [(1, 0), (2, 0), (1, 1), (2, 1)] {
        cluster.send_to(number).unwrap();
        drop(cluster.connect(vip(family, TCP)));
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let flows: Vec<Flow> = cluster.client.within(|| {
            let flow = |number| {
                Flow::open(vip(family, TCP)).unwrap_or_else(|error| {
                    panic!("connection {number} to {}: {error:#}\n{}", vip(family, TCP), cluster.logs())
                })
            };
            (0..200).map(flow).collect()
        });
        for mut flow in flows {
            flow.echoes("hello").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
            *seen.entry(flow.pod).or_default() += 1;
        }
        assert!(seen.len() == 2 && seen.values().all(|flows| *flows > 50), "by n{number}: {seen:?}");
    }

    assert!(cluster.verdict(1, "forwarded-here") > 0 && cluster.verdict(1, "forwarded-l2") > 0);
    let status = cluster.nodes[0].agent.ask("/status").unwrap();
    assert!(status.contains("this host's stack, as they came"), "{status}");
    let frames = frames_in_a_second(&cluster);
    assert!(frames < FEW, "{frames} frames a second without a client");
}

/// As for the moment of a change: each takes the other for the only backend.
#[test]
fn nothing_circles_between_hosts_that_take_each_other_for_the_backend() {
    let Some(cluster) = both() else { return };
    for (node, other) in [(0, 2), (1, 1)] {
        let alone = manifests(2, 0, "l2", &[(other, node_addr(other))]);
        cluster.nodes[node].agent.apply("all.yaml", &alone).unwrap();
    }
    let circled = || {
        cluster
            .client
            .within(|| drop(std::net::TcpStream::connect_timeout(&vip(0, TCP), Duration::from_millis(200))));
        (cluster.verdict(1, "would-circle") + cluster.verdict(2, "would-circle") > 0).then_some(())
    };

    assert!(eventually(DEADLINE, circled).is_some(), "{}", cluster.logs());

    let frames = frames_in_a_second(&cluster);
    assert!(frames < FEW, "{frames} frames a second without a client");
}
