//! What follows from where the balancer stands: limits, client addresses, port names.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Caught;
use super::world::{Port, World, field};
use crate::objects::{Key, Kind};
use crate::translate;

const LIMITS: [&str; 3] = ["limit-rps", "limit-rpm", "limit-connections"];

/// Each balancer counts by itself, as each replica of ingress-nginx does; but there is one on every
/// edge host, where there was a Deployment with a number of replicas.
pub(super) fn limits_per_balancer(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        if let Some(name) = ingress.first_of(&LIMITS) {
            let message = "is counted by every balancer for itself: with another number of them than ingress-nginx had replicas, clients get another limit in all";
            let fix = "multiply by the former replicas and divide by the number of edge hosts";
            caught.differs(&ingress.id, "limit-per-balancer", field(name), message, fix);
        }
    }
}

/// Behind `externalTrafficPolicy: Cluster` ingress-nginx saw addresses of nodes; here clients keep
/// theirs.
pub(super) fn client_address(world: &World<'_>, caught: &mut Caught) {
    let by_address = world.primaries().filter(|ingress| {
        ingress
            .first_of(&["allowlist-source-range", "whitelist-source-range", "denylist-source-range"])
            .or_else(|| ingress.first_of(&LIMITS))
            .is_some()
    });
    let by_address = by_address.count();
    for (name, sourced) in &world.objects.services {
        let Some(spec) = &sourced.object.spec else { continue };
        let is_outer = matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort"));
        let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
        if !is_outer || is_local || !translate::is_ingress_service(name, &sourced.object, world.options) {
            continue;
        }
        let id = Key { kind: Kind::Service, name: name.clone() }.id(&sourced.origin);
        let field = "spec.externalTrafficPolicy";
        let message = "behind Cluster ingress-nginx saw addresses of nodes; here the client's own address reaches lists, limits, logs and X-Forwarded-For";
        match by_address {
            0 => caught.note(&id, "true-client-address", field, message, ""),
            1 => caught.differs(
                &id,
                "true-client-address",
                field,
                message,
                "look over the Ingress that goes by addresses",
            ),
            many => {
                let fix = format!("look over the {many} Ingresses that go by addresses");
                caught.differs(&id, "true-client-address", field, message, fix);
            }
        }
    }
}

/// A port by the number that the pods listen on, which no other controller understands.
pub(super) fn ports_by_target(world: &World<'_>, caught: &mut Caught) {
    for ingress in &world.ingresses {
        for place in &ingress.paths {
            let Some(target) = &place.target else { continue };
            let Port::Number(number) = target.port else { continue };
            let name = crate::model::ObjectName::new(target.namespace, target.service);
            let service = world.objects.services.get(&name).and_then(|sourced| sourced.object.spec.as_ref());
            let ports = || service.iter().flat_map(|spec| spec.ports.iter().flatten());
            let is_target = |port: &k8s_openapi::api::core::v1::ServicePort| {
                port.target_port == Some(IntOrString::Int(number))
            };
            if let (false, Some(port)) =
                (ports().any(|port| port.port == number), ports().find(|port| is_target(port)))
            {
                let message = format!("{number} is a target port of Service {name}, not a port");
                let fix = format!("write {}", port.port);
                let field = format!("{}.backend.service.port.number", place.field);
                caught.note(&ingress.id, "port-by-target", field, message, fix);
            }
        }
    }
}

/// A Service for metrics that finds its port by name finds it in our pods, too, under that name.
pub(super) fn named_metrics_port(world: &World<'_>, caught: &mut Caught) {
    const OURS: [(&str, &str); 4] =
        [("http", "80"), ("https", "443"), ("metrics", "10254"), ("webhook", "8443")];
    for (name, sourced) in &world.objects.services {
        let spec = sourced.object.spec.as_ref();
        let selector = spec.and_then(|spec| spec.selector.as_ref());
        let label = |label: &str| selector.and_then(|selector| selector.get(label)).map(String::as_str);
        if label("app.kubernetes.io/name") != Some("ingress-nginx") {
            continue;
        }
        let id = Key { kind: Kind::Service, name: name.clone() }.id(&sourced.origin);
        for (index, port) in spec.iter().flat_map(|spec| spec.ports.iter().flatten()).enumerate() {
            let Some(IntOrString::String(target)) = &port.target_port else { continue };
            let field = format!("spec.ports[{index}].targetPort");
            match OURS.iter().find(|(ours, _)| ours == target) {
                Some((_, number)) => {
                    let message = format!(
                        "finds the pods' port by the name {target}: give it to port {number} of the penstock container"
                    );
                    caught.note(&id, "port-by-name", field, message, "");
                }
                None => {
                    let message = format!("no port of the balancer is called {target}");
                    caught.needs_action(
                        &id,
                        "port-by-name",
                        field,
                        message,
                        "use http, https, metrics or webhook",
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress, messages, reported, service};

    #[test]
    fn limits_differ_because_there_is_another_number_of_balancers() {
        let input = ingress("a", "nginx.ingress.kubernetes.io/limit-rps: '5'");

        assert_eq!(
            reported(&input, &["limit-per-balancer"]),
            ["Ingress default/a differs: limit-rps [limit-per-balancer]"]
        );
    }

    #[test]
    fn the_true_client_address_differs_where_rules_go_by_it() {
        let outer = service("ingress-nginx-controller", "type: LoadBalancer\n  ports: [{port: 80}]");
        let rule = ingress("a", "nginx.ingress.kubernetes.io/limit-rps: '5'");
        let local = outer.replace("type: LoadBalancer", "type: LoadBalancer\n  externalTrafficPolicy: Local");
        let cases = [
            (
                outer.clone(),
                vec![
                    "Service default/ingress-nginx-controller identical: spec.externalTrafficPolicy [true-client-address]",
                ],
            ),
            (
                format!("{outer}---\n{rule}"),
                vec![
                    "Service default/ingress-nginx-controller differs: spec.externalTrafficPolicy [true-client-address]",
                ],
            ),
            (format!("{local}---\n{rule}"), vec![]),
        ];
        for (input, expected) in cases {
            assert_eq!(reported(&input, &["true-client-address"]), expected, "{input}");
        }
    }

    #[test]
    fn a_port_by_the_number_of_the_pods_is_named() {
        let input =
            format!("{}---\n{}", ingress("a", ""), service("web", "ports: [{port: 8080, targetPort: 80}]"));

        assert_eq!(
            messages(&input, &["port-by-target"]),
            ["80 is a target port of Service default/web, not a port"]
        );
    }

    #[test]
    fn ports_that_a_service_finds_by_name_are_named() {
        let selector = "selector: {app.kubernetes.io/name: ingress-nginx}";
        let metrics = service("m", &format!("{selector}\n  ports: [{{port: 10254, targetPort: metrics}}]"));
        let other = service("o", &format!("{selector}\n  ports: [{{port: 1, targetPort: other}}]"));

        assert_eq!(
            reported(&format!("{metrics}---\n{other}"), &["port-by-name"]),
            [
                "Service default/m identical: spec.ports[0].targetPort [port-by-name]",
                "Service default/o needs action: spec.ports[0].targetPort [port-by-name]"
            ]
        );
    }
}
