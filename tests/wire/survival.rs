//! The kernel goes on without the agent, and the next agent takes over: killed, restarted, replaced,
//! under traffic of which every packet is counted.

use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_tests::agent::{Agent, DEADLINE, binary, eventually};
use lb_tests::echo;
use lb_tests::manifests::LoadBalancer;
use lb_tests::netns::Host;
use lb_tests::world::World;
use penstock::config::BPFFS;
use penstock::datapath::{Attached, detach, pins};
use serde_json::Value;

use crate::nodes::{self, Cluster, Node};
use crate::rig::{Arms, Rig, greeted, still_echoes};

const NAT: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const L2: [&str; 2] = ["203.0.113.11", "2001:db8:113::11"];
const VIPS: [&str; 4] = [NAT[0], L2[0], NAT[1], L2[1]];
const FLOWS: usize = 40;
const MOST_UNDER_WAY: usize = 32;

/// TCP 5432 and UDP 5353 on a VIP of each mode and family, over these backends.
fn services(backends: &[usize]) -> String {
    let mut documents = Vec::new();
    for family in [0, 1] {
        let backends: Vec<(IpAddr, u16)> =
            backends.iter().map(|number| (Arms::One.backend(*number)[family], 1)).collect();
        for (mode, vips) in [("nat", NAT), ("l2", L2)] {
            for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
                let name = format!("{mode}-{family}-{}", protocol.to_lowercase());
                let vip = vips[family].parse().unwrap();
                let service = LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode };
                documents.push(service.with_backends(&backends));
            }
        }
    }
    documents.join("---\n")
}

fn at(vip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(vip.parse().unwrap(), port)
}

/// The rig with backends that hold the VIPs of `l2` and answer for them.
fn rig() -> Option<Rig> {
    let rig = Rig::new(Arms::One, &[("services.yaml", services(&[1, 2, 3]))])?;
    for (number, backend) in rig.backends.iter().enumerate() {
        backend.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2").unwrap();
        let addrs = format!("ip addr add {} dev lo; ip addr add {} dev lo nodad", L2[0], L2[1]);
        backend.run(&addrs).unwrap();
        let name = format!("b{}", number + 1);
        backend.within(|| {
            for vip in L2 {
                echo::tcp(at(vip, 5432), &name).unwrap();
                echo::udp(at(vip, 5353), &name).unwrap();
            }
        });
    }
    for vip in VIPS {
        rig.who_answers_tcp(at(vip, 5432), 1);
        rig.who_answers_udp(at(vip, 5353), 1);
    }
    Some(rig)
}

/// The next agent on the edge, on the same manifests.
fn next(rig: &mut Rig, flags: &[&str]) {
    let dir = rig.lab.scratch().to_owned();
    rig.agent = Agent::start_with(&rig.lab, &rig.edge, &["eth0"], &dir, flags).unwrap();
}

fn tables(agent: &Agent) -> Value {
    status(agent)["datapath"]["tables"].clone()
}

