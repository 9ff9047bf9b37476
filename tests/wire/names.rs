//! Services that are names outside: found by DNS, and followed as the answers run out.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use lb_tests::agent::{self, Agent, DEADLINE, eventually};
use lb_tests::echo;

const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 1, 0, 12)];

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: ExternalName, externalName: web.example.net, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: nginx
  rules:
  - host: web.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"#;

/// Answers questions for the IPv4 address of any name with this one, good for a second; of others it knows nothing.
fn serve_names(socket: &UdpSocket, address: &Mutex<Ipv4Addr>) {
    let mut packet = [0; 512];
    while let Ok((length, peer)) = socket.recv_from(&mut packet) {
        let question = &packet[12..length];
        let name = question.iter().position(|byte| *byte == 0).expect("a name ends") + 1;
        let is_v4 = question[name..name + 2] == [0, 1];
        let head = [&packet[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]].concat();
        let mut answer = [&head[..], &question[..name + 4]].concat();
        if is_v4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.lock().expect("an address").octets());
        }
        let _ = socket.send_to(&answer, peer);
    }
}

#[test]
fn a_service_by_name_is_served_and_followed() {
    let Some(lab) = crate::rig::lab() else { return };
    let edge = lab.host("edge", &[("front", &["10.1.0.1/24"])]).unwrap();
    let client = lab.host("client", &[("front", &["10.1.0.7/24"])]).unwrap();
    let others = lab.host("others", &[("front", &["10.1.0.53/24", "10.1.0.11/24", "10.1.0.12/24"])]).unwrap();
    let address = Arc::new(Mutex::new(BACKENDS[0]));
    let socket = others.within(|| {
        for (number, backend) in BACKENDS.into_iter().enumerate() {
            echo::http((backend, 8080), &format!("b{}", number + 1)).unwrap();
        }
        UdpSocket::bind("10.1.0.53:53").unwrap()
    });
    let known = Arc::clone(&address);
    std::thread::spawn(move || serve_names(&socket, &known));
    let dir = lab.scratch();
    std::fs::create_dir_all(dir.join("manifests")).unwrap();
    std::fs::write(dir.join("manifests/all.yaml"), OBJECTS).unwrap();
    let resolv = dir.join("resolv.conf");
    std::fs::write(&resolv, "nameserver 10.1.0.53\n").unwrap();
    // The agent alone sees this file.
    let wrapper = dir.join("penstock");
    let line = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind {} /etc/resolv.conf && exec {} \"$@\"' penstock \"$@\"\n",
        resolv.display(),
        agent::binary().unwrap().display()
    );
    std::fs::write(&wrapper, line).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let flags = ["--datapath=off", "--http=10.1.0.1:80", "--https=10.1.0.1:443"];
    let agent = Agent::start_binary(&wrapper, &lab, &edge, &[], dir, &flags).unwrap();
    let ask = || client.run("curl -sS --max-time 5 -H 'Host: web.example.com' http://10.1.0.1/x");

    for (number, backend) in BACKENDS.into_iter().enumerate() {
        *address.lock().unwrap() = backend;
        let name = format!("backend: b{}", number + 1);
        let answer = eventually(DEADLINE, || ask().ok().filter(|answer| answer.contains(&name)));
        assert!(answer.is_some(), "{name}: {:?}\n{}", ask(), agent.log());
    }
}
