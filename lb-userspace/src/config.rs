//! Process configuration: flag, environment, file and default merged once, before anything
//! starts. Nothing below `agent` reads a flag, the environment or the file.

mod cluster;
mod settings;
mod value;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use crate::model::metering::{Bounds, Metering};
use crate::model::{ObjectName, pool};

pub use cluster::{ClusterConfig, Election, Webhook, WebhookCertificate};
pub use settings::Settings;
pub(crate) use value::{journal_stream, listen_address, log_directives};

/// Where the BPF file system is by custom.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Where the socket for a successor is by default.
pub const RUN_DIR: &str = "/run/penstock";

/// What `penstock run` does, complete and valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of Kubernetes manifests; `None`: the objects are a cluster's.
    pub manifests: Option<PathBuf>,
    /// Interfaces for the kernel program; empty: those that hold a default route.
    pub interfaces: Vec<String>,
    /// Start although none of them exists.
    pub wait_interfaces: bool,
    /// `--announce`: interfaces on whose links we answer for VIPs; empty: on none.
    pub announce: Vec<String>,
    /// Whether and how the kernel program is attached.
    pub datapath: DatapathMode,
    /// Plain HTTP listeners.
    pub http: Vec<SocketAddr>,
    /// TLS listeners.
    pub https: Vec<SocketAddr>,
    /// Admin endpoint.
    pub admin: SocketAddr,
    /// The path there that answers as `/healthz` does.
    pub health_path: String,
    /// Proxy workers, at least 1.
    pub workers: usize,
    /// Key of the flow hash, shared by all balancers of a VIP.
    pub hash_key: Option<HashKey>,
    /// First and last port used as source of `nat` flows.
    pub nat_ports: (u16, u16),
    /// Flows remembered at most; rounded up to a power of two from 8 to 1,048,576.
    pub flow_entries: u32,
    /// How long a changed slot asks the flow table at least.
    pub grace: Duration,
    /// UDP port of the tunnel between balancers; 0: none.
    pub tunnel_port: u16,
    /// BPF file system on which the kernel part outlives the agent; `None`: it does not.
    pub pin: Option<PathBuf>,
    /// What becomes of the kernel part after SIGTERM.
    pub on_exit: OnExit,
    /// How long old requests may take after SIGTERM; `None`: as the objects say.
    pub drain: Option<Duration>,
    /// How long everything goes on after SIGTERM while health says that it ends.
    pub shutdown_grace: Duration,
    /// How long the process stays once all has ended.
    pub post_shutdown_grace: Duration,
    /// Where the socket for a successor is.
    pub run_dir: PathBuf,
    /// Where bodies are put that are too long for memory.
    pub temp_dir: PathBuf,
    /// Most bytes of them.
    pub temp_bytes: u64,
    /// Bytes of memory for them before that, all together.
    pub body_memory_bytes: u64,
    /// Take over from the agent that runs.
    pub takeover: bool,
    /// The service manager's socket.
    pub notify: Option<PathBuf>,
    /// Program and arguments, to start a successor by.
    pub command: Vec<OsString>,
    /// What the translation needs to know.
    pub translate: TranslateConfig,
    /// How the cluster is read and written to.
    pub cluster: ClusterConfig,
    /// The pod that we are.
    pub pod: Pod,
    /// What metrics of requests tell apart.
    pub metering: Metering,
    /// Flags that were given and change nothing.
    pub idle_flags: Vec<IdleFlag>,
}

/// The pod that we are, as the downward API tells it; empty where nobody does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `POD_NAME`, else the name of the host.
    pub name: String,
}

/// A flag of ingress-nginx that is accepted and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleFlag {
    /// Without the dashes.
    pub name: &'static str,
    /// What does its work here.
    pub instead: &'static str,
}

