//! Services to L4 pools and punts: which VIPs each port has, over which backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Options;
use super::endpoints::{self, Slices, Use};
use super::findings::{About, Findings};
use super::names;
use crate::model::l4::{
    Access, At, Backend, BackendState, Family, ForwardingMode, L4, Listener, Pool, PoolId, Protocol, Punt,
    Vip, VipAddr,
};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Objects, Sourced};

/// Service annotation: `nat` or `l2`.
pub(super) const MODE: &str = "penstock.dev/forwarding-mode";
/// Service annotation: addresses to serve besides those of spec and status.
pub(super) const VIPS: &str = "penstock.dev/vips";
/// Service annotation: this Service's http and https ports belong to the proxy.
pub(super) const INGRESS: &str = "penstock.dev/ingress";
/// `spec.loadBalancerClass` that names us.
const OUR_CLASS: &str = "penstock.dev/lb";
const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `app.kubernetes.io/name` of the ingress controllers whose Service is ours to serve.
const CONTROLLERS: [&str; 2] = ["ingress-nginx", "penstock"];
/// Names under which the controller's Service is installed.
const CONTROLLER_SERVICES: [&str; 3] = ["ingress-nginx-controller", "ingress-nginx", "penstock"];
const NODE: &str = "the node's own http and https listeners";

/// Pools and punts of all Services, older Services first.
pub(super) fn translate(
    objects: &Objects,
    slices: &Slices<'_>,
    options: &Options,
    findings: &mut Findings,
) -> L4 {
    let mut claims = Claims::default();
    for family in [Family::V4, Family::V6] {
        let http = options.http_ports.iter().map(|port| (*port, Listener::Http));
        let https = options.https_ports.iter().map(|port| (*port, Listener::Https));
        for (port, listener) in http.chain(https) {
            let vip = Vip { addr: VipAddr::Node(family), port, protocol: Protocol::Tcp };
            claims.owners.insert(vip, NODE.to_owned());
            claims.l4.punts.insert(vip, Punt { listener, sources: None });
        }
    }
    let mut services: Vec<_> = objects.services.iter().collect();
    services.sort_by_key(|(name, sourced)| {
        let ingress = is_ingress(name, &sourced.object, options);
        let created = sourced.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        // Punts first: a pool must not take 443 away from every Ingress.
        (!ingress, created, *name)
    });
    for (name, sourced) in services {
        one_service(name, sourced, slices, options, &mut claims, findings);
    }
    claims.l4
}

/// Who holds which VIP.
#[derive(Default)]
struct Claims {
    l4: L4,
    owners: BTreeMap<Vip, String>,
}

impl Claims {
    /// Takes a VIP for a Service, unless another holds it.
    fn take(&mut self, vip: Vip, service: &ObjectName, field: &str, about: &mut About<'_>) -> bool {
        let owner = self.owners.entry(vip).or_insert_with(|| format!("Service {service}"));
        if *owner == format!("Service {service}") {
            return true;
        }
        about.error_fix(
            "vip-conflict",
            field,
            format!("{vip} is already served for {owner}"),
            "use another address or port; the older Service keeps it",
        );
        false
    }
}

