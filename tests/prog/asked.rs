//! Who is asked for a flow that the tunnel's receiver does not know, beyond the two owners that its packet names.

use lb_common::tunnel::Round;
use lb_tests::packet::{OURS, tcp};
use lb_tests::world::{CONFIG, LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::now;
use penstock::model::l4::{FiveTuple, ForwardingMode::*, Protocol::*};

use crate::tunnel::{ELSEWHERE, HERE, PASS, PEER, VIP, away, delivered, run, tag, wrapped};

/// Of a slot that another owner had before, its sender need not know; who had it is asked, for as long as it has flows.
#[test]
fn a_sender_that_knows_of_no_change_is_helped_by_who_does() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = World::new().service(Tcp, VIP, Tunnel, &[ELSEWHERE]);
    world.backends_mut(VIP, Tcp).insert(ELSEWHERE.parse().expect("address"), away());
    world.want.peers = PEER.map(|peer| peer.parse::<std::net::SocketAddr>().expect("address").ip()).into();
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, OURS);
    let grace = u32::from(CONFIG.grace) + 2;
    let mut time = now() + grace;
    engine.settle_at(time);
    let one_here = World::new().service(Tcp, VIP, Local, &[HERE]).backends_mut(VIP, Tcp).clone();
    world.backends_mut(VIP, Tcp).extend(one_here);
    assert_eq!(engine.apply_at(world.want.clone(), time), vec![]);
    let (here, other) = (tag(HERE), tag(ELSEWHERE));
    let is_contested = |port: &u16| {
        let inner = tcp(&format!("198.51.100.7:{port}"), VIP);
        let flow = FiveTuple { protocol: Tcp, src: inner.src, dst: inner.dst };
        engine.explain(flow).steps.iter().any(|step| step.detail.contains("contested"))
    };
    let port = (1024..1088).find(is_contested).expect("a slot that went to the backend here");
    let inner = tcp(&format!("198.51.100.7:{port}"), VIP);

    for round in 0..4 {
        let (action, sent) = run(&mut engine, &wrapped(0, &inner, Round::First, here, 0).bytes());
        assert!(action > PASS, "{round}: {action}");
        assert_eq!(sent[42..], wrapped(0, &inner, Round::Second, other, here).bytes()[42..], "{round}");
        time += grace;
        engine.settle_at(time);
    }
    // It has been silent for so long.
    engine.settle_at(time + grace);
    let (action, out) = run(&mut engine, &wrapped(0, &inner, Round::First, here, 0).bytes());
    assert_eq!((action, out), (PASS, delivered(&inner, HERE)));
}
