//! Service ports that routes point at, and the endpoints behind them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::IngressServiceBackend;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::endpoints::{Slices, State, Use};
use super::findings::About;
use crate::model::ObjectName;
use crate::model::l4::Protocol;
use crate::model::l7::{Upstream, UpstreamName};
use crate::objects::Objects;

/// Upstreams by name, built as routes ask for them.
pub(super) struct Upstreams<'a> {
    objects: &'a Objects,
    slices: &'a Slices<'a>,
    built: BTreeMap<UpstreamName, Upstream>,
}

/// Number or name of a Service port.
enum PortRef<'a> {
    Number(i32),
    Name(&'a str),
}

impl<'a> Upstreams<'a> {
    pub(super) fn new(objects: &'a Objects, slices: &'a Slices<'a>) -> Self {
        Self { objects, slices, built: BTreeMap::new() }
    }

    pub(super) fn into_built(self) -> BTreeMap<UpstreamName, Upstream> {
        self.built
    }

    /// The upstream of a backend, without endpoints (503) where something is missing.
    pub(super) fn of_backend(
        &mut self,
        namespace: &str,
        backend: &IngressServiceBackend,
        field: &str,
        about: &mut About<'_>,
    ) -> UpstreamName {
        let port = backend.port.as_ref();
        let name = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
        let port = match name {
            Some(name) => PortRef::Name(name),
            None => PortRef::Number(port.and_then(|port| port.number).unwrap_or_default()),
        };
        let text = match port {
            PortRef::Name(name) => name.to_owned(),
            PortRef::Number(number) => number.to_string(),
        };
        let upstream = UpstreamName(format!("{namespace}-{}-{text}", backend.name));
        let service = ObjectName::new(namespace, &backend.name);
        let endpoints = self.endpoints(&service, &port, &format!("{field}.service"), about);
        self.built.entry(upstream.clone()).or_insert(endpoints);
        upstream
    }

    /// The upstream of a Service's first port; `None` where there is no such Service.
    pub(super) fn of_first_port(
        &mut self,
        service: &ObjectName,
        about: &mut About<'_>,
    ) -> Option<UpstreamName> {
        let spec = self.objects.services.get(service).and_then(|sourced| sourced.object.spec.as_ref());
        let Some(port) = spec.and_then(|spec| spec.ports.as_ref()?.first()) else {
            about.error(
                "missing-service",
                "",
                format!("default backend Service {service} does not exist or has no port"),
            );
            return None;
        };
        let upstream = UpstreamName(format!("{}-{}-{}", service.namespace, service.name, port.port));
        let endpoints = self.endpoints(service, &PortRef::Number(port.port), "", about);
        self.built.entry(upstream.clone()).or_insert(endpoints);
        Some(upstream)
    }

    fn endpoints(
        &self,
        name: &ObjectName,
        port: &PortRef<'_>,
        field: &str,
        about: &mut About<'_>,
    ) -> Upstream {
        const UNAVAILABLE: &str = "requests answer 503";
        let Some(sourced) = self.objects.services.get(name) else {
            let message = format!("Service {name} does not exist: {UNAVAILABLE}");
            about.warn(
                "missing-service",
                format!("{field}.name"),
                message,
                "add the Service, or correct the name",
            );
            return Upstream::default();
        };
        let service = &sourced.object;
        if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            about.error_fix(
                "external-name-not-yet",
                format!("{field}.name"),
                format!("Service {name} is of type ExternalName, which is not resolved yet: {UNAVAILABLE}"),
                "use a Service with an EndpointSlice of addresses",
            );
            return Upstream::default();
        }
        let Some(service_port) = find_port(service, port) else {
            let known: Vec<_> = ports(service).map(port_label).collect();
            about.warn(
                "missing-port",
                format!("{field}.port"),
                format!("Service {name} has no such port, only {}: {UNAVAILABLE}", known.join(", ")),
                "correct the port's name or number",
            );
            return Upstream::default();
        };
        let endpoints = self.slices.of(name, service_port, Protocol::Tcp, None, Use::Route);
        let ready = endpoints.iter().filter(|(_, endpoint)| endpoint.state == State::Ready);
        let ready: std::collections::BTreeSet<_> = ready.map(|(addr, _)| *addr).collect();
        if ready.is_empty() {
            let (message, fix) = if !endpoints.is_empty() {
                (format!("no endpoint of Service {name} is ready"), String::new())
            } else if !self.slices.exist(name, None) {
                let fix =
                    format!("write an EndpointSlice labelled kubernetes.io/service-name: {}", name.name);
                (format!("Service {name} has no EndpointSlice"), fix)
            } else {
                let wanted = service_port.name.as_deref().unwrap_or_default();
                let fix = "give the slice's port the name of the Service's port";
                let known = self.slices.port_names(name);
                (
                    format!("no endpoints of Service {name} under port name {wanted:?}, only {known:?}"),
                    fix.to_owned(),
                )
            };
            about.warn("no-endpoints", field, format!("{message}: {UNAVAILABLE}"), fix);
        }
        Upstream { endpoints: ready }
    }
}

fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
}

/// By number as the Service has it, else as the target has it; by name.
fn find_port<'a>(service: &'a Service, wanted: &PortRef<'_>) -> Option<&'a ServicePort> {
    match wanted {
        PortRef::Name(name) => ports(service).find(|port| port.name.as_deref() == Some(name)),
        PortRef::Number(number) => ports(service)
            .find(|port| port.port == *number)
            .or_else(|| ports(service).find(|port| port.target_port == Some(IntOrString::Int(*number)))),
    }
}

fn port_label(port: &ServicePort) -> String {
    match &port.name {
        Some(name) => format!("{name} ({})", port.port),
        None => port.port.to_string(),
    }
}
