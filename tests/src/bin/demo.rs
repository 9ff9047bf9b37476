//! The demo: a client, an edge host and three backends in network namespaces, the real binary on
//! the manifests of `deploy/examples`, real traffic, and a report of what happened. Ends with 1 if something did
//! not happen as the report claims. Started by `cargo xtask demo`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_tests::agent::{self, Agent, eventually};
use lb_tests::echo;
use lb_tests::manifests::{self, Authority, LoadBalancer, Slice};
use lb_tests::netns::{Host, Lab, stop_if_interrupted, take_down_kept};

const CLIENT: &str = "198.51.100.7";
const EDGE: &str = "198.51.100.1";
const LEDGER: &str = "203.0.113.10";
const LEDGER_V6: &str = "2001:db8:113::10";
const INGRESS: &str = "203.0.113.80";

/// Services of the examples, the port of each on the backends, and the backends that have it.
const SERVICES: [(&str, u16, &[usize]); 4] = [
    ("ml-api-service", 8080, &[1, 2, 3]),
    ("mlflow-service", 5000, &[1]),
    ("tensorboard-service", 6006, &[2]),
    ("prometheus-service", 9090, &[3]),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        [] => demo(false),
        ["--keep"] => demo(true),
        ["--down"] => take_down_kept().map(|namespaces| {
            println!("took {namespaces} namespaces down");
            true
        }),
        ["backend", name, addresses @ ..] => backend(name, addresses).map(|()| true),
        _ => Err(anyhow::anyhow!("allowed: --keep, --down")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A process of its own, so that it outlives us after `--keep`.
fn backend(name: &str, addresses: &[&str]) -> Result<()> {
    for (_, port, _) in SERVICES {
        echo::http(("0.0.0.0", port), name)?;
    }
    for address in addresses {
        let address: IpAddr = address.parse()?;
        echo::tcp((address, 5432), name)?;
        echo::udp((address, 5353), name)?;
    }
    loop {
        std::thread::park();
    }
}

/// Everything the steps share.
struct Demo {
    client: Host,
    agent: Agent,
    ca: PathBuf,
    failures: usize,
}

fn demo(keep: bool) -> Result<bool> {
    let lab = Lab::new()?;
    let dir = lab.scratch();
    let client = lab.host("client", &[("front", &[&format!("{CLIENT}/24"), "2001:db8:100::7/64"])])?;
    let edge = lab.host(
        "edge",
        &[
            ("front", &[&format!("{EDGE}/24"), "2001:db8:100::1/64"]),
            ("back", &["10.20.0.1/24", "fd20::1/64"]),
        ],
    )?;
    client.route("203.0.113.0/24", EDGE.parse()?)?;
    client.route("2001:db8:113::/64", "2001:db8:100::1".parse()?)?;
    for number in 1..=3 {
        let (v4, v6) = (format!("10.20.0.1{number}"), format!("fd20::1{number}"));
        let name = format!("backend-{number}");
        let host = lab.host(&name, &[("back", &[&format!("{v4}/24"), &format!("{v6}/64")])])?;
        let mut command = host.command(std::env::current_exe()?);
        command.args(["backend", &name, &v4, &v6]);
        lab.start(command, &dir.join(format!("{name}.log")))?;
    }

    let authority = Authority::new("Penstock demo authority")?;
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, authority.pem())?;
    let manifests = dir.join("manifests");
    std::fs::create_dir_all(&manifests)?;
    std::fs::write(manifests.join("ledger.yaml"), ledger()?)?;
    std::fs::write(manifests.join("ingress-service.yaml"), manifests::ingress_service(&[INGRESS.parse()?]))?;
    std::fs::write(manifests.join("services.yaml"), services()?)?;
    std::fs::write(manifests.join("phase-2.yaml"), example("phase-2")?)?;
    let agent = Agent::start(&lab, &edge, &["eth0", "eth1"], dir)?;
    println!(
        "client {CLIENT}  ->  edge host {EDGE} (penstock, pid {})  ->  backends 10.20.0.11, .12, .13\n",
        agent.pid()
    );

    let mut demo = Demo { client, agent, ca, failures: 0 };
    let outcome = demo.steps(&authority);
    stop_if_interrupted();
    if let Err(error) = &outcome {
        println!("\nthe agent's log:\n{}", demo.agent.log());
        println!("FAILED: {error:#}");
    }
    let passed = outcome.is_ok() && demo.failures == 0;
    println!(
        "\n{}",
        if passed { "Everything above was checked." } else { "NOT everything went as claimed." }
    );
    if keep {
        lab.keep()?;
        demo.play(&edge, dir);
    } else {
        println!("Next: `cargo xtask demo --keep` leaves it up to play with; your own manifests: README.md.");
    }
    Ok(passed)
}

impl Demo {
    fn steps(&mut self, authority: &Authority) -> Result<()> {
        println!("L4: Service `ledger`, balanced in the kernel by XDP");
        let (name, mut flow) = self.first_connection(LEDGER)?;
        self.balance(LEDGER, 60)?;
        self.balance(LEDGER_V6, 60)?;
        self.datagrams(60)?;

        println!("\nL7, deploy/examples/phase-2.yaml: http://api.example.com, all paths");
        let answers = self.fetch("http://api.example.com/predict?n=[1-30]", &[])?;
        self.spread("30 requests", &count(&answers, "backend: "), 3);
        // rewrite-target equals the path here, and then ingress-nginx rewrites nothing.
        self.seen_path("/predict?n=1", &answers, "/predict?n=1");

        println!(
            "\nL7, phase 3 dropped into the directory: paths of http://ml.example.com, rewrite-target: /$2"
        );
        self.agent.apply("phase-3.yaml", &example("phase-3")?)?;
        for (path, seen, backend) in [
            ("/api/predict", "/predict", None),
            ("/mlflow", "/", Some("backend-1")),
            ("/tensorboard/runs/7", "/runs/7", Some("backend-2")),
            ("/metrics/api/v1/query?query=up", "/api/v1/query?query=up", Some("backend-3")),
        ] {
            let answers = self.fetch(&format!("http://ml.example.com{path}"), &[])?;
            self.seen_path(path, &answers, seen);
            if let Some(backend) = backend {
                let who = count(&answers, "backend: ");
                self.claim(
                    who.contains_key(backend),
                    &format!("served by {backend}, the only one with that Service"),
                );
            }
        }

        println!("\nTLS, phase 4 dropped into the directory, with a certificate for api.example.com");
        let secret = authority.secret("api-tls-cert", "api.example.com")?;
        self.agent.apply("phase-4.yaml", &format!("{}---\n{secret}", example("phase-4")?))?;
        self.tls()?;

        println!("\nNothing was reloaded");
        let echoed = ask(&mut flow, "still here?").unwrap_or_default();
        self.claim(echoed == "still here?", "the first TCP connection lived through all these changes");

        println!("\nExplained by the code that decides");
        self.explain(&name, &flow)?;

        println!("\npenstock status");
        let status = self.agent.cli(&["status"])?;
        status.lines().take(24).for_each(|line| println!("    {line}"));
        self.claim(status.contains(LEDGER), "the VIP is listed");
        Ok(())
    }

    /// Prints a claim with its truth.
    fn claim(&mut self, holds: bool, claim: &str) {
        println!("  {} {claim}", if holds { "ok  " } else { "FAIL" });
        self.failures += usize::from(!holds);
    }

    fn spread(&mut self, what: &str, who: &BTreeMap<String, usize>, backends: usize) {
        let shares: Vec<_> = who.iter().map(|(name, answers)| format!("{name} {answers}")).collect();
        let claim = format!("{what}: {}", shares.join(", "));
        self.claim(who.len() == backends && who.values().all(|answers| *answers >= 5), &claim);
    }

    fn seen_path(&mut self, asked: &str, answers: &str, expected: &str) {
        let seen = answers.lines().find_map(|line| line.strip_prefix("path: ")).unwrap_or("nothing");
        self.claim(seen == expected, &format!("{asked} arrives at the backend as {seen}"));
    }

    fn first_connection(&self, vip: &str) -> Result<(String, BufReader<TcpStream>)> {
        let address: SocketAddr = format!("{vip}:5432").parse()?;
        let connect = || self.client.within(|| connect(address).ok());
        eventually(agent::DEADLINE, connect).with_context(|| format!("no connection to {address}"))
    }

    fn balance(&mut self, vip: &str, connections: usize) -> Result<()> {
        let address = SocketAddr::new(vip.parse()?, 5432);
        let names: Result<Vec<String>> =
            self.client.within(|| (0..connections).map(|_| connect(address).map(|(name, _)| name)).collect());
        let names = names.with_context(|| format!("connect to {address}"))?;
        self.spread(&format!("{connections} TCP connections to {address}"), &tally(names), 3);
        Ok(())
    }

    fn datagrams(&mut self, datagrams: usize) -> Result<()> {
        let names: Result<Vec<String>> = self.client.within(|| {
            (0..datagrams)
                .map(|_| {
                    let socket = std::net::UdpSocket::bind((CLIENT, 0))?;
                    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                    socket.send_to(b"?", (LEDGER, 5353))?;
                    let mut buffer = [0; 64];
                    let length = socket.recv(&mut buffer)?;
                    let answer =
                        String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
                })
                .collect()
        });
        let names = names.with_context(|| format!("ask {LEDGER}:5353 by UDP"))?;
        self.spread(&format!("{datagrams} UDP flows to {LEDGER}:5353"), &tally(names), 3);
        Ok(())
    }

    /// Fetches until a backend answers: a dropped-in file takes effect within a moment.
    fn fetch(&self, url: &str, args: &[&str]) -> Result<String> {
        let served = || self.curl(url, args).ok().filter(|answer| answer.contains("backend: "));
        eventually(agent::DEADLINE, served).with_context(|| match self.curl(url, args) {
            Ok(answer) => format!("{url} was not served by a backend:\n{answer}"),
            Err(error) => format!("{url} was not served: {error:#}"),
        })
    }

    fn curl(&self, url: &str, args: &[&str]) -> Result<String> {
        let mut command = self.client.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "10"]).args(resolve()).args(args).arg(url);
        let output = command.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    fn tls(&mut self) -> Result<()> {
        let ca = self.ca.display().to_string();
        let answers = self.fetch("https://api.example.com/predict", &["--cacert", &ca, "--verbose"])?;
        for name in ["subject:", "issuer:", "SSL connection using"] {
            let line =
                answers.lines().find_map(|line| line.trim_start_matches("* ").trim().strip_prefix(name));
            let line = line.unwrap_or("nothing").trim();
            let holds = match name {
                "subject:" => line.contains("api.example.com"),
                "issuer:" => line.contains("Penstock demo authority"),
                _ => line.contains("TLSv1.3"),
            };
            self.claim(holds, &format!("{name} {line}"));
        }
        let redirected = eventually(agent::DEADLINE, || {
            let wanted = ["--output", "/dev/null", "--write-out", "%{http_code} %{redirect_url}"];
            self.curl("http://api.example.com/predict", &wanted)
                .ok()
                .filter(|answer| answer.starts_with("308"))
        });
        let redirected = redirected.unwrap_or_else(|| "no 308".to_owned());
        self.claim(
            redirected == "308 https://api.example.com/predict",
            &format!("http://api.example.com/predict now answers {redirected}"),
        );
        Ok(())
    }

    fn explain(&mut self, name: &str, flow: &BufReader<TcpStream>) -> Result<()> {
        let url = "http://ml.example.com/mlflow/experiments";
        let answer = self.agent.cli(&["explain", url])?;
        answer.lines().for_each(|line| println!("    {line}"));
        self.claim(answer.contains("mlflow-service"), &format!("{url} goes to mlflow-service"));

        // The connection says where it went; the explanation has to say the same.
        let (src, dst) = (flow.get_ref().local_addr()?, flow.get_ref().peer_addr()?);
        let answer = self.agent.cli(&["explain", "--flow", &format!("tcp {src} > {dst}")])?;
        answer.lines().for_each(|line| println!("    {line}"));
        let verdict = answer.lines().last().unwrap_or_default();
        let address = name.replace("backend-", "10.20.0.1");
        self.claim(verdict.contains(&address), &format!("that flow is with {name} ({address})"));
        Ok(())
    }

    fn play(&self, edge: &Host, dir: &Path) {
        let resolve = resolve().join(" ");
        let (client, edge) = (self.client.namespace(), edge.namespace());
        let penstock = agent::binary().unwrap_or_default();
        println!("\nIt stays up. Drop, change or delete manifests in {}/manifests, and try:", dir.display());
        println!("  nsenter --net=/run/netns/{client} curl {resolve} http://ml.example.com/api/predict");
        println!(
            "  nsenter --net=/run/netns/{client} curl {resolve} --cacert {} https://api.example.com/",
            self.ca.display()
        );
        println!("  nsenter --net=/run/netns/{client} curl --http0.9 --max-time 1 telnet://{LEDGER}:5432");
        println!("  nsenter --net=/run/netns/{edge} {} status", penstock.display());
        println!("  nsenter --net=/run/netns/{edge} {} explain https://api.example.com/", penstock.display());
        println!("  nsenter --net=/run/netns/{edge} curl -s http://{}/metrics", agent::ADMIN);
        println!("  tail -f {}/penstock.log", dir.display());
        println!("Take it down with: cargo xtask demo --down   (files in {} stay)", dir.display());
    }
}

