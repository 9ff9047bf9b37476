//! VIPs on the client's own link: one of several agents answers for each, and another when that one is gone.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lb_tests::agent::{DEADLINE, eventually};
use serde_json::Value;

use crate::nodes::{CLIENT, Cluster, Node, TCP, UDP, VIPS, ask, manifests, pod, vip};

/// Longest time without traffic when a holder is gone.
const PROMISE: Duration = Duration::from_secs(3);

/// The address of the proxy.
const INGRESS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, annotations: {penstock.dev/ingress: \
                       \"true\"}}\nspec: {type: LoadBalancer, loadBalancerIP: 203.0.113.10, ports: [{name: http, port: 80}]}\n";

/// Who holds a VIP by what a node says.
fn holder(node: &Node, vip: &str) -> Option<String> {
    told(node, vip, "by")
}

/// Who held it before, as far as that matters.
pub fn former(node: &Node, vip: &str) -> Option<String> {
    told(node, vip, "former")
}

fn told(node: &Node, vip: &str, what: &str) -> Option<String> {
    let answer = node.agent.ask("/status?format=json").ok()?;
    let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let addresses = status["announced"][0]["addresses"].as_array()?;
    let entry = addresses.iter().find(|entry| entry["address"] == vip)?;
    entry[what].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Who holds the first VIPs, as soon as all nodes know each other and agree.
fn settled<const N: usize>(cluster: &Cluster) -> [String; N] {
    agreed(cluster, std::array::from_fn(|number| VIPS[number]))
}

/// The same of these.
pub fn agreed<const N: usize>(cluster: &Cluster, vips: [&str; N]) -> [String; N] {
    let agreed = eventually(DEADLINE, || {
        let said = |node: &Node| -> Option<Vec<String>> {
            (metric(node, "penstock_announce_members") == cluster.nodes.len() as u64)
                .then(|| vips.iter().map(|vip| holder(node, vip)).collect())?
        };
        let mut all = cluster.nodes.iter().map(said);
        let first = all.next()??;
        all.all(|other| other.as_ref() == Some(&first)).then_some(first)
    });
    let agreed = agreed.unwrap_or_else(|| panic!("no agreement\n{}", cluster.logs()));
    agreed.try_into().expect("as many as were asked for")
}

fn metric(node: &Node, name: &str) -> u64 {
    let metrics = node.agent.ask("/metrics").unwrap_or_default();
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn node<'a>(cluster: &'a Cluster, name: &str) -> &'a Node {
    cluster.nodes.iter().find(|node| name == format!("n{}", node.number)).expect("one of the nodes")
}

/// Which node's hardware address the client has for an address.
pub fn believed(cluster: &Cluster, addr: &str) -> Option<String> {
    let entry = cluster.client.run(&format!("ip neigh show {addr} dev eth0")).ok()?;
    let of = |node: &&Node| {
        let link = node.host.run("ip -brief link show eth0").unwrap_or_default();
        link.split_whitespace().nth(2).is_some_and(|mac| entry.contains(mac))
    };
    cluster.nodes.iter().find(of).map(|node| format!("n{}", node.number))
}

/// Whether somebody answers a datagram, each time from another port.
fn reached(cluster: &Cluster, family: usize) -> Option<String> {
    let client: IpAddr = CLIENT[family].parse().ok()?;
    cluster.client.within(|| {
        let socket = UdpSocket::bind((client, 0)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).ok()?;
        ask(&socket, vip(family, UDP)).ok()
    })
}

#[test]
fn a_holder_that_is_gone_is_replaced_in_time_and_flows_go_on() {
    let pods = [pod(1, 1), pod(2, 1), pod(3, 1)];
    let Some(cluster) = Cluster::announcing(3, 1, &manifests(3, 0, "auto", &pods)) else { return };
    let held: [String; 2] = settled(&cluster);
    for (family, holder) in held.iter().enumerate() {
        assert!(eventually(DEADLINE, || reached(&cluster, family)).is_some(), "{}", cluster.logs());
        assert_eq!(believed(&cluster, VIPS[family]).as_ref(), Some(holder), "who answers is who holds it");
    }
    let all: u64 = cluster.nodes.iter().map(|node| metric(node, "penstock_announced_vips")).sum();
    assert_eq!(all, 2);
    let gone = node(&cluster, &held[0]);
    let explained = gone.agent.cli(&["explain", "--flow", "tcp 10.1.0.7:4000 > 203.0.113.10:5432"]).unwrap();
    assert!(explained.contains("on eth0 this node answers for 203.0.113.10"), "{explained}");
    // A flow whose backend lives on another node than the one to go.
    let lost = format!("p{}1", gone.number);
    let mut flows: Vec<_> = (0..12).map(|_| cluster.connect(vip(0, TCP))).collect();
    flows.retain(|flow| flow.pod != lost);
    assert!(!flows.is_empty());

    // The whole host: its kernel would go on without the agent.
    let start = Instant::now();
    cluster.lab.kill(gone.agent.pid()).unwrap();
    gone.host.run("ip link set eth0 down").unwrap();
    for family in [0, 1] {
        let back = eventually(DEADLINE, || reached(&cluster, family));
        assert!(back.is_some(), "{}", cluster.logs());
    }
    let took = start.elapsed();
    assert!(took < PROMISE, "{took:?}\n{}", cluster.logs());
    eprintln!("traffic again after {took:?}");

    for flow in &mut flows {
        flow.echoes("still here").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    }
    assert_ne!(believed(&cluster, VIPS[0]).as_ref(), Some(&held[0]));
}

#[test]
fn an_agent_that_is_killed_hands_its_addresses_over() {
    let pods = [pod(1, 1), pod(2, 1)];
    let Some(cluster) = Cluster::announcing(2, 1, &manifests(2, 0, "auto", &pods)) else { return };
    let held: [String; 2] = settled(&cluster);
    let gone = node(&cluster, &held[0]);
    let mut flow = cluster.connect(vip(0, TCP));

    cluster.lab.kill(gone.agent.pid()).unwrap();

    let start = Instant::now();
    let moved = eventually(DEADLINE, || believed(&cluster, VIPS[0]).filter(|holder| *holder != held[0]));
    assert!(moved.is_some(), "{}", cluster.logs());
    assert!(start.elapsed() < PROMISE, "{:?}", start.elapsed());
    // Its kernel part goes on, so even its own pods keep their flows.
    flow.echoes("by another way").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
}

#[test]
fn an_agent_that_is_told_to_end_hands_its_addresses_over() {
    let pods = [pod(1, 1), pod(2, 1)];
    let Some(cluster) = Cluster::announcing(2, 1, &manifests(2, 0, "auto", &pods)) else { return };
    let held: [String; 2] = settled(&cluster);
    let gone = node(&cluster, &held[0]);
    let mut flow = cluster.connect(vip(0, TCP));
    let mine = |family: &usize| held[*family] == held[0];

    let ended = cluster.lab.stop(gone.agent.pid()).unwrap();

    let start = Instant::now();
    assert!(ended.success(), "{ended}\n{}", cluster.logs());
    for family in [0, 1].iter().filter(|family| mine(family)) {
        let moved = eventually(DEADLINE, || believed(&cluster, VIPS[*family]).filter(|by| *by != held[0]));
        assert!(moved.is_some(), "{}", cluster.logs());
    }
    assert!(start.elapsed() < PROMISE, "{:?}\n{}", start.elapsed(), cluster.logs());
    flow.echoes("by another way").unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
}

/// Asks again and again until told to end, by each connection as long as the server leaves it open. Fails when one breaks
/// that was open.
fn keep_asking(to: SocketAddr, ends: &AtomicBool, answers: &AtomicUsize) -> io::Result<()> {
    while !ends.load(Ordering::Relaxed) {
        // Nobody new is let in for a moment.
        let Ok(stream) = TcpStream::connect_timeout(&to, DEADLINE) else { continue };
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut stream = BufReader::new(stream);
        let mut is_open = true;
        while is_open && !ends.load(Ordering::Relaxed) {
            stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: nobody.example.com\r\n\r\n")?;
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                if stream.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                line.make_ascii_lowercase();
                is_open &= line.trim_end() != "connection: close";
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().map_err(io::Error::other)?;
                }
            }
            io::copy(&mut stream.by_ref().take(length), &mut io::sink())?;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[test]
fn no_request_to_the_proxy_breaks_when_the_holder_of_its_address_is_told_to_end() {
    let Some(cluster) = Cluster::announcing(2, 0, INGRESS) else { return };
    let [holder] = settled(&cluster);
    let (ends, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (ends, answers) = (Arc::clone(&ends), Arc::clone(&answers));
            cluster.client.spawn(move || keep_asking(vip(0, 80), &ends, &answers))
        })
        .collect();
    let goes_on = |case: &str| {
        let before = answers.load(Ordering::Relaxed);
        let more = || (answers.load(Ordering::Relaxed) > before + 200).then_some(());
        assert!(eventually(DEADLINE, more).is_some(), "{case}\n{}", cluster.logs());
    };
    goes_on("by the first");

    let ended = cluster.lab.stop(node(&cluster, &holder).agent.pid()).unwrap();

    assert!(ended.success(), "{ended}\n{}", cluster.logs());
    goes_on("by the other");
    ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap().unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    }
    assert_ne!(believed(&cluster, VIPS[0]).as_ref(), Some(&holder), "{}", cluster.logs());
}