fn one_service(
    name: &ObjectName,
    sourced: &Sourced<Service>,
    slices: &Slices<'_>,
    options: &Options,
    claims: &mut Claims,
    findings: &mut Findings,
) {
    let Sourced { object: service, origin } = sourced;
    let Some(spec) = &service.spec else { return };
    let id = id(name, origin);
    let mut about = findings.about(&id);
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return;
    }
    if let Some(proxy) = label(service, SERVICE_PROXY_LABEL).filter(|proxy| *proxy != "penstock") {
        about.info(
            "other-service-proxy",
            format!("metadata.labels.{SERVICE_PROXY_LABEL}"),
            format!("left to the service proxy {proxy:?}"),
            "",
        );
        return;
    }
    let addresses = addresses(service, spec, kind, &mut about);
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    if addresses.is_empty() && !has_node_ports {
        return;
    }
    not_yet(spec, &mut about);
    let node_ports = spec.ports.iter().flatten().filter(|port| port.node_port.is_some_and(|port| port != 0));
    if kind == "LoadBalancer" && addresses.is_empty() && node_ports.count() == 0 {
        about.warn(
            "no-vip",
            "spec",
            "no address is given to this Service, so nothing is served for it",
            format!("name one in spec.externalIPs or the annotation {VIPS}"),
        );
    }
    let families = families(name, spec, &addresses, slices);
    let addresses = of_families(addresses, &families, &mut about);
    let is_ingress = is_ingress(name, service, options);
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
        let vips_of = |family: Family| -> Vec<(Vip, String)> {
            let addresses = addresses.iter().filter(|(addr, _)| Family::of(**addr) == family);
            let mut vips: Vec<_> = addresses
                .map(|(addr, field)| {
                    (Vip { addr: VipAddr::Ip(*addr), port: number, protocol }, field.clone())
                })
                .collect();
            if let (true, Some(port)) = (has_node_ports, node_port) {
                let vip = Vip { addr: VipAddr::Node(family), port, protocol };
                vips.push((vip, format!("{field}.nodePort")));
            }
            vips
        };
        if let (true, Some(listener)) = (is_ingress, listener_of(port, protocol)) {
            for (vip, field) in families.iter().flat_map(|family| vips_of(*family)) {
                if claims.take(vip, name, &field, &mut about) {
                    claims.l4.punts.insert(vip, Punt { listener, sources: None });
                }
            }
            continue;
        }
        for family in &families {
            let candidates = slices.of(name, port, protocol, Some(*family), Use::Vip);
            if is_ingress && candidates.is_empty() {
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
            let mode = mode(service);
            let backends = endpoints::eligible(&candidates).into_iter().map(|(addr, weight)| {
                (addr, Backend { weight, state: BackendState::Active, mode, at: At::Elsewhere })
            });
            let mut pool = Pool { backends: backends.collect(), ..Pool::default() };
            for (vip, field) in vips {
                if mode == ForwardingMode::L2 && vip.addr == VipAddr::Node(*family) {
                    about.info(
                        "l2-node-port",
                        field,
                        format!(
                            "nodePort {} is not served: in l2 mode the backend must hold the address",
                            vip.port
                        ),
                        "",
                    );
                } else if claims.take(vip, name, &field, &mut about) {
                    pool.vips.insert(vip, Access::Open);
                }
            }
            reachable(&mut pool, mode, number, &field, port, &mut about);
            if pool.vips.is_empty() {
                continue;
            }
            if pool.backends.is_empty() {
                no_backends(name, port, *family, slices, !candidates.is_empty(), &field, &mut about);
            }
            let id = PoolId { service: name.clone(), port: number, protocol, family: *family };
            claims.l4.pools.insert(id, pool);
        }
    }
}

/// Removes backends that the pool's mode cannot reach.
fn reachable(
    pool: &mut Pool,
    mode: ForwardingMode,
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
    if mode != ForwardingMode::L2 {
        return;
    }
    let others: BTreeSet<u16> = pool.backends.keys().map(|backend| backend.port()).collect();
    if let Some(other) = others.into_iter().find(|other| *other != port_number) {
        let target = match &port.target_port {
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(name)) => format!("{name} ({other})"),
            None => other.to_string(),
        };
        about.error_fix(
            "l2-port-mismatch",
            format!("{field}.targetPort"),
            format!(
                "{MODE}: l2 cannot change the port, but port is {port_number} and targetPort is {target}; \
                 backends on other ports are left out"
            ),
            format!("let the backends listen on {port_number}, or use {MODE}: nat"),
        );
        pool.backends.retain(|backend, _| backend.port() == port_number);
    }
}

fn no_backends(
    name: &ObjectName,
    port: &ServicePort,
    family: Family,
    slices: &Slices<'_>,
    exist: bool,
    field: &str,
    about: &mut About<'_>,
) {
    let port_name = port.name.as_deref().unwrap_or_default();
    let (message, fix) = if exist {
        ("none of its endpoints is usable".to_owned(), String::new())
    } else if !slices.exist(name, None) {
        (
            "the Service has no EndpointSlice".to_owned(),
            format!("write one labelled kubernetes.io/service-name: {}", name.name),
        )
    } else if !slices.exist(name, Some(family)) {
        (format!("the Service has no Ip{family} EndpointSlice"), String::new())
    } else {
        (
            format!("no EndpointSlice has a port named {port_name:?}, only {:?}", slices.port_names(name)),
            "give the slice's port the name of the Service's port".to_owned(),
        )
    };
    about.warn("no-endpoints", field, format!("{message}: new flows to port {} are refused", port.port), fix);
}