fn status(agent: &Agent) -> Value {
    let text = agent.cli(&["status", "--format", "json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Number of the program on the edge's interface; `None`: there is none.
fn program(rig: &Rig) -> Option<u32> {
    let link = rig.edge.run("ip link show dev eth0").unwrap();
    let words: Vec<&str> = link.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("prog/xdp"))?;
    words.get(at + 2)?.parse().ok()
}

/// Where the edge's agents pin.
fn pinned(rig: &Rig) -> PathBuf {
    rig.edge.within(|| pins::directory(Path::new(BPFFS)).unwrap())
}

type Flows = Vec<(String, BufReader<TcpStream>)>;

fn flows(rig: &Rig) -> Flows {
    let vips = VIPS.into_iter().cycle().take(FLOWS);
    rig.client.within(|| vips.map(|vip| greeted(at(vip, 5432)).unwrap()).collect())
}

fn all_echo(flows: &mut Flows, when: &str) {
    for (name, flow) in flows {
        still_echoes(flow, when).unwrap_or_else(|error| panic!("{when}: a flow of {name} broke: {error:#}"));
    }
}

/// Datagrams that are counted: those sent, and those answered. Some flows are old, others begin all
/// the time.
struct Stream {
    stop: Arc<AtomicBool>,
    counter: JoinHandle<(usize, usize)>,
}

impl Stream {
    fn start(rig: &Rig) -> Self {
        Self::between(&rig.client, VIPS.map(|vip| at(vip, 5353)).to_vec())
    }

    /// From this client to all of these.
    fn between(client: &Host, vips: Vec<SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        Self { stop, counter: client.spawn(move || count(&vips, &ended)) }
    }

    fn assert_nothing_was_lost(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, answered) = self.counter.join().unwrap();
        assert_eq!(sent, answered, "datagrams were lost");
        assert!(sent > 500, "{sent} datagrams are no stream");
    }
}

fn count(vips: &[SocketAddr], ended: &AtomicBool) -> (usize, usize) {
    let open = |vip: &SocketAddr| {
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(vip).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let mut sockets: Vec<UdpSocket> = vips.iter().cycle().take(8).map(open).collect();
    let (mut sent, mut answered, mut round) = (0, 0, 0);
    let mut buffer = [0; 64];
    let mut read = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count();
    while !ended.load(Ordering::Relaxed) {
        // No more under way than every queue holds: what does not come back was lost on the way.
        for socket in sockets.iter().cycle().skip(round).take(MOST_UNDER_WAY.saturating_sub(sent - answered))
        {
            socket.send(b"?").unwrap();
            sent += 1;
        }
        // The pace of the stream.
        std::thread::park_timeout(Duration::from_millis(2));
        answered += sockets.iter().map(&mut read).sum::<usize>();
        round += 1;
        if round % 20 == 0 && sockets.len() < 200 {
            sockets.push(open(&vips[round / 20 % vips.len()]));
        }
    }
    let _ = eventually(Duration::from_secs(3), || {
        answered += sockets.iter().map(&mut read).sum::<usize>();
        (answered >= sent).then_some(())
    });
    (sent, answered)
}

#[test]
fn a_killed_agent_and_its_successors_break_no_flow_and_lose_no_packet() {
    let Some(mut rig) = rig() else { return };
    let mut old = flows(&rig);
    let first = program(&rig).expect("a program is attached");
    let stream = Stream::start(&rig);

    rig.lab.kill(rig.agent.pid()).unwrap();
    all_echo(&mut old, "without an agent");
    let mut new = flows(&rig);
    assert_eq!(program(&rig), Some(first), "the kernel goes on");

    next(&mut rig, &[]);
    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    let second = program(&rig);
    assert!(second.is_some_and(|second| second != first), "the program is the new agent's");
    all_echo(&mut old, "after the kill");
    all_echo(&mut new, "begun without an agent");

    let ended = rig.lab.stop(rig.agent.pid()).unwrap();
    assert!(ended.success(), "{ended}\n{}", rig.agent.log());
    assert_eq!(program(&rig), second, "the kernel goes on");
    all_echo(&mut new, "after SIGTERM");
    next(&mut rig, &[]);
    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    assert_eq!(
        std::fs::read_dir(pinned(&rig).join(format!("v{}", lb_common::ABI_VERSION))).unwrap().count(),
        1,
        "older sets are gone"
    );
    for flows in [&mut old, &mut new, &mut flows(&rig)] {
        all_echo(flows, "after the second start");
    }
    stream.assert_nothing_was_lost();
}

/// Tag of the program on the edge's interface: what its instructions are.
fn tag(rig: &Rig) -> String {
    let link = rig.edge.run("ip link show dev eth0").unwrap();
    let mut words = link.split_whitespace().skip_while(|word| *word != "tag");
    words.nth(1).unwrap_or_default().to_owned()
}

/// A copy of the agent whose kernel programs are others that do the same: in each, a comparison
/// stands the other way around.
fn another_build(rig: &Rig) -> PathBuf {
    let mut bytes = std::fs::read(binary().unwrap()).unwrap();
    // An ELF file for the machine BPF, aligned as its reader wants it.
    let mut starts = (0..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"\x7fELF\x02\x01"));
    let is_object = |at: &usize| bytes.get(at + 18..at + 20) == Some(&[0xf7, 0]);
    let object = starts.find(is_object).expect("the agent holds the kernel object");
    let word = |at: usize, size: usize| -> usize {
        let part = &bytes[object + at..object + at + size];
        part.iter().rev().fold(0, |word, byte| word << 8 | usize::from(*byte))
    };
    let (headers, size, count) = (word(0x28, 8), word(0x3a, 2), word(0x3c, 2));
    // SHT_PROGBITS with SHF_EXECINSTR: instructions of eight bytes.
    let sections = (0..count).map(|number| headers + number * size);
    let code = sections.filter(|at| word(at + 4, 4) == 1 && word(at + 8, 8) & 4 != 0);
    let code: Vec<(usize, usize)> = code.map(|at| (object + word(at + 24, 8), word(at + 32, 8))).collect();
    let mut turned = 0;
    for (start, length) in code {
        let mut instructions = bytes[start..start + length].chunks_exact_mut(8);
        // `if a > b` becomes `if b < a`.
        if let Some(greater) = instructions.find(|bytes| bytes[0] == 0x2d) {
            greater[0] = 0xad;
            greater[1] = greater[1].rotate_left(4);
            turned += 1;
        }
    }
    assert!(turned > 0, "no comparison was found");
    let path = rig.lab.scratch().join("penstock-other");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_upgrade_to_another_program_breaks_no_flow_and_loses_no_packet() {
    let Some(mut rig) = rig() else { return };
    let other = another_build(&rig);
    let mut flows = flows(&rig);
    let stream = Stream::start(&rig);
    let before = tag(&rig);
    assert!(!before.is_empty());

    rig.lab.stop(rig.agent.pid()).unwrap();
    let dir = rig.lab.scratch().to_owned();
    rig.agent = Agent::start_binary(&other, &rig.lab, &rig.edge, &["eth0"], &dir, &[]).unwrap();

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    let after = tag(&rig);
    assert_ne!(after, before, "it is another program");
    all_echo(&mut flows, "after the upgrade");
    let mut new = self::flows(&rig);
    // And back, as after an upgrade that was a mistake.
    rig.lab.kill(rig.agent.pid()).unwrap();
    next(&mut rig, &[]);
    assert_eq!(tag(&rig), before);
    all_echo(&mut flows, "after the downgrade");
    all_echo(&mut new, "begun with the other program");
    stream.assert_nothing_was_lost();
}

#[test]
fn another_snat_range_waits_until_the_flows_of_the_first_are_over() {
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);

    rig.lab.stop(rig.agent.pid()).unwrap();
    next(&mut rig, &["--nat-ports", "50000-50999"]);

    let told = status(&rig.agent)["problems"].to_string();
    assert!(told.contains("--nat-ports 50000-50999 waits"), "{told}");
    all_echo(&mut flows, "with another range wished for");
}

#[test]
fn what_cannot_be_read_at_a_restart_is_not_wished_away() {
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);
    // The Services of one mode, half of the endpoints of the other: all in files that cannot be read.
    let whole = services(&[1, 2, 3]);
    let documents: Vec<&str> = whole.split("---\n").collect();
    let (broken, good): (Vec<&str>, Vec<&str>) =
        documents.iter().partition(|text| text.contains("name: nat-") || text.contains("-tcp-1\n"));
    let slip = broken.join("---\n").replace("apiVersion", "apiVersion: [");
    rig.lab.stop(rig.agent.pid()).unwrap();
    rig.agent.apply("services.yaml", &good.join("---\n")).unwrap();
    rig.agent.apply("broken.yaml", &slip).unwrap();

    next(&mut rig, &[]);

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    let told = status(&rig.agent)["problems"].to_string();
    assert!(told.contains("held-in-force"), "{told}");
    all_echo(&mut flows, "while nobody knows better");
    let mut new = self::flows(&rig);

    // It can be read again, and asks for the same.
    rig.agent.apply("broken.yaml", &broken.join("---\n")).unwrap();
    let known = || {
        let told = status(&rig.agent)["problems"].to_string();
        (!told.contains("held-in-force")).then_some(())
    };
    assert!(eventually(DEADLINE, known).is_some(), "{}", rig.agent.log());
    all_echo(&mut flows, "with the truth known");
    all_echo(&mut new, "begun meanwhile");
    let pools = status(&rig.agent)["datapath"]["pools"].to_string();
    assert!(
        pools.contains("nat-0-tcp") && pools.contains("nat-1-tcp") && !pools.contains("adopted pool"),
        "{pools}"
    );

    // And what is then wished for no more goes.
    rig.agent.apply("broken.yaml", "").unwrap();
    let gone = || {
        let vips = status(&rig.agent)["datapath"]["vips"].to_string();
        (!NAT.iter().any(|vip| vips.contains(vip))).then_some(())
    };
    assert!(eventually(DEADLINE, gone).is_some(), "{}", rig.agent.log());
}

