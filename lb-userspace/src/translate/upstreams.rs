//! Service ports that routes point at, and the endpoints behind them.

mod external;
mod handed_on;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::IngressServiceBackend;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Options;
use super::annotations::{self, Policy};
use super::checks;
use super::choice;
use super::config::Settings;
use super::endpoints::{NO_ENDPOINTS, Slices, State, Use, protocol_of};
use super::findings::About;
use super::ours;
use super::view::View;
use crate::model::canary::{Canary, Rules, Sessions};
use crate::model::expression::Expression;
use crate::model::health::Check;
use crate::model::l4::Protocol;
use crate::model::l7::HostMatch;
use crate::model::session::Affinity;
use crate::model::upstream::{Balance, Care, Ejection, Upstream, UpstreamName, UpstreamTls};
use crate::model::{ObjectName, Severity};

/// Upstreams by name, built as routes ask for them.
pub(super) struct Upstreams<'a> {
    objects: &'a View<'a>,
    options: &'a Options,
    slices: &'a Slices,
    /// What they are called, by Service and port.
    names: BTreeMap<(ObjectName, String), UpstreamName>,
    /// So too, as Services that word errors.
    default_backends: BTreeMap<ObjectName, UpstreamName>,
    /// So too, as ports beside http and https lead there.
    streams: BTreeMap<(ObjectName, Protocol, String), UpstreamName>,
    built: BTreeMap<UpstreamName, Built>,
}

/// An upstream as it is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Laid {
    pub upstream: Arc<Upstream>,
    /// What is behind it.
    pub of: Meant,
    /// Somebody says how it is dealt with. Else it is what anybody makes of the Service, so it may stand in
    /// several parts.
    pub is_settled: bool,
}

/// What an upstream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meant {
    pub service: ObjectName,
    pub reach: Reach,
}

/// An upstream and what every route to it is to be told.
#[derive(Default)]
struct Built {
    upstream: Upstream,
    /// Of what it was made first; always there.
    of: Option<Meant>,
    is_settled: bool,
    /// What the first Ingress that says so wants.
    load_balance: Option<Balance>,
    hash_by: Option<Balance>,
    idle: Option<usize>,
    check: Option<Arc<Check>>,
    affinity: Option<Affinity>,
    /// Of the first Ingress that says so.
    split: Option<Split>,
    complaint: Option<Complaint>,
}

/// A canary and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Split {
    pub owner: ObjectName,
    pub canary: UpstreamName,
    pub rules: Rules,
    pub sessions: Sessions,
}

/// What of a Service is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Its endpoints.
    Endpoints,
    /// Its own address, which somebody else balances (`service-upstream`).
    Address,
    /// Those of its endpoints that its own address would lead to (`ssl-passthrough`).
    Rules,
}

/// What becomes of requests to an upstream without endpoints.
#[derive(Clone, Copy)]
pub(super) enum Without {
    Answer503,
    AskPrimary,
    AskDefaultBackend,
    Close,
}

/// Why an upstream has no endpoints.
struct Complaint {
    severity: Severity,
    reason: &'static str,
    /// Below the backend's `service`.
    field: &'static str,
    message: String,
    fix: String,
}

/// Number or name of a Service port.
enum PortRef<'a> {
    Number(i32),
    Name(&'a str),
}

impl std::fmt::Display for PortRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl<'a> Upstreams<'a> {
    pub(super) fn new(objects: &'a View<'a>, slices: &'a Slices, options: &'a Options) -> Self {
        Self {
            objects,
            options,
            slices,
            names: BTreeMap::new(),
            default_backends: BTreeMap::new(),
            streams: BTreeMap::new(),
            built: BTreeMap::new(),
        }
    }

