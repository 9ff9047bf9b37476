//! Services to L4 pools and punts: which VIPs each port has, over which backends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Options;
use super::choice::{self, Choice, Policy};
use super::endpoints::{self, Endpoint, Slices, State, Use};
use super::findings::{About, Findings};
use super::modes::{Misfits, Wanted};
use super::names;
use super::nodes::Nodes;
use super::ours;
use super::parts::Claim;
use super::pools::{self, Allocator};
use super::streams::{self, Streams};
use super::vips::{Address, Addresses};
use crate::model::l4::{
    Access, Affinity, Backend, BackendState, Family, FlowMemory, HealthPort, Listener, OnEmpty, Pool, PoolId,
    Protocol, Punt, Vip, VipAddr,
};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Objects, Sourced};

/// As the API server sets it where `sessionAffinityConfig` names none.
const AFFINITY_SECONDS: i32 = 10_800;
/// One day, as in the API.
pub(super) const MAX_AFFINITY_SECONDS: i32 = 86_400;
const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `app.kubernetes.io/name` of the ingress controllers whose Service is ours to serve.
const CONTROLLERS: [&str; 2] = ["ingress-nginx", "penstock"];
/// Names under which the controller's Service is installed.
const CONTROLLER_SERVICES: [&str; 3] = ["ingress-nginx-controller", "ingress-nginx", "penstock"];
const NODE: &str = "the node's own http and https listeners";

/// What some Services come to.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub pools: BTreeMap<PoolId, Pool>,
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
            punts.insert(vip, Punt { listener, sources: None });
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
    nodes: &Nodes<'_>,
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
    nodes: &Nodes<'_>,
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
        about.warn(
            "no-vip",
            "spec",
            "no address is given to this Service, so nothing is served for it",
            format!("name one in spec.loadBalancerIP or the annotation {}", ours::VIPS),
        );
    }
    let families = addresses.families(name, spec, slices);
    addresses.keep(&families, &mut about);
    without_effect(name, spec, slices, &mut about);
    health_port(name, spec, slices, nodes, &mut claims.output, &mut about);
    let terms = Terms::read(service, spec, &mut about);
    let is_ingress = is_ingress(name, service, options);
    let owner = format!("Service {name}");
    let implied = [("http", 80), ("https", 443)].map(|(name, port)| ServicePort {
        name: Some(name.to_owned()),
        port,
        ..ServicePort::default()
    });
    let ports = match spec.ports.as_deref().unwrap_or_default() {
        [] if is_ingress => &implied,
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
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let vips_of = |family: Family| -> Vec<(Vip, Address)> {
            let addresses = addresses.by_addr.iter().filter(|(addr, _)| Family::of(**addr) == family);
            let mut vips: Vec<_> = addresses
                .map(|(addr, entry)| {
                    (Vip { addr: VipAddr::Ip(*addr), port: number, protocol }, entry.clone())
                })
                .collect();
            if let (true, Some(port)) = (has_node_ports, node_port) {
                let vip = Vip { addr: VipAddr::Node(family), port, protocol };
                // Source ranges are about the balanced addresses alone, here as in kube-proxy.
                vips.push((vip, Address { field: format!("{field}.nodePort"), access: Access::Open }));
            }
            vips
        };
        if let (true, Some(listener)) = (is_ingress, listener_of(port, protocol)) {
            for family in &families {
                for (vip, Address { field, access }) in vips_of(*family) {
                    if claims.take(vip, &owner, &field, &mut about) {
                        let sources = (access == Access::Restricted).then(|| addresses.ranges(*family));
                        claims.output.punts.insert(vip, Punt { listener, sources });
                    }
                }
            }
            continue;
        }
        if is_ingress && claims.streams.has(number, protocol) {
            continue;
        }
        for family in &families {
            let endpoints = slices.of(name, port, protocol, Some(*family), Use::Vip);
            if is_ingress && endpoints.is_empty() {
                about.info(
                    "port-not-served",
                    &field,
                    format!(
                        "port {number} of the ingress Service is neither http nor https and has no endpoints"
                    ),
                    "",
                );
                continue;
            }
            let vips = vips_of(*family);
            if vips.is_empty() {
                continue;
            }
            let id = PoolId { service: name.clone(), port: number, protocol, family: *family };
            let mut pool = terms.pool(&id, &endpoints, nodes, &field, &mut about);
            reachable(&mut pool, number, &field, port, &mut about);
            let held = terms.wanted.keeps_destination()
                || pool.backends.values().any(|backend| backend.mode.keeps_destination());
            for (vip, Address { field, access }) in vips {
                if held && vip.addr == VipAddr::Node(*family) {
                    about.info(
                        "l2-node-port",
                        field,
                        format!(
                            "nodePort {} is not served: in l2 and ipip mode the backend must hold the address",
                            vip.port
                        ),
                        "",
                    );
                } else if claims.take(vip, &owner, &field, &mut about) {
                    pool.vips.insert(vip, access);
                }
            }
            if pool.vips.is_empty() {
                continue;
            }
            if pool.vips.values().any(|access| *access == Access::Restricted) {
                pool.source_ranges = addresses.ranges(*family);
            }
            let takes_flows =
                |backend: &Backend| backend.state == BackendState::Active && backend.weight.0 > 0;
            if !pool.backends.values().any(takes_flows) {
                nobody(&id, &pool, port, slices, &endpoints, &field, &mut about);
            }
            claims.output.pools.insert(id, pool);
        }
    }
}

/// What a Service asks for all its ports.
pub(super) struct Terms {
    wanted: Wanted,
    policy: Policy,
    affinity: Option<Affinity>,
    memory: FlowMemory,
}

impl Terms {
    pub(super) fn read(service: &Service, spec: &ServiceSpec, about: &mut About<'_>) -> Self {
        let mut terms = Self {
            wanted: Wanted::default(),
            policy: match spec.external_traffic_policy.as_deref() {
                Some("Local") => Policy::Local,
                _ => Policy::Cluster,
            },
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
        terms
    }

    /// A pool without VIPs.
    pub(super) fn pool(
        &self,
        id: &PoolId,
        endpoints: &BTreeMap<SocketAddr, Endpoint<'_>>,
        nodes: &Nodes<'_>,
        field: &str,
        about: &mut About<'_>,
    ) -> Pool {
        let Self { wanted, policy, affinity, memory } = self;
        let Choice { backends, empty } = choice::choose(endpoints, *policy, id.protocol, nodes);
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
pub(super) fn reachable(
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
pub(super) fn nobody(
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
    nodes: &Nodes<'_>,
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

/// The service proxy that it is left to, if it is not ours to serve.
pub(super) fn other_proxy(service: &Service) -> Option<&str> {
    label(service, SERVICE_PROXY_LABEL).filter(|proxy| *proxy != "penstock")
}

fn label<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn id(name: &ObjectName, origin: &str) -> ObjectId {
    Key { kind: Kind::Service, name: name.clone() }.id(origin)
}
