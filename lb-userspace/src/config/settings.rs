//! The settings of one source, flags or file, and how one goes over another.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{DatapathMode, Error, OnExit, Pin, SnippetPolicy};

/// Settings as one source gives them; absent ones fall through to the next source.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    pub(crate) manifests: Option<PathBuf>,
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) interface: Vec<String>,
    pub(crate) wait_interfaces: Option<bool>,
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) announce: Vec<String>,
    pub(crate) datapath: Option<DatapathMode>,
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) http: Vec<String>,
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) https: Vec<String>,
    pub(crate) http_port: Option<u16>,
    pub(crate) https_port: Option<u16>,
    pub(crate) admin: Option<String>,
    pub(crate) healthz_host: Option<String>,
    pub(crate) healthz_port: Option<u16>,
    pub(crate) health_check_path: Option<String>,
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
    pub(crate) body_memory_megabytes: Option<u64>,
    pub(crate) takeover: Option<bool>,
    pub(crate) publish_service: Option<String>,
    pub(crate) default_backend_service: Option<String>,
    pub(crate) default_ssl_certificate: Option<String>,
    pub(crate) ingress_class: Option<String>,
    pub(crate) controller_class: Option<String>,
    pub(crate) ingress_class_by_name: Option<bool>,
    pub(crate) configmap: Option<String>,
    pub(crate) tcp_services_configmap: Option<String>,
    pub(crate) udp_services_configmap: Option<String>,
    pub(crate) address_pools: Option<String>,
    pub(crate) watch_ingress_without_class: Option<bool>,
    pub(crate) disable_catch_all: Option<bool>,
    pub(crate) disable_svc_external_name: Option<bool>,
    pub(crate) annotations_prefix: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) load_balancer_class: Option<String>,
    pub(crate) external_ips: Option<bool>,
    pub(crate) enable_ssl_passthrough: Option<bool>,
    pub(crate) snippet_policy: Option<SnippetPolicy>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) apiserver_host: Option<String>,
    pub(crate) certificate_authority: Option<PathBuf>,
    pub(crate) watch_namespace: Option<String>,
    pub(crate) watch_namespace_selector: Option<String>,
    pub(crate) update_status: Option<bool>,
    pub(crate) update_status_on_shutdown: Option<bool>,
    pub(crate) status_update_interval: Option<u64>,
    pub(crate) publish_status_address: Option<String>,
    pub(crate) report_node_internal_ip_address: Option<bool>,
    pub(crate) election_id: Option<String>,
    pub(crate) election_ttl: Option<String>,
    pub(crate) disable_leader_election: Option<bool>,
    pub(crate) disable_sync_events: Option<bool>,
    pub(crate) validating_webhook: Option<String>,
    pub(crate) validating_webhook_certificate: Option<PathBuf>,
    pub(crate) validating_webhook_key: Option<PathBuf>,
    pub(crate) validating_webhook_configuration: Option<String>,
    pub(crate) validating_webhook_warn_only: Option<bool>,
    pub(crate) metrics_per_host: Option<bool>,
    pub(crate) metrics_per_undefined_host: Option<bool>,
    pub(crate) report_status_classes: Option<bool>,
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) exclude_socket_metrics: Vec<String>,
    pub(crate) time_buckets: Option<String>,
    pub(crate) length_buckets: Option<String>,
    pub(crate) size_buckets: Option<String>,
    pub(crate) metrics_series: Option<usize>,
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

