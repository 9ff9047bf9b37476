//! What is told of known traffic: every series of the kernel part with its value, and every step of an explanation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_common::nat::Timeouts;
use lb_common::{Flow, TCP, wire_port};
use lb_tests::packet::{ACK, OURS, Packet, SYN, tcp, udp};
use lb_tests::world::{self, LOOPBACK, World, can_run_programs, pool_id};
use penstock::datapath::Attached;
use penstock::datapath::engine::{Engine, now};
use penstock::datapath::status;
use penstock::datapath::want::Backend;
use penstock::model::l4::{FiveTuple, ForwardingMode, Protocol};
use penstock::model::report::Metric;

use crate::run::{Send, run};

const CLIENT: &str = "198.51.100.7:40000";

/// Every series as it is rendered, with its value.
fn series(metrics: &[Metric]) -> BTreeMap<String, u64> {
    let mut series = BTreeMap::new();
    for metric in metrics {
        let name = metric.name.strip_prefix("penstock_datapath_").expect("the room's name");
        for sample in &metric.samples {
            let labels: Vec<String> =
                sample.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            series.insert(format!("{name}{{{}}}", labels.join(",")), sample.value as u64);
        }
    }
    series
}

#[test]
fn every_series_of_the_kernel_part_has_its_value_after_known_traffic() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let world = World::new()
        .service(Protocol::Tcp, "203.0.113.1:80", ForwardingMode::L2, &["10.0.0.1:80"])
        .service(Protocol::Udp, "203.0.113.2:53", ForwardingMode::Nat, &["10.0.0.2:5353"])
        .service(Protocol::Tcp, "[2001:db8:1::1]:80", ForwardingMode::Local, &["[fd00::3]:8080"])
        .service(Protocol::Tcp, "203.0.113.3:80", ForwardingMode::L2, &[]);
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let syn = |src: &str, vip| Packet { flags: SYN, ..tcp(src, vip) };
    // 40 bytes of headers over IPv4 and TCP, 28 over UDP, 60 over IPv6 and TCP; five of payload.
    let frames = [
        syn(CLIENT, "203.0.113.1:80"),
        tcp(CLIENT, "203.0.113.1:80"),
        syn("198.51.100.7:40001", "203.0.113.1:80"),
        // Begins nothing.
        Packet { flags: SYN | ACK, ..tcp("198.51.100.7:40002", "203.0.113.1:80") },
        Packet { flags: SYN | 4, ..tcp("198.51.100.7:40003", "203.0.113.1:80") },
        udp(CLIENT, "203.0.113.2:53"),
        udp(CLIENT, "203.0.113.2:53"),
        syn("[2001:db8:2::7]:40000", "[2001:db8:1::1]:80"),
        tcp(CLIENT, "203.0.113.3:80"),
        tcp(CLIENT, "203.0.113.1:81"),
        tcp(CLIENT, "10.0.0.254:22"),
        tcp(CLIENT, "192.0.2.1:80"),
    ];
    for frame in &frames {
        engine.kernel.test_run("penstock", &frame.bytes(), 1).expect("the program runs");
    }
    let (translated, _) = engine.sweep_at(now(), &Timeouts::default()).expect("swept");
    let interfaces = BTreeMap::from([("eth7".to_owned(), Attached::Native)]);

    let told = series(&status::metrics(&engine, &interfaces, translated));

    let backend = |service, port, protocol, backend, mode| {
        format!(
            "namespace=test,service={service},port={port},protocol={protocol},backend={backend},mode={mode}"
        )
    };
    let vip =
        |service, vip, protocol| format!("namespace=test,service={service},vip={vip},protocol={protocol}");
    let got = [
        (backend("203.0.113.1", 80, "tcp", "10.0.0.1:80", "l2"), [5, 225, 2]),
        (backend("203.0.113.2", 53, "udp", "10.0.0.2:5353", "nat"), [2, 66, 1]),
        (backend("2001:db8:1::1", 80, "tcp", "[fd00::3]:8080", "local"), [1, 65, 1]),
    ];
    let of_vips = [
        (vip("203.0.113.1", "203.0.113.1:80", "tcp"), [5, 225, 2]),
        (vip("203.0.113.2", "203.0.113.2:53", "udp"), [2, 66, 1]),
        (vip("2001:db8:1::1", "[2001:db8:1::1]:80", "tcp"), [1, 65, 1]),
        (vip("203.0.113.3", "203.0.113.3:80", "tcp"), [0, 0, 0]),
    ];
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (what, all) in [("backend", &got[..]), ("vip", &of_vips[..])] {
        for (labels, totals) in all {
            for (kind, value) in ["packets", "bytes", "flows"].into_iter().zip(totals) {
                expected.insert(format!("{what}_{kind}_total{{{labels}}}"), *value);
            }
        }
    }
    let counted = [
        ("forwarded-l2", 5),
        ("forwarded-nat", 2),
        ("forwarded-local", 1),
        ("no-backend", 1),
        ("closed-port", 1),
        ("node", 1),
    ];
    for verdict in lb_common::Verdict::ALL.iter().filter(|it| **it != lb_common::Verdict::NotOurs) {
        let count = counted.iter().find(|(name, _)| *name == verdict.as_str()).map_or(0, |(_, count)| *count);
        expected.insert(format!("packets_total{{verdict={}}}", verdict.as_str()), count);
    }
    for event in lb_common::verdict::Event::ALL {
        expected.insert(format!("events_total{{event={}}}", event.as_str()), 0);
    }
    let plain = [
        ("flow_table_flows", 0),
        ("flow_table_size", 1 << 17),
        ("contested_slots", 0),
        ("tables_adopted", 0),
        ("nat_ports", 4_536),
        ("nat_ports_used", 1),
        ("backend_ids", 32_767),
        ("backend_ids_used", 3),
        ("vips", 4),
        ("backends", 3),
    ];
    expected.extend(plain.map(|(name, value)| (format!("{name}{{}}"), value)));
    expected.insert("interface_info{interface=eth7,mode=native}".to_owned(), 1);
    expected.insert("translated_flows{mode=nat}".to_owned(), 1);
    expected.insert("translated_flows{mode=local}".to_owned(), 1);
    let mut told_but_age = told.clone();
    assert!(told_but_age.remove("tables_age_seconds{}").is_some_and(|age| age < 120), "{told:#?}");
    assert_eq!(told_but_age, expected);
}

