//! Services to L4 pools and punts: which VIPs each port has, over which backends.

mod ports;
mod terms;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::endpoints::{self, Slices, State, Use};
use super::findings::{About, Findings};
use super::names;
use super::nodes::Nodes;
use super::ours;
use super::parts::Claim;
use super::pools::{self, Allocator};
use super::streams::{self, Streams};
use super::vips::Addresses;
use super::{Options, StreamsBy};
use crate::model::l4::{Family, HealthPort, IpMode, Listener, Pool, PoolId, Protocol, Punt, Vip, VipAddr};
use crate::model::pool::CONFIG_MAP;
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Objects, Sourced};

use ports::Ports;
pub(super) use terms::{MAX_AFFINITY_SECONDS, Terms, nobody, reachable};

const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `app.kubernetes.io/name` of the ingress controllers whose Service is ours to serve.
const CONTROLLERS: [&str; 2] = ["ingress-nginx", "penstock"];
/// Names under which the controller's Service is installed.
const CONTROLLER_SERVICES: [&str; 3] = ["ingress-nginx-controller", "ingress-nginx", "penstock"];
const NODE: &str = "the node's own http and https listeners";

/// What some Services come to.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub pools: BTreeMap<PoolId, Arc<Pool>>,
    pub punts: BTreeMap<Vip, Punt>,
    pub health_ports: BTreeMap<u16, HealthPort>,
}

impl Output {
    /// Nothing is balanced and nothing punted.
    pub(super) fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.punts.is_empty() && self.health_ports.is_empty()
    }
}

/// What Services can have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Held {
    Vip(Vip),
    /// A `healthCheckNodePort`.
    HealthPort(u16),
    /// The ports beside http and https, which are on the addresses of any and lead to any.
    Streams,
}

/// VIPs of the node itself, which are the proxy's.
pub(super) fn own_punts(options: &Options) -> BTreeMap<Vip, Punt> {
    let mut punts = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let http = options.http_ports.iter().map(|port| (*port, Listener::Http));
        let https = options.https_ports.iter().map(|port| (*port, Listener::Https));
        for (port, listener) in http.chain(https) {
            let vip = Vip { addr: VipAddr::Node(family), port, protocol: Protocol::Tcp };
            punts.insert(vip, Punt { listener, sources: None, ip_mode: IpMode::Proxy });
        }
    }
    punts
}

/// Whether what could not be read may be part of it.
pub(super) fn is_unread(objects: &Objects) -> bool {
    let may_matter = |key: &Option<Key>| {
        let kind = key.as_ref().map(|key| key.kind);
        matches!(kind, None | Some(Kind::Service | Kind::EndpointSlice | Kind::Node))
    };
    objects.unread.iter().any(may_matter)
}

/// Pools and punts of Services that have no VIP in common with others, older Services first; and the
/// VIPs that they have.
pub(super) fn translate<'a>(
    mut services: Vec<(&'a ObjectName, &'a Sourced<Service>)>,
    streams: Streams<'a>,
    slices: &Slices,
    nodes: &Nodes,
    allocator: &'a Allocator,
    options: &Options,
    findings: &mut Findings,
) -> (Output, HashMap<Held, Claim>) {
    let own = own_punts(options);
    let mut claims = Claims { output: Output::default(), owners: BTreeMap::new(), streams, allocator };
    claims.owners.extend(own.keys().map(|vip| (*vip, NODE.to_owned())));
    services.sort_by_key(|(name, sourced)| {
        let ingress = is_ingress(name, &sourced.object, options);
        let created = sourced.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        // Punts first: a pool must not take 443 away from every Ingress.
        (!ingress, created, *name)
    });
    for (name, sourced) in &services {
        if is_ingress(name, &sourced.object, options) {
            streams::claim(name, &sourced.object, slices, options, &mut claims, findings);
        }
    }
    for (name, sourced) in services {
        one_service(name, sourced, slices, nodes, options, &mut claims, findings);
    }
    let Claims { mut output, owners, streams, allocator: _ } = claims;
    streams::serve(streams, slices, nodes, &mut output, findings);
    let claimed = owners.into_keys().filter(|vip| !own.contains_key(vip));
    let health_ports: Vec<_> = output.health_ports.keys().map(|port| Held::HealthPort(*port)).collect();
    let claimed = claimed.map(Held::Vip).chain(health_ports);
    (output, claimed.map(|held| (held, Claim::Alone)).collect())
}

