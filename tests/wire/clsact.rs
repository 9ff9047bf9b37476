//! Kernels without tcx: the program on the way out is a filter.

use std::net::UdpSocket;
use std::path::Path;

use lb_tests::agent::Agent;
use lb_tests::classifier::{self, NAME, PASS};
use lb_tests::netns::{Host, Lab};
use lb_tests::world::{CONFIG, World};
use penstock::config::BPFFS;
use penstock::datapath::engine::Engine;
use penstock::datapath::kernel::{self, Seen};
use penstock::datapath::network::Netlink;
use penstock::datapath::pins::Pins;
use penstock::datapath::{Attached, detach};
use penstock::model::l4::{ForwardingMode::Local, Protocol};

use crate::nodes::{CLIENT, Flow, TCP, UDP, ask, pod_addr, serve, vip};

const DEVICE: &str = "eth0";
const DEVICES: [&str; 2] = [DEVICE, "eth1"];

fn ifindex(host: &Host, device: &str) -> u32 {
    let line = host.run(&format!("ip -o link show {device}")).unwrap();
    line.split(':').next().and_then(|number| number.parse().ok()).expect("an index")
}

/// The program on a host with these pods, its way out as a filter.
fn attached(host: &Host) -> Engine {
    let mut world = World::new();
    for family in [0, 1] {
        for (protocol, port) in [(Protocol::Tcp, TCP), (Protocol::Udp, UDP)] {
            let backend = std::net::SocketAddr::new(pod_addr(1, 1)[family], port).to_string();
            world = world.service(protocol, &vip(family, port).to_string(), Local, &[&backend]);
        }
    }
    let mut engine = world.load();
    let ifindex = ifindex(host, DEVICE);
    host.within(|| engine.kernel.attach_filter(DEVICE, ifindex)).unwrap();
    engine
}

/// A client, a node that it knows as the way to the VIPs, and the pod behind that.
fn hosts(lab: &Lab) -> [Host; 3] {
    let client = lab.host("client", &[("front", &["10.1.0.7/24", "fd01::7/64"])]).unwrap();
    let node: [(&str, &[&str]); 2] =
        [("front", &["10.1.0.1/24", "fd01::1/64"]), ("pods", &["10.21.0.1/24", "fd21::1/64"])];
    let node = lab.host("n1", &node).unwrap();
    let pod = lab.host("p11", &[("pods", &["10.21.0.11/24", "fd21::11/64"])]).unwrap();
    node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").unwrap();
    pod.run("ip route add default via 10.21.0.1; ip -6 route add default via fd21::1").unwrap();
    client
        .run("ip route add 203.0.113.0/24 via 10.1.0.1; ip route add 2001:db8:113::/64 via fd01::1")
        .unwrap();
    for addr in pod_addr(1, 1) {
        pod.within(|| serve(addr, "p11")).unwrap();
    }
    [client, node, pod]
}

/// Answers come from the VIPs.
fn works(client: &Host) {
    for family in [0, 1] {
        client.within(|| {
            let mut flow = Flow::open(vip(family, TCP)).unwrap();
            assert_eq!(flow.pod, "p11");
            flow.bulk(200_000).unwrap();
            let socket = UdpSocket::bind((CLIENT[family], 0)).unwrap();
            assert!(ask(&socket, vip(family, UDP)).unwrap().starts_with("p11 "));
        });
    }
}

