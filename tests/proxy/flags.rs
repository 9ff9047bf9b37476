//! Flags of ingress-nginx about ports and the end of the process, given to the built agent as a Deployment has them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lb_tests::agent::{binary, eventually};

use crate::rig::{Client, DEADLINE, nobody};
use crate::tls_client::Tls;

/// An agent without any object; it ends with this.
struct Agent {
    process: Child,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start(flags: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("manifests")).expect("writable");
        let mut command = Command::new(binary().expect("built"));
        command.args(["run", "--datapath", "off", "--workers", "1"]).args(flags);
        command.arg("--manifests").arg(dir.path().join("manifests"));
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: command.spawn().expect("start penstock"), _dir: dir }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is answered at a port, once somebody listens there.
fn status(ip: IpAddr, port: u16, path: &str) -> u16 {
    let addr = SocketAddr::new(ip, port);
    let stream = eventually(DEADLINE, || TcpStream::connect(addr).ok()).expect("listened on");
    let mut client = Client::over(stream);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    client.reply().status
}

#[test]
fn ports_are_those_of_the_flags_and_the_end_takes_as_long_as_it_is_told_to() {
    let (here, there) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from([127, 0, 0, 2]));
    let [http, https, health] = std::array::from_fn(|_| nobody().port());
    let flags = [
        format!("--http-port={http}"),
        format!("--https-port={https}"),
        format!("--healthz-port={health}"),
        "--healthz-host=127.0.0.2".to_owned(),
        "--health-check-path=/alive".to_owned(),
        "--post-shutdown-grace-period=2".to_owned(),
    ];
    let mut agent = Agent::start(&flags);

    let is_well = || (status(there, health, "/alive") == 200).then_some(());
    assert!(eventually(DEADLINE, is_well).is_some());
    assert!(TcpStream::connect((here, health)).is_err(), "health has one address");
    // On every address.
    assert_eq!([here, there].map(|ip| status(ip, http, "/")), [404, 404]);
    let mut tls = Tls::connect(SocketAddr::new(there, https), "a.example");
    assert_eq!(tls.status("a.example", "/"), 404);

    let told = Instant::now();
    let sent = Command::new("kill").arg(agent.process.id().to_string()).status();
    assert!(sent.expect("kill").success());
    let ended = eventually(DEADLINE, || agent.process.try_wait().expect("a child"));
    assert!(ended.is_some_and(|ended| ended.success()), "{ended:?}");
    assert!(told.elapsed() >= Duration::from_secs(2), "{:?}", told.elapsed());
}
