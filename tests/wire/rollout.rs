//! Rolling replacement of all ten backends in ten steps, under a thousand live TCP flows and a thousand UDP
//! flows, with a flow table of 1,024 entries: no flow breaks whose backend lives.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::{Host, Lab};

const VIP: &str = "203.0.113.10";
const TCP: u16 = 5432;
const UDP: u16 = 5353;
const BACKENDS: usize = 10;
const FLOWS: usize = 1000;
/// Longer than a round through all flows takes on a busy machine: a flow that is silent for longer
/// may break.
const GRACE: &str = "8";

struct World {
    client: Host,
    agent: Agent,
    mode: &'static str,
    conservative: bool,
    lab: Lab,
}

fn addr(number: usize) -> IpAddr {
    IpAddr::from([10, 1, 0, 100 + number as u8])
}

impl World {
    fn new(mode: &'static str, conservative: bool) -> Option<Self> {
        let lab = crate::rig::lab()?;
        Some(Self::build(lab, mode, conservative).unwrap_or_else(|error| panic!("build: {error:#}")))
    }

    fn build(lab: Lab, mode: &'static str, conservative: bool) -> Result<Self> {
        let client = lab.host("client", &[("front", &["10.1.0.7/24"])])?;
        let edge = lab.host("edge", &[("front", &["10.1.0.1/24"])])?;
        client.route("203.0.113.0/24", "10.1.0.1".parse()?)?;
        for number in 0..2 * BACKENDS {
            let name = format!("b{number}");
            let host = lab.host(&name, &[("front", &[&format!("{}/24", addr(number))])])?;
            host.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")?;
            host.run(&format!("ip addr add {VIP}/32 dev lo"))?;
            let own: IpAddr = if mode == "l2" { VIP.parse()? } else { addr(number) };
            host.within(|| -> Result<()> {
                echo::tcp((own, TCP), &name)?;
                echo::udp((own, UDP), &name)?;
                Ok(())
            })?;
        }
        let dir = lab.scratch().to_owned();
        std::fs::create_dir_all(dir.join("manifests"))?;
        let first: Vec<(usize, bool)> = (0..BACKENDS).map(|number| (number, false)).collect();
        std::fs::write(dir.join("manifests/all.yaml"), yaml(mode, conservative, &first))?;
        // Where every flow is remembered, every flow needs a place.
        let entries = if conservative { "16384" } else { "1024" };
        let more = ["--flow-entries", entries, "--grace-seconds", GRACE];
        let agent = Agent::start_with(&lab, &edge, &["eth0"], &dir, &more)?;
        Ok(Self { client, agent, mode, conservative, lab })
    }

    /// Puts backends in force: which, and whether they terminate.
    fn apply(&self, backends: &[(usize, bool)], added: Option<usize>, removed: Option<usize>) -> Result<()> {
        self.agent.apply("all.yaml", &yaml(self.mode, self.conservative, backends))?;
        let in_force = || {
            let status = self.agent.cli(&["status"]).ok()?;
            // Not what is told of flows that still run below.
            let backends = status.split("\nverdicts").next().unwrap_or_default();
            let names = |number: usize| backends.contains(&format!("{}:{TCP}", addr(number)));
            (added.is_none_or(names) && !removed.is_some_and(names)).then_some(())
        };
        eventually(DEADLINE, in_force).context("the change did not take effect")
    }
}

/// Both Services over these backends; `true`: it terminates.
fn yaml(mode: &str, conservative: bool, backends: &[(usize, bool)]) -> String {
    let vip = VIP.parse().expect("an address");
    let shares: Vec<(IpAddr, u16)> = backends.iter().map(|(number, _)| (addr(*number), 1)).collect();
    let mut documents = Vec::new();
    for (name, protocol, port) in [("tcp", "TCP", TCP), ("udp", "UDP", UDP)] {
        let service = LoadBalancer { name, vip, protocol, port, target_port: port, mode };
        documents.push(service.with_backends(&shares));
    }
    let mut yaml = documents.join("---\n");
    for (number, terminating) in backends {
        if *terminating {
            let endpoint = format!("- addresses: [\"{}\"]\n", addr(*number));
            let condition = "  conditions: {ready: false, serving: true, terminating: true}\n";
            yaml = yaml.replace(&endpoint, &format!("{endpoint}{condition}"));
        }
    }
    if conservative {
        let mode = format!("penstock.dev/forwarding-mode: {mode}");
        assert!(yaml.contains(&mode), "{yaml}");
        yaml = yaml.replace(&mode, &format!("{mode}\n    penstock.dev/flow-memory: conservative"));
    }
    yaml
}

