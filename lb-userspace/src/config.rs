//! Process configuration: flag, environment, file and default merged once, before anything
//! starts. Nothing below `agent` reads a flag, the environment or the file.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use crate::model::ObjectName;

/// Where the BPF file system is by custom.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Where the socket for a successor is by default.
pub const RUN_DIR: &str = "/run/penstock";

/// What `penstock run` does, complete and valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of Kubernetes manifests.
    pub manifests: PathBuf,
    /// Interfaces for the kernel program; empty: those that hold a default route.
    pub interfaces: Vec<String>,
    /// Start although none of them exists.
    pub wait_interfaces: bool,
    /// Whether and how the kernel program is attached.
    pub datapath: DatapathMode,
    /// Plain HTTP listeners.
    pub http: Vec<SocketAddr>,
    /// TLS listeners.
    pub https: Vec<SocketAddr>,
    /// Admin endpoint.
    pub admin: SocketAddr,
    /// Proxy workers, at least 1.
    pub workers: usize,
    /// Key of the flow hash, shared by all balancers of a VIP.
    pub hash_key: Option<HashKey>,
    /// First and last port used as source of `nat` flows.
    pub nat_ports: (u16, u16),
    /// Flows remembered at most: 8 to 1,048,576.
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
    /// Take over from the agent that runs.
    pub takeover: bool,
    /// The service manager's socket.
    pub notify: Option<PathBuf>,
    /// Program and arguments, to start a successor by.
    pub command: Vec<OsString>,
    /// What the translation needs to know.
    pub translate: TranslateConfig,
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
    /// `--external-ips`.
    pub external_ips: bool,
    /// `--enable-ssl-passthrough`.
    pub enable_ssl_passthrough: bool,
    /// `--snippet-policy`.
    pub snippet_policy: SnippetPolicy,
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

/// Settings as one source gives them; absent ones fall through to the next source.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    pub(crate) manifests: Option<PathBuf>,
    pub(crate) interface: Vec<String>,
    pub(crate) wait_interfaces: Option<bool>,
    pub(crate) datapath: Option<DatapathMode>,
    pub(crate) http: Vec<String>,
    pub(crate) https: Vec<String>,
    pub(crate) admin: Option<String>,
    pub(crate) workers: Option<usize>,
    pub(crate) hash_key: Option<String>,
    pub(crate) nat_ports: Option<String>,
    pub(crate) flow_entries: Option<u32>,
    pub(crate) grace_seconds: Option<u32>,
    pub(crate) tunnel_port: Option<u16>,
    pub(crate) pin: Option<Pin>,
    pub(crate) bpffs: Option<PathBuf>,
    pub(crate) on_exit: Option<OnExit>,
    pub(crate) drain_seconds: Option<u64>,
    pub(crate) shutdown_grace_period: Option<u64>,
    pub(crate) post_shutdown_grace_period: Option<u64>,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) temp_dir: Option<PathBuf>,
    pub(crate) temp_megabytes: Option<u64>,
    pub(crate) takeover: Option<bool>,
    pub(crate) publish_service: Option<String>,
    pub(crate) default_backend_service: Option<String>,
    pub(crate) default_ssl_certificate: Option<String>,
    pub(crate) ingress_class: Option<String>,
    pub(crate) controller_class: Option<String>,
    pub(crate) watch_ingress_without_class: Option<bool>,
    pub(crate) disable_catch_all: Option<bool>,
    pub(crate) node_name: Option<String>,
    pub(crate) load_balancer_class: Option<String>,
    pub(crate) disable_svc_external_name: Option<bool>,
    pub(crate) external_ips: Option<bool>,
    pub(crate) enable_ssl_passthrough: Option<bool>,
    pub(crate) snippet_policy: Option<SnippetPolicy>,
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
    #[error("no source of objects: give --manifests DIR (watching a cluster is not built yet)")]
    NoSource,
}