/// The part of [`Config`] that decides what objects mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TranslateConfig {
    /// `--publish-service`: the Service whose VIPs carry Ingress traffic.
    pub publish_service: Option<ObjectName>,
    /// `--default-backend-service`.
    pub default_backend_service: Option<ObjectName>,
    /// `--default-ssl-certificate`.
    pub default_ssl_certificate: Option<ObjectName>,
    /// `--ingress-class`; `None`: `nginx`.
    pub ingress_class: Option<String>,
    /// `--controller-class`; `None`: `k8s.io/ingress-nginx`.
    pub controller_class: Option<String>,
    /// `--ingress-class-by-name`.
    pub ingress_class_by_name: bool,
    /// `--configmap`; `None`: the first one called `ingress-nginx-controller`.
    pub config_map: Option<ObjectName>,
    /// `--tcp-services-configmap`.
    pub tcp_services: Option<ObjectName>,
    /// `--udp-services-configmap`.
    pub udp_services: Option<ObjectName>,
    /// `--address-pools`.
    pub address_pools: Option<ObjectName>,
    /// What is meant without it: in a pod, the one of its usual name in the pod's namespace, where there is one.
    pub own_pools: Option<ObjectName>,
    /// `--watch-ingress-without-class`.
    pub watch_ingress_without_class: bool,
    /// `--disable-catch-all`.
    pub disable_catch_all: bool,
    /// `--node-name`; where nobody names it, `NODE_NAME` or the host's name.
    pub node_name: Option<String>,
    /// `--load-balancer-class`; `None`: Services without a class and of our own.
    pub load_balancer_class: Option<String>,
    /// `--disable-svc-external-name`.
    pub disable_svc_external_name: bool,
    /// `--enable-topology-aware-routing`.
    pub enable_topology_aware_routing: bool,
    /// `--external-ips`.
    pub external_ips: bool,
    /// `--enable-ssl-passthrough`.
    pub enable_ssl_passthrough: bool,
    /// `--snippet-policy`.
    pub snippet_policy: SnippetPolicy,
    /// `--annotations-prefix`; `None`: that of ingress-nginx.
    pub annotations_prefix: Option<String>,
}

/// `--snippet-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnippetPolicy {
    /// Paths of an Ingress with nginx configuration answer 503.
    #[default]
    Refuse,
    /// It is served as if it had none.
    Ignore,
}

/// `--datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathMode {
    /// Native XDP, generic with a warning where the driver has none.
    Auto,
    /// Native XDP or fail.
    Native,
    /// Generic (SKB) XDP.
    Generic,
    /// No kernel part: the proxy alone, without privileges.
    Off,
}

/// `--pin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// Pinned, so that it outlives the agent; with a warning where there is no BPF file system.
    Auto,
    /// Not pinned: it ends with the agent.
    Off,
}

/// `--on-exit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// The kernel goes on forwarding, for the next agent.
    Keep,
    /// Programs, maps and local routes are removed.
    Detach,
}

/// 128-bit key of the flow hash, 32 hex digits on the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl std::str::FromStr for HashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "32 hexadecimal digits, e.g. from `openssl rand -hex 16`";
        if text.len() != 32 || !text.is_ascii() {
            return Err(format!("{} characters given, allowed: {allowed}", text.chars().count()));
        }
        u128::from_str_radix(text, 16)
            .map(|n| Self(n.to_be_bytes()))
            .map_err(|_| format!("not hexadecimal, allowed: {allowed}"))
    }
}

/// Why a configuration is refused; always names the setting, the value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config file cannot be read.
    #[error("--config {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The config file does not parse.
    #[error("--config {}: {reason}", path.display())]
    Unparsable {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        reason: String,
    },
    /// A value is not one of the allowed ones.
    #[error("--{setting} {value:?}: {reason}")]
    Value {
        /// The setting, as on the command line.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// Nothing says where the objects come from.
    #[error("no source of objects: give --manifests DIR or --kubeconfig FILE, or run in a pod of a cluster")]
    NoSource,
}

