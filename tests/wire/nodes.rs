//! Several nodes of one cluster, each with an agent and pods of its own behind it, and one client.
//!
//! Pod `m` of node `n` is `p{n}{m}` at `10.2{n}.0.1{m}`. Nodes share the network `front` with the
//! client and know no way to each other's pods.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::netns::{Host, Lab};

/// TCP service of every pod, and of the VIPs.
pub const TCP: u16 = 5432;
/// UDP service of every pod, and of the VIPs.
pub const UDP: u16 = 5353;
pub const CLIENT: [&str; 2] = ["10.1.0.7", "fd01::7"];
pub const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const KEY: &str = "00112233445566778899aabbccddeeff";

/// One node.
pub struct Node {
    pub number: usize,
    pub host: Host,
    pub agent: Agent,
}

/// The whole cluster.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub client: Host,
    pub lab: Lab,
}

/// Address of a node on `front`.
pub fn node_addr(node: usize) -> [IpAddr; 2] {
    [ip(&format!("10.1.0.{node}")), ip(&format!("fd01::{node}"))]
}

/// Address of a pod.
pub fn pod_addr(node: usize, pod: usize) -> [IpAddr; 2] {
    [ip(&format!("10.2{node}.0.1{pod}")), ip(&format!("fd2{node}::1{pod}"))]
}

/// Address of a VIP's service.
pub fn vip(family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(ip(VIPS[family]), port)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A backend: its node, its address in each family.
pub type Backend = (usize, [IpAddr; 2]);

/// Backend that is a pod.
pub fn pod(node: usize, number: usize) -> Backend {
    (node, pod_addr(node, number))
}

/// Nodes `1..=count` with tunnel addresses of one family (0 IPv4, 1 IPv6), and Services of both
/// families and protocols over these backends.
pub fn manifests(count: usize, tunnel: usize, mode: &str, backends: &[Backend]) -> String {
    let mut documents = Vec::new();
    for node in 1..=count {
        documents.push(format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n{node}\n  annotations:\n    \
             penstock.dev/tunnel-address: \"{}\"\n",
            node_addr(node)[tunnel]
        ));
    }
    for (family, name) in [(0, "IPv4"), (1, "IPv6")] {
        for (protocol, port) in [("TCP", TCP), ("UDP", UDP)] {
            let service = format!("{}-{}", protocol.to_lowercase(), name.to_lowercase());
            documents.push(format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {service}\n  annotations:\n    \
                 penstock.dev/forwarding-mode: {mode}\nspec:\n  type: LoadBalancer\n  loadBalancerIP: \"{}\"\n  \
                 ipFamilies: [{name}]\n  allocateLoadBalancerNodePorts: false\n  ports:\n  - name: main\n    \
                 protocol: {protocol}\n    port: {port}\n    targetPort: {port}\n",
                VIPS[family]
            ));
            let mut slice = format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  labels:\n    \
                 kubernetes.io/service-name: {service}\naddressType: {name}\nports:\n- name: main\n  \
                 protocol: {protocol}\n  port: {port}\nendpoints:\n"
            );
            for (node, addrs) in backends {
                slice.push_str(&format!("- addresses: [\"{}\"]\n  nodeName: n{node}\n", addrs[family]));
            }
            documents.push(slice);
        }
    }
    documents.join("---\n")
}

impl Cluster {
    /// Everything up with these manifests on every node. `None` where the tier cannot run. The client
    /// sends to node 1.
    pub fn new(count: usize, pods: usize, yaml: &str) -> Option<Self> {
        Self::with_flags(count, pods, yaml, &[])
    }

    /// The same with these arguments of the agents.
    pub fn with_flags(count: usize, pods: usize, yaml: &str, flags: &[&str]) -> Option<Self> {
        let lab = crate::rig::lab()?;
        let built = Self::build(lab, count, pods, yaml, &["eth0"], flags);
        Some(built.unwrap_or_else(|error| panic!("build the cluster: {error:#}")))
    }

