//! The certificate that the API server is shown by the webhook: a Secret that all agents share, and the authority in
//! the ValidatingWebhookConfiguration that makes the API server believe it. What is in them is the caller's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};
use tracing::{info, warn};

use super::Cluster;
use super::failure::{Failure, Why};
use crate::backoff::spread;

/// What is kept is looked at again after this.
const LOOK: Duration = Duration::from_secs(30);

/// The API server has so long for all that is asked at once.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Contents of the Secret.
pub type Entries = BTreeMap<String, Vec<u8>>;

/// What the Secret is to hold, of what it holds and the names that the API server asks for; `None`: it is good.
pub type Renew = Arc<dyn Fn(&Entries, &BTreeSet<String>) -> Result<Option<Entries>, String> + Send + Sync>;

/// What is kept, and where.
#[derive(Clone)]
pub struct Certificate {
    /// Of the ValidatingWebhookConfiguration, and of the Secret.
    pub name: String,
    /// Of the Secret.
    pub namespace: String,
    /// Entry of the Secret with the authorities that the API server is to believe, PEM.
    pub authority: &'static str,
    /// Judges and makes the contents.
    pub renew: Renew,
}

/// Keeps the certificate for as long as anybody listens; nothing is told before there is one.
pub fn keep(cluster: &Cluster, certificate: Certificate) -> watch::Receiver<Option<Arc<Entries>>> {
    let (shown, entries) = watch::channel(None);
    tokio::spawn(run(cluster.client.clone(), certificate, shown));
    entries
}

async fn run(client: Client, certificate: Certificate, shown: watch::Sender<Option<Arc<Entries>>>) {
    let (mut backoff, mut told) = (super::pauses(), None);
    loop {
        let outcome = timeout(TIMEOUT, certificate.look(&client, &shown)).await;
        let next = match outcome.unwrap_or_else(|_| Err(Failure::new(Why::Slow, "no answer in time"))) {
            Ok(()) => {
                (backoff, told) = (super::pauses(), None);
                LOOK.mul_f64(spread())
            }
            Err(failure) => {
                // Another agent was faster, and what it made is as good.
                if failure.why != Why::Conflict && told.as_ref() != Some(&failure) {
                    warn!(
                        webhook = certificate.name,
                        reason = failure.why.name(),
                        failure.message,
                        "the webhook's certificate could not be kept"
                    );
                    told = Some(failure);
                }
                backoff.next()
            }
        };
        tokio::select! {
            () = sleep(next) => {}
            () = shown.closed() => return,
        }
    }
}

impl Certificate {
    async fn look(
        &self,
        client: &Client,
        shown: &watch::Sender<Option<Arc<Entries>>>,
    ) -> Result<(), Failure> {
        let failure = |error| Failure::of(&error);
        let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let configuration = configurations.get(&self.name).await.map_err(failure)?;
        let secret = secrets.get_opt(&self.name).await.map_err(failure)?;
        let held: Entries = secret
            .as_ref()
            .and_then(|secret| secret.data.clone())
            .map_or_else(Entries::new, |data| data.into_iter().map(|(key, value)| (key, value.0)).collect());

        let renewed = (self.renew)(&held, &names(&configuration))
            .map_err(|reason| Failure::new(Why::Unreadable, reason))?;
        let entries = match renewed {
            None => held,
            Some(entries) => {
                self.put(&secrets, secret, &entries).await?;
                info!(webhook = self.name, secret = %self.name, namespace = self.namespace, "the webhook has another certificate");
                entries
            }
        };
        // Before it is shown, so that it is believed; but one that is believed by luck is better than none.
        let believed = self.trust(&configurations, &configuration, &entries).await;
        let entries = Some(Arc::new(entries));
        if believed.is_ok() || shown.borrow().is_none() {
            shown.send_if_modified(|shown| {
                let other = *shown != entries;
                *shown = entries;
                other
            });
        }
        believed
    }

    /// Only if it is still what was judged, so that of several agents one makes it.
    async fn put(&self, api: &Api<Secret>, secret: Option<Secret>, entries: &Entries) -> Result<(), Failure> {
        let is_new = secret.is_none();
        let mut secret = secret.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        secret.data =
            Some(entries.iter().map(|(key, value)| (key.clone(), ByteString(value.clone()))).collect());
        let written = if is_new {
            api.create(&PostParams::default(), &secret).await
        } else {
            api.replace(&self.name, &PostParams::default(), &secret).await
        };
        written.map(drop).map_err(|error| Failure::of(&error))
    }

    /// Has the API server believe the authority.
    async fn trust(
        &self,
        api: &Api<ValidatingWebhookConfiguration>,
        configuration: &ValidatingWebhookConfiguration,
        entries: &Entries,
    ) -> Result<(), Failure> {
        let Some(authority) = entries.get(self.authority) else { return Ok(()) };
        let bundle = ByteString(authority.clone());
        let other: Vec<_> = configuration
            .webhooks
            .iter()
            .flatten()
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        if other.is_empty() {
            return Ok(());
        }
        let patch = Patch::Strategic(json!({"webhooks": other}));
        let patched = api.patch(&self.name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|error| Failure::of(&error))
    }
}

/// By what names the API server asks.
fn names(configuration: &ValidatingWebhookConfiguration) -> BTreeSet<String> {
    let webhooks = configuration.webhooks.iter().flatten();
    let name = webhooks.filter_map(|webhook| {
        let config = &webhook.client_config;
        if let Some(service) = &config.service {
            return Some(format!("{}.{}.svc", service.name, service.namespace));
        }
        let url: http::Uri = config.url.as_ref()?.parse().ok()?;
        Some(url.host()?.trim_matches(['[', ']']).to_ascii_lowercase())
    });
    name.collect()
}
