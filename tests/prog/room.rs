//! Maps of the kernel that have no room for what is wished: told as long as it lasts, and made up for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use lb_common::maps::RANGES_ENTRIES;
use lb_tests::packet::{OURS, Packet, SYN, tcp};
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::want::Place;
use penstock::model::l4::{ForwardingMode::L2, Prefix, Protocol::Tcp};

const GREEDY: &str = "203.0.113.1:80";
const OTHER: &str = "203.0.113.2:80";

fn place(vip: &str) -> Place {
    let vip: std::net::SocketAddr = vip.parse().expect("an address");
    Place { addr: vip.ip(), port: vip.port(), protocol: Tcp }
}

/// So many addresses from 10.`net`.0.0 on.
fn hosts(net: u8, count: usize) -> BTreeSet<Prefix> {
    let first = u32::from(Ipv4Addr::new(10, net, 0, 0));
    let addrs = (first..).take(count).map(|addr| IpAddr::from(Ipv4Addr::from(addr)));
    addrs.filter_map(|addr| Prefix::new(addr, 32)).collect()
}

#[test]
fn source_ranges_without_room_are_told_until_they_have_some() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let service = |world: World, vip, backend| world.service(Tcp, vip, L2, &[backend]);
    let mut world = service(service(World::new(), GREEDY, "10.0.0.1:80"), OTHER, "10.0.0.2:80");
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    world.want.ranges.insert(place(GREEDY), hosts(1, RANGES_ENTRIES - 10));
    engine.apply(world.want.clone());
    world.want.ranges.insert(place(OTHER), hosts(2, 30));
    let told = |problems: Vec<penstock::model::Problem>| {
        let told = problems.iter().find(|problem| problem.reason == "datapath-full");
        told.map(|problem| (problem.object.to_string(), problem.message.clone()))
    };
    let sees = |engine: &penstock::datapath::engine::Engine, last: u8| {
        let packet = Packet { flags: SYN, ..tcp(&format!("10.2.0.{last}:40000"), OTHER) };
        engine.kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs").action
    };

    let (object, message) = told(engine.apply(world.want.clone())).expect("ten fit, twenty do not");
    assert!(
        message.contains("20 of 30 source ranges of 203.0.113.2") && message.contains("10.2.0.10/32"),
        "{message}"
    );
    assert!(object.contains("203.0.113.2") || object.contains("80"), "{object}");
    let again = told(engine.apply(world.want.clone()));
    assert_eq!(again.map(|(_, again)| again), Some(message), "nothing changed, and it is told");
    assert_eq!((sees(&engine, 9), sees(&engine, 10)), (3, 1), "the tenth fits, the eleventh is dropped");
    engine.settle();
    assert!(!engine.has_room_again(), "there is no room yet");

    world.want.ranges.insert(place(GREEDY), hosts(1, 10));
    engine.apply(world.want.clone());
    engine.settle();

    assert!(engine.has_room_again(), "some was taken");
    assert_eq!(told(engine.apply(world.want.clone())), None);
    assert_eq!(sees(&engine, 29), 3);
    assert_eq!(engine.apply(world.want.clone()), vec![]);
}