    /// A hash counts more than another way, and any of them more than the ConfigMap's.
    pub(super) fn into_built(self, settings: &Settings) -> BTreeMap<UpstreamName, Laid> {
        let inherited = self.inherited();
        let hash_by = settings.text("upstream-hash-by").and_then(|by| Expression::parse(by).ok());
        let load_balance = || settings.text("load-balance").map(annotations::load_balance);
        let usual = hash_by.map(Balance::Hash).or_else(load_balance).unwrap_or_default();
        let built = self.built.into_iter().filter_map(|(name, built)| {
            let Built {
                upstream,
                of,
                is_settled,
                load_balance,
                hash_by,
                idle,
                check,
                affinity,
                split,
                complaint: _,
            } = built;
            let balance = hash_by.or(load_balance).unwrap_or_else(|| usual.clone());
            let canary = split.map(|Split { owner: _, canary, rules, sessions }| Canary {
                upstream: canary,
                rules,
                sessions,
            });
            let inherited = inherited.get(&name).cloned();
            let is_settled = is_settled || inherited.is_some();
            let affinity = inherited.or(affinity);
            let upstream = Arc::new(Upstream { balance, idle, check, affinity, canary, ..upstream });
            Some((name, Laid { upstream, of: of?, is_settled }))
        });
        built.collect()
    }

    /// An Ingress says how an upstream is dealt with; of each setting the oldest that has it wins. `tls`:
    /// how its endpoints are spoken to, where that is encrypted.
    pub(super) fn settle(&mut self, name: &UpstreamName, policy: &Policy, tls: impl FnOnce() -> UpstreamTls) {
        let Some(built) = self.built.get_mut(name) else { return };
        if built.load_balance.is_none() {
            built.load_balance.clone_from(&policy.load_balance);
        }
        if built.hash_by.is_none() {
            built.hash_by.clone_from(&policy.hash_by);
        }
        built.idle = built.idle.or(policy.idle);
        if built.check.is_none() {
            built.check = checks::check(policy, tls);
        }
        let Policy { load_balance, hash_by, idle, .. } = policy;
        let says_how = load_balance.is_some() || hash_by.is_some() || idle.is_some();
        built.is_settled |= says_how || built.check.is_some();
    }

    /// Canaries whose sessions are kept as their primary keeps its own.
    fn inherited(&self) -> BTreeMap<UpstreamName, Affinity> {
        let of_split = |built: &Built| {
            let split = built.split.as_ref().filter(|split| split.sessions == Sessions::Stay)?;
            Some((split.canary.clone(), built.affinity.clone()?))
        };
        self.built.values().filter_map(of_split).collect()
    }

    /// An Ingress says how sessions of an upstream are kept, and asks for cookies at a place of its own.
    /// The oldest decides on the mode, the youngest on the cookie, as in ingress-nginx.
    pub(super) fn keep_sessions(
        &mut self,
        name: &UpstreamName,
        policy: &Policy,
        host: &HostMatch,
        path: &str,
        about: &mut About<'_>,
    ) {
        let (Some(built), Some(asked)) = (self.built.get_mut(name), &policy.affinity) else { return };
        built.is_settled = true;
        let (mut mode, mut places) = (asked.mode, BTreeSet::new());
        if let Some(known) = built.affinity.take() {
            if known.cookie != asked.cookie || known.mode != asked.mode {
                let message = format!(
                    "an older Ingress keeps sessions of {} otherwise: its mode counts, and this cookie",
                    name.0
                );
                about.warn(
                    "upstream-setting-conflict",
                    annotations::field("affinity"),
                    message,
                    "write the same",
                );
            }
            (mode, places) = (known.mode, known.places);
        }
        places.insert((host.to_string(), path.to_owned()));
        built.affinity = Some(Affinity { mode, places, ..asked.clone() });
    }

    /// The upstream of a backend, without endpoints where something is missing; `without` says what becomes of
    /// requests then.
    pub(super) fn of_backend(
        &mut self,
        namespace: &str,
        backend: &IngressServiceBackend,
        reach: Reach,
        without: Without,
        field: &str,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let field = format!("{field}.service");
        let service = service(namespace, backend);
        self.of_port(&service, &port(backend), reach, &field, without, about)
    }

    /// What the upstream of a backend is called.
    pub(super) fn name_of(&mut self, namespace: &str, backend: &IngressServiceBackend) -> UpstreamName {
        self.name(&service(namespace, backend), &port(backend))
    }