/// Merges the command line (which already holds the environment) over the file named by
/// `--config` over the defaults.
pub fn resolve(flags: Settings, file: Option<&Path>) -> Result<Config, Error> {
    let file = file.map(settings::read_file).transpose()?.unwrap_or_default();
    let mut merged = flags.over(file);
    let nat_ports = value::nat_ports(merged.nat_ports.as_deref().unwrap_or("61000-65535"))?;
    let cluster = ClusterConfig::of(&mut merged)?;
    let metering = metering(&mut merged)?;
    let pod = value::pod();
    // A directory is all its owner's; in a cluster only the controller's own namespace gives addresses away.
    let own_pools = (merged.manifests.is_none() && !pod.namespace.is_empty())
        .then(|| ObjectName::new(&pod.namespace, pool::CONFIG_MAP));
    Ok(Config {
        manifests: source(merged.manifests, &cluster)?,
        interfaces: merged.interface,
        wait_interfaces: merged.wait_interfaces.unwrap_or(false),
        announce: merged.announce,
        datapath: merged.datapath.unwrap_or(DatapathMode::Auto),
        http: value::listen_addresses("http", &merged.http, merged.http_port.unwrap_or(80))?,
        https: value::listen_addresses("https", &merged.https, merged.https_port.unwrap_or(443))?,
        admin: value::admin(merged.admin.take(), merged.healthz_host.take(), merged.healthz_port)?,
        health_path: value::health_path(merged.health_check_path.take())?,
        workers: value::workers(merged.workers)?,
        hash_key: merged.hash_key.map(|text| value::hash_key(&text)).transpose()?,
        nat_ports,
        flow_entries: value::flow_entries(merged.flow_entries.unwrap_or(1 << 17))?,
        grace: value::grace(merged.grace_seconds.unwrap_or(300))?,
        tunnel_port: value::tunnel_port(merged.tunnel_port, nat_ports)?,
        pin: match merged.pin.unwrap_or(Pin::Auto) {
            Pin::Auto => Some(merged.bpffs.unwrap_or_else(|| PathBuf::from(BPFFS))),
            Pin::Off => None,
        },
        on_exit: merged.on_exit.unwrap_or(OnExit::Keep),
        drain: merged.drain_seconds.map(Duration::from_secs),
        shutdown_grace: Duration::from_secs(merged.shutdown_grace_period.unwrap_or(0)),
        post_shutdown_grace: Duration::from_secs(merged.post_shutdown_grace_period.unwrap_or(0)),
        run_dir: merged.run_dir.or_else(value::runtime_directory).unwrap_or_else(|| PathBuf::from(RUN_DIR)),
        temp_dir: merged.temp_dir.unwrap_or_else(std::env::temp_dir),
        temp_bytes: merged.temp_megabytes.unwrap_or(4096).saturating_mul(1 << 20),
        body_memory_bytes: merged.body_memory_megabytes.unwrap_or(256).saturating_mul(1 << 20),
        takeover: merged.takeover.unwrap_or(false),
        notify: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from),
        command: std::env::args_os().collect(),
        translate: TranslateConfig {
            publish_service: value::object("publish-service", merged.publish_service)?,
            default_backend_service: value::object(
                "default-backend-service",
                merged.default_backend_service,
            )?,
            default_ssl_certificate: value::object(
                "default-ssl-certificate",
                merged.default_ssl_certificate,
            )?,
            ingress_class: merged.ingress_class,
            controller_class: merged.controller_class,
            ingress_class_by_name: merged.ingress_class_by_name.unwrap_or(false),
            config_map: value::object("configmap", merged.configmap)?,
            tcp_services: value::object("tcp-services-configmap", merged.tcp_services_configmap)?,
            udp_services: value::object("udp-services-configmap", merged.udp_services_configmap)?,
            address_pools: value::object("address-pools", merged.address_pools)?,
            own_pools,
            watch_ingress_without_class: merged.watch_ingress_without_class.unwrap_or(false),
            disable_catch_all: merged.disable_catch_all.unwrap_or(false),
            node_name: merged.node_name.filter(|name| !name.is_empty()).or_else(value::node_name),
            disable_svc_external_name: merged.disable_svc_external_name.unwrap_or(false),
            enable_topology_aware_routing: merged.enable_topology_aware_routing.unwrap_or(false),
            load_balancer_class: value::class_name(merged.load_balancer_class)?,
            external_ips: merged.external_ips.unwrap_or(false),
            enable_ssl_passthrough: merged.enable_ssl_passthrough.unwrap_or(false),
            snippet_policy: merged.snippet_policy.unwrap_or_default(),
            annotations_prefix: value::annotations_prefix(merged.annotations_prefix)?,
        },
        cluster,
        pod,
        metering,
        idle_flags: Vec::new(),
    })
}