/// Who holds which VIP.
pub(super) struct Claims<'a> {
    output: Output,
    owners: BTreeMap<Vip, String>,
    pub(super) streams: Streams<'a>,
    /// Who has which addresses of the pools.
    pub(super) allocator: &'a Allocator,
}

impl Claims<'_> {
    /// Takes a VIP for somebody, unless another holds it.
    pub(super) fn take(&mut self, vip: Vip, owner: &str, field: &str, about: &mut About<'_>) -> bool {
        let holder = self.owners.entry(vip).or_insert_with(|| owner.to_owned());
        if holder == owner {
            return true;
        }
        about.error_fix(
            "vip-conflict",
            field,
            format!("{vip} is already served for {holder}"),
            "use another address or port; the older Service keeps it",
        );
        false
    }
}

fn one_service(
    name: &ObjectName,
    sourced: &Sourced<Service>,
    slices: &Slices,
    nodes: &Nodes,
    options: &Options,
    claims: &mut Claims<'_>,
    findings: &mut Findings,
) {
    let Sourced { object: service, origin } = sourced;
    let Some(spec) = &service.spec else { return };
    let id = id(name, origin);
    let mut about = findings.about(&id);
    ours::unknown(&service.metadata, Kind::Service, &mut about);
    ours::bad_upstream(&service.metadata, &mut about);
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return;
    }
    if let Some(proxy) = other_proxy(service) {
        about.info(
            "other-service-proxy",
            format!("metadata.labels.{SERVICE_PROXY_LABEL}"),
            format!("left to the service proxy {proxy:?}"),
            "",
        );
        return;
    }
    let mut addresses = Addresses::new(name, service, spec, claims.allocator, options, &mut about);
    if let Some(grant) = claims.allocator.of(name) {
        pools::refusals(grant, service, &mut about);
        addresses.left_out |= !grant.refusals.is_empty();
    }
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    if addresses.is_empty() && !has_node_ports {
        return;
    }
    let node_ports = spec.ports.iter().flatten().filter(|port| port.node_port.is_some_and(|port| port != 0));
    if kind == "LoadBalancer" && addresses.is_empty() && !addresses.left_out && node_ports.count() == 0 {
        let fix = if options.vips {
            format!("name one in spec.loadBalancerIP or the annotation {}", ours::VIPS)
        } else {
            format!("give Services addresses by a ConfigMap {CONFIG_MAP}")
        };
        let message = "no address is given to this Service, so nothing is served for it";
        about.warn("no-vip", "spec", message, fix);
    }
    let families = addresses.families(name, spec, slices);
    addresses.keep(&families, &mut about);
    without_effect(name, spec, slices, &mut about);
    health_port(name, spec, slices, nodes, &mut claims.output, &mut about);
    let ports = Ports {
        name,
        owner: format!("Service {name}"),
        is_ingress: is_ingress(name, service, options),
        has_node_ports,
        families,
        terms: Terms::read(service, spec, &mut about),
        addresses,
        slices,
        nodes,
    };
    ports.serve(spec, claims, &mut about);
}

/// Fields that an author could think to matter here.
fn without_effect(name: &ObjectName, spec: &ServiceSpec, slices: &Slices, about: &mut About<'_>) {
    if spec.traffic_distribution.is_some() && !slices.hint(name) {
        about.info(
            "no-effect",
            "spec.trafficDistribution",
            "only tells who writes the slices which hints to give; they have none",
            "write hints.forZones or hints.forNodes at every endpoint",
        );
    }
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        about.info(
            "no-effect",
            "spec.internalTrafficPolicy",
            "Local is about cluster addresses; those served here follow externalTrafficPolicy",
            "",
        );
    }
}

