//! Flags that decide what objects mean, of every command that reads objects.

use std::path::PathBuf;

use clap::Args;

use super::flags::boolean;
use crate::agent::StartError;
use crate::config::{self, Settings, SnippetPolicy, TranslateConfig};

/// Flags that decide what objects mean; named as ingress-nginx names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "What objects mean")]
pub(super) struct MeaningArgs {
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
    /// IngressClasses called as --ingress-class says are ours, whatever controller they name
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_INGRESS_CLASS_BY_NAME")]
    ingress_class_by_name: Option<bool>,
    /// ConfigMap with the settings for all Ingresses [default: the first one called
    /// ingress-nginx-controller]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_CONFIGMAP")]
    configmap: Option<String>,
    /// ConfigMap of TCP ports, each `"port": "namespace/service:port"`, served beside http and https
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_TCP_SERVICES_CONFIGMAP")]
    tcp_services_configmap: Option<String>,
    /// ConfigMap of UDP ports, each `"port": "namespace/service:port"`, served beside http and https
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_UDP_SERVICES_CONFIGMAP")]
    udp_services_configmap: Option<String>,
    /// ConfigMap of the pools that give Services of type LoadBalancer their addresses [default:
    /// penstock-address-pools beside the controller]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "PENSTOCK_ADDRESS_POOLS")]
    address_pools: Option<String>,
    /// Serve Ingresses that name no class
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_WATCH_INGRESS_WITHOUT_CLASS")]
    watch_ingress_without_class: Option<bool>,
    /// Ignore Ingresses with a spec.defaultBackend
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_DISABLE_CATCH_ALL")]
    disable_catch_all: Option<bool>,
    /// Serve no Services of type ExternalName, which name hosts outside
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_DISABLE_SVC_EXTERNAL_NAME")]
    disable_svc_external_name: Option<bool>,
    /// Send requests to the endpoints whose hints name this node's zone, where all have some
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_ENABLE_TOPOLOGY_AWARE_ROUTING")]
    enable_topology_aware_routing: Option<bool>,
    /// What annotations of Ingresses begin with; those under nginx.ingress.kubernetes.io are then not read [default:
    /// nginx.ingress.kubernetes.io]
    #[arg(long, value_name = "PREFIX", env = "PENSTOCK_ANNOTATIONS_PREFIX")]
    annotations_prefix: Option<String>,
    /// Name of this node in EndpointSlices and Node objects [default: $NODE_NAME, else the host's
    /// name]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_NODE_NAME")]
    node_name: Option<String>,
    /// Serve the addresses of Services of this loadBalancerClass alone [default: of those without a
    /// class and of class penstock.dev/load-balancer]
    #[arg(long, value_name = "CLASS", env = "PENSTOCK_LOAD_BALANCER_CLASS")]
    load_balancer_class: Option<String>,
    /// Serve spec.externalIPs, too, and in a cluster the annotation penstock.dev/vips and, without address pools,
    /// spec.loadBalancerIP: any author of a Service may claim any address by them
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_EXTERNAL_IPS")]
    external_ips: Option<bool>,
    /// Hand the TLS of hosts with the annotation ssl-passthrough to their Service unopened
    #[arg(long, value_name = "BOOL", value_parser = boolean, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          env = "PENSTOCK_ENABLE_SSL_PASSTHROUGH")]
    enable_ssl_passthrough: Option<bool>,
    /// What becomes of an Ingress with nginx configuration (`*-snippet`), which is never run: its paths
    /// answer 503, or it is served as if it had none [default: refuse]
    #[arg(long, value_name = "WHAT", env = "PENSTOCK_SNIPPET_POLICY")]
    snippet_policy: Option<SnippetPolicy>,
}

impl MeaningArgs {
    /// What is not given here is as the others say.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            publish_service: self.publish_service.or(others.publish_service),
            default_backend_service: self.default_backend_service.or(others.default_backend_service),
            default_ssl_certificate: self.default_ssl_certificate.or(others.default_ssl_certificate),
            ingress_class: self.ingress_class.or(others.ingress_class),
            controller_class: self.controller_class.or(others.controller_class),
            ingress_class_by_name: self.ingress_class_by_name.or(others.ingress_class_by_name),
            configmap: self.configmap.or(others.configmap),
            tcp_services_configmap: self.tcp_services_configmap.or(others.tcp_services_configmap),
            udp_services_configmap: self.udp_services_configmap.or(others.udp_services_configmap),
            address_pools: self.address_pools.or(others.address_pools),
            watch_ingress_without_class: self
                .watch_ingress_without_class
                .or(others.watch_ingress_without_class),
            disable_catch_all: self.disable_catch_all.or(others.disable_catch_all),
            disable_svc_external_name: self.disable_svc_external_name.or(others.disable_svc_external_name),
            enable_topology_aware_routing: self
                .enable_topology_aware_routing
                .or(others.enable_topology_aware_routing),
            annotations_prefix: self.annotations_prefix.or(others.annotations_prefix),
            node_name: self.node_name.or(others.node_name),
            load_balancer_class: self.load_balancer_class.or(others.load_balancer_class),
            external_ips: self.external_ips.or(others.external_ips),
            enable_ssl_passthrough: self.enable_ssl_passthrough.or(others.enable_ssl_passthrough),
            snippet_policy: self.snippet_policy.or(others.snippet_policy),
        }
    }

    /// Somebody said which node we are.
    pub(super) fn names_node(&self) -> bool {
        self.node_name.as_ref().is_some_and(|name| !name.is_empty())
    }

    pub(super) fn into_settings(self) -> Settings {
        Settings {
            publish_service: self.publish_service,
            default_backend_service: self.default_backend_service,
            default_ssl_certificate: self.default_ssl_certificate,
            ingress_class: self.ingress_class,
            controller_class: self.controller_class,
            ingress_class_by_name: self.ingress_class_by_name,
            configmap: self.configmap,
            tcp_services_configmap: self.tcp_services_configmap,
            udp_services_configmap: self.udp_services_configmap,
            address_pools: self.address_pools,
            watch_ingress_without_class: self.watch_ingress_without_class,
            disable_catch_all: self.disable_catch_all,
            disable_svc_external_name: self.disable_svc_external_name,
            enable_topology_aware_routing: self.enable_topology_aware_routing,
            annotations_prefix: self.annotations_prefix,
            node_name: self.node_name,
            load_balancer_class: self.load_balancer_class,
            external_ips: self.external_ips,
            enable_ssl_passthrough: self.enable_ssl_passthrough,
            snippet_policy: self.snippet_policy,
            ..Settings::default()
        }
    }
}

/// For commands that only read.
pub(super) fn meaning(args: MeaningArgs) -> Result<TranslateConfig, StartError> {
    let settings = Settings { manifests: Some(PathBuf::new()), ..args.into_settings() };
    Ok(config::resolve(settings, None).map_err(StartError::Config)?.translate)
}
