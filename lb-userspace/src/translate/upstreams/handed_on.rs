//! Upstreams of TLS that is handed on unopened (`ssl-passthrough`). ingress-nginx sends it to the `clusterIP`, so the rules
//! of the Service decide who gets it and none of the Ingress's: what is said about balancing there is for requests. Ours
//! go to the endpoints themselves, by the same rules, because the `clusterIP` leads nowhere from a host outside the
//! cluster network.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;

use super::{PortRef, Reach, Upstreams, Without};
use crate::model::ObjectName;
use crate::model::expression::{Expression, Part, Variable};
use crate::model::l4::{BackendState, Protocol};
use crate::model::l7::ServicePort;
use crate::model::upstream::{Balance, UpstreamName};
use crate::translate::annotations;
use crate::translate::choice::{self, Hints, Policy};
use crate::translate::endpoints::Endpoint;
use crate::translate::findings::About;
use crate::translate::nodes::Nodes;

/// What helps where a Service wants its own node's endpoints alone.
pub(super) const NOT_LOCAL: &str = "run a pod here, or leave out internalTrafficPolicy: Local";

impl Upstreams<'_> {
    /// The upstream that TLS for a backend of this namespace is handed to.
    pub(in crate::translate) fn of_handed_on(
        &mut self,
        namespace: &str,
        backend: &ServicePort,
        reach: Reach,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let service = ObjectName::new(namespace, &backend.service);
        let port = backend.port.parse().map_or(PortRef::Name(&backend.port), PortRef::Number);
        let has_address = reach == Reach::Address && self.address(&service, &port).is_some();
        let reach = if has_address { Reach::Address } else { Reach::Rules };
        // No name of a Service has a colon.
        let name = UpstreamName(format!("passthrough:{service}:{port}"));
        let field = annotations::field("ssl-passthrough");
        let name = self.named(name, (&service, &port, reach), Protocol::Tcp, &field, Without::Close, about);
        let of_client =
            self.objects.services.get(&service).is_some_and(|sourced| keeps_clients(&sourced.object));
        if let Some(built) = self.built.get_mut(&name) {
            let client = || Balance::Hash(Expression(vec![Part::Variable(Variable::RemoteAddr)]));
            built.load_balance = Some(if of_client { client() } else { Balance::RoundRobin });
        }
        name
    }

    /// Those of the endpoints that take new connections to the Service's own address.
    pub(super) fn by_rules<'e>(
        &self,
        service: &Service,
        endpoints: &'e BTreeMap<SocketAddr, Endpoint<'e>>,
        protocol: Protocol,
    ) -> Vec<(SocketAddr, &'e Endpoint<'e>)> {
        let nodes = self.objects.nodes;
        let policy = if is_local(service, nodes) { Policy::Local } else { Policy::Cluster };
        let chosen = choice::choose(endpoints, (policy, Hints::Follow), protocol, nodes).backends.into_iter();
        let active = chosen.filter(|(_, (state, _))| *state == BackendState::Active);
        active.map(|(addr, (_, endpoint))| (addr, endpoint)).collect()
    }
}

/// Whether the Service wants the endpoints of this node alone. Who does not know which node he is has none.
pub(super) fn is_local(service: &Service, nodes: &Nodes) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.internal_traffic_policy.as_deref());
    policy == Some("Local") && nodes.here().is_some()
}

/// Whether the Service keeps a client at an endpoint.
fn keeps_clients(service: &Service) -> bool {
    let affinity = service.spec.as_ref().and_then(|spec| spec.session_affinity.as_deref());
    affinity == Some("ClientIP")
}
