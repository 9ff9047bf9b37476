//! Clients keep their backend whatever port they come from (`sessionAffinity: ClientIP`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;
use socket2::{Domain, Socket, Type};

use crate::rig::{Arms, Rig};

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const SOURCES: u8 = 12;

/// TCP 5432 and UDP 5353 on a VIP of each family over these backends.
fn services(backends: &[usize]) -> String {
    let mut documents = Vec::new();
    for (family, vip) in VIPS.iter().enumerate() {
        let backends: Vec<(IpAddr, u16)> =
            backends.iter().map(|number| (Arms::Two.backend(*number)[family], 1)).collect();
        for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
            let name = format!("{}-{family}", protocol.to_lowercase());
            let vip = vip.parse().unwrap();
            let service = LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode: "nat" };
            let bound = "  type: LoadBalancer\n  sessionAffinity: ClientIP\n";
            documents.push(service.with_backends(&backends).replace("  type: LoadBalancer\n", bound));
        }
    }
    documents.join("---\n")
}

/// An address of the client's own.
fn source(family: usize, number: u8) -> IpAddr {
    let addr = if family == 0 { format!("10.1.0.{}", 100 + number) } else { format!("fd01::1:{number:x}") };
    addr.parse().unwrap()
}

/// Family, protocol and number of a source.
type Source = (usize, &'static str, u8);

/// Who answers a new flow of a source.
fn answers((family, protocol, number): Source) -> Result<String> {
    let from = SocketAddr::new(source(family, number), 0);
    let vip = |port| SocketAddr::new(VIPS[family].parse().expect("an address"), port);
    if protocol == "UDP" {
        let socket = UdpSocket::bind(from)?;
        socket.connect(vip(5353))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        return Ok(String::from_utf8_lossy(&buffer[..length]).trim_end_matches(" ?").to_owned());
    }
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&vip(5432).into(), Duration::from_secs(2))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut name = String::new();
    BufReader::new(stream).read_line(&mut name).context("read the greeting")?;
    Ok(name.trim().to_owned())
}

fn sources(numbers: std::ops::Range<u8>) -> impl Iterator<Item = Source> {
    let kinds = [(0, "TCP"), (0, "UDP"), (1, "TCP"), (1, "UDP")];
    kinds
        .into_iter()
        .flat_map(move |(family, protocol)| numbers.clone().map(move |number| (family, protocol, number)))
}

/// Who answers a new flow of each source.
fn all(rig: &Rig) -> BTreeMap<Source, String> {
    rig.client.within(|| {
        let ask = |source| {
            let name = eventually(DEADLINE, || answers(source).ok());
            (source, name.unwrap_or_else(|| panic!("no answer to {source:?}\n{}", rig.agent.log())))
        };
        sources(0..SOURCES).map(ask).collect()
    })
}

#[test]
fn a_client_keeps_its_backend_until_that_is_gone_whoever_comes() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services(&[1, 2]))]) else { return };
    let strangers = SOURCES..SOURCES + 100;
    for family in [0, 1] {
        for number in 0..strangers.end {
            let bits = if family == 0 { "/24" } else { "/64 nodad" };
            rig.client.run(&format!("ip addr add {}{bits} dev eth0", source(family, number))).unwrap();
        }
    }
    let first = all(&rig);
    assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 2, "{first:?}");
    for _ in 0..3 {
        assert_eq!(all(&rig), first, "whatever the port");
    }

    // Until every Service has sent a client that it never saw to the third.
    rig.agent.apply("services.yaml", &services(&[1, 2, 3])).unwrap();
    let contested = || {
        let page = rig.agent.ask("/metrics").ok()?;
        let slots = page.lines().find_map(|line| line.strip_prefix("penstock_datapath_contested_slots "))?;
        (slots.trim().parse::<f64>().ok()? > 0.0).then_some(())
    };
    assert!(eventually(DEADLINE, contested).is_some(), "the third takes part\n{}", rig.agent.log());
    let mut served = BTreeSet::new();
    rig.client.within(|| {
        for stranger @ (family, protocol, _) in sources(strangers) {
            // A flow of UDP goes to the owner until now for as long as slots are contested.
            if protocol == "TCP"
                && !served.contains(&family)
                && answers(stranger).is_ok_and(|name| name == "b3")
            {
                served.insert(family);
            }
        }
    });
    assert_eq!(served.len(), 2, "new clients get the new backend\n{}", rig.agent.log());
    assert_eq!(all(&rig), first, "who was here before does not");

    rig.agent.apply("services.yaml", &services(&[2, 3])).unwrap();
    let gone = eventually(DEADLINE, || all(&rig).values().all(|name| name != "b1").then_some(()));
    assert!(gone.is_some(), "a flow began at a backend that is gone\n{}", rig.agent.log());
    let then = all(&rig);
    for (source, name) in first.iter().filter(|(_, name)| *name != "b1") {
        assert_eq!(&then[source], name, "{source:?} had one that is still there");
    }
    assert_eq!(all(&rig), then, "who moved stays there");
}