    /// Gives an upstream a canary, or tells whose it has.
    pub(super) fn split(&mut self, primary: &UpstreamName, split: Split) -> Result<(), ObjectName> {
        let Some(built) = self.built.get_mut(primary) else { return Ok(()) };
        built.is_settled = true;
        let known = built.split.get_or_insert_with(|| split.clone());
        if *known == split { Ok(()) } else { Err(known.owner.clone()) }
    }

    /// The upstream of a Service's port by its number.
    pub(super) fn of_number(
        &mut self,
        service: &ObjectName,
        port: u16,
        field: &str,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let port = PortRef::Number(port.into());
        self.of_port(service, &port, Reach::Endpoints, field, Without::Answer503, about)
    }

    /// The upstream of a port beside http and https, by its number or name.
    pub(super) fn of_stream(
        &mut self,
        service: &ObjectName,
        port: &str,
        protocol: Protocol,
        field: &str,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let usual = UpstreamName(format!("{protocol}-{}-{}-{port}", service.namespace, service.name));
        let unique = UpstreamName(format!("{protocol}:{service}:{port}"));
        let Self { streams, built, .. } = self;
        let name = streams.entry((service.clone(), protocol, port.to_owned()));
        let name = name.or_insert_with(|| if built.contains_key(&usual) { unique } else { usual }).clone();
        let port = port.parse().map_or(PortRef::Name(port), PortRef::Number);
        self.named(name, (service, &port, Reach::Endpoints), protocol, field, Without::Close, about)
    }

    /// The upstream of a Service's first port; `None` where there is no such Service.
    pub(super) fn of_first_port(
        &mut self,
        service: &ObjectName,
        about: &mut About<'_>,
    ) -> Option<UpstreamName> {
        let spec = self.objects.services.get(service).and_then(|sourced| sourced.object.spec.as_ref());
        let Some(port) = spec.and_then(|spec| spec.ports.as_ref()?.first()) else {
            let message = format!("default backend Service {service} does not exist or has no port");
            about.error("missing-service", "", message);
            return None;
        };
        let port = PortRef::Number(port.port);
        Some(self.of_port(service, &port, Reach::Endpoints, "", Without::Answer503, about))
    }

    /// The upstream of a Service that words errors, by its first port; `None` where there is no such Service.
    pub(super) fn of_default_backend(
        &mut self,
        service: &ObjectName,
        field: &str,
        about: &mut About<'_>,
    ) -> Option<UpstreamName> {
        let spec = self.objects.services.get(service).and_then(|sourced| sourced.object.spec.as_ref());
        let Some(port) = spec.and_then(|spec| spec.ports.as_ref()?.first()) else {
            let message = format!("Service {service} does not exist or has no port; it is ignored");
            about.warn("missing-service", field, message, "name a Service of the same namespace");
            return None;
        };
        let Self { default_backends, built, .. } = self;
        let usual = UpstreamName(format!("custom-default-backend-{}-{}", service.namespace, service.name));
        let unique = UpstreamName(format!("{service}:default-backend"));
        let name = default_backends.entry(service.clone());
        let name = name.or_insert_with(|| if built.contains_key(&usual) { unique } else { usual }).clone();
        let port = PortRef::Number(port.port);
        let of = (service, &port, Reach::Endpoints);
        Some(self.named(name, of, Protocol::Tcp, field, Without::AskDefaultBackend, about))
    }

    fn of_port(
        &mut self,
        service: &ObjectName,
        port: &PortRef<'_>,
        reach: Reach,
        field: &str,
        without: Without,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let name = self.name(service, port);
        if reach == Reach::Address {
            self.tell_address(service, about);
        }
        self.named(name, (service, port, reach), Protocol::Tcp, field, without, about)
    }

    /// That a Service has no address. One that is missing has its own problem, and one that no cluster has seen yet is
    /// given one there.
    fn tell_address(&self, service: &ObjectName, about: &mut About<'_>) {
        let found = self.objects.services.get(service);
        let Some(spec) = found.and_then(|found| found.object.spec.as_ref()) else { return };
        let field = annotations::field("service-upstream");
        let addr = spec.cluster_ip.as_deref().unwrap_or_default();
        if addr.is_empty() && spec.type_.as_deref() != Some("ExternalName") {
            let message =
                format!("until the cluster gives Service {service} an address, its endpoints are sent to");
            about.info("no-service-address", field, message, "");
        } else if addr.parse::<IpAddr>().is_err() {
            let message = format!("Service {service} has no address of its own; its endpoints are sent to");
            about.warn("no-service-address", field, message, "");
        }
    }

