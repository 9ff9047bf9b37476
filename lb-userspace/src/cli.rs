//! The command line: what can be asked, and how the answers and failures look in a terminal.
//! clap and the environment stop here; below are only [`crate::config`] values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admin;
use crate::agent::{self, StartError};
use crate::config::{self, DatapathMode, OnExit, Pin, Settings, SnippetPolicy, TranslateConfig};
use crate::model::report::Explanation;

mod check;
mod simulate;

/// Load balancer for Kubernetes edges and bare-metal hosts: L4 in the kernel by XDP, L7 and TLS
/// for the flows the kernel punts up.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Balance and serve what the manifests of a directory describe
    Run(Box<RunArgs>),
    /// Say what becomes of every object that ingress-nginx served until now, and what to do about it
    Check(check::CheckArgs),
    /// Say where a URL or a flow goes, and why
    Explain(ExplainArgs),
    /// Show VIPs, backends, routes, certificates and problems of the live agent
    Status(StatusArgs),
    /// Remove what an agent that ended left in the kernel: programs, maps, local routes
    Detach(DetachArgs),
    /// Show packets that the kernel program forwarded, passed or dropped, which tcpdump cannot see
    Capture(CaptureArgs),
    /// Try changes on simulated flows
    #[command(subcommand)]
    Simulate(simulate::SimulateCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 stopped by a signal, 2 usage, 64 configuration, 65 manifests, \
    66 a listener, 67 the datapath could not start, 70 the running agent is not taken over.")]
struct RunArgs {
    /// Directory of Kubernetes manifests (YAML, JSON, sub-folders), followed as it changes
    #[arg(long, value_name = "DIR", env = "PENSTOCK_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// File with these settings as YAML (same names as the flags)
    #[arg(long, value_name = "FILE", env = "PENSTOCK_CONFIG")]
    config: Option<PathBuf>,
    /// Interface for the kernel program, or a start of names and `*`; repeatable [default: those
    /// with a default route]
    #[arg(long, value_name = "IF", env = "PENSTOCK_INTERFACE", value_delimiter = ',')]
    interface: Vec<String>,
    /// Start although none of the interfaces exists yet
    #[arg(
        long,
        value_name = "BOOL",
        env = "PENSTOCK_WAIT_INTERFACES",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    wait_interfaces: Option<bool>,
    /// Native XDP falling back to generic (auto), one of them, or no kernel part [default: auto]
    #[arg(long, value_name = "MODE", env = "PENSTOCK_DATAPATH")]
    datapath: Option<DatapathMode>,
    /// Plain HTTP listener; repeatable [default: [::]:80]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTP", value_delimiter = ',')]
    http: Vec<String>,
    /// TLS listener; repeatable [default: [::]:443]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTPS", value_delimiter = ',')]
    https: Vec<String>,
    /// Health, metrics, status and explain [default: 127.0.0.1:10254]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN")]
    admin: Option<String>,
    /// Proxy workers, one thread each [default: one per CPU]
    #[arg(long, value_name = "N", env = "PENSTOCK_WORKERS")]
    workers: Option<usize>,
    /// Key of the flow hash, the same on all balancers of a VIP [default: random, kept as
    /// long as the tables are]
    #[arg(long, value_name = "32 HEX DIGITS", env = "PENSTOCK_HASH_KEY", hide_env_values = true)]
    hash_key: Option<String>,
    /// Source ports of `nat` flows; keep them out of net.ipv4.ip_local_port_range
    /// [default: 61000-65535]
    #[arg(long, value_name = "LOW-HIGH", env = "PENSTOCK_NAT_PORTS")]
    nat_ports: Option<String>,
    /// Flows remembered at most while slots settle, 8 to 1048576; 8 bytes each [default: 131072]
    #[arg(long, value_name = "N", env = "PENSTOCK_FLOW_ENTRIES")]
    flow_entries: Option<u32>,
    /// How long the flows of a slot that changed its backend are looked up and remembered at least;
    /// a flow that is silent for longer may move [default: 300]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_GRACE_SECONDS")]
    grace_seconds: Option<u32>,
    /// UDP port on which balancers send each other packets for backends on their hosts; 0: none
    /// [default: 7183]
    #[arg(long, value_name = "PORT", env = "PENSTOCK_TUNNEL_PORT")]
    tunnel_port: Option<u16>,
    /// Pin programs and maps, so that the kernel goes on forwarding without the agent and the next one
    /// takes over (auto), or not (off) [default: auto]
    #[arg(long, value_name = "MODE", env = "PENSTOCK_PIN")]
    pin: Option<Pin>,
    /// BPF file system to pin them on; mounted if it is not [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_BPFFS")]
    bpffs: Option<PathBuf>,
    /// After SIGTERM keep what is pinned for the next agent, or detach it [default: keep]
    #[arg(long, value_name = "WHAT", env = "PENSTOCK_ON_EXIT")]
    on_exit: Option<OnExit>,
    /// Longest wait for running requests after SIGTERM, and of those that a successor left [default:
    /// worker-shutdown-timeout of the ConfigMap, else 240]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_DRAIN_SECONDS")]
    drain_seconds: Option<u64>,
    /// After SIGTERM go on serving for so long while /healthz already says 500 [default: 0]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_SHUTDOWN_GRACE_PERIOD")]
    shutdown_grace_period: Option<u64>,
    /// Stay for so long once everything has ended [default: 0]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_POST_SHUTDOWN_GRACE_PERIOD")]
    post_shutdown_grace_period: Option<u64>,
    /// Take over from the agent that runs with this --run-dir: its sockets, counters and kernel part,
    /// without a loss; start as usual if there is none. SIGHUP has an agent start its successor itself
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    takeover: Option<bool>,
    /// Where an agent and its successor meet; one agent each [default: $RUNTIME_DIRECTORY, else
    /// /run/penstock]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Where bodies are put that are to be held whole and are too long for memory [default: $TMPDIR,
    /// else /tmp]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_TEMP_DIR")]
    temp_dir: Option<PathBuf>,
    /// How many MiB of them at most, all together; beyond, requests are answered 500 and responses
    /// wait for their clients [default: 4096]
    #[arg(long, value_name = "N", env = "PENSTOCK_TEMP_MEGABYTES")]
    temp_megabytes: Option<u64>,
    #[command(flatten)]
    meaning: MeaningArgs,
}

/// Flags that decide what objects mean; named as ingress-nginx names them.
#[derive(Debug, Clone, Args)]
struct MeaningArgs {
    /// Service whose VIPs carry Ingress traffic [default: ingress-nginx-controller or penstock,
    /// or a Service annotated penstock.dev/ingress: "true"]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_PUBLISH_SERVICE")]
    publish_service: Option<String>,
    /// Service for requests that no rule takes [default: a built-in 404]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_DEFAULT_BACKEND_SERVICE")]
    default_backend_service: Option<String>,
    /// Secret with the certificate for hosts that have none [default: generated at start]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_DEFAULT_SSL_CERTIFICATE")]
    default_ssl_certificate: Option<String>,
    /// Class name that is ours [default: nginx]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_INGRESS_CLASS")]
    ingress_class: Option<String>,
    /// Controller name in IngressClass objects that is ours [default: k8s.io/ingress-nginx]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_CONTROLLER_CLASS")]
    controller_class: Option<String>,
    /// Serve Ingresses that name no class
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    watch_ingress_without_class: Option<bool>,
    /// Ignore Ingresses with a spec.defaultBackend
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    disable_catch_all: Option<bool>,
    /// Serve no Services of type ExternalName, which name hosts outside
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    disable_svc_external_name: Option<bool>,
    /// Name of this node in EndpointSlices and Node objects [default: $NODE_NAME, else the host's
    /// name]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_NODE_NAME")]
    node_name: Option<String>,
    /// Serve the addresses of Services of this loadBalancerClass alone [default: of those without a
    /// class and of class penstock.dev/load-balancer]
    #[arg(long, value_name = "CLASS", env = "PENSTOCK_LOAD_BALANCER_CLASS")]
    load_balancer_class: Option<String>,
    /// Serve spec.externalIPs, too: any author of a Service may claim any address by it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_EXTERNAL_IPS")]
    external_ips: Option<bool>,
    /// Hand the TLS of hosts with the annotation ssl-passthrough to their Service unopened
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_ENABLE_SSL_PASSTHROUGH")]
    enable_ssl_passthrough: Option<bool>,
    /// What becomes of an Ingress with nginx configuration (`*-snippet`), which is never run: its paths
    /// answer 503, or it is served as if it had none [default: refuse]
    #[arg(long, value_name = "WHAT", env = "PENSTOCK_SNIPPET_POLICY")]
    snippet_policy: Option<SnippetPolicy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  penstock explain https://shop.example.com/cart -H 'X-Canary: true'\n  \
    penstock explain --flow 'tcp 198.51.100.7:40001 > 203.0.113.10:443'\n  \
    penstock explain http://shop.example.com/ --manifests ./manifests\n\
    Exit codes: 0 answered, 2 usage, 65 the manifests cannot be read, 68 no live agent.")]
struct ExplainArgs {
    /// URL of a request
    #[arg(required_unless_present = "flow", conflicts_with = "flow")]
    url: Option<String>,
    /// Header of the request; repeatable
    #[arg(short = 'H', long = "header", value_name = "'Name: value'", conflicts_with = "flow")]
    header: Vec<String>,
    /// Flow instead of a URL
    #[arg(long, value_name = "'tcp SRC:PORT > DST:PORT'")]
    flow: Option<String>,
    /// Answer from this directory instead of the live agent
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Key of the flow hash of the balancers in question (with --manifests and --flow)
    #[arg(long, value_name = "32 HEX DIGITS", env = "PENSTOCK_HASH_KEY", hide_env_values = true)]
    hash_key: Option<String>,
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    meaning: MeaningArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 answered, 2 usage, 68 no live agent.")]
struct StatusArgs {
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 removed, 2 usage, 67 an agent still runs, or no permission.")]
struct DetachArgs {
    /// BPF file system that it is pinned on
    #[arg(long, value_name = "DIR", env = "PENSTOCK_BPFFS", default_value = config::BPFFS)]
    bpffs: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A packet is shown as it left, with its flow as it came; what is passed or dropped, as it \
    came. Traffic that is none of the balancer's is not shown: tcpdump sees it.\n\
    Examples:\n  penstock capture --verdict drop\n  \
    penstock capture --vip 203.0.113.10:443 --count 20\n  \
    penstock capture --host 198.51.100.7 --write flow.pcapng\n  \
    penstock capture --write - | wireshark -k -i -\n\
    Exit codes: 0 fine, 2 usage, 68 no live agent, or another capture runs."
)]
struct CaptureArgs {
    /// Only this verdict: a name of `penstock status` or its beginning and `*`, or pass, drop,
    /// send; repeatable
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    verdict: Vec<String>,
    /// Only packets from or to this VIP
    #[arg(long, value_name = "ADDR[:PORT]")]
    vip: Option<String>,
    /// Only packets from or to this client, backend or balancer
    #[arg(long, value_name = "ADDR")]
    host: Option<String>,
    /// End after this many
    #[arg(long, value_name = "N")]
    count: Option<String>,
    /// End after this long
    #[arg(long, value_name = "S")]
    seconds: Option<String>,
    /// One packet in this many of each CPU [default: 1]
    #[arg(long, value_name = "N")]
    sample: Option<String>,
    /// At most so many packets per second of each CPU; 0: all [default: 1000]
    #[arg(long, value_name = "PPS")]
    rate: Option<String>,
    /// Bytes shown of each packet, at most 512 [default: 96]
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<String>,
    /// Write pcapng to this file (`-`: standard output) instead of lines of text
    #[arg(long, value_name = "FILE.pcapng")]
    write: Option<PathBuf>,
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
}

/// Parses the command line, does what it says, and tells how it went.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::Check(args) => check::check(args),
        Command::Explain(args) => explain(args),
        Command::Status(args) => status(args),
        Command::Detach(args) => detach(args),
        Command::Capture(args) => capture(args),
        Command::Simulate(command) => simulate::simulate(command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("penstock: {error:#}");
        ExitCode::from(error.exit_code())
    })
}

fn run(args: RunArgs) -> Result<ExitCode, StartError> {
    let file = args.config.clone();
    let config = config::resolve(args.into_settings(), file.as_deref()).map_err(StartError::Config)?;
    agent::run(config)?;
    Ok(ExitCode::SUCCESS)
}

fn detach(args: DetachArgs) -> Result<ExitCode, StartError> {
    let was = agent::detach(&args.bpffs)?;
    print_out(&format!("nothing is left of {}\n", was.display()));
    Ok(ExitCode::SUCCESS)
}

fn explain(args: ExplainArgs) -> Result<ExitCode, StartError> {
    let explanation = match &args.manifests {
        Some(_) => explain_offline(&args)?,
        None => explain_live(&args)?,
    };
    print_out(&match args.format {
        Format::Text => render_explanation(&explanation),
        Format::Json => serde_json::to_string_pretty(&explanation).unwrap_or_default() + "\n",
    });
    Ok(ExitCode::SUCCESS)
}

fn explain_offline(args: &ExplainArgs) -> Result<Explanation, StartError> {
    let dir = args.manifests.as_deref().unwrap_or_else(|| std::path::Path::new("."));
    let meaning = meaning(args.meaning.clone())?;
    match (&args.url, &args.flow) {
        (Some(url), _) => agent::offline::explain_url(dir, &meaning, url, &headers(&args.header)?),
        (None, Some(flow)) => {
            let key = args
                .hash_key
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|reason: String| StartError::Usage(format!("--hash-key: {reason}")))?;
            agent::offline::explain_flow(dir, &meaning, key, flow)
        }
        (None, None) => Err(StartError::Usage("give a URL or --flow".to_owned())),
    }
}

