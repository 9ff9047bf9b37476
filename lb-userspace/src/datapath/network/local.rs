//! The local routes that let the stack accept punted VIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Error, ip, netlink};
use crate::datapath::backoff::Backoff;

/// Table number of local routes.
const LOCAL_TABLE: u32 = 255;
/// Marks our local routes (`proto 183` in `ip route`), so that those of an agent that was killed
/// are recognised; a number that iproute2 and routing daemons leave free.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(183);

/// Addresses that the stack accepts beside the host's own.
#[derive(Debug, Default)]
pub(super) struct LocalRoutes {
    wanted: BTreeSet<IpAddr>,
    /// Routes of ours that are there.
    ours: BTreeSet<IpAddr>,
    /// Routes of somebody else that do the same.
    others: BTreeSet<IpAddr>,
    /// Those that could not be set, and why.
    refused: BTreeMap<IpAddr, String>,
    backoff: Backoff,
}

impl LocalRoutes {
    /// Takes over what an earlier agent left behind: those still wanted stay, the others go with
    /// the first [`LocalRoutes::set`].
    pub(super) async fn adopt(&mut self, handle: &Handle) -> Result<(), Error> {
        let there = list(handle).await?.into_iter();
        self.ours = there.filter(|(_, protocol)| *protocol == OUR_ROUTES).map(|(addr, _)| addr).collect();
        Ok(())
    }

    /// Makes it exactly these; idempotent.
    pub(super) async fn set(&mut self, handle: &Handle, wanted: &BTreeSet<IpAddr>) {
        self.wanted.clone_from(wanted);
        self.others.retain(|addr| wanted.contains(addr));
        self.refused.retain(|addr, _| wanted.contains(addr));
        self.add_missing(handle).await;
        for addr in self.ours.clone().difference(wanted) {
            if let Err(error) = handle.route().del(local_route(*addr)).execute().await
                && !is_errno(&error, libc::ESRCH)
            {
                tracing::warn!(vip = %addr, %error, "cannot remove local route");
            }
            self.ours.remove(addr);
        }
    }

    /// Whether one of these is missed, should its route be gone.
    pub(super) fn would_miss(&self, gone: &BTreeSet<IpAddr>) -> bool {
        gone.iter().any(|addr| self.wanted.contains(addr))
    }

    /// Looks what is there. A deletion that was announced may be our own, of a VIP that has come back since.
    pub(super) async fn look(&mut self, handle: &Handle, now: Instant) -> Result<(), Error> {
        let there = list(handle).await?;
        let known: Vec<IpAddr> = self.ours.union(&self.others).copied().collect();
        self.ours.retain(|addr| there.get(addr) == Some(&OUR_ROUTES));
        self.others.retain(|addr| there.contains_key(addr));
        let lost = known.into_iter().filter(|addr| self.wanted.contains(addr) && !there.contains_key(addr));
        let lost: Vec<IpAddr> = lost.collect();
        for vip in &lost {
            tracing::warn!(%vip, "somebody deleted the local route of a VIP");
        }
        if !lost.is_empty() {
            self.backoff.again(now);
        }
        Ok(())
    }

    /// Sets again what is missing, if it is time for that; tells how many.
    pub(super) async fn restore(&mut self, handle: &Handle, now: Instant) -> usize {
        if self.is_complete() || !self.backoff.is_due(now) {
            return 0;
        }
        let before = self.ours.len() + self.others.len();
        self.add_missing(handle).await;
        if !self.is_complete() {
            self.backoff.again(now);
        }
        self.ours.len() + self.others.len() - before
    }

    fn is_complete(&self) -> bool {
        self.wanted.iter().all(|addr| self.ours.contains(addr) || self.others.contains(addr))
    }

    async fn add_missing(&mut self, handle: &Handle) {
        for addr in &self.wanted {
            if self.ours.contains(addr) || self.others.contains(addr) {
                continue;
            }
            match handle.route().add(local_route(*addr)).execute().await {
                Ok(()) => _ = self.ours.insert(*addr),
                Err(error) if is_errno(&error, libc::EEXIST) => _ = self.others.insert(*addr),
                Err(error) => {
                    self.refused.insert(*addr, told(&error));
                    continue;
                }
            }
            self.refused.remove(addr);
        }
    }

    /// VIPs whose packets the stack does not accept, and why.
    pub(super) fn missing(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let missing =
            self.wanted.iter().filter(|addr| !self.ours.contains(addr) && !self.others.contains(addr));
        missing.map(|addr| (*addr, self.refused.get(addr).map_or("somebody deletes it", String::as_str)))
    }
}

/// Local routes, and who set them.
async fn list(handle: &Handle) -> Result<BTreeMap<IpAddr, RouteProtocol>, Error> {
    let requests = [
        RouteMessageBuilder::<Ipv4Addr>::new().table_id(LOCAL_TABLE).build(),
        RouteMessageBuilder::<Ipv6Addr>::new().table_id(LOCAL_TABLE).build(),
    ];
    let mut found = BTreeMap::new();
    for request in requests {
        let mut answers = Box::pin(handle.route().get(request).execute());
        while let Some(route) =
            answers.try_next().await.map_err(|error| netlink("list", "local routes", error))?
        {
            found.extend(destination(&route).map(|addr| (addr, route.header.protocol)));
        }
    }
    Ok(found)
}

/// The address that a local route makes the stack accept.
pub(super) fn destination(route: &RouteMessage) -> Option<IpAddr> {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(addr) => ip(addr),
        _ => None,
    });
    destination.filter(|_| route.header.kind == RouteType::Local)
}

/// What the kernel said, in one line.
fn told(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

fn local_route(addr: IpAddr) -> RouteMessage {
    // `lo` is interface 1 in every network namespace.
    match addr {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .output_interface(1)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(OUR_ROUTES)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .output_interface(1)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .protocol(OUR_ROUTES)
            .build(),
    }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code().abs() == errno)
}