/// Connects and reads who answers.
fn connect(address: SocketAddr) -> Result<(String, BufReader<TcpStream>)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut name = String::new();
    reader.read_line(&mut name)?;
    Ok((name.trim().to_owned(), reader))
}

fn ask(flow: &mut BufReader<TcpStream>, question: &str) -> Result<String> {
    flow.get_mut().write_all(format!("{question}\n").as_bytes())?;
    let mut answer = String::new();
    flow.read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

fn count(answers: &str, prefix: &str) -> BTreeMap<String, usize> {
    tally(answers.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned))
}

fn tally(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    names.into_iter().for_each(|name| *tally.entry(name).or_default() += 1);
    tally
}

/// What spares the reader an entry in a name server.
fn resolve() -> [String; 2] {
    ["--connect-to".to_owned(), format!("::{INGRESS}:")]
}

/// The TCP and UDP Service `ledger` on an address of each family.
fn ledger() -> Result<String> {
    let mut documents = Vec::new();
    for (name, vip, protocol, port, backends) in [
        ("ledger", LEDGER, "TCP", 5432, "10.20.0.1"),
        ("ledger-v6", LEDGER_V6, "TCP", 5432, "fd20::1"),
        ("ledger-names", LEDGER, "UDP", 5353, "10.20.0.1"),
    ] {
        let backends: Result<Vec<(IpAddr, u16)>> =
            (1..=3).map(|number| Ok((format!("{backends}{number}").parse()?, 1))).collect();
        let service =
            LoadBalancer { name, vip: vip.parse()?, protocol, port, target_port: port, mode: "nat" };
        documents.push(service.with_backends(&backends?));
    }
    Ok(documents.join("---\n"))
}

/// What a cluster would know of the Services of the examples: their ports and where they run.
fn services() -> Result<String> {
    let mut documents = Vec::new();
    for (name, port, backends) in SERVICES {
        let endpoints: Result<Vec<SocketAddr>> =
            backends.iter().map(|number| Ok(format!("10.20.0.1{number}:{port}").parse()?)).collect();
        let slice =
            Slice { name, service: name, port_name: "", protocol: "TCP", endpoints: &endpoints?, weight: 1 };
        documents.push(slice.yaml());
        // ml-api-service stands in phase-2.yaml; the others are left to the reader there.
        if name != "ml-api-service" {
            documents.push(manifests::service(name, port).replace("port: 80\n", &format!("port: {port}\n")));
        }
    }
    Ok(documents.join("---\n"))
}

/// One of `deploy/examples`.
fn example(phase: &str) -> Result<String> {
    let file = lb_tests::workspace().join("deploy/examples").join(format!("{phase}.yaml"));
    std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
}
