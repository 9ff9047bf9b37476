//! Flows that begin where none can: their answers would come back as questions, or reach nobody.

use lb_tests::packet::{OURS, Packet, udp};
use lb_tests::world::{KEY, LOOPBACK, World, can_run_programs};
use penstock::datapath::engine::{Config, Engine};
use penstock::model::l4::ForwardingMode::{L2, Nat};
use penstock::model::l4::Protocol::Udp;

use crate::run::{Drop, Send, count, run};

#[test]
fn nothing_is_translated_that_comes_from_an_address_of_ours_or_of_nobody() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let world = World::new()
        .service(Udp, "203.0.113.1:80", Nat, &["10.0.0.1:8080"])
        .service(Udp, "203.0.113.2:80", L2, &["10.0.0.2:8080"])
        .service(Udp, "[2001:db8::1]:80", Nat, &["[fd00::1]:8080"]);
    let mut engine = Engine::load(Config::new(KEY, (61_000, 61_999))).expect("the program loads");
    assert_eq!(engine.apply(world.want), vec![]);
    engine.set_interface(LOOPBACK, OURS);
    let mut sends = |src: &str, dst: &str| run(&mut engine, &Packet { ..udp(src, dst) }.bytes());
    let nobody = [
        ("203.0.113.1:80", "203.0.113.1:80"),
        ("203.0.113.2:80", "203.0.113.1:80"),
        ("127.0.0.1:4000", "203.0.113.1:80"),
        ("0.0.0.0:4000", "203.0.113.1:80"),
        ("224.0.0.1:4000", "203.0.113.1:80"),
        ("255.255.255.255:4000", "203.0.113.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("[::]:4000", "[2001:db8::1]:80"),
        ("[::1]:4000", "[2001:db8::1]:80"),
        ("[ff02::1]:4000", "[2001:db8::1]:80"),
    ];

    for (src, dst) in nobody {
        assert_eq!(sends(src, dst), Drop, "{src}");
    }
    for (src, dst) in [
        ("198.51.100.7:4000", "203.0.113.1:80"),
        ("[2001:db8:f::7]:4000", "[2001:db8::1]:80"),
        // What is not translated is the backend's own to judge.
        ("203.0.113.1:80", "203.0.113.2:80"),
    ] {
        assert!(matches!(sends(src, dst), Send(_)), "{src}");
    }
    assert_eq!(count(&engine, "martian-source"), nobody.len() as u64);
}
