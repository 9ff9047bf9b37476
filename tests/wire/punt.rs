//! Ports of Ingress traffic reach the proxy, on the node's addresses and on a VIP.

use lb_tests::agent::{Agent, DEADLINE, binary, eventually};
use lb_tests::manifests::{self, Authority, Slice};
use lb_tests::netns::Host;

use crate::rig::{Arms, EDGE, Rig};

pub const VIPS: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];

pub fn files(authority: &Authority) -> Vec<(&'static str, String)> {
    let endpoints: Vec<_> = (1..=3).map(|number| (Arms::Two.backend(number)[0], 8080).into()).collect();
    let slice = Slice {
        name: "web",
        service: "web",
        port_name: "",
        protocol: "TCP",
        endpoints: &endpoints,
        weight: 1,
    };
    vec![
        ("ingress-service.yaml", manifests::ingress_service(&VIPS.map(|vip| vip.parse().unwrap()))),
        ("web.yaml", format!("{}---\n{}", manifests::service("web", 8080), slice.yaml())),
        ("ingress.yaml", manifests::ingress("web", "web.example.com", "web", Some("cert"))),
        ("cert.yaml", authority.secret("cert", "web.example.com").unwrap()),
    ]
}

/// What curl says on the client; the name goes to `address`, whatever DNS would say.
fn curl(rig: &Rig, address: &str, args: &str) -> anyhow::Result<String> {
    curl_on(&rig.client, address, args)
}

/// The same on another host.
fn curl_on(host: &Host, address: &str, args: &str) -> anyhow::Result<String> {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    host.run(&format!("curl -sS --max-time 10 --connect-to web.example.com::{address}: {args}"))
}

#[test]
fn http_and_https_are_served_on_vips_and_on_the_nodes_addresses() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(rig) = Rig::new(Arms::Two, &files(&authority)) else { return };
    let ca = rig.agent.manifests().join("../ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();

    for address in VIPS.iter().chain(&EDGE) {
        for args in
            ["http://web.example.com/x", &format!("--cacert {} https://web.example.com/x", ca.display())]
        {
            let answer =
                eventually(DEADLINE, || curl(&rig, address, args).ok().filter(|a| a.contains("backend: b")));
            let answer = answer.unwrap_or_else(|| {
                panic!("{args} at {address}: {:?}\n{}", curl(&rig, address, args), rig.agent.log())
            });
            let scheme = if args.contains("https") { "https" } else { "http" };
            for line in ["path: /x", "host: web.example.com", &format!("x-forwarded-proto: {scheme}")] {
                assert!(answer.contains(line), "{line} is missing at {address}:\n{answer}");
            }
        }
    }
}

#[test]
fn sources_that_may_not_use_a_vip_are_refused_by_whatever_interface_they_come() {
    let authority = Authority::new("Wire test authority").unwrap();
    let mut files = files(&authority);
    let ranges = "spec:\n  loadBalancerSourceRanges: [10.1.0.0/24, \"fd01::/64\"]\n";
    files[0].1 = files[0].1.replacen("spec:\n", ranges, 1);
    let Some(rig) = Rig::new(Arms::Two, &files) else { return };
    // The program is attached to eth0 and eth1.
    rig.lab.plug(&rig.edge, 2, "pods", &["10.3.0.1/24", "fd03::1/64"]).unwrap();
    let pod = rig.lab.host("pod", &[("pods", &["10.3.0.7/24", "fd03::7/64"])]).unwrap();
    for (vip, via) in VIPS.iter().zip(["10.3.0.1", "fd03::1"]) {
        pod.route(vip, via.parse().unwrap()).unwrap();
        let url = "http://web.example.com/";
        let served = eventually(DEADLINE, || curl(&rig, vip, url).ok().filter(|a| a.contains("backend: b")));
        assert!(served.is_some(), "{:?}\n{}", curl(&rig, vip, url), rig.agent.log());

        let refused = curl_on(&pod, vip, url).map_err(|error| format!("{error:#}"));

        assert!(refused.as_ref().is_err_and(|error| error.contains("onnect")), "{vip}: {refused:?}");
        let itself = curl_on(&rig.edge, vip, url).unwrap();
        assert!(itself.contains("backend: b"), "{vip}: the host itself may: {itself}");
    }
}

#[test]
fn the_binary_by_the_name_of_nginx_shows_what_the_agent_serves() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(rig) = Rig::new(Arms::Two, &files(&authority)) else { return };
    let nginx = rig.lab.scratch().join("nginx");
    std::os::unix::fs::symlink(binary().unwrap(), &nginx).unwrap();
    let asked = |args: &str| rig.edge.command(&nginx).args(args.split(' ')).output().unwrap();

    let shown = asked("-T");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && text.contains("web.example.com"), "{shown:?}");
    let tested = asked("-t");
    assert!(tested.status.success(), "{tested:?}");
    assert!(!asked("-s reload").status.success());

    rig.agent.apply("broken.yaml", "kind: Ingress\n").unwrap();
    let told = eventually(DEADLINE, || {
        let tested = asked("-t");
        (!tested.status.success()).then(|| String::from_utf8_lossy(&tested.stderr).into_owned())
    });
    assert!(told.is_some_and(|told| told.contains("broken.yaml")), "{}", rig.agent.log());
}

#[test]
fn the_backend_learns_the_clients_real_address() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(rig) = Rig::new(Arms::Two, &files(&authority)) else { return };

    for (vip, client) in VIPS.iter().zip(crate::rig::CLIENT) {
        let served =
            || curl(&rig, vip, "http://web.example.com/").ok().filter(|answer| answer.contains("backend: b"));
        let answer = eventually(DEADLINE, served).expect("served");

        assert!(answer.contains(&format!("x-real-ip: {client}\n")), "{answer}");
    }
}

#[test]
fn other_ports_of_an_ingress_vip_are_not_the_proxys() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(rig) = Rig::new(Arms::Two, &files(&authority)) else { return };
    let served = || curl(&rig, VIPS[0], "http://web.example.com/").ok();
    eventually(DEADLINE, served).expect("served");

    let refused = rig.client.run(&format!("curl -sS --max-time 2 http://{}:8081/", VIPS[0]));

    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn a_successor_of_a_killed_agent_serves_at_once_and_nobody_hangs_in_between() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(mut rig) = Rig::new(Arms::Two, &files(&authority)) else { return };
    let url = "http://web.example.com/x";
    let served = |rig: &Rig, vip: &str| {
        let answer = eventually(DEADLINE, || curl(rig, vip, url).ok().filter(|a| a.contains("backend: b")));
        assert!(answer.is_some(), "{vip}: {:?}\n{}", curl(rig, vip, url), rig.agent.log());
    };
    VIPS.iter().for_each(|vip| served(&rig, vip));

    rig.lab.kill(rig.agent.pid()).unwrap();

    for vip in VIPS {
        let refused = format!("{:#}", curl(&rig, vip, url).unwrap_err());
        assert!(refused.contains("Failed to connect") || refused.contains("refused"), "{refused}");
        assert!(!refused.contains("timed out"), "{refused}");
    }
    let dir = rig.lab.scratch().to_owned();
    rig.agent = Agent::start(&rig.lab, &rig.edge, &["eth0", "eth1"], &dir).unwrap();
    VIPS.iter().for_each(|vip| served(&rig, vip));
}
