//! A host that is a backend itself, by a mode that leaves packets as they are: it keeps its own, and sends none back to who
//! sent it.

use lb_tests::icmp::Icmp;
use lb_tests::packet::{OURS, Packet, SYN, tcp, udp};
use lb_tests::shape::{fragments, tagged, with_options};
use lb_tests::world::{LOOPBACK, NODE_V4, World, backend, backend_mac, can_run_programs};
use penstock::datapath::engine::Engine;
use penstock::datapath::want::{Backend, Way};
use penstock::model::l4::ForwardingMode::{self, *};
use penstock::model::l4::{FiveTuple, Protocol::*};

use crate::refuse::error;
use crate::run::{Drop, Pass, Send, count, run};

const VIP: &str = "203.0.113.1:80";
const VIP6: &str = "[2001:db8:1::1]:80";
const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8:2::7]:40000";

/// Has the backend at this address be the host itself.
fn is_here(world: &mut World, vip: &str, addr: &str) {
    for protocol in [Tcp, Udp] {
        let backends = world.backends_mut(vip, protocol);
        let one = backends.get_mut(&addr.parse().expect("an address")).expect("a backend of the test");
        one.way = Way::here(one.to);
    }
}

fn load(world: &World) -> Engine {
    let engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    engine
}

#[test]
fn what_is_for_this_host_itself_stays_as_it_came() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for mode in [L2, Ipip] {
        let mut world = World::new();
        for (vip, own) in [(VIP, "10.0.0.1:80"), (VIP6, "[fd00::1]:80")] {
            world = world.service(Tcp, vip, mode, &[own]).service(Udp, vip, mode, &[own]);
            is_here(&mut world, vip, own);
        }
        let mut engine = load(&world);
        let plain = [
            tcp(CLIENT, VIP).bytes(),
            udp(CLIENT, VIP).bytes(),
            tcp(CLIENT6, VIP6).bytes(),
            Packet { ttl: 1, ..udp(CLIENT6, VIP6) }.bytes(),
        ];
        let mut frames = plain.to_vec();
        frames.extend(plain.iter().flat_map(|frame| [tagged(frame, &[5]), tagged(frame, &[7, 5])]));
        frames.push(with_options(&plain[0], &[1, 1, 1, 0]));
        for datagram in [udp(CLIENT, VIP), udp(CLIENT6, VIP6)] {
            frames.extend(fragments(&Packet { payload: vec![7; 1_000], ..datagram }.bytes(), 600));
        }

        for (number, frame) in frames.iter().enumerate() {
            assert_eq!(run(&mut engine, frame), Pass, "{mode}, frame {number}");
        }

        assert_eq!(count(&engine, "forwarded-here"), frames.len() as u64, "{mode}");
        for flow in [format!("tcp {CLIENT} > {VIP}"), format!("udp {CLIENT6} > {VIP6}")] {
            let explained = engine.explain(flow.parse::<FiveTuple>().expect("a flow"));
            assert!(explained.verdict.starts_with("forwarded-here to "), "{explained:?}");
            assert!(format!("{explained:?}").contains("left to this host's stack"), "{explained:?}");
        }
    }
}

/// Frames of a hundred flows to the VIP, as this host sends them.
fn flows(sender: lb_common::Mac) -> impl Iterator<Item = Vec<u8>> {
    (40_000..40_100).map(move |port| {
        Packet { flags: SYN, src_mac: sender, ..tcp(&format!("198.51.100.7:{port}"), VIP) }.bytes()
    })
}

#[test]
fn hosts_that_are_backends_of_each_other_share_flows_by_one_table() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let hosts = ["10.0.0.1:80", "10.0.0.2:80"];
    let mut engines = hosts.map(|own| {
        let mut world = World::new().service(Tcp, VIP, L2, &hosts).service(Udp, VIP, L2, &hosts);
        is_here(&mut world, VIP, own);
        load(&world)
    });

    let mut kept = [0, 0];
    for frame in flows(lb_tests::packet::ROUTER) {
        let does = engines.each_mut().map(|engine| run(engine, &frame));
        let [here, there] = does.each_ref().map(|does| *does == Pass);
        assert!(here != there, "one of them keeps it: {does:?}");
        kept[usize::from(there)] += 1;
        // What the other gets is what it keeps.
        let other = usize::from(here);
        let Send(sent) = &does[other] else { panic!("{does:?}") };
        let arrived = [&OURS.0[..], &backend_mac(other as u8 + 1).0, &sent[12..]].concat();
        assert_eq!(run(&mut engines[1 - other], &arrived), Pass);
    }

    assert!(kept.iter().all(|flows| *flows > 20), "{kept:?}");
}

