//! `penstock run`: what of the process itself can be set, and the groups of flags beside it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::cluster::ClusterArgs;
use super::flags::{IdleArgs, boolean, count, port, seconds};
use super::meaning::MeaningArgs;
use super::metering::MeteringArgs;
use crate::agent::{self, StartError};
use crate::config::{self, DatapathMode, IdleFlag, OnExit, Pin, Settings};

#[derive(Debug, Args)]
#[command(
    after_help = "Each flag but --takeover has an environment variable PENSTOCK_*. The file of --config is YAML with \
    the names of the flags; what may be given more than once is one value, several with commas, or a list. A flag counts more than its variable, that more than the file, that \
    more than the default. PENSTOCK_LOG=debug (or penstock::l7=debug) logs more.\n\
    Examples:\n  penstock run --manifests /etc/penstock/manifests --interface eth0\n  \
    penstock run --datapath off --manifests . --http 127.0.0.1:8080 --https 127.0.0.1:8443\n  \
    penstock run --kubeconfig ~/.kube/config --update-status=false\n\
    Exit codes: 0 stopped by a signal, 2 usage, 64 configuration, 65 manifests or the cluster, \
    66 a listener, 67 the datapath, 69 threads or the like, 70 the running agent is not taken over."
)]
pub(super) struct RunArgs {
    // First: those behind it take what they read out of what was given.
    #[command(flatten)]
    idle: IdleArgs,
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
        value_parser = boolean,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    wait_interfaces: Option<bool>,
    /// Interface on whose link one of all agents answers for each VIP (ARP, NDP); repeatable [default:
    /// none]
    #[arg(long, value_name = "IF", env = "PENSTOCK_ANNOUNCE", value_delimiter = ',')]
    announce: Vec<String>,
    /// Native XDP falling back to generic (auto), one of them, or no kernel part [default: auto]
    #[arg(long, value_name = "MODE", env = "PENSTOCK_DATAPATH")]
    datapath: Option<DatapathMode>,
    /// Plain HTTP listener; repeatable [default: [::]:80]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTP", value_delimiter = ',')]
    http: Vec<String>,
    /// TLS listener; repeatable [default: [::]:443]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTPS", value_delimiter = ',')]
    https: Vec<String>,
    /// Port of the plain HTTP listener on every address, where --http names none [default: 80]
    #[arg(long, value_name = "PORT", env = "PENSTOCK_HTTP_PORT", value_parser = port)]
    http_port: Option<u16>,
    /// Port of the TLS listener on every address, where --https names none [default: 443]
    #[arg(long, value_name = "PORT", env = "PENSTOCK_HTTPS_PORT", value_parser = port)]
    https_port: Option<u16>,
    /// Health, metrics, status and explain [default: 127.0.0.1:10254]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN")]
    admin: Option<String>,
    /// Address of health, metrics and status, where --admin names none [default with --healthz-port: every
    /// address]
    #[arg(long, value_name = "ADDR", env = "PENSTOCK_HEALTHZ_HOST")]
    healthz_host: Option<String>,
    /// Port of health, metrics and status, where --admin names none [default with --healthz-host: 10254]
    #[arg(long, value_name = "PORT", env = "PENSTOCK_HEALTHZ_PORT", value_parser = port)]
    healthz_port: Option<u16>,
    /// Path on the admin address that answers as /healthz does [default: /healthz]
    #[arg(long, value_name = "PATH", env = "PENSTOCK_HEALTH_CHECK_PATH")]
    health_check_path: Option<String>,
    /// Proxy workers, one thread each, 1 to 256 [default: one per CPU]
    #[arg(long, value_name = "N", env = "PENSTOCK_WORKERS", value_parser = count::<usize>)]
    workers: Option<usize>,
    /// Key of the flow hash, the same on all balancers of a VIP [default: random, kept as
    /// long as the tables are]
    #[arg(long, value_name = "32 HEX DIGITS", env = "PENSTOCK_HASH_KEY", hide_env_values = true)]
    hash_key: Option<String>,
    /// Source ports of `nat` flows, within 1024 to 65535; keep them out of net.ipv4.ip_local_port_range and `--tunnel-port` out of them
    /// [default: 61000-65535]
    #[arg(long, value_name = "LOW-HIGH", env = "PENSTOCK_NAT_PORTS")]
    nat_ports: Option<String>,
    /// Flows remembered at most while slots settle, 8 to 1048576, rounded up to a power of two; fewer
    /// take no less memory [default: 131072]
    #[arg(long, value_name = "N", env = "PENSTOCK_FLOW_ENTRIES", value_parser = count::<u32>)]
    flow_entries: Option<u32>,
    /// How long the flows of a slot that changed its backend are looked up and remembered at least;
    /// a flow that is silent for longer may move; 1 to 86400 [default: 300]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_GRACE_SECONDS", value_parser = seconds::<u32>)]
    grace_seconds: Option<u32>,
    /// UDP port on which balancers send each other packets for backends on their hosts; 0: none
    /// [default: 7183, or none where that is one of --nat-ports]
    #[arg(long, value_name = "PORT", env = "PENSTOCK_TUNNEL_PORT", value_parser = port)]
    tunnel_port: Option<u16>,
    /// Pin programs and maps, so that the kernel goes on forwarding without the agent and the next one
    /// takes over (auto), or not (off) [default: auto]
    #[arg(long, value_name = "MODE", env = "PENSTOCK_PIN")]
    pin: Option<Pin>,
    /// BPF file system to pin programs and maps on; mounted if it is not [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_BPFFS")]
    bpffs: Option<PathBuf>,
    /// After SIGTERM keep what is pinned for the next agent, or detach it [default: keep]
    #[arg(long, value_name = "WHAT", env = "PENSTOCK_ON_EXIT")]
    on_exit: Option<OnExit>,
    /// Longest wait for running requests after SIGTERM, and of those that a successor left [default:
    /// worker-shutdown-timeout of the ConfigMap, else 240]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_DRAIN_SECONDS", value_parser = seconds::<u64>)]
    drain_seconds: Option<u64>,
    /// After SIGTERM go on serving for so long while /healthz already says 500 [default: 0]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_SHUTDOWN_GRACE_PERIOD", value_parser = seconds::<u64>)]
    shutdown_grace_period: Option<u64>,
    /// Stay for so long once everything has ended [default: 0]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_POST_SHUTDOWN_GRACE_PERIOD", value_parser = seconds::<u64>)]
    post_shutdown_grace_period: Option<u64>,
    /// Take over from the agent that runs with this --run-dir: its sockets, counters and kernel part,
    /// without a loss; start as usual if there is none. SIGHUP has an agent start its successor itself
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true",
          require_equals = true)]
    takeover: Option<bool>,
    /// Where an agent and its successor meet; one agent each [default: $RUNTIME_DIRECTORY, else
    /// /run/penstock]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Directory for bodies that are to be held whole and are too long for memory [default: $TMPDIR,
    /// else /tmp]
    #[arg(long, value_name = "DIR", env = "PENSTOCK_TEMP_DIR")]
    temp_dir: Option<PathBuf>,
    /// How many MiB of bodies there may be in --temp-dir, all together, and of one body at most three quarters of what the
    /// others leave; beyond, requests are answered 500 and responses wait for their clients [default: 4096]
    #[arg(long, value_name = "N", env = "PENSTOCK_TEMP_MEGABYTES", value_parser = count::<u64>)]
    temp_megabytes: Option<u64>,
    /// How many MiB of memory bodies may take that are held, all together, beside the first 16 KiB of each; beyond, they
    /// go to files earlier [default: 256]
    #[arg(long, value_name = "N", env = "PENSTOCK_BODY_MEMORY_MEGABYTES", value_parser = count::<u64>)]
    body_memory_megabytes: Option<u64>,
    #[command(flatten)]
    meaning: MeaningArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    metering: MeteringArgs,
}