/// The port at which a balancer in front asks whether this node has endpoints, and how many it has: those that are
/// ready, by their addresses, as kube-proxy counts them.
fn health_port(
    name: &ObjectName,
    spec: &ServiceSpec,
    slices: &Slices,
    nodes: &Nodes,
    output: &mut Output,
    about: &mut About<'_>,
) {
    const FIELD: &str = "spec.healthCheckNodePort";
    let Some(port) = spec.health_check_node_port.filter(|port| *port != 0) else { return };
    if spec.type_.as_deref() != Some("LoadBalancer")
        || spec.external_traffic_policy.as_deref() != Some("Local")
    {
        let message = format!(
            "port {port} is not answered: that is for type LoadBalancer and externalTrafficPolicy Local"
        );
        return about.info("no-effect", FIELD, message, "");
    }
    let Ok(port) = names::port(port) else { return };
    let of_port = |port: &ServicePort| -> BTreeSet<IpAddr> {
        let Some(protocol) = endpoints::protocol_of(port.protocol.as_deref()) else { return BTreeSet::new() };
        let endpoints = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| slices.of(name, port, protocol, Some(family), Use::Vip));
        let here = endpoints.filter(|(_, it)| it.state == State::Ready && nodes.is_here(it.node));
        here.map(|(addr, _)| addr.ip()).collect()
    };
    let local: BTreeSet<IpAddr> = spec.ports.iter().flatten().flat_map(of_port).collect();
    let entry = HealthPort { service: name.clone(), local: local.len() };
    let holder = output.health_ports.entry(port).or_insert(entry);
    if holder.service != *name {
        let message = format!("port {port} is already answered for Service {}", holder.service);
        about.error_fix(
            "health-port-conflict",
            FIELD,
            message,
            "use another port; the older Service keeps it",
        );
    }
}

/// Which listener of the proxy a port of the ingress Service belongs to.
pub(super) fn listener_of(port: &ServicePort, protocol: Protocol) -> Option<Listener> {
    if protocol != Protocol::Tcp {
        return None;
    }
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => Some(name.as_str()),
        Some(IntOrString::Int(_)) | None => None,
    };
    let called = |name: &str| port.name.as_deref() == Some(name) || target == Some(name);
    if called("https") || port.port == 443 {
        Some(Listener::Https)
    } else if called("http") || port.port == 80 {
        Some(Listener::Http)
    } else {
        None
    }
}

/// The Service through which Ingress traffic arrives.
pub(super) fn is_ingress(name: &ObjectName, service: &Service, options: &Options) -> bool {
    if let Some(text) = ours::text(&service.metadata, ours::INGRESS) {
        return text == "true";
    }
    if let Some(publish) = &options.publish_service {
        return name == publish;
    }
    let is_controller = |labels: Option<&BTreeMap<String, String>>| {
        let value = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        value("app.kubernetes.io/name").is_some_and(|name| CONTROLLERS.contains(&name))
            && value("app.kubernetes.io/component") == Some("controller")
    };
    CONTROLLER_SERVICES.contains(&name.name.as_str())
        || is_controller(service.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
        || is_controller(service.metadata.labels.as_ref())
}

/// What the status of a Service is to say of its addresses: what the proxy takes has to come to it as clients sent it.
pub(super) fn ip_mode(name: &ObjectName, service: &Service, options: &Options) -> IpMode {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let is_proxied = |port: &ServicePort| {
        let protocol = endpoints::protocol_of(port.protocol.as_deref());
        protocol.is_some_and(|protocol| listener_of(port, protocol).is_some())
    };
    // Without a kernel part clients get to the proxy by kube-proxy alone.
    let is_ours = options.streams == StreamsBy::Kernel && is_ingress(name, service, options);
    if is_ours && (ports.is_empty() || ports.iter().any(is_proxied)) { IpMode::Proxy } else { IpMode::Vip }
}

/// The service proxy that it is left to, if it is not ours to serve.
pub(super) fn other_proxy(service: &Service) -> Option<&str> {
    label(service, SERVICE_PROXY_LABEL).filter(|proxy| *proxy != "penstock")
}

/// It names the service proxy that it is left to, be that us: kube-proxy leaves it alone.
pub(super) fn names_proxy(service: &Service) -> bool {
    label(service, SERVICE_PROXY_LABEL).is_some()
}

fn label<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn id(name: &ObjectName, origin: &str) -> ObjectId {
    Key { kind: Kind::Service, name: name.clone() }.id(origin)
}
