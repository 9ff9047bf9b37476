//! What the configuration says, for the translation and for the proxy.

use std::net::SocketAddr;

use crate::config::{Config, DatapathMode, SnippetPolicy, TranslateConfig};
use crate::l7::{self, TicketKeys};
use crate::translate::{self, Classes, Options, StreamsBy};

/// The translation's view of the configuration. With a datapath the node's own listener ports are
/// punted, so it must know them.
pub(super) fn of_process(config: &Config) -> Options {
    let options = of_meaning(&config.translate);
    let options = if config.manifests.is_some() { options } else { of_cluster(options) };
    Options {
        http_ports: config.http.iter().map(SocketAddr::port).collect(),
        https_ports: config.https.iter().map(SocketAddr::port).collect(),
        streams: streams(config.datapath),
        ..options
    }
}

/// The same for objects of an API server, whom many may write to.
pub(super) fn of_cluster(options: Options) -> Options {
    Options { classes: Classes::Written, vips: options.external_ips, ..options }
}

/// Who serves TCP and UDP ports beside http and https.
pub(super) fn streams(datapath: DatapathMode) -> StreamsBy {
    match datapath {
        DatapathMode::Off => StreamsBy::Proxy,
        DatapathMode::Auto | DatapathMode::Native | DatapathMode::Generic => StreamsBy::Kernel,
    }
}

/// The translation's view of what a command that serves nothing is told.
pub(super) fn of_meaning(meaning: &TranslateConfig) -> Options {
    let TranslateConfig {
        publish_service,
        default_backend_service,
        default_ssl_certificate,
        ingress_class,
        controller_class,
        ingress_class_by_name,
        config_map,
        tcp_services,
        udp_services,
        address_pools,
        own_pools,
        watch_ingress_without_class,
        disable_catch_all,
        node_name,
        load_balancer_class,
        disable_svc_external_name,
        enable_topology_aware_routing,
        external_ips,
        enable_ssl_passthrough,
        snippet_policy,
        annotations_prefix,
    } = meaning.clone();
    let default = Options::default();
    Options {
        publish_service,
        default_backend_service,
        default_ssl_certificate,
        ingress_class: ingress_class.unwrap_or(default.ingress_class),
        controller_class: controller_class.unwrap_or(default.controller_class),
        ingress_class_by_name,
        config_map,
        tcp_services,
        udp_services,
        address_pools,
        own_pools,
        watch_ingress_without_class,
        disable_catch_all,
        node: node_name,
        load_balancer_class,
        disable_external_names: disable_svc_external_name,
        routes_by_zone: enable_topology_aware_routing,
        external_ips,
        enable_ssl_passthrough,
        snippets: match snippet_policy {
            SnippetPolicy::Refuse => translate::SnippetPolicy::Refuse,
            SnippetPolicy::Ignore => translate::SnippetPolicy::Ignore,
        },
        annotations_prefix,
        ..default
    }
}

/// The proxy's view of it. `ticket_keys`: those of the agent before us.
pub(super) fn of_proxy(config: &Config, ticket_keys: Option<TicketKeys>) -> l7::Options {
    l7::Options {
        http: config.http.clone(),
        https: config.https.clone(),
        workers: config.workers,
        ticket_keys,
        temp: l7::Temp {
            dir: config.temp_dir.clone(),
            bytes: config.temp_bytes,
            memory_bytes: config.body_memory_bytes,
        },
        metering: config.metering.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_cluster_an_annotation_takes_addresses_by_the_flag_alone() {
        assert!(Options::default().vips, "files are the operator's");
        for external_ips in [false, true] {
            assert_eq!(of_cluster(Options { external_ips, ..Options::default() }).vips, external_ips);
        }
    }
}