fn explain_live(args: &ExplainArgs) -> Result<Explanation, StartError> {
    let mut path = match (&args.url, &args.flow) {
        (Some(url), _) => format!("/explain?url={}", admin::percent_encode(url)),
        (None, flow) => {
            format!("/explain?flow={}", admin::percent_encode(flow.as_deref().unwrap_or_default()))
        }
    };
    for (name, value) in headers(&args.header)? {
        path.push_str("&header=");
        path.push_str(&admin::percent_encode(&format!("{name}: {value}")));
    }
    let body = ask(&args.admin, &path)?;
    serde_json::from_str(&body)
        .map_err(|error| StartError::Live(format!("answer of {}: {error}", args.admin)))
}

fn status(args: StatusArgs) -> Result<ExitCode, StartError> {
    let path = match args.format {
        Format::Text => "/status",
        Format::Json => "/status?format=json",
    };
    print_out(&(ask(&args.admin, path)?.trim_end().to_owned() + "\n"));
    Ok(ExitCode::SUCCESS)
}

fn capture(args: CaptureArgs) -> Result<ExitCode, StartError> {
    use std::io::Write as _;
    let addr: SocketAddr = config::listen_address("admin", &args.admin).map_err(StartError::Config)?;
    let path = args.question();
    let mut out: Box<dyn std::io::Write> = match args.write.as_deref() {
        Some(file) if file != std::path::Path::new("-") => Box::new(
            std::fs::File::create(file)
                .map_err(|error| StartError::Usage(format!("--write {}: {error}", file.display())))?,
        ),
        _ => Box::new(std::io::stdout()),
    };
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    let write = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
    let streamed = runtime()?.block_on(admin::client::stream(addr, &path, interrupted, write));
    let summary = streamed.map_err(ask_error)?;
    if !summary.is_empty() {
        let _ = writeln!(std::io::stderr(), "{summary}");
    }
    Ok(ExitCode::SUCCESS)
}