    /// The same with the program on these interfaces, which need not be there yet.
    pub fn with_interfaces(count: usize, pods: usize, yaml: &str, interfaces: &[&str]) -> Option<Self> {
        let lab = crate::rig::lab()?;
        let built = Self::build(lab, count, pods, yaml, interfaces, &[]);
        Some(built.unwrap_or_else(|error| panic!("build the cluster: {error:#}")))
    }

    /// The same where the client asks on the link whose the VIPs are.
    pub fn announcing(count: usize, pods: usize, yaml: &str) -> Option<Self> {
        Self::announcing_with(count, pods, yaml, &["--announce", "eth0"])
    }

    /// The same with these arguments of the agents.
    pub fn announcing_with(count: usize, pods: usize, yaml: &str, flags: &[&str]) -> Option<Self> {
        let lab = crate::rig::lab()?;
        let built = Self::build(lab, count, pods, yaml, &["eth0"], flags);
        let built = built.and_then(|cluster| {
            for vips in ["203.0.113.0/24", "2001:db8:113::/64"] {
                cluster.client.run(&format!("ip route replace {vips} dev eth0"))?;
            }
            Ok(cluster)
        });
        Some(built.unwrap_or_else(|error| panic!("build the cluster: {error:#}")))
    }

    fn build(
        lab: Lab,
        count: usize,
        pods: usize,
        yaml: &str,
        interfaces: &[&str],
        flags: &[&str],
    ) -> Result<Self> {
        let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])])?;
        let mut nodes = Vec::new();
        for number in 1..=count {
            let [v4, v6] = node_addr(number);
            let (pods_v4, pods_v6) = (format!("10.2{number}.0.1/24"), format!("fd2{number}::1/64"));
            let network = format!("pods{number}");
            let host = lab.host(
                &format!("n{number}"),
                &[("front", &[&format!("{v4}/24"), &format!("{v6}/64")]), (&network, &[&pods_v4, &pods_v6])],
            )?;
            host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
            for pod in 1..=pods {
                let (name, [v4, v6]) = (format!("p{number}{pod}"), pod_addr(number, pod));
                let host = lab.host(&name, &[(&network, &[&format!("{v4}/24"), &format!("{v6}/64")])])?;
                host.route("default", ip(pods_v4.trim_end_matches("/24")))?;
                host.route("default", ip(pods_v6.trim_end_matches("/64")))?;
                for addr in [v4, v6] {
                    host.within(|| serve(addr, &name))?;
                }
            }
            let dir: PathBuf = lab.scratch().join(format!("n{number}"));
            std::fs::create_dir_all(dir.join("manifests"))?;
            std::fs::write(dir.join("manifests/all.yaml"), yaml)?;
            let agent = start(&lab, &host, number, interfaces, flags)?;
            nodes.push(Node { number, host, agent });
        }
        let cluster = Self { nodes, client, lab };
        cluster.send_to(1)?;
        Ok(cluster)
    }

    /// Starts the agent of a node whose agent has ended, with these arguments.
    pub fn start_again(&mut self, number: usize, flags: &[&str]) -> Result<()> {
        let Some(node) = self.nodes.get_mut(number - 1) else { bail!("no node {number}") };
        node.agent = start(&self.lab, &node.host, number, &["eth0"], flags)?;
        Ok(())
    }

    /// From now on the client's packets go to this node.
    pub fn send_to(&self, node: usize) -> Result<()> {
        for (vips, via) in ["203.0.113.0/24", "2001:db8:113::/64"].into_iter().zip(node_addr(node)) {
            self.client.run(&format!("ip route replace {vips} via {via}"))?;
        }
        Ok(())
    }

    /// Puts other manifests in place on every node.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.agent.apply("all.yaml", yaml))
    }

    /// What the agents log, for a test that fails.
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("n{}:\n{}\n", node.number, node.agent.log())).collect()
    }

    /// Opens a TCP flow from the client, as soon as that is possible.
    pub fn connect(&self, to: SocketAddr) -> Flow {
        let flow = self.client.within(|| eventually(DEADLINE, || Flow::open(to).ok()));
        flow.unwrap_or_else(|| panic!("no connection to {to}\n{}", self.logs()))
    }

    /// Who answers a datagram from this socket of the client.
    pub fn ask(&self, socket: &UdpSocket, to: SocketAddr) -> String {
        let answer = eventually(DEADLINE, || ask(socket, to).ok());
        answer.unwrap_or_else(|| panic!("no answer from {to}\n{}", self.logs()))
    }

    /// Packets of a verdict on a node.
    pub fn verdict(&self, node: usize, name: &str) -> u64 {
        let metrics = self.nodes[node - 1].agent.ask("/metrics").unwrap_or_default();
        let label = format!("\"{name}\"");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("penstock_datapath_packets_total") && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

/// Starts the agent of a node, over the manifests in its directory.
fn start(lab: &Lab, host: &Host, number: usize, interfaces: &[&str], flags: &[&str]) -> Result<Agent> {
    let name = format!("n{number}");
    let own = ["--node-name", &name, "--hash-key", KEY];
    let more: Vec<&str> = own.into_iter().chain(flags.iter().copied()).collect();
    Agent::start_with(lab, host, interfaces, &lab.scratch().join(&name), &more)
}

/// A TCP flow to a backend that has told its name and whom it sees.
pub struct Flow {
    pub pod: String,
    pub seen: SocketAddr,
    pub reader: BufReader<TcpStream>,
}

impl Flow {
    /// Opens one from the current namespace.
    pub fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).context("connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut reader = BufReader::new(stream);
        let mut greeting = String::new();
        reader.read_line(&mut greeting).context("read the greeting")?;
        let (pod, seen) = greeting.trim().split_once(' ').context("a greeting")?;
        let (pod, seen) = (pod.to_owned(), seen.parse()?);
        Ok(Self { pod, seen, reader })
    }

    /// A line there and back.
    pub fn echoes(&mut self, line: &str) -> Result<()> {
        crate::rig::still_echoes(&mut self.reader, line)
    }

    /// Many bytes there and back, in full segments.
    pub fn bulk(&mut self, bytes: usize) -> Result<()> {
        let mut writer = self.reader.get_ref().try_clone()?;
        let sender = thread::spawn(move || writer.write_all(&vec![b'x'; bytes]));
        let mut back = vec![0; bytes];
        std::io::Read::read_exact(&mut self.reader, &mut back)?;
        anyhow::ensure!(back.iter().all(|byte| *byte == b'x'), "other bytes came back");
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?.context("send")
    }
}

