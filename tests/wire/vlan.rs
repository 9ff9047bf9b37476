//! Clients and backends behind VLANs that the hosts' own kernels made: one tag and two, in every mode.

use std::net::{IpAddr, SocketAddr};

use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::{Host, Lab};
use lb_tests::tier;

use crate::rig::{answered, greeted, still_echoes};

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const BACKEND: [&str; 2] = ["10.2.0.11", "fd02::11"];

/// Puts addresses of a host behind tags, the outermost first, instead of on `device`; the innermost interface is
/// `device.v`.
fn stack(host: &Host, device: &str, vlans: &[(&str, u16)], addresses: &[&str]) -> anyhow::Result<()> {
    // A tag that stands beside the frame is none that XDP sees, or keeps.
    host.run(&format!("ethtool -K {device} txvlan off tx-vlan-stag-hw-insert off"))?;
    let mut lower = device.to_owned();
    for (number, (protocol, id)) in vlans.iter().enumerate() {
        let last = number + 1 == vlans.len();
        let name = if last { format!("{device}.v") } else { format!("{device}.{id}") };
        host.run(&format!("ip link add link {lower} name {name} up type vlan protocol {protocol} id {id}"))?;
        host.run(&format!("ethtool -K {name} tx off"))?;
        lower = name;
    }
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        host.run(&format!("ip addr add {address} dev {lower} {nodad}"))?;
    }
    Ok(())
}

/// The switch's end of a cable gives tags within frames, too.
fn cable(lab: &Lab, port: &str) -> anyhow::Result<()> {
    let off = format!("ethtool -K {port} txvlan off tx-vlan-stag-hw-insert off");
    lab.switch().run(&off).map(drop)
}

struct Trunk {
    agent: Agent,
    client: Host,
    _lab: Lab,
}

impl Trunk {
    fn build(lab: Lab, mode: &str, front: &[(&str, u16)], back: &[(&str, u16)]) -> anyhow::Result<Self> {
        let client = lab.host("client", &[("front", &[])])?;
        let edge = lab.host("edge", &[("front", &[]), ("back", &[])])?;
        let backend = lab.host("b1", &[("back", &[])])?;
        for port in ["client0", "edge0", "edge1", "b10"] {
            cable(&lab, port)?;
        }
        stack(&client, "eth0", front, &["10.1.0.7/24", "fd01::7/64"])?;
        stack(&edge, "eth0", front, &["10.1.0.1/24", "fd01::1/64"])?;
        stack(&edge, "eth1", back, &["10.2.0.1/24", "fd02::1/64"])?;
        stack(&backend, "eth0", back, &["10.2.0.11/24", "fd02::11/64"])?;
        edge.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        client.run("ip route add 203.0.113.0/24 via 10.1.0.1; ip route add 2001:db8:113::/64 via fd01::1")?;
        backend.run("ip route add default via 10.2.0.1; ip -6 route add default via fd02::1")?;
        let serving = if mode == "l2" { VIPS } else { BACKEND };
        if mode == "l2" {
            backend.run(&format!(
                "ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad",
                VIPS[0], VIPS[1]
            ))?;
        }
        backend.within(|| -> anyhow::Result<()> {
            for addr in serving {
                let addr: IpAddr = addr.parse()?;
                echo::tcp((addr, 5432), "b1")?;
                echo::udp((addr, 5353), "b1")?;
            }
            Ok(())
        })?;
        std::fs::create_dir_all(lab.scratch().join("manifests"))?;
        std::fs::write(lab.scratch().join("manifests/services.yaml"), services(mode))?;
        let agent = Agent::start(&lab, &edge, &["eth0", "eth1"], lab.scratch())?;
        Ok(Self { agent, client, _lab: lab })
    }
}

/// Whether this kernel has VLAN interfaces.
fn possible(lab: &Lab) -> Result<(), String> {
    let made = lab.switch().run("ip link add link lo name probe type vlan id 5; ip link del probe");
    made.map(drop).map_err(|error| format!("{error:#}"))
}

fn services(mode: &str) -> String {
    let mut documents = Vec::new();
    for family in [0, 1] {
        for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
            let name = format!("{}-{family}", protocol.to_lowercase());
            let vip = VIPS[family].parse().expect("an address");
            let service = LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode };
            documents.push(service.with_backends(&[(BACKEND[family].parse().expect("an address"), 1)]));
        }
    }
    documents.join("---\n")
}

/// TCP, in full segments, and UDP of both families through the VIPs.
fn works(case: &str, trunk: &Trunk) {
    let log = || trunk.agent.log();
    trunk.client.within(|| {
        for vip in VIPS {
            let at = |port| SocketAddr::new(vip.parse().expect("an address"), port);
            let flow = eventually(DEADLINE, || greeted(at(5432)).ok());
            let (name, mut flow) = flow.unwrap_or_else(|| panic!("{case}: no way to {vip}\n{}", log()));
            assert_eq!(name, "b1");
            for line in ["short".to_owned(), "x".repeat(100_000)] {
                still_echoes(&mut flow, &line).unwrap_or_else(|error| panic!("{case}: {vip}: {error:#}"));
            }
            assert_eq!(answered(at(5353), DEADLINE).ok().as_deref(), Some("b1"), "{case}: {vip}");
        }
    });
}

#[test]
fn clients_and_backends_may_be_behind_one_tag_and_two() {
    let (one, other) = ([("802.1q", 5)], [("802.1q", 7)]);
    let two = [("802.1ad", 100), ("802.1q", 7)];
    for (case, mode, front, back) in [
        ("nat, one tag on both sides", "nat", &one[..], &other[..]),
        ("nat, two tags behind", "nat", &one, &two),
        ("nat, two tags in front", "nat", &two, &other),
        ("l2, one tag", "l2", &one, &other),
        ("l2, two tags", "l2", &other, &two),
    ] {
        let Some(lab) = crate::rig::lab() else { return };
        if !tier::require_by_name("vlan", || possible(&lab)) {
            return;
        }
        let trunk = Trunk::build(lab, mode, front, back);
        let trunk = trunk.unwrap_or_else(|error| panic!("{case}: build the lab: {error:#}"));

        works(case, &trunk);

        let status = trunk.agent.cli(&["status"]).expect("the agent answers");
        let tags = if back.len() == 2 { " vlan 100 (802.1ad), 7" } else { " vlan 7" };
        assert!(status.contains(tags), "{case}: {status}");
        let metrics = trunk.agent.ask("/metrics").expect("the agent answers");
        let verdict = format!("{{verdict=\"forwarded-{mode}\"}} 0\n");
        assert!(!metrics.contains(&verdict), "{case}: the kernel program forwards");
    }
}
