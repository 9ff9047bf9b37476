//! A backend that is reached in another mode, or not at all for a while: what began goes on as it began.

use lb_common::nat::Timeouts;
use lb_tests::packet::{ACK, Packet, SYN, tcp};
use lb_tests::world::{NODE_V4, World, backend_mac, can_run_programs, pool_id};
use penstock::datapath::engine::{Engine, now};
use penstock::datapath::want::Lost;
use penstock::model::l4::ForwardingMode::{self, Ipip, L2, Nat, Tunnel};
use penstock::model::l4::Protocol::Tcp;

use crate::run::{Send, run};

const VIP: &str = "203.0.113.1:80";
const OLD: &str = "198.51.100.7:40000";
const NEW: &str = "198.51.100.7:40001";

fn world(mode: ForwardingMode) -> World {
    World::new().service(Tcp, VIP, mode, &["10.0.0.1:80"])
}

fn reach(world: &mut World, engine: &mut Engine, mode: ForwardingMode) {
    world.backends_mut(VIP, Tcp).values_mut().for_each(|backend| backend.mode = mode);
    assert_eq!(engine.apply(world.want.clone()), vec![]);
}

/// Sends a segment and tells source and destination of what goes to the backend.
fn sent(engine: &mut Engine, client: &str, flags: u8) -> (String, String) {
    let Send(out) = run(engine, &Packet { flags, ..tcp(client, VIP) }.bytes()) else { panic!("not sent") };
    assert_eq!(out[..6], backend_mac(1).0);
    let at = |addr: usize, port: usize| {
        let [a, b, c, d] = [out[addr], out[addr + 1], out[addr + 2], out[addr + 3]];
        format!("{a}.{b}.{c}.{d}:{}", u16::from_be_bytes([out[port], out[port + 1]]))
    };
    (at(26, 34), at(30, 36))
}

fn untouched(client: &str) -> (String, String) {
    (client.to_owned(), VIP.to_owned())
}

fn modes(engine: &Engine) -> Vec<ForwardingMode> {
    let totals = engine.totals(&pool_id(VIP.parse().expect("an address"), Tcp));
    totals.into_keys().map(|(_, mode)| mode).collect()
}

#[test]
fn a_flow_that_began_translated_stays_so_until_it_is_over() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = world(Nat);
    let mut engine = world.load();
    let old = sent(&mut engine, OLD, SYN);
    assert!(old.0.starts_with(NODE_V4) && old.1 == "10.0.0.1:80", "{old:?}");

    reach(&mut world, &mut engine, L2);

    assert_eq!(sent(&mut engine, OLD, ACK), old);
    assert_eq!(sent(&mut engine, NEW, SYN), untouched(NEW));
    assert_eq!(sent(&mut engine, NEW, ACK), untouched(NEW));
    let Send(answer) = run(&mut engine, &tcp("10.0.0.1:80", &old.0).bytes()) else { panic!("not sent") };
    assert_eq!((&answer[26..30], &answer[30..34]), (&[203, 0, 113, 1][..], &[198, 51, 100, 7][..]));
    assert_eq!(modes(&engine), [Nat, L2]);

    // Back, and there again: the flows of either mode stay in it.
    reach(&mut world, &mut engine, Nat);
    assert_eq!((sent(&mut engine, OLD, ACK), sent(&mut engine, NEW, ACK)), (old.clone(), untouched(NEW)));
    reach(&mut world, &mut engine, L2);
    assert_eq!((sent(&mut engine, OLD, ACK), sent(&mut engine, NEW, ACK)), (old.clone(), untouched(NEW)));

    // While the translation lasts so does its backend; then nothing is left of the old mode.
    let later = now() + 1_000;
    engine.sweep_at(later, &Timeouts::default()).expect("swept");
    engine.settle_at(later);
    assert_eq!((sent(&mut engine, OLD, ACK), modes(&engine)), (old, vec![Nat, L2]));
    let later = now() + 20_000;
    engine.sweep_at(later, &Timeouts::default()).expect("swept");
    engine.settle_at(later);
    assert_eq!(modes(&engine), [L2]);
    assert_eq!(sent(&mut engine, OLD, ACK), untouched(OLD));
}

#[test]
fn a_flow_that_began_untouched_is_not_translated_later() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = world(L2);
    let mut engine = world.load();
    assert_eq!(sent(&mut engine, OLD, SYN), untouched(OLD));

    reach(&mut world, &mut engine, Nat);

    assert_eq!(sent(&mut engine, OLD, ACK), untouched(OLD));
    let new = sent(&mut engine, NEW, SYN);
    assert!(new.0.starts_with(NODE_V4), "{new:?}");
    assert_eq!(sent(&mut engine, NEW, ACK), new);
}

#[test]
fn a_flow_that_was_wrapped_takes_the_other_header() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let mut world = world(L2);
    let mut engine = world.load();
    reach(&mut world, &mut engine, Ipip);
    let wrapped = sent(&mut engine, OLD, ACK);
    assert!(wrapped.0.starts_with(NODE_V4) && wrapped.1.starts_with("10.0.0.1"), "{wrapped:?}");

    // What a server of its own would not understand goes on as it began.
    reach(&mut world, &mut engine, Tunnel);
    let Send(old) = run(&mut engine, &Packet { flags: ACK, ..tcp(OLD, VIP) }.bytes()) else { panic!() };
    let Send(new) = run(&mut engine, &Packet { flags: SYN, ..tcp(NEW, VIP) }.bytes()) else { panic!() };
    assert_eq!((old[23], new[23]), (4, 17), "IP in IP, and UDP");
}

#[test]
fn translated_flows_survive_that_nobody_knows_the_way() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let world = world(Nat);
    let mut engine = world.load();
    let old = sent(&mut engine, OLD, SYN);

    let mut lost = world.want.clone();
    lost.pools.edit(|_, pool| {
        for (addr, backend) in std::mem::take(&mut pool.backends) {
            pool.lost.insert(addr, Lost { weight: 1, draining: false, mode: Nat, to: backend.to });
        }
    });
    assert_eq!(engine.apply(lost), vec![]);
    let segment = Packet { flags: ACK, ..tcp(OLD, VIP) }.bytes();
    assert_eq!(run(&mut engine, &segment), crate::run::Drop, "the kernel does not know it either");

    assert_eq!(engine.apply(world.want.clone()), vec![]);
    assert_eq!(sent(&mut engine, OLD, ACK), old);
}