/// First of the arguments of an ingress-nginx Deployment: the name of its binary, an alias of `run`.
pub(super) const INGRESS_NGINX: &str = "/nginx-ingress-controller";

/// Serves until a signal ends it.
pub(super) fn run(args: RunArgs) -> Result<ExitCode, StartError> {
    let file = args.config.clone();
    let (mut settings, idle_flags) = args.into_parts();
    let by_its_name = std::env::args_os().nth(1).is_some_and(|name| name == INGRESS_NGINX);
    if by_its_name
        && settings.datapath.is_none()
        && settings.interface.is_empty()
        && settings.announce.is_empty()
    {
        // Its pods have no rights that the kernel part needs, and its arguments say nothing of one.
        settings.datapath = Some(DatapathMode::Off);
    }
    let mut config = config::resolve(settings, file.as_deref()).map_err(StartError::Config)?;
    config.idle_flags = idle_flags;
    agent::run(config)?;
    Ok(ExitCode::SUCCESS)
}

impl RunArgs {
    /// The settings, and the flags that were given without being one.
    pub(super) fn into_parts(self) -> (Settings, Vec<IdleFlag>) {
        let mut settings = Settings {
            manifests: self.manifests,
            interface: self.interface,
            wait_interfaces: self.wait_interfaces,
            announce: self.announce,
            datapath: self.datapath,
            http: self.http,
            https: self.https,
            http_port: self.http_port,
            https_port: self.https_port,
            admin: self.admin,
            healthz_host: self.healthz_host,
            healthz_port: self.healthz_port,
            health_check_path: self.health_check_path,
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
            body_memory_megabytes: self.body_memory_megabytes,
            takeover: self.takeover,
            ..self.meaning.into_settings()
        };
        self.cluster.put(&mut settings);
        self.metering.put(&mut settings);
        (settings, self.idle.into_given())
    }
}
