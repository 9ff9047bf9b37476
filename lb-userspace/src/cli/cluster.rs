//! Flags about the cluster: how it is read, and what is written back to it. Named as ingress-nginx
//! names them.

use std::path::PathBuf;

use clap::Args;

use super::flags::{boolean, seconds};
use crate::config::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "The cluster")]
pub(super) struct ClusterArgs {
    /// File that says where the API server is and who we are there [default: the pod's own account]
    #[arg(long, value_name = "FILE", env = "PENSTOCK_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the kubeconfig's or the pod's
    #[arg(long, value_name = "URL", env = "PENSTOCK_APISERVER_HOST")]
    apiserver_host: Option<String>,
    /// File with the authority of the API server's certificate, in place of the kubeconfig's or the pod's
    #[arg(long, value_name = "FILE", env = "PENSTOCK_CERTIFICATE_AUTHORITY")]
    certificate_authority: Option<PathBuf>,
    /// Read the objects of this namespace alone [default: of all]
    #[arg(long, value_name = "NAMESPACE", env = "PENSTOCK_WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// Read the objects of namespaces with these labels alone
    #[arg(long, value_name = "SELECTOR", env = "PENSTOCK_WATCH_NAMESPACE_SELECTOR")]
    watch_namespace_selector: Option<String>,
    /// Write addresses into the status of Ingresses, and of Services that have one of a pool; false beside
    /// another controller that does [default: true]
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_UPDATE_STATUS", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    update_status: Option<bool>,
    /// Clear the addresses in the status of Ingresses and Services when the last agent ends [default: true]
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_UPDATE_STATUS_ON_SHUTDOWN", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    update_status_on_shutdown: Option<bool>,
    /// How often the status of Ingresses and Services is compared with what it should be [default: 60]
    #[arg(long, value_name = "SECONDS", env = "PENSTOCK_STATUS_UPDATE_INTERVAL", value_parser = seconds::<u64>)]
    status_update_interval: Option<u64>,
    /// Addresses and names for the status of Ingresses, with commas [default: those of --publish-service, else of
    /// the nodes]
    #[arg(long, value_name = "ADDR", env = "PENSTOCK_PUBLISH_STATUS_ADDRESS")]
    publish_status_address: Option<String>,
    /// Put the internal address of nodes into the status of Ingresses, though there is an external one
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_REPORT_NODE_INTERNAL_IP_ADDRESS", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    report_node_internal_ip_address: Option<bool>,
    /// Name of the Lease whose holder alone writes [default: ingress-controller-leader]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_ELECTION_ID")]
    election_id: Option<String>,
    /// How long a holder of the Lease that is silent keeps it, at least 5s, as 30s or 1m30s [default: 30s]
    #[arg(long, value_name = "DURATION", env = "PENSTOCK_ELECTION_TTL")]
    election_ttl: Option<String>,
    /// Write status and Events without a Lease, whoever else does
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_DISABLE_LEADER_ELECTION", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    disable_leader_election: Option<bool>,
    /// Write no Events of type Sync
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_DISABLE_SYNC_EVENTS", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    disable_sync_events: Option<bool>,
    /// Where the API server asks whether an Ingress may be stored, as `:8443` [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_VALIDATING_WEBHOOK")]
    validating_webhook: Option<String>,
    /// Certificate that the API server is shown by the webhook, as PEM; read anew when it changes
    #[arg(long, value_name = "FILE", env = "PENSTOCK_VALIDATING_WEBHOOK_CERTIFICATE")]
    validating_webhook_certificate: Option<PathBuf>,
    /// Key of the certificate of the webhook, as PEM
    #[arg(long, value_name = "FILE", env = "PENSTOCK_VALIDATING_WEBHOOK_KEY")]
    validating_webhook_key: Option<PathBuf>,
    /// ValidatingWebhookConfiguration by which the API server asks: makes the certificate, keeps it in a Secret of the
    /// same name, renews it in time and has the API server believe it [default: the certificate is a file]
    #[arg(long, value_name = "NAME", env = "PENSTOCK_VALIDATING_WEBHOOK_CONFIGURATION")]
    validating_webhook_configuration: Option<String>,
    /// The webhook lets in what it would refuse, with a warning that says why
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_VALIDATING_WEBHOOK_WARN_ONLY", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    validating_webhook_warn_only: Option<bool>,
}

impl ClusterArgs {
    pub(super) fn put(self, settings: &mut Settings) {
        let Self {
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
        } = self;
        settings.kubeconfig = kubeconfig;
        settings.apiserver_host = apiserver_host;
        settings.certificate_authority = certificate_authority;
        settings.watch_namespace = watch_namespace;
        settings.watch_namespace_selector = watch_namespace_selector;
        settings.update_status = update_status;
        settings.update_status_on_shutdown = update_status_on_shutdown;
        settings.status_update_interval = status_update_interval;
        settings.publish_status_address = publish_status_address;
        settings.report_node_internal_ip_address = report_node_internal_ip_address;
        settings.election_id = election_id;
        settings.election_ttl = election_ttl;
        settings.disable_leader_election = disable_leader_election;
        settings.disable_sync_events = disable_sync_events;
        settings.validating_webhook = validating_webhook;
        settings.validating_webhook_certificate = validating_webhook_certificate;
        settings.validating_webhook_key = validating_webhook_key;
        settings.validating_webhook_configuration = validating_webhook_configuration;
        settings.validating_webhook_warn_only = validating_webhook_warn_only;
    }
}