/// What the agent sees of the host's interface.
fn seen(host: &Host) -> Seen {
    let ifindex = ifindex(host, DEVICE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    host.within(|| {
        runtime.block_on(async {
            let netlink = Netlink::open().unwrap();
            let xdp = netlink.xdp_programs_on([ifindex].into()).await.unwrap();
            Seen { xdp, filters: netlink.filters_on([ifindex].into()).await.unwrap() }
        })
    })
}

fn filters(host: &Host) -> usize {
    let shown = host.run(&format!("tc filter show dev {DEVICE} egress")).unwrap();
    assert!(shown.is_empty() || shown.contains("penstock_out"), "{shown}");
    shown.matches("handle 0x").count()
}

#[test]
fn a_filter_translates_answers_and_takes_the_place_of_an_older_one() {
    let Some(lab) = crate::rig::lab() else { return };
    let [client, node, _pod] = hosts(&lab);
    let mut first = attached(&node);
    let ifindex = ifindex(&node, DEVICE);
    node.within(|| first.kernel.attach(DEVICE, ifindex, Attached::Native)).unwrap();
    works(&client);

    // The next one has tables of its own: flows of the first are none of its.
    let second = attached(&node);
    assert_eq!(filters(&node), 1);
    node.within(move || drop(second));
    assert_eq!(filters(&node), 0);

    node.within(|| first.kernel.attach_filter(DEVICE, ifindex)).unwrap();
    works(&client);
    node.within(move || drop(first));
    assert_eq!(filters(&node), 0);
}

#[test]
fn a_filter_is_asked_before_those_that_let_packets_pass_and_knows_where_it_is_not() {
    let Some(lab) = crate::rig::lab() else { return };
    let [client, node, _pod] = hosts(&lab);
    let ifindex = ifindex(&node, DEVICE);
    let put = |handle| node.within(|| classifier::filter(DEVICE, PASS, 1, handle)).unwrap();
    let before = |engine: &Engine| -> Vec<String> {
        engine.kernel.preceded(&seen(&node)).values().flat_map(|programs| kernel::names(programs)).collect()
    };
    put(1);
    let mut engine = attached(&node);
    node.within(|| engine.kernel.attach(DEVICE, ifindex, Attached::Native)).unwrap();
    works(&client);
    assert_eq!(before(&engine), [""; 0]);

    put(2);
    assert_eq!(before(&engine), [NAME]);

    node.within(|| engine.kernel.attach_filter(DEVICE, ifindex)).unwrap();
    works(&client);
    assert_eq!(before(&engine), [""; 0]);
    assert!(engine.kernel.forget_ended(&seen(&node)).is_empty());

    node.run(&format!("tc qdisc del dev {DEVICE} clsact")).unwrap();
    let ended = engine.kernel.forget_ended(&seen(&node));
    assert_eq!((ended.out, ended.xdp.len()), ([ifindex].into(), 0));
    assert!(!engine.kernel.is_out(ifindex));
    node.within(|| engine.kernel.attach_filter(DEVICE, ifindex)).unwrap();
    works(&client);
    node.within(move || drop(engine));
}

/// Puts a filter of somebody else's on the way out, before ours.
fn put_another(host: &Host, device: &str) {
    host.run(&format!("tc qdisc add dev {device} clsact")).unwrap();
    host.run(&format!("tc filter add dev {device} egress pref 9 bpf bytecode '1,6 0 0 0'")).unwrap();
}

/// What becomes of filters on the way out of these interfaces: of ours, and of somebody else's.
fn remain(host: &Host, devices: &[&str], ours: bool) {
    for device in devices {
        let shown = host.run(&format!("tc filter show dev {device} egress")).unwrap();
        assert_eq!(shown.contains("penstock_out"), ours, "{device}: {shown}");
        assert!(shown.contains("pref 9"), "another's stays: {shown}");
    }
}

/// A host with filters on both interfaces, as an agent leaves them that pins and was killed.
fn left_with_filters(lab: &Lab) -> Host {
    let node = lab.host("n1", &[("front", &["10.1.0.1/24"]), ("back", &["10.2.0.1/24"])]).unwrap();
    for device in DEVICES {
        put_another(&node, device);
    }
    node.within(|| drop(pinning(&node)));
    remain(&node, &DEVICES, true);
    node
}

/// An engine that pins, with filters on both interfaces; to be called on the host.
fn pinning(host: &Host) -> Engine {
    let mut engine = Engine::take_over(CONFIG, None, Pins::open(Path::new(BPFFS)).unwrap()).unwrap();
    for device in DEVICES {
        engine.kernel.attach_filter(device, ifindex(host, device)).unwrap();
    }
    engine
}

#[test]
fn detach_removes_the_filters_that_an_agent_left_and_no_others() {
    let Some(lab) = crate::rig::lab() else { return };
    let node = left_with_filters(&lab);

    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        node.within(|| runtime.block_on(detach(None))).unwrap();

        remain(&node, &DEVICES, false);
    }
}

#[test]
fn an_agent_that_detaches_at_its_end_removes_its_filters_although_it_pins() {
    let Some(lab) = crate::rig::lab() else { return };
    let node = left_with_filters(&lab);

    node.within(|| pinning(&node).kernel.detach());

    remain(&node, &DEVICES, false);
}

#[test]
fn an_agent_removes_the_filters_of_one_before_it_that_it_has_no_use_for() {
    let Some(lab) = crate::rig::lab() else { return };
    let node = left_with_filters(&lab);

    // On one interface it has a link, the other is none of its own.
    let agent = Agent::start(&lab, &node, &[DEVICE], lab.scratch()).unwrap();

    remain(&node, &DEVICES, false);
    lab.stop(agent.pid()).unwrap();
    agent.cli(&["detach"]).unwrap();
}
