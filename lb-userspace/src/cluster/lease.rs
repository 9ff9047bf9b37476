//! Who of several agents writes: the holder of a Lease, as client-go's leader election has it, so that
//! an ingress-nginx beside us takes its turn, too.
//!
//! Clocks of others are not believed: a Lease is given up by its holder when it has not changed for as
//! long as it says, by our own clock.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use super::failure::{Failure, Why};
use super::write_health::{Holder, Work, WriteHealth};
use crate::backoff::spread;

/// Who stands for election, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    /// Name of the Lease.
    pub id: String,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Us, the same after a takeover by another process of the same place.
    pub identity: String,
    /// How long a holder that is silent keeps it.
    pub ttl: Duration,
}

/// What we saw of another holder, and since when.
type Seen = (Option<String>, Option<MicroTime>, Instant);

/// Stands for election until nobody listens.
pub(super) async fn stand(
    client: Client,
    election: Election,
    leads: watch::Sender<bool>,
    health: Arc<WriteHealth>,
) {
    let api: Api<Lease> = Api::namespaced(client, &election.namespace);
    let mut seen: Option<Seen> = None;
    // When we leave off, unless we renew it: sooner than others may take it.
    let mut end: Option<Instant> = None;
    while !leads.is_closed() {
        // What takes effect may be answered late, so it counts from the question on.
        let begun = Instant::now();
        let patience = begun + election.ttl / 3;
        let until = end.map_or(patience, |end| patience.min(end));
        let outcome = match timeout_at(until, attempt(&api, &election, &mut seen)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Why::Slow, "no answer in time")),
        };
        match outcome {
            Ok(holder) => {
                end = holder.is_us.then(|| begun + election.ttl * 2 / 3);
                health.held(holder);
                health.done(Work::Lease);
            }
            // Somebody wrote it since we read it, perhaps an earlier question of ours: read again.
            Err(failure) if failure.why == Why::Conflict => {}
            Err(failure) => {
                if health.failed(Work::Lease, &failure) {
                    warn!(
                        lease = election.id,
                        reason = failure.why.name(),
                        failure.message,
                        "not renewed for the moment"
                    );
                }
            }
        }
        end = end.filter(|end| Instant::now() < *end);
        tell(&leads, &election, end.is_some());
        let next = Instant::now() + (election.ttl / 6).mul_f64(spread());
        let next = end.map_or(next, |end| next.min(end));
        tokio::select! {
            () = sleep_until(next) => {}
            () = leads.closed() => return,
        }
    }
}

fn tell(leads: &watch::Sender<bool>, election: &Election, holds: bool) {
    leads.send_if_modified(|leads| {
        if *leads != holds {
            info!(lease = election.id, identity = election.identity, holds, "election");
        }
        std::mem::replace(leads, holds) != holds
    });
}

/// Gives the Lease back if we hold it, for the next one to have it at once.
pub(super) async fn release(client: Client, election: &Election) -> Result<(), Failure> {
    let api: Api<Lease> = Api::namespaced(client, &election.namespace);
    let Some(mut lease) = api.get_opt(&election.id).await.map_err(|error| Failure::of(&error))? else {
        return Ok(());
    };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_ref() != Some(&election.identity) {
        return Ok(());
    }
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    put(&api, &election.id, &lease).await
}

/// Renews what we hold, takes what nobody holds any more; who holds it now. A conflict is an error.
async fn attempt(api: &Api<Lease>, election: &Election, seen: &mut Option<Seen>) -> Result<Holder, Failure> {
    let us = || Holder { identity: election.identity.clone(), is_us: true };
    let now = MicroTime(Timestamp::now());
    let ours = |transitions, acquired: Option<MicroTime>| LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: i32::try_from(election.ttl.as_secs()).ok(),
        acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
        renew_time: Some(now.clone()),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let Some(mut lease) = api.get_opt(&election.id).await.map_err(|error| Failure::of(&error))? else {
        let metadata = ObjectMeta {
            name: Some(election.id.clone()),
            namespace: Some(election.namespace.clone()),
            ..ObjectMeta::default()
        };
        let lease = Lease { metadata, spec: Some(ours(0, None)) };
        let created = api.create(&PostParams::default(), &lease).await;
        return created.map(|_| us()).map_err(|error| Failure::of(&error));
    };
    let spec = lease.spec.take().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or(0);
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
    if holder.as_ref() == Some(&election.identity) {
        lease.spec = Some(ours(transitions, spec.acquire_time));
        return put(api, &election.id, &lease).await.map(|()| us());
    }
    let over = is_over(&holder, &spec, election, seen);
    if let Some(identity) = holder.filter(|_| !over) {
        return Ok(Holder { identity, is_us: false });
    }
    lease.spec = Some(ours(transitions.saturating_add(1), None));
    put(api, &election.id, &lease).await.map(|()| us())
}

/// The holder has been silent for as long as it said it may be.
fn is_over(holder: &Option<String>, spec: &LeaseSpec, election: &Election, seen: &mut Option<Seen>) -> bool {
    let unchanged = seen.as_ref().filter(|(who, at, _)| who == holder && *at == spec.renew_time);
    let Some((_, _, since)) = unchanged else {
        *seen = Some((holder.clone(), spec.renew_time.clone(), Instant::now()));
        return false;
    };
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    since.elapsed() > seconds.map_or(election.ttl, Duration::from_secs)
}

/// With its version, so that only one of several gets it.
async fn put(api: &Api<Lease>, id: &str, lease: &Lease) -> Result<(), Failure> {
    api.replace(id, &PostParams::default(), lease).await.map(drop).map_err(|error| Failure::of(&error))
}
