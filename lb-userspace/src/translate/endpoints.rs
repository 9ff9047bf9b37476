//! EndpointSlices: which belong to a Service, and the endpoints they come to together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{self, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::findings::{About, Findings};
use super::modes::Wanted;
use super::ours;
use crate::model::l4::{Family, Protocol, Weight};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Map, Sourced};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// What helps against slices that are empty.
pub(super) const NO_ENDPOINTS: &str = "run a pod that the Service selects, or list an endpoint";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Slices by the Service they belong to.
#[derive(Default)]
pub(super) struct Slices {
    by_service: HashMap<ObjectName, BTreeMap<ObjectName, Sourced<EndpointSlice>>>,
}

/// One endpoint of a port, merged over all slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint<'a> {
    pub weight: Weight,
    pub state: State,
    /// What its slice wants; `None`: as the Service does.
    pub mode: Option<Wanted>,
    /// The node it runs on.
    pub node: Option<&'a str>,
    /// Nodes that should use it.
    pub for_nodes: BTreeSet<&'a str>,
    /// Zones that should.
    pub for_zones: BTreeSet<&'a str>,
}

/// What an endpoint is up to; of two claims about one endpoint the greater holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Not ready, and not on its way out.
    NotReady,
    /// Terminating, and serves no more.
    Ending,
    /// Terminating, and still serves: takes new flows where nothing is ready.
    Finishing,
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

impl Slices {
    /// Takes in that a slice is another one than before. Services whose endpoints that may change.
    pub(super) fn follow(
        &mut self,
        name: &ObjectName,
        before: Option<&Sourced<EndpointSlice>>,
        now: Option<&Sourced<EndpointSlice>>,
    ) -> impl Iterator<Item = ObjectName> + use<> {
        let service_of = |slice: Option<&Sourced<EndpointSlice>>| service_of(name, &slice?.object);
        let (before, service) = (service_of(before), service_of(now));
        if let Some(known) = before.as_ref().and_then(|before| self.by_service.get_mut(before)) {
            known.remove(name);
            if known.is_empty() {
                before.as_ref().map(|before| self.by_service.remove(before));
            }
        }
        if let (Some(service), Some(now)) = (&service, now) {
            self.by_service.entry(service.clone()).or_default().insert(name.clone(), now.clone());
        }
        before.into_iter().chain(service)
    }

    /// Names of a Service's slices.
    pub(super) fn names_of(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.by_service.get(service).into_iter().flat_map(BTreeMap::keys)
    }

    fn of_service(&self, service: &ObjectName) -> impl Iterator<Item = &Sourced<EndpointSlice>> {
        self.by_service.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The Service has a slice of this family (of any, for `None`).
    pub(super) fn exist(&self, service: &ObjectName, family: Option<Family>) -> bool {
        let slices = self.of_service(service);
        slices.filter(|slice| family.is_none() || slice_family(&slice.object) == family).count() > 0
    }

    /// Some slice of the Service has an endpoint, of whatever port and family.
    pub(super) fn have_endpoints(&self, service: &ObjectName) -> bool {
        self.of_service(service).any(|slice| slice.object.endpoints.iter().flatten().next().is_some())
    }

    /// Nodes on which a Service has endpoints of which none is ready, or finishes.
    pub(super) fn unready_nodes(&self, service: &ObjectName) -> impl Iterator<Item = &str> {
        let slices = self.of_service(service);
        let endpoints = slices.flat_map(|slice| slice.object.endpoints.iter().flatten());
        let mut nodes: BTreeMap<&str, State> = BTreeMap::new();
        for (node, state) in endpoints.filter_map(|one| Some((one.node_name.as_deref()?, state(one)))) {
            nodes.entry(node).and_modify(|known| *known = state.max(*known)).or_insert(state);
        }
        nodes.into_iter().filter(|(_, state)| *state < State::Finishing).map(|(node, _)| node)
    }

    /// Some endpoint of the Service carries a hint.
    pub(super) fn hint(&self, service: &ObjectName) -> bool {
        let slices = self.of_service(service);
        slices.flat_map(|slice| slice.object.endpoints.iter().flatten()).any(|one| one.hints.is_some())
    }

    /// Names and numbers of the ports that the Service's slices have, for messages.
    pub(super) fn port_names(&self, service: &ObjectName) -> Vec<String> {
        let slices = self.of_service(service);
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
    ) -> BTreeMap<SocketAddr, Endpoint<'_>> {
        let mut merged = BTreeMap::new();
        for sourced in self.of_service(service) {
            let slice: &EndpointSlice = &sourced.object;
            let Some(slice_family) = slice_family(slice) else { continue };
            let other_family = family.is_some_and(|family| family != slice_family);
            let headless = used_for == Use::Vip && label(slice, HEADLESS_LABEL).is_some();
            if other_family || headless {
                continue;
            }
            for number in port_numbers(slice, port, protocol, used_for) {
                add_endpoints(&mut merged, slice, slice_family, number);
            }
        }
        merged
    }
}

/// The Service that a slice belongs to, if its endpoints can be used.
fn service_of(name: &ObjectName, slice: &EndpointSlice) -> Option<ObjectName> {
    let service = label(slice, SERVICE_LABEL).filter(|service| !service.is_empty())?;
    (slice.address_type != "FQDN").then(|| ObjectName::new(name.namespace.clone(), service))
}