#[test]
fn a_hardware_address_that_changes_is_told() {
    let pods = [pod(1, 1), pod(2, 1)];
    let Some(cluster) = Cluster::announcing(2, 1, &manifests(2, 0, "auto", &pods)) else { return };
    // One each, as soon as both can serve both: before that a member that cannot has none.
    let shared = || Some(settled::<2>(&cluster)).filter(|[v4, v6]| v4 != v6);
    let held = eventually(DEADLINE, shared).unwrap_or_else(|| panic!("not shared out\n{}", cluster.logs()));
    assert!(eventually(DEADLINE, || reached(&cluster, 0)).is_some(), "{}", cluster.logs());

    node(&cluster, &held[0]).host.run("ip link set eth0 address 02:00:00:00:aa:01").unwrap();

    let entry = || cluster.client.run(&format!("ip neigh show {} dev eth0", VIPS[0])).unwrap_or_default();
    let told = || (settled::<2>(&cluster) == held && entry().contains("02:00:00:00:aa:01")).then_some(());
    assert!(
        eventually(DEADLINE, told).is_some(),
        "held by {held:?}, now by {:?}, the client knows {}\n{}",
        settled::<2>(&cluster),
        entry(),
        cluster.logs()
    );
    assert!(eventually(DEADLINE, || reached(&cluster, 0)).is_some(), "{}", cluster.logs());
}

