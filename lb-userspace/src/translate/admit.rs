//! What an API server, or ingress-nginx's validation of class A, would refuse: such an object never
//! replaces its last good version.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations;
use super::certificates;
use super::findings::{About, Findings};
use super::names;
use super::pools;
use super::services;
use super::vips;
use crate::model::l4::Prefix;
use crate::model::{ObjectId, ObjectName, Problem};
use crate::objects::{Kind, Object};

/// Judges one object, and the ConfigMap of the address pools by the name that it has; any problem of severity error
/// refuses it.
pub(super) fn admit(object: &Object, id: &ObjectId, address_pools: Option<&ObjectName>) -> Vec<Problem> {
    let mut findings = Findings::default();
    let mut about = findings.about(id);
    metadata(object, &mut about);
    match object {
        Object::Ingress(object) => ingress(object, &mut about),
        Object::Service(object) => service(object, &mut about),
        Object::EndpointSlice(object) => endpoint_slice(object, &mut about),
        Object::Secret(secret) if secret.type_.as_deref() == Some("kubernetes.io/tls") => {
            // Chain and key are often written one after the other: the pair in force stays until
            // the new one belongs together.
            check(certificates::check(&object.key().name, secret), "bad-certificate", "data", &mut about);
        }
        Object::ConfigMap(config_map) if pools::may_count(&object.key().name, address_pools) => {
            pools::admit(config_map, &mut about);
        }
        Object::ConfigMap(_) | Object::IngressClass(_) | Object::Secret(_) | Object::Node(_) => {}
    }
    findings.into_sorted()
}

fn check<T>(
    result: Result<T, String>,
    reason: &'static str,
    field: impl Into<String>,
    about: &mut About<'_>,
) {
    if let Err(message) = result {
        about.error(reason, field, message);
    }
}

fn metadata(object: &Object, about: &mut About<'_>) {
    let key = object.key();
    let name = &key.name.name;
    let verdict = if key.kind == Kind::Service { names::label(name) } else { names::subdomain(name) };
    check(verdict, "bad-name", "metadata.name", about);
    if key.kind.is_namespaced() {
        check(names::label(&key.name.namespace), "bad-name", "metadata.namespace", about);
    }
}

fn ingress(ingress: &Ingress, about: &mut About<'_>) {
    let Some(spec) = &ingress.spec else {
        about.error("missing-field", "spec", "an Ingress needs rules or a default backend");
        return;
    };
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        about.error("missing-field", "spec", "an Ingress needs rules or a default backend");
    }
    if let Some(class) = &spec.ingress_class_name {
        check(names::subdomain(class), "bad-name", "spec.ingressClassName", about);
    }
    if let Some(default) = &spec.default_backend {
        backend(default, "spec.defaultBackend", about);
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if let Some(host) = rule.host.as_deref().filter(|host| !host.is_empty()) {
            check(names::host(host), "bad-host", format!("{field}.host"), about);
        }
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        for (index, entry) in paths.enumerate() {
            path(entry, &format!("{field}.http.paths[{index}]"), about);
        }
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        for (host_index, host) in tls.hosts.iter().flatten().enumerate() {
            let field = format!("spec.tls[{index}].hosts[{host_index}]");
            check(names::host(host), "bad-host", field, about);
        }
        if let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) {
            check(names::subdomain(name), "bad-name", format!("spec.tls[{index}].secretName"), about);
        }
    }
    annotations::admit(&ingress.metadata, about);
}

fn path(entry: &HTTPIngressPath, field: &str, about: &mut About<'_>) {
    backend(&entry.backend, &format!("{field}.backend"), about);
    let path = entry.path.as_deref().unwrap_or_default();
    let verdict = match entry.path_type.as_str() {
        "Exact" | "Prefix" => names::strict_path(path),
        "ImplementationSpecific" if path.is_empty() => Ok(()),
        "ImplementationSpecific" => names::absolute_path(path),
        "" => {
            about.warn(
                "missing-path-type",
                format!("{field}.pathType"),
                "missing; taken as Prefix",
                "an API server requires it: write Prefix",
            );
            if path.is_empty() { Ok(()) } else { names::absolute_path(path) }
        }
        other => {
            let message = format!("{other:?} is none of Exact, Prefix, ImplementationSpecific");
            about.error("bad-path-type", format!("{field}.pathType"), message);
            Ok(())
        }
    };
    check(verdict, "bad-path", format!("{field}.path"), about);
}

fn backend(backend: &IngressBackend, field: &str, about: &mut About<'_>) {
    let service = match (&backend.service, &backend.resource) {
        (Some(service), None) => service,
        (None, Some(_)) => return,
        (None, None) => return about.error("missing-field", field, "a service or a resource is required"),
        (Some(_), Some(_)) => {
            return about.error("bad-backend", field, "service and resource exclude each other");
        }
    };
    check(names::label(&service.name), "bad-name", format!("{field}.service.name"), about);
    let port = service.port.as_ref();
    let name = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
    let number = port.and_then(|port| port.number).filter(|number| *number != 0);
    let field = format!("{field}.service.port");
    match (name, number) {
        (Some(name), None) => check(names::port_name(name), "bad-port", format!("{field}.name"), about),
        (None, Some(number)) => check(names::port(number), "bad-port", format!("{field}.number"), about),
        (None, None) => about.error("missing-field", field, "a port name or number is required"),
        (Some(_), Some(_)) => about.error("bad-port", field, "name and number exclude each other"),
    }
}