#[test]
fn slots_in_transition_and_remembered_flows_are_counted_until_they_settle() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let vip = "203.0.113.9:80";
    let mut world =
        World::new().service(Protocol::Tcp, vip, ForwardingMode::L2, &["10.0.0.1:80", "10.0.0.2:80"]);
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let told = |engine: &Engine| series(&status::metrics(engine, &BTreeMap::new(), Default::default()));
    assert_eq!(told(&engine)["contested_slots{}"], 0);
    let flows = |engine: &mut Engine| -> Vec<u8> {
        let syn = |port| Packet { flags: SYN, ..tcp(&format!("198.51.100.7:{port}"), vip) };
        let sent = (1024..1424).map(|port| run(engine, &syn(port).bytes()));
        sent.map(|result| if let Send(frame) = result { frame[5] } else { panic!("not sent") }).collect()
    };
    let before = flows(&mut engine);
    let added: SocketAddr = "10.0.0.3:80".parse().expect("an address");
    let whole = Backend { mode: ForwardingMode::L2, ..world::backend(added.ip()) };
    world.backends_mut(vip, Protocol::Tcp).insert(added, whole);
    assert_eq!(engine.apply(world.want.clone()), vec![]);

    let (slots, contested) =
        engine.table_size(&pool_id(vip.parse().unwrap(), Protocol::Tcp)).expect("a table");
    let after = flows(&mut engine);
    let taken = after.iter().filter(|backend| **backend == 3).count();
    // Slots change hands between the others as well, if few.
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();

    let all = told(&engine);
    assert!((slots as usize / 4..slots as usize / 2).contains(&contested), "{contested} of {slots}");
    assert_eq!(all["contested_slots{}"], contested as u64);
    assert_eq!(all["events_total{event=flows-remembered}"], moved as u64);
    let backend = "namespace=test,service=203.0.113.9,port=80,protocol=tcp,backend=10.0.0.3:80,mode=l2";
    assert_eq!(all[&format!("backend_flows_total{{{backend}}}")], taken as u64);
    engine.settle_at(now() + 1_000);
    assert_eq!(told(&engine)["contested_slots{}"], 0);
}

/// The steps of an explanation, by name.
fn steps(engine: &Engine, flow: &FiveTuple) -> BTreeMap<String, String> {
    engine.explain(*flow).steps.into_iter().map(|step| (step.name, step.detail)).collect()
}

fn flow(src: &str, vip: &str) -> FiveTuple {
    format!("tcp {src} > {vip}").parse().expect("a flow")
}