/// One datagram and its answer.
pub fn ask(socket: &UdpSocket, to: SocketAddr) -> Result<String> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Sends a datagram until it comes back whole behind the name of who answers and whom that sees; gives these.
pub fn echoed(socket: &UdpSocket, to: SocketAddr, datagram: &[u8]) -> Option<String> {
    socket.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    socket.connect(to).ok()?;
    let mut buffer = vec![0; 65_536];
    eventually(DEADLINE, || {
        // One that is too large for a while is an error of the socket, too.
        socket.send(datagram).ok()?;
        let length = socket.recv(&mut buffer).ok()?;
        let head = buffer[..length].strip_suffix(datagram)?;
        Some(String::from_utf8_lossy(head).trim().to_owned())
    })
}

/// Serves TCP and UDP on an address of the current namespace, telling each peer the own name and the
/// peer's address, then echoing. A datagram of one byte is a question and not echoed.
pub fn serve(addr: IpAddr, name: &str) -> Result<()> {
    let listener = TcpListener::bind((addr, TCP)).context("bind tcp backend")?;
    let own = name.to_owned();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let own = own.clone();
            thread::spawn(move || -> Result<()> {
                stream.set_nodelay(true)?;
                writeln!(stream, "{own} {}", stream.peer_addr()?)?;
                std::io::copy(&mut stream.try_clone()?, &mut stream)?;
                Ok(())
            });
        }
    });
    let socket = UdpSocket::bind((addr, UDP)).context("bind udp backend")?;
    let own = name.to_owned();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{own} {peer}").into_bytes();
            if length > 1 {
                answer.push(b' ');
                answer.extend(&buffer[..length]);
            }
            let _ = socket.send_to(&answer, peer);
        }
    });
    Ok(())
}
