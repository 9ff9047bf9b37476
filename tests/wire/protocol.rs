//! What a real client notices of the whole protocol: refusals at once, echo, datagrams in fragments.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, Rig};

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const EMPTY: [&str; 2] = ["203.0.113.20", "2001:db8:113::20"];

/// TCP 5432 and UDP 5353 on a VIP of each family in `nat` mode, and the same on another without endpoints.
fn services() -> String {
    let mut documents = Vec::new();
    for family in [0, 1] {
        for (protocol, port) in [("TCP", 5432), ("UDP", 5353)] {
            for (kind, vips) in [("full", VIPS), ("empty", EMPTY)] {
                let name = format!("{}-{kind}-{family}", protocol.to_lowercase());
                let vip = vips[family].parse().unwrap();
                let service =
                    LoadBalancer { name: &name, vip, protocol, port, target_port: port, mode: "nat" };
                let backends: Vec<(IpAddr, u16)> =
                    (1..=3).map(|number| (Arms::Two.backend(number)[family], 1)).collect();
                documents.push(match kind {
                    "full" => service.with_backends(&backends),
                    _ => service.yaml(),
                });
            }
        }
    }
    documents.join("---\n")
}

fn at(vip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(vip.parse().unwrap(), port)
}

fn udp_to(address: SocketAddr) -> UdpSocket {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Sends a datagram until it comes back whole.
fn echoed(socket: &UdpSocket, datagram: &[u8]) -> bool {
    let mut buffer = vec![0; 65_536];
    eventually(DEADLINE, || {
        socket.send(datagram).ok();
        let length = socket.recv(&mut buffer).ok()?;
        buffer[..length].ends_with(datagram).then_some(())
    })
    .is_some()
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services())]) else { return };
    rig.client.within(|| {
        for vip in EMPTY {
            let connect = || TcpStream::connect_timeout(&at(vip, 5432), DEADLINE).map(drop);
            let first = eventually(DEADLINE, || {
                let error = TcpStream::connect_timeout(&at(vip, 5432), Duration::from_millis(500)).err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
            assert!(first.is_some(), "{vip}: TCP is not refused");
            let begin = Instant::now();
            assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused, "{vip}");
            // A SYN that is sent again is sent after a second.
            assert!(begin.elapsed() < Duration::from_millis(900), "{vip}: {:?}", begin.elapsed());

            let socket = udp_to(at(vip, 5353));
            let refused = eventually(DEADLINE, || {
                let sent = socket.send(b"?").map(drop);
                let error = sent.and_then(|()| socket.recv(&mut [0; 9]).map(drop)).err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
            assert!(refused.is_some(), "{vip}: UDP is not refused");
        }
    });
}

#[test]
fn a_client_can_ping_a_vip_and_datagrams_of_eight_kilobytes_come_through() {
    let Some(rig) = Rig::new(Arms::Two, &[("services.yaml", services())]) else { return };
    let datagram: Vec<u8> = (0..8000).map(|byte| (byte % 251) as u8).collect();
    for vip in VIPS {
        rig.client.within(|| assert!(echoed(&udp_to(at(vip, 5353)), &datagram), "{vip}"));
        rig.client.run(&format!("ping -c 3 -i 0.2 -W 2 {vip}")).unwrap();
    }
}
