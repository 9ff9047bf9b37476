//! A process takes over from the one before with its kernel part, under punted requests and
//! balanced flows.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::{Authority, LoadBalancer};

use crate::punt::{VIPS, files};
use crate::rig::{Arms, Rig, greeted, still_echoes};

const TAKEOVERS: usize = 5;
const BALANCED: &str = "203.0.113.10";

fn rig() -> Option<Rig> {
    let authority = Authority::new("Wire test authority").unwrap();
    let mut files = files(&authority);
    files.push(("balanced.yaml", balanced(BALANCED)));
    let rig = Rig::new(Arms::Two, &files)?;
    rig.who_answers_tcp(at(BALANCED, 5432), 1);
    rig.client.within(|| {
        let served = eventually(DEADLINE, || request(&mut connect().ok()?).ok());
        assert!(served.is_some(), "{}", rig.agent.log());
    });
    Some(rig)
}

/// TCP 5432 on a VIP, over all backends.
fn balanced(vip: &str) -> String {
    let vip = vip.parse().unwrap();
    let name = format!("echo-{}", vip).replace('.', "-");
    let service =
        LoadBalancer { name: &name, vip, protocol: "TCP", port: 5432, target_port: 5432, mode: "nat" };
    service.with_backends(&[1, 2, 3].map(|number| (Arms::Two.backend(number)[0], 1)))
}

fn at(vip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(vip.parse().unwrap(), port)
}

fn connect() -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&at(VIPS[0], 80), Duration::from_secs(10));
    let stream = stream.map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// One request; whether the connection may have another.
fn request(stream: &mut TcpStream) -> Result<bool, String> {
    stream
        .write_all(b"GET /download/1000 HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        .map_err(|error| format!("send: {error}"))?;
    let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let head = answer.windows(4).position(|end: &[u8]| end == b"\r\n\r\n");
        if let Some(head) = head
            && answer.len() >= head + 4 + 1000
        {
            let head = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let ok = head.starts_with("http/1.1 200");
            return if ok { Ok(!head.contains("connection: close")) } else { Err(head) };
        }
        match stream.read(&mut bytes).map_err(|error| format!("receive: {error}"))? {
            0 => return Err(format!("ended after {} bytes", answer.len())),
            n => answer.extend_from_slice(&bytes[..n]),
        }
    }
}

#[test]
fn takeovers_lose_no_request_to_a_vip_and_no_flow() {
    let Some(mut rig) = rig() else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|number| {
            let stop = Arc::clone(&stop);
            rig.client.spawn(move || -> Result<u64, String> {
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = connect()?;
                    // Every other client has a connection for each request.
                    while request(&mut stream)? && number % 2 == 0 && !stop.load(Ordering::Relaxed) {
                        answered += 1;
                    }
                    answered += 1;
                }
                Ok(answered)
            })
        })
        .collect();
    let mut flows: Vec<(String, BufReader<TcpStream>)> =
        rig.client.within(|| (0..20).map(|_| greeted(at(BALANCED, 5432)).unwrap()).collect());

    for takeover in 0..TAKEOVERS {
        rig.agent = rig.agent.taken_over(&rig.lab).unwrap_or_else(|error| panic!("{error:#}"));
        for (name, flow) in &mut flows {
            still_echoes(flow, "still here").unwrap_or_else(|error| panic!("{takeover}, {name}: {error:#}"));
        }
        rig.who_answers_tcp(at(BALANCED, 5432), 5);
    }

    stop.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for client in load {
        let client = client.join().expect("no panic");
        answered += client.unwrap_or_else(|lost| panic!("{lost}\n{}", rig.agent.log()));
    }
    println!("{TAKEOVERS} takeovers, {answered} requests");
    let status: serde_json::Value =
        serde_json::from_str(&rig.agent.cli(&["status", "--format", "json"]).unwrap()).unwrap();
    assert_eq!(status["takeovers"], TAKEOVERS);
    assert_eq!(status["datapath"]["tables"]["adopted"], true);
}

#[test]
fn the_kernel_part_comes_back_from_a_successor_that_dies() {
    let Some(rig) = rig() else { return };
    let (_, mut flow) = rig.client.within(|| greeted(at(BALANCED, 5432)).unwrap());
    let before = rig.agent.pid();

    let successor = rig.agent.taken_over(&rig.lab).unwrap_or_else(|error| panic!("{error:#}"));
    rig.lab.kill(successor.pid()).unwrap();

    let back = eventually(DEADLINE, || rig.agent.answering().ok().filter(|pid| *pid == before));
    assert!(back.is_some(), "{}{}", rig.agent.log(), successor.log());
    still_echoes(&mut flow, "still here").unwrap();
    rig.client.within(|| request(&mut connect().unwrap())).expect("served at once");
    // And it follows changes again.
    rig.agent.apply("later.yaml", &balanced("203.0.113.12")).unwrap();
    rig.who_answers_tcp(at("203.0.113.12", 5432), 5);
    // The kernel follows a moment before the agent tells of it.
    let adopted = || {
        let status = rig.agent.cli(&["status", "--format", "json"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&status).ok()?;
        (status["datapath"]["tables"]["adopted"] == true).then_some(())
    };
    assert!(eventually(DEADLINE, adopted).is_some(), "{}", rig.agent.log());
}