/// What there is to say about a slice.
pub(super) fn tell(
    name: &ObjectName,
    sourced: &Sourced<EndpointSlice>,
    services: &Map<ObjectName, Service>,
    findings: &mut Findings,
) {
    let id = slice_id(name, &sourced.origin);
    let mut about = findings.about(&id);
    if label(&sourced.object, SERVICE_LABEL).unwrap_or_default().is_empty() {
        about.warn(
            "slice-without-service",
            format!("metadata.labels.{SERVICE_LABEL}"),
            "the slice belongs to no Service",
            format!("label it {SERVICE_LABEL}: <name of the Service>"),
        );
        return;
    }
    let Some(service) = service_of(name, &sourced.object) else {
        about.warn(
            "fqdn-slice",
            "addressType",
            "slices of addressType FQDN are never used",
            "write addresses, with addressType IPv4 or IPv6",
        );
        return;
    };
    bad_annotations(&sourced.object, &mut about);
    if !services.contains_key(&service) {
        about.info(
            "slice-of-unknown-service",
            format!("metadata.labels.{SERVICE_LABEL}"),
            format!("there is no Service {service}"),
            "",
        );
    }
}

fn add_endpoints<'a>(
    merged: &mut BTreeMap<SocketAddr, Endpoint<'a>>,
    slice: &'a EndpointSlice,
    family: Family,
    port: u16,
) {
    let annotated = |name| ours::text(&slice.metadata, name);
    let weight = annotated(ours::WEIGHT).and_then(|text| ours::weight(text).ok()).unwrap_or(Weight(1));
    let mode = annotated(ours::MODE).and_then(|text| ours::mode(text).ok());
    for endpoint in slice.endpoints.iter().flatten() {
        // Only the first address means anything; the others never got a meaning.
        let Some(Ok(addr)) = endpoint.addresses.first().map(|addr| addr.parse::<IpAddr>()) else { continue };
        if Family::of(addr) != family {
            continue;
        }
        let hints = endpoint.hints.as_ref();
        let zones = hints.into_iter().flat_map(|hints| hints.for_zones.iter().flatten());
        let nodes = hints.into_iter().flat_map(|hints| hints.for_nodes.iter().flatten());
        let endpoint = Endpoint {
            weight,
            state: state(endpoint),
            mode,
            node: endpoint.node_name.as_deref().filter(|node| !node.is_empty()),
            for_nodes: nodes.map(|hint| hint.name.as_str()).collect(),
            for_zones: zones.map(|hint| hint.name.as_str()).collect(),
        };
        // The same endpoint sits in two slices while a controller moves it.
        match merged.entry(SocketAddr::new(addr, port)) {
            Entry::Vacant(place) => {
                place.insert(endpoint);
            }
            Entry::Occupied(mut known) => known.get_mut().merge(endpoint),
        }
    }
}

impl<'a> Endpoint<'a> {
    /// What either claim says; the order of slices decides nothing.
    fn merge(&mut self, other: Endpoint<'a>) {
        let Endpoint { weight, state, mode, node, for_nodes, for_zones } = other;
        self.weight = self.weight.max(weight);
        self.state = self.state.max(state);
        self.mode = self.mode.max(mode);
        self.node = self.node.max(node);
        self.for_nodes.extend(for_nodes);
        self.for_zones.extend(for_zones);
    }
}

fn state(endpoint: &v1::Endpoint) -> State {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    match (ready, terminating, serving) {
        (true, _, _) => State::Ready,
        (false, false, _) => State::NotReady,
        (false, true, true) => State::Finishing,
        (false, true, false) => State::Ending,
    }
}

fn bad_annotations(slice: &EndpointSlice, about: &mut About<'_>) {
    ours::unknown(&slice.metadata, Kind::EndpointSlice, about);
    let annotated = |name| ours::text(&slice.metadata, name);
    if let Some(Err(message)) = annotated(ours::WEIGHT).map(ours::weight) {
        about.warn("bad-weight", ours::field(ours::WEIGHT), message, "the default of 1 is used");
    }
    if let Some(Err(message)) = annotated(ours::MODE).map(ours::mode) {
        about.warn("bad-forwarding-mode", ours::field(ours::MODE), message, "");
    }
}

/// Numbers under which this slice serves the Service port. The slice's number is the resolved
/// targetPort already; a port without a number ("all ports") is skipped, as kube-proxy does.
///
/// For a route, as ingress-nginx has it (ingress-nginx #7390): a Service port without a name means every port of the slice, and
/// where the slice calls none as the Service does, a targetPort that is a number is that number.
fn port_numbers(slice: &EndpointSlice, port: &ServicePort, protocol: Protocol, used_for: Use) -> Vec<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let written = slice.ports.as_deref().unwrap_or_default();
    let spoken = || written.iter().filter(|port| protocol_of(port.protocol.as_deref()) == Some(protocol));
    let legal = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
    let named: Vec<_> = spoken()
        .filter(|port| port.name.as_deref().unwrap_or_default() == wanted)
        .filter_map(|port| legal(port.port?))
        .collect();
    if used_for == Use::Vip || !named.is_empty() {
        return named;
    }
    if wanted.is_empty() && !written.is_empty() {
        return spoken().filter_map(|port| legal(port.port?)).collect();
    }
    let is_of_protocol = written.is_empty() || spoken().next().is_some();
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(_)) => None,
        None => Some(port.port),
    };
    target.filter(|_| is_of_protocol).and_then(legal).into_iter().collect()
}

/// `None`: SCTP or nonsense.
pub(super) fn protocol_of(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" | "" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
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
