//! Counters of VIPs and backends go on, whichever agent tells them and whoever left meanwhile.

use std::net::SocketAddr;

use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;
use serde_json::Value;

use crate::rig::{Arms, Rig};

const VIPS: [&str; 2] = ["203.0.113.10:5432", "203.0.113.11:5432"];
const CONNECTIONS: usize = 20;

/// A VIP over these backends.
fn service(vip: &str, backends: &[usize]) -> String {
    let vip: SocketAddr = vip.parse().unwrap();
    let name = format!("echo-{}", vip.ip()).replace('.', "-");
    let service = LoadBalancer {
        name: &name,
        vip: vip.ip(),
        protocol: "TCP",
        port: vip.port(),
        target_port: 5432,
        mode: "nat",
    };
    let backends: Vec<_> = backends.iter().map(|number| (Arms::One.backend(*number)[0], 1)).collect();
    service.with_backends(&backends)
}

fn status(agent: &Agent) -> Value {
    serde_json::from_str(&agent.cli(&["status", "--format", "json"]).unwrap()).unwrap()
}

/// What a VIP and each of its backends got, as packets, bytes and flows.
fn counted(agent: &Agent, vip: &str) -> Option<(Totals, Vec<(String, Totals)>)> {
    let status = status(agent);
    let with = |list: &Value, addr: &str| list.as_array()?.iter().find(|one| one["addr"] == addr).cloned();
    let of_vip = with(&status["datapath"]["vips"], vip)?;
    let pools = status["datapath"]["pools"].as_array()?;
    let pool = pools.iter().find(|pool| pool["pool"] == of_vip["target"])?;
    let backends = pool["backends"].as_array()?.iter();
    let backends = backends.map(|one| Some((one["addr"].as_str()?.to_owned(), totals(one)?)));
    Some((totals(&of_vip)?, backends.collect::<Option<_>>()?))
}

type Totals = [u64; 3];

fn totals(of: &Value) -> Option<Totals> {
    let [packets, bytes, flows] = ["packets", "bytes", "flows"].map(|field| of["totals"][field].as_u64());
    Some([packets?, bytes?, flows?])
}

/// Applies it, and waits until a VIP has so many backends.
fn apply(rig: &Rig, yaml: &str, vip: &str, backends: usize) {
    rig.agent.apply("services.yaml", yaml).unwrap();
    let there = || counted(&rig.agent, vip).filter(|(_, there)| there.len() == backends).map(|_| ());
    assert!(eventually(DEADLINE, there).is_some(), "{}", rig.agent.log());
}

/// Connections to a VIP; what it and its backends got when they are over.
fn connect(rig: &Rig, vip: &str) -> (Totals, Vec<(String, Totals)>) {
    rig.who_answers_tcp(vip.parse().unwrap(), CONNECTIONS);
    let (mut before, mut same) = (None, 0);
    let still = || {
        let now = counted(&rig.agent, vip);
        same = if now == before { same + 1 } else { 0 };
        before = now.clone();
        now.filter(|_| same > 10)
    };
    eventually(DEADLINE, still).unwrap_or_else(|| panic!("packets go on\n{}", rig.agent.log()))
}

/// The next agent on the edge, on the same manifests.
fn next(rig: &mut Rig) {
    let dir = rig.lab.scratch().to_owned();
    rig.agent = Agent::start_with(&rig.lab, &rig.edge, &["eth0"], &dir, &[]).unwrap();
}

fn killed(rig: &mut Rig) {
    rig.lab.kill(rig.agent.pid()).unwrap();
    next(rig);
}

fn told_to_end(rig: &mut Rig) {
    rig.lab.stop(rig.agent.pid()).unwrap();
    next(rig);
}

/// What an agent tells first of a VIP and its backends.
fn told(rig: &Rig, vip: &str) -> (Totals, Vec<(String, Totals)>) {
    let told = eventually(DEADLINE, || counted(&rig.agent, vip));
    told.unwrap_or_else(|| panic!("{vip} is not told of\n{}", rig.agent.log()))
}

fn taken_over(rig: &mut Rig) {
    let before = rig.agent.pid();
    rig.agent = rig.agent.taken_over(&rig.lab).unwrap_or_else(|error| panic!("{error:#}"));
    // Until it is let go it would come back where its successor ends.
    let ended = eventually(DEADLINE, || (!rig.lab.is_running(before)).then_some(()));
    assert!(ended.is_some(), "{}", rig.agent.log());
}

#[test]
fn counters_of_vips_and_backends_go_on_over_restarts_whoever_left_meanwhile() {
    let [first, second] = VIPS;
    let Some(mut rig) = Rig::new(Arms::One, &[("services.yaml", service(first, &[1, 2]))]) else { return };
    let (before, backends) = connect(&rig, first);
    assert!(backends.iter().all(|(_, [packets, ..])| *packets > 0), "{backends:?}");

    apply(&rig, &service(first, &[2]), first, 1);
    let kept = backends[1..].to_vec();
    for restart in [killed, told_to_end, taken_over] {
        assert_eq!(told(&rig, first), (before, kept.clone()));
        restart(&mut rig);
    }
    assert_eq!(told(&rig, first), (before, kept));

    // Whoever comes then has places that others had.
    apply(&rig, &service(second, &[]), second, 0);
    killed(&mut rig);
    apply(&rig, &service(second, &[1, 3]), second, 2);
    assert_eq!(told(&rig, second).0, [0; 3]);
    let (at_second, backends) = connect(&rig, second);
    assert_eq!(backends.iter().map(|(_, [.., flows])| flows).sum::<u64>(), at_second[2]);
    assert!(at_second[2] >= CONNECTIONS as u64, "{at_second:?}");
    for restart in [killed, taken_over] {
        restart(&mut rig);
        assert_eq!(told(&rig, second), (at_second, backends.clone()));
    }
}
