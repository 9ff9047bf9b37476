//! Connections to the proxy, to pods of one node alone and by `nat` outlive the move of the announced VIP that they were made to.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::packet::{Packet, tcp};
use lb_tests::raw::Tap;
use lb_tests::{echo, manifests as objects};
use socket2::SockRef;

use crate::announce::{agreed, believed, former};
use crate::nodes::{self, Cluster, Flow, TCP, manifests, pod, vip};
use crate::rig::still_echoes;
use crate::tagged::mac;

/// Both are held by node 2 as soon as that is there.
const VIPS: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];
/// What agents are told. Connections that outlive a move end by themselves long before.
const FLAGS: [&str; 4] = ["--announce", "eth0", "--drain-seconds", "60"];
/// How long a client waits for a connection before it tries another.
const PATIENCE: Duration = Duration::from_millis(50);
/// More than the sockets on the way hold.
const DOWNLOAD: usize = 32 << 20;

fn cluster() -> Option<Cluster> {
    cluster_behind(objects::ingress_service(&VIPS.map(|vip| vip.parse().unwrap())))
}

/// The same behind this ingress Service.
fn cluster_behind(ingress_service: String) -> Option<Cluster> {
    let web: SocketAddr = "10.1.0.50:8080".parse().unwrap();
    let slice = objects::Slice {
        name: "web",
        service: "web",
        port_name: "",
        protocol: "TCP",
        endpoints: &[web],
        weight: 1,
    };
    let yaml = [
        ingress_service,
        objects::service("web", 8080),
        slice.yaml(),
        objects::ingress("web", "web.example.com", "web", None),
    ];
    let cluster = Cluster::announcing_with(2, 0, &yaml.join("---\n"), &FLAGS)?;
    let host = cluster.lab.host("web", &[("front", &["10.1.0.50/24"])]).unwrap();
    host.within(|| echo::http(web, "web")).unwrap();
    assert_eq!(agreed(&cluster, VIPS), ["n2", "n2"]);
    Some(cluster)
}

/// A connection of the client.
struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Opens one that is served.
    fn open(cluster: &Cluster, vip: &str) -> Self {
        let to = SocketAddr::new(vip.parse::<IpAddr>().unwrap(), 80);
        let open = || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            stream.set_nodelay(true).ok()?;
            let mut connection = Self(BufReader::new(stream));
            connection.ask().ok().map(|()| connection)
        };
        let opened = cluster.client.within(|| eventually(DEADLINE, open));
        opened.unwrap_or_else(|| panic!("{vip} is not served\n{}", cluster.logs()))
    }

    /// A request and its whole answer.
    fn ask(&mut self) -> Result<()> {
        let left = self.begin("/", "")?;
        self.rest(left)
    }

    /// A request, and the head of its answer; returns the length of the body.
    fn begin(&mut self, path: &str, headers: &str) -> Result<usize> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: web.example.com\r\n{headers}\r\n")?;
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status)?;
        ensure!(status.contains(" 200 ") || status.contains(" 101 "), "answered {status:?}");
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            if line.trim().is_empty() {
                return Ok(length);
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
    }

    fn rest(&mut self, left: usize) -> Result<()> {
        let read = std::io::copy(&mut self.0.by_ref().take(left as u64), &mut std::io::sink())?;
        ensure!(read == left as u64, "{read} of {left} bytes");
        Ok(())
    }
}

/// What takes long, to one VIP.
struct Kept {
    talks: Connection,
    downloads: Connection,
}

impl Kept {
    fn open(cluster: &Cluster, vip: &str) -> Self {
        let [mut talks, mut downloads] = [(); 2].map(|()| Connection::open(cluster, vip));
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        talks.begin("/ws", upgrade).expect("a WebSocket");
        let length = downloads.begin(&format!("/download/{DOWNLOAD}"), "").expect("a download");
        assert_eq!(length, DOWNLOAD);
        Self { talks, downloads }
    }

    /// All of it to its end.
    fn goes_on(mut self) -> Result<()> {
        for number in 0..50 {
            still_echoes(&mut self.talks.0, &format!("message {number}")).context("the WebSocket")?;
        }
        self.downloads.rest(DOWNLOAD).context("the download")
    }
}

