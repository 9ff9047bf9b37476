//! What a Service asks for all its ports, and the pool that one of them comes to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::l4::{Affinity, Backend, BackendState, FlowMemory, OnEmpty, Pool, PoolId};
use crate::translate::choice::{self, Choice, Hints, Policy};
use crate::translate::endpoints::{Endpoint, NO_ENDPOINTS, Slices, State};
use crate::translate::findings::About;
use crate::translate::modes::{Misfits, Wanted};
use crate::translate::nodes::Nodes;
use crate::translate::{names, ours};

/// As the API server sets it where `sessionAffinityConfig` names none.
const AFFINITY_SECONDS: i32 = 10_800;
/// One day, as in the API.
pub(in crate::translate) const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// What a Service asks for all its ports.
pub(in crate::translate) struct Terms {
    pub(super) wanted: Wanted,
    policy: Policy,
    hints: Hints,
    affinity: Option<Affinity>,
    memory: FlowMemory,
}

impl Terms {
    pub(in crate::translate) fn read(service: &Service, spec: &ServiceSpec, about: &mut About<'_>) -> Self {
        let mut terms = Self {
            wanted: Wanted::default(),
            policy: match spec.external_traffic_policy.as_deref() {
                Some("Local") => Policy::Local,
                _ => Policy::Cluster,
            },
            hints: Hints::default(),
            affinity: affinity(spec),
            memory: FlowMemory::default(),
        };
        match ours::text(&service.metadata, ours::MODE).map(ours::mode) {
            Some(Ok(wanted)) => terms.wanted = wanted,
            Some(Err(message)) => about.warn("bad-forwarding-mode", ours::field(ours::MODE), message, ""),
            None => {}
        }
        match ours::text(&service.metadata, ours::MEMORY).map(ours::memory) {
            Some(Ok(memory)) => terms.memory = memory,
            Some(Err(message)) => about.warn("bad-flow-memory", ours::field(ours::MEMORY), message, ""),
            None => {}
        }
        match ours::text(&service.metadata, ours::HINTS).map(ours::hints) {
            Some(Ok(hints)) => terms.hints = hints,
            Some(Err(message)) => about.warn("bad-value", ours::field(ours::HINTS), message, ""),
            None => {}
        }
        terms
    }

    /// A pool without VIPs.
    pub(in crate::translate) fn pool(
        &self,
        id: &PoolId,
        endpoints: &BTreeMap<SocketAddr, Endpoint<'_>>,
        nodes: &Nodes,
        field: &str,
        about: &mut About<'_>,
    ) -> Pool {
        let Self { wanted, policy, hints, affinity, memory } = self;
        let Choice { backends, empty } = choice::choose(endpoints, (*policy, *hints), id.protocol, nodes);
        let mut misfits = Misfits::default();
        let service_field = ours::field(ours::MODE);
        let backends = backends.into_iter().map(|(addr, (state, endpoint))| {
            let at = nodes.at(endpoint.node, id.family);
            let wanted = match endpoint.mode {
                Some(mode) => (mode, field),
                None => (*wanted, service_field.as_str()),
            };
            let mode = misfits.resolve(wanted, addr, at, endpoint.node, nodes);
            (addr, Backend { weight: endpoint.weight, state, mode, at })
        });
        let backends = backends.collect();
        misfits.say(about);
        Pool { backends, empty, affinity: *affinity, memory: *memory, ..Pool::default() }
    }
}

/// `None`: flows of one client are spread.
fn affinity(spec: &ServiceSpec) -> Option<Affinity> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    // Admission refuses what is out of range; this only keeps the promise of the model.
    let seconds = seconds.clamp(1, MAX_AFFINITY_SECONDS).unsigned_abs();
    Some(Affinity { timeout: Duration::from_secs(seconds.into()) })
}

/// Removes backends that their mode cannot reach from a VIP of this port number.
pub(in crate::translate) fn reachable(
    pool: &mut Pool,
    port_number: u16,
    field: &str,
    port: &ServicePort,
    about: &mut About<'_>,
) {
    pool.backends.retain(|backend, _| {
        let Some(why) = names::unusable_vip(backend.ip()) else { return true };
        about.warn(
            "unreachable-backend",
            field,
            format!("backend {backend} {why}: no packet can be forwarded to it"),
            "use an address of the host's network",
        );
        false
    });
    let cannot = |backend: &SocketAddr, entry: &Backend| {
        entry.mode.keeps_destination() && backend.port() != port_number
    };
    let others: BTreeMap<_, _> = pool.backends.iter().filter(|(addr, entry)| cannot(addr, entry)).collect();
    if let Some((other, Backend { mode, .. })) = others.first_key_value() {
        let other = other.port();
        let target = match &port.target_port {
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(name)) => format!("{name} ({other})"),
            None => other.to_string(),
        };
        about.error_fix(
            "l2-port-mismatch",
            format!("{field}.targetPort"),
            format!(
                "{}: {mode} cannot change the port, but port is {port_number} and targetPort is {target}; \
                 backends on other ports are left out",
                ours::MODE
            ),
            format!("let the backends listen on {port_number}, or use {}: nat", ours::MODE),
        );
        pool.backends.retain(|addr, entry| !cannot(addr, entry));
    }
}

/// Says why nobody takes new flows, and what becomes of them.
pub(in crate::translate) fn nobody(
    id: &PoolId,
    pool: &Pool,
    port: &ServicePort,
    slices: &Slices,
    endpoints: &BTreeMap<SocketAddr, Endpoint<'_>>,
    field: &str,
    about: &mut About<'_>,
) {
    let PoolId { service: name, port: number, family, protocol: _ } = id;
    if pool.empty == OnEmpty::Drop {
        let usable = |endpoint: &&Endpoint<'_>| matches!(endpoint.state, State::Ready | State::Finishing);
        let message =
            |why: &str| format!("externalTrafficPolicy Local: {why}: new flows to port {number} are dropped");
        if endpoints.values().filter(usable).all(|endpoint| endpoint.node.is_none()) {
            about.warn(
                "local-without-nodes",
                field,
                message("no endpoint names a node, so none counts as local"),
                "write the nodeName of the endpoints, or use externalTrafficPolicy: Cluster",
            );
        } else {
            about.info("no-local-endpoint", field, message("no endpoint is on this node"), "");
        }
        return;
    }
    let port_name = port.name.as_deref().unwrap_or_default();
    let (message, fix) = if pool.backends.values().any(|backend| backend.state == BackendState::Active) {
        ("all usable endpoints have weight 0".to_owned(), String::new())
    } else if !endpoints.is_empty() {
        ("none of its endpoints is usable".to_owned(), String::new())
    } else if !slices.exist(name, None) {
        (
            "the Service has no EndpointSlice".to_owned(),
            format!("write one labelled kubernetes.io/service-name: {}", name.name),
        )
    } else if !slices.have_endpoints(name) {
        ("its EndpointSlices have no endpoints".to_owned(), NO_ENDPOINTS.to_owned())
    } else if !slices.exist(name, Some(*family)) {
        (format!("the Service has no IP{family} EndpointSlice"), String::new())
    } else {
        (
            format!("no EndpointSlice has a port named {port_name:?}, only {:?}", slices.port_names(name)),
            "give the slice's port the name of the Service's port".to_owned(),
        )
    };
    about.warn("no-endpoints", field, format!("{message}: new flows to port {number} are refused"), fix);
}