    /// `clusterIP` and port of a Service.
    fn address(&self, service: &ObjectName, port: &PortRef<'_>) -> Option<SocketAddr> {
        let service = &self.objects.services.get(service)?.object;
        let addr = service.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()?;
        let port = find_port(service, port, Protocol::Tcp)?.port;
        Some(SocketAddr::new(addr, u16::try_from(port).ok()?))
    }

    fn named(
        &mut self,
        name: UpstreamName,
        (service, port, reach): (&ObjectName, &PortRef<'_>, Reach),
        protocol: Protocol,
        field: &str,
        without: Without,
        about: &mut About<'_>,
    ) -> UpstreamName {
        if !self.built.contains_key(&name) {
            let own = self.address(service, port).filter(|_| reach == Reach::Address);
            let found = match own {
                Some(own) => Ok(Upstream { endpoints: BTreeSet::from([own]), ..Upstream::default() }),
                None => self.endpoints(service, port, protocol, reach),
            };
            let of = Meant { service: service.clone(), reach };
            let built = match found {
                Ok(upstream) => Built { upstream, of: Some(of), ..Built::default() },
                Err(complaint) => Built { complaint: Some(complaint), of: Some(of), ..Built::default() },
            };
            self.built.insert(name.clone(), built);
        }
        let complaint = self.built.get(&name).and_then(|built| built.complaint.as_ref());
        if let Some(Complaint { severity, reason, field: below, message, fix }) = complaint {
            let message = match without {
                Without::Answer503 => format!("{message}: requests answer 503"),
                Without::AskPrimary => format!("{message}: every request goes to the primary"),
                Without::AskDefaultBackend => format!("{message}: the default backend of all is asked"),
                Without::Close => format!("{message}: connections are closed"),
            };
            // An entry says Service and port in one.
            let below = if matches!(without, Without::Close) { "" } else { below };
            about.say(*severity, reason, format!("{field}{below}"), message, fix);
        }
        name
    }

    /// `namespace-service-port`, as ingress-nginx has it. Another Service may be called so already, because names
    /// hold `-` themselves; then in a form that none of those has.
    fn name(&mut self, service: &ObjectName, port: &PortRef<'_>) -> UpstreamName {
        let port = port.to_string();
        let Self { names, built, .. } = self;
        let usual = UpstreamName(format!("{}-{}-{port}", service.namespace, service.name));
        let unique = UpstreamName(format!("{service}:{port}"));
        let name = names.entry((service.clone(), port));
        name.or_insert_with(|| if built.contains_key(&usual) { unique } else { usual }).clone()
    }

    fn endpoints(
        &self,
        name: &ObjectName,
        port: &PortRef<'_>,
        protocol: Protocol,
        reach: Reach,
    ) -> Result<Upstream, Complaint> {
        let complaint = |reason, field, message, fix: &str| {
            Err(Complaint { severity: Severity::Warning, reason, field, message, fix: fix.to_owned() })
        };
        let Some(sourced) = self.objects.services.get(name) else {
            let message = format!("Service {name} does not exist");
            return complaint("missing-service", ".name", message, "add the Service, or correct the name");
        };
        let service = &sourced.object;
        if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            return self.external(name, service, port, protocol);
        }
        let Some(service_port) = find_port(service, port, protocol) else {
            let known: Vec<_> = ports(service, protocol).map(port_label).collect();
            let message = format!("Service {name} has no such port, only {}", known.join(", "));
            return complaint("missing-port", ".port", message, "correct the port's name or number");
        };
        let endpoints = self.slices.of(name, service_port, protocol, None, Use::Route);
        let ready: Vec<_> = match reach {
            Reach::Endpoints | Reach::Address => {
                let ready = endpoints.iter().filter(|(_, endpoint)| endpoint.state == State::Ready);
                ready.map(|(addr, endpoint)| (*addr, endpoint)).collect()
            }
            Reach::Rules => self.by_rules(service, &endpoints, protocol),
        };
        let taking: Vec<_> = ready.iter().copied().filter(|(_, endpoint)| endpoint.weight.0 > 0).collect();
        if !taking.is_empty() {
            let by_zone = self.options.routes_by_zone && reach != Reach::Rules;
            let zone = self.objects.nodes.zone().filter(|_| by_zone);
            let taking = choice::in_zone(taking, zone);
            let care = care(&service.metadata);
            let weighty = taking.iter().filter(|(_, endpoint)| endpoint.weight.0 > 1);
            let weights = weighty.map(|(addr, endpoint)| (*addr, endpoint.weight.0.into())).collect();
            let endpoints = taking.into_iter().map(|(addr, _)| addr).collect();
            return Ok(Upstream { endpoints, weights, care, ..Upstream::default() });
        }
        let (message, fix) = if !ready.is_empty() {
            (format!("all ready endpoints of Service {name} have weight 0"), String::new())
        } else if reach == Reach::Rules && handed_on::is_local(service, self.objects.nodes) {
            (format!("no endpoint of Service {name} on this node is ready"), handed_on::NOT_LOCAL.to_owned())
        } else if !endpoints.is_empty() {
            (format!("no endpoint of Service {name} is ready"), String::new())
        } else if !self.slices.exist(name, None) {
            let fix = format!("write an EndpointSlice labelled kubernetes.io/service-name: {}", name.name);
            (format!("Service {name} has no EndpointSlice"), fix)
        } else if !self.slices.have_endpoints(name) {
            (format!("the EndpointSlices of Service {name} have no endpoints"), NO_ENDPOINTS.to_owned())
        } else {
            let wanted = service_port.name.as_deref().unwrap_or_default();
            let fix = "give the slice's port the name of the Service's port";
            let known = self.slices.port_names(name);
            (
                format!("no endpoints of Service {name} under port name {wanted:?}, only {known:?}"),
                fix.to_owned(),
            )
        };
        complaint("no-endpoints", "", message, &fix)
    }
}

