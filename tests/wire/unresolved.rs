//! A next hop that the agent does not know: the program asks the kernel's own routing.

use lb_tests::packet::{tcp, udp};
use lb_tests::world::{World, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::model::l4::ForwardingMode::{Ipip, L2, Nat};
use penstock::model::l4::Protocol::{Tcp, Udp};

const DROP: u32 = 1;
const REDIRECT: u32 = 4;

fn event(engine: &Engine) -> u64 {
    let lookups = engine.events().into_iter().find(|(event, _)| event.as_str() == "fib-lookups");
    lookups.map_or(0, |(_, count)| count)
}

#[test]
fn a_packet_leaves_by_what_the_kernels_routing_knows() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let Some(lab) = crate::rig::lab() else { return };
    let host = lab.host("edge", &[("front", &["10.0.0.254/24", "fd00::fe/64"])]).unwrap();
    let known = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
                 ip link set eth0 address 02:00:00:00:00:fe
                 ip neigh replace 10.0.0.4 lladdr 02:00:00:00:01:04 dev eth0
                 ip neigh replace fd00::4 lladdr 02:00:00:00:01:06 dev eth0";
    host.run(known).unwrap();
    let link = host.run("ip -o link show dev eth0").unwrap();
    let ifindex: u32 = link.split(':').next().and_then(|number| number.trim().parse().ok()).unwrap();
    let services = [
        ("203.0.113.1:80", L2, "10.0.0.4:80"),
        ("203.0.113.2:80", Ipip, "10.0.0.4:80"),
        ("203.0.113.3:80", Nat, "10.0.0.4:80"),
        ("[2001:db8:1::1]:80", L2, "[fd00::4]:80"),
        ("[2001:db8:1::2]:80", Ipip, "[fd00::4]:80"),
        ("[2001:db8:1::3]:80", Nat, "[fd00::4]:80"),
    ];
    let mut world = World::new();
    for (vip, mode, backend) in services {
        for protocol in [Tcp, Udp] {
            world = world.service(protocol, vip, mode, &[backend]);
            for backend in world.backends_mut(vip, protocol).values_mut() {
                backend.way.next_hop = Default::default();
            }
        }
    }

    // The program runs in the host's namespace, as if its packets came by the loopback there.
    host.within(|| {
        let mut engine = world.load();
        engine.kernel.allow_device(ifindex, ifindex).expect("an interface");
        let mut asked = 0;
        for (vip, mode, _) in services {
            let is_v4 = !vip.starts_with('[');
            let client = if is_v4 { "198.51.100.7:40000" } else { "[2001:db8:2::7]:40000" };
            for frame in [tcp(client, vip).bytes(), udp(client, vip).bytes()] {
                let run = engine.kernel.test_run("penstock", &frame, 1).expect("the program runs");

                let last = if is_v4 { 4 } else { 6 };
                let macs = [[2, 0, 0, 0, 1, last], [2, 0, 0, 0, 0, 0xfe]].concat();
                assert_eq!((run.action, &run.packet[..12]), (REDIRECT, &macs[..]), "{vip}, {mode}");
                asked += 1;
                assert_eq!(event(&engine), asked, "{vip}, {mode}");
            }
        }
    });

    // Who is not known there either gets nothing.
    host.run("ip neigh del 10.0.0.4 dev eth0; ip neigh del fd00::4 dev eth0").unwrap();
    host.within(|| {
        let mut engine = world.load();
        engine.kernel.allow_device(ifindex, ifindex).expect("an interface");
        for (vip, mode, _) in services {
            let client = if vip.starts_with('[') { "[2001:db8:2::7]:40000" } else { "198.51.100.7:40000" };
            let run = engine.kernel.test_run("penstock", &tcp(client, vip).bytes(), 1).expect("runs");
            assert_eq!(run.action, DROP, "{vip}, {mode}");
        }
        let dropped = engine.verdicts().into_iter().find(|(it, _)| it.as_str() == "unresolved-next-hop");
        assert_eq!(dropped.map(|(_, count)| count), Some(services.len() as u64));
    });
}