#[test]
fn a_successor_that_finds_other_backends_breaks_only_the_flows_of_those_that_are_gone() {
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);
    rig.lab.kill(rig.agent.pid()).unwrap();

    rig.agent.apply("services.yaml", &services(&[1, 3])).unwrap();
    next(&mut rig, &[]);

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    assert!(flows.iter().any(|(name, _)| name == "b2"));
    flows.retain(|(name, _)| name != "b2");
    all_echo(&mut flows, "with b2 gone");
    for vip in VIPS {
        let now = rig.who_answers_tcp(at(vip, 5432), 30);
        assert!(!now.contains_key("b2"), "{now:?}");
    }
}

#[test]
fn agents_killed_at_any_moment_of_their_start_lose_nothing() {
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);
    let stream = Stream::start(&rig);
    rig.lab.kill(rig.agent.pid()).unwrap();

    for tenths in [1u64, 4, 7, 10, 13, 16, 20, 25] {
        let mut command = rig.edge.command(binary().unwrap());
        command.args(["run", "--workers", "1", "--interface", "eth0", "--admin", "127.0.0.1:0"]);
        command.arg("--manifests").arg(rig.agent.manifests());
        let pid = rig.lab.start(command, &rig.lab.scratch().join("short.log")).unwrap();
        // However far it gets in this time.
        std::thread::park_timeout(Duration::from_millis(100 * tenths));
        rig.lab.kill(pid).unwrap();
        all_echo(&mut flows, "after a short life");
    }
    next(&mut rig, &[]);

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    all_echo(&mut flows, "after all of them");
    stream.assert_nothing_was_lost();
}