impl CaptureArgs {
    /// Path and query of the admin endpoint; the agent judges the values.
    fn question(&self) -> String {
        let mut path = "/capture?format=".to_owned();
        path.push_str(if self.write.is_some() { "pcapng" } else { "text" });
        let one = [
            ("vip", &self.vip),
            ("host", &self.host),
            ("count", &self.count),
            ("seconds", &self.seconds),
            ("sample", &self.sample),
            ("rate", &self.rate),
            ("snaplen", &self.snaplen),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (name, value) in self.verdict.iter().map(|verdict| ("verdict", verdict)).chain(one) {
            path.push_str(&format!("&{name}={}", admin::percent_encode(value)));
        }
        path
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| StartError::Live(error.to_string()))
}

fn ask_error(error: admin::client::Error) -> StartError {
    match error {
        admin::client::Error::Refused(reason) => StartError::Usage(reason),
        other => StartError::Live(other.to_string()),
    }
}

fn ask(admin: &str, path: &str) -> Result<String, StartError> {
    let addr: SocketAddr = config::listen_address("admin", admin).map_err(StartError::Config)?;
    runtime()?.block_on(admin::client::get(addr, path)).map_err(ask_error)
}

fn headers(given: &[String]) -> Result<Vec<(String, String)>, StartError> {
    given
        .iter()
        .map(|header| match header.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(StartError::Usage(format!("-H {header:?}: allowed: 'Name: value'"))),
        })
        .collect()
}