/// Addresses that clients may use, each with the field that names it first.
fn addresses(
    service: &Service,
    spec: &ServiceSpec,
    kind: &str,
    about: &mut About<'_>,
) -> BTreeMap<IpAddr, String> {
    let mut named: Vec<(String, &str)> = Vec::new();
    for (index, addr) in spec.external_ips.iter().flatten().enumerate() {
        named.push((format!("spec.externalIPs[{index}]"), addr));
    }
    let mut balanced: Vec<(String, &str)> = Vec::new();
    if kind == "LoadBalancer" {
        if let Some(addr) = spec.load_balancer_ip.as_deref().filter(|addr| !addr.is_empty()) {
            balanced.push(("spec.loadBalancerIP".to_owned(), addr));
        }
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref());
        for (index, ingress) in ingress.into_iter().flatten().enumerate() {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            match ingress.ip.as_deref() {
                Some(_) if ingress.ip_mode.as_deref() == Some("Proxy") => about.info(
                    "ip-mode-proxy",
                    field,
                    "ipMode Proxy: packets arrive with another address, so this one is not served",
                    "",
                ),
                Some(addr) => balanced.push((field, addr)),
                None => {}
            }
        }
        if let Some(list) = annotation(service, VIPS) {
            let field = format!("metadata.annotations.{VIPS}");
            let list = list.split(',').map(str::trim).filter(|addr| !addr.is_empty());
            balanced.extend(list.map(|addr| (field.clone(), addr)));
        }
    }
    if let Some(class) = spec.load_balancer_class.as_deref().filter(|class| *class != OUR_CLASS) {
        about.info(
            "other-load-balancer-class",
            "spec.loadBalancerClass",
            format!("addresses left to the load balancer of class {class:?}"),
            format!("ours is {OUR_CLASS}, or none"),
        );
        balanced.clear();
    }
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !ranges.is_empty() && !balanced.is_empty() {
        // Serving them unfiltered would open what its author closed.
        about.error_fix(
            "source-ranges-not-yet",
            "spec.loadBalancerSourceRanges",
            "source ranges are not enforced yet; the addresses are not served, rather than open to all",
            "filter in front of this host and remove the field",
        );
        balanced.clear();
    }
    named.extend(balanced);
    let mut addresses = BTreeMap::new();
    for (field, text) in named {
        match text.trim().parse::<IpAddr>() {
            Err(_) => about.error("bad-address", field, format!("{text:?} is not an IP address")),
            Ok(addr) => match names::unusable_vip(addr) {
                Some(why) => about.error("bad-address", field, format!("{addr} {why}")),
                None => {
                    addresses.entry(addr).or_insert(field);
                }
            },
        }
    }
    addresses
}

/// Families of the Service: as written, else those it has addresses or slices of.
fn families(
    name: &ObjectName,
    spec: &ServiceSpec,
    addresses: &BTreeMap<IpAddr, String>,
    slices: &Slices<'_>,
) -> BTreeSet<Family> {
    let written = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let written: BTreeSet<_> = written.collect();
    if !written.is_empty() {
        return written;
    }
    let mut families: BTreeSet<_> = addresses.keys().map(|addr| Family::of(*addr)).collect();
    families.extend([Family::V4, Family::V6].into_iter().filter(|family| slices.exist(name, Some(*family))));
    if families.is_empty() {
        families.insert(Family::V4);
    }
    families
}

fn of_families(
    addresses: BTreeMap<IpAddr, String>,
    families: &BTreeSet<Family>,
    about: &mut About<'_>,
) -> BTreeMap<IpAddr, String> {
    let (kept, other): (BTreeMap<_, _>, BTreeMap<_, _>) =
        addresses.into_iter().partition(|(addr, _)| families.contains(&Family::of(*addr)));
    for (addr, field) in other {
        about.warn(
            "address-of-other-family",
            field,
            format!("{addr} is of a family that spec.ipFamilies does not list; it is not served"),
            "add the family to spec.ipFamilies",
        );
    }
    kept
}

/// Fields whose meaning is not honoured yet and whose absence an author would notice.
fn not_yet(spec: &ServiceSpec, about: &mut About<'_>) {
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        about.warn(
            "affinity-not-yet",
            "spec.sessionAffinity",
            "ClientIP affinity is not honoured yet; flows of one client are spread",
            "",
        );
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        about.warn(
            "local-policy-not-yet",
            "spec.externalTrafficPolicy",
            "Local is not honoured yet; all endpoints are used, and nat mode hides the client's address",
            "",
        );
    }
}

fn mode(service: &Service) -> ForwardingMode {
    match annotation(service, MODE) {
        Some("l2") => ForwardingMode::L2,
        _ => ForwardingMode::Nat,
    }
}

/// Which listener of the proxy a port of the ingress Service belongs to.
fn listener_of(port: &ServicePort, protocol: Protocol) -> Option<Listener> {
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
fn is_ingress(name: &ObjectName, service: &Service, options: &Options) -> bool {
    if let Some(text) = annotation(service, INGRESS) {
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

/// Trimmed annotation; `None` where absent or empty.
pub(super) fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let text = service.metadata.annotations.as_ref()?.get(name)?.trim();
    (!text.is_empty()).then_some(text)
}

fn label<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn id(name: &ObjectName, origin: &str) -> ObjectId {
    Key { kind: Kind::Service, name: name.clone() }.id(origin)
}
