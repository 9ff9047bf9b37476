//! The part of the configuration that is about the cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Error, Settings, value};

/// How the cluster is read, and what is written back to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `--kubeconfig`; `None`: the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// `--apiserver-host`: URL that counts more than the one named there.
    pub apiserver_host: Option<String>,
    /// `--certificate-authority`: file that counts more than the one named there.
    pub certificate_authority: Option<PathBuf>,
    /// `--watch-namespace`; `None`: all.
    pub namespace: Option<String>,
    /// `--watch-namespace-selector`: labels of the namespaces that are read; `None`: all.
    pub namespace_selector: Option<String>,
    /// `--update-status`.
    pub update_status: bool,
    /// `--update-status-on-shutdown`.
    pub clear_status: bool,
    /// `--status-update-interval`, at least a second.
    pub status_interval: Duration,
    /// `--publish-status-address`: addresses and names as they were given; empty: those of
    /// `--publish-service`, else of the nodes.
    pub status_addresses: Vec<String>,
    /// `--report-node-internal-ip-address`.
    pub internal_node_addresses: bool,
    /// Who of several agents writes; `None` (`--disable-leader-election`): each does.
    pub election: Option<Election>,
    /// Not `--disable-sync-events`.
    pub sync_events: bool,
    /// `--validating-webhook`; `None`: nobody is answered.
    pub webhook: Option<Webhook>,
}

/// The Lease whose holder writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    /// `--election-id`: its name.
    pub id: String,
    /// `--election-ttl`: how long a silent holder keeps it, at least five seconds.
    pub ttl: Duration,
}

/// Where the API server asks whether an Ingress may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `--validating-webhook`.
    pub listen: SocketAddr,
    /// What it is shown.
    pub certificate: WebhookCertificate,
    /// `--validating-webhook-warn-only`: nothing is refused.
    pub warn_only: bool,
}

/// Where the webhook's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookCertificate {
    /// `--validating-webhook-certificate` and `-key`: somebody else makes it.
    Files {
        /// PEM.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// `--validating-webhook-configuration`: we do, for the ValidatingWebhookConfiguration of this name.
    Own(String),
}

impl ClusterConfig {
    pub(super) fn of(settings: &mut Settings) -> Result<Self, Error> {
        let text = |text: &mut Option<String>| text.take().filter(|text| !text.is_empty());
        let addresses = text(&mut settings.publish_status_address).unwrap_or_default();
        let addresses = addresses.split(',').map(str::trim).filter(|address| !address.is_empty());
        Ok(Self {
            kubeconfig: settings.kubeconfig.take().filter(|path| !path.as_os_str().is_empty()),
            apiserver_host: text(&mut settings.apiserver_host),
            certificate_authority: settings
                .certificate_authority
                .take()
                .filter(|path| !path.as_os_str().is_empty()),
            namespace: text(&mut settings.watch_namespace),
            namespace_selector: value::selector(text(&mut settings.watch_namespace_selector))?,
            update_status: settings.update_status.unwrap_or(true),
            clear_status: settings.update_status_on_shutdown.unwrap_or(true),
            status_interval: Duration::from_secs(settings.status_update_interval.unwrap_or(60).max(1)),
            status_addresses: addresses.map(str::to_owned).collect(),
            internal_node_addresses: settings.report_node_internal_ip_address.unwrap_or(false),
            election: election(settings)?,
            sync_events: !settings.disable_sync_events.unwrap_or(false),
            webhook: webhook(settings)?,
        })
    }
}

fn election(settings: &mut Settings) -> Result<Option<Election>, Error> {
    let written = settings.election_ttl.take();
    let ttl = value::duration("election-ttl", written.clone(), Duration::from_secs(30))?;
    if ttl < Duration::from_secs(5) {
        return Err(Error::Value {
            setting: "election-ttl",
            value: written.unwrap_or_default(),
            reason: "allowed: a duration of at least 5s".to_owned(),
        });
    }
    let id = settings.election_id.take().filter(|id| !id.is_empty());
    let id = id.unwrap_or_else(|| "ingress-controller-leader".to_owned());
    Ok((!settings.disable_leader_election.unwrap_or(false)).then_some(Election { id, ttl }))
}

fn webhook(settings: &mut Settings) -> Result<Option<Webhook>, Error> {
    let listen = settings.validating_webhook.take().filter(|text| !text.is_empty());
    let Some(listen) = listen else { return Ok(None) };
    let listen = value::listen_address("validating-webhook", &listen)?;
    let files = (settings.validating_webhook_certificate.take(), settings.validating_webhook_key.take());
    let own = settings.validating_webhook_configuration.take().filter(|name| !name.is_empty());
    let certificate = match (files, own) {
        ((Some(certificate), Some(key)), None) => WebhookCertificate::Files { certificate, key },
        ((None, None), Some(name)) => WebhookCertificate::Own(name),
        _ => {
            return Err(Error::Value {
                setting: "validating-webhook",
                value: listen.to_string(),
                reason: "needs --validating-webhook-certificate with --validating-webhook-key, or \
                         --validating-webhook-configuration for a certificate of our own"
                    .to_owned(),
            });
        }
    };
    let warn_only = settings.validating_webhook_warn_only.unwrap_or(false);
    Ok(Some(Webhook { listen, certificate, warn_only }))
}