/// Waits until the client sends to this node.
fn moved_to(cluster: &Cluster, node: &str) {
    let moved = || VIPS.iter().all(|vip| believed(cluster, vip).as_deref() == Some(node)).then_some(());
    assert!(eventually(DEADLINE, moved).is_some(), "not moved to {node}\n{}", cluster.logs());
}

fn go_on(cluster: &Cluster, kept: [Kept; 2]) {
    for (vip, kept) in VIPS.iter().zip(kept) {
        kept.goes_on().unwrap_or_else(|error| panic!("{vip}: {error:#}\n{}", cluster.logs()));
    }
}

#[test]
fn connections_to_the_proxy_go_on_when_their_vip_moves_away_and_back() {
    let Some(mut cluster) = cluster() else { return };
    let made_before = VIPS.map(|vip| Kept::open(&cluster, vip));
    moved_to(&cluster, "n2");
    let leaving = cluster.nodes[1].agent.pid();

    cluster.nodes[1].host.run(&format!("kill -TERM {leaving}")).unwrap();

    moved_to(&cluster, "n1");
    for vip in VIPS {
        assert_eq!(former(&cluster.nodes[0], vip).as_deref(), Some("n2"), "{}", cluster.logs());
    }
    let explained = ["explain", "--flow", "tcp 10.1.0.7:4000 > 203.0.113.80:80"];
    let explained = cluster.nodes[0].agent.cli(&explained).unwrap();
    assert!(explained.contains("that it does not know go to n2"), "{explained}");
    let made_meanwhile = VIPS.map(|vip| Kept::open(&cluster, vip));
    let mut asking = VIPS.map(|vip| Connection::open(&cluster, vip));
    // Handshakes that leave no socket behind until they end are this node's as well.
    cluster.nodes[0].host.run("sysctl -qw net.ipv4.tcp_syncookies=2").unwrap();
    for vip in VIPS {
        Connection::open(&cluster, vip);
    }
    assert!(cluster.lab.is_running(leaving), "{}", cluster.logs());
    go_on(&cluster, made_before);
    assert!(cluster.verdict(1, "forwarded-former") > 0, "{}", cluster.logs());

    let ended = eventually(DEADLINE, || (!cluster.lab.is_running(leaving)).then_some(()));
    assert!(ended.is_some(), "{}", cluster.logs());
    cluster.start_again(2, &FLAGS).unwrap();
    moved_to(&cluster, "n2");
    for connection in &mut asking {
        connection.ask().unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    }
    go_on(&cluster, made_meanwhile);
    assert!(cluster.verdict(2, "forwarded-former") > 0, "{}", cluster.logs());
    for vip in VIPS {
        assert_eq!(former(&cluster.nodes[1], vip).as_deref(), Some("n1"), "{}", cluster.logs());
        Connection::open(&cluster, vip);
    }
}

/// kube-proxy sends connections to the address of a Service to an endpoint, on every node: no socket has that address.
#[test]
fn new_connections_are_served_where_others_translate_the_address_of_the_proxy() {
    let service = objects::ingress_service(&VIPS.map(|vip| vip.parse().unwrap()));
    let Some(mut cluster) = cluster_behind(service.replace("- ip:", "- ipMode: VIP\n      ip:")) else {
        return;
    };
    for node in &cluster.nodes {
        for ((family, vip), addr) in ["ip", "ip6"].iter().zip(VIPS).zip(nodes::node_addr(node.number)) {
            node.host.run(&format!("nft add table {family} kube")).unwrap();
            let chain = "'{ type nat hook prerouting priority dstnat; }'";
            node.host.run(&format!("nft add chain {family} kube services {chain}")).unwrap();
            let to = SocketAddr::new(addr, 80);
            let rule = format!("{family} daddr {vip} tcp dport 80 dnat to {to}");
            node.host.run(&format!("nft add rule {family} kube services '{rule}'")).unwrap();
        }
    }
    let served = |cluster: &Cluster| VIPS.iter().for_each(|vip| drop(Connection::open(cluster, vip)));
    served(&cluster);
    moved_to(&cluster, "n2");
    let leaving = cluster.nodes[1].agent.pid();

    cluster.nodes[1].host.run(&format!("kill -TERM {leaving}")).unwrap();
    moved_to(&cluster, "n1");
    served(&cluster);
    let ended = eventually(DEADLINE, || (!cluster.lab.is_running(leaving)).then_some(()));
    assert!(ended.is_some(), "{}", cluster.logs());
    cluster.start_again(2, &FLAGS).unwrap();
    moved_to(&cluster, "n2");
    served(&cluster);

    for (number, node) in (1..).zip(&cluster.nodes) {
        assert_eq!(VIPS.map(|vip| former(node, vip)), [None, None], "{}", cluster.logs());
        assert_eq!(cluster.verdict(number, "forwarded-former"), 0, "{}", cluster.logs());
    }
}

