//! Who is asked for a flow that the tunnel's receiver does not know, beyond the two owners that its packet names.

use lb_common::tunnel::Round;
use lb_tests::packet::{OURS, tcp};
use lb_tests::world::{CONFIG, LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::now;
use penstock::model::l4::{FiveTuple, ForwardingMode::*, Protocol::*};

use crate::tunnel::{ELSEWHERE, HERE, PASS, PEER, VIP, away, delivered, fresh_engine, run, tag, wrapped};

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

/// It may have forgotten them: who is asked second keeps what the first does not know, if the slot is its backend's. If it is not,
/// who has the slot is asked to send back what it does not know.
#[test]
fn segments_that_nobody_knows_stay_where_the_tables_are_fresh() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut engine = fresh_engine();
    let (here, other) = (tag(HERE), tag(ELSEWHERE));
    let mut kept = 0;
    for port in 1024..1088 {
        let inner = tcp(&format!("198.51.100.7:{port}"), VIP);
        let flow = FiveTuple { protocol: Tcp, src: inner.src, dst: inner.dst };
        let owns_it = engine.explain(flow).verdict.contains(HERE);

        let (action, out) = run(&mut engine, &wrapped(0, &inner, Round::Second, here, other).bytes());

        if owns_it {
            kept += 1;
            assert_eq!((action, out), (PASS, delivered(&inner, HERE)), "{port}");
            continue;
        }
        assert!(action > PASS, "{port}: {action}");
        assert_eq!(out[42..], wrapped(0, &inner, Round::Third, other, here).bytes()[42..], "{port}");
        let (action, back) = run(&mut engine, &wrapped(0, &inner, Round::Third, here, other).bytes());
        assert!(action > PASS, "{port}: {action}");
        assert_eq!(back[42..], wrapped(0, &inner, Round::Last, other, 0).bytes()[42..], "{port}");
    }
    assert!((16..48).contains(&kept), "{kept}");
}
