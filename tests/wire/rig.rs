//! The places the tests play in: a client, an edge host with the agent, three backends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::echo;
use lb_tests::netns::{self, Host, Lab};
use lb_tests::tier;

/// A lab, or nothing where this machine has no namespaces.
pub fn lab() -> Option<Lab> {
    tier::require("wire", netns::possible).then(|| Lab::new().expect("namespaces are possible"))
}

/// Client, edge host with the agent, and backends `b1` to `b3` with TCP echo on 5432, UDP echo on
/// 5353 and HTTP on 8080.
pub struct Rig {
    pub agent: Agent,
    pub client: Host,
    pub edge: Host,
    pub backends: Vec<Host>,
    pub lab: Lab,
}

pub const CLIENT: [&str; 2] = ["10.1.0.7", "fd01::7"];
pub const EDGE: [&str; 2] = ["10.1.0.1", "fd01::1"];

/// Where the backends are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arms {
    /// One network for all: the balancer sends frames back through the interface they came from.
    One,
    /// Backends behind a second interface.
    Two,
}

impl Arms {
    /// Address of backend `number`, IPv4 and IPv6.
    pub fn backend(self, number: usize) -> [IpAddr; 2] {
        let (v4, v6) = match self {
            Self::One => (format!("10.1.0.1{number}"), format!("fd01::1{number}")),
            Self::Two => (format!("10.2.0.1{number}"), format!("fd02::1{number}")),
        };
        [v4.parse().expect("an address"), v6.parse().expect("an address")]
    }
}

impl Rig {
    /// Everything up, with these manifests from the start. `None` where the tier cannot run.
    pub fn new(arms: Arms, files: &[(&str, String)]) -> Option<Self> {
        Self::with(arms, files, &[])
    }

    /// The same with more arguments of the agent.
    pub fn with(arms: Arms, files: &[(&str, String)], more: &[&str]) -> Option<Self> {
        let lab = lab()?;
        Some(Self::build(lab, arms, files, more).unwrap_or_else(|error| panic!("build the rig: {error:#}")))
    }

    fn build(lab: Lab, arms: Arms, files: &[(&str, String)], more: &[&str]) -> Result<Self> {
        let dir = lab.scratch();
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        let front: (&str, &[&str]) = ("front", &["10.1.0.1/24", "fd01::1/64"]);
        let back: (&str, &[&str]) = ("back", &["10.2.0.1/24", "fd02::1/64"]);
        let edge = match arms {
            Arms::One => lab.host("edge", &[front])?,
            Arms::Two => lab.host("edge", &[front, back])?,
        };
        for (vips, via) in [("203.0.113.0/24", EDGE[0]), ("2001:db8:113::/64", EDGE[1])] {
            client.route(vips, via.parse()?)?;
        }
        let mut backends = Vec::new();
        for number in 1..=3 {
            let [v4, v6] = arms.backend(number);
            let network = if arms == Arms::One { "front" } else { "back" };
            let name = format!("b{number}");
            let host = lab.host(&name, &[(network, &[&format!("{v4}/24"), &format!("{v6}/64")])])?;
            host.within(|| -> Result<()> {
                for address in [v4, v6] {
                    echo::tcp((address, 5432), &name)?;
                    echo::udp((address, 5353), &name)?;
                    echo::http((address, 8080), &name)?;
                }
                Ok(())
            })?;
            backends.push(host);
        }
        std::fs::create_dir_all(dir.join("manifests"))?;
        for (name, yaml) in files {
            std::fs::write(dir.join("manifests").join(name), yaml)?;
        }
        let interfaces: &[&str] = if arms == Arms::One { &["eth0"] } else { &["eth0", "eth1"] };
        let agent = Agent::start_with(&lab, &edge, interfaces, dir, more)?;
        Ok(Self { agent, client, edge, backends, lab })
    }

    /// Waits until the client gets through to an address, then says who answers `count` new connections.
    pub fn who_answers_tcp(&self, address: SocketAddr, count: usize) -> BTreeMap<String, usize> {
        self.client.within(|| {
            let first = eventually(DEADLINE, || greeted(address).ok());
            assert!(first.is_some(), "no connection to {address}\n{}", self.agent.log());
            let greetings = (0..count).map(|_| greeted(address).map(|(name, _)| name));
            tally(greetings.collect::<Result<Vec<_>>>().unwrap_or_else(|error| {
                panic!("a connection to {address} failed: {error:#}\n{}", self.agent.log())
            }))
        })
    }

    /// The same for `count` new UDP flows.
    pub fn who_answers_udp(&self, address: SocketAddr, count: usize) -> BTreeMap<String, usize> {
        self.client.within(|| {
            let first = eventually(DEADLINE, || answered(address, Duration::from_millis(300)).ok());
            assert!(first.is_some(), "no answer from {address}\n{}", self.agent.log());
            tally((0..count).map(|_| answered(address, DEADLINE).expect("a datagram was lost")))
        })
    }
}

/// Connects to a TCP echo and reads its name.
pub fn greeted(address: SocketAddr) -> Result<(String, BufReader<TcpStream>)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connect")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(stream);
    let mut name = String::new();
    reader.read_line(&mut name).context("read the greeting")?;
    Ok((name.trim().to_owned(), reader))
}

/// Sends a line to an echo and expects it back.
pub fn still_echoes(flow: &mut BufReader<TcpStream>, line: &str) -> Result<()> {
    flow.get_mut().write_all(format!("{line}\n").as_bytes())?;
    let mut back = String::new();
    flow.read_line(&mut back)?;
    if back.trim_end() != line {
        bail!("sent {line:?}, got {back:?}");
    }
    Ok(())
}

/// Name of the UDP echo that answers a fresh flow.
pub fn answered(address: SocketAddr, deadline: Duration) -> Result<String> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(deadline))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim_end_matches(" ?").to_owned())
}

fn tally(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    names.into_iter().for_each(|name| *tally.entry(name).or_default() += 1);
    tally
}