/// An explanation as a person reads it: the question, the steps in a column, the verdict.
fn render_explanation(explanation: &Explanation) -> String {
    let width = explanation.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    let mut out = format!("{}\n", explanation.question);
    for step in &explanation.steps {
        let mut lines = step.detail.lines();
        out.push_str(&format!("  {:width$}  {}\n", step.name, lines.next().unwrap_or_default()));
        lines.for_each(|line| out.push_str(&format!("  {:width$}  {line}\n", "")));
    }
    out.push_str(&format!("=> {}\n", explanation.verdict));
    out
}

/// Prints without panicking when the reader (`| head`) has gone.
fn print_out(text: &str) {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

impl RunArgs {
    fn into_settings(self) -> Settings {
        Settings {
            manifests: self.manifests,
            interface: self.interface,
            wait_interfaces: self.wait_interfaces,
            datapath: self.datapath,
            http: self.http,
            https: self.https,
            admin: self.admin,
            workers: self.workers,
            hash_key: self.hash_key,
            nat_ports: self.nat_ports,
            flow_entries: self.flow_entries,
            grace_seconds: self.grace_seconds,
            tunnel_port: self.tunnel_port,
            pin: self.pin,
            bpffs: self.bpffs,
            on_exit: self.on_exit,
            drain_seconds: self.drain_seconds,
            shutdown_grace_period: self.shutdown_grace_period,
            post_shutdown_grace_period: self.post_shutdown_grace_period,
            run_dir: self.run_dir,
            temp_dir: self.temp_dir,
            temp_megabytes: self.temp_megabytes,
            takeover: self.takeover,
            ..self.meaning.into_settings()
        }
    }
}

impl MeaningArgs {
    fn into_settings(self) -> Settings {
        Settings {
            publish_service: self.publish_service,
            default_backend_service: self.default_backend_service,
            default_ssl_certificate: self.default_ssl_certificate,
            ingress_class: self.ingress_class,
            controller_class: self.controller_class,
            watch_ingress_without_class: self.watch_ingress_without_class,
            disable_catch_all: self.disable_catch_all,
            node_name: self.node_name,
            load_balancer_class: self.load_balancer_class,
            disable_svc_external_name: self.disable_svc_external_name,
            external_ips: self.external_ips,
            enable_ssl_passthrough: self.enable_ssl_passthrough,
            snippet_policy: self.snippet_policy,
            ..Settings::default()
        }
    }
}

fn meaning(args: MeaningArgs) -> Result<TranslateConfig, StartError> {
    let settings = Settings { manifests: Some(PathBuf::new()), ..args.into_settings() };
    Ok(config::resolve(settings, None).map_err(StartError::Config)?.translate)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::model::report::Step;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_explanation_lines_its_steps_up() {
        let step = |name: &str, detail: &str| Step { name: name.to_owned(), detail: detail.to_owned() };
        let explanation = Explanation {
            question: "GET http://a/".to_owned(),
            steps: vec![step("host", "a (exact)"), step("location", "/\nPrefix")],
            verdict: "200".to_owned(),
        };

        assert_eq!(
            render_explanation(&explanation),
            "GET http://a/\n  host      a (exact)\n  location  /\n            Prefix\n=> 200\n"
        );
    }
}