/// Merges the command line (which already holds the environment) over the file named by
/// `--config` over the defaults.
pub fn resolve(flags: Settings, file: Option<&Path>) -> Result<Config, Error> {
    let file = file.map(read_file).transpose()?.unwrap_or_default();
    let merged = flags.over(file);
    Ok(Config {
        manifests: merged.manifests.ok_or(Error::NoSource)?,
        interfaces: merged.interface,
        wait_interfaces: merged.wait_interfaces.unwrap_or(false),
        datapath: merged.datapath.unwrap_or(DatapathMode::Auto),
        http: listen_addresses("http", &merged.http, 80)?,
        https: listen_addresses("https", &merged.https, 443)?,
        admin: match merged.admin {
            Some(text) => listen_address("admin", &text)?,
            None => SocketAddr::from(([127, 0, 0, 1], 10254)),
        },
        workers: workers(merged.workers)?,
        hash_key: merged.hash_key.map(|text| hash_key(&text)).transpose()?,
        nat_ports: nat_ports(merged.nat_ports.as_deref().unwrap_or("61000-65535"))?,
        flow_entries: flow_entries(merged.flow_entries.unwrap_or(1 << 17))?,
        grace: grace(merged.grace_seconds.unwrap_or(300))?,
        tunnel_port: merged.tunnel_port.unwrap_or(7183),
        pin: match merged.pin.unwrap_or(Pin::Auto) {
            Pin::Auto => Some(merged.bpffs.unwrap_or_else(|| PathBuf::from(BPFFS))),
            Pin::Off => None,
        },
        on_exit: merged.on_exit.unwrap_or(OnExit::Keep),
        drain: merged.drain_seconds.map(Duration::from_secs),
        shutdown_grace: Duration::from_secs(merged.shutdown_grace_period.unwrap_or(0)),
        post_shutdown_grace: Duration::from_secs(merged.post_shutdown_grace_period.unwrap_or(0)),
        run_dir: merged.run_dir.or_else(runtime_directory).unwrap_or_else(|| PathBuf::from(RUN_DIR)),
        temp_dir: merged.temp_dir.unwrap_or_else(std::env::temp_dir),
        temp_bytes: merged.temp_megabytes.unwrap_or(4096).saturating_mul(1 << 20),
        takeover: merged.takeover.unwrap_or(false),
        notify: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from),
        command: std::env::args_os().collect(),
        translate: TranslateConfig {
            publish_service: object("publish-service", merged.publish_service)?,
            default_backend_service: object("default-backend-service", merged.default_backend_service)?,
            default_ssl_certificate: object("default-ssl-certificate", merged.default_ssl_certificate)?,
            ingress_class: merged.ingress_class,
            controller_class: merged.controller_class,
            watch_ingress_without_class: merged.watch_ingress_without_class.unwrap_or(false),
            disable_catch_all: merged.disable_catch_all.unwrap_or(false),
            node_name: merged.node_name.filter(|name| !name.is_empty()).or_else(node_name),
            load_balancer_class: class_name(merged.load_balancer_class)?,
            disable_svc_external_name: merged.disable_svc_external_name.unwrap_or(false),
            external_ips: merged.external_ips.unwrap_or(false),
            enable_ssl_passthrough: merged.enable_ssl_passthrough.unwrap_or(false),
            snippet_policy: merged.snippet_policy.unwrap_or_default(),
        },
    })
}

fn read_file(path: &Path) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| Error::Unparsable { path: path.to_owned(), reason: error.to_string() })
}

impl Settings {
    fn over(self, below: Self) -> Self {
        let lists = |above: Vec<String>, below: Vec<String>| if above.is_empty() { below } else { above };
        // Destructured so that a setting added later cannot be forgotten here.
        let Self {
            manifests,
            interface,
            wait_interfaces,
            datapath,
            http,
            https,
            admin,
            workers,
            hash_key,
            nat_ports,
            flow_entries,
            grace_seconds,
            tunnel_port,
            pin,
            bpffs,
            on_exit,
            drain_seconds,
            shutdown_grace_period,
            post_shutdown_grace_period,
            run_dir,
            temp_dir,
            temp_megabytes,
            takeover,
            publish_service,
            default_backend_service,
            default_ssl_certificate,
            ingress_class,
            controller_class,
            watch_ingress_without_class,
            disable_catch_all,
            node_name,
            load_balancer_class,
            disable_svc_external_name,
            external_ips,
            enable_ssl_passthrough,
            snippet_policy,
        } = self;
        Self {
            manifests: manifests.or(below.manifests),
            interface: lists(interface, below.interface),
            wait_interfaces: wait_interfaces.or(below.wait_interfaces),
            datapath: datapath.or(below.datapath),
            http: lists(http, below.http),
            https: lists(https, below.https),
            admin: admin.or(below.admin),
            workers: workers.or(below.workers),
            hash_key: hash_key.or(below.hash_key),
            nat_ports: nat_ports.or(below.nat_ports),
            flow_entries: flow_entries.or(below.flow_entries),
            grace_seconds: grace_seconds.or(below.grace_seconds),
            tunnel_port: tunnel_port.or(below.tunnel_port),
            pin: pin.or(below.pin),
            bpffs: bpffs.or(below.bpffs),
            on_exit: on_exit.or(below.on_exit),
            drain_seconds: drain_seconds.or(below.drain_seconds),
            shutdown_grace_period: shutdown_grace_period.or(below.shutdown_grace_period),
            post_shutdown_grace_period: post_shutdown_grace_period.or(below.post_shutdown_grace_period),
            run_dir: run_dir.or(below.run_dir),
            temp_dir: temp_dir.or(below.temp_dir),
            temp_megabytes: temp_megabytes.or(below.temp_megabytes),
            takeover: takeover.or(below.takeover),
            publish_service: publish_service.or(below.publish_service),
            default_backend_service: default_backend_service.or(below.default_backend_service),
            default_ssl_certificate: default_ssl_certificate.or(below.default_ssl_certificate),
            ingress_class: ingress_class.or(below.ingress_class),
            controller_class: controller_class.or(below.controller_class),
            watch_ingress_without_class: watch_ingress_without_class.or(below.watch_ingress_without_class),
            disable_catch_all: disable_catch_all.or(below.disable_catch_all),
            node_name: node_name.or(below.node_name),
            load_balancer_class: load_balancer_class.or(below.load_balancer_class),
            disable_svc_external_name: disable_svc_external_name.or(below.disable_svc_external_name),
            external_ips: external_ips.or(below.external_ips),
            enable_ssl_passthrough: enable_ssl_passthrough.or(below.enable_ssl_passthrough),
            snippet_policy: snippet_policy.or(below.snippet_policy),
        }
    }
}