impl Settings {
    /// These, and where they say nothing those below.
    pub(super) fn over(self, below: Self) -> Self {
        let lists = |above: Vec<String>, below: Vec<String>| if above.is_empty() { below } else { above };
        // Destructured so that a setting added later cannot be forgotten here.
        let Self {
            manifests,
            interface,
            wait_interfaces,
            announce,
            datapath,
            http,
            https,
            http_port,
            https_port,
            admin,
            healthz_host,
            healthz_port,
            health_check_path,
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
            body_memory_megabytes,
            takeover,
            publish_service,
            default_backend_service,
            default_ssl_certificate,
            ingress_class,
            controller_class,
            ingress_class_by_name,
            configmap,
            tcp_services_configmap,
            udp_services_configmap,
            address_pools,
            watch_ingress_without_class,
            disable_catch_all,
            disable_svc_external_name,
            annotations_prefix,
            node_name,
            load_balancer_class,
            external_ips,
            enable_ssl_passthrough,
            snippet_policy,
            kubeconfig,
            apiserver_host,
            certificate_authority,
            watch_namespace,
            watch_namespace_selector,
            update_status,
            update_status_on_shutdown,
            status_update_interval,
            publish_status_address,
            report_node_internal_ip_address,
            election_id,
            election_ttl,
            disable_leader_election,
            disable_sync_events,
            validating_webhook,
            validating_webhook_certificate,
            validating_webhook_key,
            validating_webhook_configuration,
            validating_webhook_warn_only,
            metrics_per_host,
            metrics_per_undefined_host,
            report_status_classes,
            exclude_socket_metrics,
            time_buckets,
            length_buckets,
            size_buckets,
            metrics_series,
        } = self;
        Self {
            manifests: manifests.or(below.manifests),
            interface: lists(interface, below.interface),
            wait_interfaces: wait_interfaces.or(below.wait_interfaces),
            announce: lists(announce, below.announce),
            datapath: datapath.or(below.datapath),
            http: lists(http, below.http),
            https: lists(https, below.https),
            http_port: http_port.or(below.http_port),
            https_port: https_port.or(below.https_port),
            admin: admin.or(below.admin),
            healthz_host: healthz_host.or(below.healthz_host),
            healthz_port: healthz_port.or(below.healthz_port),
            health_check_path: health_check_path.or(below.health_check_path),
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
            body_memory_megabytes: body_memory_megabytes.or(below.body_memory_megabytes),
            takeover: takeover.or(below.takeover),
            publish_service: publish_service.or(below.publish_service),
            default_backend_service: default_backend_service.or(below.default_backend_service),
            default_ssl_certificate: default_ssl_certificate.or(below.default_ssl_certificate),
            ingress_class: ingress_class.or(below.ingress_class),
            controller_class: controller_class.or(below.controller_class),
            ingress_class_by_name: ingress_class_by_name.or(below.ingress_class_by_name),
            configmap: configmap.or(below.configmap),
            tcp_services_configmap: tcp_services_configmap.or(below.tcp_services_configmap),
            udp_services_configmap: udp_services_configmap.or(below.udp_services_configmap),
            address_pools: address_pools.or(below.address_pools),
            watch_ingress_without_class: watch_ingress_without_class.or(below.watch_ingress_without_class),
            disable_catch_all: disable_catch_all.or(below.disable_catch_all),
            disable_svc_external_name: disable_svc_external_name.or(below.disable_svc_external_name),
            annotations_prefix: annotations_prefix.or(below.annotations_prefix),
            node_name: node_name.or(below.node_name),
            load_balancer_class: load_balancer_class.or(below.load_balancer_class),
            external_ips: external_ips.or(below.external_ips),
            enable_ssl_passthrough: enable_ssl_passthrough.or(below.enable_ssl_passthrough),
            snippet_policy: snippet_policy.or(below.snippet_policy),
            kubeconfig: kubeconfig.or(below.kubeconfig),
            apiserver_host: apiserver_host.or(below.apiserver_host),
            certificate_authority: certificate_authority.or(below.certificate_authority),
            watch_namespace: watch_namespace.or(below.watch_namespace),
            watch_namespace_selector: watch_namespace_selector.or(below.watch_namespace_selector),
            update_status: update_status.or(below.update_status),
            update_status_on_shutdown: update_status_on_shutdown.or(below.update_status_on_shutdown),
            status_update_interval: status_update_interval.or(below.status_update_interval),
            publish_status_address: publish_status_address.or(below.publish_status_address),
            report_node_internal_ip_address: report_node_internal_ip_address
                .or(below.report_node_internal_ip_address),
            election_id: election_id.or(below.election_id),
            election_ttl: election_ttl.or(below.election_ttl),
            disable_leader_election: disable_leader_election.or(below.disable_leader_election),
            disable_sync_events: disable_sync_events.or(below.disable_sync_events),
            validating_webhook: validating_webhook.or(below.validating_webhook),
            validating_webhook_certificate: validating_webhook_certificate
                .or(below.validating_webhook_certificate),
            validating_webhook_key: validating_webhook_key.or(below.validating_webhook_key),
            validating_webhook_configuration: validating_webhook_configuration
                .or(below.validating_webhook_configuration),
            validating_webhook_warn_only: validating_webhook_warn_only.or(below.validating_webhook_warn_only),
            metrics_per_host: metrics_per_host.or(below.metrics_per_host),
            metrics_per_undefined_host: metrics_per_undefined_host.or(below.metrics_per_undefined_host),
            report_status_classes: report_status_classes.or(below.report_status_classes),
            exclude_socket_metrics: lists(exclude_socket_metrics, below.exclude_socket_metrics),
            time_buckets: time_buckets.or(below.time_buckets),
            length_buckets: length_buckets.or(below.length_buckets),
            size_buckets: size_buckets.or(below.size_buckets),
            metrics_series: metrics_series.or(below.metrics_series),
        }
    }
}
