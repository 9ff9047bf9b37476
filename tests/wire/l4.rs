//! Services of type LoadBalancer: TCP and UDP, both families, both modes, weights, changes.

use std::net::{IpAddr, SocketAddr};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, Rig, greeted, still_echoes};

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// TCP 5432 and UDP 5353 on a VIP of each family, over the backends with these weights.
fn services(arms: Arms, mode: &str, weights: &[(usize, u16)]) -> String {
    let mut documents = Vec::new();
    for (family, vip) in VIPS.iter().enumerate() {
        let backends: Vec<(IpAddr, u16)> =
            weights.iter().map(|(number, weight)| (arms.backend(*number)[family], *weight)).collect();
        for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
            let name = format!("{}-{family}", protocol.to_lowercase());
            let vip = vip.parse().unwrap();
            let service = LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode };
            documents.push(service.with_backends(&backends));
        }
    }
    documents.join("---\n")
}

fn vip(family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(VIPS[family].parse().unwrap(), port)
}

#[test]
fn nat_spreads_tcp_and_udp_of_both_families_over_all_backends() {
    for arms in [Arms::One, Arms::Two] {
        let even = services(arms, "nat", &[(1, 1), (2, 1), (3, 1)]);
        let Some(rig) = Rig::new(arms, &[("services.yaml", even)]) else { return };

        for family in [0, 1] {
            let tcp = rig.who_answers_tcp(vip(family, 5432), 90);
            let udp = rig.who_answers_udp(vip(family, 5353), 90);

            for shares in [&tcp, &udp] {
                assert_eq!(shares.len(), 3, "{shares:?}");
                assert!(shares.values().all(|share| *share >= 12), "{shares:?}");
            }
        }
    }
}

#[test]
fn l2_delivers_to_backends_that_hold_the_vip_and_answer_the_client_themselves() {
    let even = services(Arms::One, "l2", &[(1, 1), (2, 1), (3, 1)]);
    let Some(rig) = Rig::new(Arms::One, &[("services.yaml", even)]) else { return };
    for (number, backend) in rig.backends.iter().enumerate() {
        backend.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2").unwrap();
        let name = format!("b{}", number + 1);
        for address in VIPS {
            let address: IpAddr = address.parse().unwrap();
            // Otherwise an IPv6 address is tentative for a moment and cannot be bound to.
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            backend.run(&format!("ip addr add {address} dev lo {nodad}")).unwrap();
            backend.within(|| {
                lb_tests::echo::tcp((address, 5432), &name).unwrap();
                lb_tests::echo::udp((address, 5353), &name).unwrap();
            });
        }
    }

    for family in [0, 1] {
        let tcp = rig.who_answers_tcp(vip(family, 5432), 90);
        let udp = rig.who_answers_udp(vip(family, 5353), 90);

        for shares in [&tcp, &udp] {
            assert_eq!(shares.len(), 3, "{shares:?}");
        }
    }
}

#[test]
fn weights_are_shares_and_weight_zero_takes_nothing_new() {
    let weighted = services(Arms::Two, "nat", &[(1, 3), (2, 1), (3, 0)]);
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", weighted)]) else { return };

    let shares = rig.who_answers_tcp(vip(0, 5432), 200);

    assert_eq!(shares.len(), 2, "{shares:?}");
    let heavy = shares["b1"];
    assert!((120..=180).contains(&heavy), "three quarters of 200 are 150: {shares:?}");
}

#[test]
fn a_backend_that_leaves_takes_no_new_flow_and_the_others_keep_theirs() {
    let all = services(Arms::Two, "nat", &[(1, 1), (2, 1), (3, 1)]);
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", all)]) else { return };
    rig.who_answers_tcp(vip(0, 5432), 1);
    let mut flows = rig.client.within(|| (0..60).map(|_| greeted(vip(0, 5432)).unwrap()).collect::<Vec<_>>());

    rig.agent.apply("services.yaml", &services(Arms::Two, "nat", &[(1, 1), (3, 1)])).unwrap();

    let gone =
        eventually(DEADLINE, || (!rig.who_answers_tcp(vip(0, 5432), 40).contains_key("b2")).then_some(()));
    assert!(gone.is_some(), "b2 still takes new connections");
    for (name, flow) in flows.iter_mut().filter(|(name, _)| name != "b2") {
        still_echoes(flow, "still here?").unwrap_or_else(|error| panic!("a flow of {name} broke: {error:#}"));
    }
}

#[test]
fn a_terminating_endpoint_takes_no_new_flow_and_keeps_its_own() {
    let all = services(Arms::Two, "nat", &[(1, 1), (2, 1), (3, 1)]);
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", all.clone())]) else { return };
    rig.who_answers_tcp(vip(0, 5432), 1);
    let mut flows = rig.client.within(|| (0..60).map(|_| greeted(vip(0, 5432)).unwrap()).collect::<Vec<_>>());

    let addr = format!("- addresses: [\"{}\"]\n", Arms::Two.backend(2)[0]);
    let terminating = format!("{addr}  conditions: {{ready: false, serving: false, terminating: true}}\n");
    rig.agent.apply("services.yaml", &all.replace(&addr, &terminating)).unwrap();

    let gone =
        eventually(DEADLINE, || (!rig.who_answers_tcp(vip(0, 5432), 40).contains_key("b2")).then_some(()));
    assert!(gone.is_some(), "b2 still takes new connections");
    assert!(flows.iter().any(|(name, _)| name == "b2"));
    for (name, flow) in &mut flows {
        still_echoes(flow, "still here?").unwrap_or_else(|error| panic!("a flow of {name} broke: {error:#}"));
    }
}

#[test]
fn explain_names_the_backend_that_a_live_flow_really_has() {
    let all = services(Arms::Two, "nat", &[(1, 1), (2, 1), (3, 1)]);
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", all)]) else { return };
    for family in [0, 1] {
        rig.who_answers_tcp(vip(family, 5432), 1);
        for _ in 0..20 {
            let (name, flow) = rig.client.within(|| greeted(vip(family, 5432)).unwrap());
            let src = flow.get_ref().local_addr().unwrap();
            let question = format!("tcp {src} > {}", vip(family, 5432));

            let answer = rig.agent.cli(&["explain", "--flow", &question]).unwrap();

            let number: usize = name.trim_start_matches('b').parse().unwrap();
            let backend = Arms::Two.backend(number)[family].to_string();
            let verdict = answer.lines().last().unwrap_or_default();
            assert!(verdict.contains(&backend), "{name} answered, but explain says\n{answer}");
        }
    }
}
