//! EndpointSlices: which belong to a Service, and which of their endpoints may take traffic
//! (reference l4 3.1 and 3.2, the rules that need no node identity).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::findings::Findings;
use crate::model::l4::{Family, Protocol, Weight};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Objects, Sourced};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Share of new flows for every endpoint of the slice.
pub(super) const WEIGHT: &str = "penstock.dev/weight";
pub(super) const MAX_WEIGHT: u16 = 1000;

/// Slices by the Service they belong to.
pub(super) struct Slices<'a> {
    by_service: BTreeMap<ObjectName, Vec<&'a Sourced<EndpointSlice>>>,
}

/// One endpoint of a port, merged over all slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub weight: Weight,
    pub state: State,
}

/// Whether an endpoint may take new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Not ready, and not serving while it terminates.
    Unusable,
    /// Finishing its work: used only where nothing is ready.
    Draining,
    /// Ready.
    Ready,
}

/// Which slices count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// For a VIP: slices marked headless do not count.
    Vip,
    /// For a route: all count.
    Route,
}

impl<'a> Slices<'a> {
    pub(super) fn new(objects: &'a Objects, findings: &mut Findings) -> Self {
        let mut by_service: BTreeMap<ObjectName, Vec<_>> = BTreeMap::new();
        for (name, sourced) in &objects.endpoint_slices {
            let service = label(&sourced.object, SERVICE_LABEL).unwrap_or_default();
            let id = slice_id(name, &sourced.origin);
            let mut about = findings.about(&id);
            if service.is_empty() {
                about.warn(
                    "slice-without-service",
                    format!("metadata.labels.{SERVICE_LABEL}"),
                    "the slice belongs to no Service",
                    format!("label it {SERVICE_LABEL}: <name of the Service>"),
                );
                continue;
            }
            if sourced.object.address_type == "FQDN" {
                about.warn(
                    "fqdn-slice",
                    "addressType",
                    "slices of addressType FQDN are never used",
                    "write addresses, with addressType IPv4 or IPv6",
                );
                continue;
            }
            if let Err(message) = weight(&sourced.object) {
                about.warn(
                    "bad-weight",
                    format!("metadata.annotations.{WEIGHT}"),
                    message,
                    "the default of 1 is used",
                );
            }
            let service = ObjectName::new(name.namespace.clone(), service);
            if !objects.services.contains_key(&service) {
                about.info(
                    "slice-of-unknown-service",
                    format!("metadata.labels.{SERVICE_LABEL}"),
                    format!("there is no Service {service}"),
                    "",
                );
            }
            by_service.entry(service).or_default().push(sourced);
        }
        Self { by_service }
    }

    /// The Service has a slice of this family (of any, for `None`).
    pub(super) fn exist(&self, service: &ObjectName, family: Option<Family>) -> bool {
        let slices = self.by_service.get(service).into_iter().flatten();
        slices.filter(|slice| family.is_none() || slice_family(&slice.object) == family).count() > 0
    }

    /// Names and numbers of the ports that the Service's slices have, for messages.
    pub(super) fn port_names(&self, service: &ObjectName) -> Vec<String> {
        let slices = self.by_service.get(service).into_iter().flatten();
        let ports = slices.flat_map(|slice| slice.object.ports.iter().flatten());
        let mut names: Vec<_> = ports.map(|port| port.name.clone().unwrap_or_default()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Endpoints of a Service port, each once, whatever their state.
    pub(super) fn of(
        &self,
        service: &ObjectName,
        port: &ServicePort,
        protocol: Protocol,
        family: Option<Family>,
        used_for: Use,
    ) -> BTreeMap<SocketAddr, Endpoint> {
        let mut merged = BTreeMap::new();
        for Sourced { object: slice, .. } in self.by_service.get(service).into_iter().flatten() {
            let Some(slice_family) = slice_family(slice) else { continue };
            let other_family = family.is_some_and(|family| family != slice_family);
            let headless = used_for == Use::Vip && label(slice, HEADLESS_LABEL).is_some();
            if other_family || headless {
                continue;
            }
            for number in port_numbers(slice, port, protocol) {
                let weight = weight(slice).unwrap_or(Weight(1));
                add_endpoints(&mut merged, slice, slice_family, number, weight);
            }
        }
        merged
    }
}

/// Rule 1 of reference l4 3.2: the ready ones, else those that still serve while terminating.
pub(super) fn eligible(endpoints: &BTreeMap<SocketAddr, Endpoint>) -> BTreeMap<SocketAddr, Weight> {
    let wanted = if endpoints.values().any(|endpoint| endpoint.state == State::Ready) {
        State::Ready
    } else {
        State::Draining
    };
    let wanted = endpoints.iter().filter(|(_, endpoint)| endpoint.state == wanted);
    wanted.map(|(addr, endpoint)| (*addr, endpoint.weight)).collect()
}

fn add_endpoints(
    merged: &mut BTreeMap<SocketAddr, Endpoint>,
    slice: &EndpointSlice,
    family: Family,
    port: u16,
    weight: Weight,
) {
    for endpoint in slice.endpoints.iter().flatten() {
        // Only the first address means anything; the others never got a meaning.
        let Some(Ok(addr)) = endpoint.addresses.first().map(|addr| addr.parse::<IpAddr>()) else { continue };
        if Family::of(addr) != family {
            continue;
        }
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        let state = match (ready, serving && terminating) {
            (true, _) => State::Ready,
            (false, true) => State::Draining,
            (false, false) => State::Unusable,
        };
        let endpoint = Endpoint { weight, state };
        // The same endpoint sits in two slices while a controller moves it: the better state holds.
        merged
            .entry(SocketAddr::new(addr, port))
            .and_modify(|known: &mut Endpoint| {
                known.state = known.state.max(endpoint.state);
                known.weight = known.weight.max(endpoint.weight);
            })
            .or_insert(endpoint);
    }
}

/// Numbers under which this slice serves the Service port. The slice's number is the resolved
/// targetPort already; a port without a number ("all ports") is skipped, as kube-proxy does.
fn port_numbers(slice: &EndpointSlice, port: &ServicePort, protocol: Protocol) -> Vec<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    ports
        .filter(|port| port.name.as_deref().unwrap_or_default() == wanted)
        .filter(|port| protocol_of(port.protocol.as_deref()) == Some(protocol))
        .filter_map(|port| u16::try_from(port.port?).ok().filter(|number| *number != 0))
        .collect()
}

/// `None`: SCTP or nonsense.
pub(super) fn protocol_of(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" | "" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// Weight of a slice; an error says what is wrong with the annotation.
pub(super) fn weight(slice: &EndpointSlice) -> Result<Weight, String> {
    let Some(text) = slice.metadata.annotations.as_ref().and_then(|annotations| annotations.get(WEIGHT))
    else {
        return Ok(Weight(1));
    };
    match text.trim().parse::<u16>() {
        Ok(weight) if weight <= MAX_WEIGHT => Ok(Weight(weight)),
        _ => Err(format!("weight {text:?} is not a whole number from 0 to {MAX_WEIGHT}")),
    }
}

fn slice_family(slice: &EndpointSlice) -> Option<Family> {
    match slice.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn label<'a>(slice: &'a EndpointSlice, name: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn slice_id(name: &ObjectName, origin: &str) -> ObjectId {
    Key { kind: Kind::EndpointSlice, name: name.clone() }.id(origin)
}
