//! The settings of one source, flags or file, and how one goes over another.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{DatapathMode, Error, OnExit, Pin, SnippetPolicy};

/// What a setting of one source is over that of another: itself, unless it says nothing.
trait Over {
    fn over(self, below: Self) -> Self;
}

impl<T> Over for Option<T> {
    fn over(self, below: Self) -> Self {
        self.or(below)
    }
}

impl<T> Over for Vec<T> {
    fn over(self, below: Self) -> Self {
        if self.is_empty() { below } else { self }
    }
}

/// The list of all settings, so that none is forgotten where they are laid over others.
macro_rules! settings {
    ($($(#[$attribute:meta])? $name:ident: $type:ty,)*) => {
        /// Settings as one source gives them; absent ones fall through to the next source.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct Settings {
            $($(#[$attribute])? pub(crate) $name: $type,)*
        }

        impl Settings {
            /// These, and where they say nothing those below.
            pub(super) fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.over(below.$name),)* }
            }
        }
    };
}

settings! {
    manifests: Option<PathBuf>,
    #[serde(deserialize_with = "one_or_more")]
    interface: Vec<String>,
    wait_interfaces: Option<bool>,
    #[serde(deserialize_with = "one_or_more")]
    announce: Vec<String>,
    datapath: Option<DatapathMode>,
    #[serde(deserialize_with = "one_or_more")]
    http: Vec<String>,
    #[serde(deserialize_with = "one_or_more")]
    https: Vec<String>,
    http_port: Option<u16>,
    https_port: Option<u16>,
    admin: Option<String>,
    healthz_host: Option<String>,
    healthz_port: Option<u16>,
    health_check_path: Option<String>,
    workers: Option<usize>,
    hash_key: Option<String>,
    nat_ports: Option<String>,
    flow_entries: Option<u32>,
    grace_seconds: Option<u32>,
    tunnel_port: Option<u16>,
    pin: Option<Pin>,
    bpffs: Option<PathBuf>,
    on_exit: Option<OnExit>,
    drain_seconds: Option<u64>,
    shutdown_grace_period: Option<u64>,
    post_shutdown_grace_period: Option<u64>,
    run_dir: Option<PathBuf>,
    temp_dir: Option<PathBuf>,
    temp_megabytes: Option<u64>,
    body_memory_megabytes: Option<u64>,
    takeover: Option<bool>,
    publish_service: Option<String>,
    default_backend_service: Option<String>,
    default_ssl_certificate: Option<String>,
    ingress_class: Option<String>,
    controller_class: Option<String>,
    ingress_class_by_name: Option<bool>,
    configmap: Option<String>,
    tcp_services_configmap: Option<String>,
    udp_services_configmap: Option<String>,
    address_pools: Option<String>,
    watch_ingress_without_class: Option<bool>,
    disable_catch_all: Option<bool>,
    disable_svc_external_name: Option<bool>,
    enable_topology_aware_routing: Option<bool>,
    annotations_prefix: Option<String>,
    node_name: Option<String>,
    load_balancer_class: Option<String>,
    external_ips: Option<bool>,
    enable_ssl_passthrough: Option<bool>,
    snippet_policy: Option<SnippetPolicy>,
    kubeconfig: Option<PathBuf>,
    apiserver_host: Option<String>,
    certificate_authority: Option<PathBuf>,
    watch_namespace: Option<String>,
    watch_namespace_selector: Option<String>,
    update_status: Option<bool>,
    update_status_on_shutdown: Option<bool>,
    status_update_interval: Option<u64>,
    publish_status_address: Option<String>,
    report_node_internal_ip_address: Option<bool>,
    election_id: Option<String>,
    election_ttl: Option<String>,
    disable_leader_election: Option<bool>,
    disable_sync_events: Option<bool>,
    validating_webhook: Option<String>,
    validating_webhook_certificate: Option<PathBuf>,
    validating_webhook_key: Option<PathBuf>,
    validating_webhook_configuration: Option<String>,
    validating_webhook_warn_only: Option<bool>,
    enable_metrics: Option<bool>,
    metrics_per_host: Option<bool>,
    metrics_per_undefined_host: Option<bool>,
    report_status_classes: Option<bool>,
    #[serde(deserialize_with = "one_or_more")]
    exclude_socket_metrics: Vec<String>,
    time_buckets: Option<String>,
    length_buckets: Option<String>,
    size_buckets: Option<String>,
    metrics_series: Option<usize>,
}

/// The settings of a file.
pub(super) fn read_file(path: &Path) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text).map_err(|error| {
        let said = error.without_snippet().render().replace('\n', " ");
        // What a program could do about a key that is there twice is none of the reader's business.
        let said = said.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        let setting = error.location().and_then(|at| setting_at(&text, at.line()));
        let setting = setting.map(|setting| format!("{setting}: ")).unwrap_or_default();
        let reason =
            format!("{setting}{said}; a setting takes what its flag takes, see `penstock run --help`");
        Error::Unparsable { path: path.to_owned(), reason }
    })
}

/// The setting that a line is about: the file is one mapping, so it is the last one whose name began a line.
fn setting_at(text: &str, line: u64) -> Option<&str> {
    let lines = text.lines().take(usize::try_from(line).unwrap_or(usize::MAX));
    let names = lines.filter_map(|line| line.split_once(':').map(|(name, _)| name));
    names.filter(|name| name.starts_with(|it: char| it.is_ascii_alphabetic())).last()
}

/// A list, or one value as the flag takes it: with commas, several.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Given;

    impl<'de> Visitor<'de> for Given {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one value or a list of them")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.split(',').map(|one| one.trim().to_owned()).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                values.push(value);
            }
            Ok(values)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
    }

    from.deserialize_any(Given)
}
