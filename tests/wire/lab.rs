//! The harness itself: what the other tests build on.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use lb_tests::echo;

#[test]
fn hosts_of_one_network_reach_each_other_and_vanish_with_the_lab() {
    let Some(lab) = crate::rig::lab() else { return };
    let client = lab.host("client", &[("front", &["10.1.0.2/24", "fd01::2/64"])]).unwrap();
    let server = lab.host("server", &[("front", &["10.1.0.3/24", "fd01::3/64"])]).unwrap();
    let addresses =
        ["10.1.0.3:0", "[fd01::3]:0"].map(|addr| server.within(|| echo::tcp(addr, "server").unwrap()));

    for address in addresses {
        let greeting = client.within(|| {
            let mut line = String::new();
            BufReader::new(TcpStream::connect(address).unwrap()).read_line(&mut line).unwrap();
            line
        });
        assert_eq!(greeting, "server\n");
    }

    let namespace = std::path::PathBuf::from("/run/netns").join(client.namespace());
    assert!(namespace.exists());
    drop(lab);
    assert!(!namespace.exists());
}