#[test]
fn what_a_backend_sent_here_does_not_go_back_to_it() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let (other, own) = ("10.0.0.2:80", "10.0.0.1:80");
    let world = |mode: ForwardingMode, backends: &[&str]| {
        let mut world = World::new().service(Tcp, VIP, mode, backends).service(Udp, VIP, mode, backends);
        // A VIP that the host has on its loopback interface.
        world
            .want
            .addrs
            .insert("203.0.113.1".parse().expect("an address"), penstock::datapath::want::Owner::Node);
        if backends.contains(&own) {
            is_here(&mut world, VIP, own);
        }
        load(&world)
    };

    // Whose tables have this host no more: the client comes again.
    let mut engine = world(L2, &[other]);
    assert!(flows(backend_mac(2)).all(|frame| run(&mut engine, &frame) == Drop));
    assert_eq!(count(&engine, "would-circle"), 100);
    assert!(flows(backend_mac(3)).all(|frame| matches!(run(&mut engine, &frame), Send(_))));

    // Who is a backend, too, takes what the other thinks is for it; be it that some are translated to.
    for translated in [false, true] {
        let mut engine = world(L2, &[own, other]);
        if translated {
            let mut want = engine.want().clone();
            let id = lb_tests::world::pool_id(VIP.parse().expect("an address"), Tcp);
            let pool = want.pools.get_mut(&id).expect("a pool of the test");
            let third = lb_tests::world::backend([10, 0, 0, 3].into());
            pool.backends.insert("10.0.0.3:80".parse().expect("an address"), third);
            assert_eq!(engine.apply(want), vec![]);
        }
        let sent = flows(backend_mac(2)).filter(|frame| matches!(run(&mut engine, frame), Send(_))).count();
        let [here, kept] = ["forwarded-here", "kept-here"].map(|verdict| count(&engine, verdict));
        assert!(here > 20 && kept > 20, "{here} and {kept}");
        assert_eq!(here + kept + sent as u64, 100);
        assert_eq!(sent > 0, translated, "to the third alone");
        if translated {
            continue;
        }
        // So it does with errors about such flows, and with what has no hop left to be sent on with.
        for port in 40_000..40_100 {
            let client = format!("198.51.100.7:{port}");
            let about = tcp(VIP, &client).bytes();
            let error = Icmp {
                src_mac: backend_mac(2),
                ..Icmp::new("192.0.2.66", "203.0.113.1", (3, 4), &about[14..])
            };
            assert_eq!(run(&mut engine, &error.bytes()), Pass, "{client}");
            assert_eq!(run(&mut engine, &Packet { ttl: 1, ..tcp(&client, VIP) }.bytes()), Pass, "{client}");
        }
    }

    // What is wrapped does not come back as it was, and is the stack's at the other end.
    let [mut here, mut there] = [&[other], &[own]].map(|backends| world(Ipip, backends));
    for frame in flows(backend_mac(2)) {
        let Send(sent) = run(&mut here, &frame) else { panic!("not sent") };
        let mut arrived = [&OURS.0[..], &OURS.0, &sent[12..]].concat();
        arrived[30..34].copy_from_slice(&[10, 0, 0, 254]);
        assert_eq!(run(&mut there, &arrived), Pass, "to {NODE_V4}");
    }
    assert_eq!(count(&there, "node"), 100);
}

/// As for the moment of a change: each of three hosts has the VIP and takes the next one for the only backend.
#[test]
fn what_circles_between_three_hosts_ends_after_a_few_rounds_and_is_told() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    for (vip, client, exceeded, hosts) in [
        (VIP, CLIENT, ((11, 0), 548), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]),
        (VIP6, CLIENT6, ((3, 0), 1232), ["[fd00::1]:80", "[fd00::2]:80", "[fd00::3]:80"]),
    ] {
        let place: std::net::SocketAddr = vip.parse().expect("an address");
        // Some backend that is translated to has all packets of a pool take another program.
        for translated in [false, true] {
            let mut engines = hosts.map(|next| {
                let mut world = World::new().service(Tcp, vip, L2, &[next]);
                world.want.addrs.insert(place.ip(), penstock::datapath::want::Owner::Node);
                if translated {
                    let draining = Backend { draining: true, ..backend(place.ip()) };
                    world.backends_mut(vip, Tcp).insert(place, draining);
                }
                load(&world)
            });
            let sent = |ttl, last| Packet {
                ttl,
                dst_mac: OURS,
                src_mac: if last == 0 { lb_tests::packet::ROUTER } else { backend_mac(last) },
                ..tcp(client, vip)
            };

            let mut at = 0;
            for (ttl, from, left) in [(255, 0, 4), (4, 3, 3), (3, 1, 2), (2, 2, 1)] {
                let does = run(&mut engines[at], &sent(ttl, from).bytes());
                let on =
                    Packet { ttl: left, dst_mac: backend_mac(at as u8 + 1), src_mac: OURS, ..sent(ttl, 0) };
                assert_eq!(does, Send(on.bytes()), "{vip}, {ttl}");
                at = (at + 1) % 3;
            }
            let last = sent(1, 3);
            let (kind, most) = exceeded;
            let told = error(&last, kind, [0; 4], most);
            assert_eq!(run(&mut engines[at], &last.bytes()), Send(told.bytes()), "{vip}");
            assert_eq!(count(&engines[at], "told-time-exceeded"), 1, "{vip}");
        }
    }
}
