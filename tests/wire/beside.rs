//! Other programs on the way out of our interface: the first that hands no packet on ends their row.

use std::net::UdpSocket;

use aya::programs::LinkOrder;
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::classifier::{Linked, NAME, PASS};

use crate::nodes::{CLIENT, Cluster, TCP, UDP, manifests, pod, vip};

const DEVICE: &str = "eth0";

fn cluster() -> Option<Cluster> {
    Cluster::new(1, 1, &manifests(1, 0, "local", &[pod(1, 1)]))
}

/// Answers come from the VIP.
fn served(cluster: &Cluster) {
    for family in [0, 1] {
        cluster.connect(vip(family, TCP)).bulk(200_000).unwrap();
        let socket = cluster.client.within(|| UdpSocket::bind((CLIENT[family], 0)).unwrap());
        assert!(cluster.ask(&socket, vip(family, UDP)).starts_with("p11 "));
    }
}

/// Puts a program there that lets everything pass.
fn put(cluster: &Cluster, order: LinkOrder) -> Linked {
    cluster.nodes[0].host.within(|| Linked::on(DEVICE, PASS, order)).unwrap()
}

fn told(cluster: &Cluster, wanted: bool) {
    let text = format!("on the way out of {DEVICE} our program is not asked first but after {NAME}");
    let agent = &cluster.nodes[0].agent;
    let status = || agent.cli(&["status"]).unwrap_or_default();
    let said = eventually(DEADLINE, || (status().contains(&text) == wanted).then_some(()));
    assert!(said.is_some(), "wanted {wanted}\n{}\n{}", status(), agent.log());
}

#[test]
fn a_program_that_was_there_and_lets_packets_pass_keeps_no_answer_from_the_client() {
    let Some(mut cluster) = cluster() else { return };
    cluster.lab.stop(cluster.nodes[0].agent.pid()).unwrap();
    cluster.nodes[0].agent.cli(&["detach"]).unwrap();
    let _other = put(&cluster, LinkOrder::last());

    cluster.start_again(1, &[]).unwrap();

    served(&cluster);
    told(&cluster, false);
}

#[test]
fn a_program_that_comes_before_ours_is_told_until_the_next_agent_stands_first() {
    let Some(mut cluster) = cluster() else { return };
    served(&cluster);
    let _behind = put(&cluster, LinkOrder::last());
    served(&cluster);

    let other = put(&cluster, LinkOrder::first());
    told(&cluster, true);

    cluster.lab.stop(cluster.nodes[0].agent.pid()).unwrap();
    cluster.start_again(1, &[]).unwrap();
    served(&cluster);
    told(&cluster, false);

    // It is over, too, when the other one goes.
    let again = put(&cluster, LinkOrder::first());
    told(&cluster, true);
    drop((other, again));
    told(&cluster, false);
    served(&cluster);
}