#[test]
fn explain_tells_slot_mode_and_next_hop_of_every_mode() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let modes = [
        (ForwardingMode::L2, "l2: by its MAC, addresses untouched"),
        (ForwardingMode::Ipip, "ipip: wrapped for 10.0.0.1"),
        (ForwardingMode::Tunnel, "tunnel: wrapped for the balancer on node 10.0.0.1, which delivers"),
        (ForwardingMode::Nat, "nat: both addresses translated, answers come back here"),
        (ForwardingMode::Local, "local: on this node, destination translated"),
    ];
    let vip = |number: usize| format!("203.0.113.{number}:80");
    let world = modes.iter().enumerate().fold(World::new(), |world, (number, (mode, _))| {
        world.service(Protocol::Tcp, &vip(number), *mode, &["10.0.0.1:80"])
    });
    let engine = world.load();
    for (number, (mode, told)) in modes.iter().enumerate() {
        let asked = flow(CLIENT, &vip(number));
        let all = steps(&engine, &asked);

        let hash = wire(&asked).hash(engine.hash_key());
        let (slots, _) = engine.table_size(&pool_id(asked.dst, Protocol::Tcp)).expect("a table");
        let slot = hash & (u64::from(slots) - 1);
        let pool = format!("test/203.0.113.{number}:80/tcp/v4");
        let hop = match mode {
            ForwardingMode::Local => "left to this host's stack".to_owned(),
            _ => "02:00:00:00:01:01 by interface 1 (02:00:00:00:00:02), MTU 1500".to_owned(),
        };
        assert_eq!(all["vip"], format!("tcp {} belongs to {pool}, mode {mode}, 1 backends", asked.dst));
        assert_eq!(all["hash"], format!("keyed hash of the five-tuple {hash:#018x}"));
        let begins = format!("slot {slot} of {slots} (table generation ");
        assert!(all["slot"].starts_with(&begins), "{begins}: {}", all["slot"]);
        assert!(all["slot"].contains("), settled: owner 10.0.0.1:80 (id "), "{}", all["slot"]);
        assert!(all["backend"].starts_with("10.0.0.1:80 (id "), "{}", all["backend"]);
        assert!(all["backend"].ends_with(&format!(") of {pool}: the slot's owner")), "{}", all["backend"]);
        assert_eq!((all["mode"].as_str(), &all["next hop"]), (*told, &hop));
    }
}

fn wire(flow: &FiveTuple) -> Flow {
    let ports = Flow::ports(wire_port(flow.src.port()), wire_port(flow.dst.port()));
    Flow { src: flow.src.ip().into(), dst: flow.dst.ip().into(), ports, proto: TCP.into() }
}

#[test]
fn explain_tells_both_owners_of_a_contested_slot_and_what_is_remembered() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let vip = "203.0.113.9:80";
    let before = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let mut world = World::new().service(Protocol::Tcp, vip, ForwardingMode::L2, &before);
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let clients: Vec<String> = (0..200).map(|port| format!("198.51.100.7:{}", 1024 + port)).collect();
    let owner = |engine: &mut Engine, client: &str| {
        let Send(frame) = run(engine, &Packet { flags: ACK, ..tcp(client, vip) }.bytes()) else { panic!() };
        format!("10.0.0.{}:80", frame[5])
    };
    let old: Vec<String> = clients.iter().map(|client| owner(&mut engine, client)).collect();
    for last in 4..=6 {
        let addr: SocketAddr = ([10, 0, 0, last], 80).into();
        let whole = Backend { mode: ForwardingMode::L2, ..world::backend(addr.ip()) };
        world.backends_mut(vip, Protocol::Tcp).insert(addr, whole);
    }
    assert_eq!(engine.apply(world.want.clone()), vec![]);
    // Who remembers nothing knows the new owners alone.
    let mut fresh = world.load();
    fresh.set_interface(LOOPBACK, OURS);

    let mut seen = BTreeSet::new();
    for (number, (client, old)) in clients.iter().zip(&old).enumerate() {
        let new = owner(&mut fresh, client);
        let asked = flow(client, vip);
        let begins = number % 2 == 0 && new != *old;
        if begins {
            let syn = Packet { flags: SYN, ..tcp(client, vip) }.bytes();
            assert!(matches!(run(&mut engine, &syn), Send(_)));
        }
        let all = steps(&engine, &asked);

        let slot = &all["slot"];
        let told = |text: &str| assert!(slot.contains(text), "{asked}, {old} to {new}: {text}: {slot}");
        if new == *old {
            told(&format!("), settled: owner {new} (id "));
            assert!(!all.contains_key("flow table") && !all.contains_key("new flow"), "{all:?}");
            seen.insert("settled");
            continue;
        }
        told(&format!("), contested: owner {new} (id "));
        told(&format!(", previous owner {old} (id "));
        let (knows, backend, why) = match begins {
            true => (
                format!("remembers the flow with {new}, "),
                &new,
                "the flow table remembers it for this flow",
            ),
            false => (
                "does not know the flow".to_owned(),
                old,
                "a flow that is not remembered is the previous owner's",
            ),
        };
        assert!(all["flow table"].starts_with(&knows), "{knows}: {}", all["flow table"]);
        assert!(all["backend"].starts_with(&format!("{backend} (id ")), "{}", all["backend"]);
        assert!(all["backend"].ends_with(why), "{}", all["backend"]);
        assert_eq!(all.get("new flow").cloned(), (!begins).then(|| format!("a SYN would go to {new}")));
        assert_eq!(owner(&mut engine, client), *backend, "the program does so");
        seen.insert(if begins { "remembered" } else { "kept" });
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}
