//! Has the links that the configuration names told whose the VIPs are.

use std::net::IpAddr;
use std::sync::Arc;

use tracing::warn;

use super::StartError;
use super::desired::Desired;
use crate::config::{Config, DatapathMode};
use crate::model::announce::Announced;
use crate::model::report::{Metric, Step};
use crate::{announce, datapath};

/// Who announces; nobody, unless asked to.
#[derive(Default)]
pub(super) struct Announcer(Option<announce::Handle>);

/// Starts what was asked for. `succeeds`: an agent of this node announces until now.
pub(super) async fn start(
    config: &Config,
    desired: &Desired,
    succeeds: bool,
) -> Result<Announcer, StartError> {
    if config.announce.is_empty() {
        return Ok(Announcer::default());
    }
    if config.datapath == DatapathMode::Off {
        warn!("nothing is announced: that needs the kernel part, and this is --datapath off");
        return Ok(Announcer::default());
    }
    if config.hash_key.is_none() {
        let fix = "give all agents of a cluster the same --hash-key, and each cluster on the link its own";
        warn!(
            fix,
            "--announce without --hash-key: the link has to be trusted, no other cluster may announce on it, and \
             flows break where one agent follows another"
        );
    }
    for interface in &config.announce {
        if let Err(error) = datapath::quiet_arp(interface) {
            let fix =
                "set net.ipv4.conf.<interface>.arp_ignore=1, or every agent may answer for VIPs of the proxy";
            warn!(interface, %error, fix, "the kernel was not told to leave VIPs to us");
        }
    }
    let options = announce::Options {
        interfaces: config.announce.clone(),
        node: config.translate.node_name.clone().unwrap_or_else(|| config.pod.name.clone()),
        key: config.hash_key.map(|key| key.0),
        succeeds,
    };
    let handle = announce::start(&options, &desired.l4.subscribe()).map_err(StartError::Runtime)?;
    Ok(Announcer(Some(handle)))
}

impl Announcer {
    /// Who holds what, on each link.
    pub(super) fn announced(&self) -> Vec<Arc<Announced>> {
        self.0.as_ref().map(announce::Handle::announced).unwrap_or_default()
    }

    /// For `/metrics`.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.0.as_ref().map(announce::Handle::metrics).unwrap_or_default()
    }

    /// How packets for this address come here, for `explain`.
    pub(super) fn step(&self, vip: IpAddr) -> Option<Step> {
        let of = |on: &Arc<Announced>| {
            let Announced { interface, own, trouble, members, holders } = &**on;
            Some(match (trouble, holders.get(&vip)?) {
                (Some(trouble), _) => format!("nothing on {interface} ({trouble})"),
                (None, Some(holder)) if holder == own => {
                    format!("on {interface} this node answers for {vip}")
                }
                (None, Some(holder)) => format!("on {interface} {holder} answers for {vip}, not this node"),
                (None, None) => format!("on {interface} none of {} can serve {vip}", members.join(" ")),
            })
        };
        let details: Vec<String> = self.announced().iter().filter_map(of).collect();
        (!details.is_empty()).then(|| Step { name: "announced".to_owned(), detail: details.join("; ") })
    }

    /// Tells the others that they are to take over, and ends.
    pub(super) async fn leave(&self) {
        if let Some(handle) = &self.0 {
            handle.leave().await;
        }
    }

    /// Ends without a word: another agent of this node goes on.
    pub(super) async fn hush(&self) {
        if let Some(handle) = &self.0 {
            handle.hush().await;
        }
    }
}
