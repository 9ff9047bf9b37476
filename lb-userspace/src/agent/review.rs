//! The validating webhook of the running agent: judged by what is in force, shown with the certificate that its
//! files hold or that agents keep in the cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::StartError;
use super::desired::State;
use super::source::Source;
use crate::cluster::{self, Entries};
use crate::config::{Config, Webhook, WebhookCertificate};
use crate::model::review::Review;
use crate::webhook::{self, Counts, Force, Identity, Reviewer, authority};
use crate::{check, translate};

/// A Secret's volume shows another version within about a minute.
const LOOK: Duration = Duration::from_secs(10);

/// The webhook, serving until it is dropped.
pub(super) struct Reviews {
    pub(super) counts: Arc<Counts>,
    _stop: oneshot::Sender<()>,
}

/// Serves the webhook: at once where files hold its certificate, else as soon as there is one.
pub(super) fn start(
    config: &Config,
    source: &Source,
    state: watch::Receiver<Arc<State>>,
    options: translate::Options,
) -> Result<Option<Reviews>, StartError> {
    let Some(Webhook { listen, certificate, warn_only }) = &config.cluster.webhook else { return Ok(None) };
    let refused = |source| StartError::Webhook { addr: *listen, source };
    let listener = webhook::bind(*listen).and_then(tokio::net::TcpListener::from_std).map_err(refused)?;
    let addr = listener.local_addr().map_err(refused)?;
    let counts = Arc::new(Counts::default());
    let (stop, stopped) = oneshot::channel();
    let answering = webhook::Answering {
        reviewer: Arc::new(Judge { state, options, served: source.served() }),
        force: if *warn_only { Force::Warn } else { Force::Refuse },
        counts: Arc::clone(&counts),
    };
    let serve = move |identity| webhook::serve(listener, identity, answering, stopped);
    match certificate {
        WebhookCertificate::Files { certificate, key } => {
            let (shown, identity) = watch::channel(Identity::read(certificate, key)?);
            tokio::spawn(follow(certificate.clone(), key.clone(), shown));
            tokio::spawn(serve(identity));
            info!(%addr, "webhook answers");
        }
        WebhookCertificate::Own(name) => {
            let kept = source.keep_certificate(config, name)?;
            tokio::spawn(async move {
                let Some(identity) = first(kept).await else { return };
                info!(%addr, "webhook answers");
                serve(identity).await;
            });
        }
    }
    Ok(Some(Reviews { counts, _stop: stop }))
}

/// Waits for what is kept, and shows it from then on. `None`: nobody keeps anything any more.
async fn first(mut kept: watch::Receiver<Option<Arc<Entries>>>) -> Option<watch::Receiver<Identity>> {
    let first = loop {
        let entries = kept.borrow_and_update().clone();
        match entries.as_deref().map(authority::identity) {
            Some(Ok(identity)) => break identity,
            Some(Err(error)) => warn!(%error, "the webhook has nothing to show"),
            None => {}
        }
        kept.changed().await.ok()?;
    };
    let (shown, identity) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shown.closed() => return,
                changed = kept.changed() => if changed.is_err() { return },
            }
            let entries = kept.borrow_and_update().clone();
            match entries.as_deref().map(authority::identity) {
                Some(Ok(identity)) => {
                    shown.send_replace(identity);
                }
                Some(Err(error)) => warn!(%error, "the webhook keeps its certificate"),
                None => {}
            }
        }
    });
    Some(identity)
}

/// Shows what the files hold from the next connection on, as long as anybody is shown it.
async fn follow(certificate: PathBuf, key: PathBuf, shown: watch::Sender<Identity>) {
    let mut seen = [changed(&certificate), changed(&key)];
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shown.closed() => return,
            _ = interval.tick() => {}
        }
        let now = [changed(&certificate), changed(&key)];
        if now == seen {
            continue;
        }
        seen = now;
        match Identity::read(&certificate, &key) {
            Ok(identity) => {
                shown.send_replace(identity);
                info!(file = %certificate.display(), "the webhook has another certificate");
            }
            // Half of a pair that is being written, or worse.
            Err(error) => warn!(%error, "the webhook keeps its certificate"),
        }
    }
}

fn changed(file: &PathBuf) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

/// What is in force, asked.
struct Judge {
    state: watch::Receiver<Arc<State>>,
    options: translate::Options,
    /// `None`: Ingresses of every namespace may be ours.
    served: Option<cluster::Served>,
}

impl Reviewer for Judge {
    fn review(&self, ingress: serde_json::Value) -> Review {
        let namespace = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
        if self.served.as_ref().is_some_and(|served| !served.has(namespace)) {
            return Review::default();
        }
        let state = Arc::clone(&self.state.borrow());
        check::review(&state.objects, &self.options, ingress)
    }
}
