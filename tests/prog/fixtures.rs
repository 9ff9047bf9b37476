//! Fixtures.
#[test]
fn loads() {
    use lb_tests::world::World;
    use penstock::model::l4::*;
    let mut e = World::new()
        .service(Protocol::Tcp, "203.0.113.1:80", ForwardingMode::Nat, &["10.0.0.1:8080"])
        .service(Protocol::Tcp, "203.0.113.2:80", ForwardingMode::L2, &["10.0.0.2:8080"])
        .load();
    for (name, dst) in [("nat", "203.0.113.1:80"), ("l2", "203.0.113.2:80"), ("not", "203.0.113.3:80")] {
        let p = lb_tests::packet::tcp("198.51.100.7:40000", dst).bytes();
        let r = e.kernel.test_run("penstock", &p, 1).unwrap();
        eprintln!("{name} {} {}", r.action, lb_tests::packet::csums_are_right(&r.packet));
        let r = e.kernel.test_run("penstock", &p, 1_000_000).unwrap();
        eprintln!("{name} {} {}", r.action, r.nanoseconds);
    }
    eprintln!("{:?}", e.verdicts());
}
