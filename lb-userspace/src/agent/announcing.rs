//! Has the links that the configuration names told whose the VIPs are.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::StartError;
use super::desired::Desired;
use super::trouble;
use crate::config::{Config, DatapathMode};
use crate::model::Problem;
use crate::model::announce::Announced;
use crate::model::report::{Metric, Step};
use crate::{announce, datapath};

/// Who announces; nobody, unless asked to.
#[derive(Default)]
pub(super) struct Announcer {
    handle: Option<announce::Handle>,
    formers: Arc<Mutex<Option<datapath::Formers>>>,
}

/// Starts what was asked for. `succeeds`: an agent of this node announces until now.
pub(super) async fn start(
    config: &Config,
    desired: &Desired,
    succeeds: bool,
    datapath: Option<&datapath::Handle>,
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
        drain: config.drain.unwrap_or_else(|| desired.l7.borrow().edge.shutdown),
    };
    let mut announcer = Announcer::default();
    announcer.send_back_by(datapath);
    let formers = Arc::clone(&announcer.formers);
    let ahead: announce::Ahead = Arc::new(move |now| follow(&formers, now));
    let (wished, in_force) = (desired.l4.subscribe(), desired.in_force.subscribe());
    let handle = announce::start(&options, &wished, &in_force, &ahead).map_err(StartError::Runtime)?;
    announcer.handle = Some(handle);
    Ok(announcer)
}

fn follow(formers: &Mutex<Option<datapath::Formers>>, now: &Announced) {
    let mut formers = formers.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(formers) = &mut *formers
        && let Err(error) = formers.follow(now)
    {
        warn!(interface = now.interface, %error, "some connections of VIPs that moved here are reset");
    }
}

impl Announcer {
    /// Whether VIPs are answered for here at all.
    pub(super) fn is_any(&self) -> bool {
        self.handle.is_some()
    }

    /// Who holds what, on each link.
    pub(super) fn announced(&self) -> Vec<Arc<Announced>> {
        self.handle.as_ref().map(announce::Handle::announced).unwrap_or_default()
    }

    /// What others on the links do that they should not.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.announced().iter().flat_map(|link| trouble::of_rivals(link)).collect()
    }

    /// For `/metrics`.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.handle.as_ref().map(announce::Handle::metrics).unwrap_or_default()
    }

    /// How packets for this address come here, for `explain`.
    pub(super) fn step(&self, vip: IpAddr) -> Option<Step> {
        let of = |on: &Arc<Announced>| {
            let Announced {
                interface,
                own,
                trouble,
                members,
                holders,
                formers,
                mac: _,
                agents: _,
                rivals: _,
            } = &**on;
            Some(match (trouble, holders.get(&vip)?) {
                (Some(trouble), _) => format!("nothing on {interface} ({trouble})"),
                (None, Some(holder)) if holder == own => {
                    let former = formers.get(&vip).map(|former| {
                        format!(
                            ", connections to the proxy, its pods and nat backends that it does not know go to {}",
                            former.name
                        )
                    });
                    format!("on {interface} this node answers for {vip}{}", former.unwrap_or_default())
                }
                (None, Some(holder)) => format!("on {interface} {holder} answers for {vip}, not this node"),
                (None, None) => format!("on {interface} none of {} can serve {vip}", members.join(" ")),
            })
        };
        let details: Vec<String> = self.announced().iter().filter_map(of).collect();
        (!details.is_empty()).then(|| Step { name: "announced".to_owned(), detail: details.join("; ") })
    }

    /// The kernel part that segments of connections made elsewhere are sent back by is this one from now on.
    pub(super) fn send_back_by(&self, datapath: Option<&datapath::Handle>) {
        let formers = datapath.map(datapath::Handle::formers).transpose();
        let formers = formers.unwrap_or_else(|error| {
            warn!(%error, "connections of VIPs that move here are reset");
            None
        });
        *self.formers.lock().unwrap_or_else(PoisonError::into_inner) = formers;
        self.announced().iter().for_each(|now| follow(&self.formers, now));
    }

    /// Tells the others that they are to take over, and ends.
    pub(super) async fn leave(&self) {
        if let Some(handle) = &self.handle {
            handle.leave().await;
        }
    }

    /// Ends without a word: another agent of this node goes on.
    pub(super) async fn hush(&self) {
        if let Some(handle) = &self.handle {
            handle.hush().await;
        }
    }
}