/// A cluster is asked only where somebody says which: never the one of a developer's own kubeconfig.
fn source(manifests: Option<PathBuf>, cluster: &ClusterConfig) -> Result<Option<PathBuf>, Error> {
    let named = cluster.kubeconfig.is_some() || cluster.apiserver_host.is_some();
    if manifests.is_none() && !named && !value::in_pod() {
        return Err(Error::NoSource);
    }
    Ok(manifests)
}

fn metering(settings: &mut Settings) -> Result<Metering, Error> {
    let default = Metering::default();
    let bounds = |setting, text: Option<String>, default| match text.filter(|text| !text.is_empty()) {
        None => Ok(default),
        Some(value) => Bounds::parse(&value).map_err(|reason| Error::Value { setting, value, reason }),
    };
    Ok(Metering {
        of_requests: settings.enable_metrics.unwrap_or(default.of_requests),
        per_host: settings.metrics_per_host.unwrap_or(default.per_host),
        undefined_hosts: settings.metrics_per_undefined_host.unwrap_or(default.undefined_hosts),
        status_classes: settings.report_status_classes.unwrap_or(default.status_classes),
        excluded: std::mem::take(&mut settings.exclude_socket_metrics).into_iter().collect(),
        time: bounds("time-buckets", settings.time_buckets.take(), default.time)?,
        length: bounds("length-buckets", settings.length_buckets.take(), default.length)?,
        size: bounds("size-buckets", settings.size_buckets.take(), default.size)?,
        series: settings.metrics_series.unwrap_or(default.series),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_manifests() -> Settings {
        Settings { manifests: Some("m".into()), ..Settings::default() }
    }

    #[test]
    fn flag_wins_over_file_and_file_over_default() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("penstock.yaml");
        std::fs::write(&path, "http: ['127.0.0.1:1000']\nadmin: 127.0.0.1:2000\nworkers: 3\n")
            .expect("write");
        let flags = Settings { http: vec!["127.0.0.1:3000".into()], ..with_manifests() };

        let config = resolve(flags, Some(&path)).expect("valid");

        assert_eq!(config.http, ["127.0.0.1:3000".parse().expect("address")]);
        assert_eq!(config.admin, "127.0.0.1:2000".parse().expect("address"));
        assert_eq!(config.workers, 3);
        assert_eq!(config.https, ["[::]:443".parse().expect("address")]);
    }

    #[test]
    fn the_tunnels_port_gives_way_to_those_of_nat_where_nobody_set_it() {
        for (nat_ports, expected) in [(None, 7183), (Some("5000-9999"), 0)] {
            let settings = Settings { nat_ports: nat_ports.map(str::to_owned), ..with_manifests() };
            assert_eq!(resolve(settings, None).expect("valid").tunnel_port, expected, "{nat_ports:?}");
        }
    }

    #[test]
    fn a_refused_value_names_setting_value_and_what_is_allowed() {
        let cases: Vec<(&str, Settings, &str)> = vec![
            (
                "address without port",
                Settings { http: vec!["localhost".into()], ..with_manifests() },
                "--http \"localhost\": allowed: ADDR:PORT",
            ),
            (
                "no workers",
                Settings { workers: Some(0), ..with_manifests() },
                "--workers \"0\": allowed: 1 to 256",
            ),
            (
                "reversed range",
                Settings { nat_ports: Some("9000-8000".into()), ..with_manifests() },
                "--nat-ports \"9000-8000\": allowed: LOW-HIGH",
            ),
            (
                "the tunnel's port among those of nat",
                Settings { nat_ports: Some("5000-9999".into()), tunnel_port: Some(7183), ..with_manifests() },
                "--tunnel-port \"7183\": allowed: a port outside --nat-ports 5000-9999",
            ),
            (
                "object without namespace",
                Settings { publish_service: Some("web".into()), ..with_manifests() },
                "--publish-service \"web\": allowed: NAMESPACE/NAME",
            ),
            (
                "class with a space",
                Settings { load_balancer_class: Some("my edge".into()), ..with_manifests() },
                "--load-balancer-class \"my edge\": allowed: a name",
            ),
            (
                "prefix of annotations with a slash",
                Settings { annotations_prefix: Some("mine.example/".into()), ..with_manifests() },
                "--annotations-prefix \"mine.example/\": allowed: a DNS name without a slash",
            ),
            (
                "bounds that do not rise",
                Settings { time_buckets: Some("1,1".into()), ..with_manifests() },
                "--time-buckets \"1,1\": allowed: rising numbers",
            ),
            (
                "a lease that ends never",
                Settings { election_ttl: Some("0".into()), ..with_manifests() },
                "--election-ttl \"0\": allowed: a duration of at least 5s",
            ),
            ("no source", Settings::default(), "no source of objects: give --manifests DIR"),
        ];
        for (case, settings, expected) in cases {
            let error = resolve(settings, None).expect_err(case).to_string();
            assert!(error.starts_with(expected), "{case}: {error}");
        }
    }

    #[test]
    fn a_node_that_nobody_names_is_called_as_its_host() {
        let named = Settings { node_name: Some("edge-1".into()), ..with_manifests() };
        let empty = Settings { node_name: Some(String::new()), ..with_manifests() };

        let name = |settings| resolve(settings, None).expect("valid").translate.node_name;

        assert_eq!(name(named), Some("edge-1".to_owned()));
        assert_eq!(name(empty), value::node_name());
        assert!(value::node_name().is_some());
    }

    #[test]
    fn a_bad_hash_key_is_described_but_not_repeated() {
        let settings = Settings { hash_key: Some("secret-but-too-short".into()), ..with_manifests() };

        let error = resolve(settings, None).expect_err("refused").to_string();

        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_with_its_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("penstock.yaml");
        std::fs::write(&path, "wokers: 3\n").expect("write");

        let error = resolve(with_manifests(), Some(&path)).expect_err("refused").to_string();

        assert!(error.contains("wokers"), "{error}");
    }

    #[test]
    fn a_file_gives_one_value_several_with_commas_or_a_list() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("penstock.yaml");
        for (given, expected) in [
            ("interface: eth0", &["eth0"][..]),
            ("interface: eth0, eth1", &["eth0", "eth1"]),
            ("interface: [eth0, eth1]", &["eth0", "eth1"]),
            ("interface:\n- eth0\n- 'enp*'", &["eth0", "enp*"]),
            ("interface:", &[]),
            ("wait-interfaces: true", &[]),
        ] {
            std::fs::write(&path, format!("{given}\nhttp: :8080\n")).expect("write");

            let config = resolve(with_manifests(), Some(&path)).expect(given);

            assert_eq!(config.interfaces, expected, "{given}");
            assert_eq!(config.http, ["[::]:8080".parse().expect("address")], "{given}");
        }
    }

    #[test]
    fn an_error_of_the_file_names_the_setting() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("penstock.yaml");
        for (text, setting) in [
            ("admin: :1\nworkers: two\n", "workers"),
            ("# http:\nhttp:\n- {}\n", "http"),
            ("https: {a: 1}\nworkers: 1\n", "https"),
            ("datapath: fast\n", "datapath"),
        ] {
            std::fs::write(&path, text).expect("write");

            let error = resolve(with_manifests(), Some(&path)).expect_err(text).to_string();

            assert!(error.contains(&format!("penstock.yaml: {setting}: ")), "{error}");
        }
    }

    #[test]
    fn a_file_with_a_wrong_value_says_where_the_right_ones_are_listed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("penstock.yaml");
        for text in ["workers: many\n", "workers: 1\nworkers: 2\n"] {
            std::fs::write(&path, text).expect("write");

            let error = resolve(with_manifests(), Some(&path)).expect_err("refused").to_string();

            assert!(error.contains("line ") && error.ends_with("see `penstock run --help`"), "{error}");
            assert!(!error.contains("DuplicateKeyPolicy"), "{error}");
        }
    }
}