enum Flow {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Flow {
    fn tcp() -> Result<(String, Self)> {
        let address = SocketAddr::new(VIP.parse()?, TCP);
        let stream = TcpStream::connect_timeout(&address, DEADLINE).context("connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut name = String::new();
        reader.read_line(&mut name).context("read the greeting")?;
        Ok((name.trim().to_owned(), Self::Tcp(reader)))
    }

    fn udp() -> Result<(String, Self)> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SocketAddr::new(VIP.parse()?, UDP))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let mut flow = Self::Udp(socket);
        Ok((flow.asks()?.unwrap_or_default(), flow))
    }

    /// Sends and receives; a UDP backend says its name, a TCP backend has to know the connection.
    fn asks(&mut self) -> Result<Option<String>> {
        match self {
            Self::Tcp(stream) => crate::rig::still_echoes(stream, "still here?").map(|()| None),
            Self::Udp(socket) => {
                socket.send(b"?")?;
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer)?;
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                Ok(Some(text.trim_end_matches(" ?").to_owned()))
            }
        }
    }
}

/// Every flow whose backend lives sends and is answered by that backend.
fn round(flows: &mut BTreeMap<usize, (String, Flow)>, living: &[(usize, bool)]) -> Result<Duration> {
    let begun = Instant::now();
    let names: Vec<String> = living.iter().map(|(number, _)| format!("b{number}")).collect();
    flows.retain(|_, (name, _)| names.contains(name));
    for (number, (name, flow)) in flows {
        let answer = flow.asks().with_context(|| format!("flow {number} of {name}, which lives"))?;
        if answer.as_ref().is_some_and(|answer| answer != name) {
            bail!("flow {number} of {name}, which lives, went to {answer:?}");
        }
    }
    Ok(begun.elapsed())
}

fn replace_all_ten(mode: &'static str, conservative: bool) {
    let Some(world) = World::new(mode, conservative) else { return };
    let ready = || world.client.within(|| Flow::tcp().and_then(|_| Flow::udp()).ok());
    assert!(eventually(DEADLINE, ready).is_some(), "not served\n{}", world.agent.log());
    let outcome = world.client.within(|| -> Result<()> {
        let mut flows = BTreeMap::new();
        for number in 0..FLOWS {
            flows.insert(2 * number, Flow::tcp()?);
            flows.insert(2 * number + 1, Flow::udp()?);
        }
        let mut backends: Vec<(usize, bool)> = (0..BACKENDS).map(|number| (number, false)).collect();
        for step in 0..BACKENDS {
            backends.push((BACKENDS + step, false));
            if let Some((_, terminating)) = backends.first_mut() {
                *terminating = true;
            }
            world.apply(&backends, Some(BACKENDS + step), None)?;
            round(&mut flows, &backends).with_context(|| format!("step {step}, b{step} terminates"))?;
            // Flows that begin during the change, and must not begin at what terminates.
            for number in 0..20 {
                let (name, flow) = Flow::tcp()?;
                if name == format!("b{step}") {
                    bail!("step {step}: a new flow went to b{step}, which terminates");
                }
                flows.insert(10_000 + 20 * step + number, (name, flow));
            }
            backends.remove(0);
            world.apply(&backends, None, Some(step))?;
            round(&mut flows, &backends).with_context(|| format!("step {step}, b{step} is gone"))?;
        }
        let begun_since = flows.range(10_000..).count();
        assert!(begun_since > 50, "{begun_since} of 200 flows that began meanwhile had lasting backends");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error:#}\n{}\n{}", world.agent.cli(&["status"]).unwrap_or_default(), world.agent.log());
    }
    drop(world.lab);
}

#[test]
fn replacing_all_ten_backends_breaks_no_flow_of_a_living_one_in_l2() {
    replace_all_ten("l2", false);
}

#[test]
fn replacing_all_ten_backends_breaks_no_flow_of_a_living_one_in_nat() {
    replace_all_ten("nat", false);
}

#[test]
fn replacing_all_ten_backends_breaks_no_flow_of_a_living_one_where_every_flow_is_remembered() {
    replace_all_ten("l2", true);
}
