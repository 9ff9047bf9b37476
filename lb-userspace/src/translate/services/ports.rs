//! The ports of one Service: which VIPs each has, and who gets what comes there, the proxy or a pool.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

use super::{Claims, Terms, listener_of, nobody, reachable};
use crate::model::ObjectName;
use crate::model::l4::{
    Access, Backend, BackendState, Family, Listener, PoolId, Protocol, Punt, Vip, VipAddr,
};
use crate::translate::endpoints::{self, Slices, Use};
use crate::translate::findings::About;
use crate::translate::names;
use crate::translate::nodes::Nodes;
use crate::translate::vips::{Address, Addresses};

/// What the ports of a Service have in common.
pub(super) struct Ports<'s> {
    pub(super) name: &'s ObjectName,
    /// The Service, for people.
    pub(super) owner: String,
    pub(super) is_ingress: bool,
    pub(super) has_node_ports: bool,
    pub(super) families: BTreeSet<Family>,
    pub(super) terms: Terms,
    pub(super) addresses: Addresses,
    pub(super) slices: &'s Slices,
    pub(super) nodes: &'s Nodes,
}

/// One of them.
struct Port<'p> {
    port: &'p ServicePort,
    number: u16,
    protocol: Protocol,
    field: String,
}

impl Ports<'_> {
    /// Adds what they come to.
    pub(super) fn serve(&self, spec: &ServiceSpec, claims: &mut Claims<'_>, about: &mut About<'_>) {
        let implied = [("http", 80), ("https", 443)].map(|(name, port)| ServicePort {
            name: Some(name.to_owned()),
            port,
            ..ServicePort::default()
        });
        let ports = match spec.ports.as_deref().unwrap_or_default() {
            [] if self.is_ingress => &implied,
            ports => ports,
        };
        for (index, port) in ports.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            let Ok(number) = names::port(port.port) else { continue };
            let Some(protocol) = endpoints::protocol_of(port.protocol.as_deref()) else {
                about.info(
                    "unsupported-protocol",
                    format!("{field}.protocol"),
                    format!("{} is not balanced", port.protocol.as_deref().unwrap_or_default()),
                    "TCP and UDP are",
                );
                continue;
            };
            self.serve_one(&Port { port, number, protocol, field }, claims, about);
        }
    }

    fn serve_one(&self, port: &Port<'_>, claims: &mut Claims<'_>, about: &mut About<'_>) {
        if let (true, Some(listener)) = (self.is_ingress, listener_of(port.port, port.protocol)) {
            for family in &self.families {
                self.punt(port, listener, *family, claims, about);
            }
            return;
        }
        if self.is_ingress && claims.streams.has(port.number, port.protocol) {
            return;
        }
        for family in &self.families {
            self.pool(port, *family, claims, about);
        }
    }

    /// Those of a port.
    fn vips(&self, port: &Port<'_>, family: Family) -> Vec<(Vip, Address)> {
        let Port { port, number, protocol, field } = port;
        let addresses = self.addresses.by_addr.iter().filter(|(addr, _)| Family::of(**addr) == family);
        let vip = |addr: VipAddr, port: u16| Vip { addr, port, protocol: *protocol };
        let mut vips: Vec<_> =
            addresses.map(|(addr, entry)| (vip(VipAddr::Ip(*addr), *number), entry.clone())).collect();
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        if let (true, Some(node_port)) = (self.has_node_ports, node_port) {
            // Source ranges are about the balanced addresses alone, here as in kube-proxy.
            let address = Address { field: format!("{field}.nodePort"), access: Access::Open };
            vips.push((vip(VipAddr::Node(family), node_port), address));
        }
        vips
    }

    /// Leaves a port of the ingress Service to the proxy.
    fn punt(
        &self,
        port: &Port<'_>,
        listener: Listener,
        family: Family,
        claims: &mut Claims<'_>,
        about: &mut About<'_>,
    ) {
        for (vip, Address { field, access }) in self.vips(port, family) {
            if claims.take(vip, &self.owner, &field, about) {
                let sources = (access == Access::Restricted).then(|| self.addresses.ranges(family));
                let ip_mode = self.addresses.ip_mode(vip.addr);
                claims.output.punts.insert(vip, Punt { listener, sources, ip_mode });
            }
        }
    }

    /// Balances a port over its endpoints of one family.
    fn pool(&self, port: &Port<'_>, family: Family, claims: &mut Claims<'_>, about: &mut About<'_>) {
        let Self { name, owner, is_ingress, terms, addresses, slices, nodes, .. } = self;
        let Port { port: of_service, number, protocol, field } = port;
        let endpoints = slices.of(name, of_service, *protocol, Some(family), Use::Vip);
        if *is_ingress && endpoints.is_empty() {
            let message = format!(
                "port {number} of the ingress Service is neither http nor https and has no endpoints"
            );
            return about.info("port-not-served", field, message, "");
        }
        let vips = self.vips(port, family);
        if vips.is_empty() {
            return;
        }
        let service = Arc::new((*name).clone());
        let id = PoolId { service, port: *number, protocol: *protocol, family };
        let mut pool = terms.pool(&id, &endpoints, nodes, field, about);
        reachable(&mut pool, *number, field, of_service, about);
        let held = terms.wanted.keeps_destination()
            || pool.backends.values().any(|backend| backend.mode.keeps_destination());
        for (vip, Address { field, access }) in vips {
            if held && vip.addr == VipAddr::Node(family) {
                let message = "is not served: in l2 and ipip mode the backend must hold the address";
                about.info("l2-node-port", field, format!("nodePort {} {message}", vip.port), "");
            } else if claims.take(vip, owner, &field, about) {
                pool.vips.insert(vip, access);
            }
        }
        if pool.vips.is_empty() {
            return;
        }
        if pool.vips.values().any(|access| *access == Access::Restricted) {
            pool.source_ranges = addresses.ranges(family);
        }
        let takes_flows = |backend: &Backend| backend.state == BackendState::Active && backend.weight.0 > 0;
        if !pool.backends.values().any(takes_flows) {
            nobody(&id, &pool, of_service, slices, &endpoints, field, about);
        }
        claims.output.pools.insert(id, Arc::new(pool));
    }
}