fn service(service: &Service, about: &mut About<'_>) {
    let Some(spec) = &service.spec else { return };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let message = format!("{kind:?} is none of ClusterIP, NodePort, LoadBalancer, ExternalName");
        about.error("bad-type", "spec.type", message);
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut names_seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        check(names::port(port.port), "bad-port", format!("{field}.port"), about);
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let message = format!("{protocol:?} is none of TCP, UDP, SCTP");
            about.error("bad-protocol", format!("{field}.protocol"), message);
        }
        if !seen.insert((port.port, protocol)) {
            about.error("duplicate-port", &field, format!("{} {protocol} is listed twice", port.port));
        }
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            about.error(
                "missing-field",
                format!("{field}.name"),
                "required where there is more than one port",
            );
        }
        if !name.is_empty() {
            check(names::label(name), "bad-name", format!("{field}.name"), about);
            if !names_seen.insert(name) {
                about.error("duplicate-port", format!("{field}.name"), format!("{name:?} is used twice"));
            }
        }
        match &port.target_port {
            Some(IntOrString::Int(number)) => {
                check(names::port(*number), "bad-port", format!("{field}.targetPort"), about);
            }
            Some(IntOrString::String(name)) => {
                check(names::port_name(name), "bad-port", format!("{field}.targetPort"), about);
            }
            None => {}
        }
        if let Some(number) = port.node_port.filter(|number| *number != 0) {
            check(names::port(number), "bad-port", format!("{field}.nodePort"), about);
        }
    }
    for (index, addr) in spec.external_ips.iter().flatten().enumerate() {
        let verdict = match addr.parse::<IpAddr>() {
            Err(_) => Err(format!("{addr:?} is not an IP address")),
            Ok(parsed) => names::unusable_vip(parsed).map_or(Ok(()), |why| Err(format!("{addr} {why}"))),
        };
        check(verdict, "bad-address", format!("spec.externalIPs[{index}]"), about);
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            let message = format!("{family:?} is neither IPv4 nor IPv6");
            about.error("bad-family", format!("spec.ipFamilies[{index}]"), message);
        }
    }
    let affinity = spec.session_affinity.as_deref().unwrap_or("None");
    if !matches!(affinity, "None" | "ClientIP") {
        let message = format!("{affinity:?} is neither None nor ClientIP");
        about.error("bad-affinity", "spec.sessionAffinity", message);
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let allowed = 1..=services::MAX_AFFINITY_SECONDS;
    if let Some(seconds) = config.and_then(|config| config.timeout_seconds)
        && !allowed.contains(&seconds)
    {
        let message = format!("{seconds} is not between 1 and {} seconds", allowed.end());
        about.error("bad-affinity", "spec.sessionAffinityConfig.clientIP.timeoutSeconds", message);
    }
    let policies = [
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy),
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy),
    ];
    for (field, policy) in policies {
        if let Some(policy) = policy.as_deref().filter(|policy| !matches!(*policy, "Cluster" | "Local")) {
            about.error("bad-traffic-policy", field, format!("{policy:?} is neither Cluster nor Local"));
        }
    }
    // Who may use it must not depend on how well a typing error is guessed.
    if kind == "LoadBalancer"
        && let Some((field, ranges)) = vips::written_ranges(service, spec)
    {
        for range in ranges {
            check(range.parse::<Prefix>().map(drop), "bad-source-range", &field, about);
        }
    }
}

fn endpoint_slice(slice: &EndpointSlice, about: &mut About<'_>) {
    let is_v4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => return,
        other => {
            let message = format!("{other:?} is none of IPv4, IPv6, FQDN");
            return about.error("bad-address-type", "addressType", message);
        }
    };
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        if endpoint.addresses.is_empty() {
            about.error("missing-field", &field, "an endpoint needs an address");
        }
        for (index, addr) in endpoint.addresses.iter().enumerate() {
            let verdict = match addr.parse::<IpAddr>() {
                Err(_) => Err(format!("{addr:?} is not an IP address")),
                Ok(parsed) if parsed.is_ipv4() != is_v4 => {
                    Err(format!("{addr} is not of addressType {}", slice.address_type))
                }
                Ok(_) => Ok(()),
            };
            check(verdict, "bad-address", format!("{field}[{index}]"), about);
        }
    }
    let mut names_seen = BTreeSet::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let field = format!("ports[{index}]");
        if let Some(number) = port.port {
            check(names::port(number), "bad-port", format!("{field}.port"), about);
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let message = format!("{protocol:?} is none of TCP, UDP, SCTP");
            about.error("bad-protocol", format!("{field}.protocol"), message);
        }
        if !names_seen.insert(port.name.as_deref().unwrap_or_default()) {
            about.error("duplicate-port", format!("{field}.name"), "two ports have the same name");
        }
    }
}