#[test]
fn flows_of_local_and_tunnel_outlive_the_agents_of_both_nodes() {
    let yaml = nodes::manifests(2, 0, "auto", &[nodes::pod(1, 1), nodes::pod(2, 1)]);
    let Some(mut cluster) = Cluster::new(2, 1, &yaml) else { return };
    let open = |cluster: &Cluster| -> Vec<nodes::Flow> {
        let families = (0..20).map(|number| number % 2);
        families.map(|family| cluster.connect(nodes::vip(family, nodes::TCP))).collect()
    };
    let mut old = open(&cluster);
    for pod in ["p11", "p21"] {
        assert!(old.iter().any(|flow| flow.pod == pod), "a flow of {pod}");
    }
    let datagrams = [0, 1].map(|family| nodes::vip(family, nodes::UDP));
    for vip in datagrams {
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        cluster.ask(&cluster.client.within(|| UdpSocket::bind(any).unwrap()), vip);
    }
    let stream = Stream::between(&cluster.client, datagrams.to_vec());

    for node in &cluster.nodes {
        cluster.lab.kill(node.agent.pid()).unwrap();
    }
    old.iter_mut().for_each(|flow| flow.echoes("without agents").unwrap());
    let mut new = open(&cluster);
    for index in 0..cluster.nodes.len() {
        let Node { number, host, .. } = &cluster.nodes[index];
        let name = format!("n{number}");
        let dir = cluster.lab.scratch().join(&name);
        let next = Agent::start_with(&cluster.lab, host, &["eth0"], &dir, &["--node-name", &name]).unwrap();
        assert_eq!(tables(&next)["adopted"], true, "{}", next.log());
        cluster.nodes[index].agent = next;
        old.iter_mut().chain(&mut new).for_each(|flow| flow.echoes("with a successor").unwrap());
    }
    open(&cluster).iter_mut().for_each(|flow| flow.echoes("begun now").unwrap());
    stream.assert_nothing_was_lost();
    assert!(cluster.verdict(1, "forwarded-tunnel") > 200 && cluster.verdict(1, "forwarded-local") > 200);
}

