//! Following the network costs what changed, not what there is: ten thousand backends behind three
//! gateways; and announcements that are lost.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::Mac;
use lb_tests::netns::{Host, Lab};
use penstock::datapath::network::{Change, Netlink};

use crate::rig::lab;

const DEADLINE: Duration = Duration::from_secs(10);
const BACKENDS: u32 = 10_000;

/// Backend `number`, behind gateway `number % 3`.
fn backend(number: u32) -> IpAddr {
    let [_, _, high, low] = (number / 3).to_be_bytes();
    IpAddr::from([10, 80 + (number % 3) as u8, high, low])
}

/// An edge with three gateways, whose MACs are written down.
fn edge(lab: &Lab) -> Host {
    let edge = lab.host("edge", &[("net", &["10.2.0.1/24"])]).unwrap();
    for gateway in 0..3 {
        let (net, last) = (80 + gateway, 10 + gateway);
        let line = format!(
            "ip neigh add 10.2.0.{last} lladdr 02:00:00:00:00:{last} nud permanent dev eth0
             ip route add 10.{net}.0.0/16 via 10.2.0.{last}"
        );
        edge.run(&line).unwrap();
    }
    edge
}

fn mac_of(netlink: &Netlink, backend: IpAddr) -> Mac {
    netlink.view().network.ways[&backend].as_ref().unwrap().next_hop.dst()
}

/// What refreshing took until a change was seen.
#[derive(Debug, PartialEq, Eq)]
struct Took {
    /// Routes asked for.
    routes: u64,
    /// Backends of which only the next hop changed; `None`: something else changed, too.
    next_hops: Option<usize>,
}

/// Refreshes until `done`; the time of the refreshes alone is printed.
async fn refresh(case: &str, netlink: &mut Netlink, done: impl Fn(&Netlink) -> bool) -> Took {
    let before = netlink.effort();
    let mut spent = Duration::ZERO;
    let mut next_hops = Some(0);
    let end = Instant::now() + DEADLINE;
    loop {
        let begun = Instant::now();
        let change = netlink.refresh(|one| one.name == "eth0").await.unwrap();
        spent += begun.elapsed();
        next_hops = match change {
            Change::Nothing => next_hops,
            Change::NextHops(ways) => next_hops.map(|sum| sum + ways.len()),
            Change::Everything => None,
        };
        if done(netlink) {
            break;
        }
        assert!(Instant::now() < end, "{case}: not seen");
        let _ = tokio::time::timeout(Duration::from_millis(100), netlink.changed()).await;
    }
    let took = Took { routes: netlink.effort().routes - before.routes, next_hops };
    println!("{case}: {spent:?}, {took:?}");
    took
}

fn within<T: Send>(host: &Host, work: impl AsyncFnOnce() -> T + Send) -> T {
    host.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    })
}

#[test]
fn a_change_asks_for_no_more_than_it_touched() {
    let Some(lab) = lab() else { return };
    let edge = edge(&lab);
    let mut backends: BTreeSet<IpAddr> = (0..BACKENDS).map(backend).collect();
    let took = |routes, next_hops| Took { routes, next_hops };

    within(&edge, async || {
        let mut netlink = Netlink::open().unwrap();
        netlink.set_backends(&backends.iter().copied().collect());
        let first = refresh("start", &mut netlink, |_| true).await;
        assert_eq!(first.routes, u64::from(BACKENDS));

        edge.run("ip neigh replace 10.2.0.10 lladdr 02:00:00:00:00:99 nud permanent dev eth0").unwrap();
        let moved = |n: &Netlink| mac_of(n, backend(0)) == Mac([2, 0, 0, 0, 0, 0x99]);
        assert_eq!(refresh("gateway's MAC", &mut netlink, moved).await, took(0, Some(3_334)));
        assert_eq!(mac_of(&netlink, backend(1)), Mac([2, 0, 0, 0, 0, 0x11]), "the others stay");

        backends.insert(backend(BACKENDS));
        netlink.set_backends(&backends.iter().copied().collect());
        let known = |n: &Netlink| n.view().network.ways.contains_key(&backend(BACKENDS));
        assert_eq!(refresh("one backend more", &mut netlink, known).await, took(1, None));

        edge.run(&format!("ip route add {}/32 via 10.2.0.11", backend(0))).unwrap();
        let moved = |n: &Netlink| mac_of(n, backend(0)) == Mac([2, 0, 0, 0, 0, 0x11]);
        assert_eq!(refresh("one route", &mut netlink, moved).await, took(1, Some(1)));

        let strangers: String =
            (0..200).map(|n| format!("ip route add 10.99.{n}.0/24 via 10.2.0.12\n")).collect();
        edge.run(&strangers).unwrap();
        assert_eq!(refresh("routes of others", &mut netlink, |_| true).await, took(0, Some(0)));

        edge.run("ip link set eth0 mtu 1400").unwrap();
        let smaller = |n: &Netlink| n.view().network.ways[&backend(7)].as_ref().unwrap().mtu == 1400;
        assert_eq!(refresh("MTU", &mut netlink, smaller).await, took(0, None));

        edge.run("ip route replace 10.81.0.0/16 via 10.2.0.12").unwrap();
        let moved = |n: &Netlink| mac_of(n, backend(1)) == Mac([2, 0, 0, 0, 0, 0x12]);
        assert_eq!(refresh("a third of the backends", &mut netlink, moved).await, took(3_334, Some(3_334)));
    });
}

#[test]
fn lost_announcements_are_noticed_and_everything_is_read_anew() {
    let Some(lab) = lab() else { return };
    let edge = edge(&lab);
    let backends: BTreeSet<IpAddr> = (0..30).map(backend).collect();

    within(&edge, async || {
        let mut netlink = Netlink::open_with_buffer(Some(4096)).unwrap();
        netlink.set_backends(&backends.iter().copied().collect());
        refresh("start", &mut netlink, |_| true).await;

        // Nobody listens while this runs: the only thread is here. What matters comes last, when
        // the buffer is full.
        let storm: String =
            (0..200).map(|n| format!("ip route add 10.99.{n}.0/24 via 10.2.0.12\n")).collect();
        edge.run(&storm).unwrap();
        edge.run("ip route replace 10.80.0.0/16 via 10.2.0.12").unwrap();
        edge.run("ip neigh replace 10.2.0.11 lladdr 02:00:00:00:00:99 nud permanent dev eth0").unwrap();

        let true_again = |n: &Netlink| {
            mac_of(n, backend(0)) == Mac([2, 0, 0, 0, 0, 0x12])
                && mac_of(n, backend(1)) == Mac([2, 0, 0, 0, 0, 0x99])
        };
        refresh("after the storm", &mut netlink, true_again).await;
        assert!(netlink.effort().complete >= 2, "nothing was lost: {:?}", netlink.effort());
    });
}