fn listen_addresses(
    setting: &'static str,
    texts: &[String],
    default_port: u16,
) -> Result<Vec<SocketAddr>, Error> {
    if texts.is_empty() {
        return Ok(vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), default_port)]);
    }
    texts.iter().map(|text| listen_address(setting, text)).collect()
}

/// `ADDR:PORT`, or `:PORT` for every address.
pub(crate) fn listen_address(setting: &'static str, text: &str) -> Result<SocketAddr, Error> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| Error::Value {
        setting,
        value: text.to_owned(),
        reason: "allowed: ADDR:PORT, e.g. 127.0.0.1:8080, [::]:80, or :80 for every address".to_owned(),
    })
}

fn workers(given: Option<usize>) -> Result<usize, Error> {
    let allowed = 1..=256;
    match given {
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get().min(*allowed.end()))),
        Some(n) if allowed.contains(&n) => Ok(n),
        Some(n) => Err(Error::Value {
            setting: "workers",
            value: n.to_string(),
            reason: "allowed: 1 to 256".to_owned(),
        }),
    }
}

fn hash_key(text: &str) -> Result<HashKey, Error> {
    // The value is a secret: the error describes it and does not repeat it.
    text.parse().map_err(|reason| Error::Value { setting: "hash-key", value: "***".to_owned(), reason })
}

fn flow_entries(count: u32) -> Result<u32, Error> {
    if (8..=1 << 20).contains(&count) {
        return Ok(count);
    }
    let reason = "allowed: 8 to 1048576, rounded up to a power of two".to_owned();
    Err(Error::Value { setting: "flow-entries", value: count.to_string(), reason })
}

fn grace(seconds: u32) -> Result<Duration, Error> {
    // The program's clock wraps after 39 hours.
    if (1..=86_400).contains(&seconds) {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let reason = "allowed: 1 to 86400".to_owned();
    Err(Error::Value { setting: "grace-seconds", value: seconds.to_string(), reason })
}

fn nat_ports(text: &str) -> Result<(u16, u16), Error> {
    let range = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    match range {
        Some((low, high)) if low >= 1024 && low < high => Ok((low, high)),
        _ => Err(Error::Value {
            setting: "nat-ports",
            value: text.to_owned(),
            reason: "allowed: LOW-HIGH with 1024 <= LOW < HIGH <= 65535".to_owned(),
        }),
    }
}

fn object(setting: &'static str, text: Option<String>) -> Result<Option<ObjectName>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Some(ObjectName::new(namespace, name)))
        }
        _ => Err(Error::Value { setting, value: text, reason: "allowed: NAMESPACE/NAME".to_owned() }),
    }
}

/// As systemd names the one it made for us; of several, the first.
fn runtime_directory() -> Option<PathBuf> {
    let named = std::env::var("RUNTIME_DIRECTORY").ok()?;
    named.split(':').next().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// As the downward API gives it to a pod by custom, else as the host is called: that is what a
/// kubelet calls its node unless told otherwise.
fn node_name() -> Option<String> {
    let named = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    named.or_else(|| {
        let host = rustix::system::uname().nodename().to_str().ok()?.to_ascii_lowercase();
        (!host.is_empty()).then_some(host)
    })
}

fn class_name(text: Option<String>) -> Result<Option<String>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    // As the API server takes it: a name, with or without a domain in front.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if text.bytes().all(legal) {
        return Ok(Some(text));
    }
    let reason = "allowed: a name such as example.com/internal".to_owned();
    Err(Error::Value { setting: "load-balancer-class", value: text, reason })
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
                "object without namespace",
                Settings { publish_service: Some("web".into()), ..with_manifests() },
                "--publish-service \"web\": allowed: NAMESPACE/NAME",
            ),
            (
                "class with a space",
                Settings { load_balancer_class: Some("my edge".into()), ..with_manifests() },
                "--load-balancer-class \"my edge\": allowed: a name",
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
        assert_eq!(name(empty), node_name());
        assert!(node_name().is_some());
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
}