/// Replaces a pinned map by one of 4,096 entries with the same content.
fn resize(rig: &Rig, map: &Path) {
    let path = map.display();
    let read = |what: &str| -> Value {
        let text = rig.edge.run(&format!("bpftool -j map {what} pinned {path}")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let (shape, content) = (read("show"), read("dump"));
    std::fs::remove_file(map).unwrap();
    let (key, value) = (&shape["bytes_key"], &shape["bytes_value"]);
    rig.edge
        .run(&format!(
            "bpftool map create {path} type hash key {key} value {value} entries 4096 name resized"
        ))
        .unwrap();
    for entry in content.as_array().unwrap() {
        let hex = |part: &Value| -> String {
            let bytes: Vec<&str> = part.as_array().unwrap().iter().filter_map(Value::as_str).collect();
            bytes.join(" ")
        };
        let (key, value) = (hex(&entry["key"]), hex(&entry["value"]));
        rig.edge.run(&format!("bpftool map update pinned {path} key {key} value {value}")).unwrap();
    }
}

#[test]
fn translated_flows_move_to_maps_of_another_size() {
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);
    rig.lab.stop(rig.agent.pid()).unwrap();
    let set = std::fs::read_dir(pinned(&rig).join(format!("v{}", lb_common::ABI_VERSION)))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for name in ["NAT_FORWARD", "NAT_REVERSE"] {
        resize(&rig, &set.join(name));
    }

    next(&mut rig, &[]);

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    let told = status(&rig.agent)["problems"].to_string();
    assert!(told.contains("NAT_FORWARD has another size"), "{told}");
    all_echo(&mut flows, "in the new maps");
}

/// As after an upgrade: what the agent before pinned is of the layout before.
#[test]
fn tables_of_the_layout_before_are_read_and_no_flow_breaks() {
    let (old, own) = (lb_common::ABI_READABLE, lb_common::ABI_VERSION);
    if old == own {
        return;
    }
    let Some(mut rig) = rig() else { return };
    let mut flows = flows(&rig);
    rig.lab.kill(rig.agent.pid()).unwrap();
    let dir = pinned(&rig);
    std::fs::rename(dir.join(format!("v{own}")), dir.join(format!("v{old}"))).unwrap();

    next(&mut rig, &[]);

    assert_eq!(tables(&rig.agent)["adopted"], true, "{}", rig.agent.log());
    let told = status(&rig.agent)["problems"].to_string();
    assert!(told.contains("counters begin anew"), "{told}");
    all_echo(&mut flows, "over the tables of before");
    let gone = || (!dir.join(format!("v{old}")).exists()).then_some(());
    assert!(eventually(DEADLINE, gone).is_some());
    assert!(dir.join(format!("v{own}")).exists());
}

#[test]
fn pins_that_do_not_serve_are_replaced_and_told() {
    let key = ["--hash-key", "000102030405060708090a0b0c0d0e0f"];
    let Some(mut rig) = rig() else { return };
    rig.lab.kill(rig.agent.pid()).unwrap();

    // Another key moves every flow; the next agents agree on it.
    next(&mut rig, &key);
    assert_eq!(tables(&rig.agent)["adopted"], false);
    assert!(rig.agent.log().contains("another key"), "{}", rig.agent.log());
    let mut flows = flows(&rig);
    let (mut of_l2, of_nat): (Flows, Flows) = flows
        .drain(..)
        .partition(|(_, flow)| L2.contains(&&*flow.get_ref().peer_addr().unwrap().ip().to_string()));
    rig.lab.kill(rig.agent.pid()).unwrap();

    let dir = pinned(&rig);
    let version = format!("v{}", lb_common::ABI_VERSION);
    let set = std::fs::read_dir(dir.join(&version)).unwrap().next().unwrap().unwrap().path();
    let other = format!("{version}/99");
    std::fs::remove_file(set.join("TABLES")).unwrap();
    std::fs::create_dir(dir.join(&other)).unwrap();
    std::fs::create_dir(dir.join("v1")).unwrap();
    for path in [set.join("TABLES"), dir.join(&other).join("TABLES"), dir.join("links/native-77")] {
        let path = path.display();
        rig.edge
            .run(&format!("bpftool map create {path} type array key 4 value 8 entries 1 name x"))
            .unwrap();
    }
    next(&mut rig, &key);

    assert_eq!(tables(&rig.agent)["adopted"], false);
    let told = status(&rig.agent)["problems"].to_string();
    assert!(told.contains("not-taken-over") && told.contains("TABLES is type"), "{told}");
    all_echo(&mut of_l2, "which need no state");
    drop(of_nat);
    for vip in VIPS {
        assert_eq!(rig.who_answers_tcp(at(vip, 5432), 60).len(), 3);
    }
    let left: Vec<_> =
        ["v1", &other, "links/native-77"].into_iter().filter(|path| dir.join(path).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn detach_removes_everything_and_not_while_an_agent_runs() {
    let Some(mut rig) = rig() else { return };
    let refused = rig.agent.cli(&["detach"]).unwrap_err().to_string();
    assert!(refused.contains("another agent runs"), "{refused}");
    rig.lab.stop(rig.agent.pid()).unwrap();

    rig.agent.cli(&["detach"]).unwrap();

    assert_eq!(program(&rig), None);
    assert!(!pinned(&rig).exists());
    // And an agent that is told so does it itself.
    next(&mut rig, &["--on-exit", "detach"]);
    assert_eq!(tables(&rig.agent)["pinned"], true);
    assert!(program(&rig).is_some() && pinned(&rig).exists());
    rig.lab.stop(rig.agent.pid()).unwrap();
    assert!(program(&rig).is_none() && !pinned(&rig).exists());
    // Without pins it ends with the agent, however that ends.
    next(&mut rig, &["--pin", "off"]);
    assert_eq!(tables(&rig.agent)["pinned"], false);
    rig.lab.kill(rig.agent.pid()).unwrap();
    assert!(eventually(DEADLINE, || program(&rig).is_none().then_some(())).is_some());
}

/// A BPF file system that an agent mounted, until this is dropped.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn detach_finds_what_is_pinned_elsewhere_and_tells_what_it_does_not_see() {
    let Some(mut rig) = rig() else { return };
    rig.lab.stop(rig.agent.pid()).unwrap();
    rig.agent.cli(&["detach"]).unwrap();
    let elsewhere = Mounted(rig.lab.scratch().join("bpf of ours"));
    next(&mut rig, &["--bpffs", elsewhere.0.to_str().unwrap()]);
    rig.lab.stop(rig.agent.pid()).unwrap();
    assert!(program(&rig).is_some());

    let said = rig.agent.cli(&["detach"]).unwrap();

    assert_eq!(program(&rig), None);
    let dir = rig.edge.within(|| pins::directory(&elsewhere.0)).unwrap();
    assert_eq!(said, format!("removed {}\n", dir.display()));
    let said = rig.agent.cli(&["detach"]).unwrap();
    assert!(said.starts_with("nothing") && said.contains(elsewhere.0.to_str().unwrap()), "{said}");
    // Somebody holds the attachment by other means than a name that we could find.
    let mut engine = World::new().load();
    let ifindex = crate::interfaces::ifindex(&rig.edge, "eth0").parse().unwrap();
    rig.edge.within(|| engine.kernel.attach("eth0", ifindex, Attached::Native)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let detached = rig.edge.within(|| runtime.block_on(detach(None))).unwrap();
    assert_eq!((detached.removed, detached.left), (vec![], vec!["eth0".to_owned()]));
    drop(engine);
}