fn service(namespace: &str, backend: &IngressServiceBackend) -> ObjectName {
    ObjectName::new(namespace, &backend.name)
}

/// The port of a backend as it is written.
pub(super) fn port_text(backend: &IngressServiceBackend) -> String {
    port(backend).to_string()
}

fn port(backend: &IngressServiceBackend) -> PortRef<'_> {
    let port = backend.port.as_ref();
    match port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty()) {
        Some(name) => PortRef::Name(name),
        None => PortRef::Number(port.and_then(|port| port.number).unwrap_or_default()),
    }
}

/// What the Service says of endpoints that are new or fail; bad values are told where the Service is.
fn care(metadata: &ObjectMeta) -> Care {
    let seconds = ours::text(metadata, ours::SLOW_START).and_then(|text| ours::seconds(text).ok());
    let after = ours::text(metadata, ours::EJECT_AFTER).and_then(|text| ours::failures(text).ok());
    let usual = Ejection::default();
    Care {
        slow_start: seconds.unwrap_or_default(),
        ejection: Ejection { after: after.unwrap_or(usual.after), ..usual },
    }
}

fn ports(service: &Service, protocol: Protocol) -> impl Iterator<Item = &ServicePort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter(move |port| protocol_of(port.protocol.as_deref()) == Some(protocol))
}

/// By number as the Service has it, else as the target has it; by name.
fn find_port<'a>(service: &'a Service, wanted: &PortRef<'_>, protocol: Protocol) -> Option<&'a ServicePort> {
    let ports = || ports(service, protocol);
    match wanted {
        PortRef::Name(name) => ports().find(|port| port.name.as_deref() == Some(name)),
        PortRef::Number(number) => ports()
            .find(|port| port.port == *number)
            .or_else(|| ports().find(|port| port.target_port == Some(IntOrString::Int(*number)))),
    }
}

fn port_label(port: &ServicePort) -> String {
    match &port.name {
        Some(name) => format!("{name} ({})", port.port),
        None => port.port.to_string(),
    }
}
