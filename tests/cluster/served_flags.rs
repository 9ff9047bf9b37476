//! Flags about which objects of the API server are served, and at which ports.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::echo;

use crate::agent::{Agent, Start, backend, own_address};
use crate::objects;
use crate::rig::Rig;

/// An agent of the test's namespace that was started with these, too.
fn agent_with(rig: &Rig, flags: &[&str]) -> Agent {
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let flags = [&[namespace.as_str()], flags].concat();
    Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &[] })
}

#[test]
fn classes_are_ours_by_controller_by_name_or_by_none_as_the_flags_say() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    let name = &rig.namespace;
    let class = |suffix: &str, controller: &str| {
        let class = objects::class().replace("name: NAMESPACE", &format!("name: NAMESPACE-{suffix}"));
        class.replace("k8s.io/ingress-nginx", controller)
    };
    let of_class = |host: &str, class: &str| {
        let ingress = objects::ingress(host, &format!("{host}.example.com"), "web", &[]);
        ingress.replace("  ingressClassName: NAMESPACE\n", class)
    };
    let by_annotation = of_class("annotated", "").replace(
        "metadata:\n  name: annotated\n",
        "metadata:\n  name: annotated\n  annotations: {kubernetes.io/ingress.class: NAMESPACE-word}\n",
    );
    let objects = [
        objects::class(),
        class("own", "example.com/own"),
        class("foreign", "example.com/foreign"),
        objects::service("web", &[one]),
        of_class("usual", "  ingressClassName: NAMESPACE\n"),
        of_class("own", "  ingressClassName: NAMESPACE-own\n"),
        of_class("foreign", "  ingressClassName: NAMESPACE-foreign\n"),
        of_class("none", ""),
        by_annotation,
    ];
    rig.apply(&objects.join("---\n"));
    let all = ["usual", "own", "foreign", "none", "annotated"];

    let (word, foreign) = (format!("--ingress-class={name}-word"), format!("--ingress-class={name}-foreign"));
    let cases: [(&[&str], &[&str]); 6] = [
        (&[], &["usual"]),
        (&["--controller-class=example.com/own"], &["own"]),
        (&[&word], &["usual", "annotated"]),
        (&[&foreign], &["usual"]),
        (&[&foreign, "--ingress-class-by-name"], &["usual", "foreign"]),
        (&["--watch-ingress-without-class"], &["usual", "none"]),
    ];
    for (flags, served) in cases {
        let agent = agent_with(&rig, flags);
        for host in served {
            agent.until_backend(&format!("{host}.example.com"), "one");
        }
        for host in all.iter().filter(|host| !served.contains(host)) {
            let reply = agent.get(&format!("{host}.example.com"), "/");
            assert_eq!(reply.status, 404, "{host} with {flags:?}");
        }
    }
}

#[test]
fn services_that_name_a_host_outside_are_served_unless_a_flag_says_no() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    let (inside, outside) = ("in.example.com", "out.example.com");
    let external = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: out}}\nspec:\n  type: ExternalName\n  externalName: \"{}\"\n  \
         ports: [{{name: http, port: 80, targetPort: {}}}]\n",
        one.ip(),
        one.port()
    );
    let web = [
        objects::class(),
        objects::service("in", &[one]),
        external,
        objects::ingress("in", inside, "in", &[]),
        objects::ingress("out", outside, "out", &[]),
    ];
    rig.apply(&web.join("---\n"));

    let agent = agent_with(&rig, &[]);
    agent.until_backend(inside, "one");
    agent.until_backend(outside, "one");
    let without = agent_with(&rig, &["--disable-svc-external-name"]);
    without.until_backend(inside, "one");

    assert_eq!(without.get(outside, "/").status, 503);
    let status = without.ask("/status");
    assert!(
        status.contains("is of type ExternalName, which --disable-svc-external-name turns off"),
        "{status}"
    );
}

/// A port of the loopback that nobody has, for both protocols to choose from.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Whom a new connection to this port of the agent's host gets.
fn greeting(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(b"hello\n").ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut name = String::new();
    BufReader::new(stream).read_line(&mut name).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The answer to a datagram.
fn answer(port: u16) -> Option<String> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).ok()?;
    socket.connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    socket.send(b"who").ok()?;
    let mut text = [0; 64];
    let length = socket.recv(&mut text).ok()?;
    Some(String::from_utf8_lossy(text.get(..length)?).into_owned())
}

#[test]
fn ports_of_the_config_maps_that_flags_name_are_served_and_follow_them() {
    let Some(rig) = Rig::new() else { return };
    let Some(web) = backend("web") else { return };
    let own = own_address().expect("found by the backend, too");
    let tcp = echo::tcp((own, 0), "stream").expect("a backend");
    let udp = echo::udp((own, 0), "datagrams").expect("a backend");
    let service = |name: &str, protocol: &str, backend: SocketAddr| {
        objects::service(name, &[backend]).replace("protocol: TCP", &format!("protocol: {protocol}"))
    };
    let [first, second, datagrams] = std::array::from_fn(|_| free_port());
    let ports = |name: &str, port: u16, service: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{\"{port}\": NAMESPACE/{service}:80}}\n"
        )
    };
    let objects = [
        objects::class(),
        service("web", "TCP", web),
        objects::ingress("web", "web.example.com", "web", &[]),
        service("stream", "TCP", tcp),
        service("datagrams", "UDP", udp),
        ports("tcp", first, "stream"),
        ports("udp", datagrams, "datagrams"),
    ];
    rig.apply(&objects.join("---\n"));
    let flags = [
        format!("--tcp-services-configmap={}/tcp", rig.namespace),
        format!("--udp-services-configmap={}/udp", rig.namespace),
    ];

    let without = agent_with(&rig, &[]);
    without.until_backend("web.example.com", "web");
    assert_eq!(greeting(first), None, "nobody named the ConfigMaps");
    drop(without);
    let agent = agent_with(&rig, &[&flags[0], &flags[1]]);
    let until = |case: &str, good: &(dyn Fn() -> bool + Sync)| {
        let is_so = eventually(DEADLINE, || good().then_some(()));
        assert!(is_so.is_some(), "{case}: {}", agent.log());
    };

    until("a port of TCP", &|| greeting(first).as_deref() == Some("stream"));
    until("a port of UDP", &|| answer(datagrams).as_deref() == Some("datagrams who"));
    agent.until_backend("web.example.com", "web");
    rig.apply(&ports("tcp", second, "stream"));
    until("the port that came", &|| greeting(second).as_deref() == Some("stream"));
    until("the port that went", &|| TcpStream::connect(("127.0.0.1", first)).is_err());
}
