//! The local routes that let the stack accept punted VIPs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Error, ip, netlink};

/// Table number of local routes.
const LOCAL_TABLE: u32 = 255;
/// Marks our local routes (`proto 183` in `ip route`), so that those of an agent that was killed
/// are recognised; a number that iproute2 and routing daemons leave free.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(183);

/// Addresses that the stack accepts beside the host's own.
#[derive(Debug, Default)]
pub(super) struct LocalRoutes(BTreeSet<IpAddr>);

impl LocalRoutes {
    /// Takes over what an earlier agent left behind: those still wanted stay, the others go with
    /// the first [`LocalRoutes::set`].
    pub(super) async fn adopt(&mut self, handle: &Handle) -> Result<(), Error> {
        let requests = [
            RouteMessageBuilder::<Ipv4Addr>::new().table_id(LOCAL_TABLE).build(),
            RouteMessageBuilder::<Ipv6Addr>::new().table_id(LOCAL_TABLE).build(),
        ];
        for request in requests {
            let mut answers = Box::pin(handle.route().get(request).execute());
            while let Some(route) =
                answers.try_next().await.map_err(|error| netlink("list", "local routes", error))?
            {
                let ours = route.header.protocol == OUR_ROUTES && route.header.kind == RouteType::Local;
                let destination = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(addr) => ip(addr),
                    _ => None,
                });
                self.0.extend(destination.filter(|_| ours));
            }
        }
        Ok(())
    }

    /// Makes it exactly these; idempotent.
    pub(super) async fn set(&mut self, handle: &Handle, wanted: &BTreeSet<IpAddr>) {
        for addr in wanted.difference(&self.0.clone()) {
            match handle.route().add(local_route(*addr)).execute().await {
                Ok(()) => {
                    self.0.insert(*addr);
                }
                Err(error) if is_errno(&error, libc::EEXIST) => {}
                Err(error) => tracing::warn!(vip = %addr, %error, "cannot add local route for punted VIP"),
            }
        }
        for addr in self.0.clone().difference(wanted) {
            if let Err(error) = handle.route().del(local_route(*addr)).execute().await
                && !is_errno(&error, libc::ESRCH)
            {
                tracing::warn!(vip = %addr, %error, "cannot remove local route");
            }
            self.0.remove(addr);
        }
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