/// Has the clients end, also where something fails meanwhile.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_holder_that_stops_refuses_nobody_while_its_vips_are_on_their_way() {
    let Some(cluster) = cluster() else { return };
    // What runs keeps the VIPs here for a while after the proxy has taken its last connection.
    let kept = VIPS.map(|vip| Kept::open(&cluster, vip));
    moved_to(&cluster, "n2");
    let (stop, connecting) = (AtomicBool::new(false), [(); 2].map(|()| AtomicUsize::new(0)));

    let ended = cluster.client.within(|| {
        std::thread::scope(|scope| {
            let stops = Stops(&stop);
            let clients: Vec<_> = VIPS
                .iter()
                .zip(&connecting)
                .map(|(vip, begun)| {
                    let to = SocketAddr::new(vip.parse::<IpAddr>().unwrap(), 80);
                    let stop = &stop;
                    scope.spawn(move || -> std::io::Result<()> {
                        while !stop.load(Ordering::Relaxed) {
                            // Another begins where one waits: what is to be seen is the answer to a first SYN.
                            let connection = match TcpStream::connect_timeout(&to, PATIENCE) {
                                Err(error) if error.kind() == ErrorKind::TimedOut => continue,
                                connection => connection?,
                            };
                            // No port is to be had for a minute after a close in order.
                            SockRef::from(&connection).set_linger(Some(Duration::ZERO))?;
                            begun.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            let some = || connecting.iter().all(|begun| begun.load(Ordering::Relaxed) > 10).then_some(());
            let before = eventually(DEADLINE, some);
            cluster.nodes[1].host.run(&format!("kill -TERM {}", cluster.nodes[1].agent.pid())).unwrap();
            moved_to(&cluster, "n1");
            let counts = || connecting.iter().map(|begun| begun.load(Ordering::Relaxed)).collect::<Vec<_>>();
            let at_the_move = counts();
            let after = eventually(DEADLINE, || {
                counts().iter().zip(&at_the_move).all(|(now, then)| now > then).then_some(())
            });
            drop(stops);
            (before, after, clients.into_iter().map(|client| client.join()).collect::<Vec<_>>())
        })
    });

    let (before, after, clients) = ended;
    for client in clients {
        client.expect("ends").unwrap_or_else(|error| panic!("refused: {error}\n{}", cluster.logs()));
    }
    assert!(before.is_some() && after.is_some(), "nobody is served\n{}", cluster.logs());
    go_on(&cluster, kept);
}

#[test]
fn connections_to_a_holder_that_is_gone_without_a_word_are_reset() {
    let Some(cluster) = cluster() else { return };
    let mut connections = VIPS.map(|vip| Connection::open(&cluster, vip));
    let gone = &cluster.nodes[1];

    gone.host.run("ip link set eth0 down").unwrap();
    cluster.lab.kill(gone.agent.pid()).unwrap();

    let start = Instant::now();
    for connection in &mut connections {
        let error = connection.ask().expect_err("nobody has this connection");
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:#}\n{}", cluster.logs());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(cluster.verdict(1, "forwarded-former"), 0);
}

/// Each node balances over its own pod alone, so neither has the other's flows in its tables.
#[test]
fn flows_of_pods_on_either_node_go_on_when_a_vip_with_traffic_policy_local_moves() {
    let yaml = manifests(2, 0, "auto", &[pod(1, 1), pod(2, 1)]).replace(
        "allocateLoadBalancerNodePorts: false",
        "allocateLoadBalancerNodePorts: false\n  externalTrafficPolicy: Local",
    );
    let Some(cluster) = Cluster::announcing_with(2, 1, &yaml, &FLAGS) else { return };
    let [holder, _] = agreed(&cluster, nodes::VIPS);
    let number = if holder == "n1" { 1 } else { 2 };
    let mut before = cluster.connect(vip(0, TCP));
    assert_eq!(before.pod, format!("p{number}1"));
    let node = format!("  name: n{number}\n");
    let excluded =
        format!("{node}  labels: {{node.kubernetes.io/exclude-from-external-load-balancers: \"\"}}\n");
    let open = |pod: &str| {
        let flow = || cluster.client.within(|| Flow::open(vip(0, TCP)).ok()).filter(|flow| flow.pod == pod);
        eventually(DEADLINE, flow).unwrap_or_else(|| panic!("never at {pod}\n{}", cluster.logs()))
    };

    cluster.apply(&yaml.replace(&node, &excluded)).unwrap();
    let mut between = open(&format!("p{}1", 3 - number));
    before.echoes("elsewhere").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    assert!(cluster.verdict(3 - number, "forwarded-former") > 0);

    cluster.apply(&yaml).unwrap();
    drop(open(&before.pod));
    for flow in [&mut before, &mut between] {
        flow.echoes("back again").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    }
}

/// Its backend knows a translated flow by the address of the node that it began at.
#[test]
fn translated_flows_go_on_when_their_vip_moves_away_and_back() {
    let real = ["10.1.0.50", "fd01::50"].map(|addr| addr.parse::<IpAddr>().unwrap());
    let yaml = manifests(2, 0, "nat", &[(9, real)]);
    let Some(cluster) = Cluster::announcing_with(2, 0, &yaml, &FLAGS) else { return };
    let host = cluster.lab.host("real", &[("front", &["10.1.0.50/24", "fd01::50/64"])]).unwrap();
    for addr in real {
        host.within(|| nodes::serve(addr, "real")).unwrap();
    }
    for (family, holder) in agreed(&cluster, nodes::VIPS).into_iter().enumerate() {
        let number = if holder == "n1" { 1 } else { 2 };
        let other = 3 - number;
        let node = format!("  name: {holder}\n");
        let excluded =
            format!("{node}  labels: {{node.kubernetes.io/exclude-from-external-load-balancers: \"\"}}\n");
        let from = |number: usize| {
            let flow = || cluster.client.within(|| Flow::open(vip(family, TCP)).ok());
            let flow = || flow().filter(|flow| flow.seen.ip() == nodes::node_addr(number)[family]);
            eventually(DEADLINE, flow).unwrap_or_else(|| panic!("never by n{number}\n{}", cluster.logs()))
        };
        let goes_on = |flow: &mut Flow| {
            let done = flow.echoes("still here?").and_then(|()| flow.bulk(4 << 20));
            done.unwrap_or_else(|error| panic!("{holder}, {family}: {error:#}\n{}", cluster.logs()));
        };
        let mut before = from(number);

        cluster.apply(&yaml.replace(&node, &excluded)).unwrap();
        let mut between = from(other);
        goes_on(&mut before);
        goes_on(&mut between);
        assert!(cluster.verdict(other, "forwarded-former") > 0);
        reset_by(&cluster, family, [number, other], number);
        let (client, length) = (nodes::CLIENT[family], if family == 0 { 32 } else { 128 });
        let overlay = format!(
            "ip link add over0 type veth peer name over1; ip link set over1 up; ip link set over0 up
             ip neigh replace {client} lladdr 02:00:00:00:00:63 dev over0 nud permanent
             ip route replace {client}/{length} dev over0"
        );
        cluster.nodes[number - 1].host.run(&overlay).unwrap();
        reset_by(&cluster, family, [number, other], other);
        cluster.nodes[number - 1].host.run("ip link del over0").unwrap();

        cluster.apply(&yaml).unwrap();
        drop(from(number));
        goes_on(&mut before);
        goes_on(&mut between);
    }
}

/// As when a host is switched off: its agent ends, and a moment later all else.
#[test]
fn translated_flows_are_reset_soon_when_their_former_holder_goes_down_after_it_left() {
    let real = ["10.1.0.50", "fd01::50"].map(|addr| addr.parse::<IpAddr>().unwrap());
    let yaml = manifests(2, 0, "nat", &[(9, real)]);
    let Some(cluster) = Cluster::announcing_with(2, 0, &yaml, &FLAGS) else { return };
    let host = cluster.lab.host("real", &[("front", &["10.1.0.50/24", "fd01::50/64"])]).unwrap();
    host.within(|| nodes::serve(real[0], "real")).unwrap();
    let [holder, _] = agreed(&cluster, nodes::VIPS);
    let number = if holder == "n1" { 1 } else { 2 };
    let [leaving, staying] = [number, 3 - number].map(|number| &cluster.nodes[number - 1]);
    let mut flow = cluster.connect(vip(0, TCP));
    let from = mac(&leaving.host, "eth0");

    let answered = staying.host.within(|| {
        let tap = Tap::on("eth0").unwrap();
        leaving.host.run(&format!("kill -TERM {}", leaving.agent.pid())).unwrap();
        // An ARP reply to who has no address: it was asked whether it is up.
        tap.find(DEADLINE, |frame| {
            let is_reply = frame.get(12..14)? == [8, 6] && frame.get(20..22)? == [0, 2];
            (is_reply && frame[6..12] == from.0 && frame.get(38..42)? == [0; 4]).then_some(())
        })
    });
    assert!(answered.is_some(), "{}", cluster.logs());
    let moved = || (believed(&cluster, nodes::VIPS[0]) == Some(format!("n{}", staying.number))).then_some(());
    assert!(eventually(DEADLINE, moved).is_some(), "{}", cluster.logs());
    flow.echoes("while its host is up").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    assert!(cluster.verdict(staying.number, "forwarded-former") > 0, "{}", cluster.logs());

    leaving.host.run("ip link set eth0 down").unwrap();

    let error = flow.echoes("who is there?").expect_err("nobody knows this flow");
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:#}\n{}", cluster.logs());
    assert_eq!(former(staying, nodes::VIPS[0]), None, "{}", cluster.logs());
}

/// A segment of no flow that the holder hands on to the former one is answered all the same, and its client has that from this node.
fn reset_by(cluster: &Cluster, family: usize, [former, holder]: [usize; 2], node: usize) {
    let of = |number: usize| mac(&cluster.nodes[number - 1].host, "eth0");
    // It is a neighbour that the node has just talked to.
    cluster.nodes[node - 1].host.run(&format!("ping -c 1 -W 5 {}", nodes::CLIENT[family])).unwrap();
    let port = 5_550 + node as u16;
    let from = SocketAddr::new(nodes::CLIENT[family].parse().unwrap(), port);
    let segment = tcp(&from.to_string(), &vip(family, TCP).to_string());
    let segment = Packet { dst_mac: of(holder), src_mac: mac(&cluster.client, "eth0"), ..segment }.bytes();
    let (head, flags) = if family == 0 { (20, 47) } else { (40, 67) };

    let sender = cluster.client.within(|| {
        let tap = Tap::on("eth0").unwrap();
        tap.send(&segment).unwrap();
        tap.find(DEADLINE, |frame| {
            let to = frame.get(14 + head + 2..14 + head + 4)?;
            let reset = frame.get(flags)? & RST != 0;
            (to == port.to_be_bytes() && reset).then(|| frame[6..12].to_vec())
        })
    });

    assert_eq!(sender.as_deref(), Some(&of(node).0[..]), "n{former} had it\n{}", cluster.logs());
}

const RST: u8 = 4;
