//! The validating webhook of the running agent: judged by what is in force, shown with the certificate that its
//! files hold.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::{StartError, State};
use crate::config::Webhook;
use crate::model::review::Review;
use crate::webhook::{self, Counts, Identity, Reviewer};
use crate::{check, translate};

/// A Secret's volume shows another version within about a minute.
const LOOK: Duration = Duration::from_secs(10);

/// The webhook, serving until it is dropped.
pub(super) struct Reviews {
    pub(super) counts: Arc<Counts>,
    _stop: oneshot::Sender<()>,
}

/// Serves the webhook.
pub(super) fn start(
    config: &Webhook,
    state: watch::Receiver<Arc<State>>,
    options: translate::Options,
) -> Result<Reviews, StartError> {
    let Webhook { listen, files } = config;
    let Some((certificate, key)) = files.clone() else { return Err(StartError::NoWebhookCertificate) };
    let identity = Identity::read(&certificate, &key)?;
    let refused = |source| StartError::Webhook { addr: *listen, source };
    let listener = webhook::bind(*listen).and_then(tokio::net::TcpListener::from_std).map_err(refused)?;
    let addr = listener.local_addr().map_err(refused)?;
    let (shown, identity) = watch::channel(identity);
    tokio::spawn(follow(certificate, key, shown));
    let counts = Arc::new(Counts::default());
    let (stop, stopped) = oneshot::channel();
    let judge = Arc::new(Judge { state, options });
    tokio::spawn(webhook::serve(listener, identity, judge, Arc::clone(&counts), stopped));
    info!(%addr, "webhook answers");
    Ok(Reviews { counts, _stop: stop })
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
}

impl Reviewer for Judge {
    fn review(&self, ingress: serde_json::Value) -> Review {
        let state = Arc::clone(&self.state.borrow());
        check::review(&state.objects, &self.options, ingress)
    }
}