#[test]
fn hosts_do_not_answer_by_themselves_for_what_is_routed_locally() {
    let Some(cluster) = Cluster::announcing(2, 0, INGRESS) else { return };

    for node in &cluster.nodes {
        let set = node.host.run("sysctl -n net.ipv4.conf.eth0.arp_ignore net.ipv4.conf.eth0.arp_announce");
        assert_eq!(set.unwrap().split_whitespace().collect::<Vec<_>>(), ["1", "2"]);
    }
    // Whoever starts first may hold it alone for a moment, and answer then.
    let [holder] = settled(&cluster);
    let answers = |node: &Node| metric(node, "penstock_announce_answers_total");
    let before: Vec<u64> = cluster.nodes.iter().map(answers).collect();
    // What it was told unasked, so that it asks.
    cluster.client.run("ip neigh flush dev eth0").unwrap();

    let connect = || TcpStream::connect_timeout(&vip(0, 80), Duration::from_secs(1)).ok();
    let answered = eventually(DEADLINE, || cluster.client.within(connect));
    assert!(answered.is_some(), "{}", cluster.logs());

    assert_eq!(believed(&cluster, VIPS[0]).as_ref(), Some(&holder), "{}", cluster.logs());
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_eq!(answers(node) > before, holder == format!("n{}", node.number), "{}", cluster.logs());
    }
}
