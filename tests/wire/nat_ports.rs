//! The source ports of `nat` towards a real backend: used again as soon as they may be, and missed aloud.

use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, Rig, greeted};

const VIP: &str = "203.0.113.10";
const PORTS: usize = 16;

/// One backend behind `nat`, with few ports towards it.
fn rig() -> Option<(Rig, SocketAddr)> {
    let vip: IpAddr = VIP.parse().expect("an address");
    let service =
        LoadBalancer { name: "db", vip, protocol: "TCP", port: 5432, target_port: 5432, mode: "nat" };
    let yaml = service.with_backends(&[(Arms::Two.backend(1)[0], 1)]);
    let rig = Rig::with(Arms::Two, &[("services.yaml", yaml)], &["--nat-ports", "62000-62015"])?;
    let vip = SocketAddr::new(vip, 5432);
    assert_eq!(rig.who_answers_tcp(vip, 1)["b1"], 1);
    Some((rig, vip))
}

/// Packets that found no port, as `status` counts them.
fn missed(rig: &Rig) -> u64 {
    let status = rig.agent.cli(&["status", "--format", "json"]).expect("the agent answers");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status["datapath"]["verdicts"]["nat-ports-exhausted"].as_u64().unwrap_or(0)
}

#[test]
fn connections_that_are_closed_take_no_port_from_the_next() {
    let Some((rig, vip)) = rig() else { return };

    rig.client.within(|| {
        for _ in 0..10 * PORTS {
            let (name, flow) = greeted(vip).expect("a connection");
            assert_eq!(name, "b1");
            // The backend's end follows ours, so that both have closed when the next one begins.
            let mut flow = flow.into_inner();
            flow.shutdown(Shutdown::Write).expect("the connection is open");
            assert_eq!(flow.read(&mut [0]).expect("the backend closes"), 0);
        }
    });

    assert_eq!(missed(&rig), 0, "{}", rig.agent.log());
}

#[test]
fn a_flow_that_finds_no_port_is_a_problem_that_names_the_backend() {
    let Some((rig, vip)) = rig() else { return };

    let told = rig.client.within(|| {
        let mut open: Vec<_> = (1..PORTS).map(|_| greeted(vip).expect("a port is free")).collect();
        // One after the other until it is told: that of before the first look at the counters is nobody's.
        eventually(DEADLINE, || {
            open.extend(greeted(vip));
            let status = rig.agent.cli(&["status"]).ok()?;
            status.contains("find no free port of 62000-62015").then_some(status)
        })
    });

    let told = told.unwrap_or_else(|| panic!("status says nothing\n{}", rig.agent.log()));
    let backend = format!("{}:5432", Arms::Two.backend(1)[0]);
    assert!(told.contains(&format!("most of them to {backend}")), "{told}");
    assert!(told.contains("nat ports towards"), "{told}");
    assert!(rig.agent.log().contains("widen --nat-ports"), "{}", rig.agent.log());
    assert!(missed(&rig) > 0);
}
