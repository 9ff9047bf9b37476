//! An edge host with two ways, `left` and `right`, to hosts that both hold the backends' addresses:
//! who answers tells which way a packet took.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::{Host, Lab};

use crate::rig::{EDGE, answered, lab};

/// Longest time that a change may take until traffic follows.
pub const SOON: Duration = Duration::from_secs(1);

pub const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
pub const BACKENDS: [&str; 2] = ["10.9.0.11", "fd09::11"];
pub const NETS: [&str; 2] = ["10.9.0.0/24", "fd09::/64"];
/// Addresses of the edge towards the left.
pub const EDGE_LEFT: [&str; 2] = ["10.2.0.1/24", "fd02::1/64"];
pub const LEFT: [&str; 2] = ["10.2.0.2", "fd02::2"];
pub const RIGHT: [&str; 2] = ["10.3.0.2", "fd03::2"];

pub struct Fork {
    pub agent: Agent,
    pub client: Host,
    pub edge: Host,
    pub left: Host,
    pub lab: Lab,
}

impl Fork {
    /// Everything up; `routes` run on the edge before the agent starts.
    pub fn new(routes: &str, interfaces: &[&str]) -> Option<Self> {
        let lab = lab()?;
        Some(Self::build(lab, routes, interfaces).unwrap_or_else(|error| panic!("build the fork: {error:#}")))
    }

    pub fn build(lab: Lab, routes: &str, interfaces: &[&str]) -> Result<Self> {
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        let edge = lab.host(
            "edge",
            &[
                ("front", &["10.1.0.1/24", "fd01::1/64"]),
                ("left", &EDGE_LEFT),
                ("right", &["10.3.0.1/24", "fd03::1/64"]),
            ],
        )?;
        for (vips, via) in [("203.0.113.0/24", EDGE[0]), ("2001:db8:113::/64", EDGE[1])] {
            client.route(vips, via.parse()?)?;
        }
        let left = behind(&lab, "left", "10.2.0", "fd02:")?;
        behind(&lab, "right", "10.3.0", "fd03:")?;
        if !routes.is_empty() {
            edge.run(routes)?;
        }
        let manifests = lab.scratch().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        std::fs::write(manifests.join("dns.yaml"), services())?;
        let agent = Agent::start(&lab, &edge, interfaces, lab.scratch())?;
        Ok(Self { agent, client, edge, left, lab })
    }

    /// Waits until somebody of this name answers through a VIP; gives the time it took.
    pub fn until(&self, family: usize, name: &str, deadline: Duration) -> Option<Duration> {
        let vip = SocketAddr::new(VIPS[family].parse().expect("an address"), 5353);
        let begun = Instant::now();
        self.client.within(|| {
            while begun.elapsed() < deadline {
                // A fresh flow each time; one that is lost is asked again at once.
                if answered(vip, Duration::from_millis(20)).is_ok_and(|answer| answer == name) {
                    return Some(begun.elapsed());
                }
            }
            None
        })
    }

    /// That traffic flows this way, however long it takes to begin.
    pub fn settled(&self, family: usize, name: &str) {
        let settled = self.until(family, name, DEADLINE);
        assert!(settled.is_some(), "{name} never answers {}\n{}", VIPS[family], self.agent.log());
    }

    /// That traffic goes to `name` within a second after `change`.
    pub fn follows(&self, case: &str, family: usize, name: &str, change: impl FnOnce() -> Result<()>) {
        let begun = Instant::now();
        change().unwrap_or_else(|error| panic!("{case}: {error:#}"));
        let made = begun.elapsed();
        let followed = self.until(family, name, DEADLINE);
        let took = made + followed.unwrap_or(DEADLINE);
        println!("{case}, {}: {} ms", VIPS[family], took.as_millis());
        assert!(took < SOON, "{case}: {name} answers {} after {took:?}\n{}", VIPS[family], self.agent.log());
    }

    /// Waits until `status` says this.
    pub fn status_says(&self, text: &str) {
        let ask = || self.agent.cli(&["status"]).unwrap_or_default();
        let said = eventually(DEADLINE, || ask().contains(text).then_some(()));
        assert!(said.is_some(), "{text:?} is missing in\n{}\n{}", ask(), self.agent.log());
    }
}

/// A host behind the edge that has the backends' addresses.
pub fn behind(lab: &Lab, name: &'static str, v4: &str, v6: &str) -> Result<Host> {
    let host = lab.host(name, &[(name, &[&format!("{v4}.2/24"), &format!("{v6}:2/64")])])?;
    host.run(&format!("ip route add default via {v4}.1; ip -6 route add default via {v6}:1"))?;
    serve(&host, name)?;
    Ok(host)
}

/// Gives a host the backends' addresses and lets it answer there.
pub fn serve(host: &Host, name: &'static str) -> Result<()> {
    host.run(&format!(
        "ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad",
        BACKENDS[0], BACKENDS[1]
    ))?;
    host.within(|| {
        for address in BACKENDS {
            echo::udp((address.parse::<IpAddr>()?, 5353), name)?;
        }
        Ok(())
    })
}

pub fn services() -> String {
    let documents = [0, 1].map(|family| {
        let name = format!("dns-{family}");
        let vip = VIPS[family].parse().expect("an address");
        let service =
            LoadBalancer { name: &name, vip, protocol: "UDP", port: 5353, target_port: 5353, mode: "nat" };
        service.with_backends(&[(BACKENDS[family].parse().expect("an address"), 1)])
    });
    documents.join("---\n")
}
